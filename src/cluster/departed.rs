//! What is remembered of rooms that have left a Monolith, for those who place them again: bounded, since most of them
//! never come back.

use std::collections::VecDeque;

use super::Map;
use crate::model::RoomKey;

/// One thing about each of the rooms that left most recently.
pub(super) struct Departed<T> {
    last: Map<RoomKey, T>,
    order: VecDeque<RoomKey>,
}

impl<T> Default for Departed<T> {
    fn default() -> Self {
        Self { last: Map::default(), order: VecDeque::new() }
    }
}

impl<T> Departed<T> {
    /// How many rooms are remembered; beyond it the oldest is forgotten.
    const KEPT: usize = 4096;

    pub(super) fn note(&mut self, key: &RoomKey, last: T) {
        if self.last.insert(key.clone(), last).is_some() {
            return;
        }
        self.order.push_back(key.clone());
        if self.order.len() > Self::KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.last.remove(&oldest);
        }
    }

    pub(super) fn of(&self, key: &RoomKey) -> Option<&T> {
        self.last.get(key)
    }
}
