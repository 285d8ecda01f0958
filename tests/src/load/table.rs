//! The result of one change, and the table of results in the documentation.

use std::fmt;
use std::time::{Duration, Instant};

use super::counts::{Counts, Failure};
use super::readers::Reads;
use crate::page::{Page, date_and_commit};

/// The page with the table.
const PAGE: Page = Page::new("docs/operate/lifecycle.md", "measured");
/// With this variable, a test writes its rows into the table.
const UPDATE: &str = "UPDATE_LIFECYCLE";

/// What the load counted during one change.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    seconds: f64,
    created: u64,
    failures: Vec<Failure>,
    started: u64,
    restarted: u64,
    slowest: Duration,
    reads: u64,
    read_errors: Vec<String>,
    note: String,
}

impl Row {
    pub(super) fn between(what: &str, took: Duration, before: &Counts, after: &Counts) -> Self {
        let new = |count: fn(&Counts) -> u64| count(after) - count(before);
        let new_times = &after.start_times[before.start_times.len()..];
        Self {
            what: what.to_owned(),
            seconds: took.as_secs_f64(),
            created: new(|counts| counts.created),
            failures: after.failures[before.failures.len()..].to_vec(),
            started: new(|counts| counts.started),
            restarted: new(|counts| counts.restarted),
            slowest: new_times.iter().max().copied().unwrap_or_default(),
            reads: new(|counts| counts.reads),
            read_errors: after.read_errors[before.read_errors.len()..].to_vec(),
            note: String::new(),
        }
    }

    pub(super) fn add_reads(&mut self, now: &Reads, before: &Reads) {
        // A container that was restarted counts from 0.
        let before = if now.good < before.good { Reads::default() } else { *before };
        self.reads += now.good - before.good;
        let bad = now.bad.saturating_sub(before.bad);
        self.read_errors.extend((0..bad).map(|_| "a pod could not read its volume".to_owned()));
    }

    /// Fails if a read failed, or a pod was not created; then writes the row into the documentation, if that is wanted.
    pub fn has_no_failure(self) {
        assert!(self.reads > 0, "{}: nothing was read", self.what);
        self.has_no_failed_creation();
    }

    /// The same for a change that ends the pods which read.
    pub fn has_no_failed_creation(self) {
        self.has_no_read_error();
        assert!(self.failures.is_empty(), "{}: {:?}", self.what, self.messages());
        self.write();
    }

    /// The same, but pods can be refused with one of these texts until `patience` after `since`. `note` says why.
    pub fn has_failures_only_until(self, since: Instant, patience: Duration, texts: &[&str], note: &str) {
        assert!(self.reads > 0, "{}: nothing was read", self.what);
        self.has_failed_creations_only_until(since, patience, texts, note);
    }

    /// The same for a change that ends the pods which read.
    pub fn has_failed_creations_only_until(
        mut self,
        since: Instant,
        patience: Duration,
        texts: &[&str],
        note: &str,
    ) {
        self.has_no_read_error();
        let is_late = |failure: &&Failure| failure.at.duration_since(since) > patience;
        let is_other = |failure: &&Failure| !texts.iter().any(|text| failure.message.contains(text));
        let wrong: Vec<_> =
            self.failures.iter().filter(|failure| is_late(failure) || is_other(failure)).collect();
        assert!(wrong.is_empty(), "{}: later than {patience:?} or other: {wrong:?}", self.what);
        let last = self.failures.last().map(|failure| failure.at.duration_since(since));
        if let Some(last) = last {
            self.note = format!("{note}; the last one after {:.1} s", last.as_secs_f64());
        }
        self.write();
    }

    fn has_no_read_error(&self) {
        assert!(self.read_errors.is_empty(), "{}: {:?}", self.what, self.read_errors);
    }

    fn messages(&self) -> Vec<&str> {
        self.failures.iter().map(|failure| failure.message.as_str()).collect()
    }

    /// A row of the table in Markdown.
    fn markdown(&self, measured: &str) -> String {
        let failed = match (self.failures.len(), self.note.as_str()) {
            (failed, "") => failed.to_string(),
            (failed, note) => format!("{failed} ({note})"),
        };
        let pods = if self.created == 0 { "–".to_owned() } else { self.created.to_string() };
        let started = self.started + self.restarted;
        let slowest = self.slowest.as_secs_f64();
        let slowest = if self.started == 0 { "–".to_owned() } else { format!("{slowest:.1}") };
        format!(
            "| {} | {:.0} | {pods} | {failed} | {started} | {slowest} | {} | {} | {measured} |",
            self.what,
            self.seconds,
            self.reads,
            self.read_errors.len()
        )
    }

    /// Replaces the row of the same change in the documentation.
    fn write(&self) {
        if std::env::var_os(UPDATE).is_none() {
            return;
        }
        let row = self.markdown(&date_and_commit());
        PAGE.write(&with_row(&PAGE.read(), &self.what, &row));
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:.1} s, {} pods created, {} failed, {} started (slowest {:.1} s), {} restarted, {} reads, {} read errors",
            self.what,
            self.seconds,
            self.created,
            self.failures.len(),
            self.started,
            self.slowest.as_secs_f64(),
            self.restarted,
            self.reads,
            self.read_errors.len()
        )?;
        for message in self.messages() {
            write!(f, "\n  not created: {message}")?;
        }
        self.read_errors.iter().try_for_each(|message| write!(f, "\n  {message}"))
    }
}

/// Replaces the row with this first cell, or adds it at the end.
fn with_row(table: &str, what: &str, row: &str) -> String {
    let first_cell = format!("| {what} |");
    let mut lines: Vec<&str> = table.lines().collect();
    match lines.iter_mut().find(|line| line.starts_with(&first_cell)) {
        Some(line) => *line = row,
        None => lines.push(row),
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_replaced_or_added() {
        let table = "| a | b |\n|---|---|\n| drain | 1 |";
        assert_eq!(
            with_row(table, "drain", "| drain | 2 |"),
            table.replace("| drain | 1 |", "| drain | 2 |")
        );
        assert_eq!(with_row(table, "reboot", "| reboot | 3 |"), format!("{table}\n| reboot | 3 |"));
    }

    #[test]
    fn a_container_that_restarted_counts_from_zero() {
        let counts = Counts::default();
        let mut row = Row::between("x", Duration::from_secs(1), &counts, &counts);
        row.add_reads(&Reads { good: 5, bad: 1 }, &Reads { good: 100, bad: 7 });
        assert_eq!((row.reads, row.read_errors.len()), (5, 1));
        row.add_reads(&Reads { good: 105, bad: 7 }, &Reads { good: 100, bad: 7 });
        assert_eq!((row.reads, row.read_errors.len()), (10, 1));
    }
}
