//! A canary: a version that decides for a share of the rooms, and that is set aside when it fails more often than the
//! active one.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use super::decide::is_eligible;
use super::guarded::{BreakerState, PolicyStats};
use super::lua::LoadError;
use super::lua::ranking::hash;
use super::slots::PolicySet;
use super::versions::Version;
use crate::model::policy::{Answer, Call, Fault, FaultKind, Hook, View};

/// Calls that a canary has to have had before its faults are compared: fewer say too little.
pub const ENOUGH_CALLS: u64 = 5;
/// Faults that it may always have, since one can befall anybody.
pub const ENOUGH_FAULTS: u64 = 3;

/// Told once, with the reason, when a canary is stopped for its faults. Called on the thread that decides: it must not
/// take long.
pub type OnStop = Box<dyn Fn(&LoadError) + Send + Sync>;

/// A version that decides for a share of the rooms.
pub struct Canary {
    set: PolicySet,
    version: Version,
    share: f64,
    stopped: AtomicBool,
    last_fault: Mutex<Option<String>>,
    on_stop: OnStop,
}

impl Canary {
    /// A canary for `share` percent of the rooms.
    pub fn new(
        set: PolicySet,
        version: Version,
        share: f64,
        on_stop: impl Fn(&LoadError) + Send + Sync + 'static,
    ) -> Self {
        let (stopped, last_fault) = (AtomicBool::new(false), Mutex::new(None));
        Self { set, version, share, stopped, last_fault, on_stop: Box::new(on_stop) }
    }

    /// Its VMs.
    pub fn set(&self) -> &PolicySet {
        &self.set
    }

    /// Its version, and since when it runs.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Whether it was stopped for its faults.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// Whether this call is the canary's. The name of a room decides, so that a room sees one version, and a room that
    /// had the canary keeps it when the share rises. A call without a name (`route`, a room whose name the Monolith will
    /// make up) goes by its seed: the share then holds whatever is asked for, and however few paths there are. What is
    /// decided for all rooms at once stays with the active version.
    pub fn takes(&self, call: &Call) -> bool {
        if call.hook == Hook::Rebalance || self.is_stopped() {
            return false;
        }
        let hash = match call.room.as_ref().and_then(|room| room.name.as_ref()) {
            // Another hash than that of `usher.rendezvous`, or the share would be that of some Monoliths' rooms.
            Some(name) => hash(format!("canary\0{}", name.to_lowercase()).as_bytes()),
            None => hash(&call.seed.to_le_bytes()),
        };
        ((hash >> 11) as f64 / (1u64 << 53) as f64) * 100.0 < self.share
    }

    /// Looks at what came of one of its calls, and stops it when it has failed too often: its breaker opened, or, after
    /// [`ENOUGH_CALLS`] calls and [`ENOUGH_FAULTS`] faults, a larger share of its calls failed than of the active
    /// version's. CPU time is no fault here: it says as much about the machine.
    pub(super) fn judge(&self, call: &Call, view: &View, answer: &Result<Answer, Fault>, active: &PolicyStats) {
        let message = match answer {
            Err(fault) => fault.message.clone(),
            Ok(Answer::Ranked(named)) if !named.is_empty() && !named.iter().any(|id| is_eligible(call, view, id)) => {
                format!("{} named {:?}, which may not be chosen", call.hook, named[0].as_str())
            }
            Ok(_) => return,
        };
        *self.last_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.clone());
        let Some(why) = verdict(self.set.stats(), active) else { return };
        if !self.stopped.swap(true, Relaxed) {
            (self.on_stop)(
                &self.set.program().refused(&format!("stopped as canary: {why}; its last fault: "), &message),
            );
        }
    }

    /// What the admin API shows.
    pub fn document(&self) -> Value {
        let (calls, faults) = self.numbers();
        let kinds: serde_json::Map<String, Value> =
            by_kind(self.set.stats()).map(|(kind, count)| (kind.label().into(), count.into())).collect();
        let last = self.last_fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        json!({
            "policy": self.version,
            "share": self.share,
            "calls": calls,
            "faults": faults,
            "faults_by_kind": kinds,
            "last_fault": last,
        })
    }

    /// Its calls and its faults of any kind so far.
    pub fn numbers(&self) -> (u64, u64) {
        let stats = self.set.stats();
        (Hook::ALL.into_iter().map(|hook| stats.calls(hook)).sum(), by_kind(stats).map(|(_, count)| count).sum())
    }
}

fn by_kind(stats: &PolicyStats) -> impl Iterator<Item = (FaultKind, u64)> {
    let mut kinds = std::collections::BTreeMap::new();
    for (_, kind, count) in stats.faults() {
        *kinds.entry(kind).or_default() += count;
    }
    kinds.into_iter()
}

/// Calls and faults that can be compared: of the hooks that a canary answers, without faults of CPU time.
fn tally(stats: &PolicyStats) -> (u64, u64) {
    let calls = Hook::ALL.into_iter().filter(|hook| *hook != Hook::Rebalance).map(|hook| stats.calls(hook)).sum();
    let counts = |hook: Hook, kind: FaultKind| hook != Hook::Rebalance && kind != FaultKind::CpuTime;
    let faults = stats.faults().filter(|(hook, kind, _)| counts(*hook, *kind)).map(|(_, _, count)| count).sum();
    (calls, faults)
}

