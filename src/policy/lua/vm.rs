//! One VM of a policy: makes calls, and replaces itself after a call that hit a limit.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use mlua::{Function, LuaString, Table, Value};

use super::answer::{self, Returned};
use super::call::{Caller, Unlimited};
use super::inspect::{self, Inspection, Lines, Note};
use super::mirror::Mirror;
use super::program::{self, LoadError, Program};
use super::sandbox::{self, PRELUDE_NAME, Sandbox};
use super::state::Counted;
use super::surface::{self, Host, lock};
use crate::model::policy::{Answer, Call, Fault, FaultKind, Hook, View};
use crate::model::read::Read;
use crate::policy::Policy;

/// A VM that holds one policy and its own copy of the Monoliths.
pub struct Vm {
    program: Program,
    /// None after a call that hit a limit: such a VM is dropped at once and built anew before the next call.
    engine: Option<Engine>,
    host: Arc<Host>,
    about: About,
    /// Whether what calls read is kept.
    keeps_reads: bool,
    /// What the next call is to read.
    fed: Option<Vec<Read>>,
    /// What VMs that were thrown away had counted.
    lines: Lines,
}

/// What the policy's table says, which is the same in every VM of the program.
struct About {
    name: String,
    has: [bool; Hook::ALL.len()],
    unknown: Vec<(String, Option<u32>)>,
    /// The lines at which the hooks begin.
    lines: [Option<u32>; Hook::ALL.len()],
}

struct Engine {
    sandbox: Sandbox,
    caller: Caller,
    mirror: Mirror,
    chunk: Function,
    hooks: [Option<Function>; Hook::ALL.len()],
    _counted: Counted,
}

impl Policy for Vm {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        self.call_returned(call, view).map(|returned| returned.answer)
    }

    fn has(&self, hook: Hook) -> bool {
        self.about.has[hook as usize]
    }
}

impl Vm {
    /// Builds a VM and runs the policy's file in it, which defines the hooks.
    pub fn new(program: &Program) -> Result<Self, LoadError> {
        let inner = &program.inner;
        let host = Host::new(&inner.source.name, &inner.environment);
        let (engine, about) = Engine::new(program, &host)?;
        let lines = Lines::default();
        Ok(Self { program: program.clone(), engine: Some(engine), host, about, keeps_reads: false, fed: None, lines })
    }

    /// The program that it runs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The policy's name: what its table says, or else its file's.
    pub fn name(&self) -> &str {
        &self.about.name
    }

    /// Whether the policy has this hook.
    pub fn has(&self, hook: Hook) -> bool {
        self.about.has[hook as usize]
    }

    /// Functions of the policy's table that are no hooks, sorted, with the lines at which they begin.
    pub fn unknown_functions(&self) -> &[(String, Option<u32>)] {
        &self.about.unknown
    }

    /// Safepoints that the last call used.
    pub fn fuel_used(&self) -> u64 {
        self.host.meter.used()
    }

    /// Bytes that the VM holds now.
    pub fn memory(&self) -> usize {
        self.engine.as_ref().map_or(0, |engine| engine.sandbox.lua.used_memory())
    }

    /// What the last call gave to `usher.explain`.
    pub fn take_explanations(&mut self) -> Vec<String> {
        let mut explanations = std::mem::take(&mut *lock(&self.host.explanations));
        if let Some(engine) = &self.engine {
            explanations.extend(engine.take_explanations());
        }
        explanations
    }

    /// Whether what calls read through `now`, `random`, `counter` and `get` is kept for [`Self::take_reads`].
    pub fn keep_reads(&mut self, keep: bool) {
        self.keeps_reads = keep;
    }

    /// What the last call read, in order; `None` if it was too much to keep. Empty unless reads are kept.
    pub fn take_reads(&mut self) -> Option<Vec<Read>> {
        self.host.reads.take()
    }

    /// Gives the next call what a recorded one read: it reads that and neither the clock nor the state, which it does
    /// not change either. From the first read that is not the next of these on, it reads for itself.
    pub fn feed(&mut self, reads: Vec<Read>) {
        self.fed = Some(reads);
    }

