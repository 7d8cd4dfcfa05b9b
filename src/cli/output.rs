//! Results on their way to stdout. A reader that has seen enough (`usher ... | head`) ends no command with an error: what
//! it would have read is dropped. Anything else that keeps a result from being written is said once, and is exit code 2.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::UNABLE;
use crate::lab::page_text::plain;

/// What has become of stdout.
static STATE: AtomicU8 = AtomicU8::new(OPEN);

/// Everything was written so far.
const OPEN: u8 = 0;
/// Nobody reads any more.
const CLOSED: u8 = 1;
/// It could not be written to.
const FAILED: u8 = 2;

/// Writes a line for people. Names in it come from far away: control characters are shown, never sent.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::write_line(&format!($($text)*)) };
}

/// Writes a text as it is.
macro_rules! show {
    ($($text:tt)*) => { $crate::cli::output::write(format_args!($($text)*)) };
}

/// The same on standard error, which no command waits for.
macro_rules! complain {
    ($($text:tt)*) => { $crate::cli::output::write_error(&format!($($text)*)) };
}

pub(super) use {complain, say, show};

/// Writes a line for people.
pub(super) fn write_line(line: &str) {
    write(format_args!("{}\n", plain(line)));
}

/// Says what is wrong, with usher's name before it.
pub(super) fn write_error(line: &str) {
    // Who cannot be told is not told.
    let _ = writeln!(stderr(), "usher: {}", plain(line));
}

/// Writes to stdout at once, unless that was in vain before.
pub(super) fn write(text: Arguments<'_>) {
    if STATE.load(Relaxed) != OPEN {
        return;
    }
    let mut output = stdout().lock();
    if let Err(error) = output.write_fmt(text).and_then(|()| output.flush()) {
        STATE.store(outcome(error.kind()), Relaxed);
        if outcome(error.kind()) == FAILED {
            write_error(&format!("the result cannot be written to standard output: {error}"));
        }
    }
}

fn outcome(error: ErrorKind) -> u8 {
    if error == ErrorKind::BrokenPipe { CLOSED } else { FAILED }
}

/// Whether there is anybody to write for.
pub(super) fn is_open() -> bool {
    STATE.load(Relaxed) == OPEN
}

/// The exit code of a command that has come to this one by itself.
pub(super) fn exit_code(code: u8) -> u8 {
    if STATE.load(Relaxed) == FAILED { code.max(UNABLE) } else { code }
}
