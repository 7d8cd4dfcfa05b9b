//! What was recorded comes back whole: from a good file, a cut one and a damaged one.

use std::io::{Cursor, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;

use super::read::{OnDamage, Reader};
use super::record::{Decided, Gap, Header, Outcome, PolicyText, TraceEvent};
use super::redact::Redactor;
use super::write::{Recording, Target};
use super::{Encoder, Item};
use crate::model::policy::{Answer, Call, Fault, FaultKind, MonolithRow, View};
use crate::model::read::{Kept, Read};
use crate::model::{ClientId, MonolithId};
use crate::policy::lua::Source;

mod long;
mod quick;
mod views;
mod writers;

fn header() -> Header {
    let source = "return { place = function(call) return call.monoliths[1] end }";
    let policy = PolicyText { version: "0123456789ab".into(), ..PolicyText::of(&Source::shipped("test", source)) };
    Header { balancer: "b1".into(), region: "ewr".into(), started_us: 1_700_000_000_000_000, ..Header::of(policy) }
}

fn by() -> Arc<PolicyText> {
    Arc::new(header().policy)
}

fn row(id: &str, rooms: u32) -> MonolithRow {
    MonolithRow { id: id.into(), region: "ewr".into(), rooms, ..MonolithRow::default() }
}

fn call(room: &str) -> Call {
    let room =
        json!({"name": room, "region": "cdg", "clients": 1, "regions": {"cdg": 1}, "attempt": 1, "bound": false});
    serde_json::from_value(
        json!({"hook": "place", "now_us": 7, "seed": 9, "region": "ewr", "room": room, "cause": "join"}),
    )
    .unwrap()
}

fn decided(room: &str, view: &View, choice: &str) -> Decided {
    let outcome = Outcome {
        reads: vec![Read::Now(1.5), Read::Get(format!("last of {room}").into(), Some(Kept::Text(room.into())))],
        ..Outcome::chosen(&choice.into(), "0123456789ab")
    };
    Decided { call: call(room), view: view.into(), outcome }
}

fn reader(bytes: Vec<u8>, on_damage: OnDamage) -> Reader {
    Reader::new("x.trace.jsonl", Cursor::new(bytes), on_damage).unwrap()
}

/// Every decision with the rows that it saw.
fn decisions(reader: &mut Reader) -> Vec<(Call, Vec<MonolithRow>, Outcome)> {
    let mut found = Vec::new();
    while let Some((_, item)) = reader.read().unwrap() {
        if let Item::Decision { call, outcome, .. } = item {
            found.push((*call, reader.view().rows().to_vec(), *outcome));
        }
    }
    found
}

/// One change of a cluster between two decisions.
#[derive(Clone, Debug)]
enum Step {
    Counts(usize, u32),
    Measured(usize, f64),
    Come(u8),
    Go(usize),
    Decide,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..8usize, 0..100u32).prop_map(|(at, n)| Step::Counts(at, n)),
        1 => (0..8usize, 0.0..50.0f64).prop_map(|(at, n)| Step::Measured(at, n)),
        1 => (0..12u8).prop_map(Step::Come),
        1 => (0..8usize).prop_map(Step::Go),
        4 => Just(Step::Decide),
    ]
}

proptest! {
    #[test]
    fn every_call_comes_back_with_the_monoliths_that_it_saw(steps in proptest::collection::vec(step(), 1..80)) {
        let mut view = View::of([row("a", 1), row("b", 2)]);
        let (mut encoder, mut bytes, mut expected) = (Encoder::new(None), Vec::new(), Vec::new());
        encoder.header(&header(), &mut bytes);
        for (n, step) in steps.into_iter().enumerate() {
            let id_at = |at: usize| view.rows().get(at % view.rows().len().max(1)).map(|row| row.id.clone());
            match step {
                Step::Counts(at, n) => {
                    if let Some(id) = id_at(at) {
                        view.update(&id, |row| (row.rooms, row.pending) = (n, n / 2));
                    }
                }
                Step::Measured(at, n) => {
                    if let Some(id) = id_at(at) {
                        view.update(&id, |row| row.rtt_ms = n);
                    }
                }
                Step::Come(n) => view.insert(row(&format!("m{n}"), u32::from(n))),
                Step::Go(at) => {
                    if let Some(id) = id_at(at) {
                        view.remove(&id);
                    }
                }
                Step::Decide => {
                    let one = decided(&format!("room{n}"), &view, "a");
                    expected.push((one.call.clone(), view.rows().to_vec(), one.outcome.clone()));
                    encoder.decision(n as u64, one, &mut bytes);
                }
            }
        }
        let mut reader = reader(bytes, OnDamage::Stop);
        prop_assert_eq!(decisions(&mut reader), expected);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(lines in proptest::collection::vec(any::<Vec<u8>>(), 0..8), flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..8)) {
        let mut bytes = some_trace();
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        for line in lines {
            bytes.extend(line);
            bytes.push(b'\n');
        }
        if let Ok(mut reader) = Reader::new("x", Cursor::new(bytes), OnDamage::Skip) {
            while let Ok(Some(_)) = reader.read() {}
        }
    }
}

