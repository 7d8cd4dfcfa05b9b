//! A client that talks all the time and checks what it gets: its own words exactly once and in order, everybody else's
//! in order and never twice.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use usher::testkit::Client;
use usher::testkit::client::RecvError;

use crate::harness::SOON;

/// Whether clients talk, wait for what is owed to them, or end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// They talk.
    Talking,
    /// They are silent.
    Listening,
}

/// What a client has seen.
#[derive(Debug, Default)]
pub struct Heard {
    /// What it said, numbered from 0.
    pub said: u64,
    /// The numbers of its own words as they came back.
    pub echoes: Vec<u64>,
    /// Messages of any kind.
    pub messages: u64,
    /// Full states: one for each join.
    pub syncs: u64,
    /// Messages of somebody that came twice or after a later one.
    pub disordered: Vec<(String, u64, u64)>,
    /// How it was closed, if it was.
    pub closed: Option<u16>,
}

impl Heard {
    /// Its words that did not come back.
    pub fn missing(&self) -> u64 {
        self.said - self.echoes.len() as u64
    }

    /// Whether its words came back in order, none of them twice.
    pub fn in_order(&self) -> bool {
        self.echoes.is_sorted_by(|a, b| a < b) && self.disordered.is_empty()
    }
}

/// Talks every `pace` as long as the stage says so, then listens until everything has come back or `patience` is over.
pub fn spawn(
    addr: SocketAddr,
    room: String,
    name: String,
    pace: Duration,
    patience: Duration,
    mut stage: watch::Receiver<Stage>,
) -> JoinHandle<Heard> {
    tokio::spawn(async move {
        let mut client = Client::join(addr, &room, &name).await.unwrap();
        client.synced(SOON).await.unwrap();
        let mut heard = Heard { syncs: 1, ..Heard::default() };
        let mut last: HashMap<String, u64> = HashMap::new();
        let mut next = Instant::now() + pace;
        let mut listening_until = None;
        loop {
            if listening_until.is_none() && *stage.borrow_and_update() == Stage::Listening {
                listening_until = Some(Instant::now() + patience);
            }
            let until = match listening_until {
                Some(_) if heard.missing() == 0 => return heard,
                Some(until) if until <= Instant::now() => return heard,
                Some(until) => until.min(Instant::now() + pace),
                None => next,
            };
            match client.recv(until.saturating_duration_since(Instant::now())).await {
                Ok(text) => take(&mut heard, &mut last, &text),
                Err(RecvError::Closed(closed)) => {
                    heard.closed = Some(closed.code);
                    return heard;
                }
                Err(RecvError::TimedOut(_)) if listening_until.is_none() => {
                    let number = heard.said;
                    client.send(&format!(r#"{{"action":"echo","number":{number}}}"#)).await;
                    client.send(&format!(r#"{{"action":"chat","text":"{name} {number}"}}"#)).await;
                    heard.said += 1;
                    next += pace;
                }
                Err(RecvError::TimedOut(_)) => {}
            }
        }
    })
}

fn take(heard: &mut Heard, last: &mut HashMap<String, u64>, text: &str) {
    heard.messages += 1;
    if text.starts_with(r#"{"action":"sync","name""#) {
        heard.syncs += 1;
    } else if text.starts_with(r#"{"action":"echo""#) {
        let message: Value = serde_json::from_str(text).unwrap();
        heard.echoes.push(message["number"].as_u64().unwrap());
    } else if text.starts_with(r#"{"action":"chat""#) {
        let message: Value = serde_json::from_str(text).unwrap();
        let Some((name, number)) = message["text"].as_str().and_then(|said| said.split_once(' ')) else { return };
        let number: u64 = number.parse().unwrap();
        if let Some(before) = last.insert(name.to_owned(), number)
            && before >= number
        {
            heard.disordered.push((name.to_owned(), before, number));
        }
    }
}
