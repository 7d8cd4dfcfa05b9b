//! How the figures of a report are called and written, which way is the better one, and what a policy made of them: the
//! same on the page and in the terminal.

use crate::lab::page::{LoadOverTime, Page};
use crate::model::assertion::Metric;

/// Shown where there is no figure.
pub(super) const NOTHING: &str = "–";

/// What a change is to whoever reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An improvement.
    Better,
    /// The opposite.
    Worse,
    /// Neither by itself.
    Neither,
}

/// What became of a figure from the first policy to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delta {
    /// The difference with its sign.
    pub(super) text: String,
    /// Whether it rose.
    pub(super) up: bool,
    /// Whether that is good.
    pub(super) verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Number,
    Share,
    Seconds,
    Nanoseconds,
}

/// What people call a metric.
pub(super) fn label(metric: Metric) -> &'static str {
    match metric {
        Metric::MaxLoadOverMean => "Fullest over mean",
        Metric::LoadCv => "Variation of load",
        Metric::OwnRegionShare => "Served in own region",
        Metric::Agreement => "Decided as recorded",
        Metric::Faults => "Faults",
        Metric::Moves => "Moves",
        Metric::Rejected => "Rejected",
        Metric::Held => "Held",
        Metric::Duplicates => "Duplicates",
        Metric::SplitRoomS => "Split rooms",
        Metric::CrossedUnloads => "Crossed unloads",
        Metric::NsP99 => "Decision, p99",
    }
}

fn unit(metric: Metric) -> Unit {
    match metric {
        Metric::OwnRegionShare | Metric::Agreement => Unit::Share,
        Metric::SplitRoomS => Unit::Seconds,
        Metric::NsP99 => Unit::Nanoseconds,
        Metric::MaxLoadOverMean
        | Metric::LoadCv
        | Metric::Faults
        | Metric::Moves
        | Metric::Rejected
        | Metric::Held
        | Metric::Duplicates
        | Metric::CrossedUnloads => Unit::Number,
    }
}

fn verdict(metric: Metric, up: bool) -> Verdict {
    match metric {
        // A policy that decides otherwise is what one came for, and moves are the price of an even load.
        Metric::Agreement | Metric::Moves => Verdict::Neither,
        Metric::OwnRegionShare if up => Verdict::Better,
        Metric::OwnRegionShare => Verdict::Worse,
        _ if up => Verdict::Worse,
        _ => Verdict::Better,
    }
}

/// A figure with its unit.
pub(super) fn written(metric: Metric, value: f64) -> String {
    if !value.is_finite() {
        return NOTHING.into();
    }
    match unit(metric) {
        Unit::Number => number(value),
        Unit::Share => format!("{} %", decimals(value * 100.0, 2)),
        Unit::Seconds => span(value),
        Unit::Nanoseconds if value < 1e3 => format!("{} ns", number(value)),
        Unit::Nanoseconds if value < 1e6 => format!("{} µs", number(value / 1e3)),
        Unit::Nanoseconds => format!("{} ms", number(value / 1e6)),
    }
}

/// What became of a figure; none if it is as it was, or either is unknown.
pub(super) fn delta(metric: Metric, first: Option<f64>, value: Option<f64>) -> Option<Delta> {
    let (first, value) = (first?, value?);
    let by = value - first;
    if !by.is_finite() || by == 0.0 {
        return None;
    }
    let text = match unit(metric) {
        Unit::Share => format!("{} pp", signed(by * 100.0, &decimals(by.abs() * 100.0, 2))),
        _ => change(first, value, &written(metric, by.abs()))?,
    };
    Some(Delta { text, up: by > 0.0, verdict: verdict(metric, by > 0.0) })
}

/// What became of a figure of which only the name is known.
pub(super) fn plain_delta(first: Option<f64>, value: Option<f64>) -> Option<Delta> {
    let (first, value) = (first?, value?);
    let text = change(first, value, &number((value - first).abs()))?;
    Some(Delta { text, up: value > first, verdict: Verdict::Neither })
}

/// In percent of the first; where that says nothing, by how much.
fn change(first: f64, value: f64, by: &str) -> Option<String> {
    let difference = value - first;
    if !difference.is_finite() || difference == 0.0 {
        return None;
    }
    let percent = difference / first.abs() * 100.0;
    // Beyond tenfold a percentage is harder to read than the difference.
    if first == 0.0 || percent.abs() >= 1000.0 {
        return Some(signed(difference, by));
    }
    Some(format!("{} %", signed(percent, &decimals(percent.abs(), if percent.abs() < 10.0 { 1 } else { 0 }))))
}

fn signed(value: f64, written: &str) -> String {
    format!("{}{written}", if value < 0.0 { "−" } else { "+" })
}

/// A number with thousands apart and at most four digits that say something.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return NOTHING.into();
    }
    if value == 0.0 {
        return "0".into();
    }
    if value.abs() < 1e-6 {
        return format!("{value:.1e}");
    }
    let magnitude = value.abs().log10().floor();
    decimals(value, (3.0 - magnitude).clamp(0.0, 6.0) as usize)
}

/// A whole number with thousands apart.
pub(super) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// At most so many decimals, thousands apart.
fn decimals(value: f64, most: usize) -> String {
    let text = format!("{value:.most$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    match text.split_once('.') {
        Some((whole, part)) => format!("{}.{part}", grouped(whole)),
        None => grouped(text),
    }
}

fn grouped(whole: &str) -> String {
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("−", digits));
    if digits == "0" {
        return digits.into();
    }
    let mut text = String::from(sign);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as people say them: `850 ms`, `12.5 s`, `3 min 20 s`, `26 h 5 min`.
