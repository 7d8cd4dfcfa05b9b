//! The environment laid over the file: `USHER_` and `BALANCER_` variables, nested with `__`, and `FLY_REGION`.

use std::sync::Arc;

use super::problem::{Place, Problem};
use super::tree::{self, Node, Table, Value};

/// In rising precedence.
const PREFIXES: [&str; 2] = ["BALANCER_", "USHER_"];

/// The most levels that the name of a variable may have. The file's own parser bounds its nesting, too: whoever walks a
/// tree goes down as deep as it is.
const DEEPEST: usize = 32;

/// Lays the variables over the tree, and says which were ignored.
///
/// Tables are merged key by key. `FLY_REGION` wins over `region` from anywhere. A variable that chooses another
/// `discovery.method` than the file replaces the file's `[discovery]`, whose other keys belong to the other method.
pub(super) fn overlay(root: &mut Table, environment: &[(String, String)]) -> Vec<Problem> {
    let mut warnings = Vec::new();
    let mut over = Table::new();
    for prefix in PREFIXES {
        let mut variables: Vec<_> = environment.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
        variables.sort();
        for (name, text) in variables {
            let key = name[prefix.len()..].to_ascii_lowercase().replace("__", ".");
            let place = Place::Environment { variable: name.as_str().into(), key: key.as_str().into() };
            let path: Vec<&str> = key.split('.').collect();
            if is_injected_by_kubernetes(&path, text) {
                let message = "looks like what Kubernetes injects for a Service of this name: ignored \
                               (enableServiceLinks: false in the pod keeps it away)";
                warnings.push(Problem { place, key, message: message.into() });
            } else if path.len() > DEEPEST || path.iter().any(|part| part.is_empty()) {
                let message = "names no key: ignored; nested keys are written as in USHER_POLICY__FILE";
                warnings.push(Problem { place, key, message: message.into() });
            } else {
                merge(&mut over, nest(&path, tree::parse_value(text, place.clone()), &place));
            }
        }
    }
    if let Some((_, region)) = environment.iter().find(|(name, region)| name == "FLY_REGION" && !region.is_empty()) {
        let place = Place::Environment { variable: "FLY_REGION".into(), key: "region".into() };
        over.insert("region".into(), (place.clone(), Node::text(region, place)));
    }
    if let (Some(new), Some(old)) = (method(&over), method(root))
        && new != old
    {
        root.remove("discovery");
    }
    merge(root, over);
    warnings
}

/// For a Service called `usher` these are `USHER_PORT=tcp://10.0.0.1:8081`, `USHER_SERVICE_HOST`,
/// `USHER_SERVICE_PORT`, `USHER_SERVICE_PORT_HTTP`, `USHER_PORT_8081_TCP`, `USHER_PORT_8081_TCP_ADDR`...
fn is_injected_by_kubernetes(path: &[&str], text: &str) -> bool {
    let [key] = path else { return false };
    let url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    let numbered = key.strip_prefix("port_").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    (*key == "port" && url) || numbered || *key == "service_host" || key.starts_with("service_port")
}

fn method(root: &Table) -> Option<&str> {
    let (_, Node { value: Value::Table(discovery), .. }) = root.get("discovery")? else { return None };
    match discovery.get("method") {
        Some((_, Node { value: Value::Text(method), .. })) => Some(method),
        _ => None,
    }
}

fn nest(path: &[&str], node: Node, place: &Place) -> Table {
    let [first, rest @ ..] = path else { return Table::new() };
    let node = if rest.is_empty() {
        node
    } else {
        Node { value: Value::Table(nest(rest, node, place)), place: place.clone(), raw: None }
    };
    Table::from([((*first).to_owned(), (place.clone(), node))])
}

fn merge(under: &mut Table, over: Table) {
    for (key, (place, node)) in over {
        match (under.get_mut(&key), node) {
            (Some((_, Node { value: Value::Table(under), .. })), Node { value: Value::Table(over), .. }) => {
                merge(under, over)
            }
            (_, node) => {
                under.insert(key, (place, node));
            }
        }
    }
}

/// The variables of this process that can matter here. What is not UTF-8 is left out: no value of ours needs it.
pub(super) fn of_process() -> Vec<(String, String)> {
    let ours = |name: &str| name == "FLY_REGION" || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| ours(name))
        .collect()
}

/// The place of the whole file, or of the defaults if there is none.
pub(super) fn whole(file: Option<&Arc<str>>) -> Place {
    file.map_or(Place::Defaults, |file| Place::File { file: file.clone(), line: 0 })
}
