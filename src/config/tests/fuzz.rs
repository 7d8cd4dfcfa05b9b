//! Whatever is written, the answer is a configuration or errors, never a panic.

use proptest::prelude::*;

use super::*;

fn survives(text: &str) -> Result<(), TestCaseError> {
    for name in ["usher.toml", "balancer.toml"] {
        if let Err(errors) = file(name, text).parse() {
            prop_assert!(!errors.errors.is_empty());
            let lines = text.split('\n').count();
            for error in &errors.errors {
                if let Place::File { line, .. } = error.place {
                    prop_assert!(line <= lines, "line {line} of {lines}");
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn mutated_examples_never_panic(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, "[\\PC\n]{0,6}|[-0-9\"'\\[\\]{}=.]{0,4}"), 1..6)
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, length, replacement) in cuts {
            let from = at.index(text.len());
            let to = (from + length).min(text.len());
            text.splice(from..to, replacement.chars());
        }
        survives(&text.iter().collect::<String>())?;
    }

    #[test]
    fn any_environment_never_panics(name in "(USHER|BALANCER)_[A-Z_]{0,20}", value in ".{0,40}") {
        let _ = usher("").env(&name, &value).parse();
    }

    #[test]
    fn any_value_in_any_place_never_panics(
        key in prop::sample::select(known_keys()),
        value in prop::sample::select(vec![
            "1", "-1", "0", "1.5", "nan", "inf", "true", "''", "'x'", "'5s'", "'1MiB'", "[]", "[1]", "['x']", "{}",
            "{ a = 1 }", "[[]]", "[{}]", "1979-05-27", "9223372036854775807", "99999999999999999999",
        ]),
    ) {
        survives(&format!("{key} = {value}"))?;
        let _ = usher("").env(&format!("USHER_{}", key.to_uppercase().replace('.', "__")), value).parse();
    }
}
