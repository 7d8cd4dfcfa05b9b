//! One usher replaced by the next under traffic, what keeps it from being replaced, and sockets that systemd passes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use usher::testkit::client::RecvError;
use usher::testkit::http;
use usher::testkit::{Client, Connect, Monolith};

use super::harness::{KEY, SOON, eventually};
use super::process::{Process, config, fleet, free_port, output, text, usher};

/// A start that replaces whoever runs in this folder at this address.
fn successor(folder: &Path, addr: SocketAddr, arguments: &[&str]) -> Process {
    let mut command = usher(folder);
    command.args(["run", "--takeover"]).args(arguments);
    Process::launch(command, addr)
}

async fn document(admin: SocketAddr, path: &str) -> Value {
    http::get_with(admin, path, &[("authorization", &format!("Bearer {KEY}"))]).await.unwrap().json()
}

/// Where each room is.
async fn owners(admin: SocketAddr) -> BTreeMap<String, String> {
    let rooms = document(admin, "/_usher/v1/rooms?limit=100").await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    rooms["rooms"].as_array().unwrap().iter().map(|room| (text(&room["name"]), text(&room["monolith"]))).collect()
}

/// Joins and chats, comes back at once when it is closed, and ends with the close codes it got.
async fn chatter(
    addr: SocketAddr,
    room: String,
    name: String,
    joined: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
) -> Vec<u16> {
    let mut codes = Vec::new();
    let mut connect = Connect::room(addr, &room, &name);
    for number in 0.. {
        let mut client = connect.clone().open().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        joined.fetch_add(1, Relaxed);
        for line in 0.. {
            if end.load(Relaxed) && line > 0 {
                return codes;
            }
            let said = format!("{name}-{number}-{line}.");
            client.chat(&said).await;
            match client.recv_until(SOON, |text| text.contains(&said)).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(RecvError::Closed(closed)) => {
                    codes.push(closed.code);
                    break;
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
        connect = connect.reconnecting();
    }
    codes
}

/// Requests on new connections until the end; how many.
async fn requests(addr: SocketAddr, path: &'static str, end: Arc<AtomicBool>) -> usize {
    let mut count = 0;
    while !end.load(Relaxed) {
        let answer = http::get(addr, path).await.unwrap_or_else(|error| panic!("request {count} of {path}: {error}"));
        assert_eq!(answer.status, 200, "request {count} of {path}: {}", answer.text());
        count += 1;
    }
    count
}

/// Requests on one connection for as long as the server keeps it; how many, and on how many connections.
async fn kept_alive(addr: SocketAddr, end: Arc<AtomicBool>) -> (usize, usize) {
    let (mut count, mut connections) = (0, 0);
    while !end.load(Relaxed) {
        let stream = TokioIo::new(TcpStream::connect(addr).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        connections += 1;
        while !end.load(Relaxed) {
            let request = hyper::Request::get("/echo").header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
            let answer = sender.send_request(request).await;
            let answer = answer.unwrap_or_else(|error| panic!("request {count} on connection {connections}: {error}"));
            assert_eq!(answer.status(), 200);
            let last = answer.headers().get("connection").is_some_and(|value| value == "close");
            answer.into_body().collect().await.unwrap();
            count += 1;
            if last {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        driver.abort();
    }
    (count, connections)
}

fn no_harm(monoliths: &[Monolith]) {
    for monolith in monoliths {
        assert_eq!(monolith.died(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_under_traffic_refuses_nobody_and_closes_each_client_once() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let text = format!("admin_listen = \"{admin}\"\n{}[timeouts]\ntakeover = \"1500ms\"\n", config(&monoliths));
    let old = Process::with_file(folder.path(), "usher.toml", &text, &["run", "--takeover"]).await;
    assert!(old.log().contains("nobody to take over from"), "{}", old.log());
    let addr = old.addr;
    eventually("both Monoliths are linked", async || {
        let listed = document(admin, "/_usher/v1/monoliths").await;
        (listed["monoliths"].as_array().map(Vec::len) == Some(2)).then_some(())
    })
    .await;
    let (end, joined) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let chatters: Vec<_> = (0..24)
        .map(|number| {
            let (room, name) = (format!("room-{}", number % 8), format!("c{number}"));
            tokio::spawn(chatter(addr, room, name, joined.clone(), end.clone()))
        })
        .collect();
    let direct = ["/echo", "/api/status", "/slow/100"].map(|path| tokio::spawn(requests(addr, path, end.clone())));
    let kept = tokio::spawn(kept_alive(addr, end.clone()));
    eventually("all have joined", async || (joined.load(Relaxed) == 24).then_some(())).await;
    let before = owners(admin).await;
    assert_eq!(before.len(), 8);
    let old_id = document(admin, "/api/state").await["id"].clone();

    let mut new = successor(folder.path(), addr, &[]);
    assert_eq!(new.accepts().await, None, "{}", new.log());
    let (code, log) = old.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("another usher has taken over"), "{log}");
    new.says("taken over: the usher that ran closes its clients").await;
    eventually("all are back", async || (joined.load(Relaxed) == 48).then_some(())).await;
    let members = || monoliths.iter().map(|monolith| monolith.look(|state| state.client_count())).sum::<usize>();
    eventually("each is there once", async || (members() == 24).then_some(())).await;
    end.store(true, Relaxed);
    for chatter in chatters {
        assert_eq!(chatter.await.unwrap(), [1012]);
    }
    for requests in direct {
        assert!(requests.await.unwrap() > 0);
    }
    let (count, connections) = kept.await.unwrap();
    assert!(count > 0 && connections == 2, "{count} requests on {connections} connections");
    assert_eq!(owners(admin).await, before, "rooms stayed where they were");
    assert_ne!(document(admin, "/api/state").await["id"], old_id, "another process answers");
    for room in before.keys() {
        assert_eq!(monoliths.iter().map(|monolith| monolith.loads_of(room)).sum::<u64>(), 1, "{room}");
    }

    // It can be replaced as well.
    let mut newer = successor(folder.path(), addr, &[]);
    assert_eq!(newer.accepts().await, None, "{}", newer.log());
    assert_eq!(new.ended().await.0, Some(0));
    let (code, log) = newer.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["usher.toml"], "no socket is left");
    no_harm(&monoliths);
    for monolith in &monoliths {
        monolith.wait_for(|state| state.link_count() == 0 && state.client_count() == 0, SOON).await.unwrap();
        assert!(monolith.look(|state| state.ghosts()).is_empty(), "ghosts are left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_drained_stays_drained() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let old = Process::with_file(folder.path(), "usher.toml", &config(&monoliths), &[]).await;
    old.ready().await;
    let addr = old.addr;
    let states = async || {
        let listed = document(addr, "/_usher/v1/monoliths").await;
        let text = |monolith: &Value, key: &str| monolith[key].as_str().unwrap_or_default().to_string();
        let monoliths = listed["monoliths"].as_array().cloned().unwrap_or_default();
        monoliths.iter().map(|one| (text(one, "id"), text(one, "state"))).collect::<BTreeMap<_, _>>()
    };
    let id = eventually("both are linked", async || {
        let states = states().await;
        (states.len() == 2).then(|| states.into_keys().next().unwrap())
    })
    .await;
    let (key, path) = (format!("Bearer {KEY}"), format!("/_usher/v1/monoliths/{id}/drain"));
    let drained = http::request(addr, "POST", &path, &[("authorization", &key)], String::new()).await.unwrap();
    assert_eq!(drained.status, 200, "{}", drained.text());
    let before = states().await;
    assert_eq!(before[&id], "draining");

    let mut new = successor(folder.path(), addr, &[]);
    assert_eq!(new.accepts().await, None, "{}", new.log());
    assert_eq!(old.ended().await.0, Some(0));
    assert_eq!(states().await, before);
    let (code, log) = new.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    no_harm(&monoliths);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_serve_replaces_nobody() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let old = Process::with_file(folder.path(), "usher.toml", &config(&monoliths), &[]).await;
    old.ready().await;
    let addr = old.addr;
    let mut client = Client::join(addr, "room-1", "token").await.unwrap();
    client.synced(SOON).await.unwrap();
    let good = fs::read_to_string(folder.path().join("usher.toml")).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let run = async |arguments: &[&str]| {
        let output = output(usher(folder.path()).arg("run").args(arguments)).await;
        (output.status.code().unwrap(), self::text(&output.stderr))
    };

    let (code, said) = run(&[]).await;
    assert_eq!(code, 2, "{said}");
    let pid = format!("process {}", old.id());
    for wanted in ["in use", "an usher runs there", "--takeover", &pid] {
        assert!(wanted == "in use" || said.contains(wanted), "without {wanted:?}: {said}");
    }
    write("typo.toml", &format!("prot = 1\n{good}"));
    assert_eq!(run(&["--takeover", "-c", "typo.toml"]).await.0, 1);
    write("bad.lua", "return {");
    write("policy.toml", &format!("{good}[policy]\nfile = \"bad.lua\"\n"));
    let (code, said) = run(&["--takeover", "-c", "policy.toml"]).await;
    assert!(code == 1 && said.contains("bad.lua:1"), "{said}");
    let (other, port) = (free_port().to_string(), addr.port().to_string());
    write("port.toml", &format!("takeover = \"usher-{port}.sock\"\n{}", good.replace(&port, &other)));
    let (code, said) = run(&["--takeover", "-c", "port.toml"]).await;
    assert!(code == 2 && said.contains("a takeover keeps the port"), "{said}");
    write("off.toml", &format!("takeover = \"\"\n{good}"));
    let (code, said) = run(&["--takeover", "-c", "off.toml"]).await;
    assert!(code == 2 && said.contains("takeover = \"\""), "{said}");
    write("elsewhere.toml", &format!("takeover = \"elsewhere.sock\"\n{good}"));
    let (code, said) = run(&["--takeover", "-c", "elsewhere.toml"]).await;
    assert!(code == 2 && said.contains("no usher listens at") && said.contains("elsewhere.sock"), "{said}");

    // One that waits for a Monolith which does not answer; meanwhile nobody else may.
    let silent = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let nowhere = silent.local_addr().unwrap().port();
    let links = monoliths.iter().map(|monolith| monolith.link_addr().port().to_string());
    let waiting =
        links.fold(good.clone(), |text, port| text.replace(&format!("port = {port} "), &format!("port = {nowhere} ")));
    write("waiting.toml", &waiting);
    let stuck = successor(folder.path(), addr, &["-c", "waiting.toml"]);
    old.says(&format!("\"by\":{}", stuck.id())).await;
    let (code, said) = run(&["--takeover"]).await;
    assert!(code == 2 && said.contains("another usher is taking over already"), "{said}");
    stuck.signal(Signal::KILL);
    assert_eq!(stuck.ended().await.0, None);
    old.says("ended before it was ready").await;

    old.ready().await;
    client.chat("still here").await;
    client.recv_until(SOON, |text| text.contains("still here")).await.unwrap();
    // After all of that it can be replaced; and one whose predecessor ends meanwhile serves at once.
    let mut new = successor(folder.path(), addr, &["-c", "waiting.toml"]);
    old.says(&format!("\"by\":{}", new.id())).await;
    assert!(!new.log().contains("usher accepts"));
    assert_eq!(old.terminate().await.0, Some(0));
    assert_eq!(new.accepts().await, None, "{}", new.log());
    assert_eq!(http::get(addr, "/api/status").await.unwrap().status, 200);
    assert_eq!(new.terminate().await.0, Some(0));
    no_harm(&monoliths);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_replaced_says_so_and_a_stop_cuts_the_rest_short() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let text = format!("{}[timeouts]\ntakeover = \"1h\"\nshutdown = \"200ms\"\n", config(&monoliths));
    let old = Process::with_file(folder.path(), "usher.toml", &text, &[]).await;
    old.ready().await;
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut client = Client::join(old.addr, &format!("room-{number}"), "token").await.unwrap();
        client.synced(SOON).await.unwrap();
        clients.push(client);
    }
    let stream = TokioIo::new(TcpStream::connect(old.addr).await.unwrap());
    let (mut kept, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut ask = async || {
        let request =
            hyper::Request::get("/_usher/ready").header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
        let (head, body) = kept.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    };
    assert_eq!(ask().await.0, 200);
    let mut new = successor(folder.path(), old.addr, &[]);
    assert_eq!(new.accepts().await, None, "{}", new.log());
    old.says("another usher has taken over").await;
    // The first client is closed at once, and the others have an hour.
    let (status, said) = ask().await;
    assert!(status == 503 && said.contains("draining: taken over by another usher"), "{said}");
    new.ready().await;
    let (code, log) = old.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    let mut codes = Vec::new();
    for client in &mut clients {
        codes.push(client.closed(SOON).await.unwrap().code);
    }
    codes.sort_unstable();
    assert_eq!(codes, [1001, 1001, 1001, 1012]);
    driver.abort();
    assert_eq!(new.terminate().await.0, Some(0));
    no_harm(&monoliths);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_was_left_behind_is_in_nobodys_way() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let text = format!("takeover = \"run/usher.sock\"\n{}", config(&monoliths));
    let socket = folder.path().join("run/usher.sock");
    for arguments in [&["run"][..], &["run", "--takeover"]] {
        let process = Process::with_file(folder.path(), "usher.toml", &text, arguments).await;
        eventually("its socket is there", async || socket.exists().then_some(())).await;
        process.signal(Signal::KILL);
        assert_eq!(process.ended().await.0, None);
        assert!(socket.exists(), "it is left behind");
    }
    let old = Process::with_file(folder.path(), "usher.toml", &text, &["run"]).await;
    old.ready().await;
    let mut new = successor(folder.path(), old.addr, &[]);
    assert_eq!(new.accepts().await, None, "{}", new.log());
    assert_eq!(old.ended().await.0, Some(0));
    assert_eq!(new.terminate().await.0, Some(0));
    assert!(!socket.exists());
}

/// What systemd would start, with this socket. A shell puts it where `LISTEN_FDS` says, and its own number, which
/// becomes usher's, into `LISTEN_PID`.
fn activated(folder: &Path, socket: &std::net::TcpListener, arguments: &str) -> Command {
    let usher = usher(folder);
    let mut shell = Command::new("sh");
    let program = usher.get_program().to_str().unwrap();
    shell.arg("-c").arg(format!("exec 3<&0 </dev/null; LISTEN_PID=$$ exec {program} run {arguments}"));
    shell.current_dir(folder);
    for (name, value) in usher.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    shell.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "usher.socket");
    shell.env("NOTIFY_SOCKET", folder.join("notify"));
    shell
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passed_socket_is_used_and_connections_wait_in_it_over_a_restart() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    // The port of the file is another one: what was passed counts.
    fs::write(folder.path().join("usher.toml"), config(&monoliths).replace("PORT", &free_port().to_string())).unwrap();
    let notified = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    notified.set_read_timeout(Some(SOON)).unwrap();
    let heard = || {
        let mut bytes = [0; 256];
        let len = notified.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let mut first = Process::launch(activated(folder.path(), &socket, ""), addr);
    assert_eq!(first.accepts().await, None, "{}", first.log());
    first.ready().await;
    assert!(heard().starts_with(&format!("READY=1\nMAINPID={}\n", first.id())));
    // Two would share the clients by chance.
    let second = Process::launch(activated(folder.path(), &socket, ""), addr);
    let (code, log) = second.ended().await;
    assert!(code == Some(2) && log.contains("--takeover replaces it"), "{log}");
    let mut new = Process::launch(activated(folder.path(), &socket, "--takeover"), addr);
    assert_eq!(new.accepts().await, None, "{}", new.log());
    let (code, log) = first.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(new.terminate().await.0, Some(0));
    let waiting = tokio::spawn(async move { http::get(addr, "/api/status").await });
    let third = Process::launch(activated(folder.path(), &socket, ""), addr);
    assert_eq!(waiting.await.unwrap().unwrap().status, 200);
    assert_eq!(third.terminate().await.0, Some(0));
    let mut said = Vec::new();
    notified.set_nonblocking(true).unwrap();
    let mut bytes = [0; 256];
    while let Ok(len) = notified.recv(&mut bytes) {
        said.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
    }
    assert_eq!(said.iter().filter(|said| said.starts_with("STOPPING=1")).count(), 3, "{said:?}");
    no_harm(&monoliths);
}
