//! Configuration: TOML and environment in, one checked [`Config`] out, or every mistake at once.
//!
//! The way of a value: `tree` (a document in which every value knows its line), `environment` (variables laid over
//! it), `section` (a walk that notices what nobody reads), `read` (types, units and ranges), and `resolve`, `policy`
//! and `discovery` (which key means what). [`load`] is the only part that touches files and the process's environment.

mod claims;
mod discovery;
mod environment;
mod health;
mod load;
mod policy;
mod problem;
mod read;
mod record;
pub mod regions;
mod reload;
mod require;
mod resolve;
pub mod scenario;
mod scrape;
mod section;
mod tree;
mod types;
pub mod units;
mod weights;

pub use claims::ClaimsConfig;
pub use health::HealthConfig;
pub use load::{Loaded, Request, load};
pub use policy::{SHIPPED_POLICIES, policy_vms};
pub use problem::{ConfigErrors, Place, Problem};
pub use record::RecordConfig;
pub use regions::Distances;
pub use resolve::{Input, known_keys, parse};
pub use scrape::LoadConfig;
pub use types::{
    Config, Discovery, Gate, Handover, HandoverMode, Heartbeat, Limits, PolicyConfig, PolicySource, QueueLimit,
    Rebalance, Secret, Takeover, Timeouts, private_ranges,
};
pub use weights::Weights;

#[cfg(test)]
mod tests;
