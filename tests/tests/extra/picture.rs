//! Draws the dashboard as SVG from the results of Prometheus. Grafana is not needed.

use std::fmt::Write as _;

/// One line of a panel: its legend, and its points as seconds and values.
pub(crate) struct Line {
    pub(crate) legend: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A panel with its title, the unit of Grafana and its lines.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) is_stat: bool,
    pub(crate) lines: Vec<Line>,
}

const COLUMNS: usize = 3;
const STAT_COLUMNS: usize = 6;
const WIDTH: f64 = 1_200.0;
const GRAPH: (f64, f64) = (WIDTH / 3.0, 190.0);
const STAT: (f64, f64) = (WIDTH / 6.0, 80.0);
/// How many entries a legend shows.
const LEGENDS: usize = 4;
/// Readable on white and on dark grey.
const COLOURS: [&str; 8] =
    ["#3d8f5f", "#b8860b", "#3b7dd8", "#c0532f", "#9052b5", "#2a8f9c", "#c2497f", "#7a7f2a"];
/// Colours of text and lines follow the setting of the reader.
const STYLE: &str = "\
  text { font: 12px system-ui, sans-serif; fill: #24292f }\n\
  .title { font-weight: 600 }\n\
  .small { font-size: 10px; fill: #57606a }\n\
  .value { font-size: 26px; font-weight: 600; fill: #3d8f5f }\n\
  .panel { fill: #ffffff; stroke: #d0d7de }\n\
  .grid { stroke: #d0d7de; stroke-width: 0.5 }\n\
  .line { fill: none; stroke-width: 1.5 }\n\
  @media (prefers-color-scheme: dark) {\n\
    text { fill: #e6edf3 } .small { fill: #9198a1 } .value { fill: #6fbf8b }\n\
    .panel { fill: #1b1f24; stroke: #3d444d } .grid { stroke: #3d444d }\n\
  }\n";

