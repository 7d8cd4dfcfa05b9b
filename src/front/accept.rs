//! Accepting connections, and what each is about by its first bytes: that decides which thread serves it.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpListener;

use super::connection::{self, Accepted, Home, ROOM};
use super::listener::{Handler, Peer, Serving, Shared, Slot};
use super::rate::Rates;

/// Connections that are accepted before anything else has its turn.
const BATCH: usize = 8;

/// How long accepting pauses when the process has no file descriptor left; doubled each time, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Newcomers in one [`SPAN`] that are no crowd: the workers serve them, which costs less than a way through another thread.
const FEW: u32 = 8;
const SPAN: Duration = Duration::from_millis(10);

/// How much of a request is looked at. The head of a browser is a fraction of it; one that is longer is served by the
/// workers, which is no mistake.
const HEAD: usize = 4096;

/// The end of a head.
const END: &[u8] = b"\r\n\r\n";

/// Requests that are about this balancer.
const PROBES: [&[u8]; 3] = [b"GET /api/status", b"HEAD /api/status", b"GET /_usher/ready"];

/// Accepts until it is dropped, on the desk's thread.
pub(super) async fn accept<H: Handler>(socket: std::net::TcpListener, handler: Arc<H>, shared: Arc<Shared>) {
    match TcpListener::from_std(socket) {
        // It yields by itself: tokio's own pace would leave thousands of connections waiting to be accepted.
        Ok(socket) => tokio::task::coop::unconstrained(accept_from(&socket, &handler, &shared)).await,
        Err(error) => tracing::error!(%error, "cannot accept connections"),
    }
}

async fn accept_from<H: Handler>(socket: &TcpListener, handler: &Arc<H>, shared: &Arc<Shared>) {
    let mut pause = PAUSE.0;
    let mut accepted_so_far = 0usize;
    let mut rates = Rates::default();
    loop {
        // Not while there is a connection in hand: whoever stops the accepting would drop it.
        if accepted_so_far.is_multiple_of(BATCH) {
            tokio::task::yield_now().await;
        }
        match socket.accept().await {
            Ok((stream, addr)) => {
                pause = PAUSE.0;
                accepted_so_far += 1;
                let rate = shared.rate_for(addr.ip());
                if rate > 0 && !rates.take(addr.ip().to_canonical(), rate, tokio::time::Instant::now()) {
                    shared.counters.too_fast.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%addr, "closed at once: this address connects more often than it may");
                    continue;
                }
                let Some(slot) = Slot::take(shared) else {
                    shared.counters.too_many.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%addr, "closed at once: as many connections as there may be");
                    continue;
                };
                let serving = Serving::begin(shared);
                let accepted = Accepted { stream, peer: Peer::new(addr), slot, serving };
                match about(&accepted.stream) {
                    Some(about) => send_on(about, accepted, handler.clone()),
                    None => _ = tokio::spawn(wait(accepted, handler.clone())),
                }
            }
            // The client gave up before it was its turn.
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections, trying again in {pause:?}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// How this balancer is doing.
    Balancer,
    /// A way into a room.
    Room,
    /// Perhaps a way into a room: not all of it is there.
    Unclear,
    /// Anything else, or a part of it.
    Else,
}

/// What a client has said by now, which stays to be read; none if that is nothing.
fn about(stream: &impl AsFd) -> Option<About> {
    let mut head = [0; HEAD];
    match rustix::net::recv(stream, &mut head, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, len)) => Some(about_bytes(&head[..len])),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => None,
        // Whoever serves it finds out.
        Err(_) => Some(About::Else),
    }
}

fn about_bytes(head: &[u8]) -> About {
    if PROBES.iter().any(|probe| head.starts_with(probe)) {
        About::Balancer
    } else if head.starts_with(ROOM) && wants_websocket(head) {
        About::Room
    } else if head.starts_with(ROOM) && !head.windows(END.len()).any(|window| window == END) {
        About::Unclear
    } else {
        About::Else
    }
}

