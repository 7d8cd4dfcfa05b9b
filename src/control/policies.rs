//! The policy in force and its versions: what may become active, how it is checked, and the swap at a call boundary.

mod gates;
mod last_good;
mod trial;

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tracing::{error, info};

use super::Control;
use crate::config::{self, Config, Gate, PolicyConfig, PolicySource};
use crate::model::metrics::MetricsText;
use crate::model::policy::{Call, Decision, Hook, View};
use crate::policy::deciding::{Current, Deciding, PolicyHandle};
use crate::policy::guarded::BreakerState;
use crate::policy::lua::{Distances, Environment, Limits, LoadError, Origin, Program, SharedState, Source};
use crate::policy::shipped::shipped;
use crate::policy::slots::PolicySet;
use crate::policy::smoke;
use crate::policy::tap::Tap;
use crate::policy::versions::{Gates, History, Prepared, ReplayGate, prepare};

pub use self::gates::Recent;
use self::gates::Replays;
use self::last_good::LastGood;
pub use self::trial::Trial;

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
    handle: Arc<PolicyHandle>,
    state: Arc<SharedState>,
    /// Why the configured version does not decide, if its last good one does instead.
    broken: Option<LoadError>,
}

/// The policy and its versions.
pub struct Policies {
    handle: Arc<PolicyHandle>,
    history: Arc<Mutex<History>>,
    /// One swap at a time; whoever comes second sees what the first has done.
    swapping: tokio::sync::Mutex<()>,
    control: Control,
    config: Arc<ArcSwap<Config>>,
    state: Arc<SharedState>,
    /// The distances that the version in force was given.
    distances: Mutex<config::Distances>,
    workers: usize,
    last_good: Arc<LastGood>,
    /// Whether the version in force was chosen over the admin API, and not by `policy.file`. Written while `swapping`.
    steered: AtomicBool,
    counts: Arc<Counts>,
    replays: Arc<Replays>,
}

/// What a version has to pass that is known already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// Nothing more: whoever returns to it has no time to lose.
    AtOnce,
    /// The gate `replay`, if the configuration asks for it: it is to decide more than before, or with other settings.
    Gated,
}

#[derive(Default)]
struct Counts {
    swaps: AtomicU64,
    refused: AtomicU64,
    canary_stops: AtomicU64,
}

impl FirstPolicy {
    /// Reads, checks and builds the configured policy. At a start there is no version to fall back to in memory: if it
    /// is broken, the last good one that was kept on disk decides, and without one it is an error.
    pub fn prepare(config: &Config, workers: usize) -> Result<Self, LoadError> {
        let state = Arc::new(SharedState::default());
        let view = View::default();
        let built = read(&config.policy.source)
            .and_then(|source| check(source, &config.policy, config, &state, &view, None))
            .and_then(|prepared| prepared.build(slots(workers)));
        let (set, broken) = match built {
            Ok(set) => (set, None),
            Err(error) => {
                let environment = environment(&config.policy, config, &state);
                let build = |source| {
                    prepare(source, &environment, &smoke_calls(config, &view), Gates::default())?.build(slots(workers))
                };
                (last_good::instead(&config.policy, &error, build)?, Some(error))
            }
        };
        let handle = Arc::new(PolicyHandle::new(Deciding::alone(set)));
        Ok(Self { handle, state, broken })
    }

    /// What decides on the control thread: the same as everywhere.
    pub fn deciding(&self) -> Current {
        Current::new(self.handle.clone())
    }
}

/// VMs of a version: one a worker, one for the control thread.
fn slots(workers: usize) -> usize {
    workers + 1
}

