//! The story of a room: what was decided about it and what happened to it, one chapter after another. The live balancer
//! and a trace tell it in the same words.

use serde::{Deserialize, Serialize};

use super::event::Micros;
use super::moves::MoveRefusal;
use super::policy::{Answer, Cause, FaultKind, Hook, MonolithRow, Previous};
use super::wire::UnloadReason;
use super::{Epoch, MonolithId, Region, RequestId, RoomKey};

/// Something that happened to a room, at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chapter {
    /// When, in microseconds since the Unix epoch.
    pub at: Micros,
    /// What.
    #[serde(flatten)]
    pub what: What,
    /// How often in a row.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub times: u32,
    /// When it happened last, if more than once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Micros>,
}

fn once() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like this")]
fn is_once(times: &u32) -> bool {
    *times == 1
}

/// What can happen to a room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// `place` was asked where it goes.
    Decided(Box<Decided>),
    /// It was expected at the target of a move and went there; no policy was asked.
    Sent {
        /// [`Cause::Move`].
        cause: Cause,
        /// Which attempt.
        attempt: u32,
        /// Where.
        monolith: MonolithId,
    },
    /// Another balancer was first to claim it, for a Monolith of its choice: it goes there as well.
    Claimed {
        /// Where it goes.
        monolith: MonolithId,
        /// Where it would have gone.
        instead_of: MonolithId,
    },
    /// It waits until the Monoliths have said what they have: one of them may have it.
    Waits,
    /// A Monolith has it, and everybody who waited goes there.
    Bound {
        /// Which one.
        monolith: MonolithId,
        /// The number of its load, once reported.
        epoch: Option<Epoch>,
        /// How that is known.
        how: Sign,
        /// Where it had been sent, if it turned up elsewhere: another balancer was first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instead_of: Option<MonolithId>,
    },
    /// A Monolith reports it, and nobody here had asked for it: it was loaded before, or another balancer sent it there.
    Found {
        /// Which one.
        monolith: MonolithId,
        /// The number of its load.
        epoch: Epoch,
    },
    /// A Monolith has created it over HTTP.
    Created {
        /// Which one.
        monolith: MonolithId,
    },
    /// The Monolith of an attempt did not take it.
    NotConfirmed {
        /// Which one.
        monolith: MonolithId,
        /// Which attempt.
        attempt: u32,
        /// `timeout`, `link_down` or `refused`.
        why: String,
    },
    /// A Monolith says that there is no such room, or refuses to create it.
    Denied {
        /// Which one.
        monolith: MonolithId,
        /// An HTTP status, or 4002 where it closed a client.
        code: u16,
    },
    /// Nobody took it: whoever waited was told so.
    Refused {
        /// Clients and requests that waited.
        waiting: usize,
        /// With which close code clients were closed.
        code: u16,
    },
    /// Somebody had waited for it for as long as anybody does, and was told so.
    WaitedTooLong {
        /// With which close code a client was closed.
        code: u16,
    },
    /// It was bound, and its Monolith never reported it.
    Unreported {
        /// Which one.
        monolith: MonolithId,
    },
    /// It left its Monolith's memory.
    Unloaded {
        /// Which one.
        monolith: MonolithId,
        /// What the Monolith gave as reason; none if it is merely missing in what the Monolith lists.
        reason: Option<UnloadReason>,
        /// Clients that were in it.
        clients: usize,
    },
    /// The link to its Monolith went.
    Lost {
        /// Which one.
        monolith: MonolithId,
        /// Clients that were in it.
        clients: usize,
    },
    /// Two Monoliths had it. The older load stays.
    Duplicate {
        /// Who keeps it.
        kept: MonolithId,
        /// The number of that load, once reported.
        kept_epoch: Option<Epoch>,
        /// Who is to unload it.
        lost: MonolithId,
        /// The number of that load, if reported.
        lost_epoch: Option<Epoch>,
        /// Clients that were in the one that lost.
        clients: usize,
    },
    /// A trace shows it loaded on one Monolith while another has it.
    SecondLoad {
        /// Where it was loaded.
        monolith: MonolithId,
        /// Who has it.
        first: MonolithId,
    },
    /// A policy named it among what should move (a trace does not say what came of it).
    MoveNamed {
        /// Where to.
        to: MonolithId,
        /// Who decided.
        policy: PolicyOf,
    },
    /// A dry run of `rebalance` would move it.
    WouldMove {
        /// Where to.
        to: MonolithId,
        /// Who decided.
        policy: Option<PolicyOf>,
    },
    /// It begins to move: its Monolith was asked to unload it.
    Moving {
        /// Who has it.
        from: MonolithId,
        /// Who is to have it; none if that is decided once it has left.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<MonolithId>,
        /// Clients that go with it.
        clients: usize,
        /// Who wanted it.
        by: Mover,
        /// Whether somebody in it still talked: its Monolith may not have saved what was said last.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lossy: bool,
        /// The version, where a policy did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<PolicyOf>,
        /// What that policy explained.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        explained: Vec<String>,
    },
    /// It was to move and may not.
    MoveRefused {
        /// Where to, if that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<MonolithId>,
        /// Who wanted it.
        by: Mover,
        /// Why not.
        why: MoveRefusal,
    },
    /// What came of a move.
    MoveEnded {
        /// Who was asked to let it go.
        from: MonolithId,
        /// Who was to have it, if that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<MonolithId>,
        /// How it ended.
        how: MoveEnd,
    },
    /// `admit` refused clients, held them, or failed.
    Admission {
        /// Who decided.
        policy: PolicyOf,
        /// What it said.
        answer: Answer,
        /// `file:line: what`, if it failed: then the client was let in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fault: Option<String>,
    },
    /// Who came and went since the chapter before (from a trace).
    Clients {
        /// Clients that asked to be let in.
        joined: u64,
        /// Clients that left.
        left: u64,
        /// HTTP requests that needed a Monolith.
        requests: u64,
    },
    /// Here a trace has a gap.
    Gap {
        /// Events that were not recorded.
        events: u64,
        /// Decisions that were not recorded.
        decisions: u64,
    },
    /// A chapter of a later usher.
    #[serde(other)]
    Unknown,
}

