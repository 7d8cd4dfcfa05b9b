//! `usher simulate` as a command: its document, its exit codes, and that two runs print the same bytes.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use super::process::{output, text, usher};

const SCENARIO: &str = "duration = \"10m\"\nstay = \"2m\"\n[[monoliths]]\nregion = \"ewr\"\ncount = 2\n\
    [[arrivals]]\nregion = \"ewr\"\nper_hour = 600\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulate_compares_policies_and_tells_what_does_not_hold() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("s.toml"), SCENARIO).unwrap();
    let pile = "return { name = \"pile\", place = function(call) return call.monoliths[1] end }";
    fs::write(folder.path().join("pile.lua"), pile).unwrap();
    let run = async |arguments: &[&str]| {
        let run = output(usher(folder.path()).args(["simulate", "s.toml"]).args(arguments)).await;
        (run.status.code().unwrap(), text(&run.stdout), text(&run.stderr))
    };
    let both = ["--policy", "least-loaded", "--policy", "pile.lua", "--format", "json", "--assert", "faults == 0"];
    let (code, first, err) = run(&both).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(first, run(&both).await.1, "a seed gives the same bytes");
    let document: Value = serde_json::from_str(&first).unwrap();
    let metric = |at: usize, name: &str| document["policies"][at]["metrics"][name].as_f64().unwrap();
    assert_eq!(document["policies"][1]["policy"], "pile");
    assert_eq!(metric(1, "max_load_over_mean"), 2.0);
    assert!(metric(0, "max_load_over_mean") < 1.5 && metric(0, "joins") > 50.0, "{document}");
    assert_eq!(document["policies"][0]["assertions"][0]["ok"], true);
    let (code, out, err) = run(&["--policy", "pile.lua", "--assert", "max_load_over_mean < 1.3"]).await;
    assert_eq!(code, 1, "{out} {err}");
    assert!(
        err.contains("not so: pile: max_load_over_mean < 1.3: 2")
            && out.contains("✗  pile  max_load_over_mean < 1.3  2"),
        "{out} {err}"
    );
    for (arguments, says) in [
        (["--policy", "leest-loaded"].as_slice(), "did you mean \"least-loaded\"?"),
        (&["--policy", "default", "--assert", "fautls == 0"], "did you mean \"faults\"?"),
        (&[], "--policy"),
    ] {
        let (code, _, err) = run(arguments).await;
        assert!(code == 2 && err.contains(says), "{arguments:?}: {code} {err}");
    }
    fs::write(folder.path().join("s.toml"), format!("duraton = \"1h\"\n{SCENARIO}")).unwrap();
    let (code, _, err) = run(&["--policy", "default"]).await;
    assert!(code == 2 && err.contains("s.toml:1: duraton: unknown key; did you mean duration?"), "{code} {err}");
}
