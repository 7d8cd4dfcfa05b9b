//! What Monoliths report: gossip, unloads, and rooms on two Monoliths.

use super::*;

#[test]
fn members_of_an_unloaded_room_are_closed_by_its_reason() {
    for (reason, code) in [
        (UnloadReason::Keepalive, 4003),
        (UnloadReason::Admin, 4003),
        (UnloadReason::Commanded, 1001),
        (UnloadReason::Shutdown, 1001),
        (UnloadReason::Other, 1001),
    ] {
        let mut w = world(1);
        w.settled("foo", 3);
        w.unloaded(1, "FOO", reason, &[]).gives(&format!("leave m1 c1#1; close c1 {code}; unbind foo"));
        assert_eq!(w.row(1), (0, 0, 0));
    }
}

#[test]
fn a_join_that_crossed_an_unload_waits_for_its_answer() {
    let crossed = || {
        let mut w = world(2);
        w.settled("foo", 3);
        w.join(2, "foo").gives("join m1 c2#1 foo");
        w.unloaded(1, "foo", UnloadReason::Admin, &[(2, 1), (7, 1)]).gives("leave m1 c1#1; close c1 4003; unbind foo");
        w.join(3, "foo").gives("");
        w
    };
    crossed().loaded(1, "foo", 4).gives("bind foo m1; open m1 c2#1; join m1 c3#1 foo");
    crossed().answered(1, 2, 1).gives("bind foo m1; open m1 c2#1; join m1 c3#1 foo");
    crossed().kicked(1, 2, 1, 4002).gives("close c3 4002");
    crossed().kicked(1, 2, 1, 4003).gives("join m1 c3#1 foo alone");
    crossed().down(1).gives("join m2 c2#2 foo alone");
    // Silence is not the Monolith's failure: the policy may choose it again, in a first attempt.
    let mut w = crossed();
    w.wait(5).gives("leave m1 c2#1; join m1 c2#2 foo alone");
    let call = w.last_call();
    assert_eq!((call.excluded.len(), call.room.as_ref().unwrap().attempt), (0, 1));
    w.wait(5).gives("leave m1 c2#2; join m2 c2#3 foo alone");
}

#[test]
fn after_several_joins_crossed_an_unload_nobody_goes_until_all_have_their_answer() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.join(2, "foo").ignore();
    w.join(3, "foo").ignore();
    w.unloaded(1, "foo", UnloadReason::Shutdown, &[(2, 1), (3, 1)]).gives("leave m1 c1#1; close c1 1001; unbind foo");
    w.join(4, "foo").gives("");
    w.kicked(1, 2, 1, 1001).gives("close c2 1001");
    // A Monolith that stops gets nothing new.
    w.leave(3).gives("leave m1 c3#1; join m2 c4#1 foo alone");
}

#[test]
fn an_unload_during_a_placement_changes_nothing() {
    let mut w = world(1);
    w.join(1, "foo").ignore();
    w.unloaded(1, "foo", UnloadReason::Keepalive, &[(1, 1)]).gives("");
    w.loaded(1, "foo", 2).gives("bind foo m1; open m1 c1#1");
}

#[test]
fn gossip_that_no_longer_names_a_room_ends_it_with_a_retryable_code() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.gossip(1, &[("foo", 3)]).gives("");
    w.gossip(2, &[]).gives("");
    w.gossip(1, &[]).gives("leave m1 c1#1; close c1 1012; unbind foo");
}

#[test]
fn older_gossip_does_not_touch_a_created_room() {
    let mut w = world(1);
    w.create(1, "foo").ignore();
    w.created(1, "foo").gives("bind foo m1");
    w.gossip(1, &[]).gives("");
    w.gossip(1, &[("foo", 1)]).gives("");
    assert_eq!(w.row(1), (1, 0, 0));
}

