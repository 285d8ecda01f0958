//! A part of a page of the documentation that a test writes from what it has measured.

use std::process::Command;

use k8s_openapi::jiff::Timestamp;

use crate::parts::repository;
use crate::process::run;

/// The part of a page between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    path: &'static str,
    name: &'static str,
}

impl Page {
    /// Names a part of a page, by its path from the root of the repository.
    pub const fn new(path: &'static str, name: &'static str) -> Self {
        Self { path, name }
    }

    /// Returns the part without empty lines around it.
    pub fn read(&self) -> String {
        self.split().1
    }

    /// Replaces the part.
    pub fn write(&self, part: &str) {
        let (before, _, after) = self.split();
        let text = format!("{before}\n\n{}\n\n{after}", part.trim());
        std::fs::write(repository().join(self.path), text).expect("the page can be written");
    }

    /// Returns what is before the part, the part, and what is behind it. The markers belong to what is around it.
    fn split(&self) -> (String, String, String) {
        let text = std::fs::read_to_string(repository().join(self.path)).expect("the page");
        let [begin, end] = ["begin", "end"].map(|word| format!("<!-- {}: {word} -->", self.name));
        let (before, rest) = text.split_once(&begin).expect("the page has the first marker");
        let (part, after) = rest.split_once(&end).expect("the page has the second marker");
        (format!("{before}{begin}"), part.trim().to_owned(), format!("{end}{after}"))
    }
}

/// Returns the date and the commit of the sources under test.
pub fn date_and_commit() -> String {
    let commit = run(Command::new("git").args(["rev-parse", "--short=7", "HEAD"]).current_dir(repository()));
    let date = Timestamp::now().to_string();
    format!("{}, {}", &date[..10], commit.trim())
}
