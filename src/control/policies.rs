//! The policy in force and its versions: what may become active, how it is checked, and the swap at a call boundary.

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::Control;
use crate::config::{self, Config, Gate, PolicyConfig, PolicySource};
use crate::lab;
use crate::model::metrics::MetricsText;
use crate::model::policy::{Call, Decision, Hook, View};
use crate::policy::decide::decide_near;
use crate::policy::guarded::{BreakerState, Guarded};
use crate::policy::lua::{Distances, Environment, Limits, LoadError, Origin, Program, SharedState, Source, Vm};
use crate::policy::shipped::shipped;
use crate::policy::slots::{PolicyHandle, PolicySet};
use crate::policy::smoke;
use crate::policy::versions::{History, Prepared, prepare};

/// How long a policy's tests may take before they count as not passed.
const TEST_TIME: Duration = Duration::from_secs(10);

/// Why another policy did not become active.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// Not a policy that may be named over the admin API.
    #[error("{0}")]
    NotAllowed(String),
    /// It did not pass; the one before it goes on.
    #[error("{0}")]
    Refused(String),
}

/// A policy that is ready to decide before the control thread exists.
pub struct FirstPolicy {
    set: PolicySet,
    program: Program,
    state: Arc<SharedState>,
}

/// The policy and its versions.
pub struct Policies {
    handle: PolicyHandle,
    history: Mutex<History>,
    /// One swap at a time; whoever comes second sees what the first has done.
    swapping: tokio::sync::Mutex<()>,
    control: Control,
    config: Arc<ArcSwap<Config>>,
    state: Arc<SharedState>,
    /// The distances that the version in force was given.
    distances: Mutex<config::Distances>,
    workers: usize,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    swaps: std::sync::atomic::AtomicU64,
    refused: std::sync::atomic::AtomicU64,
}

impl FirstPolicy {
    /// Reads, checks and builds the configured policy. At a start there is no version to fall back to, so a broken one
    /// is an error.
    pub fn prepare(config: &Config, workers: usize) -> Result<Self, LoadError> {
        let state = Arc::new(SharedState::default());
        let source = read(&config.policy.source)?;
        let prepared = check(source, &config.policy, config, &state, &View::default())?;
        let set = prepared.build(workers)?;
        Ok(Self { set, program: prepared.program().clone(), state })
    }

    /// The VM that decides on the control thread.
    pub fn deciding(&self) -> Result<Guarded<Vm>, LoadError> {
        self.set.extra()
    }
}

impl Policies {
    /// Takes over from the first policy.
    pub fn new(first: FirstPolicy, control: Control, config: Arc<ArcSwap<Config>>, workers: usize) -> Self {
        let regions = config.load().regions.clone();
        let history = History::new(first.program, "start", now_us(), config.load().policy.history);
        let policies = Self {
            handle: PolicyHandle::new(first.set),
            history: Mutex::new(history),
            swapping: tokio::sync::Mutex::default(),
            control,
            config,
            state: first.state,
            distances: Mutex::new(regions),
            workers,
            counts: Counts::default(),
        };
        let active = policies.handle.load();
        info!(policy = %active.program().source().name, version = active.program().version(), "policy decides");
        drop(active);
        policies
    }

    /// Whether the version in force has a hook.
    pub fn has(&self, hook: Hook) -> bool {
        self.handle.load().has(hook)
    }

    /// One decision in the VM of the calling worker.
    pub fn decide(&self, call: &Call, view: &View) -> Decision {
        let set = self.handle.load();
        let distances = &set.program().environment().distances;
        let decision = set.with_slot(|vm| decide_near(vm, call, view, Some(distances)));
        if let Some(fault) = &decision.fault
            && fault.kind == crate::model::policy::FaultKind::NotEligible
        {
            set.stats().count_fault(call.hook, fault.kind);
        }
        decision
    }

    /// The breaker: `closed`, `open` or `half_open`.
    pub fn breaker(&self) -> &'static str {
        match self.handle.load().stats().breaker() {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }

    /// The content hash of the version in force.
    pub fn active_version(&self) -> String {
        self.handle.load().program().version().to_string()
    }

    /// The name of the policy in force.
    pub fn active_name(&self) -> String {
        self.handle.load().program().source().name.clone()
    }

    /// Everything that the admin API shows of the policy.
    pub fn document(&self) -> Value {
        let versions = self.history().versions();
        let mut document = json!(versions);
        if let Some(document) = document.as_object_mut() {
            document.insert("shadow".into(), Value::Null);
            document.insert("canary".into(), Value::Null);
            document.insert("breaker".into(), self.breaker().into());
        }
        document
    }

    /// Lets another policy decide: a shipped one by name, or a file inside the folder of the configured one.
    pub async fn switch(&self, name: &str, by: &str) -> Result<(), SwapError> {
        let source = self.allowed(name)?;
        let config = self.config.load_full();
        self.swap(&source, &config, by).await
    }

