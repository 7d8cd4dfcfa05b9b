//! The gate `tests`: a new version decides only if its own tests pass.

use std::time::Duration;

use super::check;
use super::report::Status;
use super::runner::{Options, TestFile, run_tests};
use crate::policy::lua::{Environment, LoadError, Program, SharedState, Source, Vm};

/// A gate for [`crate::policy::versions::prepare`]: runs the `_test.lua` of a policy for at most `time`, on the calling
/// thread. A policy without tests passes with a warning.
pub fn test_gate(environment: &Environment, time: Duration) -> impl Fn(&Source) -> Result<(), LoadError> + use<> {
    let options = Options { environment: environment.clone(), time, ..Options::default() };
    let environment = environment.clone();
    move |source| {
        log_warnings(source, &environment);
        let Some(file) = TestFile::beside(source) else {
            tracing::warn!(policy = %source.name, "no tests beside {}: it decides untested", source.file());
            return Ok(());
        };
        let report = run_tests(&[file?], &options);
        match report.tests.into_iter().find(|test| test.status != Status::Pass) {
            None => Ok(()),
            Some(test) => {
                let word = if test.status == Status::Fail { "failed" } else { "could not run" };
                let reason = format!("test {:?} {word}: {}", test.name, test.message.unwrap_or_default());
                Err(LoadError { file: test.file, line: test.line, reason })
            }
        }
    }
}

/// What looks wrong is said even if nothing fails; it is no reason to refuse a version.
fn log_warnings(source: &Source, environment: &Environment) {
    let environment = Environment { state: SharedState::default().into(), ..environment.clone() };
    let Ok(vm) = Program::compile(source.clone(), &environment).and_then(|program| Vm::new(&program)) else { return };
    for warning in check::static_warnings(source, &vm) {
        tracing::warn!(policy = %source.name, "{warning}");
    }
}
