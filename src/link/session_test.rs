//! Tests of `session.rs` below the socket: what frames and commands leave behind.

use tokio::sync::{mpsc, watch};

use super::*;
use crate::config::Config;
use crate::link::stats::LinkCounters;
use crate::link::tap::Tap;
use crate::model::RoomName;

/// A session of a Monolith, and what its context listens to.
fn session() -> (Session, mpsc::Receiver<Report>) {
    let config = Config::default();
    let settings = LinkSettings {
        link_token: config.link_token.clone(),
        link_message: config.limits.link_message,
        link_queue: config.limits.link_queue,
        timeouts: config.timeouts,
        heartbeat: config.heartbeat,
    };
    let (reports, received) = mpsc::channel(16);
    let context = LinkContext {
        reports,
        settings: watch::channel(Arc::new(settings.clone())).1,
        tap: Tap::new("b".into()),
        numbers: Arc::default(),
        counters: Arc::<LinkCounters>::default(),
    };
    let init = Init { port: 1, region: "ewr".into(), id: "m1".into(), token: None };
    (Session::new(LinkId(1), init, &settings, context).0, received)
}

fn unload(session: &mut Session, room: &str) -> Option<Outgoing> {
    let room = RoomName::parse(room).unwrap();
    session.command(Command::Unload { room, why: UnloadCause::Duplicate });
    session.outbox.try_next()
}

const LOADED: &str =
    r#"{"type":"loaded","payload":{"room":{"name":"Movie","users":0,"visibility":"public"},"load_epoch":1}}"#;

#[test]
fn an_unload_is_withheld_behind_an_unloaded_that_was_read() {
    let (mut session, _received) = session();
    let withheld =
        |session: &Session| session.context.counters.unloads_withheld.load(std::sync::atomic::Ordering::Relaxed);
    session.frame(LOADED);
    assert!(matches!(unload(&mut session, "movie"), Some(Outgoing::Text(text)) if text.contains("unload")));
    assert_eq!(withheld(&session), 0);
    // The Monolith has ended the room by itself, which the control thread does not know yet.
    session.frame(r#"{"type":"unloaded","payload":{"name":"MOVIE","reason":"keepalive"}}"#);
    assert_eq!(unload(&mut session, "Movie"), None, "it would end a real Monolith");
    assert_eq!(withheld(&session), 1);
    session.frame(LOADED);
    assert!(unload(&mut session, "movie").is_some(), "it is there again");
    // Gossip is the whole truth about what is loaded.
    session.frame(r#"{"type":"gossip","payload":{"rooms":[]}}"#);
    assert_eq!(unload(&mut session, "movie"), None);
    assert_eq!(withheld(&session), 2);
}
