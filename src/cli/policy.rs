//! `usher policy`: the versions of a running usher's policy, a shadow, a canary, and what they differ in.

use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::output::show;
use super::steer::{AdminArgs, ask, print_json, report};
use super::{BAD, GOOD};

/// Kinds of changed decisions, and examples, that a text shows.
const SHOWN: usize = 10;

/// `usher policy`.
#[derive(Args, Debug)]
pub(super) struct PolicyArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How `list` and `diff` are shown; `json` prints the whole document of the admin API
    #[arg(long, value_enum, default_value = "pretty", global = true)]
    format: Format,
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Pretty,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Trial {
    Shadow,
    Canary,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// List the versions that were active, newest first
    List,
    /// Show the policy in force, its history, what is on trial, and the last failures
    Show {
        /// Print the text of the version in force instead
        #[arg(long)]
        source: bool,
    },
    /// Let another policy decide: a shipped name, or a file in the folder of `policy.file`
    Use {
        /// The policy
        policy: String,
    },
    /// Return to the version before this one
    Rollback,
    /// Let another policy answer every call too, and compare
    Shadow {
        /// The policy
        policy: String,
    },
    /// Let another policy decide for a share of the rooms
    Canary {
        /// The policy
        policy: String,
        /// The share of the rooms, in percent
        #[arg(long, value_name = "PCT", value_parser = share)]
        share: f64,
    },
    /// Show where the shadow differs from what decides, and how the canary does
    Diff,
    /// Make the canary the version in force
    Promote,
    /// End the shadow or the canary; without a name, the one that there is
    Stop {
        /// What to end
        what: Option<Trial>,
    },
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.trim_end_matches('%').parse().ok().filter(|share| (0.0..=100.0).contains(share));
    share.ok_or_else(|| "write a percentage from 0 to 100".into())
}

const POLICY: &str = "/_usher/v1/policy";

pub(super) fn main(args: &PolicyArgs) -> u8 {
    let get = |path: &str, show: &dyn Fn(&Value)| report(&args.admin, ask(&args.admin, Method::GET, path, None), show);
    let post = |what: &str, body: Option<Value>| {
        let path = format!("{POLICY}/{what}");
        report(&args.admin, ask(&args.admin, Method::POST, &path, body), print_json)
    };
    let json = args.format == Format::Json;
    match &args.command {
        PolicyCommand::List if json => get(POLICY, &print_json),
        PolicyCommand::List => get(POLICY, &|document| show!("{}", list(document))),
        PolicyCommand::Show { source: false } => get(POLICY, &print_json),
        PolicyCommand::Show { source: true } => get(&format!("{POLICY}/source"), &|document| match json {
            true => print_json(document),
            false => show!("{}", document["text"].as_str().unwrap_or_default()),
        }),
        PolicyCommand::Use { policy } => post("use", Some(json!({"policy": policy}))),
        PolicyCommand::Rollback => post("rollback", None),
        PolicyCommand::Shadow { policy } => post("shadow", Some(json!({"policy": policy}))),
        PolicyCommand::Canary { policy, share } => post("canary", Some(json!({"policy": policy, "share": share}))),
        PolicyCommand::Promote => post("promote", None),
        PolicyCommand::Diff => {
            let mut code = GOOD;
            let asked = report(&args.admin, ask(&args.admin, Method::GET, POLICY, None), |document| {
                if json {
                    print_json(document);
                } else if document["shadow"].is_null() && document["canary"].is_null() {
                    eprintln!("usher: there is neither a shadow nor a canary; start one with `usher policy shadow P`");
                    code = BAD;
                } else {
                    show!("{}", diff(document));
                }
            });
            asked.max(code)
        }
        PolicyCommand::Stop { what } => stop(args, *what),
    }
}

/// Without a name, what there is is asked for first.
fn stop(args: &PolicyArgs, what: Option<Trial>) -> u8 {
    let mut what = what;
    if what.is_none() {
        let mut both = false;
        let code = report(&args.admin, ask(&args.admin, Method::GET, POLICY, None), |document| {
            let (shadow, canary) = (!document["shadow"].is_null(), !document["canary"].is_null());
            both = shadow && canary;
            what = if canary { Some(Trial::Canary) } else { Some(Trial::Shadow) };
        });
        if code != GOOD {
            return code;
        }
        if both {
            eprintln!("usher: there is a shadow and a canary; say which: `usher policy stop shadow` or `... canary`");
            return BAD;
        }
    }
    let what = if what == Some(Trial::Canary) { "canary" } else { "shadow" };
    let path = format!("{POLICY}/stop");
    report(&args.admin, ask(&args.admin, Method::POST, &path, Some(json!({"what": what}))), print_json)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

fn list(document: &Value) -> String {
    let active = std::iter::once(&document["active"]);
    let versions: Vec<&Value> = active.chain(document["history"].as_array().into_iter().flatten()).collect();
    let width = |key: &str| versions.iter().map(|version| text(version, key).chars().count()).max().unwrap_or(0);
    let (name, source) = (width("name"), width("source"));
    versions.iter().fold(String::new(), |mut out, version| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{}  {}  {:name$}  {:source$}  by {}",
            text(version, "activated_at"),
            text(version, "version"),
            text(version, "name"),
            text(version, "source"),
            text(version, "by")
        );
        out
    })
}

