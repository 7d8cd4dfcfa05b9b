//! Claims as the cluster sees them: nobody goes before the answer, and every answer and none leads somewhere.

use super::*;
use crate::cluster::Claiming;

const WAIT: Micros = SECOND / 5;

fn claiming(monoliths: u64) -> World {
    let mut w = world(monoliths);
    w.cluster.configure(Settings { claims: Some(Claiming { wait: WAIT, lease: 15 * SECOND }), ..settings() });
    // The first renewal is due at once, and has nothing to renew.
    w.event(Event::Tick).gives("");
    w
}

impl World {
    fn claim(&mut self, number: u64, of: u64, outcome: ClaimOutcome) -> Got {
        let answer = ClaimAnswer { number, monolith: monolith(of), outcome };
        self.event(Event::Claim { room: RoomKey::of("foo"), answer })
    }
}

fn taken(by: u64, expires_in: Micros) -> ClaimOutcome {
    ClaimOutcome::Taken { by: RoomLoad { monolith: monolith(by), epoch: None }, held: "theirs".into(), expires_in }
}

fn taken_for(by: u64, epoch: u32) -> ClaimOutcome {
    let by = RoomLoad { monolith: monolith(by), epoch: Some(Epoch(epoch)) };
    ClaimOutcome::Taken { by, held: "theirs".into(), expires_in: 9 * SECOND }
}

#[test]
fn a_room_is_claimed_before_anybody_goes_and_given_back_when_it_leaves() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    w.join(2, "Foo").gives("");
    w.claim(1, 1, ClaimOutcome::Granted).gives("join m1 c1#1 foo alone");
    w.loaded(1, "foo", 5).gives("bind foo m1; open m1 c1#1; join m1 c2#1 Foo");
    w.unloaded(1, "foo", UnloadReason::Keepalive, &[])
        .gives("leave m1 c1#1; close c1 4003; leave m1 c2#1; close c2 4003; unbind foo; release foo m1 5");
    assert_eq!((w.cluster.counters().claims.asked, w.cluster.counters().claims.granted), (1, 1));
}

#[test]
fn a_balancer_that_followed_a_claim_asks_the_loser_after_the_one_whose_claim_it_was() {
    for wanted in [1, 2] {
        let mut w = super::duplicates::among_others(2, 1);
        w.cluster.configure(Settings { claims: Some(Claiming { wait: WAIT, lease: 15 * SECOND }), ..settings() });
        w.event(Event::Tick).gives("");
        w.policy.answer = Answer::Ranked(vec![monolith(wanted)]);
        w.join(1, "foo").gives(&format!("claim 1 foo m{wanted}"));
        w.claim(1, wanted, taken(1, 9 * SECOND)).gives("");
        w.loaded(1, "foo", 9).ignore();
        w.loaded(2, "foo", 5).ignore();
        let sent = w.until_sent("unload m1 foo", 10_000).unwrap();
        assert!(sent >= 1_500, "its clients are in it, but it did not send it there: {sent}");
    }
}

#[test]
fn without_an_answer_it_goes_on_as_if_there_were_no_claims() {
    for answered in [true, false] {
        let mut w = claiming(2);
        w.join(1, "foo").gives("claim 1 foo m1");
        match answered {
            true => w.claim(1, 1, ClaimOutcome::Unavailable).gives("join m1 c1#1 foo alone"),
            false => w.pass(WAIT).gives("join m1 c1#1 foo alone"),
        }
        assert_eq!(w.cluster.counters().claims.unavailable, 1);
        w.loaded(1, "foo", 5).gives("bind foo m1; open m1 c1#1");
        // Nothing is held, so nothing is given back.
        w.unloaded(1, "foo", UnloadReason::Keepalive, &[]).gives("leave m1 c1#1; close c1 4003; unbind foo");
    }
}

#[test]
fn an_answer_that_comes_too_late_is_given_back_unless_the_room_went_there() {
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.pass(WAIT).ignore();
    w.claim(1, 1, ClaimOutcome::Granted).gives("");
    w.loaded(1, "foo", 5).ignore();
    assert!(w.unloaded(1, "foo", UnloadReason::Keepalive, &[]).has("release foo m1 5"));
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.leave(1).gives("");
    w.pass(WAIT).gives("");
    w.claim(1, 1, ClaimOutcome::Granted).gives("release foo m1 -");
    assert_eq!(w.cluster.size(), (0, 0));
}

