//! Around any policy: counts calls and faults, and a breaker that sets aside a policy which keeps hitting its limits.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::Policy;
use crate::model::policy::{Answer, Call, Fault, FaultKind, Hook, View};

/// Verdicts of one hook in a row that open the breaker.
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
    /// Verdicts in a row, by hook: a hook that works says nothing about another that does not.
    verdicts: [AtomicU32; Hook::ALL.len()],
    state: AtomicU8,
    open_until_us: AtomicU64,
    /// What opened the breaker last, for the log.
    opened_by: Mutex<String>,
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
    fn admits(&self, name: &str, now_us: u64) -> bool {
        match self.breaker() {
            BreakerState::Closed => true,
            // Someone else has the one trial.
            BreakerState::HalfOpen => false,
            BreakerState::Open => {
                let on_trial = now_us >= self.open_until_us.load(Relaxed)
                    && self.state.compare_exchange(1, 2, Relaxed, Relaxed).is_ok();
                if on_trial {
                    tracing::warn!(policy = name, fault = %self.opened_by(), "the policy's breaker lets one call try");
                }
                on_trial
            }
        }
    }

    /// Takes note of how a call ended. Faults that are no verdicts neither count nor begin the count again, but a
    /// trial that ends with one has kept within the limits, so it closes the breaker.
    fn judge(&self, name: &str, call: &Call, answer: Result<(), &Fault>) {
        let verdicts = &self.verdicts[call.hook as usize];
        let fault = match answer {
            Err(fault) if is_verdict(fault.kind) => fault,
            other => {
                // The common case reads only: workers share these lines.
                if other.is_ok() && verdicts.load(Relaxed) != 0 {
                    verdicts.store(0, Relaxed);
                }
                if self.state.load(Relaxed) == 2 && self.state.compare_exchange(2, 0, Relaxed, Relaxed).is_ok() {
                    tracing::warn!(policy = name, fault = %self.opened_by(), "the policy's breaker closed: it decides again");
                }
                return;
            }
        };
        let failed_trial = self.state.load(Relaxed) == 2;
        // A trial of another hook closes the breaker, but leaves this count: its next verdict opens it at once.
        let in_a_row = verdicts.fetch_add(1, Relaxed).saturating_add(1);
        if in_a_row >= VERDICTS || failed_trial {
            self.opened_by.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&fault.message);
            self.open_until_us.store(call.now_us.saturating_add(OPEN_FOR_US), Relaxed);
            if self.state.swap(1, Relaxed) != 1 {
                tracing::warn!(
                    policy = name, hook = %call.hook, in_a_row, fault = %fault.message,
                    "the policy's breaker opened: the built-in default decides for {} s", OPEN_FOR_US / 1_000_000
                );
            }
        }
    }

    fn opened_by(&self) -> String {
        self.opened_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether a fault says that the policy itself hit a limit, whatever the machine.
fn is_verdict(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Fuel | FaultKind::Memory | FaultKind::NativeCap)
}

/// A policy behind counters and breaker. While the breaker is open it answers [`Answer::Default`].
pub struct Guarded<P> {
    name: Arc<str>,
    policy: P,
    stats: Arc<PolicyStats>,
    bypassed: bool,
}

impl<P: Policy> Guarded<P> {
    /// Guards a policy, which the log calls `name`; VMs of one version share one `stats`.
    pub fn new(name: &str, policy: P, stats: Arc<PolicyStats>) -> Self {
        Self { name: name.into(), policy, stats, bypassed: false }
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<PolicyStats> {
        &self.stats
    }

    /// Whether the open breaker kept the last call from the policy.
    pub fn bypassed(&self) -> bool {
        self.bypassed
    }

    /// The policy itself.
    pub fn inner(&mut self) -> &mut P {
        &mut self.policy
    }
}

impl<P: Policy> Policy for Guarded<P> {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        // A hook that is not there proves nothing, and must not use up the one trial.
        if !self.policy.has(call.hook) {
            self.bypassed = false;
            return Ok(Answer::Default);
        }
        let stats = &self.stats;
        self.bypassed = !stats.admits(&self.name, call.now_us);
        if self.bypassed {
            stats.bypassed.fetch_add(1, Relaxed);
            return Ok(Answer::Default);
        }
        stats.calls[call.hook as usize].fetch_add(1, Relaxed);
        let answer = self.policy.call(call, view);
        if let Err(fault) = &answer {
            stats.count_fault(call.hook, fault.kind);
        }
        stats.judge(&self.name, call, answer.as_ref().map(|_| ()));
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

