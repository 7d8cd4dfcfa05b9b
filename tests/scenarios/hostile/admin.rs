//! The admin API against those who have no key, who spell its paths otherwise, and who have a key and bad intentions.

use serde_json::Value;
use usher::testkit::http;

use super::mutate::mutated;
use super::*;

/// Paths that somebody could take for the admin API's.
const DISGUISED: [&str; 20] = [
    "//_usher/v1/policy",
    "///_usher/v1/policy",
    "/./_usher/v1/policy",
    "/x/../_usher/v1/policy",
    "/api/room/../../_usher/v1/policy",
    "/..//_usher/v1/policy",
    "/%5fusher/v1/policy",
    "/%255fusher/v1/policy",
    "/_ushe%72/v1/policy",
    "/x/%2e%2e/_usher/v1/policy",
    "/%2f_usher/v1/policy",
    "/_usher%2fv1%2fpolicy",
    "/_usher%2Fv1/policy",
    "/_USHER/v1/policy",
    "/_Usher/ready",
    "/_usher./v1/policy",
    "/_usher%00/v1/policy",
    "/_usher%20/v1/policy",
    "/_usher;a=b/v1/policy",
    "http://other.test//_usher/v1/policy",
];

/// Paths below the admin API that are none of its own: they ask for the key like the others.
const BELOW: [&str; 9] = [
    "/_usher/../_usher/v1/policy",
    "/_usher/v1/../v1/policy",
    "/_usher//v1/policy",
    "/_usher/v1//policy",
    "/_usher/%761/policy",
    "/_usher/v1/policy%00",
    "/_usher/v1/policy;x",
    "/_usher/../api/status",
    "http://other.test/_usher/v1/policy",
];

