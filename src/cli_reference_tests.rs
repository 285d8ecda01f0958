//! Compares docs/reference/cli.md with the options of the command. `UPDATE_DOCS=1` writes the page.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md");

/// For the test that runs the commands of the documentation.
const NOT_RUN: &str = "<!-- not run: examples of the help, with names of a cluster -->";

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// An option or argument as it is written.
fn name_of(argument: &Arg) -> String {
    let values = argument.get_value_names().unwrap_or_default();
    let takes_values = argument.get_num_args().is_some_and(|range| range.takes_values());
    let values = match (takes_values, values) {
        (false, _) => String::new(),
        (true, []) => argument.get_id().as_str().to_uppercase(),
        (true, values) => values.join(" "),
    };
    let Some(long) = argument.get_long() else { return format!("`{values}`") };
    let short = argument.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
    let values = if values.is_empty() { values } else { format!(" {values}") };
    let aliases = argument.get_visible_aliases().unwrap_or_default();
    let aliases = aliases.iter().fold(String::new(), |all, alias| all + ", `--" + alias + "`");
    format!("{short}`--{long}{values}`{aliases}")
}

/// What an option means, with its default, its values and its environment variable.
fn meaning_of(argument: &Arg) -> String {
    let help = argument.get_long_help().or_else(|| argument.get_help());
    let mut text = cell(&help.map(ToString::to_string).unwrap_or_default());
    if !text.ends_with(['.', ']']) {
        text.push('.');
    }
    let values = argument.get_possible_values();
    let values: Vec<_> = values.iter().filter(|value| !value.is_hide_set()).collect();
    let is_flag = !argument.get_num_args().is_some_and(|range| range.takes_values());
    if !values.is_empty() && !is_flag {
        let values = values.iter().map(|value| format!("`{}`", value.get_name())).collect::<Vec<_>>();
        write!(text, " Values: {}.", values.join(", ")).unwrap();
    }
    let defaults = argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned());
    let defaults: Vec<_> = defaults.collect();
    if !defaults.is_empty() && !is_flag {
        write!(text, " Default: `{}`.", defaults.join(" ")).unwrap();
    }
    if let Some(variable) = argument.get_env() {
        write!(text, " Environment: `{}`.", variable.to_string_lossy()).unwrap();
    }
    text
}

fn write_command(path: &str, command: &Command, page: &mut String) {
    let about = command.get_long_about().or_else(|| command.get_about());
    write!(page, "\n## {path}\n\n{}\n", about.map(ToString::to_string).unwrap_or_default()).unwrap();
    let mut headings: Vec<Option<&str>> = Vec::new();
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let arguments: Vec<&Arg> =
        arguments.filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version")).collect();
    for argument in &arguments {
        if !headings.contains(&argument.get_help_heading()) {
            headings.push(argument.get_help_heading());
        }
    }
    for heading in headings {
        write!(page, "\n| {} | |\n|---|---|\n", heading.unwrap_or("option")).unwrap();
        for argument in arguments.iter().filter(|argument| argument.get_help_heading() == heading) {
            let required = if argument.is_required_set() { " Required." } else { "" };
            writeln!(page, "| {} | {}{required} |", name_of(argument), meaning_of(argument)).unwrap();
        }
    }
    if let Some(examples) = command.get_after_long_help().filter(|_| path.contains(' ')) {
        let examples = examples.to_string();
        let examples = examples.split_once("Examples:\n").map_or(examples.as_str(), |(_, examples)| examples);
        let lines = examples.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect::<Vec<_>>();
        write!(page, "\n{NOT_RUN}\n```sh\n{}\n```\n", lines.join("\n").trim_end()).unwrap();
    }
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        write_command(&format!("{path} {}", subcommand.get_name()), subcommand, page);
    }
}

#[test]
fn the_reference_has_every_option() {
    let mut command = crate::cli::Cli::command();
    command.build();
    let mut page = "# All options\n\nMade from the command itself; a test compares them. `oras-csi COMMAND --help` prints the same. \
                    [Command line](../cli.md) explains the commands and their exit codes.\n"
        .to_owned();
    write_command("oras-csi", &command, &mut page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let found = std::fs::read_to_string(PAGE).unwrap_or_default();
    let line = found.lines().zip(page.lines()).position(|(found, expected)| found != expected);
    assert!(
        found == page,
        "docs/reference/cli.md differs from the command (line {:?}): run `UPDATE_DOCS=1 cargo test --workspace --bin oras-csi reference` and look at the change",
        line.map(|line| line + 1)
    );
}
