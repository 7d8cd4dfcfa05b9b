//! `usher test`: the tests of policies.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use regex::Regex;

use super::offline::environment;
use super::output::show;
use super::{BAD, GOOD, UNABLE};
use crate::lab::{self, Options, Report};

/// Where lcov goes unless `--lcov` says otherwise.
const LCOV: &str = "lcov.info";

/// The command line of `usher test`.
#[derive(Args, Debug)]
pub(super) struct TestArgs {
    /// Tests, policies, folders or shipped names; without any the tests of this folder, else of the shipped policies
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// Run only tests whose name matches
    #[arg(long, value_name = "RE")]
    filter: Option<String>,
    /// Show which lines of the policies ran, and write lcov to lcov.info (or --lcov)
    #[arg(long)]
    coverage: bool,
    /// Where lcov is written; implies --coverage
    #[arg(long, value_name = "FILE")]
    lcov: Option<PathBuf>,
    /// Fail if fewer lines than this ran, in percent of all; counts lines without --coverage too
    #[arg(long, value_name = "PCT", value_parser = percent)]
    threshold: Option<f64>,
    /// Fail if a script variable outlives a call, instead of only reporting it
    #[arg(long)]
    fail_on_hidden_state: bool,
    /// A configuration whose limits, settings and regions the policies get; without it the defaults
    #[arg(short, long = "config", visible_alias = "config-path", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Files that run at a time; by default as many as there are cores
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Pretty,
    /// One JSON document
    Json,
    /// JUnit XML, for build servers
    Junit,
}

pub(super) fn main(args: &TestArgs) -> u8 {
    let filter = match args.filter.as_deref().map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("usher: --filter: {error}");
            return UNABLE;
        }
    };
    let files = match lab::find_tests(&args.paths) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("usher: {error}");
            return UNABLE;
        }
    };
    let environment = match environment(args.config.as_deref()) {
        Ok(environment) => environment,
        Err(error) => {
            eprintln!("usher: {error}");
            return UNABLE;
        }
    };
    let shown = args.coverage || args.lcov.is_some();
    let coverage = shown || args.threshold.is_some();
    let report =
        lab::run_tests(&files, &Options { filter, environment, coverage, jobs: args.jobs, ..Options::default() });
    match args.format {
        Format::Pretty => show!("{}", report.pretty()),
        Format::Junit => show!("{}", report.junit()),
        Format::Json => match serde_json::to_string(&report) {
            Ok(json) => show!("{json}\n"),
            Err(error) => {
                eprintln!("usher: {error}");
                return UNABLE;
            }
        },
    }
    if let (Format::Junit, Some(coverage)) = (args.format, &report.coverage) {
        eprint!("{}", coverage.pretty());
    }
    let written = if shown { write_lcov(args, &report) } else { GOOD };
    report.exit_code().max(written).max(verdict(args, &report))
}

/// What the options make of a run whose tests passed.
fn verdict(args: &TestArgs, report: &Report) -> u8 {
    let mut code = GOOD;
    if let Some(filter) = &args.filter
        && report.tests.is_empty()
    {
        eprintln!("usher: no test's name matches --filter {filter:?}");
        code = UNABLE;
    }
    if args.threshold.is_some() && report.coverage.as_ref().is_some_and(|coverage| coverage.lines == 0) {
        eprintln!("usher: no line of a policy was measured; --threshold needs tests with a policy beside them");
        code = UNABLE;
    }
    if let (Some(least), Some(coverage)) = (args.threshold, &report.coverage)
        && coverage.percent < least
    {
        eprintln!("usher: {} % of the lines ran; --threshold asks for {least} %", coverage.percent);
        code = code.max(BAD);
    }
    if args.fail_on_hidden_state && report.hidden_state > 0 {
        eprintln!("usher: hidden state in {} tests (--fail-on-hidden-state)", report.hidden_state);
        code = code.max(BAD);
    }
    code
}

/// A file that was asked for by name has to be written; the usual one is an offer.
fn write_lcov(args: &TestArgs, report: &Report) -> u8 {
    let Some(coverage) = &report.coverage else { return GOOD };
    let path = args.lcov.as_deref().unwrap_or(Path::new(LCOV));
    match std::fs::write(path, coverage.lcov()) {
        Ok(()) => GOOD,
        Err(error) if args.lcov.is_some() => {
            eprintln!("usher: --lcov: {}: {error}", path.display());
            UNABLE
        }
        Err(error) => {
            eprintln!("warning: {} could not be written: {error}; name another file with --lcov", path.display());
            GOOD
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| format!("{text:?} is no percentage"))?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err(format!("{percent} is not between 0 and 100")) }
}
