//! Whole balancers over real sockets, with simulated Monoliths and clients: one module for each theme. Tests of
//! failure modes bear the number of the failure.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "this is a test, whose helpers may panic, and which tells what it measured"
)]

mod balancers;
mod claims;
mod clients;
mod creation;
mod duplicates;
mod ghosts;
mod handover;
mod harness;
mod health;
mod hostile;
mod links;
mod loss;
mod moves;
mod order;
mod outage;
mod overload;
mod partitions;
mod policy;
mod recordings;
mod restart;
mod routing;
mod turns;

#[path = "../support/mod.rs"]
mod support;
