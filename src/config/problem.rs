//! What is wrong with a configuration, and where.

use std::fmt;
use std::sync::Arc;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, counted from 1; 0 stands for the file as a whole.
    File {
        /// The file as it was named.
        file: Arc<str>,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: Arc<str>,
        /// The key that it sets, with dots.
        key: Arc<str>,
    },
    /// Neither: a default.
    Defaults,
}

/// One error or warning. It never holds the value of a secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The key with dots, such as `policy.fuel`; empty if the problem is about no key.
    pub key: String,
    /// What is wrong; what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { file, line: 0 } => write!(f, "{file}: ")?,
            Place::File { file, line } => write!(f, "{file}:{line}: ")?,
            Place::Environment { variable, .. } => write!(f, "environment: {variable}: ")?,
            Place::Defaults => write!(f, "defaults: ")?,
        }
        let named = matches!(&self.place, Place::Environment { key, .. } if **key == self.key);
        if !self.key.is_empty() && !named {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a configuration: at least one error, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// What has to be put right.
    pub errors: Vec<Problem>,
    /// What was also found.
    pub warnings: Vec<Problem>,
}

impl ConfigErrors {
    /// A single error.
    pub(super) fn one(place: Place, key: &str, message: impl Into<String>) -> Self {
        Self { errors: vec![Problem { place, key: key.into(), message: message.into() }], warnings: Vec::new() }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.errors.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
