//! The store of claims of a run, which does what the two scripts in Redis do, after a while; in some runs it falls silent
//! for a time, or forgets.
//!
//! What holds as long as it answers: whoever is sent out alone for a room goes to the Monolith that its balancer has
//! claimed the room for. While another balancer's claim holds nobody goes, before `timeouts.load` is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::dice::Dice;
use super::ledger::Ledger;
use super::monolith::Sabotage;
use crate::claims;
use crate::config::Config;
use crate::control::Control;
use crate::model::claims::{ClaimAnswer, ClaimCommand, ClaimOutcome, RoomLoad};
use crate::model::{Epoch, MonolithId, RoomKey};

/// What a question may be under way.
const SLACK: Duration = Duration::from_millis(100);
/// Whoever waits for a claim to end asks more often than this.
const AGAIN: Duration = Duration::from_millis(600);

/// The store, for all balancers of a run.
#[derive(Clone)]
pub(super) struct Store(Arc<Mutex<Kept>>);

struct Kept {
    claims: BTreeMap<RoomKey, Claim>,
    claimants: u64,
    silent: bool,
    /// Whether it has always answered, and forgotten nothing.
    sound: bool,
    dice: Dice,
    sabotage: Option<Sabotage>,
}

struct Claim {
    by: u64,
    load: RoomLoad,
    ends: Instant,
}

impl Claim {
    /// As whoever finds it is told of it.
    fn word(&self) -> Arc<str> {
        format!("{}:{:?} {}", self.by, self.load.epoch, self.load.monolith).into()
    }
}

/// One balancer, in one of its lives, as the store knows it.
pub(super) struct Claimant {
    token: u64,
    store: Store,
    ledger: Ledger,
    config: Arc<Config>,
    rooms: Mutex<BTreeMap<RoomKey, Said>>,
}

/// What a balancer has been told about a room.
#[derive(Clone, Debug)]
struct Said {
    /// When it was told that another balancer was there first: for the first time in a row, and for the last time.
    taken: Option<(Instant, Instant)>,
    /// Where it may send the room; none if it has not been told.
    monolith: Option<MonolithId>,
}

impl Store {
    pub(super) fn new(dice: Dice, sabotage: Option<Sabotage>) -> Self {
        let kept = Kept { claims: BTreeMap::new(), claimants: 0, silent: false, sound: true, dice, sabotage };
        Self(Arc::new(Mutex::new(kept)))
    }

    /// It answers nobody, or goes on.
    pub(super) fn silence(&self, silent: bool) {
        let mut kept = self.lock();
        (kept.silent, kept.sound) = (silent, kept.sound && !silent);
    }

    /// It begins anew, with nothing.
    pub(super) fn forget(&self) {
        let mut kept = self.lock();
        kept.claims.clear();
        kept.sound = false;
    }