    /// Lets the version before this one decide again.
    pub async fn rollback(&self, by: &str) -> Result<(), SwapError> {
        let _one = self.swapping.lock().await;
        let Some(program) = self.history().rollback_target().cloned() else {
            return Err(SwapError::Refused("there is no earlier version to return to".into()));
        };
        let config = self.config.load_full();
        let name = program.source().name.clone();
        let regions = config.regions.clone();
        let (state, smoke) = (self.state.clone(), self.smoke(&config));
        let check = move || {
            let environment = environment(&config.policy, &config, &state);
            prepare(program.source().clone(), &environment, &smoke, None)
        };
        self.try_out(&name, check, &regions, by).await
    }

    /// Checks and builds a version on a thread that may take its time, and activates it.
    async fn try_out(
        &self,
        name: &str,
        check: impl FnOnce() -> Result<Prepared, LoadError> + Send + 'static,
        regions: &config::Distances,
        by: &str,
    ) -> Result<(), SwapError> {
        let workers = self.workers;
        let built = tokio::task::spawn_blocking(move || {
            let prepared = check()?;
            let set = prepared.build(workers)?;
            let deciding = set.extra()?;
            Ok((set, deciding))
        });
        let built = built.await.unwrap_or_else(|error| {
            Err(LoadError { file: name.into(), line: None, reason: format!("checking it broke off: {error}") })
        });
        match built {
            Ok((set, deciding)) => {
                self.activate(set, deciding, regions, by);
                Ok(())
            }
            Err(error) => Err(self.refuse(name, &error)),
        }
    }

    /// Takes up a policy from the configuration or its file. Text that decides already changes nothing, unless its
    /// limits or settings did.
    pub async fn swap(&self, source: &PolicySource, config: &Config, by: &str) -> Result<(), SwapError> {
        let _one = self.swapping.lock().await;
        let name = match source {
            PolicySource::Shipped(name) => name.clone(),
            PolicySource::File(path) => path.display().to_string(),
        };
        let (source, policy, config) = (source.clone(), config.policy.clone(), config.clone());
        let (state, view) = (self.state.clone(), self.control.routes().published().view.clone());
        let regions = config.regions.clone();
        let check = move || check(read(&source)?, &policy, &config, &state, &view);
        self.try_out(&name, check, &regions, by).await
    }

    /// The file behind the configured policy, if it is one.
    pub fn watched_file(config: &Config) -> Option<PathBuf> {
        match &config.policy.source {
            PolicySource::File(path) if config.policy.watch => Some(path.clone()),
            PolicySource::File(_) | PolicySource::Shipped(_) => None,
        }
    }

    /// Writes what is counted about policies.
    pub fn write_metrics(&self, out: &mut MetricsText) {
        use std::sync::atomic::Ordering::Relaxed;
        let set = self.handle.load();
        let stats = set.stats();
        let info = [("policy", set.program().source().name.as_str()), ("version", set.program().version())];
        out.family("usher_policy_info", "The policy that decides.", "gauge", &[(&info, 1)]);
        out.counter("usher_policy_swaps_total", "Versions that became active.", self.counts.swaps.load(Relaxed));
        out.counter("usher_policy_refused_total", "Versions that were refused.", self.counts.refused.load(Relaxed));
        let open = u8::from(stats.breaker() != BreakerState::Closed);
        out.gauge("usher_policy_breaker_open", "1 while the built-in policy decides after repeated faults.", open);
        out.counter("usher_policy_bypassed_total", "Calls answered while the breaker was open.", stats.bypassed());
        let faults: Vec<_> = stats.faults().collect();
        let labels: Vec<[(&str, &str); 2]> =
            faults.iter().map(|(hook, kind, _)| [("hook", hook.name()), ("kind", kind.label())]).collect();
        let samples: Vec<(&[(&str, &str)], u64)> =
            faults.iter().zip(&labels).map(|((_, _, count), labels)| (labels.as_slice(), *count)).collect();
        out.family("usher_policy_faults_total", "Calls of the version in force that failed.", "counter", &samples);
    }

    fn activate(&self, set: PolicySet, deciding: Guarded<Vm>, regions: &config::Distances, by: &str) {
        let program = set.program().clone();
        let same = {
            let active = self.handle.load();
            let (old, new) = (active.program(), &program);
            old.version() == new.version()
                && old.source().origin == new.source().origin
                && old.environment().limits == new.environment().limits
                && old.environment().settings == new.environment().settings
        };
        let old_regions =
            std::mem::replace(&mut *self.distances.lock().unwrap_or_else(PoisonError::into_inner), regions.clone());
        if same && old_regions == *regions {
            return;
        }
        self.handle.publish(set);
        // The control thread takes it up between two calls; an error means that it has ended.
        if self.control.use_policy(Box::new(deciding)).is_err() {
            warn!("the control thread has ended; the new policy decides nothing");
        }
        info!(policy = %program.source().name, version = program.version(), by, "policy decides");
        self.counts.swaps.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.history().activated(program, by, now_us());
    }

