//! A simulated Monolith and a simulated client, with handles that drive them: for tests, examples and the demo.
//!
//! Everything listens on loopback, on ports that the system chooses, and everything that piles up has a bound. What
//! the Monolith does, the real one was seen doing: the recordings in `tests/fixtures` are the reference.

pub mod balancer;
pub mod client;
pub mod http;
pub mod monolith;
pub mod playback;
pub mod proxy;
pub mod raw;
pub mod reconnect;
pub mod recording;
pub mod redis;
#[cfg(test)]
mod tests;
mod world;

use std::fmt;
use std::time::Duration;

pub use balancer::{RawLink, Received};
pub use client::{Client, Connect};
pub use monolith::Monolith;
pub use proxy::Proxy;
pub use raw::{RawFrame, RawSocket};
pub use reconnect::ReconnectingClient;
pub use redis::Redis;
pub use world::{RoomInfo, World};

/// Something that a test waited for did not happen in time.
#[derive(Clone, Debug, PartialEq)]
pub struct TimedOut {
    after: Duration,
    seen: String,
}

impl TimedOut {
    fn new(after: Duration, seen: String) -> Self {
        Self { after, seen }
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not within {:?}: {}", self.after, self.seen)
    }
}

impl std::error::Error for TimedOut {}
