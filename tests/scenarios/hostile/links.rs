//! A Monolith gone mad: what it says is ignored or costs its own link, and the rooms of the others do not notice.

use serde_json::json;
use usher::testkit::RawFrame;
use usher::testkit::monolith::InitStyle;

use super::mutate::mutated;
use super::*;
use crate::support;

/// A second Monolith beside the one of the stage, that has no rooms of its own.
async fn mad(stage: &Stage) -> Monolith {
    monolith(&stage.world).id("ffffffff-ffff-4fff-8fff-ffffffffffff").start().await.unwrap()
}

/// A stage whose balancer is also linked to a Monolith gone mad. The good one has the first rooms.
async fn pair(change: impl FnOnce(&mut Config)) -> (Stage, Monolith) {
    watch_panics();
    let world = world_with(["witness", "newcomers", "x"]);
    let a = monolith(&world).id("00000000-0000-4000-8000-000000000001").start().await.unwrap();
    let b = monolith(&world).id("ffffffff-ffff-4fff-8fff-ffffffffffff").start().await.unwrap();
    let policy = PolicyFile::new("return { place = function(call) return call.monoliths[1] end }");
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        policy.set(config);
        change(config);
    })
    .await;
    let witness = balancer.join("witness", "witness").await;
    assert_eq!(a.members("witness").len(), 1);
    (Stage { world, a, balancer, witness, said: 0, _policy: Some(policy) }, b)
}

#[tokio::test]
async fn bent_frames_of_one_monolith_cost_nobody_else_anything() {
    let (mut stage, mad) = pair(|_| {}).await;
    let recording = support::recording("m-raw-link");
    let said =
        recording.events().iter().filter(|event| event.direction == Some(usher::testkit::recording::Direction::M2b));
    let mut seeds: Vec<Vec<u8>> = said.filter_map(|event| event.frame()).map(|text| text.as_bytes().to_vec()).collect();
    for (name, bytes) in corpus("link") {
        mad.say_raw(&String::from_utf8_lossy(&bytes));
        assert!(bytes.len() < 2000, "{name}");
        seeds.push(bytes);
    }
    stage.unharmed().await;
    let mut random = random(5);
    for round in 0..400 {
        let bytes = mutated(&seeds, &mut random);
        match std::str::from_utf8(&bytes) {
            Ok(text) => mad.say_raw(text),
            Err(_) => mad.say_binary(bytes),
        }
        if round % 100 == 99 {
            stage.unharmed().await;
        }
    }
    let bad = eventually("frames were counted", async || {
        let bad = stage.balancer.metric("usher_link_bad_frames_total").await;
        (bad > 50.0).then_some(bad).ok_or(bad)
    })
    .await;
    assert!(bad < stage.balancer.metric("usher_link_frames_in_total").await);
    assert_eq!(mad.look(|state| state.links_accepted()), 1, "its link stays");
    // What it said it has is gone with its link.
    mad.kill().await;
    stage.balancer.linked(1).await;
    stage.end().await;
}

