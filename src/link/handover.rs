//! What a link does so that a room can leave its Monolith without a loss: it waits until the room is quiet, and holds its
//! clients back before the `unload` is queued, so that everything they have said stands before it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Command;
use super::members::Members;
use crate::model::{Epoch, Hashing, RoomKey, RoomName};

/// How long clients may take to say that they hold. One that takes longer is busy writing to a slow socket, and looks
/// at its inbox before it sends anything more: so nothing overtakes the `unload` even then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Held by the clients of one room; when the last of them has dropped it, nothing more comes from them.
#[derive(Debug)]
pub struct Holding {
    room: RoomKey,
    number: u64,
    commands: mpsc::UnboundedSender<Command>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        // A link that has ended sends no unload any more.
        let _ = self.commands.send(Command::Held { room: self.room.clone(), number: self.number });
    }
}

/// The rooms of one link that are about to leave it.
#[derive(Debug, Default)]
pub(super) struct HandOvers {
    watched: Vec<Watched>,
    held: HashMap<RoomKey, Held, Hashing>,
    numbers: u64,
    /// Nothing is due before this moment.
    next: Option<Instant>,
}

/// A room that is to be quiet first.
#[derive(Debug)]
struct Watched {
    room: RoomKey,
    quiet: Duration,
    /// When it is waited for no longer.
    until: Instant,
}

/// A load of a room that its Monolith is to be asked to let go.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The room, as the Monolith spells it.
    pub(super) room: RoomName,
    /// Which load.
    pub(super) epoch: Epoch,
}

/// A room whose clients are being held back.
#[derive(Debug)]
struct Held {
    leaving: Leaving,
    number: u64,
    until: Instant,
}

impl HandOvers {
    /// Waits until nobody in a room has said anything for `quiet`, for `at_most`.
    pub(super) fn watch(&mut self, room: RoomKey, quiet: Duration, at_most: Duration) {
        self.watched.retain(|watched| watched.room != room);
        self.watched.push(Watched { room, quiet, until: Instant::now() + at_most });
        // It may be quiet already.
        self.next = Some(Instant::now());
    }

    /// Holds a room's clients back.
    pub(super) fn hold(&mut self, leaving: Leaving, members: &Members, commands: &mpsc::UnboundedSender<Command>) {
        self.numbers += 1;
        let (key, number) = (leaving.room.key().clone(), self.numbers);
        let holding = Arc::new(Holding { room: key.clone(), number, commands: commands.clone() });
        for member in members.of_room(key.as_str()) {
            member.inbox.hold(member.attachment, Some(holding.clone()));
        }
        let until = Instant::now() + PATIENCE;
        self.held.insert(key, Held { leaving, number, until });
        self.next = Some(self.next.map_or(until, |next| next.min(until)));
    }

    /// Every client of a room holds. Returns the room if it is to be unloaded now.
    pub(super) fn all_hold(&mut self, room: &RoomKey, number: u64) -> Option<Leaving> {
        if self.held.get(room)?.number != number {
            return None;
        }
        self.held.remove(room).map(|held| held.leaving)
    }

    /// A room has left the Monolith by itself.
    pub(super) fn forget(&mut self, room: &RoomKey) {
        self.held.remove(room);
    }

    /// When to look for what is due, if ever.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next
    }

    /// What is due now: rooms that were quiet or were waited for long enough (`true` for those that were never quiet),
    /// and rooms some of whose clients took too long to say that they hold.
    pub(super) fn due(&mut self, members: &Members) -> (Vec<(RoomKey, bool)>, Vec<Leaving>) {
        let now = Instant::now();
        let watched: Vec<Watched> = self.watched.extract_if(.., |watched| watched.due(members, now) <= now).collect();
        let overdue = self.held.extract_if(|_, held| held.until <= now).map(|(_, held)| held.leaving).collect();
        let due = self.watched.iter().map(|watched| watched.due(members, now));
        self.next = due.chain(self.held.values().map(|held| held.until)).min();
        let rooms = watched.into_iter().map(|watched| {
            let disturbed = watched.quiet_at(members, now) > now;
            (watched.room, disturbed)
        });
        (rooms.collect(), overdue)
    }
}

