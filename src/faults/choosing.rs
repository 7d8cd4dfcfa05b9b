//! Who decides in a run: a policy that is swapped by changing a number, and in some runs the Lua engine with a shipped one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use crate::model::policy::{Answer, Call, Fault, FaultKind, View};
use crate::policy::Policy;
use crate::policy::lua::{Environment, Limits, Program, Source, Vm};
use crate::policy::shipped::Shipped;

/// Ways to choose that a policy can be swapped between.
pub(super) const POLICIES: u8 = 5;
/// The way that asks the Lua policy, where a run has one, and is the built-in one elsewhere.
pub(super) const SCRIPT: u8 = 4;

/// Chooses in the way that a number says.
pub(super) struct Chooser {
    way: Arc<AtomicU8>,
    script: Option<Vm>,
}

impl Chooser {
    /// A run with a script begins with it.
    pub(super) fn new(script: Option<&Shipped>) -> (Box<Self>, Arc<AtomicU8>) {
        // How long a call takes in real time must not decide anything.
        let limits = Limits { budget: Duration::from_secs(3600), ..Limits::default() };
        let environment = Environment { limits, ..Environment::default() };
        let script = script.map(|it| {
            let program = Program::compile(Source::shipped(it.name, it.text), &environment).unwrap();
            Vm::new(&program).unwrap()
        });
        let way = Arc::new(AtomicU8::new(if script.is_some() { SCRIPT } else { 0 }));
        (Box::new(Self { way: way.clone(), script }), way)
    }
}

impl Policy for Chooser {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        let serving: Vec<_> = view.rows().iter().filter(|row| row.serves()).map(|row| row.id.clone()).collect();
        let pick = |number: u64| match serving.len() {
            0 => Answer::Default,
            length => Answer::Ranked(vec![serving[(number % length as u64) as usize].clone()]),
        };
        match (self.way.load(Relaxed), &mut self.script) {
            (0, _) | (SCRIPT, None) => Ok(Answer::Default),
            (SCRIPT, Some(script)) => script.call(call, view),
            (1, _) => {
                let name = call.room.as_ref().and_then(|room| room.name.as_deref()).unwrap_or_default();
                Ok(pick(name.bytes().fold(7, |hash, byte| hash * 31 + u64::from(byte))))
            }
            (2, _) => Ok(pick(call.seed >> 7)),
            _ => Err(Fault { kind: FaultKind::Error, message: "it fails on purpose".into() }),
        }
    }
}
