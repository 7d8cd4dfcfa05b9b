//! Claims in a Redis that balancers share: one room is one room, whatever policies choose; and without Redis the service
//! goes on.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use usher::config::{Config, Secret};
use usher::testkit::{Monolith, ReconnectingClient, Redis};

use crate::balancers::{copies, gathered, names, race, shipped, visitor};
use crate::harness::*;

fn claiming(config: &mut Config, url: &str) {
    shipped(config, "random");
    config.claims.url = Some(Secret::new(url));
    // A busy machine takes its time, and only a Redis that is silent is to be taken for such.
    config.claims.timeout = Duration::from_millis(800);
}

async fn three_monoliths(rooms: &[String]) -> [Monolith; 3] {
    let world = world_with(rooms);
    let one = async || monolith(&world).load_delay(Duration::from_millis(3)).start().await.unwrap();
    [one().await, one().await, one().await]
}

async fn up(balancer: &Balancer, up: bool) {
    eventually("the store of claims is noticed", async || match balancer.metric("usher_claims_up").await {
        value if (value == 1.0) == up => Ok(()),
        value => Err(value),
    })
    .await;
}

async fn ready(balancer: &Balancer) -> (bool, String) {
    let answer = balancer.get("/_usher/ready").await.json();
    (answer["ready"] == true, answer["reasons"].to_string())
}

/// Races first joins, so many at a time as a burst of visitors makes, and sees every room on one Monolith alone.
async fn raced(balancers: &[&Balancer], monoliths: &[&Monolith], rooms: &[String]) -> Vec<ReconnectingClient> {
    let mut clients = Vec::new();
    for some in rooms.chunks(20) {
        clients.extend(race(balancers, some));
        gathered(monoliths, some, balancers.len()).await;
    }
    clients
}

