//! From a document to a [`Config`]: which keys there are, and what they mean together.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::load::Loaded;
use super::problem::ConfigErrors;
use super::section::{Section, Walk};
use super::tree::{self, Table};
use super::types::{Config, Handover, HandoverMode, Heartbeat, Limits, QueueLimit, Takeover, Timeouts};
use super::{claims, discovery, environment, health, policy, read, record, regions, scrape, weights};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// What a configuration is made from.
pub struct Input<'a> {
    /// The file's name as errors should name it; none: there is no file.
    pub file: Option<&'a str>,
    /// Its text.
    pub text: &'a str,
    /// Environment variables; those that are not ours are ignored.
    pub environment: &'a [(String, String)],
    /// The folder that relative paths start from: the file's own.
    pub base_dir: &'a Path,
    /// Whether there is a file at a path.
    pub file_exists: &'a dyn Fn(&Path) -> bool,
    /// The names of the shipped policies.
    pub shipped: &'a [&'a str],
    /// Worker threads, for what they need in memory.
    pub workers: usize,
}

/// Reads a document and the environment, without touching anything else.
///
/// Errors come all at once. A document that is not TOML is reported with all its syntax errors and nothing else. In a
/// file named `balancer.toml`, and in the environment, unknown keys are warnings.
pub fn parse(input: &Input<'_>) -> Result<Loaded, ConfigErrors> {
    let file: Option<Arc<str>> = input.file.map(Arc::from);
    let mut table = match &file {
        Some(file) => match tree::parse(file, input.text) {
            Ok(table) => table,
            Err(errors) => return Err(ConfigErrors { errors, warnings: Vec::new() }),
        },
        None => Table::new(),
    };
    let ignored = environment::overlay(&mut table, input.environment);
    let lenient =
        input.file.is_some_and(|file| Path::new(file).file_name().is_some_and(|name| name == "balancer.toml"));
    let walk = Walk::new(lenient, environment::whole(file.as_ref()));
    walk.warnings.borrow_mut().extend(ignored);
    let config = root(walk.root(&table), input);
    walk.report_unknown();
    let (mut errors, mut warnings) = (walk.errors.take(), walk.warnings.take());
    errors.sort();
    warnings.sort();
    if errors.is_empty() { Ok(Loaded { config, warnings }) } else { Err(ConfigErrors { errors, warnings }) }
}

/// Every key that there is, with dots, in alphabetical order. Free-form tables and lists of tables count as one key.
pub fn known_keys() -> Vec<String> {
    let table = Table::new();
    let walk = Walk::new(false, environment::whole(None));
    let input = Input {
        file: None,
        text: "",
        environment: &[],
        base_dir: Path::new("."),
        file_exists: &|_| true,
        shipped: &policy::SHIPPED_POLICIES,
        workers: 1,
    };
    root(walk.root(&table), &input);
    walk.known.into_inner().into_iter().collect()
}

fn root(mut root: Section<'_>, input: &Input<'_>) -> Config {
    let mut config = Config::default();
    root.read(&mut config.port, "port", read::port);
    if let Some(region) = root.optional("region", read::word) {
        config.region = region.as_str().into();
    }
    root.read(&mut config.api_key, "api_key", read::secret);
    root.read(&mut config.link_token, "link_token", read::secret);
    root.read(&mut config.admin_listen, "admin_listen", read::listen);
    if config.admin_listen.is_some_and(|admin| admin.port() == config.port) {
        root.error("admin_listen", format!("port {} is the main port already; choose another one", config.port));
    }
    if let Some(path) = root.optional("takeover", read::text) {
        config.takeover = if path.is_empty() { Takeover::Off } else { Takeover::At(input.base_dir.join(path)) };
    }
    let strategy = policy::strategy(&mut root);
    config.policy = policy::read(&mut root, strategy, input);
    config.discovery = discovery::read(&mut root);
    config.regions = regions::read(root.section("regions"));
    config.weights = weights::read(root.section("weights"));
    config.load = scrape::read(root.section("load"));
    let mut proxy = root.section("proxy");
    proxy.read(&mut config.trusted, "trusted", read::trusted);
    proxy.finish();
    config.limits = limits(root.section("limits"));
    config.timeouts = timeouts(root.section("timeouts"));
    config.heartbeat = heartbeat(root.section("heartbeat"));
    config.health = health::read(root.section("health"));
    config.handover = handover(root.section("handover"));
    config.record = record::read(root.section("record"), input.base_dir);
    config.claims = claims::read(root.section("claims"));
    root.finish();
    config
}

