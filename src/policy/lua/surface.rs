//! Everything that passes between Rust and a script: the `usher` table as scripts and editors know it, and the host
//! functions behind it. The rest of the table is Luau, in `prelude.luau`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlua::{Lua, LuaString, Table, Value};

use super::environment::Environment;
use super::inspect::Note;
use super::meter::Meter;
use super::mirror::{self, NativeRows};
use super::ranking;
use super::reads::Reads;
use super::sandbox::script_line;
use super::state::{Kept, SharedState};
use crate::model::Region;
use crate::model::policy::FaultKind;
use crate::model::read::Read;

/// One entry of the `usher` table.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// Its name, without `usher.`.
    pub name: &'static str,
    /// Its Luau type, as `policies/usher.d.luau` has it.
    pub signature: &'static str,
    /// What it does, with formula and source.
    pub doc: &'static str,
}

const fn item(name: &'static str, signature: &'static str, doc: &'static str) -> Item {
    Item { name, signature, doc }
}

/// The whole `usher` table. The test API (`usher.test`) is not part of it: only `usher test` has it.
pub const SURFACE: &[Item] = &[
    item(
        "min_by",
        "(list: {Monolith}, score: Score) -> Monolith?",
        "the Monolith with the lowest score, the first of equals; nil for an empty list",
    ),
    item(
        "max_by",
        "(list: {Monolith}, score: Score) -> Monolith?",
        "the Monolith with the highest score, the first of equals; nil for an empty list",
    ),
    item("filter", "(list: {Monolith}, keep: Test) -> {Monolith}", "those that pass the test, in order"),
    item(
        "sort_by",
        "(list: {Monolith}, score: Score) -> {Monolith}",
        "a sorted copy, lowest score first; equals keep their order",
    ),
    item(
        "two_choices",
        "(list: {Monolith}, score: Score?) -> Monolith?",
        "the better of two that are drawn at random (Mitzenmacher, 2001); score: rooms + pending unless given. Keeps several balancers with old data from all choosing the same one",
    ),
    item(
        "rendezvous",
        "(key: string, list: {Monolith}, weight: Score?) -> Monolith?",
        "the highest -weight / ln(hash(key, id)) (Thaler and Ravishankar, 1998; weights: Schindelhauer and Schomaker, 2005): a Monolith that goes moves only its own keys; weight: the row's weight unless given",
    ),
    item(
        "bounded",
        "(key: string, list: {Monolith}, factor: number?) -> Monolith?",
        "rendezvous among those with rooms + pending below ceil(factor * (total + 1) * weight / weights) (Mirrokni, Thorup and Zadimoghaddam, 2016); factor: 1.25 unless given",
    ),
    item(
        "in_region",
        "(list: {Monolith}, region: string?) -> {Monolith}",
        "those in a region, the balancer's own unless given",
    ),
    item(
        "nearest",
        "(list: {Monolith}, region: string?) -> {Monolith}",
        "those in the region that is nearest to a region (the balancer's own unless given); the whole list where no distance is known",
    ),
    item(
        "spill",
        "(list: {Monolith}, full: number | ((m: Monolith) -> boolean), region: string?) -> {Monolith}",
        "those of the nearest region that are not full (a number: rooms + pending below it), else of the next nearest, and so on; the whole list when all are full",
    ),
    item(
        "slow_start",
        "(m: Monolith, seconds: number) -> number",
        "a linear ramp from 0.1 to 1: clamp(age_s / seconds, 0.1, 1); divide a load by it, or multiply a weight with it",
    ),
    item(
        "hash",
        "(text: string) -> number",
        "a stable hash: a whole number from 0 to 2^53 - 1 (FNV-1a with the finaliser of MurmurHash3)",
    ),
    item(
        "random",
        "(low: number?, high: number?) -> number",
        "a number in [0, 1); a whole one in 1..low; or one in low..high. Seeded by the call (SplitMix64), as math.random is",
    ),
    item("now", "() -> number", "the call's clock: seconds since 1970"),
    item(
        "counter",
        "(name: string) -> (() -> number)",
        "a function that adds one to a counter, which all workers and versions share, and returns it",
    ),
    item(
        "get",
        "(key: string) -> (string | number | boolean)?",
        "what was last set under a key, in any worker and version",
    ),
    item(
        "set",
        "(key: string, value: (string | number | boolean)?) -> ()",
        "keeps a value under a key (at most 1024 keys, 64 KiB in all), or forgets the key",
    ),
    item("settings", "{ [string]: any }", "the table policy.settings of the configuration, read-only"),
    item("log", "(...any) -> ()", "writes to the balancer's log, at most 10 lines a second"),
    item("explain", "(...any) -> ()", "a reason for the decision, shown by usher eval --explain"),
    item(
        "reject",
        "(code: number, reason: string?) -> Reject",
        "the answer that nobody serves this: a status 400 to 599, or a close code 1013 or 4000 to 4999",
    ),
    item(
        "hold",
        "(delay: number | string) -> Hold",
        "the answer to ask again later (admit): seconds, or a text such as \"500ms\"",
    ),
    item("move", "(room: Room | string, monolith: Monolith | string) -> Move", "one move of a rebalance"),
];

