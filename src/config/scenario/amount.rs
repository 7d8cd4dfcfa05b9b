//! Amounts that are drawn: `"12m"`, `4`, or `{ distribution = "lognormal", median = "12m", sigma = 1.2, max = "6h" }`.

use std::time::Duration;

use super::super::read;
use super::super::section::Section;
use super::super::tree::{Node, Value};

/// How an amount is drawn: a number of members, or of seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Always the same.
    Fixed(f64),
    /// Each as likely as any other.
    Uniform {
        /// From here.
        min: f64,
        /// To there.
        max: f64,
    },
    /// The memoryless one.
    Exponential {
        /// Its mean, before it is cut.
        mean: f64,
        /// What is drawn beyond is cut to this.
        max: f64,
    },
    /// One whose logarithm is normal: many small ones, few very large ones.
    Lognormal {
        /// Half of them are below.
        median: f64,
        /// The standard deviation of the logarithm.
        sigma: f64,
        /// What is drawn beyond is cut to this.
        max: f64,
    },
    /// 1 to `max`, where `k` is drawn in proportion to `1 / k^exponent`.
    Zipf {
        /// How steep.
        exponent: f64,
        /// The largest.
        max: u32,
    },
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Whole things, at least one.
    Count,
    /// Seconds, written as durations.
    Time,
}

const KINDS: &str = "\"fixed\", \"uniform\", \"exponential\", \"lognormal\" or \"zipf\"";
const MOST: u32 = 100_000;
const LONGEST: Duration = Duration::from_secs(31 * 86_400);

impl Unit {
    fn number(self, node: &Node) -> Result<f64, String> {
        match self {
            Self::Count => read::number(1.0..=f64::from(MOST))(node),
            Self::Time => read::duration(Duration::ZERO..=LONGEST)(node).map(|time| time.as_secs_f64()),
        }
    }

    fn most(self) -> f64 {
        match self {
            Self::Count => f64::from(MOST),
            Self::Time => LONGEST.as_secs_f64(),
        }
    }
}

/// Reads an amount under a key: a bare one is always the same.
pub(super) fn read(section: &mut Section<'_>, key: &'static str, unit: Unit, into: &mut Amount) {
    match section.get(key).map(|node| &node.value) {
        None => {}
        Some(Value::Table(_)) => {
            if let Some(amount) = table(section.section(key), unit) {
                *into = amount;
            }
        }
        Some(_) => section.read(into, key, |node| unit.number(node).map(Amount::Fixed)),
    }
}

fn table(mut section: Section<'_>, unit: Unit) -> Option<Amount> {
    let kind = section.optional("distribution", read::text);
    if kind.is_none() && !section.has("distribution") {
        section.error("distribution", format!("missing; write {KINDS}"));
    }
    let kind = kind?;
    let mut number = |key: &'static str| {
        let found = section.optional(key, |node| unit.number(node));
        if found.is_none() && !section.has(key) {
            section.error(key, format!("missing: the distribution {kind:?} needs it"));
        }
        found
    };
    let amount = match kind.as_str() {
        "fixed" => number("value").map(Amount::Fixed),
        "uniform" => number("min").zip(number("max")).map(|(min, max)| Amount::Uniform { min, max }),
        "exponential" => number("mean").map(|mean| Amount::Exponential { mean, max: unit.most() }),
        "lognormal" => {
            let median = number("median");
            let sigma = section.optional("sigma", read::number(0.0..=5.0)).unwrap_or(1.0);
            median.map(|median| Amount::Lognormal { median, sigma, max: unit.most() })
        }
        "zipf" if unit == Unit::Count => {
            let exponent = section.optional("exponent", read::number(0.0..=10.0)).unwrap_or(1.0);
            let max = section.optional("max", read::integer(1..=MOST)).unwrap_or(100);
            Some(Amount::Zipf { exponent, max })
        }
        "zipf" => {
            section.error("distribution", "\"zipf\" draws counts, and this is a time; write \"lognormal\"");
            None
        }
        other => {
            section.error("distribution", format!("{:?} is none; write {KINDS}", read::cut(other)));
            None
        }
    };
    let amount = match amount {
        Some(Amount::Exponential { mean, .. }) => {
            let max = section.optional("max", |node| unit.number(node)).unwrap_or(unit.most());
            Some(Amount::Exponential { mean, max })
        }
        Some(Amount::Lognormal { median, sigma, .. }) => {
            let max = section.optional("max", |node| unit.number(node)).unwrap_or(unit.most());
            Some(Amount::Lognormal { median, sigma, max })
        }
        Some(Amount::Uniform { min, max }) if min > max => {
            section.error("min", "is more than max; exchange them");
            None
        }
        other => other,
    };
    section.finish();
    amount
}
