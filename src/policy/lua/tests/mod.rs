//! What scripts can and cannot do.

use std::time::Duration;

use crate::model::MonolithId;
use crate::model::policy::{Answer, Call, Fault, Hook, MonolithRow, View};
use crate::policy::Policy;

use super::{Environment, Limits, Program, Source, Vm};

mod attacks;
mod calls;
mod definitions;
mod helpers;
mod state;
mod surface;

/// A VM of this text. Tests run without optimisation beside others, so CPU time is not what they are about.
pub(super) fn vm(text: &str) -> Vm {
    vm_with(text, &environment(8 << 20))
}

pub(super) fn vm_with(text: &str, environment: &Environment) -> Vm {
    Vm::new(&Program::compile(Source::shipped("test", text), environment).unwrap()).unwrap()
}

/// A VM whose `place` has this body.
pub(super) fn place(body: &str) -> Vm {
    vm(&format!("return {{ place = function(call) {body} end }}"))
}

pub(super) fn row(id: &str, region: &str, rooms: u32) -> MonolithRow {
    MonolithRow { id: id.into(), region: region.into(), rooms, ..MonolithRow::default() }
}

/// Three Monoliths in two regions.
pub(super) fn view() -> View {
    View::of([row("m1", "ewr", 5), row("m2", "ewr", 2), row("m3", "cdg", 1)])
}

pub(super) fn call(hook: Hook) -> Call {
    Call {
        hook,
        now_us: 1_700_000_000_500_000,
        seed: 7,
        region: "ewr".into(),
        room: None,
        client: None,
        cause: None,
        request: None,
        excluded: Vec::new(),
        rooms: [].into(),
    }
}

pub(super) fn ids(names: &[&str]) -> Answer {
    Answer::Ranked(names.iter().map(|name| MonolithId::from(*name)).collect())
}

pub(super) fn ask(vm: &mut Vm) -> Result<Answer, Fault> {
    vm.call(&call(Hook::Place), &view())
}

pub(super) fn environment(memory: usize) -> Environment {
    let limits = Limits { memory, budget: Duration::from_millis(500), ..Limits::default() };
    Environment { limits, ..Environment::default() }
}
