//! The status as aligned tables.

use std::fmt::Write as _;

use super::model::{NodeRow, PinRow, SetRow, Status, VolumeRow};
use crate::cluster::artifact::{Artifact, TagState};
use crate::cluster::format::{age, cut, short_digest, size};
use crate::cluster::volume_state::Kind;

/// How many characters of a message the normal width shows.
const MAX_MESSAGE: usize = 80;

/// Which columns are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Normal,
    Wide,
}

/// Rows of cells below a title.
pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    fn add(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// Returns the lines. The last column is not filled up. An empty cell is `-`.
    fn render(&self) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|title| title.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut one = String::new();
            for (cell, width) in cells.zip(&widths) {
                let cell = if cell.is_empty() { "-" } else { cell };
                // Writing into a string cannot fail.
                let _ = write!(one, "{cell:<width$}   ");
            }
            text.push_str(one.trim_end());
            text.push('\n');
        };
        line(&mut self.header.iter().copied());
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str));
        }
        text
    }
}

/// Returns all tables and notes.
pub(super) fn render(status: &Status, width: Width) -> String {
    let place = match &status.namespace {
        Some(namespace) => format!("the namespace {namespace}"),
        None => "any namespace".to_owned(),
    };
    let is_all = status.namespace.is_none();
    // A list that the user is not allowed to read is not empty.
    let none = |resources: &[&str], otherwise: String| {
        let hidden =
            status.hidden.iter().find(|line| resources.iter().any(|resource| line.contains(resource)));
        if hidden.is_some() {
            format!("{} are not shown: see the notes below", resources[0])
        } else {
            otherwise
        }
    };
    let sections = [
        section(
            !status.nodes.is_empty(),
            || nodes(status, width),
            &none(&["nodes", "nodeartifacts"], "no node has the driver csi.oras.land".to_owned()),
        ),
        section(
            !status.sets.is_empty(),
            || sets(status, width),
            &none(&["sets", "artifactsets"], format!("no sets in the cluster and in {place}")),
        ),
        section(
            !status.volumes.is_empty(),
            || volumes(status, width, is_all),
            &none(&["pods"], format!("no pods with volumes of csi.oras.land in {place}")),
        ),
        section(
            !status.pins.is_empty(),
            || pins(status, width, is_all),
            &none(&["pins", "artifactpins"], format!("no pins in {place}")),
        ),
    ];
    let mut text = sections.join("\n");
    if !status.hidden.is_empty() {
        text.push('\n');
    }
    for line in &status.hidden {
        let _ = writeln!(text, "Note: {line}");
    }
    text
}

fn section(has_rows: bool, table: impl FnOnce() -> Table, otherwise: &str) -> String {
    if has_rows { table().render() } else { format!("{otherwise}\n") }
}

fn nodes(status: &Status, width: Width) -> Table {
    let mut header = vec!["NODE", "DRIVER", "VOLUMES", "PULLS", "STORE", "FREE", "PRELOADS", "DAMAGE"];
    if width == Width::Wide {
        header.extend(["CAPACITY", "REGISTERED", "REPORTED"]);
    }
    let mut table = Table::new(&header);
    for node in &status.nodes {
        table.add(node_cells(node, status, width));
    }
    table
}

fn node_cells(node: &NodeRow, status: &Status, width: Width) -> Vec<String> {
    let Some(report) = &node.report else {
        let unknown = "no report".to_owned();
        let mut cells = vec![node.name.clone(), unknown];
        cells.resize(8, String::new());
        if width == Width::Wide {
            cells.extend([String::new(), yes_or_no(node.registered), String::new()]);
        }
        return cells;
    };
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let free = match (report.free_bytes, report.capacity_bytes) {
        (Some(free), Some(capacity)) if capacity > 0 => {
            format!("{} ({}%)", size(free), u128::from(free) * 100 / u128::from(capacity))
        }
        (Some(free), _) => size(free),
        _ => String::new(),
    };
    let damage = if report.damaged == 0 { "none".to_owned() } else { format!("{} objects", report.damaged) };
    let mut cells = vec![
        node.name.clone(),
        report.version.clone().unwrap_or_else(|| "unknown".to_owned()),
        number(report.volumes),
        report.pulls.to_string(),
        size(report.store_bytes),
        free,
        format!("{}/{}", report.preloads_ready, report.preloads_wanted),
        damage,
    ];
    if width == Width::Wide {
        let reported = report.reported.map(|time| format!("{} ago", age(Some(time), status.at)));
        cells.extend([
            report.capacity_bytes.map(size).unwrap_or_default(),
            yes_or_no(node.registered),
            reported.unwrap_or_default(),
        ]);
    }
    cells
}

fn yes_or_no(value: Option<bool>) -> String {
    value.map(|value| if value { "yes" } else { "no" }.to_owned()).unwrap_or_default()
}

fn sets(status: &Status, width: Width) -> Table {
    let mut header = vec!["SET", "NAMESPACE", "READY", "ARTIFACT", "DIGEST", "AGE", "NODES"];
    if width == Width::Wide {
        header.extend(["ID", "REFRESHED", "MESSAGE"]);
    }
    let mut table = Table::new(&header);
    for set in &status.sets {
        table.add(set_cells(set, status, width));
    }
    table
}

