//! What a client's frames amount to: the first one, which brings its token, and whether a later one may be forwarded.

use std::fmt;

use serde::de::IgnoredAny;

/// Whether a text is exactly one JSON object: the only thing that may be forwarded to a Monolith, which dies of `null`.
pub fn is_object(text: &str) -> bool {
    text.trim_ascii_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// The longest token that a client may bring, in bytes: as long as a browser's cookie. Tokens wait with their clients for
/// a room, and travel in lifecycle frames that nothing holds back, so their number is not their only bound.
pub const LONGEST_TOKEN: usize = 4 << 10;

/// What a client's first frame amounts to.
#[derive(Clone, PartialEq, Eq)]
pub enum Hello {
    /// It brought a token.
    Auth(Box<str>),
    /// It did something else first, or brought no token that is a string of a length from 1 to [`LONGEST_TOKEN`].
    NoToken,
    /// It does not speak JSON.
    NotJson,
}

impl Hello {
    /// Reads a client's first frame.
    pub fn parse(text: &str) -> Self {
        let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return Self::NotJson };
        let token = value.get("token").and_then(serde_json::Value::as_str).unwrap_or_default();
        if value.get("action").and_then(serde_json::Value::as_str) == Some("auth")
            && (1..=LONGEST_TOKEN).contains(&token.len())
        {
            Self::Auth(token.into())
        } else {
            Self::NoToken
        }
    }
}

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auth(_) => "Auth(..)",
            Self::NoToken => "NoToken",
            Self::NotJson => "NotJson",
        })
    }
}
