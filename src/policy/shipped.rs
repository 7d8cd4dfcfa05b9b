//! The policies that are part of the binary, each with its test.

use std::path::Path;

use super::lua::{LoadError, Source};

/// One policy of the binary.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// The text of its test.
    pub test: &'static str,
}

macro_rules! shipped {
    ($name:literal) => {
        Shipped {
            name: $name,
            text: include_str!(concat!("../../policies/", $name, ".lua")),
            test: include_str!(concat!("../../policies/", $name, "_test.lua")),
        }
    };
}

/// Every shipped policy, the default first.
pub const SHIPPED: [Shipped; 10] = [
    shipped!("default"),
    shipped!("least-loaded"),
    shipped!("region-affinity"),
    shipped!("hash-ring"),
    shipped!("random"),
    shipped!("spill"),
    shipped!("slow-start"),
    shipped!("bounded-hash"),
    shipped!("capacity"),
    shipped!("follow-the-crowd"),
];

/// The types of the policy API, for editors.
pub const DEFINITIONS: &str = include_str!("../../policies/usher.d.luau");

/// The shipped policy of this name.
pub fn shipped(name: &str) -> Option<&'static Shipped> {
    SHIPPED.iter().find(|policy| policy.name == name)
}

/// The policy that a `P` of the command line or `policy.file` stands for: a shipped name, or else a path.
pub fn resolve(name_or_path: &str) -> Result<Source, LoadError> {
    if let Some(policy) = shipped(name_or_path) {
        return Ok(Source::shipped(policy.name, policy.text));
    }
    let path = Path::new(name_or_path);
    if path.components().count() == 1 && path.extension().is_none() && !path.exists() {
        let nearest = SHIPPED
            .iter()
            .map(|policy| (strsim::damerau_levenshtein(policy.name, name_or_path), policy.name))
            .min()
            .filter(|(distance, _)| *distance <= 3);
        let known: Vec<&str> = SHIPPED.iter().map(|policy| policy.name).collect();
        let hint = nearest.map_or_else(String::new, |(_, name)| format!("; did you mean {name:?}?"));
        let reason = format!("no shipped policy of this name and no such file{hint} (shipped: {})", known.join(", "));
        return Err(LoadError { file: name_or_path.into(), line: None, reason });
    }
    Source::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_before_paths_and_mistakes_are_explained() {
        assert_eq!(resolve("random").unwrap().name, "random");
        let error = resolve("least-loadd").unwrap_err();
        assert!(error.reason.contains("did you mean \"least-loaded\"?"), "{error}");
        assert!(resolve("no/such/file.lua").unwrap_err().reason.contains("no such file"));
    }
}
