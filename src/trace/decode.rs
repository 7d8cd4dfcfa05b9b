//! Lines to records. Every call comes back whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::FORMAT;
use super::record::{AnyLine, Counts, Gap, Header, Outcome, PolicyText, TraceEvent};
use crate::model::MonolithId;
use crate::model::policy::{Call, MonolithRow, View};

/// One line, understood.
#[derive(Debug, PartialEq)]
pub enum Item {
    /// The beginning of a file.
    Header(Box<Header>),
    /// Another policy decides from here on.
    Policy(Box<PolicyText>),
    /// The Monoliths changed in more than counts.
    View,
    /// Something happened.
    Event(TraceEvent),
    /// Something is missing here.
    Gap(Gap),
    /// A decision; [`Decoder::view`] is what it saw.
    Decision {
        /// Its number in the file, from 1.
        number: u64,
        /// What was asked.
        call: Box<Call>,
        /// What came of it.
        outcome: Box<Outcome>,
    },
}

/// Reads line after line of one file.
#[derive(Debug, Default)]
pub struct Decoder {
    base: BTreeMap<MonolithId, MonolithRow>,
    number: Option<u64>,
    /// The base with the counts of the last decision. Only what differs is touched, so that a VM that follows it has
    /// little to patch.
    view: View,
    touched: Vec<MonolithId>,
    /// The version that decided last, which mostly decided the next one too.
    version: Option<Arc<str>>,
}

impl Decoder {
    /// The Monoliths as the last decision saw them.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Reads one line, without its line end, and says at which moment it happened: microseconds since the start.
    pub fn line(&mut self, text: &[u8]) -> Result<(u64, Item), String> {
        let line: AnyLine<'_> = serde_json::from_slice(text).map_err(|e| cause(&e))?;
        let t = line.t;
        if let Some(format) = line.usher_trace {
            if format != FORMAT {
                return Err(format!("format {format}; this usher reads {FORMAT}"));
            }
            let header = Header::deserialize(&mut serde_json::Deserializer::from_slice(text)).map_err(|e| cause(&e))?;
            *self = Self::default();
            return Ok((0, Item::Header(Box::new(header))));
        }
        if let Some(number) = line.decision {
            let item = self.decision(number, line)?;
            return Ok((t, item));
        }
        if line.event.is_some() {
            let event = serde_json::from_slice(text).map_err(|e| cause(&e))?;
            return Ok((t, Item::Event(event)));
        }
        if let Some(gap) = line.gap {
            return Ok((t, Item::Gap(gap)));
        }
        if let Some(number) = line.view {
            self.renew(number, line.monoliths, &line.gone)?;
            return Ok((t, Item::View));
        }
        let Some(policy) = line.policy else {
            return Err("neither a header, a view, an event, a decision, a policy nor a gap".into());
        };
        let policy = serde_json::from_str(policy.get()).map_err(|e| cause(&e))?;
        Ok((t, Item::Policy(Box::new(policy))))
    }

    fn decision(&mut self, number: u64, line: AnyLine<'_>) -> Result<Item, String> {
        let Some(view) = line.view else { return Err("a decision without a view".into()) };
        if self.number != Some(view) {
            return Err(format!("refers to view {view}, which is missing"));
        }
        let (Some(call), Some(answer), Some(policy)) = (line.call, line.answer, line.policy) else {
            return Err("a decision without its call, answer or policy".into());
        };
        self.apply(&line.counts)?;
        let policy = self.version(policy)?;
        let AnyLine { reads, choice, ns, fallback, bypassed, incomplete, .. } = line;
        let outcome = Outcome { reads, answer, choice, policy, ns, fallback, bypassed, incomplete };
        Ok(Item::Decision { number, call: Box::new(call), outcome: Box::new(outcome) })
    }

    fn version(&mut self, raw: &RawValue) -> Result<Arc<str>, String> {
        let quoted =
            |text: &Arc<str>| raw.get().strip_prefix('"').and_then(|raw| raw.strip_suffix('"')) == Some(&**text);
        if let Some(version) = self.version.as_ref().filter(|version| quoted(version)) {
            return Ok(version.clone());
        }
        let version: Arc<str> = serde_json::from_str(raw.get()).map_err(|e| cause(&e))?;
        // One with an escape in it is written otherwise than it is.
        self.version = (!version.contains(['"', '\\'])).then(|| version.clone());
        Ok(version)
    }

    fn renew(&mut self, number: u64, monoliths: Vec<MonolithRow>, gone: &[MonolithId]) -> Result<(), String> {
        // A view holds only what is new in it, so one that is missing takes the following ones with it, up to the next
        // one that is whole.
        if number != 1 && self.number != Some(number - 1) {
            self.number = None;
            return Err(format!("view {number} builds on one that is missing"));
        }
        self.apply(&BTreeMap::new())?;
        let left: Vec<MonolithId> = if number == 1 {
            let there: BTreeSet<&MonolithId> = monoliths.iter().map(|row| &row.id).collect();
            self.base.keys().filter(|id| !there.contains(id)).cloned().collect()
        } else {
            gone.to_vec()
        };
        for id in &left {
            self.base.remove(id);
            self.view.remove(id);
        }
        for row in monoliths {
            // Only one that is new changes who is there: a VM that follows the view then patches rows, not lists.
            match self.view.get(&row.id) {
                Some(same) if *same == row => {}
                Some(_) => self.view.update(&row.id, |old| old.clone_from(&row)),
                None => self.view.insert(row.clone()),
            }
            self.base.insert(row.id.clone(), row);
        }
        self.number = Some(number);
        Ok(())
    }

    /// Makes the view the base with these counts.
    fn apply(&mut self, counts: &BTreeMap<MonolithId, Counts>) -> Result<(), String> {
        let touched = std::mem::take(&mut self.touched);
        for id in touched.iter().filter(|id| !counts.contains_key(*id)) {
            self.show(id, Counts::default());
        }
        for (id, counts) in counts {
            if !self.base.contains_key(id) {
                return Err(format!("counts of {id}, which is in no view"));
            }
            self.show(id, *counts);
            self.touched.push(id.clone());
        }
        Ok(())
    }

    fn show(&mut self, id: &MonolithId, counts: Counts) {
        let Some(mut wanted) = self.base.get(id).cloned() else { return };
        counts.apply(&mut wanted);
        if self.view.get(id) != Some(&wanted) {
            self.view.update(id, |row| *row = wanted);
        }
    }
}

/// What is wrong with a line, without the position in it that serde counts as a line of its own.
fn cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} (column {})", error.column()),
        None => text,
    }
}
