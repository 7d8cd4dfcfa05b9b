//! The HTTP server of a simulated Monolith: a connection, what it may turn into, and which handler a path has.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::{SinkExt, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::records::HttpRecord;
use super::shared::Shared;
use super::{endpoints, rooms};

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// What a connection becomes after a request, instead of being served further.
enum Takeover {
    /// These bytes are written as they stand, and the connection is closed.
    Raw(&'static [u8]),
    /// A WebSocket that echoes, or is closed at once.
    WebSocket { upgrade: OnUpgrade, echo: bool },
}

#[derive(Default)]
pub(super) struct Connection {
    takeover: Mutex<Option<Takeover>>,
    raw: Notify,
}

impl Connection {
    fn set(&self, takeover: Takeover) {
        *self.takeover.lock().unwrap_or_else(PoisonError::into_inner) = Some(takeover);
    }

    fn take(&self) -> Option<Takeover> {
        self.takeover.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Leaves HTTP: the answer is these bytes. Never returns, because there is no response to give.
    pub(super) async fn answer_raw(&self, bytes: &'static [u8]) -> Response<Body> {
        self.set(Takeover::Raw(bytes));
        self.raw.notify_one();
        std::future::pending().await
    }
}

pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let connection = Arc::new(Connection::default());
    let idle = shared.look(|state| state.knobs.http_idle);
    let handler = {
        let (shared, connection) = (shared.clone(), connection.clone());
        service_fn(move |request| {
            let (shared, connection) = (shared.clone(), connection.clone());
            async move { Ok::<_, Infallible>(respond(&shared, &connection, request).await) }
        })
    };
    let mut http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), handler)
        .with_upgrades();
    tokio::select! {
        // A client that breaks off is none of our concern.
        _ = &mut http => {}
        () = connection.raw.notified() => {}
    }
    match connection.take() {
        Some(Takeover::Raw(bytes)) => {
            if let Some(parts) = http.into_parts() {
                let mut stream = parts.io.into_inner();
                // Whether the other side takes it is what its test asks.
                let _ = stream.write_all(bytes).await;
                let _ = stream.shutdown().await;
            }
        }
        Some(Takeover::WebSocket { upgrade, echo }) => {
            if let Ok(upgraded) = upgrade.await {
                // The end of the connection is the end of the echo.
                let _ = websocket(TokioIo::new(upgraded), echo).await;
            }
        }
        None => {}
    }
}

async fn websocket(
    stream: TokioIo<hyper::upgrade::Upgraded>,
    echo: bool,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    if !echo {
        let reason = "Invalid connection url".into();
        socket.close(Some(CloseFrame { code: CloseCode::from(4001), reason })).await?;
    }
    while let Some(message) = socket.next().await {
        let message = message?;
        if echo && (message.is_text() || message.is_binary()) {
            socket.send(message).await?;
        }
    }
    Ok(())
}

async fn respond(shared: &Shared, connection: &Connection, request: Request<Incoming>) -> Response<Body> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    shared.change(|state| {
        state.http.push_with(|| HttpRecord {
            at: Instant::now(),
            method: request.method().to_string(),
            target: target.clone(),
            headers: header_pairs(&request),
        });
    });
    let path = request.uri().path().to_owned();
    if let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) {
        return upgrade(connection, key.clone(), path.starts_with("/ws"), request);
    }
    match path.strip_prefix("/api/room/").filter(|rest| !rest.is_empty()) {
        Some(rest) => rooms::respond(shared, rest, request).await,
        None => endpoints::respond(shared, connection, &path, request).await,
    }
}

fn upgrade(connection: &Connection, key: HeaderValue, echo: bool, mut request: Request<Incoming>) -> Response<Body> {
    connection.set(Takeover::WebSocket { upgrade: hyper::upgrade::on(&mut request), echo });
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

pub(super) fn header_pairs(request: &Request<Incoming>) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

pub(super) fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

pub(super) fn empty() -> Body {
    full(Bytes::new())
}

pub(super) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    answer(status, "application/json; charset=utf-8", body)
}
