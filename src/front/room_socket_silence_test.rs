//! Tests of `room_socket.rs` with a real control thread and a real link below it, in virtual time: how soon whoever has
//! gone without a word is missed.

use serde_json::Value;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::handshakes::Handshakes;
use super::*;
use crate::claims;
use crate::config::{Config, HandoverMode};
use crate::control::ControlSettings;
use crate::control::reload::{cluster_settings, link_settings};
use crate::control::shell::in_virtual_time;
use crate::link::{LinkContext, Report, run_over};
use crate::model::LinkId;
use crate::model::event::Event;
use crate::model::wire::Init;
use crate::policy::Builtin;

type Socket = WebSocketStream<DuplexStream>;

/// Whatever happens, it happens in this time, of which none passes in a test.
const SOON: Duration = Duration::from_secs(600);

/// A balancer with one Monolith, as its link sees it, and one client.
struct Stage {
    monolith: Socket,
    client: Socket,
    context: Arc<SocketContext>,
}

/// A client has said who it is and waits for its room.
async fn stage(config: &Config) -> Stage {
    let (monolith, stream, context) = connected(config).await;
    let mut client = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    client.send(Message::text(r#"{"action":"auth","token":"t"}"#)).await.unwrap();
    Stage { monolith, client, context }
}

/// A client has come, and its end of the stream.
async fn connected(config: &Config) -> (Socket, DuplexStream, Arc<SocketContext>) {
    let (reports, received) = mpsc::channel(64);
    let settings = ControlSettings {
        cluster: cluster_settings(config),
        policy: Box::new(Builtin),
        reports: received,
        // Nobody wants claims here, so nobody is at the other end.
        claims: claims::queue().0,
        seed: 1,
    };
    let (control, thread) = in_virtual_time(settings, 1_800_000_000_000_000);
    tokio::spawn(thread);
    assert!(reports.send(Report::Event(Event::Discovered { endpoints: Vec::new() })).await.is_ok());
    let tap = Tap::new("b".into());
    let links = LinkContext {
        reports,
        settings: watch::channel(Arc::new(link_settings(config))).1,
        tap: tap.clone(),
        numbers: Arc::default(),
        counters: Arc::default(),
    };
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let link = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let mut monolith = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let init = Init { port: 80, region: "ewr".into(), id: "m1".into(), token: None };
    tokio::spawn(async move {
        let (_keep, mut listed) = watch::channel(true);
        run_over(LinkId(1), init, link, "host:1".into(), &mut listed, links).await;
    });
    monolith.send(Message::text(r#"{"type":"gossip","payload":{"rooms":[]}}"#)).await.unwrap();

    let context = Arc::new(SocketContext { control, clients: Arc::default(), tap });
    let settings = SocketSettings {
        auth: config.timeouts.auth,
        message: config.limits.message,
        held: config.limits.held_frames,
        heartbeat: config.heartbeat,
    };
    let inbox = Inbox::new(config.limits.client_queue);
    let id = ClientId::from_u128(1 << 64);
    let place = context.clients.register(id, inbox.clone(), 1).unwrap();
    let request = RoomRequest {
        client: id,
        room: RoomName::parse("movie").unwrap(),
        region: None,
        reconnect: false,
        handshake: Handshakes::default().begin(1).unwrap(),
    };
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let socket = WebSocketStream::from_raw_socket(ours, Role::Server, Some(websocket_config(&settings))).await;
    tokio::spawn(serve(socket, request, inbox, place, settings, context.clone()));
    (monolith, theirs, context)
}

/// The next text. Reading answers pings as well.
async fn text(socket: &mut Socket) -> Option<String> {
    loop {
        match tokio::time::timeout(SOON, socket.next()).await.expect("something comes") {
            Some(Ok(Message::Text(text))) => return Some(text.to_string()),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(_)) => {}
        }
    }
}

/// What the Monolith is told next of this kind.
async fn told(monolith: &mut Socket, kind: &str) -> Value {
    loop {
        let frame: Value = serde_json::from_str(&text(monolith).await.expect("the link stands")).unwrap();
        if frame["type"] == kind {
            return frame["payload"].clone();
        }
    }
}

/// The Monolith lets the client in. Returns what it is called there.
async fn let_in(stage: &mut Stage) -> String {
    let member = told(&mut stage.monolith, "join").await["client"].as_str().unwrap().to_string();
    let hello = format!(r#"{{"type":"room_msg","payload":{{"room":"movie","client_id":"{member}","payload":{{}}}}}}"#);
    stage.monolith.send(Message::text(hello)).await.unwrap();
    assert_eq!(text(&mut stage.client).await.as_deref(), Some("{}"));
    member
}

/// The configuration, and the bounds within which a silence of that kind is to be noticed.
fn config(missed: u32) -> (Config, Duration, Duration) {
    let mut config = Config::default();
    config.heartbeat.missed = missed;
    config.handover.mode = HandoverMode::Close;
    let interval = config.heartbeat.interval;
    (config, interval * missed, interval * (missed + 1))
}

/// Moments between two heartbeats.
const MOMENTS: [Duration; 3] = [Duration::from_millis(20), Duration::from_secs(5), Duration::from_millis(9980)];

#[tokio::test(start_paused = true)]
async fn f20_a_silent_client_is_gone_within_its_bound_and_its_leave_is_sent() {
    for (missed, moment) in [1, 2, 5].into_iter().flat_map(|missed| MOMENTS.map(|moment| (missed, moment))) {
        let (config, early, late) = config(missed);
        let mut stage = stage(&config).await;
        let member = let_in(&mut stage).await;
        tokio::time::sleep(config.heartbeat.interval + moment).await;
        // It says something, and then it is gone, without a sign from its socket.
        stage.client.send(Message::text("{}")).await.unwrap();
        let last = Instant::now();
        assert_eq!(told(&mut stage.monolith, "leave").await["client"], member.as_str());
        let took = last.elapsed();
        assert!(took > early && took <= late, "missed {missed}, {moment:?} after a heartbeat: {took:?}");
        assert_eq!(stage.context.clients.counters.vanished.load(Relaxed), 1);
        let left = stage.context.control.query(|cluster| cluster.size().1).await.unwrap();
        assert_eq!(left, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_pings_puts_off_no_deadline() {
    let config = Config::default();
    let (_monolith, stream, context) = connected(&config).await;
    let (mut answers, mut flood) = tokio::io::split(stream);
    // It takes every answer, and there is always more to read from it.
    tokio::spawn(async move { tokio::io::copy(&mut answers, &mut tokio::io::sink()).await });
    let pings = [0x89, 0x80, 0, 0, 0, 0].repeat(1000);
    tokio::spawn(async move { while flood.write_all(&pings).await.is_ok() {} });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((context.clients.len(), context.clients.counters.unauthenticated.load(Relaxed)), (1, 0));
    tokio::time::advance(config.timeouts.auth + Duration::from_secs(1)).await;
    let ended = || context.clients.counters.unauthenticated.load(Relaxed) == 1;
    for _ in 0..1000 {
        if ended() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(ended());
}

#[tokio::test(start_paused = true)]
async fn f20_a_client_that_answers_pings_and_says_nothing_stays() {
    let (config, _, late) = config(2);
    let mut stage = stage(&config).await;
    let_in(&mut stage).await;
    // Reading answers pings: on both sides.
    let reading = async { tokio::join!(text(&mut stage.client), text(&mut stage.monolith)) };
    assert!(tokio::time::timeout(late * 10, reading).await.is_err());
    assert_eq!(stage.context.clients.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn f14_clients_of_a_monolith_that_died_without_a_word_are_closed_within_the_bound() {
    for (missed, moment) in [1, 2, 5].into_iter().flat_map(|missed| MOMENTS.map(|moment| (missed, moment))) {
        let (config, early, late) = config(missed);
        let mut stage = stage(&config).await;
        let_in(&mut stage).await;
        // It lives for so long, and then nobody reads what is sent to it, without a sign from its socket.
        let living = async { tokio::join!(text(&mut stage.client), text(&mut stage.monolith)) };
        assert!(tokio::time::timeout(config.heartbeat.interval * 3 + moment, living).await.is_err());
        let died = Instant::now();
        assert_eq!(text(&mut stage.client).await, None, "it is closed");
        let took = died.elapsed();
        assert!(took > early && took <= late, "missed {missed}, {moment:?} after a heartbeat: {took:?}");
    }
}
