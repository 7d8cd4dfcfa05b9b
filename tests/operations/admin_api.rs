//! Every route of the admin API: who may ask, what the answers look like, and where they are.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};
use usher::testkit::http;
use usher::testkit::{Connect, RoomInfo};

use super::harness::{Balancer, KEY, SOON, eventually, monoliths, quick};

const NEED_KEY: [(&str, &str); 10] = [
    ("GET", "/api/state"),
    ("GET", "/api/state/stream"),
    ("GET", "/api/balancing"),
    ("GET", "/_usher/v1/policy"),
    ("POST", "/_usher/v1/policy/use"),
    ("POST", "/_usher/v1/policy/rollback"),
    ("GET", "/_usher/v1/monoliths"),
    ("GET", "/_usher/v1/rooms"),
    ("GET", "/_usher/v1/rooms/movie"),
    ("POST", "/_usher/v1/rooms/movie/move"),
];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_readiness_need_no_key_and_tell_the_truth() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    for path in ["/api/status", "/api/status/"] {
        let answer = balancer.get(path).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "OK"), "{path}");
    }
    let answer = http::request(balancer.addr, "HEAD", "/api/status", &[], "").await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let ready = balancer.get("/_usher/ready").await;
    assert_eq!((ready.status, ready.json()), (200, json!({"ready": true, "reasons": []})));
    balancer.monoliths[0].kill().await;
    let ready = eventually("readiness notices", async || {
        let ready = balancer.get("/_usher/ready").await;
        (ready.status == 503).then_some(ready.json())
    })
    .await;
    assert_eq!(ready["ready"], false);
    assert!(ready["reasons"][0].as_str().unwrap().contains("no Monolith"), "{ready}");
    // The process lives all the same, and new clients are told to come back.
    assert_eq!(balancer.get("/api/status").await.status, 200);
    assert_eq!(balancer.get("/echo").await.status, 503);
    balancer.monoliths[0].restart().await.unwrap();
    eventually("ready again", async || (balancer.get("/_usher/ready").await.status == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_else_needs_the_key() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    let wrong = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer operator-ke",
        "Bearer operator-keyy",
        "Bearer OPERATOR-KEY",
        "operator-key",
        "Basic operator-key",
    ];
    for (method, path) in NEED_KEY {
        for authorization in wrong {
            let headers = [("authorization", authorization)];
            let headers = if authorization.is_empty() { &headers[..0] } else { &headers[..] };
            let answer = http::request(balancer.addr, method, path, headers, "").await.unwrap();
            assert_eq!(answer.status, 401, "{method} {path} {authorization:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert_eq!(answer.json()["error"]["code"], "unauthorized");
            assert!(!answer.text().contains(KEY));
        }
    }
    // The scheme's case does not matter, as RFC 9110 says.
    let answer = http::get_with(balancer.addr, "/api/balancing", &[("authorization", "bearer operator-key")]).await;
    assert_eq!(answer.unwrap().status, 200);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_configured_key_nobody_gets_in() {
    let world = usher::testkit::World::new();
    let config = usher::config::Config { api_key: usher::config::Secret::default(), ..quick() };
    let balancer = Balancer::start(monoliths(&world, &["ewr"]).await, config).await;
    for (method, path) in NEED_KEY {
        for authorization in ["Bearer ", "Bearer", "Bearer x"] {
            let headers = [("authorization", authorization)];
            let answer = http::request(balancer.addr, method, path, &headers, "").await.unwrap();
            assert_eq!(answer.status, 401, "{method} {path}");
        }
    }
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_methods_and_paths_are_refused_by_name() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    for (method, path, allow) in [
        ("POST", "/api/status", "GET, HEAD"),
        ("DELETE", "/_usher/ready", "GET, HEAD"),
        ("PUT", "/api/status/metrics", "GET, HEAD"),
        ("POST", "/api/state", "GET"),
        ("POST", "/api/balancing", "GET"),
        ("DELETE", "/_usher/v1/policy", "GET"),
        ("GET", "/_usher/v1/policy/use", "POST"),
        ("GET", "/_usher/v1/policy/rollback", "POST"),
        ("POST", "/_usher/v1/monoliths", "GET"),
        ("POST", "/_usher/v1/rooms", "GET"),
        ("DELETE", "/_usher/v1/rooms/movie", "GET"),
    ] {
        let answer = balancer.api(method, path, "").await;
        assert_eq!(answer.status, 405, "{method} {path}");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
        assert_eq!(answer.json()["error"]["code"], "method_not_allowed");
    }
    for path in [
        "/_usher",
        "/_usher/",
        "/_usher/v2/policy",
        "/_usher/v1",
        "/_usher/v1/nothing",
        "/_usher/v1/rooms/a/b",
        "/_usher/v1/rooms/unknown",
        "/_usher/v1/policy/nothing",
    ] {
        let answer = balancer.api("GET", path, "").await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("not_found")), "{path}");
    }
    let huge = "x".repeat(1 << 20);
    let answer = balancer.api("POST", "/_usher/v1/policy/use", &huge).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.json()["error"]["code"].is_string());
    // None of it reached the Monolith.
    assert_eq!(balancer.monoliths[0].look(|state| state.http_count()), 0);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_has_exactly_the_shape_of_the_protocol() {
    let (balancer, world) = Balancer::simple(&["ewr", "cdg"]).await;
    world.add(RoomInfo::permanent("Movie"));
    let connect = Connect::room(balancer.addr, "Movie", "token").header("fly-region", "cdg");
    let mut client = connect.open().await.unwrap();
    client.synced(SOON).await.unwrap();
    let mut plain = balancer.join("movie", "token").await;
    let state = balancer.document("/api/state").await;
    assert_eq!(keys(&state), ["id", "monoliths", "region"].into());
    assert_eq!(state["region"], "ewr");
    let monoliths = state["monoliths"].as_array().unwrap();
    assert_eq!(monoliths.len(), 2);
    let ids: BTreeSet<&str> = monoliths.iter().map(|monolith| monolith["id"].as_str().unwrap()).collect();
    assert_eq!(ids, balancer.monoliths.iter().map(|m| m.id()).collect::<Vec<_>>().iter().map(String::as_str).collect());
    for monolith in monoliths {
        assert_eq!(keys(monolith), ["id", "region", "rooms"].into());
    }
    let rooms: Vec<&Value> = monoliths.iter().flat_map(|monolith| monolith["rooms"].as_array().unwrap()).collect();
    assert_eq!(rooms.len(), 1, "{state}");
    assert_eq!(keys(rooms[0]), ["clients", "name"].into());
    assert_eq!(rooms[0]["name"], "Movie");
    let clients = rooms[0]["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 2);
    for client in clients {
        assert_eq!(keys(client), ["edge_region", "id"].into());
        assert_eq!(client["id"].as_str().unwrap().len(), 36);
    }
    let edges: BTreeSet<String> = clients.iter().map(|client| client["edge_region"].to_string()).collect();
    assert!(edges.contains("\"cdg\""), "{edges:?}");
    // One id per process.
    assert_eq!(balancer.document("/api/state").await["id"], state["id"]);
    let text = balancer.api("GET", "/api/balancing", "").await;
    assert!(text.header("content-type").unwrap().starts_with("text/plain"));
    assert!(text.text().contains("monoliths: 2\nclients: 2\nrooms: 1\n"), "{}", text.text());
    client.close(1000).await;
    plain.close(1000).await;
    let _ = (client.closed(SOON).await, plain.closed(SOON).await);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_event_stream_is_flat_and_names_this_balancer() {
    let (balancer, world) = Balancer::simple(&["ewr"]).await;
    world.add(RoomInfo::permanent("movie"));
    let key = format!("Bearer {KEY}");
    let open = Connect::path(balancer.addr, "/api/state/stream").header("authorization", &key).open();
    let mut stream = open.await.unwrap();
    let refused = Connect::path(balancer.addr, "/api/state/stream").header("authorization", "Bearer no").open().await;
    assert!(refused.is_err_and(|error| error.to_string().contains("401")));
    let plain = balancer.api("GET", "/api/state/stream", "").await;
    assert_eq!(plain.status, 400, "a request without an upgrade");
    let client = balancer.join("movie", "secret-token").await;
    client.chat("hello").await;
    assert_eq!(balancer.get("/echo").await.status, 200);
    let id = balancer.document("/api/state").await["id"].clone();
    let node = json!(balancer.monoliths[0].id());
    let mut seen = BTreeSet::new();
    while seen.len() < 4 {
        let text = stream.recv(SOON).await.unwrap();
        assert!(!text.contains("secret-token"));
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(keys(&event), ["balancer_id", "direction", "event", "node_id", "timestamp"].into(), "{event}");
        assert_eq!((&event["balancer_id"], &event["node_id"]), (&id, &node));
        assert!(event["timestamp"].is_u64() || event["timestamp"].is_string());
        let (kind, direction) = (event["event"].as_str().unwrap(), event["direction"].as_str().unwrap());
        assert!(["ws", "proxy", "broadcast"].contains(&kind) && ["tx", "rx"].contains(&direction), "{event}");
        if ["ws tx", "ws rx", "broadcast rx", "proxy tx"].contains(&format!("{kind} {direction}").as_str()) {
            seen.insert(format!("{kind} {direction}"));
        }
    }
    drop(client);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_prometheus_text_without_labels_that_grow() {
    let (balancer, world) = Balancer::simple(&["ewr", "cdg"]).await;
    let scrape = async || {
        let answer = balancer.get("/api/status/metrics").await;
        assert_eq!(answer.status, 200);
        assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
        parse(&answer.text())
    };
    let before = scrape().await;
    let mut clients = Vec::new();
    for number in 0..30 {
        world.add(RoomInfo::permanent(format!("room-{number}")));
        clients.push(balancer.join(&format!("room-{number}"), &format!("token-{number}")).await);
        assert_eq!(balancer.get(&format!("/echo/{number}?q={number}")).await.status, 200);
    }
    let after = scrape().await;
    // Thirty rooms, clients and paths add no series.
    assert_eq!(before, after);
    assert_eq!(balancer.metric("usher_rooms").await, 30.0);
    assert_eq!(balancer.metric("balancer_clients").await, 30.0);
    let text = balancer.get("/api/status/metrics").await.text();
    assert!(!text.contains("room-1") && !text.contains("token-1") && !text.contains(KEY));
    drop(clients);
    balancer.finish().await;
}

/// Reads the text format strictly; every series, without its value.
fn parse(text: &str) -> BTreeSet<String> {
    assert!(text.ends_with('\n'));
    let name = regex::Regex::new(r"^[a-zA-Z_:][a-zA-Z0-9_:]*$").unwrap();
    let sample = regex::Regex::new(
        r#"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)*\})? (\S+)$"#,
    )
    .unwrap();
    let (mut family, mut families, mut series) = (String::new(), BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (of, help) = rest.split_once(' ').unwrap();
            assert!(name.is_match(of) && !help.is_empty(), "{line}");
            assert!(families.insert(of.to_string()), "{of} stands twice");
            family = of.to_string();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (of, kind) = rest.split_once(' ').unwrap();
            assert_eq!(of, family, "{line}");
            assert!(["counter", "gauge"].contains(&kind), "{line}");
        } else {
            let parts = sample.captures(line).unwrap_or_else(|| panic!("no sample: {line}"));
            assert_eq!(&parts[1], family, "{line}");
            assert!(parts[3].parse::<f64>().is_ok(), "{line}");
            let labels = parts.get(2).map_or("", |labels| labels.as_str());
            assert!(series.insert(format!("{}{labels}", &parts[1])), "{line} stands twice");
        }
    }
    series
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_and_monoliths_are_listed() {
    let (balancer, world) = Balancer::simple(&["ewr", "cdg"]).await;
    let mut clients = Vec::new();
    for number in 0..5 {
        world.add(RoomInfo::permanent(format!("Room-{number}")));
        clients.push(balancer.join(&format!("Room-{number}"), "token").await);
    }
    let monoliths = balancer.document("/_usher/v1/monoliths").await;
    let rows = monoliths["monoliths"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let wanted = ["id", "region", "endpoint", "state", "rooms", "clients", "pending", "rtt_ms", "age_s"];
        assert!(wanted.iter().all(|key| !row[key].is_null()), "{row}");
        assert_eq!(row["state"], "up");
    }
    let of_ewr = rows.iter().find(|row| row["region"] == "ewr").unwrap();
    assert_eq!((&of_ewr["rooms"], &of_ewr["clients"], &of_ewr["pending"]), (&json!(5), &json!(5), &json!(0)));
    assert_eq!(of_ewr["endpoint"], json!(balancer.monoliths[0].link_addr().to_string()));

    let (mut names, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = balancer.document(&format!("/_usher/v1/rooms?limit=2&cursor={cursor}")).await;
        pages += 1;
        for room in page["rooms"].as_array().unwrap() {
            assert_eq!((&room["state"], &room["clients"]), (&json!("active"), &json!(1)), "{room}");
            assert_eq!(room["monolith"], json!(balancer.monoliths[0].id()));
            assert!(room["epoch"].is_u64());
            names.push(room["name"].as_str().unwrap().to_string());
        }
        match page["next"].as_str() {
            Some(next) => cursor = next.to_string(),
            None => break,
        }
    }
    assert_eq!((names, pages), ((0..5).map(|n| format!("Room-{n}")).collect(), 3));
    for query in ["limit=0", "limit=1001", "limit=x", "limit=-1", "page=2"] {
        assert_eq!(balancer.api("GET", &format!("/_usher/v1/rooms?{query}"), "").await.status, 400, "{query}");
    }
    // Found in any spelling, shown in its own, with the decision that put it there.
    let room = balancer.document("/_usher/v1/rooms/rOOm-3").await;
    assert_eq!((&room["name"], &room["state"]), (&json!("Room-3"), &json!("active")));
    let decision = &room["decisions"][0];
    assert_eq!((&decision["cause"], &decision["monolith"]), (&json!("join"), &room["monolith"]), "{room}");
    drop(clients);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_listen_moves_everything_but_the_status() {
    let world = usher::testkit::World::new();
    let mut config = quick();
    config.admin_listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let balancer = Balancer::start(monoliths(&world, &["ewr"]).await, config).await;
    assert_ne!(balancer.addr, balancer.admin);
    let key = [("authorization", "Bearer operator-key")];
    let moved = [
        "/_usher/ready",
        "/api/status/metrics",
        "/api/state",
        "/api/balancing",
        "/_usher/v1/policy",
        "/_usher/v1/monoliths",
        "/_usher/v1/rooms",
        "/_usher/",
        "/api/state/",
    ];
    for path in moved {
        assert_eq!(http::get_with(balancer.addr, path, &key).await.unwrap().status, 404, "{path}");
    }
    for path in &moved[..7] {
        assert_eq!(http::get_with(balancer.admin, path, &key).await.unwrap().status, 200, "{path}");
    }
    for addr in [balancer.addr, balancer.admin] {
        assert_eq!(http::get(addr, "/api/status").await.unwrap().text(), "OK");
    }
    let stream = |addr| Connect::path(addr, "/api/state/stream").header("authorization", "Bearer operator-key").open();
    assert!(stream(balancer.addr).await.is_err_and(|error| error.to_string().contains("404")));
    assert!(stream(balancer.admin).await.is_ok());
    // Clients are served on the main port only.
    for path in ["/echo", "/api/room/list", "/api/room/movie"] {
        assert_eq!(http::get(balancer.admin, path).await.unwrap().status, 404, "{path}");
    }
    assert_eq!(balancer.get("/echo").await.status, 200);
    // What is not the main port's to answer is not the Monolith's either.
    assert_eq!(balancer.monoliths[0].look(|state| state.http_count()), 1);
    balancer.finish().await;
}
