//! What is in a trace: span, Monoliths, rooms, decisions, faults, policies, and what is missing. One pass, memory that does
//! not grow with the file.

use std::collections::BTreeMap;

use serde::Serialize;

use super::distinct::Distinct;
use crate::model::policy::Hook;
use crate::model::{MonolithId, Region};
use crate::policy::versions::timestamp;
use crate::trace::Item;
use crate::trace::read::{Reader, TraceError};
use crate::trace::record::{Outcome, PolicyText, TraceEvent};

/// Monoliths, policies and kinds of faults that are listed; further ones are counted.
const LISTED: usize = 1000;
/// Times that are listed during which one Monolith was linked; further ones are counted.
const SPANS: usize = 16;

/// What is in a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TraceInfo {
    /// The file.
    pub file: String,
    /// The version of the format.
    pub format: u32,
    /// Who recorded.
    pub balancer: String,
    /// Its region.
    pub region: String,
    /// The version of usher that recorded.
    pub usher: String,
    /// Whether the names of rooms are hashed.
    pub redacted: bool,
    /// When `t` was 0, RFC 3339 in UTC.
    pub started: String,
    /// The first thing that is recorded; none if nothing is.
    pub from: Option<Moment>,
    /// The last one.
    pub to: Option<Moment>,
    /// Seconds between the two.
    pub span_s: f64,
    /// Lines, those with the headers included.
    pub lines: u64,
    /// Headers: more than one if files were put one behind another.
    pub headers: u64,
    /// Those that were linked or seen, sorted by id.
    pub monoliths: Vec<MonolithInfo>,
    /// Monoliths beyond those that are listed.
    pub more_monoliths: u64,
    /// How many different rooms.
    pub rooms: u64,
    /// Whether `rooms` is exact; it is an estimate otherwise.
    pub rooms_exact: bool,
    /// Events by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// All decisions.
    pub decisions: u64,
    /// The same by hook.
    pub by_hook: BTreeMap<&'static str, u64>,
    /// Decisions that an open breaker kept from the policy.
    pub bypassed: u64,
    /// Decisions that the built-in default took because of a fault.
    pub faults: u64,
    /// The same by hook and kind.
    pub faults_by_kind: Vec<FaultInfo>,
    /// In the order in which they came.
    pub policies: Vec<PolicyInfo>,
    /// Places where something is missing.
    pub gaps: u64,
    /// Events that were not recorded.
    pub missing_events: u64,
    /// Decisions that were not recorded.
    pub missing_decisions: u64,
    /// Lines that cannot be understood.
    pub damaged: u64,
    /// The first of them.
    pub first_damage: Option<Damage>,
    /// Whether the file ends in the middle of something: the recording was cut off, or goes on.
    pub cut_off: bool,
}

/// A moment of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds since the start.
    pub at_s: f64,
    /// RFC 3339 in UTC.
    pub time: String,
}

/// One Monolith.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MonolithInfo {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    /// From when to when it was linked, in seconds since the start; no end if it still was.
    pub up_s: Vec<(f64, Option<f64>)>,
    /// Times beyond those that are listed.
    pub more_up: u64,
    /// How often `place` chose it.
    pub placed: u64,
}

/// Faults of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultInfo {
    /// The hook.
    pub hook: &'static str,
    /// `error`, `fuel`...
    pub kind: &'static str,
    /// How many.
    pub count: u64,
    /// The number of the first decision.
    pub decision: u64,
    /// What the first one said.
    pub message: String,
}

/// One version of the policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyInfo {
    /// Its name; empty if its text is not in the trace.
    pub name: String,
    /// Its content hash.
    pub version: String,
    /// Decisions that it took.
    pub decisions: u64,
    /// Whether its text is in the trace, without which its decisions cannot be replayed.
    pub text: bool,
}

/// Where a trace is damaged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Damage {
    /// The line, where one is to blame.
    pub line: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// Reads a trace to its end. `progress` is called with the number of lines so far, now and then.
