//! The thread that owns the file. Whoever records never waits for it: what does not fit into its queue is counted, and the
//! count stands in the trace where it is missing.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::{info, warn};

use super::encode::Encoder;
use super::record::{Decided, Gap, Header, LiveEvent, PolicyText};
use super::redact::Redactor;

/// Records that may wait for the disk; what comes on top is dropped and counted.
const QUEUE: usize = 16 << 10;
/// Monoliths in all views that may wait: a few hundred bytes each. What comes on top is dropped and counted.
const QUEUE_ROWS: usize = 32 << 10;
/// How long what is recorded may stay in memory.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the thread leaves a disk alone that refused.
const RETRY: Duration = Duration::from_secs(2);
/// How hard to compress: the cheapest level. Higher ones cost several times as much for a few percent.
const LEVEL: i32 = 1;

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

/// Something to write.
enum Record {
    Event(LiveEvent),
    Decision(Box<Decided>),
    Policy(Box<PolicyText>),
}

/// The way to the thread, for as many as want one.
#[derive(Clone)]
pub struct Recorder {
    queue: SyncSender<(Instant, Record)>,
    shared: Arc<Shared>,
}

/// How a recording goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// The file that is written.
    pub path: PathBuf,
    /// Bytes in all files of this recording, as they are on disk.
    pub bytes: u64,
    /// Events that were written.
    pub events: u64,
    /// Decisions that were written.
    pub decisions: u64,
    /// Events that were dropped.
    pub dropped_events: u64,
    /// Decisions that were dropped.
    pub dropped_decisions: u64,
    /// Full files that were begun anew.
    pub rotations: u64,
    /// Why the disk last refused, until it takes something again.
    pub error: Option<String>,
}

#[derive(Default)]
struct Shared {
    /// Not recorded, and not yet told in the trace.
    missing_events: AtomicU64,
    missing_decisions: AtomicU64,
    /// Monoliths in the views that wait.
    rows: AtomicUsize,
    stop: AtomicBool,
    progress: Mutex<Progress>,
}

