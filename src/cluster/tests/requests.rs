//! HTTP that needs a placement: unbound rooms, creation, generation.

use super::*;

#[test]
fn a_2xx_binds_the_room_until_a_report_comes_or_not() {
    let mut w = world(2);
    w.get(1, "foo").gives("send r1 m1 awaited");
    w.get(2, "foo").gives("");
    w.join(1, "foo").gives("");
    w.status(1, 200).gives("bind foo m1; send r2 m1; join m1 c1#1 foo unsure");
    assert_eq!(w.row(1), (0, 1, 1));
    w.loaded(1, "foo", 4).gives("");
    assert_eq!(w.row(1), (1, 1, 0));
    w.wait(60).gives("");

    w.get(3, "bar").gives("send r3 m1 awaited");
    w.status(3, 204).gives("bind bar m1");
    w.get(4, "bar").gives("send r4 m1");
    w.wait(5).gives("unbind bar");
}

#[test]
fn a_404_drops_the_choice_and_whoever_waits_goes_next_alone() {
    let mut w = world(2);
    w.get(1, "foo").ignore();
    w.join(1, "foo").gives("");
    w.get(2, "Foo").gives("");
    w.status(1, 404).gives("join m1 c1#1 foo alone");
    w.kicked(1, 1, 1, 4002).gives("send r2 m1 awaited");
    w.status(2, 404).gives("");
    assert_eq!(w.cluster.size(), (0, 0));
}

#[test]
fn other_outcomes_say_nothing_about_the_room() {
    for outcome in [RequestOutcome::Status(500), RequestOutcome::Status(304), RequestOutcome::Failed] {
        let mut w = world(1);
        w.get(1, "foo").ignore();
        w.get(2, "foo").ignore();
        w.done(1, outcome).gives("send r2 m1 awaited");
        w.done(2, RequestOutcome::Failed).gives("");
        assert_eq!(w.row(1), (0, 0, 1));
        w.wait(5).gives("");
        assert_eq!(w.row(1), (0, 0, 0));
    }
}

#[test]
fn a_request_that_cannot_be_sent_to_the_only_monolith_costs_no_client_its_room() {
    let mut w = world(1);
    w.request(1, Some("foo"), Cause::Http).gives("send r1 m1 awaited");
    w.join(1, "foo").gives("");
    w.done(1, RequestOutcome::NotSent).gives("join m1 c1#1 foo alone");
    w.loaded(1, "foo", 5).gives("bind foo m1; open m1 c1#1");
}

#[test]
fn where_there_is_one_monolith_clients_go_first_when_requests_cannot_be_sent_and_nothing_is_held_against_it() {
    let mut w = world(1);
    w.request(1, Some("foo"), Cause::Http).gives("send r1 m1 awaited");
    w.request(2, Some("foo"), Cause::Http).gives("");
    w.join(1, "foo").gives("");
    w.done(1, RequestOutcome::NotSent).gives("join m1 c1#1 foo alone");
    w.loaded(1, "foo", 5).gives("bind foo m1; open m1 c1#1; send r2 m1");
    // With nobody else there a client that comes finds no choice that has failed.
    let mut w = world(1);
    w.request(1, Some("foo"), Cause::Http).ignore();
    w.done(1, RequestOutcome::NotSent).gives("");
    w.join(1, "foo").gives("join m1 c1#1 foo alone");
}

#[test]
fn what_was_not_sent_goes_to_another_monolith_until_the_attempts_are_spent() {
    let mut w = world(5);
    w.get(1, "foo").gives("send r1 m1 awaited");
    w.done(1, RequestOutcome::NotSent).gives("");
    w.get(2, "foo").gives("send r2 m2 awaited");
    assert_eq!(w.last_call().excluded, [monolith(1)]);
    w.join(1, "foo").gives("");
    w.done(2, RequestOutcome::NotSent).gives("join m3 c1#1 foo alone");
    w.leave(1).gives("leave m3 c1#1");
    w.get(3, "foo").gives("send r3 m3 awaited");
    w.done(3, RequestOutcome::NotSent).gives("");
    w.get(4, "foo").gives("refuse r4 503");
    assert_eq!(w.cluster.size(), (0, 0));
    w.get(5, "foo").gives("send r5 m1 awaited");
}

