//! Plots as SVG. The colors are classes whose style sheet has a light and a dark variant, so a page in either reads well.

use std::fmt::Write as _;

/// The style of all plots. Colors follow the order of the series; limits are gray.
const STYLE: &str = "text{font:12px sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:600}.name{font-weight:600}.back{fill:#fff}\
.grid{stroke:#d1d9e0;stroke-width:1}.bar,.dot{stroke:none}.line{fill:none;stroke-width:2}.range{stroke-width:1}\
.minor{fill:#59636e}.f0{fill:#0969da}.f1{fill:#bc4c00}.f2{fill:#1a7f37}.f3{fill:#8250df}.f4{fill:#bf3989}.f5{fill:#9a6700}\
.f9{fill:#afb8c1}.l0{stroke:#0969da}.l1{stroke:#bc4c00}.l2{stroke:#1a7f37}.l3{stroke:#8250df}.l4{stroke:#bf3989}\
.l5{stroke:#9a6700}.l9{stroke:#afb8c1}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.back{fill:#0d1117}.grid{stroke:#3d444d}.minor{fill:#9198a1}\
.f0{fill:#4493f8}.f1{fill:#f0883e}.f2{fill:#3fb950}.f3{fill:#ab7df8}.f4{fill:#db61a2}.f5{fill:#d29922}.f9{fill:#656c76}\
.l0{stroke:#4493f8}.l1{stroke:#f0883e}.l2{stroke:#3fb950}.l3{stroke:#ab7df8}.l4{stroke:#db61a2}.l5{stroke:#d29922}\
.l9{stroke:#656c76}}";

const WIDTH: f64 = 820.0;
/// The number of the color of limits.
const LIMIT: usize = 9;
const COLORS: usize = 6;

/// A group of bars: one case.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The case.
    pub(crate) name: String,
    /// Programs with their value and its text.
    pub(crate) bars: Vec<Bar>,
}

/// A bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    /// The program.
    pub(crate) name: String,
    /// The length.
    pub(crate) value: f64,
    /// The text at its end.
    pub(crate) text: String,
    /// Its color.
    pub(crate) kind: BarKind,
}

/// What a bar stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BarKind {
    /// oras-csi.
    Ours,
    /// Another program.
    Other,
    /// What the machine needs: gray.
    Limit,
}

/// A curve.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// The text of the legend.
    pub(crate) name: String,
    /// x, median, smallest and largest y.
    pub(crate) points: Vec<[f64; 4]>,
    /// Limits are gray.
    pub(crate) is_limit: bool,
}

/// Escapes text for XML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn document(title: &str, height: f64, body: &str) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{title}\"><style>{STYLE}</style><rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\
         <text class=\"title\" x=\"16\" y=\"26\">{title}</text>{body}</svg>\n"
    )
}

/// Draws groups of horizontal bars. The longest bar of each group has the full length.
pub(crate) fn bars(title: &str, note: &str, groups: &[Group]) -> String {
    const LEFT: f64 = 180.0;
    const LENGTH: f64 = 520.0;
    let mut body = format!("<text class=\"minor\" x=\"16\" y=\"44\">{}</text>", escape(note));
    let mut y = 58.0;
    for group in groups {
        let _ = write!(
            body,
            "<text class=\"name\" x=\"16\" y=\"{:.0}\">{}</text>",
            y + 13.0,
            escape(&group.name)
        );
        y += 20.0;
        let longest = group.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        let mut others = 0;
        for bar in &group.bars {
            let class = match bar.kind {
                BarKind::Limit => LIMIT,
                BarKind::Ours => 0,
                BarKind::Other => {
                    others += 1;
                    others % COLORS
                }
            };
            let length = (bar.value / longest * LENGTH).max(1.0);
            let _ = write!(
                body,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text><rect class=\"bar f{class}\" x=\"{LEFT}\" \
                 y=\"{y:.0}\" width=\"{length:.1}\" height=\"13\"/><text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
                LEFT - 8.0,
                y + 11.0,
                escape(&bar.name),
                LEFT + length + 6.0,
                y + 11.0,
                escape(&bar.text)
            );
            y += 17.0;
        }
        y += 8.0;
    }
    document(title, y + 6.0, &body)
}