/// (epoch on m1, epoch on m2, does m1 keep the room that it has?)
const DUPLICATES: [(u32, u32, bool); 8] = [
    (5, 6, true),
    (6, 5, false),
    (5, 5, true),
    (u32::MAX, 0, true),
    (0, u32::MAX, false),
    (2_147_483_640, 1, true),
    (1, 2_147_483_640, false),
    (5, 5 + (1 << 31), true),
];

#[test]
fn of_two_copies_the_older_one_wins() {
    for (first, second, stays) in DUPLICATES {
        let mut w = world(2);
        w.settled("foo", first);
        let expected = if stays { "unload m2 Foo" } else { "leave m1 c1#1; close c1 1012; unload m1 foo; unbind foo" };
        w.loaded(2, "Foo", second).gives(expected);
        let (loser, gone) = if stays { (2, "") } else { (1, "bind foo m2") };
        w.unloaded(loser, "foo", UnloadReason::Commanded, &[]).gives(gone);
        assert_eq!((w.cluster.counters().duplicates, w.cluster.counters().unloads), (1, 1), "{first} {second}");
    }
}

#[test]
fn of_equal_epochs_the_smaller_id_wins_whoever_was_first() {
    let mut w = world(2);
    w.loaded(2, "foo", 5).gives("bind foo m2");
    w.loaded(1, "foo", 5).gives("unload m2 foo; unbind foo");
    w.unloaded(2, "foo", UnloadReason::Commanded, &[]).gives("bind foo m1");
}

#[test]
fn a_binding_that_nothing_confirmed_loses_against_any_report_and_is_not_unloaded() {
    let mut w = world(2);
    w.create(1, "foo").ignore();
    w.created(1, "foo").ignore();
    w.join(1, "foo").ignore();
    w.loaded(2, "foo", 900).gives("leave m1 c1#1; close c1 1012; bind foo m2");
    // An answer is no epoch either.
    w.join(2, "bar").ignore();
    w.answered(1, 2, 1).ignore();
    w.gossip(2, &[("foo", 900), ("bar", 901)]).gives("leave m1 c2#1; close c2 1012; bind bar m2");
    assert_eq!(w.cluster.counters().unloads, 0);
}

#[test]
fn unload_is_asked_once_per_load() {
    let mut w = world(2);
    w.settled("foo", 5);
    w.loaded(2, "foo", 6).gives("unload m2 foo");
    w.loaded(2, "foo", 6).gives("");
    w.gossip(2, &[("foo", 6)]).gives("");
    // It keeps the room, but asking again could cross its own unload.
    w.gossip(2, &[("foo", 6)]).gives("");
    w.gossip(2, &[("foo", 6)]).gives("");
    w.unloaded(2, "foo", UnloadReason::Commanded, &[]).gives("");
    w.gossip(2, &[]).gives("");
    w.loaded(2, "foo", 7).gives("unload m2 foo");
}

#[test]
fn nobody_is_sent_to_a_copy_that_was_asked_to_go() {
    let mut w = world(3);
    w.settled("foo", 5);
    w.loaded(2, "foo", 6).gives("unload m2 foo");
    w.down(1).gives("close c1 1001; unbind foo");
    // This gossip may have crossed the request.
    w.gossip(2, &[("foo", 6)]).gives("");
    w.unloaded(2, "foo", UnloadReason::Commanded, &[]).gives("");

    let mut w = world(3);
    w.settled("foo", 5);
    w.loaded(2, "foo", 6).gives("unload m2 foo");
    w.down(1).ignore();
    w.gossip(2, &[("foo", 6)]).gives("");
    // This one cannot: it keeps the room.
    w.gossip(2, &[("foo", 6)]).gives("bind foo m2");
}

#[test]
fn a_new_load_by_the_owner_is_no_duplicate() {
    let mut w = world(2);
    w.settled("foo", 5);
    w.loaded(1, "Foo", 9).gives("");
    assert_eq!(w.cluster.room(&RoomKey::from("foo")).unwrap().epoch, Some(Epoch(9)));
    w.loaded(2, "foo", 7).gives("leave m1 c1#1; close c1 1012; unload m1 Foo; unbind foo");
}
