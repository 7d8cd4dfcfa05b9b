//! The story of one room from a trace: its decisions as they were recorded, where it was loaded, who came and went. One
//! pass, and memory stays flat however long the trace is.
//!
//! What a script explained is not recorded, but its text and all that it read are: its decision is made again for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::replay::recorded_limits;
use super::texts::Texts;
use crate::config;
use crate::model::event::Micros;
use crate::model::policy::{Answer, Call, Cause, Hook, View};
use crate::model::story::{Chapter, Decided, PolicyOf, Sign, What};
use crate::model::{CloseCode, MonolithId, RoomKey};
use crate::policy::Policy as _;
use crate::policy::decide::settle;
use crate::policy::lua::{Distances, Environment, Origin, Program, Source, Vm};
use crate::policy::telling;
use crate::trace::Item;
use crate::trace::read::{Reader, TraceError};
use crate::trace::record::{Header, Outcome, PolicyText, TraceEvent};

/// Names of rooms that are remembered for whoever asks for one that is not there.
const NAMES: usize = 10_000;
/// Versions that are kept ready to explain what they decided; beyond them all are made anew.
const READY: usize = 16;

/// What a trace tells of a room.
#[derive(Debug, Default)]
pub struct RoomStory {
    /// What happened, oldest first.
    pub chapters: Vec<Chapter>,
    /// Earlier chapters that were left out.
    pub forgotten: u64,
    /// Whether the trace has hashes in place of names.
    pub redacted: bool,
    /// Other rooms of the trace with how often each occurs, the busiest first; not all if there are very many.
    pub others: Vec<(Arc<str>, u64)>,
}

