//! Reads and writes streams of Kubernetes manifests, in YAML or JSON.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use oras_csi_core::display::Shown;
use oras_csi_webhook::manifest::{Stream, flatten, read_stream};
use oras_csi_webhook::pod_template::pod_path;
use serde_json::Value;

use crate::exit_status::Failure;

/// The largest file that is read.
const MAX_BYTES: u64 = 64 << 20;

/// The objects of one or more files, in order. The items of a `List` stand in its place.
#[derive(Debug)]
pub(crate) struct Manifests {
    pub(crate) objects: Vec<Value>,
    /// Whether a file has comments. They are lost.
    pub(crate) had_comments: bool,
}

/// Reads the objects of YAML streams. A document that is not a Kubernetes object is an error.
pub(crate) fn read_manifests(files: &[PathBuf]) -> Result<Manifests, Failure> {
    let mut manifests = Manifests { objects: Vec::new(), had_comments: false };
    for file in files {
        let text = read_file_or_stdin(file)?;
        let at = |failure: Failure| failure.at(file.display());
        let (documents, had_comments) = parse_stream(&text).map_err(at)?;
        manifests.had_comments |= had_comments;
        for (document, number) in documents.into_iter().zip(1..) {
            for object in flatten(document) {
                let text =
                    |key: &str| object.get(key).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
                if let Some(missing) = ["apiVersion", "kind"].into_iter().find(|key| !text(key)) {
                    let message =
                        format!("document {number} is not a Kubernetes object: it has no {missing}");
                    return Err(at(Failure::bad_input(message)));
                }
                manifests.objects.push(object);
            }
        }
    }
    Ok(manifests)
}

/// Reads a file, or standard input if its name is `-`.
pub(crate) fn read_file_or_stdin(file: &Path) -> Result<String, Failure> {
    let failed = |error| Failure::bad_input(format!("cannot read {}: {error}", file.display()));
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(MAX_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).map_err(failed)?.take(MAX_BYTES + 1).read_to_string(&mut text)
    };
    if read.map_err(failed)? as u64 > MAX_BYTES {
        return Err(Failure::bad_input(format!(
            "cannot read {}: it is larger than {MAX_BYTES} bytes. Split it into several files.",
            file.display()
        )));
    }
    Ok(text)
}

/// Parses the documents of a YAML stream, without empty ones. JSON is a subset of YAML.
#[cfg(test)]
pub(crate) fn parse(text: &str) -> Result<Vec<Value>, Failure> {
    Ok(parse_stream(text)?.0)
}

/// Parses the documents of a stream, and reports whether it has comments.
fn parse_stream(text: &str) -> Result<(Vec<Value>, bool), Failure> {
    let Stream { documents, has_comments } = read_stream(text).map_err(Failure::bad_input)?;
    Ok((documents.into_iter().filter(|document| !document.is_null()).collect(), has_comments))
}

/// Writes documents as a YAML stream.
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

/// Writes documents as JSON, one per line.
pub(crate) fn to_json_lines(documents: &[Value]) -> String {
    documents.iter().flat_map(|document| [document.to_string(), "\n".to_owned()]).collect()
}

/// Returns the pod or pod template of a manifest, or `None` if its kind has none.
pub(crate) fn pod_of(document: &mut Value) -> Result<Option<&mut Value>, Failure> {
    let Some(path) = pod_path(document) else { return Ok(None) };
    let name = describe(document);
    let mut pod = document;
    for key in path {
        pod = pod
            .get_mut(*key)
            .filter(|value| value.is_object())
            .ok_or_else(|| Failure::bad_input(format!("{name} has no {}", path.join("."))))?;
    }
    Ok(Some(pod))
}

