//! Compiles the vendored protocol definitions: pure Rust, no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protocols = ["csi.proto", "pluginregistration.proto", "podresources.proto"];
    for protocol in protocols {
        println!("cargo:rerun-if-changed=proto/{protocol}");
    }
    let files = protox::compile(protocols, ["proto"])?;
    tonic_prost_build::configure().build_client(true).build_server(true).compile_fds(files)?;
    Ok(())
}
