//! `usher trace`: looks into recorded traffic.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::offline::Format;
use super::output::{complain, say, show};
use super::progress::Progress;
use super::why;
use super::{BAD, GOOD, UNABLE};
use crate::lab::trace_cut::cut_file;
use crate::lab::trace_info::{MonolithInfo, TraceInfo, trace_info};
use crate::lab::trace_test::{NoTest, trace_test};
use crate::lab::when::When;
use crate::trace::read::{OnDamage, Reader};

/// Monoliths, policies and faults that the summary for people shows; the JSON document has more.
const SHOWN: usize = 20;

/// The command line of `usher trace`.
#[derive(Args, Debug)]
pub(super) struct TraceArgs {
    #[command(subcommand)]
    command: TraceCommand,
}

#[derive(Debug, Subcommand)]
enum TraceCommand {
    /// What is in a trace: span, Monoliths, rooms, decisions, policies, and what is missing
    Info(InfoArgs),
    /// Copy a part of a trace into a file that stands alone
    Cut(CutArgs),
    /// Print a recorded decision as a test
    ToTest(ToTestArgs),
    /// Tell the story of a room
    Why(why::TracedArgs),
}

#[derive(Args, Debug)]
struct InfoArgs {
    /// The trace, compressed or not
    #[arg(value_name = "TRACE")]
    file: PathBuf,
    /// What to do about a line that cannot be understood
    #[arg(long, value_enum, default_value_t = Damage::Skip)]
    on_damage: Damage,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
}

#[derive(Args, Debug)]
struct CutArgs {
    /// The trace, compressed or not
    #[arg(value_name = "TRACE")]
    file: PathBuf,
    /// Where the part begins: a time after the start (90s, 1h30m) or one such as 2026-11-22T18:30:00Z
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = When::parse)]
    from: When,
    /// Where it ends; without it at the end of the trace
    #[arg(long, value_name = "TIME", value_parser = When::parse)]
    to: Option<When>,
    /// The new file; compressed if its name ends in .zst
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file of that name
    #[arg(long)]
    force: bool,
    /// What to do about a line that cannot be understood
    #[arg(long, value_enum, default_value_t = Damage::Stop)]
    on_damage: Damage,
}

#[derive(Args, Debug)]
struct ToTestArgs {
    /// The trace, compressed or not
    #[arg(value_name = "TRACE")]
    file: PathBuf,
    /// The number of the decision
    #[arg(long, value_name = "N")]
    decision: u64,
    /// What the test is called
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// What to do about a line that cannot be understood
    #[arg(long, value_enum, default_value_t = Damage::Skip)]
    on_damage: Damage,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Damage {
    /// Say so and end
    Stop,
    /// Count it and go on with the next
    Skip,
}

impl From<Damage> for OnDamage {
    fn from(damage: Damage) -> Self {
        match damage {
            Damage::Stop => Self::Stop,
            Damage::Skip => Self::Skip,
        }
    }
}

pub(super) fn main(args: &TraceArgs) -> u8 {
    let done = match &args.command {
        TraceCommand::Info(args) => info(args),
        TraceCommand::Cut(args) => cut(args),
        TraceCommand::ToTest(args) => to_test(args),
        TraceCommand::Why(args) => Ok(why::traced(args)),
    };
    done.unwrap_or_else(|error| {
        complain!("{error}");
        UNABLE
    })
}

fn open(file: &Path, damage: Damage) -> Result<Reader, String> {
    Reader::open(file, damage.into()).map_err(|e| e.to_string())
}

fn info(args: &InfoArgs) -> Result<u8, String> {
    let mut reader = open(&args.file, args.on_damage)?;
    let mut progress = Progress::new("info", "lines", None);
    let info = trace_info(&mut reader, &args.file.display().to_string(), |lines| progress.at(lines));
    drop(progress);
    let info = info.map_err(|e| e.to_string())?;
    match args.format {
        Format::Pretty => print_info(&info),
        Format::Json => show!("{}\n", serde_json::to_string(&info).map_err(|e| e.to_string())?),
    }
    Ok(GOOD)
}

fn print_info(info: &TraceInfo) {
    let redacted = if info.redacted { ", names of rooms hashed" } else { "" };
    say!("{}: balancer {} in {}, usher {}{redacted}", info.file, info.balancer, info.region, info.usher);
    say!("started    {}", info.started);
    match (&info.from, &info.to) {
        (Some(from), Some(to)) => {
            say!("from       {} ({})", from.time, offset(from.at_s));
            say!("to         {} ({}), {} in all", to.time, offset(to.at_s), offset(info.span_s));
        }
        _ => say!("nothing is recorded in it"),
    }
    let files = if info.headers > 1 { format!(", {} files one behind another", info.headers) } else { String::new() };
    say!("lines      {}{files}", info.lines);
    let about = if info.rooms_exact { "" } else { "about " };
    say!("rooms      {about}{}", info.rooms);
    say!("events     {}", counts(info.events.iter()));
    say!("decisions  {}", counts(info.by_hook.iter()));
    if info.bypassed > 0 {
        say!("           {} of them past the policy, whose breaker was open", info.bypassed);
    }
    say!("monoliths  {}", info.monoliths.len() as u64 + info.more_monoliths);
    for monolith in info.monoliths.iter().take(SHOWN) {
        say!("  {:<36}  {:<8} placed {:>7}  up {}", monolith.id, monolith.region, monolith.placed, up(monolith));
    }
    more(info.monoliths.len() as u64 + info.more_monoliths);
    say!("policies   {}", info.policies.len());
    for policy in info.policies.iter().take(SHOWN) {
        let text = if policy.text { "" } else { "  (its text is not in the trace)" };
        say!("  {}  {:<24} {} decisions{text}", policy.version, policy.name, policy.decisions);
    }
    more(info.policies.len() as u64);
    say!("faults     {}", info.faults);
    for fault in info.faults_by_kind.iter().take(SHOWN) {
        say!(
            "  {} {}: {}, first at decision {}: {}",
            fault.hook,
            fault.kind,
            fault.count,
            fault.decision,
            fault.message
        );
    }
    more(info.faults_by_kind.len() as u64);
    match info.gaps {
        0 => say!("gaps       none"),
        gaps => say!(
            "gaps       {gaps}: {} events and {} decisions are missing",
            info.missing_events,
            info.missing_decisions
        ),
    }
    if let Some(first) = &info.first_damage {
        let line = first.line.map(|line| format!("line {line}: ")).unwrap_or_default();
        say!("damaged    {} lines, the first is {line}{}", info.damaged, first.what);
    }
    if info.cut_off {
        say!("cut off    it ends in the middle: the recording was ended hard, or goes on");
    }
}

fn counts<'a>(counts: impl Iterator<Item = (&'a &'static str, &'a u64)>) -> String {
    let (mut sum, mut parts) = (0, Vec::new());
    for (name, count) in counts {
        sum += count;
        parts.push(format!("{name} {count}"));
    }
    if parts.is_empty() { "0".into() } else { format!("{sum}: {}", parts.join(", ")) }
}

