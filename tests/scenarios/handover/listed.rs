//! A Monolith that discovery no longer lists, while it is there and has rooms.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use usher::config;
use usher::testkit::Monolith;

use super::chatter::{Stage, spawn};
use super::{all_handed_over, echo};
use crate::harness::*;

const CLIENTS: usize = 16;

/// A configuration file that lists these Monoliths.
fn listing(monoliths: &[&Monolith]) -> String {
    let listed = monoliths.iter().map(|monolith| {
        let addr = monolith.link_addr();
        format!("[[discovery.monoliths]]\nhost = \"{}\"\nport = {}\n", addr.ip(), addr.port())
    });
    format!(
        "port = 1\nregion = \"{HERE}\"\napi_key = \"{KEY}\"\n[policy]\nbudget = \"1s\"\n\
         [handover]\nquiet = \"100ms\"\nrate = 1000\nwindow = \"20s\"\n\
         [discovery]\nmethod = \"manual\"\n{}",
        listed.collect::<String>()
    )
}

/// Two Monoliths, and a configuration file that lists them.
struct Listed {
    rooms: Vec<String>,
    a: Monolith,
    b: Monolith,
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Listed {
    async fn start() -> Self {
        let rooms: Vec<String> = (0..8).map(|number| format!("Room{number}")).collect();
        let world = world_with(&rooms);
        let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usher.toml");
        std::fs::write(&path, listing(&[&a, &b])).unwrap();
        Self { rooms, a, b, _folder: folder, path }
    }
}

/// A balancer with this configuration file, which links both Monoliths.
async fn reading(path: &Path) -> Balancer {
    let request = config::Request {
        path: Some(path.to_owned()),
        working_dir: path.parent().unwrap().to_owned(),
        environment: Vec::new(),
        shipped: config::SHIPPED_POLICIES.to_vec(),
        workers: WORKERS,
    };
    let loaded = config::load(&request).unwrap().config;
    let balancer = Balancer::start_request(loaded, request).await;
    balancer.linked(2).await;
    balancer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f28_a_monolith_that_discovery_takes_out_hands_over_its_rooms_and_closes_nobody() {
    let Listed { rooms, a, b, _folder, path } = Listed::start().await;
    let balancer = reading(&path).await;
    let (stage, watched) = watch::channel(Stage::Talking);
    let client = |n: usize| {
        let (room, name) = (rooms[n % rooms.len()].clone(), format!("c{n}"));
        spawn(balancer.addr(), room, name, Duration::from_millis(50), watched.clone())
    };
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    holds(&a, |state| state.client_count() == CLIENTS / 2).await;
    holds(&b, |state| state.client_count() == CLIENTS / 2).await;
    std::fs::write(&path, listing(&[&b])).unwrap();
    holds(&b, |state| state.client_count() == CLIENTS).await;
    all_handed_over(&balancer).await;
    stage.send_replace(Stage::Listening);
    let mut handed_over = 0;
    for (n, client) in clients.into_iter().enumerate() {
        let heard = client.await.unwrap();
        assert_eq!(heard.closed, None, "client {n}");
        assert!(heard.in_order(), "client {n}: {heard:?}");
        assert_eq!(heard.echoes, (0..heard.said).collect::<Vec<_>>(), "client {n}: each of its words once");
        handed_over += heard.syncs - 1;
    }
    assert_eq!(handed_over, CLIENTS as u64 / 2, "those of the other Monolith stay where they are");
    for room in &rooms {
        assert_eq!(b.loads_of(room), 1, "{room}");
    }
    // Once it is empty its link goes as well; it is there for as long as anybody needs it.
    holds(&a, |state| state.link_count() == 0 && state.rooms().is_empty()).await;
    nobody_left(&balancer, &[&a, &b]).await;
}

async fn knows(balancer: &Balancer, room: &str) {
    eventually("it knows where the room is", async || {
        let found = balancer.get(&format!("/_usher/v1/rooms/{room}")).await;
        match found.status {
            200 if !found.json()["monolith"].is_null() => Ok(()),
            _ => Err(found.text()),
        }
    })
    .await;
}

/// Each of them has clients in every room. A second `unload` of one load would end the Monolith.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f28_two_balancers_empty_a_monolith_that_discovery_takes_out_and_it_outlives_that() {
    let Listed { rooms, a, b, _folder, path } = Listed::start().await;
    let balancers = [reading(&path).await, reading(&path).await];
    let mut clients = Vec::new();
    for (number, room) in rooms.iter().enumerate() {
        // The first one has it placed; the other one finds it.
        for turn in [0, 1] {
            let balancer = &balancers[(number + turn) % 2];
            if turn == 1 {
                knows(balancer, room).await;
            }
            clients.push(balancer.join(room, &format!("{room}{turn}")).await);
        }
    }
    let is_here = |room: &String| a.look(|state| !state.members(room).is_empty());
    let sent = |by: usize| rooms.iter().enumerate().filter(|(at, room)| at % 2 == by && is_here(room)).count();
    let sent = [sent(0), sent(1)];
    let here = sent[0] + sent[1];
    assert!(here > 0, "a Monolith without rooms has nothing to lose");
    std::fs::write(&path, listing(&[&b])).unwrap();
    holds(&b, |state| state.client_count() == clients.len()).await;
    for balancer in &balancers {
        all_handed_over(balancer).await;
    }
    let unloads = a.unloads();
    assert!(unloads.len() == here && unloads.iter().all(|unload| unload.loaded), "{unloads:?}");
    for (balancer, sent) in balancers.iter().zip(sent) {
        assert_eq!(balancer.metric("usher_moves_done_total").await, sent as f64, "each moves what it has placed");
    }
    for client in &mut clients {
        echo(client, "still here").await;
    }
    drop(clients);
    for balancer in &balancers {
        nobody_left(balancer, &[&a, &b]).await;
    }
}
