//! `usher replay`: every recorded decision made again, by the version that made it or by another policy.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::offline::{Format, environment};
use super::{BAD, GOOD, UNABLE};
use crate::lab::replay::{Instead, Plan, Replay, Replayed};
use crate::model::assertion::{Assertion, Metric};
use crate::policy::shipped;
use crate::trace::read::{OnDamage, Reader};

/// How often progress is shown.
const SHOW: Duration = Duration::from_millis(500);
/// Kinds of changes that are printed.
const KINDS: usize = 20;

/// The command line of `usher replay`.
#[derive(Args, Debug)]
pub(super) struct ReplayArgs {
    /// The trace: FILE.jsonl or FILE.jsonl.zst
    #[arg(value_name = "TRACE")]
    trace: PathBuf,
    /// Who decides again: a path or a shipped name; without it each decision's own version, which has to say the same
    #[arg(long, value_name = "P")]
    policy: Option<String>,
    /// Compare with this policy instead of with what was recorded
    #[arg(long, value_name = "P2", requires = "policy")]
    against: Option<String>,
    /// Fail unless this holds, as in "agreement >= 0.95" or "faults == 0"; may be given several times
    #[arg(long = "assert", value_name = "EXPR", value_parser = str::parse::<Assertion>)]
    assertions: Vec<Assertion>,
    /// A configuration whose limits, settings and regions the policies get; without it those of the trace
    #[arg(short, long = "config", visible_alias = "config-path", value_name = "FILE", requires = "policy")]
    config: Option<PathBuf>,
    /// End at the first line that cannot be understood, instead of counting it and going on
    #[arg(long)]
    strict: bool,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
}

pub(super) fn main(args: &ReplayArgs) -> u8 {
    match replay(args) {
        Ok(replayed) => {
            match args.format {
                Format::Pretty => print_pretty(args, &replayed),
                Format::Json => println!("{}", replayed.document()),
            }
            let failures = replayed.failures();
            for failure in &failures {
                eprintln!("usher: {failure}");
            }
            if failures.is_empty() { GOOD } else { BAD }
        }
        Err(error) => {
            eprintln!("usher: {error}");
            UNABLE
        }
    }
}

fn replay(args: &ReplayArgs) -> Result<Replayed, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let instead = |name: &Option<String>| -> Result<Option<Instead>, String> {
        let Some(name) = name else { return Ok(None) };
        let source = shipped::resolve(name).map_err(|e| text(&e))?;
        // Each has a state of its own.
        let environment = args.config.as_deref().map(|path| environment(Some(path))).transpose()?;
        Ok(Some(Instead { source, environment }))
    };
    let plan = Plan {
        policy: instead(&args.policy)?,
        against: instead(&args.against)?,
        assertions: args.assertions.clone(),
        until: None,
    };
    let on_damage = if args.strict { OnDamage::Stop } else { OnDamage::Skip };
    let mut reader = Reader::open(&args.trace, on_damage).map_err(|e| text(&e))?;
    let mut replay = Replay::new(reader.header(), plan).map_err(|e| text(&e))?;
    let mut progress = Progress::new();
    let read = replay.read(&mut reader, &mut |decisions| progress.show(decisions));
    progress.end();
    read.map_err(|e| text(&e))?;
    Ok(replay.finish())
}

/// A line on stderr, if somebody watches, that is written anew.
struct Progress {
    watched: bool,
    began: Instant,
    shown: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self { watched: std::io::stderr().is_terminal(), began: Instant::now(), shown: None }
    }

    fn show(&mut self, decisions: u64) {
        if !self.watched || self.shown.unwrap_or(self.began).elapsed() < SHOW {
            return;
        }
        self.shown = Some(Instant::now());
        let rate = decisions as f64 / self.began.elapsed().as_secs_f64();
        eprint!("\r{decisions} decisions, {rate:.0} a second ");
    }

    fn end(&self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn print_pretty(args: &ReplayArgs, replayed: &Replayed) {
    let whole = |of: u64| if replayed.decisions > 0 { of as f64 / replayed.decisions as f64 * 100.0 } else { 0.0 };
    println!(
        "{}: {} decisions over {:.1} s, {} agreed, {} changed ({:.2} %), {} faults",
        args.trace.display(),
        replayed.decisions,
        replayed.span_s,
        replayed.agreed,
        replayed.changed(),
        whole(replayed.changed()),
        replayed.faults
    );
    for (hook, [decisions, agreed, changed, faults]) in replayed.hooks() {
        println!("  {hook:<10} {decisions:>9} decisions  {agreed:>9} agreed  {changed:>7} changed  {faults:>5} faults");
    }
    let (base, name) = (replayed.base_name(), replayed.policy.name.as_str());
    println!("\n{:<20} {base:>16} {name:>16}", "");
    let shown = |value: Option<&f64>| value.map_or("-".into(), ToString::to_string);
    for metric in Metric::ALL {
        let (old, new) = (replayed.base_figures.get(metric), replayed.figures.get(metric));
        if old.is_some() || new.is_some() {
            println!("{:<20} {:>16} {:>16}", metric.name(), shown(old), shown(new));
        }
    }
    if !replayed.kinds.is_empty() {
        println!("\nchanged decisions");
    }
    for kind in replayed.kinds.iter().take(KINDS) {
        println!("  {:>8}  {:<10} {} -> {}", kind.count, kind.hook, kind.from, kind.to);
        let alike = |example: &&crate::lab::replay::Example| {
            (example.hook, &example.from, &example.to) == (kind.hook.as_str(), &kind.from, &kind.to)
        };
        for example in replayed.examples.iter().filter(alike) {
            let what = example.room.as_deref().or(example.path.as_deref()).unwrap_or("-");
            let region = example.region.as_deref().map(|region| format!(" from {region}")).unwrap_or_default();
            let said = [&example.from_explain, &example.explain].map(|said| said.join("; "));
            let why = match (&example.fault, said) {
                (Some(fault), _) => format!(": {fault}"),
                (None, [from, to]) if from.is_empty() && to.is_empty() => String::new(),
                (None, [from, to]) => format!(": {to} (before: {from})"),
            };
            println!("            #{} {what}{region}{why}", example.decision);
        }
    }
    if replayed.kinds.len() > KINDS {
        println!("  and {} kinds more", replayed.kinds.len() - KINDS);
    }
    if !replayed.assertions.is_empty() {
        println!("\nassertions");
    }
    for checked in &replayed.assertions {
        println!("  {}  {checked}", if checked.ok { "ok    " } else { "FAILED" });
    }
    let notes = replayed.notes();
    if !notes.is_empty() {
        println!("\nnotes");
    }
    for note in notes {
        println!("  {note}");
    }
}
