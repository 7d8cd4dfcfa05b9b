//! Discovery by a test harness: it connects with a WebSocket, and each of its text frames is the full list
//! `["ip:port", ...]`.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::endpoint::{Endpoint, EndpointSet};

/// Connections at once; a further one is closed. A harness has one, and another while it reconnects.
const CONNECTIONS: usize = 16;
/// How long a connection may take to become a WebSocket.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes of one list.
const LARGEST: usize = 1 << 20;

/// Serves harnesses for ever. The last list of any of them counts, also after it has gone.
pub async fn serve(listener: TcpListener, endpoints: &watch::Sender<EndpointSet>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS => {
                    connections.spawn(listen_to(stream, endpoints.clone()));
                }
                Ok(_) => tracing::warn!(limit = CONNECTIONS, "too many harness connections, closing the newest"),
                Err(error) => {
                    tracing::warn!(%error, "harness discovery cannot accept, trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn listen_to(stream: TcpStream, endpoints: watch::Sender<EndpointSet>) {
    let config =
        WebSocketConfig::default().read_buffer_size(4096).max_message_size(Some(LARGEST)).max_frame_size(Some(LARGEST));
    let handshake = tokio_tungstenite::accept_async_with_config(stream, Some(config));
    let mut socket = match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return tracing::warn!(%error, "harness connection is no WebSocket"),
        Err(_) => return tracing::warn!("harness connection did not become a WebSocket in time"),
    };
    tracing::info!("harness connected");
    while let Some(message) = socket.next().await {
        match message {
            Ok(Message::Text(text)) => match parse(&text) {
                Ok(set) => super::publish(&endpoints, set),
                Err(error) => tracing::warn!(error, "harness frame ignored"),
            },
            Ok(Message::Binary(_)) => tracing::warn!("harness frame ignored: binary, where a JSON text is due"),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "harness connection failed");
                break;
            }
        }
    }
    tracing::info!("harness gone, keeping its last list");
}

fn parse(frame: &str) -> Result<EndpointSet, String> {
    let list: Vec<String> = serde_json::from_str(frame).map_err(|error| format!("no JSON list of texts: {error}"))?;
    list.iter().map(|text| text.parse::<Endpoint>().map_err(|error| error.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::SinkExt;
    use proptest::prelude::*;
    use tokio_tungstenite::WebSocketStream;

    use super::*;
    use crate::discovery::endpoint::join;

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn start() -> (std::net::SocketAddr, watch::Receiver<EndpointSet>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = watch::channel(EndpointSet::new());
        tokio::spawn(async move { serve(listener, &sender).await });
        (address, receiver)
    }

    async fn connect(address: std::net::SocketAddr) -> WebSocketStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        tokio_tungstenite::client_async(format!("ws://{address}/"), stream).await.unwrap().0
    }

    async fn say(socket: &mut WebSocketStream<TcpStream>, text: &str) {
        socket.send(Message::text(text)).await.unwrap();
    }

    async fn becomes(endpoints: &mut watch::Receiver<EndpointSet>, expected: &str) {
        let is = |set: &EndpointSet| join(set.iter()) == expected;
        tokio::time::timeout(DEADLINE, endpoints.wait_for(is)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn each_frame_is_the_whole_list() {
        let (address, mut endpoints) = start().await;
        let mut harness = connect(address).await;
        say(&mut harness, r#"["127.0.0.1:3001","[::1]:3002"]"#).await;
        becomes(&mut endpoints, "127.0.0.1:3001, [::1]:3002").await;
        say(&mut harness, r#"["127.0.0.1:3003"]"#).await;
        becomes(&mut endpoints, "127.0.0.1:3003").await;
        say(&mut harness, "[]").await;
        becomes(&mut endpoints, "").await;
    }

    #[tokio::test]
    async fn garbage_changes_nothing_and_ends_nothing() {
        let (address, mut endpoints) = start().await;
        let mut no_websocket = TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut no_websocket, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut harness = connect(address).await;
        say(&mut harness, r#"["127.0.0.1:1"]"#).await;
        becomes(&mut endpoints, "127.0.0.1:1").await;
        endpoints.mark_unchanged();
        for garbage in ["", "null", "{}", "[1]", r#"["127.0.0.1"]"#, r#"["127.0.0.1:2","x"]"#, "[\"127.0.0.1:2\""] {
            say(&mut harness, garbage).await;
        }
        harness.send(Message::binary(br#"["127.0.0.1:2"]"#.to_vec())).await.unwrap();
        // The frames are read in order: a pong after them says that they were all read.
        harness.send(Message::Ping("seen".into())).await.unwrap();
        let pong = tokio::time::timeout(DEADLINE, harness.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(pong, Message::Pong("seen".into()));
        assert!(!endpoints.has_changed().unwrap(), "{:?}", endpoints.borrow());
        say(&mut harness, r#"["127.0.0.1:3"]"#).await;
        becomes(&mut endpoints, "127.0.0.1:3").await;
    }

    #[tokio::test]
    async fn harnesses_come_back_and_come_together() {
        let (address, mut endpoints) = start().await;
        let mut first = connect(address).await;
        say(&mut first, r#"["127.0.0.1:1"]"#).await;
        becomes(&mut endpoints, "127.0.0.1:1").await;
        let mut second = connect(address).await;
        say(&mut second, r#"["127.0.0.1:2"]"#).await;
        becomes(&mut endpoints, "127.0.0.1:2").await;
        endpoints.mark_unchanged();
        // One says goodbye, the other is cut off: the list stays.
        first.close(None).await.unwrap();
        while let Some(Ok(_)) = tokio::time::timeout(DEADLINE, first.next()).await.unwrap() {}
        drop(second);
        let mut third = connect(address).await;
        assert!(!endpoints.has_changed().unwrap());
        say(&mut third, r#"["127.0.0.1:3"]"#).await;
        becomes(&mut endpoints, "127.0.0.1:3").await;
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_it_was_written_and_anything_else_is_an_error(
            hosts in proptest::collection::btree_set(("[a-z]{1,8}(\\.[a-z]{1,3})?", 1_u16..), 0..5),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
            text in any::<String>(),
        ) {
            let written: Vec<String> = hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
            let frame = serde_json::to_string(&written).unwrap();
            let read = parse(&frame).unwrap();
            prop_assert_eq!(read.len(), written.len());
            let mut bent = frame.into_bytes();
            let at = at.index(bent.len());
            bent[at] = byte;
            for text in [String::from_utf8_lossy(&bent).into_owned(), text] {
                match parse(&text) {
                    Ok(list) => {
                        let again: Vec<String> = list.iter().map(ToString::to_string).collect();
                        prop_assert_eq!(parse(&serde_json::to_string(&again).unwrap()), Ok(list));
                    }
                    Err(error) => prop_assert!(!error.is_empty()),
                }
            }
        }
    }
}
