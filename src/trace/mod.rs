//! Traces: what happened and what was decided, as JSON Lines that a replay reads again.
//!
//! `record` has the types, `encode` and `decode` turn them into lines and back, `quick` (over `cursor`) is the fast way
//! back for lines as the encoder writes them, `redact` hides the names of rooms,
//! `read` finds its way through damaged and cut-off files, `recorder` is the way to a thread that writes: `write` into a
//! file, with `rotate` for the full ones, `recent` into bounded memory. `snapshot` is how the Monoliths get there.
//!
//! A file begins with a header line. Calls do not repeat the Monoliths: a `view` line says what they were like, and each
//! decision only which counts differ from it. The decoder restores every call whole, as the script saw it.

mod cursor;
mod decode;
mod encode;
mod quick;
pub mod read;
pub mod recent;
pub mod record;
mod recorder;
pub mod redact;
mod rotate;
mod scan;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
pub mod write;

pub use decode::{Decoder, Item};
pub use encode::Encoder;

/// The version of the format.
pub const FORMAT: u32 = 1;
