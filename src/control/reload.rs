//! Configuration and policy files that change while clients are connected. What is broken is reported and changes
//! nothing; what is good is taken up, and no connection is touched.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::Control;
use super::policies::Policies;
use super::recording::Recordings;
use super::watch::FileWatch;
use crate::cluster::{Claiming, EjectionSettings, Rebalancing, Seamless, Settings};
use crate::config::{self, ClaimsConfig, Config, Discovery, HandoverMode, Rebalance};
use crate::discovery::{self, EndpointSet};
use crate::link::LinkSettings;
use crate::model::event::Micros;
use crate::model::metrics::MetricsText;

/// Whatever takes up a changed configuration.
pub struct Reloader {
    /// How the configuration was found, to find it again.
    pub request: config::Request,
    /// The configuration in force.
    pub config: Arc<ArcSwap<Config>>,
    /// The way to the control thread.
    pub control: Control,
    /// The policy and its versions.
    pub policies: Arc<Policies>,
    /// What is recorded.
    pub recordings: Arc<Recordings>,
    /// What links take from the configuration.
    pub link_settings: watch::Sender<Arc<LinkSettings>>,
    /// What the store of claims takes from it.
    pub claims: watch::Sender<ClaimsConfig>,
    /// What discovery lists.
    pub endpoints: watch::Sender<EndpointSet>,
    /// The discovery that runs.
    pub discovery: JoinHandle<()>,
    /// The configuration whose policy was refused: its file is watched, and may be mended.
    pub refused: Option<Arc<Config>>,
    /// What came of changes so far.
    pub counts: Arc<ReloadCounts>,
}

/// What came of changed configurations.
#[derive(Debug, Default)]
pub struct ReloadCounts {
    reloads: AtomicU64,
    refused: AtomicU64,
}

impl ReloadCounts {
    /// Writes what is counted.
    pub fn write_metrics(&self, out: &mut MetricsText) {
        let (reloads, refused) = (self.reloads.load(Relaxed), self.refused.load(Relaxed));
        out.counter("usher_config_reloads_total", "Changed configurations that were taken up.", reloads);
        out.counter("usher_config_refused_total", "Changed configurations that were refused.", refused);
    }
}

/// The texts of the policy's file and its test; none if nothing is watched.
type PolicyText = Option<Vec<Option<Vec<u8>>>>;

/// What the cluster takes from a configuration.
pub fn cluster_settings(config: &Config) -> Settings {
    Settings {
        region: config.region.clone(),
        load_timeout: micros(config.timeouts.load),
        drain: micros(config.timeouts.drain),
        place_attempts: config.limits.place_attempts,
        pending_joins: config.limits.pending_joins,
        pending_rooms: config.limits.pending_rooms,
        hold: micros(config.timeouts.hold),
        patience: micros(config.timeouts.patience(&config.limits)),
        joins_per_second: config.limits.joins_per_second,
        ejection: EjectionSettings {
            errors: config.health.eject_errors,
            after: micros(config.health.eject_after),
            flaps: config.health.eject_flaps,
            base: micros(config.health.eject_for),
            most: config.health.max_ejected_share,
        },
        rebalance: config
            .policy
            .rebalance_every
            .map(|every| Rebalancing { every: micros(every), dry: config.policy.rebalance == Rebalance::Dry }),
        seamless: (config.handover.mode == HandoverMode::Seamless)
            .then(|| Seamless { window: micros(config.handover.window), quiet: micros(config.handover.quiet) }),
        move_rate: config.handover.rate,
        weights: config.weights.clone(),
        claims: config.claims.url.is_some().then(|| Claiming {
            // For its way through the queue and back, besides.
            wait: micros(config.claims.timeout * 2),
            lease: micros(config.claims.lease),
        }),
    }
}

fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What links take from a configuration.
pub fn link_settings(config: &Config) -> LinkSettings {
    LinkSettings {
        link_token: config.link_token.clone(),
        link_message: config.limits.link_message,
        link_queue: config.limits.link_queue,
        timeouts: config.timeouts.clone(),
        heartbeat: config.heartbeat,
    }
}

impl Reloader {
    /// Watches for as long as usher runs.
    pub async fn run(mut self) {
        let mut files = FileWatch::new();
        let mut config_text = self.config_text();
        let mut policy_text = self.policy_text(&self.wanted());
        loop {
            files.watch(&watched(&self.wanted()));
            tokio::select! {
                () = files.changed() => {}
                // It never ends by itself, and without it no Monolith is ever found again.
                ended = &mut self.discovery => return error!(?ended, "discovery has ended"),
            }
            if let Some(text) = self.config_text()
                && config_text.as_ref() != Some(&text)
            {
                if let Some(text) = self.reload_config(&text).await {
                    policy_text = text;
                }
                config_text = Some(text);
            }
            let text = self.policy_text(&self.wanted());
            if text != policy_text {
                policy_text = text;
                self.reload_policy("watch").await;
            }
        }
    }

    /// The configuration that is to decide: the one in force, unless its successor's policy was refused.
    fn wanted(&self) -> Arc<Config> {
        self.refused.clone().unwrap_or_else(|| self.config.load_full())
    }