    /// Whether the last call, which was fed, read exactly what it was fed.
    pub fn reads_matched(&self) -> bool {
        self.host.reads.matched()
    }

    /// The line at which each hook begins, in the order of [`Hook::ALL`].
    pub fn hook_lines(&self) -> &[Option<u32>; Hook::ALL.len()] {
        &self.about.lines
    }

    /// How often each line ran in this VM and in those that it replaced ([`Inspection::Coverage`]).
    pub fn coverage(&self) -> Lines {
        let mut lines = self.lines.clone();
        if let Some(engine) = &self.engine {
            lines.merge(&engine.lines());
        }
        lines
    }

    /// What calls have left behind since this was last asked, in a VM that inspects.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut *lock(&self.host.notes))
    }

    /// One call, with the shape in which the script answered.
    pub fn call_returned(&mut self, call: &Call, view: &View) -> Result<Returned, Fault> {
        let engine = match &mut self.engine {
            Some(engine) => engine,
            None => {
                let built = Engine::new(&self.program, &self.host);
                let (engine, _) = built.map_err(|e| Fault { kind: FaultKind::Error, message: e.to_string() })?;
                self.engine.insert(engine)
            }
        };
        self.host.begin(call);
        engine.forget_explanations();
        match self.fed.take() {
            Some(reads) => self.host.reads.feed(reads),
            None if self.keeps_reads => self.host.reads.keep(),
            None => {}
        }
        let Some(hook) = &engine.hooks[call.hook as usize] else {
            self.host.reads.stop();
            return Ok(Answer::Default.into());
        };
        let watched = self.host.reads.watched();
        let lua = &engine.sandbox.lua;
        let called = Unlimited::new(lua).and_then(|unlimited| {
            engine.mirror.sync(lua, view)?;
            engine.caller.call(unlimited, hook, &engine.mirror, call, watched)
        });
        self.host.reads.stop();
        let answer = match (called, self.host.meter.fired()) {
            (Ok(said), None) => answer::parse(call.hook, &said, view).map_err(|reason| Fault {
                kind: FaultKind::BadAnswer,
                message: self.about.blame(&self.program, call.hook, &reason),
            }),
            (called, _) => Err(self.host.fault(&self.program.source().file(), called.err())),
        };
        self.retire(&answer);
        answer
    }

    /// Drops a VM that cannot be trusted with another call, or that has little memory left for one.
    fn retire(&mut self, answer: &Result<Returned, Fault>) {
        use FaultKind::{CpuTime, Fuel, Memory, NativeCap};
        let Some(engine) = &self.engine else { return };
        let stopped = matches!(answer, Err(fault) if matches!(fault.kind, Fuel | CpuTime | Memory | NativeCap));
        let (lua, limit) = (&engine.sandbox.lua, self.host.environment.limits.memory);
        // Luau collects nothing when an allocation fails, so a script that caught such an error left a full VM behind.
        // A VM that stays over half would collect after each call, which costs more than to build a new one.
        let half_full = || lua.used_memory() > limit / 2;
        let full = || half_full() && (lua.gc_collect().is_err() || half_full());
        if stopped || full() {
            if self.program.inner.inspection == Inspection::Coverage {
                self.lines.merge(&engine.lines());
            }
            *lock(&self.host.explanations) = engine.take_explanations();
            self.engine = None;
        }
    }
}

impl About {
    /// A message about an answer: the line is that at which the hook begins, since a return leaves no trace of its own.
    fn blame(&self, program: &Program, hook: Hook, reason: &str) -> String {
        let at = match self.lines[hook as usize] {
            Some(line) => format!("{}:{line}", program.source().file()),
            None => program.source().file(),
        };
        format!("{at}: policy {:?} {hook} {reason}", self.name)
    }
}

