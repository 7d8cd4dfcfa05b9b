//! What happened to rooms lately, for whoever asks why a room is where it is. Decisions come from the policy as they are
//! taken, everything else from the cluster, and both meet here in the order in which they happened. Bounded in bytes.

mod shelf;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::shelf::Shelf;
use crate::model::event::Micros;
use crate::model::metrics::MetricsText;
use crate::model::policy::{Answer, Call, Hook};
use crate::model::story::{About, Chapter, Decided, Mover, Note, PolicyOf, What};
use crate::model::{RequestId, RoomKey};
use crate::policy::tap::{Seen, Tap, Wants};
use crate::policy::telling;

/// Bytes of the stories of rooms in which something was decided or done here.
const BYTES: usize = 8 << 20;
/// Bytes of the stories of rooms that were only reported by a Monolith, or only refused by `admit`: whoever asks for rooms
/// that nobody has must not push out the others.
const MINOR_BYTES: usize = 1 << 20;
/// Decisions that wait for the cluster to say which chapter they are. Mostly there is one, but all rooms that wait for a
/// Monolith are placed in one event, and that many may wait (`limits.pending_rooms`).
const PENDING: usize = 8192;
/// Creations without a name that wait for their name. Beyond it the oldest is never told.
const BIRTHS: usize = 1024;

/// The stories of recent rooms. The lock is held for as long as it takes to add or copy a few chapters.
pub struct Stories {
    kept: Mutex<Kept>,
}

struct Kept {
    major: Shelf,
    minor: Shelf,
    /// Decisions of `place` that were seen, with the room unless it has no name yet.
    pending: VecDeque<(Option<RoomKey>, Box<Decided>)>,
    births: VecDeque<(RequestId, Chapter)>,
    /// Who asked for the moves that begin, and why.
    rebalanced: Option<(PolicyOf, Vec<String>)>,
}

/// The story of one room.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// What happened, oldest first.
    pub chapters: Vec<Arc<Chapter>>,
    /// Earlier chapters that are kept no more.
    pub forgotten: u64,
}

impl Default for Stories {
    fn default() -> Self {
        Self::within(BYTES, MINOR_BYTES)
    }
}

impl Stories {
    fn within(major: usize, minor: usize) -> Self {
        let kept = Kept {
            major: Shelf::new(major),
            minor: Shelf::new(minor),
            pending: VecDeque::new(),
            births: VecDeque::new(),
            rebalanced: None,
        };
        Self { kept: Mutex::new(kept) }
    }

    /// The story of a room; without chapters if none is kept.
    pub fn of(&self, room: &RoomKey) -> Story {
        let kept = self.lock();
        let Some(found) = kept.major.get(room).or_else(|| kept.minor.get(room)) else { return Story::default() };
        Story { chapters: found.chapters.iter().cloned().collect(), forgotten: found.forgotten }
    }

    /// Takes in what the cluster says.
    pub(super) fn note(&self, note: Note) {
        let Note { at, about } = note;
        let mut kept = self.lock();
        match about {
            About::Chapter(room, what) => {
                let what = kept.completed(what);
                kept.add(&room, Chapter::new(at, what));
            }
            About::Decided(room) => {
                if let Some(decided) = kept.take_pending(Some(&room)) {
                    kept.add(&room, Chapter::new(at, What::Decided(decided)));
                }
            }
            About::DecidedFor(request) => {
                if let Some(decided) = kept.take_pending(None) {
                    kept.births.push_back((request, Chapter::new(at, What::Decided(decided))));
                    if kept.births.len() > BIRTHS {
                        kept.births.pop_front();
                    }
                }
            }
            About::Named(request, room) => {
                if let Some(place) = kept.births.iter().position(|(other, _)| *other == request)
                    && let Some((_, chapter)) = kept.births.remove(place)
                {
                    kept.promote(&room);
                    kept.major.add_birth(&room, chapter);
                }
            }
        }
    }

