//! The fan-out table of one link: which of our clients are in which room there.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::activity::{Activities, Activity};
use super::inbox::{Inbox, Overflow};
use crate::model::{Attachment, ClientId, Hashing, MemberId, RoomKey};

/// One client in one room.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) client: ClientId,
    pub(super) attachment: Attachment,
    pub(super) id: MemberId,
    pub(super) inbox: Arc<Inbox>,
    pub(super) answer: Answer,
    /// Whether the first frame for it is to be reported.
    pub(super) report: bool,
    /// Whether it was in the room on another Monolith, and has not been told of the change.
    pub(super) rejoin: bool,
    /// Whether the room was unloaded before its join was answered.
    pub(super) crossed: bool,
    /// Whether it was told to hold since the room is to go: from then on the control thread says when it goes on, if the
    /// room stays.
    pub(super) held: bool,
}

/// What is expected of a member whose `join` is being queued.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joining {
    /// Whether the first frame for it is to be reported.
    pub(super) report: bool,
    /// Whether it was in the room on another Monolith.
    pub(super) rejoin: bool,
    /// How long broadcasts wait for the answer to its join.
    pub(super) patience: Duration,
}

/// The members of one room.
#[derive(Debug)]
struct Room {
    members: Vec<Member>,
    activity: Arc<Activity>,
}

/// Whether a member has had the Monolith's answer to its join, before which no broadcast may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Not yet; after this moment broadcasts flow all the same.
    Awaited { until: Instant },
    /// It has, or the Monolith does not answer joins.
    Heard,
}

impl Answer {
    /// Whether it has had an answer, or there will be none.
    pub(super) fn is_over(self) -> bool {
        match self {
            Self::Heard => true,
            Self::Awaited { until } => until <= Instant::now(),
        }
    }
}

/// Where a member is.
#[derive(Debug)]
enum Slot {
    /// In a room, at this index.
    In(RoomKey, usize),
    /// Its room was unloaded: nothing more comes for it, and a `leave` is due when it is detached.
    Unloaded,
}

/// What one delivery came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) queued: u64,
    pub(super) before_answer: u64,
    pub(super) overflowed: u64,
}

/// All members of a link.
#[derive(Debug, Default)]
pub(super) struct Members {
    rooms: HashMap<RoomKey, Room, Hashing>,
    slots: HashMap<MemberId, Slot, Hashing>,
    activities: Arc<Activities>,
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds a member. Returns where it notes that it says something.
    pub(super) fn insert(&mut self, room: RoomKey, member: Member) -> Arc<Activity> {
        let begin = || Room { members: Vec::new(), activity: self.activities.begin(room.clone()) };
        let Room { members, activity } = self.rooms.entry(room.clone()).or_insert_with(begin);
        self.slots.insert(member.id, Slot::In(room, members.len()));
        members.push(member);
        activity.clone()
    }

    /// Where those who are in no room note that they speak to one.
    pub(super) fn activities(&self) -> Arc<Activities> {
        self.activities.clone()
    }

    /// When somebody in a room said something last; none for a room without members.
    pub(super) fn activity(&self, room: &RoomKey) -> Option<&Activity> {
        self.rooms.get(room).map(|room| &*room.activity)
    }

    /// Forgets a member. `true` if the Monolith still counts it, so that a `leave` is due.
    pub(super) fn remove(&mut self, id: MemberId) -> bool {
        match self.slots.remove(&id) {
            Some(Slot::In(room, index)) => {
                self.take(&room, index);
                true
            }
            Some(Slot::Unloaded) => true,
            None => false,
        }
    }

    /// Takes a member out because the Monolith has forgotten it.
    pub(super) fn kick(&mut self, id: MemberId) -> Option<Member> {
        match self.slots.remove(&id)? {
            Slot::In(room, index) => self.take(&room, index),
            Slot::Unloaded => None,
        }
    }

    /// The room of a member.
    pub(super) fn room_of(&self, id: MemberId) -> Option<&RoomKey> {
        match self.slots.get(&id)? {
            Slot::In(room, _) => Some(room),
            Slot::Unloaded => None,
        }
    }

