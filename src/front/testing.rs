//! For the tests of this folder: Monoliths that follow a script byte for byte, raw clients, and a proxy between them.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::body::Body;
use super::forward;
use super::listener::{Bounds, Handler, Listener, Peer, Settings, Stop};
use super::respond::Refusal;
use super::threads::Threads;
use super::tunnel;
use super::upload::RequestBody;
use super::upstream::{InFlight, Pool, PoolTimeouts};

/// No wait of a test is longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Fails a test that would hang.
pub(super) async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Waits until a condition holds.
pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A Monolith: `script` gets each connection with its number, from 0.
pub(super) async fn monolith<F, S>(script: S) -> SocketAddr
where
    S: Fn(usize, TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(script(number, stream));
        }
    });
    addr
}

/// A Monolith that gives the same answer to every request on a connection.
pub(super) async fn answering(answer: &'static [u8]) -> SocketAddr {
    monolith(move |_, mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            stream.write_all(answer).await.unwrap();
        }
    })
    .await
}

/// Reads up to the blank line; empty at the end of the stream.
pub(super) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match soon(stream.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => return String::new(),
        }
    }
    String::from_utf8(head).unwrap()
}

/// Reads this many bytes.
pub(super) async fn read_exact(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// Reads to the end, or to a reset.
pub(super) async fn read_all(stream: &mut TcpStream) -> (String, bool) {
    let mut bytes = Vec::new();
    let clean = soon(stream.read_to_end(&mut bytes)).await.is_ok();
    (String::from_utf8_lossy(&bytes).into_owned(), clean)
}

/// A proxy that sends everything to one Monolith.
pub(super) struct Proxy {
    pub(super) pool: Pool,
    pub(super) target: SocketAddr,
    pub(super) in_flight: Arc<AtomicU32>,
    pub(super) handled: AtomicUsize,
    pub(super) trusted: Vec<IpNet>,
    pub(super) stop: Stop,
}

pub(super) struct Running {
    pub(super) proxy: Arc<Proxy>,
    pub(super) addr: SocketAddr,
    pub(super) stop: Stop,
    pub(super) task: JoinHandle<usize>,
}

pub(super) fn timeouts() -> PoolTimeouts {
    PoolTimeouts { connect: Duration::from_secs(5), response: PATIENCE, idle: Duration::from_secs(4) }
}

pub(super) fn settings() -> Settings {
    Settings {
        connections: 100,
        per_address: 0,
        header: 8 << 10,
        head: PATIENCE,
        keep_alive: PATIENCE,
        stall: PATIENCE,
    }
}

/// The threads of a listener.
pub(super) fn threads() -> Arc<Threads> {
    Arc::new(Threads::start().unwrap())
}

/// Starts a proxy to `target`.
pub(super) fn proxy(target: SocketAddr, timeouts: PoolTimeouts, settings: Settings) -> Running {
    let listener = Listener::bind_loopback().unwrap();
    let addr = listener.addr();
    let stop = Stop::new();
    let proxy = Arc::new(Proxy {
        pool: Pool::new(timeouts),
        target,
        in_flight: Arc::default(),
        handled: AtomicUsize::new(0),
        trusted: Vec::new(),
        stop: stop.clone(),
    });
    let threads = threads();
    let (bounds, grace) = (Bounds::Fixed(settings), Duration::from_secs(5));
    let task = tokio::spawn(listener.serve(Arc::clone(&proxy), bounds, threads, stop.clone(), grace));
    Running { proxy, addr, stop, task }
}

impl Running {
    /// A raw connection to the proxy.
    pub(super) async fn client(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// What the proxy sends on a new connection that it closes after this.
    pub(super) async fn exchange(&self, request: &[u8]) -> String {
        let mut client = self.client().await;
        client.write_all(request).await.unwrap();
        read_all(&mut client).await.0
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.proxy.in_flight.load(Ordering::Relaxed)
    }
}

impl Handler for Proxy {
    fn is_probe(&self, _: &Request<Incoming>) -> bool {
        false
    }

    fn is_newcomer(&self, _: &Request<Incoming>) -> bool {
        true
    }

    async fn handle(&self, mut request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        self.handled.fetch_add(1, Ordering::Relaxed);
        let in_flight = Some(InFlight::enter(&self.in_flight));
        if forward::wants_upgrade(&request) {
            forward::to_upstream_upgrade(&mut request, peer, &self.trusted);
            return match tunnel::open(&self.pool, self.target, request, in_flight, self.stop.clone()).await {
                Ok(response) => response,
                Err(error) => Refusal::from(error.kind).response(),
            };
        }
        forward::to_upstream(&mut request, peer, &self.trusted);
        match self.pool.send(self.target, request.map(RequestBody::from), in_flight).await {
            Ok(mut response) => {
                forward::to_client(response.headers_mut());
                response.map(Body::from)
            }
            Err(error) => Refusal::from(error.kind).response(),
        }
    }
}