async fn ask(addr: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
    let text = spoken(addr, request.as_bytes()).await;
    let statuses = statuses(&text);
    assert_eq!(statuses.len(), 1, "{path}: {text}");
    (statuses[0], text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

#[tokio::test]
async fn another_spelling_of_an_admin_path_reaches_neither_the_admin_api_nor_a_monolith() {
    let stage = Stage::start(|_| {}).await;
    let addr = stage.balancer.addr();
    let key = format!("Authorization: Bearer {KEY}\r\n");
    for path in DISGUISED {
        for headers in ["", "Authorization: Bearer wrong\r\n", &key] {
            assert_eq!(ask(addr, path, headers).await.0, 404, "{path} {headers}");
        }
    }
    for path in BELOW {
        for headers in ["", "Authorization: Bearer wrong\r\n"] {
            assert_eq!(ask(addr, path, headers).await.0, 401, "{path} {headers}");
        }
    }
    let long = format!("/_usher/v1/rooms/{}", "a".repeat(20_000));
    assert_eq!((ask(addr, &long, "").await.0, ask(addr, &long, &key).await.0), (401, 404));
    assert_eq!(ask(addr, "/_usher/v1/\0policy", &key).await.0, 400);
    assert_eq!(stage.a.look(|state| state.http_count()), 0, "the Monolith saw {:?}", stage.a.requests());
    // A name that only looks like it is somebody else's.
    assert_ne!(ask(addr, "/_ushers/v1/policy", "").await.0, 401);
    assert_eq!(stage.a.look(|state| state.http_count()), 1);
    stage.end().await;
}

#[tokio::test]
async fn with_a_socket_of_its_own_nothing_of_it_is_on_the_main_port() {
    let stage = Stage::start(|config| config.admin_listen = Some("127.0.0.1:0".parse().unwrap())).await;
    let key = format!("Authorization: Bearer {KEY}\r\n");
    for path in DISGUISED.iter().chain(&BELOW).chain(&["/_usher/v1/policy", "/_usher/ready", "/api/state"]) {
        assert_eq!(ask(stage.balancer.addr(), path, &key).await.0, 404, "{path}");
    }
    for path in DISGUISED.iter().chain(&["/echo", "/api/room/x", "/api/room/list", "/"]) {
        assert_eq!(ask(stage.balancer.admin(), path, &key).await.0, 404, "{path}");
    }
    assert_eq!(ask(stage.balancer.admin(), "/_usher/v1/policy", &key).await.0, 200);
    assert_eq!(stage.a.look(|state| state.http_count()), 0);
    stage.end().await;
}

#[tokio::test]
async fn without_the_key_every_answer_is_the_same() {
    let stage = Stage::start(|_| {}).await;
    let addr = stage.balancer.addr();
    let longer = format!("Authorization: Bearer {KEY}x\r\n");
    let shorter = format!("Authorization: Bearer {}\r\n", &KEY[1..]);
    let wrong_first = format!("Authorization: Bearer wrong\r\nAuthorization: Bearer {KEY}\r\n");
    let cookie = format!("Cookie: api_key={KEY}; authorization=Bearer {KEY}\r\n");
    let apikey = format!("apikey: {KEY}\r\nX-Api-Key: {KEY}\r\n");
    let basic = format!("Authorization: Basic {KEY}\r\n");
    let twice = format!("Authorization: Bearer Bearer {KEY}\r\n");
    let headers = ["", &longer, &shorter, &wrong_first, &cookie, &apikey, &basic, &twice, "Authorization: Bearer \r\n"];
    let query = format!("/_usher/v1/policy?key={KEY}&api_key={KEY}&apikey={KEY}&access_token={KEY}");
    let paths =
        ["/_usher/v1/policy", &query, "/_usher/v1/nothing", "/_usher/v1/rooms/x", "/api/state", "/api/state/stream"];
    let mut bodies = std::collections::BTreeSet::new();
    for path in paths {
        for headers in headers {
            let (status, body) = ask(addr, path, headers).await;
            assert_eq!(status, 401, "{path} {headers}");
            assert!(!body.contains(KEY));
            bodies.insert(body);
        }
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    // Nor is a body read: its length, and that it never ends, change nothing.
    for length in [1, 1 << 20, 1_u64 << 40] {
        let request = format!("POST /_usher/v1/policy/use HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{{");
        let answer = http::raw(addr, request.as_bytes(), SOON).await.unwrap();
        assert_eq!(statuses(&String::from_utf8_lossy(&answer)), [401], "{length}");
    }
    stage.end().await;
}

#[tokio::test]
async fn whoever_has_the_key_gets_an_answer_for_every_body_and_no_file_of_the_disk() {
    let stage = Stage::start(|_| {}).await;
    let (balancer, corpus) = (&stage.balancer, corpus("admin"));
    let key = format!("Bearer {KEY}");
    let routes = ["policy/use", "policy/shadow", "policy/canary", "policy/stop", "rooms/x/move", "policy/promote"];
    let post = async |route: &str, body: Vec<u8>| {
        let headers = [("authorization", key.as_str()), ("content-type", "application/json")];
        http::request(balancer.addr(), "POST", &format!("/_usher/v1/{route}"), &headers, body).await.unwrap()
    };
    let before = balancer.get("/_usher/v1/policy").await.json()["active"]["version"].clone();
    for (name, body) in &corpus {
        for route in routes {
            let answer = post(route, body.clone()).await;
            let good = matches!(name.as_str(), "use.json" | "canary.json" | "stop.json");
            if !good {
                assert!((400..500).contains(&answer.status), "{route} {name}: {} {}", answer.status, answer.text());
                assert!(answer.json()["error"]["code"].is_string(), "{route} {name}: {}", answer.text());
            }
            assert!(!answer.text().contains("root:"), "{route} {name}");
        }
    }
    assert_eq!(post("policy/use", br#"{"policy":"default"}"#.to_vec()).await.status, 200);
    let seeds: Vec<Vec<u8>> = corpus.into_iter().map(|(_, body)| body).collect();
    let mut random = random(3);
    for _ in 0..150 {
        let (route, body) = (*random.pick(&routes), mutated(&seeds, &mut random));
        let answer = post(route, body.clone()).await;
        assert!(answer.status < 500, "{route} {}: {}", body.escape_ascii(), answer.text());
        assert!(serde_json::from_slice::<Value>(&answer.body).is_ok(), "{route} {}", body.escape_ascii());
    }
    assert_eq!(post("policy/use", br#"{"policy":"default"}"#.to_vec()).await.status, 200);
    assert_eq!(balancer.get("/_usher/v1/policy").await.json()["active"]["version"], before);
    stage.end().await;
}

/// The names of everything in a folder.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn whoever_has_the_key_gets_an_answer_for_every_recording_and_no_file_outside_its_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("inner/records");
    std::fs::create_dir_all(&folder).unwrap();
    let stage = Stage::start(|config| config.record.folder = Some(folder.clone())).await;
    let (key, addr) = (format!("Bearer {KEY}"), stage.balancer.addr());
    let ask = async |method: &str, body: &[u8]| {
        let headers = [("authorization", key.as_str()), ("content-type", "application/json")];
        http::request(addr, method, "/_usher/v1/record", &headers, body.to_vec()).await.unwrap()
    };
    let corpus = corpus("admin");
    let mut random = random(6);
    let records: Vec<Vec<u8>> =
        corpus.iter().filter(|(name, _)| name.starts_with("record")).map(|(_, body)| body.clone()).collect();
    let bent: Vec<_> = (0..100).map(|n| (format!("bent {n}"), mutated(&records, &mut random))).collect();
    let mut begun = 0;
    for (name, body) in corpus.iter().chain(&bent) {
        let answer = ask("POST", body).await;
        let shown = format!("{name}: {} {} {}", body.escape_ascii(), answer.status, answer.text());
        if answer.status == 200 {
            // Another one at the same time is refused, whatever it asks for.
            assert!((400..500).contains(&ask("POST", body).await.status), "{shown}");
            assert_eq!(ask("DELETE", b"").await.status, 200, "{shown}");
            begun += 1;
        } else {
            assert!((400..500).contains(&answer.status), "{shown}");
            assert!(answer.json()["error"]["code"].is_string(), "{shown}");
        }
        if !name.starts_with("bent") {
            assert_eq!(answer.status == 200, matches!(name.as_str(), "record.json" | "empty.json"), "{shown}");
        }
        assert!(!answer.text().contains("root:"), "{shown}");
    }
    assert!(begun >= 2, "those of the corpus that are good");
    assert!(!names_in(&folder).is_empty());
    assert_eq!(
        (names_in(outer.path()), names_in(&outer.path().join("inner"))),
        (vec!["inner".into()], vec!["records".into()])
    );
    stage.end().await;
}
