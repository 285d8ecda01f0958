//! The verdict as text.

use std::fmt::Write as _;

use super::judge::{Mark, Verdict};

/// Returns one line for each step, where the pod stands, and what to do. `has_symbols` is for terminals; a pipe gets words.
pub(crate) fn render(verdict: &Verdict, has_symbols: bool) -> String {
    let mut text = format!("{} in the namespace {}\n", verdict.object, verdict.namespace);
    for step in &verdict.steps {
        let mark = if has_symbols { symbol(step.mark) } else { word(step.mark) };
        let width = if has_symbols { 1 } else { 11 };
        let line = format!("  {mark:<width$} {:<11} {}", step.name.as_str(), step.detail);
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let _ = writeln!(text, "\n{}.", verdict.summary);
    for remark in &verdict.remarks {
        let _ = writeln!(text, "Note: {remark}.");
    }
    if !verdict.advice.is_empty() {
        let _ = writeln!(text, "Next: {}.", verdict.advice);
    }
    if !verdict.command.is_empty() {
        let _ = writeln!(text, "  {}", verdict.command);
    }
    text
}

fn symbol(mark: Mark) -> &'static str {
    match mark {
        Mark::Done => "✓",
        Mark::Waiting => "…",
        Mark::Failed => "✗",
        Mark::Unknown => "?",
        Mark::NotReached => "-",
    }
}

fn word(mark: Mark) -> &'static str {
    match mark {
        Mark::Done => "done",
        Mark::Waiting => "waiting",
        Mark::Failed => "failed",
        Mark::Unknown => "unknown",
        Mark::NotReached => "not reached",
    }
}
