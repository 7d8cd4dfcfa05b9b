//! Hand-written calls: the object that a script would see, with what was left out filled in, becomes a [`Call`] and a
//! [`View`]. Tests (`t.place {...}`) and CALL.json files are read by this.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use crate::model::policy::{Call, CallClient, CallRequest, CallRoom, Cause, Hook, MonolithRow, MonolithState, View};
use crate::model::{MonolithId, Region, RoomKey};
use crate::policy::lua::SharedState;
use crate::policy::lua::inspect::{CLIENT_FIELDS, MONOLITH_FIELDS, REQUEST_FIELDS, ROOM_FIELDS};
use crate::policy::lua::state::Kept;

/// The clock of a call that does not say: 14 November 2023.
pub(super) const NOW_S: f64 = 1_700_000_000.0;
const SEED: u64 = 1;

const CALL: &[&str] = &[
    "hook",
    "now",
    "now_us",
    "seed",
    "region",
    "room",
    "client",
    "cause",
    "request",
    "monoliths",
    "all_monoliths",
    "excluded",
    "rooms",
];

/// Reads a call of this hook (or of the one that it names, or `place`).
///
/// Left out: a region is the balancer's, and that is `local`; `monoliths` may hold some that do not serve, which then
/// are in `call.all_monoliths` only; the room is called `room` and has one member, who is also the client.
pub fn parse(hook: Option<Hook>, input: &Json) -> Result<(Call, View), String> {
    let map = object("the call", input, CALL)?;
    let hook = match hook {
        Some(hook) => hook,
        None => field(map, "hook")?.unwrap_or(Hook::Place),
    };
    let region = Region::from(text(map, "region")?.unwrap_or("local"));
    let mut view = View::default();
    for key in ["all_monoliths", "monoliths"] {
        for (at, row) in list(map, key)?.iter().enumerate() {
            let row = read_row(row, &region).map_err(|e| below(&format!("{key}[{}]", at + 1), &e))?;
            if key == "monoliths" && view.get(&row.id).is_some() && !map.contains_key("all_monoliths") {
                return Err(format!("{key}[{}]: {:?} is there twice", at + 1, row.id.as_str()));
            }
            view.insert(row);
        }
    }
    let cause = match field::<Cause>(map, "cause")? {
        None if hook == Hook::Place => Some(Cause::Join),
        cause => cause,
    };
    let has_room = matches!(hook, Hook::Place | Hook::Admit);
    let has_client = hook == Hook::Admit || cause == Some(Cause::Join);
    let has_request = matches!(hook, Hook::Route | Hook::Admit);
    let part = |key, wanted: bool, build: &dyn Fn(&Json) -> Result<Json, String>| match map.get(key) {
        None | Some(Json::Null) if !wanted => Ok(None),
        given => build(given.unwrap_or(&Json::Null)).map(Some).map_err(|e| below(key, &e)),
    };
    let call = Call {
        hook,
        now_us: now_us(map)?,
        seed: seed(map)?,
        room: part("room", has_room, &|given| room(given, &region))?
            .map(|room| fields::<CallRoom>(room).map_err(|e| below("room", &e)))
            .transpose()?,
        client: part("client", has_client, &|given| client(given, &region))?
            .map(|client| fields::<CallClient>(client).map_err(|e| below("client", &e)))
            .transpose()?,
        request: part("request", has_request, &|given| request(given, &region))?
            .map(|request| fields::<CallRequest>(request).map_err(|e| below("request", &e)))
            .transpose()?,
        cause,
        excluded: list(map, "excluded")?
            .iter()
            .map(|id| id.as_str().map(MonolithId::from).ok_or_else(|| format!("excluded: {id} is no id")))
            .collect::<Result<_, _>>()?,
        rooms: rooms(map, &region)?,
        region,
    };
    Ok((call, view))
}

