//! Live traffic on its way into a trace: what is recorded, since when, and until when. At most one file is written at a
//! time, because of the configuration or because somebody asked; beside it the last decisions may be kept in memory.

mod events;
mod place;
mod tap;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::task::AbortHandle;
use tracing::{info, warn};

pub(super) use self::events::Events;
use self::tap::{RecordTap, policy_text};
use super::Control;
use crate::config::{Config, Distances, Gate, RecordConfig};
use crate::model::metrics::MetricsText;
use crate::policy::deciding::PolicyHandle;
use crate::policy::tap::Tap;
use crate::policy::versions::timestamp;
use crate::trace::recent::Recent;
use crate::trace::record::Header;
use crate::trace::write::{Progress, Recorder, Recording, Target};

/// How long a disk may take to write the end of a trace before it is left behind.
const STOPPING: Duration = Duration::from_secs(3);
/// The longest time that a recording may be asked for.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);
/// Bytes of the last decisions that are kept in memory: about 20,000 of a large cluster, which a new version can make again
/// within the time of its gate also on a busy machine.
const RECENT: usize = 2 << 20;

/// Why a recording was not started or stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// What was asked for cannot be.
    #[error("{0}")]
    NotAllowed(String),
    /// There is one, or there is none.
    #[error("{0}")]
    Conflict(String),
    /// The disk or the machine does not give what is needed.
    #[error("{0}")]
    Unable(String),
}

/// What is recorded of this balancer.
pub struct Recordings {
    handle: Arc<PolicyHandle>,
    control: Control,
    config: Arc<ArcSwap<Config>>,
    balancer: Arc<str>,
    /// One start or stop at a time. Never taken within `state`.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// The one that is being ended, until its counts are among the totals.
    ending: Option<Recorder>,
    last: Option<Ended>,
    recent: Option<Arc<Recent>>,
    tap: Option<Arc<dyn Tap>>,
    /// What was last made of the configuration.
    applied: Option<(RecordConfig, Distances)>,
    /// Of the recordings that have ended.
    totals: Progress,
    started: u64,
    closed: bool,
}

struct Running {
    recording: Recording,
    number: u64,
    by: By,
    target: Target,
    started_us: u64,
    ends_us: Option<u64>,
    timer: Option<AbortHandle>,
}

struct Ended {
    progress: Progress,
    by: By,
    started_us: u64,
    ended_us: u64,
}

/// On whose account something is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Config,
    Admin,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Admin => "admin",
        }
    }
}

impl Recordings {
    /// Nothing is recorded until [`Self::configure`] or [`Self::start`].
    pub fn new(
        handle: Arc<PolicyHandle>,
        control: Control,
        config: Arc<ArcSwap<Config>>,
        balancer: Arc<str>,
    ) -> Arc<Self> {
        let (changing, state) = (tokio::sync::Mutex::default(), Mutex::default());
        Arc::new(Self { handle, control, config, balancer, changing, state })
    }

    /// Takes up the configuration in force. What it names is recorded from here on, even if the disk refuses at first;
    /// what somebody asked for goes on, and so does what was stopped by hand while `[record]` stays as it is.
    pub async fn configure(self: &Arc<Self>) {
        let _one = self.changing.lock().await;
        let config = self.config.load_full();
        if let Err(error) = self.keep_recent(config.policy.gate == Gate::Replay) {
            warn!(%error, "the last decisions are not kept, and the gate finds none: no thread can be started");
        }
        let wanted = config.record.path.clone().map(|path| target(&config.record, path));
        let (outdated, begins) = {
            let mut state = self.state();
            let old = state.applied.replace((config.record.clone(), config.regions.clone()));
            let changed = old.as_ref().is_none_or(|(record, _)| *record != config.record);
            if old.is_some_and(|(_, regions)| regions != config.regions) {
                state.recorders().for_each(|recorder| recorder.distances(config.regions.clone()));
            }
            if changed {
                self.tap_again(&mut state);
            }
            let by_config = state.running.as_ref().filter(|running| running.by == By::Config);
            let outdated = by_config.is_some_and(|running| wanted.as_ref() != Some(&running.target));
            if changed && wanted.is_some() && state.running.as_ref().is_some_and(|running| running.by == By::Admin) {
                warn!(
                    "somebody else's recording is under way; record.path is taken up with the next change of [record]"
                );
            }
            (outdated, changed && !state.closed && (outdated || state.running.is_none()))
        };
        if outdated {
            self.end().await;
        }
        if let Some(target) = wanted.filter(|_| begins) {
            let path = target.path.display().to_string();
            match Recording::begin(target.clone(), self.header(&config)) {
                Ok(recording) => self.run(recording, By::Config, target, None).await,
                Err(error) => warn!(%path, %error, "nothing is recorded: no thread can be started"),
            }
        }
    }

