//! One recorded link, made ready to be played: its steps, and what each client did and must be delivered.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use serde_json::value::RawValue;

use super::super::recording::{Direction, Recording};

/// One step of a link, at its place in the recording.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// The Monolith sent this frame; if it is for one client, that client must have joined.
    Say { text: String, to: Option<String> },
    /// The balancer sent a `join`: its index in [`Script::clients`].
    Join(usize),
    /// The balancer sent a `leave`.
    Leave(usize),
    /// The balancer passed a message on.
    Message(usize),
}

/// One client of a recorded link.
#[derive(Clone, Debug, PartialEq)]
pub struct ScriptClient {
    /// The room, as the client spelled it.
    pub room: String,
    /// Its token; several clients may share one.
    pub token: String,
    /// The id that the recorded balancer minted.
    pub recorded_id: String,
    /// What it sent after its `auth`, each with the step at which it reached the Monolith.
    pub messages: Vec<(usize, String)>,
    /// The payloads that the link had for it, in the order of the link: from the first unicast on until it left.
    pub expected: Vec<String>,
    /// The code that it was kicked with.
    pub kicked: Option<Value>,
    pub(super) joined_at: usize,
    pub(super) left_at: Option<usize>,
}

/// One recorded link, made ready to be played.
#[derive(Clone, Debug)]
pub struct Script {
    pub(super) region: String,
    pub(super) steps: Vec<Step>,
    pub(super) clients: Vec<ScriptClient>,
}

/// A `room_msg` of a recording; the payload stays as it was written.
#[derive(serde::Deserialize)]
struct RoomMsg<'a> {
    room: String,
    client_id: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(serde::Deserialize)]
struct Wrapped<'a> {
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl Script {
    /// The script of the link to Monolith number `monolith`, on its connection number `generation`.
    pub fn new(recording: &Recording, monolith: u32, generation: u32) -> Self {
        let conn = format!("balancer-monolith:{monolith}");
        let mut script = Self { region: "ewr".to_owned(), steps: Vec::new(), clients: Vec::new() };
        // Who is in which room, and has had a first unicast, at this point of the link.
        let mut present: HashMap<String, usize> = HashMap::new();
        let mut answered: HashSet<usize> = HashSet::new();
        for event in recording.events() {
            if event.conn != conn || event.generation != generation {
                continue;
            }
            let (Some(text), Some((kind, payload))) = (event.frame(), event.link_message()) else { continue };
            let field = |name: &str| payload[name].as_str().unwrap_or_default().to_owned();
            let at = script.steps.len();
            match (event.direction, kind.as_str()) {
                // A balancer may refuse these by itself, so nothing can wait for their join.
                (Some(Direction::B2m), "join") if field("token").is_empty() || !is_room_name(&field("room")) => {}
                (Some(Direction::B2m), "join") => {
                    let index = script.clients.len();
                    present.insert(field("client"), index);
                    script.steps.push(Step::Join(index));
                    script.clients.push(ScriptClient {
                        room: field("room"),
                        token: field("token"),
                        recorded_id: field("client"),
                        messages: Vec::new(),
                        expected: Vec::new(),
                        kicked: None,
                        joined_at: at,
                        left_at: None,
                    });
                }
                (Some(Direction::B2m), "leave") => {
                    if let Some(index) = present.remove(&field("client")) {
                        script.steps.push(Step::Leave(index));
                        script.clients[index].left_at = Some(at);
                    }
                }
                (Some(Direction::B2m), "client_msg") => {
                    let message = raw_payload(text).filter(|message| message.starts_with('{'));
                    if let (Some(index), Some(message)) = (present.get(&field("client_id")), message) {
                        script.steps.push(Step::Message(*index));
                        script.clients[*index].messages.push((at, message));
                    }
                }
                (Some(Direction::M2b), "init") => script.region = field("region"),
                (Some(Direction::M2b), _) => {
                    let to = payload["client_id"].as_str().map(str::to_owned);
                    script.hear(text, &kind, &payload, &mut present, &mut answered);
                    script.steps.push(Step::Say { text: text.to_owned(), to });
                }
                _ => {}
            }
        }
        script
    }

    /// Notes for whom a frame of the Monolith is.
    fn hear(
        &mut self,
        text: &str,
        kind: &str,
        payload: &Value,
        present: &mut HashMap<String, usize>,
        answered: &mut HashSet<usize>,
    ) {
        match kind {
            "room_msg" => {
                let Ok(Wrapped { payload }) = serde_json::from_str::<Wrapped<'_>>(text) else { return };
                let Ok(message) = serde_json::from_str::<RoomMsg<'_>>(payload.get()) else { return };
                for (id, index) in present.iter() {
                    let mine = match &message.client_id {
                        Some(to) => to == id,
                        // A broadcast before the first unicast is not for a client that just joined.
                        None => {
                            answered.contains(index) && self.clients[*index].room.eq_ignore_ascii_case(&message.room)
                        }
                    };
                    if mine {
                        answered.insert(*index);
                        self.clients[*index].expected.push(message.payload.get().to_owned());
                    }
                }
            }
            "kick" => {
                if let Some(index) = payload["client_id"].as_str().and_then(|id| present.remove(id)) {
                    self.clients[index].kicked = Some(payload["reason"].clone());
                }
            }
            "unloaded" => {
                let name = payload["name"].as_str().unwrap_or_default();
                present.retain(|_, index| !self.clients[*index].room.eq_ignore_ascii_case(name));
            }
            _ => {}
        }
    }

    /// The same run with every room reported loaded before its first join, if nothing was said about it before. In some
    /// recordings joins crossed; a balancer that sends the first join of a room alone would wait for its report.
    #[must_use]
    pub fn with_early_reports(self) -> Self {
        let mut reported: HashSet<String> = HashSet::new();
        let (mut steps, mut moved) = (Vec::new(), Vec::new());
        for step in self.steps {
            match &step {
                Step::Say { text, .. } => {
                    let frame: Value = serde_json::from_str(text).unwrap_or_default();
                    let name = frame["payload"]["room"]["name"].as_str();
                    reported.extend(name.map(str::to_ascii_lowercase));
                }
                Step::Join(index) if reported.insert(self.clients[*index].room.to_ascii_lowercase()) => {
                    let room = serde_json::json!({"name": self.clients[*index].room});
                    let payload = serde_json::json!({"room": room, "load_epoch": 1});
                    let text = serde_json::json!({"type": "loaded", "payload": payload}).to_string();
                    steps.push(Step::Say { text, to: None });
                }
                Step::Join(_) | Step::Leave(_) | Step::Message(_) => {}
            }
            moved.push(steps.len());
            steps.push(step);
        }
        let to = |at: usize| moved.get(at).copied().unwrap_or(at);
        let mut clients = self.clients;
        for client in &mut clients {
            client.joined_at = to(client.joined_at);
            client.left_at = client.left_at.map(to);
            client.messages.iter_mut().for_each(|(at, _)| *at = to(*at));
        }
        Self { region: self.region, steps, clients }
    }

    /// The clients, in the order of their joins.
    pub fn clients(&self) -> &[ScriptClient] {
        &self.clients
    }

    /// One client.
    pub fn client(&self, index: usize) -> Option<&ScriptClient> {
        self.clients.get(index)
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

fn is_room_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// The payload of a `client_msg`, as it was written.
pub(super) fn raw_payload(text: &str) -> Option<String> {
    let Wrapped { payload } = serde_json::from_str(text).ok()?;
    let Wrapped { payload } = serde_json::from_str(payload.get()).ok()?;
    Some(payload.get().to_owned())
}
