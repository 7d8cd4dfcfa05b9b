//! `[policy]`, and `[selection_strategy]`, which names a policy in another way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Number, Value as Json};

use super::read;
use super::require;
use super::resolve::Input;
use super::section::Section;
use super::tree::{Node, Value};
use super::types::{Gate, PolicyConfig, PolicySource, Rebalance};
use super::units::write_size;

/// The policies that every binary holds.
pub const SHIPPED_POLICIES: [&str; 10] = [
    "default",
    "least-loaded",
    "region-affinity",
    "hash-ring",
    "random",
    "spill",
    "slow-start",
    "bounded-hash",
    "capacity",
    "follow-the-crowd",
];

/// The least memory of one VM, in bytes.
const MIN_MEMORY: usize = 1 << 20;

/// The folder beside a policy's file in which its last good version is kept, unless `policy.keep` names another one.
const KEEP: &str = ".usher";

/// Headers that a policy never sees: addresses, where the user came from, and what WebSocket clients put tokens into.
const HIDDEN_HEADERS: [&str; 10] = [
    "cf-connecting-ip",
    "cookie",
    "fly-client-ip",
    "forwarded",
    "referer",
    "sec-websocket-protocol",
    "set-cookie",
    "true-client-ip",
    "x-client-ip",
    "x-real-ip",
];
/// What such headers begin with.
const HIDDEN_PREFIXES: [&str; 2] = ["x-forwarded-", "proxy-"];
/// Query parameters that hold credentials.
const HIDDEN_PARAMETERS: [&str; 5] = ["code", "key", "pwd", "sig", "signature"];
/// What the names of headers and parameters with credentials hold; `_` counts as `-`.
const CREDENTIALS: [&str; 10] =
    ["token", "secret", "password", "passwd", "api-key", "apikey", "auth", "session", "credential", "jwt"];

/// How many policy VMs can exist at once with so many worker threads: one a worker and one on the control thread, and
/// all of them twice while a version is swapped, since the new set is built aside.
pub fn policy_vms(workers: usize) -> usize {
    workers.saturating_add(1).saturating_mul(2)
}

/// What `[selection_strategy]` says.
pub(super) struct Strategy {
    policy: &'static str,
    /// What the policy is told: `own_region_only = true`, and `weight` for the hash ring.
    settings: Map<String, Json>,
}

/// Reads `[selection_strategy]`, or the strategy's name alone in its place.
pub(super) fn strategy(root: &mut Section<'_>) -> Option<Strategy> {
    if let Some(Node { value: Value::Text(_), .. }) = root.get("selection_strategy") {
        let policy = root.optional("selection_strategy", policy_of)?;
        return Some(Strategy::new(policy, 1));
    }
    let mut section = root.section("selection_strategy");
    let policy = section.optional("strategy", policy_of);
    let weight = section.optional("weight", read::integer(1..=10_000u32));
    if section.is_set() && !section.has("strategy") {
        section.error("strategy", format!("missing; write {STRATEGIES}"));
    }
    if weight.is_some() && policy.is_some_and(|policy| policy != "hash-ring") {
        section.warn("weight", "belongs to the strategy HashRing: ignored; remove it");
    }
    section.finish();
    Some(Strategy::new(policy?, weight.unwrap_or(1)))
}

const STRATEGIES: &str = "\"MinRooms\", \"HashRing\" or \"Random\"";

fn policy_of(node: &Node) -> Result<&'static str, String> {
    match read::text(node)?.as_str() {
        "MinRooms" => Ok("default"),
        "HashRing" => Ok("hash-ring"),
        "Random" => Ok("random"),
        other => Err(format!("{:?} is no strategy; write {STRATEGIES}", read::cut(other))),
    }
}

impl Strategy {
    fn new(policy: &'static str, weight: u32) -> Self {
        let mut settings = Map::new();
        settings.insert("own_region_only".into(), true.into());
        if policy == "hash-ring" {
            settings.insert("weight".into(), weight.into());
        }
        Self { policy, settings }
    }
}

