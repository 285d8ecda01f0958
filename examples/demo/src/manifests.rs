//! Kubernetes manifests as YAML.

use anyhow::Context as _;
use serde_json::Value;

/// Parses the documents of a YAML stream.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    serde_saphyr::from_multiple(text).context("cannot parse YAML")
}

/// Parses the first document of a YAML stream.
pub(crate) fn parse_first(text: &str) -> anyhow::Result<Value> {
    parse(text)?.into_iter().next().context("the YAML stream is empty")
}

/// Writes documents as a YAML stream.
pub(crate) fn to_yaml(documents: &[Value]) -> anyhow::Result<String> {
    let options = serde_saphyr::ser_options! { compact_list_indent: true };
    let mut stream = String::new();
    for (position, document) in documents.iter().enumerate() {
        if position > 0 {
            stream.push_str("---\n");
        }
        serde_saphyr::to_fmt_writer_with_options(&mut stream, document, options.clone())
            .context("cannot write YAML")?;
    }
    Ok(stream)
}
