//! What recording costs: the CPU of a whole usher process, with and without a recording, under the same traffic.
//!
//! `cargo bench --bench recording -- [joins|http] [PAIRS] [SECONDS]` starts the `usher` of this build, plays its Monoliths
//! and clients, and switches the recording on and off by turns. What is compared is the scheduler's count of the CPU time
//! of all threads (Linux), for each unit of traffic. `USHER` names another executable, `USHER_CPU` and `LOAD_CPU` a CPU for
//! each side, `USHER_GATE=replay` keeps the recent decisions too, and `USHER_CONFIG` adds lines to the configuration.
//!
//! `-- records` hands a fixed list of records to a recorder, without a balancer: for whoever counts instructions
//! (`valgrind --tool=callgrind --separate-threads=yes`).

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, sleep};
use usher::model::policy::{Call, MonolithRow, View};
use usher::model::{ClientId, MonolithId};
use usher::policy::lua::Source;
use usher::testkit::{Client, Monolith, RoomInfo, World, http};
use usher::trace::record::{Decided, Header, Outcome, PolicyText, TraceEvent};
use usher::trace::write::{Recording, Target};

const PATIENCE: Duration = Duration::from_secs(20);
const KEY: &str = "bench";
/// Rooms that are there all the time, and the clients in each: a chat of one of them reaches all.
const ROOMS: usize = 50;
const MEMBERS: usize = 4;
/// What goes through usher each second: chats up and down, and clients that come and go.
const MESSAGES: u64 = 5_000;
const JOINS: u64 = 200;
/// One of so many joins opens a room.
const FRESH: u64 = 5;
/// How long who joined stays.
const STAY: Duration = Duration::from_millis(500);
/// Keep-alive connections that ask without a pause.
const CONNECTIONS: usize = 32;

struct Process {
    child: Child,
    addr: SocketAddr,
    _monoliths: Vec<Monolith>,
    world: World,
    _folder: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start() -> Self {
        let world = World::new();
        let mut monoliths = Vec::new();
        for _ in 0..2 {
            let builder = Monolith::builder(&world).user_list_limit(0).log_limit(0).keep_alive(Duration::from_secs(2));
            monoliths.push(builder.start().await.unwrap());
        }
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let links: Vec<String> = (monoliths.iter().map(Monolith::link_addr))
            .map(|addr| format!("{{ host = \"{}\", port = {} }}", addr.ip(), addr.port()))
            .collect();
        let gate = std::env::var("USHER_GATE").map(|gate| format!("[policy]\ngate = \"{gate}\"\n")).unwrap_or_default();
        let more = std::env::var("USHER_CONFIG").unwrap_or_default();
        let config = format!(
            "port = {port}\napi_key = \"{KEY}\"\ndiscovery = {{ method = \"manual\", monoliths = [{}] }}\n\
             {more}\n[record]\nfolder = \".\"\n{gate}",
            links.join(", ")
        );
        std::fs::write(folder.path().join("usher.toml"), config).unwrap();
        let mut command = match std::env::var("USHER_CPU") {
            Ok(cpu) => {
                let mut pinned = Command::new("taskset");
                pinned.args(["-c", &cpu, &executable()]);
                pinned
            }
            Err(_) => Command::new(executable()),
        };
        command.args(["run", "-c", "usher.toml"]).current_dir(folder.path()).env("XDG_RUNTIME_DIR", folder.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let process = Self { child, addr, _monoliths: monoliths, world, _folder: folder };
        while !http::get(addr, "/_usher/ready").await.is_ok_and(|answer| answer.status == 200) {
            sleep(Duration::from_millis(20)).await;
        }
        process
    }

    async fn record(&self, on: bool) -> serde_json::Value {
        let key = format!("Bearer {KEY}");
        let method = if on { "POST" } else { "DELETE" };
        let headers = [("authorization", key.as_str())];
        let answer = http::request(self.addr, method, "/_usher/v1/record", &headers, "").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Nanoseconds that its threads have run.
    fn cpu(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.filter_map(|task| ran(&task.ok()?.path())).sum()
    }
}

fn executable() -> String {
    std::env::var("USHER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_usher").into())
}

fn ran(task: &Path) -> Option<u64> {
    std::fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
}

/// Clients that chat, and others that come and go, at an even pace.
async fn joins(process: &Process, units: Arc<AtomicU64>) {
    let mut clients = Vec::new();
    for room in 0..ROOMS {
        process.world.add(RoomInfo::permanent(format!("room-{room}")));
        for _ in 0..MEMBERS {
            let mut client = Client::join(process.addr, &format!("room-{room}"), "token").await.unwrap();
            client.synced(PATIENCE).await.unwrap();
            clients.push(client);
        }
    }
    let addr = process.addr;
    let counted = units.clone();
    tokio::spawn(async move {
        // One chat in, and one out for each member.
        let pace = Duration::from_secs(1 + MEMBERS as u64) / u32::try_from(MESSAGES).unwrap();
        let mut ticks = interval(pace);
        for number in 0_usize.. {
            ticks.tick().await;
            let room = number % ROOMS;
            clients[room * MEMBERS].chat("what is said in a room is about as long as this").await;
            for client in &mut clients[room * MEMBERS..(room + 1) * MEMBERS] {
                counted.fetch_add(client.take_ready().len() as u64, Relaxed);
            }
        }
    });
    let (world, counted) = (process.world.clone(), units);
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(1) / u32::try_from(JOINS).unwrap());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 0_u64.. {
            ticks.tick().await;
            let fresh = number.is_multiple_of(FRESH);
            let room = if fresh { format!("fresh-{number}") } else { format!("room-{}", number % ROOMS as u64) };
            if fresh {
                world.add(RoomInfo::temporary(&room));
            }
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut client = Client::join(addr, &room, "token").await.unwrap();
                client.synced(PATIENCE).await.unwrap();
                counted.fetch_add(1 << 32, Relaxed);
                sleep(STAY).await;
                client.close(1000).await;
                let _ = client.closed(PATIENCE).await;
            });
        }
    });
}

