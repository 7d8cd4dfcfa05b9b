//! `call.rooms`: thousands of rooms in one call. Each is a small table with what most policies rank by; its other fields
//! become values when they are first read, so that ten thousand rooms fit into a VM whatever their metadata.

use std::sync::Arc;

use mlua::{Lua, LuaString, Table, Value};

use super::value;
use crate::model::Region;
use crate::model::policy::CallRoom;

/// The list for one call. The rooms have to be sorted by name.
pub(super) fn list(lua: &Lua, rooms: &Arc<[CallRoom]>) -> mlua::Result<Table> {
    let keys = ["name", "clients", "owner", "region", "age_s"].map(|key| lua.create_string(key));
    let [name, clients, owner, region, age] = keys;
    let (name, clients, owner, region, age) = (name?, clients?, owner?, region?, age?);
    let late = late(lua, rooms.clone())?;
    let list = lua.create_table_with_capacity(rooms.len(), 0)?;
    for (room, at) in rooms.iter().zip(1i64..) {
        let table = lua.create_table_with_capacity(0, 5)?;
        table.raw_set(&name, room.name.as_deref())?;
        table.raw_set(&clients, room.clients)?;
        table.raw_set(&owner, room.owner.as_ref().map(|owner| owner.as_str()))?;
        table.raw_set(&region, room.region.as_ref().map(Region::as_str))?;
        table.raw_set(&age, room.age_s)?;
        table.set_metatable(Some(late.clone()))?;
        list.raw_set(at, table)?;
    }
    Ok(list)
}

/// What all rooms of a call share: where a field is looked for that the table does not have yet.
fn late(lua: &Lua, rooms: Arc<[CallRoom]>) -> mlua::Result<Table> {
    let field = lua.create_function(move |lua, (table, key): (Table, Value)| {
        let Value::String(key) = key else { return Ok(Value::Nil) };
        let Ok(Value::String(name)) = table.raw_get("name") else { return Ok(Value::Nil) };
        let found = rooms.binary_search_by(|room| {
            let known = room.name.as_deref().unwrap_or_default();
            known.as_bytes().cmp(&name.as_bytes())
        });
        let Ok(at) = found else { return Ok(Value::Nil) };
        let value = field(lua, &rooms[at], &key)?;
        if !value.is_nil() {
            table.raw_set(key, value.clone())?;
        }
        Ok(value)
    })?;
    let late = lua.create_table()?;
    late.raw_set("__index", field)?;
    late.raw_set("__metatable", false)?;
    late.set_readonly(true);
    Ok(late)
}

fn field(lua: &Lua, room: &CallRoom, key: &LuaString) -> mlua::Result<Value> {
    Ok(match &*key.as_bytes() {
        b"regions" => {
            let regions = room.regions.iter().map(|(region, count)| (region.as_str(), *count));
            Value::Table(lua.create_table_from(regions)?)
        }
        b"metadata" => match &room.metadata {
            Some(metadata) => value::from_json(lua, metadata)?,
            None => Value::Nil,
        },
        b"previous" => match &room.previous {
            Some(previous) => {
                let entries = [("monolith", previous.monolith.as_str()), ("why", previous.why.as_str())];
                Value::Table(lua.create_table_from(entries)?)
            }
            None => Value::Nil,
        },
        b"attempt" => Value::Integer(room.attempt.into()),
        b"bound" => Value::Boolean(room.bound),
        _ => Value::Nil,
    })
}
