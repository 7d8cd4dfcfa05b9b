//! Members that keep their sockets while their room changes its Monolith.

use super::*;
use crate::cluster::{HandOverCounters, Seamless};

/// So many Monoliths, and clients that keep their sockets for ten seconds. A room need not be quiet before it moves.
pub(super) fn seamless(monoliths: u64) -> World {
    let mut w = world(monoliths);
    let seamless = Some(Seamless { window: 10 * SECOND, quiet: 0 });
    w.cluster.configure(Settings { seamless, ..settings() });
    w
}

/// Clients 1 and 2 are in `Foo`, which `m1` has loaded.
pub(super) fn inhabited(monoliths: u64) -> World {
    let mut w = seamless(monoliths);
    w.settled("Foo", 3);
    w.join(2, "foo").gives("join m1 c2#1 foo");
    w
}

fn counted(w: &World) -> HandOverCounters {
    w.cluster.counters().handover
}

/// Everybody has arrived at the next Monolith, and nothing is waited for.
fn settled_again(w: &World, members: u64) {
    let HandOverCounters { begun, done, room_lost, window_closed, .. } = counted(w);
    assert_eq!((begun, done, room_lost, window_closed), (members, members, 0, 0));
    assert_eq!((w.cluster.handing_over(), w.cluster.waiting(), w.cluster.next_deadline()), (0, 0, None));
}

#[test]
fn f14_members_of_a_lost_monolith_go_on_where_their_room_is_loaded_next() {
    let mut w = inhabited(2);
    w.down(1).gives("unbind foo; join m2 c1#2 Foo alone again");
    assert_eq!(w.last_call().cause, Some(Cause::Lost));
    let room = w.last_call().room.clone().unwrap();
    assert_eq!((room.clients, room.previous.unwrap().why.as_str()), (2, "link_down"));
    w.join(3, "foo").gives("");
    // Under the name that its last Monolith gave it: the next one may know it under no other.
    w.loaded(2, "Foo", 4).gives("bind foo m2; open m2 c1#2; join m2 c2#2 Foo again; join m2 c3#1 foo");
    assert_eq!(counted(&w).rooms, 1);
    settled_again(&w, 2);
}

#[test]
fn f12_f24_a_monolith_that_stops_as_designed_hands_over_and_gets_nothing_new() {
    let mut w = inhabited(2);
    w.kicked(1, 1, 1, 1001).gives("");
    w.unloaded(1, "Foo", UnloadReason::Shutdown, &[]).gives("leave m1 c2#1; unbind foo; join m2 c2#2 Foo alone again");
    assert_eq!(w.cluster.view().get(&monolith(1)).unwrap().state, MonolithState::Draining);
    w.join(3, "bar").gives("join m2 c3#1 bar alone");
    w.loaded(2, "Foo", 4).gives("bind foo m2; open m2 c2#2; join m2 c1#2 Foo again");
    w.down(1).gives("");
    w.loaded(2, "bar", 5).gives("bind bar m2; open m2 c3#1");
    settled_again(&w, 2);
}

#[test]
fn f24_one_that_announces_its_shutdown_keeps_what_it_has_and_gets_nothing_new() {
    let mut w = seamless(2);
    w.settled("foo", 3);
    w.join(2, "bar").gives("join m1 c2#1 bar alone");
    w.loaded(1, "bar", 4).gives("bind bar m1; open m1 c2#1");
    // The first of its rooms goes, which announces the end of the others.
    w.unloaded(1, "foo", UnloadReason::Shutdown, &[]).gives("leave m1 c1#1; unbind foo; join m2 c1#2 foo alone again");
    w.loaded(2, "foo", 5).gives("bind foo m2; open m2 c1#2");
    // What it still has goes on there, for newcomers too.
    w.join(3, "bar").gives("join m1 c3#1 bar");
    w.get(1, "bar").gives("send r1 m1");
    // Nothing new, by whichever way, although it is the first choice.
    w.join(4, "new").gives("join m2 c4#1 new alone");
    w.get(2, "asked").gives("send r2 m2 awaited");
    w.create(3, "created").gives("send r3 m2 awaited");
    w.generate(4).gives("send r4 m2 awaited");
    w.move_room("foo", 1).gives("r99 stays not_serving");
    // Until it goes.
    w.down(1).gives("unbind bar; join m2 c2#2 bar alone again");
}

