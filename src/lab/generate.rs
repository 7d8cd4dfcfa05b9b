//! Calls that nobody has written: everything in them is drawn from a seed, so the same seed makes the same call.

use serde_json::{Map, Value as Json, json};

use super::input;
use crate::model::policy::Hook;
use crate::policy::lua::ranking::next_random;

/// The most Monoliths of a call that is drawn at random.
pub(super) const MOST_MONOLITHS: usize = 12;
const REGIONS: [&str; 6] = ["ewr", "cdg", "syd", "lhr", "nrt", "gru"];
const NAMES: [&str; 5] = ["movie", "chess", "quiz", "a-very-long-name-of-a-room", "9f3c"];
const PATHS: [&str; 4] = ["/", "/api/data/preview", "/api/user", "/static/app.js"];

/// Numbers from a seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// What the numbers still to come grow from.
    pub(super) fn state(&self) -> u64 {
        self.0
    }

    pub(super) fn next(&mut self) -> u64 {
        let (state, drawn) = next_random(self.0);
        self.0 = state;
        drawn
    }

    /// A whole number in `low..=high`.
    fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// True in so many of a hundred cases.
    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// A number with two decimals below `high`.
    fn decimal(&mut self, high: u64) -> f64 {
        self.within(0, high * 100) as f64 / 100.0
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        let at = self.within(0, of.len() as u64 - 1) as usize;
        of[at]
    }
}

/// A call of this hook with up to `most` Monoliths, as a test would write it. The first Monolith always serves.
pub(super) fn call(hook: Hook, seed: u64, most: usize) -> Json {
    let mut random = Random::new(seed);
    let count = random.within(1, most.max(1) as u64) as usize;
    with_fleet(hook, &mut random, count, true)
}

/// A call with exactly so many Monoliths, all of which serve.
pub(super) fn sized(hook: Hook, seed: u64, count: usize) -> Json {
    with_fleet(hook, &mut Random::new(seed), count, false)
}

fn with_fleet(hook: Hook, random: &mut Random, count: usize, leaving: bool) -> Json {
    let known = random.within(1, 4) as usize;
    let regions = &REGIONS[..known];
    let monoliths: Vec<Json> = (1..=count).map(|at| monolith(random, at, regions, leaving && at > 1)).collect();
    let mut call = Map::new();
    let mut put = |key: &str, value: Json| drop(call.insert(key.into(), value));
    put("region", json!(random.one(regions)));
    put("seed", json!(random.within(0, 1 << 31)));
    put("now", json!(1_700_000_000 + random.within(0, 100_000_000)));
    let others = || (2..=count).map(|at| format!("m{at}"));
    let attempt = if random.chance(20) { random.within(2, 3) } else { 1 };
    if matches!(hook, Hook::Place | Hook::Admit) {
        put("room", room(random, hook, regions, attempt, count));
        put("client", client(random, regions));
    }
    if hook == Hook::Place {
        let cause = if random.chance(60) { "join" } else { random.one(&["create", "http", "move", "lost"]) };
        put("cause", json!(cause));
        let tried: Vec<String> = others().filter(|_| attempt > 1 && random.chance(30)).collect();
        if !tried.is_empty() {
            put("excluded", json!(tried));
        }
    }
    if matches!(hook, Hook::Route | Hook::Admit) {
        put("request", request(random, regions));
    }
    if hook == Hook::Rebalance && input::parse(Some(hook), &json!({"rooms": []})).is_ok() {
        let rooms: Vec<Json> = (1..=random.within(0, 8)).map(|at| owned_room(random, at, regions, count)).collect();
        put("rooms", json!(rooms));
    }
    put("monoliths", json!(monoliths));
    Json::Object(call)
}

