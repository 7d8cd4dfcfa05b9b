//! A session that runs, over a socket: how it ends, how it shares its time, and how it notices silence.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use futures_util::SinkExt;
use tokio::io::{DuplexStream, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

/// A session that runs and was accepted.
struct Running {
    told: mpsc::UnboundedSender<Command>,
    reports: mpsc::Sender<Report>,
    received: mpsc::Receiver<Report>,
    task: tokio::task::JoinHandle<End>,
    _listed: watch::Sender<bool>,
}

impl Running {
    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, config: Config) -> Self {
        let (session, commands, mut received) = commanded_with(config);
        let (told, reports) = (session.commands.clone(), session.context.reports.clone());
        let stream = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        let (_listed, mut listed) = watch::channel(true);
        let http = SocketAddr::from(([127, 0, 0, 1], 1));
        let task = tokio::spawn(async move { session.run(commands, stream, http, "host:1".into(), &mut listed).await });
        assert!(matches!(received.recv().await, Some(Report::Up { .. })));
        told.send(Command::Accept).unwrap();
        Self { told, reports, received, task, _listed }
    }

    /// Client number 1 joins.
    async fn first(&self) -> Arc<Inbox> {
        let inbox = Inbox::new(Config::default().limits.client_queue);
        self.told.send(attaching(1, &inbox, false)).unwrap();
        assert!(matches!(inbox.next().await, Item::Attached { .. }));
        inbox
    }
}

/// The other end of a stream.
async fn monolith(stream: DuplexStream) -> WebSocketStream<DuplexStream> {
    WebSocketStream::from_raw_socket(stream, Role::Server, None).await
}

/// A stream whose reader panics once it is told to: something in the session breaks.
struct Breaking {
    stream: DuplexStream,
    breaks: Arc<AtomicBool>,
}

impl AsyncRead for Breaking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        assert!(!self.breaks.load(Ordering::SeqCst), "a test breaks the session");
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn f16_a_session_that_breaks_tells_its_members_and_the_control_thread_that_the_link_is_gone() {
    // Also where the control thread is behind with what it was told.
    for full in [false, true] {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let breaks = Arc::new(AtomicBool::new(false));
        let running = Running::over(Breaking { stream: ours, breaks: breaks.clone() }, Config::default()).await;
        let inbox = running.first().await;
        let Running { told, reports, mut received, task, _listed } = running;
        while full && reports.try_send(Report::Event(Event::Tick)).is_ok() {}
        breaks.store(true, Ordering::SeqCst);
        told.send(Command::Open { client: ClientId::from_u128(1 << 64), attachment: Attachment(1) }).unwrap();
        assert!(task.await.unwrap_err().is_panic());
        assert!(matches!(inbox.try_next(), Some(Item::Open(Attachment(1)))));
        assert!(matches!(inbox.try_next(), Some(Item::Detached(Attachment(1)))));
        drop(reports);
        let mut last = None;
        while let Some(report) = received.recv().await {
            last = Some(report);
        }
        assert!(matches!(last, Some(Report::Event(Event::LinkDown { link: LinkId(1) }))));
        // Nothing is left that holds the socket.
        let mut theirs = theirs;
        let mut rest = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut theirs, &mut rest).await.unwrap();
    }
}

#[tokio::test]
async fn f15_a_crowd_that_wants_in_does_not_keep_back_what_is_said_in_rooms_that_are_there() {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let running = Running::over(ours, Config::default()).await;
    let mut monolith = monolith(theirs).await;
    let inbox = running.first().await;
    // One message for the first one lies in the socket, and a hundred others are to be attached.
    let id = ClientId::from_u128(1 << 64).member(Attachment(1));
    let message = serde_json::json!({"type": "room_msg", "payload": {"room": "movie", "client_id": id, "payload": {}}});
    monolith.send(Message::text(message.to_string())).await.unwrap();
    let crowd: Vec<_> = (2..102).map(|_| Inbox::new(Config::default().limits.client_queue)).collect();
    for (n, inbox) in (2..).zip(&crowd) {
        running.told.send(attaching(n, inbox, false)).unwrap();
    }
    assert!(matches!(inbox.next().await, Item::Frame(..)));
    let attached = crowd.iter().filter(|inbox| matches!(inbox.try_next(), Some(Item::Attached { .. }))).count();
    assert!(attached <= 2 * CROWD as usize, "{attached} of the crowd came first");
}

#[tokio::test(start_paused = true)]
async fn f21_a_silent_link_is_suspect_after_one_interval_and_lost_after_as_many_as_may_be_missed() {
    let interval = Config::default().heartbeat.interval;
    let moments = [Duration::from_millis(20), interval / 2, interval - Duration::from_millis(20)];
    for (missed, moment) in [1, 2, 5].into_iter().flat_map(|missed| moments.map(|moment| (missed, moment))) {
        let mut config = Config::default();
        config.heartbeat.missed = missed;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut running = Running::over(ours, config).await;
        let mut monolith = monolith(theirs).await;
        // It speaks now and then, which is as good as an answer to a ping.
        for _ in 0..4 {
            monolith.send(Message::text("{}")).await.unwrap();
            tokio::time::sleep(interval).await;
        }
        tokio::time::sleep(moment).await;
        monolith.send(Message::text("{}")).await.unwrap();
        let last = Instant::now();
        let what = format!("missed {missed}, {moment:?} after a heartbeat");
        if missed > 1 {
            let report = running.received.recv().await;
            let Some(Report::Event(Event::LinkState { state, .. })) = report else { panic!("{what}") };
            assert_eq!(state, MonolithState::Suspect);
            let took = last.elapsed();
            assert!(took > interval && took <= interval * 2, "{what}: suspect after {took:?}");
        }
        assert!(matches!(running.received.recv().await, Some(Report::Event(Event::LinkDown { .. }))), "{what}");
        let took = last.elapsed();
        assert!(took > interval * missed && took <= interval * (missed + 1), "{what}: lost after {took:?}");
        assert!(matches!(running.task.await.unwrap(), End::Lost("missed heartbeats")));
    }
}
