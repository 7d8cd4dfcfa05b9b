//! Which room is on which Monolith, published for those who must not ask the control thread: a sharded table that is
//! never copied whole, and one view of the Monoliths.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use foldhash::fast::{FixedState, RandomState};
use tokio::time::Instant;

use crate::link::stats::LinkStats;
use crate::model::policy::View;
use crate::model::{LinkId, MonolithId, Region, RoomKey};

/// Enough that workers seldom meet on one lock.
const SHARDS: usize = 64;

/// One Monolith as HTTP sees it.
#[derive(Debug)]
pub struct Target {
    /// Its id.
    pub id: MonolithId,
    /// Its region.
    pub region: Region,
    /// Its HTTP server.
    pub http: SocketAddr,
    /// Its link.
    pub link: LinkId,
    /// What its link measures.
    pub stats: Arc<LinkStats>,
    inflight: Arc<AtomicU32>,
    latency_us: AtomicU64,
    errors_ppm: AtomicU64,
    /// Ticks since the last sample.
    quiet: AtomicU32,
    load: ArcSwapOption<Load>,
}

/// Numbers from the metrics of a Monolith.
#[derive(Debug, PartialEq)]
pub struct Load {
    /// By the names of `load.metrics`; all finite.
    pub values: BTreeMap<String, f64>,
    /// When they came.
    pub at: Instant,
}

/// How much one more sample counts in the smoothed values.
const WEIGHT: f64 = 0.1;
/// Ticks without a sample (10 s) after which errors begin to be forgotten.
const QUIET: u32 = 100;
/// What a tick leaves of them then: a half after 10 s more.
const FORGET: f64 = 0.9931;

impl Target {
    /// A Monolith that has just been linked.
    pub fn new(id: MonolithId, region: Region, http: SocketAddr, link: LinkId, stats: Arc<LinkStats>) -> Arc<Self> {
        Arc::new(Self {
            id,
            region,
            http,
            link,
            stats,
            inflight: Arc::default(),
            latency_us: AtomicU64::new(0),
            errors_ppm: AtomicU64::new(0),
            quiet: AtomicU32::new(0),
            load: ArcSwapOption::empty(),
        })
    }

    /// The count of requests in flight, for whoever sends one.
    pub fn inflight(&self) -> Arc<AtomicU32> {
        self.inflight.clone()
    }

    /// Smoothed time to the head of a response, in milliseconds.
    pub fn latency_ms(&self) -> f64 {
        self.latency_us.load(Relaxed) as f64 / 1e3
    }

    /// Smoothed share of failed requests, 0 to 1.
    pub fn errors(&self) -> f64 {
        self.errors_ppm.load(Relaxed) as f64 / 1e6
    }

    /// What was scraped from it last, if anything was.
    pub fn load(&self) -> Option<Arc<Load>> {
        self.load.load_full()
    }

    pub(super) fn set_load(&self, load: Option<Load>) {
        self.load.store(load.map(Arc::new));
    }

    /// A tenth of a second has passed. Without requests errors are forgotten: a policy that avoids a Monolith because of
    /// them would otherwise avoid it for ever.
    pub(super) fn tick(&self) {
        let errors = self.errors_ppm.load(Relaxed);
        if errors > 0 && self.quiet.fetch_add(1, Relaxed) >= QUIET {
            self.errors_ppm.store((errors as f64 * FORGET) as u64, Relaxed);
        }
    }

    /// One more response, after `latency`, or none; `failed` if it was none or says that the Monolith failed. Concurrent
    /// samples may overwrite each other: it is an average, not an account.
    pub fn sample(&self, latency: Option<Duration>, failed: bool) {
        let errors = if failed { 1e6 } else { 0.0 };
        self.quiet.store(0, Relaxed);
        smooth(&self.errors_ppm, errors, true);
        if let Some(latency) = latency {
            smooth(&self.latency_us, latency.as_micros() as f64, self.latency_us.load(Relaxed) != 0);
        }
    }
}

