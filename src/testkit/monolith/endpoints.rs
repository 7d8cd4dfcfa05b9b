//! The routes that name no room: the few that the real server has, and many that try a proxy's patience.
//!
//! | path | does |
//! | --- | --- |
//! | `/api/status`, `/api/status/metrics`, `/api/auth/grant` | as the real server |
//! | `/echo...` | JSON of what arrived: method, target, headers, length and text of the body |
//! | `/upload` | reads the body piece by piece: `{"bytes":N}` |
//! | `/stream/N` | N bytes, without a length |
//! | `/sized/N` | N bytes, with a length |
//! | `/drip/N/MS` | N bytes, one every MS milliseconds |
//! | `/trailers` | a chunked body, then the trailer `x-sum: 42` |
//! | `/slow/MS` | the head after MS milliseconds |
//! | `/hang`, `/hang-body` | never a head; a head and five bytes, then nothing |
//! | `/status/CODE` | that status, such as 204 or 304, with an ETag |
//! | `/raw/early-hints`, `/raw/trailers`, `/raw/truncated`, `/raw/garbage`, `/raw/reset` | bytes written by hand |
//! | `/ws...` with an upgrade | a WebSocket that echoes; on any other path it is closed with 4001 |

use std::io;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, TRAILER};
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio_tungstenite::tungstenite::Bytes;
use uuid::Uuid;

use super::http::{Body, Connection, answer, empty, header_pairs, json as json_answer};
use super::shared::Shared;

const PIECE: usize = 16 * 1024;
/// How much of a body `/echo` repeats.
const ECHO_LIMIT: usize = 64 * 1024;

const EARLY_HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n\
    HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
const TRAILERS: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n\
    5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n";
const TRUNCATED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello";
const GARBAGE: &[u8] = b"this is no HTTP\r\n\r\n";

/// Answers a request outside `/api/room/`.
pub(super) async fn respond(
    shared: &Shared,
    connection: &Connection,
    path: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", "status"] => json_answer(StatusCode::OK, r#"{"status":"ok"}"#),
        ["api", "status", "metrics"] => answer(StatusCode::OK, "text/plain; version=0.0.4", metrics(shared)),
        ["api", "auth", "grant"] => json_answer(StatusCode::OK, format!(r#"{{"token":"{}"}}"#, Uuid::new_v4())),
        ["echo", ..] => echo(request).await,
        ["upload"] => upload(request).await,
        ["stream", length] => streamed(number(length), None),
        ["sized", length] => streamed(number(length), Some(number(length))),
        ["drip", count, pause] => drip(number(count), Duration::from_millis(number(pause))),
        ["trailers"] => trailers(),
        ["slow", pause] => {
            tokio::time::sleep(Duration::from_millis(number(pause))).await;
            json_answer(StatusCode::OK, r#"{"slow":true}"#)
        }
        ["hang"] => std::future::pending().await,
        ["hang-body"] => hanging_body(),
        ["status", code] => status(number(code)),
        ["raw", "early-hints"] => connection.answer_raw(EARLY_HINTS).await,
        ["raw", "trailers"] => connection.answer_raw(TRAILERS).await,
        ["raw", "truncated"] => connection.answer_raw(TRUNCATED).await,
        ["raw", "garbage"] => connection.answer_raw(GARBAGE).await,
        ["raw", "reset"] => connection.answer_raw(b"").await,
        _ => answer(StatusCode::NOT_FOUND, "text/html; charset=utf-8", "File not found - Client files not found."),
    }
}

/// A number in a path; what is none counts as zero.
fn number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

fn metrics(shared: &Shared) -> String {
    shared.look(|state| {
        format!(
            "nodejs_eventloop_lag_seconds 0.01\nott_room_count {}\nott_users_in_rooms {}\n{}",
            state.rooms().len(),
            state.client_count(),
            state.knobs.metrics
        )
    })
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let method = request.method().to_string();
    let target = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let version = format!("{:?}", request.version());
    let headers = header_pairs(&request);
    let mut body = request.into_body();
    let (mut length, mut kept) = (0, Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            length += data.len();
            let room = ECHO_LIMIT.saturating_sub(kept.len());
            kept.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
        }
    }
    let text = String::from_utf8_lossy(&kept);
    let document = json!({ "method": method, "target": target, "version": version, "headers": headers,
        "body_len": length, "body": text });
    json_answer(StatusCode::OK, document.to_string())
}

async fn upload(request: Request<Incoming>) -> Response<Body> {
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return json_answer(StatusCode::BAD_REQUEST, r#"{"error":"body broke off"}"#) };
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    json_answer(StatusCode::OK, format!(r#"{{"bytes":{bytes}}}"#))
}

fn body_of(frames: impl futures_util::Stream<Item = Result<Frame<Bytes>, io::Error>> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(frames))
}

fn streamed(length: u64, announced: Option<u64>) -> Response<Body> {
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let frames = stream::unfold(length, move |left| {
        let size = left.min(PIECE as u64);
        let data = piece.slice(..size as usize);
        async move { (left > 0).then(|| (Ok(Frame::data(data)), left - size)) }
    });
    let mut response = Response::new(body_of(frames));
    if let Some(length) = announced {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

fn drip(count: u64, pause: Duration) -> Response<Body> {
    Response::new(body_of(stream::unfold(count, move |left| async move {
        if left == 0 {
            return None;
        }
        tokio::time::sleep(pause).await;
        Some((Ok(Frame::data(Bytes::from_static(b"."))), left - 1))
    })))
}

fn trailers() -> Response<Body> {
    let mut last = HeaderMap::new();
    last.insert("x-sum", HeaderValue::from_static("42"));
    let frames = [Ok(Frame::data(Bytes::from_static(b"hello"))), Ok(Frame::trailers(last))];
    let mut response = Response::new(body_of(stream::iter(frames)));
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-sum"));
    response
}

fn hanging_body() -> Response<Body> {
    Response::new(body_of(stream::unfold(false, |sent| async move {
        if sent {
            return std::future::pending().await;
        }
        Some((Ok(Frame::data(Bytes::from_static(b"hello"))), true))
    })))
}

fn status(code: u64) -> Response<Body> {
    let mut response = Response::new(empty());
    let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    // An informational status is no final answer, and hyper would refuse to write it.
    *response.status_mut() = code.filter(|code| !code.is_informational()).unwrap_or(StatusCode::BAD_REQUEST);
    response.headers_mut().insert(ETAG, HeaderValue::from_static("W/\"1-test\""));
    response
}
