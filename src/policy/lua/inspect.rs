//! VMs that look closer than those that decide: they count lines, write rankings down, or notice fields that do not
//! exist. A VM that decides is built without any of it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use mlua::{Function, Lua, Table, Value};

use super::surface::{Host, lock};
use super::{program, ranking, sandbox};
use crate::model::policy::Hook;

/// What a VM writes down besides its answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inspection {
    /// Nothing: such VMs decide.
    #[default]
    None,
    /// How often each line ran.
    Coverage,
    /// What the helpers ranked, and what the script said with `usher.explain`.
    Rankings,
    /// Reads of fields that no call has.
    Fields,
}

/// One list that a helper ranked or thinned out.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Ranking {
    /// The helper, such as `min_by`.
    pub helper: String,
    /// The field, the key or the region that it went by, where that is a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The list, in its own order.
    pub list: Vec<Scored>,
    /// Who came out, best first.
    pub chosen: Vec<String>,
    /// The policy's line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// One item of a list that a helper looked at.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Scored {
    /// The Monolith's id.
    pub id: String,
    /// Its score; helpers that only thin out give none, and neither does `bounded` to those that are full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

/// One thing that a call left behind in a VM that inspects, in the order of the script.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// A text of `usher.explain`.
    Said(String),
    /// What a helper did.
    Ranked(Ranking),
    /// A read of a field that no call has.
    Unknown {
        /// What was read: `call`, `monolith`, `room`, `client`, `request`, `previous`.
        object: String,
        /// The name of the field.
        field: String,
        /// The policy's line.
        line: Option<u32>,
    },
}

/// The most notes of one VM that nobody has taken yet.
const MAX_NOTES: usize = 256;
const RANKINGS: &str = include_str!("rankings.luau");
const FIELDS_OF_CALLS: &str = include_str!("fields.luau");

/// The objects of a call and the fields that they may have, present or nil. Tables whose keys are data (`regions`,
/// `load`, `headers`, `query`, `metadata`) are not among them.
pub const FIELDS: [(&str, &[&str]); 6] = [
    ("call", &["monoliths", "all_monoliths", "region", "cause", "room", "rooms", "client", "request"]),
    ("monolith", MONOLITH_FIELDS),
    ("room", ROOM_FIELDS),
    ("client", CLIENT_FIELDS),
    ("request", REQUEST_FIELDS),
    ("previous", &["monolith", "why"]),
];

/// The fields of a Monolith.
pub const MONOLITH_FIELDS: &[&str] = &[
    "id",
    "region",
    "state",
    "rooms",
    "clients",
    "users",
    "pending",
    "inflight",
    "queue",
    "rtt_ms",
    "latency_ms",
    "errors",
    "age_s",
    "weight",
    "draining",
    "load",
    "load_age_s",
];
/// The fields of a room.
pub const ROOM_FIELDS: &[&str] =
    &["name", "region", "clients", "regions", "metadata", "previous", "attempt", "bound", "owner", "age_s"];
/// The fields of a client.
pub const CLIENT_FIELDS: &[&str] = &["region", "reconnect", "attempt"];
/// The fields of a request.
pub const REQUEST_FIELDS: &[&str] = &["method", "path", "host", "region", "headers", "query"];

/// How often each line of a policy ran, in all VMs that were counted. Lines without code are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(pub BTreeMap<u32, u64>);

impl Lines {
    /// What a chunk has counted so far, functions inside it included. A line that several functions share has run as
    /// often as the busiest of them.
    pub(super) fn of(chunk: &Function) -> Self {
        let mut lines = BTreeMap::new();
        chunk.coverage(|function| {
            for (line, hits) in (0u32..).zip(&function.hits) {
                if let Ok(hits) = u64::try_from(*hits) {
                    let known = lines.entry(line).or_insert(0);
                    *known = hits.max(*known);
                }
            }
        });
        Self(lines)
    }

    /// Adds what another VM has counted.
    pub fn merge(&mut self, other: &Self) {
        for (line, hits) in &other.0 {
            *self.0.entry(*line).or_insert(0) += hits;
        }
    }
}

