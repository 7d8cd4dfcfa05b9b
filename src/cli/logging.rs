//! Logs on stderr: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Libraries that write what passes through them at `debug` or `trace`: messages with the tokens of users, headers with
/// keys. No level of ours lets these lines out.
const QUIET: [&str; 6] =
    ["tungstenite=info", "tokio_tungstenite=info", "h2=info", "hyper=info", "hyper_util=info", "mio=info"];

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
    let filter = QUIET.iter().filter_map(|directive| directive.parse().ok()).fold(filter, EnvFilter::add_directive);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, as in a test, keeps the first subscriber.
    if std::io::stderr().is_terminal() {
        let _ = logs.try_init();
    } else {
        let _ = logs.json().flatten_event(true).try_init();
    }
    Ok(())
}
