//! `usher demo`: balancer, simulated Monoliths in two regions and traffic in one process.

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use super::app::{App, Start, StartError};
use super::output::{say, show};
use super::{BAD, GOOD, UNABLE, logging, machine, output, record};
use crate::cluster::Cluster;
use crate::config::{self, Config, Discovery, Loaded, PolicySource, Secret};
use crate::front::listener::Listener;
use crate::model::Region;
use crate::policy::shipped;
use crate::testkit::{Connect, Monolith, World};

/// The command line of `usher demo`.
#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Port of the balancer; 0 takes a free one
    #[arg(long, default_value_t = 8081)]
    port: u16,
    /// Simulated Monoliths, taking turns in two regions
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    monoliths: u16,
    /// Rooms
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rooms: u32,
    /// Clients that come and go in them
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    clients: u32,
    /// The policy: a path, or a shipped name, whose text is copied to a file that can be edited
    #[arg(long, default_value = "default", value_name = "P")]
    policy: String,
    /// Record the traffic in this file; .zst at its end compresses it
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// End after so many seconds; without it Ctrl-C ends the demo
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Log level of the balancer
    #[arg(short, long, default_value = "warn")]
    log_level: String,
}

/// The regions of the demo.
const REGIONS: [&str; 2] = ["ewr", "cdg"];
/// The key of the demo's admin API. It listens on loopback only.
const API_KEY: &str = "demo";
/// How long a client stays, at least and at most.
const STAY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(25));
/// How often a client chats.
const CHAT_EVERY: Duration = Duration::from_millis(1500);

pub(super) fn main(args: &DemoArgs) -> u8 {
    if let Err(error) = logging::start(Some(&args.log_level)) {
        eprintln!("usher: {error}");
        return UNABLE;
    }
    // Each client of the demo has two sockets in this process, and each Monolith a few.
    machine::raise_file_limit(args.clients as usize * 2 + 1000);
    match machine::runtime(machine::workers()) {
        Ok(runtime) => {
            let code = runtime.block_on(run(args));
            machine::end(runtime);
            code
        }
        Err(error) => {
            eprintln!("usher: cannot start worker threads: {error}");
            UNABLE
        }
    }
}

async fn run(args: &DemoArgs) -> u8 {
    let folder = match DemoFolder::new() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("usher: no folder for the demo's policy: {error}");
            return UNABLE;
        }
    };
    let policy = match policy_file(&args.policy, &folder) {
        Ok(policy) => policy,
        Err(error) => {
            eprintln!("usher: {error}");
            return BAD;
        }
    };
    if let Err(error) = args.record.as_deref().map_or(Ok(()), can_be_written) {
        eprintln!("usher: {error}; name another file with --record");
        return UNABLE;
    }
    let (app, monoliths) = match start(args, &policy).await {
        Ok(started) => started,
        Err(StartError::Policy(error)) => {
            eprintln!("usher: the demo's policy cannot be used: {error}");
            return BAD;
        }
        Err(error @ StartError::Io(_)) => {
            eprintln!("usher: the demo cannot start on port {}: {error}; choose another with --port", args.port);
            return UNABLE;
        }
    };
    let addr = app.addr();
    say!("usher demo: {} Monoliths, {} rooms, {} clients", args.monoliths, args.rooms, args.clients);
    say!("  rooms     ws://{addr}/api/room/demo-0");
    say!("  list      http://{addr}/api/room/list");
    say!("  metrics   http://{addr}/api/status/metrics");
    say!("  policy    {}   (edit it and watch)", policy.display());
    say!("  steer     usher policy use least-loaded --admin http://{addr} --api-key {API_KEY}");
    let traffic = Arc::new(Traffic::default());
    let clients: Vec<_> =
        (0..args.clients).map(|number| tokio::spawn(client(addr, number, args.rooms, traffic.clone()))).collect();
    let code = watch(&app, &monoliths, &traffic, args.seconds.map(Duration::from_secs)).await;
    for client in clients {
        client.abort();
    }
    let recordings = app.recordings().clone();
    app.stop().await;
    drop(monoliths);
    say!("stopped");
    if args.record.is_some() {
        let document = recordings.document();
        show!("{}", record::summary(&document));
        if !document["error"].is_null() {
            return BAD;
        }
    }
    code
}

async fn start(args: &DemoArgs, policy: &Path) -> Result<(App, Vec<Monolith>), StartError> {
    let world = World::new();
    let mut monoliths = Vec::new();
    for number in 0..args.monoliths {
        let region = REGIONS[usize::from(number) % REGIONS.len()];
        let builder = Monolith::builder(&world).region(region).user_list_limit(8).log_limit(0);
        monoliths.push(builder.keep_alive(Duration::from_secs(30)).start().await?);
    }
    for room in 0..args.rooms {
        world.add(crate::testkit::RoomInfo::permanent(room_name(room)));
    }
    let addresses = monoliths.iter().map(|monolith| monolith.link_addr());
    let mut config = Config {
        region: Region::from(REGIONS[0]),
        api_key: Secret::new(API_KEY),
        discovery: Discovery::Manual(addresses.map(|addr| (addr.ip().to_string(), addr.port())).collect()),
        ..Config::default()
    };
    config.policy.source = PolicySource::File(policy.to_path_buf());
    config.record.path = args.record.clone();
    // One file, whatever its size.
    (config.record.rotate, config.record.rotate_after) = (usize::MAX, Duration::MAX);
    let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.port)))?;
    let request = config::Request {
        path: None,
        working_dir: PathBuf::new(),
        environment: Vec::new(),
        shipped: config::SHIPPED_POLICIES.to_vec(),
        workers: machine::workers(),
    };
    let loaded = Loaded { config, warnings: Vec::new() };
    let app = App::start(Start { id: Uuid::new_v4(), loaded, request, listener, admin_listener: None }).await?;
    Ok((app, monoliths))
}

