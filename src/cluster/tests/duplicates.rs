//! A duplicate as one of several balancers sees it: who asks the loser first, and who need not ask any more.

use super::*;

/// The same cluster as [`world`], but not alone.
pub(super) fn among_others(monoliths: u64, seed: u64) -> World {
    let mut w = fresh();
    w.cluster = Cluster::new(settings(), SECOND).among_others(seed);
    w.event(Event::Discovered { endpoints: Vec::new() }).gives("");
    for n in 1..=monoliths {
        w.up(n).ignore();
        w.gossip(n, &[]).ignore();
    }
    w
}

impl World {
    /// Lets time pass until something is sent, at most so many milliseconds. Returns how many it took.
    pub(super) fn until_sent(&mut self, effect: &str, within_ms: u64) -> Option<u64> {
        for passed in 1..=within_ms {
            self.now += 1_000;
            let got = self.event(Event::Tick);
            if got.has(effect) {
                return Some(passed);
            }
            got.gives("");
        }
        None
    }
}

#[test]
fn a_loser_that_nobody_has_asked_yet_wins_over_what_is_loaded_once_the_winner_has_gone() {
    let mut w = among_others(2, 1);
    w.join(1, "foo").gives("join m1 c1#1 foo alone");
    w.loaded(1, "foo", 2).gives("bind foo m1; open m1 c1#1");
    w.loaded(2, "foo", 7).gives("");
    // Another balancer has asked for it meanwhile, and a join of ours has crossed that and loads it once more.
    w.join(2, "foo").gives("join m1 c2#1 foo");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[(2, 1)]).ignore();
    w.loaded(1, "foo", 9).ignore();
    let sent: Vec<String> = (0..10_000)
        .flat_map(|_| {
            w.now += 1_000;
            w.event(Event::Tick).0
        })
        .filter(|effect| effect.starts_with("unload"))
        .collect();
    assert_eq!(sent, ["unload m1 foo"]);
}

#[test]
fn f06_traffic_to_the_loser_ends_at_once_and_the_unload_follows_in_its_turn() {
    let mut w = among_others(2, 1);
    w.settled("foo", 9);
    w.loaded(2, "foo", 5).gives("leave m1 c1#1; close c1 1012; unbind foo");
    // Whoever comes back waits: the loser still has what it will save.
    w.join(2, "foo").gives("");
    w.gossip(2, &[("foo", 5)]).gives("");
    let sent = w.until_sent("unload m1 foo", 1_101).expect("it had placed the room there: its turn is an early one");
    w.now += 4_000;
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives("bind foo m2; join m2 c2#1 foo");
    let counters = w.cluster.counters();
    assert_eq!((counters.duplicates, counters.unloads, counters.unloads_spared), (1, 1, 0));
    let took = sent * 1_000 + 4_000;
    assert_eq!((counters.overlaps.count, counters.overlaps.total, counters.overlaps.longest), (1, took, took));
}

#[test]
fn whoever_is_nearer_to_the_loser_asks_earlier() {
    // It sent the room there; its clients are in it; neither.
    let sent = |seed| {
        let mut w = among_others(2, seed);
        w.settled("foo", 9);
        w.loaded(2, "foo", 5).ignore();
        w.until_sent("unload m1 foo", 10_000).unwrap()
    };
    let joined = |seed| {
        let mut w = among_others(2, seed);
        w.loaded(1, "foo", 9).ignore();
        w.join(1, "foo").ignore();
        w.loaded(2, "foo", 5).ignore();
        w.until_sent("unload m1 foo", 10_000).unwrap()
    };
    let neither = |seed| {
        let mut w = among_others(2, seed);
        w.settled("foo", 5);
        w.loaded(2, "foo", 9).gives("");
        w.until_sent("unload m2 foo", 10_000).unwrap()
    };
    let range = |turns: Vec<u64>| (*turns.iter().min().unwrap(), *turns.iter().max().unwrap());
    let (first, second, third) = (
        range((0..20).map(sent).collect()),
        range((0..20).map(joined).collect()),
        range((0..20).map(neither).collect()),
    );
    assert!(first.0 < first.1, "each balancer has a turn of its own: {first:?}");
    // From one to the next there is time for a frame to the other side of the earth and back.
    assert!(first.1 + 200 < second.0, "{first:?} {second:?}");
    assert!(second.1 + 200 < third.0, "{second:?} {third:?}");
}

#[test]
fn f02_what_another_balancer_has_had_unloaded_is_not_asked_again() {
    for by_gossip in [false, true] {
        let mut w = among_others(2, 1);
        w.settled("foo", 5);
        w.loaded(2, "foo", 9).gives("");
        match by_gossip {
            true => w.gossip(2, &[]).gives(""),
            false => w.unloaded(2, "foo", UnloadReason::Commanded, &[]).gives(""),
        }
        assert_eq!(w.until_sent("unload m2 foo", 10_000), None);
        let counters = w.cluster.counters();
        assert_eq!((counters.unloads, counters.unloads_spared, counters.overlaps.count), (0, 1, 1));
        // The next load of it is another one.
        w.loaded(2, "foo", 10).gives("");
        assert!(w.until_sent("unload m2 foo", 10_000).is_some());
    }
}