#[test]
fn an_answer_that_comes_too_late_gives_nothing_back_that_was_asked_for_once_more() {
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.pass(WAIT).gives("join m1 c1#1 foo alone");
    w.kicked(1, 1, 1, 4002).ignore();
    w.join(2, "foo").gives("claim 2 foo m1");
    // By now the second question may have been answered, and what it got must not be taken away by this.
    w.claim(1, 1, ClaimOutcome::Granted).gives("");
    w.claim(2, 1, ClaimOutcome::Granted).gives("join m1 c2#1 foo alone");
}

#[test]
fn a_room_that_another_balancer_has_claimed_goes_there_when_it_is_reported() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    // Two joins that reach a Monolith while it loads the room would load it twice.
    w.claim(1, 1, taken(2, 9 * SECOND)).gives("");
    assert_eq!((w.row(1), w.row(2)), ((0, 0, 0), (0, 0, 1)));
    w.loaded(2, "foo", 5).gives("bind foo m2; join m2 c1#1 foo");
    assert_eq!(w.cluster.counters().claims.taken, 1);
    assert_eq!(w.cluster.counters().duplicates, 0);
}

#[test]
fn a_room_that_is_claimed_and_not_reported_is_asked_for_again_and_tried_there_once_the_time_to_load_is_over() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    let asked = w.follow(2, 2);
    // Whoever claimed it may have gone on meanwhile, so that is asked once more.
    w.pass(SECOND / 4).gives(&format!("claim {} foo m2", asked + 1));
    w.claim(asked + 1, 2, taken(2, 9 * SECOND)).gives("join m2 c1#1 foo alone");
    // Nor is it there: the next attempt is claimed like the first.
    w.pass(5 * SECOND).gives(&format!("leave m2 c1#1; claim {} foo m1", asked + 2));
    w.claim(asked + 2, 1, ClaimOutcome::Granted).gives("join m1 c1#2 foo alone");
}

impl World {
    /// The first claim of a room meets another balancer's for this Monolith, and is asked again as long as it may be: however
    /// slowly a Monolith loads, whoever joined it meanwhile would have it load the room once more. The last question.
    fn follow(&mut self, first: u64, by: u64) -> u64 {
        let began = self.now;
        let mut asked = first - 1;
        self.claim(asked, 1, taken(by, 9 * SECOND)).gives("");
        while self.now - began < 5 * SECOND - SECOND / 4 {
            asked += 1;
            self.pass(SECOND / 4).gives(&format!("claim {asked} foo m{by}"));
            self.claim(asked, by, taken(by, 9 * SECOND)).gives("");
        }
        asked
    }
}

#[test]
fn a_followed_claim_that_is_for_another_monolith_by_now_is_followed_there_and_for_as_long() {
    let mut w = claiming(3);
    w.join(1, "foo").gives("claim 1 foo m1");
    let asked = w.follow(2, 2);
    // Its balancer has given that Monolith up in the last moment.
    w.pass(SECOND / 4).gives(&format!("claim {} foo m2", asked + 1));
    w.claim(asked + 1, 2, taken(3, 9 * SECOND)).gives("");
    for n in asked + 2..asked + 21 {
        w.pass(SECOND / 4).gives(&format!("claim {n} foo m3"));
        w.claim(n, 3, taken(3, 9 * SECOND)).gives("");
    }
    w.loaded(3, "foo", 5).gives("bind foo m3; join m3 c1#1 foo");
}

#[test]
fn a_followed_claim_that_nobody_can_be_asked_about_any_more_is_followed_still() {
    for answered in [true, false] {
        let mut w = claiming(2);
        w.join(1, "foo").gives("claim 1 foo m1");
        w.claim(1, 1, taken(2, 9 * SECOND)).gives("");
        w.pass(SECOND / 4).gives("claim 2 foo m2");
        match answered {
            true => w.claim(2, 2, ClaimOutcome::Unavailable).gives(""),
            false => w.pass(WAIT).gives(""),
        }
        w.pass(SECOND / 4).gives("claim 3 foo m2");
        w.loaded(2, "foo", 5).gives("bind foo m2; join m2 c1#1 foo");
        assert_eq!(w.cluster.counters().claims.unavailable, 0);
    }
}