    fn config_text(&self) -> Option<Vec<u8>> {
        std::fs::read(self.config.load().source.as_ref()?).ok()
    }

    /// The texts of the policy's file and its test: either may turn a refused version into a good one. A file that is
    /// missing for a moment, as while an editor replaces it, is looked at again.
    fn policy_text(&self, config: &Config) -> PolicyText {
        Policies::watched_file(config)?;
        let files = watched(config);
        let files = if config.source.is_some() { &files[1..] } else { &files[..] };
        Some(files.iter().map(|file| std::fs::read(file).ok()).collect())
    }

    /// Takes up a changed configuration. Says which texts its policy was then made of, if the policy was looked at: they
    /// are no change that has yet to be taken up.
    async fn reload_config(&mut self, text: &[u8]) -> Option<PolicyText> {
        if text.trim_ascii().is_empty() {
            // Whoever writes it may have begun with that, and it would mean every default, without a Monolith.
            error!("the configuration file is empty now; the one before it stays in force");
            self.counts.refused.fetch_add(1, Relaxed);
            return None;
        }
        let loaded = match config::load(&self.request) {
            Ok(loaded) => loaded,
            Err(errors) => {
                error!(%errors, "the changed configuration is refused; the one before it stays in force");
                self.counts.refused.fetch_add(1, Relaxed);
                return None;
            }
        };
        for warning in &loaded.warnings {
            warn!(%warning, "configuration");
        }
        let old = self.config.load_full();
        let loaded_missing = loaded.missing_policy().cloned();
        let mut new = loaded.config;
        let needs_restart = old.reload_diff(&new);
        if !needs_restart.is_empty() {
            warn!(keys = needs_restart.join(", "), "changed keys that take effect at the next start only");
            (new.port, new.admin_listen, new.region) = (old.port, old.admin_listen, old.region.clone());
            new.limits.clients = old.limits.clients;
        }
        let missing = loaded_missing.filter(|_| new.policy.source != old.policy.source);
        if let Some(missing) = missing {
            error!(error = %missing, "the changed configuration is refused; the one before it stays in force");
            self.counts.refused.fetch_add(1, Relaxed);
            return None;
        }
        let was_refused = self.refused.take().is_some();
        if new == *old {
            return (was_refused && self.policies.is_steered()).then(|| self.policy_text(&new));
        }
        let new = Arc::new(new);
        let mut looked_at = None;
        if new.policy != old.policy || new.regions != old.regions {
            // Read before it is tried: what changes from here on is a change.
            let text = self.policy_text(&new);
            let steered = match new.policy.source == old.policy.source {
                true => self.policies.reconfigure_steered(&new, "config").await,
                false => None,
            };
            // The policy first: if it is refused, the rest of the file still counts, but the old policy stays.
            let taken = match steered {
                Some(taken) => {
                    // The file was not taken up, and an edit of it still will be; that it is looked at is no edit.
                    looked_at = (was_refused || new.policy.watch != old.policy.watch).then_some(text);
                    taken
                }
                None => {
                    looked_at = Some(text);
                    self.policies.swap(&new.policy.source, &new, "config").await
                }
            };
            if taken.is_err() {
                let kept = Config { policy: old.policy.clone(), ..(*new).clone() };
                self.refused = Some(new);
                self.take_up(&old, Arc::new(kept));
                return looked_at;
            }
        }
        self.take_up(&old, new);
        looked_at
    }

    fn take_up(&mut self, old: &Config, new: Arc<Config>) {
        self.config.store(new.clone());
        // An error means that the control thread has ended, and usher with it.
        let _ = self.control.configure(cluster_settings(&new));
        self.link_settings.send_replace(Arc::new(link_settings(&new)));
        if new.claims != old.claims {
            self.claims.send_replace(new.claims.clone());
        }
        if new.discovery != old.discovery {
            self.discovery.abort();
            self.discovery = start_discovery(new.discovery.clone(), self.endpoints.clone());
        }
        // A disk that takes its time delays no other change.
        let recordings = self.recordings.clone();
        tokio::spawn(async move { recordings.configure().await });
        self.counts.reloads.fetch_add(1, Relaxed);
        info!("configuration reloaded");
    }

    async fn reload_policy(&mut self, by: &str) {
        let config = self.wanted();
        // A refusal is logged and remembered where it is found.
        if self.policies.swap(&config.policy.source, &config, by).await.is_ok()
            && let Some(wanted) = self.refused.take()
        {
            self.config.store(wanted);
        }
    }
}

/// The files that a configuration depends on: its own, then the policy's and its test.
fn watched(config: &Config) -> Vec<PathBuf> {
    let test = Policies::watched_file(config).map(|file| {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        file.with_file_name(format!("{stem}_test.lua"))
    });
    config.source.iter().cloned().chain(Policies::watched_file(config)).chain(test).collect()
}

/// Starts looking for Monoliths.
pub fn start_discovery(discovery: Discovery, endpoints: watch::Sender<EndpointSet>) -> JoinHandle<()> {
    discovery::spawn(discovery, endpoints)
}
