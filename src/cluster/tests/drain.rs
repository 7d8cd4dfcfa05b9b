//! Monoliths that lose their rooms.

use super::duplicates::among_others;
use super::handover::{inhabited, seamless};
use super::moves::fill;
use super::*;
use crate::cluster::{DrainNeeds, DrainSummary, Seamless};
use crate::model::moves::MoveRefusal;

fn summary(w: &World, n: u64) -> DrainSummary {
    let monolith = w.cluster.monoliths().into_iter().find(|summary| summary.id == monolith(n)).unwrap();
    monolith.drain.unwrap()
}

/// Rooms have to be quiet for six seconds before they move.
fn patient(w: &mut World) {
    let seamless = Some(Seamless { window: 10 * SECOND, quiet: 6 * SECOND });
    w.cluster.configure(Settings { seamless, move_rate: 2, ..settings() });
}

#[test]
fn rooms_leave_one_after_another_until_none_is_left() {
    let mut w = seamless(2);
    w.cluster.configure(Settings {
        seamless: Some(Seamless { window: 10 * SECOND, quiet: 0 }),
        move_rate: 2,
        ..settings()
    });
    fill(&mut w, "a", 10, 4);
    fill(&mut w, "b", 20, 1);
    w.loaded(1, "empty", 9).ignore();
    w.drain(1, true).gives("unbind a; hand over m1 a");
    let left = DrainSummary { rooms_left: 2, clients_left: 5, ..DrainSummary::default() };
    assert_eq!(summary(&w, 1), left);
    assert!(w.unloaded(1, "a", UnloadReason::Commanded, &[]).has("join m2 c10#2 a alone again"));
    w.loaded(2, "a", 5).ignore();
    w.wait(1).gives("");
    w.wait(1).gives("unbind b; hand over m1 b");
    w.unloaded(1, "b", UnloadReason::Commanded, &[]).ignore();
    w.loaded(2, "b", 6).ignore();
    assert_eq!(summary(&w, 1), DrainSummary { moved: 2, done: true, ..DrainSummary::default() });
    // It takes nothing new, and what comes to a room that it has follows.
    w.join(30, "new").gives("join m2 c30#1 new alone");
    w.join(31, "empty").gives("join m1 c31#1 empty");
    assert!(!summary(&w, 1).done);
    w.wait(1).gives("unbind empty; hand over m1 empty");
}

#[test]
fn f28_a_monolith_that_is_no_longer_listed_is_drained() {
    let mut w = inhabited(2);
    let state = |state| Event::LinkState { link: LinkId(1), state };
    w.event(state(MonolithState::Draining)).gives("unbind foo; hand over m1 Foo");
    assert!(w.unloaded(1, "foo", UnloadReason::Commanded, &[]).has("join m2 c1#2 Foo alone again"));
    assert_eq!(w.last_call().cause, Some(Cause::Move));
    w.event(state(MonolithState::Up)).gives("");
    assert!(w.cluster.monoliths()[0].drain.is_none());
    // Where clients are closed it keeps them for as long as it may.
    let mut w = world(2);
    w.settled("foo", 3);
    w.state(1, MonolithState::Draining);
    w.wait(60).gives("");
}

#[test]
fn what_has_not_begun_is_dropped_when_it_is_resumed() {
    let mut w = inhabited(2);
    patient(&mut w);
    fill(&mut w, "other", 10, 1);
    w.drain(1, true).gives("watch m1 foo");
    assert_eq!(w.cluster.queued_moves(), 2);
    w.drain(1, false).gives("");
    assert_eq!((w.cluster.queued_moves(), w.cluster.monoliths()[0].state), (0, MonolithState::Up));
    w.quiet(1, "foo", false).gives("");
    w.wait(60).gives("");
    w.join(3, "new").gives("join m1 c3#1 new alone");
}

#[test]
fn a_link_that_breaks_does_not_end_a_drain() {
    let mut w = inhabited(2);
    w.drain(1, true).ignore();
    w.down(1).ignore();
    w.loaded(2, "Foo", 4).ignore();
    w.up_as(7, 1, 1).gives("accept 7");
    w.gossip(7, &[("bar", 5)]).gives("bind bar m1");
    assert_eq!(w.cluster.monoliths()[0].state, MonolithState::Draining);
    w.join(30, "bar").gives("join m7 c30#1 bar");
    w.wait(1).gives("unbind bar; hand over m7 bar");
    // It is resumed, whether it is there at that moment or not.
    w.down(7).ignore();
    w.drain(1, false).gives("");
    w.up_as(8, 1, 1).gives("accept 8");
    assert_eq!(w.cluster.monoliths()[0].state, MonolithState::Up);
    // One that nobody knows is not drained.
    w.drain(3, true).gives("");
    w.up(3).gives("accept 3");
    assert_eq!(w.cluster.monoliths()[2].state, MonolithState::Up);
}