impl Watched {
    fn quiet_at(&self, members: &Members, now: Instant) -> Instant {
        // A room without a client of ours has nobody to disturb it.
        members.activity(&self.room).map_or(now, |activity| activity.last() + self.quiet)
    }

    fn due(&self, members: &Members, now: Instant) -> Instant {
        self.quiet_at(members, now).min(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::super::inbox::{Inbox, Item};
    use super::super::members::{Joining, Member};
    use super::*;
    use crate::config::QueueLimit;
    use crate::model::{Attachment, ClientId};

    const ROOM: &str = "room";

    fn members(count: u128) -> (Members, Vec<Arc<Inbox>>) {
        let mut members = Members::default();
        let inboxes = (1..=count).map(|n| {
            let inbox = Inbox::new(QueueLimit { messages: 8, bytes: 1000 });
            let joining = Joining { report: false, rejoin: false, patience: Duration::ZERO };
            let member = Member::joining(ClientId::from_u128(n << 64), Attachment(1), inbox.clone(), joining);
            members.insert(RoomKey::of(ROOM), member);
            inbox
        });
        let inboxes = inboxes.collect();
        (members, inboxes)
    }

    #[test]
    fn an_unload_waits_until_the_last_client_holds() {
        let (members, inboxes) = members(2);
        let (commands, mut received) = mpsc::unbounded_channel();
        let mut leaving = HandOvers::default();
        leaving.hold(Leaving { room: RoomName::reported(ROOM), epoch: Epoch(1) }, &members, &commands);
        let Some(Item::Hold(attachment, first)) = inboxes[0].try_next() else { panic!("it is told to hold") };
        assert_eq!(attachment, Attachment(1));
        drop(first);
        assert!(received.try_recv().is_err(), "the other one may still be sending");
        // One that closes sends nothing more either.
        drop((members, inboxes));
        let Ok(Command::Held { room, number }) = received.try_recv() else { panic!("everybody holds") };
        assert!(leaving.all_hold(&room, number + 1).is_none(), "of another time");
        assert_eq!(leaving.all_hold(&room, number).unwrap().room.spelling(), ROOM);
        assert!(leaving.all_hold(&room, number).is_none(), "once");
    }

    #[test]
    fn a_room_is_quiet_when_nobody_has_said_anything_for_a_while() {
        let (members, _inboxes) = members(1);
        let mut leaving = HandOvers::default();
        let (hour, room) = (Duration::from_secs(3600), RoomKey::of(ROOM));
        let quiet = |leaving: &mut HandOvers| leaving.due(&members).0;
        leaving.watch(room.clone(), hour, hour * 2);
        assert_eq!(quiet(&mut leaving), []);
        members.activity(&room).unwrap().note();
        assert!(leaving.next_due().unwrap() > Instant::now() + hour / 2);
        // Another request for the same room takes the place of the first.
        leaving.watch(room.clone(), hour, Duration::ZERO);
        assert_eq!(quiet(&mut leaving), [(room.clone(), true)]);
        leaving.watch(room.clone(), Duration::ZERO, hour);
        assert_eq!(quiet(&mut leaving), [(room, false)]);
        assert_eq!(leaving.next_due(), None);
    }
    #[test]
    fn a_room_that_its_last_client_leaves_while_it_is_watched_is_quiet_at_once() {
        let (room, hour) = (RoomKey::of(ROOM), Duration::from_secs(3600));
        let mut leaving = HandOvers::default();
        leaving.watch(room.clone(), hour, hour);
        assert_eq!(leaving.due(&Members::default()).0, [(room, false)]);
        assert_eq!(leaving.next_due(), None);
    }
}
