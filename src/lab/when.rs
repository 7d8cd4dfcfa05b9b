//! Moments of a trace as people give them: `10m` and `90s` after its start, or a time of day.

use crate::config::units;

/// A moment of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Microseconds after the start of the recording.
    After(u64),
    /// Microseconds since the Unix epoch.
    At(u64),
}

impl When {
    /// Reads `10m`, `1h30m`, `1.5s` or an RFC 3339 time with its zone; the error says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(duration) = units::duration(text) {
            return Ok(Self::After(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)));
        }
        match rfc3339(text) {
            Some(us) => Ok(Self::At(us)),
            None => Err(format!(
                "{text:?} is no moment; give a time after the start such as 90s or 1h30m, or one such as 2026-11-22T18:30:00Z"
            )),
        }
    }

    /// Microseconds after the start of a recording that began then; 0 for what was before it.
    pub fn after(self, started_us: u64) -> u64 {
        match self {
            Self::After(us) => us,
            Self::At(us) => us.saturating_sub(started_us),
        }
    }
}

/// Microseconds since the epoch of an RFC 3339 time; none if it is something else or before 1970.
fn rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.trim().split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| digits(part, part.len()));
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, zone) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let at = time.rfind(['+', '-'])?;
            let (hours, minutes) = time[at + 1..].split_once(':')?;
            let minutes = digits(hours, 2)? * 60 + digits(minutes, 2)?;
            (&time[..at], if time[at..].starts_with('-') { -minutes } else { minutes })
        }
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut parts = time.splitn(3, ':').map(|part| digits(part, 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    let right = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !right || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let micros = digits(format!("{fraction:0<6}").get(..6)?, 6)?;
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - zone * 60;
    u64::try_from(seconds * 1_000_000 + micros).ok()
}

fn digits(text: &str, count: usize) -> Option<i64> {
    let good = text.len() == count && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if good { text.parse().ok() } else { None }
}

/// Days since 1970 of a date: Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::versions::timestamp;

    #[test]
    fn moments_are_offsets_or_times() {
        assert_eq!(When::parse("1m 30s"), Ok(When::After(90_000_000)));
        assert_eq!(When::parse("0s"), Ok(When::After(0)));
        for (text, seconds) in [
            ("2024-02-29T12:30:45Z", 1_709_209_845),
            ("2024-02-29 13:30:45+01:00", 1_709_209_845),
            ("2024-02-29T07:00:45.0-05:30", 1_709_209_845),
            ("2024-02-29T12:30Z", 1_709_209_800),
        ] {
            assert_eq!(When::parse(text), Ok(When::At(seconds * 1_000_000)), "{text}");
        }
        assert_eq!(When::parse("1970-01-01T00:00:00.25Z"), Ok(When::At(250_000)));
        for wrong in
            ["", "10", "soon", "2024-02-29T12:30:45", "2024-13-01T00:00:00Z", "é", "2024-02-29T12:30:45.aaaaaéZ"]
        {
            assert!(When::parse(wrong).unwrap_err().contains("is no moment; give a time"), "{wrong}");
        }
        for day in 0..40_000 {
            let us = day * 86_400_000_000 + 3_661_000_000;
            assert_eq!(When::parse(&timestamp(us)), Ok(When::At(us)));
        }
        assert_eq!((When::At(10).after(4), When::At(3).after(4), When::After(3).after(4)), (6, 0, 3));
    }
}