#[test]
fn rooms_that_fall_quiet_together_leave_one_after_another() {
    let mut w = inhabited(2);
    patient(&mut w);
    fill(&mut w, "a", 10, 2);
    fill(&mut w, "b", 20, 2);
    fill(&mut w, "c", 30, 2);
    for room in ["foo", "a", "b", "c"] {
        w.move_room(room, 2).has(&format!("watch m1 {room}"));
    }
    w.quiet(1, "foo", false).gives("unbind foo; hand over m1 Foo");
    w.quiet(1, "a", false).gives("");
    w.quiet(1, "b", true).gives("");
    w.quiet(1, "c", false).gives("");
    assert_eq!(w.cluster.queued_moves(), 3);
    // Two clients a second: one room a second. Whoever waited is to be quiet still.
    w.wait(1).gives("watch m1 a");
    w.quiet(1, "a", false).gives("unbind a; hand over m1 a");
    // It was never quiet, and is not asked to be once more.
    w.wait(1).gives("unbind b; hand over m1 b");
    // Whoever has gone meanwhile takes nobody's turn.
    w.leave(30).ignore();
    w.leave(31).ignore();
    w.wait(1).gives("watch m1 c");
    w.quiet(1, "c", false).gives("");
    assert_eq!((w.cluster.queued_moves(), w.cluster.counters().handover.lossy), (0, 1));
}

#[test]
fn a_room_that_goes_by_itself_while_others_leave_before_it_is_not_asked_to() {
    let mut w = inhabited(2);
    patient(&mut w);
    fill(&mut w, "a", 10, 2);
    fill(&mut w, "b", 20, 2);
    for room in ["foo", "a", "b"] {
        w.move_room(room, 2).has(&format!("watch m1 {room}"));
        w.quiet(1, room, false).ignore();
    }
    w.unloaded(1, "a", UnloadReason::Keepalive, &[]).ignore();
    w.wait(1).gives("watch m1 b");
}

#[test]
fn a_room_waits_until_it_is_quiet_and_goes_on_meanwhile() {
    let mut w = inhabited(2);
    patient(&mut w);
    w.move_room("foo", 2).gives("watch m1 foo; r99 moves Foo m1 m2 2");
    w.move_room("foo", 2).gives("r99 stays under_way");
    w.join(3, "foo").gives("join m1 c3#1 foo");
    w.quiet(1, "foo", false).gives("unbind foo; hand over m1 Foo");
    assert_eq!(w.cluster.counters().handover.lossy, 0);
    // Of another link, or of a room that is not watched any more.
    w.quiet(1, "foo", false).gives("");
    let mut w = inhabited(2);
    patient(&mut w);
    w.drain(1, true).gives("watch m1 foo");
    w.quiet(2, "foo", true).gives("");
    w.quiet(1, "foo", true).gives("unbind foo; hand over m1 Foo");
    assert_eq!((w.cluster.counters().handover.lossy, summary(&w, 1).lossy), (1, 1));
    assert!(w.down(1).has("join m2 c1#2 Foo alone again"));
}

#[test]
fn a_temporary_room_moves_only_once_its_monolith_has_saved_it() {
    let too_young = |w: &World| w.cluster.counters().moves.refused[MoveRefusal::TooYoung as usize];
    for quiet in [0, 6] {
        let begins = if quiet == 0 { "unbind temp; hand over m1 temp" } else { "watch m1 temp" };
        let mut w = seamless(2);
        let seamless = Some(Seamless { window: 10 * SECOND, quiet: quiet * SECOND });
        w.cluster.configure(Settings { seamless, ..settings() });
        fill(&mut w, "temp", 10, 1);
        w.drain(1, true).gives("");
        assert_eq!((summary(&w, 1).skipped, summary(&w, 1).done, summary(&w, 1).rooms_left), (1, false, 1));
        w.wait(5).gives("");
        w.wait(1).gives(begins);
        assert_eq!((summary(&w, 1).skipped, too_young(&w)), (0, 0));
    }
    // Also by hand, and where clients are closed.
    let mut w = world(2);
    fill(&mut w, "temp", 10, 1);
    w.wait(5).gives("");
    w.move_room("temp", 2).gives("r99 stays too_young");
    w.wait(1).gives("");
    w.move_room("temp", 2).gives("unbind temp; let go m1 temp; r99 moves temp m1 m2 1");
    // A room that is watched is looked at again when it is quiet.
    for (age, expected) in [(5, ""), (6, "unbind temp; hand over m1 temp")] {
        let mut w = seamless(2);
        patient(&mut w);
        fill(&mut w, "temp", 10, 1);
        w.move_room("temp", 2).gives("watch m1 temp; r99 moves temp m1 m2 1");
        w.wait(age).gives("");
        w.quiet(1, "temp", true).gives(expected);
        assert_eq!((too_young(&w), w.cluster.counters().handover.skipped), (u64::from(age == 5), u64::from(age == 5)));
    }
}

