//! Plays a recorded run again: the Monolith's side of one recorded link, and what its clients did, in the recorded
//! order and with the ids that the balancer under test mints.
//!
//! A [`Script`] is one link of a recording. [`Playback`] is a Monolith that says what the recorded one said, and
//! waits before each frame until what it needs has come: a frame to a client needs that client's `join`, and every
//! frame needs the `leave`s and the messages of clients that came before it. [`Script::client`] tells what each
//! client did, and which payloads the link had for it, in the order of the link: that is what a balancer must
//! deliver. [`perform`] is one client; it acts when the playback has come to the recorded moment.

mod script;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

pub use self::script::{Script, ScriptClient};
use self::script::{Step, raw_payload};
use super::TimedOut;
use super::client::{Client, Closed, Connect, RecvError};

/// What has come from the balancer under test so far.
#[derive(Default)]
struct Arrived {
    /// Recorded ids to the ids of now, and back.
    live: HashMap<String, String>,
    recorded: HashMap<String, String>,
    joined: Vec<bool>,
    left: Vec<bool>,
    messages: Vec<usize>,
    said: Vec<usize>,
    surprises: Vec<String>,
}

struct Stage {
    script: Script,
    arrived: Mutex<Arrived>,
    /// How many steps are done.
    progress: watch::Sender<usize>,
    /// Rises with everything that arrives.
    arrivals: watch::Sender<u64>,
}

impl Stage {
    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame of the balancer; clients are recognised by token and room, in their order.
    fn take(&self, text: &str) {
        let frame: Value = serde_json::from_str(text).unwrap_or_default();
        let payload = &frame["payload"];
        let field = |name: &str| payload[name].as_str().unwrap_or_default();
        let mut arrived = self.arrived();
        let arrived = &mut *arrived;
        let index_of = |arrived: &Arrived, id: &str| {
            let recorded = arrived.recorded.get(id)?;
            self.script.clients.iter().position(|client| client.recorded_id == *recorded)
        };
        match frame["type"].as_str().unwrap_or_default() {
            "join" => {
                let found = self.script.clients.iter().enumerate().find(|(index, client)| {
                    !arrived.joined[*index] && client.token == field("token") && client.room == field("room")
                });
                match found {
                    Some((index, client)) => {
                        arrived.joined[index] = true;
                        arrived.live.insert(client.recorded_id.clone(), field("client").to_owned());
                        arrived.recorded.insert(field("client").to_owned(), client.recorded_id.clone());
                    }
                    None => arrived.surprises.push(format!("join of {} that was not recorded", field("room"))),
                }
            }
            "leave" => match index_of(arrived, field("client")) {
                Some(index) => arrived.left[index] = true,
                None => arrived.surprises.push(format!("leave of unknown client {}", field("client"))),
            },
            "client_msg" => match index_of(arrived, field("client_id")) {
                Some(index) => {
                    let number = arrived.messages[index];
                    arrived.messages[index] += 1;
                    let expected = self.script.clients[index].messages.get(number).map(|(_, message)| message);
                    if raw_payload(text).as_ref() != expected {
                        arrived.surprises.push(format!("client {index} said {text}, recorded was {expected:?}"));
                    }
                }
                None => arrived.surprises.push(format!("message of unknown client {}", field("client_id"))),
            },
            "unload" => arrived.surprises.push(format!("unload of {}", field("room"))),
            _ => {}
        }
        self.arrivals.send_modify(|count| *count += 1);
    }

    /// Whether what a step needs has come; for a frame, the text with the ids of now.
    fn ready(&self, step: &Step) -> Option<Option<String>> {
        let mut arrived = self.arrived();
        match step {
            Step::Say { to: Some(to), .. } if !arrived.live.contains_key(to) && self.knows(to) => None,
            Step::Say { text, .. } => Some(Some(replace_ids(text, &arrived.live))),
            // A join is waited for by the first frame that needs it: a balancer may hold it back until then.
            Step::Join(_) => Some(None),
            // A client that was kicked first owes no leave.
            Step::Leave(index) => {
                (arrived.left[*index] || self.script.clients[*index].kicked.is_some()).then_some(None)
            }
            Step::Message(index) => {
                let done = arrived.said[*index] < arrived.messages[*index];
                arrived.said[*index] += usize::from(done);
                done.then_some(None)
            }
        }
    }

    fn knows(&self, recorded_id: &str) -> bool {
        self.script.clients.iter().any(|client| client.recorded_id == recorded_id)
    }
}

/// Puts ids into a text in the place of others. Ids are UUIDs, so a text is scanned once for that shape.
fn replace_ids(text: &str, ids: &HashMap<String, String>) -> String {
    const LENGTH: usize = 36;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(quote) = rest.find('"') {
        let (before, after) = rest.split_at(quote + 1);
        out.push_str(before);
        rest = after;
        let id = rest.get(..LENGTH).filter(|_| rest[LENGTH..].starts_with('"'));
        if let Some(id) = id.and_then(|id| ids.get(id)) {
            out.push_str(id);
            rest = &rest[LENGTH..];
        }
    }
    out.push_str(rest);
    out
}

/// A Monolith that plays a script to the first balancer that links to it.
pub struct Playback {
    stage: Arc<Stage>,
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Playback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Playback {
    /// Starts to listen on a free port. `http_port` goes into its `init`: the port of whatever serves HTTP beside it.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(script: Script, http_port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let clients = script.clients.len();
        let arrived = Arrived {
            joined: vec![false; clients],
            left: vec![false; clients],
            messages: vec![0; clients],
            said: vec![0; clients],
            ..Arrived::default()
        };
        let stage = Arc::new(Stage {
            script,
            arrived: Mutex::new(arrived),
            progress: watch::Sender::new(0),
            arrivals: watch::Sender::new(0),
        });
        let task = tokio::spawn(listen(stage.clone(), listener, http_port));
        Ok(Self { stage, addr, task })
    }

