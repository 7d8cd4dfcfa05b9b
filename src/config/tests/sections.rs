//! The sections that mean more than their values: policy, strategy, discovery, and what comes later.

use super::*;

#[test]
fn a_policy_is_a_path_or_a_shipped_name() {
    let source = |text: &str| usher(&format!("policy.file = '{text}'")).config().policy.source;
    assert_eq!(source("least-loaded"), PolicySource::Shipped("least-loaded".into()));
    assert_eq!(source("/etc/usher/mine.lua"), PolicySource::File("/etc/usher/mine.lua".into()));
    let shipped = "default, least-loaded, region-affinity, hash-ring, random, spill, slow-start, bounded-hash, capacity, \
         follow-the-crowd";
    // A file that is missing is no mistake of the configuration: its last good version may serve.
    let missing = usher("[policy]\nfile = 'policies/x.luau'").parse().unwrap();
    assert_eq!(missing.config.policy.source, PolicySource::File("/etc/usher/policies/x.luau".into()));
    assert_eq!(missing.config.policy.keep, Some("/etc/usher/policies/.usher".into()));
    assert_eq!(
        missing.missing_policy().unwrap().to_string(),
        format!(
            "usher.toml:2: policy.file: no file \"policies/x.luau\" at /etc/usher/policies/x.luau; write a path from the \
             folder of this file, or a shipped name: {shipped}"
        )
    );
    assert_eq!(usher("policy.file = '/etc/usher/mine.lua'").parse().unwrap().missing_policy(), None);
    usher("policy.file = 'defualt'").fails(&[&format!(
        "usher.toml:1: policy.file: no policy \"defualt\" is shipped (did you mean \"default\"?); shipped are {shipped}; \
         a path, such as \"./defualt.lua\" for /etc/usher/defualt.lua, holds a \"/\" or ends in .lua or .luau"
    )]);
}

#[test]
fn strategies_name_shipped_policies() {
    let check = |text: &str, name: &str, settings: serde_json::Value| {
        let policy = file("balancer.toml", text).config().policy;
        assert_eq!(policy.source, PolicySource::Shipped(name.into()));
        assert_eq!(json!(policy.settings), settings, "{text}");
    };
    check("selection_strategy.strategy = 'MinRooms'", "default", json!({ "own_region_only": true }));
    check("selection_strategy.strategy = 'Random'", "random", json!({ "own_region_only": true }));
    let ring = |weight| json!({ "own_region_only": true, "weight": weight });
    check("[selection_strategy]\nstrategy = 'HashRing'", "hash-ring", ring(1));
    check("[selection_strategy]\nstrategy = 'HashRing'\nweight = 5", "hash-ring", ring(5));
    check("selection_strategy = 'HashRing'", "hash-ring", ring(1));
    check("selection_strategy = 'HashRing'\n[policy.settings]\nweight = 9", "hash-ring", ring(9));
    check("", "default", json!({}));
    let both = usher("selection_strategy.strategy = 'HashRing'\npolicy.file = 'random'");
    assert_eq!(both.config().policy.source, PolicySource::Shipped("random".into()));
    assert!(both.config().policy.settings.is_empty());
    assert!(both.warnings().contains("usher.toml:1: selection_strategy: policy.file is set and wins"));
    usher("selection_strategy.strategy = 'minrooms'").fails_with("write \"MinRooms\", \"HashRing\" or \"Random\"");
    usher("selection_strategy.weight = 5").fails_with("selection_strategy.strategy: missing; write \"MinRooms\"");
}

