//! What operators write, and what they are told.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::*;

mod fuzz;
mod sections;

const EXAMPLE: &str = include_str!("../../examples/usher.toml");

/// One configuration to be tried: the only way in which these tests call the code.
struct Try<'a> {
    file: &'a str,
    text: &'a str,
    environment: Vec<(String, String)>,
    workers: usize,
}

fn file<'a>(name: &'a str, text: &'a str) -> Try<'a> {
    Try { file: name, text, environment: Vec::new(), workers: 2 }
}

fn usher(text: &str) -> Try<'_> {
    file("usher.toml", text)
}

impl Try<'_> {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn parse(&self) -> Result<Loaded, ConfigErrors> {
        parse(&Input {
            file: Some(self.file),
            text: self.text,
            environment: &self.environment,
            base_dir: Path::new("/etc/usher"),
            file_exists: &|path| path == Path::new("/etc/usher/mine.lua"),
            shipped: &SHIPPED_POLICIES,
            workers: self.workers,
        })
    }

    #[track_caller]
    fn config(&self) -> Config {
        self.parse().unwrap_or_else(|errors| panic!("{errors}")).config
    }

    /// The warnings, one a line.
    #[track_caller]
    fn warnings(&self) -> String {
        let warnings = self.parse().unwrap_or_else(|errors| panic!("{errors}")).warnings;
        warnings.iter().map(|warning| format!("{warning}\n")).collect()
    }

    /// The errors are exactly these lines.
    #[track_caller]
    fn fails(&self, lines: &[&str]) {
        let errors = self.parse().expect_err("no error").to_string();
        assert_eq!(errors.lines().collect::<Vec<_>>(), lines);
    }

    /// There is one error, and it holds this text.
    #[track_caller]
    fn fails_with(&self, part: &str) {
        let errors = self.parse().expect_err("no error").to_string();
        assert!(errors.contains(part) && errors.lines().count() == 1, "{errors}");
    }
}

#[test]
fn nothing_at_all_is_the_default_with_a_warning() {
    let loaded = parse(&Input {
        file: None,
        text: "",
        environment: &[],
        base_dir: Path::new(""),
        file_exists: &|_| false,
        shipped: &SHIPPED_POLICIES,
        workers: 2,
    })
    .unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings.len(), 1);
    let warning = loaded.warnings[0].to_string();
    assert!(warning.starts_with("defaults: discovery.monoliths: no Monolith is listed: usher starts and"), "{warning}");
}

#[test]
fn the_example_holds_every_key_with_its_default() {
    assert_eq!(usher(EXAMPLE).config(), Config::default());
    let mut section = String::new();
    let mut written: BTreeSet<String> = BTreeSet::new();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = format!("{name}.");
            written.insert(name.into());
            written.extend(name.split_once('.').map(|(parent, _)| parent.to_owned()));
        } else if let Some((key, value)) = line.split_once(" = ") {
            written.insert(format!("{section}{key}"));
            // The keys of an inline table of limits.
            for inner in value.trim_start_matches("{ ").split(", ").filter_map(|pair| pair.split_once(" = ")) {
                written.insert(format!("{section}{key}.{}", inner.0));
            }
        }
    }
    let missing: Vec<String> = known_keys().into_iter().filter(|key| !written.contains(key)).collect();
    assert!(missing.is_empty(), "not in examples/usher.toml: {missing:?}");
}

