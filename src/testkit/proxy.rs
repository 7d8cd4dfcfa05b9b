//! A TCP proxy that stands between a balancer and a Monolith, and fails on command: partitions that heal.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What a proxy does with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Road {
    /// It passes.
    Open,
    /// It waits until the road is open again, as when packets are lost: connections stay, and new ones begin nothing.
    Swallowed,
    /// Connections end, and new ones at once.
    Cut,
}

/// One road to one address, on a port of its own. It is gone when this is dropped.
pub struct Proxy {
    addr: SocketAddr,
    road: watch::Sender<Road>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// An open road to `target`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (road, state) = watch::channel(Road::Open);
        Ok(Self { addr, road, task: tokio::spawn(accept(listener, target, state)) })
    }

    /// Where to connect instead.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends every connection, and each new one at once.
    pub fn cut(&self) {
        self.road.send_replace(Road::Cut);
    }

    /// From now on nothing comes through, and nobody is told.
    pub fn swallow(&self) {
        self.road.send_replace(Road::Swallowed);
    }

    /// Lets everything pass; what was swallowed comes through late, as TCP sends it again.
    pub fn heal(&self) {
        self.road.send_replace(Road::Open);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, road: watch::Receiver<Road>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(carry(stream, target, road.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until either side ends it or the road is cut.
async fn carry(stream: TcpStream, target: SocketAddr, mut road: watch::Receiver<Road>) {
    if !opens(&mut road).await {
        return;
    }
    let Ok(onward) = TcpStream::connect(target).await else { return };
    // A proxy that holds small frames back would be seen in what is measured; a failure is harmless.
    let _ = (stream.set_nodelay(true), onward.set_nodelay(true));
    let ((from, back), (answers, to)) = (stream.into_split(), onward.into_split());
    tokio::select! {
        () = one_way(from, to, road.clone()) => {}
        () = one_way(answers, back, road) => {}
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut road: watch::Receiver<Road>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            // The road has been cut, if this ever ends.
            _ = road.wait_for(|road| *road == Road::Cut) => return,
        };
        let Ok(count @ 1..) = read else {
            // Nor does the end of a connection come through before the rest does.
            opens(&mut road).await;
            return;
        };
        if !opens(&mut road).await || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Waits until something may pass. `false`: never again on this connection.
async fn opens(road: &mut watch::Receiver<Road>) -> bool {
    // An error means that the proxy is gone.
    road.wait_for(|road| *road != Road::Swallowed).await.is_ok_and(|road| *road == Road::Open)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_road_swallows_heals_and_is_cut() {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start(target.local_addr().unwrap()).await.unwrap();
        let mut near = TcpStream::connect(proxy.addr()).await.unwrap();
        let (mut far, _) = target.accept().await.unwrap();
        let mut byte = [0];
        near.write_all(b"a").await.unwrap();
        far.read_exact(&mut byte).await.unwrap();
        proxy.swallow();
        near.write_all(b"b").await.unwrap();
        let swallowed = tokio::time::timeout(Duration::from_millis(50), far.read_exact(&mut byte)).await;
        assert!(swallowed.is_err());
        proxy.heal();
        far.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"b");
        proxy.cut();
        assert_eq!(near.read(&mut byte).await.unwrap_or(0), 0);
        let mut refused = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(refused.read(&mut byte).await.unwrap_or(0), 0);
    }
}