/// Requests that name no room, as fast as they are answered.
async fn requests(process: &Process, units: Arc<AtomicU64>) {
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(process.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let units = units.clone();
        tokio::spawn(async move {
            let request = b"GET /sized/100 HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\n\r\n";
            let mut buffer = vec![0; 4096];
            loop {
                stream.write_all(request).await.unwrap();
                let (mut length, mut wanted) = (0, usize::MAX);
                while length < wanted {
                    let read = stream.read(&mut buffer[length..]).await.unwrap();
                    assert!(read > 0, "usher closed a connection");
                    length += read;
                    if let Some(end) = buffer[..length].windows(4).position(|four| four == b"\r\n\r\n") {
                        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
                        assert!(head.starts_with("http/1.1 200"), "{head}");
                        let body = head.split("content-length: ").nth(1).unwrap();
                        wanted = end + 4 + body.split("\r\n").next().unwrap().parse::<usize>().unwrap();
                    }
                }
                units.fetch_add(1, Relaxed);
            }
        });
    }
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|part| values[(values.len() - 1) * part / 4])
}

async fn run(workload: &str, pairs: usize, time: Duration) {
    let process = Process::start().await;
    let units = Arc::new(AtomicU64::new(0));
    let paced = workload != "http";
    if paced {
        joins(&process, units.clone()).await;
    } else {
        requests(&process, units.clone()).await;
    }
    sleep(Duration::from_secs(4)).await;
    let (mut costs, mut sums) = (Vec::new(), [Vec::new(), Vec::new()]);
    for pair in 0..pairs {
        let mut cost = [0.0, 0.0];
        // The order within a pair changes, so that a drift favours neither.
        for on in [pair % 2 == 1, pair % 2 == 0] {
            if on {
                process.record(true).await;
            }
            sleep(Duration::from_millis(500)).await;
            let began = std::time::Instant::now();
            let before = (process.cpu(), units.load(Relaxed));
            sleep(time).await;
            let (cpu, done) = (process.cpu() - before.0, units.load(Relaxed) - before.1);
            let elapsed = began.elapsed().as_secs_f64();
            let about = if on { process.record(false).await } else { serde_json::Value::Null };
            let joined = (done >> 32) as f64 / elapsed;
            let delivered = (done & 0xffff_ffff) as f64 / elapsed;
            // A paced run does the same work in the same time; a saturated one is asked what a request costs.
            let unit = if paced { cpu as f64 / elapsed / 1e6 } else { cpu as f64 / 1e3 / (delivered * elapsed) };
            cost[usize::from(on)] = unit;
            sums[usize::from(on)].push(unit);
            println!(
                "  {} {unit:.3} {} | joins/s {joined:.0} delivered/s {delivered:.0} | events {} decisions {} dropped {} + {} bytes {}",
                if on { "on " } else { "off" },
                if paced { "ms of CPU each second" } else { "us of CPU each request" },
                about["events"],
                about["decisions"],
                about["dropped_events"],
                about["dropped_decisions"],
                about["bytes"]
            );
        }
        costs.push((cost[1] / cost[0] - 1.0) * 100.0);
    }
    let [low, median, high] = quartiles(costs);
    let [off, on] = sums.map(|values| quartiles(values)[1]);
    println!(
        "{workload}: {pairs} pairs: recording costs {median:.2} % (quartiles {low:.2} to {high:.2} %); medians off {off:.3}, on {on:.3}: {:.2} %",
        (on / off - 1.0) * 100.0
    );
}

