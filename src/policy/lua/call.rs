//! One call's data on its way into the VM, and what the hook says on its way out.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;
use mlua::{Function, Lua, LuaString, Table, Value};

use super::mirror::Mirror;
use super::{rooms, value};
use crate::model::Region;
use crate::model::policy::{Call, CallClient, CallRoom, Cause, Hook, MonolithRow};

/// About how many texts a VM keeps between calls, and the longest of them in bytes. Beyond them all are forgotten.
const TEXTS: usize = 256;
const LONGEST_TEXT: usize = 64;

/// What a hook returned.
pub(super) enum Said {
    /// A Monolith of the view: its place, from 1.
    Row(u32),
    /// A list of one or two of them.
    Rows(u32, Option<u32>),
    /// Anything.
    Value(Value),
}

/// Above every place of a view, as in `prelude.luau`.
const PLACES: i64 = 0x400_0000;

/// A VM without its limit of memory, while data is put into it that has a limit of its own. Under the limit each string
/// and each table would take a protected call, which costs several times as much. They count all the same: the first
/// allocation of the hook's call, its table, fails if there is no memory left.
pub(super) struct Unlimited<'a> {
    lua: &'a Lua,
    limit: usize,
}

impl<'a> Unlimited<'a> {
    pub(super) fn new(lua: &'a Lua) -> mlua::Result<Self> {
        Ok(Self { lua, limit: lua.set_memory_limit(0)? })
    }
}

impl Drop for Unlimited<'_> {
    fn drop(&mut self) {
        // It fails only where there are no limits at all.
        let _ = self.lua.set_memory_limit(self.limit);
    }
}

/// How calls are made: by a function of `prelude.luau`, which makes the `call` object of plain arguments.
pub(super) struct Caller {
    invoke: Function,
    texts: Texts,
}

impl Caller {
    pub(super) fn new(invoke: Function) -> Self {
        Self { invoke, texts: Texts::default() }
    }

    /// Calls a hook. The limit of memory holds again from there on.
    pub(super) fn call(
        &mut self,
        unlimited: Unlimited<'_>,
        hook: &Function,
        mirror: &Mirror,
        call: &Call,
        watched: bool,
    ) -> mlua::Result<Said> {
        let lua = unlimited.lua;
        let excluded = |row: &MonolithRow| call.excluded.contains(&row.id);
        let filtered = (!call.excluded.is_empty()).then(|| mirror.without(lua, excluded)).transpose()?;
        let now = call.now_us as f64 / 1e6;
        let no_room = CallRoom::default();
        let room = call.room.as_ref();
        let RoomParts { regions, only, metadata, previous } = RoomParts::of(lua, room)?;
        let has_room = room.is_some();
        let room = room.unwrap_or(&no_room);
        let no_client = CallClient::default();
        let client = call.client.as_ref().unwrap_or(&no_client);
        self.texts.begin();
        let mut text = |text: Option<&str>| text.map(|text| self.texts.place(lua, text)).transpose();
        let region = text(Some(call.region.as_str()))?;
        let cause = text(call.cause.map(cause_name))?;
        let room_region = text(room.region.as_ref().map(Region::as_str))?;
        let only_region = text(only.map(|(region, _)| region))?;
        let owner = text(room.owner.as_ref().map(|owner| owner.as_str()))?;
        let client_region = text(client.region.as_ref().map(Region::as_str))?;
        let request = call.request.as_ref();
        let method = text(request.map(|request| &*request.method))?;
        let path = text(request.map(|request| &*request.path))?;
        let host = text(request.and_then(|request| request.host.as_deref()))?;
        let request_region = text(request.and_then(|request| request.region.as_ref()).map(Region::as_str))?;
        let (headers, query) = match request {
            Some(request) => (self.texts.table(lua, &request.headers)?, self.texts.table(lua, &request.query)?),
            None => (None, None),
        };
        // One room is asked about again long after the next, if at all.
        let name = room.name.as_deref().map(|name| lua.create_string(name)).transpose()?;
        let text = |place: Option<usize>| place.and_then(|place| self.texts.strings.get(place));
        // Only these hooks answer with Monoliths.
        let names_monoliths = matches!(call.hook, Hook::Place | Hook::Route);
        let head = (hook, filtered, now, text(region), text(cause));
        let room = (
            has_room,
            name.as_ref(),
            text(room_region),
            room.clients,
            regions,
            text(only_region),
            only.map(|(_, count)| count),
            room.attempt,
            metadata,
            previous,
            room.bound,
            text(owner),
        );
        let rooms = (call.hook == Hook::Rebalance).then(|| rooms::list(lua, &call.rooms)).transpose()?;
        let has_client = call.client.is_some();
        let client =
            (has_client, text(client_region), client.reconnect, client.attempt, rooms, watched, names_monoliths);
        let request = (request.is_some(), text(method), text(path), text(host), text(request_region), headers, query);
        let ((a, b, c, d, e), (h, i, j, k, l, m, n, o, p, q, r, s)) = (head, room);
        let (t, u, v, w, x, y, z) = client;
        let more = (n, o, p, q, r, s, (t, u, v, w, x, y, z, request));
        let arguments = (a, b, c, d, e, (h, i, j, k, l, m, more));
        drop(unlimited);
        let (value, places): (Value, Option<f64>) = self.invoke.call(arguments)?;
        Ok(match places {
            None => Said::Value(value),
            Some(places) if places > 0.0 => Said::Row(places as u32),
            Some(places) => {
                let places = -places as i64;
                let (first, second) = ((places % PLACES) as u32, (places / PLACES) as u32);
                Said::Rows(first, (second > 0).then_some(second))
            }
        })
    }
}