/// How it is known that a Monolith has a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// It reported the load.
    Reported,
    /// It sent a message to the client that had been sent ahead.
    Answered,
    /// It served the room over HTTP.
    Served,
}

/// Who wants a room to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mover {
    /// An operator.
    Hand,
    /// `rebalance`.
    Policy,
    /// A drain of its Monolith.
    Drain,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveEnd {
    /// Its Monolith let it go; whoever asks for it soon is sent to the target.
    LetGo,
    /// Its Monolith was lost meanwhile.
    SourceLost,
    /// Its Monolith did not let go in time, and keeps it.
    TimedOut,
    /// Everybody in it had left before its Monolith was asked.
    Deserted,
    /// Its Monolith loaded it anew, and keeps it.
    LoadedAgain,
    /// It turned up on another Monolith meanwhile.
    Elsewhere,
}

/// A version of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyOf {
    /// Its name.
    pub name: String,
    /// Its content hash.
    pub version: String,
    /// Whether it decided as a canary.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub canary: bool,
}

/// One decision of `place`, with what it was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// Which hook.
    pub hook: Hook,
    /// Why the room was placed.
    pub cause: Option<Cause>,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Who decided.
    pub policy: PolicyOf,
    /// The edge region of the room's first member.
    pub region: Option<Region>,
    /// Members that waited or were joined.
    pub clients: u32,
    /// Where the room was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    /// What the policy said; [`Answer::Default`] after a fault. Of a long list its beginning.
    pub answer: Answer,
    /// How many Monoliths it named.
    pub named: usize,
    /// Who was tried first; none if the policy refused, or nobody may take the room.
    pub monolith: Option<MonolithId>,
    /// `file:line: what`, if the policy failed, so that the built-in default decided.
    pub fault: Option<String>,
    /// The kind of that fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_kind: Option<FaultKind>,
    /// Whether an open breaker kept the call from the policy, so that the built-in default decided.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bypassed: bool,
    /// Monoliths that the policy named and that may not be chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overruled: Vec<Overruled>,
    /// Monoliths that failed earlier attempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<MonolithId>,
    /// What the script gave to `usher.explain`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub explained: Vec<String>,
    /// How long the call took, in nanoseconds.
    pub ns: u64,
    /// How many Monoliths there were.
    pub monoliths: usize,
    /// Some of them as the script saw them: those that it named, the one that was chosen, then the next choices.
    pub candidates: Vec<Candidate>,
}

