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
    /// Messages of somebody before which others are missing that belong to the same load of the room.
    pub gaps: Vec<(String, u64, u64)>,
    /// How many of its own words were lost each time that the room was loaded anew.
    pub lost: Vec<u64>,
    /// Its own words that were lost while the room stayed where it was.
    pub torn: Vec<u64>,
    /// How it was closed, if it was.
    pub closed: Option<u16>,
}

impl Heard {
    /// Its words that did not come back.
    pub fn missing(&self) -> u64 {
        self.said - self.echoes.len() as u64
    }

    /// The number that its next word has when it comes back.
    pub fn next(&self) -> u64 {
        self.echoes.last().map_or(0, |last| last + 1)
    }

    /// Whether its words came back in order, none of them twice, and none is missing within a load of the room.
    pub fn in_order(&self) -> bool {
        let sorted = self.echoes.is_sorted_by(|a, b| a < b);
        sorted && self.disordered.is_empty() && self.gaps.is_empty() && self.torn.is_empty()
    }
}

/// What somebody said last: its number, and after how many full states of the room it was heard.
type Last = HashMap<String, (u64, u64)>;

/// Talks every `pace` as long as the stage says so, then listens until its last word has come back.
pub fn spawn(
    addr: SocketAddr,
    room: String,
    name: String,
    pace: Duration,
    mut stage: watch::Receiver<Stage>,
) -> JoinHandle<Heard> {
    tokio::spawn(async move {
        let mut client = Client::join(addr, &room, &name).await.unwrap();
        client.synced(SOON).await.unwrap();
        let mut heard = Heard { syncs: 1, ..Heard::default() };
        let mut last = Last::new();
        let mut echoed = 1;
        let mut next = Instant::now() + pace;
        let mut listening_until = None;
        loop {
            if listening_until.is_none() && *stage.borrow_and_update() == Stage::Listening {
                listening_until = Some(Instant::now() + SOON);
                // Everybody has arrived: this one has to come back.
                say(&client, &name, &mut heard).await;
            }
            let until = match listening_until {
                Some(_) if heard.next() == heard.said => return heard,
                Some(until) if until <= Instant::now() => return heard,
                Some(until) => until.min(Instant::now() + pace),
                None => next,
            };
            match client.recv(until.saturating_duration_since(Instant::now())).await {
                Ok(text) => take(&mut heard, &mut last, &mut echoed, &text),
                Err(RecvError::Closed(closed)) => {
                    heard.closed = Some(closed.code);
                    return heard;
                }
                Err(RecvError::TimedOut(_)) if listening_until.is_none() => {
                    say(&client, &name, &mut heard).await;
                    // One that was late does not make up for it: what is under way at once stays little.
                    next = Instant::now() + pace;
                }
                Err(RecvError::TimedOut(_)) => {}
            }
        }
    })
}

async fn say(client: &Client, name: &str, heard: &mut Heard) {
    let number = heard.said;
    client.send(&format!(r#"{{"action":"echo","number":{number}}}"#)).await;
    client.send(&format!(r#"{{"action":"chat","text":"{name} {number}"}}"#)).await;
    heard.said += 1;
}

/// `echoed`: the full states that had come when the last of its own words came back.
fn take(heard: &mut Heard, last: &mut Last, echoed: &mut u64, text: &str) {
    heard.messages += 1;
    if text.starts_with(r#"{"action":"sync","name""#) {
        heard.syncs += 1;
    } else if text.starts_with(r#"{"action":"echo""#) {
        let message: Value = serde_json::from_str(text).unwrap();
        let number = message["number"].as_u64().unwrap();
        let missing = heard.next()..number;
        if std::mem::replace(echoed, heard.syncs) == heard.syncs {
            heard.torn.extend(missing);
        } else if !missing.is_empty() {
            heard.lost.push(missing.end - missing.start);
        }
        heard.echoes.push(number);
    } else if text.starts_with(r#"{"action":"chat""#) {
        let message: Value = serde_json::from_str(text).unwrap();
        let Some((name, number)) = message["text"].as_str().and_then(|said| said.split_once(' ')) else { return };
        let number: u64 = number.parse().unwrap();
        let Some((before, load)) = last.insert(name.to_owned(), (number, heard.syncs)) else { return };
        if before >= number {
            heard.disordered.push((name.to_owned(), before, number));
        } else if load == heard.syncs && before + 1 != number {
            heard.gaps.push((name.to_owned(), before, number));
        }
    }
}