/// The object of a call again, with everything filled in: [`parse`] reads it back.
pub fn object_of(call: &Call, view: &View) -> Json {
    // A script's numbers are exact up to here.
    let seed = if call.seed <= 1 << 53 { json!(call.seed) } else { json!(call.seed.to_string()) };
    let mut object = json!({
        "hook": call.hook, "now": call.now_us as f64 / 1e6, "seed": seed, "region": call.region,
        "monoliths": view.rows(),
    });
    let mut add = |key: &str, value: Option<Json>| {
        if let (Some(value), Some(map)) = (value, object.as_object_mut()) {
            map.insert(key.into(), value);
        }
    };
    add("room", call.room.as_ref().map(|room| without_region(json!(room))));
    add("client", call.client.as_ref().map(|client| without_region(json!(client))));
    add("request", call.request.as_ref().map(|request| without_region(json!(request))));
    add("cause", call.cause.map(|cause| json!(cause)));
    add("rooms", (call.hook == Hook::Rebalance).then(|| json!(call.rooms)));
    add("excluded", (!call.excluded.is_empty()).then(|| json!(call.excluded)));
    object
}

/// The object of a call as the script saw it: `monoliths` has those that may be chosen, `all_monoliths` all of them.
pub fn seen_object_of(call: &Call, view: &View) -> Json {
    let mut object = object_of(call, view);
    if let Some(map) = object.as_object_mut() {
        let serving = |row: &&MonolithRow| row.serves() && !call.excluded.contains(&row.id);
        let serving: Vec<&MonolithRow> = view.rows().iter().filter(serving).collect();
        map.insert("monoliths".into(), json!(serving));
        map.insert("all_monoliths".into(), json!(view.rows()));
    }
    object
}

/// A part whose region nobody knows says so: what is left out would be the balancer's.
fn without_region(mut part: Json) -> Json {
    if let Some(map) = part.as_object_mut() {
        default(map, "region", json!(""));
    }
    part
}

/// A region that was given as `""` is none.
fn no_region(map: &mut Map<String, Json>) {
    if map.get("region").is_some_and(|region| region == "") {
        map.remove("region");
    }
}

/// What a policy has counted and kept before its first call: `{ counters = { name = n }, values = { key = value } }`.
pub(super) fn state(given: &Json) -> Result<SharedState, String> {
    let state = SharedState::default();
    if given.is_null() {
        return Ok(state);
    }
    let map = object("its state", given, &["counters", "values"])?;
    let part = |key: &str| field::<Map<String, Json>>(map, key).map(Option::unwrap_or_default);
    for (name, value) in part("counters")? {
        let counted = value.as_u64().ok_or_else(|| format!("counters.{name}: {value} is no whole number"))?;
        let counter = state.counter(&name).map_err(|e| format!("counters.{name}: {e}"))?;
        counter.store(counted, std::sync::atomic::Ordering::Relaxed);
    }
    for (key, value) in part("values")? {
        let kept: Kept = typed("a kept value", value).map_err(|e| format!("values.{key}: {e}"))?;
        state.set(&key, Some(kept)).map_err(|e| format!("values.{key}: {e}"))?;
    }
    Ok(state)
}

fn read_row(input: &Json, region: &Region) -> Result<MonolithRow, String> {
    let map = object("a Monolith", input, MONOLITH_FIELDS)?;
    let mut row: MonolithRow = fields(input.clone())?;
    if row.id.as_str().is_empty() {
        return Err("has no id".into());
    }
    if !map.contains_key("region") {
        row.region = region.clone();
    }
    match (map.contains_key("state"), row.draining) {
        (false, true) => row.state = MonolithState::Draining,
        _ => row.draining = row.state == MonolithState::Draining,
    }
    row.users = row.users.max(row.clients);
    Ok(row)
}

fn room(given: &Json, region: &Region) -> Result<Json, String> {
    let mut map = match given {
        Json::Null => Map::from_iter([("name".to_owned(), json!("room"))]),
        Json::String(name) => Map::from_iter([("name".to_owned(), json!(name))]),
        other => object("a room", other, ROOM_FIELDS)?.clone(),
    };
    if let Some(Json::String(name)) = map.get("name") {
        let key = RoomKey::of(name);
        map.insert("name".into(), json!(key));
    }
    default(&mut map, "region", json!(region));
    default(&mut map, "attempt", json!(1));
    let members: BTreeMap<String, u32> = field(&map, "regions")?.unwrap_or_default();
    if members.is_empty() {
        default(&mut map, "clients", json!(1));
        let home = text(&map, "region")?.unwrap_or_default().to_owned();
        // Nobody is in no region, and members whose region nobody knows are in none either.
        if !home.is_empty() && map.get("clients") != Some(&json!(0)) {
            map.insert("regions".into(), json!({ home: map.get("clients") }));
        }
    }
    default(&mut map, "clients", json!(members.values().sum::<u32>()));
    no_region(&mut map);
    Ok(Json::Object(map))
}