fn some_trace() -> Vec<u8> {
    let mut view = View::of([row("a", 1), row("b", 2)]);
    let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
    encoder.header(&header(), &mut bytes);
    let client = ClientId::from_u128(1);
    encoder.event(1, TraceEvent::MonolithUp { monolith: "a".into(), region: "ewr".into() }, &mut bytes);
    encoder.event(2, TraceEvent::Join { client, room: "one".into(), region: None, reconnect: false }, &mut bytes);
    for n in 0..4 {
        view.update(&MonolithId::from("b"), |row| row.rooms = 10 + n);
        encoder.decision(3 + u64::from(n), decided("one", &view, "a"), &mut bytes);
    }
    encoder.gap(8, Gap { events: 2, decisions: 0 }, &mut bytes);
    encoder.event(9, TraceEvent::Leave { client }, &mut bytes);
    encoder.policy(10, &header().policy, &mut bytes);
    bytes
}

#[test]
fn calls_are_small_and_events_know_clients_by_number() {
    let text = String::from_utf8(some_trace()).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["usher_trace"], 1);
    assert_eq!(lines[2]["client"], 1);
    assert_eq!((&lines[3]["view"], lines[3]["monoliths"].as_array().unwrap().len()), (&json!(1), 2));
    assert_eq!((&lines[4]["decision"], &lines[4]["hook"], lines[4].get("counts")), (&json!(1), &json!("place"), None));
    assert_eq!(lines[5]["counts"], json!({"b": {"rooms": 11}}));
    assert!(lines[5]["call"].get("monoliths").is_none());
    assert_eq!(lines[8]["gap"], json!({"events": 2, "decisions": 0}));
    assert_eq!(lines[9], json!({"t": 9, "event": "leave", "client": 1}));
}

#[test]
fn a_file_refers_to_no_other() {
    let view = View::of([row("a", 1)]);
    let (mut encoder, mut first, mut second) = (Encoder::new(None), Vec::new(), Vec::new());
    let client = ClientId::from_u128(1);
    encoder.header(&header(), &mut first);
    encoder.event(1, TraceEvent::Join { client, room: "one".into(), region: None, reconnect: false }, &mut first);
    encoder.decision(2, decided("one", &view, "a"), &mut first);
    encoder.header(&header(), &mut second);
    encoder.event(3, TraceEvent::Leave { client }, &mut second);
    encoder.decision(4, decided("one", &view, "a"), &mut second);
    let mut reader = reader(second, OnDamage::Stop);
    let items: Vec<Item> = std::iter::from_fn(|| reader.read().unwrap()).map(|(_, item)| item).collect();
    assert!(matches!(items[..], [Item::View, Item::Decision { number: 1, .. }]), "{items:?}");
}

#[test]
fn any_prefix_is_readable() {
    let bytes = some_trace();
    let first_line = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let whole = decisions(&mut reader(bytes.clone(), OnDamage::Stop));
    for length in first_line..bytes.len() {
        let mut reader = reader(bytes[..length].to_vec(), OnDamage::Stop);
        let found = decisions(&mut reader);
        assert_eq!(found, whole[..found.len()]);
        assert_eq!(reader.was_cut(), bytes[length - 1] != b'\n', "{length}");
    }
    let mut compressed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        compressed.write_all(line).unwrap();
        compressed.flush().unwrap();
    }
    let compressed = compressed.finish().unwrap();
    assert_eq!(decisions(&mut reader(compressed.clone(), OnDamage::Stop)), whole);
    let mut most = 0;
    for length in 4..compressed.len() {
        match Reader::new("x.zst", Cursor::new(compressed[..length].to_vec()), OnDamage::Stop) {
            Ok(mut reader) => {
                let found = decisions(&mut reader);
                assert_eq!(found, whole[..found.len()]);
                most = most.max(found.len());
            }
            Err(error) => assert!(error.to_string().contains("is cut off"), "{error}"),
        }
    }
    assert_eq!(most, whole.len());
}