/// A Monolith that the policy named and that may not be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overruled {
    /// Which one.
    pub monolith: MonolithId,
    /// Why not.
    pub why: String,
}

/// A Monolith in a decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its data.
    #[serde(flatten)]
    pub row: MonolithRow,
    /// At which place the policy named it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<usize>,
    /// Why it may not be chosen, if it may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

impl Decided {
    /// The most Monoliths whose data are kept, and the most names of an answer.
    pub const CANDIDATES: usize = 12;
    /// The most texts of `usher.explain` that are kept.
    pub const EXPLAINED: usize = 8;
    /// The most bytes of one text that are kept.
    pub const TEXT: usize = 512;
}

impl Chapter {
    /// A chapter of one moment.
    pub fn new(at: Micros, what: What) -> Self {
        Self { at, what, times: 1, until: None }
    }

    /// The same again at a later moment.
    pub fn again(&mut self, at: Micros, what: What) {
        self.what = what;
        self.times = self.times.saturating_add(1);
        self.until = Some(at);
    }

    /// Roughly what it takes in memory, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.what.heap()
    }
}

impl What {
    /// Whether it is a decision about where the room goes.
    pub fn is_decision(&self) -> bool {
        matches!(self, Self::Decided(_) | Self::Sent { .. })
    }

    /// Whether it tells so little that a room with nothing else to its story may be forgotten before others.
    pub fn is_minor(&self) -> bool {
        matches!(self, Self::Found { .. } | Self::Admission { .. })
    }

    /// Whether it says the same as another, apart from texts that differ with every client.
    pub fn repeats(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Admission { policy, answer, fault }, Self::Admission { policy: p, answer: a, fault: f }) => {
                policy == p && fault == f && std::mem::discriminant(answer) == std::mem::discriminant(a) && {
                    let code = |answer: &Answer| if let Answer::Reject { code, .. } = answer { *code } else { 0 };
                    code(answer) == code(a)
                }
            }
            (Self::Decided(_), _) => false,
            _ => self == other,
        }
    }

    fn heap(&self) -> usize {
        let texts = |texts: &[String]| texts.iter().map(|text| size_of::<String>() + text.len()).sum::<usize>();
        let version = |policy: &PolicyOf| policy.name.len() + policy.version.len();
        match self {
            Self::Decided(decided) => {
                let rows = decided.candidates.iter().map(|candidate| {
                    // A node of the map and its name, roughly.
                    size_of::<Candidate>() + candidate.row.load.len() * 64
                });
                let named = if let Answer::Ranked(ids) = &decided.answer { ids.len() * 16 } else { 0 };
                size_of::<Decided>()
                    + rows.sum::<usize>()
                    + named
                    + version(&decided.policy)
                    + texts(&decided.explained)
                    + decided.fault.as_ref().map_or(0, String::len)
                    + decided.overruled.len() * size_of::<Overruled>()
                    + decided.excluded.len() * size_of::<MonolithId>()
            }
            Self::Moving { policy, explained, .. } => policy.as_ref().map_or(0, version) + texts(explained),
            Self::MoveNamed { policy, .. } => version(policy),
            Self::WouldMove { policy, .. } => policy.as_ref().map_or(0, version),
            Self::Admission { policy, answer, fault } => {
                let reason = if let Answer::Reject { reason, .. } = answer { reason.len() } else { 0 };
                version(policy) + reason + fault.as_ref().map_or(0, String::len)
            }
            Self::NotConfirmed { why, .. } => why.len(),
            Self::Sent { .. }
            | Self::Claimed { .. }
            | Self::Waits
            | Self::Bound { .. }
            | Self::Found { .. }
            | Self::Created { .. }
            | Self::Denied { .. }
            | Self::Refused { .. }
            | Self::WaitedTooLong { .. }
            | Self::Unreported { .. }
            | Self::Unloaded { .. }
            | Self::Lost { .. }
            | Self::Duplicate { .. }
            | Self::SecondLoad { .. }
            | Self::MoveRefused { .. }
            | Self::MoveEnded { .. }
            | Self::Clients { .. }
            | Self::Gap { .. }
            | Self::Unknown => 0,
        }
    }
}

