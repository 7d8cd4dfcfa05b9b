//! Recorded decisions, decided again by a policy under test: in the surroundings that the trace names, and, where the
//! policy is the one that decided then, with what it read then.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::replay::recorded_limits;
use super::when::When;
use crate::model::policy::{Answer, Call, Decision, Fault, FaultKind, Hook, View};
use crate::model::{MonolithId, Region};
use crate::policy::decide::settle;
use crate::policy::lua::inspect::Lines;
use crate::policy::lua::{Distances, Environment, Inspection, Limits, Origin, Program, Returned, Source, Vm};
use crate::trace::Item;
use crate::trace::read::{OnDamage, Reader};
use crate::trace::record::{Outcome, PolicyText};

pub(super) const SELECTORS: [&str; 9] =
    ["name", "hook", "room", "region", "from", "to", "limit", "settings", "on_damage"];
/// Lines between two looks at the clock.
const LOOK_EVERY: u64 = 256;
/// Versions of one trace whose settings and limits are remembered; beyond, all are forgotten but the newest.
const MAX_VERSIONS: usize = 1000;

/// Which decisions of a trace are meant.
#[derive(Debug)]
pub(super) struct Selectors {
    hook: Option<Hook>,
    room: Option<String>,
    region: Option<Region>,
    from: When,
    to: When,
    limit: u64,
    settings: Option<Map<String, Json>>,
    on_damage: OnDamage,
}

/// A trace on its way past a policy.
pub(super) struct Redecider {
    file: String,
    reader: Reader,
    selectors: Selectors,
    source: Source,
    inspection: Inspection,
    budget: Duration,
    until: Instant,
    started_us: u64,
    /// What is added to the times of a further file so that they count from the start of the first.
    shift_us: u64,
    /// Settings and limits of each version that the trace has declared.
    versions: HashMap<String, (Map<String, Json>, Limits)>,
    declared: String,
    environment: Environment,
    vm: Option<Vm>,
    /// What VMs that were replaced had counted.
    lines: Lines,
    now: Option<Redecided>,
    sums: Sums,
}

/// One decision, as it was and as it is now.
pub(super) struct Redecided {
    pub(super) number: u64,
    /// Microseconds since the start.
    pub(super) t: u64,
    pub(super) call: Box<Call>,
    pub(super) outcome: Box<Outcome>,
    pub(super) returned: Result<Returned, Fault>,
    pub(super) decision: Decision,
    /// Whether something else comes of it now. Never so for what cannot be compared.
    pub(super) changed: bool,
}

/// What came of all selected decisions.
#[derive(Debug, Default, Serialize)]
pub(super) struct Sums {
    pub(super) decisions: u64,
    agreed: u64,
    changed: u64,
    /// Of those that were compared, how many agreed, from 0 to 1; 1 if none was.
    agreement: f64,
    /// Decisions now that ended with a fault.
    faults: u64,
    /// Not compared: an open breaker had kept the call from the policy, or it was a matter of CPU time.
    passed_over: u64,
    /// How often `place` chooses each Monolith now.
    placed: BTreeMap<MonolithId, u64>,
    /// Decisions that the trace says are missing.
    missing: u64,
    /// Lines that could not be understood.
    damaged: u64,
    /// Whether the trace ends in the middle of something.
    cut_off: bool,
}

impl Selectors {
    /// Reads the table that a test gives.
    pub(super) fn read(json: &Json) -> Result<Self, String> {
        let empty = Map::new();
        let map = match json {
            Json::Null => &empty,
            Json::Object(map) => map,
            other => return Err(format!("{other} is no table of selectors")),
        };
        if let Some(key) = map.keys().find(|key| !SELECTORS.contains(&key.as_str())) {
            return Err(format!("no selector is called {key:?} (selectors: {})", SELECTORS.join(", ")));
        }
        let text = |key: &str| match map.get(key) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(format!("{key} is {other}; give a text")),
        };
        let when = |key: &str, default| match map.get(key) {
            None => Ok(default),
            Some(Json::String(text)) => When::parse(text).map_err(|e| format!("{key}: {e}")),
            Some(other) => match other.as_f64().filter(|seconds| (0.0..=1e12).contains(seconds)) {
                Some(seconds) => Ok(When::After((seconds * 1e6).round() as u64)),
                None => Err(format!("{key} is {other}; give seconds after the start, or a text such as \"10m\"")),
            },
        };
        let hook = match text("hook")? {
            None => None,
            Some(name) => Some(
                (Hook::ALL.into_iter().find(|hook| hook.name() == name))
                    .ok_or_else(|| format!("hook: {name:?} is no hook; give admit, place, route or rebalance"))?,
            ),
        };
        let limit = match map.get("limit") {
            None => u64::MAX,
            Some(limit) => limit
                .as_u64()
                .filter(|limit| *limit > 0)
                .ok_or_else(|| format!("limit is {limit}; give a whole number of decisions, at least 1"))?,
        };
        let settings = match map.get("settings") {
            None => None,
            Some(Json::Object(settings)) => Some(settings.clone()),
            Some(other) => return Err(format!("settings is {other}; give a table")),
        };
        let on_damage = match text("on_damage")? {
            None | Some("stop") => OnDamage::Stop,
            Some("skip") => OnDamage::Skip,
            Some(other) => return Err(format!("on_damage is {other:?}; give \"stop\" or \"skip\"")),
        };
        let region = text("region")?.map(Region::from);
        let room = text("room")?.map(str::to_owned);
        let (from, to) = (when("from", When::After(0))?, when("to", When::After(u64::MAX))?);
        Ok(Self { hook, room, region, from, to, limit, settings, on_damage })
    }
}

