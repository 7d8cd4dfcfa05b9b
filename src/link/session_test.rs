//! Tests of `session.rs` below the socket: what frames and commands leave behind.

use tokio::sync::{mpsc, watch};

#[path = "session_running_test.rs"]
mod running;

use super::super::inbox::{Inbox, Item};
use super::*;
use crate::config::Config;
use crate::link::stats::LinkCounters;
use crate::link::tap::Tap;
use crate::model::event::{Token, UnloadCause};
use crate::model::{Attachment, ClientId, Epoch, RoomName};

/// A session of a Monolith, and what its context listens to.
fn session() -> (Session, mpsc::Receiver<Report>) {
    let (session, _, received) = commanded();
    (session, received)
}

/// The same, and what the session is to be told.
fn commanded() -> (Session, mpsc::UnboundedReceiver<Command>, mpsc::Receiver<Report>) {
    commanded_with(Config::default())
}

fn commanded_with(config: Config) -> (Session, mpsc::UnboundedReceiver<Command>, mpsc::Receiver<Report>) {
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
    let (session, commands) = Session::new(LinkId(1), init, &settings, context);
    (session, commands, received)
}

/// Client number `n` is to join the room.
fn attaching(n: u128, inbox: &Arc<Inbox>, rejoin: bool) -> Command {
    Command::Attach {
        client: ClientId::from_u128(n << 64),
        attachment: Attachment(1),
        room: RoomName::reported("Movie"),
        token: Token("t".into()),
        inbox: inbox.clone(),
        open: true,
        report: false,
        rejoin,
    }
}

/// Client number `n` joins the room, and its task knows.
fn attach(session: &mut Session, n: u128, rejoin: bool) -> Arc<Inbox> {
    let inbox = Inbox::new(Config::default().limits.client_queue);
    session.command(attaching(n, &inbox, rejoin));
    // Who was in the room before speaks once the join is answered, and so does whoever finds it gone.
    let loaded = session.loaded.contains_key("movie");
    assert!(matches!(inbox.try_next(), Some(Item::Attached { open, .. }) if open == (loaded && !rejoin)));
    assert!(matches!(session.outbox.try_next(), Some(Outgoing::Text(text)) if text.contains("join")));
    inbox
}