/// What the cluster says to whoever keeps stories.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// When.
    pub at: Micros,
    /// About which room.
    pub about: About,
}

/// What a note is about.
#[derive(Clone, Debug, PartialEq)]
pub enum About {
    /// A chapter of this room.
    Chapter(RoomKey, What),
    /// `place` was asked about this room just now. Those who look on know what it said; here it has its place among the
    /// chapters.
    Decided(RoomKey),
    /// The same on behalf of a request that creates a room without a name.
    DecidedFor(RequestId),
    /// The room of such a request has got this name.
    Named(RequestId, RoomKey),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(code: u16, reason: &str) -> What {
        let policy = PolicyOf { name: "p".into(), version: "1".into(), canary: false };
        What::Admission { policy, answer: Answer::Reject { code, reason: reason.into() }, fault: None }
    }

    #[test]
    fn chapters_survive_json_and_those_of_a_later_usher_are_passed_over() {
        let decided = Decided {
            hook: Hook::Place,
            cause: Some(Cause::Join),
            attempt: 1,
            policy: PolicyOf { name: "p".into(), version: "0123456789ab".into(), canary: true },
            region: Some("cdg".into()),
            clients: 1,
            previous: None,
            answer: Answer::Ranked(vec!["a".into()]),
            named: 1,
            monolith: Some("a".into()),
            fault: None,
            fault_kind: None,
            bypassed: false,
            overruled: vec![Overruled { monolith: "x".into(), why: "draining".into() }],
            excluded: Vec::new(),
            explained: vec!["because".into()],
            ns: 7,
            monoliths: 1,
            candidates: vec![Candidate {
                row: MonolithRow { id: "a".into(), rtt_ms: 0.1 + 0.2, ..MonolithRow::default() },
                named: Some(1),
                why_not: None,
            }],
        };
        let mut again = Chapter::new(9, What::WouldMove { to: "b".into(), policy: None });
        again.again(11, What::WouldMove { to: "b".into(), policy: None });
        let story = vec![
            Chapter::new(5, What::Waits),
            Chapter::new(6, What::Decided(Box::new(decided))),
            Chapter::new(7, admission(503, "full")),
            Chapter::new(8, What::Unloaded { monolith: "a".into(), reason: Some(UnloadReason::Keepalive), clients: 2 }),
            again,
        ];
        let json = serde_json::to_string(&story).unwrap();
        assert!(json.starts_with(r#"[{"at":5,"what":"waits"},{"at":6,"what":"decided","hook":"place""#), "{json}");
        assert_eq!(serde_json::from_str::<Vec<Chapter>>(&json).unwrap(), story);
        let later: Chapter = serde_json::from_str(r#"{"at":1,"what":"teleported","by":"magic"}"#).unwrap();
        assert_eq!(later.what, What::Unknown);
    }

    #[test]
    fn admissions_repeat_whatever_their_texts_say() {
        assert!(admission(503, "501 in it").repeats(&admission(503, "502 in it")));
        assert!(!admission(503, "full").repeats(&admission(403, "full")));
        assert!(!admission(503, "full").repeats(&What::Waits));
    }
}