#[test]
fn damage_is_named_by_its_line_and_passed_over_if_asked() {
    let text = String::from_utf8(some_trace()).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[5] = "{\"t\":4,\"decision\":2,\"hook\":\"pla";
    let damaged = lines.join("\n") + "\n";
    let mut strict = reader(damaged.clone().into_bytes(), OnDamage::Stop);
    let error = std::iter::from_fn(|| Some(strict.read())).find_map(Result::err).unwrap();
    assert_eq!(error.line, Some(6));
    assert!(error.to_string().starts_with("x.trace.jsonl:6: "), "{error}");
    let mut lenient = reader(damaged.into_bytes(), OnDamage::Skip);
    assert_eq!(decisions(&mut lenient).len(), 3);
    assert_eq!(lenient.damage().0, 1);
    // Without its view a decision cannot be trusted.
    let without: Vec<&str> = text.lines().enumerate().filter(|(at, _)| *at != 3).map(|(_, line)| line).collect();
    let mut lenient = reader((without.join("\n") + "\n").into_bytes(), OnDamage::Skip);
    assert_eq!(decisions(&mut lenient).len(), 0);
    assert!(lenient.damage().1.unwrap().what.contains("refers to view 1, which is missing"));
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

proptest! {
    #[test]
    fn no_compressed_bytes_make_the_reader_panic(cut in any::<usize>(), flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4)) {
        let mut bytes = packed(&some_trace());
        bytes.truncate(4 + cut % (bytes.len() - 3));
        let flipped = !flips.is_empty();
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        for on_damage in [OnDamage::Stop, OnDamage::Skip] {
            let Ok(mut reader) = Reader::new("x.zst", Cursor::new(bytes.clone()), on_damage) else { continue };
            let ended = std::iter::from_fn(|| reader.read().transpose()).find_map(Result::err);
            prop_assert!(flipped || ended.is_none(), "a cut is no damage: {:?}", ended);
            prop_assert!(reader.read().is_ok_and(|item| item.is_none()), "it goes on after its end");
        }
    }
}

#[test]
fn damage_inside_what_is_compressed_is_named() {
    let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
    encoder.header(&header(), &mut bytes);
    for n in 0..20_000u64 {
        // Names that do not repeat, so that the file has many blocks.
        let room = format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).as_str().into();
        let client = ClientId::from_u128(u128::from(n));
        encoder.event(n, TraceEvent::Join { client, room, region: None, reconnect: false }, &mut bytes);
    }
    let good = packed(&bytes);
    let mut named = 0;
    for part in 2..8 {
        let mut bad = good.clone();
        let at = good.len() * part / 8;
        bad[at..at + 64].fill(0xff);
        let mut reader = Reader::new("x.zst", Cursor::new(bad.clone()), OnDamage::Stop).unwrap();
        let error = std::iter::from_fn(|| reader.read().transpose()).find_map(Result::err).unwrap();
        assert!(error.line.is_some_and(|line| line > 100), "{error}");
        named += u32::from(error.what.contains("the compressed data is damaged from here on"));
        let mut lenient = Reader::new("x.zst", Cursor::new(bad), OnDamage::Skip).unwrap();
        let read = std::iter::from_fn(|| lenient.read().unwrap()).count();
        assert!(read > 100 && lenient.damage().0 > 0, "{read} of {part}");
    }
    assert!(named > 0);
    // A file that ends in the middle is no damage, and says so.
    let mut short = Reader::new("x.zst", Cursor::new(good[..good.len() / 2].to_vec()), OnDamage::Stop).unwrap();
    while short.read().unwrap().is_some() {}
    assert!(short.was_cut());
}

#[test]
fn what_is_no_trace_is_refused_with_the_reason() {
    let refused = |text: &str| {
        Reader::new("x", Cursor::new(text.as_bytes().to_vec()), OnDamage::Skip).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused("").contains("is empty"));
    assert!(refused("hello\n").contains("its first line is no header"));
    assert!(refused("{\"t\":1,\"gap\":{\"events\":1,\"decisions\":0}}\n").contains("no header"));
    assert_eq!(refused("{\"usher_trace\":2}\n"), "x:1: format 2; this usher reads 1");
    assert!(Reader::open(Path::new("/"), OnDamage::Skip).map(|_| ()).unwrap_err().to_string().contains("is a folder"));
}

