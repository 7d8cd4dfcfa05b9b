//! Passive ejection: a Monolith that keeps failing gets no new rooms and no requests that name none, for a while that grows
//! with each time, as in Envoy's outlier detection
//! (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>). It keeps what it has, and there
//! is always somebody left who serves.

use std::collections::{BTreeMap, VecDeque};

use super::{Cluster, Endpoint, Turn};
use crate::model::event::{Effect, Ejection, EjectionCause, Micros};
use crate::model::policy::{MonolithRow, MonolithState};
use crate::model::{LinkId, MonolithId};

/// Links that break count for so long, in microseconds.
const FLAPPED: Micros = 60_000_000;
/// How often in a row an ejection gets longer.
const MOST_TIMES: u32 = 10;
/// How many endpoints are remembered; beyond it new ones are not.
const KEPT: usize = 4096;

/// When a Monolith is ejected and for how long. Times are in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionSettings {
    /// The share of failed HTTP requests from which it counts as failing; 0: none.
    pub errors: f64,
    /// How long it has to be failing.
    pub after: Micros,
    /// Links that break within a minute; 0: any number.
    pub flaps: u32,
    /// The first time lasts so long, the second twice as long.
    pub base: Micros,
    /// The share of the Monoliths that may be ejected at once.
    pub most: f64,
}

/// What is remembered of the trouble with each endpoint: a process that starts again has another id.
#[derive(Default)]
pub(super) struct Ejections {
    records: BTreeMap<Endpoint, Record>,
}

#[derive(Default)]
struct Record {
    /// When its links broke.
    broke: VecDeque<Micros>,
    /// Since when too many of its requests fail.
    failing_since: Option<Micros>,
    /// Until when it is ejected.
    until: Option<Micros>,
    /// How often it was of late.
    times: u32,
    /// Since when it has behaved.
    calm_since: Micros,
}

impl Record {
    fn says_nothing(&self) -> bool {
        self.broke.is_empty() && self.failing_since.is_none() && self.until.is_none() && self.times == 0
    }
}

impl Ejections {
    fn of(&mut self, endpoint: &Endpoint) -> Option<&mut Record> {
        if self.records.len() >= KEPT && !self.records.contains_key(endpoint) {
            return None;
        }
        Some(self.records.entry(endpoint.clone()).or_default())
    }

    fn is_out(&self, endpoint: &Endpoint) -> bool {
        self.records.get(endpoint).is_some_and(|record| record.until.is_some())
    }

    /// Whether a link to this endpoint has broken too often.
    fn flaps(&self, endpoint: &Endpoint, settings: &EjectionSettings) -> bool {
        let broke = self.records.get(endpoint).map_or(0, |record| record.broke.len());
        settings.flaps > 0 && broke >= settings.flaps as usize
    }
}

impl Cluster {
    /// A link misses heartbeats, answers again, or is to drain.
    pub(super) fn link_state(&mut self, link: LinkId, state: MonolithState, turn: &mut Turn<'_>) {
        let Some(id) = self.sender(link) else { return };
        let Some(monolith) = self.monoliths.get_mut(&id) else { return };
        (monolith.suspect, monolith.unlisted) = match state {
            // That one is ejected is said here, and by no link.
            MonolithState::Up | MonolithState::Ejected => (false, false),
            MonolithState::Suspect => (true, monolith.unlisted),
            MonolithState::Draining => (false, true),
        };
        self.state_changed(&id, turn);
    }

    /// Writes into the view what a Monolith is up to: what its link and operators say comes first.
    pub(super) fn show_state(&mut self, id: &MonolithId) {
        let Some(monolith) = self.monoliths.get(id) else { return };
        let state = match monolith.state() {
            MonolithState::Up if self.ejections.is_out(&monolith.endpoint) => MonolithState::Ejected,
            state => state,
        };
        let draining = monolith.is_leaving();
        self.view.update(id, |row| (row.state, row.draining) = (state, draining));
    }

    /// The link of this endpoint is gone, and nobody said goodbye.
    pub(super) fn note_broken_link(&mut self, endpoint: &Endpoint) {
        let most = self.settings.ejection.flaps as usize;
        let now = self.now;
        let Some(record) = self.ejections.of(endpoint).filter(|_| most > 0) else { return };
        record.broke.push_back(now);
        if record.broke.len() > most {
            record.broke.pop_front();
        }
        record.failing_since = None;
    }

    /// A Monolith has just been linked: one that was ejected stays so, and one that comes and goes is.
    pub(super) fn judge_newcomer(&mut self, id: &MonolithId, turn: &mut Turn<'_>) {
        let Some(endpoint) = self.monoliths.get(id).map(|monolith| monolith.endpoint.clone()) else { return };
        self.forget_old_trouble(&endpoint);
        self.show_state(id);
        if !self.ejections.is_out(&endpoint) && self.ejections.flaps(&endpoint, &self.settings.ejection) {
            self.eject(id, EjectionCause::Flaps, turn);
        }
    }

