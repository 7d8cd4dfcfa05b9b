//! Policies: the trait that the core knows them by, and the Luau engine behind it.

mod builtin;
pub mod canary;
pub mod decide;
pub mod deciding;
mod diff;
mod fault_log;
pub mod guarded;
pub mod lua;
pub mod shadow;
pub mod shipped;
pub mod slots;
pub mod smoke;
pub mod tap;
pub mod telling;
pub mod times;
pub mod verdict;
pub mod versions;

pub use builtin::Builtin;
pub use decide::decide;

use crate::model::policy::{Answer, Call, Decision, Fault, Hook, View};

/// Something that decides. The core gives it everything it may know, and checks what it says.
pub trait Policy: Send {
    /// One decision. Never panics and never blocks; a fault is returned, and the caller falls back.
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault>;

    /// Whether it has anything to say to this hook, for calls whose data would be gathered for nobody.
    fn has(&self, _hook: Hook) -> bool {
        true
    }

    /// What came of the last call, after the core's checks: for whoever looks on.
    fn settled(&mut self, _call: &Call, _view: &View, _decision: &Decision) {}
}
