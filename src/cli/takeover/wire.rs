//! What two ushers say to each other over the Unix socket: one JSON object a line, and with one of them the listening
//! sockets themselves (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The version of this conversation.
pub(super) const VERSION: u32 = 1;

/// Bytes of one message.
const LONGEST: usize = 4096;

/// Sockets in one message: the main one and the admin API's.
const SOCKETS: usize = 2;

/// Bytes of a message that name drained Monoliths; no more are passed on.
const DRAINED: usize = 3000;

/// What the incumbent has, and its successor is to have before it is ready.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct Monoliths {
    /// How many it is linked to.
    pub(in crate::cli) linked: usize,
    /// Those of them that operators drain.
    #[serde(default)]
    pub(in crate::cli) drained: Vec<String>,
}

impl Monoliths {
    /// As many of them as one message takes.
    pub(in crate::cli) fn new(linked: usize, mut drained: Vec<String>) -> Self {
        let mut left = DRAINED;
        let fits = drained.iter().take_while(|id| {
            // As it stands in the message, with what parts it from the next one.
            let length = serde_json::Value::from(id.as_str()).to_string().len() + 1;
            let rest = left.checked_sub(length);
            left = rest.unwrap_or(0);
            rest.is_some()
        });
        let count = fits.count();
        if count < drained.len() {
            tracing::warn!(
                left_out = drained.len() - count,
                "the next usher does not hear of every Monolith that is drained"
            );
        }
        drained.truncate(count);
        Self { linked, drained }
    }
}

/// What is said.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum Message {
    /// The successor wants to take over.
    Hello { version: u32, pid: u32 },
    /// Here are the sockets: the main one, then the admin API's if it has one of its own.
    Offer {
        pid: u32,
        main: SocketAddr,
        admin: Option<SocketAddr>,
        #[serde(flatten)]
        monoliths: Monoliths,
    },
    /// The incumbent goes on, and this is why.
    Refused { reason: String },
    /// The successor could serve.
    Ready,
    /// Then it may accept.
    Go,
    /// It does.
    Accepting,
    /// The incumbent no longer does, and closes its clients.
    Done { clients: usize, over_ms: u64 },
}

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    unread: Vec<u8>,
    /// Sockets that came with bytes that are not a whole message yet.
    sockets: Vec<OwnedFd>,
}

impl Wire {
    /// Talks over this stream, if the other end is the same user's, or root's.
    ///
    /// # Errors
    /// If it is somebody else's: they could hand out sockets of their own, or take ours.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        let (other, mine) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
        if other != mine && other != 0 {
            let message = format!("the other end belongs to user {other}, and this usher to user {mine}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(Self { stream, unread: Vec::new(), sockets: Vec::new() })
    }

    /// The process at the other end, as far as the system tells.
    pub(super) fn peer(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid()
    }

    /// Says something.
    ///
    /// # Errors
    /// If the other end has gone.
    pub(super) async fn say(&self, message: &Message) -> io::Result<()> {
        self.say_with(message, &[]).await
    }

    /// Says something and passes sockets.
    ///
    /// # Errors
    /// If the other end has gone.
    pub(super) async fn say_with(&self, message: &Message, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut rest = line.as_slice();
        // They go with the first byte, and only once.
        let mut sockets = sockets;
        while !rest.is_empty() {
            let sent = self.stream.async_io(Interest::WRITABLE, || send(&self.stream, rest, sockets)).await?;
            rest = &rest[sent..];
            sockets = &[];
        }
        Ok(())
    }

    /// What the other end says next, with the sockets that came along; none when it has gone. It can be cancelled.
    ///
    /// # Errors
    /// If it is nothing that this version understands.
    pub(super) async fn hear(&mut self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let message = serde_json::from_slice(&line)?;
                // They may be read with the end of the message before the one they belong to.
                let sockets = match message {
                    Message::Offer { .. } => std::mem::take(&mut self.sockets),
                    _ => Vec::new(),
                };
                return Ok(Some((message, sockets)));
            }
            if self.unread.len() > LONGEST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without an end"));
            }
            let (unread, sockets) = (&mut self.unread, &mut self.sockets);
            let heard = self.stream.async_io(Interest::READABLE, || receive(&self.stream, unread, sockets)).await;
            match heard {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

fn send(stream: &UnixStream, bytes: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more sockets than one message takes"));
    }
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::empty())?)
}

