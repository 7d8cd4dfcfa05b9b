//! What a policy sees and what it may answer: plain data, so that the live balancer, the test runner and a replay give
//! a script exactly the same.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MonolithId, Region};

/// A decision that a policy may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// May this client join?
    Admit,
    /// Where does a room go that nobody has?
    Place,
    /// Who serves a request that names no room?
    Route,
    /// What should move?
    Rebalance,
}

impl Hook {
    /// Every hook, in the order in which they are documented.
    pub const ALL: [Self; 4] = [Self::Admit, Self::Place, Self::Route, Self::Rebalance];

    /// The name of the script's function.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Place => "place",
            Self::Route => "route",
            Self::Rebalance => "rebalance",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a room has to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A client joins it.
    Join,
    /// It is being created.
    Create,
    /// An HTTP request names it.
    Http,
    /// It is being moved.
    Move,
    /// Its Monolith went.
    Lost,
}

/// What a Monolith is up to, as far as placement is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MonolithState {
    /// Takes new rooms.
    #[default]
    Up,
    /// Missed heartbeats: no new rooms until it answers again.
    Suspect,
    /// Leaving: keeps what it has and takes nothing new.
    Draining,
    /// Kept failing: for a while it keeps what it has and gets nothing new.
    Ejected,
}

/// One Monolith as a script sees it. Numbers are counts unless the name says otherwise (`_ms`, `_s`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MonolithRow {
    /// Its id.
    pub id: MonolithId,
    /// Its region.
    pub region: Region,
    /// Whether it takes work.
    pub state: MonolithState,
    /// Rooms that it reports loaded.
    pub rooms: u32,
    /// Clients of this balancer that are joined to its rooms.
    pub clients: u32,
    /// Users that it reports over all balancers (up to 20 s old), at least `clients`.
    pub users: u32,
    /// Placements on it that nothing has confirmed yet.
    pub pending: u32,
    /// HTTP requests in flight.
    pub inflight: u32,
    /// Bytes waiting to be written on its link.
    pub queue: u32,
    /// Round trip of the last heartbeat.
    pub rtt_ms: f64,
    /// Smoothed time to the head of an HTTP response.
    pub latency_ms: f64,
    /// Smoothed share of HTTP requests that got no answer or one of 500 and more (0 to 1); forgotten without requests.
    pub errors: f64,
    /// Seconds since it was linked, or came back from an ejection.
    pub age_s: f64,
    /// Its share relative to the others; 1 unless configured.
    pub weight: f64,
    /// Whether it is leaving; the same as `state == "draining"`.
    pub draining: bool,
    /// Numbers scraped from its metrics.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub load: BTreeMap<String, f64>,
    /// How old `load` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_age_s: Option<f64>,
}

impl Default for MonolithRow {
    fn default() -> Self {
        Self {
            id: MonolithId::from(""),
            region: Region::from(""),
            state: MonolithState::Up,
            rooms: 0,
            clients: 0,
            users: 0,
            pending: 0,
            inflight: 0,
            queue: 0,
            rtt_ms: 0.0,
            latency_ms: 0.0,
            errors: 0.0,
            age_s: 0.0,
            weight: 1.0,
            draining: false,
            load: BTreeMap::new(),
            load_age_s: None,
        }
    }
}

impl MonolithRow {
    /// Whether it may take new work.
    pub fn serves(&self) -> bool {
        self.state == MonolithState::Up && !self.draining
    }
}

/// All Monoliths at one moment, sorted by id.
///
/// `versions[i]` changes whenever `rows[i]` does, and `membership` whenever a row comes, goes or starts or stops
/// serving, so that a script's copy is patched row by row instead of being built anew.
///
/// Version numbers are drawn from one counter of the process, so the same number stands for the same content in every
/// view, clones included: a copy that was made from one view can be brought up to date from another.
#[derive(Clone, Debug, Default)]
pub struct View {
    rows: Vec<MonolithRow>,
    versions: Vec<u64>,
    membership: u64,
}

impl View {
    /// A view of these rows, in any order.
    pub fn of(rows: impl IntoIterator<Item = MonolithRow>) -> Self {
        let mut view = Self::default();
        for row in rows {
            view.insert(row);
        }
        view
    }

    /// The rows, sorted by id.
    pub fn rows(&self) -> &[MonolithRow] {
        &self.rows
    }

    /// The version of each row; never the same number twice within the process, except in clones.
    pub fn versions(&self) -> &[u64] {
        &self.versions
    }

    /// Rises with every change: version numbers are never used twice, so equal revisions are equal views.
    pub fn revision(&self) -> u64 {
        self.versions.iter().copied().fold(self.membership, u64::max)
    }

    /// The version of the set of rows and of who serves.
    pub fn membership(&self) -> u64 {
        self.membership
    }

    /// The row of a Monolith.
    pub fn get(&self, id: &MonolithId) -> Option<&MonolithRow> {
        self.position(id).ok().map(|at| &self.rows[at])
    }

    /// Adds a Monolith, or replaces its row.
    pub fn insert(&mut self, row: MonolithRow) {
        let version = tick();
        self.membership = version;
        match self.position(&row.id) {
            Ok(at) => {
                self.rows[at] = row;
                self.versions[at] = version;
            }
            Err(at) => {
                self.rows.insert(at, row);
                self.versions.insert(at, version);
            }
        }
    }

    /// Removes a Monolith.
    pub fn remove(&mut self, id: &MonolithId) -> Option<MonolithRow> {
        let at = self.position(id).ok()?;
        self.membership = tick();
        self.versions.remove(at);
        Some(self.rows.remove(at))
    }