fn set_cells(set: &SetRow, status: &Status, width: Width) -> Vec<String> {
    let ready = match (set.ready, width) {
        (true, _) => "yes".to_owned(),
        (false, Width::Normal) => format!("no: {}", cut(&set.message, MAX_MESSAGE)),
        (false, Width::Wide) => "no".to_owned(),
    };
    let nodes = set.nodes.map(|nodes| {
        let failed = if nodes.failed > 0 { format!(", {} failed", nodes.failed) } else { String::new() };
        format!("{}/{} ready{failed}", nodes.ready, nodes.desired)
    });
    let namespace = set.namespace.clone().unwrap_or_else(|| "(cluster)".to_owned());
    let mut cells = vec![
        set.name.clone(),
        namespace,
        ready,
        references(&set.artifacts, width),
        digests(&set.artifacts, width),
        age(set.since, status.at),
        nodes.unwrap_or_default(),
    ];
    if width == Width::Wide {
        cells.extend([
            set.id.clone().unwrap_or_default(),
            age(set.refreshed, status.at),
            set.message.clone(),
        ]);
    }
    cells
}

fn volumes(status: &Status, width: Width, is_all: bool) -> Table {
    let has_tags = status.volumes.iter().any(|row| row.set_changed.is_some() || has_checked_tags(row));
    let mut header = Vec::new();
    if is_all {
        header.push("NAMESPACE");
    }
    header.extend(["POD", "VOLUME", "ARTIFACT", "DIGEST"]);
    if has_tags {
        header.push("MOVED");
    }
    if width == Width::Wide {
        header.extend(["NODE", "SET", "ID"]);
    }
    header.push("STATE");
    let mut table = Table::new(&header);
    for row in &status.volumes {
        let mut cells = Vec::new();
        if is_all {
            cells.push(row.namespace.clone());
        }
        cells.extend([
            row.pod.clone(),
            row.volume.clone().unwrap_or_default(),
            references(&row.artifacts, width),
            digests(&row.artifacts, width),
        ]);
        if has_tags {
            cells.push(moved(row, width));
        }
        if width == Width::Wide {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            cells.extend([text(&row.node), text(&row.set), text(&row.id)]);
        }
        let state = row.state.text();
        cells.push(if width == Width::Wide { state } else { cut(&state, MAX_MESSAGE) });
        table.add(cells);
    }
    table
}

fn has_checked_tags(row: &VolumeRow) -> bool {
    row.artifacts.iter().any(|artifact| artifact.tag.is_some())
}

/// Returns whether a tag, or the set, has other content now.
fn moved(row: &VolumeRow, width: Width) -> String {
    if let Some(changed) = row.set_changed {
        return if changed { "yes, the set" } else { "no" }.to_owned();
    }
    let states = || row.artifacts.iter().filter_map(|artifact| artifact.tag.as_ref());
    let moved: Vec<String> = states()
        .filter_map(|state| match state {
            TagState::Moved { digest } if width == Width::Wide => Some(digest.clone()),
            TagState::Moved { digest } => Some(short_digest(digest)),
            _ => None,
        })
        .collect();
    let unknown = states().find_map(|state| match state {
        TagState::Unknown { message } => Some(message),
        _ => None,
    });
    match (moved.is_empty(), unknown) {
        (false, _) => format!("yes, to {}", moved.join(", ")),
        (true, Some(message)) if width == Width::Wide => format!("unknown: {message}"),
        (true, Some(_)) => "unknown".to_owned(),
        (true, None) if states().next().is_some() => "no".to_owned(),
        (true, None) => String::new(),
    }
}

fn pins(status: &Status, width: Width, is_all: bool) -> Table {
    let mut header = Vec::new();
    if is_all {
        header.push("NAMESPACE");
    }
    header.extend(["PIN", "REFERENCE", "DIGEST", "OWNER", "AGE"]);
    let mut table = Table::new(&header);
    for pin in &status.pins {
        table.add(pin_cells(pin, status, width, is_all));
    }
    table
}

fn pin_cells(pin: &PinRow, status: &Status, width: Width, is_all: bool) -> Vec<String> {
    let digest = if width == Width::Wide { pin.digest.clone() } else { short_digest(&pin.digest) };
    let name = if width == Width::Wide { pin.name.clone() } else { cut(&pin.name, 24) };
    let cells = [name, pin.reference.clone(), digest, pin.owner.clone(), age(pin.created, status.at)];
    let namespace = is_all.then(|| pin.namespace.clone());
    namespace.into_iter().chain(cells).collect()
}

/// Returns the references of a volume: the first and how many more there are, or all of them.
fn references(artifacts: &[Artifact], width: Width) -> String {
    joined(artifacts, width, |artifact| artifact.reference.clone())
}

fn digests(artifacts: &[Artifact], width: Width) -> String {
    joined(artifacts, width, |artifact| match width {
        Width::Wide => artifact.digest.clone(),
        Width::Normal => short_digest(&artifact.digest),
    })
}

fn joined(artifacts: &[Artifact], width: Width, text: impl Fn(&Artifact) -> String) -> String {
    match (width, artifacts) {
        (Width::Normal, [first, _, ..]) => format!("{} +{}", text(first), artifacts.len() - 1),
        _ => artifacts.iter().map(text).collect::<Vec<_>>().join(","),
    }
}

/// Returns one line about a volume, for a watch on a pipe.
pub(super) fn volume_line(row: &VolumeRow) -> String {
    let volume = row.volume.as_deref().unwrap_or("-");
    let artifacts = references(&row.artifacts, Width::Normal);
    format!("{}/{} {volume} {artifacts} {}", row.namespace, row.pod, row.state.text())
}

/// Reports whether a volume has a progress bar.
pub(super) fn is_pulling(row: &VolumeRow) -> bool {
    row.state.state == Kind::Pulling && row.state.progress.is_some()
}