/// Whether a line is the header that says so.
fn wants_websocket(head: &[u8]) -> bool {
    const UPGRADE: &[u8] = b"upgrade:";
    head.split(|byte| *byte == b'\n').any(|line| {
        let (name, value) = line.split_at(UPGRADE.len().min(line.len()));
        name.eq_ignore_ascii_case(UPGRADE) && value.trim_ascii().eq_ignore_ascii_case(b"websocket")
    })
}

/// Waits for the first bytes of a connection.
async fn wait<H: Handler>(accepted: Accepted, handler: Arc<H>) {
    let (patience, stop) = (accepted.serving.0.settings().keep_alive, accepted.serving.0.stop.clone());
    let stream = &accepted.stream;
    let about = loop {
        let readable = tokio::select! {
            biased;
            readable = tokio::time::timeout(patience, stream.readable()) => readable,
            () = stop.wait() => return,
        };
        let Ok(Ok(())) = readable else { return };
        let nothing = || io::Error::from(io::ErrorKind::WouldBlock);
        // What only looked ready is waited for again.
        if let Ok(about) = stream.try_io(Interest::READABLE, || about(stream).ok_or_else(nothing)) {
            break about;
        }
    };
    send_on(about, accepted, handler);
}

/// Takes a connection to the thread that serves it.
fn send_on<H: Handler>(about: About, accepted: Accepted, handler: Arc<H>) {
    let shared = accepted.serving.0.clone();
    match about {
        About::Balancer => _ = tokio::spawn(connection::serve(accepted, handler, Home::Desk)),
        // A crowd that wants into rooms costs no more than this until it is its turn.
        About::Room if shared.newcomers.is_crowd() => shared.turnstile.enter(accepted),
        About::Room | About::Else => to_workers(&shared, connection::serve(accepted, handler, Home::Workers)),
        About::Unclear => to_workers(&shared, async move {
            accepted.serving.0.turnstile.turn().await;
            connection::serve(accepted, handler, Home::Workers).await;
        }),
    }
}

fn to_workers(shared: &Shared, served: impl Future<Output = ()> + Send + 'static) {
    // It ends by itself, at the latest when it is told to.
    drop(shared.threads.workers().spawn(served));
}

/// How many want into rooms just now. Only the desk's thread counts them.
#[derive(Debug)]
pub(super) struct Newcomers(Mutex<(Instant, u32)>);

impl Newcomers {
    pub(super) fn new() -> Self {
        Self(Mutex::new((Instant::now(), 0)))
    }

    /// Counts one more, and says whether it comes in a crowd.
    fn is_crowd(&self) -> bool {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(count.0) > SPAN {
            *count = (now, 0);
        }
        count.1 += 1;
        count.1 > FEW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_told_apart_by_what_they_begin_with() {
        for (head, expected) in [
            ("GET /api/status HTTP/1.1\r\n", About::Balancer),
            ("GET /api/status/metrics HTTP/1.1\r\n", About::Balancer),
            ("HEAD /api/status HTTP/1.1\r\n", About::Balancer),
            ("GET /_usher/ready HTTP/1.1\r\n", About::Balancer),
            ("GET /_usher/v1/monoliths HTTP/1.1\r\n", About::Else),
            ("GET /api/room/x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", About::Room),
            ("GET /api/room/x HTTP/1.1\r\nHost: a\r\nupgrade: websocket\r\n\r\n", About::Room),
            ("GET /api/room/x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", About::Else),
            ("GET /api/room/x HTTP/1.1\r\nHost: a\r\n\r\n", About::Else),
            ("GET /api/room/x HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n", About::Else),
            ("GET /api/room/x HTTP/1.1\r\nHost: a\r\nUpg", About::Unclear),
            ("GET /api/room/", About::Unclear),
            ("PRI * HTTP/2.0\r\n\r\n", About::Else),
            ("\0", About::Else),
            ("", About::Else),
        ] {
            assert_eq!(about_bytes(head.as_bytes()), expected, "{head:?}");
        }
    }
}