#[test]
fn a_client_that_is_sent_away_alone_goes_back_in() {
    let mut w = inhabited(2);
    w.kicked(1, 1, 1, 1001).gives("");
    assert_eq!(w.row(1), (1, 1, 0));
    w.wait(1).gives("join m1 c1#2 Foo again");
    settled_again(&w, 1);
    // And one that leaves meanwhile leaves nothing behind.
    w.kicked(1, 2, 1, 1001).gives("");
    w.leave(2).gives("");
    assert_eq!(w.cluster.next_deadline(), None);
}

#[test]
fn a_join_that_is_answered_with_1001_goes_to_the_next_monolith() {
    let mut w = seamless(2);
    w.join(1, "foo").gives("join m1 c1#1 foo alone");
    w.kicked(1, 1, 1, 1001).gives("join m2 c1#2 foo alone again");
    // Everywhere the same: it is closed when its window is over.
    w.kicked(2, 1, 2, 1001).gives("");
    w.wait(11).gives("join m1 c1#3 foo alone again; leave m1 c1#3; close c1 1012");
    assert_eq!(counted(&w).window_closed, 1);
}

#[test]
fn a_planned_move_holds_its_members_and_takes_them_along() {
    let mut w = inhabited(2);
    w.move_room("foo", 2).gives("unbind foo; hand over m1 Foo; r99 moves Foo m1 m2 2");
    // The real one kicks every other client, and says that the room has gone.
    w.kicked(1, 1, 1, 1001).gives("");
    w.join(3, "foo").gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives("leave m1 c2#1; join m2 c2#2 Foo alone again");
    w.loaded(2, "Foo", 4).gives("bind foo m2; open m2 c2#2; join m2 c1#2 Foo again; join m2 c3#1 foo");
    assert_eq!(w.cluster.counters().moves.done, 1);
    w.wait(30).ignore();
    settled_again(&w, 2);
}

#[test]
fn a_room_that_stays_after_all_lets_its_members_speak_again() {
    let mut w = inhabited(2);
    w.move_room("foo", 2).ignore();
    w.join(3, "foo").gives("");
    w.wait(5).gives("bind foo m1; open m1 c1#1; open m1 c2#1; join m1 c3#1 foo");
    let mut w = inhabited(2);
    w.move_room("foo", 2).ignore();
    w.loaded(1, "Foo", 9).gives("bind foo m1; open m1 c1#1; open m1 c2#1");
    // In time another Monolith has it.
    w.move_room("foo", 2).ignore();
    w.loaded(2, "Foo", 10).gives("hold c1#1; leave m1 c1#1; hold c2#1; leave m1 c2#1");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[])
        .gives("bind foo m2; join m2 c1#2 Foo again; join m2 c2#2 Foo again");
    // Its link finds that everybody has left and asks nobody: then it is a duplicate like any other.
    let mut w = inhabited(2);
    w.move_room("foo", 2).ignore();
    w.loaded(2, "Foo", 10).ignore();
    w.event(Event::Withheld { link: LinkId(1), room: RoomKey::of("foo"), epoch: Epoch(3) }).gives("unload m1 Foo");
    assert!(w.unloaded(1, "foo", UnloadReason::Commanded, &[]).has("bind foo m2"));
}

#[test]
fn the_source_of_a_move_is_lost_and_its_members_go_on_to_the_target() {
    let mut w = inhabited(3);
    w.move_room("foo", 3).ignore();
    w.kicked(1, 2, 1, 1001).gives("");
    w.down(1).gives("join m3 c1#2 Foo alone again");
    w.loaded(3, "Foo", 4).gives("bind foo m3; open m3 c1#2; join m3 c2#2 Foo again");
}

#[test]
fn f54_members_wait_for_a_monolith_that_comes_in_time() {
    let mut w = inhabited(1);
    w.down(1).gives("unbind foo");
    let asked = w.policy.calls.len();
    w.wait(3).gives("");
    assert_eq!((w.policy.calls.len(), w.cluster.waiting()), (asked, 2), "there is nobody to choose from");
    // Whoever comes now waits with them.
    w.join(3, "foo").gives("");
    w.wait(1).gives("");
    w.up_as(7, 1, 8).gives("accept 7");
    w.gossip(7, &[]).gives("join m7 c1#2 Foo alone again");
    w.loaded(7, "Foo", 4).gives("bind foo m8; open m7 c1#2; join m7 c2#2 Foo again; join m7 c3#1 foo");
    settled_again(&w, 2);
}