    /// Records into a file inside the record folder, the configured file, or one that is named after the moment; until it
    /// is stopped, or for so long. Answers with [`Self::document`].
    pub async fn start(self: &Arc<Self>, path: Option<&str>, time: Option<Duration>) -> Result<Value, RecordError> {
        let _one = self.changing.lock().await;
        let config = self.config.load_full();
        if let Some(running) = &self.state().running {
            let path = running.target.path.display();
            return Err(RecordError::Conflict(format!("{path} is being recorded; stop it first (usher record stop)")));
        }
        if self.state().closed {
            return Err(RecordError::Unable("usher is stopping".into()));
        }
        if time.is_some_and(|time| time.is_zero() || time > LONGEST) {
            return Err(RecordError::NotAllowed("a recording takes more than no time and 30 days at most".into()));
        }
        let path = place::asked_for(&config.record, path, now_us()).map_err(RecordError::NotAllowed)?;
        let target = target(&config.record, path);
        let (begin, header) = (target.clone(), self.header(&config));
        let begun = tokio::task::spawn_blocking(move || Recording::start(begin, header)).await;
        let refused = |why: String| RecordError::Unable(format!("{}: {why}", target.path.display()));
        let recording =
            begun.map_err(|error| refused(error.to_string()))?.map_err(|error| refused(error.to_string()))?;
        self.run(recording, By::Admin, target, time).await;
        Ok(self.document())
    }

    /// Ends the recording and closes its file. Answers with [`Self::document`].
    pub async fn stop(&self) -> Result<Value, RecordError> {
        let _one = self.changing.lock().await;
        if self.state().running.is_none() {
            return Err(RecordError::Conflict("nothing is being recorded; start with usher record start".into()));
        }
        self.end().await;
        Ok(self.document())
    }

    /// Ends everything: usher is stopping. Takes no longer than a few seconds, however slow the disk is.
    pub async fn close(&self) {
        let _one = self.changing.lock().await;
        {
            let mut state = self.state();
            state.closed = true;
            state.recent = None;
            self.tap_again(&mut state);
        }
        self.end().await;
    }

    /// Begins or ends keeping the last decisions in memory, 2 MiB of them compressed. Beginning twice changes nothing. An
    /// error says that there is no thread to be had.
    pub fn keep_recent(&self, keep: bool) -> std::io::Result<()> {
        let config = self.config.load_full();
        let mut state = self.state();
        if keep == state.recent.is_some() || (keep && state.closed) {
            return Ok(());
        }
        state.recent = if keep { Some(Arc::new(Recent::start(RECENT, self.header(&config))?)) } else { None };
        self.tap_again(&mut state);
        Ok(())
    }

    /// The memory of the last decisions, if they are kept.
    pub fn recent(&self) -> Option<Arc<Recent>> {
        self.state().recent.clone()
    }

    /// How the recording goes, or how the last one went.
    pub fn document(&self) -> Value {
        let config = self.config.load();
        let state = self.state();
        let (progress, by, started_us, ends_us, ended_us) = match (&state.running, &state.last) {
            (Some(running), _) => {
                let progress = running.recording.recorder().progress();
                (progress, Some(running.by), Some(running.started_us), running.ends_us, None)
            }
            (None, Some(last)) => {
                (last.progress.clone(), Some(last.by), Some(last.started_us), None, Some(last.ended_us))
            }
            (None, None) => (Progress::default(), None, None, None, None),
        };
        let path = by.is_some().then_some(&progress.path);
        json!({
            "recording": state.running.is_some(),
            "path": path,
            "by": by.map(By::name),
            "started_at": started_us.map(timestamp),
            "ends_at": ends_us.map(timestamp),
            "ended_at": ended_us.map(timestamp),
            "bytes": progress.bytes,
            "events": progress.events,
            "decisions": progress.decisions,
            "dropped_events": progress.dropped_events,
            "dropped_decisions": progress.dropped_decisions,
            "rotations": progress.rotations,
            "error": progress.error,
            "folder": config.record.folder,
            "redact_rooms": config.record.redact_rooms,
            "route_sample": config.record.route_sample,
        })
    }

    /// Writes what is counted.
    pub fn write_metrics(&self, out: &mut MetricsText) {
        let state = self.state();
        let running = state.running.as_ref().map(|running| running.recording.recorder());
        let now = running.or(state.ending.as_ref()).map(Recorder::progress);
        let (active, failing) = (running.is_some(), now.as_ref().is_some_and(|now| now.error.is_some()));
        let sum = sum(&state.totals, &now.unwrap_or_default());
        out.gauge("usher_record_active", "1 while traffic is recorded.", u8::from(active));
        out.gauge("usher_record_failing", "1 while the disk does not take what is recorded.", u8::from(failing));
        out.counters(&[
            ("usher_record_bytes_total", "Bytes of traces that were written.", sum.bytes),
            ("usher_record_events_total", "Events that were recorded.", sum.events),
            ("usher_record_decisions_total", "Decisions that were recorded.", sum.decisions),
            ("usher_record_dropped_events_total", "Events that are missing in traces.", sum.dropped_events),
            ("usher_record_dropped_decisions_total", "Decisions that are missing in traces.", sum.dropped_decisions),
            ("usher_record_rotations_total", "Full files of traces.", sum.rotations),
        ]);
    }

