//! Reads what the programs answer at `/metrics`, and which metrics a PromQL expression names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// A metric with its type, help and labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// The name in `# TYPE`, which lacks the suffixes of its series.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: String,
    /// The help.
    pub help: String,
    /// The labels of its series, each with its values. `le` is not among them.
    pub labels: BTreeMap<String, BTreeSet<String>>,
    /// The names of its series.
    pub series: BTreeSet<String>,
}

impl Family {
    /// Returns the name that a query uses: that of the only series, or of the histogram.
    pub fn shown_name(&self) -> &str {
        match self.series.first() {
            Some(name) if self.series.len() == 1 => name,
            _ => &self.name,
        }
    }
}

/// A label that selects series, with the operator and the value.
pub type Matcher = (String, String, String);

/// Reads the text format of OpenMetrics 1.0, without exemplars.
pub fn parse(text: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help has a name");
            families.push(Family { name: name.to_owned(), help: help.to_owned(), ..Family::default() });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type has a name");
            let family =
                families.last_mut().filter(|family| family.name == name).expect("the help comes first");
            kind.clone_into(&mut family.kind);
        } else if !line.starts_with('#') && !line.is_empty() {
            let (name, labels) = sample(line);
            let family = families.last_mut().filter(|family| name.starts_with(&family.name)).expect("a type");
            family.series.insert(name);
            for (label, value) in labels.into_iter().filter(|(label, _)| label != "le") {
                family.labels.entry(label).or_default().insert(value);
            }
        }
    }
    families
}

/// Returns the name and the labels of a sample.
fn sample(line: &str) -> (String, Vec<(String, String)>) {
    let end = line.find(['{', ' ']).expect("a sample has a value");
    let (name, rest) = line.split_at(end);
    let labels = rest.strip_prefix('{').map(|rest| matchers(rest).0).unwrap_or_default();
    (name.to_owned(), labels.into_iter().map(|(label, _, value)| (label, value)).collect())
}

/// Reads `label="value", …}` with any operator. Returns the matchers and the length of the text with its closing brace.
fn matchers(text: &str) -> (Vec<Matcher>, usize) {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let skipped = rest.len() - rest.trim_start_matches([' ', ',', '\n']).len();
        at += skipped;
        let rest = &text[at..];
        if rest.starts_with('}') {
            return (found, at + 1);
        }
        let quote = rest.find('"').expect("a value in quotes");
        let label = rest[..quote].trim_end_matches(['=', '~', '!', ' ']);
        let operator = rest[label.len()..quote].trim().to_owned();
        let mut value = String::new();
        let mut characters = rest[quote + 1..].char_indices();
        let length = loop {
            match characters.next().expect("the value ends") {
                (_, '\\') => value.extend(characters.next().map(|(_, next)| next)),
                (position, '"') => break position,
                (_, character) => value.push(character),
            }
        };
        found.push((label.trim().to_owned(), operator, value));
        at += quote + 1 + length + 1;
    }
}

/// Writes the text as the earlier text format of Prometheus, which `promtool check metrics` reads.
pub fn to_text_format(text: &str) -> String {
    let families = parse(text);
    let mut earlier = String::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("#"), Some(keyword @ ("HELP" | "TYPE")), Some(name)) => {
                let family = families.iter().find(|family| family.name == name).expect("it was parsed");
                let shown = if family.kind == "histogram" { name } else { family.shown_name() };
                let rest = words.next().unwrap_or_default();
                let rest = if keyword == "TYPE" && rest == "info" { "gauge" } else { rest };
                writeln!(earlier, "# {keyword} {shown} {rest}").expect("a string accepts text");
            }
            (Some("#"), _, _) => {}
            _ => writeln!(earlier, "{line}").expect("a string accepts text"),
        }
    }
    earlier
}

/// What a PromQL expression names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The metrics, each with the labels that it is selected by, and their operators and values.
    pub selectors: Vec<(String, Vec<Matcher>)>,
    /// The labels of `by`, `without`, `on` and `ignoring`.
    pub groups: BTreeSet<String>,
}