/// Returns `Deployment/name`, for messages.
pub(crate) fn describe(document: &Value) -> String {
    let metadata = &document["metadata"];
    let name = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or("(no name)");
    format!("{}/{}", Shown::new(document["kind"].as_str().unwrap_or("(no kind)")), Shown::new(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn written_yaml_parses_to_the_same_values() -> Result<(), Failure> {
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

    /// `render --output json` writes them, and `kubectl` applies them.
    #[test]
    fn json_objects_can_follow_each_other() -> Result<(), Failure> {
        let documents =
            [json!({"apiVersion": "v1", "kind": "Pod", "n": 0}), json!({"kind": "List", "a": "}{"})];
        assert_eq!(parse(&to_json_lines(&documents))?, documents);
        assert_eq!(parse(&format!(" {}{}", documents[0], documents[1]))?, documents);
        // Each of them is checked as strictly as alone.
        for wrong in [r#"{"a": 1}{"b": 1, "b": 2}"#, r#"{"a": 1}{"#, r#"{"a": 1} b"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn an_error_is_one_line_and_names_the_file_once() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("stream.yaml");
        let error = || read_manifests(std::slice::from_ref(&file)).err().map(|failure| failure.to_string());
        let missing = error().ok_or("an error")?;
        assert_eq!(missing.matches("stream.yaml").count(), 1, "{missing}");
        std::fs::write(&file, "apiVersion: v1\napiVersion: v2\nkind: Pod\n")?;
        let twice = error().ok_or("an error")?;
        assert_eq!(twice.matches("stream.yaml").count(), 1, "{twice}");
        assert!(twice.contains("duplicate") && twice.contains("line 2"), "{twice}");
        assert!(!twice.contains('\n') && !twice.contains("Options"), "{twice}");
        Ok(())
    }

    #[test]
    fn every_example_is_the_same_in_yaml_and_json() -> Result<(), Box<dyn std::error::Error>> {
        let mut count = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "yaml") {
                let objects = read_manifests(std::slice::from_ref(&file))?.objects;
                let lines = to_json_lines(&objects);
                let json = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
                assert_eq!(parse(&to_yaml(&objects)?)?, json, "{}", file.display());
                count += 1;
            }
        }
        assert!(count >= 18, "{count} examples");
        Ok(())
    }

    #[test]
    fn comments_and_empty_documents_are_dropped() -> Result<(), Failure> {
        assert_eq!(
            parse("# nothing\n---\na: 1 # one\n---\n---\nb: 2\n")?,
            [json!({"a": 1}), json!({"b": 2})]
        );
        assert_eq!(parse("{\"a\": [1]}")?, [json!({"a": [1]})]);
        assert!(parse("a: [").is_err());
        Ok(())
    }

    #[test]
    fn numbers_are_read_as_kubectl_reads_them() -> Result<(), Failure> {
        let text = "mode: 0644\nnine: 09\nhex: 0x1F\nzero: 0\nnew: 0o644\nquoted: '0644'\nhost: yes\n";
        let wanted = json!({"mode": 420, "nine": 9.0, "hex": 31, "zero": 0, "new": 420, "quoted": "0644", "host": true});
        assert_eq!(parse(text)?, [wanted]);
        Ok(())
    }

    #[test]
    fn tells_comments_from_number_signs_in_values() -> Result<(), Failure> {
        for text in ["# one\na: 1\n", "a: 1 # one\n", "a:\n  - b\n  # one\n"] {
            assert!(parse_stream(text)?.1, "{text}");
        }
        for text in
            ["a: 1\n", "a: |\n  #!/bin/sh\n  # no comment\n", "a: b#c\n", "a: '# b'\n", "{\"a\": \"#\"}"]
        {
            assert!(!parse_stream(text)?.1, "{text}");
        }
        Ok(())
    }

    #[test]
    fn accepts_a_long_stream_and_rejects_an_alias_bomb() -> Result<(), Failure> {
        let one = format!("apiVersion: v1\nkind: ConfigMap\ndata: [{}]\n---\n", "a,".repeat(250));
        assert_eq!(parse(&one.repeat(1_100))?.len(), 1_100);
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let below = format!("*a{},", level - 1).repeat(9);
            bomb = format!("{bomb}a{level}: &a{level} [{below}]\n");
        }
        assert!(parse(&bomb).is_err());
        Ok(())
    }

    #[test]
    fn lists_are_replaced_by_their_items() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        let unnamed = json!({"metadata": {"name": "p"}, "apiVersion": "v1", "kind": "Pod"});
        let lists = [
            json!({"apiVersion": "v1", "kind": "List", "items": [pod]}),
            json!({"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "p"}}]}),
            json!({"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "List", "items": [pod]}]}),
        ];
        for list in lists {
            assert_eq!(flatten(list), std::slice::from_ref(&unnamed));
        }
        let no_list = json!({"apiVersion": "example.org/v1", "kind": "AllowList", "spec": {}});
        assert_eq!(flatten(no_list.clone()), [no_list]);
        assert!(flatten(json!({"apiVersion": "v1", "kind": "List", "items": null})).is_empty());
    }

    #[test]
    fn rejects_documents_that_are_not_objects() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("stream.yaml");
        for text in [
            "hello\n",
            "- a\n",
            "metadata: {}\n",
            "kind: Pod\n",
            "apiVersion: v1\n",
            "apiVersion: v1\nkind: List\nitems: [{}]\n",
        ] {
            std::fs::write(&file, text)?;
            assert!(read_manifests(std::slice::from_ref(&file)).is_err(), "{text}");
        }
        std::fs::write(&file, "# nothing\n")?;
        assert!(read_manifests(std::slice::from_ref(&file))?.objects.is_empty());
        Ok(())
    }
}
