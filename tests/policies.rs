//! The shipped policies pass their own tests, and a check finds nothing wrong with them.

use usher::lab::{Options, TestFile, check_policy, run_tests};
use usher::policy::lua::{Environment, Source};
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
fn nothing_is_wrong_with_the_shipped_policies() {
    for policy in &SHIPPED {
        let source = Source::shipped(policy.name, policy.text);
        assert_eq!(check_policy(&source, &Environment::default()), [], "{}", policy.name);
    }
}