#[test]
fn the_only_monolith_keeps_its_rooms_until_there_is_another() {
    let mut w = inhabited(1);
    w.drain(1, true).gives("");
    w.wait(3).gives("");
    assert!(!summary(&w, 1).done);
    w.up(2).gives("accept 2");
    w.gossip(2, &[]).gives("");
    w.wait(1).gives("unbind foo; hand over m1 Foo");
}

#[test]
fn a_room_that_its_monolith_keeps_is_left_there() {
    let mut w = inhabited(2);
    assert!(w.drain(1, true).has("hand over m1 Foo"));
    assert!(w.wait(5).has("open m1 c1#1"));
    w.wait(5).gives("");
    let expected = DrainSummary { rooms_left: 1, clients_left: 2, done: true, ..DrainSummary::default() };
    assert_eq!(summary(&w, 1), expected);
}

#[test]
fn a_room_that_was_deserted_before_it_was_asked_for_is_asked_for_later() {
    let mut w = inhabited(2);
    w.drain(1, true).gives("unbind foo; hand over m1 Foo");
    w.join(3, "foo").gives("");
    w.leave(1).gives("leave m1 c1#1");
    w.leave(2).gives("leave m1 c2#1");
    // Of another load: too late.
    w.withheld(1, "foo", 2).gives("");
    w.withheld(1, "foo", 3).gives("bind foo m1; join m1 c3#1 foo");
    assert_eq!((w.cluster.counters().moves.given_up, summary(&w, 1).done), (1, false));
    w.wait(1).gives("unbind foo; hand over m1 Foo");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives("leave m1 c3#1; join m2 c3#2 Foo alone again");
    // Also once the room is given up: that load was never asked for.
    let mut w = inhabited(2);
    w.move_room("foo", 2).ignore();
    w.wait(5).ignore();
    w.move_room("foo", 2).gives("r99 stays asked_before");
    w.withheld(1, "foo", 3).gives("");
    w.move_room("foo", 2).gives("unbind foo; hand over m1 Foo; r99 moves Foo m1 m2 2");
}

#[test]
fn a_drain_and_rebalancing_do_not_disturb_each_other() {
    let mut w = inhabited(3);
    let seamless = Some(Seamless { window: 10 * SECOND, quiet: 0 });
    let rebalance = Some(crate::cluster::Rebalancing { every: SECOND, dry: false });
    fill(&mut w, "a", 10, 1);
    w.cluster.configure(Settings { seamless, rebalance, move_rate: 1, ..settings() });
    w.drain(1, true).gives("unbind a; hand over m1 a");
    // What the policy has said before is forgotten with each call; what is drained is not.
    w.policy.moves = Vec::new();
    w.wait(1).gives("rebalanced 0-0 of 1; unbind foo; hand over m1 Foo");
}

#[test]
fn a_drain_that_cannot_go_on_says_what_it_waits_for_and_is_not_done() {
    let mut w = inhabited(2);
    w.state(1, MonolithState::Suspect);
    w.drain(1, true).gives("");
    assert_eq!((summary(&w, 1).waits_for, summary(&w, 1).done), (Some(DrainNeeds::Answer), false));
    w.down(2).ignore();
    w.event(Event::LinkState { link: LinkId(1), state: MonolithState::Up }).ignore();
    assert_eq!((summary(&w, 1).waits_for, summary(&w, 1).done), (Some(DrainNeeds::Target), false));
    w.up_as(7, 2, 2).ignore();
    w.gossip(7, &[]).ignore();
    assert_eq!((summary(&w, 1).waits_for, summary(&w, 1).done), (None, false));
    w.wait(1).gives("unbind foo; hand over m1 Foo");
}