impl Redecider {
    /// Opens a trace beside the policy's file, for calls of so much CPU time, and until then. An error says what is wrong
    /// with either.
    pub(super) fn open(
        file: &str,
        source: Source,
        (budget, until): (Duration, Instant),
        inspection: Inspection,
        selectors: Selectors,
    ) -> Result<Self, String> {
        let path = match &source.origin {
            Origin::File(policy) => policy.with_file_name("").join(file),
            Origin::Shipped if Path::new(file).is_absolute() => file.into(),
            Origin::Shipped => {
                return Err(format!(
                    "{file}: a shipped policy has no folder to look for traces in; copy policy and test beside the trace"
                ));
            }
        };
        let reader = Reader::open(&path, selectors.on_damage).map_err(|e| e.to_string())?;
        let known = reader.header().distances.clone();
        let distances = Distances::new(move |from, to| known.ms(from, to));
        let (policy, started_us) = (reader.header().policy.clone(), reader.header().started_us);
        let mut redecider = Self {
            file: path.display().to_string(),
            reader,
            selectors,
            source,
            inspection,
            budget,
            until,
            started_us,
            shift_us: 0,
            versions: HashMap::new(),
            declared: String::new(),
            environment: Environment { distances, ..Environment::default() },
            vm: None,
            lines: Lines::default(),
            now: None,
            sums: Sums { agreement: 1.0, ..Sums::default() },
        };
        redecider.declare(policy);
        Ok(redecider)
    }

    /// The trace, as messages name it.
    pub(super) fn path(&self) -> String {
        self.file.clone()
    }

    /// The decision at hand, and the Monoliths that it saw.
    pub(super) fn now(&self) -> Option<(&Redecided, &View)> {
        Some((self.now.as_ref()?, self.reader.view()))
    }

    /// What came of all decisions so far.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// How often each line of the policy ran, in VMs that count.
    pub(super) fn coverage(&self) -> Lines {
        let mut lines = self.lines.clone();
        self.vm.iter().for_each(|vm| lines.merge(&vm.coverage()));
        lines
    }

    /// The next decision that is selected, decided again; none at the end. `matches` says whether a room's name is meant,
    /// where the selector is more than a name.
    pub(super) fn next(
        &mut self,
        matches: impl Fn(&str) -> Option<Result<bool, String>>,
    ) -> Result<Option<&Redecided>, String> {
        self.now = None;
        let (from, to) = (self.selectors.from.after(self.started_us), self.selectors.to.after(self.started_us));
        self.in_time()?;
        while self.sums.decisions < self.selectors.limit {
            if self.reader.line().is_multiple_of(LOOK_EVERY) {
                self.in_time()?;
            }
            let Some((t, item)) = self.reader.read().map_err(|e| e.to_string())? else { break };
            match item {
                Item::Header(header) => {
                    self.shift_us = header.started_us.saturating_sub(self.started_us);
                    self.declare(header.policy);
                }
                Item::Policy(policy) => self.declare(*policy),
                Item::Gap(gap) => self.sums.missing += gap.decisions,
                Item::View | Item::Event(_) => {}
                Item::Decision { number, call, outcome } => {
                    let t = t.saturating_add(self.shift_us);
                    if t >= from && t < to && self.selects(&call, &matches)? {
                        return self.redecide(number, t, call, outcome).map(Some);
                    }
                }
            }
        }
        self.sums.damaged = self.reader.damage().0;
        self.sums.cut_off = self.reader.was_cut();
        Ok(None)
    }

    fn in_time(&self) -> Result<(), String> {
        if Instant::now() <= self.until {
            return Ok(());
        }
        Err(format!(
            "could not run within the time of a test file: {} decisions of {} were decided again; select fewer by hook, room, region, from, to or limit, or cut the trace",
            self.sums.decisions, self.file
        ))
    }

    fn selects(&self, call: &Call, matches: impl Fn(&str) -> Option<Result<bool, String>>) -> Result<bool, String> {
        let Selectors { hook, room, region, .. } = &self.selectors;
        if hook.is_some_and(|hook| hook != call.hook) || region.as_ref().is_some_and(|wanted| wanted != region_of(call))
        {
            return Ok(false);
        }
        let Some(wanted) = room else { return Ok(true) };
        let Some(name) = call.room.as_ref().and_then(|room| room.name.as_deref()) else { return Ok(false) };
        if name.eq_ignore_ascii_case(wanted) {
            return Ok(true);
        }
        matches(name).unwrap_or(Ok(false))
    }

