//! A small HTTP client: one connection for each request, nothing followed, nothing decoded.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Bytes;

/// The longest that one request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much [`raw`] reads at most.
const RAW_LIMIT: usize = 64 * 1024 * 1024;

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Header names in lower case with their values, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Sends one request and reads the answer.
///
/// # Errors
/// When the connection fails, what comes back is not HTTP, or it takes longer than 30 s.
pub async fn request(
    addr: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> io::Result<Answer> {
    let body = body.into();
    tokio::time::timeout(PATIENCE, async {
        let (response, driver) = send(addr, method, target, headers, Full::new(body)).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        driver.abort();
        let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        Ok(Answer { status: parts.status.as_u16(), headers, body })
    })
    .await?
}

async fn send(
    addr: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: Full<Bytes>,
) -> io::Result<(Response<hyper::body::Incoming>, tokio::task::JoinHandle<()>)> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let driver = tokio::spawn(async move {
        // What goes wrong here also reaches the request.
        let _ = connection.await;
    });
    let mut request = Request::builder().method(method).uri(target);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", addr.to_string());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    Ok((response, driver))
}

/// `GET`.
///
/// # Errors
/// As [`request`].
pub async fn get(addr: SocketAddr, target: &str) -> io::Result<Answer> {
    request(addr, "GET", target, &[], Bytes::new()).await
}

/// `GET` with headers.
///
/// # Errors
/// As [`request`].
pub async fn get_with(addr: SocketAddr, target: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    request(addr, "GET", target, headers, Bytes::new()).await
}

/// `POST` of a JSON text.
///
/// # Errors
/// As [`request`].
pub async fn post(addr: SocketAddr, target: &str, json: &str) -> io::Result<Answer> {
    request(addr, "POST", target, &[("content-type", "application/json")], json.to_owned()).await
}

/// Writes bytes and returns what comes back until the other side closes or `wait` has passed.
///
/// # Errors
/// When there is no connection. One that breaks off later is an end like another.
pub async fn raw(addr: SocketAddr, bytes: &[u8], wait: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    stream.write_all(bytes).await?;
    let mut read = Vec::new();
    let reading =
        async { while read.len() < RAW_LIMIT && stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {} };
    // Both ends are answers: what was read so far counts.
    let _ = tokio::time::timeout(wait, reading).await;
    Ok(read)
}