pub fn trace_info(reader: &mut Reader, file: &str, mut progress: impl FnMut(u64)) -> Result<TraceInfo, TraceError> {
    let mut survey = Survey::new(reader, file);
    while let Some((t, item)) = reader.read()? {
        survey.item(t, item, reader);
        if reader.line().is_multiple_of(1 << 14) {
            progress(reader.line());
        }
    }
    Ok(survey.end(reader))
}

struct Survey {
    info: TraceInfo,
    started_us: u64,
    /// What is added to the times of a further file so that they count from the start of the first.
    shift_us: u64,
    span: Option<(u64, u64)>,
    rooms: Distinct,
    monoliths: BTreeMap<MonolithId, Seen>,
    /// Monoliths that are too many to be listed.
    others: Distinct,
    faults: BTreeMap<(&'static str, &'static str), FaultInfo>,
}

#[derive(Default)]
struct Seen {
    info: MonolithInfo,
    /// Whether it is linked; true inside if only views tell.
    up: Option<bool>,
}

impl Survey {
    fn new(reader: &Reader, file: &str) -> Self {
        let header = reader.header();
        let info = TraceInfo {
            file: file.into(),
            format: header.usher_trace,
            balancer: header.balancer.clone(),
            region: header.region.to_string(),
            usher: header.version.clone(),
            redacted: header.redacted,
            started: timestamp(header.started_us),
            headers: 1,
            ..TraceInfo::default()
        };
        let started_us = header.started_us;
        let (rooms, others) = (Distinct::default(), Distinct::default());
        let (monoliths, faults) = (BTreeMap::new(), BTreeMap::new());
        let mut survey = Self { info, started_us, shift_us: 0, span: None, rooms, monoliths, others, faults };
        survey.policy(&header.policy);
        survey
    }

    fn item(&mut self, t: u64, item: Item, reader: &Reader) {
        if let Item::Header(header) = &item {
            self.shift_us = header.started_us.saturating_sub(self.started_us);
            self.info.headers += 1;
            self.info.redacted |= header.redacted;
            return self.policy(&header.policy);
        }
        let t = t.saturating_add(self.shift_us);
        let (first, last) = self.span.unwrap_or((t, t));
        self.span = Some((first.min(t), last.max(t)));
        match item {
            Item::Header(_) => {}
            Item::Policy(policy) => self.policy(&policy),
            Item::View => self.view(t, reader),
            Item::Event(event) => self.event(t, &event),
            Item::Gap(gap) => {
                self.info.gaps += 1;
                self.info.missing_events += gap.events;
                self.info.missing_decisions += gap.decisions;
            }
            Item::Decision { number, call, outcome } => {
                let name = call.room.as_ref().and_then(|room| room.name.as_deref());
                name.into_iter().for_each(|name| self.rooms.add(name));
                self.decision(number, call.hook, &outcome);
            }
        }
    }

    fn policy(&mut self, text: &PolicyText) {
        let policy = self.version(&text.version);
        policy.name.clone_from(&text.name);
        policy.text = true;
    }

    fn version(&mut self, version: &str) -> &mut PolicyInfo {
        let policies = &mut self.info.policies;
        let known = policies.iter().position(|policy| policy.version == version);
        let at = known.unwrap_or_else(|| {
            // The last place of a full list is for all that came too late.
            if policies.len() <= LISTED {
                let version = if policies.len() == LISTED { "others" } else { version };
                policies.push(PolicyInfo { name: String::new(), version: version.into(), decisions: 0, text: false });
            }
            policies.len() - 1
        });
        &mut policies[at]
    }

    fn view(&mut self, t: u64, reader: &Reader) {
        let view = reader.view();
        for (id, seen) in &mut self.monoliths {
            if seen.up == Some(true) && view.get(id).is_none() {
                seen.down(t);
            }
        }
        for row in view.rows() {
            if let Some(seen) = self.monolith(&row.id, &row.region)
                && seen.up.is_none()
            {
                seen.rise(t, true);
            }
        }
    }