fn say(session: &mut Session, n: u128) {
    let id = ClientId::from_u128(n << 64);
    session.frame(&format!(r#"{{"type":"room_msg","payload":{{"room":"Movie","client_id":"{id}","payload":{{}}}}}}"#));
}

fn kick(session: &mut Session, n: u128, code: u16) {
    let id = ClientId::from_u128(n << 64);
    session.frame(&format!(r#"{{"type":"kick","payload":{{"client_id":"{id}","reason":{code}}}}}"#));
}

fn unload(session: &mut Session, room: &str) -> Option<Outgoing> {
    let room = RoomName::parse(room).unwrap();
    session.command(Command::Unload { room, epoch: Epoch(1), why: UnloadCause::Duplicate });
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

#[test]
fn a_kick_with_1001_leaves_the_socket_open_and_is_reported() {
    let (mut session, _received) = session();
    let inbox = attach(&mut session, 1, false);
    kick(&mut session, 1, 1001);
    assert!(matches!(inbox.try_next(), Some(Item::Detached(Attachment(1)))));
    assert!(matches!(session.events.pop_front(), Some(Event::Kicked { code: CloseCode::AWAY, .. })));
    assert_eq!(session.members.len(), 0, "the Monolith has forgotten it");
}

#[test]
fn that_a_room_is_not_found_is_no_mistake_of_whoever_was_in_it() {
    for (rejoin, answered, expected) in [
        (true, false, None),
        (true, true, Some(CloseCode::ROOM_NOT_FOUND)),
        (false, false, Some(CloseCode::ROOM_NOT_FOUND)),
    ] {
        let (mut session, _received) = session();
        let inbox = attach(&mut session, 1, rejoin);
        if answered {
            say(&mut session, 1);
            assert!(matches!(inbox.try_next(), Some(Item::Frame(..))));
            if rejoin {
                assert!(matches!(inbox.try_next(), Some(Item::Open(Attachment(1)))));
                assert!(matches!(session.events.pop_front(), Some(Event::Answered { .. })));
            }
        }
        kick(&mut session, 1, 4002);
        // Who is not closed now is closed by the control thread.
        match (inbox.try_next(), expected) {
            (Some(Item::Close(code)), Some(expected)) => assert_eq!(code, expected, "{rejoin} {answered}"),
            (Some(Item::Detached(Attachment(1))), None) => assert!(inbox.try_next().is_none()),
            (item, _) => panic!("{rejoin} {answered}: {item:?}"),
        }
        let told = session.events.pop_front();
        assert!(matches!(told, Some(Event::Kicked { code: CloseCode::ROOM_NOT_FOUND, .. })), "{told:?}");
    }
}

const UNLOADED: &str = r#"{"type":"unloaded","payload":{"name":"movie","reason":"Commanded"}}"#;

#[test]
fn what_is_said_behind_a_join_that_meets_an_unload_is_held_until_the_join_is_answered() {
    let (mut session, _received) = session();
    session.frame(LOADED);
    let settled = attach(&mut session, 1, false);
    say(&mut session, 1);
    assert!(matches!(settled.try_next(), Some(Item::Frame(..))));
    // The Monolith may have to load the room once more for this one.
    let crossing = attach(&mut session, 2, false);
    session.frame(UNLOADED);
    assert!(matches!(settled.try_next(), Some(Item::Detached(Attachment(1)))));
    assert!(matches!(crossing.try_next(), Some(Item::Hold(Attachment(1), None))));
    assert!(crossing.try_next().is_none());
    say(&mut session, 2);
    assert!(matches!(crossing.try_next(), Some(Item::Frame(..))));
    assert!(matches!(crossing.try_next(), Some(Item::Open(Attachment(1)))));
}

#[test]
fn a_link_that_is_no_longer_listed_stays_until_the_last_room_has_said_that_it_has_gone() {
    let (mut session, _received) = session();
    session.frame(LOADED);
    attach(&mut session, 1, false);
    say(&mut session, 1);
    assert!(!session.is_done());
    // The Monolith sends the last member away first.
    kick(&mut session, 1, 1001);
    assert_eq!(session.members.len(), 0);
    assert!(!session.is_done(), "it may still be saving");
    session.frame(UNLOADED);
    assert!(session.is_done());
    // One that is sent away for itself leaves a room that stays.
    session.frame(LOADED);
    attach(&mut session, 2, false);
    kick(&mut session, 2, 4003);
    assert!(session.is_done());
}

/// Whether what this client says may go, as far as it has been told since it was asked last.
fn is_opened(inbox: &Inbox) -> bool {
    std::iter::from_fn(|| inbox.try_next()).any(|item| matches!(item, Item::Open(_)))
}

#[test]
fn who_is_let_on_before_its_join_is_answered_waits_for_that() {
    let open = |n: u128| Command::Open { client: ClientId::from_u128(n << 64), attachment: Attachment(1) };
    // One that was sent alone, when its room is reported.
    let (mut session, _received) = session();
    let inbox = attach(&mut session, 1, true);
    session.command(open(1));
    assert!(!is_opened(&inbox));
    say(&mut session, 1);
    assert!(is_opened(&inbox));
    assert!(matches!(session.events.pop_front(), Some(Event::Answered { .. })));
    // One whose join has met an unload, by what was said of the load that has gone.
    session.frame(LOADED);
    let inbox = attach(&mut session, 2, false);
    session.frame(UNLOADED);
    session.command(open(2));
    assert!(!is_opened(&inbox));
    session.frame(LOADED);
    session.command(open(2));
    assert!(is_opened(&inbox));
    // One that comes when the room has gone, and the control thread has not heard that yet.
    session.frame(UNLOADED);
    let inbox = Inbox::new(Config::default().limits.client_queue);
    session.command(attaching(3, &inbox, false));
    assert!(matches!(inbox.try_next(), Some(Item::Attached { open: false, .. })));
    say(&mut session, 3);
    assert!(is_opened(&inbox));
}

#[tokio::test(start_paused = true)]
async fn whose_room_has_changed_its_monolith_speaks_when_the_join_is_answered_or_after_a_while() {
    let patience = Config::default().timeouts.join_answer;
    let moment = Duration::from_millis(1);
    for (holds, answered) in [(false, true), (false, false), (true, false), (true, true)] {
        let (mut session, _received) = session();
        session.frame(LOADED);
        let first = attach(&mut session, 1, false);
        say(&mut session, 1);
        let inbox = attach(&mut session, 2, true);
        assert_eq!(session.rejoining.next_due(), Some(Instant::now() + patience));
        if holds {
            session.command(hand_over());
            assert!(matches!(inbox.try_next(), Some(Item::Hold(..))));
        }
        tokio::time::advance(patience - moment).await;
        session.open_unanswered();
        assert!(inbox.try_next().is_none());
        if answered {
            say(&mut session, 2);
            assert!(matches!(inbox.try_next(), Some(Item::Frame(..))));
            // The `unload` is still to come: it decides.
            assert_eq!(matches!(inbox.try_next(), Some(Item::Open(Attachment(1)))), !holds);
        }
        tokio::time::advance(moment).await;
        session.open_unanswered();
        let opened = matches!(inbox.try_next(), Some(Item::Open(Attachment(1))));
        // One more time does no harm.
        assert!(opened != holds, "{holds} {answered}");
        assert_eq!(session.rejoining.next_due(), None);
        drop(first);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_let_on_by_time_while_the_room_is_not_loaded() {
    let patience = Config::default().timeouts.join_answer;
    // One whose join has met an unload, and one that came when the room had gone and the control thread had not heard it.
    for crossed in [true, false] {
        let (mut session, _received) = session();
        session.frame(LOADED);
        let inbox = if crossed {
            let inbox = attach(&mut session, 1, true);
            session.frame(UNLOADED);
            assert!(matches!(inbox.try_next(), Some(Item::Hold(..))));
            inbox
        } else {
            session.frame(UNLOADED);
            let inbox = Inbox::new(Config::default().limits.client_queue);
            session.command(attaching(1, &inbox, false));
            assert!(matches!(inbox.try_next(), Some(Item::Attached { open: false, .. })));
            inbox
        };
        for _ in 0..3 {
            tokio::time::advance(patience).await;
            session.open_unanswered();
            assert!(!is_opened(&inbox), "what it said would come before the room is there");
        }
        session.frame(LOADED);
        tokio::time::advance(patience).await;
        session.open_unanswered();
        assert!(is_opened(&inbox), "crossed: {crossed}");
        assert_eq!(session.rejoining.next_due(), None);
    }
}

fn hand_over() -> Command {
    Command::Unload { room: RoomName::reported("Movie"), epoch: Epoch(1), why: UnloadCause::HandOver }
}

#[test]
fn the_unload_of_a_hand_over_goes_out_when_everybody_holds() {
    let (mut session, mut commands, _received) = commanded();
    session.frame(LOADED);
    let (one, two) = (attach(&mut session, 1, false), attach(&mut session, 2, false));
    session.command(hand_over());
    assert_eq!(session.outbox.try_next(), None, "nobody has been let in");
    say(&mut session, 1);
    one.try_next();
    session.command(hand_over());
    let (Some(Item::Hold(_, first)), Some(Item::Hold(_, second))) = (one.try_next(), two.try_next()) else {
        panic!("both are told to hold")
    };
    drop(first);
    assert!(commands.try_recv().is_err());
    // What stands in the queue by now was said before.
    let word = wire::client_message(ClientId::from_u128(2 << 64).member(Attachment(1)), "{}");
    session.outbox.try_send(ClientId::from_u128(2 << 64).member(Attachment(1)), word.clone()).unwrap();
    drop(second);
    session.command(commands.try_recv().unwrap());
    assert_eq!(session.outbox.try_next(), Some(Outgoing::Text(word)));
    assert!(matches!(session.outbox.try_next(), Some(Outgoing::Text(text)) if text.contains("unload")));
    assert!(matches!(session.outbox.try_next(), Some(Outgoing::Ping(_))));
    // The room goes by itself while they are told to hold: then no unload may follow.
    session.command(hand_over());
    let held = (one.try_next(), two.try_next());
    session.frame(r#"{"type":"unloaded","payload":{"name":"Movie","reason":"Keepalive"}}"#);
    drop(held);
    session.command(commands.try_recv().unwrap());
    assert_eq!(session.outbox.try_next(), None);
}

#[test]
fn who_is_to_go_on_after_all_waits_until_the_unload_of_a_hand_over_has_been_read() {
    for goes in [false, true] {
        let (mut session, mut commands, _received) = commanded();
        session.frame(LOADED);
        let one = attach(&mut session, 1, false);
        say(&mut session, 1);
        one.try_next();
        session.command(hand_over());
        one.try_next();
        session.command(commands.try_recv().unwrap());
        assert!(matches!(session.outbox.try_next(), Some(Outgoing::Text(text)) if text.contains("unload")));
        let Some(Outgoing::Ping(behind)) = session.outbox.try_next() else { panic!("a ping follows") };
        // The cluster has waited long enough, but the Monolith has read nothing yet.
        session.command(Command::Open { client: ClientId::from_u128(1 << 64), attachment: Attachment(1) });
        assert!(one.try_next().is_none(), "what it says would come behind the unload");
        if goes {
            session.frame(r#"{"type":"unloaded","payload":{"name":"Movie","reason":"Commanded"}}"#);
        }
        session.message(Message::Pong(behind.to_be_bytes().to_vec().into())).unwrap();
        match (one.try_next(), goes) {
            (Some(Item::Detached(Attachment(1))), true) => assert!(one.try_next().is_none()),
            (Some(Item::Open(Attachment(1))), false) => {}
            (item, _) => panic!("{goes}: {item:?}"),
        }
    }
}

#[test]
fn who_is_answered_while_its_room_goes_says_nothing_to_it_though_the_unload_has_been_read() {
    for read_first in [true, false] {
        let (mut session, mut commands, _received) = commanded();
        session.frame(LOADED);
        let (one, two) = (attach(&mut session, 1, false), attach(&mut session, 2, true));
        say(&mut session, 1);
        session.command(hand_over());
        while one.try_next().is_some() || two.try_next().is_some() {}
        session.command(commands.try_recv().unwrap());
        assert!(matches!(session.outbox.try_next(), Some(Outgoing::Text(text)) if text.contains("unload")));
        let Some(Outgoing::Ping(behind)) = session.outbox.try_next() else { panic!("a ping follows") };
        let read = |session: &mut Session| {
            session.message(Message::Pong(behind.to_be_bytes().to_vec().into())).unwrap();
        };
        if read_first {
            read(&mut session);
        }
        say(&mut session, 2);
        if !read_first {
            read(&mut session);
        }
        assert!(!is_opened(&two), "the room is about to go");
        session.command(Command::Open { client: ClientId::from_u128(2 << 64), attachment: Attachment(1) });
        assert!(is_opened(&two), "it stays after all");
    }
}

#[test]
fn an_unload_that_is_withheld_because_everybody_has_left_is_reported() {
    let (mut session, mut commands, _received) = commanded();
    session.frame(LOADED);
    let one = attach(&mut session, 1, false);
    say(&mut session, 1);
    one.try_next();
    session.events.clear();
    session.command(hand_over());
    let held = one.try_next();
    session.command(Command::Detach { client: ClientId::from_u128(1 << 64), attachment: Attachment(1) });
    assert!(matches!(session.outbox.try_next(), Some(Outgoing::Text(text)) if text.contains("leave")));
    drop(held);
    session.command(commands.try_recv().unwrap());
    assert_eq!(session.outbox.try_next(), None);
    let told = session.events.pop_front();
    assert!(
        matches!(&told, Some(Event::Withheld { room, epoch: Epoch(1), .. }) if room.as_str() == "movie"),
        "{told:?}"
    );
}

#[test]
fn another_load_than_the_one_that_is_meant_is_not_unloaded() {
    let (mut session, _received) = session();
    session.frame(&LOADED.replace(r#""load_epoch":1"#, r#""load_epoch":2"#));
    assert_eq!(unload(&mut session, "movie"), None);
}

#[test]
fn an_unload_that_nobody_has_written_is_taken_back_when_the_room_goes_by_itself() {
    let other = LOADED.replace("Movie", "Other");
    let report: serde_json::Value = serde_json::from_str(&other).unwrap();
    // It says so, or names it no more.
    let unloaded = r#"{"type":"unloaded","payload":{"name":"movie","reason":"Keepalive"}}"#.to_owned();
    let gossip = serde_json::json!({"type": "gossip", "payload": {"rooms": [report["payload"]]}}).to_string();
    for gone in [unloaded, gossip] {
        let (mut session, _received) = session();
        session.frame(LOADED);
        session.frame(&other);
        for name in ["Movie", "Other"] {
            let (room, why) = (RoomName::reported(name), UnloadCause::Duplicate);
            session.command(Command::Unload { room, epoch: Epoch(1), why });
        }
        session.frame(&gone);
        assert!(matches!(session.outbox.try_next(), Some(Outgoing::Text(text)) if text.contains("Other")), "{gone}");
        assert!(session.outbox.is_empty());
        assert_eq!(session.context.counters.unloads_withheld.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}

#[test]
fn a_request_that_speaks_to_a_room_disturbs_it() {
    let (mut session, _received) = session();
    attach(&mut session, 1, false);
    let (room, hour) = (RoomKey::of("movie"), Duration::from_secs(3600));
    let last = |session: &Session| session.members.activity(&room).unwrap().last();
    let before = last(&session);
    // Counted in milliseconds.
    while before.elapsed() < Duration::from_millis(2) {
        std::thread::yield_now();
    }
    session.stats.spoken_to(&RoomKey::of("other"));
    assert_eq!(last(&session), before);
    session.stats.spoken_to(&room);
    assert!(last(&session) > before);
    session.command(Command::Watch { room: room.clone(), quiet: hour, at_most: hour });
    session.look_at_those_leaving();
    assert!(session.leaving.next_due().unwrap() > before + hour);
}