fn smooth(value: &AtomicU64, sample: f64, started: bool) {
    let old = value.load(Relaxed) as f64;
    let new = if started { old + (sample - old) * WEIGHT } else { sample };
    value.store(new.round() as u64, Relaxed);
}

/// The Monoliths at one moment.
#[derive(Debug, Default)]
pub struct Published {
    /// What policies see.
    pub view: View,
    /// The linked ones, by id.
    pub targets: BTreeMap<MonolithId, Arc<Target>>,
}

/// What the control thread publishes.
#[derive(Debug)]
pub struct Routes {
    shards: Box<[RwLock<Shard>]>,
    published: ArcSwap<Published>,
    linked: AtomicU32,
    serving: AtomicU32,
    open: AtomicBool,
    list_version: AtomicU64,
    hasher: FixedState,
}

type Shard = HashMap<RoomKey, Arc<Target>, RandomState>;

impl Default for Routes {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            published: ArcSwap::default(),
            linked: AtomicU32::new(0),
            serving: AtomicU32::new(0),
            open: AtomicBool::new(false),
            list_version: AtomicU64::new(0),
            hasher: FixedState::default(),
        }
    }
}

impl Routes {
    /// The Monolith of a bound room.
    pub fn find(&self, room: &RoomKey) -> Option<Arc<Target>> {
        self.shard(room).read().unwrap_or_else(PoisonError::into_inner).get(room).cloned()
    }

    /// What is known of the Monoliths.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// How many Monoliths are linked.
    pub fn linked(&self) -> usize {
        self.linked.load(Relaxed) as usize
    }

    /// Whether any Monolith is linked.
    pub fn available(&self) -> bool {
        self.linked() > 0
    }

    /// How many Monoliths take new rooms.
    pub fn serving(&self) -> u32 {
        self.serving.load(Relaxed)
    }

    /// Whether clients may be upgraded without knocking.
    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Changes whenever the list of public rooms may have.
    pub fn list_version(&self) -> u64 {
        self.list_version.load(Relaxed)
    }

    pub(super) fn bind(&self, room: RoomKey, target: Arc<Target>) {
        self.shard(&room).write().unwrap_or_else(PoisonError::into_inner).insert(room, target);
    }

    pub(super) fn unbind(&self, room: &RoomKey) {
        self.shard(room).write().unwrap_or_else(PoisonError::into_inner).remove(room);
    }

    pub(super) fn publish(&self, published: Published) {
        self.linked.store(u32::try_from(published.targets.len()).unwrap_or(u32::MAX), Relaxed);
        let serving = published.view.rows().iter().filter(|row| row.serves()).count();
        self.serving.store(u32::try_from(serving).unwrap_or(u32::MAX), Relaxed);
        self.published.store(Arc::new(published));
    }

    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Relaxed);
    }

    pub(super) fn set_list_version(&self, version: u64) {
        self.list_version.store(version, Relaxed);
    }

    fn shard(&self, room: &RoomKey) -> &RwLock<Shard> {
        use std::hash::BuildHasher;
        let hash = self.hasher.hash_one(room.as_str());
        &self.shards[hash as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_smoothed_and_forgotten_without_requests() {
        let http = SocketAddr::from(([127, 0, 0, 1], 1));
        let target = Target::new("m1".into(), "ewr".into(), http, LinkId(1), Arc::default());
        target.sample(Some(Duration::from_millis(20)), true);
        assert!((target.errors() - 0.1).abs() < 1e-6 && (target.latency_ms() - 20.0).abs() < 1e-6);
        target.sample(None, true);
        target.sample(Some(Duration::from_millis(10)), false);
        assert!((target.errors() - 0.171).abs() < 1e-6 && (target.latency_ms() - 19.0).abs() < 1e-6);
        (0..QUIET).for_each(|_| target.tick());
        assert!((target.errors() - 0.171).abs() < 1e-6);
        (0..100).for_each(|_| target.tick());
        assert!((target.errors() - 0.0855).abs() < 1e-3, "{}", target.errors());
        (0..2_000).for_each(|_| target.tick());
        assert_eq!(target.errors().to_bits(), 0f64.to_bits());
    }
}
