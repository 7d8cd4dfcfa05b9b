//! Finds its way through a file: compressed or not, cut off at any byte, damaged in the middle. Memory stays flat however
//! long the file is.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::decode::{Decoder, Item};
use super::record::{Header, PolicyText};
use super::scan;
use crate::model::policy::View;
use crate::policy::lua::Source;

/// The longest line that is read, in bytes. A view of 1,000 Monoliths has 300 KB.
const MAX_LINE: usize = 64 << 20;
/// How a file of the compressed kind begins (RFC 8878, section 3.1.1).
pub const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What to do about a line that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDamage {
    /// Say so and end.
    Stop,
    /// Count it and go on with the next.
    Skip,
}

/// Why a trace cannot be read, or not any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}{at}: {what}", at = line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct TraceError {
    /// The file.
    pub file: String,
    /// The line, where one is to blame.
    pub line: Option<u64>,
    /// What is wrong, and the way out.
    pub what: String,
}

/// One file, line by line.
pub struct Reader {
    file: String,
    lines: Box<dyn BufRead + Send>,
    decoder: Decoder,
    header: Header,
    on_damage: OnDamage,
    compressed: bool,
    line: u64,
    buffer: Vec<u8>,
    damaged: u64,
    first_damage: Option<TraceError>,
    cut: bool,
    ended: bool,
    skips_events: bool,
}

