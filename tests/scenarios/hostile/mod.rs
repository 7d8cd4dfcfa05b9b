//! Hostile input over real sockets. After each attack a client that was there before still hears its room, a new one is
//! served, and no task of the process has panicked.

mod admin;
mod http;
mod links;
#[path = "../../parsers/mutate.rs"]
mod mutate;
mod sockets;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, Once};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use usher::config::Config;
use usher::testkit::{Client, Monolith, World};

use self::mutate::Random;
use crate::harness::*;

/// Panics of the program itself, in whatever task or thread.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes every panic that does not come from an assertion of a test.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.location().is_some_and(|at| !at.file().starts_with("tests/")) {
                PANICS.lock().unwrap().push(info.to_string());
            }
            before(info);
        }));
    });
}

/// A balancer under attack, with a Monolith and a client that has nothing to do with it.
struct Stage {
    world: World,
    a: Monolith,
    balancer: Balancer,
    witness: Client,
    said: u32,
    /// Kept as long as the balancer that watches it.
    _policy: Option<PolicyFile>,
}

impl Stage {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        watch_panics();
        let world = world_with(["witness", "newcomers", "x"]);
        let a = monolith(&world).start().await.unwrap();
        let balancer = Balancer::start_with(&[&a], change).await;
        let witness = balancer.join("witness", "witness").await;
        Self { world, a, balancer, witness, said: 0, _policy: None }
    }

    /// Asserts that nothing of it shows.
    async fn unharmed(&mut self) {
        self.said += 1;
        let said = format!(r#"{{"said":{}}}"#, self.said);
        self.a.say("witness", None, &said);
        self.witness.recv_until(SOON, |text| text == said).await.unwrap();
        let mut client = self.balancer.join("newcomers", "newcomer").await;
        client.send(r#"{"action":"echo","to":"newcomer"}"#).await;
        client.recv_until(SOON, |text| text.contains("newcomer")).await.unwrap();
        assert_eq!(usher::testkit::http::get(self.balancer.addr(), "/api/status").await.unwrap().status, 200);
        assert_eq!(*PANICS.lock().unwrap(), Vec::<String>::new());
        alive(&[&self.a]);
    }

    /// The same, and that nobody of the attackers is left.
    async fn end(mut self) {
        self.unharmed().await;
        drop(self.witness);
        nobody_left(&self.balancer, &[&self.a]).await;
    }
}

/// The random numbers of a test: from the seed `USHER_FUZZ_SEED`, or else the same ones each time. A test that fails says
/// how it is repeated.
fn random(of_the_test: u64) -> Random {
    let seed = std::env::var("USHER_FUZZ_SEED").map_or(1, |text| text.parse::<u64>().expect("a number"));
    println!("again: USHER_FUZZ_SEED={seed} cargo test --test scenarios hostile");
    Random::new(seed.wrapping_mul(1000).wrapping_add(of_the_test))
}

/// Every file of one folder of the corpus.
fn corpus(kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut found: Vec<_> = paths.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect();
    found.sort();
    assert!(found.len() > 5, "only {} files in {kind}", found.len());
    found
}

/// Sends bytes and reads to the end of the connection, which has to come.
async fn spoken(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // It may be closed before everything is sent.
    let _ = stream.write_all(bytes).await;
    let mut read = Vec::new();
    let ended = timeout(SOON, stream.read_to_end(&mut read)).await;
    let text = String::from_utf8_lossy(&read).into_owned();
    assert!(ended.is_ok(), "still open after {SOON:?}: {} -> {text}", bytes.escape_ascii());
    text
}

/// The statuses of the answers in a text.
fn statuses(text: &str) -> Vec<u16> {
    text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect()
}

/// Sends these bytes one at a time until the connection ends; how many went through.
async fn trickle(addr: SocketAddr, first: &[u8], pause: Duration) -> usize {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(first).await.unwrap();
    let mut sent = 0;
    let ended = timeout(SOON, async {
        let mut scratch = [0; 1024];
        loop {
            tokio::select! {
                read = stream.read(&mut scratch) => if !matches!(read, Ok(count) if count > 0) { return },
                () = tokio::time::sleep(pause) => {
                    if stream.write_all(b"x").await.is_err() {
                        return;
                    }
                    sent += 1;
                }
            }
        }
    });
    assert!(ended.await.is_ok(), "still open after {SOON:?}: {}", first.escape_ascii());
    sent
}