#[test]
fn the_only_copy_that_is_left_is_not_unloaded() {
    let mut w = among_others(2, 1);
    w.settled("foo", 5);
    w.loaded(2, "foo", 9).gives("");
    // The winner goes before anybody has asked the loser.
    w.down(1).gives("close c1 1001; bind foo m2");
    assert_eq!(w.until_sent("unload m2 foo", 10_000), None);
    w.join(2, "foo").gives("join m2 c2#1 foo");
    let mut w = among_others(2, 1);
    w.settled("foo", 5);
    w.loaded(2, "foo", 9).gives("");
    w.unloaded(1, "foo", UnloadReason::Keepalive, &[]).gives("leave m1 c1#1; close c1 4003; bind foo m2");
    assert_eq!(w.until_sent("unload m2 foo", 10_000), None);
}

#[test]
fn a_copy_that_waits_for_its_turn_stays_on_its_way_out_whatever_gossip_says() {
    let mut w = among_others(2, 1);
    w.settled("foo", 5);
    w.loaded(2, "foo", 9).gives("");
    for _ in 0..4 {
        w.gossip(2, &[("foo", 9)]).gives("");
        w.gossip(1, &[("foo", 5)]).gives("");
    }
    assert!(w.until_sent("unload m2 foo", 10_000).is_some());
    assert_eq!(w.cluster.counters().duplicates, 1);
}

#[test]
fn of_two_balancers_that_move_a_room_one_asks() {
    let mut first = among_others(3, 1);
    let mut second = among_others(3, 2);
    first.settled("foo", 5);
    second.loaded(1, "foo", 5).ignore();
    second.join(2, "foo").ignore();
    first.move_room("foo", 2).gives("unbind foo; r99 moves foo m1 m2 1");
    second.move_room("foo", 3).gives("unbind foo; r99 moves foo m1 m3 1");
    // Whoever comes meanwhile waits already.
    first.join(3, "foo").gives("");
    let (mut earlier, mut later) = (first, second);
    let turns = [&mut earlier, &mut later].map(|w| w.cluster.next_deadline().unwrap());
    assert_ne!(turns[0], turns[1]);
    if turns[0] > turns[1] {
        std::mem::swap(&mut earlier, &mut later);
    }
    assert!(earlier.until_sent("let go m1 foo", 251).is_some());
    later.unloaded(1, "foo", UnloadReason::Commanded, &[]).ignore();
    assert_eq!(later.until_sent("let go m1 foo", 300), None);
    assert_eq!(later.cluster.counters().unloads_spared, 1);
}

#[test]
fn a_room_that_its_members_leave_before_its_turn_does_not_move() {
    let mut w = among_others(2, 1);
    w.settled("foo", 5);
    w.move_room("foo", 2).gives("unbind foo; r99 moves foo m1 m2 1");
    w.leave(1).gives("leave m1 c1#1");
    // Its Monolith could be about to unload it by itself by now.
    assert!(w.until_sent("bind foo m1", 251).is_some());
    assert_eq!((w.cluster.counters().moves.given_up, w.cluster.counters().moves.done), (1, 0));
}

#[test]
fn f02_a_copy_that_was_asked_and_kept_by_its_monolith_is_not_asked_again() {
    let mut w = among_others(3, 1);
    w.settled("foo", 5);
    w.loaded(2, "foo", 9).gives("");
    assert!(w.until_sent("unload m2 foo", 10_000).is_some());
    // Two gossips name it still: it stays, and takes over when the winner goes.
    w.gossip(2, &[("foo", 9)]).gives("");
    w.gossip(2, &[("foo", 9)]).gives("");
    w.down(1).gives("close c1 1001; bind foo m2");
    // Nobody waits for what it does not do.
    w.loaded(3, "foo", 4).gives("bind foo m3");
    assert_eq!(w.until_sent("unload m2 foo", 10_000), None);
}

#[test]
fn a_move_that_has_begun_ends_in_the_mode_in_which_it_began() {
    let mut w = among_others(2, 1);
    w.settled("foo", 3);
    w.move_room("foo", 2).gives("unbind foo; r99 moves foo m1 m2 1");
    let seamless = Some(crate::cluster::Seamless { window: 10 * SECOND, quiet: 0 });
    w.cluster.configure(Settings { seamless, ..settings() });
    // A hand-over would have its members hold, and nobody would let them speak again if the room stays.
    w.until_sent("let go m1 foo", 251).expect("its turn comes");
}
