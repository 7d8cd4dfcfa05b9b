//! How long many calls took, in bounded memory.

use std::time::Duration;

use serde_json::{Value, json};

/// Durations in buckets that grow by a fourth of an octave, so that a percentile is right to about a tenth.
pub struct Times {
    count: u64,
    total_ns: u64,
    max_ns: u64,
    buckets: [u64; BUCKETS],
}

const BUCKETS: usize = 160;

impl Default for Times {
    fn default() -> Self {
        Self { count: 0, total_ns: 0, max_ns: 0, buckets: [0; BUCKETS] }
    }
}

impl Times {
    /// Takes in one.
    pub fn add(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.count += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
        let bucket = ((ns as f64).log2() * 4.0) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
    }

    /// What this share of them (0 to 1) took at most, in nanoseconds; 0 without any.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return (((bucket as f64 + 0.5) / 4.0).exp2().round() as u64).min(self.max_ns);
            }
        }
        self.max_ns
    }

    /// Mean, median, 99th percentile and maximum in nanoseconds, as JSON; null without any.
    pub fn document(&self) -> Value {
        match self.total_ns.checked_div(self.count) {
            None => Value::Null,
            Some(mean) => json!({
                "mean": mean,
                "p50": self.percentile(0.5),
                "p99": self.percentile(0.99),
                "max": self.max_ns,
            }),
        }
    }
}