    /// Where the balancer dials.
    pub fn link_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What is played.
    pub fn script(&self) -> &Script {
        &self.stage.script
    }

    /// A text that the balancer under test delivered, with the recorded ids in the place of its own, to compare.
    pub fn as_recorded(&self, text: &str) -> String {
        replace_ids(text, &self.stage.arrived().recorded)
    }

    /// What came from the balancer that the recording does not explain.
    pub fn surprises(&self) -> Vec<String> {
        self.stage.arrived().surprises.clone()
    }

    /// Waits until `steps` steps are done.
    ///
    /// # Errors
    /// When they are not within `deadline`: the error tells which step it hangs at.
    pub async fn reached(&self, steps: usize, deadline: Duration) -> Result<(), TimedOut> {
        let mut progress = self.stage.progress.subscribe();
        let waited = tokio::time::timeout(deadline, progress.wait_for(|done| *done >= steps)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                let done = *self.stage.progress.borrow();
                Err(TimedOut::new(
                    deadline,
                    format!("playback waits at step {done}: {:?}", self.stage.script.steps.get(done)),
                ))
            }
        }
    }

    /// Waits until everything is played.
    ///
    /// # Errors
    /// As [`Self::reached`].
    pub async fn finished(&self, deadline: Duration) -> Result<(), TimedOut> {
        self.reached(self.stage.script.len(), deadline).await
    }
}

async fn listen(stage: Arc<Stage>, listener: TcpListener, http_port: u16) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        // A link that breaks off ends the play; the test that waits for its end says so.
        let _ = play(&stage, stream, http_port).await;
    }
}

async fn play(stage: &Stage, stream: TcpStream, http_port: u16) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let (mut sink, mut source) = tokio_tungstenite::accept_async(stream).await?.split();
    let id = uuid::Uuid::new_v4().to_string();
    let init = json!({"type": "init", "payload": {"port": http_port, "region": stage.script.region, "id": id}});
    sink.send(Message::text(init.to_string())).await?;
    let reading = async {
        while let Some(message) = source.next().await {
            if let Message::Text(text) = message? {
                stage.take(&text);
            }
        }
        Ok(())
    };
    let writing = async {
        let mut arrivals = stage.arrivals.subscribe();
        for step in &stage.script.steps {
            let text = loop {
                arrivals.borrow_and_update();
                match stage.ready(step) {
                    Some(text) => break text,
                    None if arrivals.changed().await.is_err() => return Ok(()),
                    None => {}
                }
            };
            if let Some(text) = text {
                sink.send(Message::text(text)).await?;
            }
            stage.progress.send_modify(|done| *done += 1);
        }
        // The play is over, and the link stays open.
        std::future::pending().await
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

/// How one client fared.
#[derive(Clone, Debug, PartialEq)]
pub struct Performance {
    /// What it was delivered, in order, with the recorded ids.
    pub delivered: Vec<String>,
    /// How its connection ended, if the balancer ended it.
    pub closed: Option<Closed>,
}

/// Plays one client of a script through the balancer at `addr`: it joins, speaks and leaves at the recorded steps,
/// and leaves only after it was delivered all that it must be.
///
/// # Errors
/// When it cannot connect, or something does not happen within `deadline`: the text tells what.
pub async fn perform(
    playback: &Playback,
    index: usize,
    addr: SocketAddr,
    deadline: Duration,
) -> Result<Performance, String> {
    let Some(script) = playback.script().client(index) else { return Err(format!("no client {index}")) };
    let told = |what: &str, error: &dyn std::fmt::Display| format!("client {index} {what}: {error}");
    playback.reached(script.joined_at, deadline).await.map_err(|error| told("waits to join", &error))?;
    let connect = Connect::room(addr, &script.room, &script.token);
    let mut client = connect.open().await.map_err(|error| told("connects", &error))?;
    let mut performance = Performance { delivered: Vec::new(), closed: None };
    for (step, message) in &script.messages {
        playback.reached(*step, deadline).await.map_err(|error| told("waits to speak", &error))?;
        client.send(message).await;
    }
    if let Some(step) = script.left_at {
        playback.reached(step, deadline).await.map_err(|error| told("waits to leave", &error))?;
    }
    let ends_by_itself = script.left_at.is_none() && script.kicked.is_some();
    while performance.delivered.len() < script.expected.len() || ends_by_itself {
        match client.recv(deadline).await {
            Ok(text) => performance.delivered.push(playback.as_recorded(&text)),
            Err(RecvError::Closed(closed)) => {
                performance.closed = Some(closed);
                return Ok(performance);
            }
            Err(error @ RecvError::TimedOut(_)) => {
                let (have, want) = (performance.delivered.len(), script.expected.len());
                return Err(told(&format!("has {have} of {want} messages"), &error));
            }
        }
    }
    if script.left_at.is_none() {
        // It stays to the end: what comes late would be too much.
        playback.finished(deadline).await.map_err(|error| told("stays", &error))?;
    }
    for text in client.take_ready() {
        performance.delivered.push(playback.as_recorded(&text));
    }
    leave(client).await;
    Ok(performance)
}

async fn leave(mut client: Client) {
    client.close(1000).await;
    // A balancer that does not answer the close frame has its own tests.
    let _ = client.closed(Duration::from_secs(5)).await;
}

#[cfg(test)]
mod tests;
