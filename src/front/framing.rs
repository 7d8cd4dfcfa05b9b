//! Where an HTTP/1 request begins and ends, strictly: what hyper forgives and a Monolith might read differently is a
//! violation here, so that nobody can hide one request inside another.
//!
//! The scanner looks at every byte of a head and of the framing of a chunked body once, and counts the bytes of bodies.
//! It keeps no copy of what it has seen, so its verdict does not depend on how the bytes were split.

/// What the bytes so far have led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between two messages; blank lines are allowed here.
    Start,
    /// After the CR of a blank line before a message.
    StartLf,
    RequestLine,
    RequestLf,
    /// At the first byte of a header line.
    LineStart,
    Name,
    Value,
    ValueLf,
    /// After the CR of the blank line that ends a head or the trailers.
    HeadLf,
    Body(u64),
    ChunkSize(u64, u8),
    ChunkExtension,
    ChunkSizeLf,
    ChunkData(u64),
    ChunkDataCr,
    ChunkDataLf,
}

/// The fields that decide where a message ends, or whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Other,
    Host,
    ContentLength,
    TransferEncoding,
}

/// How far a value that matters has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Leading,
    Inside,
    Trailing,
}

/// A place where the bytes break the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// The index of the first bad byte in the slice that was scanned.
    pub(super) at: usize,
    /// What hyper has to read from there on, so that it refuses the message by itself.
    pub(super) poison: &'static [u8],
}

/// A NUL is refused by hyper wherever a head or a chunk size can be; the line ends make it look at once.
const POISON: &[u8] = b"\0\r\n\r\n";
/// In a chunk extension hyper accepts a NUL, but no bare line feed.
const POISON_EXTENSION: &[u8] = b"\n";

const CHUNKED: &[u8] = b"chunked";
const LONGEST_NAME: usize = "transfer-encoding".len();

