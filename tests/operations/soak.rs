//! Ten minutes of everything at once: clients that come and go and talk, Monoliths that crash, shut down, lose their
//! links and drain, policies and configuration that change. Memory has to reach a plateau, everybody has to be back in
//! the end, and no Monolith may have been ended by what it was sent.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use usher::testkit::http;
use usher::testkit::reconnect::{Policy, ReconnectingClient};
use usher::testkit::{Client, Monolith, RoomInfo, World};

use super::harness::{KEY, SOON, eventually, monoliths};
use super::process::{Process, config};

const CLIENTS: usize = 150;
const ROOMS: usize = 40;
/// How much more the last third of the samples may hold than the second, in MiB: what caches of a fixed size still take.
const SLACK: f64 = 8.0;

/// What happens next, drawn from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, length: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % length as u64) as usize
    }
}

/// Resident memory of a process in MiB.
fn resident(id: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

fn file(monoliths: &[Monolith], round: u64) -> String {
    let mut text = config(monoliths);
    let _ = write!(
        text,
        "[limits]\nplace_attempts = {}\n[timeouts]\nload = \"2s\"\n[handover]\nquiet = \"200ms\"\n",
        3 + round % 2
    );
    text
}

async fn post(process: &Process, path: &str, body: &str) -> u16 {
    let key = format!("Bearer {KEY}");
    let headers = [("authorization", key.as_str())];
    http::request(process.addr, "POST", path, &headers, body.to_owned()).await.unwrap().status
}

/// Visitors of a moment: they join, say something and leave.
async fn pass_by(process: &Process, dice: &mut Dice) {
    for _ in 0..4 {
        let room = format!("room-{}", dice.below(ROOMS));
        if let Ok(mut client) = Client::join(process.addr, &room, "visitor").await
            && client.synced(Duration::from_secs(3)).await.is_ok()
        {
            client.chat("hello").await;
            client.close(1000).await;
        }
    }
    // Any answer will do: some rooms have no Monolith just now.
    let _ = http::get(process.addr, &format!("/api/room/room-{}", dice.below(ROOMS))).await;
    let _ = http::get(process.addr, "/api/room/list").await;
}

async fn disturb(process: &Process, monoliths: &[Monolith], folder: &TempDir, round: u64, dice: &mut Dice) {
    let chosen = &monoliths[dice.below(monoliths.len())];
    match dice.below(9) {
        0 => chosen.drop_links(),
        1 => {
            chosen.kill().await;
            chosen.restart().await.unwrap();
        }
        2 => {
            chosen.begin_shutdown(Duration::from_millis(300));
            chosen.stopped().await;
            chosen.restart().await.unwrap();
        }
        3 | 4 => {
            // A Monolith that has just gone is unknown, and there is nothing to drain.
            let id = chosen.id();
            post(process, &format!("/_usher/v1/monoliths/{id}/drain"), "").await;
            pass_by(process, dice).await;
            post(process, &format!("/_usher/v1/monoliths/{id}/resume"), "").await;
        }
        5 => {
            let policy = ["least-loaded", "default", "hash-ring", "random"][dice.below(4)];
            post(process, "/_usher/v1/policy/use", &format!(r#"{{"policy":"{policy}"}}"#)).await;
        }
        6 => {
            let text = file(monoliths, round).replace("PORT", &process.addr.port().to_string());
            fs::write(folder.path().join("usher.toml"), text).unwrap();
        }
        7 => {
            let room = format!("room-{}", dice.below(ROOMS));
            let body = format!(r#"{{"to":"{}"}}"#, chosen.id());
            post(process, &format!("/_usher/v1/rooms/{room}/move"), &body).await;
        }
        _ => chosen.gossip_now(),
    }
    for room in 0..ROOMS {
        chosen.say(&format!("room-{room}"), None, r#"{"action":"tick"}"#);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: cargo test --release -- --ignored soak (SOAK_SECONDS shortens it)"]
async fn soak_memory_reaches_a_plateau_and_everybody_is_back() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let world = World::new();
    for number in 0..ROOMS {
        world.add(RoomInfo::permanent(format!("room-{number}")));
    }
    let monoliths = monoliths(&world, &["ewr", "ewr", "cdg", "cdg"]).await;
    let folder = TempDir::new().unwrap();
    let process = Process::with_file(folder.path(), "usher.toml", &file(&monoliths, 0), &[]).await;
    process.ready().await;
    let clients: Vec<ReconnectingClient> = (0..CLIENTS)
        .map(|number| {
            let policy = Policy { scale: 0.2, seed: number as u64 };
            ReconnectingClient::spawn(process.addr, &format!("room-{}", number % ROOMS), "member", policy)
        })
        .collect();
    let mut dice = Dice(7);
    let mut memory = Vec::new();
    let began = Instant::now();
    for round in 0.. {
        if began.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        disturb(&process, &monoliths, &folder, round, &mut dice).await;
        pass_by(&process, &mut dice).await;
        memory.push(resident(process.id()));
        eventually("the process answers", async || {
            let status = http::get(process.addr, "/api/status").await.ok()?;
            (status.status == 200).then_some(())
        })
        .await;
    }
    for monolith in &monoliths {
        assert_eq!(monolith.died(), None);
        post(&process, &format!("/_usher/v1/monoliths/{}/resume", monolith.id()), "").await;
    }
    for (number, client) in clients.iter().enumerate() {
        let progress = client.wait_for(|progress| progress.connected || progress.given_up, SOON).await.unwrap();
        assert!(!progress.given_up, "client {number} has given up: {:?}", progress.codes);
    }
    // Each is at a Monolith, once.
    eventually("everybody is back, once", async || {
        let joined: usize = monoliths.iter().map(|monolith| monolith.look(|state| state.client_count())).sum();
        (joined == CLIENTS).then_some(())
    })
    .await;
    let third = memory.len() / 3;
    let highest = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
    let (second, last) = (highest(&memory[third..2 * third]), highest(&memory[2 * third..]));
    println!("{} rounds, resident at most {second:.1} MiB in the second third, {last:.1} in the last", memory.len());
    assert!(last <= second + SLACK, "memory grows: {second:.1} MiB, then {last:.1}");
    drop(clients);
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    for monolith in &monoliths {
        monolith.wait_for(|state| state.client_count() == 0 && state.link_count() == 0, SOON).await.unwrap();
        assert_eq!(monolith.died(), None);
    }
}
