//! A balancer for a test: a whole `App` on a free loopback port, with a runtime of its own, so that it can be stopped
//! in order or ended like a process that is killed. Everything stops when it is dropped.
#![allow(dead_code, reason = "what one theme does not need, another one does")]

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use usher::cli::app::{App, Start};
use usher::config::{self, Config, Discovery, HandoverMode, Loaded, PolicySource, Secret};
use usher::front::listener::Listener;
use usher::model::Region;
use usher::testkit::http::{self, Answer};
use usher::testkit::monolith::Builder;
use usher::testkit::{Client, Monolith, RoomInfo, World};
use uuid::Uuid;

/// For whatever must happen: long, because machines are slow, and never awaited in a test that passes.
pub const SOON: Duration = Duration::from_secs(20);
/// The key of the admin API.
pub const KEY: &str = "scenario-key";
/// The region of the balancer and, by default, of the Monoliths.
pub const HERE: &str = "ewr";
/// Another region.
pub const THERE: &str = "cdg";
/// The worker threads of a balancer.
pub const WORKERS: usize = 2;

/// A balancer under test.
pub struct Balancer {
    app: Option<App>,
    runtime: Option<Runtime>,
    addr: SocketAddr,
    admin: SocketAddr,
    monoliths: usize,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a balancer of a test has: its key and region, the Monoliths at these addresses, and timeouts of a size that a
/// test can wait for.
pub fn config_for(links: &[SocketAddr]) -> Config {
    let mut config = Config {
        region: Region::from(HERE),
        api_key: Secret::new(KEY),
        discovery: Discovery::Manual(links.iter().map(|addr| (addr.ip().to_string(), addr.port())).collect()),
        ..Config::default()
    };
    config.timeouts.shutdown = Duration::from_millis(200);
    // On a busy machine a Monolith may take its time; no broadcast is to come before its answer all the same.
    config.timeouts.join_answer = SOON;
    config
}

/// A configuration with which clients are closed when their room changes its Monolith.
pub fn closing(config: &mut Config) {
    config.handover.mode = HandoverMode::Close;
}

impl Balancer {
    /// One that is linked to these Monoliths and ready.
    pub async fn start(monoliths: &[&Monolith]) -> Self {
        Self::start_with(monoliths, |_| {}).await
    }

    /// The same, with a change to its configuration.
    pub async fn start_with(monoliths: &[&Monolith], change: impl FnOnce(&mut Config)) -> Self {
        let balancer = Self::start_unlinked(monoliths, change).await;
        balancer.linked(monoliths.len()).await;
        balancer
    }

    /// The same, without waiting for its links.
    pub async fn start_unlinked(monoliths: &[&Monolith], change: impl FnOnce(&mut Config)) -> Self {
        let links: Vec<_> = monoliths.iter().map(|monolith| monolith.link_addr()).collect();
        let mut config = config_for(&links);
        change(&mut config);
        Self::start_config(config).await
    }

    /// One with this configuration, without waiting for its links.
    pub async fn start_config(config: Config) -> Self {
        Self::start_as(Uuid::new_v4(), config).await
    }

    /// The same, with an id that is given.
    pub async fn start_as(id: Uuid, config: Config) -> Self {
        let request = config::Request {
            path: config.source.clone(),
            working_dir: PathBuf::new(),
            environment: Vec::new(),
            shipped: config::SHIPPED_POLICIES.to_vec(),
            workers: WORKERS,
        };
        Self::start_process(id, config, request).await
    }

    /// One whose configuration is found again as `request` says when it changes.
    pub async fn start_request(config: Config, request: config::Request) -> Self {
        Self::start_process(Uuid::new_v4(), config, request).await
    }

    async fn start_process(id: Uuid, config: Config, request: config::Request) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap();
        let app = runtime.spawn(async move {
            let listener = Listener::bind_loopback().unwrap();
            let admin_listener = config.admin_listen.map(|addr| Listener::bind(addr).unwrap());
            let loaded = Loaded { config, warnings: Vec::new() };
            App::start(Start { id, loaded, request, listener, admin_listener }).await.unwrap()
        });
        let app = app.await.unwrap();
        let (addr, admin) = (app.addr(), app.admin_addr());
        Self { app: Some(app), runtime: Some(runtime), addr, admin, monoliths: 0 }
    }

