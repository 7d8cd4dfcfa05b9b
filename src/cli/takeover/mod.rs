//! One running usher replaced by the next without refusing a connection.
//!
//! A running usher listens on a Unix socket ([`place`]). `usher run --takeover` connects there and is passed the very
//! sockets that the other listens on, so that connections which wait in their queues are lost by nobody. It links to the
//! Monoliths and hears what they have before it says that it is ready; until then the other goes on as if nothing were.
//!
//! ```text
//! successor   Hello              Ready      Accepting
//! incumbent          Offer+fds         Go             Done
//! accepts     ------ incumbent -------->|<-- both -->|<-- successor
//! ```
//!
//! The successor accepts before the incumbent stops to, and the incumbent stops only when it hears of that: whichever of
//! them ends in between, the other one goes on accepting.

mod incumbent;
mod place;
mod successor;
mod wire;

pub(super) use incumbent::{Incumbent, Shared, TakenOver};
pub(super) use place::{Published, path};
pub(super) use successor::{Predecessor, TakeoverError, find};
pub(super) use wire::Monoliths;