    pub(super) fn get_mut(&mut self, id: MemberId) -> Option<&mut Member> {
        match self.slots.get(&id)? {
            Slot::In(room, index) => self.rooms.get_mut(room)?.members.get_mut(*index),
            Slot::Unloaded => None,
        }
    }

    /// Sends to one member. The member is returned the first time it hears anything, if that is to be reported.
    pub(super) fn unicast(&mut self, id: MemberId, frame: Utf8Bytes) -> Option<(Delivered, Option<&Member>)> {
        let member = self.get_mut(id)?;
        let mut delivered = Delivered::default();
        member.answer = Answer::Heard;
        member.deliver(frame, &mut delivered);
        let first = std::mem::take(&mut member.report);
        Some((delivered, first.then_some(&*member)))
    }

    /// Sends to every member of a room, spelled as the Monolith likes.
    pub(super) fn broadcast(
        &mut self,
        room: &str,
        frame: &Utf8Bytes,
        mut first: impl FnMut(&Member),
    ) -> Option<Delivered> {
        let Room { members, .. } = self.rooms.get_mut(&*lower_case(room))?;
        let mut delivered = Delivered::default();
        let mut now = None;
        for member in members {
            if let Answer::Awaited { until } = member.answer
                && *now.get_or_insert_with(Instant::now) < until
            {
                delivered.before_answer += 1;
                continue;
            }
            member.answer = Answer::Heard;
            if std::mem::take(&mut member.report) {
                first(member);
            }
            member.deliver(frame.clone(), &mut delivered);
        }
        Some(delivered)
    }

    /// The members of a room.
    pub(super) fn of_room(&self, room: &str) -> &[Member] {
        self.rooms.get(&*lower_case(room)).map_or(&[], |room| &room.members)
    }

    /// The room is to go, and its members are told to hold.
    pub(super) fn hold(&mut self, room: &RoomKey) {
        let members = self.rooms.get_mut(room).map(|room| room.members.as_mut_slice()).unwrap_or_default();
        members.iter_mut().for_each(|member| member.held = true);
    }

    /// A room was unloaded: its members hear nothing more, and are told so, but for those that had no frame since their
    /// `join`. Theirs crossed the unload: they stay, what they say is held back, and their first frame is reported. Returns
    /// those that hear nothing more.
    pub(super) fn unload(&mut self, room: &RoomKey) -> Vec<(ClientId, Attachment)> {
        let Some(Room { members, activity }) = self.rooms.remove(room) else { return Vec::new() };
        let (mut detached, mut crossed) = (Vec::new(), Vec::new());
        for mut member in members {
            if member.answer == Answer::Heard {
                member.inbox.detached(member.attachment);
                self.slots.insert(member.id, Slot::Unloaded);
                detached.push((member.client, member.attachment));
            } else {
                (member.report, member.crossed, member.held) = (true, true, false);
                member.inbox.hold(member.attachment, None);
                crossed.push(member);
            }
        }
        if crossed.is_empty() {
            self.activities.end(room);
        } else {
            // They go on noting what they say where they have been told to.
            self.rooms.insert(room.clone(), Room { members: Vec::new(), activity });
            crossed.into_iter().for_each(|member| drop(self.insert(room.clone(), member)));
        }
        detached
    }

    /// The link has ended: tells every member.
    pub(super) fn end(&self) {
        for member in self.rooms.values().flat_map(|room| &room.members) {
            member.inbox.detached(member.attachment);
        }
    }

    fn take(&mut self, room: &RoomKey, index: usize) -> Option<Member> {
        let Room { members, .. } = self.rooms.get_mut(room)?;
        let member = members.swap_remove(index);
        if let Some(moved) = members.get(index)
            && let Some(Slot::In(_, at)) = self.slots.get_mut(&moved.id)
        {
            *at = index;
        }
        if members.is_empty() {
            self.rooms.remove(room);
            self.activities.end(room);
        }
        Some(member)
    }
}

impl Member {
    /// A member whose `join` is being queued now.
    pub(super) fn joining(
        client: ClientId,
        attachment: Attachment,
        inbox: Arc<Inbox>,
        Joining { report, rejoin, patience }: Joining,
    ) -> Self {
        let answer = Answer::Awaited { until: Instant::now() + patience };
        Self {
            client,
            attachment,
            id: client.member(attachment),
            inbox,
            answer,
            report,
            rejoin,
            crossed: false,
            held: false,
        }
    }

