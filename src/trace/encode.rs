//! Records to lines. A view line comes only when more than counts has changed since the last one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::record::{Counts, Decided, DecisionLine, Gap, Header, Line, LiveEvent, PolicyText, TraceEvent};
use super::redact::Redactor;
use crate::model::policy::{MonolithRow, View};
use crate::model::{ClientId, MonolithId};

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
    number: u64,
    rows: Vec<MonolithRow>,
    versions: Vec<u64>,
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
        line(&Line::Event { t, event }, out);
    }

    /// A decision, after a view line if its view needs one.
    pub fn decision(&mut self, t: u64, decided: Decided, out: &mut Vec<u8>) {
        let Decided { mut call, view, mut outcome } = decided;
        if let Some(redactor) = &self.redactor {
            redactor.decision(&mut call, &mut outcome);
        }
        let counts = match self.base.counts(&view) {
            Some(counts) => counts,
            None => {
                self.base.renew(t, &view, out);
                BTreeMap::new()
            }
        };
        self.decisions += 1;
        let (decision, hook) = (self.decisions, call.hook);
        let decision =
            DecisionLine { t, decision, hook, view: self.base.number, counts, call: &call, outcome: &outcome };
        line(&Line::Decision(decision), out);
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
    fn counts<'a>(&self, view: &'a View) -> Option<BTreeMap<&'a MonolithId, Counts>> {
        if self.number == 0 || self.rows.len() != view.rows().len() {
            return None;
        }
        let mut counts = BTreeMap::new();
        let versions = self.versions.iter().zip(view.versions());
        for ((old, new), (old_version, new_version)) in self.rows.iter().zip(view.rows()).zip(versions) {
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
    fn renew(&mut self, t: u64, view: &View, out: &mut Vec<u8>) {
        let old: BTreeMap<&MonolithId, &MonolithRow> = self.rows.iter().map(|row| (&row.id, row)).collect();
        let monoliths = view.rows().iter().filter(|row| old.get(&row.id) != Some(row)).collect();
        let gone = self.rows.iter().map(|row| &row.id).filter(|id| view.get(id).is_none()).collect();
        self.number += 1;
        line(&Line::View { t, view: self.number, monoliths, gone }, out);
        self.rows = view.rows().to_vec();
        self.versions = view.versions().to_vec();
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
