//! HTTP/2 connections of clients that vanish. Time is virtual, so there are no real sockets here.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const SETTINGS: u8 = 4;
const PING_FRAME: u8 = 6;
const ACK: u8 = 1;

async fn send(client: &mut DuplexStream, kind: u8, flags: u8, payload: &[u8]) {
    let length = u8::try_from(payload.len()).unwrap();
    let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    client.write_all(&frame).await.unwrap();
}

/// The next frame: kind, flags, payload; `None` at the end.
async fn receive(client: &mut DuplexStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    client.read_exact(&mut head).await.ok()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut payload = vec![0; length];
    client.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], payload))
}

/// Speaks HTTP/2 without a request, answers so many pings and then none; returns how many pings came.
async fn pings(answered: usize) -> usize {
    let (mut client, server) = tokio::io::duplex(64 << 10);
    let service = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Body::Full(Bytes::from_static(b"unused"))))
    });
    let serving = tokio::spawn(http2_builder(8 << 10).serve_connection(TokioIo::new(server), service));
    client.write_all(PREFACE).await.unwrap();
    send(&mut client, SETTINGS, 0, &[]).await;
    let mut seen = 0;
    // Virtual time: an hour of nothing passes at once.
    let patience = Duration::from_secs(3600);
    while let Some((kind, flags, payload)) =
        tokio::time::timeout(patience, receive(&mut client)).await.expect("the connection ends")
    {
        match (kind, flags & ACK) {
            (SETTINGS, 0) => send(&mut client, SETTINGS, ACK, &[]).await,
            (PING_FRAME, 0) => {
                seen += 1;
                if seen <= answered {
                    send(&mut client, PING_FRAME, ACK, &payload).await;
                }
            }
            _ => {}
        }
    }
    assert!(serving.await.unwrap().is_err(), "the connection timed out");
    seen
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_client_is_pinged_and_dropped_when_it_does_not_answer() {
    let began = Instant::now();
    assert_eq!(pings(0).await, 1);
    let silent = began.elapsed();
    let began = Instant::now();
    assert_eq!(pings(5).await, 6, "as long as it answers it stays");
    assert!(began.elapsed() > silent * 3);
}
