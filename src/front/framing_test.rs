//! The strict scanner: a corpus of smuggling attempts, valid requests, and both at every split.

use proptest::prelude::*;

use super::*;

/// Scans in pieces of these sizes; the offset of the violation, if there is one.
fn verdict(bytes: &[u8], pieces: &[usize]) -> (Option<usize>, bool) {
    let mut framing = Framing::new();
    let mut at = 0;
    let mut pieces = pieces.iter().copied();
    while at < bytes.len() {
        let to = bytes.len().min(at + pieces.next().unwrap_or(usize::MAX - at).max(1));
        if let Err(violation) = framing.scan(&bytes[at..to]) {
            return (Some(at + violation.at), false);
        }
        at = to;
    }
    (None, framing.between_messages())
}

const VALID: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Empty:\r\nX-Tab:\ta\tb\r\nX-High: \xc3\xa9\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel\0\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-LENGTH: \t5 \r\nHost: a\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nHost: a\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding:chunked \r\nHost: a\r\n\r\nA;x=y\r\n0123456789\r\n00\r\nX-Sum: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding-Of-Something-Long: gzip\r\nContent-Lengthy: x\r\n\r\n",
    b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
];

const REFUSED: &[&[u8]] = &[
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nContent-Length: 5 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nContent-Length\t: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\n Content-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nX-A: b\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nX-A: b\r\n\tfolded\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
    b"GET / HTTP/1.1\r\rHost: a\r\n\r\n",
    b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
    b"GET / HTTP/1.1\r\nX\0: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\x7fb\r\n\r\n",
    b"GET / HTTP/1.1\r\n: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunkedx\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n",
];

#[test]
fn valid_requests_pass_and_end_where_they_should() {
    for bytes in VALID {
        assert_eq!(verdict(bytes, &[]), (None, true), "{}", bytes.escape_ascii());
    }
}

#[test]
fn every_smuggling_attempt_is_refused() {
    for bytes in REFUSED {
        assert!(verdict(bytes, &[]).0.is_some(), "{}", bytes.escape_ascii());
    }
}

/// The files of `tests/corpus/http`, whose names say what becomes of them.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/http");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &std::path::Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut found: Vec<_> = paths.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect();
    found.sort();
    found
}

#[test]
fn the_corpus_is_judged_as_its_names_say() {
    let corpus = corpus();
    assert!(corpus.len() > 30, "only {} files", corpus.len());
    for (name, bytes) in corpus {
        let (violation, complete) = verdict(&bytes, &[]);
        match name.split_once('-').map(|(what, _)| what) {
            Some("refuse") => {
                // Before the request that is hidden behind it.
                let hidden = bytes.windows(9).position(|part| part == b"/smuggled").unwrap_or(bytes.len());
                assert!(violation.is_some_and(|at| at < hidden), "{name}: {violation:?}");
            }
            Some("accept") => assert_eq!((violation, complete), (None, true), "{name}"),
            _ => panic!("{name} says neither refuse- nor accept-"),
        }
        assert_eq!(verdict(&bytes, &vec![1; bytes.len()]), (violation, complete), "{name}");
    }
}

#[test]
fn one_byte_at_a_time_gives_the_same_verdict() {
    for bytes in VALID.iter().chain(REFUSED) {
        assert_eq!(verdict(bytes, &[]), verdict(bytes, &vec![1; bytes.len()]), "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_head_is_in_progress_from_its_first_byte_to_its_last() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut framing = Framing::new();
    for byte in &head[..head.len() - 1] {
        framing.scan(&[*byte]).unwrap();
        assert!(framing.in_head() && !framing.between_messages());
    }
    framing.scan(b"\n").unwrap();
    assert!(!framing.in_head() && framing.between_messages());
}

#[test]
fn runs_stop_at_control_characters_only() {
    for len in 0..40 {
        for at in 0..len {
            for byte in 0..=255u8 {
                let mut bytes = vec![b'\xff'; len];
                bytes[at] = byte;
                let want = if byte < 0x20 || byte == 0x7f { at } else { len };
                assert_eq!(plain_run(&bytes), want, "{byte} at {at} of {len}");
            }
        }
    }
}

proptest! {
    #[test]
    fn splits_never_change_the_verdict(
        which in 0..VALID.len() + REFUSED.len(),
        pieces in prop::collection::vec(1usize..20, 0..60),
    ) {
        let bytes = VALID.iter().chain(REFUSED).nth(which).unwrap();
        prop_assert_eq!(verdict(bytes, &[]), verdict(bytes, &pieces));
    }

    /// Mutations of valid requests: whatever is accepted, hyper's parser and ours agree on nothing less strict.
    #[test]
    fn a_mutated_request_has_one_verdict(
        which in 0..VALID.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        pieces in prop::collection::vec(1usize..9, 0..90),
    ) {
        let mut bytes = VALID[which].to_vec();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(verdict(&bytes, &[]), verdict(&bytes, &pieces));
    }
}