/// The scanner of one connection's incoming bytes.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    /// The start of the current field's name, in lower case.
    name: [u8; LONGEST_NAME],
    name_len: u8,
    field: Field,
    part: Part,
    /// How much of `chunked` has matched.
    matched: u8,
    length: u64,
    saw_length: bool,
    saw_coding: bool,
    saw_host: bool,
    in_trailers: bool,
    last_chunk: bool,
    data: u64,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self {
            state: State::Start,
            name: [0; LONGEST_NAME],
            name_len: 0,
            field: Field::Other,
            part: Part::Leading,
            matched: 0,
            length: 0,
            saw_length: false,
            saw_coding: false,
            saw_host: false,
            in_trailers: false,
            last_chunk: false,
            data: 0,
        }
    }

    /// Whether a message is complete and the next has not begun.
    pub(super) fn between_messages(&self) -> bool {
        self.state == State::Start
    }

    /// Whether a head has begun and is not complete.
    pub(super) fn in_head(&self) -> bool {
        match self.state {
            State::StartLf | State::RequestLine | State::RequestLf => true,
            State::LineStart | State::Name | State::Value | State::ValueLf | State::HeadLf => !self.in_trailers,
            _ => false,
        }
    }

    /// Follows these bytes. After a violation the scanner must not be used again.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            let next = match self.state {
                State::Start => match byte {
                    b'\r' => Some(State::StartLf),
                    byte if is_control(byte) => None,
                    _ => {
                        self.begin_head();
                        Some(State::RequestLine)
                    }
                },
                State::StartLf => (byte == b'\n').then_some(State::Start),
                State::RequestLine => {
                    at += plain_run(&bytes[at..]);
                    match bytes.get(at) {
                        None => return Ok(()),
                        Some(b'\r') => Some(State::RequestLf),
                        Some(_) => None,
                    }
                }
                State::RequestLf | State::ValueLf => (byte == b'\n').then_some(State::LineStart),
                State::LineStart => match byte {
                    b'\r' => Some(State::HeadLf),
                    byte if is_token(byte) => {
                        self.name_len = 0;
                        // The byte belongs to the name: it is looked at again there.
                        self.state = State::Name;
                        continue;
                    }
                    _ => None,
                },
                State::Name => {
                    let run = bytes[at..].iter().take_while(|byte| is_token(**byte)).count();
                    self.remember(&bytes[at..at + run]);
                    at += run;
                    match bytes.get(at) {
                        None => return Ok(()),
                        Some(b':') => self.begin_value().then_some(State::Value),
                        Some(_) => None,
                    }
                }
                State::Value => match self.field {
                    Field::Other | Field::Host => {
                        at += plain_run(&bytes[at..]);
                        match bytes.get(at) {
                            None => return Ok(()),
                            Some(b'\r') => Some(State::ValueLf),
                            Some(b'\t') => Some(State::Value),
                            Some(_) => None,
                        }
                    }
                    Field::ContentLength => self.length_byte(byte),
                    Field::TransferEncoding => self.coding_byte(byte),
                },
                State::HeadLf => (byte == b'\n').then(|| self.end_head()),
                State::Body(left) => {
                    let taken = counted(left, bytes.len() - at);
                    at += taken;
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::Start } else { State::Body(left) };
                    continue;
                }
                State::ChunkSize(size, digits) => self.size_byte(size, digits, byte),
                State::ChunkExtension => match byte {
                    b'\r' => Some(State::ChunkSizeLf),
                    b'\t' => Some(State::ChunkExtension),
                    byte if is_control(byte) => None,
                    _ => Some(State::ChunkExtension),
                },
                State::ChunkSizeLf => (byte == b'\n').then(|| self.begin_chunk()),
                State::ChunkData(left) => {
                    let taken = counted(left, bytes.len() - at);
                    at += taken;
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::ChunkDataCr } else { State::ChunkData(left) };
                    continue;
                }
                State::ChunkDataCr => (byte == b'\r').then_some(State::ChunkDataLf),
                State::ChunkDataLf => (byte == b'\n').then_some(State::ChunkSize(0, 0)),
            };
            match next {
                Some(state) => self.state = state,
                None if self.state == State::ChunkExtension => {
                    return Err(Violation { at, poison: POISON_EXTENSION });
                }
                None => return Err(Violation { at, poison: POISON }),
            }
            at += 1;
        }
        Ok(())
    }

    fn begin_head(&mut self) {
        self.saw_length = false;
        self.saw_coding = false;
        self.saw_host = false;
        self.in_trailers = false;
        self.length = 0;
    }

    fn remember(&mut self, part: &[u8]) {
        let from = usize::from(self.name_len);
        let to = from + part.len();
        if to <= LONGEST_NAME {
            self.name[from..to].copy_from_slice(part);
            self.name[from..to].make_ascii_lowercase();
            self.name_len = to as u8;
        } else {
            // Longer than every name that matters, whatever follows.
            self.name_len = LONGEST_NAME as u8;
            self.name[0] = 0;
        }
    }

    /// Takes the name that has just ended; false if this field must not be here.
    fn begin_value(&mut self) -> bool {
        self.part = Part::Leading;
        self.matched = 0;
        self.field = match &self.name[..usize::from(self.name_len)] {
            b"host" => Field::Host,
            b"content-length" => Field::ContentLength,
            b"transfer-encoding" => Field::TransferEncoding,
            _ => Field::Other,
        };
        match self.field {
            Field::Other => true,
            _ if self.in_trailers => false,
            Field::Host => !std::mem::replace(&mut self.saw_host, true),
            // Either of the two, and once: what two readers could see differently is refused.
            Field::ContentLength => !std::mem::replace(&mut self.saw_length, true) && !self.saw_coding,
            Field::TransferEncoding => !std::mem::replace(&mut self.saw_coding, true) && !self.saw_length,
        }
    }

    fn length_byte(&mut self, byte: u8) -> Option<State> {
        match (self.part, byte) {
            (Part::Leading, b' ' | b'\t') => {}
            (Part::Leading | Part::Inside, b'0'..=b'9') => {
                self.part = Part::Inside;
                self.length = self.length.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
            }
            (Part::Inside | Part::Trailing, b' ' | b'\t') => self.part = Part::Trailing,
            (Part::Inside | Part::Trailing, b'\r') => return Some(State::ValueLf),
            _ => return None,
        }
        Some(State::Value)
    }

    fn coding_byte(&mut self, byte: u8) -> Option<State> {
        let whole = usize::from(self.matched) == CHUNKED.len();
        match (self.part, byte) {
            (Part::Leading, b' ' | b'\t') => {}
            (Part::Leading | Part::Inside, byte) if CHUNKED.get(usize::from(self.matched)) == Some(&(byte | 0x20)) => {
                self.part = Part::Inside;
                self.matched += 1;
            }
            (Part::Inside | Part::Trailing, b' ' | b'\t') if whole => self.part = Part::Trailing,
            (Part::Inside | Part::Trailing, b'\r') if whole => return Some(State::ValueLf),
            _ => return None,
        }
        Some(State::Value)
    }

    fn size_byte(&mut self, size: u64, digits: u8, byte: u8) -> Option<State> {
        if let Some(digit) = char::from(byte).to_digit(16) {
            // Fifteen digits are a petabyte: more is an attempt to overflow somebody's integer.
            return (digits < 15).then_some(State::ChunkSize(size << 4 | u64::from(digit), digits + 1));
        }
        if digits == 0 {
            return None;
        }
        self.data = size;
        self.last_chunk = size == 0;
        match byte {
            b'\r' => Some(State::ChunkSizeLf),
            b';' => Some(State::ChunkExtension),
            _ => None,
        }
    }

    fn begin_chunk(&mut self) -> State {
        if self.last_chunk {
            self.in_trailers = true;
            State::LineStart
        } else {
            State::ChunkData(self.data)
        }
    }

    fn end_head(&mut self) -> State {
        if self.in_trailers {
            State::Start
        } else if self.saw_coding {
            State::ChunkSize(0, 0)
        } else if self.length > 0 {
            State::Body(self.length)
        } else {
            State::Start
        }
    }
}

fn counted(left: u64, here: usize) -> usize {
    usize::try_from(left).map_or(here, |left| left.min(here))
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f
}

/// A byte of a field name (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            let b = byte as u8;
            table[byte] = b.is_ascii_alphanumeric()
                || matches!(
                    b,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            byte += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

/// How many bytes from the start are no control characters, eight at a time.
fn plain_run(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = ONES << 7;
    let mut run = 0;
    for word in bytes.chunks_exact(8) {
        let mut raw = [0; 8];
        raw.copy_from_slice(word);
        let word = u64::from_le_bytes(raw);
        let below_space = word.wrapping_sub(ONES * 0x20) & !word;
        let delete = word ^ (ONES * 0x7f);
        let is_delete = delete.wrapping_sub(ONES) & !delete;
        if (below_space | is_delete) & HIGH != 0 {
            break;
        }
        run += 8;
    }
    run + bytes[run..].iter().take_while(|byte| !is_control(**byte)).count()
}

#[cfg(test)]
#[path = "framing_test.rs"]
mod tests;
