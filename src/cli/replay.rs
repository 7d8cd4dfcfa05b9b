//! `usher replay`: every recorded decision made again, by the version that made it or by another policy.

use std::path::PathBuf;

use clap::Args;

use super::offline::{Format, can_report, environment, write_report};
use super::output::{complain, show};
use super::progress::{self, Progress};
use super::{BAD, GOOD, UNABLE};
use crate::lab::page_text;
use crate::lab::replay::{Instead, Plan, Replay, ReplayError, Replayed};
use crate::model::assertion::Assertion;
use crate::policy::shipped;
use crate::trace::read::{OnDamage, Reader};

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
    /// Also write a report: one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(super) fn main(args: &ReplayArgs) -> u8 {
    match replay(args) {
        Ok(replayed) => {
            match args.format {
                Format::Pretty => print_pretty(&replayed),
                Format::Json => show!("{}\n", replayed.document()),
            }
            // What was found is said even if it cannot be written.
            if let Err(error) = write_report(args.report.as_deref(), || replayed.page().clone()) {
                complain!("{error}");
                return UNABLE;
            }
            let failures = replayed.failures();
            for failure in &failures {
                complain!("{failure}");
            }
            if failures.is_empty() { GOOD } else { BAD }
        }
        Err((code, error)) => {
            complain!("{error}");
            code
        }
    }
}

/// An error comes with its exit code: a policy that does not compile is bad, anything else keeps it from being asked.
fn replay(args: &ReplayArgs) -> Result<Replayed, (u8, String)> {
    let text = |error: &dyn std::fmt::Display| (UNABLE, error.to_string());
    can_report(args.report.as_deref()).map_err(|e| text(&e))?;
    let instead = |name: &Option<String>| -> Result<Option<Instead>, (u8, String)> {
        let Some(name) = name else { return Ok(None) };
        let source = shipped::resolve(name).map_err(|e| text(&e))?;
        // Each has a state of its own.
        let environment =
            args.config.as_deref().map(|path| environment(Some(path))).transpose().map_err(|e| text(&e))?;
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
    let mut replay = Replay::new(reader.header(), plan).map_err(|e| (BAD, e.to_string()))?;
    let mut progress = Progress::new("replay", "decisions", None);
    let read = replay.read(&mut reader, &mut |decisions| progress.at(decisions));
    drop(progress);
    read.map_err(|error| match error {
        ReplayError::Policy(error) => (BAD, error.to_string()),
        error @ (ReplayError::Trace(_) | ReplayError::TimedOut { .. }) => text(&error),
    })?;
    Ok(replay.finish())
}

fn print_pretty(replayed: &Replayed) {
    show!("{}", page_text::render(replayed.page(), progress::terminal()));
}
