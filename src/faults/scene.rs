//! Where a run takes place: its balancers, Monoliths and the lines between them, what faults do to them, and how that is
//! undone.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use super::balancer::{Balancer, Surroundings};
use super::client::Guests;
use super::dice::Dice;
use super::ledger::Ledger;
use super::monolith::{Monolith, World};
use super::pipe::Line;
use super::plan::Fault;
use super::store::Store;
use crate::config::Config;
use crate::model::{MonolithId, RoomKey};
use crate::policy::shipped::Shipped;

/// After so long the kernel gives up on a connection whose other end does not answer: an hour in life.
pub(super) const GIVES_UP: Duration = Duration::from_secs(5);

/// Shared with the tasks that end what a fault began.
pub(super) struct Scene {
    pub(super) ledger: Ledger,
    pub(super) config: Arc<Config>,
    pub(super) world: World,
    pub(super) monoliths: Vec<Monolith>,
    pub(super) guests: Arc<Guests>,
    pub(super) script: Option<&'static Shipped>,
    pub(super) store: Option<Store>,
    pub(super) late_links: u64,
    pub(super) dice: Mutex<Dice>,
}

impl Scene {
    pub(super) fn balancer(&self, number: usize) -> Option<Arc<Balancer>> {
        self.guests.balancers[number].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn start_balancer(&self, number: usize) {
        let mut slot = self.guests.balancers[number].lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            let around = Surroundings {
                world: &self.world,
                monoliths: &self.monoliths,
                ledger: &self.ledger,
                config: &self.config,
                script: self.script,
                store: self.store.as_ref(),
                late_links: self.late_links,
            };
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            dice.number();
            *slot = Some(Balancer::start(&format!("b{number}"), &around, &mut dice));
        }
    }

    /// Does what a fault says, and undoes it after its time.
    pub(super) fn strike(self: &Arc<Self>, fault: Fault) {
        match fault {
            Fault::CutLink { balancer, way } => self.cut(balancer, way),
            Fault::SwallowLink { balancer, way } => {
                let Some(line) = self.line(balancer, way) else { return };
                line.swallow();
                // At last the kernel of whoever still waits gives up.
                self.later(GIVES_UP, move |_| line.cut());
            }
            Fault::CloseWay { balancer, way, lasts } => {
                self.open(balancer, way, false);
                self.cut(balancer, way);
                self.later(lasts, move |scene| scene.open(balancer, way, true));
            }
            Fault::SecondWay { balancer, lasts } => {
                let way = self.monoliths.len();
                self.open(balancer, way, true);
                self.later(lasts, move |scene| {
                    scene.open(balancer, way, false);
                    scene.cut(balancer, way);
                });
            }
            Fault::Withdraw { balancer, way, lasts } => {
                self.list(balancer, way, false);
                self.later(lasts, move |scene| scene.list(balancer, way, true));
            }
            Fault::Stall { monolith, lasts } => {
                self.monoliths[monolith].stall(true);
                self.later(lasts, move |scene| scene.monoliths[monolith].stall(false));
            }
            Fault::End { monolith, how, away } => {
                self.monoliths[monolith].end(how);
                self.later(away, move |scene| scene.monoliths[monolith].start());
            }
            Fault::Gossip { monolith } => self.monoliths[monolith].gossip(),
            Fault::TidyUp { monolith } => self.monoliths[monolith].tidy_up(),
            Fault::SwapPolicy { balancer, to } => {
                if let Some(balancer) = self.balancer(balancer) {
                    balancer.policy.store(to, Relaxed);
                }
            }
            Fault::Move { balancer, room, to } => {
                let (Some(balancer), Some(to)) = (self.balancer(balancer), self.monoliths[to].id()) else { return };
                let ledger = self.ledger.clone();
                tokio::spawn(async move {
                    let room = RoomKey::of(&format!("room-{room}"));
                    let moved = balancer.control.move_room(room, to.as_str().into()).await;
                    ledger.tell(|| format!("the move: {moved:?}"));
                });
            }
            Fault::CrashBalancer { balancer, away } => {
                let mut slot = self.guests.balancers[balancer].lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(crashed) = slot.take() {
                    crashed.crash();
                }
                self.later(away, move |scene| scene.start_balancer(balancer));
            }
            Fault::Drain { balancer, monolith, lasts } => {
                let (Some(balancer), Some(drained)) = (self.balancer(balancer), self.monoliths[monolith].id()) else {
                    return;
                };
                let set = move |balancer: &Balancer, on| balancer.ways[monolith].drained.store(on, Relaxed);
                set(&balancer, true);
                self.drain(balancer.clone(), drained.as_str().into(), true);
                self.later(lasts, move |scene| {
                    set(&balancer, false);
                    scene.drain(balancer, drained.as_str().into(), false);
                });
            }
            Fault::Outage { balancer, lasts } => {
                let ways = 0..self.monoliths.len();
                ways.clone().for_each(|way| self.open(balancer, way, false));
                ways.clone().for_each(|way| self.cut(balancer, way));
                self.later(lasts, move |scene| ways.for_each(|way| scene.open(balancer, way, true)));
            }
            Fault::SilenceStore { lasts } => {
                self.silence_store(true);
                self.later(lasts, |scene| scene.silence_store(false));
            }
            Fault::ForgetClaims => self.store.iter().for_each(Store::forget),
        }
    }

    fn silence_store(&self, silent: bool) {
        self.store.iter().for_each(|store| store.silence(silent));
    }

    fn drain(&self, balancer: Arc<Balancer>, monolith: MonolithId, on: bool) {
        let ledger = self.ledger.clone();
        tokio::spawn(async move {
            let drained = balancer.control.drain(monolith.clone(), on).await;
            ledger.tell(|| format!("drain of {monolith}, {on}: {drained:?}"));
        });
    }

    fn later(self: &Arc<Self>, after: Duration, what: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let scene = self.clone();
        tokio::spawn(async move {
            sleep(after).await;
            what(&scene);
        });
    }

    fn line(&self, balancer: usize, way: usize) -> Option<Line> {
        self.balancer(balancer)?.ways[way].line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cut(&self, balancer: usize, way: usize) {
        if let Some(line) = self.line(balancer, way) {
            line.cut();
        }
    }

    fn open(&self, balancer: usize, way: usize, open: bool) {
        if let Some(balancer) = self.balancer(balancer) {
            balancer.ways[way].open.store(u8::from(open), Relaxed);
        }
    }

    fn list(&self, balancer: usize, way: usize, listed: bool) {
        if let Some(balancer) = self.balancer(balancer) {
            balancer.ways[way].listed.send_replace(listed);
        }
    }

    /// Everything is well from here on.
    pub(super) fn heal(self: &Arc<Self>) {
        self.silence_store(false);
        for monolith in &self.monoliths {
            monolith.start();
            monolith.stall(false);
        }
        for number in 0..self.guests.balancers.len() {
            self.start_balancer(number);
            for way in 0..self.monoliths.len() {
                self.open(number, way, true);
                self.list(number, way, true);
            }
        }
    }
}