impl Reader {
    /// Opens a file and reads its header.
    pub fn open(path: &Path, on_damage: OnDamage) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        let cannot =
            |e: std::io::Error| TraceError { file: file.clone(), line: None, what: format!("cannot be read: {e}") };
        if path.is_dir() {
            return Err(TraceError { file, line: None, what: "is a folder; name a trace file in it".into() });
        }
        Self::new(&file, File::open(path).map_err(cannot)?, on_damage)
    }

    /// Reads a trace from anywhere; `file` is what errors call it.
    pub fn new(file: &str, source: impl Read + Send + 'static, on_damage: OnDamage) -> Result<Self, TraceError> {
        let error = |line, what: String| TraceError { file: file.into(), line, what };
        let mut source = BufReader::with_capacity(1 << 16, source);
        let start = source.fill_buf().map_err(|e| error(None, format!("cannot be read: {e}")))?;
        let compressed = start.starts_with(&ZSTD);
        let lines: Box<dyn BufRead + Send> = if compressed {
            let decompressed = zstd::stream::read::Decoder::with_buffer(source)
                .map_err(|e| error(None, format!("cannot be read: {e}")))?;
            Box::new(BufReader::with_capacity(1 << 18, decompressed))
        } else {
            Box::new(source)
        };
        let mut reader = Self {
            file: file.into(),
            lines,
            decoder: Decoder::default(),
            header: Header::of(PolicyText::of(&Source::shipped("", ""))),
            on_damage,
            compressed,
            line: 0,
            buffer: Vec::new(),
            damaged: 0,
            first_damage: None,
            cut: false,
            ended: false,
            skips_events: false,
        };
        match reader.read_line().map(|found| found.then(|| reader.decoder.line(&reader.buffer))) {
            Ok(Some(Ok((_, Item::Header(header))))) => reader.header = *header,
            Ok(Some(Ok(_))) => return Err(error(Some(1), NO_HEADER.into())),
            Ok(Some(Err(what))) if what.starts_with("format ") => return Err(error(Some(1), what)),
            Ok(Some(Err(what))) => return Err(error(Some(1), format!("{NO_HEADER} ({what})"))),
            Ok(None) => {
                let what = if reader.cut || compressed {
                    "is cut off before the end of its first line; nothing in it can be read"
                } else {
                    "is empty; nothing was recorded in it"
                };
                let empty = || error(None, what.into());
                return Err(reader.first_damage.take().unwrap_or_else(empty));
            }
            Err(e) => return Err(e),
        }
        Ok(reader)
    }

    /// The header that the lines at hand stand under.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The Monoliths as the last decision saw them.
    pub fn view(&self) -> &View {
        self.decoder.view()
    }

    /// Lets events go by unread, for those who look at decisions only: a line that looks like one is not looked at.
    pub fn skip_events(&mut self, skip: bool) {
        self.skips_events = skip;
    }

    /// What is done about lines that cannot be understood.
    pub fn on_damage(&self) -> OnDamage {
        self.on_damage
    }

    /// The line that was read last, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// How many lines could not be understood, and the first of them.
    pub fn damage(&self) -> (u64, Option<&TraceError>) {
        (self.damaged, self.first_damage.as_ref())
    }

    /// Whether the file ends in the middle of a line, or of what is compressed: the recording was ended hard, or goes on.
    pub fn was_cut(&self) -> bool {
        self.cut
    }

    /// The next item with its moment in microseconds; none at the end.
    ///
    /// A last line without an end is what is left of a recording that was cut off: it is no damage.
    pub fn read(&mut self) -> Result<Option<(u64, Item)>, TraceError> {
        while !self.ended {
            if !self.read_line()? {
                break;
            }
            if self.skips_events && is_event(&self.buffer) {
                continue;
            }
            let what = match self.decoder.line(&self.buffer) {
                Ok((t, Item::Header(header))) => {
                    self.header = (*header).clone();
                    return Ok(Some((t, Item::Header(header))));
                }
                Ok(found) => return Ok(Some(found)),
                Err(what) => what,
            };
            let error = TraceError { file: self.file.clone(), line: Some(self.line), what };
            self.damaged += 1;
            if self.on_damage == OnDamage::Stop {
                self.ended = true;
                return Err(error);
            }
            self.first_damage.get_or_insert(error);
        }
        Ok(None)
    }

    /// Reads the next whole line into the buffer; `false` at the end.
    fn read_line(&mut self) -> Result<bool, TraceError> {
        self.buffer.clear();
        loop {
            let chunk = match self.lines.fill_buf() {
                Ok(chunk) => chunk,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                // The end of a compressed file that was cut off.
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    self.cut = true;
                    &[]
                }
                Err(e) => {
                    self.ended = true;
                    let what = if self.compressed {
                        format!("the compressed data is damaged from here on, or before if its checksum is wrong ({e})")
                    } else {
                        format!("cannot be read any further: {e}")
                    };
                    let error = TraceError { file: self.file.clone(), line: Some(self.line + 1), what };
                    if self.compressed && self.on_damage == OnDamage::Skip {
                        // There is no next line to go on with.
                        self.damaged += 1;
                        self.first_damage.get_or_insert(error);
                        return Ok(false);
                    }
                    return Err(error);
                }
            };
            if chunk.is_empty() {
                self.ended = true;
                self.cut |= !self.buffer.is_empty();
                return Ok(false);
            }
            let end = scan::line_end(chunk);
            self.buffer.extend_from_slice(&chunk[..end.unwrap_or(chunk.len())]);
            let length = end.map_or(chunk.len(), |end| end + 1);
            self.lines.consume(length);
            if end.is_some() {
                self.line += 1;
                return Ok(true);
            }
            if self.buffer.len() > MAX_LINE {
                self.ended = true;
                let what = format!("a line of more than {MAX_LINE} bytes; this is no trace");
                return Err(TraceError { file: self.file.clone(), line: Some(self.line + 1), what });
            }
        }
    }
}

/// Whether a line begins as that of an event does, and ends like a whole one.
fn is_event(line: &[u8]) -> bool {
    let after = |rest: &[u8]| rest.starts_with(b",\"event\":") && rest.ends_with(b"}");
    let digits = |rest: &[u8]| rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    line.strip_prefix(b"{\"t\":").is_some_and(|rest| after(&rest[digits(rest)..]))
}

const NO_HEADER: &str = "is no trace: its first line is no header; record one with `usher record start`";