    /// Changes a row. Its id is its place: a change of it is undone.
    pub fn update(&mut self, id: &MonolithId, change: impl FnOnce(&mut MonolithRow)) {
        if let Ok(at) = self.position(id) {
            self.update_at(at, change);
        }
    }

    /// As [`Self::update`], for whoever knows the row's place among [`Self::rows`].
    pub fn update_at(&mut self, at: usize, change: impl FnOnce(&mut MonolithRow)) {
        let Some(row) = self.rows.get_mut(at) else { return };
        let (served, id) = (row.serves(), row.id.clone());
        change(row);
        row.id = id;
        let version = tick();
        self.versions[at] = version;
        if row.serves() != served {
            self.membership = version;
        }
    }

    fn position(&self, id: &MonolithId) -> Result<usize, usize> {
        // Ids that came from a view, as nearly all do, are found without a look at their texts.
        if self.rows.len() <= FEW
            && let Some(at) = self.rows.iter().position(|row| row.id.is_same(id))
        {
            return Ok(at);
        }
        self.rows.binary_search_by(|row| row.id.cmp(id))
    }
}

/// Rows among which one after the other is looked at.
const FEW: usize = 16;

fn tick() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Everything besides the Monoliths that a script sees in one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Which decision is due.
    pub hook: Hook,
    /// The call's clock, in microseconds since the Unix epoch. Scripts read it in seconds.
    #[serde(default)]
    pub now_us: u64,
    /// What the call's randomness grows from.
    #[serde(default)]
    pub seed: u64,
    /// The region of this balancer.
    pub region: Region,
    /// The room, where the hook has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<CallRoom>,
    /// The client, where the hook has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<CallClient>,
    /// Why a room is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The HTTP request, where the hook has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<CallRequest>,
    /// Monoliths that this attempt may not choose again: they are not in `call.monoliths`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<MonolithId>,
    /// The rooms of this balancer (`rebalance`), each with its owner, sorted by name.
    #[serde(default, skip_serializing_if = "no_rooms")]
    pub rooms: Arc<[CallRoom]>,
}

fn no_rooms(rooms: &Arc<[CallRoom]>) -> bool {
    rooms.is_empty()
}

/// A room as a script sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallRoom {
    /// Its name in lower case; absent when the Monolith will make one up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
    /// The edge region of its first member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// Members that are waiting or joined.
    pub clients: u32,
    /// The same by edge region.
    pub regions: BTreeMap<Region, u32>,
    /// The Monolith's metadata of it, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Value>,
    /// Where it was before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    /// Which attempt at placing it this is, from 1.
    pub attempt: u32,
    /// Whether a Monolith has it (`admit`, `rebalance`).
    pub bound: bool,
    /// Which one (`admit`, `rebalance`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<MonolithId>,
    /// Seconds since this balancer placed it there, if it did (`rebalance`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_s: Option<f64>,
}

/// The last Monolith of a room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Previous {
    /// Its id.
    pub monolith: MonolithId,
    /// Why the room left it: `timeout`, `link_down`, `unloaded`, `refused`, `moved` or `duplicate`.
    pub why: String,
}

/// A client as a script sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallClient {
    /// The region at whose edge the user arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// Whether the client says that it comes back.
    pub reconnect: bool,
    /// How often it has asked, from 1.
    pub attempt: u32,
}

/// An HTTP request as a script sees it: never a credential, never an address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallRequest {
    /// `GET`, `POST`...
    pub method: Arc<str>,
    /// The path, without the query.
    pub path: Arc<str>,
    /// The `Host`, where given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Arc<str>>,
    /// The region at whose edge the user arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// The headers that `policy.headers` names, in lower case.
    pub headers: BTreeMap<String, String>,
    /// The query parameters that `policy.query` names.
    pub query: BTreeMap<String, String>,
}

/// What a hook returned, understood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// `nil`, or no such hook: the built-in default decides.
    Default,
    /// Monoliths, best first.
    Ranked(Vec<MonolithId>),
    /// `true`: the client may join.
    Admit,
    /// Nobody: a status or close code, and why.
    Reject {
        /// 400 to 599, 1013, or 4000 to 4999.
        code: u16,
        /// For the user.
        reason: String,
    },
    /// Ask again later.
    Hold {
        /// How much later.
        #[serde(with = "duration_ms")]
        delay: Duration,
    },
    /// Rooms to move.
    Moves(Vec<Move>),
}

/// One room to move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// The room's name.
    pub room: String,
    /// Where to.
    pub to: MonolithId,
}

/// Why a call of a script gave no usable answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The script raised an error.
    Error,
    /// More safepoints than `policy.fuel`.
    Fuel,
    /// More CPU time than `policy.budget`.
    CpuTime,
    /// More memory than `policy.memory`.
    Memory,
    /// A library call over its cap.
    NativeCap,
    /// An answer that the contract does not know.
    BadAnswer,
    /// Every Monolith that it named is unknown, gone, draining or excluded.
    NotEligible,
}

impl FaultKind {
    /// A stable label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Fuel => "fuel",
            Self::CpuTime => "cpu_time",
            Self::Memory => "memory",
            Self::NativeCap => "native_cap",
            Self::BadAnswer => "bad_answer",
            Self::NotEligible => "not_eligible",
        }
    }
}

/// A fault of a policy, with where and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// `file:line: what`, where the line is known.
    pub message: String,
}

/// What came of a call: the answer, and the Monoliths that may be tried, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What the policy said; [`Answer::Default`] after a fault.
    pub answer: Answer,
    /// Who may be tried: the policy's own names that are eligible, then the default's, each once. Empty for answers
    /// that name none.
    pub choices: Vec<MonolithId>,
    /// Why the built-in default decided instead, if it did by fault.
    pub fault: Option<Fault>,
}

mod duration_ms {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(delay: &Duration, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}
