//! What a trace says of what happens to the cluster: written by the control thread, which knows the order.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::control::routes::Target;
use crate::model::event::Event;
use crate::model::policy::View;
use crate::model::{ClientId, CloseCode, LinkId, MonolithId, Region};
use crate::trace::record::{LiveEvent, TraceEvent};
use crate::trace::write::Recorder;

/// Records what happens for as long as somebody wants it.
#[derive(Default)]
pub(in crate::control) struct Events {
    to: Option<Recorder>,
    /// When the numbers that were recorded last were scraped.
    loads: BTreeMap<MonolithId, Instant>,
}

/// The Monoliths that are linked.
type Targets = BTreeMap<MonolithId, Arc<Target>>;

impl Events {
    /// Begins anew, or ends. A trace that begins while usher runs says first who is linked, and what each one has.
    pub(in crate::control) fn record(&mut self, to: Option<Recorder>, targets: &Targets, view: &View) {
        self.loads.clear();
        if let Some(to) = &to {
            for target in targets.values() {
                to.event(TraceEvent::MonolithUp { monolith: target.id.clone(), region: target.region.clone() });
                if let Some(row) = view.get(&target.id) {
                    to.event(TraceEvent::Gossip { monolith: row.id.clone(), rooms: row.rooms, users: row.users });
                }
            }
        }
        self.to = to;
        self.loads(targets);
    }

    /// A handshake is done. The link is refused if its Monolith is linked already.
    pub(in crate::control) fn up(&self, monolith: &MonolithId, region: &Region, targets: &Targets) {
        if let Some(to) = &self.to
            && !targets.contains_key(monolith)
        {
            to.event(TraceEvent::MonolithUp { monolith: monolith.clone(), region: region.clone() });
        }
    }

    /// The cluster is about to hear of this; `id_of` knows the Monolith of a link that is registered.
    pub(in crate::control) fn event(&self, event: &Event, id_of: impl Fn(LinkId) -> Option<MonolithId>) {
        if let Some(to) = &self.to
            && let Some(event) = told(event, id_of)
        {
            to.event(event);
        }
    }

    /// Somebody was sent away, which ends a membership as a leave does. The trace says so once.
    pub(in crate::control) fn closed(&self, client: ClientId) {
        if let Some(to) = &self.to {
            to.event(TraceEvent::Leave { client });
        }
    }

    /// Looks for numbers that were scraped since the last time.
    pub(in crate::control) fn loads(&mut self, targets: &Targets) {
        let Some(to) = &self.to else { return };
        for target in targets.values() {
            let Some(load) = target.load() else { continue };
            if self.loads.get(&target.id) != Some(&load.at) {
                self.loads.insert(target.id.clone(), load.at);
                to.event(TraceEvent::Load { monolith: target.id.clone(), load: load.values.clone() });
            }
        }
        self.loads.retain(|id, _| targets.contains_key(id));
    }
}

/// What a trace says of an event, if it says anything of it.
fn told(event: &Event, id_of: impl Fn(LinkId) -> Option<MonolithId>) -> Option<LiveEvent> {
    Some(match event {
        Event::LinkDown { link } => TraceEvent::MonolithDown { monolith: id_of(*link)? },
        Event::Loaded { link, report } => {
            TraceEvent::Loaded { monolith: id_of(*link)?, room: report.name.key().as_str().into() }
        }
        Event::Unloaded { link, room, reason, .. } => {
            TraceEvent::Unloaded { monolith: id_of(*link)?, room: room.as_str().into(), reason: *reason }
        }
        Event::Gossip { link, rooms } => {
            let users = rooms.iter().fold(0_u32, |users, room| users.saturating_add(room.metadata.users));
            let rooms = u32::try_from(rooms.len()).unwrap_or(u32::MAX);
            TraceEvent::Gossip { monolith: id_of(*link)?, rooms, users }
        }
        // Whether that ends a client is decided by the cluster.
        Event::Kicked { code: CloseCode::AWAY, .. } => return None,
        Event::Kicked { client, .. } | Event::Leave { client, .. } => TraceEvent::Leave { client: *client },
        Event::Join { client, room, region, reconnect, .. } => TraceEvent::Join {
            client: *client,
            room: room.key().as_str().into(),
            region: region.clone(),
            reconnect: *reconnect,
        },
        Event::Request { room, region, .. } => {
            TraceEvent::Request { room: room.as_ref().map(|room| room.key().as_str().into()), region: region.clone() }
        }
        Event::Discovered { .. }
        | Event::DialFailed { .. }
        | Event::LinkUp { .. }
        | Event::LinkState { .. }
        | Event::Answered { .. }
        | Event::Knock { .. }
        | Event::Withdraw { .. }
        | Event::RequestDone { .. }
        | Event::Move { .. }
        | Event::Claim { .. }
        | Event::Quiet { .. }
        | Event::Withheld { .. }
        | Event::Drain { .. }
        | Event::Tick => return None,
    })
}
