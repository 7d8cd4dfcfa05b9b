//! `[record]`: where recorded traffic goes, and how much of it is kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::read;
use super::section::Section;
use super::tree::Node;

/// `[record]`. Without `path` nothing is recorded until somebody asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordConfig {
    /// The file that is written for as long as usher runs.
    pub path: Option<PathBuf>,
    /// The folder of files that are asked for over the admin API: that of `path`, unless it is set.
    pub folder: Option<PathBuf>,
    /// Bytes after which another file is begun.
    pub rotate: usize,
    /// Time after which another file is begun.
    pub rotate_after: Duration,
    /// Full files that are kept beside the one that is written.
    pub keep: usize,
    /// Whether the names of rooms are hashed.
    pub redact_rooms: bool,
    /// One of so many `route` decisions is recorded; 0: none.
    pub route_sample: u32,
}

impl Default for RecordConfig {
    fn default() -> Self {
        Self {
            path: None,
            folder: None,
            rotate: 64 << 20,
            rotate_after: Duration::from_secs(3600),
            keep: 24,
            redact_rooms: false,
            route_sample: 100,
        }
    }
}

/// Reads `[record]`. Paths start from the folder of the configuration file; an empty one counts as not set.
pub(super) fn read(mut section: Section<'_>, base: &Path) -> RecordConfig {
    let mut record = RecordConfig::default();
    let place = |node: &Node| read::text(node).map(|text| (!text.is_empty()).then(|| base.join(text)));
    let file = |node: &Node| match place(node)? {
        Some(path) if path.file_name().is_none() || read::text(node)?.ends_with('/') => {
            let example = "write a file in it, such as \"traces/usher.trace.jsonl.zst\"";
            Err(format!("{:?} is a folder; {example}", read::cut(&path.to_string_lossy())))
        }
        path => Ok(path),
    };
    record.path = section.optional("path", file).flatten();
    let parent = record.path.as_ref().and_then(|path| path.parent()).map(Path::to_path_buf);
    record.folder = section.optional("folder", place).flatten().or(parent);
    section.read(&mut record.rotate, "rotate", read::size(64 << 10..=64 << 30));
    section.read(&mut record.rotate_after, "rotate_after", read::duration(SECOND..=30 * DAY));
    section.read(&mut record.keep, "keep", read::integer(0..=100_000usize));
    section.read(&mut record.redact_rooms, "redact_rooms", read::flag);
    section.read(&mut record.route_sample, "route_sample", read::integer(0..=1_000_000_000u32));
    section.finish();
    record
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