#[test]
fn names_of_rooms_are_hashed_everywhere() {
    let view = View::of([row("a", 1)]);
    let (mut encoder, mut bytes) = (Encoder::new(Some(Redactor::new())), Vec::new());
    let client = ClientId::from_u128(1);
    encoder.header(&header(), &mut bytes);
    let room: std::sync::Arc<str> = "secretroom".into();
    encoder.event(1, TraceEvent::Join { client, room: room.clone(), region: None, reconnect: false }, &mut bytes);
    encoder.event(1, TraceEvent::Loaded { monolith: "a".into(), room: room.clone() }, &mut bytes);
    let mut one = decided("secretroom", &view, "a");
    one.call.room.as_mut().unwrap().metadata = Some(json!({"title": "The Secretroom", "users": 3}));
    one.call.request =
        Some(serde_json::from_value(json!({"path": "/api/room/SecretRoom", "query": {"x": "secretroom"}})).unwrap());
    one.outcome.answer = Answer::Reject { code: 503, reason: "SecretRoom is full".into() };
    let message = "p.lua:1: no place for secretroom".into();
    one.outcome.fallback = Some(Fault { kind: FaultKind::Error, message });
    // A call about another room, in which the policy reads the name of this one.
    let mut other = decided("another", &view, "a");
    other.outcome.reads.push(Read::Get("last".into(), Some(Kept::Text("SecretRoom".into()))));
    encoder.decision(2, one, &mut bytes);
    encoder.decision(3, other, &mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    assert!(!text.to_lowercase().contains("secretroom"), "{text}");
    let hash = text.split("r-").nth(1).unwrap()[..16].to_string();
    assert!(text.matches(&hash).count() >= 5, "{text}");
}

fn target(folder: &Path, name: &str) -> Target {
    Target {
        path: folder.join(name),
        rotate_bytes: 64 << 20,
        rotate_after: Duration::from_secs(3600),
        keep: 2,
        redact_rooms: false,
    }
}

/// The bytes of a compressed file that may be others without anybody's notice, although the text is another then. Some
/// bytes of a frame's head, such as the size of its window, change nothing.
pub(crate) fn unnoticed(file: &[u8]) -> Vec<usize> {
    let text = zstd::decode_all(file).unwrap();
    let passes = |at: &usize| {
        let mut bad = file.to_vec();
        bad[*at] ^= 4;
        let harmless = zstd::decode_all(&*bad).is_ok_and(|read| read == text);
        let Ok(mut reader) = Reader::new("x.zst", Cursor::new(bad), OnDamage::Stop) else { return false };
        loop {
            match reader.read() {
                Ok(Some(_)) => {}
                Ok(None) => return !reader.was_cut() && !harmless,
                Err(_) => return false,
            }
        }
    };
    (16..file.len()).step_by(file.len().div_ceil(60)).filter(passes).collect()
}

#[test]
fn a_recording_is_rotated_and_the_oldest_files_go() {
    let folder = tempfile::tempdir().unwrap();
    let view = View::of([row("a", 1)]);
    for name in ["t.trace.jsonl", "t.trace.jsonl.zst"] {
        let rotate_bytes = if name.ends_with("zst") { 1 } else { 4000 };
        let recording = Recording::start(Target { rotate_bytes, ..target(folder.path(), name) }, header()).unwrap();
        for n in 0..200 {
            recording.recorder().decision(decided(&format!("room{n}"), &view, "a"), &by(), false);
            if n % 50 == 0 && name.ends_with("zst") {
                // Compressed bytes reach the file with a flush.
                let before = recording.recorder().progress().decisions;
                let deadline = Instant::now() + Duration::from_secs(20);
                while recording.recorder().progress().decisions < before + 1 && Instant::now() < deadline {
                    std::thread::yield_now();
                }
            }
        }
        let progress = recording.stop();
        assert_eq!((progress.decisions, progress.dropped_decisions, progress.error), (200, 0, None));
        let mut reader = Reader::open(&folder.path().join(name), OnDamage::Stop).unwrap();
        let found = decisions(&mut reader);
        assert_eq!(found.last().unwrap().0, call("room199"), "{name}");
        if name.ends_with("zst") {
            let written = std::fs::read(folder.path().join(name)).unwrap();
            assert_eq!(unnoticed(&written), Vec::<usize>::new());
        } else {
            assert!(progress.rotations > 3);
            let full: Vec<_> =
                std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(full.len(), 3, "{full:?}");
            assert!(found.len() < 200, "each file stands alone");
        }
    }
}

#[test]
fn a_full_disk_costs_records_and_says_so() {
    let recording = Recording::start(target(Path::new("/dev"), "full"), header());
    let Ok(recording) = recording else { return };
    let view = View::of([row("a", 1)]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while recording.recorder().progress().error.is_none() {
        recording.recorder().decision(decided("room", &view, "a"), &by(), false);
        assert!(Instant::now() < deadline, "the disk took it all");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut progress = recording.recorder().progress();
    while progress.dropped_decisions == 0 && Instant::now() < deadline {
        recording.recorder().decision(decided("room", &view, "a"), &by(), false);
        progress = recording.recorder().progress();
    }
    assert!(progress.dropped_decisions > 0);
    assert!(progress.error.unwrap().starts_with("/dev/full: "));
    let progress = recording.stop();
    assert_eq!(progress.decisions, 0, "what a full disk did not take was not written: {progress:?}");
}

#[test]
fn whoever_records_never_waits_and_the_gap_stands_in_the_trace() {
    let folder = tempfile::tempdir().unwrap();
    // A pipe that nobody reads is a disk that hangs.
    let path = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        return;
    }
    let opened = std::thread::spawn({
        let path = path.clone();
        move || std::fs::File::open(path).unwrap()
    });
    let recording = Recording::start(target(folder.path(), "pipe"), header()).unwrap();
    let mut pipe = opened.join().unwrap();
    let wide = View::of((0..100).map(|n| row(&format!("m{n}"), n)));
    let deadline = Instant::now() + Duration::from_secs(30);
    while recording.recorder().progress().dropped_decisions == 0 {
        recording.recorder().decision(decided("room", &wide, "m1"), &by(), false);
        assert!(Instant::now() < deadline, "the queue has no bound");
    }
    let text = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text).unwrap()
    });
    let progress = recording.stop();
    let text = text.join().unwrap();
    let mut reader = reader(text.into_bytes(), OnDamage::Stop);
    let (mut seen, mut missing) = (0, 0);
    while let Some((_, item)) = reader.read().unwrap() {
        match item {
            Item::Decision { .. } => seen += 1,
            Item::Gap(gap) => missing += gap.decisions,
            _ => {}
        }
    }
    assert_eq!((seen, missing), (progress.decisions, progress.dropped_decisions));
}

