//! Versions on trial beside the active one: a shadow that answers and decides nothing, a canary that decides for a
//! share of the rooms, its promotion and its end.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use tracing::{error, info, warn};

use super::{Again, Policies, SwapError, now_us, slots};
use crate::config::units::write_size;
use crate::config::{Config, policy_vms};
use crate::model::metrics::MetricsText;
use crate::policy::canary::Canary;
use crate::policy::lua::LoadError;
use crate::policy::shadow::Shadow;
use crate::policy::versions::Version;

/// What can be on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trial {
    /// A version that answers every call and decides nothing.
    Shadow,
    /// A version that decides for a share of the rooms.
    Canary,
}

impl Policies {
    /// Lets a version answer every call too, in place of a shadow that there may be. It may be named as for
    /// [`Policies::switch`], and has to pass the gate `compile`.
    pub async fn shadow(&self, name: &str, by: &str) -> Result<(), SwapError> {
        let source = self.allowed(name)?;
        let _one = self.swapping.lock().await;
        let mut config = (*self.config.load_full()).clone();
        self.suffices(&config, (self.trials().0, true)).map_err(SwapError::Refused)?;
        // It decides nothing: whether its tests pass matters once it should.
        config.policy.gate = crate::config::Gate::Compile;
        let by = by.to_owned();
        let start = move |prepared: &super::Prepared| {
            Shadow::start(prepared.program(), Version::of(prepared.program(), &by, now_us()))
        };
        let shadow = self.check_aside(&source, &config, start).await?;
        info!(policy = %shadow.version().name, version = %shadow.version().version, "a shadow answers too");
        self.handle.change(|now| now.with_shadow(Some(Arc::new(shadow))));
        Ok(())
    }

    /// Lets a version decide for `share` percent of the rooms, in place of a canary that there may be. It may be named
    /// as for [`Policies::switch`], and has to pass the same gates.
    pub async fn canary(&self, name: &str, share: f64, by: &str) -> Result<(), SwapError> {
        if !(0.0..=100.0).contains(&share) {
            return Err(SwapError::NotAllowed(format!("share is a percentage from 0 to 100, not {share}")));
        }
        let source = self.allowed(name)?;
        let _one = self.swapping.lock().await;
        let config = self.config.load_full();
        self.suffices(&config, (true, self.trials().1)).map_err(SwapError::Refused)?;
        let workers = self.workers;
        let set = self.check_aside(&source, &config, move |prepared| prepared.build(slots(workers))).await?;
        let version = Version::of(set.program(), by, now_us());
        info!(policy = %version.name, version = %version.version, share, "a canary decides for a share of the rooms");
        let stopped = self.on_stop(version.name.clone());
        let canary = Canary::new(set, version, share, stopped);
        self.handle.change(|now| now.with_canary(Some(Arc::new(canary))));
        Ok(())
    }

    /// What happens when a canary has failed too often. Until it is taken out it takes no call any more.
    fn on_stop(&self, name: String) -> impl Fn(&LoadError) + Send + Sync + use<> {
        // The canary is behind the handle: with a strong reference neither would ever go.
        let handle = Arc::downgrade(&self.handle);
        let (history, counts) = (self.history.clone(), self.counts.clone());
        move |error| {
            error!(policy = %name, %error, "the canary is stopped; the active version decides for every room");
            counts.canary_stops.fetch_add(1, Relaxed);
            history.lock().unwrap_or_else(PoisonError::into_inner).refused(&name, error, now_us());
            if let Some(handle) = handle.upgrade() {
                handle.change(|now| now.with_canary(now.canary().cloned()));
            }
        }
    }

    /// Makes the canary the active version. It passed its gates when it began; what was decided since then it has to make
    /// again if the gate is `replay`.
    pub async fn promote(&self) -> Result<(), SwapError> {
        let _one = self.swapping.lock().await;
        let canary = self.handle.load().canary().cloned();
        let Some(canary) = canary else {
            return Err(SwapError::Refused("there is no canary to promote; start one, or use a policy".into()));
        };
        // The configuration may have changed since it began, and its counters are those of a part of the rooms.
        let config = self.config.load_full();
        let set = self.build_known(canary.set().program(), &config, Again::Gated).await?;
        if canary.is_stopped() {
            return Err(SwapError::Refused("the canary was stopped for its faults meanwhile".into()));
        }
        self.activate(set, &config, "promote", |now, set| now.with_active(set).with_canary(None));
        self.steered.store(true, Relaxed);
        // A canary of the very version that was active anyway leaves nothing to activate.
        self.handle.change(|now| now.with_canary(None));
        Ok(())
    }

    /// Ends a trial.
    pub async fn stop(&self, what: Trial) -> Result<(), SwapError> {
        let _one = self.swapping.lock().await;
        let (canary, shadow) = self.trials();
        let none = |what| Err(SwapError::Refused(format!("there is no {what} to stop")));
        match what {
            Trial::Shadow if !shadow => return none("shadow"),
            Trial::Canary if !canary => return none("canary"),
            Trial::Shadow => self.handle.change(|now| now.with_shadow(None)),
            Trial::Canary => self.handle.change(|now| now.with_canary(None)),
        }
        warn!(?what, "stopped by request");
        Ok(())
    }

    /// Whether there is a canary, and a shadow.
    pub(super) fn trials(&self) -> (bool, bool) {
        let now = self.handle.load();
        (now.canary().is_some(), now.shadow().is_some())
    }

    /// Whether the memory for all VMs suffices with a canary, a shadow; an error is the reason why not.
    pub(super) fn suffices(&self, config: &Config, (canary, shadow): (bool, bool)) -> Result<(), String> {
        if !(canary || shadow) || !config.policy.total_memory_is_set {
            // The configuration was checked without them; what nobody set suffices.
            return Ok(());
        }
        let more = if canary { slots(self.workers) } else { 0 } + usize::from(shadow);
        let vms = policy_vms(self.workers) + more;
        let (memory, total) = (config.policy.memory, config.policy.total_memory);
        let need = memory.saturating_mul(vms);
        if need <= total {
            return Ok(());
        }
        let what = match (canary, shadow) {
            (true, true) => "a canary and a shadow",
            (true, false) => "a canary",
            _ => "a shadow",
        };
        Err(format!(
            "policy.total_memory is {}: with {what} there can be {vms} VMs of {}; write policy.total_memory = \"{}\" or \
             more, or a smaller policy.memory",
            write_size(total),
            write_size(memory),
            write_size(need)
        ))
    }

    pub(super) fn write_trial_metrics(&self, out: &mut MetricsText) {
        let now = self.handle.load();
        let stops = self.counts.canary_stops.load(Relaxed);
        out.counter("usher_policy_canary_stops_total", "Canaries that were stopped for their faults.", stops);
        if let Some(canary) = now.canary() {
            let (calls, faults) = canary.numbers();
            out.counter("usher_policy_canary_calls_total", "Calls that the canary decided.", calls);
            out.counter("usher_policy_canary_faults_total", "Of these, those that failed.", faults);
        }
        if let Some(shadow) = now.shadow() {
            let (calls, agreed, faults, skipped) = shadow.numbers();
            out.counter("usher_policy_shadow_calls_total", "Calls that the shadow answered too.", calls);
            out.counter("usher_policy_shadow_agreed_total", "Of these, those with the same decision.", agreed);
            out.counter("usher_policy_shadow_faults_total", "Of these, those that failed.", faults);
            out.counter("usher_policy_shadow_skipped_total", "Calls for which its queue had no room.", skipped);
        }
    }
}