#[test]
fn members_for_whom_no_monolith_comes_are_closed_one_after_another() {
    let mut w = inhabited(1);
    w.cluster.configure(Settings {
        seamless: Some(Seamless { window: 10 * SECOND, quiet: 0 }),
        move_rate: 1,
        ..settings()
    });
    w.down(1).gives("unbind foo");
    w.wait(9).gives("");
    w.wait(2).gives("close c1 1012");
    w.wait(1).gives("close c2 1012");
    assert_eq!(counted(&w).window_closed, 2);
    w.wait(1).gives("");
    assert_eq!((w.cluster.size(), w.cluster.next_deadline()), ((0, 0), None));
}

#[test]
fn a_window_ends_whoever_is_asked_at_that_moment() {
    let mut w = inhabited(2);
    w.down(1).gives("unbind foo; join m2 c1#2 Foo alone again");
    w.wait(5).gives("leave m2 c1#2");
    w.up(3).gives("accept 3");
    w.now += SECOND;
    w.policy.answer = Answer::Ranked(vec![monolith(3)]);
    w.gossip(3, &[]).gives("join m3 c1#3 Foo alone again");
    w.now += 4 * SECOND + SECOND / 2;
    w.event(Event::Tick)
        .gives("leave m3 c1#3; close c1 1012; join m3 c2#2 Foo alone again; leave m3 c2#2; close c2 1012");
    assert_eq!((w.cluster.waiting(), counted(&w).window_closed), (0, 2));
}

#[test]
fn a_room_that_the_next_monolith_does_not_know_is_lost_and_no_mistake_of_its_users() {
    let mut w = inhabited(2);
    w.down(1).ignore();
    w.join(3, "foo").gives("");
    w.kicked(2, 1, 2, 4002).gives("join m2 c3#1 foo alone");
    assert_eq!(counted(&w).room_lost, 2);
    w.wait(1).gives("close c1 1012; close c2 1012");
    // Who was not in it hears so, from the link.
    w.kicked(2, 3, 1, 4002).gives("");
    w.wait(1).gives("");
    assert_eq!((w.cluster.size(), w.cluster.handing_over()), ((0, 0), 0));
}

#[test]
fn f12_members_whose_rooms_did_not_survive_are_closed_at_the_rate_of_moves_and_not_in_step() {
    let mut w = inhabited(2);
    let seamless = Some(Seamless { window: 10 * SECOND, quiet: 0 });
    w.cluster.configure(Settings { seamless, move_rate: 10, ..settings() });
    // Two rooms, of 20 and of 10.
    for n in 3..=20 {
        w.join(n, "Foo").ignore();
        w.answered(1, n, 1).ignore();
    }
    w.join(21, "bar").ignore();
    w.loaded(1, "bar", 8).ignore();
    for n in 22..=30 {
        w.join(n, "bar").ignore();
    }
    w.down(1).ignore();
    // At the next Monolith the first of each room asks for all.
    for n in [1, 21] {
        w.kicked(2, n, 2, 4002).gives("");
    }
    assert_eq!((w.cluster.size(), w.cluster.handing_over(), counted(&w).room_lost), ((0, 0), 0, 30));
    // One has enough, and is not closed any more.
    w.leave(5).gives("");
    let began = w.now;
    let (mut closed, mut moments) = (Vec::new(), std::collections::BTreeSet::new());
    while let Some(at) = w.cluster.next_deadline() {
        w.now = at;
        closed.extend(w.event(Event::Tick).0);
        moments.insert(at % (SECOND / 10) / 1000);
        assert!(closed.len() as u64 <= (at - began) / (SECOND / 10) + 1, "{closed:?}");
    }
    closed.sort_unstable();
    let mut expected: Vec<String> = (1..=30).filter(|n| *n != 5).map(|n| format!("close c{n} 1012")).collect();
    expected.sort_unstable();
    assert_eq!(closed, expected);
    assert!(moments.len() > 10, "in step: {moments:?}");
}

