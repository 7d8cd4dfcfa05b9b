//! `usher record`: records the traffic of a running usher through its admin API.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Map, Value};

use super::output::show;
use super::steer::{AdminArgs, ask, print_json, report};

/// `usher record`.
#[derive(Args, Debug)]
pub(super) struct RecordArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: RecordCommand,
}

#[derive(Debug, Subcommand)]
enum RecordCommand {
    /// Begin to record
    Start {
        /// A file in the record folder of that usher; .zst at its end compresses it. Without it `record.path`, else a
        /// name made of the moment
        #[arg(long, value_name = "P")]
        path: Option<String>,
        /// End by itself after so long, such as 10m
        #[arg(long = "for", value_name = "TIME")]
        time: Option<String>,
    },
    /// End the recording
    Stop,
    /// Show how the recording goes, or how the last one went
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

const PATH: &str = "/_usher/v1/record";

pub(super) fn main(args: &RecordArgs) -> u8 {
    let (method, body, json) = match &args.command {
        RecordCommand::Start { path, time } => {
            let given = [("path", path), ("for", time)];
            let given = given.into_iter().filter_map(|(key, value)| Some((key.to_string(), value.clone()?.into())));
            (Method::POST, Some(Value::Object(given.collect::<Map<_, _>>())), false)
        }
        RecordCommand::Stop => (Method::DELETE, None, false),
        RecordCommand::Status { json } => (Method::GET, None, *json),
    };
    report(&args.admin, ask(&args.admin, method, PATH, body), |document| match json {
        true => print_json(document),
        false => show!("{}", summary(document)),
    })
}

/// A recording for people.
pub(super) fn summary(document: &Value) -> String {
    let text = |key: &str| document[key].as_str();
    let count = |key: &str| document[key].as_u64().unwrap_or(0);
    let Some(path) = text("path") else { return "nothing has been recorded\n".into() };
    let state = if document["recording"] == true { "recording" } else { "recorded" };
    let mut out = format!(
        "{state} {path}: {} decisions, {} events, {} bytes, since {}\n",
        count("decisions"),
        count("events"),
        count("bytes"),
        text("started_at").unwrap_or("-"),
    );
    for (key, what) in [("ends_at", "ends at"), ("ended_at", "ended at")] {
        if let Some(moment) = text(key) {
            out.push_str(&format!("{what} {moment}\n"));
        }
    }
    if count("rotations") > 0 {
        out.push_str(&format!("{} full files\n", count("rotations")));
    }
    let dropped = (count("dropped_decisions"), count("dropped_events"));
    if dropped != (0, 0) {
        out.push_str(&format!("{} decisions and {} events are missing; the trace says where\n", dropped.0, dropped.1));
    }
    if let Some(error) = text("error") {
        out.push_str(&format!("error: {error}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::summary;

    #[test]
    fn people_read_what_is_missing_and_why() {
        assert_eq!(summary(&json!({"recording": false, "path": null})), "nothing has been recorded\n");
        let document = json!({"recording": true, "path": "t/x.jsonl", "decisions": 7, "events": 9, "bytes": 100,
            "started_at": "2026-01-01T00:00:00Z", "ends_at": "2026-01-01T00:10:00Z", "dropped_decisions": 2,
            "dropped_events": 0, "error": "t/x.jsonl: no space left"});
        assert_eq!(
            summary(&document),
            "recording t/x.jsonl: 7 decisions, 9 events, 100 bytes, since 2026-01-01T00:00:00Z\n\
             ends at 2026-01-01T00:10:00Z\n\
             2 decisions and 0 events are missing; the trace says where\n\
             error: t/x.jsonl: no space left\n"
        );
    }
}
