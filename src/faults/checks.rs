//! What is looked at when everything is well again: who is where, that a drained Monolith loses its rooms, and that nobody
//! is left when all have gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Run;
use super::ledger::Session;
use super::monolith::Monolith;

/// For so long a Monolith may have rooms that is drained in the calm, until they are quiet, and each in its turn; and for so
/// long after that a room may be on two Monoliths.
const EMPTIES: Duration = Duration::from_secs(8);

impl Run {
    /// A Monolith that is drained loses its rooms where others can take them, and nobody is closed because of it.
    pub(super) async fn check_drain(&mut self) {
        let ledger = &self.scene.ledger;
        let monolith = &self.scene.monoliths[self.dice.below(self.scene.monoliths.len())];
        let Some(id) = monolith.id().filter(|_| self.scene.monoliths.len() > 1) else { return };
        let balancers: Vec<_> = (0..self.plan.balancers).filter_map(|number| self.scene.balancer(number)).collect();
        let before = self.scene.guests.settled().clone();
        let rooms = monolith.sessions().len();
        ledger.tell(|| format!("{id} is drained with {rooms} members"));
        for balancer in &balancers {
            // A control thread that has ended is found at the end.
            let _ = balancer.control.drain(id.as_str().into(), true).await;
        }
        let deadline = Instant::now() + EMPTIES;
        while !monolith.sessions().is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
        for (session, room) in monolith.sessions() {
            ledger.violation(format!("session {session} in {room} is still on {id}, which is drained"));
        }
        ledger.count("drained in the calm");
        for balancer in &balancers {
            let _ = balancer.control.drain(id.as_str().into(), false).await;
        }
        // Its members may be waiting for a claim, or for a Monolith that is slow to load the room.
        let deadline = Instant::now() + EMPTIES;
        while !self.all_present(&before) && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
        sleep(Duration::from_secs(2)).await;
        self.wait_for_presence().await;
        if *self.scene.guests.settled() != before {
            ledger.violation(format!("somebody lost its connection when {id} was drained"));
        }
        self.check_presence().await;
    }

    /// Whether these sessions are all on some Monolith.
    fn all_present(&self, settled: &BTreeMap<usize, (Session, String)>) -> bool {
        let sessions = self.scene.monoliths.iter().flat_map(Monolith::sessions);
        let present: BTreeSet<Session> = sessions.map(|(session, _)| session).collect();
        settled.values().all(|(session, _)| present.contains(session))
    }

    /// Waits until everybody is where all should be: two balancers may have sent a room to two Monoliths, and ask one of
    /// them to let go when their turn comes.
    async fn wait_for_presence(&self) {
        let deadline = Instant::now() + EMPTIES;
        while !self.misplaced().is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everybody is in, once, where the others of the room are.
    pub(super) async fn check_presence(&self) {
        self.misplaced().into_iter().for_each(|wrong| self.scene.ledger.violation(wrong));
    }

    /// Whoever is not where everybody should be, in words.
    fn misplaced(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let settled = self.scene.guests.settled().clone();
        for number in (0..self.plan.clients).filter(|number| !settled.contains_key(number)) {
            wrong.push(format!("client {number} is stuck: it does not hear itself"));
        }
        let mut present: BTreeMap<u64, usize> = BTreeMap::new();
        let mut owners: BTreeMap<String, usize> = BTreeMap::new();
        for (at, monolith) in self.scene.monoliths.iter().enumerate() {
            for (session, room) in monolith.sessions() {
                *present.entry(session).or_default() += 1;
                if owners.insert(room.clone(), at).is_some_and(|other| other != at) {
                    wrong.push(format!("the members of {room} are on two Monoliths"));
                }
            }
        }
        for (number, (session, room)) in &settled {
            match present.remove(session) {
                Some(1) => {}
                Some(times) => wrong.push(format!("session {session} of client {number} is in {room} {times} times")),
                None => {
                    wrong.push(format!("session {session} of client {number} is nowhere, and believes to be in {room}"))
                }
            }
        }
        for session in present.keys() {
            wrong.push(format!("session {session} is a ghost: a Monolith keeps it, and nobody is there"));
        }
        wrong
    }

    /// Nobody is left anywhere.
    pub(super) async fn check_absence(&self) {
        let ledger = &self.scene.ledger;
        self.left_behind().await.into_iter().for_each(|wrong| ledger.violation(wrong));
        for number in 0..self.plan.balancers {
            let Some(balancer) = self.scene.balancer(number) else { continue };
            ledger.add("frames that came too late", balancer.late_frames());
            // A control thread that has ended was found above.
            let Ok(duplicates) = balancer.control.query(|cluster| cluster.counters().duplicates).await else {
                continue;
            };
            ledger.add("duplicates", duplicates);
        }
    }

    /// Whoever is still somewhere although everybody has left, in words.
    async fn left_behind(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for monolith in &self.scene.monoliths {
            let sessions = monolith.sessions();
            wrong.extend(
                sessions.iter().map(|(session, room)| format!("session {session} has left and is still in {room}")),
            );
            if monolith.ghosts() > 0 {
                wrong.push(format!("{} members of unloaded rooms were never said to have left", monolith.ghosts()));
            }
        }
        for number in 0..self.plan.balancers {
            let Some(balancer) = self.scene.balancer(number) else { continue };
            let asked = balancer.control.query(|cluster| {
                let waiting = cluster.waiting() + cluster.held() + cluster.handing_over();
                (cluster.size().1, waiting, cluster.broken_invariant())
            });
            let Ok((clients, waiting, broken)) = asked.await else {
                wrong.push("a control thread has ended".to_owned());
                continue;
            };
            if clients > 0 {
                wrong.push(format!("balancer {number} still knows {clients} clients"));
            }
            if waiting > 0 {
                wrong.push(format!("{waiting} still wait at balancer {number}"));
            }
            wrong.extend(broken.map(|broken| format!("balancer {number}: {broken}")));
        }
        wrong
    }
}
