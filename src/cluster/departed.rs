//! Where rooms that are gone were last, for the policy that places them again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Map;
use crate::model::RoomKey;
use crate::model::policy::Previous;
use crate::model::wire::Metadata;

/// The last Monolith of the rooms that left one most recently.
#[derive(Default)]
pub(super) struct Departed {
    last: Map<RoomKey, (Previous, Option<Arc<Metadata>>)>,
    order: VecDeque<RoomKey>,
}

impl Departed {
    /// How many rooms are remembered; beyond it the oldest is forgotten.
    const KEPT: usize = 4096;

    pub(super) fn note(&mut self, key: &RoomKey, previous: Previous, metadata: Option<Arc<Metadata>>) {
        if self.last.insert(key.clone(), (previous, metadata)).is_some() {
            return;
        }
        self.order.push_back(key.clone());
        if self.order.len() > Self::KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.last.remove(&oldest);
        }
    }

    pub(super) fn of(&self, key: &RoomKey) -> Option<Previous> {
        self.last.get(key).map(|(previous, _)| previous.clone())
    }

    /// What the last Monolith of a room said of it.
    pub(super) fn metadata_of(&self, key: &RoomKey) -> Option<Arc<Metadata>> {
        self.last.get(key)?.1.clone()
    }
}
