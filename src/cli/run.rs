//! `usher run`: the balancer.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::app::{App, Start, StartError};
use super::{BAD, ConfigArgs, GOOD, UNABLE, check, logging, machine};
use crate::config::{self, Loaded};
use crate::front::listener::{HTTP_CONNECTIONS, Listener};

/// The command line of `usher run`, and of ott-balancer.
#[derive(Args, Debug, Default)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Log level: error, warn, info, debug, trace, or a filter; RUST_LOG otherwise
    #[arg(short, long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Only check the configuration, as `usher check` does
    #[arg(short = 'v', long)]
    validate: bool,
    /// Accepted for ott-balancer's sake, and ignored
    #[arg(long, num_args = 0..=1, default_missing_value = "", hide = true)]
    console: Option<String>,
    /// Accepted for ott-balancer's sake, and ignored
    #[arg(long, num_args = 0..=1, default_missing_value = "", hide = true)]
    remote_console: Option<String>,
}

pub(super) fn main(args: RunArgs) -> u8 {
    if args.validate {
        return check::main(&check::CheckArgs { config: args.config, policy: Vec::new() });
    }
    if let Err(error) = logging::start(args.log_level.as_deref()) {
        eprintln!("usher: {error}");
        return UNABLE;
    }
    if args.console.is_some() || args.remote_console.is_some() {
        warn!("--console belongs to ott-balancer and is ignored: usher has no console server");
    }
    let mut request = config::Request::of_process(args.config.config);
    request.workers = machine::workers();
    let loaded = match config::load(&request) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return BAD;
        }
    };
    for warning in &loaded.warnings {
        warn!(%warning, "configuration");
    }
    machine::raise_file_limit(loaded.config.limits.clients + HTTP_CONNECTIONS);
    let runtime = match machine::runtime(request.workers) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("usher: cannot start worker threads: {error}");
            return UNABLE;
        }
    };
    let code = runtime.block_on(run(loaded, request));
    machine::end(runtime);
    code
}

async fn run(loaded: Loaded, request: config::Request) -> u8 {
    let port = loaded.config.port;
    // Before anybody can see that it runs: a signal that comes at once is a stop as well.
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        eprintln!("usher: cannot listen for signals");
        return UNABLE;
    };
    let app = match start(loaded, request).await {
        Ok(app) => app,
        Err(StartError::Policy(error)) => {
            error!(%error, "the configured policy cannot be used");
            eprintln!("{error}");
            return BAD;
        }
        Err(StartError::Io(error)) => {
            eprintln!("usher: cannot start on port {port}: {error}");
            return UNABLE;
        }
    };
    let which = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal = which, "asked to stop");
    tokio::select! {
        () = app.stop() => GOOD,
        // Whoever asks twice does not want to wait.
        _ = interrupt.recv() => BAD,
    }
}

async fn start(loaded: Loaded, request: config::Request) -> Result<App, StartError> {
    let listener = Listener::bind_any(loaded.config.port)?;
    let admin_listener = loaded.config.admin_listen.map(Listener::bind).transpose()?;
    App::start(Start { loaded, request, listener, admin_listener }).await
}
