//! What must hold from end to end, and what was seen to break it: order, input exactly once, nobody kept who has gone,
//! nobody left who wants in, no Monolith ended by a balancer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::link::inbox::Inbox;
use crate::model::LinkId;

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
    links: BTreeMap<LinkNumber, Link>,
    /// When a link was stalled, or went on.
    stalls: BTreeMap<LinkNumber, Vec<Instant>>,
    /// When a Monolith stopped for a while, or went on, linked or not.
    slept: Vec<Instant>,
    counts: BTreeMap<&'static str, u64>,
    /// Rooms that took longer to load than a balancer waits, with the moments at which they are there.
    slow: Vec<(String, Instant)>,
}

/// A link in its life.
#[derive(Clone, Copy, Default)]
struct Link {
    /// Since when its Monolith reads nothing any more.
    unread: Option<Instant>,
    /// Since when its balancer knows that, and writes nothing any more.
    ended: Option<Instant>,
}

/// A room has gone without its balancer's doing, or was found to have gone when somebody joined it: what was under way to
/// it is lost.
struct Surprise {
    at: Instant,
    /// The link of whose member it was.
    link: LinkNumber,
    /// Whether it was a join that found it gone: nothing that is held goes before that is answered.
    met_by_join: bool,
}

/// How long before the end of a link something may have been written to it that its other end never reads: as long as it
/// takes heartbeats to notice.
const UNREAD: Duration = Duration::from_secs(5);
/// How long what is said and the news that a room has gone may be under way to each other.
pub(super) const NEWS: Duration = Duration::from_millis(400);
/// The same when a stall of up to four seconds has kept either of them.
pub(super) const NEWS_IN_A_STALL: Duration = Duration::from_millis(4400);
/// How the one violation begins that is known and cannot be mended (`ARCHITECTURE.md`).
pub(super) const NEWCOMERS: &str = "a newcomer's ";
/// How long what a client says may wait for the answer to its join.
const ANSWER: Duration = Duration::from_secs(1);
/// From a client's word to its link, and from the end of a link to the balancer's saying so.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// What is known of what a session said.
#[derive(Default)]
struct Inputs {
    /// When it said each input.
    said: BTreeMap<u64, Instant>,
    /// Each input that a Monolith heard, with the link over which it came.
    heard: BTreeMap<u64, LinkNumber>,
    /// The last one over each link.
    last: BTreeMap<LinkNumber, u64>,
    /// Knows the links over which its joins went, whether or not they arrived.
    inbox: Option<Arc<Inbox>>,
    /// When it said goodbye, and when that was answered.
    left: Option<(Instant, Instant)>,
    surprises: Vec<Surprise>,
}

impl Inputs {
    /// The links over which it was joined, when that was, and what became of them.
    fn stays(&self, links: &BTreeMap<LinkNumber, Link>) -> Vec<(LinkNumber, Instant, Link)> {
        let joined = self.inbox.iter().flat_map(|inbox| inbox.links());
        let link = |number: LinkNumber| links.get(&number).copied().unwrap_or_default();
        joined.map(|(LinkId(number), since)| (number, since, link(number))).collect()
    }

    /// What was never heard although nothing excuses it: neither the end of a link that the session was on, shortly after
    /// it was said, nor the end of its room about then, or about when it went on after it had been held. Who was closed or
    /// cut off may have been saying something that nobody took; who has left in order, and was answered, was heard to the
    /// end, unless it was being held when it left.
    fn lost(&self, links: &BTreeMap<LinkNumber, Link>, stalls: &BTreeMap<LinkNumber, Vec<Instant>>) -> Vec<u64> {
        let newest = if self.left.is_some() {
            self.said.last_key_value().map(|(number, _)| *number)
        } else {
            self.heard.last_key_value().map(|(number, _)| *number)
        };
        let held = self.left.and_then(|(asked, answered)| self.inbox.as_ref()?.held_within(asked, answered));
        let missing = (1..=newest.unwrap_or(0)).filter(|number| !self.heard.contains_key(number));
        let stays = self.stays(links);
        let excused = |number: &u64| {
            let Some(said) = self.said.get(number) else { return false };
            let with_link = stays.iter().any(|(_, since, link)| {
                let Some(unread) = link.unread else { return false };
                // What was said before the join went with it, or as soon as that was answered.
                let sent = *said.max(since) + ANSWER;
                *said <= link.ended.unwrap_or(unread) + ON_THE_WAY && unread <= sent + UNREAD
            });
            let went_on = self.inbox.as_ref().and_then(|inbox| inbox.went_on_late(*number));
            let with_room = self.surprises.iter().any(|Surprise { at, link, met_by_join }| {
                let near = |other: &Instant, within| *other <= *at + within && *at <= *other + within;
                let kept = stalls.get(link).is_some_and(|stalls| stalls.iter().any(|it| near(it, NEWS_IN_A_STALL)));
                let within = if kept { NEWS_IN_A_STALL } else { NEWS };
                near(said, within) || !met_by_join && went_on.is_some_and(|at| near(&at, within))
            });
            let when_it_left = held.is_some_and(|since| *said + ON_THE_WAY >= since);
            with_link || with_room || when_it_left
        };
        missing.filter(|number| !excused(number)).collect()
    }

