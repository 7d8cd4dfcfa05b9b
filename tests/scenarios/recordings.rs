//! Recorded runs of the real system, played through a balancer: every client is delivered what the link had for it,
//! byte for byte and in the order of the link.

use std::time::Duration;

use usher::testkit::playback::{Playback, Script, perform};

use crate::harness::*;
use crate::support;

async fn plays(name: &str, monolith: u32, generation: u32, at_least: usize) {
    play(name, Script::new(&support::recording(name), monolith, generation), at_least).await;
}

async fn play(name: &str, script: Script, at_least: usize) {
    let clients = script.clients().len();
    assert!(clients >= at_least, "{name}: {clients} clients");
    let playback = Playback::start(script, 80).await.unwrap();
    let balancer = Balancer::start_config(config_for(&[playback.link_addr()])).await;
    balancer.linked(1).await;
    let deadline = Duration::from_secs(180);
    let performances = (0..clients).map(|index| perform(&playback, index, balancer.addr(), deadline));
    let performances = futures_util::future::join_all(performances).await;
    for (performance, client) in performances.into_iter().zip(playback.script().clients()) {
        let performance = performance.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(performance.delivered, client.expected, "{name}: {}", client.recorded_id);
        let closed = performance.closed.map(|closed| u64::from(closed.code));
        let kicked = client.kicked.as_ref().map(|reason| reason.as_u64().unwrap_or(4000));
        assert_eq!(closed, kicked, "{name}: {}", client.recorded_id);
    }
    playback.finished(deadline).await.unwrap();
    assert_eq!(playback.surprises(), [""; 0]);
}

#[tokio::test]
async fn one_room_with_chat_and_kicks() {
    plays("a-one-room-chat", 1, 0, 5).await;
}

#[tokio::test]
async fn f55_busy_rooms() {
    plays("b-forty-rooms", 0, 0, 40).await;
}

#[tokio::test]
async fn f55_busy_rooms_of_another_monolith() {
    plays("b-forty-rooms", 1, 0, 15).await;
}

#[tokio::test]
async fn unloads_and_rejoins() {
    plays("f-keepalive-unload", 1, 0, 15).await;
}

#[tokio::test]
async fn f52_joins_that_crossed() {
    let script = Script::new(&support::recording("i-concurrent-join-unloaded-rooms"), 0, 1);
    play("i", script.with_early_reports(), 10).await;
}
