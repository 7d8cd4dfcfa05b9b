//! The thread that owns the file. What the disk does not take in time is counted, and the count stands in the trace where
//! it is missing.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::encode::Encoder;
use super::record::{Gap, Header, TraceEvent};
use super::recorder::{Alive, Inbox, Record, Rest, Shared, queue};
pub use super::recorder::{Progress, Recorder};
use super::redact::Redactor;
use super::rotate::shift;
use crate::model::{MonolithId, Region};

/// How long what is recorded may stay in memory, besides the pause of the thread.
const FLUSH: Duration = Duration::from_secs(1);
/// Bytes of lines that are handed on at once: what compresses and what writes is asked once for many of them.
const LINES: usize = 64 << 10;
/// How long the thread leaves a disk alone that refused.
const RETRY: Duration = Duration::from_secs(2);
/// How long a start waits for the first file; a disk that is slower is waited for by the thread alone.
const OPENING: Duration = Duration::from_secs(2);
/// How hard to compress: the cheapest level. Higher ones cost several times as much for a few percent.
pub(super) const LEVEL: i32 = 1;

/// Where a trace goes, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The file that is written; `.zst` at its end says that it is to be compressed. Those that are full are renamed to
    /// `NAME.N.EXTENSIONS`, the highest number being the newest.
    pub path: PathBuf,
    /// Bytes after which another file is begun.
    pub rotate_bytes: u64,
    /// Time after which another file is begun.
    pub rotate_after: Duration,
    /// How many full files are kept.
    pub keep: usize,
    /// Whether the names of rooms are hashed.
    pub redact_rooms: bool,
}

/// A recording under way. Dropping it ends it without waiting.
pub struct Recording {
    recorder: Recorder,
    /// Ends when the thread does.
    ended: Receiver<()>,
}

impl Recording {
    /// Opens the file and starts the thread. An error says why the file cannot be written. A disk that has not answered
    /// after two seconds is waited for by the thread, and [`Progress::error`] says so.
    pub fn start(target: Target, header: Header) -> std::io::Result<Self> {
        let (recording, opened) = Self::spawn(target, header)?;
        match opened.recv_timeout(OPENING) {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(recording),
        }
    }

    /// Starts the thread, which opens the file as soon as the disk lets it; until then what is recorded is counted as
    /// missing, and [`Progress::error`] says why. An error says that there is no thread to be had.
    pub fn begin(target: Target, header: Header) -> std::io::Result<Self> {
        Self::spawn(target, header).map(|(recording, _)| recording)
    }

    fn spawn(target: Target, header: Header) -> std::io::Result<(Self, Receiver<std::io::Result<()>>)> {
        let (recorder, inbox) = queue();
        let shared = recorder.shared().clone();
        let redactor = target.redact_rooms.then(Redactor::new);
        let pending = format!("{}: is not open yet", target.path.display());
        shared.progress(|progress| (progress.path, progress.error) = (target.path.clone(), Some(pending)));
        let mut writer = Writer {
            encoder: Encoder::new(redactor),
            started: Instant::now(),
            header: Header { redacted: target.redact_rooms, ..header },
            up: BTreeMap::new(),
            out: None,
            written: 0,
            lines: Vec::new(),
            in_lines: Gap::default(),
            unflushed: Gap::default(),
            told: Gap::default(),
            refused_at: None,
            shared,
            target,
        };
        let (ending, ended) = sync_channel::<()>(0);
        let (opening, opened) = sync_channel(1);
        let thread = std::thread::Builder::new().name("usher-record".into()).spawn(move || {
            let _alive = (Alive(writer.shared.clone()), ending);
            writer.first(&opening);
            writer.run(&inbox);
        })?;
        recorder.shared().written_by(thread.thread());
        Ok((Self { recorder, ended }, opened))
    }

    /// The way to it.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Whether its thread has ended without being asked to.
    pub fn is_broken(&self) -> bool {
        matches!(self.ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected))
    }

    /// Writes what waits and closes the file. Blocks as long as the disk does.
    pub fn stop(self) -> Progress {
        self.stop_within(Duration::MAX)
    }

    /// Writes what waits and closes the file. A disk that takes longer than this is left behind: the thread goes on for
    /// as long as the process does, and [`Progress::error`] says so.
    pub fn stop_within(self, limit: Duration) -> Progress {
        self.recorder.shared().stop();
        // Nobody sends: a thread that ended, by a panic too, has nothing more to write.
        let timed_out = self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        let mut progress = self.recorder.progress();
        if timed_out {
            let error = format!("{}: the disk has not taken the end of it", progress.path.display());
            progress.error.get_or_insert(error);
        }
        progress
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.recorder.shared().stop();
    }
}