#[test]
fn each_discovery_method_is_read() {
    let check = |text: &str, expected| assert_eq!(usher(text).config().discovery, expected, "{text}");
    let two = Discovery::Manual(vec![("10.0.0.2".into(), 3002), ("::1".into(), 3003)]);
    check(
        "[discovery]\nmethod = 'manual'\n[[discovery.monoliths]]\nhost = '10.0.0.2'\nport = 3002\n\
         [[discovery.monoliths]]\nhost = '[::1]'\nport = 3003",
        two.clone(),
    );
    check(
        "[discovery]\nmethod = 'manual'\nmonoliths = [{ host = '10.0.0.2', port = 3002 }, { host = '::1', port = 3003 }]",
        two,
    );
    let dns = |dns_server: Option<&str>, ms| Discovery::Dns {
        query: "ott.local".into(),
        service_port: 3002,
        dns_server: dns_server.map(|address| address.parse().unwrap()),
        polling_interval: Duration::from_millis(ms),
    };
    let base = "[discovery]\nmethod = 'dns'\nquery = 'ott.local'\nservice_port = 3002\n";
    check(base, dns(None, 5000));
    check(&format!("{base}polling_interval = '250ms'"), dns(None, 250));
    check(&format!("{base}dns_server = '10.0.0.2'"), dns(Some("10.0.0.2:53"), 5000));
    check(&format!("{base}dns_server = '::1'"), dns(Some("[::1]:53"), 5000));
    check(&format!("{base}dns_server = '127.0.0.1:5353'"), dns(Some("127.0.0.1:5353"), 5000));
    check(
        "[discovery]\nmethod = 'fly'\nfly_app = 'ott-prod'\nservice_port = 3002",
        Discovery::Fly { fly_app: "ott-prod".into(), service_port: 3002, polling_interval: Duration::from_secs(5) },
    );
    check("discovery = { method = 'harness', port = 9000 }", Discovery::Harness { port: 9000 });
    let overlaid = usher("[discovery]\nmethod = 'fly'\nfly_app = 'a'\nservice_port = 1")
        .env("BALANCER_DISCOVERY", "{method=\"harness\", port=9000}");
    assert_eq!(overlaid.config().discovery, Discovery::Harness { port: 9000 });
    let merged = usher("[discovery]\nmethod = 'harness'\nport = 1").env("USHER_DISCOVERY__PORT", "2");
    assert_eq!(merged.config().discovery, Discovery::Harness { port: 2 });
}

#[test]
fn mixed_and_incomplete_discovery_is_an_error() {
    let monoliths = "monoliths = [{ host = 'a', port = 1 }]";
    usher(&format!("[discovery]\nmethod = 'manual'\n{monoliths}\nquery = 'x'\nfly_app = 'y'")).fails(&[
        "usher.toml:4: discovery.query: belongs to method \"dns\", and the method is \"manual\"; remove one of the two",
        "usher.toml:5: discovery.fly_app: belongs to method \"fly\", and the method is \"manual\"; remove one of the two",
    ]);
    let peer = format!("[discovery]\nmethod = 'manual'\n{monoliths}\nquery = 'x'");
    assert!(file("balancer.toml", &peer).warnings().contains("discovery.query: belongs to method \"dns\""));
    usher("[discovery]\nmethod = 'dns'").fails(&[
        "usher.toml:1: discovery.query: missing: the method needs it",
        "usher.toml:1: discovery.service_port: missing: the method needs it",
    ]);
    usher("[discovery]\nmethod = 'harness'\nport = 0").fails_with("discovery.port: 0 is out of range");
    usher("[discovery]\nport = 5").fails_with("discovery.method: missing; write \"manual\", \"dns\", \"fly\" or");
    usher("discovery.method = 'zookeeper'").fails_with("\"zookeeper\" is no method; write \"manual\"");
    usher("[discovery]\nmethod = 'manual'\nmonoliths = [{ host = 'a:1', port = 1 }]")
        .fails_with("discovery.monoliths[0].host: \"a:1\" is no address or DNS name");
    usher("[discovery]\nmethod = 'manual'\nmonoliths = [{ host = 'a' }, 5]").fails(&[
        "usher.toml:3: discovery.monoliths: item 1: expected { host = \"10.0.0.2\", port = 3002 }, found a whole number",
        "usher.toml:3: discovery.monoliths[0].port: missing: the method needs it",
    ]);
    for empty in ["", "[discovery]\nmethod = 'manual'", "[discovery]\nmethod = 'manual'\nmonoliths = []"] {
        let warnings = usher(empty).warnings();
        assert!(warnings.contains("no Monolith is listed: usher starts and waits"), "{warnings}");
        assert_eq!(warnings.lines().count(), 1, "{warnings}");
    }
}