/// Texts as strings of the VM. Regions, ids and causes come up in call after call.
#[derive(Default)]
struct Texts {
    places: HashMap<Box<str>, usize, RandomState>,
    strings: Vec<LuaString>,
    /// Whether a text is too long to be kept beyond its call.
    long: bool,
}

impl Texts {
    /// A new call begins: its texts stay as long as it does.
    fn begin(&mut self) {
        if self.long || self.strings.len() >= TEXTS {
            *self = Self::default();
        }
    }

    fn place(&mut self, lua: &Lua, text: &str) -> mlua::Result<usize> {
        if let Some(place) = self.places.get(text) {
            return Ok(*place);
        }
        let place = self.strings.len();
        self.strings.push(lua.create_string(text)?);
        self.places.insert(text.into(), place);
        self.long |= text.len() > LONGEST_TEXT;
        Ok(place)
    }

    /// A table of texts; none where it would be empty, which is cheaper to make in the VM.
    fn table(&mut self, lua: &Lua, texts: &BTreeMap<String, String>) -> mlua::Result<Option<Table>> {
        if texts.is_empty() {
            return Ok(None);
        }
        let table = lua.create_table_with_capacity(0, texts.len())?;
        for (name, text) in texts {
            let (name, text) = (self.place(lua, name)?, self.place(lua, text)?);
            table.raw_set(self.strings.get(name), self.strings.get(text))?;
        }
        Ok(Some(table))
    }
}

/// The parts of a room that are tables, where there is something in them.
#[derive(Default)]
struct RoomParts<'a> {
    regions: Option<Table>,
    /// The only region, as most rooms that are placed have: cheaper than a table from here.
    only: Option<(&'a str, u32)>,
    metadata: Option<Value>,
    previous: Option<Table>,
}

impl<'a> RoomParts<'a> {
    fn of(lua: &Lua, room: Option<&'a CallRoom>) -> mlua::Result<Self> {
        let Some(room) = room else { return Ok(Self::default()) };
        let mut parts = Self::default();
        if room.regions.len() > 1 {
            let regions = room.regions.iter().map(|(region, count)| (region.as_str(), *count));
            parts.regions = Some(lua.create_table_from(regions)?);
        } else {
            parts.only = room.regions.first_key_value().map(|(region, count)| (region.as_str(), *count));
        }
        if let Some(metadata) = &room.metadata {
            parts.metadata = Some(value::from_json(lua, metadata)?);
        }
        if let Some(previous) = &room.previous {
            let table = lua.create_table()?;
            table.raw_set("monolith", previous.monolith.as_str())?;
            table.raw_set("why", previous.why.as_str())?;
            parts.previous = Some(table);
        }
        Ok(parts)
    }
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Join => "join",
        Cause::Create => "create",
        Cause::Http => "http",
        Cause::Move => "move",
        Cause::Lost => "lost",
    }
}
