//! Claims of rooms in a Redis that all balancers share, so that two of them that get the first join of one room in the
//! same instant send it to one Monolith, whatever their policies choose.
//!
//! The control thread puts what it wants into a bounded queue and never waits. One task sends it, many commands with one
//! round trip. The first failure closes the road for everybody at once: from then on the control thread is told that
//! there are no claims, without asking, until a connection that is tried in the background works again.

mod health;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use self::health::Health;
use self::store::{Batch, Words};
use crate::config::{ClaimsConfig, Secret};
use crate::model::claims::{ClaimAnswer, ClaimCommand, ClaimOutcome, RoomLoad};
use crate::model::{MonolithId, RoomKey};

/// Commands that may wait for the store. A claim beyond them is answered at once: there is none.
const QUEUE: usize = 4096;
/// Commands that share one round trip.
const BATCH: usize = 256;
/// Between two signs of life of a store that nobody asks anything.
const IDLE: Duration = Duration::from_secs(1);
/// The pause before a failed store is tried again, at first and at most.
const PROBE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The way to the store, for the control thread.
#[derive(Clone)]
pub struct Claims {
    queue: mpsc::Sender<ClaimCommand>,
    health: Arc<Health>,
}

/// The other end of [`Claims`].
pub struct Inbox {
    queue: mpsc::Receiver<ClaimCommand>,
    health: Arc<Health>,
}

#[cfg(test)]
impl Inbox {
    /// What is asked, and what is to be said of how that goes: for a store that is simulated.
    pub(crate) fn into_parts(self) -> (mpsc::Receiver<ClaimCommand>, Arc<Health>) {
        (self.queue, self.health)
    }
}

/// Takes an answer to where it is wanted. It must not wait.
pub type Answer = Box<dyn Fn(RoomKey, ClaimAnswer) + Send + Sync>;

/// A queue with nobody at its other end yet.
pub fn queue() -> (Claims, Inbox) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let health = Arc::new(Health::default());
    (Claims { queue: sender, health: health.clone() }, Inbox { queue: receiver, health })
}

impl Claims {
    /// Hands a command on. Returns the answer to a claim where it is known at once, which is when there are none.
    pub fn send(&self, command: ClaimCommand) -> Option<(RoomKey, ClaimAnswer)> {
        let refused = if self.health.is_up() { self.queue.try_send(command).err()?.into_inner() } else { command };
        self.health.dropped.fetch_add(1, Relaxed);
        refuse(refused)
    }

    /// How the store is doing.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }
}

/// The answer to a command that cannot be sent, if one is waited for.
fn refuse(command: ClaimCommand) -> Option<(RoomKey, ClaimAnswer)> {
    match command {
        ClaimCommand::Ask { room, number, monolith, .. } => {
            Some((room, ClaimAnswer { number, monolith, outcome: ClaimOutcome::Unavailable }))
        }
        // The claim ends by itself, or is renewed the next time.
        ClaimCommand::Renew { .. } | ClaimCommand::Release { .. } => None,
    }
}

/// Starts the task that talks to the store. `token` tells this process from all others.
pub fn spawn(inbox: Inbox, token: String, settings: watch::Receiver<ClaimsConfig>, answer: Answer) -> JoinHandle<()> {
    let Inbox { queue, health } = inbox;
    let task = Task { queue, health, token, settings, answer, renewals: BTreeMap::new() };
    tokio::spawn(task.run())
}

struct Task {
    queue: mpsc::Receiver<ClaimCommand>,
    health: Arc<Health>,
    token: String,
    settings: watch::Receiver<ClaimsConfig>,
    answer: Answer,
    /// What is still to be renewed: the latest list, less what was released since.
    renewals: BTreeMap<RoomKey, RoomLoad>,
}

/// Why a wait or a connection is over.
enum Over {
    /// The settings have changed.
    Changed,
    /// Nobody asks any more, or changes settings.
    Ended,
    /// The store does not answer as it should.
    Failed(String),
    /// It is time to try again.
    Due,
}

impl Task {
    async fn run(mut self) {
        loop {
            let settings = self.settings.borrow_and_update().clone();
            let over = match &settings.url {
                Some(url) => self.with_store(url, &settings).await,
                None => {
                    self.health.off();
                    self.rest(None).await
                }
            };
            match over {
                Over::Changed => {}
                Over::Ended | Over::Failed(_) | Over::Due => return,
            }
        }
    }

