//! Trying policies out: the test runner, hand-written calls, checks, and simulation. No sockets, no async runtime. Everything here
//! drives the engine that decides in production.

mod bench;
mod check;
mod coverage;
mod distinct;
mod eval;
mod gate;
mod generate;
pub mod input;
mod junit;
mod lint;
mod literal;
pub mod page;
mod page_figures;
pub mod page_html;
pub mod page_text;
mod property;
mod redecide;
pub mod replay;
mod report;
mod runner;
mod session;
mod simulation;
mod subject;
#[cfg(test)]
mod tests;
mod texts;
pub mod trace_cut;
pub mod trace_info;
pub mod trace_test;
#[cfg(test)]
mod trace_tests;
pub mod when;
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
