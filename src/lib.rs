//! usher: a load balancer for servers that host rooms. A fixed core keeps everyone of a room on the one server that
//! holds it; a Lua policy decides everything that is a matter of choice. `ARCHITECTURE.md` is the map.

pub mod admin;
pub mod claims;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod discovery;
#[cfg(test)]
mod faults;
pub mod front;
pub mod lab;
pub mod link;
pub mod model;
pub mod policy;
pub mod testkit;
pub mod trace;
