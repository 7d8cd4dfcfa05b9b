//! Commands that try a policy out: `test` with coverage and JUnit, `eval`, `bench`, and the warnings of `check`.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Kept, output, text, usher};

const POLICY: &str = "local p = {}
function p.place(call)
  if call.region == 'mars' then
    return nil
  end
  usher.explain('fewest rooms')
  return usher.min_by(call.monoliths, 'rooms')
end
return p
";
const TEST: &str = "local t = usher.test
local policy = t.policy()
t.it('fewest <rooms>', function()
  t.equal(policy.place(t.place { monoliths = { { id = 'a', rooms = 2 }, { id = 'b' } } }), 'b')
end)
";

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("p.lua"), POLICY).unwrap();
    fs::write(folder.path().join("p_test.lua"), TEST).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coverage_has_a_threshold_and_a_file() {
    let folder = folder();
    let run = async |arguments: &[&str]| {
        let run = output(usher(folder.path()).arg("test").args(arguments)).await;
        (run.status.code().unwrap(), text(&run.stdout), text(&run.stderr))
    };
    let (code, out, err) = run(&["--coverage", "--threshold", "80"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("missed: 4\n"), "{out}");
    let lcov = fs::read_to_string(folder.path().join("lcov.info")).unwrap();
    assert!(lcov.starts_with("TN:\nSF:p.lua\nDA:") && lcov.contains("DA:4,0\n"), "{lcov}");
    fs::remove_file(folder.path().join("lcov.info")).unwrap();
    let (code, out, err) = run(&["--threshold", "95"]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("--threshold asks for 95 %") && !folder.path().join("lcov.info").exists(), "{err}");
    let (code, out, _) = run(&["--lcov", "other.info", "--format", "json"]).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["coverage"]["files"][0]["missed"]), (0, &json!([[4, 4]])), "{out}");
    assert!(folder.path().join("other.info").exists() && !folder.path().join("lcov.info").exists());
    assert_eq!(run(&["--lcov", "no/such/folder/x"]).await.0, 2);
    assert_eq!(run(&["--threshold", "101"]).await.0, 2);
    let (code, _, err) = run(&["--filter", "no such test"]).await;
    assert!(code == 2 && err.contains("no test's name matches --filter"), "{err}");
    let (code, xml, _) = run(&["--format", "junit"]).await;
    assert_eq!(code, 0);
    assert!(xml.starts_with("<?xml ") && xml.contains("name=\"fewest &lt;rooms&gt;\""), "{xml}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eval_answers_one_call_and_names_mistakes_in_it() {
    let folder = folder();
    let call = json!({"room": "movie", "monoliths": [{"id": "a", "rooms": 2}, {"id": "b", "rooms": 1}]});
    fs::write(folder.path().join("call.json"), call.to_string()).unwrap();
    let eval = async |arguments: &[&str]| {
        let run = output(usher(folder.path()).arg("eval").args(arguments)).await;
        (run.status.code().unwrap(), text(&run.stdout), text(&run.stderr))
    };
    let base = ["--policy", "p.lua", "--hook", "place", "--input", "call.json", "--format", "json"];
    let (code, out, err) = eval(&base).await;
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &found["answer"], &found["choice"], &found["fallback"]),
        (0, &json!("b"), &json!("b"), &Value::Null),
        "{out}{err}"
    );
    assert!(found["explain"] == json!([]) && found["ns"].as_u64().unwrap() > 0, "{out}");
    let (_, out, _) = eval(&[&base[..], &["--explain"]].concat()).await;
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        found["explain"],
        json!([
            "policy: fewest rooms",
            "min_by \"rooms\": b 1, a 2 -> b (line 7)",
            "core: after these come the default's: a"
        ])
    );
    let (code, out, _) = eval(&["--policy", "default", "--input", "call.json"]).await;
    assert!(code == 0 && out.contains("choice    b"), "{out}");
    fs::write(folder.path().join("bad.lua"), "return { place = function(call)\n return call.no.id end }").unwrap();
    let (code, out, _) = eval(&["--policy", "bad.lua", "--input", "call.json"]).await;
    assert!(code == 1 && out.contains("fallback  bad.lua:2: attempt to index nil"), "{code} {out}");
    for (input, said) in [
        ("{\n  \"room\": ,", "bad.json:2: is no JSON"),
        ("{\"monoliths\": [{\"id\": \"a\", \"rooms\": \"x\"}]}", "bad.json: monoliths[1].rooms: invalid type"),
        ("{\"monolith\": []}", "did you mean \"monoliths\"?"),
    ] {
        fs::write(folder.path().join("bad.json"), input).unwrap();
        let (code, _, err) = eval(&["--policy", "p.lua", "--input", "bad.json"]).await;
        assert!(code == 2 && err.contains(said), "{said}: {err}");
    }
    assert_eq!(eval(&["--policy", "p.lua", "--input", "none.json"]).await.0, 2);
    assert_eq!(eval(&["--policy", "p.lua", "--hook", "plase", "--input", "call.json"]).await.0, 2);
    // From standard input, as a decision of a trace.
    let mut command = usher(folder.path());
    command.args(["eval", "--policy", "p.lua", "--input", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = Kept(command.spawn().unwrap());
    let decision = json!({"decision": 1, "hook": "place", "call": call});
    child.0.stdin.take().unwrap().write_all(decision.to_string().as_bytes()).unwrap();
    assert_eq!(child.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_measures_each_size() {
    let folder = folder();
    let run =
        output(usher(folder.path()).args(["bench", "--policy", "p.lua", "--monoliths", "2,40", "--format", "json"]))
            .await;
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let found: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((&found["policy"], found["sizes"].as_array().unwrap().len()), (&json!("p"), 2), "{found}");
    for (size, monoliths) in found["sizes"].as_array().unwrap().iter().zip([2, 40]) {
        assert_eq!(size["monoliths"], monoliths);
        for key in ["p50_ns", "p99_ns", "fuel", "memory_bytes"] {
            assert!(size[key].as_u64().unwrap() > 0, "{key}: {found}");
        }
    }
    let none = output(usher(folder.path()).args(["bench", "--policy", "p.lua", "--hook", "admit"])).await;
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("the policy has no admit"), "{}", text(&none.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_of_check_change_nothing_of_its_verdict() {
    let folder = folder();
    let policy = "local p = {}\nfunction p.plase() end\nfunction p.place(call)\n  count = 1\n  return call.monolith\nend\nreturn p\n";
    fs::write(folder.path().join("odd.lua"), policy).unwrap();
    let run = output(usher(folder.path()).args(["check", "--policy", "odd.lua"])).await;
    let err = text(&run.stderr);
    assert_eq!((run.status.code(), text(&run.stdout).trim()), (Some(0), "good"), "{err}");
    for said in [
        "warning: odd.lua:2: plase is no hook and is never called; did you mean place?",
        "warning: odd.lua:4: count is a global",
        "warning: odd.lua:5: call has no monolith; did you mean monoliths?",
    ] {
        assert!(err.contains(said), "{said}\n{err}");
    }
}
