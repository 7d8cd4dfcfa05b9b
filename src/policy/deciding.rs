//! What decides at this moment: the active version, perhaps a canary for a share of the rooms, perhaps a shadow that
//! answers too. All threads find it behind one pointer, so a change of any of it is at a call boundary for everybody.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::Policy;
use super::canary::Canary;
use super::decide::decide_near;
use super::guarded::PolicyStats;
use super::lua::Program;
use super::shadow::{Seen, Shadow};
use super::slots::PolicySet;
use crate::model::policy::{Answer, Call, Decision, Fault, Hook, View};

/// One state of affairs. It never changes: [`PolicyHandle::change`] puts another one in its place.
#[derive(Clone)]
pub struct Deciding {
    active: Arc<PolicySet>,
    canary: Option<Arc<Canary>>,
    shadow: Option<Arc<Shadow>>,
}

impl Deciding {
    /// A version that decides alone.
    pub fn alone(active: PolicySet) -> Self {
        Self { active: Arc::new(active), canary: None, shadow: None }
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

    /// One call, in the version that this call belongs to.
    pub fn call(&self, call: &Call, view: &View) -> Result<Answer, Fault> {
        let canary = self.canary.as_ref().filter(|canary| canary.takes(call));
        let set = canary.map_or(&*self.active, |canary| canary.set());
        let answer = match &self.shadow {
            None => set.call(call, view),
            Some(shadow) => {
                let started = Instant::now();
                let (answer, explained) = set.call_explained(call, view);
                let took = started.elapsed();
                shadow.see(call, view, Seen { answer: answer.clone(), explained, took, by_canary: canary.is_some() });
                answer
            }
        };
        if let Some(canary) = canary {
            canary.judge(call, view, &answer, self.active.stats());
        }
        answer
    }

    /// One decision. The built-in default behind it knows the distances of the active version.
    pub fn decide(&self, call: &Call, view: &View) -> Decision {
        decide_near(&mut Asked(self), call, view, Some(&self.program().environment().distances))
    }
}

struct Asked<'a>(&'a Deciding);

impl Policy for Asked<'_> {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        self.0.call(call, view)
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
pub struct Current(pub Arc<PolicyHandle>);

impl Policy for Current {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        self.0.load().call(call, view)
    }

    fn has(&self, hook: Hook) -> bool {
        self.0.load().has(hook)
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
}
