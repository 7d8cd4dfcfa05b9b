//! The last version of a policy file that decided, kept on disk: it serves a start at which the file is broken.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{debug, error, warn};

use super::now_us;
use crate::config::{PolicyConfig, PolicySource};
use crate::policy::lua::{LoadError, MAX_SOURCE, Origin, Source};
use crate::policy::slots::PolicySet;
use crate::policy::versions::timestamp;

/// What a kept file begins with: a comment for Lua, with a [`Header`] behind it.
const MARK: &str = "--usher-last-good ";
/// More than a header ever has, in bytes.
const MAX_HEADER: u64 = 16 << 10;

/// The first line of a kept file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// The policy's name.
    name: String,
    /// The SHA-256 of everything behind this line, in hex.
    sha256: String,
    /// Where the text came from.
    source: String,
    /// When it was written: RFC 3339, UTC.
    kept_at: String,
}

/// Keeps versions, and knows whether one of them serves.
pub(super) struct LastGood {
    serves: AtomicBool,
    /// The number of the newest version to keep: an older one that is late is not written over it.
    newest: AtomicU64,
    writing: Mutex<()>,
    /// Whether the last attempt failed: a disk that cannot be written is said once.
    failing: AtomicBool,
}

impl LastGood {
    pub(super) fn new(serves: bool) -> Self {
        Self {
            serves: AtomicBool::new(serves),
            newest: AtomicU64::new(0),
            writing: Mutex::new(()),
            failing: AtomicBool::new(false),
        }
    }

    /// Whether a kept version decides because the configured one was broken at the start.
    pub(super) fn serves(&self) -> bool {
        self.serves.load(Relaxed)
    }

    /// Another version decides from now on. Says whether a kept one did until now.
    pub(super) fn replaced(&self) -> bool {
        self.serves.swap(false, Relaxed)
    }

    /// Keeps a version of a file, aside: a disk may be slow, or hang.
    pub(super) fn keep(self: &Arc<Self>, source: &Source, policy: &PolicyConfig) {
        let (Some(folder), Origin::File(_)) = (&policy.keep, &source.origin) else { return };
        let number = self.newest.fetch_add(1, Relaxed) + 1;
        let (this, folder, source) = (self.clone(), folder.clone(), source.clone());
        tokio::task::spawn_blocking(move || {
            let _one = this.writing.lock().unwrap_or_else(PoisonError::into_inner);
            if number != this.newest.load(Relaxed) {
                return;
            }
            match write(&folder, &source, now_us()) {
                Ok(()) => this.failing.store(false, Relaxed),
                Err(error) if this.failing.swap(true, Relaxed) => debug!(%error, "still not kept"),
                Err(error) => warn!(
                    folder = %folder.display(), %error,
                    "the version that decides cannot be kept for a start with a broken file; name a folder that can be \
                     written in policy.keep, or \"\" for none"
                ),
            }
        });
    }
}

/// Where a version is kept.
fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.last-good.lua"))
}

/// A path as it is found from any working folder.
fn absolute(path: &str) -> String {
    std::path::absolute(path).map_or_else(|_| path.into(), |path| path.display().to_string())
}