        fn has(&self, hook: Hook) -> bool {
            hook != Hook::Rebalance
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
        let mut policy = Guarded::new("test", Faulty(Some(FaultKind::Fuel)), Arc::default());
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
        let mut policy = Guarded::new("test", Faulty(None), Arc::default());
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
            let mut policy = Guarded::new("test", Faulty(Some(kind)), Arc::default());
            for _ in 0..50 {
                assert!(ask(&mut policy, 1).is_err());
            }
            assert_eq!(policy.stats().breaker(), BreakerState::Closed);
        }
    }

    #[test]
    fn each_hook_has_a_count_of_its_own() {
        let mut policy = Guarded::new("test", Faulty(None), Arc::default());
        let place = |seconds| Call { hook: Hook::Place, ..at(seconds) };
        let fails = |policy: &mut Guarded<Faulty>, seconds| {
            policy.inner().0 = Some(FaultKind::Fuel);
            assert!(policy.call(&place(seconds), &View::default()).is_err());
        };
        for _ in 0..5 {
            policy.inner().0 = None;
            assert_eq!(ask(&mut policy, 1), Ok(Answer::Admit));
            fails(&mut policy, 1);
        }
        assert_eq!(policy.stats().breaker(), BreakerState::Open);
        // The trial of the healthy hook closes it; the first fault of the other opens it again.
        policy.inner().0 = None;
        assert_eq!(ask(&mut policy, 11), Ok(Answer::Admit));
        assert_eq!(policy.stats().breaker(), BreakerState::Closed);
        fails(&mut policy, 12);
        assert_eq!(policy.stats().breaker(), BreakerState::Open);
    }

    #[test]
    fn plain_errors_between_verdicts_neither_count_nor_reset() {
        let mut policy = Guarded::new("test", Faulty(None), Arc::default());
        for _ in 0..5 {
            assert_eq!(policy.stats().breaker(), BreakerState::Closed);
            for kind in [FaultKind::Error, FaultKind::BadAnswer, FaultKind::CpuTime, FaultKind::Fuel] {
                policy.inner().0 = Some(kind);
                assert!(ask(&mut policy, 1).is_err());
            }
        }
        assert_eq!(policy.stats().breaker(), BreakerState::Open);
        // A trial that ends with a plain error leaves no breaker that waits for ever.
        policy.inner().0 = Some(FaultKind::Error);
        assert!(ask(&mut policy, 11).is_err());
        assert_eq!(policy.stats().breaker(), BreakerState::Closed);
    }

    #[test]
    fn a_hook_that_is_not_there_neither_resets_the_count_nor_takes_the_trial() {
        let mut policy = Guarded::new("test", Faulty(Some(FaultKind::Fuel)), Arc::default());
        let absent = |seconds| Call { hook: Hook::Rebalance, ..at(seconds) };
        for _ in 0..5 {
            assert_eq!(policy.call(&absent(1), &View::default()), Ok(Answer::Default));
            assert!(ask(&mut policy, 1).is_err());
        }
        assert_eq!(policy.stats().breaker(), BreakerState::Open);
        assert_eq!(policy.call(&absent(11), &View::default()), Ok(Answer::Default));
        assert_eq!(policy.stats().breaker(), BreakerState::Open, "the trial is still to come");
        assert_eq!((policy.stats().calls(Hook::Rebalance), policy.stats().bypassed()), (0, 0));
    }
}
