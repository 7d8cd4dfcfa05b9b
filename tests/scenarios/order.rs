//! What arrives, and in which order: broadcasts, joins in the middle of a conversation, frames that come too early,
//! and readers that do not keep up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Instant;
use usher::config::QueueLimit;
use usher::testkit::monolith::{State, UnloadReason};
use usher::testkit::{Client, Connect, Monolith, RawSocket};

use crate::harness::*;

/// The number in a message of these tests, if it is one.
fn number(text: &str) -> Option<u64> {
    text.strip_prefix(r#"{"n":"#)?.strip_suffix('}')?.parse().ok()
}

fn numbered(n: u64) -> String {
    format!(r#"{{"n":{n}}}"#)
}

/// The payloads of the messages that a Monolith was sent by clients.
fn client_messages(monolith: &Monolith) -> Vec<Value> {
    let frames = monolith.frames().into_iter().map(|frame| serde_json::from_str::<Value>(&frame.text).unwrap());
    let messages = frames.filter(|frame| frame["type"] == "client_msg");
    messages.map(|mut frame| frame["payload"]["payload"].take()).collect()
}

/// Queues that hold all of a test that is not about their size.
fn roomy(config: &mut usher::config::Config) {
    config.limits.client_queue = QueueLimit { messages: 100_000, bytes: 256 << 20 };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f04_twenty_thousand_messages_keep_their_order_while_members_come_and_go() {
    const COUNT: u64 = 20_000;
    /// Every so many messages, one is for the steady client alone.
    const UNICAST: u64 = 7;
    let world = world_with(["x"]);
    let a = Arc::new(monolith(&world).start().await.unwrap());
    let balancer = Arc::new(Balancer::start_with(&[&a], roomy).await);
    let mut steady = balancer.join("x", "steady").await;
    let id = a.members("x")[0].clone();
    let done = Arc::new(AtomicBool::new(false));
    let guests: Vec<_> = (0..4)
        .map(|guest| {
            let (balancer, done) = (balancer.clone(), done.clone());
            tokio::spawn(async move {
                let (mut visits, mut heard) = (0, 0);
                while !done.load(Relaxed) {
                    let mut client = balancer.join("x", &format!("guest-{guest}")).await;
                    let mut last = None;
                    for _ in 0..200 {
                        let Ok(text) = client.recv(Duration::from_millis(50)).await else { break };
                        let Some(n) = number(&text) else { continue };
                        if let Some(last) = last {
                            let next = if (last + 1) % UNICAST == 0 { last + 2 } else { last + 1 };
                            assert_eq!(n, next, "guest {guest}, visit {visits}");
                        }
                        last = Some(n);
                        heard += 1;
                    }
                    visits += 1;
                }
                (visits, heard)
            })
        })
        .collect();
    let speaker = {
        let a = a.clone();
        tokio::spawn(async move {
            for n in 0..COUNT {
                let to = (n % UNICAST == 0).then_some(id.as_str());
                a.say("x", to, &numbered(n));
                if n % 100 == 99 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    };
    let mut next = 0;
    while next < COUNT {
        let text = steady.recv(SOON).await.unwrap_or_else(|error| panic!("after {next}: {error}"));
        if let Some(n) = number(&text) {
            assert_eq!(n, next);
            next += 1;
        }
    }
    done.store(true, Relaxed);
    speaker.await.unwrap();
    let visits = join_all(guests).await.into_iter().map(Result::unwrap);
    let (visits, heard) = visits.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    assert!(visits > 8 && heard > 400, "{visits} visits heard {heard}: the test must have had guests");
    drop(steady);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn f04_a_room_that_is_loaded_unloaded_and_loaded_is_loaded() {
    let world = world_with(["x"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start(&[&a, &b]).await;
    for _ in 0..20 {
        for _ in 0..3 {
            a.load("x");
            a.unload("x", UnloadReason::Keepalive);
        }
        let epoch = a.load("x");
        eventually("the last load is known", async || match balancer.get("/_usher/v1/rooms/x").await.json() {
            room if room["epoch"] == epoch && room["monolith"] == a.id() => Ok(()),
            room => Err(room),
        })
        .await;
        drop(balancer.join("x", "t").await);
        holds(&a, |state| state.client_count() == 0).await;
        a.unload("x", UnloadReason::Keepalive);
    }
    nobody_left(&balancer, &[&a, &b]).await;
    assert_eq!((a.joins().len(), b.joins().len()), (20, 0));
    assert!(a.unloads().is_empty() && b.unloads().is_empty());
}

#[tokio::test]
async fn a_join_that_meets_an_unload_is_served_and_not_told_to_give_up() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    for _ in 0..100 {
        for _ in 0..3 {
            a.load("x");
            a.unload("x", UnloadReason::Keepalive);
        }
        a.load("x");
        // Wherever the balancer is in that story by now: the client gets its state.
        drop(balancer.join("x", "t").await);
        holds(&a, |state| state.client_count() == 0).await;
        a.unload("x", UnloadReason::Keepalive);
    }
    nobody_left(&balancer, &[&a]).await;
    assert!(a.unloads().is_empty());
}

#[tokio::test]
async fn messages_of_a_client_keep_their_order() {
    const COUNT: usize = 3000;
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], roomy).await;
    let client = balancer.join("x", "t").await;
    for n in 0..COUNT {
        client.send(&numbered(n as u64)).await;
    }
    holds(&a, |state| state.frame_count() >= COUNT as u64 + 2).await;
    let numbers: Vec<_> = client_messages(&a).into_iter().map(|message| message["n"].as_u64().unwrap()).collect();
    assert!(numbers.into_iter().eq(0..COUNT as u64));
    drop(client);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f55_whoever_joins_a_chatting_room_gets_the_state_first_and_then_everything_in_order() {
    const JOINS: usize = 400;
    let rooms: Vec<String> = (0..10).map(|number| format!("room-{number}")).collect();
    let world = world_with(&rooms);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let monoliths = Arc::new([a, b]);
    let balancer = Balancer::start_with(&[&monoliths[0], &monoliths[1]], roomy).await;
    let mut residents = Vec::new();
    for room in &rooms {
        residents.push(balancer.join(room, "resident").await);
    }
    let chatter = {
        let (monoliths, rooms) = (monoliths.clone(), rooms.clone());
        tokio::spawn(async move {
            for n in 0.. {
                for room in &rooms {
                    for monolith in monoliths.iter().filter(|monolith| !monolith.members(room).is_empty()) {
                        monolith.say(room, None, &numbered(n));
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    let visits = (0..JOINS).map(async |visit| {
        let room = &rooms[visit % rooms.len()];
        let mut client = Connect::room(balancer.addr(), room, &format!("t{visit}")).open().await.unwrap();
        let first = client.recv(SOON).await.unwrap();
        assert!(first.starts_with(r#"{"action":"sync","name""#), "visit {visit} of {room}: {first}");
        let mut last: Option<u64> = None;
        for _ in 0..30 {
            let text = client.recv(SOON).await.unwrap();
            let Some(n) = number(&text) else { continue };
            assert!(last.is_none_or(|last| n == last + 1), "visit {visit} of {room}: {n} after {last:?}");
            last = Some(n);
        }
        assert!(last.is_some(), "nobody chatted");
    });
    // Forty at a time, as a crowd would.
    let mut visits: Vec<_> = visits.map(Box::pin).collect();
    while !visits.is_empty() {
        let rest = visits.split_off(visits.len().saturating_sub(40));
        join_all(rest).await;
    }
    chatter.abort();
    drop(residents);
    nobody_left(&balancer, &[&monoliths[0], &monoliths[1]]).await;
}

#[tokio::test]
async fn frames_that_come_before_the_room_is_up_are_held_and_sent_in_order() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    // A Monolith need not answer a join: the room's report is enough.
    a.answer_joins(false);
    a.freeze_loads();
    let client = Client::join(balancer.addr(), "x", "t").await.unwrap();
    for n in 0..60 {
        client.send(&numbered(n)).await;
    }
    holds(&a, |state| state.frozen_loads() == 1).await;
    assert_eq!(client_messages(&a).len(), 0);
    a.thaw_loads();
    holds(&a, |state| state.frame_count() >= 62).await;
    let numbers: Vec<_> = client_messages(&a).into_iter().map(|message| message["n"].as_u64().unwrap()).collect();
    assert!(numbers.iter().copied().eq(0..60), "{numbers:?}");
    drop(client);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn who_sends_too_much_too_early_is_told_to_come_back_later() {
    let world = world_with(["x", "y", "z"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    a.freeze_loads();
    let mut many = Client::join(balancer.addr(), "x", "many").await.unwrap();
    for n in 0..65 {
        many.send(&numbered(n)).await;
    }
    assert_eq!(many.closed(SOON).await.unwrap().code, 1013);
    let mut large = Client::join(balancer.addr(), "y", "large").await.unwrap();
    let text = format!(r#"{{"text":"{}"}}"#, "x".repeat(100 << 10));
    for _ in 0..3 {
        large.send(&text).await;
    }
    assert_eq!(large.closed(SOON).await.unwrap().code, 1013);
    // Just within the bounds.
    let kept = Client::join(balancer.addr(), "z", "kept").await.unwrap();
    for n in 0..64 {
        kept.send(&numbered(n)).await;
    }
    holds(&a, |state| state.frozen_loads() == 3).await;
    a.thaw_loads();
    holds(&a, |state: &State| state.members("z").len() == 1 && client_count(state) == 64).await;
    drop(kept);
    alive(&[&a]);
}

/// How many messages of clients came: everything but the init, joins and leaves.
fn client_count(state: &State) -> u64 {
    state.frame_count() - state.links_accepted() - state.join_count() - state.leave_count()
}

#[tokio::test]
async fn f32_a_reader_that_stops_is_dropped_alone() {
    const ROUNDS: u64 = 400;
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let mut readers = Vec::new();
    for n in 0..4 {
        readers.push(balancer.join("x", &format!("t{n}")).await);
    }
    let mut stuck = RawSocket::join(balancer.addr(), "x", "stuck").await.unwrap();
    holds(&a, |state| state.members("x").len() == 5).await;
    let filler = "x".repeat(64 << 10);
    let mut next = 0;
    // A round is small enough for everybody who reads: nobody else is ever behind by more than that.
    while a.look(State::leave_count) == 0 {
        assert!(next < 8 * ROUNDS, "the reader that stopped was never dropped");
        for n in next..next + 8 {
            a.say("x", None, &format!(r#"{{"n":{n},"filler":"{filler}"}}"#));
        }
        for reader in &mut readers {
            for n in next..next + 8 {
                let wanted = format!(r#"{{"n":{n},"#);
                let text = reader.recv_until(SOON, |text| text.starts_with(r#"{"n":"#)).await.unwrap();
                assert!(text.starts_with(&wanted), "{} instead of {wanted}", &text[..20]);
            }
        }
        next += 8;
    }
    assert_eq!(stuck.closed(SOON).await.unwrap(), 1013);
    assert_eq!(a.members("x").len(), 4);
    drop(readers);
    nobody_left(&balancer, &[&a]).await;
}

/// Two small messages one after the other, to somebody who has just said something and therefore delays its
/// acknowledgement: without `TCP_NODELAY` the second would wait for it, 40 ms on Linux. The bound is half of that, and
/// the quickest quarter has to keep it, so that a busy machine does not matter.
#[tokio::test]
async fn f56_no_message_waits_for_a_delayed_acknowledgement() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let mut client = balancer.join("x", "t").await;
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for n in 0..60 {
        client.chat(&format!("round {n}")).await;
        client.recv_until(SOON, |text| text.contains(&format!("round {n}"))).await.unwrap();
        let said = Instant::now();
        a.say("x", None, &numbered(n));
        client.recv_until(SOON, |text| number(text) == Some(n)).await.unwrap();
        down.push(said.elapsed());
        for message in 0..2 {
            let before = a.look(State::frame_count);
            let sent = Instant::now();
            client.send(r#"{"action":"nobody answers this"}"#).await;
            a.wait_for(|state| state.frame_count() > before, SOON).await.unwrap();
            if message == 1 {
                up.push(sent.elapsed());
            }
        }
    }
    for (way, mut took) in [("to the client", down), ("to the Monolith", up)] {
        took.sort_unstable();
        let quick = took[took.len() / 4];
        assert!(quick < Duration::from_millis(20), "{way}: three quarters took {quick:?} or more");
    }
}
