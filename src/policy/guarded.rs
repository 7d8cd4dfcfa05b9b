//! Around any policy: counts calls and faults, and a breaker that sets aside a policy which keeps hitting its limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::Policy;
use crate::model::policy::{Answer, Call, Fault, FaultKind, Hook, View};

/// Verdicts in a row that open the breaker.
const VERDICTS: u32 = 5;
/// For how long it stays open, in microseconds of the calls' clock.
const OPEN_FOR_US: u64 = 10_000_000;

/// Every kind of fault, in the order of the counters.
const KINDS: [FaultKind; 7] = [
    FaultKind::Error,
    FaultKind::Fuel,
    FaultKind::CpuTime,
    FaultKind::Memory,
    FaultKind::NativeCap,
    FaultKind::BadAnswer,
    FaultKind::NotEligible,
];

/// What the breaker does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// The policy decides.
    Closed,
    /// The built-in default decides.
    Open,
    /// The policy gets one trial.
    HalfOpen,
}

/// Counters and breaker of one version, shared by all its VMs. Written by whoever calls, read by metrics.
#[derive(Debug, Default)]
pub struct PolicyStats {
    calls: [AtomicU64; Hook::ALL.len()],
    faults: [[AtomicU64; KINDS.len()]; Hook::ALL.len()],
    bypassed: AtomicU64,
    verdicts: AtomicU32,
    state: AtomicU8,
    open_until_us: AtomicU64,
}

impl PolicyStats {
    /// Calls of a hook that reached the policy.
    pub fn calls(&self, hook: Hook) -> u64 {
        self.calls[hook as usize].load(Relaxed)
    }

