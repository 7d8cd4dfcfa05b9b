//! Claims against a Redis that is simulated: what is sent, and what becomes of it when it fails.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::model::Epoch;
use crate::model::metrics::MetricsText;
use crate::testkit::Redis;

/// For whatever must happen: long, because machines are slow, and never awaited in a test that passes.
const SOON: Duration = Duration::from_secs(20);

/// What balancers write is read back; what others have put there is read as what it may be, or as nothing.
#[test]
fn whatever_stands_in_the_place_of_a_claim_is_read_or_is_no_answer() {
    use proptest::prelude::*;
    use redis::Value;
    let of = |held: Vec<u8>, left: i64| store::outcome(&Value::Array(vec![Value::BulkString(held), Value::Int(left)]));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let claims = ("[a-z0-9]{1,16}", proptest::option::of(any::<u32>()), "[a-z0-9-]{1,40}", any::<i64>());
    let bent = (claims, any::<proptest::sample::Index>(), any::<u8>(), any::<Vec<u8>>());
    let outcome = runner.run(&bent, |((token, epoch, monolith, left), at, byte, noise)| {
        let word = epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
        let value = format!("{token}:{word} {monolith}").into_bytes();
        let (by, _) = taken(of(value.clone(), left));
        prop_assert_eq!(by, load(&monolith, epoch));
        let mut other = value;
        let at = at.index(other.len());
        other[at] = byte;
        for held in [other, noise, format!("{token}:{word} {}", "m".repeat(129)).into_bytes()] {
            match of(held.clone(), left) {
                ClaimOutcome::Taken { by, held: kept, .. } => {
                    prop_assert_eq!(kept.as_bytes(), &held[..]);
                    prop_assert!((1..=128).contains(&by.monolith.as_str().len()));
                    prop_assert!(!by.monolith.as_str().contains(char::is_control));
                }
                ClaimOutcome::Unavailable => {}
                ClaimOutcome::Granted => prop_assert!(false, "granted what somebody holds"),
            }
        }
        Ok(())
    });
    outcome.unwrap();
}

struct Balancer {
    claims: Claims,
    answers: mpsc::UnboundedReceiver<(RoomKey, ClaimAnswer)>,
    settings: watch::Sender<ClaimsConfig>,
    asked: u64,
    task: JoinHandle<()>,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn config(redis: &Redis) -> ClaimsConfig {
    // A busy machine takes its time, and only one that is silent is to be taken for such.
    let timeout = Duration::from_millis(500);
    ClaimsConfig { url: Some(Secret::new(redis.url())), timeout, ..ClaimsConfig::default() }
}

impl Balancer {
    fn start(token: &str, config: ClaimsConfig) -> Self {
        let (claims, inbox) = queue();
        let (settings, now) = watch::channel(config);
        let (sender, answers) = mpsc::unbounded_channel();
        let answer: Answer = Box::new(move |room, answer| {
            let _ = sender.send((room, answer));
        });
        let task = spawn(inbox, token.into(), now, answer);
        Self { claims, answers, settings, asked: 0, task }
    }

    async fn linked(token: &str, redis: &Redis) -> Self {
        let balancer = Self::start(token, config(redis));
        balancer.is_up(true).await;
        balancer
    }

    async fn is_up(&self, up: bool) {
        until("the store is up or down", || self.claims.health().is_up() == up).await;
    }

    async fn ask(&mut self, room: &str, monolith: &str) -> ClaimOutcome {
        self.ask_instead_of(room, monolith, None).await
    }

    async fn ask_instead_of(&mut self, room: &str, monolith: &str, instead_of: Option<Arc<str>>) -> ClaimOutcome {
        self.asked += 1;
        let (number, monolith) = (self.asked, MonolithId::from(monolith));
        let room = RoomKey::of(room);
        let (asked, wanted) = (room.clone(), monolith.clone());
        let at_once = self.claims.send(ClaimCommand::Ask { room: asked, number, monolith: wanted, instead_of });
        let (answered, answer) = match at_once {
            Some(answer) => answer,
            None => tokio::time::timeout(SOON, self.answers.recv()).await.unwrap().unwrap(),
        };
        assert_eq!((answered, answer.number, answer.monolith), (room, number, monolith));
        answer.outcome
    }

    fn release(&self, room: &str, monolith: &str, epoch: Option<u32>) {
        let room = RoomKey::of(room);
        assert!(self.claims.send(ClaimCommand::Release { room, load: load(monolith, epoch) }).is_none());
    }

