//! Clients that wait before their upgrade: who holds them, for how long, and in which order they come in.

use super::*;
use crate::cluster::Seamless;

impl World {
    fn knock(&mut self, n: u64, room: &str) -> Got {
        self.event(Event::Knock { client: client(n), room: RoomKey::of(room) })
    }

    fn millis(&mut self, millis: u64) -> Got {
        self.now += millis * 1000;
        self.event(Event::Tick)
    }

    /// An outage that has cost a client its Monolith, and 100 more that knock meanwhile, each for a room of its own.
    fn after_an_outage() -> Self {
        let mut w = world(1);
        w.settled("foo", 3);
        w.down(1).gives("close c1 1001; unbind foo");
        for n in 1..=100 {
            w.knock(n, &format!("room{n}")).gives("");
        }
        assert_eq!(w.cluster.held(), 100);
        w
    }

    /// Who comes in with this event, and joins at once.
    fn entered(&mut self, got: Got) -> Vec<u64> {
        let came: Vec<u64> =
            got.0.iter().filter_map(|effect| effect.strip_prefix("enter c")).map(|n| n.parse().unwrap()).collect();
        for n in &came {
            self.join(*n, &format!("room{n}")).ignore();
        }
        came
    }

    /// Lets so much time pass in small steps; who came in, in order.
    fn come_in(&mut self, millis: u64) -> Vec<u64> {
        let mut came = Vec::new();
        for _ in 0..millis / 10 {
            let got = self.millis(10);
            came.extend(self.entered(got));
        }
        came
    }

    /// A Monolith comes back with nothing; who comes in at once.
    fn returns(&mut self, n: u64) -> Vec<u64> {
        let up = self.up(n);
        let mut came = self.entered(up);
        let gossip = self.gossip(n, &[]);
        came.extend(self.entered(gossip));
        came
    }
}

impl Got {
    fn joins(&self) -> usize {
        self.0.iter().filter(|effect| effect.starts_with("join ")).count()
    }
}

impl World {
    /// The first Monolith has loaded every room to which somebody goes alone; how many joins there are with those that follow.
    fn confirm(&mut self, got: Got) -> usize {
        let alone = |n: &usize| got.0.iter().any(|effect| effect.contains(&format!(" room{n} alone")));
        let rooms: Vec<usize> = (0..10).filter(alone).collect();
        let followed: usize = rooms.iter().map(|n| self.loaded(1, &format!("room{n}"), 7).joins()).sum();
        got.joins() + followed
    }
}

#[test]
fn nobody_knocks_in_normal_traffic() {
    let mut w = fresh();
    assert!(!w.cluster.is_open());
    w.event(Event::Discovered { endpoints: vec![endpoint(1)] }).gives("");
    w.up(1).gives("accept 1");
    // An outage in which nobody was there is none, and a start is no outage.
    assert!(w.cluster.is_open());
    w.down(1).gives("");
    assert!(!w.cluster.is_open());
    w.up(1).gives("accept 1");
    assert!(w.cluster.is_open());
}

#[test]
fn f10_who_waits_comes_in_oldest_first_at_the_pace_of_each_monolith() {
    let mut w = World::after_an_outage();
    w.cluster.configure(Settings { pending_rooms: 1000, ..settings() });
    let mut came = w.returns(1);
    came.extend(w.come_in(1000));
    // Ten a second, and what a quarter of a second allows at once.
    assert!((11..=14).contains(&came.len()), "{came:?}");
    assert_eq!(came, (1..=came.len() as u64).collect::<Vec<_>>());
    // A second Monolith gets as many: at first all of them, since it is the emptier one, then every other.
    w.policy.answer = Answer::Default;
    let mut more = w.returns(2);
    more.extend(w.come_in(3000));
    assert!((40..=56).contains(&more.len()), "{more:?}");
    let (m1, m2) = (w.row(1).2, w.row(2).2);
    assert!(m1 <= 44 && m2 <= 34 && m1 + m2 == (came.len() + more.len()) as u32, "{m1} and {m2}");
    assert!(!w.cluster.is_open());
}

#[test]
fn the_pace_is_that_of_the_monolith_that_the_policy_chooses() {
    let mut w = World::after_an_outage();
    let mut came = w.returns(1);
    came.extend(w.returns(2));
    // The policy of these tests sends everybody to the first one.
    came.extend(w.come_in(2000));
    assert!((21..=26).contains(&came.len()), "{came:?}");
}

#[test]
fn who_waits_for_one_monolith_does_not_hold_up_the_others() {
    let mut w = World::after_an_outage();
    for n in [1, 2] {
        w.up(n).ignore();
    }
    w.gossip(1, &[]).ignore();
    // Room 100 is on the second one, whose pace nobody uses.
    w.gossip(2, &[("room100", 7)]).ignore();
    w.policy.answer = Answer::Ranked(vec![monolith(1)]);
    let came = w.come_in(100);
    assert!(came.contains(&100) && came.len() < 10, "{came:?}");
}

#[test]
fn who_comes_during_the_recovery_is_paced_behind_those_who_wait_and_then_nobody_is() {
    let mut w = World::after_an_outage();
    w.returns(1);
    w.come_in(100);
    w.knock(200, "late").gives("");
    let came = w.come_in(20_000);
    assert_eq!(came.last(), Some(&200));
    assert_eq!(w.cluster.held(), 0);
    // The pace holds for half a minute, and a lonely client does not feel it.
    assert!(!w.cluster.is_open());
    w.knock(201, "lonely").gives("enter c201");
    w.come_in(10_000);
    assert!(w.cluster.is_open());
    w.knock(202, "any").gives("enter c202");
}