/// The rooms of a `rebalance`, sorted by name as a script sees them. Each has a name and an owner.
fn rooms(map: &Map<String, Json>, region: &Region) -> Result<Arc<[CallRoom]>, String> {
    let mut rooms = Vec::new();
    for (at, given) in list(map, "rooms")?.iter().enumerate() {
        let wrong = |reason: String| format!("rooms[{}]: {reason}", at + 1);
        let read: CallRoom = typed("a room", room(given, region).map_err(wrong)?).map_err(wrong)?;
        if !given["name"].is_string() {
            return Err(wrong("has no name".into()));
        }
        if read.owner.is_none() {
            return Err(wrong("has no owner; name the Monolith that has it, as in owner = \"m1\"".into()));
        }
        rooms.push(CallRoom { bound: true, ..read });
    }
    rooms.sort_by(|a, b| a.name.cmp(&b.name));
    match rooms.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(format!("rooms: {:?} is there twice", pair[0].name.as_deref().unwrap_or_default())),
        None => Ok(rooms.into()),
    }
}

fn client(given: &Json, region: &Region) -> Result<Json, String> {
    let mut map = if given.is_null() { Map::new() } else { object("a client", given, CLIENT_FIELDS)?.clone() };
    default(&mut map, "region", json!(region));
    default(&mut map, "attempt", json!(1));
    no_region(&mut map);
    Ok(Json::Object(map))
}

fn request(given: &Json, region: &Region) -> Result<Json, String> {
    let mut map = if given.is_null() { Map::new() } else { object("a request", given, REQUEST_FIELDS)?.clone() };
    default(&mut map, "region", json!(region));
    default(&mut map, "method", json!("GET"));
    default(&mut map, "path", json!("/"));
    no_region(&mut map);
    Ok(Json::Object(map))
}

fn default(map: &mut Map<String, Json>, key: &str, value: Json) {
    map.entry(key).or_insert(value);
}

/// What randomness grows from: a number, or a text where it is too big to be one of a script.
fn seed(map: &Map<String, Json>) -> Result<u64, String> {
    match map.get("seed") {
        Some(Json::String(text)) => text.parse().map_err(|_| format!("seed: {text:?} is no whole number")),
        _ => Ok(field(map, "seed")?.unwrap_or(SEED)),
    }
}

fn now_us(map: &Map<String, Json>) -> Result<u64, String> {
    if let Some(now_us) = field(map, "now_us")? {
        return Ok(now_us);
    }
    let now: f64 = field(map, "now")?.unwrap_or(NOW_S);
    if (0.0..=1e12).contains(&now) {
        Ok((now * 1e6).round() as u64)
    } else {
        Err(format!("now: {now} is no time in seconds"))
    }
}

fn object<'a>(what: &str, input: &'a Json, known: &[&str]) -> Result<&'a Map<String, Json>, String> {
    let map = input.as_object().ok_or_else(|| format!("{what} is {input}, not a table"))?;
    for key in map.keys() {
        if !known.contains(&key.as_str()) {
            let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(name, key));
            return Err(format!("{what} has no {key:?}; did you mean {:?}?", nearest.unwrap_or(&"")));
        }
    }
    Ok(map)
}

fn list<'a>(map: &'a Map<String, Json>, key: &str) -> Result<&'a [Json], String> {
    match map.get(key) {
        None | Some(Json::Null) => Ok(&[]),
        // An empty Lua table does not say whether it is a list.
        Some(Json::Object(empty)) if empty.is_empty() => Ok(&[]),
        Some(Json::Array(items)) => Ok(items),
        Some(other) => Err(format!("{key}: {other} is no list")),
    }
}

fn text<'a>(map: &'a Map<String, Json>, key: &str) -> Result<Option<&'a str>, String> {
    match map.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{key}: {other} is no text")),
    }
}

fn field<T: DeserializeOwned>(map: &Map<String, Json>, key: &str) -> Result<Option<T>, String> {
    match map.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => typed(key, value.clone()).map(Some),
    }
}

/// An object in which every field may be missing; the error begins with a dot and the field that is wrong.
fn fields<T: DeserializeOwned>(object: Json) -> Result<T, String> {
    serde_json::from_value(object.clone()).map_err(|whole: serde_json::Error| {
        let alone = |(key, value): (&String, &Json)| {
            let one = Json::Object(Map::from_iter([(key.clone(), value.clone())]));
            Some(format!(".{key}: {}", serde_json::from_value::<T>(one).err()?))
        };
        object.as_object().and_then(|map| map.iter().find_map(alone)).unwrap_or_else(|| whole.to_string())
    })
}

