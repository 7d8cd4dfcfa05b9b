//! A WebSocket spoken by hand: for clients that never read, frames that no library would write, and half-open ends.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest frame that is read.
const FRAME_LIMIT: u64 = 128 * 1024 * 1024;
const HEAD_LIMIT: usize = 16 * 1024;

/// One frame as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// Whether it is the last of its message.
    pub fin: bool,
    /// The three reserved bits, 0 to 7: all of them are errors.
    pub rsv: u8,
    /// 0 continuation, 1 text, 2 binary, 8 close, 9 ping, 10 pong.
    pub opcode: u8,
    /// What it carries, unmasked.
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// A whole text message.
    pub fn text(text: &str) -> Self {
        Self { fin: true, rsv: 0, opcode: 1, payload: text.as_bytes().to_vec() }
    }

    /// A whole binary message.
    pub fn binary(bytes: &[u8]) -> Self {
        Self { opcode: 2, payload: bytes.to_vec(), ..Self::text("") }
    }

    /// The close code of a close frame; 1005 if it has none.
    pub fn close_code(&self) -> Option<u16> {
        let code = match self.payload.as_slice() {
            [high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => 1005,
        };
        (self.opcode == 8).then_some(code)
    }

    /// The bytes on the wire. Clients must mask; a server's frame is not masked.
    pub fn encode(&self, masked: bool) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.fin) << 7 | (self.rsv & 7) << 4 | (self.opcode & 15)];
        let mask_bit = u8::from(masked) << 7;
        match self.payload.len() {
            length @ 0..=125 => bytes.push(mask_bit | length as u8),
            length @ 126..=0xffff => {
                bytes.push(mask_bit | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(mask_bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if masked {
            const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
            bytes.extend(MASK);
            bytes.extend(self.payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        } else {
            bytes.extend(&self.payload);
        }
        bytes
    }
}

/// A client socket that does only what it is told: it answers no ping and no close, and reads nothing by itself.
pub struct RawSocket {
    stream: TcpStream,
}

impl RawSocket {
    /// Connects and upgrades. `path` is put on the wire as it stands; each header is a whole line.
    ///
    /// # Errors
    /// When there is no connection, or the answer is not 101: then the error's text is the answer's head.
    pub async fn connect(addr: SocketAddr, path: &str, headers: &[&str]) -> io::Result<Self> {
        let mut stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let mut request = format!(
            "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_LIMIT {
            head.push(stream.read_u8().await?);
        }
        if head.starts_with(b"HTTP/1.1 101") {
            return Ok(Self { stream });
        }
        Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()))
    }

    /// Connects to a room and authenticates.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn join(addr: SocketAddr, room: &str, token: &str) -> io::Result<Self> {
        let mut socket = Self::connect(addr, &format!("/api/room/{room}"), &[]).await?;
        let token = serde_json::Value::from(token);
        socket.send(&RawFrame::text(&format!(r#"{{"action":"auth","token":{token}}}"#))).await?;
        Ok(socket)
    }

    /// Sends a frame, masked as a client's.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send(&mut self, frame: &RawFrame) -> io::Result<()> {
        self.send_bytes(&frame.encode(true)).await
    }

    /// Sends a text message in pieces of `size` bytes.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send_fragmented(&mut self, text: &str, size: usize) -> io::Result<()> {
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(size.max(1)).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let (fin, opcode) = (index + 1 == pieces.len(), u8::from(index == 0));
            self.send(&RawFrame { fin, rsv: 0, opcode, payload: piece.to_vec() }).await?;
        }
        Ok(())
    }

    /// Sends bytes as they stand.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// When the connection has ended, or nothing came within `deadline` (`TimedOut`).
    pub async fn read(&mut self, deadline: Duration) -> io::Result<RawFrame> {
        timeout(deadline, self.read_frame()).await?
    }

    async fn read_frame(&mut self) -> io::Result<RawFrame> {
        let (first, second) = (self.stream.read_u8().await?, self.stream.read_u8().await?);
        let length = match second & 127 {
            126 => u64::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await?,
            short => u64::from(short),
        };
        if length > FRAME_LIMIT {
            return Err(io::Error::other(format!("frame of {length} bytes")));
        }
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await?;
        Ok(RawFrame { fin: first & 128 != 0, rsv: first >> 4 & 7, opcode: first & 15, payload })
    }

    /// Reads until the end: the code of the close frame, or 1006 if there was none.
    ///
    /// # Errors
    /// When it is still open after `deadline`.
    pub async fn closed(&mut self, deadline: Duration) -> io::Result<u16> {
        let reading = async {
            loop {
                match self.read_frame().await {
                    Ok(frame) => {
                        if let Some(code) = frame.close_code() {
                            return code;
                        }
                    }
                    Err(_) => return 1006,
                }
            }
        };
        Ok(timeout(deadline, reading).await?)
    }

    /// Ends our half of the connection; the other one stays open.
    ///
    /// # Errors
    /// When the connection has ended already.
    pub async fn half_close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_laid_out_as_rfc_6455_says() {
        assert_eq!(RawFrame::text("Hello").encode(false), [0x81, 5, b'H', b'e', b'l', b'l', b'o']);
        // The masked example of section 5.7.
        assert_eq!(
            RawFrame::text("Hello").encode(true),
            [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]
        );
        let invalid = RawFrame { rsv: 3, ..RawFrame::text("") };
        assert_eq!(invalid.encode(false), [0xb1, 0]);
        assert_eq!(RawFrame::binary(&[0; 256]).encode(false)[..4], [0x82, 126, 1, 0]);
        assert_eq!(RawFrame::binary(&[0; 65536]).encode(false)[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