    fn declare(&mut self, policy: PolicyText) {
        if self.versions.len() >= MAX_VERSIONS {
            self.versions.clear();
        }
        let limits = Limits { budget: self.budget, ..recorded_limits(&policy) };
        self.declared.clone_from(&policy.version);
        self.versions.insert(policy.version, (policy.settings, limits));
    }

    fn redecide(&mut self, number: u64, t: u64, call: Box<Call>, outcome: Box<Outcome>) -> Result<&Redecided, String> {
        let vm = self.vm(&outcome.policy)?;
        let own = vm.program().version() == &*outcome.policy;
        if own && !outcome.incomplete {
            vm.feed(outcome.reads.clone());
        }
        let view = self.reader.view();
        let returned = self.vm.as_mut().map_or(Ok(Answer::Default.into()), |vm| vm.call_returned(&call, view));
        let answer = returned.clone().map(|returned| returned.answer);
        let decision = settle(answer, &call, view, Some(&self.environment.distances));
        let fault = decision.fault.as_ref().map(|fault| fault.kind);
        let recorded = outcome.fallback.as_ref().map(|fault| fault.kind);
        // Both say as much about the machine, or about the calls before, as about the policy.
        let passed_over = outcome.bypassed
            || (own && outcome.incomplete)
            || fault == Some(FaultKind::CpuTime)
            || matches!(recorded, Some(FaultKind::CpuTime | FaultKind::Memory));
        let changed = !passed_over && !same(call.hook, &outcome, &decision);
        let sums = &mut self.sums;
        sums.decisions += 1;
        sums.faults += u64::from(fault.is_some());
        match (passed_over, changed) {
            (true, _) => sums.passed_over += 1,
            (false, true) => sums.changed += 1,
            (false, false) => sums.agreed += 1,
        }
        let compared = sums.agreed + sums.changed;
        sums.agreement = if compared == 0 { 1.0 } else { sums.agreed as f64 / compared as f64 };
        if let (Hook::Place, Some(choice)) = (call.hook, decision.choices.first()) {
            *sums.placed.entry(choice.clone()).or_default() += 1;
        }
        Ok(self.now.insert(Redecided { number, t, call, outcome, returned, decision, changed }))
    }

    /// The VM with the settings and limits under which this version decided.
    fn vm(&mut self, version: &str) -> Result<&mut Vm, String> {
        // A version without a text was declared in another file: it had the settings that all have.
        let known = self.versions.get(version).or_else(|| self.versions.get(&self.declared));
        let (settings, limits) = match known {
            Some((settings, limits)) => (self.selectors.settings.as_ref().unwrap_or(settings), *limits),
            None => (&self.environment.settings, self.environment.limits),
        };
        let same = *settings == self.environment.settings && limits == self.environment.limits;
        if !same || self.vm.is_none() {
            let environment = Environment { settings: settings.clone(), limits, ..self.environment.clone() };
            self.vm.iter().for_each(|vm| self.lines.merge(&vm.coverage()));
            let program = Program::inspected(self.source.clone(), &environment, self.inspection);
            self.vm = Some(program.and_then(|program| Vm::new(&program)).map_err(|e| e.to_string())?);
            self.environment = environment;
        }
        self.vm.as_mut().ok_or_else(|| "the policy could not be loaded".into())
    }
}

impl Redecided {
    /// Where whoever asked is: the client's region, else the room's, the request's, the balancer's.
    pub(super) fn region(&self) -> &Region {
        region_of(&self.call)
    }
}

fn region_of(call: &Call) -> &Region {
    let client = call.client.as_ref().and_then(|client| client.region.as_ref());
    let room = || call.room.as_ref().and_then(|room| room.region.as_ref());
    let request = || call.request.as_ref().and_then(|request| request.region.as_ref());
    client.or_else(room).or_else(request).unwrap_or(&call.region)
}

/// Whether the core would do the same: the order of second choices is not compared, nor what was said without effect.
fn same(hook: Hook, was: &Outcome, now: &Decision) -> bool {
    if was.fallback.is_some() != now.fault.is_some() {
        return false;
    }
    let names = |answer: &Answer| matches!(answer, Answer::Default | Answer::Ranked(_));
    let nothing = |answer: &Answer| match answer {
        Answer::Moves(moves) => moves.is_empty(),
        answer => matches!(answer, Answer::Default | Answer::Admit),
    };
    match hook {
        Hook::Place | Hook::Route if names(&was.answer) && names(&now.answer) => {
            was.choice.as_ref() == now.choices.first()
        }
        Hook::Admit | Hook::Rebalance if nothing(&was.answer) && nothing(&now.answer) => true,
        _ => was.answer == now.answer,
    }
}
