//! What decides at this moment: the active version, perhaps a canary for a share of the rooms, perhaps a shadow that
//! answers too. All threads find it behind one pointer, so a change of any of it is at a call boundary for everybody.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::Policy;
use super::canary::Canary;
use super::decide::decide_near;
use super::guarded::PolicyStats;
use super::lua::Program;
use super::shadow::{Seen, Shadow};
use super::slots::PolicySet;
use super::tap::{self, Heard, Taps, Wants};
use crate::model::policy::{Answer, Call, Decision, Fault, Hook, View};

/// One state of affairs. It never changes: [`PolicyHandle::change`] puts another one in its place.
#[derive(Clone)]
pub struct Deciding {
    active: Arc<PolicySet>,
    canary: Option<Arc<Canary>>,
    shadow: Option<Arc<Shadow>>,
    taps: Taps,
}

impl Deciding {
    /// A version that decides alone.
    pub fn alone(active: PolicySet) -> Self {
        Self { active: Arc::new(active), canary: None, shadow: None, taps: [].into() }
    }

    /// The same with another active version. Canary and shadow go on.
    #[must_use]
    pub fn with_active(&self, active: Arc<PolicySet>) -> Self {
        Self { active, ..self.clone() }
    }

    /// The same with this canary, or without one.
    #[must_use]
    pub fn with_canary(&self, canary: Option<Arc<Canary>>) -> Self {
        Self { canary, ..self.clone() }
    }

    /// The same with this shadow, or without one.
    #[must_use]
    pub fn with_shadow(&self, shadow: Option<Arc<Shadow>>) -> Self {
        Self { shadow, ..self.clone() }
    }

    /// The same with these who look on.
    #[must_use]
    pub fn with_taps(&self, taps: Taps) -> Self {
        Self { taps, ..self.clone() }
    }

    /// Those who look on.
    pub fn taps(&self) -> &Taps {
        &self.taps
    }

    /// The VMs of the active version.
    pub fn active(&self) -> &Arc<PolicySet> {
        &self.active
    }

    /// The canary, unless it was stopped.
    pub fn canary(&self) -> Option<&Arc<Canary>> {
        self.canary.as_ref().filter(|canary| !canary.is_stopped())
    }

    /// The shadow.
    pub fn shadow(&self) -> Option<&Arc<Shadow>> {
        self.shadow.as_ref()
    }

    /// What the active version runs.
    pub fn program(&self) -> &Program {
        self.active.program()
    }

    /// Counters and breaker of the active version.
    pub fn stats(&self) -> &Arc<PolicyStats> {
        self.active.stats()
    }

    /// Whether anybody has this hook: a call of one that nobody has need not be made.
    pub fn has(&self, hook: Hook) -> bool {
        self.active.has(hook)
            || self.canary().is_some_and(|canary| canary.set().has(hook))
            || self.shadow.as_ref().is_some_and(|shadow| shadow.has(hook))
    }

    /// One call, in the version that this call belongs to. Nobody who looks on sees it.
    pub fn call(&self, call: &Call, view: &View) -> Result<Answer, Fault> {
        self.ask(call, view).0
    }

    fn ask(&self, call: &Call, view: &View) -> (Result<Answer, Fault>, Option<Asked>) {
        let canary = self.canary.as_ref().filter(|canary| canary.takes(call));
        let set = canary.map_or(&*self.active, |canary| canary.set());
        let wanted = tap::wants(&self.taps, call);
        let (answer, asked) = if self.shadow.is_none() && wanted == Wants::Nothing {
            (set.call(call, view), None)
        } else {
            let (answer, heard) = set.call_heard(call, view, wanted == Wants::Reads);
            let heard = Heard { by_canary: canary.is_some(), ..heard };
            if let Some(shadow) = &self.shadow {
                let Heard { explained, took, by_canary, .. } = heard.clone();
                shadow.see(call, view, Seen { answer: answer.clone(), explained, took, by_canary });
            }
            let shown = wanted != Wants::Nothing;
            (answer, shown.then(|| Asked { taps: self.taps.clone(), by: set.program().clone(), heard }))
        };
        if let Some(canary) = canary {
            canary.judge(call, view, &answer, self.active.stats());
        }
        (answer, asked)
    }

