//! Trying policies out: the test runner, hand-written calls, checks, and simulation. No sockets, no async runtime. Everything here
//! drives the engine that decides in production.

mod bench;
mod check;
mod coverage;
mod eval;
mod gate;
mod generate;
pub mod input;
mod junit;
mod lint;
mod literal;
pub mod page;
mod property;
pub mod replay;
mod report;
mod runner;
mod session;
mod simulation;
mod subject;
#[cfg(test)]
mod tests;
mod why;

pub use bench::{Bench, MOST as MOST_MONOLITHS, Size, bench};
pub use check::{Problem, check_policy};
pub use coverage::{Coverage, FileCoverage};
pub use eval::{Evaluation, evaluate};
pub use gate::test_gate;
pub use report::{Report, Status, TestResult};
pub use runner::{Options, TestFile, find_tests, run_tests};
pub use simulation::{Simulated, Simulation};
pub use why::{RoomStory, room_story};
