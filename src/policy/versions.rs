//! Versions of the policy: what a new one has to pass, and which ones were active.

use std::collections::VecDeque;

use serde::Serialize;

use super::lua::{Environment, LoadError, Origin, Program, Source};
use super::slots::PolicySet;
use super::smoke;
use crate::model::policy::{Call, View};

/// One activation, as the admin API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// The policy's name.
    pub name: String,
    /// Its content hash, 12 hex digits.
    pub version: String,
    /// `shipped`, or the path.
    pub source: String,
    /// When it became active: RFC 3339, UTC.
    pub activated_at: String,
    /// Who or what made it active: `start`, `watch`, `admin`...
    pub by: String,
}

impl Version {
    /// A version that became active, or began as shadow or canary.
    pub fn of(program: &Program, by: &str, now_us: u64) -> Self {
        let source = program.source();
        Self {
            name: source.name.clone(),
            version: program.version().into(),
            source: match &source.origin {
                Origin::Shipped => "shipped".into(),
                Origin::File(path) => path.display().to_string(),
            },
            activated_at: timestamp(now_us),
            by: by.into(),
        }
    }
}

/// A version that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The policy's name.
    pub policy: String,
    /// The file that the reason is about: the policy's or its test's.
    pub file: String,
    /// The line, where one is to blame.
    pub line: Option<u32>,
    /// What is wrong.
    pub reason: String,
    /// When it was refused: RFC 3339, UTC.
    pub at: String,
}

/// Runs a policy's tests; an error is the reason to refuse it. The runner is a layer above, so it comes as a function.
pub type TestGate<'a> = &'a dyn Fn(&Source) -> Result<(), LoadError>;

/// Decides recent calls again with a new version; an error is the reason to refuse it. The replayer is a layer above, so
/// it comes as a function.
pub type ReplayGate<'a> = &'a dyn Fn(&Program) -> Result<(), LoadError>;

/// What a version has to pass once it compiles and survives the smoke calls, in this order.
#[derive(Clone, Copy, Default)]
pub struct Gates<'a> {
    /// Its tests.
    pub tests: Option<TestGate<'a>>,
    /// The recent calls.
    pub replay: Option<ReplayGate<'a>>,
}

/// A version that passed its gates and has not been activated.
#[derive(Clone)]
pub struct Prepared {
    program: Program,
}

/// Compiles a version, makes the smoke calls of the hooks that it has, and lets it pass the gates that there are. Nothing of what is active is touched.
pub fn prepare(
    source: Source,
    environment: &Environment,
    smoke: &[(Call, View)],
    gates: Gates<'_>,
) -> Result<Prepared, LoadError> {
    let program = Program::compile(source, environment)?;
    smoke::test(&program, smoke)?;
    if let Some(tests) = gates.tests {
        tests(program.source())?;
    }
    if let Some(replay) = gates.replay {
        replay(&program)?;
    }
    Ok(Prepared { program })
}

impl Prepared {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Builds the VMs that will decide, for [`super::deciding::PolicyHandle::change`].
    pub fn build(&self, slots: usize) -> Result<PolicySet, LoadError> {
        PolicySet::build(&self.program, slots)
    }
}

/// Failures that are remembered; beyond them the oldest is forgotten.
pub const FAILURES: usize = 8;

/// Which versions were active, newest first, and why the last refused ones were refused.
pub struct History {
    /// The active one first; never empty.
    entries: VecDeque<(Version, Program)>,
    capacity: usize,
    /// The last one first.
    failures: VecDeque<Failure>,
}

/// What the admin API shows of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Versions {
    /// The one that decides.
    pub active: Version,
    /// The one that a rollback returns to.
    pub previous: Option<Version>,
    /// All that are kept, newest first, without the active one.
    pub history: Vec<Version>,
    /// Why the last refused one was refused.
    pub last_failure: Option<Failure>,
    /// The last [`FAILURES`] of them, newest first.
    pub failures: Vec<Failure>,
}

impl History {
    /// Begins with an active version. `capacity` versions are kept besides it, their text only.
    pub fn new(program: Program, by: &str, now_us: u64, capacity: usize) -> Self {
        let mut history = Self { entries: VecDeque::new(), capacity, failures: VecDeque::new() };
        history.activated(program, by, now_us);
        history
    }

    /// Records that a version became active.
    pub fn activated(&mut self, program: Program, by: &str, now_us: u64) {
        let version = Version::of(&program, by, now_us);
        self.entries.push_front((version, program));
        self.entries.truncate(self.capacity + 1);
    }

    /// Records that a version was refused, or stopped for its faults.
    pub fn refused(&mut self, policy: &str, error: &LoadError, now_us: u64) {
        self.failures.truncate(FAILURES - 1);
        self.failures.push_front(Failure {
            policy: policy.into(),
            file: error.file.clone(),
            line: error.line,
            reason: error.reason.clone(),
            at: timestamp(now_us),
        });
    }

    /// What a rollback would activate: the newest kept version with another text.
    pub fn rollback_target(&self) -> Option<&Program> {
        let active = &self.entries.front()?.0.version;
        self.entries.iter().find(|(version, _)| version.version != *active).map(|(_, program)| program)
    }

