//! `usher eval`: one decision on one recorded or hand-written call.

use std::io::Read;
use std::path::Path;

use clap::Args;
use serde_json::Value as Json;

use super::offline::{Format, PolicyAlone, hook};
use super::output::{say, show};
use super::{BAD, GOOD, UNABLE};
use crate::lab::{self, Evaluation, input};
use crate::model::policy::{Call, Hook, View};
use crate::policy::shipped;

/// The largest call that is read.
const MAX_INPUT: u64 = 16 << 20;

/// The command line of `usher eval`.
#[derive(Args, Debug)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    policy: PolicyAlone,
    /// Which hook: admit, place, route or rebalance; without it the one that the call names, else place
    #[arg(long, value_name = "HOOK", value_parser = hook)]
    hook: Option<Hook>,
    /// The call object that the script sees, as JSON; "-" is standard input
    #[arg(long, value_name = "CALL.json")]
    input: String,
    /// Show what the script said, how each helper ranked, and what the core made of the answer
    #[arg(long)]
    explain: bool,
}

pub(super) fn main(args: &EvalArgs) -> u8 {
    let unable = |error: String| {
        eprintln!("usher: {error}");
        UNABLE
    };
    let (call, view) = match read(&args.input, args.hook) {
        Ok(input) => input,
        Err(error) => return unable(error),
    };
    let environment = match args.policy.environment() {
        Ok(environment) => environment,
        Err(error) => return unable(error),
    };
    let source = match shipped::resolve(&args.policy.policy) {
        Ok(source) => source,
        Err(error) => return unable(error.to_string()),
    };
    let evaluation = match lab::evaluate(&source, &environment, &call, &view, args.explain) {
        Ok(evaluation) => evaluation,
        Err(error) => {
            eprintln!("usher: {error}");
            return BAD;
        }
    };
    match args.policy.format {
        Format::Pretty => print_pretty(&evaluation),
        Format::Json => match serde_json::to_string(&evaluation) {
            Ok(json) => show!("{json}\n"),
            Err(error) => return unable(error.to_string()),
        },
    }
    if evaluation.fault.is_some() { BAD } else { GOOD }
}

fn print_pretty(evaluation: &Evaluation) {
    say!("answer    {}", evaluation.answer);
    if let Some(choice) = &evaluation.choice {
        let rest = evaluation.choices.len().saturating_sub(1);
        say!("choice    {choice}{}", if rest > 0 { format!(", then {rest} more") } else { String::new() });
    }
    if let Some(fallback) = &evaluation.fallback {
        say!("fallback  {fallback}");
    }
    say!("cost      {} ns, {} safepoints", evaluation.ns, evaluation.fuel);
    for line in &evaluation.explain {
        say!("  {line}");
    }
}

/// Reads the call; an error names the file, and the line or the path inside the document.
fn read(path: &str, hook: Option<Hook>) -> Result<(Call, View), String> {
    let name = if path == "-" { "standard input" } else { path };
    let mut text = String::new();
    let read = |mut from: &mut dyn Read, text: &mut String| Read::take(&mut from, MAX_INPUT + 1).read_to_string(text);
    let size = match path {
        "-" => read(&mut std::io::stdin(), &mut text),
        _ if Path::new(path).is_dir() => return Err(format!("{name}: is a folder; name a file with one call")),
        _ => std::fs::File::open(path).and_then(|mut file| read(&mut file, &mut text)),
    };
    match size {
        Ok(size) if size as u64 > MAX_INPUT => return Err(format!("{name}: has more than {MAX_INPUT} bytes")),
        Ok(_) => {}
        Err(error) => return Err(format!("{name}: cannot be read: {error}")),
    }
    let json: Json = serde_json::from_str(&text).map_err(|error| {
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        format!("{name}:{}: is no JSON: {what} (column {})", error.line(), error.column())
    })?;
    // A decision of a trace holds the call and names its hook beside it.
    let (call, named) = match (json.get("call"), json.get("hook")) {
        (Some(call @ Json::Object(_)), named) => (call, named.and_then(Json::as_str)),
        _ => (&json, None),
    };
    let named = named.and_then(|name| Hook::ALL.into_iter().find(|hook| hook.name() == name));
    input::parse(hook.or(named), call).map_err(|error| format!("{name}: {error}"))
}
