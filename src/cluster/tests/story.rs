//! What is told of a room, in the order in which it happens.

use super::*;
use crate::cluster::Rebalancing;
use crate::model::story::{Mover, Sign, What};

fn tell(note: &Note) -> String {
    let (room, what) = match &note.about {
        About::Chapter(room, what) => (room, what),
        About::Decided(room) => return format!("{room} decided"),
        About::DecidedFor(request) => return format!("r{request} decided"),
        About::Named(request, room) => return format!("r{request} named {room}"),
    };
    let number = |epoch: &Option<Epoch>| epoch.map_or_else(|| "-".into(), |epoch| epoch.to_string());
    let what = match what {
        What::Sent { attempt, monolith, .. } => format!("sent {monolith} {attempt}"),
        What::Waits => "waits".into(),
        What::Claimed { monolith, instead_of } => format!("claimed {monolith} instead of {instead_of}"),
        What::Bound { monolith, epoch, how, instead_of } => {
            let how = match how {
                Sign::Reported => "reported",
                Sign::Answered => "answered",
                Sign::Served => "served",
            };
            let instead = instead_of.as_ref().map(|id| format!(" instead of {id}")).unwrap_or_default();
            format!("bound {monolith} {} {how}{instead}", number(epoch))
        }
        What::Found { monolith, epoch } => format!("found {monolith} {epoch}"),
        What::Created { monolith } => format!("created {monolith}"),
        What::NotConfirmed { monolith, attempt, why } => format!("not confirmed {monolith} {attempt} {why}"),
        What::Denied { monolith, code } => format!("denied {monolith} {code}"),
        What::WaitedTooLong { code } => format!("waited too long {code}"),
        What::Refused { waiting, code } => format!("refused {waiting} {code}"),
        What::Unreported { monolith } => format!("unreported {monolith}"),
        What::Unloaded { monolith, reason, clients } => format!("unloaded {monolith} {reason:?} {clients}"),
        What::Lost { monolith, clients } => format!("lost {monolith} {clients}"),
        What::Duplicate { kept, kept_epoch, lost, lost_epoch, clients } => {
            format!("duplicate {kept} {} over {lost} {} {clients}", number(kept_epoch), number(lost_epoch))
        }
        What::WouldMove { to, .. } => format!("would move {to}"),
        What::Moving { from, to, clients, by, .. } => format!("moving {from} {} {clients} {}", at(to), who(*by)),
        What::MoveRefused { to, by, why } => format!("stays, not {}: {} {}", at(to), who(*by), why.label()),
        What::MoveEnded { from, to, how } => format!("move ended {from} {} {how:?}", at(to)),
        other => panic!("the cluster does not tell {other:?}"),
    };
    format!("{room} {what}")
}

fn at(to: &Option<MonolithId>) -> &str {
    to.as_ref().map_or("anywhere", MonolithId::as_str)
}

fn who(by: Mover) -> &'static str {
    match by {
        Mover::Hand => "hand",
        Mover::Policy => "policy",
        Mover::Drain => "drain",
    }
}

impl World {
    /// What was told since the last time, separated by `; `.
    #[track_caller]
    fn tells(&mut self, expected: &str) {
        let told: Vec<String> = std::mem::take(&mut self.told).iter().map(tell).collect();
        assert_eq!(told.join("; "), expected);
    }
}

#[test]
fn a_room_that_is_placed_lost_and_placed_again() {
    let mut w = world(2);
    w.tells("");
    w.settled("Foo", 3);
    w.tells("foo decided; foo bound m1 3 reported");
    w.join(2, "foo").ignore();
    w.leave(2).ignore();
    w.get(1, "foo").ignore();
    w.loaded(1, "Foo", 3).ignore();
    w.gossip(1, &[("Foo", 3)]).ignore();
    w.tells("");
    w.down(1).ignore();
    w.tells("foo lost m1 1");
    w.join(3, "foo").ignore();
    w.answered(2, 3, 1).ignore();
    w.loaded(2, "foo", 4).ignore();
    w.tells("foo decided; foo bound m2 - answered; foo bound m2 4 reported");
    w.unloaded(2, "foo", UnloadReason::Keepalive, &[]).ignore();
    w.tells("foo unloaded m2 Some(Keepalive) 1");
}

