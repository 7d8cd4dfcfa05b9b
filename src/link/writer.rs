//! The write loop of one link: what waits in the outbox goes out in batches, each with one flush.

use std::sync::Arc;

use futures_util::SinkExt;
use futures_util::stream::SplitSink;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

use super::outbox::{Outbox, Outgoing};
use super::stats::{LinkCounters, count};
use crate::model::CloseCode;

/// Writes what waits, as many frames as there are with one flush.
pub(super) async fn write_loop<S: AsyncRead + AsyncWrite + Unpin>(
    outbox: Arc<Outbox>,
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    counters: Arc<LinkCounters>,
) {
    while let Some(mut next) = outbox.next().await {
        let_others_queue().await;
        loop {
            let message = match next {
                Outgoing::Text(text) => {
                    count(&counters.frames_out);
                    Message::text(text)
                }
                Outgoing::Ping(number) => Message::Ping(Bytes::copy_from_slice(&number.to_be_bytes())),
                Outgoing::Close => {
                    let frame = CloseFrame { code: CloseCode::AWAY.get().into(), reason: Utf8Bytes::default() };
                    // The other side may be gone already: then there is nobody to say goodbye to.
                    let _ = sink.send(Message::Close(Some(frame))).await;
                    return;
                }
            };
            if sink.feed(message).await.is_err() {
                return;
            }
            match outbox.try_next() {
                Some(more) => next = more,
                None => break,
            }
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
}

/// Lets every task that is ready go first: what they have for the Monolith then shares one flush. Unlike tokio's own
/// yield this does not look at sockets in between, which would cost a system call for each lonely message.
async fn let_others_queue() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