    /// One decision. The built-in default behind it knows the distances of the active version.
    pub fn decide(&self, call: &Call, view: &View) -> Decision {
        let distances = &self.program().environment().distances;
        decide_near(&mut Asking { deciding: self, asked: None }, call, view, Some(distances))
    }
}

/// A call that somebody wants to see, until it is known what comes of it.
struct Asked {
    taps: Taps,
    by: Program,
    heard: Heard,
}

impl Asked {
    fn show(&self, call: &Call, view: &View, decision: &Decision) {
        tap::show(&self.taps, &tap::Seen { call, view, decision, by: &self.by, heard: &self.heard });
    }
}

struct Asking<'a> {
    deciding: &'a Deciding,
    asked: Option<Asked>,
}

impl Policy for Asking<'_> {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        let (answer, asked) = self.deciding.ask(call, view);
        self.asked = asked;
        answer
    }

    fn settled(&mut self, call: &Call, view: &View, decision: &Decision) {
        if let Some(asked) = self.asked.take() {
            asked.show(call, view, decision);
        }
    }
}

/// Where every thread finds what decides. A change touches no connection and waits for nobody: calls that run finish
/// with the VMs in which they began, and those go with the last of them.
pub struct PolicyHandle {
    current: ArcSwap<Deciding>,
    /// One change at a time, so that none is lost.
    changing: Mutex<()>,
}

impl PolicyHandle {
    /// Starts with this.
    pub fn new(deciding: Deciding) -> Self {
        Self { current: ArcSwap::from_pointee(deciding), changing: Mutex::new(()) }
    }

    /// What decides now.
    pub fn load(&self) -> arc_swap::Guard<Arc<Deciding>> {
        self.current.load()
    }

    /// Puts something else in its place. With another active version a shadow begins its comparison anew.
    pub fn change(&self, change: impl FnOnce(&Deciding) -> Deciding) {
        let one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Arc::new(change(&self.current.load()));
        let old = self.current.swap(new.clone());
        if !Arc::ptr_eq(&old.active, &new.active)
            && let Some(shadow) = &new.shadow
        {
            shadow.reset();
        }
        drop(one_at_a_time);
        // VMs take a moment to free, which nobody else has to wait for.
        drop(old);
    }
}

/// Whatever decides, as the policy of a thread that asks it one call at a time.
pub struct Current {
    handle: Arc<PolicyHandle>,
    asked: Option<Asked>,
}

impl Current {
    /// Whatever this handle points to at each call.
    pub fn new(handle: Arc<PolicyHandle>) -> Self {
        Self { handle, asked: None }
    }
}

