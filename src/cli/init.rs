//! `usher init`: a configuration, a policy and its test to start from.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{say, show};
use super::{GOOD, UNABLE};
use crate::policy::shipped::DEFINITIONS;

/// The command line of `usher init`.
#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// Folder to write to; it is made if it is not there
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

/// What is written, by its path below the folder.
const FILES: [(&str, &str); 4] = [
    ("usher.toml", include_str!("init/usher.toml")),
    ("policies/rooms.lua", include_str!("init/rooms.lua")),
    ("policies/rooms_test.lua", include_str!("init/rooms_test.lua")),
    ("policies/usher.d.luau", DEFINITIONS),
];

pub(super) fn main(args: &InitArgs) -> u8 {
    match write_all(&args.dir) {
        Ok(written) => {
            for path in &written {
                say!("wrote {}", path.display());
            }
            show!("\nnext:\n{}", next_commands(&args.dir));
            GOOD
        }
        Err(error) => {
            eprintln!("usher: {error}");
            UNABLE
        }
    }
}

/// Why nothing, or not everything, was written.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("{} is there already and is never overwritten; move it away, or name another folder: usher init DIR", .0.display())]
    Exists(PathBuf),
    #[error("{} cannot be written: {}", .0.display(), .1)]
    Write(PathBuf, io::Error),
}

/// Writes every file, or none if one of them is there.
fn write_all(dir: &Path) -> Result<Vec<PathBuf>, InitError> {
    let paths = FILES.map(|(name, _)| dir.join(name));
    for path in &paths {
        // A link that leads nowhere is a file of somebody, too.
        if path.symlink_metadata().is_ok() {
            return Err(InitError::Exists(path.clone()));
        }
    }
    for (path, (_, text)) in paths.iter().zip(FILES) {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| InitError::Write(folder.to_path_buf(), error))?;
        }
        write_new(path, text).map_err(|error| match error.kind() {
            // Somebody else wrote it a moment ago.
            io::ErrorKind::AlreadyExists => InitError::Exists(path.clone()),
            _ => InitError::Write(path.clone(), error),
        })?;
    }
    Ok(paths.to_vec())
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())
}

/// What to do next, to be pasted into a shell.
fn next_commands(dir: &Path) -> String {
    let path = |name: &str| quoted(&dir.join(name).display().to_string());
    let config = if dir == Path::new(".") { String::new() } else { format!(" -c {}", path("usher.toml")) };
    let policies = if dir == Path::new(".") { "policies".into() } else { path("policies") };
    format!(
        "  usher test {policies:<30}  # the tests of the policy\n  usher check{config:<31} # the configuration and \
         the policy\n  usher run{config:<33} # once discovery.monoliths names yours\n"
    )
}

/// A text as a POSIX shell takes it for one word.
fn quoted(text: &str) -> String {
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte)) && !text.starts_with('-') {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten_and_nothing_written_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        assert_eq!(write_all(&dir).unwrap().len(), FILES.len());
        for (name, text) in FILES {
            assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), text);
        }
        for (name, _) in FILES {
            let dir = folder.path().join(name.replace('/', "-"));
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            write_new(&dir.join(name), "mine").unwrap();
            let error = write_all(&dir).unwrap_err().to_string();
            assert!(
                error.contains(&dir.join(name).display().to_string()) && error.contains("usher init DIR"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), "mine");
            let there = FILES.iter().filter(|(name, _)| dir.join(name).exists()).count();
            assert_eq!(there, 1, "only what was there before");
        }
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(write_all(&file), Err(InitError::Write(..))));
    }

    #[test]
    fn commands_can_be_pasted() {
        assert!(next_commands(Path::new(".")).contains("usher test policies "));
        assert!(next_commands(Path::new(".")).contains("usher check  "));
        assert!(next_commands(Path::new("my shop")).contains("usher run -c 'my shop/usher.toml'"));
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
