//! Tests of `shell.rs` in virtual time: links and clients are ends of queues.

use super::*;
use crate::claims;
use crate::config::{Config, QueueLimit};
use crate::control::reload::cluster_settings;
use crate::link::stats::LinkStats;
use crate::model::RoomName;
use crate::model::event::Token;
use crate::model::wire::{Frame, FromMonolith, RoomReport};
use crate::policy::Builtin;

/// As many as one Monolith may lose at once, and more calls than a stack has room for.
const ROOMS: u64 = 10_000;

fn up(number: u64) -> (Report, mpsc::UnboundedReceiver<link::Command>) {
    let (commands, received) = mpsc::unbounded_channel();
    let up = Report::Up {
        link: LinkId(number),
        endpoint: format!("host{number}:3000").into(),
        monolith: format!("m{number}").as_str().into(),
        region: "ewr".into(),
        http: ([127, 0, 0, 1], 1).into(),
        commands,
        stats: Arc::new(LinkStats::default()),
    };
    (up, received)
}

fn report(name: &str) -> RoomReport {
    let room = format!(r#"{{"name":"{name}","visibility":"public","users":0}}"#);
    let frame = format!(r#"{{"type":"loaded","payload":{{"room":{room},"load_epoch":1}}}}"#);
    match Frame::parse(&frame).unwrap().message {
        FromMonolith::Loaded(report) => report,
        _ => panic!("not loaded: {frame}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_monolith_of_many_rooms_is_lost_while_the_store_of_claims_is_down() {
    let config = Config::default();
    let mut settings = cluster_settings(&config);
    settings.seamless = Some(crate::cluster::Seamless { window: 60_000_000, quiet: 0 });
    settings.claims = Some(crate::cluster::Claiming { wait: 100_000, lease: 30_000_000 });
    (settings.pending_rooms, settings.pending_joins) = (ROOMS as usize, ROOMS as usize);
    let (reports, received) = mpsc::channel(16);
    let shell = ControlSettings {
        cluster: settings,
        policy: Box::new(Builtin),
        reports: received,
        claims: claims::queue().0,
        seed: 1,
    };
    let (control, thread) = in_virtual_time(shell, 1_000_000);
    let thread = tokio::spawn(thread);
    let say = async |event| reports.send(Report::Event(event)).await.unwrap();
    say(Event::Discovered { endpoints: Vec::new() }).await;
    let ((first, _first), (second, mut joined)) = (up(1), up(2));
    reports.send(first).await.unwrap();
    let name = |n: u64| format!("room{n}");
    say(Event::Gossip { link: LinkId(1), rooms: (0..ROOMS).map(|n| report(&name(n))).collect() }).await;
    reports.send(second).await.unwrap();
    say(Event::Gossip { link: LinkId(2), rooms: Vec::new() }).await;
    for n in 0..ROOMS {
        let inbox = Inbox::new(QueueLimit { messages: 8, bytes: 1000 });
        let room = RoomName::parse(&name(n)).unwrap();
        let client = ClientId::from_u128(u128::from(n + 1) << 64);
        control.join(client, room, Token("t".into()), None, false, inbox).unwrap();
    }
    let joins = control.query(|cluster| cluster.counters().joins).await.unwrap();
    assert_eq!(joins, ROOMS);
    say(Event::LinkDown { link: LinkId(1) }).await;
    // Everybody goes on without a claim.
    let mut attached = 0;
    while attached < ROOMS {
        match tokio::time::timeout(Duration::from_secs(60), joined.recv()).await.expect("they go on").unwrap() {
            link::Command::Attach { .. } => attached += 1,
            other => assert!(matches!(other, link::Command::Accept), "{other:?}"),
        }
    }
    control.stop().await;
    thread.await.unwrap();
}