#[test]
fn claims_need_a_redis_and_never_show_its_password() {
    let claims = |text: &str| usher(text).config().claims;
    assert_eq!(claims(""), ClaimsConfig::default());
    assert_eq!(claims("[claims]\nbackend = 'none'"), ClaimsConfig::default());
    let url = "redis://:hunter2@10.0.0.5:6380/2";
    let set = format!("[claims]\nbackend = 'redis'\nurl = '{url}'\nprefix = 'ott:'\nlease = '30s'\ntimeout = '50ms'");
    let read = claims(&set);
    assert_eq!((read.url.as_ref().unwrap().expose(), &*read.prefix), (url, "ott:"));
    assert_eq!((read.lease, read.timeout), (Duration::from_secs(30), Duration::from_millis(50)));
    assert!(!format!("{read:?}").contains("hunter2"));
    let none = usher("[claims]\nurl = 'redis://:hunter2@localhost'").warnings();
    assert!(none.contains("usher.toml:2: claims.url: without backend = \"redis\" nothing is claimed"), "{none}");
    assert!(!none.contains("hunter2"));
    usher("[claims]\nbackend = 'redis'")
        .fails(&["usher.toml:1: claims.url: missing: the backend needs it; write \"redis://host:6379\""]);
    usher("[claims]\nbackend = 'etcd'")
        .fails_with("claims.backend: \"etcd\" is no backend; write \"redis\" or \"none\"");
    for (url, message) in [
        (
            "http://:hunter2@host",
            "claims.url: is no address of a Redis; write \"redis://[user:password@]host[:port][/db]\"",
        ),
        ("hunter2", "claims.url: is no address of a Redis"),
        ("rediss://:hunter2@host", "claims.url: TLS is not built in; write \"redis://host:6379\""),
    ] {
        let text = format!("[claims]\nbackend = 'redis'\nurl = '{url}'");
        let broken = usher(&text);
        broken.fails_with(message);
        assert!(!broken.parse().unwrap_err().to_string().contains("hunter2"));
    }
    usher("[claims]\nlease = '1s'").fails_with("claims.lease: 1s is out of range");
    usher("[claims]\ntimeout = '2s'").fails_with("claims.timeout: 2s is out of range");
    usher("[claims]\nprefix = 'a b'").fails_with("claims.prefix: \"a b\" is empty, too long or holds a space");
    usher("[claims]\nleas = '20s'").fails_with("did you mean lease?");
}

#[test]
fn record_names_a_file_and_its_folder_is_that_of_the_admin_api() {
    let record = |text: &str| usher(text).config().record;
    let nothing = record("");
    assert_eq!((nothing.path, nothing.folder, nothing.route_sample), (None, None, 100));
    let with = record("[record]\npath = 'traces/live.jsonl.zst'\nrotate = '1MiB'\nrotate_after = '10m'\nkeep = 3");
    let (path, folder) = (with.path.unwrap(), with.folder.unwrap());
    assert!(path.ends_with("traces/live.jsonl.zst") && folder.ends_with("traces"), "{path:?} {folder:?}");
    assert_eq!((with.rotate, with.rotate_after, with.keep), (1 << 20, Duration::from_secs(600), 3));
    let asked = record("[record]\nfolder = 'elsewhere'\nredact_rooms = true\nroute_sample = 0");
    assert!(asked.path.is_none() && asked.folder.unwrap().ends_with("elsewhere") && asked.redact_rooms);
    assert_eq!((asked.route_sample, record("[record]\npath = ''").path), (0, None));
    usher("[record]\nrotate = 64").fails_with("usher.toml:2: record.rotate: ");
    usher("[record]\nrotate_after = '1ms'").fails_with("record.rotate_after: 1ms is out of range");
    usher("[record]\npath = '/'").fails_with("record.path: \"/\" is a folder; write a file in it");
    usher("[record]\nrotat = '1MiB'").fails_with("did you mean rotate?");
}

#[test]
fn the_gate_replay_has_demands() {
    let text =
        "policy.gate = 'replay'\n[policy.require]\nagreement = '>= 0.9'\nassert = ['faults == 0', 'ns_p99<50000']";
    let policy = usher(text).config().policy;
    let demands: Vec<String> = policy.require.iter().map(ToString::to_string).collect();
    assert_eq!(
        (policy.gate, demands.join(", ")),
        (Gate::Replay, "agreement >= 0.9, faults == 0, ns_p99 < 50000".into())
    );
    assert_eq!(usher("policy.gate = 'replay'").config().policy.require, []);
    usher("policy.gate = 'repaly'").fails_with("\"repaly\" is no gate; write \"compile\", \"tests\" or \"replay\"");
    assert!(usher("policy.require.faults = '== 0'").warnings().contains("usher.toml:1: policy.require: has no effect"));
    for (text, error) in [
        (
            "agreemnt = '>= 1'",
            "usher.toml:3: policy.require.agreemnt: \"agreemnt\" is no metric; did you mean \"agreement\"?",
        ),
        ("faults = 0", "usher.toml:3: policy.require.faults: expected a comparison such as \">= 0.9\", found"),
        ("faults = '= 0'", "policy.require.faults: \"= 0\" begins with no comparison; write < <= >"),
        ("assert = ['faults']", "usher.toml:3: policy.require.assert: "),
        ("assert = 'faults == 0'", "usher.toml:3: policy.require.assert: expected"),
        ("duplicates = '== 0'", "policy.require.duplicates: a replay has no duplicates; a simulation has: remove it"),
    ] {
        usher(&format!("policy.gate = 'replay'\n[policy.require]\n{text}")).fails_with(error);
    }
}

