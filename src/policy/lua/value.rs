//! Plain data to Luau values and back.

use mlua::{Lua, Table, Value};
use serde_json::Value as Json;

/// How deep a table may be nested on its way out of a VM.
const MAX_DEPTH: usize = 16;
/// How many values one table may hold, with all tables in it, on its way out.
const MAX_VALUES: usize = 100_000;

/// A Luau value of JSON data; tables are read-only. Null is nil, so it leaves no key.
pub(crate) fn from_json(lua: &Lua, json: &Json) -> mlua::Result<Value> {
    convert(lua, json, true)
}

/// As [`from_json`], but with tables that a script may change.
pub(crate) fn from_json_open(lua: &Lua, json: &Json) -> mlua::Result<Value> {
    convert(lua, json, false)
}

/// A read-only table of a JSON object.
pub(crate) fn from_map(lua: &Lua, map: &serde_json::Map<String, Json>) -> mlua::Result<Table> {
    convert_map(lua, map, true)
}

fn convert(lua: &Lua, json: &Json, frozen: bool) -> mlua::Result<Value> {
    Ok(match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Boolean(*value),
        Json::Number(value) => Value::Number(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Value::String(lua.create_string(text)?),
        Json::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (item, at) in items.iter().zip(1i64..) {
                table.raw_set(at, convert(lua, item, frozen)?)?;
            }
            table.set_readonly(frozen);
            Value::Table(table)
        }
        Json::Object(map) => Value::Table(convert_map(lua, map, frozen)?),
    })
}

fn convert_map(lua: &Lua, map: &serde_json::Map<String, Json>, frozen: bool) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, map.len())?;
    for (key, value) in map {
        table.raw_set(key.as_str(), convert(lua, value, frozen)?)?;
    }
    table.set_readonly(frozen);
    Ok(table)
}

/// JSON data of a Luau value; the error says what has no counterpart.
pub(crate) fn to_json(value: &Value) -> Result<Json, String> {
    let mut left = MAX_VALUES;
    to_json_within(value, MAX_DEPTH, &mut left)
}

fn to_json_within(value: &Value, depth: usize, left: &mut usize) -> Result<Json, String> {
    *left = left.checked_sub(1).ok_or("the table is too big")?;
    match value {
        Value::Nil => Ok(Json::Null),
        Value::Boolean(value) => Ok(Json::Bool(*value)),
        Value::Integer(value) => Ok(Json::from(*value)),
        Value::Number(value) => number(*value),
        Value::String(text) => Ok(Json::String(text.to_string_lossy())),
        Value::Table(_) if depth == 0 => Err("the table is nested too deeply, or holds itself".into()),
        Value::Table(table) => table_to_json(table, depth - 1, left),
        other => Err(format!("a {} is no data", other.type_name())),
    }
}

fn number(value: f64) -> Result<Json, String> {
    // Whole numbers stay whole, so that they fit fields that count.
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Ok(Json::from(value as i64));
    }
    serde_json::Number::from_f64(value).map(Json::Number).ok_or_else(|| format!("{value} is no finite number"))
}

fn table_to_json(table: &Table, depth: usize, left: &mut usize) -> Result<Json, String> {
    let mut map = serde_json::Map::new();
    let mut list = Vec::new();
    let length = table.raw_len();
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|e| e.to_string())?;
        match key {
            Value::String(key) => {
                let key = key.to_string_lossy();
                let value = to_json_within(&value, depth, left).map_err(|e| format!("{key}: {e}"))?;
                map.insert(key, value);
            }
            Value::Integer(_) | Value::Number(_) if length > 0 => {
                list.push(to_json_within(&value, depth, left).map_err(|e| format!("item {}: {e}", list.len() + 1))?);
            }
            other => return Err(format!("a key is a {}; keys are texts", other.type_name())),
        }
    }
    match (map.is_empty(), list.is_empty()) {
        (_, true) => Ok(Json::Object(map)),
        (true, false) => Ok(Json::Array(list)),
        (false, false) => Err("the table has both a list and named keys".into()),
    }
}
