//! Durations such as `250ms` and sizes such as `64KiB`, read and written.

use std::time::Duration;

/// Units of time with their microseconds. In these, what people write is exact in a float.
const TIMES: [(&str, f64); 16] = [
    ("ms", 1e3),
    ("us", 1.0),
    ("s", 1e6),
    ("m", 60e6),
    ("h", 3600e6),
    ("d", 86400e6),
    ("msec", 1e3),
    ("sec", 1e6),
    ("secs", 1e6),
    ("second", 1e6),
    ("seconds", 1e6),
    ("min", 60e6),
    ("mins", 60e6),
    ("minute", 60e6),
    ("minutes", 60e6),
    ("hours", 3600e6),
];

const SIZES: [(&str, f64); 7] =
    [("B", 1.0), ("KiB", 1024.0), ("MiB", 1048576.0), ("GiB", 1073741824.0), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9)];

/// Reads a duration: a number and a unit (`250ms`, `1.5s`, `5 min`), or several of them in a row (`1m 30s`). None if
/// it is something else, above all a number without a unit, or longer than a hundred years.
pub fn duration(text: &str) -> Option<Duration> {
    const CENTURY_US: f64 = 100.0 * 366.0 * 86400e6;
    let mut rest = text.trim();
    let mut total = 0.0;
    while !rest.is_empty() {
        let (number, unit, after) = term(rest)?;
        total += number * TIMES.iter().find(|(name, _)| *name == unit)?.1;
        rest = after;
    }
    let given = !text.trim().is_empty();
    (given && total <= CENTURY_US).then(|| Duration::from_micros(total.round() as u64))
}

/// Reads a size in bytes: a number and a unit (`512B`, `64KiB`, `1.5MiB`; `KB`, `MB` and `GB` are decimal).
pub fn size(text: &str) -> Option<usize> {
    let (number, unit, rest) = term(text.trim())?;
    let bytes = number * SIZES.iter().find(|(name, _)| *name == unit)?.1;
    (rest.is_empty() && bytes <= 2f64.powi(53)).then_some(bytes.round() as usize)
}

/// A number, the letters after it, and what follows.
fn term(text: &str) -> Option<(f64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let text = text[digits..].trim_start();
    let letters = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
    Some((number, &text[..letters], text[letters..].trim_start()))
}

/// Writes a duration in the largest unit that divides it.
pub fn write_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    if ns == 0 {
        return "0s".into();
    }
    let units = [("d", 86_400_000_000_000), ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000)];
    let small = [("ms", 1_000_000), ("us", 1_000)];
    units
        .iter()
        .chain(&small)
        .find(|(_, unit)| ns.is_multiple_of(*unit))
        .map_or_else(|| format!("{ns}ns"), |(name, unit)| format!("{}{name}", ns / unit))
}

/// Writes a size in the largest binary unit that divides it.
pub fn write_size(bytes: usize) -> String {
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_need_a_unit() {
        let check = |text, ms| assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        check("250ms", 250);
        check("5s", 5_000);
        check("1.5s", 1_500);
        check("1m", 60_000);
        check("2h", 7_200_000);
        check(" 1m 30s ", 90_000);
        check("5 min", 300_000);
        check("0s", 0);
        for bad in ["", " ", "20", "5S", "s", "-1s", "1e3s", "..s", "5s,", "5fortnights", "99999999999999h", "١s"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_need_a_unit_and_tell_binary_from_decimal() {
        assert_eq!(size("1MiB"), Some(1 << 20));
        assert_eq!(size("64KiB"), Some(64 << 10));
        assert_eq!(size("512B"), Some(512));
        assert_eq!(size("1MB"), Some(1_000_000));
        assert_eq!(size("3KB"), Some(3_000));
        assert_eq!(size("1.5 GiB"), Some(3 << 29));
        for bad in ["", "1", "1mib", "-1B", "1MiB 1B", "9e9GiB", "99999999999GiB"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(us in 0u64..1 << 50, bytes in 0usize..1 << 50) {
            let time = Duration::from_micros(us);
            prop_assert_eq!(duration(&write_duration(time)), Some(time));
            prop_assert_eq!(size(&write_size(bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = (duration(&text), size(&text));
        }
    }
}
