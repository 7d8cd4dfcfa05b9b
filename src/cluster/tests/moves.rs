//! Rooms that move: by an operator, by the policy's rebalancing, and everything that can come in between.

use super::*;
use crate::cluster::Rebalancing;
use crate::model::moves::MoveRefusal;

/// Two Monoliths; client 1 is in `foo`, which `m1` has loaded, and `foo` has just begun to move to `m2`.
fn moving() -> World {
    let mut w = world(2);
    w.settled("foo", 3);
    w.move_room("FOO", 2).gives("unbind foo; let go m1 foo; r99 moves foo m1 m2 1");
    w
}

fn refused(w: &World, refusal: MoveRefusal) -> u64 {
    w.cluster.counters().moves.refused[refusal as usize]
}

#[test]
fn a_room_moves_and_its_clients_come_back_to_the_target() {
    let mut w = moving();
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives("leave m1 c1#1; close c1 1001");
    let asked = w.policy.calls.len();
    // The policy still prefers m1, and is not asked.
    w.join(2, "foo").gives("join m2 c2#1 foo alone");
    assert_eq!(w.policy.calls.len(), asked);
    w.loaded(2, "foo", 4).gives("bind foo m2; open m2 c2#1");
    let moves = w.cluster.counters().moves;
    assert_eq!((moves.begun, moves.done, moves.given_up), (1, 1, 0));
    assert_eq!(w.cluster.counters().unloads, 0, "no duplicate was unloaded");
}

#[test]
fn whoever_comes_while_a_room_moves_waits_for_the_target() {
    let mut w = moving();
    w.join(2, "foo").gives("");
    w.get(1, "foo").gives("");
    w.join(3, "foo").gives("");
    w.leave(3).gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives("leave m1 c1#1; close c1 1001; join m2 c2#1 foo alone");
    w.loaded(2, "foo", 4).gives("bind foo m2; open m2 c2#1; send r1 m2");
}

#[test]
fn a_room_that_is_not_unloaded_in_time_stays_and_is_not_asked_again() {
    let mut w = moving();
    w.join(2, "foo").gives("");
    w.wait(5).gives("bind foo m1; join m1 c2#1 foo");
    assert_eq!(w.cluster.counters().moves.given_up, 1);
    w.move_room("foo", 2).gives("r99 stays asked_before");
    // Late after all: as any other unload.
    w.unloaded(1, "foo", UnloadReason::Commanded, &[])
        .gives("leave m1 c1#1; close c1 1001; leave m1 c2#1; close c2 1001; unbind foo");
    w.join(3, "foo").gives("join m1 c3#1 foo alone");
}

#[test]
fn a_target_that_went_meanwhile_is_passed_over() {
    let mut w = moving();
    w.down(2).gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).ignore();
    w.join(2, "foo").gives("join m1 c2#1 foo alone");
    assert_eq!(w.last_call().cause, Some(Cause::Move));
    assert_eq!(w.last_call().room.as_ref().unwrap().previous.as_ref().unwrap().why, "moved");
}

#[test]
fn a_target_is_remembered_for_half_a_minute() {
    for (seconds, expected) in [(29, "join m2 c2#1 foo alone"), (30, "join m1 c2#1 foo alone")] {
        let mut w = moving();
        w.unloaded(1, "foo", UnloadReason::Commanded, &[]).ignore();
        w.wait(seconds).gives("");
        w.join(2, "foo").gives(expected);
    }
}

#[test]
fn the_source_goes_while_a_room_moves() {
    let mut w = moving();
    w.join(2, "foo").gives("");
    w.down(1).gives("close c1 1001; join m2 c2#1 foo alone");
    assert_eq!(w.cluster.counters().moves.given_up, 1);
}

#[test]
fn a_room_that_vanished_from_gossip_has_moved() {
    let mut w = moving();
    w.gossip(1, &[]).gives("leave m1 c1#1; close c1 1012");
    w.join(2, "foo").gives("join m2 c2#1 foo alone");
}

#[test]
fn joins_that_crossed_the_unload_are_waited_for() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.join(2, "foo").gives("join m1 c2#1 foo");
    w.move_room("foo", 2).ignore();
    w.join(3, "foo").gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[(2, 1)]).gives("leave m1 c1#1; close c1 1001");
    w.wait(5).gives("leave m1 c2#1; join m2 c2#2 foo alone");
    w.loaded(2, "foo", 4).gives("bind foo m2; open m2 c2#2; join m2 c3#1 foo");
}

