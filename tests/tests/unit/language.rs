//! Checks that product sources, documentation and the chart are in plain technical English: no word of
//! [`AVOIDED`] occurs in them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use oras_csi_tests::parts::repository;
use oras_csi_tests::process::run;

/// Words and phrases to avoid, each with the reason or a replacement. Case does not matter, and a plural or
/// possessive `s` is allowed at the end. A phrase also matches across a line break.
const AVOIDED: &[(&str, &str)] = &[
    ("whoever", "name the actor: the caller, the pod, the administrator"),
    ("whomever", "name the actor: the caller, the pod, the administrator"),
    ("whosoever", "name the actor: the caller, the pod, the administrator"),
    ("whom", "name the actor: the caller, the pod, the administrator"),
    ("nobody", "name the actor in a negative sentence: no pod, no process; for credentials: anonymous"),
    ("somebody", "name the actor: the user, another client, the registry"),
    ("everybody", "name the actors: all pods, all clients"),
    ("anybody", "name the actor: any client, any user"),
    ("whence", "archaic: write from which"),
    ("whither", "archaic: write to which"),
    ("thence", "archaic: write from there"),
    ("wherein", "archaic: write in which"),
    ("hitherto", "archaic: write so far"),
    ("lest", "archaic: write so that ... not"),
    ("yet another's", "name the owner"),
    ("anew", "write again"),
    ("for ever", "write permanently, or until the event that ends it"),
    ("a while", "write a delay, an interval, or the number of seconds"),
    ("errand", "write preload task"),
    ("giver", "write the registry that served the digest (provenance)"),
    ("keeper", "write controller"),
    ("set aside", "write quarantine"),
    ("laid aside", "write quarantine"),
    ("let in", "write accepted (credentials) or allowed (requests)"),
    ("in the name of", "write with the credentials of"),
    ("take away", "write delete, remove or evict"),
    ("taken away", "write delete, remove or evict"),
    ("taking away", "write delete, remove or evict"),
    ("fetch ahead", "write preload"),
    ("fetches ahead", "write preload"),
    ("fetched ahead", "write preload"),
    ("fetching ahead", "write preload"),
    ("lay over", "write overlay"),
    ("laid over", "write overlay"),
    ("laid down", "write create, add or write"),
    ("lay down", "write create, add or write"),
    ("brought to the disk", "write synced or durable"),
    ("bring to the disk", "write synced or durable"),
    ("is to be", "write must, or can"),
    ("are to be", "write must, or can"),
    ("wants to be", "write must"),
    ("may be had", "write is available, or can be pulled"),
    ("to be had", "write is available, or can be pulled"),
    ("may have what", "write is allowed to pull"),
    ("is told", "write receives, reports or is notified"),
    ("are told", "write receive, report or are notified"),
    ("what becomes of", "name the result: the state, the error, the handling"),
    ("what comes of", "name the result: the state, the error, the handling"),
];

/// Legitimate uses: the path of a file, a fragment of the line, and the word that the line can have.
const ALLOWED: &[(&str, &str, &str)] = &[];

/// Names that cannot change: the quarantine's folder on disk, its metric label and its JSON key.
const STABLE_NAMES: &[&str] = &["set-aside", "set_aside", "setAside"];

/// The folders and files that the test reads, as `git ls-files` lists them.
const CHECKED: &[&str] = &[
    "core/",
    "store/",
    "driver/",
    "webhook/",
    "certs/",
    "kube-support/",
    "node-artifacts/",
    "public-suffix/",
    "src/",
    "deploy/",
    "docs/",
    "examples/",
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
    "Makefile",
    "Cargo.toml",
    ".github/",
];

/// Parts of those folders that are not ours, or are data.
const EXCLUDED: &[&str] = &["driver/proto/", "/corpus/", "LICENSE"];

/// Returns the tracked text files to check, as paths below the repository.
fn sources() -> Vec<String> {
    let mut list = Command::new("git");
    list.args(["ls-files", "-z", "--"]).args(CHECKED).current_dir(repository());
    let files = run(&mut list);
    let files = files.split('\0').filter(|path| !path.is_empty());
    let files = files.filter(|path| !EXCLUDED.iter().any(|excluded| path.contains(excluded)));
    files.map(str::to_owned).collect()
}

