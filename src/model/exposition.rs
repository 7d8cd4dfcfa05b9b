//! Prometheus text exposition as others write it: a reader that takes single numbers out of a page.
//!
//! Source of the format: prometheus.io, "Exposition formats", text format 0.0.4. What OpenMetrics adds to a line
//! (exemplars, `# EOF`) is passed over. A line that is none is skipped: one bad line should not hide the others.

use std::collections::BTreeMap;
use std::fmt;

/// One line of a page: `name{label="value",...} number`, with what comes after the number left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// The name of the metric.
    pub name: &'a str,
    /// Its labels in the order of the line, unescaped.
    pub labels: Vec<(&'a str, String)>,
    /// The number; may be NaN or infinite.
    pub value: f64,
}

/// Which series of a page are meant: `name`, or `name{label="value",...}`.
///
/// A series matches when it has the name and every one of these labels with exactly this value; it may have others.
/// The finite numbers of all that match are added up: clients by type become clients. Name the labels where a sum
/// means nothing (quantiles, buckets).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    name: String,
    labels: Vec<(String, String)>,
}

/// Why a text selects nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no metric; write name or name{{label=\"value\"}}")]
pub struct InvalidSelector;

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// If the text is none.
    pub fn parse(text: &str) -> Result<Self, InvalidSelector> {
        let (name, rest) = name(text.trim()).ok_or(InvalidSelector)?;
        let (labels, rest) = labels(rest.trim_start()).ok_or(InvalidSelector)?;
        if !rest.trim().is_empty() {
            return Err(InvalidSelector);
        }
        let labels = labels.into_iter().map(|(label, value)| (label.to_owned(), value)).collect();
        Ok(Self { name: name.to_owned(), labels })
    }

    /// Whether a series is meant.
    pub fn matches(&self, sample: &Sample<'_>) -> bool {
        let has = |(label, value): &(String, String)| sample.labels.iter().any(|(l, v)| l == label && v == value);
        self.name == sample.name && self.labels.iter().all(has)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (at, (label, value)) in self.labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            write!(f, "{open}{label}=\"{value}\"")?;
        }
        f.write_str(if self.labels.is_empty() { "" } else { "}" })
    }
}

/// The number of each selector on a page, under its key. A selector that nothing matches, or nothing finite, is absent.
pub fn pick(page: &str, wanted: &BTreeMap<String, Selector>) -> BTreeMap<String, f64> {
    let mut found: BTreeMap<String, f64> = BTreeMap::new();
    for line in page.lines() {
        // Most lines are of metrics that nobody asked for: their labels are not looked at.
        let Some((named, _)) = name(line.trim_start()) else { continue };
        if wanted.values().all(|selector| selector.name != named) {
            continue;
        }
        let Some(sample) = sample(line).filter(|sample| sample.value.is_finite()) else { continue };
        for (key, _) in wanted.iter().filter(|(_, selector)| selector.matches(&sample)) {
            match found.get_mut(key) {
                Some(sum) => *sum += sample.value,
                None => drop(found.insert(key.clone(), sample.value)),
            }
        }
    }
    // A sum of finite numbers may be none.
    found.retain(|_, sum| sum.is_finite());
    found
}

/// Reads one line; none for an empty line, a comment, and whatever else is no sample.
pub fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = name(line.trim_start())?;
    let (labels, rest) = labels(rest.trim_start())?;
    let mut words = rest.split_ascii_whitespace();
    let value = number(words.next()?)?;
    match words.next() {
        // A timestamp, in milliseconds or (OpenMetrics) seconds.
        Some(word) if !word.starts_with('#') => {
            word.parse::<f64>().ok()?;
            words.next().is_none_or(|word| word.starts_with('#'))
        }
        _ => true,
    }
    .then_some(Sample { name, labels, value })
}

/// Go's spelling of numbers, as far as exporters use it.
fn number(word: &str) -> Option<f64> {
    match word {
        "NaN" => Some(f64::NAN),
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        // Rust reads words such as "infinity" too, which no exporter writes.
        word if word.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) => {
            word.parse::<f64>().ok().filter(|number| number.is_finite())
        }
        _ => None,
    }
}

/// A name of a metric, and what follows it.
fn name(text: &str) -> Option<(&str, &str)> {
    word(text, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
}

fn word(text: &str, part: impl Fn(char) -> bool) -> Option<(&str, &str)> {
    let end = text.find(|c| !part(c)).unwrap_or(text.len());
    let starts_well = text.starts_with(|c: char| !c.is_ascii_digit());
    (end > 0 && starts_well).then(|| text.split_at(end))
}

type Labels<'a> = Vec<(&'a str, String)>;

/// The labels in braces, if there are any, and what follows them.
fn labels(text: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    let Some(mut rest) = text.strip_prefix('{') else { return Some((labels, text)) };
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (label, after) = word(rest, |c| c.is_ascii_alphanumeric() || c == '_')?;
        let (value, after) = quoted(after.trim_start().strip_prefix('=')?.trim_start())?;
        labels.push((label, value));
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => return rest.strip_prefix('}').map(|after| (labels, after)),
        }
    }
}

/// A text in quotes, unescaped, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped @ ('\\' | '"') => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
#[path = "exposition_test.rs"]
mod tests;
