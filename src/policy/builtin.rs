//! temporary
use super::Policy;
use crate::model::policy::{Answer, Call, Fault, View};
/// temporary
#[derive(Debug, Default, Clone, Copy)]
pub struct Builtin;
impl Policy for Builtin {
    fn call(&mut self, _: &Call, _: &View) -> Result<Answer, Fault> {
        Ok(Answer::Default)
    }
}