#[test]
fn a_line_that_does_not_end_is_let_in_ever_faster() {
    let mut w = World::after_an_outage();
    w.cluster.configure(Settings { joins_per_second: 1, pending_joins: 1000, ..settings() });
    let mut came = w.returns(1);
    came.extend(w.come_in(30_000));
    assert!((30..=33).contains(&came.len()), "{}", came.len());
    w.come_in(10_000);
    assert_eq!((w.cluster.held(), w.cluster.is_open()), (0, true));
}

#[test]
fn as_many_wait_as_joins_may_and_who_goes_leaves_the_line() {
    let mut w = World::after_an_outage();
    w.knock(101, "any").gives("turn away c101");
    assert_eq!(w.cluster.counters().refused_full, 1);
    w.event(Event::Withdraw { client: client(1) }).gives("");
    w.knock(102, "any").gives("");
    w.up(1).gives("accept 1; enter c2; enter c3; enter c4");
    // What nobody uses is given to nobody else.
    w.event(Event::Withdraw { client: client(2) }).gives("");
}

#[test]
fn a_bound_room_is_entered_although_its_monolith_takes_no_new_ones() {
    let mut w = world(1);
    w.settled("foo", 3);
    w.state(1, MonolithState::Suspect);
    w.knock(2, "bar").gives("");
    w.knock(3, "foo").gives("enter c3");
    w.join(3, "foo").gives("join m1 c3#1 foo");
    w.state_gives(1, MonolithState::Up, "enter c2");
}

#[test]
fn whoever_was_upgraded_waits_through_an_outage_as_long_as_others_do_before() {
    let mut w = world(1);
    w.join(1, "foo").gives("join m1 c1#1 foo alone");
    w.down(1).gives("");
    w.join(2, "bar").gives("");
    w.get(1, "foo").gives("");
    w.wait(9).gives("");
    w.up(2).gives("accept 2");
    // Oldest first, although the room of the older one was parked later.
    w.gossip(2, &[]).gives("join m2 c1#2 foo alone; join m2 c2#1 bar alone");
    w.down(2).gives("");
    w.wait(10).gives("close c2 1013; close c1 1013; refuse r1 503");
    assert_eq!(w.cluster.size(), (0, 0));
}

/// So many seconds without a Monolith, after which ten rooms of three are placed at the pace, whatever was due meanwhile.
#[track_caller]
fn placed_at_the_pace_after(seconds: u64, mut w: World) {
    for n in 1..=30 {
        // Ten rooms of three.
        w.join(n, &format!("room{}", n % 10)).ignore();
    }
    for n in 0..10 {
        w.loaded(1, &format!("room{n}"), 6).ignore();
    }
    w.down(1).ignore();
    if w.cluster.waiting() == 0 {
        // They were closed, and come back at once.
        for n in 1..=30 {
            w.join(n, &format!("room{}", n % 10)).gives("");
        }
    }
    for _ in 0..seconds {
        w.wait(1).gives("");
    }
    let mut joins = w.up(1).joins();
    let gossip = w.gossip(1, &[]);
    joins += w.confirm(gossip);
    for tenth in 1..=40 {
        let got = w.millis(100);
        joins += w.confirm(got);
        // A room is placed whole; what that is too much is made up for before the next one.
        assert!(joins <= tenth + 6, "{joins} joins after {tenth} tenths of a second");
    }
    assert_eq!(joins, 30);
}

#[test]
fn f10_rooms_that_waited_through_an_outage_are_placed_at_the_pace_with_all_their_members() {
    placed_at_the_pace_after(0, world(1));
    // They are due to be given up while the pace lets the others in.
    placed_at_the_pace_after(9, world(1));
}

#[test]
fn f10_rooms_that_are_offered_again_and_again_are_placed_at_the_pace_too() {
    let mut w = world(1);
    let seamless = Some(crate::cluster::Seamless { window: 60 * SECOND, quiet: 0 });
    w.cluster.configure(Settings { seamless, ..settings() });
    placed_at_the_pace_after(12, w);
}

#[test]
fn parked_rooms_are_placed_in_the_order_in_which_whoever_waits_for_them_came() {
    let mut w = fresh();
    w.event(Event::Discovered { endpoints: vec![endpoint(1)] }).gives("");
    w.join(1, "zoo").gives("");
    w.get(1, "mid").gives("");
    w.join(2, "bar").gives("");
    w.join(3, "abc").gives("");
    // Who comes for a room of somebody who has gone is no older for that.
    w.leave(1).gives("");
    w.join(4, "zoo").gives("");
    w.up(1).gives("accept 1");
    let order = "send r1 m1 awaited; join m1 c2#1 bar alone; join m1 c3#1 abc alone; join m1 c4#1 zoo alone";
    w.gossip(1, &[]).gives(order);
}

#[test]
fn members_who_lost_their_monolith_are_placed_before_those_who_came_later() {
    let mut w = world(1);
    w.cluster.configure(Settings {
        seamless: Some(Seamless { window: 10 * SECOND, quiet: SECOND }),
        joins_per_second: 1,
        hold: 60 * SECOND,
        ..settings()
    });
    w.join(1, "zoo").gives("join m1 c1#1 zoo alone");
    w.loaded(1, "zoo", 7).gives("bind zoo m1; open m1 c1#1");
    w.join(2, "mid").gives("join m1 c2#1 mid alone");
    w.down(1).ignore();
    w.join(3, "abc").gives("");
    w.up(2).gives("accept 2");
    let mut order = w.gossip(2, &[]).0;
    for _ in 0..40 {
        order.extend(w.millis(100).0);
    }
    let order: Vec<&str> = order.iter().filter_map(|effect| effect.split(' ').nth(3)).collect();
    assert_eq!(order, ["zoo", "mid", "abc"], "one a second");
}