    /// Lets a recording have what happens. The control thread has taken it up when this returns.
    async fn run(self: &Arc<Self>, recording: Recording, by: By, target: Target, time: Option<Duration>) {
        let recorder = recording.recorder().clone();
        let started_us = now_us();
        let ends_us = time.map(|time| started_us + u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2));
        let number = {
            let mut state = self.state();
            state.started += 1;
            let number = state.started;
            let timer = time.map(|time| {
                let this = Arc::downgrade(self);
                let over = async move {
                    tokio::time::sleep(time).await;
                    if let Some(this) = this.upgrade() {
                        this.over(number).await;
                    }
                };
                tokio::spawn(over).abort_handle()
            });
            state.running = Some(Running { recording, number, by, target, started_us, ends_us, timer });
            number
        };
        self.control.record(Some(recorder)).await;
        self.tap_again(&mut self.state());
        info!(number, by = by.name(), "traffic is recorded");
    }

    /// The time of a recording is over.
    async fn over(&self, number: u64) {
        let _one = self.changing.lock().await;
        {
            let mut state = self.state();
            let Some(running) = state.running.as_mut().filter(|running| running.number == number) else { return };
            // It is this very task, which must not end itself half-way.
            running.timer = None;
        }
        self.end().await;
    }

    /// Ends the recording under way, if there is one, and waits a while for the disk.
    async fn end(&self) {
        let running = {
            let mut state = self.state();
            let Some(running) = state.running.take() else { return };
            state.ending = Some(running.recording.recorder().clone());
            running
        };
        if let Some(timer) = &running.timer {
            timer.abort();
        }
        self.tap_again(&mut self.state());
        self.control.record(None).await;
        let Running { recording, by, started_us, .. } = running;
        let recorder = recording.recorder().clone();
        let stopped = tokio::task::spawn_blocking(move || recording.stop_within(STOPPING)).await;
        let progress = stopped.unwrap_or_else(|_| recorder.progress());
        info!(path = %progress.path.display(), decisions = progress.decisions, events = progress.events, "recorded");
        let mut state = self.state();
        state.ending = None;
        state.totals = sum(&state.totals, &progress);
        state.last = Some(Ended { progress, by, started_us, ended_us: now_us() });
    }

    /// Puts a tap for those who record now in the place of the one before; without any there is none.
    fn tap_again(&self, state: &mut State) {
        let to: Vec<Recorder> = state.recorders().cloned().collect();
        let sample = self.config.load().record.route_sample;
        let new = (!to.is_empty()).then(|| Arc::new(RecordTap::new(to, sample)) as Arc<dyn Tap>);
        let old = std::mem::replace(&mut state.tap, new.clone());
        if old.is_none() && new.is_none() {
            return;
        }
        self.handle.change(|now| {
            let is_old = |tap: &Arc<dyn Tap>| {
                old.as_ref().is_some_and(|old| std::ptr::addr_eq(Arc::as_ptr(old), Arc::as_ptr(tap)))
            };
            let others = now.taps().iter().filter(|tap| !is_old(tap)).cloned();
            now.with_taps(others.chain(new.clone()).collect())
        });
    }

    fn header(&self, config: &Config) -> Header {
        Header {
            balancer: self.balancer.to_string(),
            region: config.region.clone(),
            started_us: now_us(),
            distances: config.regions.clone(),
            ..Header::of(policy_text(self.handle.load().program()))
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Those who record decisions.
    fn recorders(&self) -> impl Iterator<Item = &Recorder> {
        let file = self.running.as_ref().map(|running| running.recording.recorder());
        file.into_iter().chain(self.recent.as_ref().map(|recent| recent.recorder()))
    }
}

fn target(config: &RecordConfig, path: PathBuf) -> Target {
    Target {
        path,
        rotate_bytes: config.rotate as u64,
        rotate_after: config.rotate_after,
        keep: config.keep,
        redact_rooms: config.redact_rooms,
    }
}

/// The counts of both.
fn sum(one: &Progress, other: &Progress) -> Progress {
    Progress {
        path: PathBuf::new(),
        bytes: one.bytes + other.bytes,
        events: one.events + other.events,
        decisions: one.decisions + other.decisions,
        dropped_events: one.dropped_events + other.dropped_events,
        dropped_decisions: one.dropped_decisions + other.dropped_decisions,
        rotations: one.rotations + other.rotations,
        error: None,
    }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
