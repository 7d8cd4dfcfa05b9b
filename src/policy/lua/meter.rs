//! What a call has used of its limits, and whether it was stopped. The interrupt of the VM reads and writes it, so it
//! holds nothing but atomics.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::environment::Limits;
use crate::model::policy::FaultKind;

/// How many safepoints go by between two looks at the CPU clock.
const CLOCK_EVERY: u64 = 32;

/// The use of one VM's current call. The VM's owner is the only writer, so plain loads and stores do.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    fuel: AtomicU64,
    used: AtomicU64,
    budget_ns: AtomicU64,
    /// CPU time of the thread at the first look, plus one; 0 before it. Short calls never look.
    began: AtomicU64,
    fired: AtomicU8,
    /// The policy's line at which the call was first stopped; 0 if unknown.
    line: AtomicU32,
}

impl Meter {
    /// Starts a call.
    pub(crate) fn start(&self, limits: &Limits) {
        self.fuel.store(limits.fuel, Relaxed);
        self.used.store(0, Relaxed);
        self.budget_ns.store(u64::try_from(limits.budget.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.began.store(0, Relaxed);
        self.fired.store(0, Relaxed);
        self.line.store(0, Relaxed);
    }

    /// The safepoints that the call may use.
    pub(crate) fn fuel(&self) -> u64 {
        self.fuel.load(Relaxed)
    }

    /// The CPU time that the call may use.
    pub(crate) fn budget(&self) -> Duration {
        Duration::from_nanos(self.budget_ns.load(Relaxed))
    }

    /// One safepoint: what to stop the call with, if it has to stop. Once stopped, it stops at every later one.
    #[inline]
    pub(crate) fn safepoint(&self) -> Option<FaultKind> {
        let used = self.used.load(Relaxed) + 1;
        let quiet = self.fired.load(Relaxed) == 0 && used <= self.fuel.load(Relaxed);
        if quiet && !used.is_multiple_of(CLOCK_EVERY) {
            self.used.store(used, Relaxed);
            return None;
        }
        self.look()
    }

    /// A safepoint at which there may be something to stop for.
    #[cold]
    fn look(&self) -> Option<FaultKind> {
        if let Some(kind) = self.fired() {
            return Some(kind);
        }
        let used = self.used.load(Relaxed) + 1;
        self.used.store(used, Relaxed);
        if used > self.fuel.load(Relaxed) {
            return Some(self.fire(FaultKind::Fuel));
        }
        if used.is_multiple_of(CLOCK_EVERY) && self.late() {
            return Some(self.fire(FaultKind::CpuTime));
        }
        None
    }

    /// What a native call takes that no safepoint interrupts. It looks at the CPU clock each time.
    pub(crate) fn charge(&self, safepoints: u64) -> Option<FaultKind> {
        if let Some(kind) = self.fired() {
            return Some(kind);
        }
        let used = self.used.load(Relaxed).saturating_add(safepoints);
        // One more than the limit, as where single safepoints end.
        self.used.store(used.min(self.fuel.load(Relaxed).saturating_add(1)), Relaxed);
        if used > self.fuel.load(Relaxed) {
            return Some(self.fire(FaultKind::Fuel));
        }
        self.late().then(|| self.fire(FaultKind::CpuTime))
    }

    /// Stops the call for this reason.
    pub(crate) fn fire(&self, kind: FaultKind) -> FaultKind {
        self.fired.store(1 + kind as u8, Relaxed);
        kind
    }

    /// Why the call was stopped, if it was. Scripts can catch the error, but not this.
    pub(crate) fn fired(&self) -> Option<FaultKind> {
        const KINDS: [FaultKind; 4] = [FaultKind::Fuel, FaultKind::CpuTime, FaultKind::Memory, FaultKind::NativeCap];
        match self.fired.load(Relaxed) {
            0 => None,
            fired => KINDS.into_iter().find(|kind| 1 + *kind as u8 == fired),
        }
    }

    /// Remembers where the call was stopped; the first place counts.
    pub(crate) fn stopped_at(&self, line: impl FnOnce() -> Option<u32>) {
        if self.line.load(Relaxed) == 0 {
            self.line.store(line().unwrap_or(0), Relaxed);
        }
    }

    /// Where the call was stopped, if a limit stopped it.
    pub(crate) fn line(&self) -> Option<u32> {
        self.fired()?;
        Some(self.line.load(Relaxed)).filter(|line| *line > 0)
    }

    /// Safepoints so far.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn late(&self) -> bool {
        let now = thread_cpu_ns() + 1;
        match self.began.load(Relaxed) {
            0 => {
                self.began.store(now, Relaxed);
                false
            }
            began => now.saturating_sub(began) > self.budget_ns.load(Relaxed),
        }
    }
}

/// CPU time that this thread has used, in nanoseconds.
pub(super) fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn fuel_ends_exactly_and_stays_ended_until_the_next_call() {
        let meter = Meter::default();
        let limits = Limits { fuel: 5, ..Limits::default() };
        for _ in 0..2 {
            meter.start(&limits);
            for _ in 0..5 {
                assert_eq!(meter.safepoint(), None);
            }
            assert_eq!(meter.safepoint(), Some(FaultKind::Fuel));
            assert_eq!(meter.safepoint(), Some(FaultKind::Fuel));
            assert_eq!(meter.fired(), Some(FaultKind::Fuel));
        }
    }

    #[test]
    fn cpu_time_is_the_backstop() {
        let meter = Meter::default();
        meter.start(&Limits { fuel: u64::MAX, budget: Duration::from_millis(1), memory: 0 });
        assert_eq!((0..u64::MAX).find_map(|_| meter.safepoint()), Some(FaultKind::CpuTime));
    }

    #[test]
    fn a_charge_uses_fuel_and_looks_at_the_clock() {
        let meter = Meter::default();
        meter.start(&Limits { fuel: 10, ..Limits::default() });
        assert_eq!((meter.charge(10), meter.used()), (None, 10));
        assert_eq!((meter.charge(u64::MAX), meter.used()), (Some(FaultKind::Fuel), 11));
        assert_eq!(meter.charge(1), Some(FaultKind::Fuel));
        meter.start(&Limits { fuel: u64::MAX, budget: Duration::from_millis(1), memory: 0 });
        assert_eq!((0..u64::MAX).find_map(|_| meter.charge(1)), Some(FaultKind::CpuTime));
        assert!(meter.used() > 0);
    }
}
