//! Where a running usher can be asked to hand over: the Unix socket, its folder, and who may have it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::config::Takeover;

/// The path of the socket for an usher on this port; none if there is to be none.
pub(in crate::cli) fn path(takeover: &Takeover, port: u16) -> Option<PathBuf> {
    match takeover {
        Takeover::Off => None,
        Takeover::At(path) => Some(path.clone()),
        Takeover::UserFolder => Some(user_folder().join(format!("usher-{port}.sock"))),
    }
}

/// The folder in which a user's processes find each other.
fn user_folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => std::env::temp_dir().join(format!("usher-{}", rustix::process::geteuid().as_raw())),
    }
}

/// The listening end, which takes its file with it.
#[derive(Debug)]
pub(in crate::cli) struct Published {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// The device and the number of the file: another one under this path is somebody else's.
    file: (u64, u64),
    /// Whether a successor will replace the file.
    left: bool,
}

impl Published {
    /// Listens at this path, in place of whatever a process that has ended left there. The file appears whole or not at
    /// all, and for this user alone.
    ///
    /// # Errors
    /// If somebody else listens there, the path is something else than a socket, or the folder cannot be had.
    pub(in crate::cli) async fn at(path: &Path) -> io::Result<Self> {
        let other = |message: String| Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return other(format!("{} is no socket and is left alone; write another path", path.display()));
            }
            if UnixStream::connect(path).await.is_ok() {
                return other(format!("another usher listens at {}; write another path", path.display()));
            }
        }
        Self::replace(path)
    }

    /// Listens at this path in place of the usher that has just handed over.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub(in crate::cli) fn replace(path: &Path) -> io::Result<Self> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{}", std::process::id()));
        let aside = PathBuf::from(aside);
        // Nobody else makes a file with this process's number.
        let _ = fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside)?;
        let put = fs::set_permissions(&aside, Permissions::from_mode(0o600)).and_then(|()| fs::rename(&aside, path));
        if let Err(error) = put {
            let _ = fs::remove_file(&aside);
            return Err(error);
        }
        Ok(Self { listener, path: path.to_path_buf(), file: number(path)?, left: false })
    }

    /// Leaves the file to the successor, who is putting its own there.
    pub(super) fn leave(&mut self) {
        self.left = true;
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if !self.left && number(&self.path).is_ok_and(|file| file == self.file) {
            // A file that stays is recognised as left behind.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn number(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Makes the folder if it is missing. One that is not this user's would let somebody else answer in usher's name.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let found = fs::metadata(folder)?;
    let (owner, mine) = (found.uid(), rustix::process::geteuid().as_raw());
    // A sticky folder, such as /tmp, lets nobody remove or rename the files of others.
    let open = found.mode() & 0o002 != 0 && found.mode() & 0o1000 == 0;
    if open || (owner != mine && owner != 0) {
        let message =
            format!("others may write to {}; write a path in a folder of this user's alone", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_left_behind_is_replaced_and_what_lives_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/usher.sock");
        let first = Published::at(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let refused = Published::at(&path).await.unwrap_err().to_string();
        assert!(refused.contains("another usher listens at"), "{refused}");
        // As after a crash: the file stays, and nobody listens.
        let mut left = first;
        left.leave();
        drop(left);
        assert!(path.exists());
        let second = Published::at(&path).await.unwrap();
        // Its successor's file is not its own to take away.
        let third = Published::replace(&path).unwrap();
        drop(second);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(third);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn other_files_and_open_folders_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usher.toml");
        fs::write(&path, "port = 1").unwrap();
        let refused = Published::at(&path).await.unwrap_err().to_string();
        assert!(refused.contains("is no socket"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "port = 1");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let refused = Published::at(&folder.path().join("usher.sock")).await.unwrap_err().to_string();
        assert!(refused.contains("others may write to"), "{refused}");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        Published::at(&folder.path().join("usher.sock")).await.unwrap();
    }

    #[test]
    fn the_path_is_the_configured_one_or_named_after_the_port() {
        assert_eq!(path(&Takeover::Off, 1), None);
        assert_eq!(path(&Takeover::At("/run/x".into()), 1), Some("/run/x".into()));
        assert!(path(&Takeover::UserFolder, 8081).unwrap().ends_with("usher-8081.sock"));
    }
}