    fn renew(&self, rooms: &[(&str, &str, Option<u32>)]) {
        let rooms = rooms.iter().map(|(room, monolith, epoch)| (RoomKey::of(room), load(monolith, *epoch))).collect();
        assert!(self.claims.send(ClaimCommand::Renew { rooms }).is_none());
    }
}

fn load(monolith: &str, epoch: Option<u32>) -> RoomLoad {
    RoomLoad { monolith: monolith.into(), epoch: epoch.map(Epoch) }
}

/// What another balancer has claimed a room for.
fn taken(outcome: ClaimOutcome) -> (RoomLoad, Arc<str>) {
    match outcome {
        ClaimOutcome::Taken { by, held, .. } => (by, held),
        ClaimOutcome::Granted | ClaimOutcome::Unavailable => panic!("{outcome:?}"),
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + SOON;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn the_first_claim_holds_and_the_second_hears_of_it() {
    let redis = Redis::start(Some("hunter2")).await.unwrap();
    let (mut one, mut two) = (Balancer::linked("one", &redis).await, Balancer::linked("two", &redis).await);
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Granted);
    let ClaimOutcome::Taken { by, held, expires_in } = two.ask("Foo", "m2").await else { panic!("granted twice") };
    assert_eq!((by, &*held), (load("m1", None), "one:- m1"));
    assert!((1..=15_000_000).contains(&expires_in), "{expires_in}");
    assert_eq!(redis.get("usher:room:foo").as_deref(), Some("one:- m1"));
    // Its own claims do not bar it from another choice.
    assert_eq!(one.ask("foo", "m3").await, ClaimOutcome::Granted);
    // What it does not hold any more, or another holds, is not given back.
    one.release("foo", "m1", None);
    two.release("foo", "m3", None);
    taken(two.ask("foo", "m2").await);
    one.release("foo", "m3", None);
    until("the claim is given back", || redis.get("usher:room:foo").is_none()).await;
    assert_eq!(two.ask("foo", "m2").await, ClaimOutcome::Granted);
}

#[tokio::test]
async fn f42_a_release_that_speaks_of_an_older_load_leaves_the_claim_of_a_newer_one() {
    let redis = Redis::start(None).await.unwrap();
    let mut one = Balancer::linked("one", &redis).await;
    let held = async |one: &mut Balancer| {
        // Commands of one balancer are obeyed in order: what was sent before this has happened when it is answered.
        one.ask("other", "m1").await;
        redis.get("usher:room:foo")
    };
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Granted);
    one.renew(&[("foo", "m1", Some(5))]);
    until("the load is written down", || redis.get("usher:room:foo").as_deref() == Some("one:5 m1")).await;
    for older in [None, Some(4), Some(5_u32.wrapping_sub(9))] {
        one.release("foo", "m1", older);
        assert_eq!(held(&mut one).await.as_deref(), Some("one:5 m1"), "{older:?}");
    }
    // The claim of a load that was older goes with what came after it, since that was not written down yet.
    one.release("foo", "m1", Some(6));
    assert_eq!(held(&mut one).await, None);
    // Nobody had said which load it is.
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Granted);
    one.release("foo", "m1", Some(7));
    assert_eq!(held(&mut one).await, None);
}

#[tokio::test]
async fn a_claim_is_replaced_if_it_is_still_that_one() {
    let redis = Redis::start(None).await.unwrap();
    let (mut one, mut two) = (Balancer::linked("one", &redis).await, Balancer::linked("two", &redis).await);
    one.renew(&[("foo", "m1", Some(5))]);
    until("it is claimed", || redis.get("usher:room:foo").is_some()).await;
    let (by, old) = taken(two.ask("foo", "m2").await);
    assert_eq!((by, &*old), (load("m1", Some(5)), "one:5 m1"));
    // It has been loaded there once more.
    one.renew(&[("foo", "m1", Some(6))]);
    until("it is renewed", || redis.get("usher:room:foo").as_deref() == Some("one:6 m1")).await;
    let (by, new) = taken(two.ask_instead_of("foo", "m2", Some(old)).await);
    assert_eq!(by, load("m1", Some(6)));
    assert_eq!(two.ask_instead_of("foo", "m2", Some(new)).await, ClaimOutcome::Granted);
    assert_eq!(redis.get("usher:room:foo").as_deref(), Some("two:- m2"));
    // Whoever held it takes nothing back with it.
    one.release("foo", "m1", Some(6));
    one.renew(&[("foo", "m1", Some(6))]);
    one.ask("other", "m1").await;
    assert_eq!(redis.get("usher:room:foo").as_deref(), Some("two:- m2"));
}

#[tokio::test]
async fn a_claim_without_an_epoch_is_that_of_a_room_nobody_has_reported() {
    let redis = Redis::start(None).await.unwrap();
    let mut one = Balancer::linked("one", &redis).await;
    for (value, monolith, epoch) in [
        ("two m2", "m2", None),
        ("two:- m2", "m2", None),
        ("two:4294967295 m2", "m2", Some(u32::MAX)),
        ("two:4294967296 m2", "m2", None),
        ("two:7 m 2", "m 2", Some(7)),
        // Its token begins as ours does.
        ("one2:7 m2", "m2", Some(7)),
    ] {
        redis.set("usher:room:foo", value, Duration::from_secs(60));
        let (by, held) = taken(one.ask("foo", "m1").await);
        assert_eq!((by, &*held), (load(monolith, epoch), value));
    }
    redis.set("usher:room:foo", "nothing", Duration::from_secs(60));
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Unavailable);
}

