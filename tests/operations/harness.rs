//! A whole balancer with simulated Monoliths on free ports of the loopback interface, and what tests ask of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use usher::cli::app::{App, Start};
use usher::config::{self, Config, Discovery, Loaded, Secret};
use usher::front::listener::Listener;
use usher::model::Region;
use usher::testkit::http::{self, Answer};
use usher::testkit::{Client, Monolith, World};
use uuid::Uuid;

/// How long anything may take: far more than it does, for slow machines.
pub const SOON: Duration = Duration::from_secs(20);
/// The `api_key` of every balancer here.
pub const KEY: &str = "operator-key";

/// Polls until there is an answer.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(SOON, what, look).await
}

/// The same for what takes its time.
pub async fn eventually_within<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Monoliths in these regions that share one world.
pub async fn monoliths(world: &World, regions: &[&str]) -> Vec<Monolith> {
    let mut monoliths = Vec::new();
    for region in regions {
        monoliths.push(Monolith::builder(world).region(*region).start().await.unwrap());
    }
    monoliths
}

/// The configuration that tests start from.
pub fn quick() -> Config {
    let mut config = Config { region: Region::from("ewr"), api_key: Secret::new(KEY), ..Config::default() };
    config.timeouts.shutdown = Duration::from_millis(500);
    // A machine under load must not be taken for an endless policy.
    config.policy.budget = Duration::from_secs(1);
    config
}

/// `discovery = ...` for a configuration file.
pub fn discovery_line(monoliths: &[Monolith]) -> String {
    let items = monoliths.iter().map(|monolith| {
        let addr = monolith.link_addr();
        format!("{{ host = \"{}\", port = {} }}", addr.ip(), addr.port())
    });
    format!("discovery = {{ method = \"manual\", monoliths = [{}] }}\n", items.collect::<Vec<_>>().join(", "))
}

/// A running balancer and its Monoliths.
pub struct Balancer {
    pub app: App,
    pub addr: SocketAddr,
    pub admin: SocketAddr,
    pub monoliths: Vec<Monolith>,
    pub key: String,
    /// For configuration and policy files.
    pub folder: TempDir,
}

impl Balancer {
    /// With default Monoliths in these regions.
    pub async fn simple(regions: &[&str]) -> (Self, World) {
        let world = World::new();
        let monoliths = monoliths(&world, regions).await;
        (Self::start(monoliths, quick()).await, world)
    }

    /// With these Monoliths and this configuration, until all are linked.
    pub async fn start(monoliths: Vec<Monolith>, config: Config) -> Self {
        Self::start_in(TempDir::new().unwrap(), monoliths, config).await
    }

    /// The same, with a folder that holds files already.
    pub async fn start_in(folder: TempDir, monoliths: Vec<Monolith>, mut config: Config) -> Self {
        let addrs = monoliths.iter().map(|monolith| monolith.link_addr());
        config.discovery = Discovery::Manual(addrs.map(|addr| (addr.ip().to_string(), addr.port())).collect());
        let request = request(folder.path());
        Self::run(folder, monoliths, Loaded { config, warnings: Vec::new() }, request).await
    }

    /// From the configuration file `name` in `folder`; it is watched.
    pub async fn from_file(folder: TempDir, name: &str, monoliths: Vec<Monolith>) -> Self {
        let request = config::Request { path: Some(folder.path().join(name)), ..request(folder.path()) };
        let loaded = config::load(&request).unwrap();
        Self::run(folder, monoliths, loaded, request).await
    }

    async fn run(folder: TempDir, monoliths: Vec<Monolith>, loaded: Loaded, request: config::Request) -> Self {
        let listener = Listener::bind_loopback().unwrap();
        let admin_listener = loaded.config.admin_listen.map(|addr| Listener::bind(addr).unwrap());
        let key = loaded.config.api_key.expose().to_string();
        let app = App::start(Start { id: Uuid::new_v4(), loaded, request, listener, admin_listener }).await.unwrap();
        let (addr, admin) = (app.addr(), app.admin_addr());
        let balancer = Self { app, addr, admin, monoliths, key, folder };
        balancer.linked(balancer.monoliths.len()).await;
        balancer
    }

    /// Waits until so many Monoliths are up.
    pub async fn linked(&self, count: usize) {
        eventually("all Monoliths are linked", async || {
            let view = self.app.control().routes().published();
            (view.targets.len() == count).then_some(())
        })
        .await;
        for monolith in &self.monoliths {
            // Its first gossip follows its `init`; only then do joins stop waiting for it.
            monolith.wait_for(|state| state.frame_count() > 0 || state.link_count() == 0, SOON).await.unwrap();
        }
    }

    /// A request to the admin API with its key.
    pub async fn api(&self, method: &str, path: &str, body: &str) -> Answer {
        let key = format!("Bearer {}", self.key);
        http::request(self.admin, method, path, &[("authorization", &key)], body.to_owned()).await.unwrap()
    }

    /// A document of the admin API.
    pub async fn document(&self, path: &str) -> Value {
        let answer = self.api("GET", path, "").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    pub async fn policy(&self) -> Value {
        self.document("/_usher/v1/policy").await
    }

    /// The value of a metric whose line begins with `name`, labels included; 0 if there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = http::get(self.admin, "/api/status/metrics").await.unwrap().text();
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    /// A client that has joined.
    pub async fn join(&self, room: &str, token: &str) -> Client {
        let mut client = Client::join(self.addr, room, token).await.unwrap();
        client.synced(SOON).await.unwrap();
        client
    }

    pub async fn get(&self, path: &str) -> Answer {
        http::get(self.addr, path).await.unwrap()
    }

    /// The id of the Monolith that has a room.
    pub async fn owner(&self, room: &str) -> String {
        let document = self.document(&format!("/_usher/v1/rooms/{room}")).await;
        document["monolith"].as_str().unwrap_or_default().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// No Monolith was killed by what it was sent.
    pub fn all_alive(&self) {
        for monolith in &self.monoliths {
            assert_eq!(monolith.died(), None);
        }
    }

    /// Stops, and looks whether anything was left behind.
    pub async fn finish(self) {
        self.all_alive();
        self.app.stop().await;
        for monolith in &self.monoliths {
            monolith.wait_for(|state| state.link_count() == 0 && state.client_count() == 0, SOON).await.unwrap();
            assert_eq!(monolith.died(), None);
            assert!(monolith.look(|state| state.ghosts()).is_empty(), "ghosts are left");
        }
    }
}

fn request(folder: &Path) -> config::Request {
    config::Request {
        path: None,
        working_dir: folder.to_path_buf(),
        environment: Vec::new(),
        shipped: config::SHIPPED_POLICIES.to_vec(),
        workers: 2,
    }
}
