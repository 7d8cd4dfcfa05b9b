//! WebSocket close codes, as the web client understands them: below 4000 it comes back by itself, from 4000 on it
//! shows an error and gives up.

use std::fmt;

use serde::Serialize;

/// A close code that may be sent on a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The server restarts, or the room's Monolith went.
    pub const AWAY: Self = Self(1001);
    /// The client broke the protocol.
    pub const PROTOCOL: Self = Self(1002);
    /// A binary frame where text is due.
    pub const UNSUPPORTED: Self = Self(1003);
    /// A message over the limit.
    pub const TOO_BIG: Self = Self(1009);
    /// The room moved: come back.
    pub const RESTART: Self = Self(1012);
    /// Overload, or a client that does not keep up: come back later.
    pub const TRY_AGAIN: Self = Self(1013);
    /// A kick whose reason is no sendable code.
    pub const UNKNOWN: Self = Self(4000);
    /// Not a room's URL, or no room name.
    pub const INVALID_URL: Self = Self(4001);
    /// The Monolith does not know the room.
    pub const ROOM_NOT_FOUND: Self = Self(4002);
    /// The room was unloaded.
    pub const ROOM_UNLOADED: Self = Self(4003);
    /// Missing or bad token.
    pub const MISSING_TOKEN: Self = Self(4004);

    /// The code with this number, if it may be sent (RFC 6455 section 7.4, with 1012 to 1014 of the IANA registry).
    pub fn sendable(code: u16) -> Option<Self> {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999).then_some(Self(code))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// A few words for the close frame.
    pub fn reason(self) -> &'static str {
        match self.0 {
            1000 => "done",
            1001 => "server restarting, come back",
            1002 => "protocol error",
            1003 => "text only",
            1009 => "message too big",
            1012 => "room moved, come back",
            1013 => "try again later",
            4001 => "invalid connection url or room name",
            4002 => "room not found",
            4003 => "room unloaded",
            4004 => "did not send auth token",
            4005 => "kicked",
            _ => "",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sendable_codes_exist() {
        for bad in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, u16::MAX] {
            assert_eq!(CloseCode::sendable(bad), None, "{bad}");
        }
        assert_eq!(CloseCode::sendable(4005).map(CloseCode::get), Some(4005));
    }
}
