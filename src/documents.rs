//! Streams of Kubernetes manifests: YAML or JSON in, the same out.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use crate::failure::Failure;

/// The largest stream that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// Reads a file, or standard input where its name is `-`.
pub(crate) fn read_text(file: &Path) -> Result<String, Failure> {
    let failed = |error| Failure::bad_input(format!("cannot read {}: {error}", file.display()));
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(LONGEST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).map_err(failed)?.take(LONGEST + 1).read_to_string(&mut text)
    };
    if read.map_err(failed)? as u64 > LONGEST {
        return Err(Failure::bad_input(format!("{}: at most {LONGEST} bytes are read", file.display())));
    }
    Ok(text)
}

/// The documents of a YAML stream (of which JSON is a part), empty ones left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Value>, Failure> {
    let documents = serde_saphyr::from_multiple::<Value>(text)
        .map_err(|error| Failure::bad_input(format!("not a stream of YAML documents: {error}")))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// A YAML stream of these documents.
pub(crate) fn to_yaml(documents: &[Value]) -> Result<String, Failure> {
    let options = serde_saphyr::ser_options! { compact_list_indent: true };
    let mut stream = String::new();
    for (position, document) in documents.iter().enumerate() {
        if position > 0 {
            stream.push_str("---\n");
        }
        serde_saphyr::to_fmt_writer_with_options(&mut stream, document, options.clone())
            .map_err(|error| Failure::failed(format!("cannot write document {}: {error}", position + 1)))?;
    }
    Ok(stream)
}

/// Where the pod of a manifest is: the object itself, or a workload's template.
///
/// Gives the path to the pod (empty for a pod), or `None` for any other kind.
pub(crate) fn pod_path(document: &Value) -> Option<&'static [&'static str]> {
    let kind = document.get("kind").and_then(Value::as_str)?;
    let group = document.get("apiVersion").and_then(Value::as_str)?.split('/').next()?;
    match (group, kind) {
        ("v1", "Pod") => Some(&[]),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("batch", "Job")
        | ("v1", "ReplicationController") => Some(&["spec", "template"]),
        ("v1", "PodTemplate") => Some(&["template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back() -> Result<(), Failure> {
        let tricky = [
            "yes",
            "no",
            "on",
            "012",
            "1e3",
            "~",
            "null",
            "",
            " a",
            "a: b",
            "- x",
            "#",
            "0x1f",
            "1_000",
            "é\n\tx\n",
            "12:30:45",
            "2026-11-23",
            "'\"",
            "a\u{85}b",
            "=",
            "<<",
        ];
        let documents = [
            json!({"a": tricky, "n": [1, -2, 1.5, 9_007_199_254_740_993_i64], "e": {}, "l": []}),
            json!({"b": null, "long": "x ".repeat(200)}),
        ];
        let text = to_yaml(&documents)?;
        assert_eq!(parse(&text)?, documents, "{text}");
        Ok(())
    }

    #[test]
    fn comments_and_empty_documents_go() -> Result<(), Failure> {
        assert_eq!(
            parse("# nothing\n---\na: 1 # one\n---\n---\nb: 2\n")?,
            [json!({"a": 1}), json!({"b": 2})]
        );
        assert_eq!(parse("{\"a\": [1]}")?, [json!({"a": [1]})]);
        assert!(parse("a: [").is_err());
        Ok(())
    }

    #[test]
    fn knows_where_pods_are() {
        let at = |api: &str, kind: &str| pod_path(&json!({"apiVersion": api, "kind": kind}));
        assert_eq!(at("v1", "Pod"), Some(&[] as &[_]));
        assert_eq!(at("batch/v1", "CronJob").map(<[_]>::len), Some(4));
        assert_eq!(at("v1", "Service"), None);
        assert_eq!(at("example.org/v1", "Deployment"), None);
    }
}
