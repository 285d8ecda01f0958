//! Turns the file of results into `RESULTS.md` and `plots/`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::disk::run;
use crate::plot::{self, Bar, BarKind, Curve, Group};
use crate::results::{LIMIT, OURS, Series};
use crate::scale::{Scale, number};
use crate::tools;

/// Writes the report into a folder.
pub(crate) fn write(folder: &Path, scale: Scale) -> Result<()> {
    let path = std::env::var_os("ORAS_CSI_BENCH_RESULTS").context("ORAS_CSI_BENCH_RESULTS names no file")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.is_empty()).enumerate();
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), index + 1))
    };
    let all = lines.map(parse).collect::<Result<Vec<Series>>>()?;
    ensure!(!all.is_empty(), "{} has no results: run `make bench`", path.display());
    let plots = folder.join("plots");
    let _ = std::fs::remove_dir_all(&plots);
    std::fs::create_dir_all(&plots)?;
    let mut page = introduction(scale)?;
    for section in in_order(all.iter().map(|series| series.section.as_str())) {
        let _ = write!(page, "\n## {}\n", heading(section));
        let of_section: Vec<&Series> = all.iter().filter(|series| series.section == section).collect();
        let flat: Vec<&Series> = of_section.iter().copied().filter(|series| series.axis.is_none()).collect();
        if let Some(plot) = bar_plot(section, &flat) {
            let name = slug(section) + ".svg";
            std::fs::write(plots.join(&name), plot)?;
            let _ = write!(page, "\n![{section}](plots/{name})\n");
        }
        for unit in in_order(flat.iter().map(|series| series.unit.as_str())) {
            let of_unit: Vec<&Series> = flat.iter().copied().filter(|series| series.unit == unit).collect();
            page += &table(&format!("Case, {unit}"), &of_unit, &|series| series.case.clone());
        }
        let curves: Vec<&Series> =
            of_section.iter().copied().filter(|series| series.axis.is_some()).collect();
        for axis in in_order(curves.iter().filter_map(|series| series.axis.as_deref())) {
            let of_axis = curves.iter().copied().filter(|series| series.axis.as_deref() == Some(axis));
            let of_axis: Vec<&Series> = of_axis.collect();
            for unit in in_order(of_axis.iter().map(|series| series.unit.as_str())) {
                let of_unit = of_axis.iter().copied().filter(|series| series.unit == unit);
                let (text, plot) = growth(axis, unit, &of_unit.collect::<Vec<_>>());
                let name = format!("{}.svg", slug(&format!("{section} {axis} {unit}")));
                std::fs::write(plots.join(&name), plot)?;
                let _ = write!(page, "\n![{unit} by {axis}](plots/{name})\n{text}");
            }
        }
    }
    std::fs::write(folder.join("RESULTS.md"), page)?;
    if !scale.quick {
        quote(&all, &folder.join("../README.md"))?;
    }
    println!("{}", folder.join("RESULTS.md").display());
    Ok(())
}

/// The part of the README that quotes the results.
const QUOTED: (&str, &str) = ("<!-- `make bench` writes this part. -->\n", "<!-- End of the part. -->\n");
/// The section that it quotes.
const HEADLINE: &str = "cold pulls: ext4";

/// Writes the times of the headline into the README.
fn quote(all: &[Series], path: &Path) -> Result<()> {
    let readme = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = readme.split_once(QUOTED.0);
    let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once(QUOTED.1)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no part for the results", path.display()))?;
    let of_headline: Vec<&Series> =
        all.iter().filter(|series| series.section == HEADLINE && series.unit == "s").collect();
    let mut text = String::new();
    for case in in_order(of_headline.iter().map(|series| series.case.as_str())) {
        let find = |program: &str| {
            of_headline.iter().find(|series| series.case == case && series.program == program)
        };
        if let (Some(ours), Some(theirs)) = (find(OURS), find("oras pull")) {
            let (ours, theirs) = (ours.median(), theirs.median());
            let ratio = digits(theirs / ours);
            let _ = writeln!(text, "| {case} | {} s | {} s | {ratio} × |", digits(ours), digits(theirs));
        }
    }
    // A run of other sections leaves the README as it is.
    if text.is_empty() {
        return Ok(());
    }
    let page = format!(
        "{before}{}| from an empty disk (ext4) | oras-csi, mounted | oras pull | ratio |\n|---|--:|--:|--:|\n{text}\n\
         ![{HEADLINE}](benches/plots/{}.svg)\n{}{after}",
        QUOTED.0,
        slug(HEADLINE),
        QUOTED.1
    );
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// The distinct values, in the order of their first occurrence.
fn in_order<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    values.filter(|value| seen.insert(*value)).collect()
}

