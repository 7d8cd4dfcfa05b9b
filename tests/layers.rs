//! The layout rules of `ARCHITECTURE.md`, read from the sources themselves: who may import whom, how long a file may
//! be, what lies at the top level, and how tests that guard against known failures are named.

// What cannot be read here is a broken checkout: the test says so and ends.
#![allow(clippy::unwrap_used)]

#[path = "layers/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use source::{Import, Source};

/// Code lines that a file may have: without blank lines, comments and test modules.
const LONGEST: usize = 500;

/// The layers, lowest first. A module imports only from rows above its own, and from itself.
const LAYERS: [(&str, &[&str]); 8] = [
    ("L0", &["model"]),
    ("L1", &["config", "policy"]),
    ("L2", &["cluster", "trace"]),
    // It names what there is to dial and does not dial, so `link` can stand on it.
    ("L2.5", &["discovery"]),
    ("L3", &["link", "claims", "lab"]),
    ("L4", &["control"]),
    ("L5", &["front", "admin"]),
    ("L6", &["cli"]),
];

/// Simulations for tests and the demo. They stand beside the layers: they see the vocabulary only, so that nothing of
/// the balancer is tested against itself, and of the balancer only the command line may use them.
const BESIDE: &str = "testkit";

/// Whole balancers under simulated faults: tests alone, which may use everything and which nothing may use.
const ABOVE: &str = "faults";

/// The numbers of the known failures that a test has to guard against.
const KNOWN_FAILURES: [std::ops::RangeInclusive<u32>; 4] = [1..=7, 9..=35, 40..=48, 50..=60];

/// What may lie at the top level, besides names that begin with a dot.
const TOP_LEVEL: [&str; 13] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "examples",
    // What `usher test --coverage` writes, which git ignores.
    "lcov.info",
    "policies",
    "src",
    // The build's own folder, which git ignores.
    "target",
    "tests",
];