    /// Connects again and again, until the settings change or nobody asks any more.
    async fn with_store(&mut self, url: &Secret, settings: &ClaimsConfig) -> Over {
        self.health.connecting();
        let address = store::address(url);
        let words = Words { token: self.token.clone(), prefix: settings.prefix.clone(), lease: settings.lease };
        let mut pause = PROBE.0;
        loop {
            let over = match store::connect(url, settings.timeout).await {
                Ok(connection) => {
                    self.health.works(&address);
                    pause = PROBE.0;
                    self.serve(connection, &words, settings.timeout).await
                }
                Err(error) => Over::Failed(store::reason(&error, settings.timeout)),
            };
            match over {
                Over::Failed(why) => self.health.fails(&address, why),
                Over::Due => {}
                Over::Changed | Over::Ended => return over,
            }
            match self.rest(Some(pause)).await {
                Over::Due | Over::Failed(_) => pause = (pause * 2).min(PROBE.1),
                over @ (Over::Changed | Over::Ended) => return over,
            }
        }
    }

    /// Waits without a store. What was sent to it in the last moment is answered.
    async fn rest(&mut self, pause: Option<Duration>) -> Over {
        self.renewals.clear();
        let until = tokio::time::Instant::now() + pause.unwrap_or_default();
        loop {
            tokio::select! {
                changed = self.settings.changed() => return if changed.is_ok() { Over::Changed } else { Over::Ended },
                command = self.queue.recv() => match command {
                    Some(command) => self.say(refuse(command)),
                    None => return Over::Ended,
                },
                () = tokio::time::sleep_until(until), if pause.is_some() => return Over::Due,
            }
        }
    }

    async fn serve(&mut self, mut connection: MultiplexedConnection, words: &Words, timeout: Duration) -> Over {
        let mut commands = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                changed = self.settings.changed() => return if changed.is_ok() { Over::Changed } else { Over::Ended },
                received = self.queue.recv_many(&mut commands, BATCH) => if received == 0 { return Over::Ended },
                () = std::future::ready(()), if !self.renewals.is_empty() => {}
                () = tokio::time::sleep(IDLE) => {}
            }
            let mut batch = Batch::new(words);
            let asked = self.fill(&mut batch, commands.drain(..));
            let began = Instant::now();
            let failed = match tokio::time::timeout(timeout, batch.send(&mut connection)).await {
                Ok(Ok(values)) => {
                    self.health.answered(began.elapsed());
                    for ((room, number, monolith), value) in asked.into_iter().zip(&values) {
                        let outcome = store::outcome(value);
                        (self.answer)(room, ClaimAnswer { number, monolith, outcome });
                    }
                    continue;
                }
                Ok(Err(error)) => store::reason(&error, timeout),
                Err(_) => format!("no answer within {timeout:?}"),
            };
            // Nobody else is to wait for it from here on.
            self.health.closes();
            for (room, number, monolith) in asked {
                (self.answer)(room, ClaimAnswer { number, monolith, outcome: ClaimOutcome::Unavailable });
            }
            return Over::Failed(failed);
        }
    }

    /// Writes commands into a batch, those whose answers are waited for first, and some of what is to be renewed.
    fn fill(
        &mut self,
        batch: &mut Batch<'_>,
        commands: impl Iterator<Item = ClaimCommand>,
    ) -> Vec<(RoomKey, u64, MonolithId)> {
        let (mut asked, mut released) = (Vec::new(), Vec::new());
        for command in commands {
            match command {
                ClaimCommand::Ask { room, number, monolith, instead_of } => {
                    self.renewals.remove(&room);
                    // Our own claims do not bar us, so it does not matter that a release may come after this.
                    released.retain(|(other, _)| *other != room);
                    let load = RoomLoad { monolith: monolith.clone(), epoch: None };
                    batch.claim(&room, &load, instead_of.as_deref());
                    asked.push((room, number, monolith));
                }
                ClaimCommand::Release { room, load } => {
                    self.renewals.remove(&room);
                    released.push((room, load));
                }
                ClaimCommand::Renew { rooms } => self.renewals.extend(rooms),
            }
        }
        for (room, load) in &released {
            batch.release(room, load);
        }
        for _ in 0..BATCH {
            let Some((room, load)) = self.renewals.pop_first() else { break };
            batch.claim(&room, &load, None);
        }
        if asked.is_empty() && released.is_empty() {
            batch.ping();
        }
        asked
    }

    fn say(&self, answer: Option<(RoomKey, ClaimAnswer)>) {
        if let Some((room, answer)) = answer {
            (self.answer)(room, answer);
        }
    }
}
