//! Regression tests named after the failures that they keep from coming back.

use super::*;

#[test]
fn f01_the_monolith_that_got_the_join_gets_the_leave_whatever_became_of_the_room() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.join(2, "foo").gives("join m1 c2#1 foo");
    w.unloaded(1, "foo", UnloadReason::Keepalive, &[(2, 1)]).ignore();
    w.gossip(1, &[]).gives("");
    w.leave(2).gives("leave m1 c2#1");
}

#[test]
fn f03_f16_events_of_links_that_are_not_registered_are_ignored() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.down(1).ignore();
    w.loaded(1, "ghost", 9).gives("");
    w.gossip(1, &[("ghost", 9)]).gives("");
    w.unloaded(1, "foo", UnloadReason::Admin, &[(1, 1)]).gives("");
    w.answered(1, 1, 1).gives("");
    w.kicked(1, 1, 1, 4002).gives("");
    w.state(1, MonolithState::Up);
    assert_eq!(w.cluster.counters().stale_events, 4);
    w.join(2, "ghost").gives("join m2 c2#1 ghost alone");
}

#[test]
fn f05_early_gossip_keeps_a_pending_room() {
    let mut w = world(2);
    w.join(1, "foo").ignore();
    w.gossip(1, &[]).gives("");
    w.gossip(2, &[]).gives("");
    w.loaded(1, "foo", 3).gives("bind foo m1; open m1 c1#1");
}

#[test]
fn f07_a_join_right_after_the_creation_lands_where_it_was_created() {
    for report_first in [true, false] {
        let mut w = world(2);
        w.create(1, "foo").gives("send r1 m1 awaited");
        w.policy.answer = Answer::Ranked(vec![monolith(2)]);
        if report_first {
            w.loaded(1, "foo", 2).ignore();
        }
        let bound = w.created(1, "foo");
        assert!(report_first || bound.has("bind foo m1"));
        let join = w.join(1, "foo");
        assert!(join.has("join m1 c1#1 foo") || join.has("join m1 c1#1 foo unsure"));
    }
}

#[test]
fn f09_two_links_to_one_monolith() {
    let mut w = world(1);
    w.settled("foo", 3);
    w.up_as(7, 7, 1).gives("refuse link 7");
    w.down(7).gives("");
    w.join(2, "foo").gives("join m1 c2#1 foo");
    assert_eq!(w.cluster.monoliths().len(), 1);
    // When the first one goes, the other address may take over.
    w.down(1).ignore();
    w.up_as(8, 7, 1).gives("accept 8");
    w.gossip(8, &[("foo", 3)]).gives("bind foo m1");
}

#[test]
fn f11_a_room_moves_on_within_one_attempt_when_its_monolith_goes() {
    let mut w = world(2);
    w.join(1, "foo").ignore();
    w.join(2, "foo").ignore();
    w.down(1).gives("join m2 c1#2 foo alone");
    assert_eq!(w.last_call().room.as_ref().unwrap().attempt, 2);
}

#[test]
fn f13_f14_rooms_of_other_monoliths_do_not_notice() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.loaded(2, "bar", 4).ignore();
    w.join(2, "bar").gives("join m2 c2#1 bar");
    w.down(1).gives("close c1 1001; unbind foo");
    w.join(3, "bar").gives("join m2 c3#1 bar");
}

#[test]
fn f19_epochs_around_the_wrap_and_equal_ones() {
    let mut w = world(3);
    w.loaded(2, "foo", u32::MAX).ignore();
    w.loaded(3, "foo", 0).gives("unload m3 foo");
    w.loaded(1, "foo", u32::MAX).gives("unload m2 foo; unbind foo");
    w.unloaded(2, "foo", UnloadReason::Commanded, &[]).gives("bind foo m1");
}

#[test]
fn f22_a_monolith_is_gone_when_its_link_is_whatever_discovery_lists() {
    let mut w = world(2);
    w.event(Event::Discovered { endpoints: vec![endpoint(1), endpoint(2)] }).gives("");
    w.down(1).gives("");
    w.event(Event::Discovered { endpoints: vec![endpoint(1), endpoint(2)] }).gives("");
    w.join(1, "foo").gives("join m2 c1#1 foo alone");
}

#[test]
fn f23_a_fresh_balancer_learns_before_it_places_and_unloads_nothing() {
    let mut w = fresh();
    w.event(Event::Discovered { endpoints: vec![endpoint(1), endpoint(2)] }).gives("");
    w.up(1).ignore();
    w.up(2).ignore();
    w.join(1, "foo").gives("");
    w.gossip(1, &[("bar", 2_000_000_000)]).gives("bind bar m1");
    w.gossip(2, &[("foo", 2_000_000_001)]).gives("bind foo m2; join m2 c1#1 foo");
    assert_eq!(w.cluster.counters().unloads, 0);
}