    /// Whether the Monolith has yet to answer the join of a client that was in the room before.
    pub(super) fn is_rejoining(&self) -> bool {
        self.rejoin && self.answer != Answer::Heard
    }

    fn deliver(&self, frame: Utf8Bytes, delivered: &mut Delivered) {
        match self.inbox.push(self.attachment, frame) {
            Ok(()) => delivered.queued += 1,
            Err(Overflow) => delivered.overflowed += 1,
        }
    }
}

pub(super) fn lower_case(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::inbox::Item;
    use super::*;
    use crate::config::QueueLimit;

    const LIMIT: QueueLimit = QueueLimit { messages: 8, bytes: 1000 };

    fn member(n: u128, patience: Duration) -> Member {
        let joining = Joining { report: false, rejoin: false, patience };
        Member::joining(ClientId::from_u128(n << 64), Attachment(1), Inbox::new(LIMIT), joining)
    }

    fn heard(inbox: &Inbox) -> Vec<String> {
        std::iter::from_fn(|| inbox.try_next())
            .filter_map(|item| match item {
                Item::Frame(_, frame) => Some(frame.to_string()),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn f55_no_broadcast_comes_before_the_answer() {
        let mut members = Members::default();
        let joining = member(1, Duration::from_secs(60));
        let (id, inbox) = (joining.id, joining.inbox.clone());
        members.insert(RoomKey::of("room"), joining);
        let early = members.broadcast("Room", &"early".into(), |_| ()).unwrap();
        assert_eq!((early.queued, early.before_answer), (0, 1));
        members.unicast(id, "sync".into()).unwrap();
        assert_eq!(members.broadcast("ROOM", &"late".into(), |_| ()).unwrap().queued, 1);
        assert_eq!(heard(&inbox), ["sync", "late"]);
    }

    #[test]
    fn a_monolith_that_answers_no_joins_is_heard_after_a_while() {
        let mut members = Members::default();
        let joining = member(1, Duration::ZERO);
        let inbox = joining.inbox.clone();
        members.insert(RoomKey::of("room"), joining);
        members.broadcast("room", &"hello".into(), |_| ()).unwrap();
        assert_eq!(heard(&inbox), ["hello"]);
    }

    #[test]
    fn removal_keeps_every_other_member_in_place() {
        let mut members = Members::default();
        let ids: Vec<MemberId> = (1..=5)
            .map(|n| {
                let member = member(n, Duration::ZERO);
                let id = member.id;
                members.insert(RoomKey::of("room"), member);
                id
            })
            .collect();
        assert!(members.remove(ids[1]));
        assert!(members.kick(ids[4]).is_some());
        assert!(!members.remove(ids[4]), "nothing is due after a kick");
        for id in [ids[0], ids[2], ids[3]] {
            assert!(members.unicast(id, "x".into()).is_some(), "{id}");
            assert!(members.remove(id));
        }
        assert_eq!((members.len(), members.rooms.len()), (0, 0));
        assert_eq!(format!("{:?}", members.activities), format!("{:?}", Activities::default()));
    }

    #[test]
    fn an_unload_spares_those_whose_join_crossed_it_and_owes_the_others_a_leave() {
        let mut members = Members::default();
        let (settled, crossing) = (member(1, Duration::ZERO), member(2, Duration::from_secs(60)));
        let (a, b) = (settled.id, crossing.id);
        let expected = vec![(settled.client, settled.attachment)];
        members.insert(RoomKey::of("room"), settled);
        let noted = members.insert(RoomKey::of("room"), crossing);
        members.unicast(a, "sync".into()).unwrap();
        assert_eq!(members.unload(&RoomKey::of("room")), expected);
        let looked_at = members.activity(&RoomKey::of("room")).unwrap();
        assert!(std::ptr::eq(looked_at, &*noted), "it goes on noting that it says something");
        assert!(members.unicast(a, "zombie".into()).is_none());
        let (_, first) = members.unicast(b, "sync".into()).unwrap();
        assert!(first.is_some(), "its first frame is reported");
        assert!(members.remove(a) && members.remove(b));
    }
}