/// The longest text of a log line or an explanation. `prelude.luau` knows how many explanations a call may give.
const MAX_TEXT: usize = 1024;
/// Names and keys are texts, so that what was read under one can be written down.
const NOT_UTF8: &str = "the name is not UTF-8; names are texts";
/// Log lines of one VM in a second of the call's clock.
const LOG_LINES: u32 = 10;

/// What the host functions of one VM share with it.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) policy: String,
    pub(crate) environment: Environment,
    pub(crate) meter: Arc<Meter>,
    pub(super) rows: NativeRows,
    pub(crate) random: AtomicU64,
    pub(crate) now_us: AtomicU64,
    /// What the last call gave to `usher.explain`, if its VM was dropped.
    pub(super) explanations: Mutex<Vec<String>>,
    /// What a VM that inspects has written down.
    pub(super) notes: Mutex<Vec<Note>>,
    /// What the last guard had to say. Its own error does not get far: the next safepoint raises another.
    pub(crate) capped: Mutex<String>,
    logged: Mutex<(u64, u32)>,
    pub(super) reads: Reads,
}

impl Host {
    /// What the VMs of this policy share with their host functions.
    pub(crate) fn new(policy: &str, environment: &Environment) -> Arc<Self> {
        Arc::new(Self { policy: policy.into(), environment: environment.clone(), ..Self::default() })
    }

