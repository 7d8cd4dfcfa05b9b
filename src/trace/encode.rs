//! Records to lines. A view line comes only when more than counts has changed since the last one, and says only what has;
//! now and then one says everything, so that a line that is damaged does not take the rest of the file with it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::record::{Counts, Decided, DecisionLine, Gap, Header, Line, LiveEvent, PolicyText, TraceEvent};
use super::redact::Redactor;
use super::snapshot::Snapshot;
use crate::model::policy::MonolithRow;
use crate::model::{ClientId, MonolithId};

/// Microseconds and bytes after which the view is written whole again: both must have gone by, so that neither an idle
/// balancer nor a busy one with many Monoliths writes much more for it.
const WHOLE_AFTER: (u64, usize) = (10_000_000, 1 << 20);

/// Writes the lines of one file, each with its line end.
pub struct Encoder {
    redactor: Option<Redactor>,
    base: Base,
    /// What was said of each version in this file, by its hash.
    declared: BTreeMap<String, Arc<PolicyText>>,
    decisions: u64,
    clients: HashMap<ClientId, u64, RandomState>,
    next_client: u64,
}

/// The view that decisions refer to.
#[derive(Default)]
struct Base {
    /// View 1 is whole, and the following ones build on it.
    number: u64,
    view: Snapshot,
    /// Monoliths that went since it was written whole: whoever missed that is told again.
    gone: Vec<MonolithId>,
    /// When it was written whole, and the bytes since then.
    whole_at: u64,
    bytes: usize,
}

impl Encoder {
    /// An encoder that hides the names of rooms if it is given a redactor.
    pub fn new(redactor: Option<Redactor>) -> Self {
        let (base, declared, clients) = (Base::default(), BTreeMap::new(), HashMap::default());
        Self { redactor, base, declared, decisions: 0, clients, next_client: 1 }
    }

    /// The first line of a file. What follows refers to nothing that stands in another file.
    pub fn header(&mut self, header: &Header, out: &mut Vec<u8>) {
        self.base = Base::default();
        self.declared.clear();
        self.declared.insert(header.policy.version.clone(), Arc::new(header.policy.clone()));
        self.decisions = 0;
        // Whoever joined in another file has no number here, nor has one whose leave was dropped for ever.
        self.clients.clear();
        line(header, out);
    }

    /// Another policy decides from here on, or the same text with other settings or limits: what is said of a version
    /// last counts.
    pub fn policy(&mut self, t: u64, policy: &PolicyText, out: &mut Vec<u8>) {
        self.declared.insert(policy.version.clone(), Arc::new(policy.clone()));
        line(&Line::Policy { t, policy }, out);
    }

    /// This policy takes the next decision: says what it is, unless the file says so already.
    pub fn declare(&mut self, t: u64, policy: &Arc<PolicyText>, out: &mut Vec<u8>) {
        match self.declared.get_mut(&policy.version) {
            Some(known) if Arc::ptr_eq(known, policy) => {}
            Some(known) if **known == **policy => *known = policy.clone(),
            _ => {
                self.declared.insert(policy.version.clone(), policy.clone());
                line(&Line::Policy { t, policy }, out);
            }
        }
    }

    /// Something is missing here.
    pub fn gap(&mut self, t: u64, gap: Gap, out: &mut Vec<u8>) {
        line(&Line::Gap { t, gap }, out);
    }

    /// Something happened.
    pub fn event(&mut self, t: u64, event: LiveEvent, out: &mut Vec<u8>) {
        let Some(event) = self.numbered(event) else { return };
        let event = match &self.redactor {
            Some(redactor) => redactor.event(event),
            None => event,
        };
        let start = out.len();
        line(&Line::Event { t, event }, out);
        self.base.bytes += out.len() - start;
    }

    /// A decision, after a view line if its view needs one.
    pub fn decision(&mut self, t: u64, decided: Decided, out: &mut Vec<u8>) {
        let Decided { mut call, view, mut outcome } = decided;
        if let Some(redactor) = &self.redactor {
            redactor.decision(&mut call, &mut outcome);
        }
        let start = out.len();
        self.base.restate(t, out);
        let counts = match self.base.counts(&view) {
            Some(counts) => counts,
            None => {
                self.base.renew(t, view.clone(), out);
                BTreeMap::new()
            }
        };
        self.decisions += 1;
        let (decision, hook) = (self.decisions, call.hook);
        let decision =
            DecisionLine { t, decision, hook, view: self.base.number, counts, call: &call, outcome: &outcome };
        line(&Line::Decision(decision), out);
        self.base.bytes += out.len() - start;
    }