/// Returns a number with the unit of a panel.
fn shown(value: f64, unit: &str) -> String {
    let scaled = |value: f64, base: f64, names: &[&str]| {
        let mut value = value;
        for name in &names[..names.len() - 1] {
            if value.abs() < base {
                return format!("{value:.1} {name}");
            }
            value /= base;
        }
        format!("{value:.1} {}", names[names.len() - 1])
    };
    match unit {
        "s" if value.abs() >= 86_400.0 => format!("{:.0} days", value / 86_400.0),
        "s" if value.abs() >= 1.0 => format!("{value:.1} s"),
        "s" => format!("{:.1} ms", value * 1_000.0),
        "bytes" => scaled(value, 1_024.0, &["B", "KiB", "MiB", "GiB"]),
        "Bps" => scaled(value, 1_000.0, &["B/s", "kB/s", "MB/s", "GB/s"]),
        "percentunit" => format!("{:.1} %", value * 100.0),
        "reqps" | "ops" => format!("{value:.1} /s"),
        _ => format!("{value:.0}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Returns the picture of all panels.
pub(crate) fn draw(panels: &[Panel]) -> String {
    let (stats, graphs): (Vec<&Panel>, Vec<&Panel>) = panels.iter().partition(|panel| panel.is_stat);
    let top = STAT.1 * f64::from(u32::try_from(stats.len().div_ceil(STAT_COLUMNS)).unwrap_or_default());
    let rows = f64::from(u32::try_from(graphs.len().div_ceil(COLUMNS)).unwrap_or_default());
    let height = top + rows * GRAPH.1;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"The Grafana dashboard of oras-csi\">\n<style>\n{STYLE}</style>\n"
    );
    for (number, panel) in stats.iter().enumerate() {
        let (x, y) = place(number, STAT_COLUMNS, STAT, 0.0);
        frame(&mut svg, x, y, STAT, &panel.title);
        let last = panel.lines.first().and_then(|line| line.points.last());
        let value = last.map_or_else(|| "no data".to_owned(), |(_, value)| shown(*value, &panel.unit));
        write(
            &mut svg,
            format_args!("<text class=\"value\" x=\"{}\" y=\"{}\">{value}</text>\n", x + 12.0, y + 60.0),
        );
    }
    for (number, panel) in graphs.iter().enumerate() {
        let (x, y) = place(number, COLUMNS, GRAPH, top);
        frame(&mut svg, x, y, GRAPH, &panel.title);
        graph(&mut svg, x, y, panel);
    }
    svg.push_str("</svg>\n");
    svg
}

fn write(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("a string accepts text");
}

fn place(number: usize, columns: usize, size: (f64, f64), top: f64) -> (f64, f64) {
    let at = |number: usize| f64::from(u32::try_from(number).unwrap_or_default());
    (at(number % columns) * size.0, top + at(number / columns) * size.1)
}

fn frame(svg: &mut String, x: f64, y: f64, size: (f64, f64), title: &str) {
    let (width, height) = (size.0 - 8.0, size.1 - 8.0);
    write(
        svg,
        format_args!(
            "<rect class=\"panel\" x=\"{}\" y=\"{}\" width=\"{width}\" height=\"{height}\" rx=\"4\"/>\n\
         <text class=\"title\" x=\"{}\" y=\"{}\">{}</text>\n",
            x + 4.0,
            y + 4.0,
            x + 12.0,
            y + 22.0,
            escaped(title)
        ),
    );
}

/// Returns the lines that are not always 0, the highest first; the first one if all are 0.
fn lines_with_values(panel: &Panel) -> Vec<&Line> {
    let highest = |line: &&Line| line.points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let mut lines: Vec<&Line> = panel.lines.iter().collect();
    lines.sort_by(|one, other| highest(other).total_cmp(&highest(one)));
    let used = lines.iter().filter(|line| highest(line) > 0.0).count();
    lines.truncate(used.max(1));
    lines
}

fn graph(svg: &mut String, x: f64, y: f64, panel: &Panel) {
    let lines = lines_with_values(panel);
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let (left, right, top, bottom) = (x + 72.0, x + GRAPH.0 - 16.0, y + 34.0, y + GRAPH.1 - 40.0);
    let start = points().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
    let end = points().map(|(at, _)| *at).fold(f64::NEG_INFINITY, f64::max);
    let most = points().map(|(_, value)| *value).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    for part in [0.0, 0.5, 1.0] {
        let at = bottom - (bottom - top) * part;
        write(
            svg,
            format_args!(
                "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\n\
             <text class=\"small\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                left - 5.0,
                at + 3.5,
                shown(most * part, &panel.unit)
            ),
        );
    }
    if lines.is_empty() {
        write(svg, format_args!("<text class=\"small\" x=\"{left}\" y=\"{}\">none</text>\n", bottom + 22.0));
    }
    let mut legend = left;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let points = line.points.iter().map(|(at, value)| {
            let x = left + (right - left) * (at - start) / (end - start).max(1.0);
            format!("{x:.1},{:.1}", bottom - (bottom - top) * value / most)
        });
        let points = points.collect::<Vec<_>>().join(" ");
        write(svg, format_args!("<polyline class=\"line\" stroke=\"{colour}\" points=\"{points}\"/>\n"));
    }
    for (line, colour) in lines.iter().zip(COLOURS).take(LEGENDS) {
        let length = 5.4 * f64::from(u32::try_from(line.legend.chars().count()).unwrap_or_default());
        if legend + 12.0 + length > right + 12.0 {
            break;
        }
        write(
            svg,
            format_args!(
                "<rect x=\"{legend:.0}\" y=\"{}\" width=\"9\" height=\"3\" fill=\"{colour}\"/>\n\
             <text class=\"small\" x=\"{:.0}\" y=\"{}\">{}</text>\n",
                bottom + 17.0,
                legend + 12.0,
                bottom + 22.0,
                escaped(&line.legend)
            ),
        );
        legend += 22.0 + length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_each_panel_once_and_scales_its_values() {
        let line = Line { legend: "<a>".to_owned(), points: vec![(0.0, 0.0), (1.0, 2_048.0)] };
        let panel = |is_stat| Panel {
            title: "Free & used".to_owned(),
            unit: "bytes".to_owned(),
            is_stat,
            lines: vec![Line { legend: line.legend.clone(), points: line.points.clone() }],
        };
        let svg = draw(&[panel(true), panel(false)]);
        assert_eq!(svg.matches("Free &amp; used").count(), 2, "{svg}");
        assert_eq!(svg.matches("2.0 KiB").count(), 2, "{svg}");
        assert!(svg.contains("&lt;a&gt;") && svg.contains("prefers-color-scheme: dark"));
    }
}
