//! The shipped policies and those of the guide pass their own tests, and a check finds nothing wrong with them; what is no
//! policy is told why.

// What cannot be set up here is a broken machine: the test says so and ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use usher::lab::{Options, TestFile, check_policy, find_tests, run_tests, test_gate};
use usher::model::Region;
use usher::policy::lua::{Distances, Environment, Limits, Source};
use usher::policy::shipped::SHIPPED;
use usher::policy::{smoke, versions};

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

/// Without optimisation the fuel of a call may take longer than its budget.
fn patient() -> Environment {
    let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
    Environment { limits, ..Environment::default() }
}

/// Everything that can be in the place of a policy: the loader (as a start and a swap use it) and `check` say the same one
/// thing, with file and line. What is only sometimes wrong is a warning of `check` and refuses nothing.
#[test]
fn bad_input_gets_one_clear_message_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.lua");
    let hook = |body: &str| format!("local p = {{}}\nfunction p.place(call)\n  {body}\nend\nreturn p").into_bytes();
    let refused: [(&str, Vec<u8>, Option<u32>, &str); 12] = [
        ("a syntax error", b"return {\n  place = function(call\n".to_vec(), Some(3), "Expected ')'"),
        (
            "no table",
            b"local p = {}\nreturn 7".to_vec(),
            Some(2),
            "returns number; a policy file returns a table of hooks",
        ),
        ("no hook", b"return {\n  place = 7,\n}".to_vec(), Some(2), "place is a number; hooks are functions"),
        ("an error", b"local p = {}\nlocal x = p.y.z\nreturn p".to_vec(), Some(2), "attempt to index nil"),
        ("a number", hook("return 7"), Some(2), "place returned number 7; return a monolith, its id"),
        (
            "a cyclic table",
            hook("local t = {} t[1] = t return t"),
            Some(2),
            "a list whose item 1 is a table that is no Monolith",
        ),
        (
            "nan",
            hook("return usher.min_by(call.monoliths, function(m) return m.errors / m.latency_ms end)"),
            Some(3),
            "the score of \"smoke-1\" is nan, not a number",
        ),
        ("no end", hook("while true do end"), Some(3), "more than 20000 safepoints"),
        ("invalid UTF-8", b"return {}\n-- \xff".to_vec(), Some(2), "is not UTF-8"),
        ("5 MB", vec![b' '; 5 << 20], None, "has 5242880 bytes; a policy may have 1048576"),
        ("bytecode", b"\x09\x03\x00".to_vec(), Some(1), "Expected"),
        ("nothing", Vec::new(), None, "returns nil"),
    ];
    let region = Region::from("local");
    let calls: Vec<_> = smoke::calls(&region, 0).into_iter().map(|c| (c, smoke::synthetic_view(&region))).collect();
    for (what, bytes, line, reason) in refused {
        std::fs::write(&path, &bytes).unwrap();
        let prepared = Source::read(&path)
            .and_then(|source| versions::prepare(source, &patient(), &calls, versions::Gates::default()));
        let error = prepared.map(|_| ()).unwrap_err();
        assert!(error.reason.contains(reason), "{what}: {error}");
        assert_eq!((error.line, error.file.as_str()), (line, path.to_str().unwrap()), "{what}: {error}");
        assert_eq!(error.to_string().lines().count(), 1, "{what}: {error}");
        if let Ok(source) = Source::read(&path) {
            let found = check_policy(&source, &patient());
            let errors: Vec<_> = found.iter().filter(|problem| !problem.warning).collect();
            assert_eq!(errors.len(), 1, "{what}: {found:?}");
            assert_eq!(
                (errors[0].error.line, errors[0].error.reason.contains(reason)),
                (line, true),
                "{what}: {found:?}"
            );
        }
    }
    std::fs::write(&path, hook("return 'm-gone'")).unwrap();
    let source = Source::read(&path).unwrap();
    assert!(
        versions::prepare(source.clone(), &patient(), &calls, versions::Gates::default()).is_ok(),
        "a live cluster may have it"
    );
    let found = check_policy(&source, &patient());
    assert!(found.len() == 1 && found[0].warning && found[0].error.line == Some(2), "{found:?}");
    assert!(found[0].error.reason.contains("place named \"m-gone\": no such monolith"), "{found:?}");
    // It vanishes between two reads; and what is there instead is a folder.
    std::fs::remove_file(&path).unwrap();
    assert!(Source::read(&path).unwrap_err().reason.contains("no such file; give a path"));
    std::fs::create_dir(&path).unwrap();
    assert!(Source::read(&path).unwrap_err().reason.contains("is not a file; name the policy's .lua file"));
    // The text that was read is the one that is tested, whatever has become of its file.
    let gate = test_gate(&patient(), Duration::from_secs(10));
    assert_eq!(gate(&source), Ok(()), "no test beside it");
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
