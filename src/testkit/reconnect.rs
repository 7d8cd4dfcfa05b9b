//! A client that comes back as the web client does: with a growing, jittered pause after every close code below 4000,
//! and never after one of 4000 or more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::TimedOut;
use super::client::{Client, Connect, RecvError};

/// How many close codes are remembered.
const CODES: usize = 1_024;

/// When a client comes back.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// What the web client's pauses are multiplied by; 1.0 is its own pace.
    pub scale: f64,
    /// Decides the jitter, so that a run can be repeated.
    pub seed: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { scale: 1.0, seed: 1 }
    }
}

impl Policy {
    /// The pause before the next attempt, after this many failed ones in a row: (1000 + 2000 x attempts) ms, times
    /// 0.5 to 1.5.
    pub fn pause(&mut self, attempts: u32) -> Duration {
        // One step of splitmix64: enough to spread clients, and the same everywhere.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
        let base = f64::from(attempts).mul_add(2.0, 1.0);
        Duration::try_from_secs_f64(base * (0.5 + share) * self.scale).unwrap_or_default()
    }

    /// Whether the web client comes back after this close code.
    pub fn comes_back(code: u16) -> bool {
        code < 4000
    }
}

/// What such a client has been through.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Whether it is connected now.
    pub connected: bool,
    /// How often it was connected.
    pub connections: u64,
    /// How often an attempt failed before there was a WebSocket.
    pub refused: u64,
    /// How many messages it got.
    pub messages: u64,
    /// How many full states it got: one for each join.
    pub syncs: u64,
    /// The last close codes, oldest first.
    pub codes: Vec<u16>,
    /// Whether it has given up for good.
    pub given_up: bool,
}

/// A client that reconnects in the background until it is told never to, or dropped.
pub struct ReconnectingClient {
    progress: Arc<watch::Sender<Progress>>,
    task: JoinHandle<()>,
}

impl Drop for ReconnectingClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ReconnectingClient {
    /// Starts to connect to a room.
    pub fn spawn(addr: SocketAddr, room: &str, token: &str, policy: Policy) -> Self {
        Self::spawn_with(Connect::room(addr, room, token), policy)
    }

    /// Starts to connect with these headers and this token.
    pub fn spawn_with(connect: Connect, policy: Policy) -> Self {
        let progress = Arc::new(watch::Sender::new(Progress::default()));
        let task = tokio::spawn(run(connect, policy, progress.clone()));
        Self { progress, task }
    }

    /// What it has been through so far.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until its progress is as the condition says.
    ///
    /// # Errors
    /// When it is not within `deadline`.
    pub async fn wait_for(
        &self,
        condition: impl FnMut(&Progress) -> bool,
        deadline: Duration,
    ) -> Result<Progress, TimedOut> {
        let mut receiver = self.progress.subscribe();
        let waited = tokio::time::timeout(deadline, receiver.wait_for(condition)).await;
        match waited {
            Ok(Ok(progress)) => Ok(progress.clone()),
            Ok(Err(_)) | Err(_) => Err(TimedOut::new(deadline, format!("{:?}", self.progress()))),
        }
    }
}

async fn run(connect: Connect, mut policy: Policy, progress: Arc<watch::Sender<Progress>>) {
    let mut attempts = 0;
    let mut attempt = connect.clone();
    loop {
        match attempt.open().await {
            Ok(client) => {
                attempts = 0;
                let code = stay(client, &progress).await;
                let back = Policy::comes_back(code);
                progress.send_modify(|progress| {
                    progress.connected = false;
                    progress.given_up = !back;
                    if progress.codes.len() == CODES {
                        progress.codes.remove(0);
                    }
                    progress.codes.push(code);
                });
                if !back {
                    return;
                }
            }
            Err(_) => progress.send_modify(|progress| progress.refused += 1),
        }
        tokio::time::sleep_until(Instant::now() + policy.pause(attempts)).await;
        attempts += 1;
        attempt = connect.clone().reconnecting();
    }
}

/// Reads until the connection ends; the close code.
async fn stay(mut client: Client, progress: &watch::Sender<Progress>) -> u16 {
    progress.send_modify(|progress| {
        progress.connected = true;
        progress.connections += 1;
    });
    loop {
        match client.recv(Duration::from_secs(3600)).await {
            Ok(text) => progress.send_modify(|progress| {
                progress.messages += 1;
                progress.syncs += u64::from(text.starts_with(r#"{"action":"sync","name""#));
            }),
            Err(RecvError::Closed(closed)) => return closed.code,
            // An hour of silence is no end.
            Err(RecvError::TimedOut(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_spread_as_in_the_web_client() {
        let mut policy = Policy { scale: 1.0, seed: 7 };
        for attempts in 0..50 {
            let base = Duration::from_millis(1000 + 2000 * u64::from(attempts));
            let pause = policy.pause(attempts);
            assert!(pause >= base / 2 && pause <= base * 3 / 2, "{attempts}: {pause:?}");
        }
        assert_ne!(policy.pause(0), policy.pause(0));
        assert_eq!(Policy { scale: 0.01, seed: 7 }.pause(3), Policy { scale: 0.01, seed: 7 }.pause(3));
        assert!(Policy::comes_back(1013) && Policy::comes_back(1006) && !Policy::comes_back(4000));
    }
}
