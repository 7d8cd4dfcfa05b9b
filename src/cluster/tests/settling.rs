//! A room that is kept by another Monolith than the one that its clients were with: nobody is let in before that one has let go.

use super::handover::seamless;
use super::*;

/// Clients 1 and 2 of `foo` were with m1, which is to let it go (epoch 9); m2 keeps it (epoch 5).
fn settling(monoliths: u64) -> World {
    let mut w = seamless(monoliths);
    w.settled("foo", 9);
    w.join(2, "foo").ignore();
    w.loaded(2, "foo", 5).gives("hold c1#1; leave m1 c1#1; hold c2#1; leave m1 c2#1; unload m1 foo; unbind foo");
    w
}

const LET_IN: &str = "bind foo m2; join m2 c1#2 foo again; join m2 c2#2 foo again";

#[test]
fn f06_nobody_is_let_in_before_the_loser_has_let_go() {
    let mut w = settling(2);
    w.gossip(2, &[("foo", 5)]).gives("");
    w.gossip(1, &[("foo", 9)]).gives("");
    w.join(3, "foo").gives("");
    w.request(1, Some("foo"), Cause::Http).gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives(&format!("{LET_IN}; join m2 c3#1 foo; send r1 m2"));
}

#[test]
fn whatever_ends_the_loser_s_copy_lets_them_in() {
    settling(2).gossip(1, &[]).gives(LET_IN);
    settling(2).down(1).gives(LET_IN);
    // And nobody waits for ever.
    let mut w = settling(2);
    w.wait(4).gives("");
    w.wait(1).gives(LET_IN);
}

#[test]
fn a_winner_that_goes_leaves_them_to_whoever_has_the_room() {
    let mut w = settling(2);
    // What was asked to go is not to be had, but it may be loaded there again.
    w.down(2).gives("join m1 c1#2 foo alone again");
    let mut w = settling(3);
    w.loaded(3, "foo", 7).gives("unload m3 foo");
    let got = w.unloaded(2, "foo", UnloadReason::Keepalive, &[]);
    assert!(got.has("join m1 c1#2 foo alone again"));
}

#[test]
fn a_third_and_older_copy_is_the_one_that_is_kept() {
    let mut w = settling(3);
    w.loaded(3, "foo", 3).gives("unload m2 foo");
    w.unloaded(2, "foo", UnloadReason::Commanded, &[]).gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[])
        .gives("bind foo m3; join m3 c1#2 foo again; join m3 c2#2 foo again");
}

#[test]
fn who_leaves_meanwhile_is_not_let_in() {
    let mut w = settling(2);
    w.leave(1).gives("");
    w.leave(2).gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).gives("bind foo m2");
    assert_eq!(w.cluster.waiting(), 0);
}