#[test]
fn a_room_that_nobody_waits_for_any_more_keeps_no_claim() {
    let mut w = claiming(2);
    // Answered, and not with the room: nothing is being loaded.
    w.request(1, Some("foo"), Cause::Http).gives("claim 1 foo m1");
    w.claim(1, 1, ClaimOutcome::Granted).gives("send r1 m1 awaited");
    w.status(1, 500).gives("release foo m1 -");
    w.request(2, Some("foo"), Cause::Http).gives("claim 2 foo m1");
    w.claim(2, 1, ClaimOutcome::Granted).gives("send r2 m1 awaited");
    w.done(2, RequestOutcome::NotSent).gives("release foo m1 -");
    w.join(1, "foo").gives("claim 3 foo m2");
    w.claim(3, 2, ClaimOutcome::Granted).gives("join m2 c1#1 foo alone");
    w.kicked(2, 1, 1, 4004).gives("release foo m2 -");
    // Whoever has waited for too long, whatever for.
    for outcome in [None, Some(taken(2, 9 * SECOND)), Some(taken(7, 9 * SECOND))] {
        let mut w = claiming(2);
        w.cluster.configure(Settings { patience: SECOND, ..w.cluster.settings.clone() });
        w.cluster.configure(Settings {
            claims: Some(Claiming { wait: 2 * SECOND, lease: 15 * SECOND }),
            ..w.cluster.settings.clone()
        });
        w.join(1, "foo").gives("claim 1 foo m1");
        let late = outcome.is_none();
        if let Some(outcome) = outcome {
            w.claim(1, 1, outcome).gives("");
        }
        let got: Vec<String> = (0..20).flat_map(|_| w.pass(SECOND / 5).0).collect();
        assert!(got.contains(&"close c1 1013".into()) && !got.iter().any(|got| got.starts_with("join")), "{got:?}");
        assert_eq!(w.cluster.size(), (0, 0));
        if late {
            w.claim(1, 1, ClaimOutcome::Granted).gives("release foo m1 -");
        }
    }
}

#[test]
fn a_claim_is_kept_while_its_monolith_may_be_loading_for_somebody_who_has_gone() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    w.claim(1, 1, ClaimOutcome::Granted).gives("join m1 c1#1 foo alone");
    w.leave(1).gives("leave m1 c1#1");
    w.request(1, Some("foo"), Cause::Http).gives("send r1 m1 awaited");
    w.status(1, 500).gives("");
    w.pass(5 * SECOND).gives("release foo m1 -");
}

#[test]
fn claims_that_are_switched_off_while_one_is_followed_leave_nobody_without_an_end() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    w.claim(1, 1, taken(2, 9 * SECOND)).gives("");
    w.pass(SECOND / 4).gives("claim 2 foo m2");
    w.cluster.configure(settings());
    w.join(2, "foo").gives("");
    w.claim(2, 2, ClaimOutcome::Unavailable).gives("join m2 c1#1 foo alone");
    w.pass(5 * SECOND).gives("leave m2 c1#1; join m1 c1#2 foo alone");
}

#[test]
fn a_followed_claim_that_is_given_back_is_taken_over() {
    let mut w = super::duplicates::among_others(2, 1);
    w.cluster.configure(Settings { claims: Some(Claiming { wait: WAIT, lease: 15 * SECOND }), ..settings() });
    w.event(Event::Tick).gives("");
    w.join(1, "foo").gives("claim 1 foo m1");
    w.claim(1, 1, taken(1, 9 * SECOND)).gives("");
    w.pass(SECOND / 4).gives("claim 2 foo m1");
    w.claim(2, 1, ClaimOutcome::Granted).gives("join m1 c1#1 foo alone");
    // Now it is this balancer that has sent the room there.
    w.loaded(1, "foo", 9).ignore();
    w.loaded(2, "foo", 5).ignore();
    let sent = w.until_sent("unload m1 foo", 10_000).unwrap();
    assert!(sent < 1_500, "{sent}");
}

#[test]
fn a_claim_for_the_same_monolith_waits_for_the_report_of_it() {
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.claim(1, 1, taken(1, 9 * SECOND)).gives("");
    w.loaded(1, "foo", 5).gives("bind foo m1; join m1 c1#1 foo");
}

#[test]
fn a_claim_for_a_monolith_that_is_not_linked_is_asked_again_until_the_time_to_load_is_over() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    let began = w.now;
    let mut asked = 1;
    while w.now - began < 5 * SECOND - SECOND / 4 {
        w.claim(asked, 1, taken(7, 30 * SECOND)).gives("");
        asked += 1;
        w.pass(SECOND / 4).gives(&format!("claim {asked} foo m1"));
    }
    w.claim(asked, 1, taken(7, 30 * SECOND)).gives("");
    w.pass(SECOND / 4).gives("join m1 c1#1 foo alone");
    assert_eq!(w.cluster.counters().claims.unavailable, 1);

    // It ends in time: the room is claimed.
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.claim(1, 1, taken(7, SECOND / 10)).gives("");
    w.pass(SECOND / 10).gives("claim 2 foo m1");
    w.claim(2, 1, ClaimOutcome::Granted).gives("join m1 c1#1 foo alone");
}

