//! A process that has no file descriptor left.

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tempfile::TempDir;
use tokio::net::TcpStream;
use usher::testkit::World;
use usher::testkit::http;

use super::harness::{discovery_line, eventually, monoliths};
use super::process::Process;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_file_descriptors_accepting_pauses_longer_each_time_and_then_goes_on() {
    let world = World::new();
    let monoliths = monoliths(&world, &["ewr"]).await;
    let folder = TempDir::new().unwrap();
    let text = format!("port = PORT\nregion = \"ewr\"\n{}", discovery_line(&monoliths));
    let process = Process::with_file(folder.path(), "usher.toml", &text, &[]).await;
    process.ready().await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count() as u64;
    // A few are left, and far fewer than there will be connections. Only the limit of that process changes.
    let limit = Rlimit { current: Some(open + 8), maximum: getrlimit(Resource::Nofile).maximum };
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap());
    let before = prlimit(pid, Resource::Nofile, limit).unwrap();
    let mut connections = Vec::new();
    for _ in 0..40 {
        connections.push(TcpStream::connect(process.addr).await.unwrap());
    }
    eventually("it has tried again several times", async || {
        process.log().contains("trying again in 160ms").then_some(())
    })
    .await;
    let log = process.log();
    for pause in ["20ms", "40ms", "80ms"] {
        assert!(log.contains(&format!("trying again in {pause}")), "{pause}: {log}");
    }
    // One that spins has said so thousands of times by now.
    let warnings = log.matches("cannot accept connections").count();
    assert!(warnings < 20, "{warnings} warnings");
    drop(connections);
    let answer = eventually("it accepts again", async || http::get(process.addr, "/api/status").await.ok()).await;
    assert_eq!(answer.text(), "OK");
    prlimit(pid, Resource::Nofile, before).unwrap();
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0), "{log}");
}
