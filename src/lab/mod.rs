//! Trying policies out: the test runner, hand-written calls, and checks. No sockets, no async runtime. Everything here
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
mod page_figures;
pub mod page_html;
pub mod page_text;
mod property;
mod report;
mod runner;
mod session;
mod subject;
#[cfg(test)]
mod tests;

pub use bench::{Bench, MOST as MOST_MONOLITHS, Size, bench};
pub use check::{Problem, check_policy};
pub use coverage::{Coverage, FileCoverage};
pub use eval::{Evaluation, evaluate};
pub use gate::test_gate;
pub use report::{Report, Status, TestResult};
pub use runner::{Options, TestFile, find_tests, run_tests};
