//! Plain data that every layer shares: ids, wire messages, policy calls, events and effects.
//! Nothing here does I/O, reads a clock or holds a lock.

pub mod assertion;
pub mod claims;
pub mod close;
pub mod epoch;
pub mod event;
pub mod exposition;
pub mod hello;
pub mod id;
pub mod metrics;
pub mod moves;
pub mod policy;
pub mod read;
pub mod story;
pub mod wire;

/// How tables are hashed: seeded at random, since keys come from outside; but always the same in the library's own tests,
/// where the run of a seed has to repeat itself.
#[cfg(not(test))]
pub type Hashing = foldhash::fast::RandomState;
/// The same in every process.
#[cfg(test)]
pub type Hashing = foldhash::fast::FixedState;

pub use close::CloseCode;
pub use epoch::Epoch;
pub use id::{
    Attachment, ClientId, InvalidRoomName, LinkId, MemberId, MonolithId, Region, RequestId, RoomKey, RoomName,
};
