//! Stories within bounds: so many chapters of a room, so many bytes of all. Whose story was touched longest ago is
//! forgotten first.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::model::RoomKey;
use crate::model::story::{Chapter, Sign, What};

/// Chapters that are kept of one room; beyond it the oldest is forgotten, and counted.
pub(super) const CHAPTERS: usize = 32;
/// What a room takes besides its chapters, roughly, in bytes.
const ROOM: usize = 200;

/// Stories of rooms.
pub(super) struct Shelf {
    rooms: HashMap<RoomKey, Kept, RandomState>,
    /// Rooms in the order in which they were touched.
    order: BTreeMap<u64, RoomKey>,
    touches: u64,
    bytes: usize,
    limit: usize,
    forgotten: u64,
}

/// The story of one room.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) chapters: VecDeque<Arc<Chapter>>,
    /// Chapters that are kept no more.
    pub(super) forgotten: u64,
    touched: u64,
    bytes: usize,
}

impl Shelf {
    /// A shelf for this many bytes.
    pub(super) fn new(limit: usize) -> Self {
        let (rooms, order) = (HashMap::default(), BTreeMap::new());
        Self { rooms, order, touches: 0, bytes: 0, limit, forgotten: 0 }
    }

    pub(super) fn get(&self, room: &RoomKey) -> Option<&Kept> {
        self.rooms.get(room)
    }

    /// Rooms, bytes, and rooms that were forgotten.
    pub(super) fn numbers(&self) -> (usize, usize, u64) {
        (self.rooms.len(), self.bytes, self.forgotten)
    }

    /// Adds a chapter. The same again becomes a count.
    pub(super) fn add(&mut self, room: &RoomKey, chapter: Chapter) {
        let mut kept = self.take(room).unwrap_or_default();
        kept.add(chapter);
        self.put(room, kept);
    }

    /// A room that was placed without a name has this one, so its story learns late of the decision. Who reported the
    /// room since then had been asked for it.
    pub(super) fn add_birth(&mut self, room: &RoomKey, decision: Chapter) {
        let mut kept = self.take(room).unwrap_or_default();
        let place = kept.chapters.iter().rposition(|old| old.at <= decision.at).map_or(0, |before| before + 1);
        for chapter in kept.chapters.iter_mut().skip(place) {
            if let What::Found { monolith, epoch } = chapter.what.clone() {
                let (epoch, how) = (Some(epoch), Sign::Reported);
                Arc::make_mut(chapter).what = What::Bound { monolith, epoch, how, instead_of: None };
            }
        }
        kept.insert(place, decision);
        self.put(room, kept);
    }

    /// Takes a story off the shelf.
    pub(super) fn take(&mut self, room: &RoomKey) -> Option<Kept> {
        let kept = self.rooms.remove(room)?;
        self.order.remove(&kept.touched);
        self.bytes -= kept.bytes + ROOM;
        Some(kept)
    }

    /// Puts a story on the shelf, as the one that was touched last, and makes room for it.
    pub(super) fn put(&mut self, room: &RoomKey, mut kept: Kept) {
        self.touches += 1;
        kept.touched = self.touches;
        self.bytes += kept.bytes + ROOM;
        self.order.insert(self.touches, room.clone());
        self.rooms.insert(room.clone(), kept);
        while self.bytes > self.limit && self.rooms.len() > 1 {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some(gone) = self.rooms.remove(&oldest) {
                self.bytes -= gone.bytes + ROOM;
                self.forgotten += 1;
            }
        }
    }
}

impl Kept {
    fn add(&mut self, chapter: Chapter) {
        // Clients that are refused come in turns with others that are held: each kind is counted in one chapter.
        let admission = |what: &What| matches!(what, What::Admission { .. });
        let recent = match admission(&chapter.what) {
            true => self.chapters.iter().rev().take_while(|old| admission(&old.what)).count(),
            false => 1,
        };
        let same = self.chapters.iter_mut().rev().take(recent).find(|old| old.what.repeats(&chapter.what));
        if let Some(same) = same {
            let same = Arc::make_mut(same);
            self.bytes -= same.bytes();
            same.again(chapter.at, chapter.what);
            self.bytes += same.bytes();
            return;
        }
        self.insert(self.chapters.len(), chapter);
    }

    fn insert(&mut self, place: usize, chapter: Chapter) {
        self.bytes += chapter.bytes();
        self.chapters.insert(place, Arc::new(chapter));
        if self.chapters.len() > CHAPTERS
            && let Some(oldest) = self.chapters.pop_front()
        {
            self.bytes -= oldest.bytes();
            self.forgotten += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(at: u64, monolith: &str) -> Chapter {
        Chapter::new(at, What::Lost { monolith: monolith.into(), clients: 0 })
    }

    fn key(n: usize) -> RoomKey {
        RoomKey::new(format!("room-{n}"))
    }

    #[test]
    fn all_stories_together_stay_within_their_bytes_and_the_idle_ones_go_first() {
        let mut shelf = Shelf::new(64 << 10);
        shelf.add(&key(0), lost(0, "a"));
        for n in 1..1000 {
            shelf.add(&key(n), lost(n as u64, "a"));
            // Somebody always comes back to this one.
            shelf.add(&key(0), lost(n as u64, if n % 2 == 0 { "a" } else { "b" }));
            assert!(shelf.bytes <= 64 << 10, "{}", shelf.bytes);
        }
        let (rooms, bytes, forgotten) = shelf.numbers();
        assert_eq!((shelf.order.len(), rooms as u64 + forgotten), (rooms, 1000));
        assert!(rooms > 50 && shelf.get(&key(1)).is_none() && shelf.get(&key(999)).is_some());
        let kept = shelf.get(&key(0)).unwrap();
        assert_eq!((kept.chapters.len(), kept.forgotten), (CHAPTERS, 1000 - CHAPTERS as u64));
        // What is counted is what is there.
        let counted: usize = shelf.rooms.values().map(|kept| kept.bytes + ROOM).sum();
        let there: usize =
            shelf.rooms.values().flat_map(|kept| &kept.chapters).map(|chapter| chapter.bytes()).sum::<usize>();
        assert_eq!((counted, there + rooms * ROOM), (bytes, bytes));
    }

    #[test]
    fn a_room_larger_than_the_shelf_is_kept_alone() {
        let mut shelf = Shelf::new(1);
        shelf.add(&key(1), lost(1, "a"));
        shelf.add(&key(2), lost(2, "a"));
        assert_eq!(shelf.numbers().0, 1);
        assert!(shelf.get(&key(2)).is_some());
    }

    #[test]
    fn the_same_again_is_counted() {
        let mut shelf = Shelf::new(1 << 20);
        for at in [5, 6, 9] {
            shelf.add(&key(1), lost(at, "a"));
        }
        shelf.add(&key(1), lost(10, "b"));
        shelf.add(&key(1), lost(11, "a"));
        let chapters = &shelf.get(&key(1)).unwrap().chapters;
        assert_eq!(
            chapters.iter().map(|c| (c.at, c.times, c.until)).collect::<Vec<_>>(),
            [(5, 3, Some(9)), (10, 1, None), (11, 1, None)]
        );
    }
}
