//! A whole balancer under traffic, over real sockets on loopback: fan-out, echo, HTTP and joins.
//!
//! Balancer, Monolith and clients share the machine, so the times are of all of them together: compare runs with each
//! other, not with another program.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use usher::cli::app::{App, Start};
use usher::config::{self, Config, Discovery, Loaded};
use usher::front::listener::Listener;
use usher::testkit::{Client, Monolith, RoomInfo, World, http};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

struct Bench {
    app: App,
    monolith: Monolith,
    world: World,
}

impl Bench {
    async fn start() -> Self {
        let world = World::new();
        let monolith = Monolith::builder(&world).user_list_limit(4).log_limit(0).start().await.unwrap();
        let link = monolith.link_addr();
        let config =
            Config { discovery: Discovery::Manual(vec![(link.ip().to_string(), link.port())]), ..Config::default() };
        let request = config::Request {
            path: None,
            working_dir: std::path::PathBuf::new(),
            environment: Vec::new(),
            shipped: config::SHIPPED_POLICIES.to_vec(),
            workers: 1,
        };
        let listener = Listener::bind_loopback().unwrap();
        let loaded = Loaded { config, warnings: Vec::new() };
        let app =
            App::start(Start { id: Uuid::new_v4(), loaded, request, listener, admin_listener: None }).await.unwrap();
        while !app.control().routes().available() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { app, monolith, world }
    }

    async fn clients(&self, room: &str, count: usize) -> Vec<Client> {
        self.world.add(RoomInfo::permanent(room));
        let mut clients = Vec::with_capacity(count);
        for number in 0..count {
            let mut client = Client::join(self.app.addr(), room, &format!("token-{number}")).await.unwrap();
            client.synced(PATIENCE).await.unwrap();
            clients.push(client);
        }
        clients
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The time until every client of every room has had `messages` broadcasts.
fn fan_out(criterion: &mut Criterion) {
    const MESSAGES: u64 = 10;
    let runtime = runtime();
    let mut group = criterion.benchmark_group("fan_out");
    group.sample_size(10);
    for (rooms, members) in [(1usize, 1000usize), (500, 4)] {
        let bench = runtime.block_on(Bench::start());
        let names: Vec<String> = (0..rooms).map(|room| format!("room-{room}")).collect();
        let mut clients = runtime.block_on(async {
            let mut clients = Vec::new();
            for name in &names {
                clients.extend(bench.clients(name, members).await);
            }
            clients
        });
        group.throughput(Throughput::Elements(MESSAGES * (rooms * members) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{rooms}x{members}")), |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    for number in 0..MESSAGES {
                        for name in &names {
                            bench.monolith.say(name, None, &format!(r#"{{"bench":{number}}}"#));
                        }
                    }
                    let last = format!(r#"{{"bench":{}}}"#, MESSAGES - 1);
                    for client in &mut clients {
                        while client.recv(PATIENCE).await.unwrap().as_str() != last {}
                    }
                });
            });
        });
        drop(clients);
        runtime.block_on(bench.app.stop());
    }
    group.finish();
}

/// One message of a client to the Monolith and back to its room.
fn echo(criterion: &mut Criterion) {
    let runtime = runtime();
    let bench = runtime.block_on(Bench::start());
    let mut client = runtime.block_on(bench.clients("echo", 1)).remove(0);
    criterion.bench_function("client_echo", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                client.chat("marco").await;
                client.recv_until(PATIENCE, |text| text.contains("marco")).await.unwrap();
            });
        });
    });
    drop(client);
    runtime.block_on(bench.app.stop());
}

/// One request on a connection of its own, through to the Monolith.
fn http_proxy(criterion: &mut Criterion) {
    let runtime = runtime();
    let bench = runtime.block_on(Bench::start());
    let addr = bench.app.addr();
    criterion.bench_function("http_proxy", |bencher| {
        bencher.iter(|| runtime.block_on(http::get(addr, "/sized/100")).unwrap());
    });
    runtime.block_on(bench.app.stop());
}

/// A client that comes into a loaded room, is answered, and goes.
fn joins(criterion: &mut Criterion) {
    let runtime = runtime();
    let bench = runtime.block_on(Bench::start());
    let keeper = runtime.block_on(bench.clients("joins", 1));
    let addr = bench.app.addr();
    criterion.bench_function("join_and_leave", |bencher| {
        bencher.iter_custom(|times| {
            let started = Instant::now();
            runtime.block_on(async {
                for _ in 0..times {
                    let mut client = Client::join(addr, "joins", "token").await.unwrap();
                    client.synced(PATIENCE).await.unwrap();
                }
            });
            started.elapsed()
        });
    });
    drop(keeper);
    runtime.block_on(bench.app.stop());
}

criterion_group!(benches, fan_out, echo, http_proxy, joins);
criterion_main!(benches);
