//! What a simulated Monolith writes down for tests: bounded, oldest entries go first.

use std::collections::VecDeque;
use std::time::Instant;

use tokio_tungstenite::tungstenite::Utf8Bytes;

/// The number of one accepted link, rising from 1 over the whole life of a Monolith, restarts included.
pub type LinkNumber = u64;

/// One text frame that a balancer sent.
#[derive(Clone, Debug)]
pub struct FrameRecord {
    /// When it was read.
    pub at: Instant,
    /// The link that it came on.
    pub link: LinkNumber,
    /// The frame, verbatim.
    pub text: Utf8Bytes,
}

/// One `join` that was received.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinRecord {
    /// When it was read.
    pub at: Instant,
    /// The link that it came on.
    pub link: LinkNumber,
    /// The room, in the balancer's spelling.
    pub room: String,
    /// The id that the balancer minted.
    pub client: String,
    /// The client's token.
    pub token: String,
}

/// One `leave` that was received.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaveRecord {
    /// When it was read.
    pub at: Instant,
    /// The link that it came on.
    pub link: LinkNumber,
    /// The client that left.
    pub client: String,
    /// Whether the Monolith knew such a client.
    pub known: bool,
}

/// One `unload` that a balancer sent.
#[derive(Clone, Debug, PartialEq)]
pub struct UnloadRecord {
    /// When it was read.
    pub at: Instant,
    /// The link that it came on.
    pub link: LinkNumber,
    /// The room, in the balancer's spelling.
    pub room: String,
    /// Whether the room was loaded. If not, the Monolith died of it.
    pub loaded: bool,
}

/// One HTTP request that was received.
#[derive(Clone, Debug)]
pub struct HttpRecord {
    /// When its head was read.
    pub at: Instant,
    /// The method.
    pub method: String,
    /// Path and query, as on the wire.
    pub target: String,
    /// Header names in lower case with their values, in the order of the wire for each name.
    pub headers: Vec<(String, String)>,
}

impl HttpRecord {
    /// The values of one header, in order.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The address by which the real server would limit rates: the rightmost entry of `X-Forwarded-For`.
    pub fn rate_limit_key(&self) -> Option<&str> {
        self.header("x-forwarded-for").last()?.rsplit(',').next().map(str::trim)
    }
}

/// A list with an upper bound.
pub(super) struct Log<T> {
    entries: VecDeque<T>,
    limit: usize,
    total: u64,
}

impl<T: Clone> Log<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), limit, total: 0 }
    }

    /// Adds what `entry` makes; it is not even made when the log keeps nothing.
    pub(super) fn push_with(&mut self, entry: impl FnOnce() -> T) {
        self.total += 1;
        if self.limit == 0 {
            return;
        }
        if self.entries.len() == self.limit {
            self.entries.pop_front();
        }
        self.entries.push_back(entry());
    }

    pub(super) fn to_vec(&self) -> Vec<T> {
        self.entries.iter().cloned().collect()
    }

    /// How many there were in all, forgotten ones included.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_forgets_its_oldest_entries_and_counts_on() {
        let mut log = Log::new(2);
        for number in 1..=3 {
            log.push_with(|| number);
        }
        assert_eq!((log.to_vec(), log.total()), (vec![2, 3], 3));
        let mut nothing = Log::new(0);
        nothing.push_with(|| 1);
        assert_eq!((nothing.to_vec(), nothing.total()), (vec![], 1));
    }
}