fn level(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

/// Why one module may not import another, if it may not.
fn forbidden(from: &str, to: &str) -> Option<String> {
    if from == to {
        return None;
    }
    match (from, to) {
        ("main", "cli") => return None,
        ("main", _) => return Some("main.rs only calls cli".into()),
        // The root of the crate declares modules and uses none.
        ("lib", _) => return Some("lib.rs only declares modules".into()),
        (ABOVE, other) if other != BESIDE => return None,
        (_, ABOVE) => return Some(format!("nothing may use {ABOVE}, which is tests alone")),
        (BESIDE, "model") => return None,
        (BESIDE, _) => return Some(format!("{BESIDE} may use model only")),
        ("cli", BESIDE) => return None,
        (_, BESIDE) => return Some(format!("only cli and tests may use {BESIDE}")),
        _ => {}
    }
    match (level(from), level(to)) {
        (None, _) => Some(format!("module {from} has no layer: add it to LAYERS")),
        (_, None) => Some(format!("module {to} has no layer: add it to LAYERS")),
        (Some(mine), Some(other)) if other >= mine => {
            let (mine, other) = (LAYERS[mine].0, LAYERS[other].0);
            Some(format!("{from} ({mine}) may import only from layers below its own, and {to} is {other}"))
        }
        (Some(_), Some(_)) => None,
    }
}

/// The top-level module that a file under `src` belongs to.
fn owner(relative: &Path) -> String {
    let first = relative.iter().next().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    first.strip_suffix(".rs").map(str::to_owned).unwrap_or(first)
}

/// The imports of one file that break the layers, as `file:line: why`.
fn violations(relative: &Path, source: &Source) -> Vec<String> {
    let from = owner(relative);
    source
        .imports
        .iter()
        .filter_map(|Import { line, module }| {
            // A path such as `crate::Item` names something of the root itself.
            let is_module = module.starts_with(|c: char| c.is_ascii_lowercase());
            let why = if is_module { forbidden(&from, module)? } else { return None };
            Some(format!("src/{}:{line}: imports {module}: {why}", relative.display()))
        })
        .collect()
}

/// Every file below a folder with one of these endings, relative to it.
fn files(root: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted)) {
                found.push(entry.strip_prefix(root).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The sources under `src`, and which of them are compiled for tests only.
fn sources() -> (Vec<(PathBuf, Source)>, BTreeSet<PathBuf>) {
    let src = root().join("src");
    let read = |file: PathBuf| {
        let text = fs::read_to_string(src.join(&file)).unwrap();
        (file.clone(), Source::parse(&text, &module_path(&file)))
    };
    let all: Vec<_> = files(&src, &["rs"]).into_iter().map(read).collect();
    assert!(all.len() > 50, "only {} files found under {}", all.len(), src.display());
    let only_for_tests = test_files(&all);
    (all, only_for_tests)
}

/// How many modules deep the inside of a file is: `src/a/b.rs` and `src/a/b/mod.rs` are the inside of `a::b`.
fn module_path(relative: &Path) -> Vec<String> {
    let mut path: Vec<String> =
        relative.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if path.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        path.pop();
    }
    path
}

/// Files that are modules declared with `#[cfg(test)]`, and the files below those.
fn test_files(all: &[(PathBuf, Source)]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for (file, source) in all {
        let folder = file.parent().unwrap();
        let inside: PathBuf = module_path(file).iter().collect();
        for module in &source.test_modules {
            let stem = match &module.path {
                Some(path) => folder.join(path).with_extension(""),
                None => inside.join(&module.name),
            };
            let one = stem.with_extension("rs");
            found.extend(all.iter().map(|(file, _)| file).filter(|f| **f == one || f.starts_with(&stem)).cloned());
        }
    }
    found
}

#[test]
fn modules_import_only_from_layers_below() {
    let (all, only_for_tests) = sources();
    let broken: Vec<String> = all
        .iter()
        .filter(|(file, _)| !only_for_tests.contains(file))
        .flat_map(|(file, source)| violations(file, source))
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn files_say_what_they_are_about_and_stay_short() {
    let (all, _) = sources();
    let mut broken = Vec::new();
    for (file, source) in &all {
        if !source.starts_with_doc {
            broken.push(format!("src/{}:1: says nothing about itself; begin it with `//!`", file.display()));
        }
        if source.code_lines > LONGEST {
            let lines = source.code_lines;
            broken.push(format!("src/{}: {lines} lines of code are more than {LONGEST}; divide it", file.display()));
        }
    }
    for file in files(&root().join("src"), &["luau", "lua"]) {
        let text = fs::read_to_string(root().join("src").join(&file)).unwrap();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--")).count();
        if lines > LONGEST {
            broken.push(format!("src/{}: {lines} lines of code are more than {LONGEST}; divide it", file.display()));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_top_level_holds_nothing_else() {
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let strange: Vec<String> =
        names.filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str())).collect();
    assert!(strange.is_empty(), "at the top level: {}", strange.join(", "));
}

#[test]
fn tests_of_known_failures_are_named_after_them() {
    let mut broken = Vec::new();
    let mut unguarded: BTreeSet<u32> = KNOWN_FAILURES.into_iter().flatten().collect();
    for folder in ["src", "tests"] {
        for file in files(&root().join(folder), &["rs"]) {
            let text = fs::read_to_string(root().join(folder).join(&file)).unwrap();
            let source = Source::parse(&text, &module_path(&file));
            for (line, name) in &source.tests {
                if is_badly_numbered(name) {
                    broken.push(format!("{folder}/{}:{line}: {name}: write fNN_what_must_hold", file.display()));
                } else if let Some(number) = number_of(name) {
                    unguarded.remove(&number);
                }
            }
        }
    }
    broken.extend(unguarded.iter().map(|number| format!("no test has a name that begins with f{number:02}_")));
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// The known failure that a test is named after: the first one, if the name has several.
fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix('f')?.get(..2)?.parse().ok()
}

/// Whether a name begins like that of a known failure (`f`, a digit) but is not `fNN_what_must_hold`.
fn is_badly_numbered(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(['f', 'F']) else { return false };
    let rest = rest.strip_prefix('_').unwrap_or(rest);
    if !rest.starts_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let well = name.starts_with('f') && digits == 2 && name.len() > 4 && name[3..].starts_with('_');
    !well
}

fn check(file: &str, text: &str, expected: &[&str]) {
    let file = Path::new(file);
    let found = violations(file, &Source::parse(text, &module_path(file)));
    let starts: Vec<&str> = found.iter().map(|found| found.split(": ").next().unwrap()).collect();
    assert_eq!(starts, expected, "{text}\n{found:#?}");
}

#[test]
fn the_checker_sees_what_it_should() {
    check("control/a.rs", "use crate::front::door::Door;", &["src/control/a.rs:1"]);
    check("front/a.rs", "\n\nuse crate::admin::Admin;", &["src/front/a.rs:3"]);
    check("cluster/a.rs", "fn f() { crate::link::spawn() }", &["src/cluster/a.rs:1"]);
    check("lab/mod.rs", "use crate::{model::View, control::Control};", &["src/lab/mod.rs:1"]);
    check(
        "model.rs",
        "use super::{\n  policy::{Policy, decide},\n  config::Config,\n};",
        &["src/model.rs:2", "src/model.rs:3"],
    );
    check("policy/lua/vm.rs", "use super::super::super::cluster::Cluster;", &["src/policy/lua/vm.rs:1"]);
    check("policy/a.rs", "mod inner { use super::super::super::cli; }", &["src/policy/a.rs:1"]);
    check("link/a.rs", "macro_rules! m { () => { $crate::control::spawn() } }", &["src/link/a.rs:1"]);
    check("main.rs", "fn main() { usher::cli::main(); usher::control::spawn() }", &["src/main.rs:1"]);
    check("lib.rs", "pub use crate::cli::main;", &["src/lib.rs:1"]);
    check("link/a.rs", "use crate::testkit::Monolith;", &["src/link/a.rs:1"]);
    check("testkit/a.rs", "use crate::config::Config;", &["src/testkit/a.rs:1"]);
    check("link/a.rs", "use crate::lab::Report;", &["src/link/a.rs:1"]);
    check("newcomer/a.rs", "use crate::model::View;", &["src/newcomer/a.rs:1"]);
    check("link/a.rs", "#[cfg(test)] mod tests { use crate::cli; }\nuse crate::cli;", &["src/link/a.rs:2"]);
    check("link/a.rs", "#[cfg(not(test))]\nuse crate::cli;", &["src/link/a.rs:2"]);
    check("link/a.rs", "fn f<'a>(c: char) { let _ = ('\"', c); }\nuse crate::cli;", &["src/link/a.rs:2"]);
}

#[test]
fn the_checker_sees_nothing_else() {
    check("link/a.rs", "use crate::discovery::Endpoint; use crate::config::*; use crate::link::inbox;", &[]);
    check("cli/demo.rs", "use crate::testkit::Monolith; use crate::control::Control;", &[]);
    check("control/a.rs", "// use crate::front;\n/* crate::cli /* nested */ crate::cli */\n//! [`crate::front`]", &[]);
    check("control/a.rs", r###"const A: &str = "crate::cli"; const B: &str = r#"" crate::cli "#;"###, &[]);
    check("link/a.rs", "#[cfg(test)]\nmod tests {\n  use crate::testkit::Monolith;\n}", &[]);
    check("link/a.rs", "#[cfg(test)]\nuse crate::testkit::Monolith;\nfn f() {}", &[]);
    check("link/a.rs", "#[cfg(test)]\n#[allow(dead_code)]\npub fn f(x: [u8; 2]) -> bool { crate::cli::x() }", &[]);
    check("policy/lua/vm.rs", "use super::super::decide; use super::meter::Meter;", &[]);
    check("policy/a.rs", "mod inner { use super::super::lua; use super::x; }", &[]);
    check("link/a.rs", "use crate::Root; use usher_of_mine::front; pub(crate) fn f() {}", &[]);
    check("main.rs", "fn main() -> std::process::ExitCode { usher::cli::main() }", &[]);
}

#[test]
fn code_is_counted_without_comments_blanks_and_tests() {
    let text = "//! About.\n\nfn a() {\n    // why\n    b(); /* x */\n}\n/* one\ntwo */\n\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
    let source = Source::parse(text, &[]);
    assert_eq!((source.code_lines, source.starts_with_doc), (3, true));
    let long = "fn a() {}\n".repeat(LONGEST + 1);
    let source = Source::parse(&long, &[]);
    assert_eq!((source.code_lines, source.starts_with_doc), (LONGEST + 1, false));
    let text = "const A: &str = \"one\n// two\n\n  three\";\n";
    assert_eq!(Source::parse(text, &[]).code_lines, 3, "the lines of a text are code");
}

#[test]
fn test_files_are_found_wherever_they_lie() {
    let file = |path: &str, text: &str| {
        let path = PathBuf::from(path);
        let source = Source::parse(text, &module_path(&path));
        (path, source)
    };
    let all = [
        file("a/mod.rs", "#[cfg(test)]\nmod tests;\nmod b;"),
        file("a/tests.rs", "mod fuzz;"),
        file("a/tests/fuzz.rs", ""),
        file("a/b.rs", "#[cfg(test)]\n#[path = \"b_test.rs\"]\nmod tests;\n#[cfg(test)] mod more;"),
        file("a/b_test.rs", ""),
        file("a/b/more/mod.rs", ""),
        file("a/tests_of_ours.rs", ""),
    ];
    let found: Vec<String> = test_files(&all).iter().map(|file| file.display().to_string()).collect();
    assert_eq!(found, ["a/b/more/mod.rs", "a/b_test.rs", "a/tests/fuzz.rs", "a/tests.rs"]);
}

#[test]
fn names_of_known_failures_have_one_form() {
    for good in ["f05_early_gossip", "frames_flow", "five", "f_is_fine", "f"] {
        assert!(!is_badly_numbered(good), "{good}");
    }
    for bad in ["f5_early", "f005_early", "f05", "f05_", "f05early", "F05_early", "f_05_early"] {
        assert!(is_badly_numbered(bad), "{bad}");
    }
    assert_eq!(
        [number_of("f05_early_gossip"), number_of("f12_f24_both"), number_of("frames_flow")],
        [Some(5), Some(12), None]
    );
    let source = Source::parse("#[test]\nfn f5_x() {}\n#[tokio::test]\nasync fn f06_y() {}\nfn f7() {}", &[]);
    assert_eq!(source.tests, [(2, "f5_x".to_string()), (4, "f06_y".to_string()), (5, "f7".to_string())]);
}
