//! `usher bench`: what decisions of a policy cost.

use clap::Args;

use super::offline::{Format, PolicyAlone, hook};
use super::output::{say, show};
use super::{BAD, GOOD, UNABLE};
use crate::lab::{self, Bench};
use crate::model::policy::Hook;
use crate::policy::lua::Limits;
use crate::policy::shipped;

/// The command line of `usher bench`.
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    policy: PolicyAlone,
    /// How many Monoliths there are, one measurement each
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "5,50,500", value_parser = size)]
    monoliths: Vec<usize>,
    /// Which hook; without it place, or the first that the policy has
    #[arg(long, value_name = "HOOK", value_parser = hook)]
    hook: Option<Hook>,
}

pub(super) fn main(args: &BenchArgs) -> u8 {
    let unable = |error: String| {
        eprintln!("usher: {error}");
        UNABLE
    };
    let environment = match args.policy.environment() {
        Ok(environment) => environment,
        Err(error) => return unable(error),
    };
    let source = match shipped::resolve(&args.policy.policy) {
        Ok(source) => source,
        Err(error) => return unable(error.to_string()),
    };
    if cfg!(debug_assertions) {
        eprintln!("warning: this usher was built without optimisation; times mean little");
    }
    let found = match lab::bench(&source, &environment, args.hook, &args.monoliths) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("usher: {error}");
            return BAD;
        }
    };
    match args.policy.format {
        Format::Pretty => print_pretty(&found, &environment.limits),
        Format::Json => match serde_json::to_string(&found) {
            Ok(json) => show!("{json}\n"),
            Err(error) => return unable(error.to_string()),
        },
    }
    let fault = found.sizes.iter().find_map(|size| size.fault.as_ref());
    match fault {
        None => GOOD,
        Some(fault) => {
            eprintln!("usher: decisions failed: {fault}");
            BAD
        }
    }
}

fn print_pretty(found: &Bench, limits: &Limits) {
    say!("{}, {}: {} decisions at most for each size", found.policy, found.hook, most(found));
    say!("{:>9}  {:>11}  {:>11}  {:>9}  {:>16}  {:>10}", "monoliths", "p50", "p99", "of budget", "fuel", "memory");
    let share = |part: f64, whole: f64| format!("{:.1} %", 100.0 * part / whole.max(1.0));
    for size in &found.sizes {
        say!(
            "{:>9}  {:>8} ns  {:>8} ns  {:>9}  {:>16}  {:>6} KiB",
            size.monoliths,
            size.p50_ns,
            size.p99_ns,
            share(size.p99_ns as f64, limits.budget.as_nanos() as f64),
            format!("{} ({})", size.fuel, share(size.fuel as f64, limits.fuel as f64)),
            size.memory_bytes / 1024,
        );
    }
    say!(
        "limits: policy.fuel {}, policy.budget {:?}, policy.memory {} KiB",
        limits.fuel,
        limits.budget,
        limits.memory / 1024
    );
}

fn most(found: &Bench) -> usize {
    found.sizes.iter().map(|size| size.decisions).max().unwrap_or(0)
}

fn size(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(size) if (1..=lab::MOST_MONOLITHS).contains(&size) => Ok(size),
        _ => Err(format!("give whole numbers from 1 to {}", lab::MOST_MONOLITHS)),
    }
}
