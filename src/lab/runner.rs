//! Finds test files and runs them, as many at a time as there are cores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use regex::Regex;

use super::coverage::Coverage;
use super::report::{Report, Status, TestResult};
use super::session::{self, Outcome};
use crate::config;
use crate::policy::lua::inspect::Lines;
use crate::policy::lua::surface::lock;
use crate::policy::lua::{Distances, Environment, LoadError, Origin, Source, read_text};
use crate::policy::shipped::{SHIPPED, Shipped, shipped};

/// How a test file's name ends.
const SUFFIX: &str = "_test.lua";
/// The deepest folder that is searched below one that was named.
const MAX_DEPTH: usize = 16;

/// A test with the policy that it is about.
#[derive(Clone, Debug)]
pub struct TestFile {
    /// Its name in reports.
    pub name: String,
    /// Its text, or why it cannot be read.
    pub text: Result<Arc<str>, LoadError>,
    /// The policy beside it, or why there is none.
    pub policy: Result<Source, String>,
}

/// How tests are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which tests, by name with the names of the groups around it.
    pub filter: Option<Regex>,
    /// Distances, settings and limits of the policies under test. State is not shared with it.
    pub environment: Environment,
    /// How long one file may take; no test starts after that.
    pub time: Duration,
    /// Whether the lines that run are counted.
    pub coverage: bool,
    /// How many files run at a time; 0: as many as there are cores.
    pub jobs: usize,
}

impl Default for Options {
    fn default() -> Self {
        let environment = Environment { distances: built_in_distances(), ..Environment::default() };
        Self { filter: None, environment, time: Duration::from_secs(60), coverage: false, jobs: 0 }
    }
}

/// The distances that a configuration has without a word about them: those of Fly's regions.
fn built_in_distances() -> Distances {
    let known = config::Distances::default();
    Distances::new(move |from, to| known.ms(from, to))
}

impl TestFile {
    /// The test of a shipped policy.
    pub fn shipped(policy: &Shipped) -> Self {
        Self {
            name: format!("policies/{}{SUFFIX}", policy.name),
            text: Ok(policy.test.into()),
            policy: Ok(Source::shipped(policy.name, policy.text)),
        }
    }

    /// Reads a test; `NAME_test.lua` is about `NAME.lua` beside it.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let text = Ok(read_text(path)?.into());
        let policy = match name.strip_suffix(SUFFIX) {
            Some(stem) => Source::read(Path::new(&format!("{stem}.lua"))).map_err(|e| e.to_string()),
            None => Err(format!("{name}: tests are called NAME{SUFFIX}, after the policy NAME.lua beside them")),
        };
        Ok(Self { name, text, policy })
    }

    /// A file that stands among others and cannot be read: they run all the same.
    fn unreadable(path: &Path, error: LoadError) -> Self {
        Self { name: path.display().to_string(), policy: Err(error.to_string()), text: Err(error) }
    }

    /// The test that belongs to a policy, if there is one.
    pub fn beside(policy: &Source) -> Option<Result<Self, LoadError>> {
        match &policy.origin {
            crate::policy::lua::Origin::Shipped => shipped(&policy.name).map(|found| Ok(Self::shipped(found))),
            crate::policy::lua::Origin::File(path) => {
                let test = path.with_file_name(format!("{}{SUFFIX}", policy.name));
                // The text that is about to decide is the one to test, even if the file has changed since.
                test.exists().then(|| Self::read(&test).map(|file| Self { policy: Ok(policy.clone()), ..file }))
            }
        }
    }
}