impl Policies {
    /// Takes over from the first policy.
    pub fn new(first: FirstPolicy, control: Control, config: Arc<ArcSwap<Config>>, workers: usize) -> Self {
        let now = config.load_full();
        let program = first.handle.load().program().clone();
        let by = if first.broken.is_some() { "last good" } else { "start" };
        let mut history = History::new(program.clone(), by, now_us(), now.policy.history);
        if let Some(error) = &first.broken {
            history.refused(&named(&now.policy.source), error, now_us());
        }
        // Nothing is linked yet, so nothing was decided either.
        let stories: Arc<dyn Tap> = control.stories().clone();
        first.handle.change(|now| now.with_taps(now.taps().iter().cloned().chain([stories.clone()]).collect()));
        let policies = Self {
            handle: first.handle,
            history: Arc::new(Mutex::new(history)),
            swapping: tokio::sync::Mutex::default(),
            control,
            distances: Mutex::new(now.regions.clone()),
            config,
            state: first.state,
            workers,
            last_good: Arc::new(LastGood::new(first.broken.is_some())),
            steered: AtomicBool::new(false),
            counts: Arc::default(),
            replays: Arc::default(),
        };
        info!(policy = %program.source().name, version = program.version(), by, "policy decides");
        policies.last_good.keep(program.source(), &now.policy);
        policies
    }

    /// Where every thread finds what decides, for those who look on.
    pub fn handle(&self) -> &Arc<PolicyHandle> {
        &self.handle
    }

    /// One decision in the VM of the calling worker.
    pub fn decide(&self, call: &Call, view: &View) -> Decision {
        self.handle.load().decide(call, view)
    }