#[test]
fn events_go_by_unread_if_asked_and_nothing_else_does() {
    let items = |skip| {
        let mut reader = reader(some_trace(), OnDamage::Stop);
        reader.skip_events(skip);
        std::iter::from_fn(|| reader.read().unwrap()).map(|(_, item)| item).collect::<Vec<Item>>()
    };
    let is_event = |item: &Item| matches!(item, Item::Event(_));
    let (all, rest) = (items(false), items(true));
    assert_eq!(all.iter().filter(|item| is_event(item)).count(), 3);
    assert_eq!(rest, all.into_iter().filter(|item| !is_event(item)).collect::<Vec<_>>());
}

/// A VM that follows the view builds its lists anew when their members change, and only then.
#[test]
fn what_is_measured_anew_is_no_other_membership() {
    let mut view = View::of([row("a", 1), row("b", 2)]);
    let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
    encoder.header(&header(), &mut bytes);
    encoder.decision(1, decided("one", &view, "a"), &mut bytes);
    view.update(&MonolithId::from("b"), |row| row.rtt_ms = 7.5);
    encoder.decision(2, decided("one", &view, "a"), &mut bytes);
    view.update(&MonolithId::from("b"), |row| row.state = crate::model::policy::MonolithState::Suspect);
    encoder.decision(3, decided("one", &view, "a"), &mut bytes);
    let mut reader = reader(bytes, OnDamage::Stop);
    let mut memberships = Vec::new();
    while let Some((_, item)) = reader.read().unwrap() {
        if matches!(item, Item::Decision { .. }) {
            memberships.push(reader.view().membership());
        }
    }
    assert_eq!(memberships[0], memberships[1]);
    assert_ne!(memberships[1], memberships[2]);
}
