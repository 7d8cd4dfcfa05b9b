//! Links that misbehave: they stall, introduce themselves late or badly, lead to one Monolith twice, say too much.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use usher::config::Secret;
use usher::testkit::monolith::InitStyle;
use usher::testkit::{Client, World};

use crate::harness::*;

/// A second address of a Monolith: passes bytes on while it is open, and cuts everything when it is not.
struct Forwarder {
    addr: SocketAddr,
    open: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwarder {
    async fn start(target: SocketAddr, open: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let open = Arc::new(watch::Sender::new(open));
        let mut state = open.subscribe();
        let task = tokio::spawn(async move {
            let mut pipes = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((mut near, _)) = listener.accept() => if *state.borrow() {
                        pipes.spawn(async move {
                            let Ok(mut far) = TcpStream::connect(target).await else { return };
                            // However it ends, both sides are closed.
                            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                        });
                    },
                    Ok(()) = state.changed() => if !*state.borrow_and_update() {
                        pipes.shutdown().await;
                    },
                    else => return,
                }
            }
        });
        Self { addr, open, task }
    }

    fn set(&self, open: bool) {
        self.open.send_replace(open);
    }
}

#[tokio::test]
async fn f09_a_monolith_under_two_addresses_is_one_monolith() {
    let world = world_with(["x", "y"]);
    let a = monolith(&world).start().await.unwrap();
    let one = Forwarder::start(a.link_addr(), true).await;
    let two = Forwarder::start(a.link_addr(), false).await;
    let mut config = config_for(&[one.addr, two.addr]);
    closing(&mut config);
    let balancer = Balancer::start_config(config).await;
    balancer.linked(1).await;
    let client = balancer.join("x", "t").await;
    let dialled = a.look(|state| state.links_accepted());
    two.set(true);
    // The second address is tried, and is found to lead to the same one.
    holds(&a, |state| state.links_accepted() >= dialled + 2).await;
    let listed = balancer.monoliths().await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["endpoint"], one.addr.to_string());
    // The loss of the second address costs nothing.
    two.set(false);
    a.say("x", None, r#"{"still":"here"}"#);
    let mut client = client;
    client.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    balancer.linked(1).await;
    // When the first one goes, the second takes over.
    two.set(true);
    one.set(false);
    assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    eventually("the second address is used", async || {
        let listed = balancer.monoliths().await;
        let ok = listed.len() == 1 && listed[0]["endpoint"] == two.addr.to_string();
        ok.then_some(()).ok_or(listed)
    })
    .await;
    drop(balancer.join("x", "t").await);
    assert_eq!(a.loads(), 1);
    nobody_left(&balancer, &[&a]).await;
    assert!(a.unloads().is_empty());
}