struct Writer {
    target: Target,
    header: Header,
    encoder: Encoder,
    started: Instant,
    /// The Monoliths that are linked: each file begins with them.
    up: BTreeMap<MonolithId, Region>,
    out: Option<Output>,
    /// Bytes of the files before this one.
    written: u64,
    /// What is still to be handed to the file, and what it says. Empty while no file is open.
    lines: Vec<u8>,
    in_lines: Gap,
    /// What was handed to the file since the last flush: lost if the disk does not take it.
    unflushed: Gap,
    /// What was told to be missing since the last flush: to be told again in that case.
    told: Gap,
    refused_at: Option<Instant>,
    shared: Arc<Shared>,
}

impl Writer {
    /// Opens the first file, and says what came of it.
    fn first(&mut self, opening: &SyncSender<std::io::Result<()>>) {
        let opened = self.open(self.started);
        match &opened {
            Ok(()) => info!(path = %self.target.path.display(), "recording"),
            Err(error) => self.refused(error),
        }
        // Nobody may be waiting.
        let _ = opening.send(opened);
    }

    fn run(mut self, inbox: &Inbox) {
        let mut flushed = Instant::now();
        loop {
            let rest = inbox.batch(|at, record| self.record(at, record));
            if rest == Rest::Nothing {
                break;
            }
            self.write();
            if flushed.elapsed() >= FLUSH {
                self.flush();
                flushed = Instant::now();
            }
        }
        self.gap();
        self.close();
    }

    fn record(&mut self, at: Instant, record: Record) {
        let what = match &record {
            Record::Event(event) => {
                match event {
                    TraceEvent::MonolithUp { monolith, region } => {
                        self.up.insert(monolith.clone(), region.clone());
                    }
                    TraceEvent::MonolithDown { monolith } => {
                        self.up.remove(monolith);
                    }
                    _ => {}
                }
                Gap { events: 1, decisions: 0 }
            }
            Record::Decision(taken) => {
                if !taken.canary && *taken.by != self.header.policy {
                    // The next file begins with it.
                    self.header.policy = (*taken.by).clone();
                }
                Gap { events: 0, decisions: 1 }
            }
            Record::Distances(distances) => {
                self.header.distances = (**distances).clone();
                return self.rotate();
            }
            Record::Mark(_) => return,
            #[cfg(test)]
            Record::Panic => panic!("asked to"),
        };
        if !self.is_open(at, &record) {
            return self.shared.missing(what);
        }
        self.gap();
        // The gap may have been the last line of its file, or one too many for the disk.
        if !self.is_open(at, &record) {
            return self.shared.missing(what);
        }
        let (t, start) = (self.moment(at), self.lines.len());
        match record {
            Record::Event(event) => self.encoder.event(t, event, &mut self.lines),
            Record::Decision(taken) => {
                self.encoder.declare(t, &taken.by, &mut self.lines);
                self.encoder.decision(t, taken.decided, &mut self.lines);
            }
            _ => {}
        }
        // A leave of somebody who came before the trace leaves no line.
        if self.lines.len() > start {
            self.line(what);
        }
    }

