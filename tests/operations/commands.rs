//! Commands that need no running balancer: `check`, `test`, `demo`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use usher::testkit::http;

use super::process::{Kept, output, text, usher};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_is_good_or_names_the_line() {
    let folder = TempDir::new().unwrap();
    let good = output(usher(folder.path()).arg("check")).await;
    assert_eq!((good.status.code(), text(&good.stdout).trim()), (Some(0), "good"), "{}", text(&good.stderr));
    fs::write(folder.path().join("good.lua"), "return { place = function(call) return call.monoliths[1] end }")
        .unwrap();
    fs::write(folder.path().join("syntax.lua"), "return {\n  place = function(call\n").unwrap();
    fs::write(folder.path().join("answer.lua"), "return { route = function() return 7 end }").unwrap();
    for (policy, code) in
        [("good.lua", 0), ("hash-ring", 0), ("syntax.lua", 1), ("answer.lua", 1), ("missing.lua", 1), ("randm", 1)]
    {
        let checked = output(usher(folder.path()).args(["check", "--policy", policy])).await;
        assert_eq!(checked.status.code(), Some(code), "{policy}: {}", text(&checked.stdout));
    }
    let both = output(usher(folder.path()).args(["check", "--policy", "syntax.lua", "--policy", "answer.lua"])).await;
    let said = text(&both.stdout);
    assert!(said.contains("syntax.lua:") && said.contains("answer.lua"), "all at once: {said}");
    // The configured policy is checked too, with the limits that the file gives it.
    fs::write(folder.path().join("usher.toml"), "[policy]\nfile = \"./syntax.lua\"\n").unwrap();
    let checked = output(usher(folder.path()).arg("check")).await;
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stdout).contains("syntax.lua:"), "{}", text(&checked.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_runs_the_shipped_ones_and_tells_failing_from_broken() {
    let folder = TempDir::new().unwrap();
    let json = async |arguments: &[&str]| {
        let run = output(usher(folder.path()).arg("test").args(arguments).args(["--format", "json"])).await;
        let document: Value = serde_json::from_slice(&run.stdout).unwrap_or_default();
        (run.status.code().unwrap(), document, text(&run.stderr))
    };
    let (code, report, err) = json(&[]).await;
    assert_eq!(code, 0, "{report} {err}");
    assert!(report["passed"].as_u64().unwrap() > 10 && report["failed"] == 0 && report["errors"] == 0, "{report}");
    assert_eq!(report["tests"].as_array().unwrap().len() as u64, report["passed"].as_u64().unwrap());
    assert_eq!(json(&["default", "random"]).await.0, 0);
    fs::write(folder.path().join("mine.lua"), "return { place = function(call) return call.monoliths[1] end }")
        .unwrap();
    let test = "local t = usher.test\nlocal policy = t.policy()\nt.it(\"good\", function() t.check(true) end)\n\
                t.it(\"bad\", function()\n  t.equal(1, 2)\nend)\n";
    fs::write(folder.path().join("mine_test.lua"), test).unwrap();
    for path in ["mine_test.lua", "mine.lua", "."] {
        let (code, report, err) = json(&[path]).await;
        assert_eq!(code, 1, "{path}: {report} {err}");
        assert_eq!((&report["passed"], &report["failed"], &report["errors"]), (&1.into(), &1.into(), &0.into()));
        let bad = report["tests"].as_array().unwrap().iter().find(|test| test["name"] == "bad").unwrap();
        assert_eq!((&bad["status"], &bad["line"]), (&"fail".into(), &5.into()), "{bad}");
        assert!(bad["file"].as_str().unwrap().ends_with("mine_test.lua") && bad["message"].is_string());
    }
    assert_eq!(json(&["mine.lua", "--filter", "good"]).await.0, 0);
    let pretty = output(usher(folder.path()).args(["test", "mine.lua"])).await;
    assert_eq!(pretty.status.code(), Some(1));
    assert!(
        text(&pretty.stdout).contains("bad") && text(&pretty.stdout).contains("mine_test.lua:5"),
        "{}",
        text(&pretty.stdout)
    );
    fs::write(folder.path().join("mine_test.lua"), "local t = usher.test\nt.it(\"x\", function(\n").unwrap();
    let (code, report, err) = json(&["mine.lua"]).await;
    assert_eq!(code, 2, "{report} {err}");
    assert!(report["errors"].as_u64().unwrap() >= 1);
    assert_eq!(json(&["nowhere.lua"]).await.0, 2);
    assert_eq!(json(&["--filter", "("]).await.0, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_serves_and_ends_by_itself() {
    let folder = TempDir::new().unwrap();
    let mut command = usher(folder.path());
    command.args(["demo", "--port", "0", "--seconds", "3", "--monoliths", "2", "--rooms", "5", "--clients", "10"]);
    let mut child = Kept(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let stdout = BufReader::new(child.0.stdout.take().unwrap());
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut seen = Vec::new();
    let mut addr = None;
    while let Some(line) = lines.recv().await {
        if let Some(rest) = line.split("metrics").nth(1).and_then(|rest| rest.trim().strip_prefix("http://")) {
            let found: std::net::SocketAddr = rest.split('/').next().unwrap().parse().unwrap();
            assert_eq!(http::get(found, "/api/status").await.unwrap().text(), "OK");
            assert_eq!(http::get(found, "/api/room/list").await.unwrap().status, 200);
            addr = Some(found);
        }
        seen.push(line);
    }
    assert_eq!(child.ended().await.code(), Some(0), "{seen:?}");
    assert!(addr.is_some_and(|addr| addr.ip().is_loopback()), "{seen:?}");
    assert!(
        seen.iter().any(|line| line.contains("messages/s")) && seen.last().unwrap().contains("stopped"),
        "{seen:?}"
    );
    let bad = output(usher(folder.path()).args(["demo", "--port", "0", "--policy", "no-such"])).await;
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad.stderr));
}
