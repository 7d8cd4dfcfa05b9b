//! What the rest of usher reads: the resolved configuration and its defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::claims::ClaimsConfig;
use super::health::HealthConfig;
use super::record::RecordConfig;
use super::regions::Distances;
use super::scrape::LoadConfig;
use super::weights::Weights;
use crate::model::Region;
use crate::model::assertion::Assertion;

/// Everything that an operator can set, checked and with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the file was read from, if there was one.
    pub source: Option<PathBuf>,
    /// The port for HTTP and WebSocket, on IPv6 any and IPv4. 0 is refused in a file; tests set it here.
    pub port: u16,
    /// The region of this balancer.
    pub region: Region,
    /// The key of the admin API; empty: admin answers 401.
    pub api_key: Secret,
    /// What a Monolith's `init` has to carry; empty: not checked.
    pub link_token: Secret,
    /// A second listener for admin and metrics, instead of the main port.
    pub admin_listen: Option<SocketAddr>,
    /// Where a running usher is asked to hand over to the next one.
    pub takeover: Takeover,
    /// How Monoliths are found.
    pub discovery: Discovery,
    /// The policy and its limits.
    pub policy: PolicyConfig,
    /// How far regions are from each other.
    pub regions: Distances,
    /// The share of each Monolith relative to the others.
    pub weights: Weights,
    /// What is scraped from each Monolith.
    pub load: LoadConfig,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted: Vec<IpNet>,
    /// Bounds.
    pub limits: Limits,
    /// Waits.
    pub timeouts: Timeouts,
    /// Pings on links and client sockets.
    pub heartbeat: Heartbeat,
    /// When a Monolith is left alone for a while.
    pub health: HealthConfig,
    /// How clients leave a Monolith that goes.
    pub handover: Handover,
    /// How rooms are claimed among balancers.
    pub claims: ClaimsConfig,
    /// Recorded traffic.
    pub record: RecordConfig,
}

impl Timeouts {
    /// How long anybody waits for a room: as long as an outage may hold them, and as many attempts as a room gets may take.
    pub fn patience(&self, limits: &Limits) -> Duration {
        self.hold.saturating_add(self.load.saturating_mul(limits.place_attempts))
    }
}

/// A text that is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// Where the Unix socket is at which the next usher asks this one to hand over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Takeover {
    /// In the user's folder for run-time files, named after the port.
    #[default]
    UserFolder,
    /// At this path.
    At(PathBuf),
    /// Nowhere: there is no hand-over.
    Off,
}

/// How Monoliths are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// A fixed list of (host, port).
    Manual(Vec<(String, u16)>),
    /// A and AAAA records of a name.
    Dns {
        /// The name.
        query: String,
        /// The port of every Monolith.
        service_port: u16,
        /// The server to ask; none: the system's.
        dns_server: Option<SocketAddr>,
        /// How often.
        polling_interval: Duration,
    },
    /// AAAA records of `global.<app>.internal` from Fly's resolver.
    Fly {
        /// The app.
        fly_app: String,
        /// The port of every Monolith.
        service_port: u16,
        /// How often.
        polling_interval: Duration,
    },
    /// A WebSocket on `[::1]:port` whose every text frame is the full list `["ip:port", ...]`.
    Harness {
        /// The port.
        port: u16,
    },
}

/// Where the policy comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicySource {
    /// A policy of the binary, by name.
    Shipped(String),
    /// A file.
    File(PathBuf),
}

/// `[policy]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// `file`.
    pub source: PolicySource,
    /// Whether the file is watched.
    pub watch: bool,
    /// Safepoints per call.
    pub fuel: u64,
    /// CPU time of the thread per call.
    pub budget: Duration,
    /// Bytes per VM.
    pub memory: usize,
    /// Bytes for all VMs.
    pub total_memory: usize,
    /// Whether that was set: what was not set bounds no canary and no shadow.
    pub total_memory_is_set: bool,
    /// What a new version has to pass.
    pub gate: Gate,
    /// What the gate `replay` demands; nothing: no call fails that did not fail before.
    pub require: Vec<Assertion>,
    /// Versions kept for rollback.
    pub history: usize,
    /// The folder in which the last good version of a policy file is kept for a start at which the file is broken.
    pub keep: Option<PathBuf>,
    /// Request headers that a policy may see, in lower case.
    pub headers: Vec<String>,
    /// Query parameters that a policy may see.
    pub query: Vec<String>,
    /// How often `rebalance` is asked; none: never. At least one second.
    pub rebalance_every: Option<Duration>,
    /// What becomes of its answer.
    pub rebalance: Rebalance,
    /// `usher.settings`. A `[selection_strategy]` adds `own_region_only = true`, and for `HashRing` its `weight`.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// What becomes of the moves that a policy asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// They are checked, paced and carried out.
    Run,
    /// They are checked and counted.
    Dry,
}

/// What a new policy version has to pass before it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It compiles, and its hooks answer a smoke call.
    Compile,
    /// Its `_test.lua` passes as well.
    Tests,
    /// And what it says to the recent calls meets [`PolicyConfig::require`].
    Replay,
}