    fn moment(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    /// Says what is missing, if anything is and there is a file to say it in.
    fn gap(&mut self) {
        if self.out.is_none() {
            return;
        }
        let missing = self.shared.tell_missing();
        if missing == Gap::default() {
            return;
        }
        let t = self.moment(Instant::now());
        self.encoder.gap(t, missing, &mut self.lines);
        self.told.events += missing.events;
        self.told.decisions += missing.decisions;
        self.line(Gap::default());
    }

    /// Whether there is a file to write to; one that was refused is tried again after a while.
    fn is_open(&mut self, at: Instant, first: &Record) -> bool {
        if self.out.is_some() {
            return true;
        }
        if self.refused_at.is_some_and(|at| at.elapsed() < RETRY) {
            return false;
        }
        // It declares itself.
        let own = match first {
            Record::Event(TraceEvent::MonolithUp { monolith, .. }) => self.up.remove_entry(monolith),
            _ => None,
        };
        let opened = self.open(at);
        self.up.extend(own);
        match opened {
            Ok(()) => true,
            Err(e) => {
                self.refused(&e);
                false
            }
        }
    }

    /// Begins a file, and renames the one that stands in its place.
    fn open(&mut self, at: Instant) -> std::io::Result<()> {
        let path = &self.target.path;
        // A device or a pipe is written as it is.
        let special = std::fs::metadata(path).is_ok_and(|about| !about.is_file());
        if !special {
            shift(path, self.target.keep)?;
        }
        let file = OpenOptions::new().write(true).create_new(!special).open(path)?;
        self.lines.clear();
        self.encoder.header(&self.header, &mut self.lines);
        let t = self.moment(at);
        for (monolith, region) in &self.up {
            let up = TraceEvent::MonolithUp { monolith: monolith.clone(), region: region.clone() };
            self.encoder.event(t, up, &mut self.lines);
        }
        let mut out = Output::new(file, &self.target.path)?;
        out.write(&self.lines)?;
        self.lines.clear();
        self.out = Some(out);
        self.refused_at = None;
        let path = self.target.path.clone();
        self.progress(|progress| (progress.path, progress.error) = (path, None));
        Ok(())
    }

    /// A line that says this has been added.
    fn line(&mut self, what: Gap) {
        self.in_lines.events += what.events;
        self.in_lines.decisions += what.decisions;
        let Some(out) = &self.out else { return };
        let full =
            out.bytes_with(&self.lines) >= self.target.rotate_bytes || out.began.elapsed() >= self.target.rotate_after;
        if full {
            self.rotate();
        } else if self.lines.len() >= LINES {
            self.write();
        }
    }

    /// Hands the lines on.
    fn write(&mut self) {
        let Some(out) = &mut self.out else { return };
        if self.lines.is_empty() {
            return;
        }
        match out.write(&self.lines) {
            Ok(()) => {
                self.lines.clear();
                let what = std::mem::take(&mut self.in_lines);
                self.unflushed.events += what.events;
                self.unflushed.decisions += what.decisions;
            }
            Err(e) => self.refused(&e),
        }
    }

    /// The next record begins another file.
    fn rotate(&mut self) {
        if self.out.is_some() {
            self.close();
            self.progress(|progress| progress.rotations += 1);
        }
    }

    fn flush(&mut self) {
        self.write();
        let Some(out) = &mut self.out else { return };
        match out.flush() {
            Ok(()) => {
                let bytes = self.written + out.bytes();
                self.taken(bytes);
            }
            Err(e) => self.refused(&e),
        }
    }

    fn close(&mut self) {
        self.write();
        let Some(out) = self.out.take() else { return };
        let reached = out.bytes();
        match out.finish() {
            Ok(bytes) => {
                self.written += bytes;
                self.taken(self.written);
            }
            Err(e) => {
                self.written += reached;
                self.refused(&e);
            }
        }
    }

    /// The disk has everything up to here.
    fn taken(&mut self, bytes: u64) {
        let what = std::mem::take(&mut self.unflushed);
        self.told = Gap::default();
        self.progress(|progress| {
            progress.bytes = bytes;
            progress.events += what.events;
            progress.decisions += what.decisions;
        });
    }

    /// The disk does not take it: the file is given up where it is, and readable up to there.
    fn refused(&mut self, error: &std::io::Error) {
        if let Some(out) = self.out.take() {
            self.written += out.bytes();
        }
        self.refused_at = Some(Instant::now());
        self.lines.clear();
        self.shared.missing(std::mem::take(&mut self.in_lines));
        // Some of it may be on the disk all the same: better a few too many are told to be missing than too few.
        self.shared.missing(std::mem::take(&mut self.unflushed));
        self.shared.untell_missing(std::mem::take(&mut self.told));
        let text = format!("{}: {error}", self.target.path.display());
        let before = self.progress(|progress| progress.error.replace(text.clone()));
        if before.is_none_or(|before| before != text) {
            warn!(error = %text, "what is recorded is dropped and counted until the disk takes it again");
        }
    }

    fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        self.shared.progress(change)
    }
}

/// An open file, compressed if its name says so.
struct Output {
    to: Compressed,
    began: Instant,
}

enum Compressed {
    No(BufWriter<Counted>),
    Zstd(zstd::stream::write::Encoder<'static, Counted>),
}

struct Counted {
    file: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Output {
    fn new(file: File, path: &Path) -> std::io::Result<Self> {
        let file = Counted { file, bytes: 0 };
        let to = if path.extension().is_some_and(|extension| extension == "zst") {
            // Without a checksum damage inside a block may come out as other text.
            let encoder = zstd::stream::write::Encoder::new(file, LEVEL);
            Compressed::Zstd(encoder.and_then(|mut to| to.include_checksum(true).map(|()| to))?)
        } else {
            Compressed::No(BufWriter::with_capacity(1 << 16, file))
        };
        Ok(Self { to, began: Instant::now() })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.to {
            Compressed::No(to) => to.write_all(bytes),
            Compressed::Zstd(to) => to.write_all(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.to {
            Compressed::No(to) => to.flush(),
            Compressed::Zstd(to) => to.flush(),
        }
    }

    /// Its bytes once it has these lines. What they come to compressed is known when they are handed on.
    fn bytes_with(&self, lines: &[u8]) -> u64 {
        match &self.to {
            Compressed::No(_) => self.bytes() + lines.len() as u64,
            Compressed::Zstd(_) => self.bytes(),
        }
    }

    fn bytes(&self) -> u64 {
        match &self.to {
            Compressed::No(to) => to.get_ref().bytes + to.buffer().len() as u64,
            Compressed::Zstd(to) => to.get_ref().bytes,
        }
    }

    /// Ends the file and says how many bytes it has.
    fn finish(self) -> std::io::Result<u64> {
        match self.to {
            Compressed::No(mut to) => to.flush().map(|()| to.get_ref().bytes),
            Compressed::Zstd(to) => to.finish().map(|file| file.bytes),
        }
    }
}