/// Reads a trace to its end for the story of `room`, of which the last `last` chapters are kept. In a trace without names
/// the room is its hash, as it stands there (`r-` and 16 digits). `progress` hears of every line.
pub fn room_story(
    reader: &mut Reader,
    room: &str,
    last: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<RoomStory, TraceError> {
    let mut teller = Teller {
        room: RoomKey::of(room),
        last: last.max(1),
        started: 0,
        distances: config::Distances::default(),
        texts: Texts::default(),
        ready: HashMap::new(),
        chapters: VecDeque::new(),
        forgotten: 0,
        owner: None,
        members: HashSet::new(),
        coming: None,
        others: HashMap::new(),
        redacted: false,
    };
    teller.header(reader.header().clone());
    while let Some((t, item)) = reader.read()? {
        progress(reader.line());
        let at = teller.started.saturating_add(t);
        match item {
            Item::Header(header) => teller.header(*header),
            Item::Policy(policy) => teller.version(*policy),
            Item::View => {}
            Item::Gap(gap) => teller.gap(at, gap.events, gap.decisions),
            Item::Event(event) => teller.event(at, event),
            Item::Decision { call, outcome, .. } => {
                // What was told live has the clock of the call.
                let at = if call.now_us > 0 { call.now_us } else { at };
                let refused = refusal(&call, &outcome);
                if let Some(what) = teller.decision(&call, *outcome, reader) {
                    teller.tell(at, what);
                    if let Some(refused) = refused {
                        teller.tell(at, refused);
                    }
                }
            }
        }
    }
    Ok(teller.end())
}

/// What a decision that found nobody means for those who waited for it.
fn refusal(call: &Call, outcome: &Outcome) -> Option<What> {
    if call.hook != Hook::Place || outcome.choice.is_some() || call.cause == Some(Cause::Move) {
        return None;
    }
    // As the cluster does: codes that a client cannot be closed with become the one with which it tries again.
    let said = match outcome.answer {
        Answer::Reject { code, .. } if code >= 4000 => CloseCode::sendable(code),
        _ => None,
    };
    let waiting = call.room.as_ref().map_or(0, |room| room.clients).max(1) as usize;
    Some(What::Refused { waiting, code: said.unwrap_or(CloseCode::TRY_AGAIN).get() })
}

struct Teller {
    room: RoomKey,
    last: usize,
    started: Micros,
    distances: config::Distances,
    texts: Texts,
    /// Versions that can be asked, by hash; none for one that does not compile.
    ready: HashMap<String, Option<Box<Vm>>>,
    chapters: VecDeque<Chapter>,
    forgotten: u64,
    owner: Option<MonolithId>,
    members: HashSet<u64>,
    /// Who came and went since the last chapter.
    coming: Option<Chapter>,
    others: HashMap<Arc<str>, u64>,
    redacted: bool,
}

impl Teller {
    fn header(&mut self, header: Header) {
        self.started = header.started_us;
        self.redacted |= header.redacted;
        self.distances = header.distances;
        self.ready.clear();
        self.version(header.policy);
        // The numbers of clients begin anew with each file.
        self.members.clear();
    }

    fn version(&mut self, policy: PolicyText) {
        // It may have other settings or limits by now.
        self.ready.remove(&policy.version);
        self.texts.declare(policy);
    }

    /// What a script explained when it decided so, and the line of its hook.
    fn again(&mut self, call: &Call, outcome: &Outcome, view: &View) -> (Vec<String>, Option<u32>) {
        if self.ready.len() >= READY && !self.ready.contains_key(&*outcome.policy) {
            self.ready.clear();
        }
        let (texts, distances) = (&self.texts, &self.distances);
        let ready = self.ready.entry(outcome.policy.to_string());
        let vm = ready.or_insert_with(|| texts.get(&outcome.policy).and_then(|text| vm(text, distances)));
        let Some(vm) = vm else { return (Vec::new(), None) };
        let line = vm.hook_lines()[call.hook as usize];
        // Without all of its reads it is another call; past an open breaker nobody said anything.
        if outcome.incomplete || outcome.bypassed {
            return (Vec::new(), line);
        }
        vm.feed(outcome.reads.clone());
        let answer = vm.call(call, view);
        let explained = vm.take_explanations();
        let same = outcome.fallback.is_some() || answer.is_ok_and(|answer| answer == outcome.answer);
        (if same { telling::explanations(&explained) } else { Vec::new() }, line)
    }

    fn gap(&mut self, at: Micros, events: u64, decisions: u64) {
        // Before the story begins it says nothing about the room.
        if !self.chapters.is_empty() {
            self.tell(at, What::Gap { events, decisions });
        }
    }

    fn event(&mut self, at: Micros, event: TraceEvent) {
        match event {
            TraceEvent::Loaded { monolith, room } if self.is_it(&room) => self.loaded(at, monolith),
            TraceEvent::Unloaded { monolith, room, reason } if self.is_it(&room) => {
                let owned = self.owner.as_ref() == Some(&monolith);
                let clients = if owned { self.members.len() } else { 0 };
                if owned {
                    self.owner = None;
                }
                self.tell(at, What::Unloaded { monolith, reason: Some(reason), clients });
            }
            TraceEvent::MonolithDown { monolith } if self.owner.as_ref() == Some(&monolith) => {
                self.owner = None;
                self.tell(at, What::Lost { monolith, clients: self.members.len() });
            }
            TraceEvent::Join { client, room, .. } => {
                if self.is_it(&room) {
                    self.members.insert(client);
                    self.came(at, (1, 0, 0));
                } else {
                    self.other(&room);
                }
            }
            TraceEvent::Leave { client } => {
                if self.members.remove(&client) {
                    self.came(at, (0, 1, 0));
                }
            }
            TraceEvent::Request { room: Some(room), .. } if self.is_it(&room) => self.came(at, (0, 0, 1)),
            TraceEvent::Loaded { .. }
            | TraceEvent::Unloaded { .. }
            | TraceEvent::MonolithUp { .. }
            | TraceEvent::MonolithDown { .. }
            | TraceEvent::Load { .. }
            | TraceEvent::Gossip { .. }
            | TraceEvent::Request { .. } => {}
        }
    }

    fn loaded(&mut self, at: Micros, monolith: MonolithId) {
        match &self.owner {
            Some(owner) if *owner == monolith => {}
            Some(owner) => {
                let first = owner.clone();
                self.tell(at, What::SecondLoad { monolith, first });
            }
            None => {
                self.owner = Some(monolith.clone());
                self.tell(at, What::Bound { monolith, epoch: None, how: Sign::Reported, instead_of: None });
            }
        }
    }

    fn decision(&mut self, call: &Call, outcome: Outcome, reader: &Reader) -> Option<What> {
        if call.hook == Hook::Rebalance {
            let Answer::Moves(moves) = &outcome.answer else { return None };
            let to = moves.iter().find(|one| self.is_it(&one.room))?.to.clone();
            return Some(What::MoveNamed { to, policy: self.policy(&outcome.policy) });
        }
        let name = call.room.as_ref()?.name.as_deref()?;
        if !self.is_it(name) {
            self.other(name);
            return None;
        }
        let policy = self.policy(&outcome.policy);
        let asked = call.hook == Hook::Place || outcome.fallback.is_some();
        let (explained, line) = if asked { self.again(call, &outcome, reader.view()) } else { (Vec::new(), None) };
        let file = self.texts.get(&outcome.policy).map_or("", |text| text.file.as_str());
        let fault = outcome.fallback.as_ref().map(|fault| telling::located(fault, file, line));
        match call.hook {
            Hook::Place => {
                let answer = outcome.fallback.map_or(Ok(outcome.answer), Err);
                let decision = settle(answer, call, reader.view(), None);
                let told = telling::decided(call, reader.view(), &decision, policy);
                let (monolith, ns, bypassed) = (outcome.choice, outcome.ns, outcome.bypassed);
                Some(What::Decided(Box::new(Decided { monolith, fault, explained, ns, bypassed, ..told })))
            }
            Hook::Admit => {
                let said_no = matches!(outcome.answer, Answer::Reject { .. } | Answer::Hold { .. });
                let answer = telling::beginning(&outcome.answer);
                (said_no || fault.is_some()).then_some(What::Admission { policy, answer, fault })
            }
            Hook::Route | Hook::Rebalance => None,
        }
    }

    fn policy(&self, version: &str) -> PolicyOf {
        let name = self.texts.get(version).map_or("a policy that the trace does not hold", |text| &text.name);
        PolicyOf { name: name.into(), version: version.into(), canary: false }
    }

    fn came(&mut self, at: Micros, (one, less, asked): (u64, u64, u64)) {
        let coming =
            self.coming.get_or_insert_with(|| Chapter::new(at, What::Clients { joined: 0, left: 0, requests: 0 }));
        coming.at = at;
        if let What::Clients { joined, left, requests } = &mut coming.what {
            *joined += one;
            *left += less;
            *requests += asked;
        }
    }

    fn tell(&mut self, at: Micros, what: What) {
        if let Some(coming) = self.coming.take() {
            self.push(coming);
        }
        match self.chapters.back_mut() {
            Some(last) if last.what.repeats(&what) => last.again(at, what),
            _ => self.push(Chapter::new(at, what)),
        }
    }

    fn push(&mut self, chapter: Chapter) {
        self.chapters.push_back(chapter);
        if self.chapters.len() > self.last {
            self.chapters.pop_front();
            self.forgotten += 1;
        }
    }

    fn is_it(&self, room: &str) -> bool {
        room.eq_ignore_ascii_case(self.room.as_str())
    }

    fn other(&mut self, room: &str) {
        if let Some(count) = self.others.get_mut(room) {
            *count += 1;
        } else if self.others.len() < NAMES {
            self.others.insert(room.into(), 1);
        }
    }

    fn end(mut self) -> RoomStory {
        if let Some(coming) = self.coming.take() {
            self.push(coming);
        }
        let mut others: Vec<(Arc<str>, u64)> = self.others.into_iter().collect();
        others.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let (chapters, forgotten, redacted) = (self.chapters.into(), self.forgotten, self.redacted);
        RoomStory { chapters, forgotten, redacted, others }
    }
}

/// A version of the trace that can be asked; none if it does not compile here.
fn vm(text: &PolicyText, distances: &config::Distances) -> Option<Box<Vm>> {
    let distances = distances.clone();
    let environment = Environment {
        distances: Distances::new(move |from, to| distances.ms(from, to)),
        settings: text.settings.clone(),
        limits: recorded_limits(text),
        ..Environment::default()
    };
    let source =
        Source { name: text.name.clone(), text: text.source.clone(), origin: Origin::File((&text.file).into()) };
    Program::compile(source, &environment).and_then(|program| Vm::new(&program)).ok().map(Box::new)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use serde_json::json;

    use super::*;
    use crate::model::ClientId;
    use crate::model::policy::{Fault, MonolithRow, Move};
    use crate::model::wire::UnloadReason;
    use crate::policy::lua::Source;
    use crate::trace::Encoder;
    use crate::trace::read::OnDamage;
    use crate::trace::record::{Decided as Recorded, Gap};
    use crate::trace::redact::Redactor;

    fn policy(version: &str) -> PolicyText {
        PolicyText { version: version.into(), ..PolicyText::of(&Source::shipped("test", "")) }
    }

    struct Tape {
        encoder: Encoder,
        bytes: Vec<u8>,
        t: u64,
        view: View,
    }

    impl Tape {
        fn new(redactor: Option<Redactor>) -> Self {
            let rows = ["a", "b"].map(|id| MonolithRow { id: id.into(), region: "ewr".into(), ..Default::default() });
            let redacted = redactor.is_some();
            let mut tape = Self { encoder: Encoder::new(redactor), bytes: Vec::new(), t: 0, view: View::of(rows) };
            let header = Header { started_us: 1_000_000, redacted, ..Header::of(policy("v1")) };
            tape.encoder.header(&header, &mut tape.bytes);
            tape
        }

        fn event(&mut self, event: TraceEvent<ClientId>) {
            self.t += 10;
            self.encoder.event(self.t, event, &mut self.bytes);
        }

        fn decision(&mut self, call: serde_json::Value, answer: Answer, fallback: Option<Fault>, version: &str) {
            self.t += 10;
            let call: Call = serde_json::from_value(call).unwrap();
            let settled = settle(fallback.clone().map_or(Ok(answer.clone()), Err), &call, &self.view, None);
            let outcome = Outcome {
                reads: Vec::new(),
                answer: settled.answer,
                choice: settled.choices.first().cloned(),
                policy: version.into(),
                ns: 5,
                fallback: settled.fault,
                bypassed: false,
                incomplete: false,
            };
            let decided = Recorded { call, view: self.view.clone().into(), outcome };
            self.encoder.decision(self.t, decided, &mut self.bytes);
        }

        fn place(&mut self, room: &str, answer: &str) {
            let call = json!({"hook": "place", "region": "ewr", "cause": "join", "room": {"name": room, "attempt": 1}});
            self.decision(call, Answer::Ranked(vec![answer.into()]), None, "v1");
        }

        fn tell(&self, room: &str, last: usize) -> RoomStory {
            let mut reader = Reader::new("x", Cursor::new(self.bytes.clone()), OnDamage::Stop).unwrap();
            room_story(&mut reader, room, last, &mut |_| {}).unwrap()
        }
    }

    fn join(n: u128, room: &str) -> TraceEvent<ClientId> {
        TraceEvent::Join { client: ClientId::from_u128(n), room: room.into(), region: None, reconnect: false }
    }

    /// Clients come, the room is placed by another version after a fault, moves, is loaded twice and goes.
    fn tape() -> Tape {
        let mut tape = Tape::new(None);
        tape.event(join(1, "movie"));
        tape.event(join(2, "movie"));
        tape.event(join(3, "other"));
        tape.place("movie", "b");
        tape.place("other", "a");
        tape.event(TraceEvent::Loaded { monolith: "b".into(), room: "movie".into() });
        tape.event(TraceEvent::Loaded { monolith: "b".into(), room: "movie".into() });
        tape.event(TraceEvent::Loaded { monolith: "a".into(), room: "movie".into() });
        tape.event(TraceEvent::Leave { client: ClientId::from_u128(2) });
        tape.event(TraceEvent::Leave { client: ClientId::from_u128(3) });
        let rebalance = json!({"hook": "rebalance", "region": "ewr"});
        tape.decision(rebalance, Answer::Moves(vec![Move { room: "Movie".into(), to: "a".into() }]), None, "v1");
        tape.event(TraceEvent::MonolithDown { monolith: "b".into() });
        tape.t += 10;
        tape.encoder.policy(tape.t, &policy("v2"), &mut tape.bytes);
        tape.place("movie", "nobody");
        let admit = json!({"hook": "admit", "region": "ewr", "room": {"name": "movie", "bound": true}});
        tape.decision(admit.clone(), Answer::Admit, None, "v2");
        for n in 0..3 {
            tape.decision(admit.clone(), Answer::Reject { code: 503, reason: format!("full {n}") }, None, "v2");
        }
        tape.t += 10;
        tape.encoder.gap(tape.t, Gap { events: 1, decisions: 2 }, &mut tape.bytes);
        tape.event(TraceEvent::Unloaded {
            monolith: "a".into(),
            room: "movie".into(),
            reason: UnloadReason::Keepalive,
        });
        tape
    }

    fn kinds(story: &RoomStory) -> Vec<String> {
        let kind = |chapter: &Chapter| serde_json::to_value(chapter).unwrap()["what"].as_str().unwrap().to_string();
        story.chapters.iter().map(kind).collect()
    }

    #[test]
    fn a_trace_tells_of_one_room_what_it_holds() {
        let story = tape().tell("MOVIE", 100);
        let expected = [
            "clients",
            "decided",
            "bound",
            "second_load",
            "clients",
            "move_named",
            "lost",
            "decided",
            "admission",
            "gap",
            "unloaded",
        ];
        assert_eq!(kinds(&story), expected);
        assert_eq!(story.chapters[0].what, What::Clients { joined: 2, left: 0, requests: 0 });
        let What::Decided(first) = &story.chapters[1].what else { panic!() };
        assert_eq!((story.chapters[1].at, &*first.policy.name, &*first.policy.version), (1_000_040, "test", "v1"));
        assert_eq!((first.monolith.clone(), first.named, first.candidates.len()), (Some("b".into()), 1, 2));
        assert_eq!(story.chapters[6].what, What::Lost { monolith: "b".into(), clients: 1 });
        let What::Decided(second) = &story.chapters[7].what else { panic!() };
        let fault = second.fault.as_deref().unwrap();
        assert!(fault.starts_with("policies/test.lua: place named \"nobody\": no such monolith"), "{fault}");
        assert_eq!((second.monolith.clone(), story.chapters[8].times), (Some("a".into()), 3));
        assert_eq!((story.forgotten, story.redacted), (0, false));
        assert_eq!(story.others, [("other".into(), 2)]);
    }

    #[test]
    fn a_refusal_has_the_code_with_which_those_who_waited_were_closed() {
        let mut tape = Tape::new(None);
        for (cause, code) in [("join", 503), ("join", 4404), ("move", 503)] {
            let call = json!({"hook": "place", "region": "ewr", "cause": cause,
                "room": {"name": "movie", "attempt": 1, "clients": 2}});
            tape.decision(call, Answer::Reject { code, reason: "no".into() }, None, "v1");
        }
        let story = tape.tell("movie", 10);
        assert_eq!(kinds(&story), ["decided", "refused", "decided", "refused", "decided"]);
        assert_eq!(story.chapters[1].what, What::Refused { waiting: 2, code: 1013 });
        assert_eq!(story.chapters[3].what, What::Refused { waiting: 2, code: 4404 });
    }

    #[test]
    fn only_the_last_chapters_are_kept_if_there_are_many() {
        let story = tape().tell("movie", 2);
        assert_eq!((kinds(&story), story.forgotten), (vec!["gap".to_string(), "unloaded".to_string()], 9));
        assert!(tape().tell("nowhere", 2).chapters.is_empty());
    }

    #[test]
    fn a_trace_without_names_is_asked_by_hash() {
        let redactor = Redactor::new();
        let mut tape = Tape::new(Some(redactor.clone()));
        tape.event(join(1, "movie"));
        tape.place("movie", "b");
        let unknown = tape.tell("movie", 10);
        assert!(unknown.redacted && unknown.chapters.is_empty());
        assert_eq!(unknown.others, [(redactor.room("movie"), 2)]);
        assert_eq!(kinds(&tape.tell(&redactor.room("movie"), 10)), ["clients", "decided"]);
    }
}
