//! `usher simulate`: what policies would make of a scenario, or of the traffic of a trace, in virtual time.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value as Json, json};

use super::offline::{Format, can_report, configuration, write_report};
use super::output::{complain, show};
use super::progress::{self, Progress};
use super::{BAD, GOOD, UNABLE};
use crate::config::scenario;
use crate::lab::page::{Page, Side};
use crate::lab::{Simulated, Simulation, page_text};
use crate::model::assertion::Assertion;
use crate::policy::lua::Source;
use crate::policy::shipped;
use crate::trace::read::ZSTD;

/// The command line of `usher simulate`.
#[derive(Args, Debug)]
pub(super) struct SimulateArgs {
    /// A scenario (TOML), or a trace, compressed or not, whose joins and leaves come again
    #[arg(value_name = "SCENARIO")]
    scenario: PathBuf,
    /// A policy: a path or a shipped name; several are compared on the same traffic
    #[arg(long, value_name = "P", required = true)]
    policy: Vec<String>,
    /// With a trace: a configuration whose limits, settings, regions and rebalancing hold; without it those of the trace
    #[arg(short, long = "config", visible_alias = "config-path", value_name = "FILE")]
    config: Option<PathBuf>,
    /// What everything that is drawn grows from, instead of the scenario's seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A demand on each policy, such as "max_load_over_mean < 1.3"; exit code 1 if one fails
    #[arg(long = "assert", value_name = "EXPR")]
    asserts: Vec<Assertion>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
    /// Also write a report: one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(super) fn main(args: &SimulateArgs) -> u8 {
    let unable = |error: String| {
        complain!("{error}");
        UNABLE
    };
    if let Err(error) = can_report(args.report.as_deref()) {
        return unable(error);
    }
    let simulation = match read(&args.scenario, args.seed, args.config.as_deref()) {
        Ok(simulation) => simulation,
        Err(error) => return unable(error),
    };
    if let Some((lines, first)) = simulation.damage() {
        complain!("{lines} lines could not be understood and were passed over; the first: {first}");
    }
    let mut sources = Vec::new();
    for policy in &args.policy {
        match shipped::resolve(policy) {
            Ok(source) => sources.push(source),
            Err(error) => return unable(error.to_string()),
        }
    }
    let mut simulated = Vec::new();
    for source in &sources {
        match run(&simulation, source) {
            Ok(found) => simulated.push(found),
            Err(error) => {
                complain!("{error}");
                return BAD;
            }
        }
    }
    let page = simulation.page(&simulated, &args.asserts);
    match args.format {
        Format::Pretty => show!("{}", page_text::render(&page, progress::terminal())),
        Format::Json => show!("{}\n", document(&page, &simulation)),
    }
    // What was found is said even if it cannot be written.
    if let Err(error) = write_report(args.report.as_deref(), || page.clone()) {
        return unable(error);
    }
    for found in &simulated {
        if let Some(fault) = &found.fault {
            complain!("{}: the first fault: {fault}", found.side.policy);
        }
    }
    let failed = page.sides.iter().flat_map(|side| side.assertions.iter().map(move |checked| (side, checked)));
    let failed: Vec<String> = failed
        .filter(|(_, checked)| !checked.ok)
        .map(|(side, checked)| format!("{}: {checked}", side.policy))
        .collect();
    failed.iter().for_each(|failed| complain!("not so: {failed}"));
    if failed.is_empty() { GOOD } else { BAD }
}

/// Whether a file is a trace: compressed, or JSON. No TOML begins like either. One that says nothing goes by its name.
fn is_trace(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = if path.is_file() { File::open(path).and_then(|mut file| file.read(&mut start)) } else { Ok(0) };
    match read {
        Ok(length) if length > 0 => start == ZSTD || start[0] == b'{',
        Ok(_) | Err(_) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            [".jsonl", ".zst"].iter().any(|ending| name.ends_with(ending))
        }
    }
}

fn read(path: &Path, seed: Option<u64>, config: Option<&Path>) -> Result<Simulation, String> {
    if is_trace(path) {
        let config = config.map(configuration).transpose()?;
        return Simulation::of_trace(path, seed, config.as_ref()).map_err(|error| error.to_string());
    }
    if config.is_some() {
        return Err(format!("-c is for traces; {} has a [policy], [limits] and [regions] of its own", path.display()));
    }
    let scenario = scenario::load(path).map_err(|errors| errors.to_string())?;
    Ok(Simulation::of_scenario(&path.display().to_string(), scenario, seed))
}

/// Tries one policy, with progress on standard error if somebody looks at it.
fn run(simulation: &Simulation, source: &Source) -> Result<Simulated, String> {
    let seconds = simulation.duration().as_secs_f64();
    let mut progress = Progress::new("simulate", "seconds", Some(seconds as u64));
    simulation.run(source, &mut |done| progress.at((done * seconds) as u64)).map_err(|error| error.to_string())
}

/// `{"facts":{},"policies":[{"policy","metrics":{},"assertions":[]}]}`, with `damaged` and `first_damage` for a trace that is.
fn document(page: &Page, simulation: &Simulation) -> Json {
    let policies: Vec<Json> = (page.sides.iter())
        .map(|side| {
            let metrics: Map<String, Json> = figures(side).map(|(name, value)| (name, number(value))).collect();
            json!({
                "policy": side.policy, "version": side.version, "metrics": metrics, "assertions": side.assertions,
            })
        })
        .collect();
    let facts: Map<String, Json> = page.facts.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut document = json!({"facts": facts, "policies": policies});
    if let Some((lines, first)) = simulation.damage() {
        document["damaged"] = json!(lines);
        document["first_damage"] = json!(first.to_string());
    }
    document
}

/// Whole numbers without a fraction.
fn number(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < 9e15 { json!(value as i64) } else { json!(value) }
}

fn figures(side: &Side) -> impl Iterator<Item = (String, f64)> + '_ {
    let named = side.figures.iter().map(|(metric, value)| (metric.name().to_owned(), *value));
    named.chain(side.more.iter().cloned())
}
