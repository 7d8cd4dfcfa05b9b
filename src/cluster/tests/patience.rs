//! Nobody waits for a room without an end, whatever becomes of it meanwhile.

use super::*;

/// That of these tests' settings.
const PATIENCE: Micros = 25 * SECOND;

impl World {
    /// Lets a second pass.
    fn second(&mut self) -> Got {
        self.now += SECOND;
        self.event(Event::Tick)
    }
}

#[test]
fn outages_that_come_and_go_begin_nobodys_wait_anew() {
    let mut w = world(1);
    w.join(1, "foo").gives("join m1 c1#1 foo alone");
    w.request(1, Some("foo"), Cause::Http).gives("");
    let began = w.now;
    for link in 2..20 {
        w.down(link - 1).ignore();
        for _ in 0..3 {
            let got = w.second();
            if got.has("close c1 1013") {
                assert!(got.has("refuse r1 503"), "{:?}", got.0);
                assert_eq!(w.now - began, PATIENCE);
                assert_eq!((w.cluster.counters().refused_unplaced, w.cluster.waiting), (2, 0));
                return;
            }
            got.gives("");
        }
        w.up_as(link, 1, 1).ignore();
        let got = w.gossip(link, &[]);
        assert!(got.0.iter().any(|effect| effect.starts_with("join ")), "{:?}", got.0);
        w.second().gives("");
    }
    panic!("whoever waits does so for ever");
}

/// A Monolith that answers each of those who wait with a no, slowly, and one after the other.
#[test]
fn whoever_waits_behind_many_others_waits_no_longer_than_anybody() {
    let mut w = world(1);
    w.request(1, Some("foo"), Cause::Http).gives("send r1 m1 awaited");
    for n in 2..=20 {
        w.request(n, Some("foo"), Cause::Http).gives("");
    }
    let began = w.now;
    let mut out = 1;
    loop {
        let refused = (0..4).map(|_| w.second()).find(|got| got.has("refuse r20 503"));
        if let Some(refused) = refused {
            assert!(refused.0.iter().all(|effect| effect.starts_with("refuse ")), "{:?}", refused.0);
            break;
        }
        w.done(out, RequestOutcome::Status(404)).gives(&format!("send r{} m1 awaited", out + 1));
        out += 1;
    }
    assert_eq!(w.now - began, PATIENCE);
    w.done(out, RequestOutcome::Status(404)).gives("");
    assert_eq!(w.cluster.size(), (0, 0));
}

#[test]
fn a_join_that_is_taken_back_after_a_long_wait_is_refused_and_makes_no_second_attempt() {
    let mut w = world(2);
    w.request(1, Some("foo"), Cause::Http).gives("send r1 m1 awaited");
    for n in 2..=6 {
        w.request(n, Some("foo"), Cause::Http).gives("");
    }
    w.join(1, "foo").gives("");
    let began = w.now;
    for n in 1..=6 {
        (0..4).for_each(|_| w.second().gives(""));
        let got = w.done(n, RequestOutcome::Status(404));
        got.gives(&if n < 6 { format!("send r{} m1 awaited", n + 1) } else { "join m1 c1#1 foo alone".into() });
    }
    // It is at a Monolith when its time is up: there may be an answer yet.
    (0..4).for_each(|_| w.second().gives(""));
    assert!(w.now - began > PATIENCE);
    w.second().gives("leave m1 c1#1; close c1 1013");
    assert_eq!(w.cluster.waiting, 0);

    // One that is answered has what it wanted, and nothing is left of its wait.
    let mut w = world(2);
    w.join(1, "foo").ignore();
    w.loaded(1, "foo", 5).ignore();
    w.second().gives("");
    assert_eq!(w.cluster.patience.next_due(), None);
}

#[test]
fn members_between_two_monoliths_have_their_window_and_newcomers_their_patience() {
    let mut w = world(1);
    let seamless = Some(crate::cluster::Seamless { window: 60 * SECOND, quiet: SECOND });
    w.cluster.configure(Settings { seamless, ..settings() });
    w.settled("foo", 3);
    w.down(1).ignore();
    w.join(2, "foo").gives("");
    w.request(1, Some("foo"), Cause::Http).gives("");
    // Others have a longer wait from now on; theirs has begun.
    w.cluster.configure(Settings { seamless, patience: 50 * SECOND, ..settings() });
    let refused: Vec<String> = (0..PATIENCE / SECOND).flat_map(|_| w.second().0).collect();
    for one in ["close c2 1013", "refuse r1 503"] {
        assert_eq!(refused.iter().filter(|effect| *effect == one).count(), 1, "{refused:?}");
    }
    assert!(!refused.iter().any(|effect| effect.starts_with("close c1")), "{refused:?}");
    let back = [w.up(2), w.gossip(2, &[]), w.second(), w.second()];
    assert!(back.iter().any(|got| got.0.iter().any(|effect| effect.starts_with("join m2 c1#2 foo"))));
}

#[test]
fn a_member_whose_join_is_taken_back_in_its_window_keeps_that_and_gets_no_other_end() {
    let mut w = world(2);
    let seamless = Some(crate::cluster::Seamless { window: 60 * SECOND, quiet: SECOND });
    w.cluster.configure(Settings { seamless, patience: 8 * SECOND, ..settings() });
    w.settled("foo", 3);
    // The other one does not answer it, and nobody else is there.
    let went = w.down(1);
    assert!(went.has("join m2 c1#2 foo alone again"), "{:?}", went.0);
    let told: Vec<String> = (0..50).flat_map(|_| w.second().0).collect();
    assert!(told.contains(&"leave m2 c1#2".into()), "{told:?}");
    assert!(!told.iter().any(|effect| effect.starts_with("close c1")), "{told:?}");
}