/// One of several balancers: `ours` it has sent to `m1`, into `alone` nobody else has clients, and of the others nothing is
/// known.
fn beside_others(drain: u64) -> World {
    let mut w = among_others(2, 1);
    let seamless = Some(Seamless { window: 10 * SECOND, quiet: 0 });
    w.cluster.configure(Settings { seamless, drain: drain * SECOND, ..settings() });
    w.settled("ours", 3);
    for (room, first) in [("alone", 10), ("else", 20), ("theirs", 30)] {
        fill(&mut w, room, first, 1);
    }
    let counted = |room: &str, users| {
        let mut report = report((room, 1));
        Arc::get_mut(&mut report.metadata).unwrap().users = users;
        report
    };
    // The last one's latest client is not counted yet.
    w.pass(1_900_000).ignore();
    w.join(21, "else").ignore();
    w.pass(100_000).ignore();
    let rooms = vec![counted("alone", 1), counted("theirs", 2), counted("else", 1), report(("ours", 3))];
    w.event(Event::Gossip { link: LinkId(1), rooms }).ignore();
    w
}

/// The rooms that are asked for within so many seconds.
fn asked(w: &mut World, seconds: u64) -> Vec<String> {
    let effects: Vec<String> = (0..seconds * 100).flat_map(|_| w.pass(10_000).0).collect();
    effects.iter().filter_map(|effect| effect.strip_prefix("hand over m1 ")).map(str::to_owned).collect()
}

#[test]
fn where_discovery_drops_a_monolith_balancers_begin_with_the_rooms_that_are_their_own() {
    let mut w = beside_others(300);
    w.event(Event::LinkState { link: LinkId(1), state: MonolithState::Draining }).ignore();
    assert_eq!(asked(&mut w, 1), ["alone", "ours"]);
    for room in ["alone", "ours"] {
        w.unloaded(1, room, UnloadReason::Commanded, &[]).ignore();
        w.loaded(2, room, 5).ignore();
    }
    assert_eq!((summary(&w, 1).waits_for, summary(&w, 1).done), (Some(DrainNeeds::Turn), false));
    // Others move theirs one after another.
    w.loaded(1, "other", 1).ignore();
    assert_eq!(asked(&mut w, 8), [""; 0]);
    w.unloaded(1, "other", UnloadReason::Commanded, &[]).ignore();
    assert_eq!(asked(&mut w, 9), [""; 0]);
    w.unloaded(1, "theirs", UnloadReason::Commanded, &[]).ignore();
    w.loaded(2, "theirs", 5).ignore();
    assert_eq!(asked(&mut w, 9), [""; 0]);
    assert_eq!(asked(&mut w, 13), ["else"], "nobody else moves it");
    w.unloaded(1, "else", UnloadReason::Commanded, &[]).ignore();
    w.loaded(2, "else", 5).ignore();
    assert_eq!((summary(&w, 1).rooms_left, summary(&w, 1).waits_for, summary(&w, 1).done), (0, None, true));
}

#[test]
fn rooms_are_left_to_others_for_a_part_of_a_short_drain_only_and_not_at_all_in_an_operators() {
    let mut w = beside_others(8);
    w.event(Event::LinkState { link: LinkId(1), state: MonolithState::Draining }).ignore();
    assert_eq!(asked(&mut w, 1), ["alone", "ours"]);
    assert_eq!(asked(&mut w, 3), ["else", "theirs"]);
    let mut w = beside_others(300);
    w.drain(1, true).ignore();
    assert_eq!(asked(&mut w, 1), ["alone", "else", "ours", "theirs"]);
    // Others that move one room after another do not keep it waiting for ever.
    let mut w = beside_others(32);
    w.event(Event::LinkState { link: LinkId(1), state: MonolithState::Draining }).ignore();
    assert_eq!(asked(&mut w, 1), ["alone", "ours"]);
    for second in 1..9 {
        assert_eq!(asked(&mut w, 1), if second < 8 { &[][..] } else { &["else", "theirs"] }, "{second}");
        let other = format!("other{second}");
        w.loaded(1, &other, 1).ignore();
        w.unloaded(1, &other, UnloadReason::Commanded, &[]).ignore();
    }
}

#[test]
fn a_room_that_every_balancer_with_clients_in_it_has_placed_is_nobodys_own() {
    let mut w = beside_others(300);
    w.event(Event::LinkState { link: LinkId(1), state: MonolithState::Draining }).ignore();
    assert_eq!(asked(&mut w, 1), ["alone", "ours"]);
    w.unloaded(1, "ours", UnloadReason::Commanded, &[]).ignore();
    w.loaded(2, "ours", 5).ignore();
    w.event(Event::LinkState { link: LinkId(1), state: MonolithState::Up }).ignore();
    w.event(Event::LinkState { link: LinkId(2), state: MonolithState::Draining }).ignore();
    let effects: Vec<String> = (0..900).flat_map(|_| w.pass(10_000).0).collect();
    assert!(effects.iter().all(|effect| !effect.starts_with("hand over")), "{effects:?}");
    assert_eq!((summary(&w, 2).rooms_left, summary(&w, 2).waits_for), (1, Some(DrainNeeds::Turn)));
}