/// What a comparison came to, for people.
fn diff(document: &Value) -> String {
    let mut out = String::new();
    let active = &document["active"];
    // Writing to a String cannot fail.
    let _ = writeln!(out, "active  {} {}", text(active, "name"), text(active, "version"));
    let canary = &document["canary"];
    if !canary.is_null() {
        let policy = &canary["policy"];
        let _ = writeln!(
            out,
            "canary  {} {}: {} % of the rooms, {} calls, {} faults{}",
            text(policy, "name"),
            text(policy, "version"),
            canary["share"],
            canary["calls"],
            canary["faults"],
            kinds(&canary["faults_by_kind"])
        );
    }
    let shadow = &document["shadow"];
    if !shadow.is_null() {
        shadow_diff(&mut out, shadow);
    }
    out
}

fn kinds(faults: &Value) -> String {
    let kinds: Vec<String> =
        faults.as_object().into_iter().flatten().map(|(kind, count)| format!("{kind} {count}")).collect();
    if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) }
}

fn shadow_diff(out: &mut String, shadow: &Value) {
    let policy = &shadow["policy"];
    let agreement = shadow["agreement"].as_f64().map_or("-".into(), |share| format!("{:.2} %", share * 100.0));
    let _ = writeln!(
        out,
        "shadow  {} {}: {} calls, {} agreed ({agreement}), {} skipped, {} faults{}",
        text(policy, "name"),
        text(policy, "version"),
        shadow["calls"],
        shadow["agreed"],
        shadow["skipped"],
        shadow["faults"],
        kinds(&shadow["faults_by_kind"])
    );
    let us = |side: &str, what: &str| {
        let ns = shadow["time_ns"][side][what].as_f64();
        ns.map_or("-".into(), |ns| format!("{:.1}", ns / 1e3))
    };
    let _ = writeln!(out, "\n{:24}{:>12}{:>12}", "", "active", "shadow");
    for (label, what) in [("time p50, us", "p50"), ("time p99, us", "p99"), ("time max, us", "max")] {
        let _ = writeln!(out, "{label:24}{:>12}{:>12}", us("active", what), us("shadow", what));
    }
    let spread = &shadow["spread"];
    let even = |side: &str| spread["max_over_mean"][side].as_f64().map_or("-".into(), |even| format!("{even:.2}"));
    let _ = writeln!(out, "{:24}{:>12}{:>12}", "rooms, max over mean", even("active"), even("shadow"));
    for one in spread["monoliths"].as_array().into_iter().flatten() {
        let _ =
            writeln!(out, "  {:22}{:>12}{:>12}", text(one, "id"), one["active"].to_string(), one["shadow"].to_string());
    }
    let changed: Vec<&Value> = shadow["changed"].as_array().into_iter().flatten().collect();
    if changed.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nchanged decisions");
    for group in changed.iter().take(SHOWN) {
        let count = group["count"].to_string();
        let _ = writeln!(out, "{count:>8}  {}: {} -> {}", text(group, "hook"), text(group, "from"), text(group, "to"));
    }
    let rest = changed.iter().skip(SHOWN).filter_map(|group| group["count"].as_u64()).sum::<u64>()
        + shadow["changed_beyond"].as_u64().unwrap_or(0);
    if rest > 0 {
        let _ = writeln!(out, "{rest:>8}  others");
    }
    let _ = writeln!(out, "\nexamples");
    for example in shadow["examples"].as_array().into_iter().flatten().take(SHOWN) {
        let about = example["room"].as_str().or(example["path"].as_str()).unwrap_or("-");
        let region = text(example, "region");
        let (hook, from, to) = (text(example, "hook"), text(example, "from"), text(example, "to"));
        let _ = writeln!(out, "  {hook} {about} (region {region}): {from} -> {to}");
        for (side, key) in [("active", "from_explain"), ("shadow", "explain")] {
            for said in example[key].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let _ = writeln!(out, "      {side}: {said}");
            }
        }
        if let Some(fault) = example["fault"].as_str() {
            let _ = writeln!(out, "      shadow: {fault}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage() {
        assert_eq!((share("5"), share("2.5%")), (Ok(5.0), Ok(2.5)));
        for wrong in ["", "101", "-1", "NaN", "half"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_comparison_is_readable() {
        let version = |name: &str| json!({"name": name, "version": "0123456789ab"});
        let shown = diff(&json!({
            "active": version("default"),
            "canary": {"policy": version("c"), "share": 5.0, "calls": 10, "faults": 1, "faults_by_kind": {"error": 1}},
            "shadow": {
                "policy": version("s"), "calls": 4, "agreed": 3, "agreement": 0.75, "skipped": 0, "faults": 0,
                "faults_by_kind": {}, "time_ns": {"active": {"p50": 1500, "p99": 2000, "max": 3000}, "shadow": null},
                "spread": {
                    "monoliths": [{"id": "m1", "active": 3, "shadow": 4}],
                    "max_over_mean": {"active": 1.5, "shadow": null},
                },
                "changed": [{"hook": "place", "from": "m1", "to": "m2", "count": 1}], "changed_beyond": 2,
                "examples": [{"hook": "place", "room": "movie", "region": "ewr", "from": "m1", "to": "m2",
                              "from_explain": [], "explain": ["why not"], "fault": null}],
            },
        }));
        for line in [
            "active  default 0123456789ab",
            "canary  c 0123456789ab: 5.0 % of the rooms, 10 calls, 1 faults (error 1)",
            "shadow  s 0123456789ab: 4 calls, 3 agreed (75.00 %), 0 skipped, 0 faults",
            "time p50, us                     1.5           -",
            "rooms, max over mean            1.50           -",
            "  m1                               3           4",
            "       1  place: m1 -> m2",
            "       2  others",
            "  place movie (region ewr): m1 -> m2",
            "      shadow: why not",
        ] {
            assert!(shown.lines().any(|there| there == line), "{line:?} is not in\n{shown}");
        }
    }
}
