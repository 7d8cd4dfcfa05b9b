//! Claims in a Redis that balancers share: one room is one room, whatever policies choose; and without Redis the service
//! goes on.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use usher::claims::{self, Claims};
use usher::config::{ClaimsConfig, Config, Secret};
use usher::model::claims::{ClaimAnswer, ClaimCommand, ClaimOutcome, RoomLoad};
use usher::model::{Epoch, RoomKey};
use usher::testkit::monolith::UnloadReason;
use usher::testkit::{Monolith, Proxy, ReconnectingClient, Redis};

use crate::balancers::{copies, gathered, names, race, shipped, visitor};
use crate::harness::*;
use crate::turns::start_apart;

fn claiming(config: &mut Config, url: &str) {
    shipped(config, "random");
    config.claims.url = Some(Secret::new(url));
    // A busy machine takes its time, and only a Redis that is silent is to be taken for such.
    config.claims.timeout = Duration::from_millis(800);
}

async fn three_monoliths(rooms: &[String]) -> [Monolith; 3] {
    three_that_load_in(Duration::from_millis(3), rooms).await
}

async fn three_that_load_in(delay: Duration, rooms: &[String]) -> [Monolith; 3] {
    let world = world_with(rooms);
    let one = async || monolith(&world).load_delay(delay).start().await.unwrap();
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
    owner.unload(room, UnloadReason::Keepalive);
    eventually("the claim is given back", async || redis.get(&key).map_or(Ok(()), Err)).await;
    for balancer in balancers {
        nobody_left(balancer, &monoliths).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_f52_with_claims_a_monolith_that_takes_its_time_loads_a_room_once() {
    let redis = Redis::start(None).await.unwrap();
    let rooms = names(6);
    let monoliths = three_that_load_in(Duration::from_millis(900), &rooms).await;
    let monoliths = monoliths.each_ref();
    let one = Balancer::start_with(&monoliths, |config| claiming(config, &redis.url())).await;
    let two = Balancer::start_with(&monoliths, |config| claiming(config, &redis.url())).await;
    let balancers = [&one, &two];
    for balancer in balancers {
        up(balancer, true).await;
    }
    let clients = raced(&balancers, &monoliths, &rooms).await;
    loaded_once(&monoliths, &rooms);
    drop(clients);
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

/// One balancer keeps the store and the other has lost it: rooms may then be on two Monoliths for a while, as without
/// claims, and are on one again in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_a_redis_that_one_of_two_balancers_cannot_reach_stops_nobody() {
    let redis = Redis::start(None).await.unwrap();
    let rooms = names(20);
    let monoliths = three_monoliths(&rooms).await;
    let monoliths = monoliths.each_ref();
    let address = redis.url().trim_start_matches("redis://").trim_end_matches('/').parse().unwrap();
    let road = Proxy::start(address).await.unwrap();
    let urls = [redis.url(), format!("redis://{}/", road.addr())];
    let links: Vec<_> = monoliths.iter().map(|monolith| monolith.link_addr()).collect();
    let config = |url: &String| {
        let mut config = config_for(&links);
        claiming(&mut config, url);
        config
    };
    let balancers = start_apart(urls.iter().map(config).collect(), &monoliths).await;
    let [one, two] = &balancers[..] else { panic!("two balancers") };
    up(one, true).await;
    up(two, true).await;
    road.cut();
    up(two, false).await;
    let mut clients = race(&[one, two], &rooms[..10]);
    gathered(&monoliths, &rooms[..10], 2).await;
    up(one, true).await;
    assert!(one.metric("usher_claims_granted_total").await >= 1.0);
    assert_eq!(two.metric("usher_claims_granted_total").await, 0.0);
    road.heal();
    up(two, true).await;
    clients.extend(raced(&[one, two], &monoliths, &rooms[10..]).await);
    loaded_once(&monoliths, &rooms[10..]);
    assert!(clients.iter().all(|client| client.progress().codes.is_empty()));
    drop(clients);
    for balancer in [one, two] {
        nobody_left(balancer, &monoliths).await;
    }
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

/// Another balancer has renewed the claim of a room, and is slow or gone: whoever heard that this very load is over need
/// not wait for its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f42_a_claim_for_a_load_that_is_over_keeps_nobody_waiting() {
    let redis = Redis::start(None).await.unwrap();
    let rooms = names(1);
    let (room, key) = (&rooms[0], format!("usher:room:{}", rooms[0]));
    let monoliths = three_monoliths(&rooms).await;
    let monoliths = monoliths.each_ref();
    let change = |config: &mut Config| {
        claiming(config, &redis.url());
        config.claims.lease = Duration::from_secs(3);
        config.timeouts.load = SOON * 10;
    };
    let balancer = Balancer::start_with(&monoliths, change).await;
    up(&balancer, true).await;
    let first = visitor(&balancer, room);
    gathered(&monoliths, &rooms, 1).await;
    let owner = monoliths.iter().find(|monolith| monolith.loads_of(room) > 0).unwrap();
    let epoch = owner.look(|state| state.room_epoch(room)).unwrap();
    let load = format!("{epoch} {}", owner.id());
    eventually("the claim says which load it is for", async || match redis.get(&key) {
        Some(value) if value.ends_with(&format!(":{load}")) => Ok(()),
        value => Err(value),
    })
    .await;
    drop(first);
    holds(owner, |state| state.client_count() == 0).await;
    owner.unload(room, UnloadReason::Keepalive);
    eventually("the claim is given back", async || redis.get(&key).map_or(Ok(()), Err)).await;
    redis.set(&key, &format!("another:{load}"), SOON * 10);
    let second = visitor(&balancer, room);
    gathered(&monoliths, &rooms, 1).await;
    assert!(redis.get(&key).is_some_and(|value| !value.starts_with("another")));
    assert_eq!(balancer.metric("usher_claims_unavailable_total").await, 0.0);
    drop(second);
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

/// The way to a real Redis without a balancer, as one with the token `one` has it.
struct Alone {
    claims: Claims,
    answers: mpsc::UnboundedReceiver<ClaimOutcome>,
    _settings: watch::Sender<ClaimsConfig>,
    keys: redis::aio::MultiplexedConnection,
}

const ALONE: &str = "usher:room:x";

impl Alone {
    async fn start(server: &Server) -> Self {
        let url = server.url();
        let timeout = Duration::from_millis(800);
        let (_settings, now) =
            watch::channel(ClaimsConfig { url: Some(Secret::new(&url)), timeout, ..ClaimsConfig::default() });
        let (claims, inbox) = claims::queue();
        let (sender, answers) = mpsc::unbounded_channel();
        let answer = move |_: RoomKey, answer: ClaimAnswer| drop(sender.send(answer.outcome));
        claims::spawn(inbox, "one".into(), now, Box::new(answer));
        eventually("the store is up", async || if claims.health().is_up() { Ok(()) } else { Err(()) }).await;
        let keys = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        Self { claims, answers, _settings, keys }
    }

    async fn set(&mut self, value: &str) {
        let set = redis::cmd("SET").arg(ALONE).arg(value).arg("PX").arg(60_000).clone();
        set.exec_async(&mut self.keys).await.unwrap();
    }

    /// What is held once all that was sent before has been obeyed.
    async fn held(&mut self) -> Option<String> {
        self.ask("y", None).await;
        redis::cmd("GET").arg(ALONE).query_async(&mut self.keys).await.unwrap()
    }

    async fn ask(&mut self, room: &str, instead_of: Option<&str>) -> ClaimOutcome {
        let (room, instead_of) = (RoomKey::of(room), instead_of.map(Into::into));
        let refused = self.claims.send(ClaimCommand::Ask { room, number: 1, monolith: "m1".into(), instead_of });
        assert!(refused.is_none());
        tokio::time::timeout(SOON, self.answers.recv()).await.unwrap().unwrap()
    }

    fn renew(&self, epoch: u32) {
        let rooms = vec![(RoomKey::of("x"), m1(Some(Epoch(epoch))))];
        self.claims.send(ClaimCommand::Renew { rooms });
    }

    fn release(&self, epoch: Option<Epoch>) {
        self.claims.send(ClaimCommand::Release { room: RoomKey::of("x"), load: m1(epoch) });
    }
}

fn m1(epoch: Option<Epoch>) -> RoomLoad {
    RoomLoad { monolith: "m1".into(), epoch }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a redis-server: `apt-get install redis-server`, or name one in REDIS_SERVER"]
async fn f42_a_real_redis_gives_a_claim_back_for_no_load_that_is_older() {
    let server = Server::start();
    let mut one = Alone::start(&server).await;
    // Around both wraps, and where the age of two loads turns over.
    let epochs = [0, 1, 5, 1 << 30, (1 << 30) + 1, 2_147_483_640, (1 << 31) - 1, 1 << 31, u32::MAX - 1, u32::MAX];
    for held in epochs.map(Epoch) {
        let value = format!("one:{held} m1");
        for over in epochs.map(Epoch) {
            one.set(&value).await;
            one.release(Some(over));
            let goes = held.compare(over).is_le();
            assert_eq!(one.held().await.is_none(), goes, "{held} is held, {over} is over");
        }
        one.set(&value).await;
        one.release(None);
        assert_eq!(one.held().await, Some(value));
    }
    for over in [None, Some(Epoch(7))] {
        one.set("one:- m1").await;
        one.release(over);
        assert_eq!(one.held().await, None, "{over:?}");
    }
    // Another balancer's, one of an older balancer, and one for another Monolith.
    for others in ["two:5 m1", "one2:5 m1", "two m1", "one:5 m2", "one:5 m1 m1"] {
        one.set(others).await;
        one.release(Some(Epoch(5)));
        assert_eq!(one.held().await.as_deref(), Some(others));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a redis-server: `apt-get install redis-server`, or name one in REDIS_SERVER"]
async fn a_real_redis_replaces_a_claim_that_is_still_the_one_that_was_met() {
    let server = Server::start();
    let mut one = Alone::start(&server).await;
    assert_eq!(one.ask("x", None).await, ClaimOutcome::Granted);
    assert_eq!(one.held().await.as_deref(), Some("one:- m1"));
    // Its own claim bars nobody, and is renewed with what is known by then.
    one.renew(5);
    assert_eq!(one.held().await.as_deref(), Some("one:5 m1"));
    assert_eq!(one.ask("x", None).await, ClaimOutcome::Granted);
    for (value, epoch) in [("two:5 m1", Some(Epoch(5))), ("two m1", None)] {
        one.set(value).await;
        let met = one.ask("x", None).await;
        let ClaimOutcome::Taken { by, held, expires_in } = met else { panic!("{met:?}") };
        assert_eq!((by, &*held), (m1(epoch), value));
        assert!((1..=60_000_000).contains(&expires_in));
        one.renew(6);
        assert_eq!(one.held().await.as_deref(), Some(value));
        assert!(matches!(one.ask("x", Some("two:4 m1")).await, ClaimOutcome::Taken { .. }));
        assert_eq!(one.ask("x", Some(&held)).await, ClaimOutcome::Granted);
        assert_eq!(one.held().await.as_deref(), Some("one:- m1"));
    }
}