#[test]
fn everything_can_be_set() {
    let config = usher(
        r#"
        port = 9
        region = "ewr"
        api_key = "k"
        link_token = "t"
        admin_listen = "[::1]:9090"
        takeover = "run/usher.sock"
        [policy]
        file = "mine.lua"
        watch = false
        fuel = 1000
        budget = "20ms"
        memory = "4MiB"
        total_memory = "32MiB"
        gate = "compile"
        history = 3
        keep = "/var/lib/usher"
        headers = ["Accept-Language"]
        query = ["v"]
        rebalance_every = "1s"
        rebalance = "dry"
        settings = { cap = 40, deep = { list = [1, 2.5, "x", true] } }
        [proxy]
        trusted = ["10.1.2.3", "192.0.2.0/24", "2001:db8::/32"]
        [limits]
        client_queue = { messages = 3 }
        held_frames.bytes = "2KiB"
        [timeouts]
        auth = "1.5s"
        drain = "1h"
        takeover = "1m"
        [heartbeat]
        missed = 5
        [handover]
        mode = "close"
        rate = 7
        [regions.ms]
        ewr = { cdg = 75, lhr = 70.5 }
        [regions.at]
        moon = [0.0, 0]
        "#,
    )
    .config();
    assert_eq!((config.port, config.region.as_str()), (9, "ewr"));
    assert_eq!((config.api_key.expose(), config.link_token.expose()), ("k", "t"));
    assert_eq!(config.admin_listen, Some("[::1]:9090".parse().unwrap()));
    assert_eq!(config.takeover, Takeover::At(PathBuf::from("/etc/usher/run/usher.sock")));
    assert_eq!(usher("takeover = ''").config().takeover, Takeover::Off);
    let policy = &config.policy;
    assert_eq!(policy.source, PolicySource::File(PathBuf::from("/etc/usher/mine.lua")));
    assert_eq!((policy.watch, policy.fuel, policy.budget), (false, 1000, Duration::from_millis(20)));
    assert_eq!((policy.memory, policy.total_memory, policy.gate), (4 << 20, 32 << 20, Gate::Compile));
    assert_eq!(
        (policy.history, &policy.headers, &policy.query),
        (3, &vec!["accept-language".into()], &vec!["v".into()])
    );
    assert_eq!(policy.keep, Some(PathBuf::from("/var/lib/usher")));
    assert_eq!((policy.rebalance_every, policy.rebalance), (Some(Duration::from_secs(1)), Rebalance::Dry));
    assert_eq!(json!(policy.settings), json!({ "cap": 40, "deep": { "list": [1, 2.5, "x", true] } }));
    let trusted = ["10.1.2.3/32", "192.0.2.0/24", "2001:db8::/32"].map(|range| range.parse().unwrap());
    assert_eq!(config.trusted, trusted);
    assert_eq!(config.limits.client_queue, QueueLimit { messages: 3, bytes: 1 << 20 });
    assert_eq!(config.limits.held_frames, QueueLimit { messages: 64, bytes: 2 << 10 });
    assert_eq!((config.timeouts.auth.as_millis(), config.timeouts.drain.as_secs()), (1500, 3600));
    assert_eq!(config.timeouts.takeover.as_secs(), 60);
    assert_eq!((config.heartbeat.missed, config.handover.rate, config.handover.mode), (5, 7, HandoverMode::Close));
    assert_eq!(config.regions.ms(&"lhr".into(), &"ewr".into()), Some(70.5));
    assert!(config.regions.ms(&"moon".into(), &"ewr".into()).is_some());
    assert_eq!(usher("proxy.trusted = 'none'").config().trusted, []);
    assert_eq!(usher("proxy.trusted = ['private']").config().trusted, private_ranges());
}

#[test]
fn unknown_keys_suggest_the_nearest() {
    usher("prot = 1\n[policy]\nfule = 5\n[limits]\nmessages = 1\n").fails(&[
        "usher.toml:1: prot: unknown key; did you mean port?",
        "usher.toml:3: policy.fule: unknown key; did you mean fuel?",
        "usher.toml:5: limits.messages: unknown key; did you mean message?",
    ]);
    usher("auth = '20s'").fails(&["usher.toml:1: auth: unknown key; did you mean timeouts.auth?"]);
    usher("[heartbeat]\nwhatsoever = 1")
        .fails(&["usher.toml:2: heartbeat.whatsoever: unknown key; known here: interval, missed"]);
    file("conf/my.toml", "[[discovery.monoliths]]\nhost = 'a'\nport = 1\nwieght = 2\n[discovery]\nmethod = 'manual'")
        .fails(&["conf/my.toml:4: discovery.monoliths[0].wieght: unknown key; known here: host, port"]);
    usher("[policy]\nauth = '20s'").fails(&["usher.toml:2: policy.auth: unknown key; did you mean timeouts.auth?"]);
    usher("auht = '20s'").fails(&["usher.toml:1: auht: unknown key; did you mean timeouts.auth?"]);
    usher("[discovery]\nmethod = 'manual'\n[[discovery.monoliths]]\nhost = 'a'\nport = 1\nprot = 2")
        .fails(&["usher.toml:6: discovery.monoliths[0].prot: unknown key; did you mean port?"]);
    let peer = file("/srv/balancer.toml", "prot = 1\nport = 2");
    assert_eq!(peer.config().port, 2);
    let warnings = peer.warnings();
    assert!(warnings.contains("/srv/balancer.toml:1: prot: unknown key; did you mean port?; ignored"), "{warnings}");
}