/// Finds the metrics and labels of an expression. It is no parser: Prometheus itself evaluates the expressions in
/// `make test-extra`.
pub fn named(expression: &str) -> Named {
    let mut named = Named::default();
    let bytes = expression.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'"' {
            at += 1 + expression[at + 1..].find('"').expect("a string ends") + 1;
        } else if is_word(byte) || byte == b'$' {
            let length = expression[at + 1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let end = length.map_or(bytes.len(), |length| at + 1 + length);
            let word = &expression[at..end];
            at = end;
            let rest = expression[at..].trim_start();
            if matches!(word, "by" | "without" | "on" | "ignoring") {
                let open = at + expression[at..].find('(').expect("labels in parentheses");
                let close = open + expression[open..].find(')').expect("labels in parentheses");
                let labels = expression[open + 1..close].split(',').map(|label| label.trim().to_owned());
                named.groups.extend(labels.filter(|label| !label.is_empty()));
                at = close + 1;
            } else if !(byte.is_ascii_digit()
                || byte == b'$'
                || rest.starts_with('(')
                || matches!(word, "or" | "and" | "unless")
                || is_aggregation_before_by(word, rest))
            {
                let labels = if let Some(inner) = rest.strip_prefix('{') {
                    let (labels, length) = matchers(inner);
                    at = bytes.len() - rest.len() + 1 + length;
                    labels
                } else {
                    Vec::new()
                };
                named.selectors.push((word.to_owned(), labels));
            }
        } else {
            at += 1;
        }
    }
    named
}

/// Reports whether a word is an aggregation whose labels come before its argument: `sum by (label) (…)`.
fn is_aggregation_before_by(word: &str, rest: &str) -> bool {
    matches!(word, "sum" | "min" | "max" | "avg" | "count" | "topk" | "bottomk")
        && (rest.starts_with("by") || rest.starts_with("without"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP x_requests Requests, by outcome\n# TYPE x_requests counter\n\
        x_requests_total{outcome=\"a \\\"b\\\"\",code=\"1\"} 2\n# HELP x_wait_seconds Wait\n# TYPE x_wait_seconds histogram\n\
        # UNIT x_wait_seconds seconds\nx_wait_seconds_sum 1.0\nx_wait_seconds_count 1\n\
        x_wait_seconds_bucket{le=\"1.0\"} 1\nx_wait_seconds_bucket{le=\"+Inf\"} 1\n# HELP x_build Version\n\
        # TYPE x_build info\nx_build_info{version=\"1\"} 1\n# EOF\n";

    #[test]
    fn reads_families_with_their_series_and_labels() {
        let [requests, wait, build] = &parse(TEXT)[..] else { panic!("three families") };
        assert_eq!((requests.shown_name(), requests.kind.as_str()), ("x_requests_total", "counter"));
        assert_eq!(requests.labels["outcome"], BTreeSet::from(["a \"b\"".to_owned()]));
        assert_eq!((wait.shown_name(), wait.labels.len(), wait.series.len()), ("x_wait_seconds", 0, 3));
        assert_eq!((build.shown_name(), build.help.as_str()), ("x_build_info", "Version"));
        let earlier = to_text_format(TEXT);
        for line in
            ["# TYPE x_requests_total counter", "# HELP x_wait_seconds Wait", "# TYPE x_build_info gauge"]
        {
            assert!(earlier.contains(line), "{earlier}");
        }
        assert!(!earlier.contains("EOF") && !earlier.contains("UNIT"));
    }

    #[test]
    fn finds_metrics_and_labels_of_expressions() {
        let found = named(
            "histogram_quantile(0.9, sum by (a, le) (rate(x_bucket{p=\"q{}\", r!~\"s|t\"}[$__rate_interval]))) > 60 or up == 1",
        );
        let labels = |name: &str| {
            let selector = found.selectors.iter().find(|(found, _)| found == name).unwrap();
            selector.1.iter().map(|(label, operator, _)| format!("{label}{operator}")).collect::<Vec<_>>()
        };
        assert_eq!(found.selectors.len(), 2, "{found:?}");
        assert_eq!((labels("x_bucket"), labels("up")), (vec!["p=".to_owned(), "r!~".to_owned()], Vec::new()));
        assert_eq!(found.groups, BTreeSet::from(["a".to_owned(), "le".to_owned()]));
    }
}
