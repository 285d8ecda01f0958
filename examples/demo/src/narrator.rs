//! Prints the demo: numbered steps, and below each what was observed.

use std::io::IsTerminal as _;

/// Prints steps and lines; in colour only on a terminal.
#[derive(Debug)]
pub(crate) struct Narrator {
    step: usize,
    colours: bool,
}

impl Narrator {
    pub(crate) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { step: 0, colours }
    }

    /// Begins the next step.
    pub(crate) fn step(&mut self, title: &str) {
        self.step += 1;
        let (bold, plain) = if self.colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        println!("\n{bold}{}. {title}{plain}", self.step);
    }

    /// Prints lines below the current step.
    pub(crate) fn print(&self, text: &str) {
        let (dim, plain) = if self.colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        for line in text.lines() {
            println!("   {dim}│{plain} {line}");
        }
    }

    /// Prints the difference of two texts, with a few lines around each change.
    pub(crate) fn print_difference(&self, before: &str, after: &str) {
        let (green, red, plain) =
            if self.colours { ("\x1b[32m", "\x1b[31m", "\x1b[0m") } else { ("", "", "") };
        let diff = similar::TextDiff::from_lines(before, after);
        for group in diff.grouped_ops(3) {
            for change in group.iter().flat_map(|operation| diff.iter_changes(operation)) {
                let (colour, sign) = match change.tag() {
                    similar::ChangeTag::Insert => (green, '+'),
                    similar::ChangeTag::Delete => (red, '-'),
                    similar::ChangeTag::Equal => ("", ' '),
                };
                let reset = if colour.is_empty() { "" } else { plain };
                println!("   {colour}{sign} {}{reset}", change.value().trim_end_matches('\n'));
            }
        }
    }
}