#[test]
fn whoever_waits_behind_a_join_that_crossed_the_unload_goes_to_the_target() {
    for kicked in [false, true] {
        let mut w = world(2);
        w.settled("foo", 3);
        w.join(2, "foo").gives("join m1 c2#1 foo");
        w.move_room("foo", 2).ignore();
        w.join(3, "foo").gives("");
        w.unloaded(1, "foo", UnloadReason::Commanded, &[(2, 1)]).gives("leave m1 c1#1; close c1 1001");
        if kicked {
            w.kicked(1, 2, 1, 4005).gives("join m2 c3#1 foo alone");
        } else {
            w.leave(2).gives("leave m1 c2#1; join m2 c3#1 foo alone");
        }
        w.loaded(2, "foo", 4).gives("bind foo m2; open m2 c3#1");
    }
    // Also with nobody who waits yet, and where a drain has named no target.
    let mut w = world(2);
    w.settled("foo", 3);
    w.join(2, "foo").gives("join m1 c2#1 foo");
    w.drain(1, true).gives("unbind foo; let go m1 foo");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[(2, 1)]).gives("leave m1 c1#1; close c1 1001");
    w.policy.answer = Answer::Default;
    w.leave(2).gives("leave m1 c2#1");
    assert_eq!((w.cluster.size(), w.cluster.next_deadline()), ((0, 0), Some(w.now + SECOND)));
    w.join(3, "foo").gives("join m2 c3#1 foo alone");
    // A room that nobody has moved is where it was, if anywhere.
    let mut w = world(2);
    w.settled("foo", 3);
    w.join(2, "foo").gives("join m1 c2#1 foo");
    w.unloaded(1, "foo", UnloadReason::Keepalive, &[(2, 1)]).gives("leave m1 c1#1; close c1 4003; unbind foo");
    w.policy.answer = Answer::Ranked(vec![monolith(2)]);
    w.join(3, "foo").gives("");
    w.leave(2).gives("leave m1 c2#1; join m1 c3#1 foo alone");
}

#[test]
fn the_source_loads_the_room_again_or_another_has_it() {
    let mut w = moving();
    w.join(2, "foo").gives("");
    w.loaded(1, "foo", 9).gives("bind foo m1; join m1 c2#1 foo");
    w.move_room("foo", 2).gives("unbind foo; let go m1 foo; r99 moves foo m1 m2 2");
    w.loaded(2, "foo", 10).gives("leave m1 c1#1; close c1 1001; leave m1 c2#1; close c2 1001");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives("bind foo m2");
    assert_eq!(w.cluster.counters().moves.done, 1);
}

#[test]
fn what_may_not_move_stays_with_its_reason() {
    let mut w = world(3);
    w.move_room("foo", 2).gives("r99 stays unknown_room");
    w.join(1, "foo").ignore();
    w.move_room("foo", 2).gives("r99 stays not_active");
    w.answered(1, 1, 1).gives("bind foo m1; open m1 c1#1");
    w.move_room("foo", 2).gives("r99 stays unreported");
    w.loaded(1, "foo", 3).gives("");
    w.move_room("foo", 1).gives("r99 stays same_monolith");
    w.move_room("foo", 9).gives("r99 stays unknown_monolith");
    w.state(2, MonolithState::Draining);
    w.move_room("foo", 2).gives("r99 stays not_serving");
    w.state(1, MonolithState::Suspect);
    w.move_room("foo", 3).gives("r99 stays source_silent");
    w.state(1, MonolithState::Draining);
    w.loaded(1, "empty", 4).ignore();
    w.move_room("empty", 3).gives("r99 stays no_members");
    // A draining Monolith is a good reason to move.
    w.move_room("foo", 3).gives("unbind foo; let go m1 foo; r99 moves foo m1 m3 1");
    w.move_room("foo", 3).gives("r99 stays under_way");
    assert_eq!(w.cluster.counters().moves.refused.iter().sum::<u64>(), 9);
}

fn rebalancing(dry: bool, moves: &[(&str, u64)]) -> World {
    let mut w = world(3);
    w.cluster.configure(Settings {
        rebalance: Some(Rebalancing { every: 10 * SECOND, dry }),
        move_rate: 2,
        ..settings()
    });
    w.policy.moves = moves.iter().map(|(room, to)| Move { room: (*room).into(), to: monolith(*to) }).collect();
    w
}

/// So many clients in a room of `m1`, numbered from `first`.
pub(super) fn fill(w: &mut World, room: &str, first: u64, clients: u64) {
    w.loaded(1, room, 1).ignore();
    for n in first..first + clients {
        w.join(n, room).gives(&format!("join m1 c{n}#1 {room}"));
    }
}