fn receive(stream: &UnixStream, bytes: &mut Vec<u8>, sockets: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 1024];
    let received = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut buffer)], &mut control, flags())?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            sockets.extend(passed);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more sockets were passed than there are uses for"));
    }
    bytes.extend_from_slice(&buffer[..received.bytes]);
    Ok(received.bytes)
}

/// No child of this process is to inherit what it was passed.
#[cfg(target_os = "linux")]
fn flags() -> RecvFlags {
    RecvFlags::CMSG_CLOEXEC
}

#[cfg(not(target_os = "linux"))]
fn flags() -> RecvFlags {
    RecvFlags::empty()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::io::AsyncWriteExt;

    use super::*;

    fn pair() -> (Wire, Wire) {
        let (one, other) = UnixStream::pair().unwrap();
        (Wire::new(one).unwrap(), Wire::new(other).unwrap())
    }

    #[tokio::test]
    async fn sockets_come_with_the_message_they_were_sent_with() {
        let (one, mut other) = pair();
        let main = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").unwrap();
        let addrs = [main.local_addr().unwrap(), admin.local_addr().unwrap()];
        one.say(&Message::Ready).await.unwrap();
        let offer = Message::Offer {
            pid: 1,
            main: addrs[0],
            admin: Some(addrs[1]),
            monoliths: Monoliths::new(3, vec!["m1".into()]),
        };
        one.say_with(&offer, &[main.as_fd(), admin.as_fd()]).await.unwrap();
        one.say(&Message::Go).await.unwrap();
        drop((main, admin));
        let (message, sockets) = other.hear().await.unwrap().unwrap();
        assert_eq!((message, sockets.len()), (Message::Ready, 0));
        let (message, sockets) = other.hear().await.unwrap().unwrap();
        assert_eq!(message, offer);
        let sockets: Vec<_> = sockets.into_iter().map(TcpListener::from).collect();
        assert_eq!(sockets.iter().map(|socket| socket.local_addr().unwrap()).collect::<Vec<_>>(), addrs);
        // The very sockets: they still listen, although those they were made of are closed.
        tokio::net::TcpStream::connect(addrs[0]).await.unwrap();
        assert_eq!(other.hear().await.unwrap().unwrap().0, Message::Go);
        drop(one);
        assert!(other.hear().await.unwrap().is_none());
    }

    #[test]
    fn drained_monoliths_fit_into_one_message_and_may_be_missing() {
        let ids: Vec<String> = (0..500).map(|number| format!("{number:036}")).collect();
        let Monoliths { linked, drained } = Monoliths::new(500, ids.clone());
        assert_eq!((linked, &drained[..]), (500, &ids[..76]));
        let old: Monoliths = serde_json::from_str("{\"linked\":2}").unwrap();
        assert_eq!(old, Monoliths::new(2, Vec::new()));
    }

    #[tokio::test]
    async fn what_is_not_understood_is_an_error() {
        for text in ["hello\n".to_string(), "{\"say\":\"surrender\"}\n".to_string(), "x".repeat(LONGEST * 2)] {
            let (one, other) = UnixStream::pair().unwrap();
            let mut other = Wire::new(other).unwrap();
            let mut one = one;
            one.write_all(text.as_bytes()).await.unwrap();
            assert!(other.hear().await.is_err(), "{}", &text[..5]);
        }
    }

    #[tokio::test]
    async fn bent_messages_are_heard_or_refused_and_come_to_an_end() {
        use proptest::strategy::{Strategy, ValueTree};
        use proptest::test_runner::TestRunner;
        let main = "127.0.0.1:1".parse().unwrap();
        let offer = Message::Offer { pid: 1, main, admin: None, monoliths: Monoliths::new(3, vec!["m1".into()]) };
        let line = |message: &Message| serde_json::to_string(message).unwrap() + "\n";
        let whole = [line(&offer), line(&Message::Ready), line(&Message::Go)].concat().into_bytes();
        let mut runner = TestRunner::deterministic();
        let bends = proptest::collection::vec((0..whole.len(), proptest::num::u8::ANY), 0..4);
        for _ in 0..500 {
            let mut bytes = whole.clone();
            for (at, byte) in bends.new_tree(&mut runner).unwrap().current() {
                bytes[at] = byte;
            }
            let (mut one, other) = UnixStream::pair().unwrap();
            let mut other = Wire::new(other).unwrap();
            one.write_all(&bytes).await.unwrap();
            drop(one);
            let mut heard = 0;
            while let Ok(Some((_, sockets))) = other.hear().await {
                heard += 1;
                assert!(sockets.is_empty() && heard <= bytes.len());
            }
        }
    }
}
