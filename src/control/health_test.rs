//! Tests of `health.rs` on the loop that ticks, in virtual time: what makes joins stall, and when the thread is late.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::super::reload::cluster_settings;
use super::super::shell::in_virtual_time;
use super::super::{Control, ControlSettings};
use crate::claims;
use crate::config::Config;
use crate::link::inbox::Inbox;
use crate::link::{Command, Report};
use crate::model::event::{Event, Token};
use crate::model::{ClientId, LinkId, RoomName};
use crate::policy::Builtin;

/// A control thread that nobody runs yet, and the sender of what links say.
fn control() -> (Control, impl Future<Output = ()> + Send, mpsc::Sender<Report>) {
    let (reports, received) = mpsc::channel(64);
    let settings = ControlSettings {
        cluster: cluster_settings(&Config::default()),
        policy: Box::new(Builtin),
        reports: received,
        // Nobody wants claims here, so nobody is at the other end.
        claims: claims::queue().0,
        seed: 1,
    };
    let (control, thread) = in_virtual_time(settings, 1_800_000_000_000_000);
    (control, thread, reports)
}

/// A Monolith is linked and has nothing; what its link is told.
async fn linked(reports: &mpsc::Sender<Report>, number: u64) -> mpsc::UnboundedReceiver<Command> {
    let (commands, told) = mpsc::unbounded_channel();
    let up = Report::Up {
        link: LinkId(number),
        endpoint: format!("host{number}:1").into(),
        monolith: (&*format!("m{number}")).into(),
        region: "ewr".into(),
        http: ([127, 0, 0, 1], 1).into(),
        commands,
        stats: Default::default(),
    };
    assert!(reports.send(up).await.is_ok());
    let nothing = Event::Gossip { link: LinkId(number), rooms: Vec::new() };
    assert!(reports.send(Report::Event(nothing)).await.is_ok());
    told
}

fn join(control: &Control, number: u128) {
    let inbox = Inbox::new(Config::default().limits.client_queue);
    let room = RoomName::reported(&format!("room{number}"));
    control.join(ClientId::from_u128(number << 64), room, Token("t".into()), None, false, inbox).unwrap();
}

#[tokio::test(start_paused = true)]
async fn f16_monoliths_that_take_joins_and_say_nothing_make_joins_stall_and_the_first_answer_ends_it() {
    let (control, thread, reports) = control();
    let thread = tokio::spawn(thread);
    assert!(reports.send(Report::Event(Event::Discovered { endpoints: Vec::new() })).await.is_ok());
    let mut links = Vec::new();
    for number in 1..=3 {
        links.push(linked(&reports, number).await);
    }
    // One every second, each for a room of its own: one Monolith after the other gets it, and says nothing.
    for number in 1..=20_u64 {
        join(&control, number.into());
        sleep(Duration::from_secs(1)).await;
        let stalled = control.health().stalled_for().as_secs_f64();
        assert!((stalled - number as f64).abs() < 0.3, "{stalled} s after {number}");
    }
    let mut attached = Vec::new();
    for (number, told) in (1..).zip(&mut links) {
        while let Ok(command) = told.try_recv() {
            if let Command::Attach { client, attachment, .. } = command {
                attached.push((LinkId(number), client, attachment));
            }
        }
    }
    assert!(attached.len() > 20, "{} joins were sent", attached.len());
    let newest = attached.iter().max_by_key(|(_, client, _)| client.to_string()).unwrap();
    let (link, client, attachment) = *newest;
    assert!(reports.send(Report::Event(Event::Answered { link, client, attachment })).await.is_ok());
    sleep(Duration::from_millis(200)).await;
    assert!(control.health().stalled_for() < Duration::from_millis(200), "{:?}", control.health().stalled_for());
    thread.abort();
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_nothing_does_not_stall() {
    let (control, thread, reports) = control();
    let thread = tokio::spawn(thread);
    assert!(reports.send(Report::Event(Event::Discovered { endpoints: Vec::new() })).await.is_ok());
    let _told = linked(&reports, 1).await;
    join(&control, 1);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(control.health().stalled_for().as_secs(), 2);
    control.leave(ClientId::from_u128(1 << 64));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(control.health().stalled_for(), Duration::ZERO);
    thread.abort();
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_does_not_come_round_is_late() {
    let (control, thread, _reports) = control();
    sleep(Duration::from_millis(1900)).await;
    assert!(!control.health().is_late());
    sleep(Duration::from_millis(200)).await;
    assert!(control.health().is_late());
    let thread = tokio::spawn(thread);
    sleep(Duration::from_millis(200)).await;
    assert!(!control.health().is_late());
    thread.abort();
    sleep(Duration::from_millis(2200)).await;
    assert!(control.health().is_late());
}