/// The tests that these paths stand for: a test, a policy with its test beside it, a folder with everything in it, or
/// a shipped policy's name. Without any: the tests of the working folder, or those of all shipped policies.
pub fn find_tests(paths: &[String]) -> Result<Vec<TestFile>, LoadError> {
    let nothing = |path: &str| LoadError {
        file: path.into(),
        line: None,
        reason: format!("no {SUFFIX} here; name a test, a policy with a test beside it, a folder or a shipped policy"),
    };
    if paths.is_empty() {
        let found = in_folder(Path::new("."))?;
        return Ok(if found.is_empty() { SHIPPED.iter().map(TestFile::shipped).collect() } else { found });
    }
    let mut files = Vec::new();
    for path in paths {
        let found = match (shipped(path), Path::new(path)) {
            (Some(policy), _) => vec![TestFile::shipped(policy)],
            (None, folder) if folder.is_dir() => in_folder(folder)?,
            (None, test) if path.ends_with(SUFFIX) => vec![TestFile::read(test)?],
            (None, policy) => TestFile::beside(&Source::read(policy)?).transpose()?.into_iter().collect(),
        };
        if found.is_empty() {
            return Err(nothing(path));
        }
        files.extend(found);
    }
    // A file that several paths stand for runs once.
    let mut seen = BTreeSet::new();
    files.retain(|file| {
        let shipped = matches!(&file.policy, Ok(Source { origin: Origin::Shipped, .. }));
        let path = Path::new(&file.name);
        seen.insert((shipped, path.canonicalize().unwrap_or_else(|_| path.to_path_buf())))
    });
    Ok(files)
}

/// Runs tests, several files at a time. The report is in the order of the files, whichever ends first.
pub fn run_tests(files: &[TestFile], options: &Options) -> Report {
    let mut report = Report::default();
    let mut covered: BTreeMap<String, Lines> = BTreeMap::new();
    for (file, outcome) in files.iter().zip(run_all(files, options)) {
        // A file whose tests are never defined would otherwise look like one that passes.
        if outcome.results.is_empty() && options.filter.is_none() {
            let message = Some("the file has no tests; define them with usher.test.it".into());
            report.add(TestResult { message, ..TestResult::new(&file.name, "", Status::Error) });
        }
        outcome.results.into_iter().for_each(|result| report.add(result));
        if let (Some(lines), Ok(policy)) = (outcome.lines, &file.policy) {
            covered.entry(policy.file()).or_default().merge(&lines);
        }
    }
    report.coverage = options.coverage.then(|| Coverage::of(covered));
    report
}

fn run_all(files: &[TestFile], options: &Options) -> Vec<Outcome> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if options.jobs == 0 { cores() } else { options.jobs }.min(files.len());
    if jobs <= 1 {
        return files.iter().map(|file| session::run(file, options)).collect();
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((at, file)) = Some(next.fetch_add(1, Relaxed)).and_then(|at| Some((at, files.get(at)?)))
                {
                    let outcome = session::run(file, options);
                    lock(&done).insert(at, outcome);
                }
            });
        }
    });
    std::mem::take(&mut *lock(&done)).into_values().collect()
}

fn in_folder(folder: &Path) -> Result<Vec<TestFile>, LoadError> {
    let mut paths = Vec::new();
    collect(folder, MAX_DEPTH, &mut paths)?;
    paths.sort();
    let read = |path: &PathBuf| {
        let path = path.strip_prefix(".").unwrap_or(path);
        TestFile::read(path).unwrap_or_else(|error| TestFile::unreadable(path, error))
    };
    Ok(paths.iter().map(read).collect())
}

fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), LoadError> {
    let error = |e: std::io::Error| LoadError {
        file: folder.display().to_string(),
        line: None,
        reason: format!("cannot be searched: {e}"),
    };
    for entry in std::fs::read_dir(folder).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Links are not followed, so no folder is entered twice.
        let kind = entry.file_type().map_err(error)?;
        if kind.is_dir() && depth > 0 && !name.starts_with('.') && name != "target" {
            collect(&entry.path(), depth - 1, paths)?;
        } else if !kind.is_dir() && name.ends_with(SUFFIX) {
            paths.push(entry.path());
        }
    }
    Ok(())
}