#[tokio::test]
async fn renewal_keeps_claims_up_makes_lost_ones_anew_and_leaves_others_alone() {
    let redis = Redis::start(None).await.unwrap();
    let mut one = Balancer::linked("one", &redis).await;
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Granted);
    redis.remove("usher:room:foo");
    redis.set("usher:room:bar", "two m2", Duration::from_secs(60));
    redis.set("usher:room:old", "two m2", Duration::ZERO);
    // More than share one round trip.
    let many: Vec<String> = (0..600).map(|n| format!("r{n}")).collect();
    let mut rooms: Vec<_> = many.iter().map(|room| (room.as_str(), "m1", Some(5))).collect();
    rooms.extend([("foo", "m1", Some(5)), ("bar", "m1", Some(5)), ("old", "m1", None)]);
    one.renew(&rooms);
    until("all are renewed", || redis.get("usher:room:r599").is_some() && redis.get("usher:room:r99").is_some()).await;
    assert_eq!(redis.get("usher:room:foo").as_deref(), Some("one:5 m1"));
    assert_eq!(redis.get("usher:room:bar").as_deref(), Some("two m2"));
    assert_eq!(redis.get("usher:room:old").as_deref(), Some("one:- m1"));
    // What is released while it waits to be renewed is not claimed again.
    one.renew(&rooms);
    one.release("r7", "m1", Some(5));
    taken(one.ask("bar", "m1").await);
    until("it is given back", || redis.get("usher:room:r7").is_none()).await;
}

#[tokio::test]
async fn one_silence_closes_the_road_at_once_and_it_opens_again_by_itself() {
    let redis = Redis::start(None).await.unwrap();
    let mut one = Balancer::linked("one", &redis).await;
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Granted);
    redis.fall_silent();
    assert_eq!(one.ask("bar", "m1").await, ClaimOutcome::Unavailable);
    assert!(!one.claims.health().is_up());
    // Nobody waits from here on: the answer is there before the queue is touched.
    let asked = ClaimCommand::Ask { room: RoomKey::of("x"), number: 1, monolith: "m1".into(), instead_of: None };
    assert!(one.claims.send(asked).is_some());
    until("it says so", || one.claims.health().detail().is_some_and(|text| text.contains("no answer within"))).await;
    redis.come_back();
    one.is_up(true).await;
    assert_eq!(one.claims.health().detail(), None);
    assert_eq!(one.ask("bar", "m1").await, ClaimOutcome::Granted);
    let mut text = MetricsText::default();
    one.claims.health().write_metrics(&mut text);
    let text = text.finish();
    assert!(text.contains("\nusher_claims_outages_total 1\n") && text.contains("usher_claims_up 1\n"), "{text}");
}

#[tokio::test]
async fn a_store_that_goes_is_noticed_though_nobody_asks() {
    let redis = Redis::start(None).await.unwrap();
    let mut one = Balancer::linked("one", &redis).await;
    redis.go();
    one.is_up(false).await;
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Unavailable);
    redis.come_back();
    one.is_up(true).await;
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Granted);
}

#[tokio::test]
async fn a_wrong_password_is_told_without_the_password() {
    let redis = Redis::start(Some("right")).await.unwrap();
    let url = redis.url().replace("right", "hunter2");
    let mut one = Balancer::start("one", ClaimsConfig { url: Some(Secret::new(url)), ..config(&redis) });
    until("it says so", || one.claims.health().detail().is_some()).await;
    let detail = one.claims.health().detail().unwrap();
    assert!(!detail.contains("hunter2") && detail.contains("authentication"), "{detail}");
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Unavailable);
}

#[tokio::test]
async fn changed_settings_are_taken_up() {
    let (old, new) = (Redis::start(None).await.unwrap(), Redis::start(None).await.unwrap());
    let mut one = Balancer::start("one", ClaimsConfig::default());
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Unavailable);
    assert_eq!(one.claims.health().detail(), None, "nobody wants claims");
    one.settings.send_replace(config(&old));
    one.is_up(true).await;
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Granted);
    one.settings.send_replace(ClaimsConfig { prefix: "ott:".into(), ..config(&new) });
    let end = tokio::time::Instant::now() + SOON;
    while new.get("ott:room:bar").as_deref() != Some("one:- m1") {
        assert!(tokio::time::Instant::now() < end, "never: the new one is used");
        one.ask("bar", "m1").await;
    }
    one.settings.send_replace(ClaimsConfig::default());
    one.is_up(false).await;
    assert_eq!(one.ask("foo", "m1").await, ClaimOutcome::Unavailable);
}