impl Engine {
    /// What the policy's lines have counted. Counting needs memory, of which a VM that is full has none left.
    fn lines(&self) -> Lines {
        let Ok(limit) = self.sandbox.lua.set_memory_limit(0) else { return Lines::default() };
        let lines = Lines::of(&self.chunk);
        // A VM that is over its limit is about to be dropped; any other takes the limit back.
        let _ = self.sandbox.lua.set_memory_limit(limit);
        lines
    }

    fn forget_explanations(&self) {
        if self.sandbox.said.raw_len() > 0 {
            // It fails for read-only tables only.
            let _ = self.sandbox.said.clear();
        }
    }

    /// As with lines, a VM that is full has no memory left for this.
    fn take_explanations(&self) -> Vec<String> {
        let length = self.sandbox.said.raw_len();
        if length == 0 {
            return Vec::new();
        }
        let Ok(limit) = self.sandbox.lua.set_memory_limit(0) else { return Vec::new() };
        let texts = (1..=length).filter_map(|at| self.sandbox.said.raw_get::<LuaString>(at).ok());
        let texts = texts.map(|text| surface::shortened(&text)).collect();
        self.forget_explanations();
        let _ = self.sandbox.lua.set_memory_limit(limit);
        texts
    }

    fn new(program: &Program, host: &Arc<Host>) -> Result<(Self, About), LoadError> {
        let inner = &program.inner;
        let counted = inner.environment.state.counted();
        let file = inner.source.file();
        let wrong = |reason: String| LoadError { file: file.clone(), line: None, reason };
        let internal = |e: mlua::Error| wrong(format!("the VM could not be built: {e}"));
        let sandbox = Sandbox::new(host, inner.environment.limits.memory, |lua, usher| {
            inspect::extend(inner.inspection, host, lua, usher)
        })
        .map_err(internal)?;
        let mirror = Mirror::new(&sandbox.lua, sandbox.shown.clone(), host.rows.clone()).map_err(internal)?;
        host.meter.start(&inner.environment.limits);
        // The file itself runs the same way each time, whichever call made a new VM necessary.
        host.random.store(0, Relaxed);
        let chunk = sandbox::load(&sandbox.lua, &file, &inner.bytecode).map_err(internal)?;
        let ran = chunk.call::<Value>(());
        let value = match (ran, host.meter.fired()) {
            (Ok(value), None) => value,
            (ran, _) => return Err(program::located(&file, &host.fault(&file, ran.err()).message)),
        };
        let Value::Table(table) = value else {
            let reason = format!("returns {}; a policy file returns a table of hooks", answer::type_of(&value));
            return Err(LoadError { line: inner.source.last_return(), ..wrong(reason) });
        };
        check_version(&table).map_err(wrong)?;
        let mut hooks = [const { None }; Hook::ALL.len()];
        for hook in Hook::ALL {
            hooks[hook as usize] = match table.raw_get(hook.name()) {
                Ok(Value::Nil) => None,
                Ok(Value::Function(function)) => Some(function),
                Ok(other) => {
                    let reason = format!("{hook} is a {}; hooks are functions", answer::type_of(&other));
                    return Err(LoadError { line: inner.source.assignment_of(hook.name()), ..wrong(reason) });
                }
                Err(e) => return Err(internal(e)),
            };
        }
        let name = match table.raw_get("name") {
            Ok(Value::String(name)) => name.to_string_lossy(),
            _ => inner.source.name.clone(),
        };
        let has = std::array::from_fn(|hook| hooks[hook].is_some());
        let line = |hook: &Function| hook.info().line_defined.and_then(|line| u32::try_from(line).ok());
        let lines = std::array::from_fn(|hook| hooks[hook].as_ref().and_then(line));
        for hook in &mut hooks {
            if let Some(function) = hook.take() {
                *hook = Some(inspect::wrap(inner.inspection, host, &sandbox.lua, function).map_err(internal)?);
            }
        }
        let about = About { name, has, unknown: unknown_functions(&table), lines };
        let caller = Caller::new(sandbox.invoke.clone());
        Ok((Self { sandbox, caller, mirror, chunk, hooks, _counted: counted }, about))
    }
}

