//! The threads that write: each file and each segment says what it needs, and a thread that hangs or breaks off is shown.

use super::*;
use crate::trace::recent::Recent;

fn another(version: &str) -> Arc<PolicyText> {
    Arc::new(PolicyText {
        version: version.into(),
        source: format!("return {{}} -- {version}").into(),
        ..header().policy
    })
}

/// Every version that a file says the text of, in order, and the versions of its decisions.
fn versions(reader: &mut Reader) -> (Vec<String>, Vec<Arc<str>>) {
    let (mut said, mut used) = (vec![reader.header().policy.version.clone()], Vec::new());
    while let Some((_, item)) = reader.read().unwrap() {
        match item {
            Item::Policy(policy) => said.push(policy.version),
            Item::Decision { outcome, .. } => {
                assert!(said.iter().any(|version| **version == *outcome.policy), "{} is not declared", outcome.policy);
                used.push(outcome.policy);
            }
            _ => {}
        }
    }
    (said, used)
}

fn decided_by(version: &str, view: &View) -> Decided {
    let mut one = decided("room", view, "a");
    one.outcome.policy = version.into();
    one
}

#[test]
fn each_file_says_what_its_decisions_were_taken_by_and_which_monoliths_are_up() {
    let folder = tempfile::tempdir().unwrap();
    let view = View::of([row("a", 1)]);
    let target = Target { rotate_bytes: 3000, keep: 100, ..target(folder.path(), "t.jsonl") };
    let recording = Recording::start(target, header()).unwrap();
    let recorder = recording.recorder();
    recorder.event(TraceEvent::MonolithUp { monolith: "a".into(), region: "ewr".into() });
    recorder.event(TraceEvent::MonolithUp { monolith: "b".into(), region: "cdg".into() });
    recorder.event(TraceEvent::MonolithDown { monolith: "b".into() });
    let canary = another("cccccccccccc");
    for n in 0..30 {
        recorder.decision(decided_by("0123456789ab", &view), &by(), false);
        if n % 3 == 0 {
            recorder.decision(decided_by("cccccccccccc", &view), &canary, true);
        }
    }
    let new = another("dddddddddddd");
    for _ in 0..30 {
        recorder.decision(decided_by("dddddddddddd", &view), &new, false);
    }
    // The same text with other settings is said again.
    let settings = serde_json::Map::from_iter([("x".to_string(), json!(1))]);
    recorder.decision(decided_by("dddddddddddd", &view), &Arc::new(PolicyText { settings, ..(*new).clone() }), false);
    let progress = recording.stop();
    assert_eq!((progress.decisions, progress.dropped_decisions, progress.error), (71, 0, None));
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(progress.rotations > 5 && files.len() as u64 > progress.rotations, "{files:?}");
    let (mut decisions, mut bytes) = (0, 0);
    for file in files {
        bytes += std::fs::metadata(&file).unwrap().len();
        let mut reader = Reader::open(&file, OnDamage::Stop).unwrap();
        assert_ne!(reader.header().policy.version, "cccccccccccc", "a canary is not what decides");
        let first = reader.read().unwrap().unwrap().1;
        let up = Item::Event(TraceEvent::MonolithUp { monolith: "a".into(), region: "ewr".into() });
        assert_eq!(first, up, "{}", file.display());
        decisions += versions(&mut reader).1.len();
    }
    assert_eq!((decisions, bytes), (71, progress.bytes));
    let mut last = Reader::open(&folder.path().join("t.jsonl"), OnDamage::Stop).unwrap();
    let said = versions(&mut last).0;
    assert_eq!(said.iter().filter(|version| *version == "dddddddddddd").count(), 2, "{said:?}");
}

#[test]
fn a_thread_that_breaks_off_is_shown_and_what_follows_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let recording = Recording::start(target(folder.path(), "t.jsonl"), header()).unwrap();
    recording.recorder().panic();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !recording.is_broken() {
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::yield_now();
    }
    let view = View::of([row("a", 1)]);
    recording.recorder().decision(decided("room", &view, "a"), &by(), false);
    let progress = recording.recorder().progress();
    assert!(progress.error.as_ref().unwrap().contains("has broken off"), "{progress:?}");
    assert_eq!(progress.dropped_decisions, 1);
    assert!(recording.stop().error.is_some());
}

#[test]
fn a_disk_that_hangs_delays_neither_start_nor_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    if !std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success()) {
        return;
    }
    // Nobody reads: the thread hangs while it opens.
    let recording = Recording::begin(target(folder.path(), "pipe"), header()).unwrap();
    let progress = recording.recorder().progress();
    assert!(progress.error.unwrap().ends_with("pipe: is not open yet"));
    let view = View::of([row("a", 1)]);
    recording.recorder().decision(decided("room", &view, "a"), &by(), false);
    let progress = recording.stop_within(Duration::from_millis(20));
    assert!(progress.error.is_some() && progress.decisions == 0, "{progress:?}");
}

#[test]
fn the_last_decisions_are_kept_in_bounded_memory() {
    const LIMIT: usize = 640 << 10;
    let recent = Recent::start(LIMIT, header()).unwrap();
    let mut view = View::of((0..20).map(|n| row(&format!("m{n}"), n)));
    let count = |recent: &Recent| {
        let mut rooms = Vec::new();
        for segment in recent.segments() {
            let mut reader = Reader::new("recent", Cursor::new(segment), OnDamage::Stop).unwrap();
            rooms.extend(decisions(&mut reader).into_iter().map(|(call, _, _)| call.room.unwrap().name.unwrap()));
        }
        rooms
    };
    recent.recorder().decision(decided("first", &view, "m1"), &by(), false);
    assert_eq!(count(&recent), [Arc::<str>::from("first")], "what was decided before is in it at once");
    let (mut last, new) = (String::new(), another("eeeeeeeeeeee"));
    for n in 0..10_000_u32 {
        view.update(&MonolithId::from("m3"), |row| row.rtt_ms = f64::from(n) * 1.000_37);
        last = format!("{:x}", u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // A queue that is full is no matter of this test.
        let deadline = Instant::now() + Duration::from_secs(20);
        while recent.recorder().progress().decisions + 500 < u64::from(n) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let mut one = decided(&last, &view, "m1");
        one.outcome.policy = "eeeeeeeeeeee".into();
        recent.recorder().decision(one, &new, false);
    }
    let rooms = count(&recent);
    assert_eq!(**rooms.last().unwrap(), *last);
    assert!(!rooms.contains(&"first".into()), "the oldest went");
    let progress = recent.progress();
    assert_eq!((progress.decisions, progress.dropped_decisions, progress.error), (10_001, 0, None));
    assert!(progress.bytes <= LIMIT as u64 + 4096, "{} bytes", progress.bytes);
    assert!(rooms.len() > 1000, "{}", rooms.len());
    let mut segment = Reader::new("recent", Cursor::new(recent.segments()[0].clone()), OnDamage::Stop).unwrap();
    assert_eq!(versions(&mut segment).0, ["eeeeeeeeeeee"], "the header of a later segment says it");
}
