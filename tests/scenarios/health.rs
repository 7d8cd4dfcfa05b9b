//! Monoliths that fail without going: they are left alone for a while, keep what they have, and somebody always serves.

use std::time::Duration;

use usher::testkit::{Monolith, http};

use crate::harness::*;

async fn state_of(balancer: &Balancer, monolith: &Monolith, wanted: &str) {
    let id = monolith.id();
    eventually(&format!("it is {wanted}"), async || {
        let listed = balancer.monoliths().await;
        let state = listed.iter().find(|listed| listed["id"] == id.as_str()).map(|listed| listed["state"].clone());
        if state.as_ref().is_some_and(|state| state == wanted) { Ok(()) } else { Err(state) }
    })
    .await;
}

#[tokio::test]
async fn one_whose_requests_fail_keeps_its_rooms_and_gets_nothing_new() {
    let world = world_with(["old", "n0", "n1", "n2", "n3"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    // Whatever is in flight at the moment of a look must not send a part of the requests elsewhere.
    let policy = PolicyFile::new("return { route = function(call) return call.monoliths[1] end }");
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        policy.set(config);
        config.health.eject_after = Duration::from_millis(100);
        config.health.eject_for = Duration::from_secs(3);
    })
    .await;
    let mut old = balancer.join("old", "t").await;
    let (bad, good) = if a.members("old").is_empty() { (&b, &a) } else { (&a, &b) };
    // The smaller id is first for requests, and for rooms while nobody has one.
    for _ in 0..10 {
        assert_eq!(http::get(balancer.addr(), "/status/500").await.unwrap().status, 500);
    }
    state_of(&balancer, bad, "ejected").await;
    state_of(&balancer, good, "up").await;
    let ready = balancer.get("/_usher/ready").await;
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("ejected"), "{}", ready.text());
    let metrics = balancer.get("/api/status/metrics").await.text();
    assert!(metrics.contains(r#"usher_ejections_total{cause="errors"} 1"#), "{metrics}");
    // New rooms and requests that name none go elsewhere; its own room does not.
    let seen = bad.look(|state| state.http_count());
    let loaded = good.loads();
    for number in 0..4 {
        drop(balancer.join(&format!("n{number}"), "t").await);
        assert_eq!(http::get(balancer.addr(), "/echo").await.unwrap().status, 200);
    }
    assert_eq!((good.loads() - loaded, bad.loads(), bad.look(|state| state.http_count())), (4, 1, seen));
    drop(balancer.join("old", "t2").await);
    bad.say("old", None, r#"{"still":"here"}"#);
    old.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    state_of(&balancer, bad, "up").await;
    drop(old);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test]
async fn the_only_one_is_never_ejected_and_one_that_breaks_again_and_again_is() {
    let world = world_with(["x"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start_with(&[&a, &b], |config| config.health.eject_flaps = 3).await;
    for _ in 0..3 {
        let links = a.look(|state| state.links_accepted());
        a.drop_links();
        holds(&a, |state| state.links_accepted() > links).await;
        eventually("both are linked", async || match balancer.monoliths().await.len() {
            2 => Ok(()),
            count => Err(count),
        })
        .await;
    }
    state_of(&balancer, &a, "ejected").await;
    drop(balancer.join("x", "t").await);
    assert_eq!((a.loads(), b.loads()), (0, 1));
    // Without the other one it serves, whatever it did.
    b.kill().await;
    state_of(&balancer, &a, "up").await;
    drop(balancer.join("x", "t").await);
    assert_eq!(a.loads(), 1);
    nobody_left(&balancer, &[&a]).await;
}