#[test]
fn load_names_metrics_and_keeps_its_header_secret() {
    let config = usher(
        "[load]\ninterval = '1s'\nheader = 'ApiKey: s3cr3t: x'\nmetrics = { lag = 'a', timers = 'b{type=\"Timeout\"}' }",
    )
    .config();
    let load = &config.load;
    let header = load.header.as_ref().map(|(name, value)| (name.as_str(), value.expose()));
    assert_eq!(
        (load.path.as_str(), load.interval, header),
        ("/api/status/metrics", Duration::from_secs(1), Some(("apikey", "s3cr3t: x")))
    );
    let named: Vec<String> = load.metrics.iter().map(|(name, selector)| format!("{name}={selector}")).collect();
    assert_eq!(named, ["lag=a", "timers=b{type=\"Timeout\"}"]);
    assert!(!format!("{config:?}").contains("s3cr3t"));
    assert_eq!(usher("load.header = ''\nload.metrics.a = 'a'").config().load.header, None);
    assert!(usher("load.interval = '1s'").warnings().contains("load: nothing is scraped without metrics"));
    for (text, error) in [
        ("load.metrics.lag = 'a b'", "load.metrics.lag: \"a b\" names no metric; write a metric such as"),
        ("load.metrics.lag = 5", "load.metrics.lag: expected a text, found"),
        ("load.metrics.'1x' = 'a'", "load.metrics.1x: is no name for m.load"),
        ("load.path = 'metrics'", "load.path: \"metrics\" is no path; write one such as \"/api/status/metrics\""),
        ("load.header = 's3cr3t'", "load.header: is no header; write \"name: value\""),
        ("load.header = 'host: s3cr3t'", "load.header: host is set by usher"),
        ("load.header = 'a: s3cr3t\u{e9}'", "load.header: is no header"),
        ("load.interval = '1ms'", "load.interval: 1ms is out of range"),
    ] {
        usher(text).fails_with(error);
    }
}

#[test]
fn weights_are_positive_numbers_under_any_name() {
    let weights = usher("[weights]\n\"10.0.0.2:3002\" = 2\ncdg = 0.5").config().weights;
    assert_eq!(weights.of("m1", "10.0.0.2:3002", "cdg").to_bits(), 2f64.to_bits());
    assert_eq!(weights.of("m1", "10.0.0.3:3002", "cdg").to_bits(), 0.5f64.to_bits());
    usher("weights.cdg = 0").fails_with("weights.cdg: 0 is out of range; write a number from 0.001 to 1000");
    usher("weights.cdg = 'x'").fails_with("weights.cdg: expected a number from 0.001 to 1000");
}

#[test]
fn the_last_good_version_of_a_file_is_kept_beside_it_unless_told_otherwise() {
    let keep = |text: &str| usher(text).config().policy.keep.map(|folder| folder.display().to_string());
    assert_eq!(keep("policy.file = 'mine.lua'").as_deref(), Some("/etc/usher/.usher"));
    assert_eq!(keep("[policy]\nfile = 'mine.lua'\nkeep = 'kept'").as_deref(), Some("/etc/usher/kept"));
    assert_eq!(keep("[policy]\nfile = 'mine.lua'\nkeep = ''"), None);
    assert_eq!(keep("[policy]\nfile = 'random'\nkeep = 'kept'"), None);
}

#[test]
fn total_memory_has_to_suffice() {
    let total = |text: &'static str, workers| Try { workers, ..usher(text) };
    assert_eq!(policy_vms(6), 14);
    assert_eq!(total("", 3).config().policy.total_memory, 64 << 20);
    assert_eq!(total("", 63).config().policy.total_memory, 128 * (8 << 20));
    assert!(!total("", 63).config().policy.total_memory_is_set);
    assert!(total("policy.total_memory = '64MiB'", 3).config().policy.total_memory_is_set);
    assert_eq!(total("policy.total_memory = '64MiB'", 3).config().policy.total_memory, 64 << 20);
    total("policy.total_memory = '64MiB'", 4).fails(&[
        "usher.toml:1: policy.total_memory: 64MiB is less than 10 VMs (4 workers and control, twice while swapping) of \
         8MiB need; write \"80MiB\" or more, or policy.memory = \"6553KiB\" or less",
    ]);
    total("policy.total_memory = '1MiB'", 2).fails(&[
        "usher.toml:1: policy.total_memory: 1MiB is less than 6 VMs (2 workers and control, twice while swapping) of 8MiB \
         need; write \"48MiB\" or more, or \"6MiB\" or more with policy.memory = \"1MiB\", the least there is",
    ]);
    total("policy.memory = '1MiB'\npolicy.total_memory = '1MiB'", 2).fails_with("write \"6MiB\" or more");
    total("policy.memory = '6553KiB'\npolicy.total_memory = '64MiB'", 4).config();
}
