//! Finding and reading the configuration file: the only part of this module that touches the machine.

use std::path::{Path, PathBuf};

use super::environment;
use super::policy::SHIPPED_POLICIES;
use super::problem::{ConfigErrors, Place, Problem};
use super::resolve::{Input, parse};
use super::types::Config;

/// The files that are looked for, in this order, when none is named.
const FILES: [&str; 2] = ["usher.toml", "balancer.toml"];

/// Where a configuration is to be found.
#[derive(Clone, Debug)]
pub struct Request {
    /// The file, if one was named; relative to `working_dir`.
    pub path: Option<PathBuf>,
    /// Where `usher.toml` and `balancer.toml` are looked for.
    pub working_dir: PathBuf,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// The names of the shipped policies.
    pub shipped: Vec<&'static str>,
    /// Worker threads.
    pub workers: usize,
}

/// A configuration that can be run.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What the operator should know.
    pub warnings: Vec<Problem>,
}

impl Loaded {
    /// That there is no file at the path that `policy.file` names, if so: one of the warnings. A start may still be
    /// served by the last good version.
    pub fn missing_policy(&self) -> Option<&Problem> {
        self.warnings.iter().find(|warning| warning.key == "policy.file")
    }
}

impl Request {
    /// What this process was started with: its working folder, its environment, and as many workers as it may use.
    pub fn of_process(path: Option<PathBuf>) -> Self {
        Self {
            path,
            working_dir: PathBuf::new(),
            environment: environment::of_process(),
            shipped: SHIPPED_POLICIES.to_vec(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Finds, reads and checks a configuration: the named file, else `usher.toml`, else `balancer.toml`, else defaults,
/// each with the environment laid over it.
pub fn load(request: &Request) -> Result<Loaded, ConfigErrors> {
    let found = match &request.path {
        Some(path) => Some(path.clone()),
        None => FILES.iter().map(PathBuf::from).find(|file| request.working_dir.join(file).exists()),
    };
    let text = match &found {
        Some(file) => read_text(&request.working_dir.join(file), file)?,
        None => String::new(),
    };
    let path = found.as_ref().map(|file| request.working_dir.join(file));
    let name = found.as_ref().map(|file| file.display().to_string());
    let base_dir = path.as_deref().and_then(Path::parent).unwrap_or(&request.working_dir);
    let mut loaded = parse(&Input {
        file: name.as_deref(),
        text: &text,
        environment: &request.environment,
        base_dir,
        file_exists: &|path| path.is_file(),
        shipped: &request.shipped,
        workers: request.workers,
    })?;
    loaded.config.source = path;
    Ok(loaded)
}

fn read_text(path: &Path, shown: &Path) -> Result<String, ConfigErrors> {
    let place = |line| Place::File { file: shown.display().to_string().into(), line };
    let bytes = std::fs::read(path).map_err(|error| {
        ConfigErrors::one(place(0), "", format!("cannot be read: {error}; name another file with --config"))
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
        ConfigErrors::one(place(line), "", "not UTF-8; save the file as UTF-8")
    })
}
