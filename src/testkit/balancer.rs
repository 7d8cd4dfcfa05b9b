//! A hand that plays balancer on the link of a Monolith: for tests of the simulation itself, and to see what a
//! Monolith says without a balancer in between.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use uuid::Uuid;

/// One link, driven frame by frame.
pub struct RawLink {
    socket: WebSocketStream<TcpStream>,
}

/// What came on a link.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    /// A text frame that holds JSON.
    Frame(Value),
    /// A text frame that does not.
    Text(String),
    /// A binary frame.
    Binary(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame: its code (1005 if none) and reason.
    Close(u16, String),
    /// The end of the connection without a close frame, or after it.
    End,
}

impl Received {
    /// The `type` of a frame; a word for everything else.
    pub fn kind(&self) -> &str {
        match self {
            Self::Frame(frame) => frame["type"].as_str().unwrap_or("untyped"),
            Self::Text(_) => "text",
            Self::Binary(_) => "binary",
            Self::Pong(_) => "pong",
            Self::Close(..) => "close",
            Self::End => "end",
        }
    }
}

impl RawLink {
    /// Dials and sends nothing.
    ///
    /// # Errors
    /// When there is no connection or no WebSocket.
    pub async fn dial(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (socket, _) =
            tokio_tungstenite::client_async(format!("ws://{addr}/"), stream).await.map_err(io::Error::other)?;
        Ok(Self { socket })
    }

    /// Dials and sends an `init` with a fresh id.
    ///
    /// # Errors
    /// As [`Self::dial`].
    pub async fn open(addr: SocketAddr) -> io::Result<Self> {
        let mut link = Self::dial(addr).await?;
        link.send("init", json!({ "id": Uuid::new_v4().to_string() })).await;
        Ok(link)
    }

    /// [`Self::open`], and takes the two first frames: `init` and `gossip`.
    ///
    /// # Errors
    /// As [`Self::dial`]; also when other frames came.
    pub async fn linked(addr: SocketAddr) -> io::Result<Self> {
        let mut link = Self::open(addr).await?;
        for kind in ["init", "gossip"] {
            let received = link.next(Duration::from_secs(10)).await?;
            if received.kind() != kind {
                return Err(io::Error::other(format!("expected {kind}, got {received:?}")));
            }
        }
        Ok(link)
    }

    /// Sends a frame. Without effect once the connection has ended.
    pub async fn send(&mut self, kind: &str, payload: Value) {
        self.send_text(&json!({ "type": kind, "payload": payload }).to_string()).await;
    }

    /// Sends a `join`.
    pub async fn join(&mut self, room: &str, client: &str, token: &str) {
        self.send("join", json!({ "room": room, "client": client, "token": token })).await;
    }

    /// Sends a text frame as it stands.
    pub async fn send_text(&mut self, text: &str) {
        let _ = self.socket.send(Message::text(text)).await;
    }

    /// Sends any message.
    pub async fn send_message(&mut self, message: Message) {
        let _ = self.socket.send(message).await;
    }

    /// What comes next.
    ///
    /// # Errors
    /// When nothing came within `deadline`.
    pub async fn next(&mut self, deadline: Duration) -> io::Result<Received> {
        let message = timeout(deadline, self.socket.next()).await?;
        Ok(match message {
            Some(Ok(Message::Text(text))) => {
                serde_json::from_str(&text).map_or_else(|_| Received::Text(text.to_string()), Received::Frame)
            }
            Some(Ok(Message::Binary(bytes))) => Received::Binary(bytes.to_vec()),
            Some(Ok(Message::Pong(bytes) | Message::Ping(bytes))) => Received::Pong(bytes.to_vec()),
            Some(Ok(Message::Close(frame))) => frame.map_or_else(
                || Received::Close(1005, String::new()),
                |frame| Received::Close(frame.code.into(), frame.reason.as_str().to_owned()),
            ),
            Some(Ok(Message::Frame(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed | _)) | None => {
                Received::End
            }
        })
    }

    /// The next frames, as many as asked for.
    ///
    /// # Errors
    /// When they did not all come within `deadline` each.
    pub async fn take(&mut self, count: usize, deadline: Duration) -> io::Result<Vec<Received>> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(self.next(deadline).await?);
        }
        Ok(all)
    }

    /// What comes before the answer to a ping that is sent now: everything that the Monolith said until then.
    ///
    /// # Errors
    /// When no pong came within `deadline`.
    pub async fn until_pong(&mut self, deadline: Duration) -> io::Result<Vec<Received>> {
        self.send_message(Message::Ping(b"now".as_slice().into())).await;
        let mut all = Vec::new();
        loop {
            match self.next(deadline).await? {
                Received::Pong(_) => return Ok(all),
                Received::End => return Err(io::Error::other(format!("the link ended after {all:?}"))),
                received => all.push(received),
            }
        }
    }
}