/// A text without punctuation and comment markers: its words in lower case, each with its line (from 1).
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let is_word = |character: char| character.is_alphanumeric() || character == '\'';
        let line = line.replace('\u{2019}', "'");
        let parts = line.split(|character| !is_word(character));
        let parts = parts.map(|part| part.trim_matches('\'')).filter(|part| !part.is_empty());
        words.extend(parts.flat_map(camel_case_parts).map(|part| (number, part)));
    }
    words
}

/// Splits `KeeperState` into `keeper` and `state`, so that the names of types are checked, too.
fn camel_case_parts(word: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut was_lower = false;
    for character in word.chars() {
        if character.is_uppercase() && was_lower {
            parts.push(String::new());
        }
        was_lower = character.is_lowercase();
        if let Some(part) = parts.last_mut() {
            part.extend(character.to_lowercase());
        }
    }
    parts
}

/// Reports whether a word of a text is the given word, or its plural or possessive.
fn is_form_of(word: &str, avoided: &str) -> bool {
    matches!(word.strip_prefix(avoided), Some("" | "s" | "'s"))
}

/// Returns the avoided words of a text, each with its line and the reason.
fn findings(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let text = STABLE_NAMES.iter().fold(text.to_owned(), |text, name| text.replace(name, "-"));
    let words = words(&text);
    let mut found = Vec::new();
    for (avoided, reason) in AVOIDED {
        let phrase: Vec<&str> = avoided.split(' ').collect();
        for window in words.windows(phrase.len()) {
            if window.iter().zip(&phrase).all(|((_, word), avoided)| is_form_of(word, avoided)) {
                found.push((window[0].0, *avoided, *reason));
            }
        }
    }
    found.sort_unstable();
    found
}

fn is_allowed(path: &str, line: &str, word: &str) -> bool {
    ALLOWED
        .iter()
        .any(|(file, fragment, allowed)| *file == path && *allowed == word && line.contains(fragment))
}

#[test]
fn sources_and_documentation_are_in_plain_english() {
    let sources = sources();
    assert!(sources.len() > 300, "{} files are too few to be all sources", sources.len());
    let mut report = String::new();
    let mut count = 0_usize;
    for path in &sources {
        // Binary files have no words, and a file can be deleted but still tracked.
        let Ok(text) = std::fs::read_to_string(repository().join(path)) else { continue };
        for (number, word, reason) in findings(&text) {
            let line = text.lines().nth(number - 1).unwrap_or_default();
            if !is_allowed(path, line, word) {
                count += 1;
                writeln!(report, "{path}:{number}: \"{word}\": {reason}").expect("a string accepts text");
            }
        }
    }
    assert!(count == 0, "{count} places have a word to avoid (see the list in {}):\n{report}", file!());
}

#[test]
fn every_exception_is_in_use() {
    for (path, fragment, word) in ALLOWED {
        let text = std::fs::read_to_string(repository().join(Path::new(path))).unwrap_or_default();
        let is_used = findings(&text).into_iter().any(|(number, found, _)| {
            found == *word && text.lines().nth(number - 1).is_some_and(|line| line.contains(fragment))
        });
        assert!(
            is_used,
            "{path} has no line with \"{fragment}\" and \"{word}\" any more: remove the exception"
        );
    }
}

#[test]
fn finds_words_in_sentences_names_and_across_lines() {
    let found =
        |text: &str| findings(text).into_iter().map(|(line, word, _)| (line, word)).collect::<Vec<_>>();
    assert_eq!(found("x\nWhoever asks.\n"), [(2, "whoever")]);
    assert_eq!(found("in nobody's name"), [(1, "nobody")]);
    assert_eq!(found("mod givers;"), [(1, "giver")]);
    assert_eq!(found("fn ride_an_errand() {}"), [(1, "errand")]);
    assert_eq!(found("struct ErrandState;"), [(1, "errand")]);
    assert_eq!(found("/// It is fetched\n/// ahead."), [(1, "fetched ahead")]);
    assert_eq!(found("yet another\u{2019}s"), [(1, "yet another's")]);
    assert_eq!(found("a wholesome renewal in a whileloop, newly latest"), []);
}
