//! What a request wants: pure functions from method, path and headers to one of the things that the front door does.

use http::header::{CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Method, Version};

use crate::model::RoomName;

/// What a request is about.
#[derive(Debug)]
pub enum Intent<'a> {
    /// A room's WebSocket; an error is a name that is none.
    Socket(Result<RoomName, crate::model::InvalidRoomName>),
    /// The list of rooms.
    List,
    /// A room is to be created, with a name of the Monolith's making or one from the body.
    Create {
        /// Whether the Monolith makes up the name.
        generate: bool,
    },
    /// Something of one room.
    Room(RoomName),
    /// Anything else: `route` decides.
    Other(&'a str),
}

/// Reads the path. `upgrade` says that the request asks for a WebSocket.
pub fn intent<'a>(method: &Method, path: &'a str, upgrade: bool) -> Intent<'a> {
    let Some(rest) = path.strip_prefix("/api/room/") else { return Intent::Other(path) };
    let (segment, below) = rest.split_once('/').map_or((rest, None), |(segment, below)| (segment, Some(below)));
    let alone = below.is_none_or(str::is_empty);
    if upgrade && alone && !segment.is_empty() {
        return Intent::Socket(RoomName::parse(segment));
    }
    match (segment, alone) {
        ("list", true) if method == Method::GET || method == Method::HEAD => Intent::List,
        ("generate", true) if method == Method::POST => Intent::Create { generate: true },
        ("create", true) if method == Method::POST => Intent::Create { generate: false },
        _ => RoomName::parse(segment).map_or(Intent::Other(path), Intent::Room),
    }
}

/// Whether a request asks for an upgrade to a WebSocket.
pub fn wants_websocket(version: Version, method: &Method, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11
        && method == Method::GET
        && has_token(headers.get_all(UPGRADE), "websocket")
        && has_token(headers.get_all(CONNECTION), "upgrade")
}

/// The key of a handshake, if the handshake is one of RFC 6455.
pub fn websocket_key(headers: &HeaderMap) -> Option<&HeaderValue> {
    let version = headers.get(SEC_WEBSOCKET_VERSION)?;
    let key = headers.get(SEC_WEBSOCKET_KEY)?;
    // 16 bytes in base64.
    (version == "13" && key.len() == 24).then_some(key)
}

/// Whether a query has this parameter with this value.
pub fn query_is(query: Option<&str>, name: &str, value: &str) -> bool {
    parameters(query).any(|(n, v)| n == name && v == value)
}

/// The parameters of a query as they stand, not percent-decoded.
pub fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.unwrap_or_default().split('&');
    pairs.filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn has_token(values: http::header::GetAll<'_, HeaderValue>, token: &str) -> bool {
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, path: &str, upgrade: bool, expected: &str) {
        let got = match intent(&method, path, upgrade) {
            Intent::Socket(Ok(room)) => format!("socket {room}"),
            Intent::Socket(Err(_)) => "socket 4001".to_string(),
            Intent::List => "list".to_string(),
            Intent::Create { generate: true } => "generate".to_string(),
            Intent::Create { generate: false } => "create".to_string(),
            Intent::Room(room) => format!("room {room}"),
            Intent::Other(_) => "other".to_string(),
        };
        assert_eq!(got, expected, "{method} {path} upgrade={upgrade}");
    }

    #[test]
    fn paths_say_what_is_wanted() {
        check(Method::GET, "/api/room/Movie", true, "socket Movie");
        check(Method::GET, "/api/room/a%20b", true, "socket 4001");
        check(Method::GET, "/api/room/LIST", true, "socket 4001");
        check(Method::GET, "/api/room/a/b", true, "room a");
        check(Method::GET, "/other", true, "other");
        check(Method::GET, "/api/room/list", false, "list");
        check(Method::GET, "/api/room/list/", false, "list");
        check(Method::POST, "/api/room/list", false, "other");
        check(Method::GET, "/api/room/List", false, "other");
        check(Method::POST, "/api/room/generate", false, "generate");
        check(Method::GET, "/api/room/generate", false, "other");
        check(Method::POST, "/api/room/create", false, "create");
        check(Method::POST, "/api/room/Create", false, "other");
        check(Method::GET, "/api/room/movie/queue", false, "room movie");
        check(Method::DELETE, "/api/room/movie", false, "room movie");
        check(Method::GET, "/api/room/a%20b", false, "other");
        check(Method::GET, "/x/api/room/movie", false, "other");
        check(Method::GET, "/api/roomy", false, "other");
    }

    #[test]
    fn a_query_is_read_as_it_stands() {
        assert!(query_is(Some("a=1&reconnect=true"), "reconnect", "true"));
        assert!(!query_is(Some("reconnect=false"), "reconnect", "true"));
        assert!(!query_is(None, "reconnect", "true"));
    }
}
