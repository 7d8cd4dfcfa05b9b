//! Waiting joins: who goes alone, what releases the others, and what happens when nothing does.

use super::*;

/// Clients 1 to 3 want the same room; client 1 is out.
fn herd() -> World {
    let mut w = world(2);
    w.join(1, "foo").gives("join m1 c1#1 foo alone");
    w.join(2, "foo").gives("");
    w.join(3, "Foo").gives("");
    w
}

#[test]
fn the_first_goes_alone_and_any_sign_of_the_room_releases_the_others() {
    let released = "bind foo m1; open m1 c1#1; join m1 c2#1 foo; join m1 c3#1 Foo";
    herd().loaded(1, "foo", 7).gives(released);
    herd().gossip(1, &[("bar", 6), ("foo", 7)]).gives(&format!("bind bar m1; {released}"));
    herd().answered(1, 1, 1).gives(released);
}

#[test]
fn gossip_without_the_room_releases_nobody() {
    let mut w = herd();
    w.gossip(1, &[]).gives("");
    w.gossip(2, &[("bar", 1)]).gives("bind bar m2");
    w.answered(1, 1, 9).gives("");
    w.answered(2, 1, 1).gives("");
    w.loaded(1, "foo", 7).ignore();
    assert_eq!(w.row(1), (1, 3, 0));
}

#[test]
fn an_unknown_room_closes_those_who_spelled_it_alike_and_another_spelling_goes_next() {
    let mut w = herd();
    w.kicked(1, 1, 1, 4002).gives("close c2 4002; join m1 c3#1 Foo alone");
    w.kicked(1, 3, 1, 4002).gives("");
    assert!(w.cluster.room(&RoomKey::from("foo")).is_none());
    assert_eq!(w.row(1), (0, 0, 0));
}

#[test]
fn another_kick_or_a_leave_says_nothing_about_the_room() {
    let mut w = herd();
    w.kicked(1, 1, 1, 4004).gives("join m1 c2#1 foo alone");
    w.leave(2).gives("leave m1 c2#1; join m1 c3#1 Foo alone");
    w.leave(3).gives("leave m1 c3#1");
    // The choice lingers, since the Monolith may be loading the room.
    w.join(4, "foo").gives("join m1 c4#1 foo alone");
    w.leave(4).gives("leave m1 c4#1");
    assert_eq!(w.row(1), (0, 0, 1));
    w.wait(5).gives("");
    assert_eq!(w.row(1), (0, 0, 0));
}

#[test]
fn who_left_while_waiting_is_not_sent() {
    let mut w = herd();
    w.leave(2).gives("");
    w.loaded(1, "foo", 7).gives("bind foo m1; open m1 c1#1; join m1 c3#1 Foo");
}

#[test]
fn after_the_time_out_the_next_choice_is_tried_without_the_first() {
    let mut w = herd();
    w.wait(4).gives("");
    w.wait(1).gives("leave m1 c1#1; join m2 c1#2 foo alone");
    let call = w.last_call();
    assert_eq!((&*call.excluded, call.cause), (&[monolith(1)][..], Some(Cause::Join)));
    let room = call.room.as_ref().unwrap();
    assert_eq!((room.attempt, room.clients), (2, 3));
    let previous = room.previous.as_ref().unwrap();
    assert_eq!((&previous.monolith, &*previous.why), (&monolith(1), "timeout"));
    // What the first one says of the earlier attachment is stale.
    w.kicked(1, 1, 1, 4002).gives("");
    w.answered(2, 1, 2).gives("bind foo m2; open m2 c1#2; join m2 c2#1 foo; join m2 c3#1 Foo");
}

#[test]
fn when_the_attempts_are_spent_everyone_hears_1013() {
    let mut w = world(5);
    w.join(1, "foo").ignore();
    w.join(2, "foo").ignore();
    w.get(1, "foo").gives("");
    w.wait(5).gives("leave m1 c1#1; join m2 c1#2 foo alone");
    w.wait(5).gives("leave m2 c1#2; join m3 c1#3 foo alone");
    w.wait(5).gives("leave m3 c1#3; close c1 1013; close c2 1013; refuse r1 503");
    assert_eq!(w.cluster.size(), (0, 0));
    // The policy hears of it when somebody comes back.
    w.join(3, "foo").gives("join m1 c3#1 foo alone");
    assert_eq!(w.last_call().room.as_ref().unwrap().previous.as_ref().unwrap().monolith, monolith(3));
}

#[test]
fn when_no_monolith_is_left_everyone_hears_1013() {
    let mut w = herd();
    w.wait(5).gives("leave m1 c1#1; join m2 c1#2 foo alone");
    w.wait(5).gives("leave m2 c1#2; close c1 1013; close c2 1013; close c3 1013");
    let mut none = world(0);
    none.join(1, "foo").gives("");
    none.get(1, "foo").gives("");
    none.wait(10).gives("close c1 1013; refuse r1 503");
}

