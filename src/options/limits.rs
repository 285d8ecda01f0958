//! Flags that limit the content of artifacts, for `driver` and `pull`.

use clap::Args;
use oras_csi_core::policy::ByteSize;
use oras_csi_store::Limits;

/// Limits on what an artifact may contain (docs/design.md, "Limits"). Each limit has its own error message.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
#[expect(clippy::struct_field_names, reason = "the fields are named as the flags")]
pub(crate) struct LimitOptions {
    /// Maximum number of layers of a manifest [default: 4096, which is also the largest value].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_layers: Option<u16>,
    /// Maximum number of files, directories and links of a volume, over all its layers [default: 1000000].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    max_entries: Option<u64>,
    /// Maximum unpacked size of a volume, over all its layers, for example 20Gi [default: 100Gi].
    #[arg(long, value_name = "SIZE")]
    max_unpacked: Option<ByteSize>,
    /// Maximum length of a path in a volume, in bytes [default: 4096].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_path: Option<u16>,
    /// Maximum directory depth of a file in a volume [default: 256].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_depth: Option<u16>,
    /// Maximum window size of a zstd layer, as a power of two. Unpacking such a layer takes that much memory
    /// [default: 27, which is 128 MiB].
    #[arg(long, value_name = "LOG2", value_parser = clap::value_parser!(u32).range(20..=31))]
    max_zstd_window: Option<u32>,
}

impl LimitOptions {
    /// Returns the limits: the flags that are set, and the defaults.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        if let Some(layers) = self.max_layers {
            limits = limits.with_layers(layers.into());
        }
        if let Some(entries) = self.max_entries {
            limits = limits.with_entries(entries);
        }
        if let Some(size) = &self.max_unpacked {
            limits = limits.with_unpacked(size.bytes());
        }
        if let Some(bytes) = self.max_path {
            limits = limits.with_path(bytes.into());
        }
        if let Some(depth) = self.max_depth {
            limits = limits.with_depth(depth.into());
        }
        if let Some(log) = self.max_zstd_window {
            limits = limits.with_zstd_window_log(log);
        }
        limits
    }
}