fn up(monolith: &MonolithInfo) -> String {
    let spans = monolith.up_s.iter().map(|(from, to)| match to {
        Some(to) => format!("{} to {}", offset(*from), offset(*to)),
        None => format!("{} to the end", offset(*from)),
    });
    let more = if monolith.more_up > 0 { format!(" and {} more times", monolith.more_up) } else { String::new() };
    spans.collect::<Vec<_>>().join(", ") + &more
}

fn more(all: u64) {
    if all > SHOWN as u64 {
        say!("  and {} more (--format json)", all - SHOWN as u64);
    }
}

/// Seconds as `--from` and `--to` take them.
fn offset(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes:02}m{seconds:02}s"),
    }
}

fn cut(args: &CutArgs) -> Result<u8, String> {
    let mut reader = open(&args.file, args.on_damage)?;
    let span = (args.from, args.to.unwrap_or(When::After(u64::MAX)));
    let mut progress = Progress::new("cut", "lines", None);
    let done = cut_file(&mut reader, &args.file, span, (&args.out, args.force), &mut |lines| progress.at(lines));
    drop(progress);
    let done = done.map_err(|e| e.to_string())?;
    let numbers = match done.numbers {
        Some((first, last)) => format!(" ({first} to {last}, which are 1 to {} now)", done.decisions),
        None => String::new(),
    };
    say!("{}: {} events, {} decisions{numbers}", args.out.display(), done.events, done.decisions);
    let (monoliths, rooms, clients) = done.restated;
    say!("it begins with {monoliths} Monoliths, {rooms} rooms and {clients} clients in them");
    if done.damaged > 0 {
        say!("{} damaged lines are told as gaps", done.damaged);
    }
    Ok(GOOD)
}

fn to_test(args: &ToTestArgs) -> Result<u8, String> {
    let mut reader = open(&args.file, args.on_damage)?;
    let file = args.file.display().to_string();
    match trace_test(&mut reader, &file, args.decision, args.name.as_deref()) {
        Ok(test) => {
            show!("{}", test.text);
            let Some(doubt) = test.doubt else { return Ok(GOOD) };
            complain!("the policy of the trace does not pass it: {doubt}");
            Ok(BAD)
        }
        Err(NoTest::Trace(error)) => Err(error.to_string()),
        Err(NoTest::Nothing(why)) => {
            complain!("{why}");
            Ok(BAD)
        }
    }
}