/// An error with the way to what it is about.
fn below(path: &str, error: &str) -> String {
    if error.starts_with('.') { format!("{path}{error}") } else { format!("{path}: {error}") }
}

fn typed<T: DeserializeOwned>(what: &str, value: Json) -> Result<T, String> {
    serde_json::from_value(value).map_err(|e| format!("{what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        let input = json!({"room": "Movie", "region": "cdg", "monoliths": [{"id": "e1", "region": "ewr"}, {"id": "c1", "draining": true}]});
        let (call, view) = parse(Some(Hook::Place), &input).unwrap();
        let room = call.room.as_ref().unwrap();
        assert_eq!((room.name.as_deref(), room.region.as_ref().map(Region::as_str)), (Some("movie"), Some("cdg")));
        assert_eq!((room.clients, room.regions[&Region::from("cdg")], room.attempt), (1, 1, 1));
        assert_eq!((call.cause, call.client.is_some(), call.request.is_some()), (Some(Cause::Join), true, false));
        let leaving = view.get(&"c1".into()).unwrap();
        assert_eq!((leaving.region.as_str(), leaving.state), ("cdg", MonolithState::Draining));
        assert_eq!(parse(None, &object_of(&call, &view)).unwrap().0, call);
    }

    #[test]
    fn what_nobody_knew_is_written_and_read_again() {
        let nobody = json!({"hook": "place", "now_us": 1_700_000_000_123_457u64, "seed": u64::MAX, "region": "ewr",
            "cause": "create", "room": {"clients": 0, "attempt": 1}, "excluded": ["a"]});
        let client = json!({"hook": "admit", "now_us": 1, "seed": 3, "region": "ewr", "client": {"attempt": 1},
            "room": {"name": "x", "clients": 2, "attempt": 1}, "request": {"method": "GET", "path": "/"}});
        for call in [nobody, client] {
            let call: Call = serde_json::from_value(call).unwrap();
            let view = View::of(["a", "b"].map(|id| MonolithRow { id: id.into(), ..MonolithRow::default() }));
            for object in [object_of(&call, &view), seen_object_of(&call, &view)] {
                let (again, rows) = parse(None, &object).unwrap();
                assert_eq!((&again, rows.rows()), (&call, view.rows()), "{object}");
            }
        }
        let error = parse(None, &json!({"seed": "x"})).map(|_| ()).unwrap_err();
        assert_eq!(error, "seed: \"x\" is no whole number");
    }

    #[test]
    fn mistakes_are_named_with_the_nearest_key() {
        for (input, reason) in [
            (json!({"monolith": []}), "did you mean \"monoliths\"?"),
            (
                json!({"monoliths": [{"id": "a", "room": 3}]}),
                "monoliths[1]: a Monolith has no \"room\"; did you mean \"rooms\"?",
            ),
            (json!({"monoliths": [{"rooms": 3}]}), "monoliths[1]: has no id"),
            (json!({"monoliths": [{"id": "a"}, {"id": "a"}]}), "monoliths[2]: \"a\" is there twice"),
            (json!({"monoliths": 7}), "monoliths: 7 is no list"),
            (
                json!({"monoliths": [{"id": "a"}, {"id": "b", "rooms": "x"}]}),
                "monoliths[2].rooms: invalid type: string \"x\", expected u32",
            ),
            (json!({"room": {"clients": -1}}), "room.clients: invalid value"),
            (json!({"room": {"nam": "x"}}), "room: a room has no \"nam\""),
            (json!({"rooms": [{"name": "a"}]}), "rooms[1]: has no owner"),
            (json!({"rooms": [{"owner": "a"}]}), "rooms[1]: has no name"),
            (json!({"rooms": ["a"]}), "rooms[1]: has no name"),
            (
                json!({"rooms": [{"name": "a", "owner": "m"}, {"name": "A", "owner": "m"}]}),
                "rooms: \"a\" is there twice",
            ),
            (json!({"cause": "whim"}), "cause: unknown variant"),
            (json!(7), "the call is 7, not a table"),
        ] {
            let error = parse(Some(Hook::Place), &input).map(|_| ()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
