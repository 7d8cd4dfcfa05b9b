//! The Monoliths as one VM sees them: read-only row tables that are built once and patched field by field when a view
//! has changed. Fresh tables for each call cost several times as much, and getters of userdata ten times.

use std::sync::{Arc, Mutex};

use mlua::{Lua, LuaString, Table};

use super::surface::lock;
use crate::model::policy::{MonolithRow, MonolithState, View};

/// The rows as they stand in the tables, in the same order: what a change is held against, and what helpers that run in
/// Rust look at. Shared with the closures of the VM.
pub(super) type NativeRows = Arc<Mutex<Vec<MonolithRow>>>;

/// Those of `call.monoliths`, in its order.
pub(super) fn serving(rows: &[MonolithRow]) -> impl Iterator<Item = &MonolithRow> {
    rows.iter().filter(|row| row.serves())
}

/// The names of a row's numbers, as scripts use them, in the order of [`numbers`].
const NUMBERS: [&str; 11] =
    ["rooms", "clients", "users", "pending", "inflight", "queue", "rtt_ms", "latency_ms", "errors", "age_s", "weight"];

/// The numbers of a row.
#[inline]
fn numbers(row: &MonolithRow) -> [f64; NUMBERS.len()] {
    let MonolithRow { rooms, clients, users, pending, inflight, queue, .. } = row;
    let [rooms, clients, users, pending, inflight, queue] =
        [rooms, clients, users, pending, inflight, queue].map(|count| f64::from(*count));
    let MonolithRow { rtt_ms, latency_ms, errors, age_s, weight, .. } = *row;
    [rooms, clients, users, pending, inflight, queue, rtt_ms, latency_ms, errors, age_s, weight]
}

/// Reads a number of a row by its name.
pub(super) fn number(field: &[u8]) -> Option<impl Fn(&MonolithRow) -> f64> {
    let at = NUMBERS.iter().position(|name| name.as_bytes() == field)?;
    Some(move |row: &MonolithRow| numbers(row)[at])
}

/// One VM's copy of the view.
pub(super) struct Mirror {
    keys: Vec<LuaString>,
    rows: Vec<Row>,
    membership: Option<u64>,
    /// Where the prelude finds `call.monoliths`, `call.all_monoliths`, and the place of each row in the latter by its
    /// table: an answer then says whom it names in numbers.
    shown: Table,
    native: NativeRows,
}

struct Row {
    table: Table,
    version: u64,
}

impl Mirror {
    /// An empty copy.
    pub(super) fn new(lua: &Lua, shown: Table, native: NativeRows) -> mlua::Result<Self> {
        let keys = NUMBERS.iter().map(|name| lua.create_string(name)).collect::<mlua::Result<_>>()?;
        Ok(Self { keys, rows: Vec::new(), membership: None, shown, native })
    }

    /// Brings the copy up to date. Equal versions are equal content (see [`View`]), so only what changed is touched. It
    /// costs least in a VM without a limit of memory.
    pub(super) fn sync(&mut self, lua: &Lua, view: &View) -> mlua::Result<()> {
        if self.membership != Some(view.membership()) {
            return self.rebuild(lua, view);
        }
        if self.rows.iter().zip(view.versions()).all(|(row, version)| row.version == *version) {
            return Ok(());
        }
        let mut native = lock(&self.native);
        let old = self.rows.iter_mut().zip(native.iter_mut());
        for ((row, was), (now, version)) in old.zip(view.rows().iter().zip(view.versions())) {
            if row.version != *version {
                row.patch(lua, &self.keys, was, now)?;
                row.version = *version;
                was.clone_from(now);
            }
        }
        Ok(())
    }

    /// A fresh `call.monoliths` without some.
    pub(super) fn without(&self, lua: &Lua, excluded: impl Fn(&MonolithRow) -> bool) -> mlua::Result<Table> {
        let native = lock(&self.native);
        let rows = self.rows.iter().zip(native.iter()).filter(|(_, data)| data.serves() && !excluded(data));
        lua.create_sequence_from(rows.map(|(row, _)| &row.table))
    }

