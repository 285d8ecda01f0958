//! `--watch`: reads the state again and again. A terminal shows all of it with progress bars, a pipe gets the changes.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use k8s_openapi::jiff::Timestamp;

use super::model::{Status, VolumeRow};
use super::table::{Width, is_pulling, render, volume_line};
use super::{Format, Reader, is_terminal};
use crate::exit_status::Failure;
use crate::runtime::wait_for_signal;
use crate::standard_output::write_stdout;

/// How many pulls have a bar.
const MAX_BARS: usize = 12;
/// How many failures in a row end a watch. A single one is shown, because the API server may be restarting.
const MAX_FAILURES: u32 = 5;

/// Shows the state until a signal.
pub(super) async fn run(reader: &Reader, format: Format, interval: Duration) -> Result<(), Failure> {
    let watching = async {
        let mut view = View::new(format);
        let mut failures = 0;
        loop {
            match Box::pin(reader.read()).await {
                Ok(status) => {
                    failures = 0;
                    view.show(&status)?;
                }
                // The first reading says whether the cluster can be read at all.
                Err(failure) if view.is_new() || failures + 1 == MAX_FAILURES => return Err(failure),
                Err(failure) => {
                    failures += 1;
                    view.fail(&failure);
                }
            }
            tokio::time::sleep(interval).await;
        }
    };
    tokio::select! {
        ended = watching => ended,
        () = wait_for_signal() => Ok(()),
    }
}

/// What was shown last.
enum View {
    Screen(Box<Screen>),
    Lines(Lines),
    Json { is_new: bool },
}

impl View {
    fn new(format: Format) -> Self {
        match format {
            Format::Json => Self::Json { is_new: true },
            _ if is_terminal() => Self::Screen(Box::new(Screen::new(format))),
            _ => Self::Lines(Lines::default()),
        }
    }

    fn is_new(&self) -> bool {
        match self {
            Self::Screen(screen) => screen.is_new,
            Self::Lines(lines) => lines.is_new(),
            Self::Json { is_new } => *is_new,
        }
    }

    fn show(&mut self, status: &Status) -> Result<(), Failure> {
        match self {
            Self::Screen(screen) => {
                screen.show(status);
                Ok(())
            }
            Self::Lines(lines) => write_stdout(&lines.changes(status)),
            Self::Json { is_new } => {
                *is_new = false;
                write_stdout(&format!("{}\n", serde_json::json!(status)))
            }
        }
    }

    fn fail(&self, failure: &Failure) {
        match self {
            Self::Screen(screen) => screen.fail(failure),
            Self::Lines(_) | Self::Json { .. } => eprintln!("oras-csi: {failure}"),
        }
    }
}

/// The state on a terminal: the tables, and a bar for each pull.
struct Screen {
    bars: MultiProgress,
    tables: ProgressBar,
    pulls: BTreeMap<String, ProgressBar>,
    width: Width,
    is_new: bool,
}

