//! What the machine allows: worker threads and file descriptors.

use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// Worker threads: what the CPU quota of the control group and the affinity of the process leave.
pub(super) fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many tasks a worker takes from its own queue before it looks into the shared one. A burst for thousands of
/// clients overflows the workers' queues (256 tasks), and at tokio's own pace those that overflowed would wait for
/// hundreds of milliseconds while a few rooms went round and round.
const SHARED_QUEUE_EVERY: u32 = 3;

/// The runtime that serves links and clients.
pub(super) fn runtime(workers: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .global_queue_interval(SHARED_QUEUE_EVERY)
        .event_interval(crate::front::SOCKETS_EVERY)
        .enable_all()
        .build()
}

/// For how long work aside, such as the file of a last good version, may go on when everything else has ended.
const ASIDE: Duration = Duration::from_millis(500);

/// Ends the runtime without waiting for work aside that takes its time, such as the tests of a new policy.
pub(super) fn end(runtime: tokio::runtime::Runtime) {
    runtime.shutdown_timeout(ASIDE);
}

/// Raises the soft limit of file descriptors to the hard one, and says so if that is too little for `needed` sockets.
pub(super) fn raise_file_limit(needed: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            warn!(%error, "the limit of open files stays as it is");
        }
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current
        && limit < needed as u64
    {
        warn!(limit, needed, "fewer open files are allowed than limits.clients needs: raise the hard limit");
    } else {
        info!(workers = workers(), "ready for {needed} sockets");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn work_aside_that_never_ends_keeps_nothing_from_ending() {
        let runtime = super::runtime(1).unwrap();
        let (never, wait) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || wait.recv());
        super::end(runtime);
        drop(never);
    }
}
