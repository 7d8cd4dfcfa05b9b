//! What a hook reads that is no part of its call's data, in the order in which it reads it: enough to make the same call
//! again when the clock, the counters and the kept values are others.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    /// `usher.now()`, in seconds.
    Now(f64),
    /// One draw in [0, 1), from which every random number of a script is made.
    Random(f64),
    /// A counter by name, and the value that it counted to.
    Counter(Arc<str>, u64),
    /// `usher.get(key)`, and what it found.
    Get(Arc<str>, Option<Kept>),
}

/// A value that a script may keep from one call to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Kept {
    /// `true` or `false`.
    Boolean(bool),
    /// A finite number.
    Number(f64),
    /// A text.
    Text(Arc<str>),
}

impl Kept {
    /// What it counts for against the bound of all values.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Boolean(_) | Self::Number(_) => 8,
            Self::Text(text) => text.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_survive_json() {
        let kept = |kept| Read::Get("k".into(), Some(kept));
        let reads = vec![
            Read::Now(1_700_000_000.5),
            Read::Random(0.1 + 0.2),
            Read::Counter("n".into(), 7),
            Read::Get("k".into(), None),
            kept(Kept::Boolean(true)),
            kept(Kept::Number(-0.1)),
            kept(Kept::Text("é".into())),
        ];
        let json = serde_json::to_string(&reads).unwrap();
        assert!(
            json.starts_with(r#"[{"now":1700000000.5},{"random":0.30000000000000004},{"counter":["n",7]}"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Vec<Read>>(&json).unwrap(), reads);
    }
}
