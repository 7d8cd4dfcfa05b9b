//! The shipped policies and those of the guide pass their own tests, and a check finds nothing wrong with them.

use usher::lab::{Options, TestFile, check_policy, find_tests, run_tests};
use usher::policy::lua::{Distances, Environment, Source};
use usher::policy::shipped::SHIPPED;

#[test]
fn every_shipped_policy_passes_its_tests() {
    let files: Vec<TestFile> = SHIPPED.iter().map(TestFile::shipped).collect();
    let report = run_tests(&files, &Options::default());
    assert_eq!(report.exit_code(), 0, "{}", report.pretty());
    for file in &files {
        assert!(report.tests.iter().any(|test| test.file == file.name), "{} has no tests", file.name);
    }
}

#[test]
fn shipped_tests_pass_whatever_the_configuration_says() {
    // They are also the gate of a live swap, with the settings and distances of that balancer.
    let settings = serde_json::json!({
        "own_region_only": true, "factor": 7, "slow_start_s": 1, "aggression": 9, "spill_at": 1, "spill_by": "users",
        "spill_from": "room", "hash_over": "all", "max_users": 1, "max_room_clients": 1, "holds": 9, "full_code": 4999,
        "max_moves": 1, "majority": 0.9, "min_clients": 50, "min_age_s": 500,
    });
    let distances = Distances::new(|from, to| (from.as_str() < to.as_str()).then_some(3.0));
    let settings = settings.as_object().cloned().unwrap();
    let environment = Environment { settings, distances, ..Environment::default() };
    let files: Vec<TestFile> = SHIPPED.iter().map(TestFile::shipped).collect();
    let report = run_tests(&files, &Options { environment, ..Options::default() });
    assert_eq!(report.exit_code(), 0, "{}", report.pretty());
}

#[test]
fn nothing_is_wrong_with_the_shipped_policies() {
    for policy in &SHIPPED {
        let source = Source::shipped(policy.name, policy.text);
        assert_eq!(check_policy(&source, &Environment::default()), [], "{}", policy.name);
    }
}

/// The Lua blocks of the guide by the file names in their first lines.
fn blocks(guide: &str) -> Vec<(&str, &str)> {
    let texts = guide.split("```lua\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let named = |text| Some((str::lines(text).next()?.strip_prefix("-- ")?, text));
    let blocks: Vec<_> = texts.filter_map(|(text, _)| named(text)).collect();
    assert_eq!(blocks.len(), guide.matches("```lua\n").count(), "each block ends, and begins with its file name");
    blocks
}

#[test]
fn the_policies_of_the_guide_run_as_they_stand() {
    let guide = include_str!("../policies/README.md");
    let folder = tempfile::tempdir().unwrap();
    let blocks = blocks(guide);
    for (name, text) in &blocks {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let policies: Vec<&str> = blocks.iter().filter_map(|(name, _)| name.strip_suffix("_test.lua")).collect();
    assert_eq!(policies.len() * 2, blocks.len(), "each policy has a test");
    for name in &policies {
        let source = Source::read(&folder.path().join(format!("{name}.lua"))).unwrap();
        assert_eq!(check_policy(&source, &Environment::default()), [], "{name}");
    }
    let files = find_tests(&[folder.path().display().to_string()]).unwrap();
    assert_eq!(files.len(), policies.len());
    let report = run_tests(&files, &Options::default());
    assert_eq!(report.exit_code(), 0, "{}", report.pretty());
    for file in &files {
        assert!(
            report.tests.iter().filter(|test| test.file == file.name).count() >= 2,
            "{} tests too little",
            file.name
        );
    }
}

#[test]
fn the_guide_names_every_shipped_policy_and_no_other() {
    let guide = include_str!("../policies/README.md");
    let table = guide.split("## What is shipped").nth(1).unwrap();
    for policy in &SHIPPED {
        assert!(table.contains(&format!("| [`{0}`]({0}.lua) |", policy.name)), "{} is missing", policy.name);
    }
    assert_eq!(table.matches(".lua) |").count(), SHIPPED.len());
}