    /// The event with a number in place of a client's id; none for the leave of one that came before the trace.
    fn numbered(&mut self, event: LiveEvent) -> Option<TraceEvent> {
        Some(match event {
            TraceEvent::Join { client, room, region, reconnect } => {
                let number = self.next_client;
                self.next_client += 1;
                self.clients.insert(client, number);
                TraceEvent::Join { client: number, room, region, reconnect }
            }
            TraceEvent::Leave { client } => TraceEvent::Leave { client: self.clients.remove(&client)? },
            TraceEvent::MonolithUp { monolith, region } => TraceEvent::MonolithUp { monolith, region },
            TraceEvent::MonolithDown { monolith } => TraceEvent::MonolithDown { monolith },
            TraceEvent::Load { monolith, load } => TraceEvent::Load { monolith, load },
            TraceEvent::Gossip { monolith, rooms, users } => TraceEvent::Gossip { monolith, rooms, users },
            TraceEvent::Loaded { monolith, room } => TraceEvent::Loaded { monolith, room },
            TraceEvent::Unloaded { monolith, room, reason } => TraceEvent::Unloaded { monolith, room, reason },
            TraceEvent::Request { room, region } => TraceEvent::Request { room, region },
        })
    }
}

impl Base {
    /// How a view differs from this one; none if more than counts does.
    fn counts<'a>(&self, view: &'a Snapshot) -> Option<BTreeMap<&'a MonolithId, Counts>> {
        if self.number == 0 || self.view.rows().len() != view.rows().len() {
            return None;
        }
        let mut counts = BTreeMap::new();
        let versions = self.view.versions().iter().zip(view.versions());
        for ((old, new), (old_version, new_version)) in self.view.rows().iter().zip(view.rows()).zip(versions) {
            // Equal versions are equal content, which nearly every row of a large cluster has.
            if old_version == new_version {
                continue;
            }
            if old.id != new.id {
                return None;
            }
            let differs = Counts::between(old, new)?;
            if !differs.is_empty() {
                counts.insert(&new.id, differs);
            }
        }
        Some(counts)
    }

    /// Takes a view up, and writes what is new in it.
    fn renew(&mut self, t: u64, view: Snapshot, out: &mut Vec<u8>) {
        let old = std::mem::replace(&mut self.view, view);
        let is_new = |row: &&Arc<MonolithRow>| old.get(&row.id).is_none_or(|old| !Arc::ptr_eq(old, row) && old != *row);
        let monoliths = self.view.rows().iter().filter(is_new).map(|row| &**row).collect();
        let gone: Vec<&MonolithId> =
            old.rows().iter().map(|row| &row.id).filter(|id| self.view.get(id).is_none()).collect();
        self.number += 1;
        if self.number == 1 {
            self.whole_at = t;
        }
        self.gone.extend(gone.iter().map(|id| (*id).clone()));
        line(&Line::View { t, view: self.number, monoliths, gone }, out);
    }

    /// Writes the view whole, if it is time to: what follows builds on it alone.
    fn restate(&mut self, t: u64, out: &mut Vec<u8>) {
        let (after, bytes) = WHOLE_AFTER;
        if self.number == 0 || self.bytes < bytes || t.saturating_sub(self.whole_at) < after {
            return;
        }
        // The number says that it is whole. Whoever misses this line stands at another number, or has the same rows.
        (self.number, self.whole_at, self.bytes) = (1, t, 0);
        let gone = std::mem::take(&mut self.gone);
        let gone = gone.iter().filter(|id| self.view.get(id).is_none()).collect();
        let monoliths = self.view.rows().iter().map(|row| &**row).collect();
        line(&Line::View { t, view: 1, monoliths, gone }, out);
    }
}

/// Appends one line. Nothing in a trace fails to become JSON: its keys are texts, and numbers that JSON does not have
/// become null.
fn line(value: &impl serde::Serialize, out: &mut Vec<u8>) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(start);
        return;
    }
    out.push(b'\n');
}
