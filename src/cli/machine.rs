//! What the machine allows: worker threads and file descriptors.

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// Worker threads: what the CPU quota of the control group and the affinity of the process leave.
pub(super) fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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
