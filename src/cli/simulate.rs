//! `usher simulate`: what policies would make of a scenario, or of the traffic of a trace, in virtual time.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Map, Value as Json, json};

use super::offline::Format;
use super::{BAD, GOOD, UNABLE};
use crate::config::scenario;
use crate::lab::page::{Page, Side};
use crate::lab::{Simulated, Simulation};
use crate::model::assertion::Assertion;
use crate::policy::lua::Source;
use crate::policy::shipped;

/// The command line of `usher simulate`.
#[derive(Args, Debug)]
pub(super) struct SimulateArgs {
    /// A scenario (TOML), or a trace (.jsonl or .jsonl.zst), whose joins and leaves come again
    #[arg(value_name = "SCENARIO")]
    scenario: PathBuf,
    /// A policy: a path or a shipped name; several are compared on the same traffic
    #[arg(long, value_name = "P", required = true)]
    policy: Vec<String>,
    /// What everything that is drawn grows from, instead of the scenario's seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A demand on each policy, such as "max_load_over_mean < 1.3"; exit code 1 if one fails
    #[arg(long = "assert", value_name = "EXPR")]
    asserts: Vec<Assertion>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
}

pub(super) fn main(args: &SimulateArgs) -> u8 {
    let unable = |error: String| {
        eprintln!("usher: {error}");
        UNABLE
    };
    let simulation = match read(&args.scenario, args.seed) {
        Ok(simulation) => simulation,
        Err(error) => return unable(error),
    };
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
                eprintln!("usher: {error}");
                return BAD;
            }
        }
    }
    let page = simulation.page(&simulated, &args.asserts);
    match args.format {
        Format::Pretty => print_pretty(&page),
        Format::Json => println!("{}", document(&page)),
    }
    for found in &simulated {
        if let Some(fault) = &found.fault {
            eprintln!("usher: {}: the first fault: {fault}", found.side.policy);
        }
    }
    let failed = page.sides.iter().flat_map(|side| side.assertions.iter().map(move |checked| (side, checked)));
    let failed: Vec<String> = failed
        .filter(|(_, checked)| !checked.ok)
        .map(|(side, checked)| format!("{}: {checked}", side.policy))
        .collect();
    failed.iter().for_each(|failed| eprintln!("usher: not so: {failed}"));
    if failed.is_empty() { GOOD } else { BAD }
}

/// Whether a file is a trace, by its name.
fn is_trace(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [".jsonl", ".jsonl.zst", ".zst"].iter().any(|ending| name.ends_with(ending))
}

fn read(path: &Path, seed: Option<u64>) -> Result<Simulation, String> {
    if is_trace(path) {
        return Simulation::of_trace(path, seed).map_err(|error| error.to_string());
    }
    let scenario = scenario::load(path).map_err(|errors| errors.to_string())?;
    Ok(Simulation::of_scenario(&path.display().to_string(), scenario, seed))
}

/// Tries one policy, with progress on standard error if somebody looks at it.
fn run(simulation: &Simulation, source: &Source) -> Result<Simulated, String> {
    let shown = std::io::stderr().is_terminal();
    let started = Instant::now();
    let mut last = Instant::now();
    let mut progress = |done: f64| {
        if shown && last.elapsed() > Duration::from_millis(200) {
            last = Instant::now();
            eprint!("\r{}: {:3.0} % of {:?}", source.name, 100.0 * done, simulation.duration());
            // Progress that cannot be shown is no reason to stop.
            let _ = std::io::stderr().flush();
        }
    };
    let found = simulation.run(source, &mut progress).map_err(|error| error.to_string());
    if shown {
        eprintln!("\r\x1b[2K{}: done in {:.1} s", source.name, started.elapsed().as_secs_f64());
    }
    found
}

/// `{"policies":[{"policy","metrics":{},"assertions":[]}]}`
fn document(page: &Page) -> Json {
    let policies: Vec<Json> = (page.sides.iter())
        .map(|side| {
            let metrics: Map<String, Json> = figures(side).map(|(name, value)| (name, number(value))).collect();
            json!({
                "policy": side.policy, "version": side.version, "metrics": metrics, "assertions": side.assertions,
            })
        })
        .collect();
    json!({"policies": policies})
}

/// Whole numbers without a fraction.
fn number(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < 9e15 { json!(value as i64) } else { json!(value) }
}

fn figures(side: &Side) -> impl Iterator<Item = (String, f64)> + '_ {
    let named = side.figures.iter().map(|(metric, value)| (metric.name().to_owned(), *value));
    named.chain(side.more.iter().cloned())
}

fn print_pretty(page: &Page) {
    println!("{}", page.title);
    for (name, value) in &page.facts {
        println!("  {name}: {value}");
    }
    let names: Vec<String> =
        page.sides.iter().flat_map(figures).map(|(name, _)| name).fold(Vec::new(), |mut all, name| {
            if !all.contains(&name) {
                all.push(name);
            }
            all
        });
    let width = |side: &Side| side.policy.chars().count().max(12);
    let head: String = page.sides.iter().map(|side| format!("  {:>1$}", side.policy, width(side))).collect();
    println!("\n{:<20}{head}", "");
    for name in names {
        let cells: String = (page.sides.iter())
            .map(|side| {
                let value = figures(side).find(|(other, _)| *other == name).map(|(_, value)| value);
                format!("  {:>1$}", value.map_or_else(|| "-".into(), written), width(side))
            })
            .collect();
        println!("{name:<20}{cells}");
    }
    for side in &page.sides {
        for checked in &side.assertions {
            println!("\n{} {}: {checked}", if checked.ok { "ok    " } else { "FAILED" }, side.policy);
        }
    }
}

/// A figure with as many digits as mean something.
fn written(value: f64) -> String {
    match value {
        whole if whole.fract() == 0.0 => format!("{whole:.0}"),
        large if large.abs() >= 100.0 => format!("{large:.1}"),
        small => format!("{small:.3}"),
    }
}