#[test]
fn a_claim_for_the_monolith_that_the_room_has_just_left_is_an_old_one() {
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.claim(1, 1, ClaimOutcome::Granted).ignore();
    w.loaded(1, "foo", 5).ignore();
    w.move_room("foo", 2).ignore();
    w.join(2, "foo").gives("");
    w.unloaded(1, "foo", UnloadReason::Commanded, &[])
        .gives("leave m1 c1#1; close c1 1001; release foo m1 5; claim 2 foo m2");
    // Another balancer that renewed it has not given it back yet.
    w.claim(2, 2, taken(1, 9 * SECOND)).gives("");
    w.pass(SECOND / 4).gives("claim 3 foo m2");
    w.claim(3, 2, ClaimOutcome::Granted).gives("join m2 c2#1 foo alone");
}

#[test]
fn a_report_ends_the_wait_for_a_claim() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    w.loaded(2, "foo", 5).gives("bind foo m2; join m2 c1#1 foo");
    w.claim(1, 1, ClaimOutcome::Granted).gives("release foo m1 -");
}

#[test]
fn claims_are_renewed_while_the_room_is_loaded_or_has_members_of_ours() {
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.claim(1, 1, ClaimOutcome::Granted).ignore();
    w.loaded(1, "foo", 5).ignore();
    // Another balancer's, without members of ours: it is nothing to us.
    w.loaded(2, "bar", 6).ignore();
    w.pass(5 * SECOND).gives("renew foo m1 5");
    w.join(2, "bar").ignore();
    w.leave(1).ignore();
    // Whoever claimed `bar` may be gone; `foo` is loaded still, though nobody is in it.
    w.pass(5 * SECOND).gives("renew bar m2 6, foo m1 5");
    w.down(1).gives("unbind foo; release foo m1 5");
    w.pass(5 * SECOND).gives("renew bar m2 6");
}

#[test]
fn f42_a_claim_follows_the_load_of_its_room_and_is_given_back_for_that_load() {
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.claim(1, 1, ClaimOutcome::Granted).ignore();
    w.answered(1, 1, 1).gives("bind foo m1; open m1 c1#1");
    // It is there, and nobody has said yet which load it is.
    w.pass(5 * SECOND).gives("renew foo m1 -");
    w.loaded(1, "foo", 5).gives("");
    w.pass(5 * SECOND).gives("renew foo m1 5");
    // The real Monolith loads a room once more for each join that comes while it is loading it.
    w.loaded(1, "foo", 6).gives("");
    w.pass(5 * SECOND).gives("renew foo m1 6");
    w.loaded(1, "foo", 7).gives("");
    w.unloaded(1, "foo", UnloadReason::Keepalive, &[])
        .gives("leave m1 c1#1; close c1 4003; unbind foo; release foo m1 7");
}

#[test]
fn a_claim_for_a_load_that_is_known_to_be_over_is_replaced_at_once() {
    // Its Monolith has said so, or does not name it any more.
    for unloaded in [true, false] {
        let mut w = claiming(2);
        w.loaded(2, "foo", 5).gives("bind foo m2");
        match unloaded {
            true => w.unloaded(2, "foo", UnloadReason::Keepalive, &[]).gives("unbind foo"),
            false => w.gossip(2, &[]).gives("unbind foo"),
        }
        w.join(1, "foo").gives("claim 1 foo m1");
        // Whoever renewed it is slow, or gone.
        w.claim(1, 1, taken_for(2, 5)).gives("claim 2 foo m1 instead of theirs");
        w.claim(2, 1, ClaimOutcome::Granted).gives("join m1 c1#1 foo alone");
    }
}

#[test]
fn a_claim_is_replaced_for_that_load_alone() {
    let over = |w: &mut World| {
        w.loaded(2, "foo", 5).ignore();
        w.unloaded(2, "foo", UnloadReason::Keepalive, &[]).gives("unbind foo");
        w.join(1, "foo").gives("claim 1 foo m1");
    };
    // A newer load or an older one, one on another Monolith, and a room that is on its way are others' to end.
    for (by, epoch) in [(2, Some(6)), (2, Some(4)), (1, Some(5)), (7, Some(5)), (2, None)] {
        let mut w = claiming(2);
        over(&mut w);
        w.claim(1, 1, epoch.map_or_else(|| taken(by, 9 * SECOND), |epoch| taken_for(by, epoch))).gives("");
    }
    // Nor does the loss of a link end a load: others may be in it.
    let mut w = claiming(2);
    w.loaded(2, "foo", 5).ignore();
    w.down(2).gives("unbind foo");
    w.join(1, "foo").gives("claim 1 foo m1");
    w.claim(1, 1, taken_for(2, 5)).gives("");
}