/// Draws curves on logarithmic axes, so that a cost in proportion to x is a line with the slope of the grid.
pub(crate) fn curves(title: &str, x_axis: &str, y_axis: &str, curves: &[Curve]) -> String {
    const LEFT: f64 = 70.0;
    const TOP: f64 = 60.0;
    const PLOT: (f64, f64) = (480.0, 300.0);
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low.is_finite() { (low, high) } else { (1.0, 10.0) };
        let (low, high) = (low.log10().floor(), high.log10().ceil());
        (low, if high > low { high } else { low + 1.0 })
    };
    let (x_low, x_high) = range(&mut all().map(|point| point[0]));
    let (y_low, y_high) = range(&mut all().flat_map(|point| [point[2], point[3]]));
    let at_x = |x: f64| LEFT + (x.max(f64::MIN_POSITIVE).log10() - x_low) / (x_high - x_low) * PLOT.0;
    let at_y =
        |y: f64| TOP + PLOT.1 - (y.max(10_f64.powf(y_low)).log10() - y_low) / (y_high - y_low) * PLOT.1;
    let mut body = format!("<text class=\"minor\" x=\"16\" y=\"46\">{}</text>", escape(y_axis));
    let mut power = x_low;
    while power <= x_high {
        let x = at_x(10_f64.powf(power));
        let _ = write!(
            body,
            "<path class=\"grid\" d=\"M{x:.1} {TOP}V{:.1}\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            TOP + PLOT.1,
            TOP + PLOT.1 + 18.0,
            power_text(power)
        );
        power += 1.0;
    }
    power = y_low;
    while power <= y_high {
        let y = at_y(10_f64.powf(power));
        let _ = write!(
            body,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + PLOT.0,
            LEFT - 8.0,
            y + 4.0,
            power_text(power)
        );
        power += 1.0;
    }
    let _ = write!(
        body,
        "<text class=\"minor\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        LEFT + PLOT.0 / 2.0,
        TOP + PLOT.1 + 38.0,
        escape(x_axis)
    );
    for (number, curve) in curves.iter().enumerate() {
        let color = if curve.is_limit { LIMIT } else { number % COLORS };
        let path: Vec<String> =
            curve.points.iter().map(|point| format!("{:.1} {:.1}", at_x(point[0]), at_y(point[1]))).collect();
        let _ = write!(body, "<path class=\"line l{color}\" d=\"M{}\"/>", path.join("L"));
        for point in &curve.points {
            let (x, y) = (at_x(point[0]), at_y(point[1]));
            let _ = write!(
                body,
                "<path class=\"range l{color}\" d=\"M{x:.1} {:.1}V{:.1}\"/><circle class=\"dot f{color}\" cx=\"{x:.1}\" \
                 cy=\"{y:.1}\" r=\"3\"/>",
                at_y(point[2]),
                at_y(point[3])
            );
        }
        let y = TOP + 12.0 + 20.0 * number as f64;
        let _ = write!(
            body,
            "<rect class=\"bar f{color}\" x=\"{:.0}\" y=\"{:.0}\" width=\"12\" height=\"12\"/><text x=\"{:.0}\" \
             y=\"{:.0}\">{}</text>",
            LEFT + PLOT.0 + 16.0,
            y - 10.0,
            LEFT + PLOT.0 + 34.0,
            y,
            escape(&curve.name)
        );
    }
    document(title, TOP + PLOT.1 + 54.0, &body)
}

fn power_text(power: f64) -> String {
    let value = 10_f64.powf(power);
    if power < 0.0 {
        format!("{value:.*}", power.abs() as usize)
    } else if power < 3.0 {
        format!("{value:.0}")
    } else if power < 6.0 {
        format!("{:.0}k", value / 1e3)
    } else if power < 9.0 {
        format!("{:.0}M", value / 1e6)
    } else {
        format!("{:.0}G", value / 1e9)
    }
}
