//! Typed ids: one type for each thing that is named, so that no name is taken for another.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// A shared text in one allocation, where that of serde takes two. Traces hold a dozen ids a line.
struct Text;

impl Visitor<'_> for Text {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Arc<str>, E> {
        Ok(text.into())
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str(Text).map(Self)
            }
        }

        impl $name {
            /// The id with this text.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// Whether it shares its text with the other; equal ones may not.
            pub fn is_same(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0)
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

text_id! {
    /// The id that a Monolith gives itself in its `init`: a UUID, new at each start of its process.
    MonolithId
}

text_id! {
    /// The name of a region, such as `ewr`.
    Region
}

text_id! {
    /// A room's name in lower case: what two spellings of one room have in common.
    RoomKey
}

impl RoomKey {
    /// The key of a name in any spelling.
    pub fn of(name: &str) -> Self {
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            Self::new(name.to_ascii_lowercase())
        } else {
            Self::new(name)
        }
    }
}

/// A room's name as somebody spelled it, with its key.
///
/// Names compare without ASCII case, so only the key has equality; the spelling matters to a Monolith that has not
/// loaded the room yet.
#[derive(Clone, Debug)]
pub struct RoomName {
    key: RoomKey,
    spelling: Arc<str>,
}

/// Why a text is no room name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoomName {
    /// Empty, too long, or with a character outside `[A-Za-z0-9_-]`.
    #[error("a room name is 1 to 64 characters of A-Z, a-z, 0-9, _ and -")]
    Malformed,
    /// `list`, `create` and `generate` are routes, in any case.
    #[error("list, create and generate are reserved")]
    Reserved,
}

impl RoomName {
    /// The longest name that a client may ask for, in bytes.
    pub const MAX_LEN: usize = 64;
    const RESERVED: [&str; 3] = ["list", "create", "generate"];

    /// The name that a client asks for, taken from the path as it stands.
    pub fn parse(text: &str) -> Result<Self, InvalidRoomName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if text.is_empty() || text.len() > Self::MAX_LEN || !text.bytes().all(allowed) {
            return Err(InvalidRoomName::Malformed);
        }
        if Self::RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(text)) {
            return Err(InvalidRoomName::Reserved);
        }
        Ok(Self::reported(text))
    }

    /// A name that a Monolith reports: whatever it says is a room of its own.
    pub fn reported(text: &str) -> Self {
        let key = RoomKey::of(text);
        let spelling = if key.as_str() == text { key.0.clone() } else { text.into() };
        Self { key, spelling }
    }

    /// The name in lower case.
    pub fn key(&self) -> &RoomKey {
        &self.key
    }

    /// The name as it was spelled.
    pub fn spelling(&self) -> &str {
        &self.spelling
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spelling)
    }
}

/// One client connection of this balancer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(Uuid);

impl ClientId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id with this value, for tests and replays.
    pub const fn from_u128(value: u128) -> Self {
        Self(Uuid::from_u128(value))
    }

    /// The number that [`Self::from_u128`] made it from.
    pub const fn to_u128(self) -> u128 {
        self.0.as_u128()
    }

    /// The name of this client's membership number `attachment` at a Monolith. The first is the client's own id; a
    /// Monolith that still knows an earlier one can therefore never take a later join for it.
    pub fn member(self, attachment: Attachment) -> MemberId {
        MemberId(Uuid::from_u128(self.0.as_u128() ^ u128::from(attachment.0.saturating_sub(1))))
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A client as one Monolith knows it: one id for each `join`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(Uuid);

impl MemberId {
    /// Reads the id from a frame; `None` for anything that this balancer cannot have minted.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// The id as text, without an allocation.
    pub fn encode(self, buffer: &mut [u8; 36]) -> &str {
        self.0.hyphenated().encode_lower(buffer)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// One connection to a Monolith. A reconnect is a new link, so what a dead one still had to say is told apart.
    LinkId
}

number_id! {
    /// One HTTP request that waits for a decision.
    RequestId
}

number_id! {
    /// How often a client was joined somewhere, rising from 1. Frames of an earlier attachment are stale.
    Attachment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_names_follow_the_rules_of_the_wire() {
        for good in ["a", "Movie-Night_2", &"x".repeat(64)] {
            assert!(RoomName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a%20b", "ä", "a/b", &"x".repeat(65)] {
            assert_eq!(RoomName::parse(bad).unwrap_err(), InvalidRoomName::Malformed, "{bad}");
        }
        for reserved in ["list", "CREATE", "Generate"] {
            assert_eq!(RoomName::parse(reserved).unwrap_err(), InvalidRoomName::Reserved);
        }
    }

    #[test]
    fn f27_two_spellings_share_one_key() {
        let (a, b) = (RoomName::parse("Foo").unwrap(), RoomName::parse("foo").unwrap());
        assert_eq!(a.key(), b.key());
        assert_eq!((a.spelling(), b.spelling()), ("Foo", "foo"));
    }

    #[test]
    fn every_attachment_has_a_member_id_of_its_own() {
        let client = ClientId::from_u128(42 << 64);
        assert_eq!(client.member(Attachment(1)).to_string(), client.to_string());
        assert_ne!(client.member(Attachment(1)), client.member(Attachment(2)));
        assert_eq!(MemberId::parse(&client.to_string()), Some(client.member(Attachment(1))));
        assert_eq!(MemberId::parse("nobody"), None);
    }
}
