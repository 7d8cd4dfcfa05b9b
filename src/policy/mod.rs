//! Policies: the trait that the core knows them by, and the Luau engine behind it.

pub mod lua;

use crate::model::policy::{Answer, Call, Fault, View};

/// Something that decides. The core gives it everything it may know, and checks what it says.
pub trait Policy: Send {
    /// One decision. Never panics and never blocks; a fault is returned, and the caller falls back.
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault>;
}
