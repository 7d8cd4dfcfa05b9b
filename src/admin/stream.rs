//! `/api/state/stream`: events as they happen, for whoever holds the key. A listener that cannot keep up loses events;
//! nobody waits for it.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast::error::RecvError;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::link::tap::Tap;

/// How long one event may take to be written before the listener is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves one listener until it goes.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>, tap: &Tap) {
    let mut events = tap.listen();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    let Ok(text) = serde_json::to_string(&event) else { continue };
                    let write = tokio::time::timeout(PATIENCE, socket.send(Message::text(text)));
                    if !matches!(write.await, Ok(Ok(()))) {
                        return;
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            message = socket.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                // Its answer goes out before more is read: the answers to one that only sends would pile up.
                Some(Ok(Message::Ping(_))) => {
                    if !matches!(tokio::time::timeout(PATIENCE, socket.flush()).await, Ok(Ok(()))) {
                        return;
                    }
                }
                Some(Ok(_)) => {}
            },
        }
    }
}