/// `[limits]`: what is bounded, and (in the README) what happens at the bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client sockets.
    pub clients: usize,
    /// Joins that wait for a room.
    pub pending_joins: usize,
    /// Rooms that are being placed.
    pub pending_rooms: usize,
    /// Bytes of one client message.
    pub message: usize,
    /// Bytes of one link message.
    pub link_message: usize,
    /// What waits for one client.
    pub client_queue: QueueLimit,
    /// What one client sent before its join was confirmed.
    pub held_frames: QueueLimit,
    /// Bytes that wait for one Monolith.
    pub link_queue: usize,
    /// Bytes of a request's head.
    pub header: usize,
    /// Attempts at placing one room.
    pub place_attempts: u32,
    /// Joins per second and Monolith after an outage.
    pub joins_per_second: u32,
    /// Client sockets that have not said who they are.
    pub handshakes: usize,
    /// New connections per second from one address that is no trusted proxy; 0: as many as it likes.
    pub connections_per_second: u32,
}

/// A bound in messages and in bytes, whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimit {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

/// `[timeouts]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a client's first frame.
    pub auth: Duration,
    /// For a Monolith to confirm a room.
    pub load: Duration,
    /// For the first unicast after a `join`; then broadcasts flow all the same, and so does what a member says whose room
    /// changed its Monolith.
    pub join_answer: Duration,
    /// For an HTTP connection to a Monolith.
    pub http_connect: Duration,
    /// For the head of a response, and between two pieces of its body.
    pub http_response: Duration,
    /// For the next request on a client's connection.
    pub keep_alive: Duration,
    /// How long an idle connection to a Monolith is kept.
    pub upstream_idle: Duration,
    /// For a join that waits for a Monolith.
    pub hold: Duration,
    /// For a draining Monolith to become empty.
    pub drain: Duration,
    /// Over which clients are closed when usher stops.
    pub shutdown: Duration,
    /// Over which clients are closed when another usher has taken over.
    pub takeover: Duration,
    /// For the handshake of a link, `init` included.
    pub link_handshake: Duration,
}

/// `[heartbeat]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Between two pings.
    pub interval: Duration,
    /// How many may go unanswered.
    pub missed: u32,
}

/// `[handover]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// What happens to the socket of a client whose room moves.
    pub mode: HandoverMode,
    /// How long a client keeps its socket without a Monolith for its room.
    pub window: Duration,
    /// Clients per second and Monolith that moves may cost, and that are closed once their window is over.
    pub rate: u32,
    /// How long a room is left in peace before it is moved, so that its Monolith can save it.
    pub quiet: Duration,
}

/// What happens to the socket of a client whose room moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoverMode {
    /// It is closed with a code on which the client comes back.
    Close,
    /// It stays open: the client is joined to the next Monolith, and what it says meanwhile follows.
    Seamless,
}

impl Secret {
    /// The secret with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text itself, for comparing or sending; never for printing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "(not set)" } else { "(set)" })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            source: None,
            port: 8081,
            region: Region::from("unknown"),
            api_key: Secret::default(),
            link_token: Secret::default(),
            admin_listen: None,
            takeover: Takeover::UserFolder,
            discovery: Discovery::Manual(Vec::new()),
            policy: PolicyConfig::default(),
            regions: Distances::default(),
            weights: Weights::default(),
            load: LoadConfig::default(),
            trusted: private_ranges(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            heartbeat: Heartbeat::default(),
            health: HealthConfig::default(),
            handover: Handover::default(),
            claims: ClaimsConfig::default(),
            record: RecordConfig::default(),
        }
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), missed: 2 }
    }
}

impl Default for Handover {
    fn default() -> Self {
        Self { mode: HandoverMode::Seamless, window: Duration::from_secs(10), rate: 50, quiet: Duration::from_secs(6) }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        let headers = ["accept-language", "fly-region", "origin", "user-agent"];
        Self {
            source: PolicySource::Shipped("default".into()),
            watch: true,
            fuel: 20_000,
            budget: Duration::from_millis(10),
            memory: 8 << 20,
            total_memory: 64 << 20,
            total_memory_is_set: false,
            gate: Gate::Tests,
            require: Vec::new(),
            history: 8,
            keep: None,
            headers: headers.map(String::from).to_vec(),
            query: Vec::new(),
            rebalance_every: None,
            rebalance: Rebalance::Run,
            settings: serde_json::Map::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 20_000,
            pending_joins: 10_000,
            pending_rooms: 5_000,
            message: 1 << 20,
            link_message: 64 << 20,
            client_queue: QueueLimit { messages: 256, bytes: 1 << 20 },
            held_frames: QueueLimit { messages: 64, bytes: 256 << 10 },
            link_queue: 8 << 20,
            header: 32 << 10,
            place_attempts: 3,
            joins_per_second: 200,
            handshakes: 10_000,
            connections_per_second: 0,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            auth: Duration::from_secs(20),
            load: Duration::from_secs(5),
            join_answer: Duration::from_secs(1),
            http_connect: Duration::from_secs(2),
            http_response: Duration::from_secs(60),
            keep_alive: Duration::from_secs(60),
            upstream_idle: Duration::from_secs(4),
            hold: Duration::from_secs(10),
            drain: Duration::from_secs(300),
            shutdown: Duration::from_secs(4),
            takeover: Duration::from_secs(30),
            link_handshake: Duration::from_secs(5),
        }
    }
}

/// Loopback, link-local and private ranges: what `trusted = ["private"]` means.
pub fn private_ranges() -> Vec<IpNet> {
    const RANGES: [&str; 8] = [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    ];
    RANGES.iter().filter_map(|range| range.parse().ok()).collect()
}