#[test]
fn wrong_types_and_ranges_say_what_would_be_right() {
    usher("port = '8081'").fails(&["usher.toml:1: port: expected a port from 1 to 65535, found \"8081\""]);
    for (port, found) in
        [("0", "0"), ("70000", "70000"), ("-1", "-1"), ("99999999999999999999", "99999999999999999999")]
    {
        let expected = format!("usher.toml:1: port: {found} is out of range; write a port from 1 to 65535");
        usher(&format!("port = {port}")).fails(&[&expected]);
    }
    let unit = "write a number with a unit, such as \"250ms\", \"20s\" or \"2m\"";
    usher("[timeouts]\nauth = 20")
        .fails(&[&format!("usher.toml:2: timeouts.auth: expected a duration, found 20 without a unit; {unit}")]);
    usher("timeouts.auth = '20'")
        .fails(&[&format!("usher.toml:1: timeouts.auth: \"20\" is no duration with a unit; {unit}")]);
    usher("limits.message = 1024")
        .fails_with("limits.message: expected a size, found 1024; write a number with a unit");
    usher("policy.budget = '1h'")
        .fails(&["usher.toml:1: policy.budget: 1h is out of range; write a duration from 1ms to 1s"]);
    usher("policy.memory = '1KiB'")
        .fails(&["usher.toml:1: policy.memory: 1KiB is out of range; write a size from 1MiB to 1GiB"]);
    usher("policy.rebalance = 'wet'")
        .fails(&["usher.toml:1: policy.rebalance: \"wet\" is neither; write \"run\", or \"dry\" to count moves only"]);
    usher("policy.rebalance_every = '999ms'")
        .fails(&["usher.toml:1: policy.rebalance_every: 999ms is out of range; write a duration from 1s to 1d"]);
    usher("policy.headers = ['x-forwarded-for']").fails_with("which no policy sees; remove it");
    usher("policy.headers = ['Cookie']").fails_with("\"cookie\" holds a credential");
    for header in [
        "X-Api-Key",
        "x-auth-token",
        "x-real-ip",
        "fly-client-ip",
        "cf-connecting-ip",
        "true-client-ip",
        "x-client-ip",
        "sec-websocket-protocol",
        "x-forwarded-user",
        "x-csrf-token",
        "proxy-anything",
        "apikey",
        "authorization",
        "proxy-authorization",
        "my_api_key",
        "x-amz-security-token",
        "x-session-id",
        "forwarded",
        "referer",
    ] {
        usher(&format!("policy.headers = ['{header}']")).fails_with("into a header of another name");
    }
    for name in
        ["token", "access_token", "apiKey", "api_key", "key", "Password", "secret", "auth", "session", "code", "jwt"]
    {
        usher(&format!("policy.query = ['{name}']")).fails_with("in a parameter of another name");
    }
    let seen =
        usher("[policy]\nheaders = ['x-release', 'fly-region', 'origin']\nquery = ['release', 'keyword']").config();
    assert_eq!((seen.policy.headers.len(), seen.policy.query.len()), (3, 2));
    usher("admin_listen = ':9090'").fails_with("write \"127.0.0.1:9090\", \"[::]:9090\", or");
    usher("admin_listen = '127.0.0.1:8081'").fails_with("port 8081 is the main port already");
    usher("limits.link_queue = '128KiB'").fails_with("limits.link_queue: is smaller than limits.message");
    usher("proxy.trusted = 'private'").fails_with("write \"none\" or a list of");
    usher("proxy.trusted = ['10.0.0.0/33']").fails_with("\"10.0.0.0/33\" is no address or range; write \"none\" or");
    usher("limits = 5").fails(&["usher.toml:1: limits: expected a table, found a whole number"]);
    usher("[regions]\nat.ewr = [91, 0]").fails_with("regions.at.ewr: 91 is out of range");
    usher("[regions]\nms.ewr = 5").fails_with("regions.ms.ewr: expected a table of milliseconds, such as ewr = { cdg");
    usher("[regions]\newr = { cdg = 75 }").fails_with("regions.ewr: unknown key; known here: at, ms");
    assert!(usher("timeouts.upstream_idle = '6s'").warnings().contains("timeouts.upstream_idle: a Monolith closes"));
}

