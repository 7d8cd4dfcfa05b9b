//! What several integration tests need: the fixtures, unpacked, and a balancer so simple that it is plainly right.
#![allow(dead_code, clippy::unwrap_used, reason = "every test binary uses a part of it, and a helper may panic")]

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use usher::testkit::recording::Recording;

/// Reads a recording of `tests/fixtures`, packed or not.
pub(crate) fn recording(name: &str) -> Recording {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let plain = folder.join(format!("{name}.jsonl"));
    let text = if plain.exists() {
        std::fs::read_to_string(plain).unwrap()
    } else {
        let packed = std::fs::File::open(folder.join(format!("{name}.jsonl.gz"))).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        text
    };
    Recording::parse(&text).unwrap()
}

struct Member {
    room: String,
    answered: bool,
    inbox: mpsc::UnboundedSender<Option<Utf8Bytes>>,
}

type Members = Arc<Mutex<HashMap<String, Member>>>;

/// A balancer for one Monolith: no limits, no recovery, no policy. It is the yardstick for a playback.
pub(crate) struct PlainBalancer {
    pub(crate) addr: SocketAddr,
    _tasks: JoinSet<()>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Msg<'a> {
    room: Option<String>,
    client_id: Option<String>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

impl PlainBalancer {
    pub(crate) async fn start(monolith: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let link = TcpStream::connect(monolith).await.unwrap();
        let (link, _) = tokio_tungstenite::client_async(format!("ws://{monolith}/"), link).await.unwrap();
        let (mut sink, mut source) = link.split();
        let members = Members::default();
        let (to_link, mut orders) = mpsc::unbounded_channel::<String>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let init = json!({"type": "init", "payload": {"id": uuid::Uuid::new_v4().to_string()}});
            sink.send(Message::text(init.to_string())).await.unwrap();
            while let Some(order) = orders.recv().await {
                if sink.send(Message::text(order)).await.is_err() {
                    return;
                }
            }
        });
        let table = members.clone();
        tasks.spawn(async move {
            while let Some(Ok(Message::Text(text))) = source.next().await {
                deliver(&table, &text);
            }
        });
        tasks.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(serve(stream, members.clone(), to_link.clone()));
            }
        });
        Self { addr, _tasks: tasks }
    }
}

fn deliver(members: &Members, text: &str) {
    let Ok(Envelope { kind, payload }) = serde_json::from_str(text) else { return };
    let Ok(message) = serde_json::from_str::<Msg<'_>>(payload.get()) else { return };
    let mut members = members.lock().unwrap();
    match (kind.as_str(), message.payload, message.client_id) {
        ("room_msg", Some(payload), Some(id)) => {
            if let Some(member) = members.get_mut(&id) {
                member.answered = true;
                let _ = member.inbox.send(Some(payload.get().into()));
            }
        }
        ("room_msg", Some(payload), None) => {
            let room = message.room.unwrap_or_default();
            for member in members.values().filter(|member| member.answered && member.room.eq_ignore_ascii_case(&room)) {
                let _ = member.inbox.send(Some(payload.get().into()));
            }
        }
        ("kick", _, Some(id)) => {
            if let Some(member) = members.remove(&id) {
                let _ = member.inbox.send(None);
            }
        }
        _ => {}
    }
}

async fn serve(stream: TcpStream, members: Members, to_link: mpsc::UnboundedSender<String>) {
    let mut room = String::new();
    #[allow(clippy::result_large_err, reason = "the signature is the library's")]
    let note_room = |request: &Request, response: Response| {
        room = request.uri().path().trim_start_matches("/api/room/").to_owned();
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, note_room).await.unwrap();
    let Some(Ok(Message::Text(auth))) = socket.next().await else { return };
    let token = serde_json::from_str::<Value>(&auth).unwrap()["token"].clone();
    let id = uuid::Uuid::new_v4().to_string();
    let (inbox, mut mail) = mpsc::unbounded_channel();
    members.lock().unwrap().insert(id.clone(), Member { room: room.clone(), answered: false, inbox });
    let join = json!({"type": "join", "payload": {"room": room, "client": id, "token": token}});
    to_link.send(join.to_string()).unwrap();
    loop {
        tokio::select! {
            letter = mail.recv() => match letter {
                Some(Some(text)) => if socket.send(Message::Text(text)).await.is_err() { break },
                // Kicked: no leave is due.
                Some(None) | None => {
                    let _ = socket.close(None).await;
                    return;
                }
            },
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let frame = format!(r#"{{"type":"client_msg","payload":{{"client_id":"{id}","payload":{text}}}}}"#);
                    to_link.send(frame).unwrap();
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            },
        }
    }
    members.lock().unwrap().remove(&id);
    let _ = to_link.send(json!({"type": "leave", "payload": {"client": id}}).to_string());
}