pub(super) fn limits(mut section: Section<'_>) -> Limits {
    let mut limits = Limits::default();
    section.read(&mut limits.clients, "clients", read::integer(1..=10_000_000usize));
    section.read(&mut limits.pending_joins, "pending_joins", read::integer(1..=10_000_000usize));
    section.read(&mut limits.pending_rooms, "pending_rooms", read::integer(1..=10_000_000usize));
    section.read(&mut limits.message, "message", read::size(KIB..=GIB));
    section.read(&mut limits.link_message, "link_message", read::size(64 * KIB..=GIB));
    limits.client_queue = queue(section.section("client_queue"), "messages", limits.client_queue);
    limits.held_frames = queue(section.section("held_frames"), "count", limits.held_frames);
    section.read(&mut limits.link_queue, "link_queue", read::size(64 * KIB..=GIB));
    section.read(&mut limits.header, "header", read::size(4 * KIB..=MIB));
    section.read(&mut limits.place_attempts, "place_attempts", read::integer(1..=100u32));
    section.read(&mut limits.joins_per_second, "joins_per_second", read::integer(1..=1_000_000u32));
    section.read(&mut limits.handshakes, "handshakes", read::integer(1..=10_000_000usize));
    section.read(&mut limits.connections_per_second, "connections_per_second", read::integer(0..=1_000_000u32));
    if limits.link_queue < limits.message {
        section.error("link_queue", "is smaller than limits.message: the longest message would never fit; raise it");
    }
    section.finish();
    limits
}

fn queue(mut section: Section<'_>, count: &'static str, default: QueueLimit) -> QueueLimit {
    let mut limit = default;
    section.read(&mut limit.messages, count, read::integer(1..=1_000_000usize));
    section.read(&mut limit.bytes, "bytes", read::size(KIB..=GIB));
    section.finish();
    limit
}

pub(super) fn timeouts(mut section: Section<'_>) -> Timeouts {
    const ZERO: Duration = Duration::ZERO;
    const SHORT: Duration = Duration::from_millis(10);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);
    let mut timeouts = Timeouts::default();
    section.read(&mut timeouts.auth, "auth", read::duration(SHORT..=HOUR));
    section.read(&mut timeouts.load, "load", read::duration(SHORT..=HOUR));
    section.read(&mut timeouts.join_answer, "join_answer", read::duration(SHORT..=HOUR));
    section.read(&mut timeouts.http_connect, "http_connect", read::duration(SHORT..=HOUR));
    section.read(&mut timeouts.http_response, "http_response", read::duration(SHORT..=DAY));
    section.read(&mut timeouts.keep_alive, "keep_alive", read::duration(SHORT..=DAY));
    section.read(&mut timeouts.upstream_idle, "upstream_idle", read::duration(ZERO..=HOUR));
    section.read(&mut timeouts.hold, "hold", read::duration(ZERO..=HOUR));
    section.read(&mut timeouts.drain, "drain", read::duration(ZERO..=DAY));
    section.read(&mut timeouts.shutdown, "shutdown", read::duration(ZERO..=HOUR));
    section.read(&mut timeouts.takeover, "takeover", read::duration(ZERO..=HOUR));
    section.read(&mut timeouts.link_handshake, "link_handshake", read::duration(SHORT..=HOUR));
    if timeouts.upstream_idle >= Duration::from_secs(5) {
        let message = "a Monolith closes idle connections after 5s: requests can meet a closed one; write less than 5s";
        section.warn("upstream_idle", message);
    }
    section.finish();
    timeouts
}

fn heartbeat(mut section: Section<'_>) -> Heartbeat {
    let mut heartbeat = Heartbeat::default();
    let range = Duration::from_millis(100)..=Duration::from_secs(600);
    section.read(&mut heartbeat.interval, "interval", read::duration(range));
    section.read(&mut heartbeat.missed, "missed", read::integer(1..=100u32));
    section.finish();
    heartbeat
}

fn handover(mut section: Section<'_>) -> Handover {
    let mut handover = Handover::default();
    section.read(&mut handover.mode, "mode", |node| match read::text(node)?.as_str() {
        "close" => Ok(HandoverMode::Close),
        "seamless" => Ok(HandoverMode::Seamless),
        other => Err(format!("{:?} is no mode; write \"seamless\" or \"close\"", read::cut(other))),
    });
    let range = Duration::ZERO..=Duration::from_secs(3600);
    section.read(&mut handover.window, "window", read::duration(range.clone()));
    section.read(&mut handover.rate, "rate", read::integer(1..=1_000_000u32));
    section.read(&mut handover.quiet, "quiet", read::duration(range));
    section.finish();
    handover
}
