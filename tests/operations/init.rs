//! `usher init`: what it writes passes `usher check` and `usher test`, and nothing is ever overwritten.

use std::fs;

use tempfile::TempDir;

use super::process::{output, text, usher};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_init_writes_passes_check_and_test() {
    let folder = TempDir::new().unwrap();
    let made = output(usher(folder.path()).args(["init", "my shop"])).await;
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let said = text(&made.stdout);
    for name in ["usher.toml", "policies/rooms.lua", "policies/rooms_test.lua", "policies/usher.d.luau"] {
        assert!(folder.path().join("my shop").join(name).is_file() && said.contains(name), "{name}: {said}");
    }
    // The three commands that it names, but for the last, which would not end.
    let commands: Vec<&str> = said.lines().filter_map(|line| line.trim().strip_prefix("usher ")).collect();
    assert_eq!(commands.len(), 3, "{said}");
    assert!(commands[2].starts_with("run -c 'my shop/usher.toml'"), "{said}");
    for command in &commands[..2] {
        let words = command.split(" #").next().unwrap().replace("'my shop/", "'my-shop/").replace('\'', "");
        let words = words.split_whitespace().map(|word| word.replace("my-shop", "my shop"));
        let ran = output(usher(folder.path()).args(words)).await;
        assert_eq!(ran.status.code(), Some(0), "{command}: {}{}", text(&ran.stdout), text(&ran.stderr));
        assert!(!text(&ran.stderr).contains("warning"), "{command}: {}", text(&ran.stderr));
    }
    let tested = output(usher(folder.path()).args(["test", "my shop/policies", "--format", "json"])).await;
    let report: serde_json::Value = serde_json::from_slice(&tested.stdout).unwrap();
    assert!(report["passed"].as_u64().unwrap() >= 5, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_never_overwrites() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("usher.toml"), "port = 1\n").unwrap();
    let refused = output(usher(folder.path()).arg("init")).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("usher.toml is there already"), "{}", text(&refused.stderr));
    assert_eq!(fs::read_to_string(folder.path().join("usher.toml")).unwrap(), "port = 1\n");
    assert!(!folder.path().join("policies").exists(), "nothing is written beside it");
}
