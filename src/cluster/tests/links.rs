//! Monoliths that come and go, warm-up, and who may take new rooms.

use super::*;
use crate::cluster::SYNC_TIMEOUT;

/// The start, when the first of two Monoliths has said that it has nothing.
fn half_known() -> World {
    let mut w = fresh();
    discover_two(&mut w);
    w
}

fn discover_two(w: &mut World) {
    w.event(Event::Discovered { endpoints: vec![endpoint(1), endpoint(2)] }).gives("");
    w.up(1).ignore();
    w.gossip(1, &[]).gives("");
}

#[test]
fn joins_wait_until_every_monolith_has_said_what_it_has() {
    let mut w = fresh();
    w.event(Event::Discovered { endpoints: vec![endpoint(1), endpoint(2), endpoint(3)] }).gives("");
    w.up(1).ignore();
    w.gossip(1, &[]).gives("");
    w.join(1, "foo").gives("");
    w.join(2, "bar").gives("");
    w.get(1, "foo").gives("");
    w.event(Event::DialFailed { endpoint: endpoint(2) }).gives("");
    w.up(3).gives("accept 3");
    w.gossip(3, &[("Foo", 8)]).gives("bind foo m3; join m3 c1#1 foo; send r1 m3; join m1 c2#1 bar alone");
}

#[test]
fn nobody_waits_longer_than_promised() {
    let mut w = half_known();
    w.join(1, "foo").gives("");
    w.join(2, "bar").gives("");
    w.leave(2).gives("");
    assert_eq!(w.cluster.next_deadline(), Some(6 * SECOND));
    w.wait(5).gives("join m1 c1#1 foo alone");
    assert_eq!(w.cluster.size(), (1, 1));
    // A Monolith that links later is waited for as well, for a moment.
    w.up(2).ignore();
    w.join(3, "baz").gives("");
    w.pass(SYNC_TIMEOUT - 1).gives("");
    w.pass(1).gives("join m1 c3#1 baz alone");
}

#[test]
fn at_the_start_a_first_gossip_that_comes_late_is_waited_for() {
    let mut w = half_known();
    w.up(2).ignore();
    w.join(1, "foo").gives("");
    w.wait(4).gives("");
    w.gossip(2, &[("foo", 3)]).gives("bind foo m2; join m2 c1#1 foo");
}

#[test]
fn those_whom_discovery_names_late_are_waited_for() {
    let mut w = fresh();
    w.wait(60).gives("");
    discover_two(&mut w);
    w.join(1, "foo").gives("");
    assert!(!w.cluster.has_warmed_up());
    w.up(2).gives("accept 2");
    w.gossip(2, &[("foo", 3)]).gives("bind foo m2; join m2 c1#1 foo");
}

#[test]
fn an_endpoint_that_discovery_drops_is_not_waited_for() {
    let mut w = fresh();
    w.join(1, "foo").gives("");
    discover_two(&mut w);
    w.event(Event::Discovered { endpoints: vec![endpoint(1)] }).gives("join m1 c1#1 foo alone");
}

#[test]
fn a_link_that_goes_before_its_gossip_is_not_waited_for() {
    let mut w = world(1);
    w.up(2).ignore();
    w.join(1, "foo").gives("");
    w.down(2).gives("join m1 c1#1 foo alone");
}

#[test]
fn a_lost_link_closes_members_with_1001_and_sends_no_leave() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.join(2, "foo").ignore();
    w.down(1).gives("close c1 1001; close c2 1001; unbind foo");
    w.leave(1).gives("");
    w.down(1).gives("");
    w.join(3, "foo").gives("join m2 c3#1 foo alone");
    let previous = w.last_call().room.as_ref().unwrap().previous.clone().unwrap();
    assert_eq!((previous.monolith, &*previous.why), (monolith(1), "link_down"));
}

#[test]
fn only_serving_monoliths_take_new_rooms_and_keep_their_own() {
    for state in [MonolithState::Suspect, MonolithState::Draining] {
        let mut w = world(2);
        w.settled("foo", 3);
        w.state(1, state);
        w.join(2, "foo").gives("join m1 c2#1 foo");
        w.join(3, "bar").gives("join m2 c3#1 bar alone");
        w.create(1, "baz").gives("send r1 m2 awaited");
        w.generate(2).gives("send r2 m2 awaited");
        w.state(1, MonolithState::Up);
        w.join(4, "qux").gives("join m1 c4#1 qux alone");
    }
}

#[test]
fn what_people_see() {
    let mut w = world(2);
    w.settled("Foo", 3);
    w.join(2, "bar").ignore();
    let room = w.cluster.room(&RoomKey::from("foo")).unwrap();
    assert_eq!((&*room.name, room.epoch, room.clients, room.monolith), ("Foo", Some(Epoch(3)), 1, Some(monolith(1))));
    let (page, next) = w.cluster.rooms(None, 1);
    assert_eq!((&*page[0].name, next.as_ref().map(RoomKey::as_str)), ("bar", Some("bar")));
    let (page, next) = w.cluster.rooms(next.as_ref(), 1);
    assert_eq!((&*page[0].name, next), ("Foo", None));
    assert_eq!(w.cluster.public_rooms().len(), 1);
    let monoliths = w.cluster.monoliths();
    assert_eq!((monoliths[0].rooms, monoliths[0].clients, monoliths[0].pending), (1, 2, 1));
}