#[test]
fn f26_f42_only_the_owner_can_end_a_binding() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.unloaded(2, "foo", UnloadReason::Keepalive, &[]).gives("");
    w.loaded(2, "foo", 2).gives("leave m1 c1#1; close c1 1012; unload m1 foo; unbind foo");
    w.join(2, "foo").gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives("bind foo m2; join m2 c2#1 foo");
    w.gossip(1, &[]).gives("");
    w.join(3, "foo").gives("join m2 c3#1 foo");
}

#[test]
fn f27_two_spellings_are_one_room() {
    let mut w = world(2);
    w.join(1, "Foo").gives("join m1 c1#1 Foo alone");
    w.join(2, "foo").gives("");
    w.loaded(1, "Foo", 1).gives("bind foo m1; open m1 c1#1; join m1 c2#1 foo");
    assert_eq!(w.cluster.size(), (1, 2));
}

#[test]
fn f33_a_client_that_drops_while_its_join_is_in_flight_leaves_no_ghost() {
    let mut w = world(1);
    w.join(1, "foo").ignore();
    w.leave(1).gives("leave m1 c1#1");
    w.answered(1, 1, 1).gives("");
    w.kicked(1, 1, 1, 4002).gives("");
    w.loaded(1, "foo", 1).gives("bind foo m1");
    assert_eq!((w.cluster.size(), w.row(1)), ((1, 0), (1, 0, 0)));
}

#[test]
fn f41_one_that_leaves_gets_nothing_new_however_fresh_and_empty_it_is() {
    let mut w = world(2);
    w.policy.answer = Answer::Default;
    w.gossip(2, &[("a", 1), ("b", 2), ("c", 3)]).ignore();
    w.settled("foo", 3);
    w.state(1, MonolithState::Draining);
    w.gossip(1, &[("foo", 3)]).gives("");
    w.join(2, "bar").gives("join m2 c2#1 bar alone");
    w.join(3, "foo").gives("join m1 c3#1 foo");
}

#[test]
fn f50_no_unload_for_a_room_that_was_never_reported() {
    let mut w = world(2);
    w.join(1, "foo").gives("join m1 c1#1 foo alone");
    w.kicked(1, 1, 1, 4002).gives("");
    w.policy.answer = Answer::Ranked(vec![monolith(2)]);
    w.create(1, "foo").gives("send r1 m2 awaited");
    w.loaded(2, "foo", 1).gives("bind foo m2");
    w.created(1, "foo").gives("");
    w.join(2, "foo").gives("join m2 c2#1 foo");
    // The same with the visitor still waiting for its answer.
    let mut w = world(2);
    w.join(1, "foo").ignore();
    w.loaded(2, "foo", 1).gives("bind foo m2; leave m1 c1#1; join m2 c1#2 foo");
    assert_eq!(w.cluster.counters().unloads, 0);
}

#[test]
fn f52_of_a_herd_one_join_is_out_at_a_time() {
    let mut w = world(2);
    for room in 0..20 {
        for n in 0..4 {
            let got = w.join(1 + room * 4 + n, &format!("room{room}"));
            assert_eq!(got.0.len(), usize::from(n == 0));
        }
    }
    assert_eq!((w.cluster.counters().joins, w.cluster.waiting()), (20, 60));
}

#[test]
fn f57_an_admin_unload_closes_everyone_with_4003() {
    let mut w = world(1);
    w.settled("foo", 3);
    for n in 2..=7 {
        w.join(n, "foo").ignore();
    }
    // The Monolith itself kicks only every other one.
    for n in [1, 3, 5, 7] {
        w.kicked(1, n, 1, 4003).gives("");
    }
    let Got(effects) = w.unloaded(1, "foo", UnloadReason::Admin, &[]);
    let mut closed: Vec<&String> = effects.iter().filter(|effect| effect.starts_with("close")).collect();
    closed.sort();
    assert_eq!(closed, ["close c2 4003", "close c4 4003", "close c6 4003"]);
    assert_eq!(effects.iter().filter(|effect| effect.starts_with("leave")).count(), 3);
}

#[test]
fn f58_a_kicked_client_is_gone_at_once() {
    let mut w = world(1);
    w.settled("foo", 3);
    w.join(2, "foo").ignore();
    w.kicked(1, 2, 1, 4005).gives("");
    let state = w.cluster.state();
    assert_eq!(state[0].rooms[0].clients.len(), 1);
    assert_eq!((w.cluster.public_rooms()[0].2, w.row(1)), (1, (1, 1, 0)));
}
