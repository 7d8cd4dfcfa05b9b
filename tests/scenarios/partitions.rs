//! Roads between balancers and Monoliths that break and heal: each balancer goes on with what it can reach, and in the
//! end every room is one room again.

use std::time::Duration;

use usher::testkit::{Monolith, Proxy};

use crate::balancers::{agreed, all_gone, copies, gathered, names, race, shipped};
use crate::harness::*;
use crate::turns::start_apart;

const ROOMS: usize = 12;

/// A road from a balancer to a Monolith, both counted from 0.
type Road = (usize, usize);

/// How roads break.
#[derive(Clone, Copy)]
enum Break {
    /// Both ends are told.
    Reset,
    /// Nobody is told.
    Silence,
}

/// Balancers and Monoliths, and for each balancer a road of its own to each Monolith.
struct Mesh {
    monoliths: Vec<Monolith>,
    balancers: Vec<Balancer>,
    roads: Vec<Vec<Proxy>>,
}

impl Mesh {
    async fn start(balancers: usize, monoliths: usize, rooms: &[String]) -> Self {
        let world = world_with(rooms);
        let mut started = Vec::new();
        for number in 0..monoliths {
            let id = format!("00000000-0000-4000-8000-00000000000{number}");
            started.push(monolith(&world).id(id).start().await.unwrap());
        }
        let mut roads: Vec<Vec<Proxy>> = Vec::new();
        for _ in 0..balancers {
            let mut own = Vec::new();
            for monolith in &started {
                own.push(Proxy::start(monolith.link_addr()).await.unwrap());
            }
            roads.push(own);
        }
        let configs = roads.iter().map(|own| {
            let mut config = config_for(&own.iter().map(Proxy::addr).collect::<Vec<_>>());
            shipped(&mut config, "hash-ring");
            config.heartbeat.interval = Duration::from_millis(300);
            config
        });
        let balancers = start_apart(configs.collect(), &started.iter().collect::<Vec<_>>()).await;
        Self { monoliths: started, balancers, roads }
    }

    fn breaks(&self, broken: &[Road], how: Break) {
        for (balancer, monolith) in broken {
            let road = &self.roads[*balancer][*monolith];
            match how {
                Break::Reset => road.cut(),
                Break::Silence => road.swallow(),
            }
        }
    }

    fn heal(&self) {
        self.roads.iter().flatten().for_each(Proxy::heal);
    }
}

/// Breaks some roads for a while.
async fn heals(balancers: usize, monoliths: usize, broken: &[Road], how: Break) {
    let rooms = names(ROOMS);
    let mesh = Mesh::start(balancers, monoliths, &rooms).await;
    let (started, links): (Vec<&Balancer>, Vec<&Monolith>) =
        (mesh.balancers.iter().collect(), mesh.monoliths.iter().collect());
    let clients = race(&started, &rooms);
    gathered(&links, &rooms, balancers).await;
    let is_home = |monolith: &Monolith, room: &str| monolith.look(|state| state.room_epoch(room).is_some());
    let homes: Vec<_> = rooms.iter().map(|room| links.iter().position(|monolith| is_home(monolith, room))).collect();
    mesh.breaks(broken, how);
    let reach = |number| monoliths - broken.iter().filter(|(balancer, _)| *balancer == number).count();
    // Each balancer finds out by itself what it cannot reach.
    for (number, balancer) in started.iter().enumerate() {
        balancer.linked(reach(number)).await;
    }
    // Whoever was cut off comes back to what can be reached, if anything can.
    for (_, balancer) in started.iter().enumerate().filter(|(number, _)| reach(*number) > 0) {
        eventually("every client is back", async || match balancer.members().await {
            ROOMS => Ok(()),
            count => Err(count),
        })
        .await;
    }
    // A room that is out of reach is placed anew, so that there are two of it.
    for (room, home) in rooms.iter().zip(homes) {
        for (number, _) in broken.iter().filter(|(number, cut)| Some(*cut) == home && reach(*number) > 0) {
            let elsewhere = |cut| !broken.contains(&(*number, cut)) && !links[cut].members(room).is_empty();
            eventually("the room is where it can be reached", async || {
                if (0..monoliths).any(elsewhere) { Ok(()) } else { Err((room.clone(), number, copies(&links, room))) }
            })
            .await;
        }
    }
    mesh.heal();
    for balancer in &started {
        balancer.linked(monoliths).await;
    }
    gathered(&links, &rooms, balancers).await;
    agreed(&started, &links, &rooms).await;
    // Nobody stays closed, or was told never to come back.
    for client in &clients {
        assert!(client.progress().codes.iter().all(|code| *code < 4000), "{:?}", client.progress().codes);
        client.wait_for(|progress| progress.connected, SOON).await.unwrap();
    }
    // Nor is there a ghost: everyone is gone when they go.
    drop(clients);
    all_gone(&started, &links).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_between_one_balancer_and_one_monolith_heals() {
    heals(2, 2, &[(0, 0)], Break::Reset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_cut_between_one_balancer_and_one_monolith_heals() {
    heals(2, 2, &[(0, 0)], Break::Silence).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_between_all_balancers_and_one_monolith_heals() {
    heals(2, 2, &[(0, 0), (1, 0)], Break::Reset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_leaves_each_balancer_another_monolith_heals() {
    heals(2, 2, &[(0, 0), (1, 1)], Break::Silence).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_without_any_monolith_comes_back() {
    heals(2, 2, &[(0, 0), (0, 1)], Break::Silence).await;
}

/// Three balancers and three Monoliths.
async fn three_heal(broken: &[Road]) {
    for how in [Break::Reset, Break::Silence] {
        heals(3, 3, broken, how).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_between_one_of_three_balancers_and_one_of_three_monoliths_heals() {
    three_heal(&[(0, 0)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_balancers_without_any_monolith_comes_back() {
    three_heal(&[(0, 0), (0, 1), (0, 2)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monolith_that_only_one_of_three_balancers_reaches_is_one_of_all_again() {
    three_heal(&[(0, 0), (1, 0)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_of_three_balancers_and_their_monoliths_heals() {
    three_heal(&[(0, 1), (0, 2), (1, 0), (2, 0)]).await;
}