    /// Keeps every worker busy until what is returned is dropped.
    pub async fn block_workers(&self) -> Vec<std::sync::mpsc::Sender<()>> {
        let runtime = self.runtime.as_ref().unwrap();
        let mut free = Vec::new();
        for _ in 0..WORKERS {
            let (sender, wait) = std::sync::mpsc::channel::<()>();
            let (began, busy) = tokio::sync::oneshot::channel();
            runtime.spawn(async move {
                began.send(()).unwrap();
                wait.recv()
            });
            busy.await.unwrap();
            free.push(sender);
        }
        free
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the admin API is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The app itself.
    pub fn app(&self) -> &App {
        self.app.as_ref().expect("the balancer was stopped")
    }

    /// Waits until exactly so many Monoliths take new rooms.
    pub async fn linked(&self, count: usize) {
        eventually(&format!("{count} Monoliths are up"), async || {
            let up = self.monoliths().await.iter().filter(|monolith| monolith["state"] == "up").count();
            (up == count).then_some(()).ok_or(up)
        })
        .await;
    }

    /// Joins a room and waits for its state.
    pub async fn join(&self, room: &str, token: &str) -> Client {
        let mut client = Client::join(self.addr, room, token).await.unwrap();
        client.synced(SOON).await.unwrap_or_else(|error| panic!("{token} in {room}: {error}"));
        client
    }

    /// `GET` with the key of the admin API.
    pub async fn get(&self, path: &str) -> Answer {
        http::get_with(self.admin, path, &[("authorization", &format!("Bearer {KEY}"))]).await.unwrap()
    }

    /// `POST` of JSON with the key of the admin API.
    pub async fn post(&self, path: &str, json: &Value) -> Answer {
        let headers = [("authorization", format!("Bearer {KEY}")), ("content-type", "application/json".into())];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        http::request(self.admin, "POST", path, &headers, json.to_string()).await.unwrap()
    }

    /// `GET /_usher/v1/monoliths`.
    pub async fn monoliths(&self) -> Vec<Value> {
        self.get("/_usher/v1/monoliths").await.json()["monoliths"].as_array().cloned().unwrap_or_default()
    }

    /// The ids of the clients of a room as `/api/state` shows them now.
    pub async fn clients_of(&self, room: &str) -> Vec<String> {
        let state = self.get("/api/state").await.json();
        let rooms = state["monoliths"].as_array().unwrap().iter().flat_map(|monolith| monolith["rooms"].as_array());
        let same = |found: &&Value| found["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(room));
        let clients = rooms.flatten().filter(same).flat_map(|room| room["clients"].as_array()).flatten();
        clients.map(|client| client["id"].as_str().unwrap().to_owned()).collect()
    }

    /// How many members the balancer has, waiting ones included.
    pub async fn members(&self) -> usize {
        self.app().control().query(|cluster| cluster.size().1).await.unwrap()
    }

    /// One metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = http::get(self.admin, "/api/status/metrics").await.unwrap().text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }

    /// Stops it as SIGTERM does.
    pub async fn stop(&mut self) {
        let app = self.app.take().expect("the balancer was stopped already");
        self.runtime.as_ref().unwrap().spawn(app.stop()).await.unwrap();
        self.kill();
    }

    /// Ends it abruptly: every socket just goes.
    pub fn kill(&mut self) {
        let app = self.app.take();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        drop(app);
    }
}

/// A Monolith of a test: in the balancer's region, and loading rooms at once.
pub fn monolith(world: &World) -> Builder {
    Monolith::builder(world).region(HERE).load_delay(Duration::ZERO)
}

/// A world with these permanent rooms.
pub fn world_with<S: AsRef<str>>(rooms: impl IntoIterator<Item = S>) -> World {
    let world = World::new();
    for room in rooms {
        world.add(RoomInfo::permanent(room.as_ref()));
    }
    world
}

/// Waits until `check` is content; what it saw instead is told when it never is.
pub async fn eventually<T, E: Debug>(what: &str, mut check: impl AsyncFnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + SOON;
    let mut pause = Duration::from_millis(1);
    loop {
        match check().await {
            Ok(value) => return value,
            Err(seen) if Instant::now() > end => panic!("not within {SOON:?}: {what}; seen: {seen:?}"),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// [`eventually`] for a plain condition on a Monolith.
pub async fn holds(monolith: &Monolith, condition: impl FnMut(&usher::testkit::monolith::State) -> bool) {
    if let Err(error) = monolith.wait_for(condition, SOON).await {
        panic!("{error}");
    }
}

/// Asserts what must be true after every test: nobody killed a Monolith, and none was told to unload what it had not
/// loaded.
pub fn alive(monoliths: &[&Monolith]) {
    for monolith in monoliths {
        assert_eq!(monolith.died(), None);
    }
}

/// Asserts that nobody is left anywhere, once everything has been told: neither on a Monolith nor in the balancer.
pub async fn nobody_left(balancer: &Balancer, monoliths: &[&Monolith]) {
    for monolith in monoliths {
        holds(monolith, |state| state.client_count() == 0 && state.ghosts().is_empty()).await;
    }
    eventually("the balancer has no members", async || match balancer.members().await {
        0 => Ok(()),
        count => Err(count),
    })
    .await;
    alive(monoliths);
}

/// A policy file in a folder of its own, which goes with it.
pub struct PolicyFile {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl PolicyFile {
    /// Writes `policy.lua`.
    pub fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.lua");
        std::fs::write(&path, text).unwrap();
        Self { folder, path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it the policy of a configuration.
    pub fn set(&self, config: &mut Config) {
        config.policy.source = PolicySource::File(self.path.clone());
    }

    /// Replaces the text by a rename, as editors do.
    pub fn replace(&self, text: &str) {
        let new = self.folder.path().join("policy.lua.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &self.path).unwrap();
    }
}
