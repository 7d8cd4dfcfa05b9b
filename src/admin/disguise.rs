//! Paths that mean the admin API in another spelling: `//_usher`, `/x/../_usher`, `/%5fusher`, `/_USHER`.
//!
//! They are nothing of ours, and a Monolith must not get them either: the request may carry the operator's key, and
//! somebody behind us could read the path as what it is a disguise of.

const NAME: &str = "_usher";
/// How often a path may have been encoded before it is not looked into any further.
const ENCODINGS: usize = 3;

/// Whether a path leads to `/_usher` once it is decoded and made plain, in any case. For paths that do not begin with
/// `/_usher/` as it stands.
pub(super) fn is_disguised(path: &str) -> bool {
    // Nearly every path: no byte that could be part of a disguise, and another first letter.
    let plain = !path.bytes().any(|byte| matches!(byte, b'%' | b'\\' | b'.' | b';'));
    if plain && !path.contains("//") && !path.starts_with("/_") && !path.starts_with('_') {
        return false;
    }
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..ENCODINGS {
        if leads_there(&bytes) {
            return true;
        }
        match decoded(&bytes) {
            Some(more) => bytes = more,
            None => return false,
        }
    }
    leads_there(&bytes)
}

/// Whether the first segment is the name, after `.`, `..`, empty segments, parameters and trailing dots are gone.
fn leads_there(path: &[u8]) -> bool {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        let segment = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    segments.first().is_some_and(|first| {
        let end = first.iter().rposition(|byte| !matches!(byte, b'.' | b' ' | b'\t' | 0)).map_or(0, |last| last + 1);
        first[..end].eq_ignore_ascii_case(NAME.as_bytes())
    })
}

/// The path with its percent-encoded bytes decoded once; none if there are none.
fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    let hex = |byte: Option<&u8>| char::from(*byte?).to_digit(16).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        match (path[at], hex(path.get(at + 1)), hex(path.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    (out.len() < path.len()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{Owner, owner};

    #[test]
    fn every_other_spelling_is_seen_through() {
        for path in [
            "//_usher/v1/policy",
            "///_usher",
            "/./_usher/v1",
            "/x/../_usher/v1/policy",
            "/api/room/../../_usher/v1",
            "/../_usher",
            "/%5fusher/v1",
            "/%5Fusher/v1",
            "/_ushe%72/v1",
            "/%255fusher/v1",
            "/%2f_usher/v1",
            "/x/%2e%2e/_usher/v1",
            "/x%2F..%2F_usher",
            "/_usher%2fv1%2fpolicy",
            "/_USHER/v1/policy",
            "/_Usher",
            "/_usher./v1",
            "/_usher.../v1",
            "/_usher%20/v1",
            "/_usher%00/v1",
            "/_usher;a=b/v1",
            "_usher/v1",
            "/\\_usher\\v1",
            "/x\\..\\_usher",
        ] {
            assert_eq!(owner(path), Owner::Disguised, "{path}");
        }
        for path in [
            "/",
            "",
            "*",
            "/_ushers/v1",
            "/_usherx",
            "/x/_usher/v1",
            "/api/room/_usher",
            "/_usher-test",
            "/a/../b",
            "/%",
            "/%zz_usher",
            "/favicon.ico",
            "/..",
            "//",
        ] {
            assert_eq!(owner(path), Owner::Front, "{path}");
        }
        for path in ["/_usher", "/_usher/", "/_usher/../api/state", "/_usher//v1", "/_usher/%2e%2e/x", "/api/state/"] {
            assert_eq!(owner(path), Owner::Admin, "{path}");
        }
    }

    #[test]
    fn a_path_of_any_length_is_looked_at_in_one_pass_an_encoding() {
        let long = format!("/{}_usher", "%2e%2e/".repeat(9000));
        assert!(is_disguised(&long));
        assert!(!is_disguised(&"%25".repeat(20_000)));
    }
}
