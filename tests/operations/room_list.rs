//! `/api/room/list`: what everybody sees, and what whoever holds the Monoliths' key sees.

use std::time::Duration;

use serde_json::{Value, json};
use usher::testkit::http;
use usher::testkit::{Monolith, RoomInfo, World};

use super::harness::{Balancer, SOON, eventually, quick};

const LIST: &str = "/api/room/list";

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap()).collect()
}

async fn list_of(balancer: &Balancer, count: usize) -> Value {
    eventually(&format!("{count} rooms are listed"), async || {
        let list = balancer.get(LIST).await.json();
        (list.as_array().is_some_and(|list| list.len() == count)).then_some(list)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_public_list_is_ordered_whole_and_current() {
    let world = World::new();
    let mut fleet = Vec::new();
    for region in ["ewr", "cdg"] {
        // No gossip comes to the rescue: what the list says of users is what we know ourselves.
        let builder = Monolith::builder(&world).region(region).gossip_every(Duration::from_secs(3600));
        fleet.push(builder.start().await.unwrap());
    }
    let balancer = Balancer::start(fleet, quick()).await;
    let answer = balancer.get(LIST).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "[]"));
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
    let mut rich = RoomInfo::temporary("Rich");
    rich.title = "a \"title\" — \u{1f3ac}".into();
    rich.current_source = json!({"service": "youtube", "id": "x", "length": 12.5, "deep": {"a": [1, null]}});
    rich.extra.insert("somethingNew".into(), json!({"z": 1, "a": [true, 1e3]}));
    balancer.monoliths[0].load_with(rich);
    balancer.monoliths[1].load_with(RoomInfo::temporary("alpha"));
    balancer.monoliths[0].load_with(RoomInfo::temporary("beta"));
    balancer.monoliths[0].load_with(RoomInfo::temporary("hidden").unlisted());
    balancer.monoliths[1].load_with(RoomInfo::temporary("Busy"));
    let list = list_of(&balancer, 4).await;
    assert_eq!(names(&list), ["Busy", "Rich", "alpha", "beta"], "equal numbers of users: by name");
    // `loaded` and gossip say that nobody is there, which we know better.
    let _one = balancer.join("beta", "token").await;
    let _two = (balancer.join("busy", "token").await, balancer.join("BUSY", "token").await);
    let list = eventually("own clients count", async || {
        let list = balancer.get(LIST).await.json();
        (names(&list) == ["Busy", "beta", "Rich", "alpha"]).then_some(list)
    })
    .await;
    assert_eq!((&list[0]["users"], &list[1]["users"], &list[2]["users"]), (&json!(2), &json!(1), &json!(0)));
    // What the Monolith says of a room stands there byte for byte, unknown keys and the order of keys included.
    let text = balancer.get(LIST).await.text();
    let gossip = r#""currentSource":{"service":"youtube","id":"x","length":12.5,"deep":{"a":[1,null]}}"#;
    let fallback = r#""currentSource":{"deep":{"a":[1,null]},"id":"x","length":12.5,"service":"youtube"}"#;
    assert!(text.contains(gossip) || text.contains(fallback), "{text}");
    assert!(text.contains(r#""somethingNew":{"#), "{text}");
    assert_eq!(list[2]["title"], "a \"title\" — \u{1f3ac}");
    for room in list.as_array().unwrap() {
        let text = room.to_string();
        assert_eq!(text.matches("\"name\"").count(), 1, "{text}");
    }
    assert_eq!(balancer.get("/api/room/list/").await.json(), list);
    let head = http::request(balancer.addr, "HEAD", LIST, &[], "").await.unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
    // More users are reported than are ours: other balancers have some.
    let mut wanted = RoomInfo::temporary("elsewhere");
    wanted.visibility = "public".into();
    let metadata = json!({"name": "elsewhere", "title": "", "description": "", "isTemporary": true,
        "visibility": "public", "queueMode": "manual", "currentSource": null, "users": 50});
    let loaded = json!({"type": "loaded", "payload": {"room": metadata, "load_epoch": 900}}).to_string();
    balancer.monoliths[1].say_raw(&loaded);
    let list = list_of(&balancer, 5).await;
    assert_eq!((&list[0]["name"], &list[0]["users"]), (&json!("elsewhere"), &json!(50)));
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_on_two_monoliths_is_listed_once_and_one_that_goes_is_not() {
    let (balancer, world) = Balancer::simple(&["ewr", "cdg"]).await;
    world.set_epoch(10);
    balancer.monoliths[0].load_with(RoomInfo::temporary("Twice"));
    balancer.monoliths[1].load_with(RoomInfo::temporary("twice"));
    balancer.monoliths[1].load_with(RoomInfo::temporary("other"));
    let list = list_of(&balancer, 2).await;
    assert_eq!(names(&list), ["Twice", "other"], "the older load wins");
    balancer.monoliths[1].unload("other", usher::testkit::monolith::UnloadReason::Keepalive);
    assert_eq!(names(&list_of(&balancer, 1).await), ["Twice"]);
    // The copy that lost goes when it is this balancer's turn to ask; until then it could still stand in.
    balancer.monoliths[1].wait_for(|state| state.unload_count() == 1, SOON).await.unwrap();
    balancer.monoliths[0].kill().await;
    list_of(&balancer, 0).await;
    balancer.all_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_spellings_and_methods_are_not_the_list() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    balancer.monoliths[0].load_with(RoomInfo::temporary("movie"));
    list_of(&balancer, 1).await;
    assert_eq!(balancer.monoliths[0].look(|state| state.http_count()), 0, "nobody was asked");
    for (method, path) in
        [("GET", "/api/room/List"), ("GET", "/api/room/LIST"), ("POST", LIST), ("GET", "/api/room/list/x")]
    {
        http::request(balancer.addr, method, path, &[], "").await.unwrap();
        let last = balancer.monoliths[0].requests().pop().unwrap();
        assert_eq!((last.method.as_str(), last.target.as_str()), (method, path), "passed on");
    }
    for name in ["list", "List", "LIST"] {
        assert_eq!(balancer.api("GET", &format!("/_usher/v1/rooms/{name}"), "").await.status, 404, "no room {name}");
    }
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_apikey_every_monolith_is_asked() {
    let (balancer, _world) = Balancer::simple(&["ewr", "cdg"]).await;
    balancer.monoliths[0].load_with(RoomInfo::temporary("Shown"));
    balancer.monoliths[0].load_with(RoomInfo::temporary("hidden").unlisted());
    balancer.monoliths[1].load_with(RoomInfo::temporary("far").unlisted());
    let _client = balancer.join("far", "token").await;
    let key = [("apikey", "test-key"), ("x-trace", "7"), ("if-none-match", "*"), ("accept-encoding", "gzip")];
    let answer = http::get_with(balancer.addr, LIST, &key).await.unwrap();
    assert_eq!((answer.status, answer.header("x-usher-partial")), (200, None), "{}", answer.text());
    assert_eq!(names(&answer.json()), ["far", "Shown", "hidden"]);
    for monolith in &balancer.monoliths {
        let asked = monolith.requests().pop().unwrap();
        assert_eq!(asked.target, LIST);
        assert_eq!((asked.header("apikey").next(), asked.header("x-trace").next()), (Some("test-key"), Some("7")));
    }
    for monolith in &balancer.monoliths {
        let asked = monolith.requests().pop().unwrap();
        for name in ["if-none-match", "accept-encoding"] {
            assert_eq!(asked.header(name).next(), None, "each would answer with less than its list");
        }
    }
    // A body belongs to nobody here, and nobody waits for it.
    let answer = http::request(balancer.addr, "GET", LIST, &key, "a body").await.unwrap();
    assert_eq!((answer.status, answer.header("x-usher-partial")), (200, None), "{}", answer.text());
    let answer = http::get_with(balancer.addr, LIST, &[("apikey", "wrong")]).await.unwrap();
    assert_eq!(answer.status, 401);
    assert!(answer.text().contains("MissingToken"), "the Monolith's own answer: {}", answer.text());
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_answer_is_left_out_and_named() {
    let world = World::new();
    let good = Monolith::builder(&world).region("ewr").start().await.unwrap();
    // Takes connections into its backlog and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let id = "11111111-0000-4000-8000-000000000000";
    let init = json!({"type": "init", "payload": {"port": port, "region": "ewr", "id": id}}).to_string();
    let style = usher::testkit::monolith::InitStyle::Text(init);
    let mute = Monolith::builder(&world).id(id).region("ewr").init(style).start().await.unwrap();
    good.load_with(RoomInfo::temporary("movie").unlisted());
    let balancer = Balancer::start(vec![good, mute], quick()).await;
    let started = std::time::Instant::now();
    let answer = http::get_with(balancer.addr, LIST, &[("apikey", "test-key")]).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(15));
    assert_eq!((answer.status, answer.header("x-usher-partial")), (200, Some(id)));
    assert_eq!(names(&answer.json()), ["movie"]);
    // The public list asks nobody.
    assert_eq!(balancer.get(LIST).await.status, 200);
    balancer.finish().await;
}
