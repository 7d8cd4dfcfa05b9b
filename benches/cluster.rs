//! What one event costs the control thread: joins, first joins, gossip and the loss of a link.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use usher::cluster::{Cluster, EjectionSettings, Settings};
use usher::model::event::{Effect, Event, Token};
use usher::model::wire::{Frame, FromMonolith, RoomReport};
use usher::model::{ClientId, LinkId, MonolithId, Region, RoomName};
use usher::policy::Builtin;

const ROOMS: usize = 10_000;

struct World {
    cluster: Cluster,
    policy: Builtin,
    effects: Vec<Effect>,
    now: u64,
}

impl World {
    /// Five Monoliths; the first has this many rooms.
    fn new(rooms: usize) -> Self {
        let settings = Settings {
            region: Region::from("ewr"),
            load_timeout: 5_000_000,
            drain: 300_000_000,
            place_attempts: 3,
            pending_joins: 10_000,
            weights: usher::config::Weights::default(),
            pending_rooms: 5_000,
            hold: 10_000_000,
            patience: 25_000_000,
            joins_per_second: 200,
            ejection: EjectionSettings { errors: 0.5, after: 5_000_000, flaps: 10, base: 30_000_000, most: 0.5 },
            rebalance: None,
            seamless: None,
            move_rate: 50,
            claims: None,
        };
        let cluster = Cluster::new(settings, 1);
        let mut world = Self { cluster, policy: Builtin, effects: Vec::new(), now: 1 };
        world.apply(Event::Discovered { endpoints: Vec::new() });
        for n in 0..5 {
            let (link, monolith) = (LinkId(n), MonolithId::from(&*format!("m{n}")));
            let endpoint = format!("host{n}:3000").into();
            world.apply(Event::LinkUp { link, endpoint, monolith, region: Region::from("ewr") });
            world.apply(Event::Gossip { link, rooms: if n == 0 { reports(rooms, 0) } else { Vec::new() } });
        }
        world
    }

    fn apply(&mut self, event: Event) {
        self.now += 1;
        self.effects.clear();
        self.cluster.apply(self.now, event, &mut self.policy, &mut self.effects);
        black_box(&self.effects);
    }
}

fn report(name: &str, users: usize) -> RoomReport {
    let room =
        format!(r#"{{"name":"{name}","title":"a title","description":"","visibility":"public","users":{users}}}"#);
    let frame = format!(r#"{{"type":"loaded","payload":{{"room":{room},"load_epoch":7}}}}"#);
    match Frame::parse(&frame).map(|frame| frame.message) {
        Ok(FromMonolith::Loaded(report)) => report,
        other => panic!("not loaded: {other:?}"),
    }
}

fn reports(rooms: usize, users: usize) -> Vec<RoomReport> {
    (0..rooms).map(|n| report(&format!("room-{n}"), users)).collect()
}

fn join(n: u64, room: &RoomName) -> (ClientId, Event) {
    let client = ClientId::from_u128(u128::from(n) << 64);
    let (room, token) = (room.clone(), Token("secret".into()));
    (client, Event::Join { client, room, token, region: Some(Region::from("ewr")), reconnect: false })
}

fn cluster(c: &mut Criterion) {
    c.bench_function("cluster/join_and_leave", |b| {
        let mut world = World::new(ROOMS);
        let room = RoomName::reported("room-17");
        let mut n = 0;
        b.iter(|| {
            n += 1;
            let (client, event) = join(n, &room);
            world.apply(event);
            world.apply(Event::Leave { client, told: None });
        });
    });
    c.bench_function("cluster/first_join", |b| {
        let mut world = World::new(ROOMS);
        let mut n = 0;
        b.iter_batched(
            || {
                n += 1;
                let name = format!("fresh-{n}");
                (join(n, &RoomName::reported(&name)).1, report(&name, 0))
            },
            |(event, report)| {
                world.apply(event);
                let joined = world.effects.iter().find_map(|effect| match effect {
                    Effect::Attach { link, .. } => Some(*link),
                    _ => None,
                });
                let Some(link) = joined else { panic!("not a join: {:?}", world.effects) };
                world.apply(Event::Loaded { link, report });
            },
            BatchSize::SmallInput,
        );
    });
    for (name, step) in [("cluster/gossip_unchanged", 0), ("cluster/gossip_changed", 1)] {
        c.bench_function(name, |b| {
            let mut world = World::new(ROOMS);
            let mut users = 0;
            b.iter_batched(
                || {
                    users += step;
                    reports(ROOMS, users)
                },
                |rooms| world.apply(Event::Gossip { link: LinkId(0), rooms }),
                BatchSize::LargeInput,
            );
        });
    }
    c.bench_function("cluster/link_down", |b| {
        b.iter_batched(
            || World::new(ROOMS),
            |mut world| {
                world.apply(Event::LinkDown { link: LinkId(0) });
                world
            },
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, cluster);
criterion_main!(benches);