/// Puts in place what the inspection needs, before the `usher` table is closed.
pub(super) fn extend(inspection: Inspection, host: &Arc<Host>, lua: &Lua, usher: &Table) -> mlua::Result<()> {
    if inspection != Inspection::Rankings {
        return Ok(());
    }
    static BYTECODE: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    let wrap = sandbox::load(lua, sandbox::PRELUDE_NAME, ours(&BYTECODE, RANKINGS)?)?;
    let keep = host.clone();
    let said = lua.create_function(move |_, text: mlua::LuaString| {
        note(&keep, Note::Said(text.to_string_lossy()));
        Ok(())
    })?;
    let keep = host.clone();
    let ranked = lua.create_function(
        move |lua, (helper, by, ids, scores, chosen): (String, Option<String>, Vec<String>, Table, Vec<String>)| {
            let score = |at: usize| scores.raw_get::<Option<f64>>(at).ok().flatten();
            let list = ids.into_iter().zip(1..).map(|(id, at)| Scored { id, score: score(at) }).collect();
            let line = sandbox::script_line(lua);
            note(&keep, Note::Ranked(Ranking { helper, by, list, chosen, line }));
            Ok(())
        },
    )?;
    let score = lua.create_function(|_, (key, id, weight): (mlua::LuaString, mlua::LuaString, f64)| {
        Ok(ranking::score(&key.as_bytes(), &id.as_bytes(), weight))
    })?;
    wrap.call((usher, said, ranked, score))
}

/// The hook as the inspection wants it called.
pub(super) fn wrap(inspection: Inspection, host: &Arc<Host>, lua: &Lua, hook: Function) -> mlua::Result<Function> {
    if inspection != Inspection::Fields {
        return Ok(hook);
    }
    static BYTECODE: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    let watch = sandbox::load(lua, sandbox::PRELUDE_NAME, ours(&BYTECODE, FIELDS_OF_CALLS)?)?;
    let known = lua.create_table()?;
    for (object, fields) in FIELDS {
        known.raw_set(object, lua.create_table_from(fields.iter().map(|field| (*field, true)))?)?;
    }
    let keep = host.clone();
    let unknown = lua.create_function(move |lua, (object, field): (String, Value)| {
        let field = field.to_string().unwrap_or_default();
        note(&keep, Note::Unknown { object, field, line: sandbox::script_line(lua) });
        Ok(())
    })?;
    watch.call((hook, known, unknown))
}

fn note(host: &Host, note: Note) {
    let mut notes = lock(&host.notes);
    if notes.len() < MAX_NOTES {
        notes.push(note);
    }
}

fn ours(once: &'static OnceLock<Result<Vec<u8>, String>>, text: &str) -> mlua::Result<&'static [u8]> {
    let compiled =
        once.get_or_init(|| program::compile(sandbox::PRELUDE_NAME, text, Inspection::None).map_err(|e| e.to_string()));
    compiled.as_deref().map_err(mlua::Error::runtime)
}

/// The names of everything that a script can reach without defining it: `name` and, of libraries, `name.member`.
pub fn globals() -> Vec<String> {
    let mut names = Vec::new();
    let host = Host::new("globals", &super::Environment::default());
    let collect = |lua: &Lua, usher: &Table| {
        let mut add = |name: &str, table: &Table| {
            for (member, _) in table.pairs::<String, Value>().flatten() {
                names.push(format!("{name}.{member}"));
            }
        };
        add("usher", usher);
        let globals = lua.globals();
        for (name, value) in globals.pairs::<String, Value>().flatten() {
            if let (Value::Table(table), true) = (&value, name != "_G") {
                add(&name, table);
            }
        }
        names.extend(globals.pairs::<String, Value>().flatten().map(|(name, _)| name));
        names.push("usher".into());
        Ok(())
    };
    // Without the list nothing is known, and nothing is then said to be unknown.
    if sandbox::Sandbox::new(&host, 8 << 20, collect).is_err() {
        return Vec::new();
    }
    names.sort();
    names
}

/// The hooks of which [`FIELDS`] speaks, for those that look at code instead of running it.
pub(crate) fn fields_of(object: &str) -> Option<&'static [&'static str]> {
    FIELDS.iter().find(|(name, _)| *name == object).map(|(_, fields)| *fields)
}

/// What a field of a call is, where it is one of the objects of [`FIELDS`].
pub(crate) fn object_at(object: &str, field: &str) -> Option<&'static str> {
    match (object, field) {
        ("call", "room") => Some("room"),
        ("call", "client") => Some("client"),
        ("call", "request") => Some("request"),
        ("room", "previous") => Some("previous"),
        _ => None,
    }
}

/// The hook whose function begins at this line, if one does.
pub(crate) fn hook_at(lines: &[Option<u32>; Hook::ALL.len()], line: u32) -> Option<Hook> {
    Hook::ALL.into_iter().find(|hook| lines[*hook as usize] == Some(line))
}