fn unknown_functions(table: &Table) -> Vec<(String, Option<u32>)> {
    let entries = table.pairs::<Value, Value>().flatten();
    let functions = entries.filter_map(|(key, value)| {
        let line = value.as_function()?.info().line_defined.and_then(|line| u32::try_from(line).ok());
        Some((key.as_string()?.to_string_lossy(), line))
    });
    let mut unknown: Vec<_> = functions.filter(|(name, _)| Hook::ALL.iter().all(|hook| hook.name() != name)).collect();
    unknown.sort();
    unknown
}

/// `policy.api` is the version of the contract that a policy was written for.
fn check_version(table: &Table) -> Result<(), String> {
    match table.raw_get("api") {
        Ok(Value::Nil) => Ok(()),
        Ok(Value::Number(1.0) | Value::Integer(1)) => Ok(()),
        Ok(other) => Err(format!("api is {}; this usher knows 1", other.to_string().unwrap_or_default())),
        Err(e) => Err(e.to_string()),
    }
}

impl Host {
    fn begin(&self, call: &Call) {
        self.meter.start(&self.environment.limits.for_rooms(call.rooms.len()));
        self.random.store(call.seed, Relaxed);
        self.now_us.store(call.now_us, Relaxed);
        lock(&self.explanations).clear();
    }

    /// The fault of a call that was stopped or raised an error.
    pub(crate) fn fault(&self, file: &str, error: Option<mlua::Error>) -> Fault {
        let limits = &self.environment.limits;
        let raised = error.as_ref().map(message);
        let traced = || error.as_ref().and_then(|e| position(file, &e.to_string()));
        let at = match self.meter.line() {
            Some(line) => format!("{file}:{line}: "),
            None => traced().unwrap_or_else(|| format!("{file}: ")),
        };
        let stopped = |what: String| format!("{at}{what}");
        // A library function behind a guard names the guard's line; the author knows only that of the policy.
        let outside = |text: String| match position(PRELUDE_NAME, &text) {
            Some(own) if text.starts_with(&own) => format!("{at}{}", &text[own.len()..]),
            _ => text,
        };
        let (kind, message) = match self.meter.fired() {
            Some(FaultKind::Fuel) => {
                let fuel = self.meter.fuel();
                (FaultKind::Fuel, stopped(format!("more than {fuel} safepoints in one call (policy.fuel)")))
            }
            Some(FaultKind::CpuTime) => (
                FaultKind::CpuTime,
                stopped(format!("more than {:?} of CPU time in one call (policy.budget)", self.meter.budget())),
            ),
            Some(kind) => (kind, stopped(lock(&self.capped).clone())),
            None if error.as_ref().is_some_and(out_of_memory) => {
                (FaultKind::Memory, stopped(format!("more than {} bytes of memory (policy.memory)", limits.memory)))
            }
            None => (FaultKind::Error, raised.map(outside).unwrap_or_else(|| stopped("no answer".into()))),
        };
        Fault { kind, message }
    }
}

/// Whether an allocation failed.
pub(crate) fn out_of_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } => out_of_memory(cause),
        _ => false,
    }
}

/// The message of an error without traces and without anything that differs from run to run.
pub(crate) fn message(error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::RuntimeError(text) => text.clone(),
        mlua::Error::CallbackError { cause, .. } => message(cause),
        other => other.to_string(),
    };
    let text = text.split("\nstack traceback:").next().unwrap_or_default();
    if text.starts_with("table: 0x") || text.starts_with("function: 0x") {
        return "an error that is no text; raise texts, as in error(\"no room\")".into();
    }
    text.into()
}

/// The first `file:line: ` in a text that may hold a trace.
pub(crate) fn position(file: &str, text: &str) -> Option<String> {
    text.match_indices(file).find_map(|(at, _)| {
        let rest = text[at + file.len()..].strip_prefix(':')?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        (digits > 0).then(|| format!("{file}:{}: ", &rest[..digits]))
    })
}
