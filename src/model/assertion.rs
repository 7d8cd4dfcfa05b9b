//! What is demanded of a replay or a simulation: `METRIC OP NUMBER`, as in `max_load_over_mean < 1.3`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Figures of one run by the names of [`Metric`]; one that says nothing about a run is absent.
pub type Figures = BTreeMap<Metric, f64>;

macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// A figure that can be demanded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Metric { $($(#[$doc])* $variant,)* }

        impl Metric {
            /// Every metric, in the order in which they are documented.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in expressions and in JSON.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

metrics! {
    /// Rooms on the fullest Monolith over the mean of all; 1 is even.
    MaxLoadOverMean => "max_load_over_mean",
    /// Standard deviation of the rooms on each Monolith over their mean; 0 is even.
    LoadCv => "load_cv",
    /// Share of those served in their own region, 0 to 1.
    OwnRegionShare => "own_region_share",
    /// Share of decisions that are as recorded, 0 to 1.
    Agreement => "agreement",
    /// Calls without a usable answer.
    Faults => "faults",
    /// Rooms that were moved.
    Moves => "moves",
    /// Joins and requests that were refused.
    Rejected => "rejected",
    /// Joins that were made to wait.
    Held => "held",
    /// Rooms that were loaded on two Monoliths at once, each pair once.
    Duplicates => "duplicates",
    /// Seconds in which members of one room were on two Monoliths, over all rooms.
    SplitRoomS => "split_room_s",
    /// Requests to unload a room that found it unloaded, each of which ended a Monolith.
    CrossedUnloads => "crossed_unloads",
    /// 99th percentile of what one decision takes, in nanoseconds.
    NsP99 => "ns_p99",
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|metric| metric.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|metric| metric.name()).collect();
            let near = names.iter().max_by(|a, b| closeness(a, text).total_cmp(&closeness(b, text)));
            match near.filter(|name| closeness(name, text) > 0.7) {
                Some(name) => format!("{text:?} is no metric; did you mean {name:?}?"),
                None => format!("{text:?} is no metric; these are: {}", names.join(", ")),
            }
        })
    }
}

fn closeness(name: &str, text: &str) -> f64 {
    strsim::jaro_winkler(name, text)
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// How a figure is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Below,
    /// `<=`
    AtMost,
    /// `>`
    Above,
    /// `>=`
    AtLeast,
    /// `==`
    Equal,
    /// `!=`
    Unequal,
}

impl Comparison {
    /// Longer spellings first, so that none is taken for its beginning.
    const ALL: [(&'static str, Self); 6] = [
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("==", Self::Equal),
        ("!=", Self::Unequal),
        ("<", Self::Below),
        (">", Self::Above),
    ];

    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(_, comparison)| *comparison == self).map_or("", |(text, _)| text)
    }

    fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Self::Below => value < limit,
            Self::AtMost => value <= limit,
            Self::Above => value > limit,
            Self::AtLeast => value >= limit,
            Self::Equal => value == limit,
            Self::Unequal => value != limit,
        }
    }
}

/// One demand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assertion {
    /// Of which figure.
    pub metric: Metric,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what.
    pub limit: f64,
}

impl Assertion {
    /// Parses `OP NUMBER`, where the metric stands elsewhere.
    pub fn of(metric: Metric, demand: &str) -> Result<Self, String> {
        let demand = demand.trim();
        let found =
            Comparison::ALL.iter().find_map(|(text, comparison)| Some((*comparison, demand.strip_prefix(text)?)));
        let Some((comparison, number)) = found else {
            return Err(format!("{demand:?} begins with no comparison; write < <= > >= == or !=, then a number"));
        };
        let number = number.trim();
        match number.parse::<f64>() {
            Ok(limit) if limit.is_finite() => Ok(Self { metric, comparison, limit }),
            _ => Err(format!("{number:?} is no number; write one as in \"{metric} {} 1\"", comparison.text())),
        }
    }

    /// Holds the demand against the figures of a run.
    pub fn check(self, figures: &Figures) -> Checked {
        let value = figures.get(&self.metric).copied();
        Checked {
            expr: self.to_string(),
            value,
            ok: value.is_some_and(|value| self.comparison.holds(value, self.limit)),
        }
    }
}

impl FromStr for Assertion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let end = text.find(|c: char| c.is_whitespace() || "<>=!".contains(c)).unwrap_or(text.len());
        let (metric, demand) = text.split_at(end);
        Self::of(metric.parse()?, demand)
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.metric, self.comparison.text(), self.limit)
    }
}

/// What became of a demand.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// The demand.
    pub expr: String,
    /// The figure; none if the run does not have it, which fails.
    pub value: Option<f64>,
    /// Whether it holds.
    pub ok: bool,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "{}: {value}", self.expr),
            None => write!(f, "{}: this run has no such figure", self.expr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_are_parsed_with_and_without_spaces() {
        for text in ["max_load_over_mean<1.3", " max_load_over_mean  <  1.3 ", "max_load_over_mean < 1.3"] {
            assert_eq!(text.parse::<Assertion>().unwrap().to_string(), "max_load_over_mean < 1.3");
        }
        for text in ["faults == 0", "agreement >= 0.95", "moves != 3", "ns_p99 <= 10000", "held > 1"] {
            assert_eq!(text.parse::<Assertion>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_the_way_out() {
        for (text, says) in [
            ("fautls == 0", "did you mean \"faults\"?"),
            ("x < 1", "these are: max_load_over_mean, load_cv"),
            ("faults", "write < <= >"),
            ("faults = 0", "write < <= >"),
            ("faults == many", "\"many\" is no number"),
            ("faults == NaN", "is no number"),
            ("faults == inf", "is no number"),
            ("", "is no metric"),
            ("faults == 0 0", "is no number"),
        ] {
            let error = text.parse::<Assertion>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_figure_that_is_missing_fails() {
        let figures = Figures::from([(Metric::Faults, 2.0)]);
        let check = |text: &str| text.parse::<Assertion>().unwrap().check(&figures);
        assert!(
            check("faults == 2").ok && check("faults >= 2").ok && check("faults < 3").ok && check("faults != 0").ok
        );
        assert!(!check("faults == 0").ok && !check("faults < 2").ok && !check("faults > 2").ok);
        let missing = check("moves >= 0");
        assert_eq!((missing.value, missing.ok), (None, false));
        assert_eq!(check("faults == 0").to_string(), "faults == 0: 2");
    }
}
