//! Checks that each message that the programs can print has an entry in docs/troubleshooting/, and that each entry is a
//! message.
//!
//! Messages are string literals of product code: those of `#[error(…)]`, of `warn!` and `error!`, and all others with
//! several words. A message is found by its *key*: the longest text between its placeholders, at most ten words of it.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use oras_csi_tests::parts::repository;
use oras_csi_tests::process::run;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The folders of product code.
const FOLDERS: &[&str] = &[
    "core/src",
    "store/src",
    "driver/src",
    "webhook/src",
    "certs/src",
    "kube-support/src",
    "traces/src",
    "src",
];

/// Files whose texts are no messages: descriptions of custom resources and metrics, and names of the contract.
const OTHER_FILES: &[&str] = &[
    "/object.rs",
    "/keys.rs",
    "/metrics",
    "/layers.rs",
    "/manifest/media.rs",
    "/known_files.rs",
    "/layer_kind.rs",
];

/// Parts of texts that are no messages, with what they are.
const OTHER_TEXTS: &[(&str, &str)] = &[
    ("Examples:", "help of a command"),
    ("Exit status:", "help of a command"),
    ("# Download an artifact", "help of a command"),
    ("# Show nodes, sets and pods", "help of a command"),
    ("oras.land in the cluster", "the kind that a message names"),
    ("k8s.io in the cluster", "the kind that a message names"),
    ("persistentvolumes in the cluster", "the kind that a message names"),
    ("namespaces in the cluster", "the kind that a message names"),
    ("field not declared in schema", "words of the API server that the driver looks for"),
    ("has(self.", "CEL of a custom resource"),
    ("self.operator", "CEL of a custom resource"),
    ("oras-csi webhook CA", "the subject of a certificate"),
    ("not a traceparent of W3C", "cause of an error that is not shown"),
    ("oras-csi sums 1", "the first line of a file"),
    ("openmetrics-text", "a media type"),
    ("Labels that a namespace must have", "description of a custom resource"),
    ("Requirements on the labels of a namespace", "description of a custom resource"),
    ("The key of the label", "description of a custom resource"),
    ("How the value of the label", "description of a custom resource"),
    ("Values for In and NotIn", "description of a custom resource"),
];

/// The first words of texts that say what to do. They follow a message that has an entry.
const ADVICE: &[&str] = &[
    "add", "adds", "allow", "apply", "ask", "check", "choose", "correct", "create", "delete", "give",
    "grant", "install", "log", "look", "merge", "move", "name", "push", "raise", "read", "remove", "rename",
    "replace", "report", "request", "retry", "run", "see", "select", "send", "set", "use", "wait", "write",
];

/// The kind of a literal, which decides how many words make it a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Log,
    Text,
}

/// Collects the literals of a stream of tokens.
fn literals(tokens: TokenStream, kind: Kind, found: &mut Vec<(Kind, String)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut position = 0;
    let mut is_test = false;
    while let Some(token) = tokens.get(position) {
        position += 1;
        match token {
            TokenTree::Punct(sign) if sign.as_char() == '#' => {
                if matches!(tokens.get(position), Some(TokenTree::Punct(sign)) if sign.as_char() == '!') {
                    position += 1;
                }
                if let Some(TokenTree::Group(group)) = tokens.get(position) {
                    position += 1;
                    let text = group.stream().to_string();
                    is_test |= text.starts_with("cfg") && text.contains("test");
                    if text.starts_with("error") {
                        attribute(group.stream(), found);
                    }
                }
            }
            TokenTree::Ident(name) => {
                let is_macro =
                    matches!(tokens.get(position), Some(TokenTree::Punct(sign)) if sign.as_char() == '!');
                let Some(TokenTree::Group(group)) = tokens.get(position + 1).filter(|_| is_macro) else {
                    continue;
                };
                match name.to_string().as_str() {
                    "info" | "debug" | "trace" => position += 2,
                    "warn" | "error" => {
                        literals(group.stream(), Kind::Log, found);
                        position += 2;
                    }
                    _ => {}
                }
            }
            TokenTree::Group(group) => {
                let is_body = group.delimiter() == Delimiter::Brace;
                if !is_test {
                    literals(group.stream(), kind, found);
                }
                is_test &= !is_body;
            }
            TokenTree::Punct(sign) if sign.as_char() == ';' => is_test = false,
            TokenTree::Punct(_) => {}
            TokenTree::Literal(literal) => {
                if let Some(text) = unquoted(&literal.to_string()).filter(|_| !is_test) {
                    found.push((kind, text));
                }
            }
        }
    }
}