fn heading(section: &str) -> String {
    let mut letters = section.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn slug(text: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { ' ' };
    text.chars().map(plain).collect::<String>().split_whitespace().collect::<Vec<_>>().join("-")
}

/// A number with three significant digits.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 1000.0 => return number(value.round().abs() as u64),
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 || size == 0.0 => 2,
        size if size >= 0.01 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

fn cell(series: &Series) -> String {
    let (low, high) = series.spread();
    let median = digits(series.median());
    if series.values.len() < 2 { median } else { format!("{median} ({}–{})", digits(low), digits(high)) }
}

/// A table with a column for each program. Beside each value is its ratio to that of oras-csi.
fn table(corner: &str, all: &[&Series], row_of: &dyn Fn(&Series) -> String) -> String {
    let programs = in_order(all.iter().map(|series| series.program.as_str()));
    let mut text =
        format!("\n| {corner} | {} |\n|---|{}\n", programs.join(" | "), "--:|".repeat(programs.len()));
    let rows: Vec<String> = all.iter().map(|series| row_of(series)).collect();
    for row in in_order(rows.iter().map(String::as_str)) {
        let find =
            |program: &str| all.iter().find(|series| row_of(series) == row && series.program == program);
        let ours = find(OURS).map(|series| series.median());
        let _ = write!(text, "| {row} |");
        for program in &programs {
            let Some(series) = find(program) else {
                text += " |";
                continue;
            };
            let ratio = ours.filter(|&ours| *program != OURS && ours > 0.0);
            let ratio =
                ratio.map(|ours| format!(", {} ×", digits(series.median() / ours))).unwrap_or_default();
            let _ = write!(text, " {}{ratio} |", cell(series));
        }
        text += "\n";
    }
    text
}

/// The times of a section as bars.
fn bar_plot(section: &str, all: &[&Series]) -> Option<String> {
    let is_there = |unit: &str| all.iter().any(|series| series.unit == unit);
    let units = if is_there("s") || is_there("ms") { ["s", "ms"] } else { ["s until synced"; 2] };
    let times: Vec<&&Series> = all.iter().filter(|series| units.contains(&series.unit.as_str())).collect();
    let cases = in_order(times.iter().map(|series| series.case.as_str()));
    let group = |case: &&str| {
        let of_case = times.iter().filter(|series| series.case == *case);
        let bar = |series: &&&Series| Bar {
            name: series.program.clone(),
            value: series.median(),
            text: format!(
                "{} {}",
                digits(series.median()),
                series.unit.split(' ').next().unwrap_or_default()
            ),
            kind: match &series.program {
                program if program.starts_with(LIMIT) => BarKind::Limit,
                program if program.starts_with(OURS) => BarKind::Ours,
                _ => BarKind::Other,
            },
        };
        Group { name: (*case).to_owned(), bars: of_case.map(bar).collect() }
    };
    let groups: Vec<Group> = cases.iter().map(group).collect();
    let note = "Median time; shorter is better. Gray: what the machine itself needs.";
    (!groups.is_empty()).then(|| plot::bars(&heading(section), note, &groups))
}

/// A growth curve: its table, and its plot.
fn growth(axis: &str, unit: &str, all: &[&Series]) -> (String, String) {
    let name = |series: &Series| {
        if series.program == OURS {
            series.case.clone()
        } else {
            format!("{}: {}", series.program, series.case)
        }
    };
    let names: Vec<String> = all.iter().map(|series| name(series)).collect();
    let mut positions: Vec<f64> = all.iter().filter_map(|series| series.x).collect();
    positions.sort_by(f64::total_cmp);
    positions.dedup();
    let names = in_order(names.iter().map(String::as_str));
    let mut text = format!("\n| {axis} | {} |\n|--:|{}\n", names.join(" | "), "--:|".repeat(names.len()));
    let find = |column: &str, x: f64| {
        all.iter()
            .find(|series| name(series) == column && series.x.is_some_and(|at| at.total_cmp(&x).is_eq()))
    };
    for &x in &positions {
        let _ = write!(text, "| {} |", number(x as u64));
        for column in &names {
            let _ = write!(text, " {} |", find(column, x).map(|series| cell(series)).unwrap_or_default());
        }
        text += "\n";
    }
    text += "| *slope* |";
    let mut curves = Vec::new();
    for column in &names {
        let found: Vec<&&Series> = positions.iter().filter_map(|&x| find(column, x)).collect();
        let point = |series: &&&Series| {
            let (low, high) = series.spread();
            [series.x.unwrap_or_default(), series.median(), low, high]
        };
        let points: Vec<[f64; 4]> = found.iter().map(point).collect();
        let _ = write!(text, " {} |", slope(&points).map(digits).unwrap_or_default());
        let is_limit = found.iter().any(|series| series.program.starts_with(LIMIT));
        curves.push(Curve { name: (*column).to_owned(), points, is_limit });
    }
    text += "\n";
    (text, plot::curves(&heading(&format!("{unit} by {axis}")), axis, unit, &curves))
}

/// The slope of the last factor of ten or more on logarithmic axes: 0 is constant, 1 is linear, 2 is quadratic.
fn slope(points: &[[f64; 4]]) -> Option<f64> {
    let last = points.last()?;
    let before = points.iter().rev().find(|point| point[0] * 9.9 <= last[0]).or(points.first())?;
    let slope = (last[1] / before[1]).log10() / (last[0] / before[0]).log10();
    slope.is_finite().then_some(slope)
}

/// What was measured with what on which machine.
fn introduction(scale: Scale) -> Result<String> {
    let version = |program: &Path, words: &[&str]| {
        let output = run(Command::new(program).args(words)).unwrap_or_else(|_| "not here".to_owned());
        // Without what some programs print around their version: their path, their libraries.
        let line = output.lines().next().unwrap_or_default();
        let line = line.split(" (").next().unwrap_or_default().trim_matches(['*', ' ']);
        let words = line.split_whitespace().filter(|word| !word.starts_with('/'));
        words.collect::<Vec<_>>().join(" ")
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let line = |text: &str, key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.split(':').nth(1).map(str::trim));
        found.unwrap_or_default().to_owned()
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |words: &[&str]| run(Command::new("git").arg("-C").arg(root).args(words)).unwrap_or_default();
    let changed = if git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":!/benches/RESULTS.md",
        ":!/benches/plots",
    ])
    .is_empty()
    {
        ""
    } else {
        ", with changes"
    };
    let memory: u64 =
        line(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let temporary = std::env::temp_dir();
    let cores = std::thread::available_parallelism()?.get();
    let rows = [
        ("commit", git(&["rev-parse", "--short=12", "HEAD"]) + changed),
        ("date", run(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))?),
        ("extent", scale.extent()),
        ("processor", format!("{}, {cores} cores", line(&read("/proc/cpuinfo"), "model name"))),
        ("memory", format!("{} GiB", memory >> 20)),
        (
            "kernel",
            read("/proc/sys/kernel/osrelease").split('-').next().unwrap_or_default().trim().to_owned(),
        ),
        (
            "file system below the loop devices",
            run(Command::new("stat").args(["-f", "-c", "%T"]).arg(temporary))?,
        ),
        ("oras-csi", version(&tools::ours()?, &["--version"])),
        ("oras", version(&tools::testbed("oras")?, &["version"])),
        ("containerd, ctr", version(&tools::testbed("ctr")?, &["--version"])),
        ("registry", version(&tools::testbed("registry")?, &["--version"])),
        ("skopeo", version(Path::new("skopeo"), &["--version"])),
        ("curl", version(Path::new("curl"), &["--version"])),
        ("openssl", version(Path::new("openssl"), &["version"])),
        ("gzip", version(Path::new("gzip"), &["--version"])),
        ("zstd", version(Path::new("zstd"), &["-qV"])),
    ];
    let mut text = String::from(INTRODUCTION);
    for (key, value) in rows {
        let _ = writeln!(text, "| {key} | {value} |");
    }
    Ok(text)
}

const INTRODUCTION: &str = "# Results

`make bench` writes this page; [README.md](README.md) says what is measured and how to repeat it. No figure is typed by
hand. All programs ran in turn on one machine in one run.

A cell has the median, and in parentheses the smallest and the largest value. The number before × is the ratio to the
column `oras-csi`: above 1, oras-csi needs less. A column `limit: …` is what the machine needs for a part of the work
with the programs of the system. In the sections of cold pulls, `oras-csi` is the driver, until the volume is mounted, and
`oras-csi pull` is the command. *slope* is the growth over the last factor of ten: 0 is constant, 1 is linear.

| | |
|---|---|
";
