//! How far a long run is: one line on stderr that is written over, for people who watch.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use crate::lab::page_text::Terminal;

/// Runs that are shorter say nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the line changes.
const EVERY: Duration = Duration::from_millis(100);

/// One run. Says nothing unless stderr is a terminal; dropping it takes the line away.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    unit: &'static str,
    total: Option<u64>,
    began: Instant,
    /// When to write next; never, where nobody watches.
    next: Option<Instant>,
    written: bool,
}

impl Progress {
    /// Begins a run of `total` steps, if that is known; `what` is done with so many `unit`, as in `replay` and
    /// `decisions`.
    pub fn new(what: &'static str, unit: &'static str, total: Option<u64>) -> Self {
        let began = Instant::now();
        let watched = stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { what, unit, total, began, next: watched.then(|| began + PATIENCE), written: false }
    }

    /// Says how many steps are done. Costs a look at the clock, where somebody watches, and nothing elsewhere.
    pub fn at(&mut self, done: u64) {
        let Some(next) = self.next else { return };
        let now = Instant::now();
        if now < next {
            return;
        }
        self.next = Some(now + EVERY);
        self.written = true;
        let line = line(self.what, self.unit, done, self.total, now - self.began);
        // A terminal that cannot be written to is no reason to end the run.
        let _ = write!(stderr(), "\r\x1b[K{line}").and_then(|()| stderr().flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.written {
            let _ = write!(stderr(), "\r\x1b[K").and_then(|()| stderr().flush());
        }
    }
}

fn line(what: &str, unit: &str, done: u64, total: Option<u64>, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(1e-9);
    let rate = done as f64 / seconds;
    let per_second = format!("{} {unit}/s", short(rate));
    match total {
        Some(total) if total > 0 => {
            let share = (done as f64 / total as f64).min(1.0);
            let full = (share * 24.0) as usize;
            let left = if done > 0 { seconds * (1.0 - share) / share } else { f64::INFINITY };
            let left = if left.is_finite() { format!(", {} left", clock(left)) } else { String::new() };
            let bar = format!("{}{}", "█".repeat(full), "░".repeat(24 - full));
            format!("{what} {bar} {:3.0} %  {per_second}{left}", (share * 100.0).floor())
        }
        _ => format!("{what} {} {unit}, {per_second}, {}", short(done as f64), clock(seconds)),
    }
}

/// Three digits and a power: `950`, `12.3k`, `1.20M`.
fn short(value: f64) -> String {
    let (value, power) = match value {
        value if value < 1e3 => return format!("{value:.0}"),
        value if value < 1e6 => (value / 1e3, "k"),
        value if value < 1e9 => (value / 1e6, "M"),
        value => (value / 1e9, "G"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$}{power}")
}

fn clock(seconds: f64) -> String {
    let all = seconds.round() as u64;
    match (all / 3600, all / 60 % 60, all % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// What standard output is: coloured for a terminal whose owner did not ask for none (`NO_COLOR`), plain elsewhere.
pub fn terminal() -> Terminal {
    let output = std::io::stdout();
    if !output.is_terminal() {
        return Terminal::default();
    }
    let asked = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let width = rustix::termios::tcgetwinsize(&output).map_or(0, |size| usize::from(size.ws_col));
    let width = if width == 0 { Terminal::default().width } else { width.clamp(40, 200) };
    Terminal { width, colours: !asked("NO_COLOR") && !dumb }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_and_how_long() {
        let after = Duration::from_secs(4);
        let line = |done, total| line("replay", "decisions", done, total, after);
        assert_eq!(line(50_000, Some(200_000)), "replay ██████░░░░░░░░░░░░░░░░░░  25 %  12.5k decisions/s, 12 s left");
        assert_eq!(line(0, Some(200_000)), "replay ░░░░░░░░░░░░░░░░░░░░░░░░   0 %  0 decisions/s");
        assert_eq!(line(9, Some(8)), "replay ████████████████████████ 100 %  2 decisions/s, 0 s left");
        assert_eq!(line(5_000_000, None), "replay 5.00M decisions, 1.25M decisions/s, 4 s");
        assert_eq!(line(1, Some(0)), "replay 1 decisions, 0 decisions/s, 4 s");
    }

    #[test]
    fn nothing_is_written_where_nobody_watches() {
        let mut progress = Progress { next: None, ..Progress::new("replay", "decisions", Some(10)) };
        progress.at(5);
        assert!(!progress.written);
    }

    #[test]
    fn spans_and_rates_stay_short() {
        assert_eq!((clock(59.0), clock(60.0), clock(3725.0)), ("59 s".into(), "1:00".into(), "1:02:05".into()));
        assert_eq!([short(999.0), short(1000.0), short(123_456.0), short(2e9)], ["999", "1.00k", "123k", "2.00G"]);
    }
}