#[test]
fn another_monolith_reports_the_room_meanwhile() {
    let mut w = herd();
    w.loaded(2, "FOO", 3).gives("bind foo m2; leave m1 c1#1; join m2 c1#2 foo; join m2 c2#1 foo; join m2 c3#1 Foo");
    // The first one loads it all the same: it is the younger copy.
    w.loaded(1, "foo", 4).gives("unload m1 foo");
    assert_eq!((w.row(1), w.row(2)), ((1, 0, 0), (1, 3, 0)));
}

#[test]
fn a_bound_room_takes_everyone_at_once() {
    let mut w = world(2);
    w.gossip(2, &[("Foo", 9)]).gives("bind foo m2");
    w.join(1, "foo").gives("join m2 c1#1 foo");
    w.join(2, "FOO").gives("join m2 c2#1 FOO");
    w.join(2, "FOO").gives("");
    w.leave(1).gives("leave m2 c1#1");
    w.leave(1).gives("");
    assert_eq!(w.row(2), (1, 1, 0));
}

#[test]
fn an_answered_room_without_a_report_lasts_as_long_as_its_members() {
    let mut w = world(1);
    w.join(1, "foo").ignore();
    w.answered(1, 1, 1).gives("bind foo m1; open m1 c1#1");
    w.gossip(1, &[]).gives("");
    w.wait(30).gives("");
    w.leave(1).gives("leave m1 c1#1");
    w.wait(10).gives("unbind foo");
}

#[test]
fn joins_and_rooms_that_wait_are_bounded() {
    let mut w = world(1);
    for n in 1..=50 {
        w.join(n, &format!("room{n}")).ignore();
    }
    w.join(51, "one-more").gives("close c51 1013");
    w.get(51, "one-more").gives("refuse r51 503");
    w.loaded(1, "room1", 1).ignore();
    w.join(52, "one-more").gives("join m1 c52#1 one-more alone");
    for n in 100..200 {
        w.join(n, "room2").gives("");
    }
    w.join(200, "room2").gives("close c200 1013");
    w.join(201, "room1").gives("join m1 c201#1 room1");
    assert_eq!(w.cluster.counters().refused_full, 3);
}

#[test]
fn a_policy_may_refuse() {
    for (code, close, status) in [(404, 1013, 404), (503, 1013, 503), (1013, 1013, 503), (4005, 4005, 503)] {
        let mut w = world(1);
        w.policy.answer = Answer::Reject { code, reason: "no".into() };
        w.join(1, "foo").gives(&format!("close c1 {close}"));
        w.get(1, "foo").gives(&format!("refuse r1 {status}"));
        w.generate(2).gives(&format!("refuse r2 {status}"));
        assert_eq!(w.cluster.size(), (0, 0));
    }
}

#[test]
fn a_policy_sees_who_asks() {
    let mut w = world(1);
    w.join(1, "Foo").ignore();
    let call = w.last_call().clone();
    let room = call.room.unwrap();
    assert_eq!(
        (room.name.as_deref(), room.region, room.clients, room.attempt),
        (Some("foo"), Some(Region::from("cdg")), 1, 1)
    );
    assert_eq!(call.client.unwrap().region, Some(Region::from("cdg")));
    w.get(1, "bar").ignore();
    let call = w.last_call();
    assert_eq!((call.cause, &call.client), (Some(Cause::Http), &None));
    assert_eq!(call.room.as_ref().unwrap().region, Some(Region::from("cdg")));
}

#[test]
fn f16_a_join_that_is_out_waits_and_only_what_a_monolith_says_is_progress() {
    let mut w = world(2);
    let standing = |w: &World| (w.cluster.waiting(), w.cluster.out(), w.cluster.answers());
    w.join(1, "foo").gives("join m1 c1#1 foo alone");
    w.join(2, "foo").gives("");
    assert_eq!(standing(&w), (1, 1, 0));
    // Another attempt is no progress.
    w.wait(5).gives("leave m1 c1#1; join m2 c1#2 foo alone");
    assert_eq!(standing(&w), (1, 1, 0));
    w.answered(2, 1, 2).gives("bind foo m2; open m2 c1#2; join m2 c2#1 foo");
    assert_eq!(standing(&w), (0, 0, 1));
    // A no is an answer as well.
    w.join(3, "bar").gives("join m1 c3#1 bar alone");
    w.kicked(1, 3, 1, 4002).gives("");
    assert_eq!(standing(&w), (0, 0, 2));
    w.get(1, "baz").gives("send r1 m1 awaited");
    assert_eq!(standing(&w), (0, 1, 2));
    w.status(1, 404).gives("");
    assert_eq!(standing(&w), (0, 0, 3));
    // That nobody answered is none, and neither is it that somebody gave up.
    w.get(2, "baz").gives("send r2 m1 awaited");
    w.done(2, RequestOutcome::Failed).gives("");
    w.join(4, "bam").gives("join m1 c4#1 bam alone");
    w.leave(4).gives("leave m1 c4#1");
    assert_eq!(standing(&w), (0, 0, 3));
    // Whoever is out when its Monolith goes waits again.
    w.join(5, "bim").gives("join m1 c5#1 bim alone");
    w.down(1).gives("join m2 c5#2 bim alone");
    assert_eq!(standing(&w), (0, 1, 3));
}
