//! What a trace holds. Never a token, a cookie, an address or a message: none of these types has a place for one.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::snapshot::Snapshot;
use crate::config::Distances;
use crate::model::policy::{Answer, Call, Fault, Hook, MonolithRow};
use crate::model::read::Read;
use crate::model::wire::UnloadReason;
use crate::model::{ClientId, MonolithId, Region};
use crate::policy::lua::{Limits, Source};

/// The first line of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format.
    pub usher_trace: u32,
    /// Who recorded.
    pub balancer: String,
    /// Its region.
    pub region: Region,
    /// When `t` was 0, in microseconds since the Unix epoch.
    pub started_us: u64,
    /// The version of usher.
    pub version: String,
    /// Whether the names of rooms are hashed.
    pub redacted: bool,
    /// How far regions are apart.
    pub distances: Distances,
    /// The policy that decides.
    pub policy: PolicyText,
}

impl Header {
    /// A header of this format, written by this usher, of a balancer without a name. This policy decides.
    pub fn of(policy: PolicyText) -> Self {
        Self {
            usher_trace: super::FORMAT,
            balancer: String::new(),
            region: "".into(),
            started_us: 0,
            version: env!("CARGO_PKG_VERSION").into(),
            redacted: false,
            distances: Distances::default(),
            policy,
        }
    }
}

/// A policy with all that its answers depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyText {
    /// Its name.
    pub name: String,
    /// Its content hash.
    pub version: String,
    /// `policies/NAME.lua`, or the name of its file without folders: what its errors are located in.
    pub file: String,
    /// Its text.
    pub source: Arc<str>,
    /// `usher.settings`.
    #[serde(default)]
    pub settings: Map<String, Json>,
    /// Safepoints of one call.
    pub fuel: u64,
    /// Bytes of its VM.
    pub memory: usize,
}

impl PolicyText {
    /// A policy without settings, within the limits that hold unless others are configured.
    pub fn of(source: &Source) -> Self {
        let Limits { fuel, memory, .. } = Limits::default();
        Self {
            name: source.name.clone(),
            version: source.version(),
            file: source.file(),
            source: source.text.clone(),
            settings: Map::new(),
            fuel,
            memory,
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TraceEvent<Client = u64> {
    /// A Monolith was linked.
    MonolithUp {
        /// Its id.
        monolith: MonolithId,
        /// Its region.
        region: Region,
    },
    /// A link is gone.
    MonolithDown {
        /// Whose.
        monolith: MonolithId,
    },
    /// Numbers were scraped from a Monolith.
    Load {
        /// Whose.
        monolith: MonolithId,
        /// By the names of the configuration.
        load: BTreeMap<String, f64>,
    },
    /// A Monolith said what it has.
    Gossip {
        /// Which one.
        monolith: MonolithId,
        /// How many rooms.
        rooms: u32,
        /// How many users in them, over all balancers.
        users: u32,
    },
    /// A room is in a Monolith's memory.
    Loaded {
        /// Whose.
        monolith: MonolithId,
        /// Its name in lower case.
        room: Arc<str>,
    },
    /// A room has left a Monolith's memory.
    Unloaded {
        /// Whose.
        monolith: MonolithId,
        /// Its name in lower case.
        room: Arc<str>,
        /// Why.
        reason: UnloadReason,
    },
    /// A client asked to be let into a room.
    Join {
        /// A number that only this trace knows it by.
        client: Client,
        /// The room's name in lower case.
        room: Arc<str>,
        /// The edge region of the client.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<Region>,
        /// Whether it says that it comes back.
        #[serde(default)]
        reconnect: bool,
    },
    /// A client has gone.
    Leave {
        /// The number of its join.
        client: Client,
    },
    /// An HTTP request needed a Monolith.
    Request {
        /// The room's name in lower case; absent where the Monolith makes it up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        room: Option<Arc<str>>,
        /// The edge region of the client.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<Region>,
    },
}

/// An event as the balancer knows it.
pub type LiveEvent = TraceEvent<ClientId>;

/// One decision with everything that it depended on.
#[derive(Clone, Debug)]
pub struct Decided {
    /// What was asked.
    pub call: Call,
    /// The Monoliths as the script saw them.
    pub view: Snapshot,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What the script read besides its call, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<Read>,
    /// What it said; [`Answer::Default`] after a fault.
    pub answer: Answer,
    /// The Monolith that was tried first, after the core's checks.
    pub choice: Option<MonolithId>,
    /// The version of the policy that decided.
    pub policy: Arc<str>,
    /// How long it took.
    pub ns: u64,
    /// Why the built-in default decided instead, if it did by fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fault>,
    /// Whether an open breaker kept the call from the policy, so that the built-in default decided.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bypassed: bool,
    /// Whether the script read more than was kept. Then `reads` is empty and the call cannot be made again as it was: a
    /// replay counts it and passes it over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}

impl Outcome {
    /// This version chose this Monolith in a microsecond, and read nothing besides its call.
    pub fn chosen(id: &MonolithId, version: &str) -> Self {
        Self {
            reads: Vec::new(),
            answer: Answer::Ranked(vec![id.clone()]),
            choice: Some(id.clone()),
            policy: version.into(),
            ns: 1_000,
            fallback: None,
            bypassed: false,
            incomplete: false,
        }
    }
}

/// Something that is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Events that were not recorded.
    pub events: u64,
    /// Decisions that were not recorded.
    pub decisions: u64,
}

/// Counts of one Monolith that differ from the view that a decision refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rooms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) clients: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) users: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) inflight: Option<u32>,
}

impl Counts {
    /// What turns one row into another; none if more than counts differ.
    pub(super) fn between(base: &MonolithRow, now: &MonolithRow) -> Option<Self> {
        let differs = |old: u32, new: u32| (old != new).then_some(new);
        let MonolithRow {
            id,
            region,
            state,
            rooms,
            clients,
            users,
            pending,
            inflight,
            queue,
            rtt_ms,
            latency_ms,
            errors,
            age_s,
            weight,
            draining,
            load,
            load_age_s,
        } = base;
        let same = (id, region, state, queue, draining)
            == (&now.id, &now.region, &now.state, &now.queue, &now.draining)
            && (rtt_ms, latency_ms, errors) == (&now.rtt_ms, &now.latency_ms, &now.errors)
            && (age_s, weight, load, load_age_s) == (&now.age_s, &now.weight, &now.load, &now.load_age_s);
        same.then(|| Self {
            rooms: differs(*rooms, now.rooms),
            clients: differs(*clients, now.clients),
            users: differs(*users, now.users),
            pending: differs(*pending, now.pending),
            inflight: differs(*inflight, now.inflight),
        })
    }

    /// All counts of a row.
    pub(super) fn of(row: &MonolithRow) -> Self {
        Self {
            rooms: Some(row.rooms),
            clients: Some(row.clients),
            users: Some(row.users),
            pending: Some(row.pending),
            inflight: Some(row.inflight),
        }
    }

    /// These, and those of the base where there is none.
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            rooms: self.rooms.or(base.rooms),
            clients: self.clients.or(base.clients),
            users: self.users.or(base.users),
            pending: self.pending.or(base.pending),
            inflight: self.inflight.or(base.inflight),
        }
    }