    /// The functions that `prelude.luau` gets as `host`. None of them may panic: a script could catch that.
    pub(crate) fn table(self: &Arc<Self>, lua: &Lua) -> mlua::Result<Table> {
        let table = lua.create_table()?;
        macro_rules! host {
            ($name:literal, |$host:ident, $lua:ident, $args:tt: $type:ty| $body:expr) => {{
                let host = self.clone();
                let function = lua.create_function(move |$lua, $args: $type| {
                    let $host = &host;
                    $body
                })?;
                table.raw_set($name, function)?;
            }};
        }
        host!("cap", |host, _lua, message: String| {
            host.meter.fire(FaultKind::NativeCap);
            *lock(&host.capped) = message;
            Ok(())
        });
        host!("charge", |host, lua, safepoints: f64| {
            match host.meter.charge(safepoints as u64) {
                None => Ok(()),
                Some(kind) => {
                    host.meter.stopped_at(|| script_line(lua));
                    Err(mlua::Error::runtime(kind.label()))
                }
            }
        });
        host!("random", |host, _lua, (): ()| {
            let fed = |read: &Read| if let Read::Random(drawn) = read { Some(*drawn) } else { None };
            let own = || {
                let (next, drawn) = ranking::next_random(host.random.load(Relaxed));
                host.random.store(next, Relaxed);
                (drawn >> 11) as f64 / (1u64 << 53) as f64
            };
            Ok(host.reads.read(fed, own, |drawn| Read::Random(*drawn)))
        });
        host!("now", |host, _lua, (): ()| {
            let fed = |read: &Read| if let Read::Now(now) = read { Some(*now) } else { None };
            Ok(host.reads.read(fed, || host.now_us.load(Relaxed) as f64 / 1e6, |now| Read::Now(*now)))
        });
        host!("seed", |host, _lua, seed: f64| {
            host.random.store(seed.to_bits(), Relaxed);
            Ok(())
        });
        host!("hash", |_host, _lua, text: LuaString| Ok((ranking::hash(&text.as_bytes()) >> 11) as f64));
        host!("extreme", |host, _lua, (field, sign): (LuaString, f64)| Ok(host.extreme(&field.as_bytes(), sign)));
        host!("order", |_host, lua, scores: Table| order(lua, &scores));
        host!(
            "rendezvous",
            |host, _lua, (key, ids, weights): (LuaString, Option<Vec<LuaString>>, Option<Vec<f64>>)| {
                Ok(host.rendezvous(&key.as_bytes(), ids, weights).map(|at| at + 1))
            }
        );
        host!("bounded", |host, _lua, (key, factor, lists): (LuaString, f64, Lists)| {
            Ok(host.bounded(&key.as_bytes(), factor, lists).map(|at| at + 1))
        });
        host!("distance", |host, _lua, (from, to): (LuaString, LuaString)| {
            let region = |text: LuaString| Region::new(text.to_string_lossy());
            Ok(host.environment.distances.between(&region(from), &region(to)))
        });
        host!("counter", |host, lua, name: LuaString| {
            let Some(name) = utf8(&name) else { return Ok((None, Some(NOT_UTF8.into()))) };
            let counter = match host.environment.state.counter(&name) {
                Ok(counter) => counter,
                // A call that is fed counts nothing, so it needs no counter either.
                Err(_) if host.reads.feeds() => Arc::default(),
                Err(full) => return Ok((None, Some(full.to_string()))),
            };
            let host = host.clone();
            let next = lua.create_function(move |_, (): ()| {
                let fed = |read: &Read| match read {
                    Read::Counter(counted, value) if *counted == name => Some(*value),
                    _ => None,
                };
                let own = || SharedState::count(&counter);
                Ok(host.reads.read(fed, own, |value| Read::Counter(name.clone(), *value)) as f64)
            })?;
            Ok((Some(next), None))
        });
        host!("get", |host, lua, key: LuaString| {
            // Nothing can be kept under such a key.
            let Some(key) = utf8(&key) else { return Ok(Value::Nil) };
            let fed = |read: &Read| match read {
                Read::Get(got, value) if *got == key => Some(value.clone()),
                _ => None,
            };
            let own = || host.environment.state.get(&key);
            Ok(match host.reads.read(fed, own, |value| Read::Get(key.clone(), value.clone())) {
                None => Value::Nil,
                Some(Kept::Boolean(value)) => Value::Boolean(value),
                Some(Kept::Number(value)) => Value::Number(value),
                Some(Kept::Text(text)) => Value::String(lua.create_string(&*text)?),
            })
        });
        host!("set", |host, _lua, (key, value): (LuaString, Value)| Ok(host.set(&key, &value).err()));
        host!("log", |host, _lua, text: LuaString| {
            host.log(&text);
            Ok(())
        });
        Ok(table)
    }

