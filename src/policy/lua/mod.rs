//! The Luau engine: a policy's file becomes a [`Program`], a program any number of VMs, and a [`Vm`] is a policy.

pub mod answer;
pub(crate) mod bytecode;
mod call;
pub mod environment;
pub mod inspect;
pub(crate) mod meter;
mod mirror;
pub mod program;
pub(crate) mod ranking;
mod reads;
mod rooms;
pub(crate) mod sandbox;
pub mod state;
pub mod surface;
#[cfg(test)]
mod tests;
pub(crate) mod value;
pub(crate) mod vm;

pub use answer::Returned;
pub use environment::{Distances, Environment, Limits};
pub use inspect::Inspection;
pub use program::{LoadError, MAX_SOURCE, Origin, Program, Source, read_text};
pub use state::SharedState;
pub use surface::SURFACE;
pub use vm::Vm;
