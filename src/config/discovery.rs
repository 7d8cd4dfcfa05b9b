//! `[discovery]`: four methods, each with keys of its own.

use std::net::IpAddr;
use std::time::Duration;

use super::read;
use super::section::Section;
use super::tree::{Node, Value};
use super::types::Discovery;

const METHODS: &str = "\"manual\", \"dns\", \"fly\" or \"harness\"";
const INTERVAL: Duration = Duration::from_secs(5);
const EMPTY: &str = "no Monolith is listed: usher starts and waits; list some under [[discovery.monoliths]], or write \
                     a method that finds them (\"dns\", \"fly\")";

/// Which methods a key belongs to.
const KEYS: [(&str, &[&str]); 7] = [
    ("monoliths", &["manual"]),
    ("query", &["dns"]),
    ("dns_server", &["dns"]),
    ("fly_app", &["fly"]),
    ("service_port", &["dns", "fly"]),
    ("polling_interval", &["dns", "fly"]),
    ("port", &["harness"]),
];

/// Reads `[discovery]`; without it the list of Monoliths is empty.
pub(super) fn read(root: &mut Section<'_>) -> Discovery {
    let mut section = root.section("discovery");
    let method = section.optional("method", |node| match read::text(node)?.as_str() {
        "manual" => Ok("manual"),
        "dns" => Ok("dns"),
        "fly" => Ok("fly"),
        "harness" => Ok("harness"),
        other => Err(format!("{:?} is no method; write {METHODS}", read::cut(other))),
    });
    if section.is_present() && !section.has("method") {
        section.error("method", format!("missing; write {METHODS}"));
    }
    // All keys are read, whatever the method is: so that they are known, and so that every mistake shows at once.
    let monoliths = monoliths(&mut section);
    let query = section.optional("query", read::word);
    let dns_server = section.optional("dns_server", read::dns_server);
    let fly_app = section.optional("fly_app", app);
    let service_port = section.optional("service_port", read::port);
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    let polling_interval = section.optional("polling_interval", read::duration(range)).unwrap_or(INTERVAL);
    let port = section.optional("port", read::port);
    let discovery = match method {
        Some(method) => {
            foreign_keys(&section, method);
            match method {
                "dns" => require(&section, "query", query.as_ref())
                    .zip(require(&section, "service_port", service_port))
                    .map(|(query, service_port)| Discovery::Dns {
                        query: query.clone(),
                        service_port,
                        dns_server,
                        polling_interval,
                    }),
                "fly" => require(&section, "fly_app", fly_app.as_ref())
                    .zip(require(&section, "service_port", service_port))
                    .map(|(app, service_port)| Discovery::Fly { fly_app: app.clone(), service_port, polling_interval }),
                "harness" => require(&section, "port", port).map(|port| Discovery::Harness { port }),
                _ => {
                    if monoliths.is_empty() && !section.has("monoliths") {
                        section.warn("monoliths", EMPTY);
                    }
                    Some(Discovery::Manual(monoliths))
                }
            }
        }
        None => {
            if !section.is_present() {
                section.warn("monoliths", EMPTY);
            }
            None
        }
    };
    section.finish();
    // Where a default stands in for a mistake, the mistake has been noted and nobody will see the default.
    discovery.unwrap_or_else(|| Discovery::Manual(Vec::new()))
}

/// The value of a key that the method cannot do without. A wrong value has been noted already.
fn require<T>(section: &Section<'_>, key: &str, value: Option<T>) -> Option<T> {
    if !section.has(key) {
        section.error(key, "missing: the method needs it");
    }
    value
}

fn foreign_keys(section: &Section<'_>, method: &str) {
    for (key, methods) in KEYS {
        if section.has(key) && !methods.contains(&method) {
            let theirs = methods.join("\" or \"");
            let message =
                format!("belongs to method \"{theirs}\", and the method is {method:?}; remove one of the two");
            if section.is_lenient() {
                section.warn(key, format!("{message}; ignored"));
            } else {
                section.error(key, message);
            }
        }
    }
}

fn monoliths(section: &mut Section<'_>) -> Vec<(String, u16)> {
    let mut monoliths: Vec<(String, u16)> = Vec::new();
    let Some(node) = section.get("monoliths") else { return monoliths };
    let Value::List(items) = &node.value else {
        section.wrong_type("monoliths", "a list such as [{ host = \"10.0.0.2\", port = 3002 }]");
        return monoliths;
    };
    if items.is_empty() {
        section.warn("monoliths", EMPTY);
    }
    for (at, item) in items.iter().enumerate() {
        let path = format!("discovery.monoliths[{at}]");
        let Some(mut item) = section.item(path, item) else {
            let message = format!("item {at}: expected {{ host = \"10.0.0.2\", port = 3002 }}, found {}", item.kind());
            section.error("monoliths", message);
            continue;
        };
        let host = require_item(&mut item, "host", host);
        let port = require_item(&mut item, "port", read::port);
        if let Some(monolith) = host.zip(port) {
            if monoliths.contains(&monolith) {
                item.warn("", "stands in the list already; remove it");
            } else {
                monoliths.push(monolith);
            }
        }
        item.finish();
    }
    monoliths
}

fn require_item<T>(
    item: &mut Section<'_>,
    key: &'static str,
    read: impl FnOnce(&Node) -> Result<T, String>,
) -> Option<T> {
    let value = item.optional(key, read);
    require(item, key, value)
}

/// An address or a DNS name; an IPv6 address may stand in brackets.
fn host(node: &Node) -> Result<String, String> {
    let text = read::word(node)?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&text);
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if bare.parse::<IpAddr>().is_ok() || bare.chars().all(named) {
        return Ok(bare.to_owned());
    }
    Err(format!("{:?} is no address or DNS name; write one such as \"10.0.0.2\", and the port under `port`", text))
}

fn app(node: &Node) -> Result<String, String> {
    let text = read::word(node)?;
    if text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Ok(text);
    }
    Err(format!("{text:?} is no Fly app; write its name as in fly.toml, such as \"my-app\""))
}
