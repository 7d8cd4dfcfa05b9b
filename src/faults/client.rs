//! A client of a run: it comes, talks, is thrown out, comes back, vanishes; and checks everything that it hears.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::balancer::Balancer;
use super::closing::{Lost, is_explained};
use super::dice::Dice;
use super::ledger::{Heard, Ledger, Session};
use super::pipe::{End, Line, small};

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Faults happen.
    Storm,
    /// Everything is well again: each client has to get in, and to hear what it says.
    Calm,
    /// Everybody leaves.
    Farewell,
}

/// The stage of a run, for those who wait for the next one. All hear of it in the order in which they began to wait,
/// which tokio's `watch` does not promise.
#[derive(Default)]
pub(super) struct Stages {
    now: AtomicU8,
    next: Notify,
}

impl Stages {
    pub(super) fn now(&self) -> Stage {
        match self.now.load(Relaxed) {
            0 => Stage::Storm,
            1 => Stage::Calm,
            _ => Stage::Farewell,
        }
    }

    pub(super) fn advance(&self) {
        self.now.fetch_add(1, Relaxed);
        self.next.notify_waiters();
    }
}

/// What the clients of a run share.
pub(super) struct Guests {
    pub(super) ledger: Ledger,
    pub(super) balancers: Vec<Mutex<Option<Arc<Balancer>>>>,
    pub(super) stages: Stages,
    pub(super) sessions: AtomicU64,
    /// Those who have heard themselves in the calm, by number: their session and room.
    pub(super) settled: Mutex<BTreeMap<usize, (Session, String)>>,
}

/// How a visit ended.
#[derive(Debug)]
enum Ended {
    /// Its connection was taken from it; `let_in` says that a Monolith had answered, and not in the moment in which it was
    /// refused.
    Lost {
        how: Lost,
        let_in: bool,
    },
    Left,
    Vanished,
}

/// One person, from the beginning of the run to its end.
pub(super) async fn visit(number: usize, rooms: usize, guests: Arc<Guests>, mut dice: Dice) {
    let mut reconnect = false;
    sleep(dice.millis(0..2000)).await;
    while guests.stages.now() != Stage::Farewell {
        let calm = guests.stages.now() == Stage::Calm;
        let room = if !calm && dice.percent(3) { "missing".to_owned() } else { format!("Room-{}", number % rooms) };
        let balancer = guests.balancer(dice.below(guests.balancers.len()));
        let session = guests.sessions.fetch_add(1, Relaxed) + 1;
        let latency = dice.millis(1..15);
        // Some give up before they are let in.
        let patience = if dice.percent(10) { dice.millis(20..1500) } else { Duration::from_secs(3600) };
        let connected = match &balancer {
            Some(balancer) => {
                let connect = balancer.connect(&guests.ledger, session, &room, reconnect, latency);
                timeout(patience, connect).await.ok().flatten().map(|connected| (balancer, connected))
            }
            None => None,
        };
        let Some((balancer, (end, line))) = connected else {
            sleep(dice.millis(100..700)).await;
            continue;
        };
        guests.ledger.count("visits");
        let visit =
            Visit { number, session, room: &room, guests: &guests, heard: Heard::default(), said: 0, marker: None };
        let ended = visit.run(end, &line, &mut dice).await;
        guests.settled().remove(&number);
        guests.ledger.tell(|| format!("client {number} ends session {session} in {room}: {ended:?}"));
        reconnect = match ended {
            Ended::Lost { how, let_in } => {
                if !is_explained(how, let_in, &room, balancer, &guests.ledger) {
                    let who = if let_in { "who was in" } else { "who waited" };
                    guests.ledger.violation(format!("client {number}, {who}, loses its connection: {how:?}"));
                }
                match how {
                    Lost::Closed(4000..) => false,
                    Lost::Closed(_) => {
                        guests.ledger.count("closed");
                        true
                    }
                    Lost::Broken { .. } => true,
                }
            }
            Ended::Left | Ended::Vanished => false,
        };
        sleep(dice.millis(50..500)).await;
    }
}

