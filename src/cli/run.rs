//! `usher run`: the balancer.

use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::activation::{self, Passed};
use super::app::{App, Start, StartError};
use super::sockets::{SocketError, Sockets};
use super::takeover::{Incumbent, Monoliths, TakenOver, TakeoverError};
use super::{BAD, ConfigArgs, GOOD, UNABLE, check, logging, machine, notify};
use crate::cluster::Cluster;
use crate::config::{self, Loaded};
use crate::control::Control;
use crate::front::listener::HTTP_CONNECTIONS;

/// How long an usher that is to replace another one may take until it could serve.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long it waits for as many Monoliths as the other one has. One of them may have gone just now.
const LINKED_WITHIN: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// The command line of `usher run`, and of ott-balancer.
#[derive(Args, Debug, Default)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Log level: error, warn, info, debug, trace, or a filter; RUST_LOG otherwise
    #[arg(short, long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Replace the usher that runs on this port: accept in its place once ready, while it sends its clients over
    #[arg(long)]
    takeover: bool,
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
    // Before any thread is started: it changes the environment.
    let passed = activation::passed();
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
    let passed = match passed {
        Ok(passed) => passed,
        Err(error) => {
            eprintln!("usher: cannot use the sockets that were passed at the start: {error}");
            return UNABLE;
        }
    };
    let runtime = match machine::runtime(request.workers) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("usher: cannot start worker threads: {error}");
            return UNABLE;
        }
    };
    let code = runtime.block_on(run(loaded, request, passed, args.takeover));
    machine::end(runtime);
    code
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Sockets(#[from] SocketError),
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
}

/// A balancer that accepts.
struct Running {
    app: App,
    /// The offer to the next usher, if one can be made.
    incumbent: Option<Incumbent>,
}

async fn run(loaded: Loaded, request: config::Request, passed: Passed, takeover: bool) -> u8 {
    let port = loaded.config.port;
    // Before anybody can see that it runs: a signal that comes at once is a stop as well.
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        eprintln!("usher: cannot listen for signals");
        return UNABLE;
    };
    let started = tokio::select! {
        started = start(loaded, request, passed, takeover) => started,
        // Nobody is served yet.
        _ = terminate.recv() => return GOOD,
        _ = interrupt.recv() => return GOOD,
    };
    let running = match started {
        Ok(running) => running,
        Err(RunError::Start(StartError::Policy(error))) => {
            error!(%error, "the configured policy cannot be used");
            eprintln!("{error}");
            return BAD;
        }
        Err(RunError::Start(StartError::Io(error))) => {
            eprintln!("usher: cannot start on port {port}: {error}");
            return UNABLE;
        }
        Err(error) => {
            eprintln!("usher: {error}");
            return UNABLE;
        }
    };
    notify::ready();
    serve(running, &mut terminate, &mut interrupt).await
}