    /// Whether this was said before the session was let in for the first time, and went on right behind a join that found the
    /// room gone: a Monolith need not answer joins, so what a newcomer says does not wait for that.
    fn is_a_newcomers(&self, number: u64) -> bool {
        let Some(inbox) = &self.inbox else { return false };
        let Some(at) = inbox.went_on_late(number).filter(|at| inbox.first_spoke() == Some(*at)) else { return false };
        self.surprises.iter().any(|it| it.met_by_join && it.at <= at + NEWS && at <= it.at + NEWS)
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
        self.add(what, 1);
    }

    pub(super) fn add(&self, what: &'static str, times: u64) {
        *self.lock().counts.entry(what).or_default() += times;
    }

    /// Something that is known by its largest value.
    pub(super) fn most(&self, what: &'static str, value: u64) {
        let mut seen = self.lock();
        let most = seen.counts.entry(what).or_default();
        *most = value.max(*most);
    }

    /// A client says input `number` of its session.
    pub(super) fn said(&self, session: Session, number: u64) {
        self.lock().inputs.entry(session).or_default().said.insert(number, Instant::now());
    }

    /// A session begins. Its queue knows over which links it was ever joined.
    pub(super) fn begins(&self, session: Session, inbox: Arc<Inbox>) {
        self.lock().inputs.entry(session).or_default().inbox = Some(inbox);
    }