impl Screen {
    fn new(format: Format) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let tables = bars.add(ProgressBar::new(0));
        tables.set_style(style("{msg}"));
        let width = if format == Format::Wide { Width::Wide } else { Width::Normal };
        Self { bars, tables, pulls: BTreeMap::new(), width, is_new: true }
    }

    fn show(&mut self, status: &Status) {
        self.is_new = false;
        self.tables.set_message(render(status, self.width));
        let pulling: BTreeMap<String, &VolumeRow> = status
            .volumes
            .iter()
            .filter(|row| is_pulling(row))
            .take(MAX_BARS)
            .map(|row| (key(row), row))
            .collect();
        self.pulls.retain(|key, bar| {
            let is_pulling = pulling.contains_key(key);
            if !is_pulling {
                bar.finish_and_clear();
                self.bars.remove(bar);
            }
            is_pulling
        });
        for (key, row) in pulling {
            let Some(progress) = row.state.progress else { continue };
            let bar = self.pulls.entry(key.clone()).or_insert_with(|| {
                let bar = self.bars.add(ProgressBar::new(0));
                bar.set_style(style("{bar:24} {bytes:>10}/{total_bytes:<10} {msg}"));
                bar
            });
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.bytes);
            bar.set_message(format!("{key} {}", progress.text()));
        }
    }

    fn fail(&self, failure: &Failure) {
        self.tables.set_message(format!("{}\noras-csi: {failure}", self.tables.message()));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Returns the pod and the volume of a row.
fn key(row: &VolumeRow) -> String {
    format!("{}/{} {}", row.namespace, row.pod, row.volume.as_deref().unwrap_or("-"))
}

/// The lines that were printed last, by volume.
#[derive(Default)]
struct Lines {
    last: Option<BTreeMap<String, String>>,
    hidden: Vec<String>,
}

impl Lines {
    fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// Returns one line, with the time, for each volume that is new, has changed or is gone.
    fn changes(&mut self, status: &Status) -> String {
        let now: BTreeMap<String, String> =
            status.volumes.iter().map(|row| (key(row), volume_line(row))).collect();
        let before = self.last.take().unwrap_or_default();
        let changed =
            now.iter().filter(|(key, line)| before.get(*key) != Some(line)).map(|(_, line)| line.clone());
        let gone = before.keys().filter(|key| !now.contains_key(*key)).map(|key| format!("{key} gone"));
        let notes = status.hidden.iter().filter(|line| !self.hidden.contains(line));
        let notes = notes.map(|line| format!("Note: {line}"));
        let lines = changed.chain(gone).chain(notes).map(|line| stamped(status.at, &line));
        let text = lines.collect();
        self.hidden.clone_from(&status.hidden);
        self.last = Some(now);
        text
    }
}

fn stamped(at: Timestamp, line: &str) -> String {
    let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
    format!("{at} {line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::volume_state::{Kind, Progress, VolumeState};

    fn status(states: &[(&str, u64)]) -> Status {
        let row = |(pod, bytes): &(&str, u64)| VolumeRow {
            namespace: "team".to_owned(),
            pod: (*pod).to_owned(),
            node: None,
            volume: Some("v".to_owned()),
            claim: None,
            id: None,
            set: None,
            artifacts: Vec::new(),
            set_changed: None,
            state: VolumeState {
                state: Kind::Pulling,
                detail: String::new(),
                progress: Some(Progress { bytes: *bytes, total_bytes: 100, seconds_left: None }),
            },
        };
        Status {
            at: Timestamp::from_second(1_800_000_000).unwrap_or_default(),
            namespace: None,
            nodes: Vec::new(),
            sets: Vec::new(),
            volumes: states.iter().map(row).collect(),
            pins: Vec::new(),
            hidden: vec!["cannot list x".to_owned()],
        }
    }

    #[test]
    fn a_pipe_gets_a_line_for_each_change() {
        let mut lines = Lines::default();
        assert!(lines.is_new());
        let first = lines.changes(&status(&[("a", 1), ("b", 1)]));
        assert_eq!(first.lines().count(), 3, "{first}");
        assert!(first.starts_with("2027-01-15T08:00:00Z team/a v  pulling 1% of 100 B\n"), "{first}");
        assert_eq!(lines.changes(&status(&[("a", 1), ("b", 1)])), "");
        let next = lines.changes(&status(&[("a", 50)]));
        assert_eq!(
            next,
            "2027-01-15T08:00:00Z team/a v  pulling 50% of 100 B\n2027-01-15T08:00:00Z team/b v gone\n"
        );
    }

    #[test]
    fn a_screen_has_a_bar_for_each_pull() {
        let mut screen = Screen::new(Format::Table);
        screen.show(&status(&[("a", 1), ("b", 1)]));
        assert_eq!(screen.pulls.len(), 2);
        screen.show(&status(&[("b", 60)]));
        let positions: Vec<_> =
            screen.pulls.iter().map(|(key, bar)| (key.as_str(), bar.position())).collect();
        assert_eq!(positions, [("team/b v", 60)]);
        let many: Vec<String> = (0..100).map(|number| format!("p{number}")).collect();
        let many: Vec<(&str, u64)> = many.iter().map(|name| (name.as_str(), 1)).collect();
        screen.show(&status(&many));
        assert_eq!(screen.pulls.len(), MAX_BARS);
    }
}
