//! Tests of `room_socket.rs`: what links announce in an order of their own.

use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::handshakes::Handshakes;
use super::super::testing::{soon, until};
use super::*;
use crate::claims;
use crate::config::Config;
use crate::control::ControlSettings;
use crate::control::reload::cluster_settings;
use crate::control::shell::in_virtual_time;
use crate::link::activity::Activity;
use crate::link::outbox::Outbox;
use crate::policy::Builtin;

/// A client that has said who it is, and both ends of what reaches it.
struct Joined {
    client: WebSocketStream<DuplexStream>,
    inbox: Arc<Inbox>,
    clients: Arc<Clients>,
}

fn client() -> ClientId {
    ClientId::from_u128(1 << 64)
}

async fn joined() -> Joined {
    let config = Config::default();
    // Nobody runs the control thread: what it would say is said by the test.
    let (control, thread) = in_virtual_time(
        ControlSettings {
            cluster: cluster_settings(&config),
            policy: Box::new(Builtin),
            reports: mpsc::channel(1).1,
            claims: claims::queue().0,
            seed: 1,
        },
        0,
    );
    let clients = Arc::<Clients>::default();
    let context = SocketContext { control, clients: clients.clone(), tap: Tap::new("b".into()) };
    let settings = SocketSettings {
        auth: config.timeouts.auth,
        message: config.limits.message,
        held: config.limits.held_frames,
        heartbeat: config.heartbeat,
    };
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let handshakes = Handshakes::default();
    let handshake = handshakes.begin(1).unwrap();
    let room = RoomName::reported("movie");
    let request = RoomRequest { client: client(), room, region: None, reconnect: false, handshake };
    let inbox = Inbox::new(config.limits.client_queue);
    let socket = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    tokio::spawn(serve(socket, request, inbox.clone(), thread, settings, Arc::new(context)));
    let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    client.send(Message::text(r#"{"action":"auth","token":"t"}"#)).await.unwrap();
    until(|| handshakes.count() == 0).await;
    Joined { client, inbox, clients }
}

impl Joined {
    /// A link announces an attachment. Returns where the client's messages for its Monolith stand.
    fn attach(&self, attachment: u64) -> Arc<Outbox> {
        let attachment = Attachment(attachment);
        let outbox = Arc::new(Outbox::new("m1".into(), 1 << 20));
        let line = Line {
            member: client().member(attachment),
            outbox: outbox.clone(),
            commands: mpsc::unbounded_channel().0,
            activity: Arc::new(Activity::default()),
        };
        self.inbox.attached(attachment, line, true);
        outbox
    }

    /// The client says something, and its task has read it.
    async fn says(&mut self, text: &str) {
        let before = self.clients.counters.messages.load(Relaxed);
        self.client.send(Message::text(text)).await.unwrap();
        until(|| self.clients.counters.messages.load(Relaxed) > before).await;
    }
}

/// What the client has said that stands in the queue of this attachment's Monolith.
fn said(outbox: &Outbox, attachment: u64) -> Vec<String> {
    let frames = outbox.reclaim(client().member(Attachment(attachment)));
    frames.iter().map(|frame| wire::said(frame).to_string()).collect()
}

#[tokio::test]
async fn an_attachment_that_is_announced_after_a_newer_one_changes_nothing() {
    let mut joined = joined().await;
    joined.inbox.detached(Attachment(1));
    let newer = joined.attach(2);
    let older = joined.attach(1);
    joined.inbox.push(Attachment(2), "hello".into()).unwrap();
    let heard = soon(joined.client.next()).await.unwrap().unwrap();
    assert_eq!(heard, Message::text("hello"));
    joined.says(r#"{"n":1}"#).await;
    until(|| !newer.is_empty() || !older.is_empty()).await;
    assert_eq!((said(&newer, 2), said(&older, 1)), (vec![r#"{"n":1}"#.to_string()], Vec::new()));
}

#[tokio::test]
async fn what_is_said_after_an_end_that_overtook_its_beginning_is_kept_for_the_next_monolith() {
    let mut joined = joined().await;
    joined.inbox.detached(Attachment(1));
    let older = joined.attach(1);
    joined.says(r#"{"n":1}"#).await;
    assert_eq!(said(&older, 1), Vec::<String>::new());
    let newer = joined.attach(2);
    until(|| !newer.is_empty()).await;
    assert_eq!(said(&newer, 2), [r#"{"n":1}"#]);
}

#[tokio::test]
async fn the_end_of_an_attachment_that_is_not_announced_yet_ends_the_one_before_it() {
    let mut joined = joined().await;
    let first = joined.attach(1);
    joined.inbox.detached(Attachment(2));
    joined.says(r#"{"n":1}"#).await;
    joined.attach(2);
    assert_eq!(said(&first, 1), Vec::<String>::new());
    let third = joined.attach(3);
    until(|| !third.is_empty()).await;
    assert_eq!(said(&third, 3), [r#"{"n":1}"#]);
}

#[tokio::test]
async fn a_frame_of_an_attachment_that_is_over_does_not_reach_the_client() {
    let mut joined = joined().await;
    joined.attach(1);
    joined.inbox.detached(Attachment(1));
    joined.inbox.push(Attachment(1), "between two Monoliths".into()).unwrap();
    joined.attach(2);
    joined.inbox.push(Attachment(1), "late".into()).unwrap();
    joined.inbox.push(Attachment(2), "hello".into()).unwrap();
    let heard = soon(joined.client.next()).await.unwrap().unwrap();
    assert_eq!(heard, Message::text("hello"));
    assert_eq!(joined.clients.counters.stale_frames.load(Relaxed), 2);
}