/// Reads `[policy]`.
pub(super) fn read(root: &mut Section<'_>, strategy: Option<Strategy>, input: &Input<'_>) -> PolicyConfig {
    let mut section = root.section("policy");
    let mut policy = PolicyConfig::default();
    let source = section.optional("file", |node| source(&read::text(node)?, input)).map(|(source, missing)| {
        if let Some(missing) = missing {
            section.warn("file", missing);
        }
        source
    });
    let named = section.has("file");
    if named && strategy.is_some() {
        root.warn("selection_strategy", "policy.file is set and wins: ignored; remove one of the two");
    }
    let strategy = strategy.filter(|_| !named);
    match (source, &strategy) {
        (Some(source), _) => policy.source = source,
        (None, Some(strategy)) => policy.source = PolicySource::Shipped(strategy.policy.into()),
        (None, None) => {}
    }
    section.read(&mut policy.watch, "watch", read::flag);
    section.read(&mut policy.fuel, "fuel", read::integer(100..=1_000_000_000u64));
    section.read(&mut policy.budget, "budget", read::duration(Duration::from_millis(1)..=Duration::from_secs(1)));
    section.read(&mut policy.memory, "memory", read::size(MIN_MEMORY..=1 << 30));
    total_memory(&mut section, &mut policy, input.workers);
    section.read(&mut policy.gate, "gate", |node| match read::text(node)?.as_str() {
        "compile" => Ok(Gate::Compile),
        "tests" => Ok(Gate::Tests),
        "replay" => Ok(Gate::Replay),
        other => Err(format!("{:?} is no gate; write \"compile\", \"tests\" or \"replay\"", read::cut(other))),
    });
    // Only a file can break between two starts.
    if let PolicySource::File(file) = &policy.source {
        policy.keep = file.parent().map(|folder| folder.join(KEEP));
    }
    if let Some(folder) = section.optional("keep", read::text) {
        let file = matches!(policy.source, PolicySource::File(_));
        policy.keep = (file && !folder.is_empty()).then(|| input.base_dir.join(folder));
    }
    section.read(&mut policy.history, "history", read::integer(1..=1000usize));
    section.read(&mut policy.headers, "headers", read::list("header names", header));
    section.read(&mut policy.query, "query", read::list("parameter names", parameter));
    let every = Duration::from_secs(1)..=Duration::from_secs(86_400);
    policy.rebalance_every = section.optional("rebalance_every", read::duration(every));
    section.read(&mut policy.rebalance, "rebalance", |node| match read::text(node)?.as_str() {
        "run" => Ok(Rebalance::Run),
        "dry" => Ok(Rebalance::Dry),
        other => Err(format!("{:?} is neither; write \"run\", or \"dry\" to count moves only", read::cut(other))),
    });
    if let Some(strategy) = strategy {
        policy.settings = strategy.settings;
    }
    policy.settings.extend(settings(&section.section("settings")));
    let demands = section.section("require");
    policy.require = require::read(&demands);
    if demands.is_set() && policy.gate != Gate::Replay {
        demands.warn("", "has no effect: it belongs to policy.gate = \"replay\"");
    }
    section.finish();
    policy
}

/// The memory of all VMs: what is set has to suffice for as many as there can be, and a canary or a shadow for which it
/// does not is refused when it is asked for; what is not set suffices.
fn total_memory(section: &mut Section<'_>, policy: &mut PolicyConfig, workers: usize) {
    let vms = policy_vms(workers);
    let need = policy.memory.saturating_mul(vms);
    policy.total_memory = policy.total_memory.max(need);
    let Some(total) = section.optional("total_memory", read::size(1 << 20..=1 << 40)) else { return };
    (policy.total_memory, policy.total_memory_is_set) = (total, true);
    if total < need {
        let fits = policy.total_memory / vms / 1024 * 1024;
        let other = match policy.memory {
            _ if fits >= MIN_MEMORY => format!(", or policy.memory = \"{}\" or less", write_size(fits)),
            MIN_MEMORY => String::new(),
            _ => {
                let (least, all) = (write_size(MIN_MEMORY), write_size(MIN_MEMORY.saturating_mul(vms)));
                format!(", or \"{all}\" or more with policy.memory = \"{least}\", the least there is")
            }
        };
        let (total, memory, need) = (write_size(total), write_size(policy.memory), write_size(need));
        let message = format!(
            "{total} is less than {vms} VMs ({workers} workers and control, twice while swapping) of {memory} need; \
             write \"{need}\" or more{other}"
        );
        section.error("total_memory", message);
    }
}

