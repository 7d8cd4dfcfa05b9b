//! Monoliths that keep failing: when they are left alone, for how long, and that somebody always serves.

use super::*;

impl World {
    fn errors(&mut self, n: u64, errors: f64) {
        self.cluster.measure(|view| view.update(&monolith(n), |row| row.errors = errors));
    }

    fn shown(&self, n: u64) -> MonolithState {
        self.cluster.view().get(&monolith(n)).unwrap().state
    }

    fn flap(&mut self, n: u64, times: usize) -> Got {
        for _ in 1..times {
            self.down(n).ignore();
            self.up(n).ignore();
        }
        self.down(n).ignore();
        self.up(n)
    }
}

#[test]
fn one_that_keeps_failing_gets_nothing_new_and_keeps_its_rooms() {
    let mut w = world(3);
    w.settled("foo", 3);
    w.errors(1, 0.6);
    w.wait(1).gives("");
    w.wait(4).gives("");
    w.wait(1).gives("eject m1 errors 30s 1x");
    assert_eq!(w.shown(1), MonolithState::Ejected);
    w.join(2, "foo").gives("join m1 c2#1 foo");
    w.join(3, "bar").gives("join m2 c3#1 bar alone");
    assert_eq!(w.cluster.monoliths().len(), 3);
    w.errors(1, 0.1);
    w.wait(29).ignore();
    assert_eq!(w.shown(1), MonolithState::Ejected);
    let back = w.wait(1);
    assert!(back.has("m1 is back"));
    // It begins anew, so that it is not given everything at once.
    assert_eq!((w.shown(1), w.cluster.monoliths()[0].age_s), (MonolithState::Up, 0.0));
    w.join(4, "baz").gives("join m1 c4#1 baz alone");
    assert_eq!(w.cluster.counters().ejections, [1, 0]);
}

#[test]
fn a_passing_failure_is_none_and_each_ejection_lasts_longer() {
    let mut w = world(2);
    w.errors(1, 0.9);
    w.wait(4).gives("");
    w.errors(1, 0.4);
    w.wait(2).gives("");
    w.errors(1, 0.9);
    w.wait(2).gives("");
    for times in 1..=12_u64 {
        let lasts = 30 * times.min(10);
        w.wait(6).gives(&format!("eject m1 errors {lasts}s {}x", times.min(10)));
        w.wait(lasts).gives("m1 is back");
        w.wait(1).ignore();
    }
    // Whoever behaves gets shorter ones again.
    w.errors(1, 0.0);
    for _ in 0..9 {
        w.wait(30).gives("");
    }
    w.errors(1, 0.9);
    w.wait(1).ignore();
    w.wait(5).gives("eject m1 errors 60s 2x");
}

#[test]
fn where_all_fail_alike_nobody_is_to_blame() {
    let mut w = world(3);
    for n in 1..=3 {
        w.errors(n, 0.8);
    }
    w.wait(1).gives("");
    w.wait(60).gives("");
}

#[test]
fn never_more_than_the_share_and_never_all() {
    let mut w = world(5);
    for n in 1..=4 {
        w.errors(n, 0.9);
    }
    w.wait(1).gives("");
    w.wait(5).gives("eject m1 errors 30s 1x; eject m2 errors 30s 1x; spare m3 errors; spare m4 errors");
    // Those who are left go, and one that was ejected takes their place.
    w.event(Event::LinkState { link: LinkId(3), state: MonolithState::Draining }).gives("");
    w.down(4).gives("");
    w.down(5).gives("m1 is back");
    assert_eq!((w.shown(1), w.shown(2)), (MonolithState::Up, MonolithState::Ejected));
    // An ejected one that was silent when the last one went serves as soon as it answers.
    w.state(2, MonolithState::Suspect);
    w.down(1).ignore();
    w.state_gives(2, MonolithState::Up, "m2 is back");
    // The only one is not ejected, however it fails.
    let mut w = world(1);
    w.errors(1, 1.0);
    w.wait(1).gives("");
    w.wait(60).gives("");
    w.flap(1, 6).gives("accept 1; spare m1 flaps");
}

#[test]
fn one_whose_link_breaks_again_and_again_is_left_alone_whatever_its_id() {
    let mut w = world(2);
    w.flap(1, 2).gives("accept 1");
    w.down(1).ignore();
    // Its process has another id each time, and the same address.
    w.up_as(9, 1, 7).gives("accept 9; eject m7 flaps 30s 1x");
    assert_eq!(w.shown(7), MonolithState::Ejected);
    // Links that break while it is ejected do not end that.
    w.down(9).ignore();
    w.up_as(10, 1, 8).gives("accept 10");
    assert_eq!(w.shown(8), MonolithState::Ejected);
    // What its link says comes first.
    w.event(Event::LinkState { link: LinkId(10), state: MonolithState::Draining }).gives("");
    assert_eq!(w.shown(8), MonolithState::Draining);
    w.event(Event::LinkState { link: LinkId(10), state: MonolithState::Up }).gives("");
    w.wait(30).gives("m8 is back");
}

#[test]
fn a_goodbye_is_no_flap_and_old_ones_are_forgotten() {
    let mut w = world(2);
    for _ in 0..5 {
        w.event(Event::LinkState { link: LinkId(1), state: MonolithState::Draining }).gives("");
        w.down(1).ignore();
        w.up(1).gives("accept 1");
    }
    w.flap(1, 2).gives("accept 1");
    w.wait(61).ignore();
    w.flap(1, 2).gives("accept 1");
}
