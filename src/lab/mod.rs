//! Trying policies out: the test runner, hand-written calls, and checks. No sockets, no async runtime. Everything here
//! drives the engine that decides in production.

mod check;
mod gate;
pub mod input;
mod report;
mod runner;
mod session;
#[cfg(test)]
mod tests;

pub use check::{Problem, check_policy};
pub use gate::test_gate;
pub use report::{Report, Status, TestResult};
pub use runner::{Options, TestFile, find_tests, run_tests};
