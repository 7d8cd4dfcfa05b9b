//! The texts of policies that a trace has declared so far, in bounded memory.

use std::collections::VecDeque;

use crate::trace::record::PolicyText;

/// Bytes of all texts; beyond, the one that was declared first is forgotten, as if the trace did not have it.
const MAX_BYTES: usize = 64 << 20;

/// Policies by version, those that were declared last at the end.
#[derive(Debug, Default)]
pub(super) struct Texts {
    policies: VecDeque<PolicyText>,
    bytes: usize,
}

impl Texts {
    /// Another policy, or one that is declared again.
    pub(super) fn declare(&mut self, policy: PolicyText) {
        self.take(&policy.version);
        self.bytes += policy.source.len();
        self.policies.push_back(policy);
        while self.bytes > MAX_BYTES && self.policies.len() > 1 {
            let forgotten = self.policies.pop_front();
            self.bytes -= forgotten.map_or(0, |policy| policy.source.len());
        }
    }

    /// The policy of this version.
    pub(super) fn get(&self, version: &str) -> Option<&PolicyText> {
        self.policies.iter().find(|policy| policy.version == version)
    }

    /// Takes out the policy of this version.
    pub(super) fn take(&mut self, version: &str) -> Option<PolicyText> {
        let at = self.policies.iter().position(|policy| policy.version == version)?;
        let policy = self.policies.remove(at)?;
        self.bytes -= policy.source.len();
        Some(policy)
    }

    /// Takes out the one that was declared last: it is in force.
    pub(super) fn take_last(&mut self) -> Option<PolicyText> {
        let version = self.policies.back()?.version.clone();
        self.take(&version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::lua::Source;

    #[test]
    fn the_oldest_texts_are_forgotten() {
        let text = |version: usize, bytes: usize| PolicyText {
            version: version.to_string(),
            source: "-".repeat(bytes).into(),
            ..PolicyText::of(&Source::shipped("x", ""))
        };
        let mut texts = Texts::default();
        (0..5).for_each(|version| texts.declare(text(version, 16 << 20)));
        assert!(texts.take("0").is_none() && texts.bytes == 64 << 20);
        texts.declare(text(1, 1));
        assert_eq!(texts.take_last().map(|policy| policy.version), Some("1".into()));
        assert_eq!((texts.take("2").map(|policy| policy.source.len()), texts.bytes), (Some(16 << 20), 32 << 20));
    }
}