    /// A balancer begins to use it.
    pub(super) fn claimant(&self, ledger: &Ledger, config: &Arc<Config>) -> Arc<Claimant> {
        let token = {
            let mut kept = self.lock();
            kept.claimants += 1;
            kept.claimants
        };
        let (store, ledger, config) = (self.clone(), ledger.clone(), config.clone());
        Arc::new(Claimant { token, store, ledger, config, rooms: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Claims a room or renews its claim. Returns what it is claimed for otherwise.
    fn claim(
        &mut self,
        by: u64,
        (room, load): (RoomKey, RoomLoad),
        instead_of: Option<&str>,
        lease: Duration,
    ) -> Result<(), ClaimOutcome> {
        let now = Instant::now();
        let bars = |held: &&Claim| held.by != by && held.ends > now && instead_of != Some(&*held.word());
        if let Some(held) = self.claims.get(&room).filter(bars) {
            let expires_in = u64::try_from((held.ends - now).as_micros()).unwrap_or(u64::MAX);
            return Err(ClaimOutcome::Taken { by: held.load.clone(), held: held.word(), expires_in });
        }
        self.claims.insert(room, Claim { by, load, ends: now + lease });
        Ok(())
    }
}

impl Claimant {
    /// Answers what one balancer asks, as the task does that talks to Redis.
    pub(super) async fn serve(self: Arc<Self>, inbox: claims::Inbox, control: Control) {
        let (mut queue, health) = inbox.into_parts();
        health.works("the store of a run");
        while let Some(command) = queue.recv().await {
            let pause = self.store.lock().dice.millis(1..5);
            sleep(pause).await;
            if !self.store.lock().silent {
                self.take(command, &control);
                continue;
            }
            sleep(self.config.claims.timeout).await;
            health.fails("the store of a run", "it is silent".into());
            self.refuse(command, &control);
            while self.store.lock().silent {
                while let Ok(command) = queue.try_recv() {
                    self.refuse(command, &control);
                }
                sleep(Duration::from_millis(50)).await;
            }
            health.works("the store of a run");
        }
    }

    fn take(&self, command: ClaimCommand, control: &Control) {
        let (lease, mut kept) = (self.config.claims.lease, self.store.lock());
        match command {
            ClaimCommand::Ask { room, number, monolith, instead_of } => {
                self.ledger.count(if instead_of.is_some() { "claims in place of one that was over" } else { "claims" });
                let load = RoomLoad { monolith: monolith.clone(), epoch: None };
                let claimed = kept.claim(self.token, (room.clone(), load), instead_of.as_deref(), lease);
                let deaf = kept.sabotage == Some(Sabotage::ClaimsAreIgnored);
                drop(kept);
                let outcome = match claimed {
                    Ok(()) => {
                        self.says(&room, monolith.clone());
                        ClaimOutcome::Granted
                    }
                    Err(taken) => {
                        self.ledger.count("claims that were taken");
                        self.says_taken(&room, &taken);
                        if deaf { ClaimOutcome::Granted } else { taken }
                    }
                };
                control.claimed(room, ClaimAnswer { number, monolith, outcome });
            }
            ClaimCommand::Renew { rooms } => {
                for (room, load) in rooms {
                    // Whoever renews hears nothing of it, and believes that the room is its own.
                    let _ = kept.claim(self.token, (room.clone(), load.clone()), None, lease);
                    self.says(&room, load.monolith);
                }
            }
            ClaimCommand::Release { room, load } => {
                let older = |held: Epoch| load.epoch.is_none_or(|epoch| epoch.compare(held).is_lt());
                let gone = |held: &Claim| {
                    held.by == self.token && held.load.monolith == load.monolith && !held.load.epoch.is_some_and(older)
                };
                if kept.claims.get(&room).is_some_and(gone) {
                    kept.claims.remove(&room);
                }
            }
        }
    }

    fn refuse(&self, command: ClaimCommand, control: &Control) {
        if let ClaimCommand::Ask { room, number, monolith, .. } = command {
            self.ledger.count("claims without an answer");
            self.rooms().remove(&room);
            control.claimed(room, ClaimAnswer { number, monolith, outcome: ClaimOutcome::Unavailable });
        }
    }

    fn says(&self, room: &RoomKey, monolith: MonolithId) {
        self.rooms().insert(room.clone(), Said { taken: None, monolith: Some(monolith) });
    }

    fn says_taken(&self, room: &RoomKey, taken: &ClaimOutcome) {
        let ClaimOutcome::Taken { by, .. } = taken else { return };
        let mut rooms = self.rooms();
        let (now, monolith) = (Instant::now(), Some(by.monolith.clone()));
        let in_a_row = |said: &Said| said.taken.filter(|(_, last)| now - *last < AGAIN && said.monolith == monolith);
        let since = rooms.get(room).and_then(in_a_row).map_or(now, |(since, _)| since);
        rooms.insert(room.clone(), Said { taken: Some((since, now)), monolith });
    }

    /// The balancer sends somebody out alone for a room.
    pub(super) fn goes(&self, room: &RoomKey, to: &MonolithId) {
        let kept = self.store.lock();
        if !kept.sound {
            return;
        }
        // What another balancer has claimed binds as long as that claim holds.
        let Some(held) = kept.claims.get(room).filter(|held| held.ends > Instant::now()) else { return };
        let Some(said) = self.rooms().get(room).cloned() else { return };
        let may = match said.taken {
            Some((since, _)) => held.by == self.token || since.elapsed() + SLACK >= self.config.timeouts.load,
            None => said.monolith.as_ref() == Some(to) || held.load.monolith == *to,
        };
        if may {
            return;
        }
        self.ledger.violation(format!("{room} is sent to {to}, and was claimed for {}: {said:?}", held.load.monolith));
    }

    fn rooms(&self) -> MutexGuard<'_, BTreeMap<RoomKey, Said>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(sound: bool, waits: Duration, to: &str) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (ledger, config) = (Ledger::new(), Arc::new(Config::default()));
            let store = Store::new(Dice::new(1), None);
            let (first, second) = (store.claimant(&ledger, &config), store.claimant(&ledger, &config));
            let (room, lease) = (RoomKey::of("room"), Duration::from_secs(60));
            for (claimant, monolith) in [(&first, "m1"), (&second, "m2")] {
                let load = RoomLoad { monolith: monolith.into(), epoch: None };
                match store.lock().claim(claimant.token, (room.clone(), load), None, lease) {
                    Ok(()) => claimant.says(&room, monolith.into()),
                    Err(taken) => claimant.says_taken(&room, &taken),
                }
            }
            store.silence(!sound);
            tokio::time::advance(waits).await;
            second.goes(&room, &to.into());
            ledger.close().0.len()
        })
    }

    #[test]
    fn who_was_told_that_a_room_is_claimed_waits() {
        assert_eq!(violations(true, Duration::ZERO, "m2"), 1);
        assert_eq!(violations(true, Duration::ZERO, "m1"), 1, "it would load it twice");
        for to in ["m1", "m2"] {
            assert_eq!(violations(true, Config::default().timeouts.load, to), 0, "it has waited");
        }
        assert_eq!(violations(false, Duration::ZERO, "m2"), 0, "there are no claims");
    }
}