/// As many records as the paced traffic makes in `seconds`: joins, leaves, rooms, and decisions about one join in five.
fn records(seconds: u64) {
    let folder = tempfile::tempdir().unwrap();
    let policy = PolicyText::of(&Source::shipped("bench", "return {}"));
    let header = Header { region: "ewr".into(), ..Header::of(policy.clone()) };
    let target = Target {
        path: folder.path().join("bench.trace.jsonl.zst"),
        rotate_bytes: 1 << 30,
        rotate_after: Duration::from_secs(3600),
        keep: 1,
        redact_rooms: false,
    };
    let recording = Recording::start(target, header).unwrap();
    let (recorder, policy) = (recording.recorder(), Arc::new(policy));
    let id = |at: u32| MonolithId::from(format!("00000000-0000-4000-8000-{at:012}").as_str());
    let mut view =
        View::of((0..2).map(|at| MonolithRow { id: id(at), region: "ewr".into(), ..MonolithRow::default() }));
    for number in 0..seconds * JOINS {
        let client = ClientId::from_u128(u128::from(number));
        let room: Arc<str> = format!("room-{number}").as_str().into();
        recorder.event(TraceEvent::Join { client, room: room.clone(), region: None, reconnect: false });
        recorder.event(TraceEvent::Leave { client });
        let monolith = id(u32::try_from(number % 2).unwrap());
        view.update(&monolith, |row| row.clients += 1);
        if number.is_multiple_of(JOINS / 10) {
            view.update(&monolith, |row| row.rtt_ms = number as f64 / 7.0);
        }
        if number.is_multiple_of(FRESH) {
            view.update(&monolith, |row| row.pending += 1);
            let call: Call =
                serde_json::from_value(serde_json::json!({"hook": "place", "now_us": number, "seed": number,
                "region": "ewr", "cause": "join", "room": {"name": room, "clients": 1, "attempt": 1}}))
                .unwrap();
            let outcome = Outcome::chosen(&monolith, &policy.version);
            recorder.decision(Decided { call, view: view.clone().into(), outcome }, &policy, false);
            recorder.event(TraceEvent::Loaded { monolith, room });
        }
        if number.is_multiple_of(JOINS * 5) {
            std::thread::sleep(Duration::from_millis(150));
        }
    }
    println!("{:?}", recording.stop());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let Ok(cpu) = std::env::var("LOAD_CPU") {
        let pinned =
            Command::new("taskset").args(["-pc", &cpu, &std::process::id().to_string()]).stdout(Stdio::null()).status();
        assert!(pinned.unwrap().success());
    }
    if arguments.first().is_some_and(|workload| workload == "records") {
        return records(arguments.get(1).map_or(100, |text| text.parse().unwrap()));
    }
    let number = |at: usize, default| arguments.get(at).map_or(default, |text| text.parse().unwrap());
    let workload = arguments.first().map_or("joins", String::as_str);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(workload, number(1, 10), Duration::from_secs(number(2, 4) as u64)));
}