/// A second join that reaches a Monolith while it loads the room would load it there a second time.
fn loaded_once(monoliths: &[&Monolith], rooms: &[String]) {
    for room in rooms {
        let copies = copies(monoliths, room);
        assert_eq!(copies.iter().map(|(loads, _)| loads).sum::<u64>(), 1, "{room}: {copies:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_with_claims_a_random_policy_makes_no_duplicate() {
    let redis = Redis::start(Some("hunter2")).await.unwrap();
    let rooms = names(60);
    let monoliths = three_monoliths(&rooms).await;
    let monoliths = monoliths.each_ref();
    let one = Balancer::start_with(&monoliths, |config| claiming(config, &redis.url())).await;
    let two = Balancer::start_with(&monoliths, |config| claiming(config, &redis.url())).await;
    let three = Balancer::start_with(&monoliths, |config| claiming(config, &redis.url())).await;
    let balancers = [&one, &two, &three];
    for balancer in balancers {
        up(balancer, true).await;
    }
    let clients = raced(&balancers, &monoliths, &rooms).await;
    loaded_once(&monoliths, &rooms);
    let mut taken = 0.0;
    for balancer in balancers {
        assert_eq!(balancer.metric("usher_duplicates_total").await, 0.0);
        taken += balancer.metric("usher_claims_taken_total").await;
    }
    println!("of 180 first joins {taken} met a claim of another balancer");
    assert!(clients.iter().all(|client| client.progress().codes.is_empty()));
    // What is loaded is claimed; what has gone is not.
    let (room, key) = (&rooms[0], format!("usher:room:{}", rooms[0]));
    assert!(redis.get(&key).is_some());
    let owner = monoliths.iter().find(|monolith| monolith.loads_of(room) > 0).unwrap();
    drop(clients);
    holds(owner, |state| state.client_count() == 0).await;
    owner.unload(room, usher::testkit::monolith::UnloadReason::Keepalive);
    eventually("the claim is given back", async || redis.get(&key).map_or(Ok(()), Err)).await;
    for balancer in balancers {
        nobody_left(balancer, &monoliths).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_falls_silent_stops_nobody_and_is_told() {
    let redis = Redis::start(None).await.unwrap();
    let rooms = names(10);
    let monoliths = three_monoliths(&rooms).await;
    let monoliths = monoliths.each_ref();
    let balancer = Balancer::start_with(&monoliths, |config| claiming(config, &redis.url())).await;
    up(&balancer, true).await;
    let mut clients = vec![visitor(&balancer, &rooms[0])];
    gathered(&monoliths, &rooms[..1], 1).await;
    assert_eq!(ready(&balancer).await, (true, "[]".into()));
    redis.fall_silent();
    clients.extend(race(&[&balancer], &rooms[1..5]));
    gathered(&monoliths, &rooms[1..5], 1).await;
    up(&balancer, false).await;
    // Readiness tells it as a detail: the balancer is as good as one without claims.
    let told = eventually("it is told", async || match ready(&balancer).await {
        (true, reasons) if reasons != "[]" => Ok(reasons),
        seen => Err(seen),
    })
    .await;
    assert!(told.contains("detail: rooms are placed without claims since"), "{told}");
    assert!(balancer.metric("usher_claims_unavailable_total").await >= 1.0);
    redis.come_back();
    up(&balancer, true).await;
    let granted = balancer.metric("usher_claims_granted_total").await;
    clients.extend(race(&[&balancer], &rooms[5..]));
    gathered(&monoliths, &rooms[5..], 1).await;
    assert_eq!(balancer.metric("usher_claims_granted_total").await, granted + 5.0);
    assert_eq!(ready(&balancer).await, (true, "[]".into()));
    drop(clients);
    nobody_left(&balancer, &monoliths).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_is_claimed_for_a_monolith_nobody_can_reach_waits_for_the_end_of_the_claim() {
    let redis = Redis::start(None).await.unwrap();
    let rooms = names(1);
    let monoliths = three_monoliths(&rooms).await;
    let monoliths = monoliths.each_ref();
    let balancer = Balancer::start_with(&monoliths, |config| claiming(config, &redis.url())).await;
    up(&balancer, true).await;
    let key = format!("usher:room:{}", rooms[0]);
    redis.set(&key, "another nowhere", Duration::from_secs(60));
    let client = visitor(&balancer, &rooms[0]);
    eventually("the claim is met", async || match balancer.metric("usher_claims_taken_total").await {
        taken if taken >= 2.0 => Ok(()),
        taken => Err(taken),
    })
    .await;
    assert_eq!(client.progress().syncs, 0);
    redis.remove(&key);
    client.wait_for(|progress| progress.syncs == 1, SOON).await.unwrap();
    drop(client);
    nobody_left(&balancer, &monoliths).await;
}

/// A real `redis-server` on a port of its own, that can be killed and started again there.
struct Server {
    port: u16,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    fn start() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut server = Self { port, folder: tempfile::tempdir().unwrap(), process: None };
        server.run();
        server
    }

    fn run(&mut self) {
        let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
        let process = Command::new(&program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--requirepass", "hunter2", "--dir"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .spawn();
        let hint = "install it with `apt-get install redis-server`, or name one in REDIS_SERVER";
        self.process = Some(process.unwrap_or_else(|error| panic!("{program}: {error}; {hint}")));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn url(&self) -> String {
        format!("redis://:hunter2@127.0.0.1:{}", self.port)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a redis-server: `apt-get install redis-server`, or name one in REDIS_SERVER"]
async fn f25_with_a_real_redis_two_hundred_raced_first_joins_make_no_duplicate() {
    let server = Server::start();
    let rooms = names(200);
    let monoliths = three_monoliths(&rooms).await;
    let monoliths = monoliths.each_ref();
    let one = Balancer::start_with(&monoliths, |config| claiming(config, &server.url())).await;
    let two = Balancer::start_with(&monoliths, |config| claiming(config, &server.url())).await;
    for balancer in [&one, &two] {
        up(balancer, true).await;
    }
    let clients = raced(&[&one, &two], &monoliths, &rooms).await;
    loaded_once(&monoliths, &rooms);
    for balancer in [&one, &two] {
        assert_eq!(balancer.metric("usher_duplicates_total").await, 0.0);
        assert_eq!(balancer.metric("usher_claims_unavailable_total").await, 0.0);
        let trips = balancer.metric("usher_claims_round_trips_total").await;
        let (asked, taken) =
            (balancer.metric("usher_claims_total").await, balancer.metric("usher_claims_taken_total").await);
        let mean = balancer.metric("usher_claims_seconds_total").await / trips;
        println!("{asked} claims, {taken} taken, {trips} round trips of {:.0} us", mean * 1e6);
    }
    drop(clients);
    for balancer in [&one, &two] {
        nobody_left(balancer, &monoliths).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a redis-server: `apt-get install redis-server`, or name one in REDIS_SERVER"]
async fn a_real_redis_that_is_killed_stops_nobody_and_is_used_again_when_it_is_back() {
    let mut server = Server::start();
    let rooms = names(60);
    let monoliths = three_monoliths(&rooms).await;
    let monoliths = monoliths.each_ref();
    let one = Balancer::start_with(&monoliths, |config| claiming(config, &server.url())).await;
    let two = Balancer::start_with(&monoliths, |config| claiming(config, &server.url())).await;
    let balancers = [&one, &two];
    for balancer in balancers {
        up(balancer, true).await;
    }
    let mut clients = race(&balancers, &rooms[..20]);
    server.kill();
    clients.extend(race(&balancers, &rooms[20..40]));
    // Whatever was placed twice in between is one room again.
    gathered(&monoliths, &rooms[..40], 2).await;
    for balancer in balancers {
        up(balancer, false).await;
        let (serves, reasons) = ready(balancer).await;
        assert!(serves && reasons.contains("rooms are placed without claims"), "{reasons}");
    }
    server.run();
    for balancer in balancers {
        up(balancer, true).await;
        assert_eq!(ready(balancer).await, (true, "[]".into()));
    }
    clients.extend(raced(&balancers, &monoliths, &rooms[40..]).await);
    loaded_once(&monoliths, &rooms[40..]);
    for balancer in balancers {
        assert!(balancer.metric("usher_claims_outages_total").await >= 1.0);
    }
    drop(clients);
    for balancer in balancers {
        nobody_left(balancer, &monoliths).await;
    }
}