impl Guests {
    pub(super) fn balancer(&self, number: usize) -> Option<Arc<Balancer>> {
        self.balancers[number].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn settled(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, (Session, String)>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Visit<'a> {
    number: usize,
    session: Session,
    room: &'a str,
    guests: &'a Guests,
    heard: Heard,
    said: u64,
    /// What it wants to hear itself say.
    marker: Option<u64>,
}

impl Visit<'_> {
    async fn run(mut self, end: End, line: &Line, dice: &mut Dice) -> Ended {
        let mut socket = WebSocketStream::from_raw_socket(end, Role::Client, Some(small())).await;
        let auth = json!({"action": "auth", "token": self.session.to_string()});
        if socket.send(Message::text(auth.to_string())).await.is_err() {
            return self.lost(Lost::Broken { cut: line.is_cut() });
        }
        let stays = if dice.percent(30) { dice.millis(200..4000) } else { Duration::from_secs(3600) };
        let until = Instant::now() + stays;
        let mut speaks = Instant::now() + dice.millis(0..400);
        let mut stage = Stage::Storm;
        loop {
            let now = self.guests.stages.now();
            if now == Stage::Farewell {
                return self.leave(&mut socket).await;
            }
            if std::mem::replace(&mut stage, now) != now {
                self.mark(&mut speaks);
            }
            tokio::select! {
                biased;
                message = socket.next() => match message {
                    Some(Ok(Message::Text(text))) => self.hear(&text),
                    Some(Ok(Message::Close(frame))) => {
                        // The answer goes out with the end of the stream.
                        while socket.next().await.is_some_and(|message| message.is_ok()) {}
                        let broken = Lost::Broken { cut: line.is_cut() };
                        return self.lost(frame.map_or(broken, |frame| Lost::Closed(frame.code.into())));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return self.lost(Lost::Broken { cut: line.is_cut() }),
                },
                () = self.guests.stages.next.notified() => {}
                () = sleep_until(speaks) => {
                    self.said += 1;
                    self.guests.ledger.said(self.session, self.said);
                    let input = json!({"session": self.session, "input": self.said});
                    if socket.send(Message::text(input.to_string())).await.is_err() {
                        return self.lost(Lost::Broken { cut: line.is_cut() });
                    }
                    let pause = if stage == Stage::Calm { dice.millis(1000..3000) } else { dice.millis(60..1300) };
                    speaks = Instant::now() + pause;
                }
                () = sleep_until(until), if stage == Stage::Storm => {
                    if dice.percent(25) {
                        line.swallow();
                        return Ended::Vanished;
                    }
                    return self.leave(&mut socket).await;
                }
            }
        }
    }

    fn lost(&self, how: Lost) -> Ended {
        Ended::Lost { how, let_in: self.heard.was_let_in() }
    }

    /// Says goodbye, and waits for the answer: with it, everything that was said before has been taken.
    async fn leave(&self, socket: &mut WebSocketStream<End>) -> Ended {
        let began = Instant::now();
        // A socket that is gone needs no goodbye.
        let _ = socket.close(None).await;
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Close(None)) {
                self.guests.ledger.left(self.session, began);
            }
        }
        Ended::Left
    }

    /// From the next input on it has to hear itself.
    fn mark(&mut self, speaks: &mut Instant) {
        self.marker = Some(self.said + 1);
        *speaks = Instant::now();
    }

    fn hear(&mut self, text: &str) {
        let said: Value = serde_json::from_str(text).unwrap_or(Value::Null);
        let number = |name: &str| said[name].as_u64();
        if let Some(load) = number("answer") {
            self.heard.answer(load, number("last").unwrap_or(0));
            return;
        }
        let (Some(load), Some(at)) = (number("load"), number("number")) else {
            self.guests.ledger.violation(format!("session {} hears something that nobody said: {text}", self.session));
            return;
        };
        if let Err(wrong) = self.heard.message(load, at) {
            self.guests
                .ledger
                .violation(format!("session {} of client {} in {}: {wrong}", self.session, self.number, self.room));
            // One report is enough; what follows is held against where it is now.
            self.heard.answer(load, at);
        }
        self.guests.ledger.count("heard");
        let own = number("session") == Some(self.session);
        if own
            && let Some(marker) = self.marker
            && number("input") >= Some(marker)
        {
            self.guests.settled().insert(self.number, (self.session, self.room.to_ascii_lowercase()));
        }
    }
}
