//! The files of one recording: the one that is written, and the full ones beside it, of which the oldest go.

use std::path::{Path, PathBuf};

/// Makes room at the path: what stands there gets the next free number, and the oldest beyond `keep` go.
pub(super) fn shift(path: &Path, keep: usize) -> std::io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut full = full_files(path)?;
    if path.exists() {
        let number = full.last().map_or(1, |(number, _)| number + 1);
        let to = numbered(path, number);
        std::fs::rename(path, &to)?;
        full.push((number, to));
    }
    let excess = full.len().saturating_sub(keep);
    for (_, path) in full.iter().take(excess) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// `evening.trace.jsonl.zst` with 7 is `evening.7.trace.jsonl.zst`.
fn numbered(path: &Path, number: u64) -> PathBuf {
    let (stem, extensions) = split(path);
    path.with_file_name(format!("{stem}.{number}{extensions}"))
}

/// The full files of a path, oldest first.
fn full_files(path: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let (stem, extensions) = split(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name
            .strip_prefix(stem.as_str())
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.strip_suffix(extensions.as_str()))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number {
            found.push((number, path.with_file_name(name)));
        }
    }
    found.sort();
    Ok(found)
}

fn split(path: &Path) -> (String, String) {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.split_once('.') {
        Some((stem, extensions)) => (stem.into(), format!(".{extensions}")),
        None => (name, String::new()),
    }
}