/// A Monolith that introduces itself badly is dialled again until it does not.
async fn recovers(style: InitStyle) {
    let world = world_with(["x"]);
    let a = monolith(&world).init(style.clone()).start().await.unwrap();
    let balancer = Balancer::start_unlinked(&[&a], |config| {
        config.timeouts.link_handshake = Duration::from_millis(700);
    })
    .await;
    holds(&a, |state| state.links_accepted() >= 3).await;
    assert_eq!(balancer.monoliths().await.len(), 0, "{style:?}");
    a.set_init(InitStyle::Normal);
    balancer.linked(1).await;
    drop(balancer.join("x", "t").await);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn f17_garbage_instead_of_an_init_is_got_over() {
    recovers(InitStyle::Text("this is no JSON".to_owned())).await;
}

#[tokio::test]
async fn f17_another_message_instead_of_an_init_is_got_over() {
    recovers(InitStyle::Text(r#"{"type":"gossip","payload":{"rooms":[]}}"#.to_owned())).await;
}

#[tokio::test]
async fn f17_an_init_without_its_fields_is_got_over() {
    recovers(InitStyle::Text(r#"{"type":"init","payload":{"port":"80"}}"#.to_owned())).await;
}

#[tokio::test]
async fn f17_a_binary_init_is_got_over() {
    recovers(InitStyle::Binary).await;
}

#[tokio::test]
async fn f17_no_init_at_all_is_got_over() {
    recovers(InitStyle::Never).await;
}

#[tokio::test]
async fn f17_a_late_init_is_waited_for() {
    let world = world_with(["x"]);
    let a = monolith(&world).init(InitStyle::Delayed(Duration::from_millis(500))).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    assert_eq!(a.look(|state| state.links_accepted()), 1);
    drop(balancer.join("x", "t").await);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn a_link_that_is_refused_is_dialled_again() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    a.refuse(true);
    let balancer = Balancer::start_unlinked(&[&a], |_| {}).await;
    eventually("it has tried", async || match balancer.metric("usher_link_dial_failures_total").await {
        count if count >= 2.0 => Ok(()),
        count => Err(count),
    })
    .await;
    a.refuse(false);
    balancer.linked(1).await;
}

#[tokio::test]
async fn link_token_keeps_strangers_out() {
    let world = world_with(["x"]);
    let good = monolith(&world).token("shared-secret").start().await.unwrap();
    let none = monolith(&world).start().await.unwrap();
    let wrong = monolith(&world).token("shared-secreT").start().await.unwrap();
    let balancer = Balancer::start_unlinked(&[&good, &none, &wrong], |config| {
        config.link_token = Secret::new("shared-secret");
    })
    .await;
    balancer.linked(1).await;
    for stranger in [&none, &wrong] {
        holds(stranger, |state| state.links_accepted() >= 2).await;
    }
    let listed = balancer.monoliths().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["id"], good.id());
    drop(balancer.join("x", "t").await);
    nobody_left(&balancer, &[&good, &none, &wrong]).await;
    assert_eq!(good.joins().len(), 1);
}

#[tokio::test]
async fn f05_early_gossip_keeps_a_pending_room() {
    let world = world_with(["x"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start(&[&a, &b]).await;
    for monolith in [&a, &b] {
        monolith.freeze_loads();
    }
    let mut client = Client::join(balancer.addr(), "x", "t").await.unwrap();
    eventually("the join has arrived", async || match a.joins().len() + b.joins().len() {
        1 => Ok(()),
        count => Err(count),
    })
    .await;
    for _ in 0..3 {
        a.gossip_now();
        b.gossip_now();
    }
    // Joins that come now wait like the first one.
    let mut second = Client::join(balancer.addr(), "x", "t").await.unwrap();
    for monolith in [&a, &b] {
        monolith.thaw_loads();
    }
    for client in [&mut client, &mut second] {
        client.synced(SOON).await.unwrap();
    }
    assert_eq!((a.loads() + b.loads(), a.joins().len() + b.joins().len()), (1, 2));
    drop((client, second));
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test]
async fn f03_a_monolith_that_stalls_loses_its_clients_and_takes_part_again_when_it_resumes() {
    let world = world_with(["x", "y"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        closing(config);
        config.heartbeat.interval = Duration::from_millis(300);
    })
    .await;
    let mut client = balancer.join("x", "t").await;
    let (stalled, other) = if a.loads() == 1 { (&a, &b) } else { (&b, &a) };
    stalled.stall();
    assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    balancer.linked(1).await;
    let mut client = balancer.join("x", "t").await;
    assert_eq!(other.members("x").len(), 1);
    // What the stalled one wanted to say on its old link is of no account.
    stalled.say_raw(r#"{"type":"loaded","payload":{"room":{"name":"ghost"},"load_epoch":1}}"#);
    stalled.say_raw(r#"{"type":"unloaded","payload":{"name":"x","reason":"Keepalive"}}"#);
    stalled.resume();
    balancer.linked(2).await;
    // It still has the older load: that one wins, on both sides of the correction nobody is told to give up.
    assert!(client.closed(SOON).await.unwrap().code < 4000);
    let client = balancer.join("x", "t").await;
    assert_eq!((stalled.members("x").len(), other.members("x").len()), (1, 0));
    holds(other, |state| state.unload_count() == 1 && state.rooms().is_empty()).await;
    assert!(stalled.unloads().is_empty());
    assert_eq!(balancer.get("/_usher/v1/rooms/ghost").await.status, 404);
    drop((client, balancer.join("y", "t").await));
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test]
async fn f21_a_half_open_link_is_found_before_its_clients_find_out() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| {
        closing(config);
        config.heartbeat.interval = Duration::from_millis(300);
    })
    .await;
    let mut client = balancer.join("x", "t").await;
    a.stall_reading();
    assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    balancer.linked(0).await;
    a.resume();
    balancer.linked(1).await;
    drop(balancer.join("x", "t").await);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn f16_what_strangers_say_leads_nowhere() {
    let world = World::new();
    world.add(usher::testkit::RoomInfo::permanent("x"));
    let stranger = monolith(&world).init(InitStyle::Never).start().await.unwrap();
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_unlinked(&[&stranger, &a], |config| {
        config.timeouts.link_handshake = Duration::from_millis(500);
    })
    .await;
    balancer.linked(1).await;
    for _ in 0..5 {
        stranger.say_raw(r#"{"type":"loaded","payload":{"room":{"name":"x"},"load_epoch":1}}"#);
        stranger.say_raw(r#"{"type":"gossip","payload":{"rooms":[{"room":{"name":"x"},"load_epoch":1}]}}"#);
        tokio::task::yield_now().await;
    }
    for round in 0..5 {
        drop(balancer.join("x", &format!("t{round}")).await);
    }
    assert_eq!(a.joins().len(), 5);
    assert_eq!(balancer.get("/_usher/ready").await.status, 200);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn odd_frames_on_a_link_do_not_end_it() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let mut client = balancer.join("x", "t").await;
    let odd = [
        "no json",
        "null",
        "[]",
        "{}",
        r#"{"type":"gossip"}"#,
        r#"{"type":"gossip","payload":{"rooms":[{"room":{"name":7},"load_epoch":1}]}}"#,
        r#"{"type":"loaded","payload":{"room":{},"load_epoch":-1}}"#,
        r#"{"type":"unloaded","payload":{"name":"other","reason":"Because"}}"#,
        r#"{"type":"kick","payload":{"client_id":"nobody","reason":4000}}"#,
        r#"{"type":"room_msg","payload":{"room":"nowhere","payload":{}}}"#,
        r#"{"type":"room_msg","payload":{"room":"x","client_id":17,"payload":{}}}"#,
        r#"{"type":"init","payload":{"port":1,"region":"r","id":"again"}}"#,
        r#"{"type":"later_version","payload":{"a":1}}"#,
    ];
    for text in odd {
        a.say_raw(text);
    }
    a.say_binary(vec![0xff, 0xfe, 0x00]);
    a.say("x", None, r#"{"still":"here"}"#);
    client.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    assert_eq!(a.look(|state| state.links_accepted()), 1);
    drop(client);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn f30_a_broken_frame_on_a_link_ends_that_link_and_no_other() {
    let world = world_with(["x", "y"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start_with(&[&a, &b], closing).await;
    let x = balancer.join("x", "t").await;
    let y = balancer.join("y", "t").await;
    let (mut broken, mut kept) = if a.members("x").is_empty() { (y, x) } else { (x, y) };
    // Reserved bits are set.
    a.say_bytes(vec![0xb1, 0x00]);
    assert_eq!(broken.closed(SOON).await.unwrap().code, 1001);
    let room = if b.members("x").is_empty() { "y" } else { "x" };
    b.say(room, None, r#"{"still":"here"}"#);
    kept.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    balancer.linked(2).await;
    drop(kept);
    nobody_left(&balancer, &[&a, &b]).await;
}
