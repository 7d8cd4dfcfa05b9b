//! A simulated web client: authenticates with its first frame, collects what it gets, and notices how it is closed.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::TimedOut;

/// How many messages wait for a test before the client stops reading its socket.
const INBOX: usize = 16_384;
const OUTBOX: usize = 1_024;

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The close code; 1006 if the connection went without a close frame, 1005 if the frame had none.
    pub code: u16,
    /// The text of the close frame.
    pub reason: String,
}

/// Why a client could not connect.
#[derive(Debug)]
pub enum ConnectError {
    /// The server answered the upgrade with this status and body instead.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The headers, names in lower case.
        headers: Vec<(String, String)>,
        /// The body, as far as it came with the head.
        body: String,
    },
    /// There was no connection, or no HTTP on it.
    Failed(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, body, .. } => write!(f, "upgrade refused with {status}: {body}"),
            Self::Failed(reason) => write!(f, "cannot connect: {reason}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Why no message came.
#[derive(Clone, Debug, PartialEq)]
pub enum RecvError {
    /// The connection has ended, and every message was taken.
    Closed(Closed),
    /// Nothing came in time.
    TimedOut(TimedOut),
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(closed) => write!(f, "closed with {} {:?}", closed.code, closed.reason),
            Self::TimedOut(timed_out) => timed_out.fmt(f),
        }
    }
}

impl std::error::Error for RecvError {}

/// What a client connects with.
#[derive(Clone, Debug)]
pub struct Connect {
    addr: SocketAddr,
    path: String,
    token: Option<String>,
    headers: Vec<(String, String)>,
    reconnect: bool,
}

impl Connect {
    /// To this room of the balancer at `addr`, with this token.
    pub fn room(addr: SocketAddr, room: &str, token: &str) -> Self {
        let path = format!("/api/room/{room}");
        Self { addr, path, token: Some(token.to_owned()), headers: Vec::new(), reconnect: false }
    }

    /// To any path, without authenticating.
    pub fn path(addr: SocketAddr, path: &str) -> Self {
        Self { addr, path: path.to_owned(), token: None, headers: Vec::new(), reconnect: false }
    }

    /// Sends no `auth`.
    #[must_use]
    pub fn silent(self) -> Self {
        Self { token: None, ..self }
    }

    /// Adds `?reconnect=true`, as the web client does when it comes back.
    #[must_use]
    pub fn reconnecting(self) -> Self {
        Self { reconnect: true, ..self }
    }

    /// Adds a header to the upgrade request, such as `fly-region`.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Connects, and authenticates if there is a token.
    ///
    /// # Errors
    /// When the connection fails or the upgrade is refused.
    pub async fn open(self) -> Result<Client, ConnectError> {
        let failed = |error: &dyn fmt::Display| ConnectError::Failed(error.to_string());
        let query = if self.reconnect { "?reconnect=true" } else { "" };
        let url = format!("ws://{}{}{query}", self.addr, self.path);
        let mut request = url.into_client_request().map_err(|error| failed(&error))?;
        for (name, value) in &self.headers {
            let name = HeaderName::try_from(name.as_str()).map_err(|error| failed(&error))?;
            let value = HeaderValue::try_from(value.as_str()).map_err(|error| failed(&error))?;
            request.headers_mut().append(name, value);
        }
        let stream = TcpStream::connect(self.addr).await.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        // The default buffer of 128 KiB is too much for tests with thousands of clients.
        let config = WebSocketConfig::default().read_buffer_size(4 * 1024);
        let mut socket = match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => socket,
            Err(Error::Http(response)) => {
                let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
                let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
                return Err(ConnectError::Refused { status: response.status().as_u16(), headers, body });
            }
            Err(error) => return Err(failed(&error)),
        };
        if let Some(token) = &self.token {
            let auth = format!(r#"{{"action":"auth","token":{}}}"#, Value::from(token.as_str()));
            socket.send(Message::text(auth)).await.map_err(|error| failed(&error))?;
        }
        let (inbox_sender, inbox) = mpsc::channel(INBOX);
        let (outbox, orders) = mpsc::channel(OUTBOX);
        let task = tokio::spawn(run(socket, orders, inbox_sender));
        Ok(Client { inbox, outbox, closed: None, task })
    }
}

/// A connected client. When it is dropped, its connection goes without a close frame.
pub struct Client {
    inbox: mpsc::Receiver<Arrived>,
    outbox: mpsc::Sender<Message>,
    closed: Option<Closed>,
    task: JoinHandle<()>,
}

