//! What a script reads besides its call.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// One thing that a script read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    /// The clock.
    Now(f64),
    /// A random number.
    Random(f64),
    /// A counter, after it was counted up.
    Counter(String, f64),
    /// A value that was kept.
    Get(String, Json),
}

impl Read {
    /// Changes every text in it.
    pub fn replace_texts(&mut self, change: impl Fn(&str) -> String) {
        match self {
            Self::Now(_) | Self::Random(_) => {}
            Self::Counter(name, _) => *name = change(name),
            Self::Get(key, value) => {
                *key = change(key);
                if let Json::String(text) = value {
                    *text = change(text);
                }
            }
        }
    }
}