/// A recording under way. Dropping it ends it without waiting.
pub struct Recording {
    recorder: Recorder,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Recorder {
    /// Records that something happened.
    pub fn event(&self, event: LiveEvent) {
        self.offer(Record::Event(event), &self.shared.missing_events);
    }

    /// Records a decision.
    pub fn decision(&self, decided: Decided) {
        let rows = decided.view.rows().len();
        if self.shared.rows.load(Relaxed) + rows > QUEUE_ROWS {
            self.shared.missing_decisions.fetch_add(1, Relaxed);
            return;
        }
        self.shared.rows.fetch_add(rows, Relaxed);
        if !self.offer(Record::Decision(Box::new(decided)), &self.shared.missing_decisions) {
            self.shared.rows.fetch_sub(rows, Relaxed);
        }
    }

    /// Records that another policy decides from here on.
    pub fn policy(&self, policy: PolicyText) {
        self.offer(Record::Policy(Box::new(policy)), &self.shared.missing_events);
    }

    /// How the recording goes.
    pub fn progress(&self) -> Progress {
        let mut progress = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        progress.dropped_events += self.shared.missing_events.load(Relaxed);
        progress.dropped_decisions += self.shared.missing_decisions.load(Relaxed);
        progress
    }

    /// Whether it was taken.
    fn offer(&self, record: Record, missing: &AtomicU64) -> bool {
        match self.queue.try_send((Instant::now(), record)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                missing.fetch_add(1, Relaxed);
                false
            }
            // It is over.
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Recording {
    /// Opens the file and starts the thread. An error says why the file cannot be written.
    pub fn start(target: Target, header: Header) -> std::io::Result<Self> {
        let (queue, inbox) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let redactor = target.redact_rooms.then(Redactor::new);
        let mut writer = Writer {
            encoder: Encoder::new(redactor),
            started: Instant::now(),
            header: Header { redacted: target.redact_rooms, ..header },
            out: None,
            lines: Vec::new(),
            refused_at: None,
            shared: shared.clone(),
            target,
        };
        writer.open()?;
        info!(path = %writer.target.path.display(), "recording");
        let thread = std::thread::Builder::new().name("usher-record".into()).spawn(move || writer.run(&inbox))?;
        Ok(Self { recorder: Recorder { queue, shared }, thread: Some(thread) })
    }

    /// The way to it.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Writes what waits and closes the file. Blocks as long as the disk does.
    pub fn stop(mut self) -> Progress {
        self.recorder.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing more to write.
            let _ = thread.join();
        }
        self.recorder.progress()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.recorder.shared.stop.store(true, Relaxed);
    }
}

struct Writer {
    target: Target,
    header: Header,
    encoder: Encoder,
    started: Instant,
    out: Option<Output>,
    lines: Vec<u8>,
    refused_at: Option<Instant>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<(Instant, Record)>) {
        let mut flushed = Instant::now();
        loop {
            match inbox.recv_timeout(FLUSH / 4) {
                Ok((at, record)) => self.record(at, record),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Only what was queued by then is waited for.
            if self.shared.stop.load(Relaxed) {
                while let Ok((at, record)) = inbox.try_recv() {
                    self.record(at, record);
                }
                break;
            }
            if flushed.elapsed() >= FLUSH {
                self.flush();
                flushed = Instant::now();
            }
        }
        self.gap();
        self.close();
    }

    fn record(&mut self, at: Instant, record: Record) {
        if let Record::Policy(policy) = &record {
            // The next file begins with it.
            self.header.policy = (**policy).clone();
        }
        let what = match &record {
            Record::Decision(decided) => {
                self.shared.rows.fetch_sub(decided.view.rows().len(), Relaxed);
                Gap { events: 0, decisions: 1 }
            }
            Record::Event(_) | Record::Policy(_) => Gap { events: 1, decisions: 0 },
        };
        if !self.is_open() {
            return self.missing(what);
        }
        self.gap();
        let t = self.moment(at);
        match record {
            Record::Event(event) => self.encoder.event(t, event, &mut self.lines),
            Record::Decision(decided) => self.encoder.decision(t, *decided, &mut self.lines),
            Record::Policy(policy) => self.encoder.policy(t, &policy, &mut self.lines),
        }
        self.write(what);
    }

    fn moment(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    /// Says what is missing, if anything is.
    fn gap(&mut self) {
        let missing = Gap {
            events: self.shared.missing_events.swap(0, Relaxed),
            decisions: self.shared.missing_decisions.swap(0, Relaxed),
        };
        if missing == Gap::default() {
            return;
        }
        if self.out.is_none() {
            return self.missing(missing);
        }
        let t = self.moment(Instant::now());
        self.encoder.gap(t, missing, &mut self.lines);
        self.progress(|progress| {
            progress.dropped_events += missing.events;
            progress.dropped_decisions += missing.decisions;
        });
        self.write(Gap::default());
    }

    /// Whether there is a file to write to; one that was refused is tried again after a while.
    fn is_open(&mut self) -> bool {
        if self.out.is_some() {
            return true;
        }
        if self.refused_at.is_some_and(|at| at.elapsed() < RETRY) {
            return false;
        }
        match self.open() {
            Ok(()) => true,
            Err(e) => {
                self.refused(&e);
                false
            }
        }
    }

    /// Begins a file, and renames the one that stands in its place.
    fn open(&mut self) -> std::io::Result<()> {
        let path = &self.target.path;
        // A device or a pipe is written as it is.
        let special = std::fs::metadata(path).is_ok_and(|about| !about.is_file());
        if !special {
            shift(&self.target)?;
        }
        let file = OpenOptions::new().write(true).create_new(!special).open(path)?;
        self.lines.clear();
        self.encoder.header(&self.header, &mut self.lines);
        let mut out = Output::new(file, &self.target.path)?;
        out.write(&self.lines)?;
        self.lines.clear();
        self.out = Some(out);
        self.refused_at = None;
        let path = self.target.path.clone();
        self.progress(|progress| (progress.path, progress.error) = (path, None));
        Ok(())
    }

    fn write(&mut self, what: Gap) {
        let Some(out) = &mut self.out else { return };
        let written = out.write(&self.lines);
        self.lines.clear();
        match written {
            Ok(()) => {
                let full = out.bytes() >= self.target.rotate_bytes || out.began.elapsed() >= self.target.rotate_after;
                self.progress(|progress| {
                    progress.events += what.events;
                    progress.decisions += what.decisions;
                });
                if full {
                    self.close();
                    self.progress(|progress| progress.rotations += 1);
                }
            }
            Err(e) => {
                self.missing(what);
                self.refused(&e);
            }
        }
    }

    /// Counts what the disk did not take, until there is a file to tell it in.
    fn missing(&self, what: Gap) {
        self.shared.missing_events.fetch_add(what.events, Relaxed);
        self.shared.missing_decisions.fetch_add(what.decisions, Relaxed);
    }

    fn flush(&mut self) {
        if let Some(out) = &mut self.out
            && let Err(e) = out.flush()
        {
            self.refused(&e);
        }
    }

    fn close(&mut self) {
        let Some(out) = self.out.take() else { return };
        let bytes = out.bytes();
        if let Err(e) = out.finish() {
            self.refused(&e);
        }
        self.progress(|progress| progress.bytes += bytes);
    }

    /// The disk does not take it: the file is given up where it is, and readable up to there.
    fn refused(&mut self, error: &std::io::Error) {
        self.out = None;
        self.refused_at = Some(Instant::now());
        let text = format!("{}: {error}", self.target.path.display());
        let first = self.progress(|progress| progress.error.replace(text.clone()).is_none());
        if first {
            warn!(error = %text, "what is recorded is dropped and counted until the disk takes it again");
        }
    }

    fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner))
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
            Compressed::Zstd(zstd::stream::write::Encoder::new(file, LEVEL)?)
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

    fn bytes(&self) -> u64 {
        match &self.to {
            Compressed::No(to) => to.get_ref().bytes + to.buffer().len() as u64,
            Compressed::Zstd(to) => to.get_ref().bytes,
        }
    }

    fn finish(self) -> std::io::Result<()> {
        match self.to {
            Compressed::No(mut to) => to.flush(),
            Compressed::Zstd(to) => to.finish().map(drop),
        }
    }
}

/// Makes room at the path: what stands there gets the next free number, and the oldest that are too many go.
fn shift(target: &Target) -> std::io::Result<()> {
    if let Some(folder) = target.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut full = full_files(&target.path)?;
    if target.path.exists() {
        let number = full.last().map_or(1, |(number, _)| number + 1);
        let to = numbered(&target.path, number);
        std::fs::rename(&target.path, &to)?;
        full.push((number, to));
    }
    let excess = full.len().saturating_sub(target.keep);
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
