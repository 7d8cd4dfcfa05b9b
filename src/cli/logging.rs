//! Logs on stderr: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Libraries that write what passes through them at `debug` or `trace`: messages with the tokens of users, headers with
/// keys. No level of ours lets these lines out.
const QUIET: [&str; 6] = ["tungstenite", "tokio_tungstenite", "h2", "hyper", "hyper_util", "mio"];

/// Starts logging at a level (`error`, `warn`, `info`, `debug`, `trace`, or a filter of `tracing-subscriber`). Without
/// one `RUST_LOG` decides, else `info`. An error names what is wrong with the level.
pub(super) fn start(level: Option<&str>) -> Result<(), String> {
    let filter = match level {
        Some(level) => EnvFilter::try_new(level).map_err(|error| format!("--log-level {level}: {error}"))?,
        None => match std::env::var("RUST_LOG") {
            Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| format!("RUST_LOG: {error}"))?,
            _ => EnvFilter::new("info"),
        },
    };
    let logs = tracing_subscriber::registry().with(filter_fn(may_be_written)).with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // A second call, as in a test, keeps the first subscriber.
    if std::io::stderr().is_terminal() {
        let _ = logs.with(lines).try_init();
    } else {
        let _ = logs.with(lines.json().flatten_event(true)).try_init();
    }
    Ok(())
}

/// Whatever a filter asks for, and however precisely it names a module.
fn may_be_written(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let library = target.split_once("::").map_or(target, |(library, _)| library);
    *metadata.level() <= Level::INFO || !QUIET.contains(&library)
}