    fn rebuild(&mut self, lua: &Lua, view: &View) -> mlua::Result<()> {
        // If building fails half-way, the next call starts over.
        self.membership = None;
        let mut native = lock(&self.native);
        let mut old = std::mem::take(&mut self.rows).into_iter().zip(std::mem::take(&mut *native)).peekable();
        for (now, version) in view.rows().iter().zip(view.versions()) {
            while old.next_if(|(_, was)| was.id < now.id).is_some() {}
            let row = match old.next_if(|(_, was)| was.id == now.id) {
                Some((mut row, was)) => {
                    if row.version != *version {
                        row.patch(lua, &self.keys, &was, now)?;
                        row.version = *version;
                    }
                    row
                }
                None => Row::new(lua, &self.keys, now, *version)?,
            };
            self.rows.push(row);
            native.push(now.clone());
        }
        let serving = self.rows.iter().zip(native.iter()).filter(|(_, data)| data.serves());
        self.shown.raw_set("serving", frozen_list(lua, serving.map(|(row, _)| &row.table))?)?;
        self.shown.raw_set("all", frozen_list(lua, self.rows.iter().map(|row| &row.table))?)?;
        let places = lua.create_table_with_capacity(0, self.rows.len())?;
        for (row, at) in self.rows.iter().zip(1u32..) {
            places.raw_set(&row.table, at)?;
        }
        self.shown.raw_set("places", places)?;
        self.membership = Some(view.membership());
        Ok(())
    }
}

impl Row {
    fn new(lua: &Lua, keys: &[LuaString], data: &MonolithRow, version: u64) -> mlua::Result<Self> {
        let table = lua.create_table_with_capacity(0, NUMBERS.len() + 6)?;
        table.raw_set("id", data.id.as_str())?;
        table.raw_set("region", data.region.as_str())?;
        set_state(&table, data)?;
        set_load(lua, &table, data)?;
        table.raw_set("load_age_s", data.load_age_s)?;
        for (key, number) in keys.iter().zip(numbers(data)) {
            table.raw_set(key, number)?;
        }
        table.set_readonly(true);
        Ok(Self { table, version })
    }

    fn patch(&self, lua: &Lua, keys: &[LuaString], was: &MonolithRow, now: &MonolithRow) -> mlua::Result<()> {
        self.table.set_readonly(false);
        let patched = self.patch_numbers(keys, was, now).and_then(|()| self.patch_rest(lua, was, now));
        self.table.set_readonly(true);
        patched
    }

    /// The table has all numbers already, so that writing them allocates nothing.
    fn patch_numbers(&self, keys: &[LuaString], was: &MonolithRow, now: &MonolithRow) -> mlua::Result<()> {
        let changed = numbers(was).into_iter().zip(numbers(now)).zip(keys);
        let mut changed = changed.filter(|((was, now), _)| was.to_bits() != now.to_bits());
        changed.try_for_each(|((_, now), key)| self.table.raw_set(key, now))
    }

    fn patch_rest(&self, lua: &Lua, was: &MonolithRow, now: &MonolithRow) -> mlua::Result<()> {
        let table = &self.table;
        if now.region != was.region {
            table.raw_set("region", now.region.as_str())?;
        }
        if (now.state, now.draining) != (was.state, was.draining) {
            set_state(table, now)?;
        }
        if now.load != was.load {
            set_load(lua, table, now)?;
        }
        if now.load_age_s != was.load_age_s {
            table.raw_set("load_age_s", now.load_age_s)?;
        }
        Ok(())
    }
}

fn set_state(table: &Table, row: &MonolithRow) -> mlua::Result<()> {
    let state = match row.state {
        MonolithState::Up => "up",
        MonolithState::Suspect => "suspect",
        MonolithState::Draining => "draining",
        MonolithState::Ejected => "ejected",
    };
    table.raw_set("state", state)?;
    table.raw_set("draining", row.draining)
}

fn set_load(lua: &Lua, table: &Table, row: &MonolithRow) -> mlua::Result<()> {
    let load = lua.create_table_from(row.load.iter().map(|(name, value)| (name.as_str(), *value)))?;
    load.set_readonly(true);
    table.raw_set("load", load)
}

fn frozen_list<'a>(lua: &Lua, rows: impl Iterator<Item = &'a Table>) -> mlua::Result<Table> {
    let list = lua.create_sequence_from(rows)?;
    list.set_readonly(true);
    Ok(list)
}