    fn event(&mut self, t: u64, event: &TraceEvent) {
        let kind = match event {
            TraceEvent::MonolithUp { monolith, region } => {
                if let Some(seen) = self.monolith(monolith, region) {
                    match seen.up {
                        None => seen.rise(t, false),
                        Some(_) => seen.up = Some(false),
                    }
                }
                "monolith_up"
            }
            TraceEvent::MonolithDown { monolith } => {
                if let Some(seen) = self.monoliths.get_mut(monolith) {
                    seen.down(t);
                }
                "monolith_down"
            }
            TraceEvent::Load { .. } => "load",
            TraceEvent::Gossip { .. } => "gossip",
            TraceEvent::Loaded { room, .. } => {
                self.rooms.add(room);
                "loaded"
            }
            TraceEvent::Unloaded { room, .. } => {
                self.rooms.add(room);
                "unloaded"
            }
            TraceEvent::Join { room, .. } => {
                self.rooms.add(room);
                "join"
            }
            TraceEvent::Leave { .. } => "leave",
            TraceEvent::Request { room, .. } => {
                room.iter().for_each(|room| self.rooms.add(room));
                "request"
            }
        };
        *self.info.events.entry(kind).or_default() += 1;
    }

    fn decision(&mut self, number: u64, hook: Hook, outcome: &Outcome) {
        self.info.decisions += 1;
        *self.info.by_hook.entry(hook.name()).or_default() += 1;
        self.info.bypassed += u64::from(outcome.bypassed);
        self.version(&outcome.policy).decisions += 1;
        if let (Hook::Place, Some(choice)) = (hook, &outcome.choice)
            && let Some(seen) = self.monoliths.get_mut(choice)
        {
            seen.info.placed += 1;
        }
        let Some(fault) = &outcome.fallback else { return };
        self.info.faults += 1;
        let (hook, kind) = (hook.name(), fault.kind.label());
        let first = || FaultInfo { hook, kind, count: 0, decision: number, message: fault.message.clone() };
        self.faults.entry((hook, kind)).or_insert_with(first).count += 1;
    }

    /// The Monolith of this id, unless there are too many.
    fn monolith(&mut self, id: &MonolithId, region: &Region) -> Option<&mut Seen> {
        if !self.monoliths.contains_key(id) {
            if self.monoliths.len() >= LISTED {
                self.others.add(id.as_str());
                return None;
            }
            let info = MonolithInfo { id: id.to_string(), region: region.to_string(), ..MonolithInfo::default() };
            self.monoliths.insert(id.clone(), Seen { info, up: None });
        }
        self.monoliths.get_mut(id)
    }

    fn end(mut self, reader: &Reader) -> TraceInfo {
        let moment = |t: u64| Moment { at_s: seconds(t), time: timestamp(self.started_us.saturating_add(t)) };
        let info = &mut self.info;
        if let Some((first, last)) = self.span {
            (info.from, info.to, info.span_s) = (Some(moment(first)), Some(moment(last)), seconds(last - first));
        }
        (info.rooms, info.rooms_exact) = self.rooms.count();
        info.more_monoliths = self.others.count().0;
        info.lines = reader.line();
        info.monoliths = self.monoliths.into_values().map(|seen| seen.info).collect();
        info.faults_by_kind = self.faults.into_values().collect();
        let (damaged, first) = reader.damage();
        info.damaged = damaged;
        info.first_damage = first.map(|error| Damage { line: error.line, what: error.what.clone() });
        info.cut_off = reader.was_cut();
        self.info
    }
}

impl Seen {
    fn rise(&mut self, t: u64, by_view: bool) {
        self.up = Some(by_view);
        if self.info.up_s.len() < SPANS {
            self.info.up_s.push((seconds(t), None));
        } else {
            self.info.more_up += 1;
        }
    }

    fn down(&mut self, t: u64) {
        if self.up.take().is_some()
            && self.info.more_up == 0
            && let Some(last) = self.info.up_s.last_mut()
        {
            last.1 = Some(seconds(t));
        }
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