    /// Faults by hook and kind, those that happened.
    pub fn faults(&self) -> impl Iterator<Item = (Hook, FaultKind, u64)> + '_ {
        Hook::ALL
            .into_iter()
            .flat_map(move |hook| {
                let counts = &self.faults[hook as usize];
                KINDS.into_iter().zip(counts).map(move |(kind, count)| (hook, kind, count.load(Relaxed)))
            })
            .filter(|(_, _, count)| *count > 0)
    }

    /// Calls that the open breaker kept from the policy.
    pub fn bypassed(&self) -> u64 {
        self.bypassed.load(Relaxed)
    }

    /// The breaker.
    pub fn breaker(&self) -> BreakerState {
        match self.state.load(Relaxed) {
            0 => BreakerState::Closed,
            1 => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Counts a fault that was found after the call: a named Monolith that may not be chosen.
    pub fn count_fault(&self, hook: Hook, kind: FaultKind) {
        if let Some(at) = KINDS.iter().position(|known| *known == kind) {
            self.faults[hook as usize][at].fetch_add(1, Relaxed);
        }
    }

    /// Whether the policy may be asked at this moment.
    fn admits(&self, now_us: u64) -> bool {
        match self.breaker() {
            BreakerState::Closed => true,
            // Someone else has the one trial.
            BreakerState::HalfOpen => false,
            BreakerState::Open => {
                now_us >= self.open_until_us.load(Relaxed)
                    && self.state.compare_exchange(1, 2, Relaxed, Relaxed).is_ok()
            }
        }
    }

    fn judge(&self, now_us: u64, verdict: bool) {
        if !verdict {
            // The common case reads only: workers share these lines.
            if self.verdicts.load(Relaxed) != 0 || self.state.load(Relaxed) == 2 {
                self.verdicts.store(0, Relaxed);
                let _ = self.state.compare_exchange(2, 0, Relaxed, Relaxed);
            }
            return;
        }
        let failed_trial = self.state.load(Relaxed) == 2;
        if self.verdicts.fetch_add(1, Relaxed) + 1 >= VERDICTS || failed_trial {
            self.open_until_us.store(now_us.saturating_add(OPEN_FOR_US), Relaxed);
            self.state.store(1, Relaxed);
        }
    }
}

/// A policy behind counters and breaker. While the breaker is open it answers [`Answer::Default`].
pub struct Guarded<P> {
    policy: P,
    stats: Arc<PolicyStats>,
}

impl<P: Policy> Guarded<P> {
    /// Guards a policy; VMs of one version share one `stats`.
    pub fn new(policy: P, stats: Arc<PolicyStats>) -> Self {
        Self { policy, stats }
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<PolicyStats> {
        &self.stats
    }

    /// The policy itself.
    pub fn inner(&mut self) -> &mut P {
        &mut self.policy
    }
}

impl<P: Policy> Policy for Guarded<P> {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        let stats = &self.stats;
        if !stats.admits(call.now_us) {
            stats.bypassed.fetch_add(1, Relaxed);
            return Ok(Answer::Default);
        }
        stats.calls[call.hook as usize].fetch_add(1, Relaxed);
        let answer = self.policy.call(call, view);
        if let Err(fault) = &answer {
            stats.count_fault(call.hook, fault.kind);
        }
        let verdict = |fault: &Fault| matches!(fault.kind, FaultKind::Fuel | FaultKind::Memory | FaultKind::NativeCap);
        stats.judge(call.now_us, answer.as_ref().is_err_and(verdict));
        answer
    }

    fn has(&self, hook: Hook) -> bool {
        self.policy.has(hook)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Faulty(Option<FaultKind>);

    impl Policy for Faulty {
        fn call(&mut self, _: &Call, _: &View) -> Result<Answer, Fault> {
            self.0.map_or(Ok(Answer::Admit), |kind| Err(Fault { kind, message: String::new() }))
        }
    }

    fn at(seconds: u64) -> Call {
        serde_json::from_value(serde_json::json!({"hook": "admit", "region": "ewr", "now_us": seconds * 1_000_000}))
            .unwrap()
    }

    fn ask(policy: &mut Guarded<Faulty>, seconds: u64) -> Result<Answer, Fault> {
        policy.call(&at(seconds), &View::default())
    }

    #[test]
    fn five_verdicts_in_a_row_open_the_breaker_for_ten_seconds_and_one_trial() {
        let mut policy = Guarded::new(Faulty(Some(FaultKind::Fuel)), Arc::default());
        for _ in 0..5 {
            assert_eq!(policy.stats().breaker(), BreakerState::Closed);
            assert!(ask(&mut policy, 100).is_err());
        }
        assert_eq!(policy.stats().breaker(), BreakerState::Open);
        assert_eq!(ask(&mut policy, 109), Ok(Answer::Default));
        assert!(ask(&mut policy, 110).is_err(), "the trial");
        assert_eq!(ask(&mut policy, 119), Ok(Answer::Default));
        policy.inner().0 = None;
        assert_eq!(ask(&mut policy, 120), Ok(Answer::Admit));
        assert_eq!(policy.stats().breaker(), BreakerState::Closed);
        assert_eq!(policy.stats().bypassed(), 2);
        assert_eq!(policy.stats().faults().collect::<Vec<_>>(), [(Hook::Admit, FaultKind::Fuel, 6)]);
        assert_eq!(policy.stats().calls(Hook::Admit), 7);
    }

    #[test]
    fn a_good_call_between_starts_the_count_again() {
        let mut policy = Guarded::new(Faulty(None), Arc::default());
        for _ in 0..4 {
            for fault in [Some(FaultKind::Memory), Some(FaultKind::NativeCap), Some(FaultKind::Fuel), None] {
                policy.inner().0 = fault;
                let _ = ask(&mut policy, 1);
            }
        }
        assert_eq!(policy.stats().breaker(), BreakerState::Closed);
    }

    #[test]
    fn cpu_time_and_errors_never_open_it() {
        for kind in [FaultKind::CpuTime, FaultKind::Error, FaultKind::BadAnswer] {
            let mut policy = Guarded::new(Faulty(Some(kind)), Arc::default());
            for _ in 0..50 {
                assert!(ask(&mut policy, 1).is_err());
            }
            assert_eq!(policy.stats().breaker(), BreakerState::Closed);
        }
    }
}