/// Writes a version so that at any moment there is the old file or the new one, whole.
fn write(folder: &Path, source: &Source, now_us: u64) -> std::io::Result<()> {
    let path = file(folder, &source.name);
    let header = Header {
        name: source.name.clone(),
        sha256: digest(source.text.as_bytes()),
        source: absolute(&source.file()),
        kept_at: timestamp(now_us),
    };
    if kept(&path).is_ok_and(|(there, _)| {
        there.sha256 == header.sha256 && there.name == header.name && there.source == header.source
    }) {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let temporary = folder.join(format!(".{}.{}.tmp", source.name, std::process::id()));
    // What a crash left behind under this name was never read by anybody.
    let _ = fs::remove_file(&temporary);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{MARK}{}", serde_json::to_string(&header)?)?;
        file.write_all(source.text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    })();
    if written.is_err() {
        // The error that counts is the one that is returned.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Reads a kept file, and checks it against its header.
fn kept(path: &Path) -> Result<(Header, String), String> {
    let meta = fs::metadata(path).map_err(|error| error.to_string())?;
    if !meta.is_file() || meta.len() > MAX_SOURCE + MAX_HEADER {
        return Err("it is no file that usher wrote".into());
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (first, text) = text.split_once('\n').ok_or("it ends within its first line")?;
    let header = first.strip_prefix(MARK).ok_or("it does not begin as usher writes it")?;
    let header: Header = serde_json::from_str(header).map_err(|error| format!("its first line: {error}"))?;
    if digest(text.as_bytes()) != header.sha256 {
        return Err("its text is not what its hash says".into());
    }
    Ok((header, text.into()))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The version that decides at a start instead of a broken one, built; or, without one, why usher cannot start.
pub(super) fn instead(
    policy: &PolicyConfig,
    broken: &LoadError,
    build: impl FnOnce(Source) -> Result<PolicySet, LoadError>,
) -> Result<PolicySet, LoadError> {
    let (PolicySource::File(configured), Some(folder)) = (&policy.source, &policy.keep) else {
        return Err(broken.clone());
    };
    let name = configured.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let path = file(folder, &name);
    let nothing = |why: &str| LoadError {
        reason: format!(
            "{} ({why} {}: mend the policy, or name another one in policy.file)",
            broken.reason,
            path.display()
        ),
        ..broken.clone()
    };
    if !path.exists() {
        return Err(nothing("and no good version of it is kept as"));
    }
    let built = kept(&path)
        .and_then(|(header, text)| {
            // Two policies of one name may share a folder.
            let same = header.name == name && absolute(&header.source) == absolute(&configured.display().to_string());
            match same {
                true => Ok(Source { name, text: text.into(), origin: Origin::File(configured.clone()) }),
                false => Err(format!("it holds the policy {:?} of {}", header.name, header.source)),
            }
        })
        .and_then(|source| build(source).map_err(|error| error.to_string()));
    match built {
        Ok(set) => {
            error!(
                error = %broken, kept = %path.display(), version = set.program().version(),
                "THE CONFIGURED POLICY IS BROKEN; its last good version decides until the file is mended"
            );
            Ok(set)
        }
        Err(reason) => {
            warn!(kept = %path.display(), %reason, "the kept version of the policy cannot be used and is ignored");
            Err(nothing("and its kept version cannot be used:"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::policy::lua::{Environment, Program};

    fn source(folder: &Path, text: &str) -> Source {
        Source { name: "mine".into(), text: text.into(), origin: Origin::File(folder.join("mine.lua")) }
    }

    fn policy(folder: &Path) -> PolicyConfig {
        let source = PolicySource::File(folder.join("mine.lua"));
        PolicyConfig { source, keep: Some(folder.join("kept")), ..PolicyConfig::default() }
    }

    fn broken() -> LoadError {
        LoadError { file: "mine.lua".into(), line: Some(3), reason: "no".into() }
    }

    fn start(folder: &Path) -> Result<String, LoadError> {
        let build = |source| PolicySet::build(&Program::compile(source, &Environment::default())?, 1);
        instead(&policy(folder), &broken(), build).map(|set| set.program().source().text.to_string())
    }

    #[test]
    fn what_was_kept_serves_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        write(&kept, &source(folder.path(), "return {}\n"), 0).unwrap();
        write(&kept, &source(folder.path(), "return { } -- \u{e9}"), 0).unwrap();
        assert_eq!(start(folder.path()).unwrap(), "return { } -- \u{e9}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file(&kept, "mine")), mode(&kept)), (0o600, 0o700));
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn damaged_and_foreign_files_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        let error = start(folder.path()).unwrap_err();
        assert!(error.reason.starts_with("no (and no good version of it is kept as "), "{error}");
        write(&kept, &source(folder.path(), "return { 1 }"), 0).unwrap();
        let path = file(&kept, "mine");
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let foreign = String::from_utf8(good.clone()).unwrap().replace("\"mine\"", "\"yours\"").into_bytes();
        for damaged in
            [&flipped, &good[..good.len() - 1].to_vec(), &good[..30].to_vec(), &b"return {}\n".to_vec(), &foreign]
        {
            fs::write(&path, damaged).unwrap();
            let error = start(folder.path()).unwrap_err();
            assert!(error.reason.contains("its kept version cannot be used"), "{error}");
            assert_eq!((error.line, error.file.as_str()), (Some(3), "mine.lua"));
        }
        fs::write(&path, good).unwrap();
        assert!(start(folder.path()).is_ok());
        // The same name in another folder, and the same text in this one.
        let elsewhere = source(&folder.path().join("elsewhere"), "return { 1 }");
        write(&kept, &elsewhere, 0).unwrap();
        let error = start(folder.path()).unwrap_err();
        assert!(error.reason.contains("its kept version cannot be used"), "{error}");
        write(&kept, &source(folder.path(), "return { 1 }"), 0).unwrap();
        assert!(start(folder.path()).is_ok());
        let off = PolicyConfig { keep: None, ..policy(folder.path()) };
        assert_eq!(instead(&off, &broken(), |_| unreachable!()).map(|_| ()), Err(broken()));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kept"), "a file where the folder should be").unwrap();
        let last_good = Arc::new(LastGood::new(true));
        let failing = async |wanted: bool| {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while last_good.failing.load(Relaxed) != wanted {
                assert!(std::time::Instant::now() < deadline);
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        last_good.keep(&source(folder.path(), "return {}"), &policy(folder.path()));
        failing(true).await;
        fs::remove_file(folder.path().join("kept")).unwrap();
        last_good.keep(&source(folder.path(), "return {}"), &policy(folder.path()));
        failing(false).await;
        assert!(start(folder.path()).is_ok());
        assert!(last_good.replaced() && !last_good.serves());
    }
}