impl Policy for Current {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        let (answer, asked) = self.handle.load().ask(call, view);
        self.asked = asked;
        answer
    }

    fn has(&self, hook: Hook) -> bool {
        self.handle.load().has(hook)
    }

    fn settled(&mut self, call: &Call, view: &View, decision: &Decision) {
        if let Some(asked) = self.asked.take() {
            asked.show(call, view, decision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::MonolithRow;
    use crate::policy::lua::{Environment, Source};
    use crate::policy::versions::Version;

    fn set(id: &str) -> PolicySet {
        let text = format!("return {{ place = function() return '{id}' end }}");
        let program = Program::compile(Source::shipped("test", &text), &Environment::default()).unwrap();
        PolicySet::build(&program, 2).unwrap()
    }

    fn canary(id: &str, share: f64) -> Arc<Canary> {
        let set = set(id);
        let version = Version::of(set.program(), "admin", 0);
        Arc::new(Canary::new(set, version, share, |_| {}))
    }

    fn ask(handle: &PolicyHandle, room: &str) -> String {
        let call = serde_json::json!({"hook": "place", "region": "ewr", "room": {"name": room}});
        let row = |id: &str| MonolithRow { id: id.into(), ..MonolithRow::default() };
        let view = View::of(["old", "new", "canary"].map(row));
        let answer = handle.load().call(&serde_json::from_value(call).unwrap(), &view).unwrap();
        let Answer::Ranked(ids) = answer else { panic!("{answer:?}") };
        ids[0].to_string()
    }

    fn everywhere(handle: &Arc<PolicyHandle>, id: &str) {
        let threads: Vec<_> = (0..6)
            .map(|number| {
                let handle = handle.clone();
                std::thread::spawn(move || ask(&handle, &format!("room-{number}")))
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), id);
        }
    }

    #[test]
    fn f45_every_thread_is_on_the_published_version() {
        let handle = Arc::new(PolicyHandle::new(Deciding::alone(set("old"))));
        everywhere(&handle, "old");
        handle.change(|now| now.with_active(Arc::new(set("new"))));
        everywhere(&handle, "new");
    }

    #[test]
    fn a_canary_decides_for_its_share_and_survives_a_swap() {
        let handle = Arc::new(PolicyHandle::new(Deciding::alone(set("old"))));
        handle.change(|now| now.with_canary(Some(canary("canary", 100.0))));
        everywhere(&handle, "canary");
        handle.change(|now| now.with_active(Arc::new(set("new"))));
        everywhere(&handle, "canary");
        handle.change(|now| now.with_canary(Some(canary("canary", 40.0))));
        let first: Vec<String> = (0..200).map(|room| ask(&handle, &format!("room-{room}"))).collect();
        let again: Vec<String> = (0..200).map(|room| ask(&handle, &format!("room-{room}"))).collect();
        assert_eq!(first, again, "a room sees one version");
        let share = first.iter().filter(|id| *id == "canary").count();
        assert!((50..110).contains(&share), "{share} of 200");
        handle.change(|now| now.with_canary(None));
        everywhere(&handle, "new");
    }

    struct Notes(Mutex<Vec<String>>);

    impl tap::Tap for Notes {
        fn wants(&self, call: &Call) -> Wants {
            if call.hook == Hook::Place { Wants::Reads } else { Wants::Nothing }
        }

        fn decided(&self, seen: &tap::Seen<'_>) {
            let reads = seen.heard.reads.as_ref().map_or(0, Vec::len);
            let chosen = seen.decision.choices[0].as_str();
            self.0.lock().unwrap().push(format!("{chosen} {reads} {:?} {}", seen.heard.explained, seen.by.version()));
        }
    }

    #[test]
    fn those_who_look_on_see_what_came_of_a_decision() {
        let text =
            "return { place = function() usher.now() usher.explain('x') return 'b' end, route = function() end }";
        let program = Program::compile(Source::shipped("test", text), &Environment::default()).unwrap();
        let handle = Arc::new(PolicyHandle::new(Deciding::alone(PolicySet::build(&program, 1).unwrap())));
        let notes = Arc::new(Notes(Mutex::default()));
        handle.change(|now| now.with_taps([notes.clone() as Arc<dyn tap::Tap>].into()));
        let view = View::of(["a", "b"].map(|id| MonolithRow { id: id.into(), ..MonolithRow::default() }));
        let call = |hook: &str| serde_json::from_value(serde_json::json!({"hook": hook, "region": "ewr"})).unwrap();
        handle.load().decide(&call("place"), &view);
        crate::policy::decide(&mut Current::new(handle.clone()), &call("place"), &view);
        handle.load().decide(&call("route"), &view);
        let expected = format!("b 1 [\"x\"] {}", program.version());
        assert_eq!(*notes.0.lock().unwrap(), [expected.clone(), expected]);
    }
}