enum Arrived {
    Text(Utf8Bytes),
    Closed(Closed),
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut socket: WebSocketStream<TcpStream>,
    mut orders: mpsc::Receiver<Message>,
    inbox: mpsc::Sender<Arrived>,
) {
    let mut closed = None;
    let mut ordering = true;
    loop {
        tokio::select! {
            order = orders.recv(), if ordering => match order {
                Some(order) => {
                    // A connection that cannot be written to ends with the next read.
                    ordering = socket.send(order).await.is_ok();
                }
                None => ordering = false,
            },
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    if inbox.send(Arrived::Text(text)).await.is_err() {
                        return;
                    }
                }
                Some(Ok(Message::Close(frame))) => closed = Some(closed_by(frame)),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
    }
    drop(socket);
    let closed = closed.unwrap_or_else(|| Closed { code: 1006, reason: String::new() });
    // Nobody may be listening any more.
    let _ = inbox.send(Arrived::Closed(closed)).await;
}

fn closed_by(frame: Option<CloseFrame>) -> Closed {
    frame.map_or_else(
        || Closed { code: 1005, reason: String::new() },
        |frame| Closed { code: frame.code.into(), reason: frame.reason.as_str().to_owned() },
    )
}

impl Client {
    /// Connects to a room and authenticates.
    ///
    /// # Errors
    /// When the connection fails or the upgrade is refused.
    pub async fn join(addr: SocketAddr, room: &str, token: &str) -> Result<Self, ConnectError> {
        Connect::room(addr, room, token).open().await
    }

    /// Sends a text frame. Without effect once the connection has ended.
    pub async fn send(&self, text: &str) {
        let _ = self.outbox.send(Message::text(text)).await;
    }

    /// Sends a chat message, as the web client writes it.
    pub async fn chat(&self, text: &str) {
        self.send(&format!(r#"{{"action":"req","request":{{"type":11,"text":{}}}}}"#, Value::from(text))).await;
    }

    /// Sends a binary frame.
    pub async fn send_binary(&self, bytes: Vec<u8>) {
        let _ = self.outbox.send(Message::binary(bytes)).await;
    }

    /// Sends a close frame with this code.
    pub async fn close(&self, code: u16) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: Utf8Bytes::default() };
        let _ = self.outbox.send(Message::Close(Some(frame))).await;
    }

    /// The next message.
    ///
    /// # Errors
    /// When the connection has ended, or nothing came within `deadline`.
    pub async fn recv(&mut self, deadline: Duration) -> Result<Utf8Bytes, RecvError> {
        if let Some(closed) = &self.closed {
            return Err(RecvError::Closed(closed.clone()));
        }
        match timeout_at(Instant::now() + deadline, self.inbox.recv()).await {
            Ok(Some(Arrived::Text(text))) => Ok(text),
            Ok(Some(Arrived::Closed(closed))) => {
                self.closed = Some(closed.clone());
                Err(RecvError::Closed(closed))
            }
            // The task reports the end before it goes, so this is a task that was aborted.
            Ok(None) => Err(RecvError::Closed(Closed { code: 1006, reason: String::new() })),
            Err(_) => Err(RecvError::TimedOut(TimedOut::new(deadline, "no message".to_owned()))),
        }
    }

    /// The next message as JSON; null if it is none.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub async fn recv_json(&mut self, deadline: Duration) -> Result<Value, RecvError> {
        let text = self.recv(deadline).await?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// The first message that `wanted` holds for; those before it are dropped.
    ///
    /// # Errors
    /// As [`Self::recv`]; the deadline is for the whole search.
    pub async fn recv_until(
        &mut self,
        deadline: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Result<Utf8Bytes, RecvError> {
        let end = Instant::now() + deadline;
        loop {
            let text = self.recv(end.saturating_duration_since(Instant::now())).await?;
            if wanted(&text) {
                return Ok(text);
            }
        }
    }

    /// Waits for the full state, with which every join ends well.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub async fn synced(&mut self, deadline: Duration) -> Result<Utf8Bytes, RecvError> {
        self.recv_until(deadline, |text| text.starts_with(r#"{"action":"sync","name""#)).await
    }

    /// Every message that is here by now, without waiting.
    pub fn take_ready(&mut self) -> Vec<Utf8Bytes> {
        let mut texts = Vec::new();
        while let Ok(arrived) = self.inbox.try_recv() {
            match arrived {
                Arrived::Text(text) => texts.push(text),
                Arrived::Closed(closed) => self.closed = Some(closed),
            }
        }
        texts
    }

    /// Waits for the end of the connection and drops the messages before it.
    ///
    /// # Errors
    /// When it is still open after `deadline`.
    pub async fn closed(&mut self, deadline: Duration) -> Result<Closed, TimedOut> {
        match self.recv_until(deadline, |_| false).await {
            Err(RecvError::Closed(closed)) => Ok(closed),
            Err(RecvError::TimedOut(_)) | Ok(_) => Err(TimedOut::new(deadline, "the connection is open".to_owned())),
        }
    }
}