#[test]
fn the_policy_is_asked_on_time_and_its_moves_are_paced_by_the_clients_that_they_cost() {
    let mut w = rebalancing(false, &[("b", 2), ("a", 3), ("c", 2), ("b", 3), ("nothing", 2)]);
    for (room, first, clients) in [("a", 10, 4), ("b", 20, 6), ("c", 30, 1)] {
        fill(&mut w, room, first, clients);
    }
    w.wait(9).gives("");
    w.wait(1).gives("rebalanced 5-2 of 3; unbind b; let go m1 b");
    assert_eq!((w.cluster.queued_moves(), refused(&w, MoveRefusal::Duplicate)), (2, 1));
    assert_eq!(refused(&w, MoveRefusal::UnknownRoom), 1);
    w.unloaded(1, "b", UnloadReason::Commanded, &[]).ignore();
    // Six clients at two a second.
    assert_eq!(w.cluster.next_deadline(), Some(w.now + 3 * SECOND));
    w.wait(2).gives("");
    w.wait(1).gives("unbind a; let go m1 a");
    w.unloaded(1, "a", UnloadReason::Commanded, &[]).ignore();
    w.wait(2).gives("unbind c; let go m1 c");
    w.unloaded(1, "c", UnloadReason::Commanded, &[]).ignore();
    assert_eq!(w.cluster.counters().moves.done, 3);
}

#[test]
fn a_call_shows_the_rooms_by_name_with_their_owners() {
    let mut w = rebalancing(false, &[]);
    fill(&mut w, "b", 1, 2);
    w.join(9, "a").ignore();
    w.loaded(1, "a", 1).ignore();
    w.join(8, "unconfirmed").ignore();
    w.wait(4).ignore();
    w.wait(6).ignore();
    let call = w.policy.calls.iter().rev().find(|call| call.hook == Hook::Rebalance).unwrap();
    let names: Vec<&str> = call.rooms.iter().map(|room| room.name.as_deref().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    let (a, b) = (&call.rooms[0], &call.rooms[1]);
    assert_eq!((a.clients, b.clients, b.regions[&Region::from("cdg")]), (1, 2, 2));
    assert_eq!((a.owner.clone(), a.age_s, b.age_s), (Some(monolith(1)), Some(10.0), None));
    assert_eq!(a.metadata.as_ref().unwrap()["visibility"], "public");
}

#[test]
fn rebalancing_that_is_switched_off_leaves_no_moves_behind() {
    let mut w = rebalancing(false, &[("a", 3), ("b", 2)]);
    for (room, first, clients) in [("a", 10, 4), ("b", 20, 6)] {
        fill(&mut w, room, first, clients);
    }
    w.wait(10).gives("rebalanced 2-0 of 2; unbind a; let go m1 a");
    w.unloaded(1, "a", UnloadReason::Commanded, &[]).ignore();
    assert_eq!(w.cluster.queued_moves(), 1);
    w.cluster.configure(settings());
    assert_eq!(w.cluster.queued_moves(), 0);
    w.wait(60).gives("");
}

#[test]
fn a_dry_run_counts_and_moves_nothing() {
    let mut w = rebalancing(true, &[("a", 2), ("nothing", 2)]);
    fill(&mut w, "a", 1, 1);
    w.wait(10).gives("rebalanced 2-1 of 1");
    w.wait(5).gives("");
    let moves = w.cluster.counters().moves;
    assert_eq!((moves.dry, moves.begun, w.cluster.queued_moves()), (1, 0, 0));
}

#[test]
fn a_new_answer_replaces_what_has_not_begun_and_what_changed_is_refused() {
    let mut w = rebalancing(false, &[("a", 2), ("b", 2), ("c", 2)]);
    for (room, first, clients) in [("a", 100, 30), ("b", 200, 1), ("c", 300, 1)] {
        fill(&mut w, room, first, clients);
    }
    w.wait(10).gives("rebalanced 3-0 of 3; unbind a; let go m1 a");
    w.policy.moves = vec![Move { room: "c".into(), to: monolith(3) }];
    w.unloaded(1, "a", UnloadReason::Commanded, &[]).ignore();
    w.wait(10).gives("rebalanced 1-0 of 2");
    assert_eq!(w.cluster.queued_moves(), 1);
    // An older copy takes the room over while its move waits.
    w.loaded(2, "c", 0).ignore();
    w.join(400, "c").gives("");
    w.unloaded(1, "c", UnloadReason::Commanded, &[]).gives("bind c m2; join m2 c400#1 c");
    w.policy.moves.clear();
    w.wait(5).gives("");
    assert_eq!(refused(&w, MoveRefusal::Changed), 1);
}

#[test]
fn an_operator_s_move_waits_for_nobody_and_counts_towards_the_pace() {
    let mut w = rebalancing(false, &[("b", 2)]);
    fill(&mut w, "a", 100, 4);
    fill(&mut w, "b", 200, 1);
    w.wait(9).gives("");
    w.move_room("a", 3).has("let go m1 a");
    w.unloaded(1, "a", UnloadReason::Commanded, &[]).ignore();
    w.wait(1).gives("rebalanced 1-0 of 1");
    w.wait(1).gives("unbind b; let go m1 b");
}
