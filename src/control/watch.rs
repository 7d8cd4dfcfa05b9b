//! Files that may change at any moment, in any way: saved in place, renamed over, a symbolic link that is switched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Editors write in several steps: what follows so soon is one change.
const SETTLE: Duration = Duration::from_millis(50);
/// Some file systems tell nobody of changes, so every file is looked at so often in any case.
const POLL: Duration = Duration::from_secs(2);

/// Wakes whoever has to look at some files again. It may wake without reason: content decides what is a change.
pub(super) struct FileWatch {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    changes: mpsc::Receiver<()>,
}

impl FileWatch {
    pub(super) fn new() -> Self {
        // One place is enough: a change that finds it taken is covered by the wake-up that is under way.
        let (changed, changes) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = changed.try_send(());
            }
        });
        let watcher = watcher.map_err(|error| warn!(%error, "no file notifications; files are polled")).ok();
        Self { watcher, folders: BTreeSet::new(), changes }
    }

    /// Watches the folders of these files, and the folders that their links lead to: a file that is replaced is
    /// another file, but its folder stays.
    pub(super) fn watch(&mut self, files: &[PathBuf]) {
        let wanted: BTreeSet<PathBuf> = files
            .iter()
            .flat_map(|file| [Some(file.clone()), std::fs::canonicalize(file).ok()])
            .flatten()
            .filter_map(|file| file.parent().map(folder))
            .collect();
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.folders.difference(&wanted) {
            // A folder that was removed is no longer watched anyway.
            let _ = watcher.unwatch(gone);
        }
        let mut watched = BTreeSet::new();
        for path in wanted {
            if self.folders.contains(&path) || watch(watcher, &path) {
                watched.insert(path);
            }
        }
        self.folders = watched;
    }

    /// Waits until it is time to look again.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            changed = self.changes.recv() => {
                if changed.is_none() {
                    tokio::time::sleep(POLL).await;
                    return;
                }
                tokio::time::sleep(SETTLE).await;
                while self.changes.try_recv().is_ok() {}
            }
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

fn folder(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_path_buf() }
}

fn watch(watcher: &mut RecommendedWatcher, folder: &Path) -> bool {
    match watcher.watch(folder, RecursiveMode::NonRecursive) {
        Ok(()) => true,
        Err(error) => {
            debug!(folder = %folder.display(), %error, "folder cannot be watched; it is polled");
            false
        }
    }
}
