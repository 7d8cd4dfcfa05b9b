//! What is told of a version's faults: a line in the log, at a limited rate, and the last of them for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tracing::warn;

use super::versions::timestamp;
use crate::model::policy::{Call, Fault, FaultKind};

/// A hook and kind are told of at once, then at most so often, in microseconds of the calls' clock.
const EVERY_US: u64 = 10_000_000;
/// Of a message, which may hold whatever a script makes of its call, so many bytes are told.
const MESSAGE: usize = 512;

/// The last fault of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastFault {
    /// The hook that was called.
    pub hook: &'static str,
    /// The stable label of the kind.
    pub kind: &'static str,
    /// `file:line: what`, where the line is known.
    pub message: String,
    /// When: RFC 3339, UTC.
    pub at: String,
    /// Faults of this hook and kind in this version so far, this one included.
    pub count: u64,
}

/// The faults of one version, in all its VMs. Nothing is done without a fault.
#[derive(Debug, Default)]
pub(super) struct FaultLog(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// One entry for each hook and kind that failed.
    kinds: BTreeMap<(usize, FaultKind), Line>,
    last: Option<LastFault>,
}

#[derive(Debug, Default)]
struct Line {
    count: u64,
    /// How many of them were told, and when the last line was.
    told: u64,
    told_us: u64,
}

impl FaultLog {
    /// Takes note of a fault, and writes a line if it is time for one.
    pub(super) fn heard(&self, policy: &str, call: &Call, fault: &Fault) {
        let message = told(&fault.message);
        if let Some((count, since)) = self.note(call, fault.kind, &message) {
            let (hook, kind) = (call.hook.name(), fault.kind.label());
            warn!(policy, hook, kind, fault = %message, since, count, "policy fault; the built-in default answers");
        }
    }

    /// The last fault.
    pub(super) fn last(&self) -> Option<LastFault> {
        self.heard_so_far().last.clone()
    }

    /// If a line is due: faults of this hook and kind in all, and since the line before.
    fn note(&self, call: &Call, kind: FaultKind, message: &str) -> Option<(u64, u64)> {
        let mut heard = self.heard_so_far();
        let line = heard.kinds.entry((call.hook as usize, kind)).or_default();
        line.count += 1;
        // A clock that was set back must not silence the log.
        let due = line.told == 0 || call.now_us.abs_diff(line.told_us) >= EVERY_US;
        let since = line.count - line.told;
        if due {
            (line.told, line.told_us) = (line.count, call.now_us);
        }
        let count = line.count;
        heard.last = Some(LastFault {
            hook: call.hook.name(),
            kind: kind.label(),
            message: message.into(),
            at: timestamp(call.now_us),
            count,
        });
        due.then_some((count, since))
    }

    fn heard_so_far(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message as it may be shown: of bounded length, on one line.
fn told(message: &str) -> String {
    let mut text = String::with_capacity(message.len().min(MESSAGE));
    for c in message.chars() {
        if text.len() + c.len_utf8() > MESSAGE {
            text.push_str("...");
            break;
        }
        text.push(if c.is_control() { ' ' } else { c });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(hook: &str, seconds: u64) -> Call {
        let call = serde_json::json!({"hook": hook, "region": "ewr", "now_us": seconds * 1_000_000});
        serde_json::from_value(call).unwrap()
    }

    #[test]
    fn the_first_is_told_at_once_and_then_one_line_in_10_s_with_the_count_since() {
        let log = FaultLog::default();
        let note = |hook, seconds, kind| log.note(&call(hook, seconds), kind, "m.lua:3: no");
        assert_eq!(note("place", 100, FaultKind::Error), Some((1, 1)));
        assert_eq!(note("place", 101, FaultKind::Error), None);
        assert_eq!(note("place", 109, FaultKind::Error), None);
        assert_eq!(note("place", 102, FaultKind::Fuel), Some((1, 1)), "another kind has its own line");
        assert_eq!(note("route", 102, FaultKind::Error), Some((1, 1)), "another hook as well");
        assert_eq!(note("place", 110, FaultKind::Error), Some((4, 3)));
        assert_eq!(note("place", 111, FaultKind::Error), None);
        assert_eq!(note("place", 50, FaultKind::Error), Some((6, 2)), "the clock was set back");
    }

    #[test]
    fn the_last_one_is_kept_and_long_messages_are_cut() {
        let log = FaultLog::default();
        assert_eq!(log.last(), None);
        let message = format!("m.lua:3: \u{1b}[2Ja\n{}", "\u{e9}".repeat(1000));
        log.heard("m", &call("route", 1), &Fault { kind: FaultKind::Error, message });
        log.heard(
            "m",
            &call("admit", 1_709_209_845),
            &Fault { kind: FaultKind::BadAnswer, message: "m.lua:4: x".into() },
        );
        let last = log.last().unwrap();
        assert_eq!((last.hook, last.kind, last.message.as_str()), ("admit", "bad_answer", "m.lua:4: x"));
        assert_eq!((last.at.as_str(), last.count), ("2024-02-29T12:30:45Z", 1));
        let long = told(&format!("m.lua:3: \u{1b}[2Ja\n{}", "\u{e9}".repeat(1000)));
        assert!(long.starts_with("m.lua:3:  [2Ja \u{e9}") && long.ends_with("...") && long.len() < 520, "{long}");
    }
}