#[test]
fn attempts_that_fail_and_the_end_of_them() {
    let mut w = world(3);
    w.join(1, "foo").ignore();
    w.wait(5).ignore();
    w.tells("foo decided; foo not confirmed m1 1 timeout; foo decided");
    w.down(2).ignore();
    w.tells("foo not confirmed m2 2 link_down; foo decided");
    w.wait(5).ignore();
    w.tells("foo not confirmed m3 3 timeout; foo refused 1 1013");
    w.policy.answer = Answer::Reject { code: 4100, reason: "no".into() };
    w.join(2, "bar").gives("close c2 4100");
    w.tells("bar decided; bar refused 1 4100");
}

#[test]
fn another_balancer_was_first() {
    let mut w = world(2);
    w.gossip(2, &[("theirs", 7)]).ignore();
    w.tells("theirs found m2 7");
    w.join(1, "foo").ignore();
    w.loaded(2, "foo", 9).ignore();
    w.tells("foo decided; foo bound m2 9 reported instead of m1");
    w.gossip(2, &[("foo", 9)]).ignore();
    w.tells("theirs unloaded m2 None 0");
}

#[test]
fn rooms_wait_for_what_monoliths_have() {
    let mut w = fresh();
    w.join(1, "foo").gives("");
    w.tells("foo waits");
    w.event(Event::Discovered { endpoints: vec![endpoint(1)] }).ignore();
    w.up(1).ignore();
    w.gossip(1, &[]).ignore();
    w.tells("foo decided");
}

#[test]
fn who_keeps_a_duplicate() {
    let mut w = world(2);
    w.settled("foo", 3);
    w.told.clear();
    w.loaded(2, "foo", 5).ignore();
    w.tells("foo duplicate m1 3 over m2 5 0");
    // The same load is not asked twice, and not told twice.
    w.gossip(2, &[("foo", 5)]).ignore();
    w.tells("");
    w.join(2, "bar").ignore();
    w.loaded(1, "bar", 9).ignore();
    w.told.clear();
    w.loaded(2, "bar", 8).ignore();
    w.tells("bar duplicate m2 8 over m1 9 1");
}

#[test]
fn requests_that_create_deny_or_name_a_room() {
    let mut w = world(2);
    w.generate(1).ignore();
    w.tells("r1 decided");
    w.created(1, "Made-Up").ignore();
    w.tells("r1 named made-up; made-up created m1");
    w.wait(5).ignore();
    w.tells("made-up unreported m1");
    w.get(2, "nowhere").ignore();
    w.status(2, 404).ignore();
    w.tells("nowhere decided; nowhere denied m1 404");
    w.create(3, "mine").ignore();
    w.created(3, "mine").ignore();
    w.tells("mine decided; mine bound m1 - served");
    w.join(1, "nobody").ignore();
    w.kicked(1, 1, 1, 4002).ignore();
    w.tells("nobody decided; nobody denied m1 4002");
}

#[test]
fn moves_by_hand_and_by_policy() {
    let mut w = world(3);
    w.settled("foo", 3);
    w.told.clear();
    w.move_room("nothing", 2).ignore();
    w.move_room("foo", 1).ignore();
    w.tells("foo stays, not m1: hand same_monolith");
    w.move_room("foo", 2).ignore();
    w.unloaded(1, "foo", UnloadReason::Commanded, &[]).ignore();
    w.tells("foo moving m1 m2 1 hand; foo unloaded m1 Some(Commanded) 1; foo move ended m1 m2 LetGo");
    w.join(2, "foo").ignore();
    w.tells("foo sent m2 1");
    w.loaded(2, "foo", 4).ignore();
    w.tells("foo bound m2 4 reported");
    for dry in [true, false] {
        w.cluster.configure(Settings { rebalance: Some(Rebalancing { every: 10 * SECOND, dry }), ..settings() });
        w.policy.moves = [("foo", 3), ("foo", 1), ("other", 1)]
            .map(|(room, to)| Move { room: room.into(), to: monolith(to) })
            .into();
        w.wait(10).ignore();
        let expected = if dry { "foo would move m3" } else { "" };
        let moving = if dry { "" } else { "; foo moving m2 m3 1 policy" };
        let refused = "foo stays, not m1: policy duplicate";
        let all = if dry { format!("{expected}; {refused}") } else { format!("{refused}{moving}") };
        w.tells(&all);
        w.cluster.configure(settings());
    }
    w.wait(5).ignore();
    w.tells("foo move ended m2 m3 TimedOut; foo bound m2 4 reported");
}