#[test]
fn a_request_that_waits_may_give_up() {
    let mut w = world(1);
    w.get(1, "foo").ignore();
    w.get(2, "foo").ignore();
    w.done(2, RequestOutcome::Failed).gives("");
    w.status(1, 200).gives("bind foo m1");
    w.done(9, RequestOutcome::Failed).gives("");
}

#[test]
fn creation_is_a_placement_that_pins() {
    let mut w = world(2);
    w.create(1, "Foo").gives("send r1 m1 awaited");
    assert_eq!((w.last_call().cause, w.row(1)), (Some(Cause::Create), (0, 0, 1)));
    w.join(1, "Foo").gives("");
    w.created(1, "Foo").gives("bind foo m1; join m1 c1#1 Foo unsure");
    w.loaded(1, "Foo", 3).gives("");
    w.create(2, "foo").gives("send r2 m1");
}

#[test]
fn loaded_may_come_before_the_response() {
    let mut w = world(2);
    w.create(1, "foo").ignore();
    w.loaded(1, "foo", 3).gives("bind foo m1");
    w.created(1, "foo").gives("");
    w.generate(2).gives("send r2 m1 awaited");
    assert_eq!(w.row(1), (1, 0, 1));
    w.loaded(1, "made-up", 4).gives("bind made-up m1");
    w.created(2, "made-up").gives("");
    assert_eq!(w.row(1), (2, 0, 0));
    w.wait(60).gives("");
}

#[test]
fn a_generated_room_is_pinned_and_expires_unless_it_is_reported() {
    let mut w = world(2);
    w.generate(1).gives("send r1 m1 awaited");
    assert_eq!((w.last_call().room.as_ref().unwrap().name.clone(), w.row(1)), (None, (0, 0, 1)));
    w.created(1, "made-up").gives("bind made-up m1");
    w.wait(4).gives("");
    // A member's join gets its full time, and says whether the room is there.
    w.join(1, "made-up").gives("join m1 c1#1 made-up unsure");
    w.wait(4).gives("");
    w.answered(1, 1, 1).gives("");
    w.wait(60).gives("");
    w.generate(2).ignore();
    w.status(2, 429).gives("");
    w.generate(3).ignore();
    w.created(3, "other").gives("bind other m1");
    w.wait(5).gives("unbind other");
}

#[test]
fn members_of_a_created_room_that_nobody_answers_are_placed_anew() {
    let mut w = world(2);
    w.create(1, "foo").ignore();
    w.created(1, "foo").ignore();
    w.join(1, "foo").gives("join m1 c1#1 foo unsure");
    w.wait(5).gives("unbind foo; leave m1 c1#1; join m2 c1#2 foo alone");
    assert_eq!(w.last_call().room.as_ref().unwrap().attempt, 2);
}

#[test]
fn a_late_outcome_may_bind_but_disturbs_nobody() {
    let mut w = world(3);
    w.get(1, "foo").ignore();
    w.join(1, "foo").ignore();
    w.wait(5).gives("join m2 c1#1 foo alone");
    let mut other = world(3);
    other.get(1, "foo").ignore();
    other.join(1, "foo").ignore();
    other.wait(5).ignore();
    // `m1` has it after all: the join moves there.
    w.status(1, 200).gives("bind foo m1; leave m2 c1#1; join m1 c1#2 foo unsure");
    // `m1` does not know it: `m2` may be loading it nevertheless.
    other.leave(1).gives("leave m2 c1#1");
    other.status(1, 404).gives("");
    assert_eq!(other.row(2), (0, 0, 1));
}

#[test]
fn a_monolith_that_went_takes_its_requests_along() {
    let mut w = world(2);
    w.get(1, "foo").ignore();
    w.generate(2).ignore();
    w.join(1, "foo").gives("");
    w.down(1).gives("join m2 c1#1 foo alone");
    w.status(1, 200).gives("");
    w.created(2, "made-up").gives("");
    assert_eq!(w.last_call().cause, Some(Cause::Lost));
}
