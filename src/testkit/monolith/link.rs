//! The socket of one link: a task that reads what the balancer sends, hands it to the state, and writes what the
//! state has queued.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::frames;
use super::records::LinkNumber;
use super::shared::{Flow, Shared};
use super::state::{InitStyle, Out};

/// How many frames may wait for one balancer before its link is cut.
const QUEUE: usize = 65_536;
/// How many frames are read before what they caused is written.
const READ_BATCH: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);

type Socket = WebSocketStream<TcpStream>;

/// Takes the link out of the state however its task ends.
struct Registered {
    shared: Arc<Shared>,
    number: LinkNumber,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.change(|state| state.close_link(self.number));
    }
}

pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    if shared.look(|state| state.knobs.refuse_links) {
        return;
    }
    let _ = stream.set_nodelay(true);
    let config = WebSocketConfig::default().read_buffer_size(64 * 1024);
    let accept = tokio_tungstenite::accept_async_with_config(stream, Some(config));
    let Ok(Ok(mut socket)) = timeout(HANDSHAKE, accept).await else { return };
    if shared.look(|state| state.stopping) {
        // A real process that shuts down still shakes hands for a moment and then says nothing.
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
        return;
    }
    let (sender, queue) = mpsc::channel(QUEUE);
    let number = shared.change(|state| state.open_link(sender));
    let registered = Registered { shared: shared.clone(), number };
    // An error means that the balancer has gone, which the state learns when `registered` goes.
    let _ = run(&shared, number, socket, queue).await;
    drop(registered);
}

async fn run(
    shared: &Shared,
    number: LinkNumber,
    mut socket: Socket,
    mut queue: mpsc::Receiver<Out>,
) -> Result<(), Error> {
    let mut flow = shared.flow.subscribe();
    let (style, init_timeout) = shared.look(|state| (state.knobs.init.clone(), state.knobs.init_timeout));
    let mut init_due = match style {
        InitStyle::Delayed(delay) => Some(Instant::now() + delay),
        InitStyle::Never => None,
        InitStyle::Normal | InitStyle::Text(_) | InitStyle::Binary => {
            send_init(shared, &mut socket).await?;
            None
        }
    };
    let give_up = Instant::now() + init_timeout;
    let mut introduced = false;
    loop {
        let now = *flow.borrow_and_update();
        if now == Flow::Frozen && queue.is_closed() {
            return Ok(());
        }
        tokio::select! {
            // A stall holds from the moment it is asked for. Reading goes before writing, but writes in between.
            biased;
            changed = flow.changed() => if changed.is_err() { return Ok(()) },
            () = sleep_until(init_due.unwrap_or(give_up)), if init_due.is_some() && now != Flow::Frozen => {
                init_due = None;
                send_init(shared, &mut socket).await?;
            }
            () = sleep_until(give_up), if !introduced && now == Flow::Running => {
                let reason = Out::Close(1002, "Balancer did not send init message");
                write_all(&mut socket, reason, &mut queue).await?;
                return drain(socket).await;
            }
            // A process that is late with its init is late with everything: its gossip does not come before.
            message = socket.next(), if now == Flow::Running && init_due.is_none() => {
                let mut message = message;
                let mut left = READ_BATCH;
                loop {
                    let Some(read) = message else { return Ok(()) };
                    receive(shared, number, read?);
                    // What a frame caused goes out before the next one is read, so that a pong never overtakes it.
                    if feed_all(&mut socket, queue.try_recv().ok(), &mut queue).await? {
                        return drain(socket).await;
                    }
                    left -= 1;
                    // Whether to go on is asked before reading: what was read must be taken.
                    if left == 0 || *flow.borrow() != Flow::Running {
                        break;
                    }
                    match socket.next().now_or_never() {
                        Some(next) => message = next,
                        None => break,
                    }
                }
                socket.flush().await?;
                if !introduced {
                    let balancer = |link: &super::state::Link| link.number == number && link.balancer.is_some();
                    introduced = shared.look(|state| state.links.iter().any(balancer));
                }
            }
            out = queue.recv(), if now != Flow::Frozen => {
                // Without a sender the state has dropped this link: the socket goes without a close frame.
                let Some(out) = out else { return Ok(()) };
                if write_all(&mut socket, out, &mut queue).await? {
                    return drain(socket).await;
                }
            }
        }
    }
}

fn receive(shared: &Shared, number: LinkNumber, message: Message) {
    let text = match message {
        Message::Text(text) => text,
        // Binary frames that hold JSON are read like text.
        Message::Binary(bytes) => match Utf8Bytes::try_from(bytes) {
            Ok(text) => text,
            Err(_) => return,
        },
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return,
    };
    shared.change(|state| state.receive(number, text));
}

async fn send_init(shared: &Shared, socket: &mut Socket) -> Result<(), Error> {
    let (style, text) = shared.look(|state| {
        let token = state.knobs.token.as_deref();
        (state.knobs.init.clone(), frames::init(state.http_port, &state.region, &state.id, token))
    });
    let message = match style {
        InitStyle::Text(other) => Message::text(other),
        InitStyle::Binary => Message::binary(text),
        InitStyle::Normal | InitStyle::Delayed(_) | InitStyle::Never => Message::text(text),
    };
    socket.send(message).await
}

/// Writes a frame and all that wait behind it with one flush; `true` once a close frame was written.
async fn write_all(socket: &mut Socket, first: Out, queue: &mut mpsc::Receiver<Out>) -> Result<bool, Error> {
    let closed = feed_all(socket, Some(first), queue).await?;
    socket.flush().await?;
    Ok(closed)
}

async fn feed_all(socket: &mut Socket, first: Option<Out>, queue: &mut mpsc::Receiver<Out>) -> Result<bool, Error> {
    let mut next = first;
    while let Some(out) = next {
        match out {
            Out::Text(text) => socket.feed(Message::Text(text)).await?,
            Out::Binary(bytes) => socket.feed(Message::Binary(bytes)).await?,
            Out::Raw(bytes) => {
                socket.flush().await?;
                socket.get_mut().write_all(&bytes).await?;
            }
            Out::Close(code, reason) => {
                let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
                socket.feed(Message::Close(Some(frame))).await?;
                socket.flush().await?;
                return Ok(true);
            }
        }
        next = queue.try_recv().ok();
    }
    Ok(false)
}

/// After our close frame: waits for the answer, and takes no notice of anything else.
async fn drain(mut socket: Socket) -> Result<(), Error> {
    while let Some(message) = socket.next().await {
        message?;
    }
    Ok(())
}
