//! What changes in the headers of a request and of its answer on the way through: only what has to.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, Entry, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{PathAndQuery, Uri};
use http::{Request, Version};
use http_body::Body;
use ipnet::IpNet;

use super::listener::Peer;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Fields that a `Connection` header cannot take away: without them a message changes its end, its target or its sender.
const PROTECTED: [HeaderName; 6] =
    [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST];

/// Turns a client's request into the one that goes to a Monolith: HTTP/1.1, a path, no hop-by-hop fields, the
/// `X-Forwarded` fields.
pub fn to_upstream<B: Body>(request: &mut Request<B>, peer: &Peer, trusted: &[IpNet]) {
    let http2 = request.version() == Version::HTTP_2;
    take_authority(request);
    // A body of unknown length needs the coding said, or hyper would leave out the body of a GET.
    let chunked = request.headers().contains_key(TRANSFER_ENCODING)
        || (!request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH));
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    let trailers = headers.contains_key(TE) && accepts_trailers(headers);
    remove_hop_by_hop(headers);
    headers.remove(EXPECT);
    headers.remove(UPGRADE);
    if chunked {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if http2 {
        join_cookies(headers);
    }
    add_forwarded(headers, peer, trusted);
}

/// The same for a request that asks for another protocol: that wish, a matter of two hops, is passed on.
pub fn to_upstream_upgrade<B: Body>(request: &mut Request<B>, peer: &Peer, trusted: &[IpNet]) {
    let protocols: Vec<HeaderValue> = request.headers().get_all(UPGRADE).iter().cloned().collect();
    to_upstream(request, peer, trusted);
    let headers = request.headers_mut();
    for protocol in protocols {
        headers.append(UPGRADE, protocol);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Turns a Monolith's answer into the one for the client.
pub fn to_client(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    if headers.remove(TRANSFER_ENCODING).is_some() {
        // The coding has the say; a length beside it is a lie that must not travel on.
        headers.remove(CONTENT_LENGTH);
    }
    headers.remove(UPGRADE);
}

/// The same for an answer 101.
pub fn to_client_upgrade(headers: &mut HeaderMap) {
    let protocol = headers.remove(UPGRADE);
    to_client(headers);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Whether a request asks for another protocol. `Connection: upgrade` alone is a plain request, and so is `Upgrade`
/// alone, and either over HTTP/2 or HTTP/1.0. So is one that asks for HTTP/2 (RFC 9113 has given that upgrade up): in a
/// tunnel it would be requests that nobody here has read.
pub fn wants_upgrade<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().contains_key(UPGRADE)
        && request
            .headers()
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .any(|token| token.eq_ignore_ascii_case("upgrade"))
        && !request.headers().get_all(UPGRADE).iter().any(may_be_http)
}

fn may_be_http(protocols: &HeaderValue) -> bool {
    let starts_with =
        |token: &str, start: &str| token.get(..start.len()).is_some_and(|s| s.eq_ignore_ascii_case(start));
    // What cannot be read here, a Monolith might read as one of them.
    protocols.to_str().is_err() || tokens(protocols).any(|token| starts_with(token, "h2") || starts_with(token, "http"))
}

/// Whether this peer's word about whom it speaks for is believed.
pub fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|range| range.contains(&peer))
}

/// The target becomes a path; the authority, which is the better word about the host, becomes `Host`.
fn take_authority<B>(request: &mut Request<B>) {
    if request.uri().authority().is_none() && request.uri().scheme().is_none() {
        return;
    }
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(without_user(authority.as_str()))
    {
        request.headers_mut().insert(HOST, host);
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
}

fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if let Entry::Occupied(connection) = headers.entry(CONNECTION) {
        let (_, values) = connection.remove_entry_mult();
        let mut named = Vec::new();
        for value in values {
            for token in tokens(&value) {
                let known =
                    ["keep-alive", "close", "upgrade", "te"].iter().any(|known| known.eq_ignore_ascii_case(token));
                if !known && let Ok(name) = HeaderName::from_bytes(token.as_bytes()) {
                    named.push(name);
                }
            }
        }
        for name in named.iter().filter(|name| !PROTECTED.contains(name)) {
            headers.remove(name);
        }
    }
    for name in [KEEP_ALIVE, TE, PROXY_CONNECTION, PROXY_AUTHORIZATION, PROXY_AUTHENTICATE] {
        headers.remove(name);
    }
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(TE).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case("trailers"))
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|token| !token.is_empty())
}

/// HTTP/2 may split cookies into several fields; HTTP/1.1 knows one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let values: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(mut joined) = HeaderValue::from_bytes(&values.join(&b"; "[..])) {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

fn add_forwarded(headers: &mut HeaderMap, peer: &Peer, trusted: &[IpNet]) {
    let trusted = is_trusted(peer.addr.ip(), trusted);
    if !trusted {
        // What stands there already stays: a Monolith believes the last entry only.
        headers.append(FORWARDED_FOR, peer.text.clone());
    } else if !headers.contains_key(FORWARDED_FOR) {
        headers.insert(FORWARDED_FOR, peer.text.clone());
    }
    if !trusted || !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !trusted || !headers.contains_key(FORWARDED_HOST) {
        match headers.get(HOST).cloned() {
            Some(host) => drop(headers.insert(FORWARDED_HOST, host)),
            None => drop(headers.remove(FORWARDED_HOST)),
        }
    }
}

#[cfg(test)]
#[path = "forward_test.rs"]
mod tests;
