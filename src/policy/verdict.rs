//! What the core makes of a decision, and whether it makes the same of another one: the common ground of everything that
//! compares two policies.

use crate::model::policy::{Answer, Call, Decision, FaultKind, Hook, Move};
use crate::model::{MonolithId, Region};

/// Moves that a label spells out.
const MOVES: usize = 3;

/// What the core makes of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    hook: Hook,
    answer: &'a Answer,
    /// The Monolith that is tried first.
    pub first: Option<&'a MonolithId>,
    /// Why the built-in default decides instead, if it does by fault.
    pub fault: Option<FaultKind>,
}

/// What anybody notices of an answer.
#[derive(PartialEq)]
enum Noticed<'a> {
    Reject(u16),
    Hold(u128),
    Moves(&'a [Move]),
    Admit,
    Chosen(Option<&'a MonolithId>),
}

impl<'a> Verdict<'a> {
    /// What the core makes of this decision.
    pub fn of(hook: Hook, decision: &'a Decision) -> Self {
        let fault = decision.fault.as_ref().map(|fault| fault.kind);
        Self::new(hook, &decision.answer, decision.choices.first(), fault)
    }

    /// The same from parts that were kept.
    pub fn new(hook: Hook, answer: &'a Answer, first: Option<&'a MonolithId>, fault: Option<FaultKind>) -> Self {
        Self { hook, answer, first, fault }
    }

    /// Whether nobody notices that `to` decides instead. One that fails where this one does not is no agreement, even
    /// if the built-in default hits the same.
    pub fn agrees(&self, to: &Verdict<'_>) -> bool {
        let failed = to.fault.is_some() && self.fault.is_none();
        !failed && self.noticed() == to.noticed()
    }

    fn noticed(&self) -> Noticed<'a> {
        match (self.answer, self.hook) {
            (Answer::Reject { code, .. }, _) => Noticed::Reject(*code),
            (Answer::Hold { delay }, _) => Noticed::Hold(delay.as_millis()),
            (Answer::Moves(moves), _) => Noticed::Moves(moves),
            (_, Hook::Rebalance) => Noticed::Moves(&[]),
            (_, Hook::Admit) => Noticed::Admit,
            (_, Hook::Place | Hook::Route) => Noticed::Chosen(self.first),
        }
    }

    /// The Monolith that was chosen, if that is all that is to be said.
    pub fn only_chose(&self) -> Option<&'a MonolithId> {
        match self.noticed() {
            Noticed::Chosen(chosen) if self.fault.is_none() => chosen,
            _ => None,
        }
    }

    /// What was decided, in a few words: a Monolith, `reject 503`, `hold 5 ms`, `2 moves: ...`; after a fault with its
    /// kind.
    pub fn shown(&self) -> String {
        let label = match self.noticed() {
            Noticed::Reject(code) => format!("reject {code}"),
            Noticed::Hold(ms) => format!("hold {ms} ms"),
            Noticed::Moves(moves) => moves_label(moves),
            Noticed::Admit => "admit".into(),
            Noticed::Chosen(None) => "nobody".into(),
            Noticed::Chosen(Some(id)) => id.to_string(),
        };
        match self.fault {
            Some(kind) => format!("{label} (default after {})", kind.label()),
            None => label,
        }
    }
}

fn moves_label(moves: &[Move]) -> String {
    let some: Vec<String> = moves.iter().take(MOVES).map(|one| format!("{} to {}", one.room, one.to)).collect();
    let more = if moves.len() > MOVES { ", ..." } else { "" };
    match moves.len() {
        0 => "no moves".into(),
        1 => format!("1 move: {}", some.join(", ")),
        n => format!("{n} moves: {}{more}", some.join(", ")),
    }
}

/// The region of whoever asks, where it is known: the client's, else the room's, else the request's.
pub fn region(call: &Call) -> Option<&Region> {
    let client = call.client.as_ref().and_then(|client| client.region.as_ref());
    let room = call.room.as_ref().and_then(|room| room.region.as_ref());
    client.or(room).or_else(|| call.request.as_ref().and_then(|request| request.region.as_ref()))
}