    /// Whether anybody, a canary or a shadow included, has this hook.
    pub fn has(&self, hook: Hook) -> bool {
        self.handle.load().has(hook)
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

    /// Whether the configured policy is broken since the start, and its last good version decides.
    pub fn serves_last_good(&self) -> bool {
        self.last_good.serves()
    }

    /// The text of the version in force.
    pub fn active_source(&self) -> Source {
        self.handle.load().program().source().clone()
    }

    /// Everything that the admin API shows of the policy.
    pub fn document(&self) -> Value {
        let versions = self.history().versions();
        let now = self.handle.load();
        let mut document = json!(versions);
        if let Some(document) = document.as_object_mut() {
            document.insert("shadow".into(), now.shadow().map_or(Value::Null, |shadow| shadow.document()));
            document.insert("canary".into(), now.canary().map_or(Value::Null, |canary| canary.document()));
            document.insert("last_fault".into(), json!(now.active().last_fault()));
            document.insert("breaker".into(), self.breaker().into());
            document.insert("serves_last_good".into(), self.serves_last_good().into());
        }
        document
    }

    /// Where the gate `replay` finds the recent decisions: traces, oldest first. Only the first call counts.
    pub fn remember(&self, recent: Recent) {
        self.replays.remember(recent);
    }

    /// What the last replay of the gate `replay` found; none before the first.
    pub fn replay_report(&self) -> Option<Value> {
        self.replays.report()
    }

    /// Lets another policy decide: a shipped one by name, or a file inside the folder of the configured one.
    pub async fn switch(&self, name: &str, by: &str) -> Result<(), SwapError> {
        let source = self.allowed(name)?;
        let config = self.config.load_full();
        let _one = self.swapping.lock().await;
        self.take_up(&source, &config, by).await?;
        self.steered.store(source != config.policy.source, Relaxed);
        Ok(())
    }

    /// Lets the version before this one decide again.
    pub async fn rollback(&self, by: &str) -> Result<(), SwapError> {
        let _one = self.swapping.lock().await;
        let Some(program) = self.history().rollback_target().cloned() else {
            return Err(SwapError::Refused("there is no earlier version to return to".into()));
        };
        let config = self.config.load_full();
        let set = self.build_known(&program, &config, Again::AtOnce).await?;
        self.activate(set, &config, by, Deciding::with_active);
        self.steered.store(true, Relaxed);
        Ok(())
    }

    /// Whether the version in force was chosen over the admin API, and not by `policy.file`.
    pub fn is_steered(&self) -> bool {
        self.steered.load(Relaxed)
    }

    /// Takes up other settings, limits or distances for the version in force, if it was chosen over the admin API:
    /// nobody asked for the one of `policy.file` to come back. None if it was not.
    pub async fn reconfigure_steered(&self, config: &Config, by: &str) -> Option<Result<(), SwapError>> {
        let _one = self.swapping.lock().await;
        if !self.is_steered() {
            return None;
        }
        let program = self.handle.load().program().clone();
        let source = program.source();
        if let Err(reason) = self.suffices(config, self.trials()) {
            return Some(Err(self.refuse(&source.name, &LoadError { file: source.file(), line: None, reason })));
        }
        let built = self.build_known(&program, config, Again::Gated).await;
        Some(built.map(|set| self.activate(set, config, by, Deciding::with_active)))
    }

    /// Builds a version that passed its gates before, within this configuration. Its tests are not run again: those on
    /// the disk may be of another text by now.
    async fn build_known(&self, program: &Program, config: &Config, again: Again) -> Result<PolicySet, SwapError> {
        let (environment, smoke) = (environment(&config.policy, config, &self.state), self.smoke(config));
        let (source, workers) = (program.source().clone(), self.workers);
        let name = source.name.clone();
        let replayed = again == Again::Gated && config.policy.gate == Gate::Replay;
        let (replays, require) = (self.replays.clone(), config.policy.require.clone());
        self.aside(&name, move || {
            let replay = |program: &Program| replays.gate(program, &require);
            let replay: Option<ReplayGate<'_>> = if replayed { Some(&replay) } else { None };
            prepare(source, &environment, &smoke, Gates { tests: None, replay })?.build(slots(workers))
        })
        .await
    }

    /// Reads a version, and checks it with every gate, on a thread that may take its time; then makes something of it.
    async fn check_aside<T: Send + 'static>(
        &self,
        source: &PolicySource,
        config: &Config,
        make: impl FnOnce(&Prepared) -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, SwapError> {
        let name = named(source);
        let (source, config) = (source.clone(), config.clone());
        let (state, view) = (self.state.clone(), self.control.routes().published().view.clone());
        let replays = self.replays.clone();
        self.aside(&name, move || {
            let replay = |program: &Program| replays.gate(program, &config.policy.require);
            make(&check(read(&source)?, &config.policy, &config, &state, &view, Some(&replay))?)
        })
        .await
    }

    /// Works on a thread that may take its time. An error is the reason to refuse the version.
    async fn aside<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, SwapError> {
        let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            Err(LoadError { file: name.into(), line: None, reason: format!("checking it broke off: {error}") })
        });
        done.map_err(|error| self.refuse(name, &error))
    }

    /// Takes up a policy from the configuration or its file. Text that decides already changes nothing, unless its
    /// limits or settings did.
    pub async fn swap(&self, source: &PolicySource, config: &Config, by: &str) -> Result<(), SwapError> {
        let _one = self.swapping.lock().await;
        self.take_up(source, config, by).await?;
        self.steered.store(false, Relaxed);
        Ok(())
    }

    async fn take_up(&self, source: &PolicySource, config: &Config, by: &str) -> Result<(), SwapError> {
        self.suffices(config, self.trials())
            .map_err(|reason| self.refuse(&named(source), &LoadError { file: named(source), line: None, reason }))?;
        let workers = self.workers;
        let set = self.check_aside(source, config, move |prepared| prepared.build(slots(workers))).await?;
        self.activate(set, config, by, Deciding::with_active);
        Ok(())
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
        let now = self.handle.load();
        let stats = now.stats();
        let info = [("policy", now.program().source().name.as_str()), ("version", now.program().version())];
        out.family("usher_policy_info", "The policy that decides.", "gauge", &[(&info, 1)]);
        out.gauge("usher_policy_vms", "VMs of all versions, whatever the number of rooms.", self.state.vms());
        out.counter("usher_policy_swaps_total", "Versions that became active.", self.counts.swaps.load(Relaxed));
        out.counter("usher_policy_refused_total", "Versions that were refused.", self.counts.refused.load(Relaxed));
        let last_good = u8::from(self.serves_last_good());
        out.gauge("usher_policy_last_good_serves", "1 if the policy was broken at the start.", last_good);
        let open = u8::from(stats.breaker() != BreakerState::Closed);
        out.gauge("usher_policy_breaker_open", "1 while the built-in policy decides after repeated faults.", open);
        out.counter("usher_policy_bypassed_total", "Calls answered while the breaker was open.", stats.bypassed());
        let faults: Vec<_> = stats.faults().collect();
        let labels: Vec<[(&str, &str); 2]> =
            faults.iter().map(|(hook, kind, _)| [("hook", hook.name()), ("kind", kind.label())]).collect();
        let samples: Vec<(&[(&str, &str)], u64)> =
            faults.iter().zip(&labels).map(|((_, _, count), labels)| (labels.as_slice(), *count)).collect();
        out.family("usher_policy_faults_total", "Calls of the version in force that failed.", "counter", &samples);
        self.write_trial_metrics(out);
    }

    /// Lets a version decide. `change` says what becomes of canary and shadow.
    fn activate(
        &self,
        set: PolicySet,
        config: &Config,
        by: &str,
        change: impl FnOnce(&Deciding, Arc<PolicySet>) -> Deciding,
    ) {
        let program = set.program().clone();
        let same = {
            let active = self.handle.load();
            let (old, new) = (active.program(), &program);
            old.version() == new.version()
                && old.source().origin == new.source().origin
                && old.environment().limits == new.environment().limits
                && old.environment().settings == new.environment().settings
        };
        let old_regions = std::mem::replace(
            &mut *self.distances.lock().unwrap_or_else(PoisonError::into_inner),
            config.regions.clone(),
        );
        let was_last_good = self.last_good.replaced();
        self.last_good.keep(program.source(), &config.policy);
        if same && old_regions == config.regions && !was_last_good {
            return;
        }
        self.handle.change(|now| change(now, Arc::new(set)));
        info!(policy = %program.source().name, version = program.version(), by, "policy decides");
        self.counts.swaps.fetch_add(1, Relaxed);
        self.history().activated(program, by, now_us());
    }

    fn refuse(&self, name: &str, error: &LoadError) -> SwapError {
        error!(policy = name, error = %error, "policy refused; the one before it goes on");
        self.counts.refused.fetch_add(1, Relaxed);
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
            PolicySource::File(path) => path.parent().map(|folder| match folder.as_os_str().is_empty() {
                // A file in the working folder is named without one.
                true => PathBuf::from("."),
                false => folder.to_path_buf(),
            }),
            PolicySource::Shipped(_) => None,
        };
        let Some(folder) = folder else {
            return Err(SwapError::NotAllowed(format!(
                "no shipped policy is named {name:?}, and files can only be named when policy.file is one"
            )));
        };
        let given = Path::new(name);
        let plain = given.components().all(|part| matches!(part, Component::Normal(_)));
        // An absolute path replaces the folder.
        let inside = |name: &str| {
            let file = folder.join(name);
            let real = |path: &Path| std::fs::canonicalize(path).ok();
            let contained = real(&folder).zip(real(&file)).is_some_and(|(folder, file)| file.starts_with(folder));
            ((plain || given.is_absolute()) && contained && file.is_file()).then_some(PolicySource::File(file))
        };
        // The commands and the document name a policy without its extension.
        let short = || given.extension().is_none().then(|| inside(&format!("{name}.lua"))).flatten();
        inside(name).or_else(short).ok_or_else(|| {
            SwapError::NotAllowed(format!(
                "{name:?} is neither a shipped policy nor a file inside the folder of policy.file"
            ))
        })
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the log and failures name a policy that may not even be readable.
fn named(source: &PolicySource) -> String {
    match source {
        PolicySource::Shipped(name) => name.clone(),
        PolicySource::File(path) => path.display().to_string(),
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

/// Compiles, makes the smoke calls, and does what the gate asks for. At a start there is nothing to replay.
fn check(
    source: Source,
    policy: &PolicyConfig,
    config: &Config,
    state: &Arc<SharedState>,
    view: &View,
    replay: Option<ReplayGate<'_>>,
) -> Result<Prepared, LoadError> {
    let environment = environment(policy, config, state);
    let smoke = smoke_calls(config, view);
    let gate = |source: &Source| gates::run_tests(source, &environment);
    let mut passes = Gates::default();
    // The tests of a shipped policy passed when the binary was made.
    if policy.gate != Gate::Compile && matches!(source.origin, Origin::File(_)) {
        passes.tests = Some(&gate);
    }
    if policy.gate == Gate::Replay {
        passes.replay = replay;
    }
    prepare(source, &environment, &smoke, passes)
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

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
