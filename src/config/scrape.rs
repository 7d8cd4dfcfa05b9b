//! `[load]`: which numbers are scraped from the metrics of each Monolith, for policies to see as `m.load`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::read;
use super::section::Section;
use super::tree::{Node, Value};
use super::types::Secret;
use crate::model::exposition::Selector;

/// How many numbers may be asked for: each is in every policy call, for every Monolith.
const MOST: usize = 32;

/// Headers that belong to the connection: another value would break the request.
const OWN_HEADERS: [&str; 6] = ["connection", "content-length", "host", "te", "transfer-encoding", "upgrade"];

/// `[load]`. Without `metrics` nothing is scraped.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadConfig {
    /// The path of the metrics on each Monolith's HTTP server, with a query if need be.
    pub path: String,
    /// How often each Monolith is asked.
    pub interval: Duration,
    /// A header that goes along, such as a key; its value is a secret.
    pub header: Option<(String, Secret)>,
    /// What to take from the page, under the name that policies see.
    pub metrics: BTreeMap<String, Selector>,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            path: "/api/status/metrics".into(),
            interval: Duration::from_secs(5),
            header: None,
            metrics: BTreeMap::new(),
        }
    }
}

/// Reads `[load]`.
pub(super) fn read(mut section: Section<'_>) -> LoadConfig {
    let mut load = LoadConfig::default();
    section.read(&mut load.path, "path", path);
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    section.read(&mut load.interval, "interval", read::duration(range));
    section.read(&mut load.header, "header", header);
    let metrics = section.section("metrics");
    for (name, (_, node)) in metrics.table().into_iter().flatten() {
        match metric(name, node) {
            Ok(selector) => {
                load.metrics.insert(name.clone(), selector);
            }
            Err(message) => metrics.error(name, message),
        }
    }
    if load.metrics.len() > MOST {
        section.error("metrics", format!("{} are named; name {MOST} at most", load.metrics.len()));
    }
    if section.is_set() && !section.has("metrics") {
        let example = "metrics = { lag = \"nodejs_eventloop_lag_seconds\" }";
        section.warn("", format!("nothing is scraped without metrics; write such as {example}, or remove the section"));
    }
    section.finish();
    load
}

fn path(node: &Node) -> Result<String, String> {
    let path = read::word(node)?;
    if path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&b)) {
        return Ok(path);
    }
    Err(format!("{:?} is no path; write one such as \"/api/status/metrics\"", read::cut(&path)))
}

/// `name: value`; empty: none. No error quotes it.
fn header(node: &Node) -> Result<Option<(String, Secret)>, String> {
    let text = read::text(node)?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || "is no header; write \"name: value\", such as \"apikey: secret\"".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(wrong());
    }
    if OWN_HEADERS.contains(&name.as_str()) {
        return Err(format!("{name} is set by usher; write another header, or remove the key"));
    }
    Ok(Some((name, Secret::new(value))))
}

fn metric(name: &str, node: &Node) -> Result<Selector, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(plain) {
        return Err("is no name for m.load; write letters, digits and _, such as lag".into());
    }
    let example = "write a metric such as 'nodejs_eventloop_lag_seconds' or 'name{label=\"value\"}'";
    match &node.value {
        Value::Text(text) => {
            Selector::parse(text).map_err(|_| format!("{:?} names no metric; {example}", read::cut(text)))
        }
        _ => Err(format!("expected a text, found {}; {example}", node.kind())),
    }
}