#[tokio::test]
async fn frames_for_strangers_are_dropped_and_counted() {
    let (mut stage, mad) = pair(|_| {}).await;
    let before = stage.balancer.metric("usher_link_unknown_members_total").await;
    let theirs = stage.a.members("witness").remove(0);
    for id in [theirs.as_str(), "00000000-0000-0000-0000-000000000000", "nobody", "", &"f".repeat(100_000)] {
        mad.say_raw(&json!({"type": "kick", "payload": {"client_id": id, "reason": 4005}}).to_string());
        let payload = json!({"room": "witness", "client_id": id, "payload": {"from": "a stranger"}});
        mad.say_raw(&json!({"type": "room_msg", "payload": payload}).to_string());
    }
    mad.say_raw(r#"{"type":"room_msg","payload":{"room":"witness","payload":{"from":"a stranger"}}}"#);
    mad.say_raw(r#"{"type":"unloaded","payload":{"name":"witness","reason":"Admin"}}"#);
    for _ in 0..3 {
        mad.say_raw(r#"{"type":"init","payload":{"port":1,"region":"r","id":"00000000-0000-4000-8000-000000000001"}}"#);
    }
    eventually("all are counted", async || {
        let counted = stage.balancer.metric("usher_link_unknown_members_total").await - before;
        (counted >= 11.0).then_some(()).ok_or(counted)
    })
    .await;
    stage.unharmed().await;
    assert!(stage.witness.take_ready().iter().all(|text| !text.contains("a stranger")));
    assert_eq!(stage.balancer.monoliths().await.len(), 2);
    assert!(mad.unloads().is_empty());
    stage.end().await;
}

#[tokio::test]
async fn gossip_of_a_hundred_thousand_rooms_is_taken_in_and_forgotten() {
    const ROOMS: usize = 100_000;
    let (mut stage, mad) = pair(|_| {}).await;
    let room =
        |n: usize| format!(r#"{{"room":{{"name":"flood-{n}","visibility":"public","users":1}},"load_epoch":{n}}}"#);
    let rooms: Vec<String> = (0..ROOMS).map(room).collect();
    mad.say_raw(&format!(r#"{{"type":"gossip","payload":{{"rooms":[{}]}}}}"#, rooms.join(",")));
    let rooms_of_mad = async |wanted: usize| {
        let end = std::time::Instant::now() + SOON * 6;
        loop {
            let listed = stage.balancer.monoliths().await;
            let row = listed.iter().find(|row| row["id"] == mad.id()).map(|row| row["rooms"].clone());
            if row == Some(json!(wanted)) {
                return;
            }
            assert!(std::time::Instant::now() < end, "{row:?} rooms instead of {wanted}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    rooms_of_mad(ROOMS).await;
    mad.say_raw(r#"{"type":"gossip","payload":{"rooms":[]}}"#);
    rooms_of_mad(0).await;
    stage.unharmed().await;
    stage.end().await;
}

#[tokio::test]
async fn a_link_that_breaks_a_bound_ends_and_is_dialled_again() {
    let (mut stage, mad) = pair(|config| config.limits.link_message = 64 << 10).await;
    let ping = RawFrame { opcode: 9, ..RawFrame::text("x") }.encode(false);
    let attacks: [(&str, Vec<u8>); 5] = [
        ("a message over the limit", RawFrame::text(&" ".repeat(65 << 10)).encode(false)),
        ("a length of 2^63", vec![0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("a masked frame", RawFrame::text("{}").encode(true)),
        ("a compressed frame", RawFrame { rsv: 4, ..RawFrame::text("{}") }.encode(false)),
        ("a flood of pings", ping.repeat(3000)),
    ];
    for (number, (what, bytes)) in (1..).zip(attacks) {
        mad.say_bytes(bytes);
        eventually(what, async || {
            let lost = stage.balancer.metric("usher_links_lost_total").await;
            (lost >= f64::from(number)).then_some(()).ok_or(lost)
        })
        .await;
        stage.balancer.linked(2).await;
        stage.unharmed().await;
    }
    stage.end().await;
}

#[tokio::test]
async fn a_monolith_whose_name_is_no_name_stays_out() {
    let mut stage = Stage::start(|_| {}).await;
    let mad = mad(&stage).await;
    let balancer = Balancer::start_unlinked(&[&stage.a, &mad], |_| {}).await;
    let long = "x".repeat(1 << 20);
    for (region, id) in [("r", &*long), (&long, "i"), ("r", "a\nb"), ("\u{1b}[2J", "i"), ("r", "")] {
        let before = mad.look(|state| state.links_accepted());
        let init = json!({"type": "init", "payload": {"port": 1, "region": region, "id": id}});
        mad.set_init(InitStyle::Text(init.to_string()));
        mad.drop_links();
        holds(&mad, |state| state.links_accepted() >= before + 2).await;
        assert!(balancer.monoliths().await.len() <= 1);
    }
    mad.set_init(InitStyle::Normal);
    balancer.linked(2).await;
    drop(balancer);
    stage.unharmed().await;
    stage.end().await;
}