    /// Keeps a value; the error says what would be right. While a call is fed, it changes nothing.
    fn set(&self, key: &LuaString, value: &Value) -> Result<(), String> {
        let key = utf8(key).ok_or(NOT_UTF8)?;
        let number = |value: f64| {
            if value.is_finite() { Ok(Kept::Number(value)) } else { Err("only finite numbers can be kept".to_owned()) }
        };
        let value = match value {
            Value::Boolean(value) => Some(Kept::Boolean(*value)),
            Value::Integer(value) => Some(number(*value as f64)?),
            Value::Number(value) => Some(number(*value)?),
            Value::String(text) => {
                Some(Kept::Text(utf8(text).ok_or("the value is not UTF-8; only texts can be kept")?))
            }
            _ => None,
        };
        if self.reads.feeds() {
            return Ok(());
        }
        self.environment.state.set(&key, value).map_err(|full| full.to_string())
    }

    fn extreme(&self, field: &[u8], sign: f64) -> Option<usize> {
        let number = mirror::number(field)?;
        let rows = lock(&self.rows);
        let mut best: Option<(usize, f64)> = None;
        for (at, row) in mirror::serving(&rows).enumerate() {
            let score = number(row) * sign;
            if score.is_nan() {
                return None;
            }
            if best.is_none_or(|(_, top)| score < top) {
                best = Some((at, score));
            }
        }
        best.map(|(at, _)| at + 1)
    }

    fn rendezvous(&self, key: &[u8], ids: Option<Vec<LuaString>>, weights: Option<Vec<f64>>) -> Option<usize> {
        let (Some(ids), Some(weights)) = (ids, weights) else {
            let rows = lock(&self.rows);
            return ranking::rendezvous(
                key,
                mirror::serving(&rows).map(|row| (row.id.as_str().as_bytes(), row.weight)),
            );
        };
        let ids: Vec<_> = ids.iter().map(LuaString::as_bytes).collect();
        ranking::rendezvous(key, ids.iter().map(|id| &id[..]).zip(weights))
    }

    fn bounded(&self, key: &[u8], factor: f64, (ids, weights, loads): Lists) -> Option<usize> {
        let (Some(ids), Some(weights), Some(loads)) = (ids, weights, loads) else {
            let rows = lock(&self.rows);
            let load = |rooms, pending| f64::from(rooms) + f64::from(pending);
            let list: Vec<_> = mirror::serving(&rows)
                .map(|row| (row.id.as_str().as_bytes(), row.weight, load(row.rooms, row.pending)))
                .collect();
            return ranking::bounded(key, &list, factor);
        };
        let ids: Vec<_> = ids.iter().map(LuaString::as_bytes).collect();
        let list: Vec<_> =
            ids.iter().zip(weights).zip(loads).map(|((id, weight), load)| (&id[..], weight, load)).collect();
        ranking::bounded(key, &list, factor)
    }

    fn log(&self, text: &LuaString) {
        let second = self.now_us.load(Relaxed) / 1_000_000;
        let mut logged = lock(&self.logged);
        if logged.0 != second {
            *logged = (second, 0);
        }
        logged.1 = logged.1.saturating_add(1);
        if logged.1 <= LOG_LINES {
            tracing::info!(policy = %self.policy, "{}", shortened(text));
        }
    }
}

/// Ids, weights and loads of a list that Rust does not hold itself.
type Lists = (Option<Vec<LuaString>>, Option<Vec<f64>>, Option<Vec<f64>>);

/// The positions of a list of numbers in rising order; equals keep their order.
fn order(lua: &Lua, scores: &Table) -> mlua::Result<Table> {
    let mut scores: Vec<(u32, f64)> =
        scores.sequence_values::<f64>().zip(1..).map(|(s, at)| Ok((at, s?))).collect::<mlua::Result<_>>()?;
    scores.sort_by(|a, b| a.1.total_cmp(&b.1));
    lua.create_sequence_from(scores.into_iter().map(|(at, _)| at))
}

fn utf8(text: &LuaString) -> Option<Arc<str>> {
    std::str::from_utf8(&text.as_bytes()).ok().map(Arc::from)
}

pub(super) fn shortened(text: &LuaString) -> String {
    let bytes = text.as_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT)]).into_owned()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
