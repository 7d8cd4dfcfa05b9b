//! usher as a process of its own: how it starts, refuses to start, is steered, and ends; and what it never logs.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tempfile::TempDir;
use usher::testkit::http;
use usher::testkit::{Client, Monolith, RoomInfo, World};

use super::harness::{KEY, SOON, discovery_line, eventually, monoliths};

/// usher with nothing of this process's environment that could matter to it.
pub fn usher(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_usher"));
    // Where the next usher looks for the one that runs is each test's own as well.
    command.current_dir(folder).stdin(Stdio::null()).env("XDG_RUNTIME_DIR", folder);
    for (name, _) in std::env::vars() {
        if name.starts_with("USHER_")
            || name.starts_with("BALANCER_")
            || ["FLY_REGION", "RUST_LOG", "NOTIFY_SOCKET"].contains(&name.as_str())
        {
            command.env_remove(name);
        }
    }
    command
}

/// A child that does not outlive its test, whatever happens to that.
pub struct Kept(pub Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and that is all right.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Kept {
    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the process ends", async || self.0.try_wait().unwrap()).await
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was written before the process ended is all that there is.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// Runs a command to its end.
pub async fn output(command: &mut Command) -> Output {
    let mut child = Kept(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let stdout = read_all(child.0.stdout.take().unwrap());
    let stderr = read_all(child.0.stderr.take().unwrap());
    let status = child.ended().await;
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A port that nobody has at this moment. A configuration file refuses 0, so a process cannot choose its own.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
}

/// A running process and what it says on stderr.
pub struct Process {
    child: Kept,
    pub addr: SocketAddr,
    log: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Process {
    /// Starts `usher` with these arguments; `port` says where a free port goes. Somebody else may take the port in
    /// between: then another is tried.
    pub async fn start(folder: &Path, arguments: &[&str], port: impl Fn(u16, &mut Command)) -> Self {
        for _ in 0..5 {
            let number = free_port();
            let mut command = usher(folder);
            command.args(arguments);
            port(number, &mut command);
            let mut process = Self::launch(command, SocketAddr::from((Ipv4Addr::LOCALHOST, number)));
            let Some(status) = process.accepts().await else { return process };
            process.reader.join().unwrap();
            assert_eq!(status.code(), Some(2), "it ended at once:\n{}", process.log.lock().unwrap());
        }
        panic!("no port was free five times in a row");
    }

    /// Starts a command that is to serve at this address, and listens to what it says.
    pub fn launch(mut command: Command, addr: SocketAddr) -> Self {
        let mut child = Kept(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
        let reader = std::thread::spawn({
            let log = log.clone();
            move || {
                for line in lines.map_while(Result::ok) {
                    log.lock().unwrap().push_str(&(line + "\n"));
                }
            }
        });
        Self { child, addr, log, reader }
    }

    /// Waits until it accepts, or has ended with this status.
    pub async fn accepts(&mut self) -> Option<ExitStatus> {
        eventually("it accepts, or ends", async || {
            if self.log.lock().unwrap().contains("usher accepts") {
                return Some(None);
            }
            self.child.0.try_wait().unwrap().map(Some)
        })
        .await
    }

    /// Waits until it has said this.
    pub async fn says(&self, what: &str) {
        let said = format!("it says {what:?}");
        eventually(&said, async || self.log.lock().unwrap().contains(what).then_some(())).await;
    }

    /// With a configuration file that holds `PORT` where the port belongs.
    pub async fn with_file(folder: &Path, name: &str, text: &str, arguments: &[&str]) -> Self {
        let file = folder.join(name);
        Self::start(folder, arguments, |port, _| {
            fs::write(&file, text.replace("PORT", &port.to_string())).unwrap();
        })
        .await
    }

    pub async fn ready(&self) {
        eventually("the process is ready", async || {
            let ready = http::get(self.addr, "/_usher/ready").await.ok()?;
            (ready.status == 200).then_some(())
        })
        .await;
    }

    pub async fn api(&self, path: &str) -> Value {
        http::get_with(self.addr, path, &[("authorization", &format!("Bearer {KEY}"))]).await.unwrap().json()
    }

    pub fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.0.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Its exit code and its log.
    pub async fn ended(mut self) -> (Option<i32>, String) {
        let status = self.child.ended().await;
        self.reader.join().unwrap();
        let log = self.log.lock().unwrap().clone();
        (status.code(), log)
    }

    pub async fn terminate(self) -> (Option<i32>, String) {
        self.signal(rustix::process::Signal::TERM);
        self.ended().await
    }
}

pub async fn fleet() -> (World, Vec<Monolith>) {
    let world = World::new();
    for number in 0..15 {
        world.add(RoomInfo::permanent(format!("room-{number}")));
    }
    let monoliths = monoliths(&world, &["ewr", "cdg"]).await;
    (world, monoliths)
}

pub fn config(monoliths: &[Monolith]) -> String {
    format!("port = PORT\nregion = \"ewr\"\napi_key = \"{KEY}\"\n{}", discovery_line(monoliths))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f59_sigterm_closes_45_clients_with_1001_and_exits_0() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let text = format!("{}[timeouts]\nshutdown = \"500ms\"\n", config(&monoliths));
    let process = Process::with_file(folder.path(), "usher.toml", &text, &[]).await;
    process.ready().await;
    let mut clients = Vec::new();
    for number in 0..45 {
        let room = format!("room-{}", number % 15);
        let mut client = Client::join(process.addr, &room, "token").await.unwrap();
        client.synced(SOON).await.unwrap();
        clients.push(client);
    }
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    for client in &mut clients {
        assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    }
    for monolith in &monoliths {
        monolith.wait_for(|state| state.link_count() == 0 && state.client_count() == 0, SOON).await.unwrap();
        assert_eq!((monolith.died(), monolith.look(|state| state.ghosts())), (None, Vec::new()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigint_ends_it_as_well_and_the_port_is_free_again() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let process =
        Process::with_file(folder.path(), "mine.toml", &config(&monoliths), &["run", "--config", "mine.toml"]).await;
    process.ready().await;
    let addr = process.addr;
    process.signal(rustix::process::Signal::INT);
    assert_eq!(process.ended().await.0, Some(0));
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_configuration_names_every_mistake_and_exits_1() {
    let folder = TempDir::new().unwrap();
    let text = "port = 99999\nregoin = \"ewr\"\n[limits]\nclients = \"many\"\n[policy]\nfile = \"defualt\"\n";
    fs::write(folder.path().join("usher.toml"), text).unwrap();
    for arguments in [&[][..], &["run"], &["check"], &["--validate"], &["run", "-c", "usher.toml"]] {
        let output = output(usher(folder.path()).args(arguments)).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = self::text(&output.stdout) + &self::text(&output.stderr);
        for wanted in
            ["usher.toml:1: port", "usher.toml:2: regoin", "usher.toml:4: limits.clients", "usher.toml:6: policy.file"]
        {
            assert!(said.contains(wanted), "{arguments:?} without {wanted:?}:\n{said}");
        }
        assert!(said.contains("region") && said.contains("\"default\""), "the way out:\n{said}");
    }
    let missing = output(usher(folder.path()).args(["run", "--config", "nowhere.toml"])).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(self::text(&missing.stderr).contains("nowhere.toml"));
    for arguments in [&["--no-such-flag"][..], &["no-such-command"], &["run", "-l", "no=such=level"]] {
        assert_eq!(output(usher(folder.path()).args(arguments)).await.status.code(), Some(2), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_policy_and_a_taken_port_keep_it_from_starting() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("mine.lua"), "return {\n  place = function(call\n").unwrap();
    fs::write(folder.path().join("usher.toml"), "[policy]\nfile = \"./mine.lua\"\n").unwrap();
    let broken = output(usher(folder.path()).arg("run")).await;
    assert_eq!(broken.status.code(), Some(1), "{}", text(&broken.stderr));
    assert!(text(&broken.stderr).contains("mine.lua:"), "{}", text(&broken.stderr));
    assert!(text(&broken.stderr).contains("no good version of it is kept"), "{}", text(&broken.stderr));
    let taken = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = output(usher(folder.path()).env("USHER_PORT", &port).env("USHER_POLICY__FILE", "default")).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(&port));
}

/// Every hook fails when it is called with a Monolith that smoke calls do not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_faults_are_told_in_the_log_and_in_the_document() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let real = monoliths[0].id().to_string();
    let policy = format!(
        "local function fail(call, what)\n  for _, m in call.monoliths do\n    if m.id == {real:?} then error(what) end\n  \
         end\nend\nreturn {{\n  place = function(call) fail(call, 'in place') end,\n  route = function(call)\n    \
         for _, m in call.monoliths do\n      if m.id == {real:?} then return 'nobody' end\n    end\n  end,\n}}\n"
    );
    fs::write(folder.path().join("mine.lua"), policy).unwrap();
    let text = format!("{}[policy]\nfile = \"mine.lua\"\n", config(&monoliths));
    let process = Process::with_file(folder.path(), "usher.toml", &text, &[]).await;
    process.ready().await;
    eventually("the Monolith is linked", async || {
        let listed = process.api("/_usher/v1/monoliths").await.to_string();
        listed.contains(&real).then_some(())
    })
    .await;
    assert!(process.api("/_usher/v1/policy").await["last_fault"].is_null());
    for number in 0..3 {
        assert_eq!(http::get(process.addr, "/echo").await.unwrap().status, 200);
        let mut client = Client::join(process.addr, &format!("room-{number}"), "t").await.unwrap();
        client.synced(SOON).await.unwrap();
    }
    let last = process.api("/_usher/v1/policy").await["last_fault"].clone();
    assert_eq!((&last["hook"], &last["kind"], &last["count"]), (&json!("place"), &json!("error"), &json!(3)), "{last}");
    assert!(last["message"].as_str().unwrap().contains("mine.lua:3: in place"), "{last}");
    assert!(last["at"].is_string());
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0), "{log}");
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("policy fault"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |hook: &str| lines.iter().filter(|line| line["hook"] == hook).collect::<Vec<_>>();
    let (place, route) = (of("place"), of("route"));
    // A slow machine may take more than the 10 s after which the next line is due.
    assert!((1..=2).contains(&place.len()) && (1..=2).contains(&route.len()), "{log}");
    assert_eq!(
        (&place[0]["level"], &place[0]["kind"], &place[0]["count"]),
        (&json!("WARN"), &json!("error"), &json!(1))
    );
    assert!(place[0]["fault"].as_str().unwrap().ends_with("mine.lua:3: in place"), "{log}");
    assert!(log.contains("mine.lua:3: in place"), "{log}");
    assert_eq!(route[0]["kind"], "not_eligible");
    assert!(log.contains("route named \\\"nobody\\\": no such monolith"), "{log}");
}

/// A policy beside `usher.toml` in the working folder, where its path has no folder in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f45_a_policy_that_is_gone_or_a_folder_is_served_by_its_last_good_version() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let (file, kept) = (folder.path().join("mine.lua"), folder.path().join(".usher/mine.last-good.lua"));
    fs::write(&file, "return { place = function(call) return call.monoliths[1] end }").unwrap();
    fs::write(folder.path().join("near.lua"), "return { route = function(call) return call.monoliths[1] end }")
        .unwrap();
    let text = format!("{}[policy]\nfile = \"mine.lua\"\n", config(&monoliths));
    let start = async || Process::with_file(folder.path(), "usher.toml", &text, &[]).await;
    let process = start().await;
    eventually("the version is kept", async || kept.exists().then_some(())).await;
    let admin = format!("http://{}", process.addr);
    for (name, active) in [("near", "near"), ("mine.lua", "mine"), ("near.lua", "near"), ("random", "random")] {
        let mut command = usher(folder.path());
        let output = output(command.args(["policy", "use", name, "--admin", &admin, "--api-key", KEY])).await;
        assert_eq!(output.status.code(), Some(0), "{name}: {}", self::text(&output.stderr));
        assert_eq!(process.api("/_usher/v1/policy").await["active"]["name"], active);
    }
    assert_eq!(process.terminate().await.0, Some(0));
    assert_eq!(output(usher(folder.path()).arg("check")).await.status.code(), Some(0));
    let gone = || fs::remove_file(&file).unwrap();
    let directory = || fs::create_dir(&file).unwrap();
    for (how, make) in [("gone", &gone as &dyn Fn()), ("directory", &directory)] {
        make();
        let checked = output(usher(folder.path()).arg("check")).await;
        let said = self::text(&checked.stdout) + &self::text(&checked.stderr);
        assert_eq!(checked.status.code(), Some(1), "{how}: {said}");
        assert!(said.contains("policy.file: no file \"mine.lua\" at mine.lua; write a path"), "{how}: {said}");
        let process = start().await;
        let policy = process.api("/_usher/v1/policy").await;
        assert_eq!(
            (&policy["active"]["by"], &policy["active"]["name"]),
            (&json!("last good"), &json!("mine")),
            "{how}"
        );
        assert_eq!(policy["serves_last_good"], true, "{how}");
        let (code, log) = process.terminate().await;
        assert!(code == Some(0) && log.contains("no file") && log.contains("THE CONFIGURED POLICY IS BROKEN"), "{log}");
    }
    fs::remove_dir_all(folder.path().join(".usher")).unwrap();
    let refused = output(usher(folder.path()).arg("run")).await;
    assert_eq!(refused.status.code(), Some(1), "without a kept version it does not start");
}

/// The configuration and environment of ott-balancer, as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmodified_balancer_toml_and_its_environment_are_enough() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let addr = monoliths[0].link_addr();
    let text = format!(
        "port = PORT\nregion = \"lhr\"\napi_key = \"from-the-file\"\nlegacy_key = true\n\n[selection_strategy]\nstrategy = \
         \"HashRing\"\nweight = 5\n\n[discovery]\nmethod = \"manual\"\n\n[[discovery.monoliths]]\nhost = \"{}\"\nport = {}\n",
        addr.ip(),
        addr.port()
    );
    let file = folder.path().join("balancer.toml");
    let arguments = ["--config-path", "balancer.toml", "--log-level", "info", "--console"];
    let process = Process::start(folder.path(), &arguments, |port, command| {
        fs::write(&file, text.replace("PORT", &port.to_string())).unwrap();
        command.env("BALANCER_API_KEY", KEY).env("BALANCER_REGION", "cdg").env("FLY_REGION", "ewr");
        // What Kubernetes injects for a Service called `usher`.
        command.env("USHER_PORT", "tcp://10.0.0.1:8081").env("USHER_SERVICE_HOST", "10.0.0.1");
    })
    .await;
    process.ready().await;
    assert_eq!(process.api("/api/state").await["region"], "ewr");
    assert_eq!(process.api("/_usher/v1/policy").await["active"]["name"], "hash-ring");
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0));
    for warned in ["legacy_key", "USHER_PORT", "console"] {
        assert!(log.contains(warned), "no warning of {warned}:\n{log}");
    }
    // Everything from the environment, nothing from a file.
    let empty = TempDir::new().unwrap();
    let discovery = format!("{{method=\"manual\", monoliths=[{{host=\"{}\", port={}}}]}}", addr.ip(), addr.port());
    let process = Process::start(empty.path(), &[], |port, command| {
        command.env("BALANCER_PORT", port.to_string()).env("BALANCER_API_KEY", KEY);
        command.env("BALANCER_DISCOVERY", &discovery).env("BALANCER_SELECTION_STRATEGY", "{strategy=\"Random\"}");
    })
    .await;
    process.ready().await;
    assert_eq!(process.api("/_usher/v1/policy").await["active"]["name"], "random");
    assert_eq!(process.terminate().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_process_is_steered_from_the_command_line() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("mine.lua"), "return { place = function(call) return call.monoliths[1] end }")
        .unwrap();
    fs::write(folder.path().join("bad.lua"), "return {").unwrap();
    let quick = "[handover]\nquiet = \"50ms\"\n";
    let text = format!("{}[policy]\nfile = \"./mine.lua\"\n{quick}", config(&monoliths));
    let process = Process::with_file(folder.path(), "usher.toml", &text, &[]).await;
    process.ready().await;
    let mut client = Client::join(process.addr, "room-1", "token").await.unwrap();
    client.synced(SOON).await.unwrap();
    let admin = format!("http://{}", process.addr);
    let ask = async |arguments: &[&str]| {
        let mut command = usher(folder.path());
        command.args(arguments).args(["--admin", &admin]).env("USHER_API_KEY", KEY);
        let output = output(&mut command).await;
        (output.status.code().unwrap(), self::text(&output.stdout), self::text(&output.stderr))
    };
    let (code, out, err) = ask(&["policy", "use", "least-loaded"]).await;
    assert_eq!(code, 0, "{err}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["active"]["name"], "least-loaded");
    let (code, out, err) = ask(&["policy", "use", "bad.lua"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("409") && err.contains("bad.lua:1"), "{err}");
    let (code, _, err) = ask(&["policy", "use", "/etc/hostname"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("400"), "{err}");
    let (code, out, _) = ask(&["policy", "rollback"]).await;
    assert_eq!((code, &serde_json::from_str::<Value>(&out).unwrap()["active"]["name"]), (0, &json!("mine")));
    let (code, out, _) = ask(&["policy", "list"]).await;
    assert_eq!(code, 0);
    assert_eq!(out.lines().count(), 3, "{out}");
    let (code, out, _) = ask(&["policy", "show", "--source"]).await;
    assert_eq!((code, out), (0, fs::read_to_string(folder.path().join("mine.lua")).unwrap()));
    let (code, out, err) = ask(&["policy", "diff"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("neither a shadow nor a canary"), "{err}");
    let (code, out, err) = ask(&["policy", "shadow", "least-loaded"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["shadow"]["policy"]["name"], "least-loaded");
    assert_eq!(ask(&["policy", "canary", "random", "--share", "101"]).await.0, 2);
    assert_eq!(ask(&["policy", "canary", "random"]).await.0, 2);
    let (code, _, err) = ask(&["policy", "canary", "random", "--share", "2.5"]).await;
    assert_eq!(code, 0, "{err}");
    let (code, out, _) = ask(&["policy", "diff"]).await;
    assert!(code == 0 && out.contains("canary  random ") && out.contains("shadow  least-loaded "), "{out}");
    let (code, out, _) = ask(&["policy", "diff", "--format", "json"]).await;
    assert_eq!((code, &serde_json::from_str::<Value>(&out).unwrap()["canary"]["share"]), (0, &json!(2.5)));
    let (code, _, err) = ask(&["policy", "stop"]).await;
    assert!(code == 1 && err.contains("say which"), "{err}");
    assert_eq!(ask(&["policy", "stop", "shadow"]).await.0, 0);
    let (code, out, _) = ask(&["policy", "promote"]).await;
    assert_eq!((code, &serde_json::from_str::<Value>(&out).unwrap()["active"]["by"]), (0, &json!("promote")));
    assert_eq!(ask(&["policy", "stop"]).await.0, 1, "there is nothing to stop");
    assert_eq!(ask(&["policy", "rollback"]).await.0, 0);
    let (_, out, _) = ask(&["policy", "list", "--format", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["active"]["name"], "mine");
    let (code, out, _) = ask(&["policy", "show"]).await;
    assert!(code == 0 && out.contains("last_failure"), "{out}");
    let (code, out, _) = ask(&["status"]).await;
    assert!(code == 0 && out.contains("\"ready\": true"), "{out}");
    let (code, out, _) = ask(&["monolith", "list"]).await;
    assert!(code == 0 && monoliths.iter().all(|monolith| out.contains(&monolith.id())), "{out}");
    let (code, out, _) = ask(&["room", "list"]).await;
    assert!(code == 0 && out.starts_with("room-1  active  ") && out.contains("1 clients"), "{out}");
    let (code, out, _) = ask(&["room", "where", "ROOM-1"]).await;
    assert!(code == 0 && out.contains("\"name\": \"room-1\""), "{out}");
    assert_eq!(ask(&["room", "where", "nowhere"]).await.0, 1);
    assert_eq!(ask(&["room", "move", "nowhere", "--to", "m"]).await.0, 1);
    assert_eq!(ask(&["room", "move", "ROOM-1"]).await.0, 2, "without a target");
    let mut wrong = usher(folder.path());
    wrong.args(["policy", "show", "--admin", &admin, "--api-key", "wrong-key"]);
    let wrong = output(&mut wrong).await;
    assert_eq!(wrong.status.code(), Some(1));
    assert!(self::text(&wrong.stderr).contains("401") && !self::text(&wrong.stderr).contains("wrong-key"));
    client.chat("still here").await;
    client.recv_until(SOON, |text| text.contains("still here")).await.unwrap();
    let (_, out, _) = ask(&["room", "where", "room-1"]).await;
    let other = monoliths.iter().map(|monolith| monolith.id()).find(|id| !out.contains(id.as_str())).unwrap();
    let (code, out, err) = ask(&["room", "move", "ROOM-1", "--to", &other]).await;
    assert!(code == 0 && out.contains(&format!("to {other}, 1 clients")), "{out}{err}");
    // Its client goes along.
    client.synced(SOON).await.unwrap();
    let (code, out, err) = ask(&["monolith", "drain", &other, "--wait"]).await;
    assert!(code == 0 && out.contains("\"rooms_left\": 0") && out.contains("\"state\": \"draining\""), "{out}{err}");
    assert!(err.contains("0 rooms with 0 clients left, 1 rooms moved; done"), "{err}");
    client.synced(SOON).await.unwrap();
    client.chat("and here").await;
    client.recv_until(SOON, |text| text.contains("and here")).await.unwrap();
    let (code, out, err) = ask(&["monolith", "resume", &other]).await;
    assert!(code == 0 && out.contains("\"state\": \"up\""), "{out}{err}");
    assert_eq!(ask(&["monolith", "drain", "nobody"]).await.0, 1);
    client.chat("to the end").await;
    assert_eq!(process.terminate().await.0, Some(0));
    assert_eq!(ask(&["status"]).await.0, 2, "nobody to ask");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_logged() {
    const TOKEN: &str = "tOkEn-0f3a9c-of-a-user";
    const LINK: &str = "lInK-77aa12-token";
    let world = World::new();
    world.add(RoomInfo::permanent("room-1"));
    let monolith = Monolith::builder(&world).region("ewr").token(LINK).start().await.unwrap();
    let folder = TempDir::new().unwrap();
    let monoliths = [monolith];
    let text = format!("link_token = \"{LINK}\"\n{}", config(&monoliths));
    // However precisely a filter names a module of a library that writes what passes through it.
    let process = Process::with_file(
        folder.path(),
        "usher.toml",
        &text,
        &["-l", "trace,tungstenite::protocol=trace,h2::codec=trace,hyper::proto=trace"],
    )
    .await;
    process.ready().await;
    let mut client = Client::join(process.addr, "room-1", TOKEN).await.unwrap();
    client.synced(SOON).await.unwrap();
    client.chat("hello").await;
    client.recv_until(SOON, |text| text.contains("hello")).await.unwrap();
    process.api("/api/state").await;
    let bearer = format!("Bearer {TOKEN}");
    let cookie = format!("token={TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("cookie", &cookie), ("apikey", TOKEN)];
    for path in ["/echo", "/api/room/room-1", "/api/room/list", "/api/state", "/hang-body"] {
        let asked = http::get_with(process.addr, path, &headers);
        // What hangs is left.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), asked).await;
    }
    // Over HTTP/2 the header goes through another parser.
    let stream = tokio::net::TcpStream::connect(process.addr).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = hyper::Request::get("http://x/echo").header("authorization", &bearer).header("cookie", &cookie);
    let body = http_body_util::Empty::<bytes::Bytes>::new();
    assert_eq!(sender.send_request(request.body(body).unwrap()).await.unwrap().status(), 200);
    driver.abort();
    let mut refused = Client::join(process.addr, "room-1", "").await.unwrap();
    assert_eq!(refused.closed(SOON).await.unwrap().code, 4004);
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("\"TRACE\"") || log.contains("\"DEBUG\""), "the level has an effect");
    for secret in [TOKEN, LINK, KEY] {
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let list = secret.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
        for spelling in [secret, &hex, &list] {
            let line = log.lines().find(|line| line.contains(spelling));
            assert!(line.is_none(), "{secret} is in the log: {}", line.unwrap_or_default());
        }
    }
}