    /// Writes what is kept.
    pub fn write_metrics(&self, out: &mut MetricsText) {
        let kept = self.lock();
        let ((rooms, bytes, gone), (minor_rooms, minor_bytes, minor_gone)) =
            (kept.major.numbers(), kept.minor.numbers());
        drop(kept);
        out.gauge("usher_stories_rooms", "Rooms whose story is kept.", rooms + minor_rooms);
        out.gauge("usher_stories_bytes", "What their stories take, roughly.", bytes + minor_bytes);
        out.counter("usher_stories_forgotten_total", "Rooms whose story was forgotten for others.", gone + minor_gone);
    }

    fn refused(&self, at: Micros, seen: &Seen<'_>) {
        let Some(name) = seen.call.room.as_ref().and_then(|room| room.name.as_deref()) else { return };
        let said_no = matches!(seen.decision.answer, Answer::Reject { .. } | Answer::Hold { .. });
        let fault = telling::fault(seen);
        if !said_no && fault.is_none() {
            return;
        }
        let what = What::Admission {
            policy: telling::version(seen),
            answer: telling::beginning(&seen.decision.answer),
            fault,
        };
        self.lock().add(&RoomKey::of(name), Chapter::new(at, what));
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tap for Stories {
    fn wants(&self, call: &Call) -> Wants {
        match call.hook {
            Hook::Place | Hook::Admit | Hook::Rebalance => Wants::Outcome,
            Hook::Route => Wants::Nothing,
        }
    }

    fn decided(&self, seen: &Seen<'_>) {
        match seen.call.hook {
            Hook::Place => {
                let name = seen.call.room.as_ref().and_then(|room| room.name.as_deref()).map(RoomKey::of);
                let decided = Box::new(telling::told(seen));
                let mut kept = self.lock();
                kept.pending.push_back((name, decided));
                if kept.pending.len() > PENDING {
                    kept.pending.pop_front();
                }
            }
            Hook::Admit => self.refused(seen.call.now_us, seen),
            Hook::Rebalance => {
                let rebalanced = (telling::version(seen), telling::explained(seen));
                self.lock().rebalanced = Some(rebalanced);
            }
            Hook::Route => {}
        }
    }
}

impl Kept {
    fn add(&mut self, room: &RoomKey, chapter: Chapter) {
        if chapter.what.is_minor() && self.major.get(room).is_none() {
            self.minor.add(room, chapter);
            return;
        }
        self.promote(room);
        self.major.add(room, chapter);
    }

    /// A story in which more has happened than a report or a refusal is kept as any other.
    fn promote(&mut self, room: &RoomKey) {
        if let Some(story) = self.minor.take(room) {
            self.major.put(room, story);
        }
    }

    /// The decision that was seen for this room, or for one without a name. Older ones that nobody claimed are dropped.
    fn take_pending(&mut self, room: Option<&RoomKey>) -> Option<Box<Decided>> {
        let place = self.pending.iter().position(|(other, _)| other.as_ref() == room)?;
        self.pending.drain(..place);
        self.pending.pop_front().map(|(_, decided)| decided)
    }

    /// A chapter with what the cluster does not know of it.
    fn completed(&self, what: What) -> What {
        let policy = || self.rebalanced.as_ref().map(|(policy, _)| policy.clone());
        match what {
            What::Moving { from, to, clients, by: by @ Mover::Policy, lossy, .. } => {
                let explained = self.rebalanced.as_ref().map(|(_, texts)| texts.clone()).unwrap_or_default();
                What::Moving { from, to, clients, by, lossy, policy: policy(), explained }
            }
            What::WouldMove { to, .. } => What::WouldMove { to, policy: policy() },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Epoch;
    use crate::model::policy::{MonolithRow, View};
    use crate::policy::deciding::{Current, Deciding, PolicyHandle};
    use crate::policy::lua::{Environment, Program, Source};
    use crate::policy::slots::PolicySet;
    use crate::trace::Encoder;
    use crate::trace::read::{OnDamage, Reader};
    use crate::trace::record::{Decided as Recorded, Outcome};

    const TEXT: &str = "local p = {}
function p.place(call)
  usher.explain('the first')
  if call.room.name == 'broken' then return call.no.field end
  if call.room.name == 'nobody' then return 'nobody' end
  return call.monoliths[1]
end
function p.admit(call)
  if call.client.attempt == 1 then return usher.hold(1) end
  return usher.reject(503, 'full ' .. call.client.attempt)
end
return p";

    struct Live {
        handle: Arc<PolicyHandle>,
        stories: Arc<Stories>,
        view: View,
    }

    fn live(stories: Stories) -> Live {
        let program = Program::compile(Source::shipped("test", TEXT), &Environment::default()).unwrap();
        let handle = Arc::new(PolicyHandle::new(Deciding::alone(PolicySet::build(&program, 1).unwrap())));
        let stories = Arc::new(stories);
        handle.change(|now| now.with_taps([stories.clone() as Arc<dyn Tap>].into()));
        let view = View::of(["a", "b"].map(|id| MonolithRow { id: id.into(), ..MonolithRow::default() }));
        Live { handle, stories, view }
    }

    impl Live {
        fn decide(&self, hook: &str, room: Option<&str>, attempt: u32) {
            let call = serde_json::json!({"hook": hook, "region": "ewr", "now_us": 7, "cause": "join",
                "room": {"name": room, "attempt": attempt}, "client": {"attempt": attempt}});
            let call: Call = serde_json::from_value(call).unwrap();
            crate::policy::decide(&mut Current::new(self.handle.clone()), &call, &self.view);
        }

        fn note(&self, about: About) {
            self.stories.note(Note { at: 7, about });
        }

        fn story(&self, room: &str) -> Vec<What> {
            self.stories.of(&RoomKey::of(room)).chapters.iter().map(|chapter| chapter.what.clone()).collect()
        }
    }

    fn waits(room: &str) -> About {
        About::Chapter(RoomKey::of(room), What::Waits)
    }

    #[test]
    fn a_decision_stands_where_the_cluster_says_that_it_was_taken() {
        let live = live(Stories::default());
        live.decide("place", Some("x"), 1);
        // What is told within one event comes after its decisions were seen.
        live.note(waits("x"));
        live.note(About::Decided(RoomKey::of("x")));
        live.note(About::Decided(RoomKey::of("x")));
        let story = live.story("X");
        let [What::Waits, What::Decided(decided)] = &story[..] else { panic!("{story:?}") };
        assert_eq!((decided.monolith.clone(), decided.candidates.len()), (Some("a".into()), 2));
        assert_eq!((&*decided.policy.name, decided.explained.as_slice()), ("test", &["the first".to_string()][..]));
        assert!(decided.ns > 0 && decided.fault.is_none());
    }

    #[test]
    fn rooms_that_are_placed_in_one_event_all_have_their_decision() {
        let live = live(Stories::default());
        let rooms: Vec<String> = (0..500).map(|room| format!("room-{room}")).collect();
        rooms.iter().for_each(|room| live.decide("place", Some(room), 1));
        rooms.iter().for_each(|room| live.note(About::Decided(RoomKey::of(room))));
        for room in &rooms {
            assert!(matches!(&live.story(room)[..], [What::Decided(_)]), "{room}");
        }
    }

    #[test]
    fn faults_have_their_file_and_line() {
        let live = live(Stories::default());
        for (room, at) in
            [("broken", "policies/test.lua:4: "), ("nobody", "policies/test.lua:2: place named \"nobody\"")]
        {
            live.decide("place", Some(room), 1);
            live.note(About::Decided(RoomKey::of(room)));
            let story = live.story(room);
            let [What::Decided(decided)] = &story[..] else { panic!("{story:?}") };
            assert!(decided.fault.as_ref().unwrap().starts_with(at), "{:?}", decided.fault);
            assert_eq!((&decided.answer, decided.monolith.clone()), (&Answer::Default, Some("a".into())));
        }
    }

    /// Somebody who writes down decisions as a recording does.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<Recorded>>);

    impl Tap for Recorder {
        fn wants(&self, _: &Call) -> Wants {
            Wants::Outcome
        }

        fn decided(&self, seen: &Seen<'_>) {
            let outcome = Outcome {
                reads: Vec::new(),
                answer: seen.decision.answer.clone(),
                choice: seen.decision.choices.first().cloned(),
                policy: seen.by.version().into(),
                ns: u64::try_from(seen.heard.took.as_nanos()).unwrap(),
                fallback: seen.decision.fault.clone(),
                bypassed: seen.heard.bypassed,
                incomplete: false,
            };
            self.0.lock().unwrap().push(Recorded { call: seen.call.clone(), view: seen.view.clone().into(), outcome });
        }
    }

    #[test]
    fn a_trace_tells_of_a_decision_what_was_told_live() {
        let live = live(Stories::default());
        let recorder = Arc::new(Recorder::default());
        live.handle.change(|now| {
            now.with_taps(now.taps().iter().cloned().chain([recorder.clone() as Arc<dyn Tap>]).collect())
        });
        for room in ["x", "broken", "nobody"] {
            live.decide("place", Some(room), 1);
            live.note(About::Decided(RoomKey::of(room)));
        }
        let program = live.handle.load().program().clone();
        let header = serde_json::json!({"usher_trace": crate::trace::FORMAT, "balancer": "b", "region": "ewr",
            "started_us": 0, "version": "0", "redacted": false, "distances": crate::config::Distances::default(),
            "policy": {"name": "test", "version": program.version(), "file": program.source().file(), "source": TEXT,
                "settings": {}, "fuel": 20_000, "memory": 8 << 20}});
        let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
        encoder.header(&serde_json::from_value(header).unwrap(), &mut bytes);
        for decided in recorder.0.lock().unwrap().drain(..) {
            // It was written down a little later.
            encoder.decision(900, decided, &mut bytes);
        }
        for room in ["x", "broken", "nobody"] {
            let mut reader = Reader::new("t", std::io::Cursor::new(bytes.clone()), OnDamage::Stop).unwrap();
            let traced = crate::lab::room_story(&mut reader, room, 9, &mut |_| {}).unwrap().chapters;
            let told = Chapter::clone(&live.stories.of(&RoomKey::of(room)).chapters[0]);
            let What::Decided(decided) = &told.what else { panic!("{told:?}") };
            // A trace does not hold what a script explains: it is asked again.
            assert_eq!(decided.explained, ["the first"]);
            assert_eq!(traced, [told]);
        }
    }

    #[test]
    fn a_room_that_got_its_name_later_has_its_decision() {
        let live = live(Stories::default());
        live.decide("place", None, 1);
        live.note(About::DecidedFor(RequestId(3)));
        // Its Monolith is faster over the link than over HTTP.
        let found = What::Found { monolith: "a".into(), epoch: Epoch(1) };
        live.stories.note(Note { at: 8, about: About::Chapter(RoomKey::of("made-up"), found) });
        live.note(About::Named(RequestId(4), RoomKey::of("other")));
        live.note(About::Named(RequestId(3), RoomKey::of("made-up")));
        let story = live.story("made-up");
        assert!(matches!(story[..], [What::Decided(_), What::Bound { .. }]), "{story:?}");
        assert!(live.story("other").is_empty());
    }

    #[test]
    fn refusals_of_clients_are_counted_and_never_push_out_a_placement() {
        let live = live(Stories::within(1 << 20, 4 << 10));
        live.decide("place", Some("x"), 1);
        live.note(About::Decided(RoomKey::of("x")));
        for n in 0..500 {
            live.decide("admit", Some("x"), 1);
            live.decide("admit", Some("x"), n + 2);
            live.decide("admit", Some(&format!("stranger-{n}")), 1);
        }
        let chapters = live.stories.of(&RoomKey::of("x")).chapters;
        assert_eq!(chapters.iter().map(|chapter| chapter.times).collect::<Vec<_>>(), [1, 500, 500]);
        let last = Answer::Reject { code: 503, reason: "full 501".into() };
        assert!(matches!(&chapters[2].what, What::Admission { answer, .. } if *answer == last), "{chapters:?}");
        assert!(live.story("stranger-0").is_empty() && live.story("stranger-499").len() == 1);
        // Something that is done about such a room makes its story one like any other.
        live.note(waits("stranger-499"));
        for n in 500..600 {
            live.decide("admit", Some(&format!("stranger-{n}")), 1);
        }
        assert_eq!(live.story("stranger-499").len(), 2);
    }
}