/// Finds a policy: a path holds a `/` or ends in `.lua` or `.luau`; anything else names a shipped one. Of a path at which
/// there is no file it says so, and no more: at a start the last good version of it may serve.
fn source(text: &str, input: &Input<'_>) -> Result<(PolicySource, Option<String>), String> {
    let is_path = text.contains('/') || text.ends_with(".lua") || text.ends_with(".luau");
    let shipped = input.shipped.join(", ");
    if !is_path && input.shipped.contains(&text) {
        return Ok((PolicySource::Shipped(text.into()), None));
    }
    let path: PathBuf = input.base_dir.join(text);
    if is_path && (input.file_exists)(&path) {
        return Ok((PolicySource::File(path), None));
    }
    let stem = Path::new(text).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let near = |name: &&&str| strsim::damerau_levenshtein(name, &stem) <= 1 + stem.len() / 4;
    let nearest = input.shipped.iter().filter(near).min_by_key(|name| strsim::damerau_levenshtein(name, &stem));
    let hint = nearest.map(|name| format!(" (did you mean {name:?}?)")).unwrap_or_default();
    let text = read::cut(text);
    if is_path {
        let missing = format!(
            "no file {text:?} at {}; write a path from the folder of this file, or a shipped name: {shipped}{hint}",
            path.display()
        );
        return Ok((PolicySource::File(path), Some(missing)));
    }
    Err(format!(
        "no policy {text:?} is shipped{hint}; shipped are {shipped}; a path, such as {:?} for {}, holds a \"/\" or ends in \
         .lua or .luau",
        format!("./{text}.lua"),
        input.base_dir.join(format!("{text}.lua")).display()
    ))
}

fn header(node: &Node) -> Result<String, String> {
    let name = read::word(node)?.to_ascii_lowercase();
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
        return Err(format!("{:?} is no header name; write one such as \"user-agent\"", read::cut(&name)));
    }
    let prefixed = HIDDEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    if prefixed || HIDDEN_HEADERS.contains(&name.as_str()) || names_credential(&name) {
        return Err(format!(
            "{name:?} holds a credential or an address, which no policy sees; remove it, and let the proxy in front put \
             what the policy needs into a header of another name, such as \"x-plan\""
        ));
    }
    Ok(name)
}

fn parameter(node: &Node) -> Result<String, String> {
    let name = read::word(node)?;
    let lower = name.to_ascii_lowercase();
    if HIDDEN_PARAMETERS.contains(&lower.as_str()) || names_credential(&lower) {
        return Err(format!(
            "{:?} holds a credential, which no policy sees; remove it, and let clients send what the policy needs in a \
             parameter of another name, such as \"plan\"",
            read::cut(&name)
        ));
    }
    Ok(name)
}

fn names_credential(lower: &str) -> bool {
    let name = lower.replace('_', "-");
    CREDENTIALS.iter().any(|part| name.contains(part))
}

/// `usher.settings`: a table of whatever the policy understands.
pub(super) fn settings(section: &Section<'_>) -> Map<String, Json> {
    let mut settings = Map::new();
    for (key, (_, node)) in section.table().into_iter().flatten() {
        match json(node) {
            Ok(value) => {
                settings.insert(key.clone(), value);
            }
            Err(message) => section.error(key, message),
        }
    }
    settings
}

fn json(node: &Node) -> Result<Json, String> {
    Ok(match &node.value {
        Value::Text(text) | Value::Date(text) => Json::String(text.clone()),
        Value::Integer(Ok(number)) => (*number).into(),
        Value::Integer(Err(_)) => return Err("the number is out of range; write one of 64 bits, or a text".into()),
        Value::Float(number) => Number::from_f64(*number).map(Json::Number).ok_or("write a finite number")?,
        Value::Flag(flag) => (*flag).into(),
        Value::List(items) => Json::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Value::Table(table) => Json::Object(
            table.iter().map(|(key, (_, node))| Ok((key.clone(), json(node)?))).collect::<Result<_, String>>()?,
        ),
    })
}
