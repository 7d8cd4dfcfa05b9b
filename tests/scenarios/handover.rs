//! Rooms that change their Monolith while their clients keep their sockets.

mod causes;
mod chatter;
mod fleet;
mod listed;

use std::time::Duration;

use serde_json::json;
use usher::config::Config;
use usher::testkit::{Client, Monolith};

use crate::harness::*;

/// Short waits: a room is quiet after a tenth of a second, and is waited for for one.
fn seamless(config: &mut Config) {
    config.handover.quiet = Duration::from_millis(100);
    config.handover.rate = 100_000;
}

/// Nobody is between two Monoliths, and everybody who was has arrived.
async fn all_handed_over(balancer: &Balancer) {
    eventually("everybody is handed over", async || match balancer.metric("usher_handing_over").await {
        0.0 => Ok(()),
        count => Err(count),
    })
    .await;
}

/// Says something that only this client gets back, and waits for it.
async fn echo(client: &mut Client, text: &str) {
    let message = json!({"action": "echo", "text": text}).to_string();
    client.send(&message).await;
    client.recv_until(SOON, |got| got == message).await.unwrap();
}

/// A drain of this Monolith has ended with nothing left on it.
async fn drained(balancer: &Balancer, monolith: &Monolith) {
    let id = monolith.id();
    let answer = balancer.post(&format!("/_usher/v1/monoliths/{id}/drain"), &json!(null)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    eventually("the Monolith is empty", async || {
        let monoliths = balancer.monoliths().await;
        let drain = monoliths.iter().find(|found| found["id"] == id.as_str()).map(|found| found["drain"].clone());
        match drain {
            Some(drain) if drain["done"] == true && drain["rooms_left"] == 0 => Ok(()),
            other => Err(other),
        }
    })
    .await;
}