fn verdict(canary: &PolicyStats, active: &PolicyStats) -> Option<String> {
    let ((calls, faults), (active_calls, active_faults)) = (tally(canary), tally(active));
    if canary.breaker() == BreakerState::Open {
        return Some(format!("its breaker opened after {faults} faults in {calls} calls"));
    }
    let more = match active_calls {
        0 => true,
        _ => u128::from(faults) * u128::from(active_calls) > u128::from(active_faults) * u128::from(calls),
    };
    let worse = calls >= ENOUGH_CALLS && faults >= ENOUGH_FAULTS && more;
    worse.then(|| {
        format!("{faults} of its {calls} calls failed, of the active version's {active_faults} of {active_calls}")
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::lua::{Environment, Program, Source};

    fn set(text: &str) -> PolicySet {
        let program = Program::compile(Source::shipped("test", text), &Environment::default()).unwrap();
        PolicySet::build(&program, 1).unwrap()
    }

    fn canary(share: f64) -> Canary {
        let set = set("return {}");
        let version = Version::of(set.program(), "admin", 0);
        Canary::new(set, version, share, |_| {})
    }

    fn call(value: Value) -> Call {
        serde_json::from_value(value).unwrap()
    }

    fn place(room: &str) -> Call {
        call(json!({"hook": "place", "region": "ewr", "room": {"name": room}}))
    }

    #[test]
    fn the_share_is_respected() {
        let rooms = |share: f64| {
            let canary = canary(share);
            (0..10_000).filter(|room| canary.takes(&place(&format!("room-{room}")))).count()
        };
        assert_eq!((rooms(0.0), rooms(100.0)), (0, 10_000));
        for share in [0.5, 5.0, 33.3, 90.0] {
            let taken = rooms(share) as f64 / 100.0;
            assert!((taken - share).abs() < 2.0, "{taken} % of the rooms for a share of {share} %");
        }
        let requests = canary(20.0);
        let mut clock = 1_700_000_000_000_000u64;
        let taken = (0..10_000).filter(|_| {
            clock += 977;
            requests.takes(&call(json!({"hook": "route", "region": "ewr", "seed": clock.rotate_left(32)})))
        });
        assert!((1_800..2_200).contains(&taken.count()));
    }

    #[test]
    fn a_room_keeps_its_version_whatever_the_call_and_as_the_share_rises() {
        let (few, more) = (canary(20.0), canary(40.0));
        for room in (0..500).map(|room| format!("Room-{room}")) {
            let takes = few.takes(&place(&room));
            assert_eq!(few.takes(&place(&room.to_lowercase())), takes);
            let admit = json!({"hook": "admit", "region": "cdg", "seed": 7, "room": {"name": room, "clients": 3}});
            assert_eq!(few.takes(&call(admit)), takes);
            assert!(!takes || more.takes(&place(&room)), "{room}");
        }
        assert!(!canary(100.0).takes(&call(json!({"hook": "rebalance", "region": "ewr"}))));
    }

    #[test]
    fn faults_beyond_the_active_versions_stop_it_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let fails = set("return { place = function(call)\n error('no ' .. call.room.name) end }");
        let version = Version::of(fails.program(), "admin", 0);
        let canary = Canary::new(fails, version, 100.0, {
            let told = told.clone();
            move |error: &LoadError| told.lock().unwrap().push(error.clone())
        });
        let active = set("return { place = function() end }");
        let view = View::default();
        active.call(&place("x"), &view).unwrap();
        for number in 0..10 {
            let call = place("x");
            assert_eq!(canary.takes(&call), number < ENOUGH_CALLS, "{number}");
            let answer = canary.set().call(&call, &view);
            canary.judge(&call, &view, &answer, active.stats());
        }
        let told = told.lock().unwrap();
        assert_eq!((told.len(), told[0].line), (1, Some(2)), "{told:?}");
        let why = "stopped as canary: 5 of its 5 calls failed, of the active version's 0 of 1; its last fault: no x";
        assert_eq!(told[0].reason, why);
        assert_eq!(canary.document()["faults_by_kind"], json!({"error": 10}));
    }

    #[test]
    fn it_may_fail_as_often_as_the_active_version() {
        let (text, view) = ("return { place = function(call) error('no') end }", View::default());
        let (fails, active) = (set(text), set(text));
        let version = Version::of(fails.program(), "admin", 0);
        let canary = Canary::new(fails, version, 50.0, |error| panic!("{error}"));
        for _ in 0..50 {
            let _ = active.call(&place("x"), &view);
            let answer = canary.set().call(&place("x"), &view);
            canary.judge(&place("x"), &view, &answer, active.stats());
        }
        assert!(!canary.is_stopped());
        // Two faults are nobody's verdict, however good the active version is.
        let quiet = set("return {}");
        let stats = PolicyStats::default();
        assert_eq!(verdict(&stats, quiet.stats()), None);
        for _ in 0..2 {
            stats.count_fault(Hook::Place, FaultKind::Error);
        }
        assert_eq!(verdict(&stats, quiet.stats()), None);
    }

    #[test]
    fn names_that_may_not_be_chosen_are_faults_and_cpu_time_is_none() {
        let wrong = set("return { place = function() return 'gone' end }");
        let version = Version::of(wrong.program(), "admin", 0);
        let canary = Canary::new(wrong, version, 100.0, |_| {});
        let active = PolicyStats::default();
        for _ in 0..ENOUGH_CALLS {
            let answer = canary.set().call(&place("x"), &View::default());
            canary.judge(&place("x"), &View::default(), &answer, &active);
        }
        assert!(canary.is_stopped());
        let slow = PolicyStats::default();
        for _ in 0..100 {
            slow.count_fault(Hook::Place, FaultKind::CpuTime);
        }
        assert_eq!(tally(&slow), (0, 0));
    }
}
