//! Rules that the task of a client breaks on purpose, in tests alone: proof that the simulation of faults would find it.

use std::cell::Cell;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// What was held goes on once.
    HeldInputGoesOnOnce,
    /// What is held while a room changes its Monolith is there when the next one has it.
    HeldInputIsKept,
    /// A frame of an attachment that is over does not reach the client.
    LateFramesAreDropped,
    /// Nobody waits for its upgrade longer than it may.
    TheHoldEnds,
}

thread_local! {
    static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
}

/// Whether this thread breaks the rule.
pub(super) fn is(rule: Rule) -> bool {
    BROKEN.get() == Some(rule)
}

/// Does something on this thread with a rule that is broken.
pub(crate) fn with<R>(rule: Rule, what: impl FnOnce() -> R) -> R {
    struct Mended;
    impl Drop for Mended {
        fn drop(&mut self) {
            BROKEN.set(None);
        }
    }
    BROKEN.set(Some(rule));
    let _mended = Mended;
    what()
}
