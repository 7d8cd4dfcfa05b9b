//! The files of `tests/corpus`, and a loop that bends them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::mutate::{Random, mutated};

/// Every file of one folder of the corpus, in the order of their names.
pub fn corpus(kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind);
    let mut found: Vec<(String, Vec<u8>)> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{} is empty", folder.display());
    found
}

/// Hands every file of the corpus, and then `rounds` bent ones, to `check`, for at most a few seconds. What makes it panic
/// is printed with the command that repeats the run.
///
/// `USHER_FUZZ_SEED` is the seed, `USHER_FUZZ_ROUNDS` the number of rounds, without a bound in time.
pub fn hammer(kind: &str, more: Vec<Vec<u8>>, rounds: usize, check: impl Fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("USHER_FUZZ_SEED").unwrap_or(1);
    let wanted = number("USHER_FUZZ_ROUNDS");
    let rounds = wanted.map_or(rounds, |wanted| wanted as usize);
    let end = Instant::now() + if wanted.is_some() { Duration::from_secs(86_400) } else { Duration::from_secs(5) };
    let tried = |what: &str, bytes: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(bytes))) {
            let shown = &bytes[..bytes.len().min(4000)];
            eprintln!("{kind}: {what} failed ({} bytes): {}", bytes.len(), shown.escape_ascii());
            eprintln!("again: USHER_FUZZ_SEED={seed} USHER_FUZZ_ROUNDS={rounds} cargo test --test parsers {kind}");
            resume_unwind(panic);
        }
    };
    let mut seeds = more;
    for (name, bytes) in corpus(kind) {
        tried(&name, &bytes);
        seeds.push(bytes);
    }
    let mut random = Random::new(seed);
    for round in 0..rounds {
        if Instant::now() > end {
            return;
        }
        tried(&format!("round {round}"), &mutated(&seeds, &mut random));
    }
}
