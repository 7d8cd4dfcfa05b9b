//! Bytes at the HTTP ports: noise, smuggled requests, heads that are too much, and clients that take their time.

use std::time::Duration;

use futures_util::future::join_all;
use usher::testkit::http;

use super::mutate::mutated;
use super::*;

#[tokio::test]
async fn noise_at_either_port_ends_its_own_connection_only() {
    let mut stage = Stage::start(|config| {
        config.admin_listen = Some("127.0.0.1:0".parse().unwrap());
        config.timeouts.keep_alive = Duration::from_millis(500);
        config.timeouts.http_response = Duration::from_millis(300);
        config.timeouts.hold = Duration::from_millis(300);
    })
    .await;
    let mut random = random(1);
    for addr in [stage.balancer.addr(), stage.balancer.admin()] {
        let noise: Vec<Vec<u8>> = (0..40)
            .map(|_| {
                let mut bytes: Vec<u8> = (0..1 + random.below(600)).map(|_| random.below(256) as u8).collect();
                // A head that is only incomplete would have its ten seconds.
                bytes.extend(b"\0\r\n\r\n");
                bytes
            })
            .collect();
        for answer in join_all(noise.iter().map(|bytes| spoken(addr, bytes))).await {
            assert!(statuses(&answer).iter().all(|status| *status == 400), "{answer}");
        }
        let hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[0x41; 500]].concat();
        assert_eq!(statuses(&spoken(addr, &hello).await), [400]);
        // The beginning of HTTP/2, and then something else.
        let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frames.extend((0..600).map(|_| random.below(256) as u8));
        spoken(addr, &frames).await;
    }
    stage.unharmed().await;
    stage.end().await;
}

#[tokio::test]
async fn nothing_that_is_smuggled_reaches_anybody() {
    let mut stage = Stage::start(|config| {
        config.timeouts.keep_alive = Duration::from_millis(300);
        config.timeouts.http_response = Duration::from_secs(2);
        config.timeouts.hold = Duration::from_millis(300);
    })
    .await;
    let (balancer, a) = (&stage.balancer, &stage.a);
    let corpus = corpus("http");
    let addr = balancer.addr();
    let answers = join_all(corpus.iter().map(|(_, bytes)| spoken(addr, bytes))).await;
    for ((name, _), answer) in corpus.iter().zip(answers) {
        assert_eq!(statuses(&answer).last() == Some(&400), name.starts_with("refuse-"), "{name}: {answer}");
    }
    assert!(a.requests().iter().all(|request| request.target != "/smuggled"), "{:?}", a.requests());
    // Bent ones too, whatever becomes of them: what a Monolith reads is what the balancer has read.
    let seeds: Vec<Vec<u8>> = corpus.into_iter().map(|(_, bytes)| bytes).filter(|bytes| bytes[0] > b' ').collect();
    let mut random = random(2);
    for _ in 0..12 {
        let mut round: Vec<_> = (0..10).map(|_| mutated(&seeds, &mut random)).collect();
        // Whatever was incomplete is broken now, so that nobody waits for the rest.
        round.iter_mut().for_each(|bytes| bytes.extend(b"\0\r\n\r\n"));
        join_all(round.iter().map(|bytes| spoken(addr, bytes))).await;
    }
    for request in a.requests() {
        let named = |name: &str| request.headers.iter().filter(|(known, _)| known == name).count();
        assert!(named("content-length") + named("transfer-encoding") <= 1, "{request:?}");
        assert!(named("host") <= 1, "{request:?}");
    }
    stage.unharmed().await;
    stage.end().await;
}

#[tokio::test]
async fn the_host_of_an_absolute_target_wins_and_a_target_that_is_only_a_host_is_refused() {
    let stage = Stage::start(|_| {}).await;
    let addr = stage.balancer.addr();
    let absolute = "GET http://other.test/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(statuses(&spoken(addr, absolute.as_bytes()).await), [200]);
    let hosts = |request: &usher::testkit::monolith::HttpRecord| {
        let host = request.headers.iter().filter(|(name, _)| name == "host");
        host.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let requests = stage.a.requests();
    assert_eq!(
        requests.last().map(|request| (request.target.as_str(), hosts(request))),
        Some(("/echo", vec!["other.test".to_owned()]))
    );
    for target in ["other.test", "other.test:80", "_usher", "user@other.test:80", "a:0"] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(statuses(&spoken(addr, request.as_bytes()).await), [400], "{target}");
    }
    assert_eq!(stage.a.requests().len(), requests.len(), "none of them went on");
    stage.end().await;
}