    /// A session said goodbye at this moment, and has been answered.
    pub(super) fn left(&self, session: Session, asked: Instant) {
        let mut seen = self.lock();
        *seen.counts.entry("left in order").or_default() += 1;
        seen.inputs.entry(session).or_default().left = Some((asked, Instant::now()));
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

    /// The room of a session on a link has gone, and its balancer has not asked for that; what was under way is lost.
    pub(super) fn surprise(&self, session: Session, link: LinkNumber, met_by_join: bool) {
        let surprise = Surprise { at: Instant::now(), link, met_by_join };
        self.lock().inputs.entry(session).or_default().surprises.push(surprise);
    }

    /// A link is stalled, or goes on.
    pub(super) fn link_stalled(&self, link: LinkNumber) {
        self.lock().stalls.entry(link).or_default().push(Instant::now());
    }

    /// A Monolith stops for a while, or goes on.
    pub(super) fn slept(&self) {
        self.lock().slept.push(Instant::now());
    }

    /// A Monolith begins to load a room, which takes longer than a balancer waits.
    pub(super) fn loads_slowly(&self, room: &str, takes: Duration) {
        self.lock().slow.push((room.to_owned(), Instant::now() + takes));
    }

    /// Whether a Monolith was so slow lately that nobody may have taken this room: one that loaded it, or that stalled.
    pub(super) fn was_slow(&self, room: &str) -> bool {
        let (seen, room) = (self.lock(), room.to_ascii_lowercase());
        let loading = seen.slow.iter().any(|(name, until)| *name == room && until.elapsed() <= NEWS);
        loading || seen.slept.iter().any(|at| at.elapsed() <= NEWS_IN_A_STALL)
    }

    /// A balancer has a link.
    pub(super) fn link_began(&self, link: LinkNumber) {
        self.lock().links.insert(link, Link::default());
    }

    /// The Monolith of a link reads it no more.
    pub(super) fn link_unread(&self, link: LinkNumber) {
        if let Some(link) = self.lock().links.get_mut(&link) {
            link.unread.get_or_insert(Instant::now());
        }
    }

    /// The balancer of a link has found that it ended.
    pub(super) fn link_ended(&self, link: LinkNumber) {
        if let Some(link) = self.lock().links.get_mut(&link) {
            let now = Instant::now();
            link.unread.get_or_insert(now);
            link.ended.get_or_insert(now);
        }
    }

    /// What was violated, what led to it, and what happened how often.
    pub(super) fn close(self) -> (Vec<String>, Vec<String>, BTreeMap<&'static str, u64>) {
        let began = self.1;
        let mut seen = std::mem::take(&mut *self.lock());
        for (session, inputs) in &seen.inputs {
            let lost = inputs.lost(&seen.links, &seen.stalls);
            if !lost.is_empty() {
                let moment = |at: Instant| (at - began).as_secs_f64();
                let stays: Vec<_> = inputs
                    .stays(&seen.links)
                    .into_iter()
                    .map(|(number, since, link)| {
                        (number, moment(since), link.unread.map(moment), link.ended.map(moment))
                    })
                    .collect();
                let said: Vec<_> =
                    lost.iter().filter_map(|number| inputs.said.get(number)).map(|at| *at - began).collect();
                let went: Vec<_> = inputs.surprises.iter().map(|it| (it.link, moment(it.at))).collect();
                let whose = if lost.iter().all(|number| inputs.is_a_newcomers(*number)) { NEWCOMERS } else { "" };
                seen.violations.push(format!(
                    "{whose}inputs {lost:?} of session {session}, said at {said:?}, are lost; it was on links {stays:?}, and its room \
                     went at {went:?}"
                ));
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
    since: Option<Instant>,
}

impl Heard {
    /// The answer to a join: the load of the room and the number of its last message.
    pub(super) fn answer(&mut self, load: u64, last: u64) {
        self.load = Some((load, last));
        self.since.get_or_insert_with(Instant::now);
    }

    /// Whether it was let in, and its balancer could know.
    pub(super) fn was_let_in(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() > NEWS)
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
    use crate::config::Config;
    use crate::link::activity::Activity;
    use crate::link::inbox::Line as InboxLine;
    use crate::link::outbox::Outbox;
    use crate::model::{Attachment, ClientId};

    fn violations(steps: impl AsyncFnOnce(&Ledger)) -> usize {
        violations_told(steps).len()
    }

    fn violations_told(steps: impl AsyncFnOnce(&Ledger)) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let ledger = Ledger::new();
            for link in [1, 2, 3] {
                ledger.link_began(link);
            }
            let inbox = Inbox::new(Config::default().limits.client_queue);
            [1, 2].iter().for_each(|link| inbox.joined_over(LinkId(*link)));
            ledger.begins(7, inbox);
            steps(&ledger).await;
            ledger.close().0
        })
    }
    /// Says these inputs a tenth of a second apart; those with a link are heard over it.
    async fn inputs(ledger: &Ledger, inputs: &[(u64, Option<LinkNumber>)]) {
        for (number, link) in inputs {
            ledger.said(7, *number);
            if let Some(link) = link {
                ledger.input(7, *number, *link);
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }

    #[test]
    fn input_that_is_lost_doubled_or_reordered_is_seen() {
        assert_eq!(violations(async |it| inputs(it, &[(1, Some(1)), (2, Some(1)), (3, Some(1))]).await), 0);
        assert_eq!(violations(async |it| inputs(it, &[(1, Some(1)), (2, Some(1)), (2, Some(1))]).await), 1, "doubled");
        assert_eq!(
            violations(async |it| inputs(it, &[(1, Some(1)), (3, Some(1)), (2, Some(1))]).await),
            1,
            "reordered"
        );
        assert_eq!(violations(async |it| inputs(it, &[(1, Some(1)), (2, None), (3, Some(1))]).await), 1, "lost");
        assert_eq!(violations(async |it| inputs(it, &[(1, None), (2, Some(1))]).await), 1, "the first one is lost");
        assert_eq!(violations(async |it| inputs(it, &[(1, Some(1)), (2, None), (3, Some(2))]).await), 1, "in a move");
        let late = [(1, Some(1)), (3, Some(2)), (2, Some(1))];
        assert_eq!(violations(async |it| inputs(it, &late).await), 0, "a Monolith that was slow");
    }

    #[test]
    fn only_the_end_of_what_input_was_under_way_to_excuses_its_loss() {
        let lost = |ends: LinkNumber, after: u64, goes_on: u64| {
            violations(async move |it: &Ledger| {
                inputs(it, &[(1, Some(1)), (2, None)]).await;
                tokio::time::advance(Duration::from_secs(after)).await;
                it.link_ended(ends);
                tokio::time::advance(Duration::from_secs(goes_on)).await;
                inputs(it, &[(3, Some(2))]).await;
            })
        };
        assert_eq!((lost(1, 0, 0), lost(1, 3, 0), lost(1, 0, 60)), (0, 0, 0), "its link ended soon after");
        assert_eq!(lost(1, 8, 0), 1, "its link ended much later");
        assert_eq!(lost(3, 0, 0), 1, "another link ended, which it never was on");
        let earlier = async |it: &Ledger| {
            inputs(it, &[(1, Some(1))]).await;
            it.link_ended(1);
            tokio::time::advance(Duration::from_millis(200)).await;
            inputs(it, &[(2, None), (3, Some(2))]).await;
        };
        assert_eq!(violations(earlier), 1, "its link had ended before");
        let surprised = |after: u64, stalls: LinkNumber| {
            violations(async move |it: &Ledger| {
                inputs(it, &[(1, Some(1))]).await;
                it.surprise(7, 1, false);
                it.link_stalled(stalls);
                tokio::time::advance(Duration::from_millis(after)).await;
                inputs(it, &[(2, None), (3, Some(2))]).await;
            })
        };
        assert_eq!((surprised(300, 3), surprised(500, 3)), (0, 1), "its room went");
        assert_eq!((surprised(500, 1), surprised(4500, 1)), (0, 1), "its room went when its link was stalled");
    }

    /// The session is joined, and what it says goes on or is held.
    fn attached(it: &Ledger, open: bool) -> Arc<Inbox> {
        let inbox = it.lock().inputs[&7].inbox.clone().unwrap();
        let (attachment, member) = (Attachment(1), ClientId::from_u128(7 << 64).member(Attachment(1)));
        let line = InboxLine {
            member,
            outbox: Arc::new(Outbox::new("m1".into(), 1 << 10)),
            commands: tokio::sync::mpsc::unbounded_channel().0,
            activity: Arc::new(Activity::default()),
        };
        inbox.attached(attachment, line, open);
        inbox
    }

    #[test]
    fn what_was_held_was_under_way_when_it_went_on() {
        let surprised = |taken_back: bool, after: u64| {
            violations(async move |it: &Ledger| {
                let inbox = attached(it, false);
                it.said(7, 1);
                tokio::time::advance(Duration::from_millis(10)).await;
                inbox.has_read("one".into());
                if taken_back {
                    tokio::time::advance(Duration::from_secs(1)).await;
                    inbox.has_given("one".into());
                }
                tokio::time::advance(Duration::from_secs(2)).await;
                inbox.has_given("one".into());
                tokio::time::advance(Duration::from_millis(after)).await;
                it.surprise(7, 1, false);
                inputs(it, &[(2, Some(2))]).await;
            })
        };
        assert_eq!((surprised(false, 100), surprised(false, 1000)), (0, 1));
        assert_eq!((surprised(true, 100), surprised(true, 1000)), (0, 1), "what comes back goes on once more");
        assert_eq!(surprised(true, 2000 + 100), 1, "as it did before");
    }

    #[test]
    fn what_a_newcomer_says_is_told_apart_and_nothing_else_is() {
        let lost = |again: bool, met_by_join: bool| {
            violations_told(async move |it: &Ledger| {
                let inbox = attached(it, again);
                if again {
                    tokio::time::advance(Duration::from_secs(1)).await;
                    inbox.hold(Attachment(1), None);
                }
                it.said(7, 1);
                inbox.has_read("one".into());
                tokio::time::advance(Duration::from_secs(2)).await;
                inbox.open(Attachment(1));
                inbox.has_given("one".into());
                tokio::time::advance(Duration::from_millis(100)).await;
                it.surprise(7, 1, met_by_join);
                inputs(it, &[(2, Some(2))]).await;
            })
        };
        let newcomers = lost(false, true);
        assert!(newcomers.len() == 1 && newcomers[0].starts_with(NEWCOMERS), "{newcomers:?}");
        let others = lost(true, true);
        assert!(others.len() == 1 && !others[0].starts_with(NEWCOMERS), "{others:?}");
        assert_eq!(lost(false, false), [""; 0], "it was under way");
    }

    /// A session is let in, says two inputs of which the second is not heard, is held from then on or not, and leaves.
    fn last_words(answered: bool, held_after: Option<Duration>) -> usize {
        violations(async move |it: &Ledger| {
            let inbox = attached(it, true);
            inputs(it, &[(1, Some(1)), (2, None)]).await;
            if let Some(after) = held_after {
                tokio::time::advance(after).await;
                inbox.detached(Attachment(1));
            }
            if answered {
                it.left(7, Instant::now());
            }
        })
    }

    #[test]
    fn the_last_words_of_who_leaves_in_order_have_to_be_heard_unless_they_were_held() {
        assert_eq!(last_words(true, None), 1);
        assert_eq!(last_words(false, None), 0, "it was cut off");
        assert_eq!(last_words(true, Some(Duration::ZERO)), 0, "held as soon as it had said them");
        assert_eq!(last_words(true, Some(Duration::from_secs(1))), 1, "held much later");
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
