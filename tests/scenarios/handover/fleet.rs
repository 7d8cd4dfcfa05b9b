//! Four Monoliths that restart one after another under five hundred clients that talk.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use usher::testkit::Monolith;

use super::chatter::{Heard, Stage, spawn};
use super::{all_handed_over, drained, seamless};
use crate::harness::*;

const MONOLITHS: usize = 4;
const ROOMS: usize = 50;
const CLIENTS: usize = 500;
/// How often each client says something.
const PACE: Duration = Duration::from_millis(400);
/// Words of a client that may be lost with a Monolith, which are those that it had been sent and had not answered: half a
/// word at this pace, and a few where the machine is busy.
const UNDER_WAY: u64 = 4;

/// How a Monolith goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    /// Drained first, then shut down as the real one does it.
    Drained,
    /// Shut down as the real one does it: one close frame.
    ClosesItsLinks,
    /// Shut down as the design of the server says.
    Announced,
    /// Killed.
    Crashes,
}

struct Fleet {
    monoliths: Vec<Monolith>,
    balancer: Balancer,
    stage: watch::Sender<Stage>,
    clients: Vec<JoinHandle<Heard>>,
}

impl Fleet {
    /// Everybody is in a room and talks.
    async fn start() -> Self {
        let world = world_with((0..ROOMS).map(|n| format!("Room{n}")));
        let mut monoliths = Vec::new();
        for _ in 0..MONOLITHS {
            monoliths.push(monolith(&world).user_list_limit(5).start().await.unwrap());
        }
        let links: Vec<&Monolith> = monoliths.iter().collect();
        let balancer = Balancer::start_with(&links, |config| {
            seamless(config);
            // A machine under load is slow, and that is not what is looked for.
            config.handover.window = SOON;
            config.limits.held_frames.messages = 1000;
            config.policy.budget = Duration::from_secs(1);
        })
        .await;
        let (stage, watched) = watch::channel(Stage::Talking);
        let client = |n: usize| {
            let (room, name) = (format!("Room{}", n % ROOMS), format!("c{n}"));
            spawn(balancer.addr(), room, name, PACE, watched.clone())
        };
        let clients = (0..CLIENTS).map(client).collect();
        let fleet = Self { monoliths, balancer, stage, clients };
        eventually("everybody is in", async || {
            let counted: usize =
                fleet.monoliths.iter().map(|monolith| monolith.look(|state| state.client_count())).sum();
            if counted == CLIENTS { Ok(()) } else { Err(counted) }
        })
        .await;
        fleet
    }

    /// Every Monolith goes once, and comes back.
    async fn restart_all(&self, how: Going) {
        for monolith in &self.monoliths {
            if how == Going::Drained {
                drained(&self.balancer, monolith).await;
                assert_eq!(monolith.look(|state| state.client_count()), 0);
            }
            let linger = Duration::from_millis(100);
            match how {
                Going::Drained | Going::ClosesItsLinks => monolith.begin_shutdown(linger),
                Going::Announced => monolith.begin_designed_shutdown(linger),
                Going::Crashes => monolith.kill().await,
            }
            monolith.stopped().await;
            all_handed_over(&self.balancer).await;
            monolith.restart().await.unwrap();
            self.balancer.linked(MONOLITHS).await;
        }
    }

    /// Everybody falls silent and tells what it has seen.
    async fn tell(&mut self) -> Vec<Heard> {
        all_handed_over(&self.balancer).await;
        self.stage.send_replace(Stage::Listening);
        let mut told = Vec::new();
        for client in self.clients.drain(..) {
            told.push(client.await.unwrap());
        }
        told
    }
}

/// Every Monolith goes once under clients that talk: none is closed, nothing comes twice or out of order, and nothing is
/// lost but what a Monolith takes along that goes without a word. Each move loads a room once.
#[allow(clippy::print_stdout, reason = "the figures of a run are worth a look")]
async fn restarts(how: Going) {
    let began = Instant::now();
    let mut fleet = Fleet::start().await;
    let up = Instant::now();
    fleet.restart_all(how).await;
    let restarted = up.elapsed();
    let heard = fleet.tell().await;
    let sum = |of: fn(&Heard) -> u64| heard.iter().map(of).sum::<u64>();
    println!(
        "{how:?}: {} clients closed, {} messages received, {} said, {} missing, at most {} at once, {} handed over, \
         {} lossy; restarts took {restarted:.1?}, all {:.1?}",
        heard.iter().filter(|heard| heard.closed.is_some()).count(),
        sum(|heard| heard.messages),
        sum(|heard| heard.said),
        sum(Heard::missing),
        heard.iter().flat_map(|heard| &heard.lost).max().unwrap_or(&0),
        fleet.balancer.metric("usher_handovers_done_total").await,
        fleet.balancer.metric("usher_handover_lossy_total").await,
        began.elapsed(),
    );
    let may_be_lost = if how == Going::Drained { 0 } else { UNDER_WAY };
    for (n, heard) in heard.iter().enumerate() {
        assert_eq!(heard.closed, None, "client {n}");
        assert!(heard.in_order(), "client {n}: {heard:?}");
        assert!(heard.syncs >= 2, "client {n} was never handed over: {}", heard.syncs);
        assert_eq!(heard.next(), heard.said, "client {n}: its last word has come back");
        assert!(heard.lost.iter().all(|lost| *lost <= may_be_lost), "client {n}: {:?} lost", heard.lost);
        // Each of its joins was to a load of its own, and there was no other one.
        let room = format!("Room{}", n % ROOMS);
        let loads: u64 = fleet.monoliths.iter().map(|monolith| monolith.loads_of(&room)).sum();
        assert_eq!(heard.syncs, loads, "client {n}: its joins, and the loads of {room}");
    }
    let done = fleet.balancer.metric("usher_handovers_done_total").await;
    assert!(sum(Heard::missing) as f64 <= done, "of {done} times a client changed its Monolith");
    for name in ["usher_handover_room_lost_total", "usher_handover_window_closed_total"] {
        assert_eq!(fleet.balancer.metric(name).await, 0.0, "{name}");
    }
    alive(&fleet.monoliths.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f28_f12_a_rolling_restart_with_drains_closes_nobody_and_loses_nothing() {
    restarts(Going::Drained).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_bare_shutdowns_close_nobody_and_lose_only_what_was_under_way() {
    restarts(Going::ClosesItsLinks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_announced_shutdowns_close_nobody_and_lose_only_what_was_under_way() {
    restarts(Going::Announced).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f14_crashes_close_nobody_and_lose_only_what_was_under_way() {
    restarts(Going::Crashes).await;
}