pub(super) fn span(seconds: f64) -> String {
    if !seconds.is_finite() {
        return NOTHING.into();
    }
    let sign = if seconds < 0.0 { "−" } else { "" };
    let seconds = seconds.abs();
    let pair = |large: f64, name: &str, small: f64, other: &str| match small {
        0.0 => format!("{sign}{} {name}", decimals(large, 0)),
        small => format!("{sign}{} {name} {small} {other}", decimals(large, 0)),
    };
    match seconds {
        0.0 => "0 s".into(),
        s if s < 1.0 => format!("{sign}{} ms", number(s * 1e3)),
        s if s < 59.95 => format!("{sign}{} s", decimals(s, 1)),
        s if s.round() < 3600.0 => pair((s.round() / 60.0).floor(), "min", s.round() % 60.0, "s"),
        s => {
            let minutes = (s / 60.0).round();
            pair((minutes / 60.0).floor(), "h", minutes % 60.0, "min")
        }
    }
}

/// Every metric that a side has, in the documented order.
pub(super) fn metrics(page: &Page) -> Vec<Metric> {
    let known = |metric: &Metric| page.sides.iter().any(|side| side.figures.contains_key(metric));
    Metric::ALL.iter().copied().filter(known).collect()
}

/// Every further figure that a side has, in the order in which they first come.
pub(super) fn further(page: &Page) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in page.sides.iter().flat_map(|side| &side.more) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// The further figure of that name.
pub(super) fn find(more: &[(String, f64)], name: &str) -> Option<f64> {
    more.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// How many demands there are, and how many of them fail.
pub(super) fn demands(page: &Page) -> (usize, usize) {
    let all = page.sides.iter().flat_map(|side| &side.assertions);
    all.fold((0, 0), |(all, failed), checked| (all + 1, failed + usize::from(!checked.ok)))
}

/// Names with numbers in them in the order that people expect: `m2` before `m10`.
pub(super) fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (many, others) = (digits(a), digits(b));
        let order = if many > 0 && others > 0 {
            let (x, y) = (a[..many].trim_start_matches('0'), b[..others].trim_start_matches('0'));
            let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y));
            (a, b) = (&a[many..], &b[others..]);
            order
        } else {
            let (mut x, mut y) = (a.chars(), b.chars());
            let order = match (x.next(), y.next()) {
                (None, None) => return std::cmp::Ordering::Equal,
                (x, y) => x.cmp(&y),
            };
            (a, b) = (x.as_str(), y.as_str());
            order
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// What the fullest Monolith has over the mean of those that are there, at each moment; none while they have nothing.
pub(super) fn unevenness(load: &LoadOverTime) -> Vec<Option<f64>> {
    let at = |moment| {
        let all = present(load, moment);
        let mean = mean(&all)?;
        (mean > 0.0).then(|| all.iter().copied().fold(0.0, f64::max) / mean)
    };
    (0..load.at_s.len()).map(at).collect()
}

/// The values of a moment that are there.
pub(super) fn present(load: &LoadOverTime, moment: usize) -> Vec<f64> {
    let values = load.monoliths.iter().filter_map(|monolith| *monolith.values.get(moment)?);
    values.filter(|value| value.is_finite()).collect()
}

/// The mean; none of nothing.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The largest value that is there.
pub(super) fn peak(values: &[Option<f64>]) -> Option<f64> {
    values.iter().flatten().copied().filter(|value| value.is_finite()).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_what_one_can_take_in() {
        for (value, text) in [
            (0.0, "0"),
            (1.4125, "1.413"),
            (12.0, "12"),
            (12.345, "12.35"),
            (999.96, "1,000"),
            (1_234_567.8, "1,234,568"),
            (-1234.0, "−1,234"),
            (0.0001234, "0.000123"),
            (4e-9, "4.0e-9"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), text, "{value}");
        }
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(count(999), "999");
    }

    #[test]
    fn spans_round_without_a_sixtieth_second() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.85, "850 ms"),
            (12.54, "12.5 s"),
            (59.99, "1 min"),
            (200.0, "3 min 20 s"),
            (3599.7, "1 h"),
            (93_900.0, "26 h 5 min"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn a_change_says_by_how_much_and_whether_that_is_good() {
        let of = |metric, first, value| delta(metric, Some(first), Some(value)).unwrap();
        let even = of(Metric::MaxLoadOverMean, 1.4, 1.2);
        assert_eq!((even.text.as_str(), even.up, even.verdict), ("−14 %", false, Verdict::Better));
        let region = of(Metric::OwnRegionShare, 0.9, 0.955);
        assert_eq!((region.text.as_str(), region.verdict), ("+5.5 pp", Verdict::Better));
        let faults = of(Metric::Faults, 0.0, 3.0);
        assert_eq!((faults.text.as_str(), faults.verdict), ("+3", Verdict::Worse));
        assert_eq!(of(Metric::Held, 1.0, 500.0).text, "+499");
        assert_eq!(of(Metric::NsP99, 2000.0, 2100.0).text, "+5 %");
        assert_eq!(of(Metric::Moves, 10.0, 20.0).verdict, Verdict::Neither);
        assert_eq!(delta(Metric::Faults, Some(1.0), Some(1.0)), None);
        assert_eq!(delta(Metric::Faults, None, Some(1.0)), None);
        assert_eq!(delta(Metric::Faults, Some(1.0), Some(f64::INFINITY)), None);
    }

    #[test]
    fn names_are_ordered_as_people_count() {
        let mut names = ["m10", "m2", "m1", "a", "m02b", "m", "é", "m2"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a", "m", "m1", "m2", "m2", "m02b", "m10", "é"]);
    }
}
