//! Rooms that move to another Monolith, where clients are closed: they come back there, and neither the Monolith nor other rooms notice.

use std::time::Duration;

use serde_json::json;
use usher::testkit::reconnect::Policy as Pace;
use usher::testkit::{Client, Monolith, ReconnectingClient};

use crate::harness::*;

/// Every room goes to the Monolith with the smallest id; `x` moves on to the other one once three clients are in it.
const POLICY: &str = "local policy = {}
function policy.place(call) return call.monoliths[1] end
function policy.rebalance(call)
  local moves = {}
  for _, room in call.rooms do
    if room.name == 'x' and room.clients == 3 and room.owner == call.monoliths[1].id then
      moves[#moves + 1] = usher.move(room, call.monoliths[2])
    end
  end
  return moves
end
return policy";

async fn pair() -> (Monolith, Monolith, usher::testkit::World) {
    let world = world_with(["x", "y"]);
    let a = monolith(&world).id("00000000-0000-4000-8000-00000000000a").start().await.unwrap();
    let b = monolith(&world).id("00000000-0000-4000-8000-00000000000b").start().await.unwrap();
    (a, b, world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_moves_a_room_and_its_clients_come_back_to_the_target() {
    let (a, b, _world) = pair().await;
    let policy = PolicyFile::new(POLICY);
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        policy.set(config);
        closing(config);
        config.policy.budget = Duration::from_secs(1);
        config.policy.rebalance_every = Some(Duration::from_millis(200));
    })
    .await;
    let mut bystander = balancer.join("y", "bystander").await;
    let pace = Pace { scale: 0.02, ..Pace::default() };
    let clients: Vec<ReconnectingClient> =
        (0..3).map(|n| ReconnectingClient::spawn(balancer.addr(), "x", &format!("t{n}"), pace)).collect();
    for client in &clients {
        let progress = client.wait_for(|progress| progress.syncs == 2, SOON).await.unwrap();
        assert_eq!(progress.codes, [1001]);
    }
    holds(&b, |state| state.members("x").len() == 3).await;
    assert_eq!((a.loads_of("x"), b.loads_of("x"), a.unloads().len()), (1, 1, 1));
    assert!(a.unloads()[0].loaded);
    // The other room of that Monolith has noticed nothing.
    a.say("y", None, r#"{"still":"here"}"#);
    bystander.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    let document = balancer.get("/_usher/v1/rooms/x").await.json();
    let causes = document["decisions"].as_array().unwrap().iter().map(|decision| decision["cause"].as_str().unwrap());
    assert_eq!((&document["monolith"], causes.collect::<Vec<_>>()), (&json!(b.id()), vec!["join", "move"]));
    let moving = document["story"].as_array().unwrap().iter().find(|chapter| chapter["what"] == "moving").unwrap();
    assert_eq!((&moving["by"], &moving["policy"]["name"]), (&json!("policy"), &json!("policy")));
    assert_eq!(balancer.metric("usher_moves_done_total").await, 1.0);
    assert_eq!(balancer.metric("usher_duplicates_total").await, 0.0);
    drop((clients, bystander));
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_takes_clients_along_whose_sockets_stay_open() {
    let (a, b, _world) = pair().await;
    let policy = PolicyFile::new(POLICY);
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        policy.set(config);
        config.handover.quiet = Duration::from_millis(100);
        config.policy.budget = Duration::from_secs(1);
        config.policy.rebalance_every = Some(Duration::from_millis(200));
    })
    .await;
    let mut clients = Vec::new();
    for name in ["one", "two", "three"] {
        clients.push(balancer.join("x", name).await);
    }
    holds(&b, |state| state.members("x").len() == 3).await;
    for client in &mut clients {
        client.synced(SOON).await.unwrap();
        client.send(r#"{"action":"echo","where":"there"}"#).await;
        client.recv_until(SOON, |text| text.contains("there")).await.unwrap();
    }
    assert_eq!((a.loads_of("x"), b.loads_of("x"), a.unloads().len()), (1, 1, 1));
    assert_eq!(balancer.metric("usher_moves_done_total").await, 1.0);
    assert_eq!(balancer.metric("usher_handover_lossy_total").await, 0.0);
    drop(clients);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_rebalance_moves_nothing() {
    let (a, b, _world) = pair().await;
    let policy = PolicyFile::new(POLICY);
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        policy.set(config);
        closing(config);
        config.policy.budget = Duration::from_secs(1);
        config.policy.rebalance_every = Some(Duration::from_millis(100));
        config.policy.rebalance = usher::config::Rebalance::Dry;
    })
    .await;
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(balancer.join("x", &format!("t{n}")).await);
    }
    eventually("the move is counted twice", async || match balancer.metric("usher_moves_dry_total").await {
        counted if counted >= 2.0 => Ok(()),
        counted => Err(counted),
    })
    .await;
    assert!(a.unloads().is_empty());
    assert_eq!(balancer.metric("usher_moves_begun_total").await, 0.0);
    a.say("x", None, r#"{"still":"here"}"#);
    clients[0].recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    drop(clients);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_moves_a_room() {
    let (a, b, _world) = pair().await;
    let policy = PolicyFile::new("return { place = function(call) return call.monoliths[1] end }");
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        policy.set(config);
        closing(config);
    })
    .await;
    let mut client = balancer.join("x", "t").await;
    let to_b = json!({"to": b.id()});
    for (path, body, status, code) in [
        ("/_usher/v1/rooms/nowhere/move", &to_b, 404, "not_found"),
        ("/_usher/v1/rooms/x/move", &json!({"to": a.id()}), 409, "same_monolith"),
        ("/_usher/v1/rooms/x/move", &json!({"to": "m9"}), 409, "unknown_monolith"),
        ("/_usher/v1/rooms/x/move", &json!({"too": "m9"}), 400, "bad_request"),
    ] {
        let answer = balancer.post(path, body).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &json!(code)), "{}", answer.text());
    }
    assert_eq!(balancer.get("/_usher/v1/rooms/x/move").await.status, 405);
    let answer = balancer.post("/_usher/v1/rooms/X/move", &to_b).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json(), json!({"room": "x", "from": a.id(), "to": b.id(), "clients": 1}));
    assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    let back = balancer.join("x", "t").await;
    holds(&b, |state| state.members("x").len() == 1).await;
    assert_eq!((a.unloads().len(), b.unloads().len()), (1, 0));
    drop(back);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_whose_only_member_was_not_let_in_yet_is_not_asked_for() {
    let (a, b, _world) = pair().await;
    let policy = PolicyFile::new("return { place = function(call) return call.monoliths[1] end }");
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        policy.set(config);
        closing(config);
        config.timeouts.load = Duration::from_millis(300);
    })
    .await;
    a.load("x");
    eventually("the room is reported", async || {
        let room = balancer.get("/_usher/v1/rooms/x").await;
        (room.status == 200).then_some(()).ok_or(room.status)
    })
    .await;
    // Its Monolith reads nothing: for all we know it is about to unload the empty room by itself.
    a.stall();
    let mut client = Client::join(balancer.addr(), "x", "t").await.unwrap();
    eventually("the client is a member", async || match balancer.members().await {
        1 => Ok(()),
        count => Err(count),
    })
    .await;
    assert_eq!(balancer.post("/_usher/v1/rooms/x/move", &json!({"to": b.id()})).await.status, 200);
    eventually("the move is given up", async || match balancer.metric("usher_moves_given_up_total").await {
        1.0 => Ok(()),
        count => Err(count),
    })
    .await;
    assert_eq!(balancer.metric("usher_unloads_withheld_total").await, 1.0);
    a.resume();
    client.synced(SOON).await.unwrap();
    assert!(a.unloads().is_empty());
    drop(client);
    nobody_left(&balancer, &[&a, &b]).await;
}