    fn refuse(&self, name: &str, error: &LoadError) -> SwapError {
        error!(policy = name, error = %error, "policy refused; the one before it goes on");
        self.counts.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.history().refused(name, error, now_us());
        SwapError::Refused(error.to_string())
    }

    fn smoke(&self, config: &Config) -> Vec<(Call, View)> {
        smoke_calls(config, &self.control.routes().published().view)
    }

    /// What may be named over the admin API: the key opens the balancer, not the disk.
    fn allowed(&self, name: &str) -> Result<PolicySource, SwapError> {
        if let Some(policy) = shipped(name) {
            return Ok(PolicySource::Shipped(policy.name.to_string()));
        }
        let config = self.config.load();
        let folder = match &config.policy.source {
            PolicySource::File(path) => path.parent().map(Path::to_path_buf),
            PolicySource::Shipped(_) => None,
        };
        let Some(folder) = folder else {
            return Err(SwapError::NotAllowed(format!(
                "no shipped policy is named {name:?}, and files can only be named when policy.file is one"
            )));
        };
        let given = Path::new(name);
        let plain = given.components().all(|part| matches!(part, Component::Normal(_)));
        let inside = if given.is_absolute() { given.to_path_buf() } else { folder.join(given) };
        let real = |path: &Path| std::fs::canonicalize(path).ok();
        let contained = real(&folder).zip(real(&inside)).is_some_and(|(folder, file)| file.starts_with(folder));
        if (plain || given.is_absolute()) && contained && inside.is_file() {
            Ok(PolicySource::File(inside))
        } else {
            Err(SwapError::NotAllowed(format!(
                "{name:?} is neither a shipped policy nor a file inside the folder of policy.file"
            )))
        }
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(source: &PolicySource) -> Result<Source, LoadError> {
    match source {
        PolicySource::Shipped(name) => {
            let policy = shipped(name).ok_or_else(|| LoadError {
                file: name.clone(),
                line: None,
                reason: "no shipped policy of this name".into(),
            })?;
            Ok(Source::shipped(policy.name, policy.text))
        }
        PolicySource::File(path) => Source::read(path),
    }
}

/// Compiles, makes the smoke calls, and runs the tests if the gate asks for them.
fn check(
    source: Source,
    policy: &PolicyConfig,
    config: &Config,
    state: &Arc<SharedState>,
    view: &View,
) -> Result<Prepared, LoadError> {
    let environment = environment(policy, config, state);
    let smoke = smoke_calls(config, view);
    // The tests of a shipped policy passed when the binary was made.
    if policy.gate == Gate::Tests && matches!(source.origin, Origin::File(_)) {
        let gate = |source: &Source| run_tests(source, &environment);
        prepare(source, &environment, &smoke, Some(&gate))
    } else {
        prepare(source, &environment, &smoke, None)
    }
}

/// What scripts may know and use, from the configuration.
pub fn environment(policy: &PolicyConfig, config: &Config, state: &Arc<SharedState>) -> Environment {
    let distances = config.regions.clone();
    Environment {
        distances: Distances::new(move |from, to| distances.ms(from, to)),
        settings: policy.settings.clone(),
        limits: Limits { fuel: policy.fuel, budget: policy.budget, memory: policy.memory },
        state: state.clone(),
    }
}

fn smoke_calls(config: &Config, view: &View) -> Vec<(Call, View)> {
    let calls = smoke::calls(&config.region, now_us());
    let synthetic = smoke::synthetic_view(&config.region);
    let live = (!view.rows().is_empty()).then_some(view);
    calls
        .into_iter()
        .flat_map(|call| std::iter::once(&synthetic).chain(live).map(move |view| (call.clone(), view.clone())))
        .collect()
}

/// Runs a policy's tests on a thread of its own, which yields to everything else, for at most [`TEST_TIME`].
fn run_tests(source: &Source, environment: &Environment) -> Result<(), LoadError> {
    let (done, result) = std::sync::mpsc::channel();
    let (source, gate) = (source.clone(), lab::test_gate(environment, TEST_TIME));
    let file = source.file();
    let failed = |reason: String| LoadError { file: file.clone(), line: None, reason };
    let tests = std::thread::Builder::new().name("usher-tests".into()).spawn(move || {
        // A kernel that refuses costs politeness, not correctness.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        // Nobody listens any more after the time-out.
        let _ = done.send(gate(&source));
    });
    tests.map_err(|error| failed(format!("its tests could not be started: {error}")))?;
    match result.recv_timeout(TEST_TIME) {
        Ok(result) => result,
        Err(_) => Err(failed(format!("its tests did not end within {} s", TEST_TIME.as_secs()))),
    }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
