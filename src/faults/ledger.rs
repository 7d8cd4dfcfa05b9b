//! What must hold from end to end, and what was seen to break it: order, input exactly once, nobody kept who has gone,
//! nobody left who wants in, no Monolith ended by a balancer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// One connection of one client, in the whole run.
pub(super) type Session = u64;
/// One connection between a balancer and a Monolith, in the whole run.
pub(super) type LinkNumber = u64;

/// What a run has seen, for all that take part in it.
#[derive(Clone)]
pub(super) struct Ledger(Arc<Mutex<Seen>>, Instant);

#[derive(Default)]
struct Seen {
    violations: Vec<String>,
    story: Vec<String>,
    inputs: BTreeMap<Session, Inputs>,
    ended_links: BTreeSet<LinkNumber>,
    counts: BTreeMap<&'static str, u64>,
}

/// What Monoliths heard of a session.
#[derive(Default)]
struct Inputs {
    /// Each input, and over which link it came.
    heard: BTreeMap<u64, LinkNumber>,
    /// The last one over each link.
    last: BTreeMap<LinkNumber, u64>,
    /// Its room went without its balancer's doing after these: what it said at that moment may be lost.
    surprised_after: BTreeSet<u64>,
}

impl Inputs {
    /// What was never heard although nothing excuses it. An input that was under way on a link that ended is lost with
    /// it, and one that was under way to a room that went.
    fn lost(&self, ended: &BTreeSet<LinkNumber>) -> Vec<u64> {
        let newest = self.heard.last_key_value().map_or(0, |(number, _)| *number);
        let missing = (1..newest).filter(|number| !self.heard.contains_key(number));
        let excused = |number: u64| {
            let before = self.heard.range(..number).next_back();
            let after = self.heard.range(number..).next();
            let with_link = self.last.iter().any(|(link, last)| {
                ended.contains(link) && *last < number && after.is_none_or(|(_, other)| other != link)
            });
            // Before the first one, nothing says which link it would have come over.
            let surprised = before.is_some_and(|(last, _)| self.surprised_after.contains(last));
            with_link || surprised || before.is_none()
        };
        missing.filter(|number| !excused(*number)).collect()
    }
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self(Arc::default(), Instant::now())
    }

    /// Something that must not happen.
    pub(super) fn violation(&self, what: impl Into<String>) {
        let what = format!("{} {}", self.moment(), what.into());
        self.lock().violations.push(what);
    }

    /// Something worth knowing when a run fails.
    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        let what = format!("{} {}", self.moment(), what());
        self.lock().story.push(what);
    }

    pub(super) fn count(&self, what: &'static str) {
        *self.lock().counts.entry(what).or_default() += 1;
    }

    /// A Monolith heard input `number` of a session over a link. Each comes once, and over one link in order. Two Monoliths
    /// may be heard of out of order: one that was slow reads what was said to it when the room is elsewhere.
    pub(super) fn input(&self, session: Session, number: u64, link: LinkNumber) {
        let mut seen = self.lock();
        *seen.counts.entry("inputs").or_default() += 1;
        let inputs = seen.inputs.entry(session).or_default();
        let wrong = if let Some(other) = inputs.heard.insert(number, link) {
            Some(format!("input {number} of session {session} came twice, over links {other} and {link}"))
        } else {
            let last = inputs.last.insert(link, number).filter(|last| *last > number);
            last.map(|last| format!("input {number} of session {session} came after {last} over link {link}"))
        };
        drop(seen);
        if let Some(wrong) = wrong {
            self.violation(wrong);
        }
    }

    /// The room of a session has gone, and its balancer has not asked for that; what was under way is lost.
    pub(super) fn surprise(&self, session: Session) {
        let mut seen = self.lock();
        let inputs = seen.inputs.entry(session).or_default();
        if let Some((last, _)) = inputs.heard.last_key_value() {
            inputs.surprised_after.insert(*last);
        }
    }

    /// A link has ended; what was under way on it is lost.
    pub(super) fn link_ended(&self, link: LinkNumber) {
        self.lock().ended_links.insert(link);
    }

    /// What was violated, what led to it, and what happened how often.
    pub(super) fn close(self) -> (Vec<String>, Vec<String>, BTreeMap<&'static str, u64>) {
        let mut seen = std::mem::take(&mut *self.lock());
        for (session, inputs) in &seen.inputs {
            let lost = inputs.lost(&seen.ended_links);
            if !lost.is_empty() {
                let links: Vec<_> = inputs.last.keys().collect();
                seen.violations
                    .push(format!("inputs {lost:?} of session {session} are lost; it was on links {links:?}"));
            }
            let newest = inputs.heard.last_key_value().map_or(0, |(number, _)| *number);
            *seen.counts.entry("inputs lost with a link").or_default() += newest - inputs.heard.len() as u64;
        }
        (seen.violations, seen.story, seen.counts)
    }

    fn moment(&self) -> String {
        format!("[{:>9.3} s]", self.1.elapsed().as_secs_f64())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one session hears: first the answer to its join, then every message of that load, each once and in order.
#[derive(Default)]
pub(super) struct Heard {
    load: Option<(u64, u64)>,
}

impl Heard {
    /// The answer to a join: the load of the room and the number of its last message.
    pub(super) fn answer(&mut self, load: u64, last: u64) {
        self.load = Some((load, last));
    }

    /// A message of a load; the error says what is wrong with it.
    pub(super) fn message(&mut self, load: u64, number: u64) -> Result<(), String> {
        match &mut self.load {
            None => Err(format!("message {number} of load {load} came before the answer to the join")),
            Some((current, _)) if *current != load => Err(format!("message of load {load} came within load {current}")),
            Some((_, last)) if *last + 1 == number => {
                *last = number;
                Ok(())
            }
            Some((_, last)) => Err(format!("message {number} of load {load} came after {last}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(steps: impl FnOnce(&Ledger)) -> usize {
        let ledger = Ledger::new();
        steps(&ledger);
        ledger.close().0.len()
    }

    #[test]
    fn input_that_is_lost_doubled_or_reordered_is_seen() {
        assert_eq!(violations(|ledger| [1, 2, 3].iter().for_each(|n| ledger.input(7, *n, 1))), 0);
        assert_eq!(violations(|ledger| [1, 2, 2].iter().for_each(|n| ledger.input(7, *n, 1))), 1, "doubled");
        assert_eq!(violations(|ledger| [1, 3, 2].iter().for_each(|n| ledger.input(7, *n, 1))), 1, "reordered");
        assert_eq!(violations(|ledger| [1, 3].iter().for_each(|n| ledger.input(7, *n, 1))), 1, "lost");
        let ended = |ledger: &Ledger| {
            ledger.input(7, 1, 1);
            ledger.input(7, 3, 2);
            ledger.link_ended(1);
        };
        assert_eq!(violations(ended), 0, "what was under way on a link that ended is excused");
        let moved = |ledger: &Ledger| {
            ledger.input(7, 1, 1);
            ledger.input(7, 3, 2);
        };
        assert_eq!(violations(moved), 1, "a room that moves loses nothing");
        let surprised = |ledger: &Ledger| {
            ledger.input(7, 1, 1);
            ledger.surprise(7);
            ledger.input(7, 3, 2);
        };
        assert_eq!(violations(surprised), 0);
        let late = |ledger: &Ledger| [(1, 1), (3, 2), (2, 1)].iter().for_each(|(n, link)| ledger.input(7, *n, *link));
        assert_eq!(violations(late), 0, "a Monolith that was slow");
    }

    #[test]
    fn messages_that_are_early_lost_doubled_or_of_another_load_are_seen() {
        let mut heard = Heard::default();
        assert!(heard.message(1, 1).is_err(), "before the answer");
        heard.answer(1, 4);
        assert!(heard.message(1, 5).is_ok() && heard.message(1, 6).is_ok());
        assert!(heard.message(1, 8).is_err(), "lost");
        assert!(heard.message(1, 6).is_err(), "doubled");
        heard.answer(2, 0);
        assert!(heard.message(1, 7).is_err(), "of the owner before");
        assert!(heard.message(2, 1).is_ok());
    }
}
