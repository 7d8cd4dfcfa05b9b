//! The Monoliths as one VM sees them: read-only row tables that are built once and patched field by field when a view
//! has changed. Fresh tables for each call cost several times as much, and getters of userdata ten times.

use std::sync::{Arc, Mutex, PoisonError};

use mlua::{Lua, LuaString, Table};

use crate::model::policy::{MonolithRow, MonolithState, View};

/// The rows again, for helpers that run in Rust. Shared with the closures of the VM.
pub(super) type NativeRows = Arc<Mutex<Vec<MonolithRow>>>;

type Getter = fn(&MonolithRow) -> f64;

/// The numbers of a row, by the names that scripts use.
const NUMBERS: [(&str, Getter); 11] = [
    ("rooms", |row| f64::from(row.rooms)),
    ("clients", |row| f64::from(row.clients)),
    ("users", |row| f64::from(row.users)),
    ("pending", |row| f64::from(row.pending)),
    ("inflight", |row| f64::from(row.inflight)),
    ("queue", |row| f64::from(row.queue)),
    ("rtt_ms", |row| row.rtt_ms),
    ("latency_ms", |row| row.latency_ms),
    ("errors", |row| row.errors),
    ("age_s", |row| row.age_s),
    ("weight", |row| row.weight),
];

/// Reads a number of a row by its name.
pub(super) fn number(field: &[u8]) -> Option<Getter> {
    NUMBERS.iter().find(|(name, _)| name.as_bytes() == field).map(|(_, get)| *get)
}

/// One VM's copy of the view.
pub(super) struct Mirror {
    keys: Vec<LuaString>,
    rows: Vec<Row>,
    membership: Option<u64>,
    serving: Table,
    all: Table,
    native: NativeRows,
}

struct Row {
    table: Table,
    data: MonolithRow,
    version: u64,
}

impl Mirror {
    /// An empty copy.
    pub(super) fn new(lua: &Lua, native: NativeRows) -> mlua::Result<Self> {
        let keys = NUMBERS.iter().map(|(name, _)| lua.create_string(name)).collect::<mlua::Result<_>>()?;
        let (serving, all) = (frozen_list(lua, std::iter::empty())?, frozen_list(lua, std::iter::empty())?);
        Ok(Self { keys, rows: Vec::new(), membership: None, serving, all, native })
    }

    /// Brings the copy up to date. Equal versions are equal content (see [`View`]), so only what changed is touched.
    pub(super) fn sync(&mut self, lua: &Lua, view: &View) -> mlua::Result<()> {
        if self.membership != Some(view.membership()) {
            return self.rebuild(lua, view);
        }
        if self.rows.iter().zip(view.versions()).all(|(row, version)| row.version == *version) {
            return Ok(());
        }
        let mut native = self.native.lock().unwrap_or_else(PoisonError::into_inner);
        let mut served = 0;
        for (at, (row, version)) in self.rows.iter_mut().zip(view.versions()).enumerate() {
            let now = &view.rows()[at];
            if row.version != *version {
                row.patch(lua, &self.keys, now)?;
                row.version = *version;
                if let Some(native) = native.get_mut(served).filter(|_| now.serves()) {
                    native.clone_from(now);
                }
            }
            served += usize::from(now.serves());
        }
        Ok(())
    }

    /// `call.monoliths`, and `call.all_monoliths`.
    pub(super) fn lists(&self) -> (&Table, &Table) {
        (&self.serving, &self.all)
    }

    /// A fresh `call.monoliths` without some.
    pub(super) fn without(&self, lua: &Lua, excluded: impl Fn(&MonolithRow) -> bool) -> mlua::Result<Table> {
        let rows = self.rows.iter().filter(|row| row.data.serves() && !excluded(&row.data));
        lua.create_sequence_from(rows.map(|row| &row.table))
    }

    fn rebuild(&mut self, lua: &Lua, view: &View) -> mlua::Result<()> {
        // If building fails half-way, the next call starts over.
        self.membership = None;
        let mut old = std::mem::take(&mut self.rows).into_iter().peekable();
        for (data, version) in view.rows().iter().zip(view.versions()) {
            while old.next_if(|row| row.data.id < data.id).is_some() {}
            let row = match old.next_if(|row| row.data.id == data.id) {
                Some(mut row) => {
                    if row.version != *version {
                        row.patch(lua, &self.keys, data)?;
                        row.version = *version;
                    }
                    row
                }
                None => Row::new(lua, &self.keys, data, *version)?,
            };
            self.rows.push(row);
        }
        let serving = || self.rows.iter().filter(|row| row.data.serves());
        self.serving = frozen_list(lua, serving().map(|row| &row.table))?;
        self.all = frozen_list(lua, self.rows.iter().map(|row| &row.table))?;
        *self.native.lock().unwrap_or_else(PoisonError::into_inner) = serving().map(|row| row.data.clone()).collect();
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
        for ((_, get), key) in NUMBERS.iter().zip(keys) {
            table.raw_set(key, get(data))?;
        }
        table.set_readonly(true);
        Ok(Self { table, data: data.clone(), version })
    }

    fn patch(&mut self, lua: &Lua, keys: &[LuaString], now: &MonolithRow) -> mlua::Result<()> {
        self.table.set_readonly(false);
        let patched = self.patch_open(lua, keys, now);
        self.table.set_readonly(true);
        patched?;
        self.data.clone_from(now);
        Ok(())
    }

    fn patch_open(&self, lua: &Lua, keys: &[LuaString], now: &MonolithRow) -> mlua::Result<()> {
        let (table, was) = (&self.table, &self.data);
        for ((_, get), key) in NUMBERS.iter().zip(keys) {
            let value = get(now);
            if value.to_bits() != get(was).to_bits() {
                table.raw_set(key, value)?;
            }
        }
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