#[tokio::test]
async fn an_upgrade_to_http2_opens_no_tunnel() {
    let stage = Stage::start(|_| {}).await;
    for protocols in ["h2c", "websocket, h2c"] {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocols}\r\n\
             HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        );
        let answer = spoken(stage.balancer.addr(), request.as_bytes()).await;
        assert!(statuses(&answer).iter().all(|status| *status != 101), "{answer}");
    }
    for request in stage.a.requests() {
        let hop = |(name, _): &(String, String)| ["upgrade", "http2-settings"].contains(&name.as_str());
        assert!(!request.headers.iter().any(hop), "{request:?}");
    }
    assert_eq!(stage.a.look(|state| state.http_count()), 4, "each was read as a request of its own");
    stage.end().await;
}

#[tokio::test]
async fn a_head_that_is_too_much_is_refused_and_costs_nobody() {
    let mut stage = Stage::start(|_| {}).await;
    let addr = stage.balancer.addr();
    let head = |line: &str| format!("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{line}\r\n");
    let many: String = (0..3000).map(|n| format!("x-{n}: y\r\n")).collect();
    let cases = [
        ("many headers", head(&many), 431),
        ("many empty headers", head(&"a:\r\n".repeat(5000)), 431),
        ("one long value", head(&format!("x: {}\r\n", "y".repeat(40 << 10))), 431),
        ("one long name", head(&format!("{}: y\r\n", "x".repeat(40 << 10))), 431),
        ("many cookies", head(&format!("cookie: {}\r\n", "a=b; ".repeat(10_000))), 431),
    ];
    for (what, request, status) in cases {
        assert_eq!(statuses(&spoken(addr, request.as_bytes()).await), [status], "{what}");
    }
    for target in [format!("/{}", "a".repeat(70_000)), format!("/?{}", "a=b&".repeat(20_000))] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let got = statuses(&spoken(addr, request.as_bytes()).await);
        assert!(matches!(got[..], [414 | 431]), "{got:?}");
    }
    assert_eq!(stage.a.look(|state| state.http_count()), 0);
    // The upgrade to a room is no way around it.
    let upgrade = format!(
        "GET /api/room/x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{many}\r\n"
    );
    assert_eq!(statuses(&spoken(addr, upgrade.as_bytes()).await), [431]);
    stage.unharmed().await;
    stage.end().await;
}

#[tokio::test]
async fn whoever_takes_their_time_is_cut_off() {
    let mut stage = Stage::start(|config| {
        config.timeouts.keep_alive = Duration::from_millis(700);
        config.timeouts.http_response = Duration::from_millis(300);
        config.timeouts.hold = Duration::from_millis(300);
        config.timeouts.auth = Duration::from_secs(1);
    })
    .await;
    let addr = stage.balancer.addr();
    let upgrade = "GET /api/room/x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let opened = format!("{upgrade}\r\n");
    // The head of a masked text frame of 100 bytes, of which the rest comes slowly.
    let frame = [opened.as_bytes(), b"\x81\xe4mask"].concat();
    let post = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx".as_slice();
    let chunked = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx".as_slice();
    let admin = b"POST /_usher/v1/policy/use HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx".as_slice();
    let (slow, never) = (Duration::from_millis(200), Duration::from_secs(3600));
    // All of them at once: the longest wait is the ten seconds of a head.
    let attacks: [(&[u8], Duration); 11] = [
        (b"", never),
        (b"G", slow),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", slow),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", never),
        (upgrade.as_bytes(), slow),
        (upgrade.as_bytes(), never),
        (opened.as_bytes(), never),
        (&frame, slow),
        (post, never),
        (chunked, never),
        (admin, slow),
    ];
    let served = async {
        for _ in 0..5 {
            stage.unharmed().await;
        }
    };
    let attacked = join_all(attacks.iter().map(|(first, pause)| trickle(addr, first, *pause)));
    tokio::join!(attacked, served);
    stage.end().await;
}

#[tokio::test]
async fn status_does_not_wait_for_a_body_that_nobody_reads() {
    let stage = Stage::start(|_| {}).await;
    let addr = stage.balancer.addr();
    for path in ["/api/status", "/_usher/ready", "/api/status/metrics"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx");
        let answer = http::raw(addr, request.as_bytes(), SOON).await.unwrap();
        assert_eq!(statuses(&String::from_utf8_lossy(&answer)), [200], "{path}");
    }
    stage.end().await;
}