    /// Everything that is shown.
    pub fn versions(&self) -> Option<Versions> {
        let mut versions = self.entries.iter().map(|(version, _)| version.clone());
        let active = versions.next()?;
        let history: Vec<Version> = versions.collect();
        let previous = history.iter().find(|version| version.version != active.version).cloned();
        let failures: Vec<Failure> = self.failures.iter().cloned().collect();
        Some(Versions { active, previous, history, last_failure: failures.first().cloned(), failures })
    }
}

/// RFC 3339 in UTC with seconds, of microseconds since 1970. The date is Howard Hinnant's `civil_from_days`.
pub fn timestamp(now_us: u64) -> String {
    let seconds = now_us / 1_000_000;
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Region;
    use crate::policy::lua::Limits;
    use crate::policy::lua::state::Kept;

    fn source(text: &str) -> Source {
        Source::shipped("test", text)
    }

    fn try_out(text: &str) -> Result<Prepared, LoadError> {
        let region = Region::from("ewr");
        let smoke: Vec<_> = smoke::calls(&region, 0).into_iter().map(|c| (c, smoke::synthetic_view(&region))).collect();
        // Without optimisation the fuel may take longer than the budget.
        let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
        prepare(source(text), &Environment { limits, ..Environment::default() }, &smoke, Gates::default())
    }

    #[test]
    fn f44_a_version_is_refused_with_file_and_line_before_anything_is_touched() {
        for (text, line, reason) in [
            ("local x = ", Some(1), "Expected identifier"),
            ("\nreturn nothing.x", Some(2), "attempt to index nil"),
            ("return 7", Some(1), "returns number"),
            ("return { place = 7 }", Some(1), "place is a number"),
            ("return { api = 2 }", None, "api is 2"),
            ("return {\n place = function(call)\n  return call.rom.name\n end }", Some(3), "smoke call of place"),
            ("return { route = function() return 7 end }", Some(1), "smoke call of route"),
            ("while true do end", Some(1), "safepoints"),
        ] {
            let error = try_out(text).map(|_| ()).unwrap_err();
            assert_eq!(error.file, "policies/test.lua", "{text}");
            assert!(error.reason.contains(reason) || reason == "place is a number", "{text}: {error}");
            assert_eq!(error.line, line, "{text}: {error}");
        }
        assert!(try_out("return { place = function(call) return call.monoliths[1] end }").is_ok());
    }

    #[test]
    fn each_gate_can_refuse() {
        let refuse = |_: &Source| Err(LoadError { file: "x_test.lua".into(), line: Some(3), reason: "no".into() });
        let gates = Gates { tests: Some(&refuse), replay: Some(&|_| unreachable!()) };
        let error = prepare(source("return {}"), &Environment::default(), &[], gates).map(|_| ()).unwrap_err();
        assert_eq!(error.file, "x_test.lua");
        let replay = |program: &Program| Err(program.source().problem(None, "agreement >= 1: 0.5"));
        let gates = Gates { replay: Some(&replay), ..Gates::default() };
        let error = prepare(source("return {}"), &Environment::default(), &[], gates).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "policies/test.lua: agreement >= 1: 0.5");
    }

    #[test]
    fn smoke_calls_leave_no_state_behind() {
        let environment = Environment::default();
        let text = "return { place = function(call) usher.set('seen', 1) usher.counter('n')() end }";
        let region = Region::from("ewr");
        let smoke: Vec<_> = smoke::calls(&region, 0).into_iter().map(|call| (call, View::default())).collect();
        prepare(source(text), &environment, &smoke, Gates::default()).unwrap();
        assert_eq!(environment.state.get("seen"), None);
        // They see what is kept, since a policy may depend on it.
        environment.state.set("mode", Some(Kept::Boolean(true))).unwrap();
        let needs = "return { place = function(call) assert(usher.get('mode')) usher.set('mode', nil) end }";
        prepare(source(needs), &environment, &smoke, Gates::default()).unwrap();
        assert_eq!(environment.state.get("mode"), Some(Kept::Boolean(true)));
    }

    #[test]
    fn history_is_bounded_and_rolls_back_to_another_text() {
        let program = |text| Program::compile(source(text), &Environment::default()).unwrap();
        let mut history = History::new(program("return {}"), "start", 0, 2);
        assert!(history.rollback_target().is_none());
        history.activated(program("return { }"), "watch", 1_700_000_000_000_000);
        history.activated(program("return { }"), "admin", 1_700_000_000_000_000);
        assert_eq!(&*history.rollback_target().unwrap().source().text, "return {}");
        history.activated(program("return {  }"), "admin", 1_709_209_845_000_000);
        let shown = history.versions().unwrap();
        assert_eq!(shown.active.activated_at, "2024-02-29T12:30:45Z");
        assert_eq!((shown.history.len(), shown.active.version.len()), (2, 12));
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(json["active"]["source"], "shipped");
        assert_eq!(json["last_failure"], serde_json::Value::Null);
    }

    #[test]
    fn the_last_failures_are_kept_newest_first() {
        let mut history =
            History::new(Program::compile(source("return {}"), &Environment::default()).unwrap(), "start", 0, 2);
        for line in 1..=20 {
            let error = LoadError { file: "x.lua".into(), line: Some(line), reason: "no".into() };
            history.refused("x", &error, 0);
        }
        let shown = history.versions().unwrap();
        let lines: Vec<u32> = shown.failures.iter().filter_map(|failure| failure.line).collect();
        assert_eq!(lines, [20, 19, 18, 17, 16, 15, 14, 13]);
        assert_eq!(shown.last_failure.as_ref(), shown.failures.first());
    }
}
