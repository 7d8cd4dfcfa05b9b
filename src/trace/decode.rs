//! Lines to records. Every call comes back whole.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::FORMAT;
use super::quick::{self, DecisionRead, Texts, Written};
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
    /// The counts of the base, row for row those of the view.
    base: Vec<Counts>,
    number: Option<u64>,
    /// The base with the counts of the last decision. Only what differs is touched, so that a VM that follows it has
    /// little to patch.
    view: View,
    /// The rows whose counts were not those of the base, in order.
    touched: Vec<usize>,
    /// The counts of the line at hand, in the order of the rows.
    counted: Vec<(usize, Counts)>,
    texts: Texts,
    /// The counts of the line before.
    written: Written,
}

impl Decoder {
    /// The Monoliths as the last decision saw them.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Reads one line, without its line end, and says at which moment it happened: microseconds since the start.
    pub fn line(&mut self, text: &[u8]) -> Result<(u64, Item), String> {
        match self.quick(text) {
            Some(found) => Ok(found),
            None => self.general(text),
        }
    }

    /// A decision or a view as the encoder writes it. Where there is none, nothing has changed.
    pub(super) fn quick(&mut self, text: &[u8]) -> Option<(u64, Item)> {
        self.quick_decision(text).or_else(|| self.quick_view(text))
    }

    fn quick_view(&mut self, text: &[u8]) -> Option<(u64, Item)> {
        let (t, number, monoliths, gone) = quick::view(text, &mut self.texts)?;
        // One that builds on another that is missing is told so the general way.
        if number != 1 && self.number != number.checked_sub(1) {
            return None;
        }
        self.renew(number, monoliths, &gone).ok()?;
        Some((t, Item::View))
    }

    fn quick_decision(&mut self, text: &[u8]) -> Option<(u64, Item)> {
        let read = quick::decision(text, &mut self.texts, self.view.rows(), &mut self.written, &mut self.counted)?;
        if self.number != Some(read.view) {
            return None;
        }
        self.apply();
        let DecisionRead { t, number, call, outcome, .. } = read;
        Some((t, Item::Decision { number, call, outcome }))
    }

    /// Any line, whoever wrote it.
    pub(super) fn general(&mut self, text: &[u8]) -> Result<(u64, Item), String> {
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
        let policy: String = serde_json::from_str(policy.get()).map_err(|e| cause(&e))?;
        self.counted.clear();
        for (id, counts) in &line.counts {
            let Some(at) = self.position(id) else { return Err(format!("counts of {id}, which is in no view")) };
            self.counted.push((at, *counts));
        }
        self.apply();
        let policy = self.texts.shared(&policy);
        let AnyLine { reads, choice, ns, fallback, bypassed, incomplete, .. } = line;
        let outcome = Outcome { reads, answer, choice, policy, ns, fallback, bypassed, incomplete };
        Ok(Item::Decision { number, call: Box::new(call), outcome: Box::new(outcome) })
    }

    fn position(&self, id: &MonolithId) -> Option<usize> {
        self.view.rows().binary_search_by(|row| row.id.cmp(id)).ok()
    }

    fn renew(&mut self, number: u64, monoliths: Vec<MonolithRow>, gone: &[MonolithId]) -> Result<(), String> {
        // A view holds only what is new in it, so one that is missing takes the following ones with it, up to the next
        // one that is whole.
        if number != 1 && (number == 0 || self.number != Some(number - 1)) {
            self.number = None;
            return Err(format!("view {number} builds on one that is missing"));
        }
        self.counted.clear();
        self.apply();
        let left: Vec<MonolithId> = if number == 1 {
            let there: BTreeSet<&MonolithId> = monoliths.iter().map(|row| &row.id).collect();
            self.view.rows().iter().map(|row| &row.id).filter(|id| !there.contains(id)).cloned().collect()
        } else {
            gone.to_vec()
        };
        for id in &left {
            if let Some(at) = self.position(id) {
                self.written.forget();
                self.base.remove(at);
                self.view.remove(id);
            }
        }
        let mut next = 0;
        for row in monoliths {
            let (id, counts) = (row.id.clone(), Counts::of(&row));
            // They come in the order of the rows, and often all of them.
            let here = self.view.rows().get(next).is_some_and(|row| row.id == id);
            // Only one that is new changes who is there: a VM that follows the view then patches rows, not lists.
            match if here { Some(next) } else { self.position(&id) } {
                Some(at) => {
                    next = at + 1;
                    self.base[at] = counts;
                    if self.view.rows()[at] != row {
                        self.view.update_at(at, |old| *old = row);
                    }
                }
                None => {
                    self.written.forget();
                    self.view.insert(row);
                    if let Some(at) = self.position(&id) {
                        self.base.insert(at, counts);
                    }
                }
            }
        }
        self.number = Some(number);
        Ok(())
    }

    /// Makes the view the base with the counts of the line at hand.
    fn apply(&mut self) {
        let mut counted = self.counted.iter().map(|(at, _)| *at).peekable();
        for at in self.touched.drain(..) {
            while counted.next_if(|counted| *counted < at).is_some() {}
            if counted.peek() != Some(&at) {
                show(&mut self.view, at, self.base[at]);
            }
        }
        for (at, counts) in &self.counted {
            show(&mut self.view, *at, counts.over(self.base[*at]));
            self.touched.push(*at);
        }
    }
}

/// Gives a row these counts, all of them.
fn show(view: &mut View, at: usize, wanted: Counts) {
    if view.rows().get(at).is_some_and(|row| Counts::of(row) != wanted) {
        view.update_at(at, |row| wanted.apply(row));
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
