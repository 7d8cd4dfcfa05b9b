//! What came of a test run: plain data, and how people read it.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::coverage::Coverage;

/// What came of one test. Broken is not the same as failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every check held.
    Pass,
    /// A check did not hold.
    Fail,
    /// The test could not run to its end.
    Error,
}

/// One test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TestResult {
    /// The file, as it was named.
    pub file: String,
    /// The test's name with those of the groups around it; empty for the file as a whole.
    pub name: String,
    /// What came of it.
    pub status: Status,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Where, in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The last call of a test that did not pass, as Lua.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// What the policy answered to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Where a VM that had made other calls and a fresh one answered differently: a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_state: Option<String>,
    /// How long it took. Not part of the document, which is the same for every run.
    #[serde(skip)]
    pub time: Duration,
}

impl TestResult {
    pub(super) fn new(file: &str, name: &str, status: Status) -> Self {
        Self {
            file: file.into(),
            name: name.into(),
            status,
            message: None,
            line: None,
            call: None,
            answer: None,
            hidden_state: None,
            time: Duration::ZERO,
        }
    }
}

/// All tests of a run, in the order in which they ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many could not run.
    pub errors: usize,
    /// In how many of them something outlived a call that the contract does not know.
    #[serde(skip_serializing_if = "is_zero")]
    pub hidden_state: usize,
    /// Each of them.
    pub tests: Vec<TestResult>,
    /// Which lines ran, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
}

impl Report {
    pub(super) fn add(&mut self, result: TestResult) {
        match result.status {
            Status::Pass => self.passed += 1,
            Status::Fail => self.failed += 1,
            Status::Error => self.errors += 1,
        }
        self.hidden_state += usize::from(result.hidden_state.is_some());
        self.tests.push(result);
    }

    /// 0 if all passed, 1 if a test failed, 2 if one could not run.
    pub fn exit_code(&self) -> u8 {
        match (self.errors, self.failed) {
            (0, 0) => 0,
            (0, _) => 1,
            _ => 2,
        }
    }

    /// For people: a line for each file, the reasons of what did not pass, and the sum.
    pub fn pretty(&self) -> String {
        let mut text = String::new();
        for tests in self.tests.chunk_by(|a, b| a.file == b.file) {
            let good = tests.iter().filter(|test| test.status == Status::Pass).count();
            let _ = writeln!(text, "{}: {good} of {} passed", tests[0].file, tests.len());
            for test in tests.iter().filter(|test| test.status != Status::Pass) {
                let word = if test.status == Status::Fail { "FAIL" } else { "ERROR" };
                let name = if test.name.is_empty() { "(the file itself)" } else { &test.name };
                let line = test.line.map(|line| format!(" ({}:{line})", test.file)).unwrap_or_default();
                let _ = writeln!(text, "  {word} {name}{line}");
                let call = test.call.iter().map(|call| format!("call: {call}"));
                let answer = test.answer.iter().map(|answer| format!("answer: {answer}"));
                for part in test.message.iter().cloned().chain(call).chain(answer) {
                    indented(&mut text, &part);
                }
            }
            for (test, what) in tests.iter().filter_map(|test| Some((test, test.hidden_state.as_ref()?))) {
                let _ = writeln!(text, "  hidden state: {}", test.name);
                indented(&mut text, what);
            }
        }
        if let Some(coverage) = &self.coverage {
            text.push_str(&coverage.pretty());
        }
        let _ = writeln!(text, "{} passed, {} failed, {} could not run", self.passed, self.failed, self.errors);
        text
    }
}

fn indented(text: &mut String, part: &str) {
    for line in part.lines() {
        let _ = writeln!(text, "    {line}");
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}
