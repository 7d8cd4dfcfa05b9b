//! Tables of headers before and after.

use http_body_util::{Empty, Full};

use super::*;

type Fields<'a> = &'a [(&'a str, &'a str)];

fn request(uri: &str, version: Version, fields: Fields<'_>) -> Request<Empty<bytes::Bytes>> {
    let mut request = Request::builder().uri(uri).version(version).body(Empty::new()).unwrap();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut fields: Vec<_> =
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn owned(fields: Fields<'_>) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn peer(addr: &str) -> Peer {
    Peer::new(addr.parse().unwrap())
}

fn trusted() -> Vec<IpNet> {
    crate::config::private_ranges()
}

/// Checks what becomes of a request's fields besides `X-Forwarded`.
#[track_caller]
fn check(before: Fields<'_>, after: Fields<'_>) {
    let mut request = request("/", Version::HTTP_11, before);
    to_upstream(&mut request, &peer("9.9.9.9:1"), &[]);
    let mut got = fields(request.headers());
    got.retain(|(name, _)| !name.starts_with("x-forwarded"));
    assert_eq!(got, owned(after));
}

#[test]
fn hop_by_hop_fields_stay_behind() {
    check(&[("host", "a"), ("connection", "keep-alive"), ("keep-alive", "timeout=5")], &[("host", "a")]);
    check(&[("connection", "upgrade"), ("host", "a")], &[("host", "a")]);
    check(&[("upgrade", "h2c"), ("host", "a")], &[("host", "a")]);
    check(
        &[("connection", "close, X-One"), ("connection", "x-two"), ("x-one", "1"), ("x-two", "2"), ("x-three", "3")],
        &[("x-three", "3")],
    );
    check(
        &[("proxy-connection", "close"), ("proxy-authorization", "Basic x"), ("authorization", "Bearer y")],
        &[("authorization", "Bearer y")],
    );
    check(&[("expect", "100-continue"), ("content-length", "3")], &[("content-length", "3")]);
    check(&[("trailer", "x-sum"), ("via", "1.1 a")], &[("trailer", "x-sum"), ("via", "1.1 a")]);
}

#[test]
fn connection_cannot_take_away_framing_or_identity() {
    check(
        &[("connection", "host, content-length"), ("content-length", "3"), ("host", "a")],
        &[("content-length", "3"), ("host", "a")],
    );
    let mut request =
        request("/", Version::HTTP_11, &[("connection", "x-forwarded-for"), ("x-forwarded-for", "1.1.1.1")]);
    to_upstream(&mut request, &peer("10.0.0.1:1"), &trusted());
    assert_eq!(request.headers()["x-forwarded-for"], "1.1.1.1");
}

#[test]
fn only_trailers_remain_of_te() {
    check(&[("te", "gzip, Trailers;q=1"), ("host", "a")], &[("host", "a")]);
    check(&[("te", "gzip, trailers"), ("connection", "te")], &[("connection", "te"), ("te", "trailers")]);
    check(&[("te", "gzip"), ("connection", "TE")], &[]);
}

#[test]
fn a_body_without_length_is_sent_chunked() {
    let mut request = Request::builder().uri("http://a/").version(Version::HTTP_2).body(Full::new(&b"x"[..])).unwrap();
    to_upstream(&mut request, &peer("9.9.9.9:1"), &[]);
    assert_eq!(request.headers()["transfer-encoding"], "chunked");
    assert_eq!(request.version(), Version::HTTP_11);
}

/// Checks `X-Forwarded-For` (all lines), `-Proto` and `-Host`.
#[track_caller]
fn check_forwarded(from: &str, ranges: &[IpNet], before: Fields<'_>, chain: &[&str], proto: &str, host: Option<&str>) {
    let mut request = request("/", Version::HTTP_11, before);
    to_upstream(&mut request, &peer(from), ranges);
    let headers = request.headers();
    assert_eq!(headers.get_all(FORWARDED_FOR).iter().collect::<Vec<_>>(), chain);
    assert_eq!(headers[FORWARDED_PROTO], proto);
    assert_eq!(headers.get(FORWARDED_HOST).map(|host| host.to_str().unwrap()), host);
}

#[test]
fn forwarded_fields_of_strangers_are_replaced_or_added_to() {
    let none = Vec::new();
    let forged = [("host", "a"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil")];
    check_forwarded("9.9.9.9:5", &trusted(), &forged, &["9.9.9.9"], "http", Some("a"));
    check_forwarded("9.9.9.9:5", &trusted(), &[("x-forwarded-host", "evil")], &["9.9.9.9"], "http", None);
    let chain = [("host", "a"), ("x-forwarded-for", "1.1.1.1, 2.2.2.2"), ("x-forwarded-for", "3.3.3.3")];
    let want = ["1.1.1.1, 2.2.2.2", "3.3.3.3", "9.9.9.9"];
    check_forwarded("9.9.9.9:5", &trusted(), &chain, &want, "http", Some("a"));
    check_forwarded("127.0.0.1:5", &none, &chain[..1], &["127.0.0.1"], "http", Some("a"));
    check_forwarded("[2001:db8::1]:5", &trusted(), &chain[..1], &["2001:db8::1"], "http", Some("a"));
    check_forwarded("[::ffff:9.9.9.9]:5", &trusted(), &chain[..1], &["9.9.9.9"], "http", Some("a"));
}

#[test]
fn forwarded_fields_of_trusted_peers_are_kept() {
    let given = [
        ("host", "a"),
        ("x-forwarded-for", "not-an-ip, 2.2.2.2"),
        ("x-forwarded-for", "3.3.3.3"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "b"),
    ];
    for from in ["127.0.0.1:5", "10.1.2.3:5", "[::1]:5", "[::ffff:192.168.0.1]:5", "[fd00::1]:5"] {
        check_forwarded(from, &trusted(), &given, &["not-an-ip, 2.2.2.2", "3.3.3.3"], "https", Some("b"));
    }
    check_forwarded("10.1.2.3:5", &trusted(), &given[..1], &["10.1.2.3"], "http", Some("a"));
}

#[test]
fn the_target_becomes_a_path_and_the_authority_the_host() {
    for (uri, fields, path, host) in [
        ("http://b:81/x?y=1", &[("host", "a")][..], "/x?y=1", "b:81"),
        ("http://user:word@b/x", &[], "/x", "b"),
        ("http://b", &[], "/", "b"),
        ("/x?y", &[("host", "a")], "/x?y", "a"),
    ] {
        let mut request = request(uri, Version::HTTP_2, fields);
        to_upstream(&mut request, &peer("9.9.9.9:1"), &[]);
        assert_eq!(request.uri().to_string(), path);
        assert_eq!(request.headers()[HOST], host);
        assert_eq!(request.headers().get_all(HOST).iter().count(), 1);
    }
}

#[test]
fn split_cookies_of_http2_are_joined() {
    let mut request = request("http://a/", Version::HTTP_2, &[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
    to_upstream(&mut request, &peer("9.9.9.9:1"), &[]);
    assert_eq!(request.headers().get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
}

#[test]
fn an_upgrade_needs_both_fields_and_http11() {
    let both = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
    for (version, fields, wants) in [
        (Version::HTTP_11, &both[..], true),
        (Version::HTTP_11, &both[..1], false),
        (Version::HTTP_11, &both[1..], false),
        (Version::HTTP_10, &both, false),
        (Version::HTTP_2, &both, false),
    ] {
        assert_eq!(wants_upgrade(&request("/", version, fields)), wants, "{version:?} {fields:?}");
    }
    for protocols in ["h2c", "H2C", "h2c-14", "HTTP/2.0", "websocket, h2c", "websocket,HTTP/2", "x, \u{e9}"] {
        let fields = [("connection", "upgrade"), ("upgrade", protocols)];
        assert!(!wants_upgrade(&request("/", Version::HTTP_11, &fields)), "{protocols}");
    }
    let mut upgrade = request("/", Version::HTTP_11, &both);
    to_upstream_upgrade(&mut upgrade, &peer("9.9.9.9:1"), &[]);
    assert_eq!(upgrade.headers()["connection"], "upgrade");
    assert_eq!(upgrade.headers()["upgrade"], "websocket");
}

#[test]
fn answers_lose_their_hop_by_hop_fields() {
    let mut answer = request(
        "/",
        Version::HTTP_11,
        &[
            ("connection", "keep-alive, x-hop"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("proxy-authenticate", "Basic"),
            ("x-hop", "1"),
            ("etag", "W/\"1\""),
            ("trailer", "x-sum"),
        ],
    );
    to_client(answer.headers_mut());
    assert_eq!(fields(answer.headers()), owned(&[("etag", "W/\"1\""), ("trailer", "x-sum")]));
}
