//! What policies see of rooms and Monoliths, and that what they see is up to date within a burst.

use super::*;
use crate::policy::lua::{Environment, Program, Source, Vm};
use crate::policy::shipped::shipped;

#[test]
fn f40_a_burst_of_500_new_rooms_is_even_within_2_percent_under_least_loaded() {
    let policy = shipped("least-loaded").unwrap();
    let program = Program::compile(Source::shipped(policy.name, policy.text), &Environment::default()).unwrap();
    // None is confirmed during the burst, or every third is.
    for confirmed in [usize::MAX, 3] {
        let mut vm = Vm::new(&program).unwrap();
        let mut world = world(4);
        world.cluster.configure(Settings { pending_joins: 1000, pending_rooms: 1000, ..settings() });
        for n in 0..500 {
            let name = format!("room-{n}");
            let room = RoomName::parse(&name).unwrap();
            let (region, token) = (Some(Region::from("cdg")), Token("secret".into()));
            let join = Event::Join { client: client(n), room, token, region, reconnect: false };
            let mut effects = Vec::new();
            world.cluster.apply(world.now, join, &mut vm, &mut effects);
            let joined = effects.iter().find_map(|effect| match effect {
                Effect::Attach { link, .. } => Some(*link),
                _ => None,
            });
            let link = joined.unwrap_or_else(|| panic!("{effects:?}"));
            if (n as usize).is_multiple_of(confirmed) {
                world.loaded(link.0, &name, 1).ignore();
            }
        }
        let rooms: Vec<u32> = (1..=4).map(|n| world.row(n)).map(|(rooms, _, pending)| rooms + pending).collect();
        assert_eq!(rooms.iter().sum::<u32>(), 500);
        assert!(rooms.iter().all(|rooms| (123..=127).contains(rooms)), "{rooms:?}");
    }
}

/// How many of 160 new rooms each of four Monoliths gets from eight balancers that do not hear of each other's meanwhile.
/// The first Monolith is empty at the beginning, the others have twenty rooms each.
fn herd(script: &str) -> Vec<u32> {
    let program = Program::compile(Source::shipped("herd", script), &Environment::default()).unwrap();
    let mut got = vec![0; 4];
    for balancer in 0..8 {
        let mut vm = Vm::new(&program).unwrap();
        let mut w = world(4);
        // So that its random choices are its own.
        w.now += balancer * SECOND;
        for (n, room) in (2..=4).flat_map(|n| (0..20).map(move |room| (n, room))) {
            w.loaded(n, &format!("old-{n}-{room}"), 1).ignore();
        }
        w.cluster.configure(Settings { pending_joins: 1000, pending_rooms: 1000, ..settings() });
        for n in 0..20 {
            let room = RoomName::parse(&format!("new-{balancer}-{n}")).unwrap();
            let join =
                Event::Join { client: client(n), room, token: Token("t".into()), region: None, reconnect: false };
            let mut effects = Vec::new();
            w.cluster.apply(w.now, join, &mut vm, &mut effects);
        }
        (1..=4).zip(&mut got).for_each(|(n, got)| *got += w.row(n).2);
    }
    assert_eq!(got.iter().sum::<u32>(), 160);
    got
}

#[test]
fn f40_two_choices_keep_balancers_that_share_stale_data_from_all_choosing_the_same() {
    let load = "local function load(m) return m.rooms + m.pending end ";
    let place = |choice: &str| format!("{load} return {{ place = function(call) return usher.{choice} end }}");
    let (least, two) =
        (herd(&place("min_by(call.monoliths, load)")), herd(&place("two_choices(call.monoliths, load)")));
    assert_eq!(least[0], 160, "each believes that it is alone: {least:?}");
    assert!(two[0] < 110 && two[1..].iter().all(|got| *got > 5), "{two:?}");
}

#[test]
fn a_room_is_known_as_it_is_and_remembered_when_its_monolith_goes() {
    let mut w = world(2);
    let key = RoomKey::of("movie");
    let unknown = w.cluster.room_facts(&key, Some(Region::from("cdg")));
    assert_eq!((unknown.bound, unknown.owner, unknown.clients, unknown.metadata), (false, None, 0, None));
    assert_eq!(unknown.region, Some(Region::from("cdg")));
    w.settled("Movie", 5);
    let bound = w.cluster.room_facts(&key, None);
    assert_eq!((bound.bound, bound.owner, bound.clients), (true, Some(monolith(1)), 1));
    assert_eq!(bound.regions, [(Region::from("cdg"), 1)].into());
    assert_eq!(bound.metadata.unwrap()["users"], 2);
    w.down(1).ignore();
    let gone = w.cluster.room_facts(&key, None);
    assert_eq!((gone.bound, gone.clients), (false, 0));
    assert_eq!(
        gone.previous.map(|previous| (previous.monolith, previous.why)),
        Some((monolith(1), "link_down".into()))
    );
    assert_eq!(gone.metadata.unwrap()["users"], 2);
    w.join(2, "movie").gives("join m2 c2#1 movie alone");
    let placed = w.last_call().room.clone().unwrap();
    assert_eq!(placed.previous.unwrap().monolith, monolith(1));
    assert_eq!(placed.metadata.unwrap()["visibility"], "public");
}

#[test]
fn metadata_outlives_an_unload_and_a_gossip_without_the_room() {
    let key = RoomKey::of("movie");
    let mut w = world(1);
    w.settled("movie", 5);
    w.gossip(1, &[]).ignore();
    assert_eq!(w.cluster.room_facts(&key, None).metadata.unwrap()["users"], 2);
    let mut w = world(1);
    w.settled("movie", 5);
    w.unloaded(1, "movie", UnloadReason::Admin, &[]).ignore();
    let facts = w.cluster.room_facts(&key, None);
    assert_eq!((facts.previous.unwrap().why.as_str(), facts.metadata.is_some()), ("unloaded", true));
}

#[test]
fn users_are_never_fewer_than_our_own_clients() {
    let mut w = world(1);
    let users = |w: &World| w.cluster.view().get(&monolith(1)).unwrap().users;
    w.settled("movie", 5);
    assert_eq!(users(&w), 2);
    for n in 2..=4 {
        w.join(n, "movie").ignore();
    }
    assert_eq!(users(&w), 4);
    w.gossip(1, &[("movie", 5)]).ignore();
    assert_eq!(users(&w), 4);
    for n in 2..=4 {
        w.leave(n).ignore();
    }
    assert_eq!(users(&w), 2);
}

#[test]
fn weights_come_from_the_settings_and_follow_them() {
    let mut w = world(1);
    let weight = |w: &World, n| w.cluster.view().get(&monolith(n)).unwrap().weight.to_bits();
    assert_eq!(weight(&w, 1), 1f64.to_bits());
    let mut weights = Weights::default();
    weights.set("host1", 2.0);
    weights.set("ewr", 0.5);
    w.cluster.configure(Settings { weights, ..settings() });
    w.up(2).ignore();
    assert_eq!((weight(&w, 1), weight(&w, 2)), (2f64.to_bits(), 0.5f64.to_bits()));
    w.cluster.configure(settings());
    assert_eq!((weight(&w, 1), weight(&w, 2)), (1f64.to_bits(), 1f64.to_bits()));
}