#[test]
fn a_store_that_replaces_nothing_holds_a_room_up_no_longer_than_it_may() {
    let mut w = claiming(2);
    w.loaded(2, "foo", 5).ignore();
    w.unloaded(2, "foo", UnloadReason::Keepalive, &[]).ignore();
    w.join(1, "foo").gives("claim 1 foo m1");
    let (began, mut asked) = (w.now, 1);
    while w.now - began < 5 * SECOND {
        w.claim(asked, 1, taken_for(2, 5)).gives(&format!("claim {} foo m1 instead of theirs", asked + 1));
        asked += 1;
        w.pass(WAIT / 2).gives("");
    }
    w.claim(asked, 1, taken_for(2, 5)).gives("join m1 c1#1 foo alone");
}

#[test]
fn a_created_room_is_claimed_with_its_answer() {
    let mut w = claiming(2);
    w.generate(1).gives("send r1 m1 awaited");
    w.created(1, "foo").gives("bind foo m1; renew foo m1 -");
    let mut w = claiming(2);
    w.create(1, "foo").gives("claim 1 foo m1");
    w.claim(1, 1, ClaimOutcome::Granted).gives("send r1 m1 awaited");
    w.created(1, "foo").gives("bind foo m1");
}

#[test]
fn a_refused_room_is_given_back() {
    let mut w = claiming(2);
    w.join(1, "foo").ignore();
    w.claim(1, 1, ClaimOutcome::Granted).ignore();
    w.kicked(1, 1, 1, 4002).gives("release foo m1 -");
    assert_eq!(w.cluster.size(), (0, 0));
}

#[test]
fn claims_can_be_switched_off_while_one_is_awaited() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    w.cluster.configure(settings());
    w.pass(WAIT).gives("join m1 c1#1 foo alone");
    w.join(2, "bar").gives("join m1 c2#1 bar alone");
}

#[test]
fn a_request_that_waits_for_a_claim_outlives_the_denied_join_before_it() {
    let mut w = claiming(2);
    w.loaded(1, "foo", 5).gives("bind foo m1");
    w.join(1, "foo").gives("join m1 c1#1 foo");
    w.unloaded(1, "foo", UnloadReason::Keepalive, &[(1, 1)]).gives("unbind foo");
    w.get(1, "foo").gives("");
    w.kicked(1, 1, 1, 4002).gives("claim 1 foo m1");
    w.claim(1, 1, ClaimOutcome::Granted).gives("send r1 m1 awaited");
}

#[test]
fn a_claim_for_a_monolith_that_comes_meanwhile_is_followed_there() {
    let mut w = claiming(1);
    w.join(1, "foo").gives("claim 1 foo m1");
    w.claim(1, 1, taken(2, 9 * SECOND)).gives("");
    w.up(2).gives("accept 2");
    w.gossip(2, &[]).gives("");
    w.pass(SECOND / 4).gives("claim 2 foo m1");
    w.claim(2, 1, taken(2, 9 * SECOND)).gives("");
    assert_eq!((w.row(1), w.row(2)), ((0, 0, 0), (0, 0, 1)));
    w.loaded(2, "foo", 5).gives("bind foo m2; join m2 c1#1 foo");
}

#[test]
fn what_was_followed_before_the_room_was_somewhere_else_is_followed_anew() {
    let mut w = claiming(2);
    w.join(1, "foo").gives("claim 1 foo m1");
    w.claim(1, 1, taken(2, 9 * SECOND)).gives("");
    w.loaded(1, "foo", 5).gives("bind foo m1; join m1 c1#1 foo");
    w.answered(1, 1, 1).ignore();
    w.join(2, "foo").gives("join m1 c2#1 foo");
    w.unloaded(1, "foo", UnloadReason::Admin, &[(2, 1)]).ignore();
    w.join(3, "foo").gives("");
    w.kicked(1, 2, 1, 4003).gives("claim 2 foo m1");
    w.claim(2, 1, taken(2, 9 * SECOND)).gives("");
    w.pass(SECOND / 4).gives("claim 3 foo m2");
    w.claim(3, 2, taken(2, 9 * SECOND)).gives("");
    w.loaded(2, "foo", 6).gives("bind foo m2; join m2 c3#1 foo");
}