/// Why a balancer stops.
enum Cause {
    /// It was asked to by this signal.
    Signal(&'static str),
    /// Another usher accepts in its place, and the clients have left.
    Left,
    /// A part has ended without which the process would only seem to be well.
    Broken(&'static str),
}

/// Serves until there is a reason to stop, and stops in order. The exit code.
async fn serve(running: Running, terminate: &mut Signal, interrupt: &mut Signal) -> u8 {
    let Running { mut app, incumbent } = running;
    let mut broken = app.broken();
    let control = app.control().clone();
    let monoliths = || monoliths(control.clone());
    let taken_over = tokio::select! {
        _ = terminate.recv() => Err(Cause::Signal("SIGTERM")),
        _ = interrupt.recv() => Err(Cause::Signal("SIGINT")),
        what = broken.wait() => Err(Cause::Broken(what)),
        taken = taken_over(incumbent, monoliths) => Ok(taken),
    };
    let cause = match taken_over {
        Err(cause) => cause,
        Ok(taken) => tokio::select! {
            () = leave(&mut app, taken) => Cause::Left,
            _ = terminate.recv() => Cause::Signal("SIGTERM"),
            _ = interrupt.recv() => Cause::Signal("SIGINT"),
            what = broken.wait() => Cause::Broken(what),
        },
    };
    let code = match cause {
        Cause::Left => GOOD,
        Cause::Signal(signal) => {
            info!(signal, "asked to stop");
            GOOD
        }
        Cause::Broken(what) => {
            error!("{what} has ended by itself; usher ends too, for its service manager to start it again");
            UNABLE
        }
    };
    notify::stopping();
    tokio::select! {
        () = app.stop() => code,
        // Whoever asks twice does not want to wait.
        _ = interrupt.recv() => BAD,
    }
}

async fn start(loaded: Loaded, request: config::Request, passed: Passed, takeover: bool) -> Result<Running, RunError> {
    let sockets = Sockets::gather(&loaded.config, passed, takeover).await?;
    let shareable = sockets.share();
    let Sockets { main: listener, admin: admin_listener, predecessor, .. } = sockets;
    let app = App::start_closed(Start { id: Uuid::new_v4(), loaded, request, listener, admin_listener }).await?;
    let took_over = predecessor.is_some();
    match predecessor {
        None => {
            app.record().await;
            app.open();
        }
        Some((predecessor, monoliths)) => {
            if let Err(error) = predecessor.replace(ready(&app, monoliths), || app.open()).await {
                app.stop().await;
                return Err(error.into());
            }
            app.record().await;
        }
    }
    let incumbent = match shareable {
        Some(shareable) => shareable.publish(took_over).await,
        None => None,
    };
    Ok(Running { app, incumbent })
}

/// Waits until this balancer could serve as well as one that has these Monoliths: until it has heard what they have.
/// Those that are drained there are drained here. An error says what is missing.
async fn ready(app: &App, Monoliths { linked, drained }: Monoliths) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let warm = app.control().query(Cluster::has_warmed_up).await.map_err(|stopped| stopped.to_string())?;
        let (now, took) = (app.control().routes().linked(), started.elapsed());
        // Where the other one has no Monolith either, clients lose nothing.
        let enough = now >= linked || (now > 0 && took > LINKED_WITHIN);
        if warm && enough {
            if now < linked {
                warn!(now, linked, "fewer Monoliths are linked than the usher that runs has");
            }
            for id in drained {
                let drains = app.control().drain(id.as_str().into(), true).await;
                if drains.map_err(|stopped| stopped.to_string())?.is_none() {
                    warn!(id, "the usher that runs drains this Monolith, which is not linked here");
                }
            }
            return Ok(());
        }
        if took > READY_WITHIN {
            let missing = match now {
                0 => "no Monolith is linked",
                _ => "not every Monolith has said what it has",
            };
            return Err(format!("this process is not ready after {} s: {missing}", READY_WITHIN.as_secs()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the next usher has to have.
async fn monoliths(control: Control) -> Monoliths {
    let linked = control.routes().linked();
    let drained = control.query(|cluster| cluster.drained().map(ToString::to_string).collect()).await;
    // Without a control thread this usher ends.
    Monoliths::new(linked, drained.unwrap_or_default())
}

/// Waits until another usher accepts; for ever where none could ask.
async fn taken_over<F>(incumbent: Option<Incumbent>, monoliths: impl Fn() -> F) -> TakenOver
where
    F: Future<Output = Monoliths>,
{
    match incumbent {
        Some(incumbent) => incumbent.taken_over(monoliths).await,
        None => std::future::pending().await,
    }
}

async fn leave(app: &mut App, taken: TakenOver) {
    info!(by = taken.by, "another usher has taken over");
    notify::status("taken over: clients are sent to the other usher");
    let (clients, over) = app.clients_to_leave();
    // The successor waits for this word only to log it, and clients are not to wait for the successor.
    tokio::join!(taken.done(clients, over), app.leave());
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