#[test]
fn all_errors_come_at_once_in_the_order_of_the_file() {
    let text = "port = 0\nregion = ''\n[policy]\nfuel = true\nnonsense = 1\n[timeouts]\nauth = 5\n";
    let errors = usher(text).env("USHER_POLICY__HISTORY", "many").parse().expect_err("no error").to_string();
    let starts: Vec<&str> = errors.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(
        starts,
        ["usher.toml:1:", "usher.toml:2:", "usher.toml:4:", "usher.toml:5:", "usher.toml:7:", "environment:"],
        "{errors}"
    );
}

#[test]
fn syntax_errors_have_lines_and_quote_nothing() {
    let text = "port = 8081\napi_key = \"hunter2\nlink_token = hunter2\n[policy\n";
    let errors = usher(text).parse().expect_err("no error").to_string();
    assert!(errors.starts_with("usher.toml:2: not valid TOML: "), "{errors}");
    assert!(errors.contains("\nusher.toml:3: ") && errors.contains("\nusher.toml:4: "), "{errors}");
    assert!(!errors.contains("hunter2"), "{errors}");
    usher("a = 1\na = 2").fails(&["usher.toml:2: not valid TOML: duplicate key"]);
}

#[test]
fn windows_files_are_read() {
    assert_eq!(usher("\u{feff}port = 1\r\nregion = 'x'\r\n").config().port, 1);
    usher("port = 1\r\n\r\nprot = 2\r\n").fails(&["usher.toml:3: prot: unknown key; did you mean port?"]);
}

#[test]
fn secrets_are_never_echoed() {
    for text in [
        "api_key = ['hunter2']",
        "link_token = { a = 'hunter2' }",
        "apikey = 'hunter2'",
        "[policy]\napi_key = 'hunter2'",
        "api_key = 'hunter2'hunter2",
        "api_key = hunter2",
        "api_key = 'hunter2",
        "api_key = 'hunter2'\napi_key = 'hunter2'",
        "api_key.hunter = 'hunter2'",
        "api_key = '''hunter2\nhunter2",
    ] {
        let errors = usher(text).parse().expect_err(text);
        assert!(!format!("{errors} {errors:?}").contains("hunter2"), "{errors}");
    }
    let loaded = usher("api_key = 'hunter2'").env("USHER_LINK_TOKEN", "hunter2").parse().unwrap();
    assert!(!format!("{loaded:?}").contains("hunter2"));
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = usher("port = 1\nregion = 'file'\n[policy]\nfuel = 1000\nhistory = 3")
        .env("BALANCER_PORT", "2")
        .env("USHER_PORT", "3")
        .env("BALANCER_POLICY__FUEL", "2000")
        .env("USHER_POLICY__SETTINGS__CAP", "40")
        .env("USHER_REGION", "1979-05-27")
        .env("BALANCER_API_KEY", "12345")
        .env("PORT", "4")
        .config();
    assert_eq!((config.port, config.policy.fuel, config.policy.history), (3, 2000, 3));
    assert_eq!(json!(config.policy.settings), json!({ "cap": 40 }));
    assert_eq!((config.region.as_str(), config.api_key.expose()), ("1979-05-27", "12345"));
    let config = usher("region = 'file'").env("USHER_REGION", "env").env("FLY_REGION", "cdg").config();
    assert_eq!(config.region.as_str(), "cdg");
    assert_eq!(usher("region = 'file'").env("FLY_REGION", "").config().region.as_str(), "file");
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    usher("port = 1").env("USHER_TIMEOUTS__AUTH", "20").fails(&[
        "environment: USHER_TIMEOUTS__AUTH: expected a duration, found 20 without a unit; write a number with a unit, \
         such as \"250ms\", \"20s\" or \"2m\"",
    ]);
    let gone = usher("").env("USHER_POLICY__FILE", "./gone.lua").warnings();
    assert!(gone.contains("environment: USHER_POLICY__FILE: no file \"./gone.lua\""), "{gone}");
    usher("")
        .env("USHER_DISCOVERY", "{method='harness', port=0}")
        .fails(&["environment: USHER_DISCOVERY: discovery.port: 0 is out of range; write a port from 1 to 65535"]);
    let warnings = usher("[discovery]\nmethod = 'manual'\nmonoliths = [{ host = 'a', port = 1 }]")
        .env("USHER_POLICY__FULE", "1")
        .env("USHER_", "1")
        .env("USHER_PORT", "tcp://1.2.3.4:80")
        .env("USHER_PORT_80_TCP_ADDR", "1.2.3.4")
        .env("USHER_SERVICE_HOST", "1.2.3.4")
        .warnings();
    let expected = [
        "environment: USHER_: names no key",
        "environment: USHER_POLICY__FULE: unknown key; did you mean fuel?; ignored",
        "environment: USHER_PORT: looks like what Kubernetes injects",
        "environment: USHER_PORT_80_TCP_ADDR: looks like",
        "environment: USHER_SERVICE_HOST: looks like",
    ];
    assert_eq!(warnings.lines().count(), expected.len(), "{warnings}");
    assert!(warnings.lines().zip(expected).all(|(line, start)| line.starts_with(start)), "{warnings}");
}

