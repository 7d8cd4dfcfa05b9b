//! One task per endpoint: dials for as long as discovery lists it, and never gives up before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::dial::{Linked, dial, label};
use super::session::{End, Session};
use super::{LinkContext, Report, stats};
use crate::discovery::{Endpoint, EndpointSet};
use crate::model::LinkId;
use crate::model::event::Event;

/// The first wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait while an endpoint has been linked lately: a Monolith restarts in seconds.
const SHORT_CEILING: Duration = Duration::from_millis(800);
/// The longest wait for an endpoint that has not been linked for long.
const LONG_CEILING: Duration = Duration::from_secs(5);
/// How often the supervisors are compared with the list although it did not change.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// What "for long" is.
const LONG: Duration = Duration::from_secs(300);

/// Keeps a supervisor for every endpoint that discovery lists.
pub fn spawn(mut endpoints: watch::Receiver<EndpointSet>, context: LinkContext) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut supervisors: HashMap<Endpoint, (watch::Sender<bool>, JoinHandle<()>)> = HashMap::new();
        loop {
            // An endpoint that is listed again just as its supervisor ends needs another: hence the second look.
            match tokio::time::timeout(SECOND_LOOK, endpoints.changed()).await {
                Ok(Ok(())) => {
                    let names = endpoints.borrow_and_update().iter().map(label).collect();
                    if context.reports.send(Report::Event(Event::Discovered { endpoints: names })).await.is_err() {
                        return;
                    }
                }
                Ok(Err(_)) => break,
                Err(_) => {}
            }
            let listed = endpoints.borrow().clone();
            supervisors.retain(|endpoint, (keep, task)| {
                keep.send_if_modified(|kept| {
                    let keep = listed.contains(endpoint);
                    std::mem::replace(kept, keep) != keep
                });
                !task.is_finished()
            });
            for endpoint in listed {
                supervisors.entry(endpoint).or_insert_with_key(|endpoint| {
                    let (keep, kept) = watch::channel(true);
                    (keep, tokio::spawn(supervise(endpoint.clone(), kept, context.clone())))
                });
            }
        }
        // Discovery ended with usher: the links end by their own commands.
        for (_, (_, task)) in supervisors {
            task.abort();
        }
    })
}

/// Ends when discovery no longer lists the endpoint and nothing is linked to it.
async fn supervise(endpoint: Endpoint, mut listed: watch::Receiver<bool>, context: LinkContext) {
    let name = label(&endpoint);
    let mut wait = FIRST_WAIT;
    let mut last_success = Instant::now();
    let mut failures = 0u64;
    while *listed.borrow_and_update() {
        let settings = context.settings.borrow().clone();
        let link = LinkId(context.numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let dialled = tokio::select! {
            dialled = dial(&endpoint, &settings) => dialled,
            _ = listed.changed() => continue,
        };
        match dialled {
            Ok(Linked { stream, init, http }) => {
                let monolith = init.id.clone();
                let (session, commands) = Session::new(link, init, &settings, context.clone());
                let end = session.run(commands, stream, http, name.clone(), &mut listed).await;
                match end {
                    End::Refused => {
                        debug!(endpoint = %name, %monolith, "another endpoint leads to this monolith; backing off");
                    }
                    End::Stopped => return,
                    End::Lost(why) => {
                        stats::count(&context.counters.lost);
                        warn!(endpoint = %name, %monolith, %link, why, "link lost");
                        (wait, last_success, failures) = (FIRST_WAIT, Instant::now(), 0);
                    }
                    End::Drained => {
                        info!(endpoint = %name, %monolith, %link, "link drained and closed");
                        (wait, last_success, failures) = (FIRST_WAIT, Instant::now(), 0);
                        continue;
                    }
                }
            }
            Err(error) => {
                stats::count(&context.counters.dial_failures);
                failures += 1;
                // The first failure and then every hundredth: a Monolith that is away for an hour must not fill a disk.
                if failures == 1 || failures.is_multiple_of(100) {
                    warn!(endpoint = %name, attempts = failures, %error, "cannot link; trying again");
                } else {
                    debug!(endpoint = %name, attempts = failures, %error, "cannot link; trying again");
                }
                let failed = Event::DialFailed { endpoint: Arc::clone(&name) };
                if context.reports.send(Report::Event(failed)).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(wait)) => {}
            _ = listed.changed() => {}
        }
        let ceiling = if last_success.elapsed() < LONG { SHORT_CEILING } else { LONG_CEILING };
        wait = (wait * 2).min(ceiling);
    }
    info!(endpoint = %name, "no longer listed; dialling ends");
}

/// Half to one and a half of a wait, so that balancers which lost a Monolith together do not return together. The
/// result never exceeds the ceiling of its time.
fn jittered(wait: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    let factor = 0.5 + f64::from(random) / f64::from(u32::MAX);
    wait.mul_f64(factor).min(if wait > SHORT_CEILING { LONG_CEILING } else { SHORT_CEILING })
}