    /// Looks at every Monolith: to be called several times a second, after the view has been measured.
    pub(super) fn review_monoliths(&mut self, turn: &mut Turn<'_>) {
        let settings = self.settings.ejection;
        let failing = |row: &MonolithRow| settings.errors > 0.0 && row.errors >= settings.errors;
        let suspicious: Vec<(MonolithId, bool)> =
            self.view.rows().iter().filter(|row| failing(row)).map(|row| (row.id.clone(), row.serves())).collect();
        for (id, serves) in suspicious {
            let Some(endpoint) = self.monoliths.get(&id).map(|monolith| monolith.endpoint.clone()) else { continue };
            let now = self.now;
            let Some(record) = self.ejections.of(&endpoint) else { continue };
            record.calm_since = now;
            let since = *record.failing_since.get_or_insert(now);
            if serves && now.saturating_sub(since) >= settings.after && self.stands_out(&id) {
                self.eject(&id, EjectionCause::Errors, turn);
            }
        }
        if self.ejections.records.is_empty() {
            return;
        }
        let known: Vec<Endpoint> = self.ejections.records.keys().cloned().collect();
        let linked: BTreeMap<Endpoint, MonolithId> =
            self.monoliths.iter().map(|(id, monolith)| (monolith.endpoint.clone(), id.clone())).collect();
        for endpoint in known {
            let id = linked.get(&endpoint);
            let fails = id.and_then(|id| self.view.get(id)).is_some_and(failing);
            self.forget_old_trouble(&endpoint);
            let now = self.now;
            let Some(record) = self.ejections.records.get_mut(&endpoint) else { continue };
            if !fails {
                record.failing_since = None;
            }
            if record.until.is_some_and(|until| until <= now) {
                self.take_back(&endpoint, turn);
            }
        }
    }

    /// Whether another one does clearly better: where all fail alike, none of them is to blame.
    fn stands_out(&self, id: &MonolithId) -> bool {
        let fine = self.settings.ejection.errors / 2.0;
        self.view.rows().iter().any(|row| row.id != *id && row.serves() && row.errors < fine)
    }

    /// Whether so many may be ejected, and somebody serves all the same.
    fn may_eject(&self, id: &MonolithId) -> bool {
        let rows = self.view.rows();
        let others_serve = rows.iter().any(|row| row.id != *id && row.serves());
        let out = rows.iter().filter(|row| row.state == MonolithState::Ejected).count();
        let all = rows.iter().filter(|row| !row.draining).count();
        let most = self.settings.ejection.most;
        others_serve && most > 0.0 && (out == 0 || (out + 1) as f64 <= most * all as f64)
    }

    fn eject(&mut self, id: &MonolithId, cause: EjectionCause, turn: &mut Turn<'_>) {
        let Some(endpoint) = self.monoliths.get(id).map(|monolith| monolith.endpoint.clone()) else { return };
        let may = self.may_eject(id);
        let (now, base) = (self.now, self.settings.ejection.base);
        let Some(record) = self.ejections.of(&endpoint) else { return };
        // What it was ejected for is settled, and what it was spared for is looked at anew.
        record.broke.clear();
        record.failing_since = None;
        if !may {
            self.counters.ejections_spared += 1;
            turn.emit(Effect::Ejection(Ejection::Spared { monolith: id.clone(), cause }));
            return;
        }
        record.times = (record.times + 1).min(MOST_TIMES);
        let lasts = base.saturating_mul(u64::from(record.times));
        record.until = Some(now.saturating_add(lasts));
        let times = record.times;
        self.counters.ejections[cause as usize] += 1;
        self.show_state(id);
        turn.emit(Effect::Ejection(Ejection::Out { monolith: id.clone(), cause, lasts, times }));
    }

    /// An ejection is over. From now on it is as young as one that has just been linked: it gets its share little by little.
    fn take_back(&mut self, endpoint: &Endpoint, turn: &mut Turn<'_>) {
        let now = self.now;
        let Some(record) = self.ejections.records.get_mut(endpoint) else { return };
        record.until = None;
        record.calm_since = now;
        let found = self.monoliths.iter_mut().find(|(_, monolith)| monolith.endpoint == *endpoint);
        let Some((id, monolith)) = found else { return };
        monolith.serving_since = now;
        let id = id.clone();
        self.view.update(&id, |row| row.age_s = 0.0);
        self.show_state(&id);
        turn.emit(Effect::Ejection(Ejection::Back { monolith: id }));
    }

    /// Where only ejected ones are left, the one whose time is nearly over serves again.
    pub(super) fn return_somebody_if_nobody_serves(&mut self, turn: &mut Turn<'_>) {
        if self.view.rows().iter().any(MonolithRow::serves) {
            return;
        }
        let out = self.monoliths.values().filter(|monolith| monolith.state() == MonolithState::Up);
        let until = |endpoint: &Endpoint| self.ejections.records.get(endpoint).and_then(|record| record.until);
        let next = out.filter_map(|monolith| Some((until(&monolith.endpoint)?, monolith.endpoint.clone()))).min();
        if let Some((_, endpoint)) = next {
            self.take_back(&endpoint, turn);
        }
    }

    /// Broken links of long ago are forgotten, and whoever has behaved for as long as an ejection lasts begins with shorter ones.
    fn forget_old_trouble(&mut self, endpoint: &Endpoint) {
        let (now, base) = (self.now, self.settings.ejection.base);
        let Some(record) = self.ejections.records.get_mut(endpoint) else { return };
        while record.broke.front().is_some_and(|at| at.saturating_add(FLAPPED) <= now) {
            record.broke.pop_front();
        }
        if record.until.is_none() && record.times > 0 && now.saturating_sub(record.calm_since) >= base {
            record.times -= 1;
            record.calm_since = now;
        }
        if record.says_nothing() {
            self.ejections.records.remove(endpoint);
        }
    }
}