#[test]
fn load_looks_in_the_documented_places() {
    let dir = tempfile::tempdir().unwrap();
    let request = |path: Option<&str>| Request {
        path: path.map(PathBuf::from),
        working_dir: dir.path().to_owned(),
        environment: Vec::new(),
        shipped: SHIPPED_POLICIES.to_vec(),
        workers: 2,
    };
    let port = |path| load(&request(path)).map(|loaded| (loaded.config.port, loaded.config.source));
    assert_eq!(port(None), Ok((8081, None)));
    std::fs::write(dir.path().join("balancer.toml"), "port = 1\nstrange = 1").unwrap();
    assert_eq!(port(None), Ok((1, Some(dir.path().join("balancer.toml")))));
    std::fs::write(dir.path().join("usher.toml"), "port = 2").unwrap();
    assert_eq!(port(None), Ok((2, Some(dir.path().join("usher.toml")))));
    std::fs::create_dir(dir.path().join("conf")).unwrap();
    std::fs::write(dir.path().join("conf/near.lua"), "return {}").unwrap();
    std::fs::write(dir.path().join("conf/my.toml"), "port = 3\npolicy.file = 'near.lua'").unwrap();
    let loaded = load(&request(Some("conf/my.toml"))).unwrap();
    assert_eq!(loaded.config.policy.source, PolicySource::File(dir.path().join("conf/near.lua")));
    let errors = port(Some("gone.toml")).expect_err("no error").to_string();
    assert!(errors.starts_with("gone.toml: cannot be read: "), "{errors}");
    std::fs::write(dir.path().join("bad.toml"), b"port = 1\nregion = \"\xff\"").unwrap();
    let errors = port(Some("bad.toml")).expect_err("no error").to_string();
    assert_eq!(errors, "bad.toml:2: not UTF-8; save the file as UTF-8");
}

#[test]
fn a_reload_names_what_needs_a_restart() {
    let old = Config::default();
    assert!(old.reload_diff(&usher("timeouts.auth = '1s'\napi_key = 'x'\npolicy.file = 'random'").config()).is_empty());
    let new =
        usher("port = 1\nregion = 'x'\nadmin_listen = '[::]:9'\nlimits.clients = 1\ntakeover = ''\npolicy.history = 1");
    let expected = ["port", "admin_listen", "takeover", "region", "limits.clients", "policy.history"];
    assert_eq!(old.reload_diff(&new.config()), expected);
}