/// The text of `#[error("…")]`; other literals in it are arguments.
fn attribute(tokens: TokenStream, found: &mut Vec<(Kind, String)>) {
    let mut inner = Vec::new();
    literals(tokens, Kind::Error, &mut inner);
    found.extend(inner.into_iter().next());
}

/// The text of a string literal, or none for other literals.
fn unquoted(literal: &str) -> Option<String> {
    if let Some(raw) = literal.strip_prefix('r') {
        return Some(raw.trim_matches('#').trim_matches('"').to_owned());
    }
    let text = literal.strip_prefix('"')?.strip_suffix('"')?;
    let mut plain = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\\', Some('\n')) => while characters.next_if(|next| next.is_whitespace()).is_some() {},
            ('\\', Some('n' | 't' | 'r')) => {
                characters.next();
                plain.push(' ');
            }
            ('\\', Some(_)) => plain.extend(characters.next()),
            (character, _) => plain.push(character),
        }
    }
    Some(plain)
}

/// The number of words of a text.
fn count_words(text: &str) -> usize {
    let parts = text.split(|character: char| !character.is_ascii_alphabetic() && character != '\'');
    parts.filter(|part| part.len() > 1).count()
}

/// A text without marks of code, with single spaces.
fn plain(text: &str) -> String {
    text.replace('`', "").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The key of a message.
fn key(message: &str) -> String {
    let mut fragments = vec![String::new()];
    let mut is_placeholder = false;
    let mut characters = message.chars().peekable();
    while let Some(character) = characters.next() {
        let is_escaped = "{}".contains(character) && characters.peek() == Some(&character);
        match character {
            '{' | '}' if is_escaped && !is_placeholder => {
                characters.next();
                fragments.last_mut().expect("one").push(character);
            }
            '{' => {
                is_placeholder = true;
                fragments.push(String::new());
            }
            '}' => is_placeholder = false,
            character if !is_placeholder => fragments.last_mut().expect("one").push(character),
            _ => {}
        }
    }
    let fragments = fragments.iter().map(|fragment| plain(fragment));
    // The first of the longest.
    let longest = fragments.rev().max_by_key(|fragment| count_words(fragment)).unwrap_or_default();
    let longest = longest.trim_matches(|character| " .,:;()\"…".contains(character));
    longest.split(' ').take(10).collect::<Vec<_>>().join(" ")
}

fn is_message(kind: Kind, text: &str) -> bool {
    let words = count_words(&key(text));
    match kind {
        Kind::Error | Kind::Log => words >= 3,
        Kind::Text => {
            let first =
                text.split(|character: char| !character.is_ascii_alphabetic()).find(|word| word.len() > 1);
            let is_advice = first.is_some_and(|word| {
                text.starts_with(word) && ADVICE.contains(&word.to_ascii_lowercase().as_str())
            });
            words >= 4 && text.trim().contains(' ') && !is_advice && !text.starts_with("kubectl ")
        }
    }
}

/// All messages of the product, each with its file.
static MESSAGES: LazyLock<Vec<(String, String)>> = LazyLock::new(messages);

fn messages() -> Vec<(String, String)> {
    let mut list = Command::new("git");
    list.args(["ls-files", "-z", "--"]).args(FOLDERS).current_dir(repository());
    let mut messages = Vec::new();
    for file in run(&mut list)
        .split('\0')
        .filter(|file| Path::new(file).extension().is_some_and(|extension| extension == "rs"))
    {
        let name = file.rsplit('/').next().unwrap_or_default();
        let is_test = file.contains("/tests/") || name.contains("tests.rs") || name.contains("testing");
        let is_other = OTHER_FILES.iter().any(|part| file.contains(part));
        let Ok(text) = std::fs::read_to_string(repository().join(file)) else { continue };
        if is_test {
            continue;
        }
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut found = Vec::new();
        literals(tokens, Kind::Text, &mut found);
        found.retain(|(kind, text)| {
            is_message(*kind, text)
                && (*kind != Kind::Text || !is_other)
                && !OTHER_TEXTS.iter().any(|(part, _)| text.contains(part))
        });
        messages.extend(found.into_iter().map(|(_, text)| (text, file.to_owned())));
    }
    messages
}

/// The texts in back quotes of a page, each with whether it is in the first column of a table.
fn quoted(page: &str) -> Vec<(bool, String)> {
    let mut quoted = Vec::new();
    for line in page.lines() {
        // A vertical bar in a cell is escaped.
        let line = line.replace("\\|", "\u{1}");
        let first = line.strip_prefix("| ").and_then(|row| row.split('|').next()).unwrap_or_default();
        let count = first.matches('`').count() / 2;
        let texts = line.split('`').skip(1).step_by(2).enumerate();
        quoted.extend(texts.map(|(index, text)| (index < count, plain(&text.replace('\u{1}', "|")))));
    }
    quoted
}

fn entries() -> Vec<(bool, String)> {
    let folder = repository().join("docs/troubleshooting");
    let pages =
        std::fs::read_dir(&folder).expect("the pages").filter_map(Result::ok).map(|entry| entry.path());
    let mut pages: Vec<_> = pages.collect();
    pages.sort();
    pages.iter().flat_map(|page| quoted(&std::fs::read_to_string(page).expect("a page"))).collect()
}

#[test]
fn every_message_has_an_entry() {
    let entries = entries();
    let messages = &*MESSAGES;
    assert!(messages.len() > 700, "only {} messages were found", messages.len());
    let entries = entries.iter().map(|(_, entry)| entry.as_str()).collect::<Vec<_>>().join("\n");
    let has_entry = |message: &str| entries.contains(&key(message));
    let missing = messages.iter().filter(|(message, _)| !has_entry(message));
    let missing: Vec<String> = missing
        .map(|(message, file)| format!("{file}: {}\n    key: {}", plain(message), key(message)))
        .collect();
    assert!(
        missing.is_empty(),
        "{} messages have no entry in a table of docs/troubleshooting/*.md (write them there with … for a value):\n{}",
        missing.len(),
        missing.join("\n")
    );
}

#[test]
fn every_entry_is_a_message() {
    let keys: Vec<String> = MESSAGES.iter().map(|(message, _)| key(message)).collect();
    let entries = entries().into_iter().filter(|(is_first, _)| *is_first);
    let stale: Vec<String> =
        entries.map(|(_, entry)| entry).filter(|entry| !keys.iter().any(|key| entry.contains(key))).collect();
    assert!(stale.is_empty(), "no program prints these any more: {stale:#?}");
}

#[test]
fn finds_messages_in_code_and_keys_in_messages() {
    let code = r#"
        /// "Not a message, it is a comment."
        #[error("the blob {digest} has the wrong size: {0}", .size)]
        struct Error;
        fn f() { warn!(error = %e, "cannot read it; retrying"); info!("all of this is fine today"); }
        fn g() { deny("is not one of {}", "write one of the names"); let c = b'"'; }
        #[cfg(test)]
        mod tests { const TEXT: &str = "this is only a test"; }
        fn h() { text("begins here \
            and ends here") }
    "#;
    let mut found = Vec::new();
    literals(code.parse().expect("code"), Kind::Text, &mut found);
    let found: Vec<_> =
        found.iter().filter(|(kind, text)| is_message(*kind, text)).map(|(_, text)| key(text)).collect();
    assert_eq!(
        found,
        ["has the wrong size", "cannot read it; retrying", "is not one of", "begins here and ends here"]
    );
    assert_eq!(key("{}: \"{{x}} is {y} not\" a `list` of {z}"), "not\" a list of");
}
