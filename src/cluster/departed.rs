//! What is remembered of rooms that have left a Monolith, for those who place them again: bounded, since most of them
//! never come back.

use std::collections::VecDeque;

use super::Map;
use crate::model::RoomKey;

/// One thing about each of the rooms that left most recently.
pub(super) struct Departed<T> {
    /// Each with how often it has been noted.
    last: Map<RoomKey, (u32, T)>,
    /// Each as often as it was noted; only the last time counts.
    order: VecDeque<RoomKey>,
}

impl<T> Default for Departed<T> {
    fn default() -> Self {
        Self { last: Map::default(), order: VecDeque::new() }
    }
}

impl<T> Departed<T> {
    /// How many departures are remembered; beyond it the oldest is forgotten.
    const KEPT: usize = 4096;

    pub(super) fn note(&mut self, key: &RoomKey, last: T) {
        let times = self.last.get(key).map_or(0, |(times, _)| *times);
        self.last.insert(key.clone(), (times + 1, last));
        self.order.push_back(key.clone());
        if self.order.len() > Self::KEPT
            && let Some(oldest) = self.order.pop_front()
            && let Some((times, _)) = self.last.get_mut(&oldest)
        {
            *times -= 1;
            if *times == 0 {
                self.last.remove(&oldest);
            }
        }
    }

    pub(super) fn of(&self, key: &RoomKey) -> Option<&T> {
        self.last.get(key).map(|(_, last)| last)
    }
}
