//! From an endpoint to a Monolith that has introduced itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpStream, lookup_host};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use uuid::Uuid;

use super::LinkSettings;
use crate::discovery::Endpoint;
use crate::model::wire::{self, Frame, FromMonolith, Init};

/// The stream of a link.
pub(super) type LinkStream = WebSocketStream<TcpStream>;

/// A link whose two `init`s have been exchanged.
pub(super) struct Linked {
    pub(super) stream: LinkStream,
    pub(super) init: Init,
    pub(super) http: SocketAddr,
}

/// Why there is no link. Each of them means: try again soon.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no address for {0}")]
    NoAddress(String),
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("no websocket: {0}")]
    Upgrade(#[from] tokio_tungstenite::tungstenite::Error),
    #[error("not done within {0:?}")]
    TimedOut(Duration),
    #[error("closed before its init")]
    ClosedEarly,
    #[error("the first frame is no init: {0}")]
    NoInit(&'static str),
    #[error("the init does not carry the configured link_token")]
    WrongToken,
}

/// Dials, upgrades and exchanges `init`, all within `timeouts.link_handshake`.
pub(super) async fn dial(endpoint: &Endpoint, settings: &LinkSettings) -> Result<Linked, DialError> {
    let limit = settings.timeouts.link_handshake;
    match tokio::time::timeout(limit, dial_unbounded(endpoint, settings)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::TimedOut(limit)),
    }
}

async fn dial_unbounded(endpoint: &Endpoint, settings: &LinkSettings) -> Result<Linked, DialError> {
    let tcp = connect(endpoint, settings.timeouts.link_handshake).await?;
    tcp.set_nodelay(true)?;
    let peer = tcp.peer_addr()?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(settings.link_message))
        .max_frame_size(Some(settings.link_message))
        .read_buffer_size(64 << 10)
        .write_buffer_size(64 << 10);
    let url = format!("ws://{endpoint}/");
    let (mut stream, _) = tokio_tungstenite::client_async_with_config(url, tcp, Some(config)).await?;
    stream.send(Message::text(wire::init(Uuid::new_v4()))).await?;
    loop {
        match stream.next().await {
            None => return Err(DialError::ClosedEarly),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Close(_))) => return Err(DialError::ClosedEarly),
            Some(Ok(Message::Binary(_))) => return Err(DialError::NoInit("binary")),
            Some(Ok(Message::Text(text))) => {
                let init = match Frame::parse(&text).map(|frame| frame.message) {
                    Ok(FromMonolith::Init(init)) => init,
                    Ok(_) => return Err(DialError::NoInit("another message")),
                    Err(_) => return Err(DialError::NoInit("malformed")),
                };
                if !carries(settings, &init) {
                    return Err(DialError::WrongToken);
                }
                let http = SocketAddr::new(peer.ip(), init.port);
                return Ok(Linked { stream, init, http });
            }
        }
    }
}

/// Tries every address of a host: a name may have an address that nobody listens on, or that swallows what is sent to
/// it. Each gets its share of the time, and some is left for the handshake.
async fn connect(endpoint: &Endpoint, time: Duration) -> Result<TcpStream, DialError> {
    let addresses: Vec<SocketAddr> = lookup_host((endpoint.host.as_str(), endpoint.port)).await?.collect();
    connect_any(addresses, time).await.unwrap_or_else(|| Err(DialError::NoAddress(endpoint.to_string())))
}

/// The first of these addresses that answers; `None` if there is none to try.
async fn connect_any(addresses: Vec<SocketAddr>, time: Duration) -> Option<Result<TcpStream, DialError>> {
    let share = time / u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX);
    let mut last = None;
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Some(Ok(tcp)),
            Ok(Err(error)) => last = Some(Err(DialError::Connect(error))),
            Err(_) => last = Some(Err(DialError::TimedOut(share))),
        }
    }
    last
}

fn carries(settings: &LinkSettings, init: &Init) -> bool {
    use subtle::ConstantTimeEq;
    let expected = settings.link_token.expose().as_bytes();
    let given = init.token.as_deref().unwrap_or_default().as_bytes();
    expected.is_empty() || bool::from(expected.ct_eq(given))
}

/// `host:port` as it is shared by everything that names an endpoint.
pub(super) fn label(endpoint: &Endpoint) -> Arc<str> {
    endpoint.to_string().into()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;

    /// An address that swallows what is sent to it: its listener accepts nobody, and its queue is full. Lives as long as
    /// the sockets.
    fn swallowing() -> (SocketAddr, Vec<Socket>) {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut kept = vec![listener];
        for _ in 0..8 {
            let filler = socket();
            filler.set_nonblocking(true).unwrap();
            // It is under way, or waits for ever: both fill the queue.
            let _ = filler.connect(&address);
            kept.push(filler);
        }
        (address.as_socket().unwrap(), kept)
    }

    #[tokio::test]
    async fn a_first_address_that_swallows_what_is_sent_leaves_time_for_the_second() {
        let (swallowing, _kept) = swallowing();
        let alone = connect_any(vec![swallowing], Duration::from_millis(200)).await;
        assert!(matches!(alone, Some(Err(DialError::TimedOut(_)))), "the address answers: {alone:?}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let good = listener.local_addr().unwrap();
        let dialled = connect_any(vec![swallowing, good], Duration::from_secs(3));
        // Far less than the kernel takes to give up on the first.
        let connected = tokio::time::timeout(Duration::from_secs(20), dialled).await.expect("it gives up on the first");
        assert_eq!(connected.unwrap().unwrap().peer_addr().unwrap(), good);
    }

    #[tokio::test]
    async fn without_an_address_that_answers_there_is_a_reason() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let refusing = socket.local_addr().unwrap().as_socket().unwrap();
        let refused = connect_any(vec![refusing, refusing], Duration::from_secs(20)).await;
        assert!(matches!(refused, Some(Err(DialError::Connect(_)))), "{refused:?}");
        assert!(connect_any(Vec::new(), Duration::from_secs(20)).await.is_none());
    }
}