fn monolith(random: &mut Random, at: usize, regions: &[&str], may_leave: bool) -> Json {
    let clients = random.within(0, 2000);
    let mut row = json!({
        "id": format!("m{at}"), "region": random.one(regions),
        "rooms": random.within(0, 200), "clients": clients, "users": clients + random.within(0, 50),
        "inflight": random.within(0, 40), "age_s": random.decimal(5000),
        "rtt_ms": random.decimal(150), "latency_ms": random.decimal(400),
    });
    let mut put = |key: &str, value: Json| row[key] = value;
    if random.chance(30) {
        put("pending", json!(random.within(1, 30)));
    }
    if random.chance(10) {
        put("queue", json!(random.within(1, 1 << 20)));
    }
    if random.chance(20) {
        put("errors", json!(random.decimal(1)));
    }
    if random.chance(15) {
        put("weight", json!([0.5, 2.0, 4.0][random.within(0, 2) as usize]));
    }
    if random.chance(20) {
        put("load", json!({"lag": random.decimal(1)}));
        put("load_age_s", json!(random.decimal(30)));
    }
    if may_leave && random.chance(12) {
        put("draining", json!(true));
    } else if may_leave && random.chance(6) {
        put("state", json!(["suspect", "ejected"][random.within(0, 1) as usize]));
    }
    row
}

fn room(random: &mut Random, hook: Hook, regions: &[&str], attempt: u64, count: usize) -> Json {
    let mut room = json!({"region": random.one(regions)});
    let mut put = |key: &str, value: Json| room[key] = value;
    let nameless = hook == Hook::Place && random.chance(10);
    put("name", if nameless { Json::Null } else { json!(random.one(&NAMES)) });
    let mut members = Map::new();
    for region in regions {
        if random.chance(50) {
            members.insert((*region).to_owned(), json!(random.within(1, 40)));
        }
    }
    if !members.is_empty() {
        put("regions", json!(members));
    }
    if random.chance(20) {
        put("metadata", json!({"title": "a title", "temporary": random.chance(50)}));
    }
    put("attempt", json!(attempt));
    if attempt > 1 || random.chance(10) {
        let why = random.one(&["timeout", "link_down", "unloaded", "refused", "moved", "duplicate"]);
        put("previous", json!({"monolith": format!("m{}", random.within(1, count as u64 + 1)), "why": why}));
    }
    if hook == Hook::Admit && random.chance(40) {
        put("bound", json!(true));
        put("owner", json!(format!("m{}", random.within(1, count as u64))));
    }
    room
}

fn owned_room(random: &mut Random, at: u64, regions: &[&str], count: usize) -> Json {
    let clients = random.within(1, 40);
    let region = random.one(regions);
    json!({
        "name": format!("room-{at}"), "owner": format!("m{}", random.within(1, count as u64)), "clients": clients,
        "region": region, "regions": {region: clients}, "age_s": random.decimal(9000),
    })
}

fn client(random: &mut Random, regions: &[&str]) -> Json {
    json!({"region": random.one(regions), "reconnect": random.chance(20), "attempt": random.within(1, 3)})
}

fn request(random: &mut Random, regions: &[&str]) -> Json {
    json!({
        "method": random.one(&["GET", "POST"]), "path": random.one(&PATHS), "region": random.one(regions),
        "headers": if random.chance(50) { json!({"user-agent": "a browser"}) } else { json!({}) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drawn_call_is_a_call_and_the_seed_is_all_there_is() {
        for hook in Hook::ALL {
            for seed in 0..200 {
                let given = call(hook, seed, MOST_MONOLITHS);
                let (call_of, view) = input::parse(Some(hook), &given).unwrap();
                assert_eq!(given, call(hook, seed, MOST_MONOLITHS));
                assert!(
                    (1..=MOST_MONOLITHS).contains(&view.rows().len()) && view.rows().iter().any(|row| row.serves())
                );
                assert!(!call_of.excluded.contains(&"m1".into()));
            }
        }
        let (_, view) = input::parse(Some(Hook::Place), &sized(Hook::Place, 7, 500)).unwrap();
        assert_eq!(view.rows().iter().filter(|row| row.serves()).count(), 500);
    }
}