#[test]
fn f13_members_of_a_duplicate_that_lost_go_on_at_the_other_one() {
    let mut w = inhabited(2);
    w.loaded(2, "Foo", 2).gives("hold c1#1; leave m1 c1#1; hold c2#1; leave m1 c2#1; unload m1 Foo; unbind foo");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[])
        .gives("bind foo m2; join m2 c1#2 Foo again; join m2 c2#2 Foo again");
    settled_again(&w, 2);
    // Whoever was sent away goes along.
    let mut w = inhabited(2);
    w.kicked(1, 1, 1, 1001).gives("");
    w.loaded(2, "Foo", 2).gives("hold c2#1; leave m1 c2#1; unload m1 Foo; unbind foo");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[])
        .gives("bind foo m2; join m2 c2#2 Foo again; join m2 c1#2 Foo again");
    settled_again(&w, 2);
}

#[test]
fn a_room_that_vanished_from_gossip_is_placed_again() {
    let mut w = inhabited(2);
    w.gossip(1, &[])
        .gives("hold c1#1; leave m1 c1#1; hold c2#1; leave m1 c2#1; unbind foo; join m1 c1#2 Foo alone again");
}

#[test]
fn nobody_goes_on_in_a_room_that_was_removed_or_unused() {
    for reason in [UnloadReason::Keepalive, UnloadReason::Admin] {
        let mut w = inhabited(2);
        w.unloaded(1, "foo", reason, &[])
            .gives("leave m1 c1#1; close c1 4003; leave m1 c2#1; close c2 4003; unbind foo");
        // Also while it moves.
        let mut w = inhabited(2);
        w.move_room("foo", 2).ignore();
        w.unloaded(1, "foo", reason, &[]).gives("leave m1 c1#1; close c1 4003; leave m1 c2#1; close c2 4003");
    }
}

#[test]
fn a_member_whose_join_crossed_the_unload_is_held_when_it_is_taken_back() {
    let mut w = inhabited(2);
    w.unloaded(1, "foo", UnloadReason::Commanded, &[(2, 1)]).gives("leave m1 c1#1; unbind foo");
    w.policy.answer = Answer::Ranked(vec![monolith(2)]);
    w.wait(5).gives("hold c2#1; leave m1 c2#1; join m2 c2#2 Foo alone again");
    w.loaded(2, "Foo", 5).gives("bind foo m2; open m2 c2#2; join m2 c1#2 Foo again");
    settled_again(&w, 2);
}

#[test]
fn a_member_whose_join_crossed_the_unload_has_a_window_when_its_monolith_is_lost_too() {
    let mut w = inhabited(2);
    w.unloaded(1, "foo", UnloadReason::Commanded, &[(2, 1)]).gives("leave m1 c1#1; unbind foo");
    w.down(1).gives("join m2 c2#2 Foo alone again");
    w.loaded(2, "Foo", 5).gives("bind foo m2; open m2 c2#2; join m2 c1#2 Foo again");
    settled_again(&w, 2);
    // And with nobody to go to it waits for as long as everybody else.
    let mut w = inhabited(1);
    w.unloaded(1, "foo", UnloadReason::Commanded, &[(2, 1)]).ignore();
    w.down(1).gives("");
    w.wait(9).gives("");
    assert_eq!((counted(&w).begun, w.cluster.waiting()), (2, 2));
}

#[test]
fn a_join_that_crossed_a_shutdown_waits_for_no_answer() {
    let mut w = inhabited(2);
    w.unloaded(1, "foo", UnloadReason::Shutdown, &[(2, 1)])
        .gives("leave m1 c1#1; hold c2#1; leave m1 c2#1; unbind foo; join m2 c1#2 Foo alone again");
}

#[test]
fn a_room_that_nobody_has_spelled_goes_under_the_names_of_its_clients() {
    let mut w = seamless(2);
    w.join(1, "Foo").ignore();
    w.answered(1, 1, 1).gives("bind foo m1; open m1 c1#1");
    w.join(2, "fOO").gives("join m1 c2#1 fOO");
    w.down(1).gives("unbind foo; join m2 c1#2 Foo alone again");
    w.answered(2, 1, 2).gives("bind foo m2; open m2 c1#2; join m2 c2#2 fOO again");
}

#[test]
fn a_policy_that_refuses_a_room_is_obeyed() {
    let mut w = inhabited(2);
    w.policy.answer = Answer::Reject { code: 4005, reason: "no".into() };
    w.down(1).gives("unbind foo; close c1 4005; close c2 4005");
}

#[test]
fn where_clients_are_closed_1001_closes() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.kicked(1, 1, 1, 1001).gives("close c1 1001");
}
