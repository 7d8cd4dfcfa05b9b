//! One call's data on its way into the VM.

use mlua::{Function, Lua, Table, Value};

use super::mirror::Mirror;
use super::{rooms, value};
use crate::model::Region;
use crate::model::policy::{Call, CallClient, CallRequest, CallRoom, Cause, Hook};

/// Calls a hook with the `call` object, which `prelude.luau` makes of plain arguments.
pub(super) fn invoke(
    lua: &Lua,
    invoke: &Function,
    hook: &Function,
    mirror: &Mirror,
    call: &Call,
    watched: bool,
) -> mlua::Result<Value> {
    let (serving, all) = mirror.lists();
    let filtered;
    let (serving, mirrored) = if call.excluded.is_empty() {
        (serving, true)
    } else {
        filtered = mirror.without(lua, |row| call.excluded.contains(&row.id))?;
        (&filtered, false)
    };
    let request = call.request.as_ref().map(|request| request_table(lua, request)).transpose()?;
    let now = call.now_us as f64 / 1e6;
    let cause = call.cause.map(cause_name);
    let no_room = CallRoom::default();
    let room = call.room.as_ref();
    let RoomParts { regions, only, metadata, previous } = RoomParts::of(lua, room)?;
    let has_room = room.is_some();
    let room = room.unwrap_or(&no_room);
    let no_client = CallClient::default();
    let client = call.client.as_ref().unwrap_or(&no_client);
    let head = (hook, serving, all, mirrored, now, call.region.as_str(), cause, request);
    let room = (
        has_room,
        room.name.as_deref(),
        room.region.as_ref().map(Region::as_str),
        room.clients,
        regions,
        only.map(|(region, _)| region),
        only.map(|(_, count)| count),
        room.attempt,
        metadata,
        previous,
        room.bound,
        room.owner.as_ref().map(|owner| owner.as_str()),
    );
    let rooms = (call.hook == Hook::Rebalance).then(|| rooms::list(lua, &call.rooms)).transpose()?;
    let region = client.region.as_ref().map(Region::as_str);
    let client = (call.client.is_some(), region, client.reconnect, client.attempt, rooms, watched);
    let ((a, b, c, d, e, f, g, h), (i, j, k, l, m, n, o, p, q, r, s, t)) = (head, room);
    invoke.call((a, b, c, d, e, f, g, h, (i, j, k, l, m, n, (o, p, q, r, s, t, client))))
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

fn request_table(lua: &Lua, request: &CallRequest) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, 6)?;
    table.raw_set("method", &*request.method)?;
    table.raw_set("path", &*request.path)?;
    table.raw_set("host", request.host.as_deref())?;
    table.raw_set("region", request.region.as_ref().map(Region::as_str))?;
    let text = |(name, value): (&'_ String, &'_ String)| (name.clone(), value.clone());
    table.raw_set("headers", lua.create_table_from(request.headers.iter().map(text))?)?;
    table.raw_set("query", lua.create_table_from(request.query.iter().map(text))?)?;
    Ok(table)
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