/// Whether there can be a file at a path, before anything is started for it.
fn can_be_written(path: &Path) -> Result<(), String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(format!("{} is a folder", path.display()));
    }
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

/// What the clients of the demo count.
#[derive(Default)]
struct Traffic {
    joins: AtomicU64,
    messages: AtomicU64,
    failures: AtomicU64,
}

/// One client that joins a room, chats, leaves and joins another, for ever.
async fn client(addr: SocketAddr, number: u32, rooms: u32, traffic: Arc<Traffic>) {
    let mut random = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        // xorshift: plain, seeded and good enough for a demo.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below.max(1)
    };
    tokio::time::sleep(Duration::from_millis(next(2000))).await;
    loop {
        let room = room_name(u32::try_from(next(u64::from(rooms))).unwrap_or(0));
        let region = REGIONS[usize::try_from(next(2)).unwrap_or(0)];
        let connect = Connect::room(addr, &room, &format!("demo-token-{number}")).header("fly-region", region);
        let stay = STAY.0 + Duration::from_millis(next((STAY.1 - STAY.0).as_millis() as u64));
        match connect.open().await {
            Ok(client) => {
                traffic.joins.fetch_add(1, Relaxed);
                // Nobody waits for the end of a stay that was cut short.
                let _ = tokio::time::timeout(stay, chat(client, &traffic)).await;
            }
            Err(_) => {
                traffic.failures.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn chat(mut client: crate::testkit::Client, traffic: &Traffic) {
    loop {
        client.chat("hello").await;
        let pause = tokio::time::Instant::now() + CHAT_EVERY;
        while let Ok(received) = tokio::time::timeout_at(pause, client.recv(Duration::from_secs(60))).await {
            if received.is_err() {
                return;
            }
            traffic.messages.fetch_add(1, Relaxed);
        }
    }
}

/// Prints a live summary until it is told to end.
async fn watch(app: &App, monoliths: &[Monolith], traffic: &Traffic, end: Option<Duration>) -> u8 {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        eprintln!("usher: cannot listen for signals");
        return UNABLE;
    };
    let mut broken = app.broken();
    let started = Instant::now();
    let mut last = (Instant::now(), 0, 0);
    let mut lines = 0;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            what = broken.wait() => {
                eprintln!("usher: {what} has ended by itself");
                return UNABLE;
            }
            _ = tick.tick() => {}
        }
        if end.is_some_and(|end| started.elapsed() >= end) || !output::is_open() {
            break;
        }
        let (joins, messages) = (traffic.joins.load(Relaxed), traffic.messages.load(Relaxed));
        let seconds = last.0.elapsed().as_secs_f64().max(0.001);
        let rates = ((joins - last.1) as f64 / seconds, (messages - last.2) as f64 / seconds);
        last = (Instant::now(), joins, messages);
        let summary = summary(app, rates, traffic.failures.load(Relaxed)).await;
        if std::io::stdout().is_terminal() && lines > 0 {
            // Up over the last summary, so that it changes in place.
            show!("\x1b[{lines}A\x1b[J");
        }
        lines = summary.lines().count();
        show!("{summary}");
        for monolith in monoliths {
            if let Some(reason) = monolith.died() {
                eprintln!("usher: a Monolith died: {reason}");
                return BAD;
            }
        }
    }
    GOOD
}

async fn summary(app: &App, (joins, messages): (f64, f64), failures: u64) -> String {
    let Ok(rows) = app.control().query(Cluster::monoliths).await else { return String::new() };
    let (count, took) = app.control().health().decisions.total();
    let mean_us = took.as_secs_f64() * 1e6 / count.max(1) as f64;
    let mut text = format!(
        "policy {} {}  {joins:.0} joins/s  {messages:.0} messages/s  decision {mean_us:.0} us  {failures} failed\n",
        app.policies().active_name(),
        app.policies().active_version(),
    );
    for row in rows {
        let bar = "#".repeat(row.rooms.min(60) as usize);
        let id: String = row.id.as_str().chars().take(8).collect();
        text.push_str(&format!("  {id} {:<4} {:>4} rooms {:>5} clients  {bar}\n", row.region, row.rooms, row.clients));
    }
    text
}

fn room_name(number: u32) -> String {
    format!("demo-{number}")
}

/// The file that decides: the one that was named, or a copy of a shipped policy.
fn policy_file(policy: &str, folder: &DemoFolder) -> Result<PathBuf, String> {
    match shipped::shipped(policy) {
        Some(shipped) => {
            let file = folder.0.join(format!("{policy}.lua"));
            std::fs::write(&file, shipped.text).map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(file)
        }
        None => shipped::resolve(policy).map(|_| PathBuf::from(policy)).map_err(|error| error.to_string()),
    }
}

/// A folder of the demo's own, gone with it.
struct DemoFolder(PathBuf);

impl DemoFolder {
    fn new() -> std::io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("usher-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        // What cannot be removed is a few kilobytes in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