    /// Changes a row.
    pub(super) fn apply(self, row: &mut MonolithRow) {
        let set = |field: &mut u32, value: Option<u32>| *field = value.unwrap_or(*field);
        set(&mut row.rooms, self.rooms);
        set(&mut row.clients, self.clients);
        set(&mut row.users, self.users);
        set(&mut row.pending, self.pending);
        set(&mut row.inflight, self.inflight);
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// The lines of a file, apart from the first.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Line<'a> {
    Policy {
        t: u64,
        policy: &'a PolicyText,
    },
    View {
        t: u64,
        view: u64,
        monoliths: Vec<&'a MonolithRow>,
        gone: Vec<&'a MonolithId>,
    },
    Event {
        t: u64,
        #[serde(flatten)]
        event: TraceEvent,
    },
    Gap {
        t: u64,
        gap: Gap,
    },
    Decision(DecisionLine<'a>),
}

#[derive(Debug, Serialize)]
pub(super) struct DecisionLine<'a> {
    pub(super) t: u64,
    pub(super) decision: u64,
    pub(super) hook: Hook,
    pub(super) view: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) counts: BTreeMap<&'a MonolithId, Counts>,
    pub(super) call: &'a Call,
    #[serde(flatten)]
    pub(super) outcome: &'a Outcome,
}

/// A line on its way in: what it is shows in the keys that it has.
#[derive(Debug, Deserialize)]
pub(super) struct AnyLine<'a> {
    #[serde(default)]
    pub(super) t: u64,
    #[serde(default)]
    pub(super) usher_trace: Option<u32>,
    #[serde(default)]
    pub(super) decision: Option<u64>,
    #[serde(default)]
    pub(super) view: Option<u64>,
    #[serde(default)]
    pub(super) counts: BTreeMap<MonolithId, Counts>,
    #[serde(default)]
    pub(super) monoliths: Vec<MonolithRow>,
    #[serde(default)]
    pub(super) gone: Vec<MonolithId>,
    #[serde(default)]
    pub(super) call: Option<Call>,
    #[serde(default)]
    pub(super) event: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    pub(super) gap: Option<Gap>,
    #[serde(default)]
    pub(super) reads: Vec<Read>,
    #[serde(default)]
    pub(super) answer: Option<Answer>,
    #[serde(default)]
    pub(super) choice: Option<MonolithId>,
    #[serde(default, borrow)]
    pub(super) policy: Option<&'a serde_json::value::RawValue>,
    #[serde(default)]
    pub(super) ns: u64,
    #[serde(default)]
    pub(super) fallback: Option<Fault>,
    #[serde(default)]
    pub(super) bypassed: bool,
    #[serde(default)]
    pub(super) incomplete: bool,
}
