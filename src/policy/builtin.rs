//! The policy without a script: every decision is the built-in default.

use super::Policy;
use crate::model::policy::{Answer, Call, Fault, View};

/// Leaves everything to the default ranking of [`super::decide()`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Builtin;

impl Policy for Builtin {
    fn call(&mut self, _: &Call, _: &View) -> Result<Answer, Fault> {
        Ok(Answer::Default)
    }
}
