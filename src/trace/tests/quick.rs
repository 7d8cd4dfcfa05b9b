//! The quick way and the general one read the same: whatever the encoder writes, and whatever became of it since.

use std::collections::BTreeMap;

use super::*;
use crate::model::Region;
use crate::model::policy::{CallClient, CallRequest, CallRoom, Cause, Hook, MonolithState, Move, Previous};
use crate::trace::Decoder;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z0-9-]{1,12}", 1 => "[a-zé\"\\\\\n/ \u{1}\u{1F600}]{0,6}"]
}

fn arc() -> impl Strategy<Value = Arc<str>> {
    text().prop_map(Arc::from)
}

fn region() -> impl Strategy<Value = Region> {
    prop_oneof![Just("ewr".into()), Just("cdg".into()), text().prop_map(Region::new)]
}

fn monolith() -> impl Strategy<Value = MonolithId> {
    prop_oneof![4 => (0..6u8).prop_map(|n| MonolithId::from(&*format!("m{n}"))), 1 => text().prop_map(MonolithId::new)]
}

fn number() -> impl Strategy<Value = f64> {
    use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![NORMAL | SUBNORMAL | ZERO | POSITIVE | NEGATIVE, (0..1000u32).prop_map(f64::from)]
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|v| json!(v)),
        any::<i64>().prop_map(|v| json!(v)),
        number().prop_map(|v| json!(v)),
        text().prop_map(|v| json!(v)),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(|v| json!(v)),
            proptest::collection::btree_map(text(), inner, 0..3).prop_map(|v| json!(v)),
        ]
    })
}

fn maybe<T: std::fmt::Debug + 'static>(some: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Option<T>> {
    proptest::option::of(some).boxed()
}

fn room() -> impl Strategy<Value = CallRoom> {
    let counts = proptest::collection::btree_map(region(), any::<u32>(), 0..3);
    let previous = (monolith(), text()).prop_map(|(monolith, why)| Previous { monolith, why });
    let parts = (maybe(arc()), maybe(region()), any::<u32>(), counts, maybe(json_value()), maybe(previous));
    let more = (any::<u32>(), any::<bool>(), maybe(monolith()), maybe(number()));
    (parts, more).prop_map(|((name, region, clients, regions, metadata, previous), (attempt, bound, owner, age_s))| {
        // Null and nothing are the same in a trace.
        let metadata = metadata.filter(|metadata| !metadata.is_null());
        CallRoom { name, region, clients, regions, metadata, previous, attempt, bound, owner, age_s }
    })
}

fn request() -> impl Strategy<Value = CallRequest> {
    let texts = || proptest::collection::btree_map(text(), text(), 0..3);
    (arc(), arc(), maybe(arc()), maybe(region()), texts(), texts()).prop_map(
        |(method, path, host, region, headers, query): (_, _, _, _, BTreeMap<_, _>, _)| CallRequest {
            method,
            path,
            host,
            region,
            headers,
            query,
        },
    )
}

fn any_call() -> impl Strategy<Value = Call> {
    let hook = proptest::sample::select(Hook::ALL.to_vec());
    let causes = vec![Cause::Join, Cause::Create, Cause::Http, Cause::Move, Cause::Lost];
    let client = (maybe(region()), any::<bool>(), any::<u32>()).prop_map(|(region, reconnect, attempt)| CallClient {
        region,
        reconnect,
        attempt,
    });
    let head = (hook, any::<u64>(), any::<u64>(), region());
    let parts = (maybe(room()), maybe(client), maybe(proptest::sample::select(causes)), maybe(request()));
    let lists = (proptest::collection::vec(monolith(), 0..3), proptest::collection::vec(room(), 0..3));
    (head, parts, lists).prop_map(
        |((hook, now_us, seed, region), (room, client, cause, request), (excluded, rooms))| Call {
            hook,
            now_us,
            seed,
            region,
            room,
            client,
            cause,
            request,
            excluded,
            rooms: rooms.into(),
        },
    )
}

fn kept() -> impl Strategy<Value = Kept> {
    prop_oneof![any::<bool>().prop_map(Kept::Boolean), number().prop_map(Kept::Number), arc().prop_map(Kept::Text)]
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let read = prop_oneof![
        number().prop_map(Read::Now),
        (0.0..1.0f64).prop_map(Read::Random),
        (arc(), any::<u64>()).prop_map(|(name, value)| Read::Counter(name, value)),
        (arc(), maybe(kept())).prop_map(|(key, kept)| Read::Get(key, kept)),
    ];
    let answer = prop_oneof![
        Just(Answer::Default),
        Just(Answer::Admit),
        proptest::collection::vec(monolith(), 0..3).prop_map(Answer::Ranked),
        (any::<u16>(), text()).prop_map(|(code, reason)| Answer::Reject { code, reason }),
        any::<u64>().prop_map(|ms| Answer::Hold { delay: Duration::from_millis(ms) }),
        proptest::collection::vec((text(), monolith()).prop_map(|(room, to)| Move { room, to }), 0..3)
            .prop_map(Answer::Moves),
    ];
    let kinds = vec![
        FaultKind::Error,
        FaultKind::Fuel,
        FaultKind::CpuTime,
        FaultKind::Memory,
        FaultKind::NativeCap,
        FaultKind::BadAnswer,
        FaultKind::NotEligible,
    ];
    let fault = (proptest::sample::select(kinds), text()).prop_map(|(kind, message)| Fault { kind, message });
    let flags = (any::<bool>(), any::<bool>());
    (proptest::collection::vec(read, 0..3), answer, maybe(monolith()), arc(), any::<u64>(), maybe(fault), flags)
        .prop_map(|(reads, answer, choice, policy, ns, fallback, (bypassed, incomplete))| Outcome {
            reads,
            answer,
            choice,
            policy,
            ns,
            fallback,
            bypassed,
            incomplete,
        })
}

const STATES: [MonolithState; 4] =
    [MonolithState::Up, MonolithState::Suspect, MonolithState::Draining, MonolithState::Ejected];

/// The lines of a trace: calls over Monoliths that come, go and change.
fn any_lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let change = (0..6usize, any::<u32>(), 0..10u8);
    proptest::collection::vec((proptest::collection::vec(change, 0..4), any_call(), any_outcome()), 1..6).prop_map(
        |steps| {
            let mut view = View::of([row("m0", 1), row("m1", 2), row("m2", 3)]);
            let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
            encoder.header(&header(), &mut bytes);
            for (changes, call, outcome) in steps {
                for (at, value, what) in changes {
                    let id = MonolithId::from(&*format!("m{at}"));
                    match what {
                        0 => view.insert(row(id.as_str(), value)),
                        1 => drop(view.remove(&id)),
                        2 => view.update(&id, |row| row.rtt_ms = f64::from(value) / 7.0),
                        3 => view.update(&id, |row| row.pending = value),
                        4 => view.update(&id, |row| row.clients = value),
                        5 => view.update(&id, |row| (row.users, row.inflight) = (value, value / 2)),
                        6 => view.update(&id, |row| {
                            row.load.insert(format!("lag{}", value % 3), f64::from(value) / 3.0);
                            row.load_age_s = Some(f64::from(value));
                        }),
                        7 => view.update(&id, |row| row.draining = value % 2 == 0),
                        8 => view.update(&id, |row| row.state = STATES[value as usize % STATES.len()]),
                        _ => view.update(&id, |row| row.rooms = value),
                    }
                }
                encoder.decision(
                    u64::from(call.now_us as u32),
                    Decided { call, view: view.clone().into(), outcome },
                    &mut bytes,
                );
            }
            bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
        },
    )
}

/// Both ways over the same lines.
fn assert_alike(lines: &[Vec<u8>]) -> Result<(), TestCaseError> {
    let (mut both, mut general) = (Decoder::default(), Decoder::default());
    for line in lines {
        let shown = || String::from_utf8_lossy(line).into_owned();
        prop_assert_eq!(both.line(line), general.general(line), "{}", shown());
        prop_assert_eq!(both.view().rows(), general.view().rows(), "{}", shown());
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_written_is_read_quickly_and_right(lines in any_lines()) {
        assert_alike(&lines)?;
        let mut decoder = Decoder::default();
        for line in &lines {
            // All but the header.
            match decoder.quick(line) {
                Some(_) => {}
                None => prop_assert!(matches!(decoder.line(line), Ok((_, Item::Header(_)))), "{line:?}"),
            }
        }
    }

    #[test]
    fn what_was_changed_since_is_read_alike(
        mut lines in any_lines(),
        changes in proptest::collection::vec((any::<usize>(), any::<usize>(), 0..5u8, any::<usize>()), 1..4),
    ) {
        const BYTES: &[u8] = b"0123456789\"\\{}[]:,.-+eEtfn \tx\xff\x01";
        for (line, at, what, byte) in changes {
            let chosen = line % lines.len();
            let line = &mut lines[chosen];
            let (at, byte) = (at % line.len(), BYTES[byte % BYTES.len()]);
            match what {
                0 => line[at] = byte,
                1 => line.insert(at, byte),
                2 => drop(line.remove(at)),
                3 => line.truncate(at + 1),
                // A piece that stands twice.
                _ => {
                    let end = (at + usize::from(byte)).min(line.len());
                    let piece = line[at..end].to_vec();
                    line.splice(at..at, piece);
                }
            }
        }
        assert_alike(&lines)?;
    }
}

/// As a person would write it: other order, white space, and no more than there has to be.
#[test]
fn a_line_by_hand_is_read_the_general_way() {
    let mut bytes = Vec::new();
    Encoder::new(None).header(&header(), &mut bytes);
    let mut decoder = Decoder::default();
    decoder.line(bytes.trim_ascii_end()).unwrap();
    decoder.line(br#"{"view": 1, "monoliths": [{"id": "m1"}]}"#).unwrap();
    let by_hand = br#" { "call": {"region": "ewr", "hook": "place"}, "view": 1, "decision": 7,
        "counts": {"m1": {"rooms": 3}}, "policy": "0123456789ab", "answer": "default" } "#;
    assert_eq!(decoder.quick(by_hand), None);
    let (_, item) = decoder.line(by_hand).unwrap();
    let Item::Decision { number: 7, call, .. } = item else { panic!("{item:?}") };
    assert_eq!((call.region.as_str(), decoder.view().rows()[0].rooms), ("ewr", 3));
}

/// A decision as the encoder writes it.
fn decision_line(view: u64, counts: &str, excluded: &str) -> Vec<u8> {
    let call = format!(r#"{{"hook":"place","now_us":1,"seed":1,"region":"ewr","excluded":{excluded}}}"#);
    let head = format!(r#"{{"t":1,"decision":1,"hook":"place","view":{view},"counts":{counts}"#);
    format!(r#"{head},"call":{call},"answer":"default","choice":null,"policy":"0123456789ab","ns":1}}"#).into_bytes()
}

#[test]
fn counts_that_stand_there_again_are_those_of_the_same_monoliths() {
    let counts = r#"{"b":{"rooms":1},"c":{"rooms":2,"pending":3}}"#;
    let view = |number: u64, ids: &[&str], gone: &str| {
        let ids: Vec<String> = ids.iter().map(|id| format!(r#"{{"id":"{id}"}}"#)).collect();
        format!(r#"{{"t":1,"view":{number},"monoliths":[{}],"gone":{gone}}}"#, ids.join(",")).into_bytes()
    };
    let decision = |view| decision_line(view, counts, r#"["x"]"#);
    let lines = [
        view(1, &["b", "c", "d"], "[]"),
        decision(1),
        view(2, &["a"], "[]"),
        decision(2),
        view(3, &[], r#"["a"]"#),
        decision(3),
    ];
    let (mut decoder, mut general) = (Decoder::default(), Decoder::default());
    for line in &lines {
        assert_eq!(decoder.line(line), general.general(line));
        assert_eq!(decoder.view().rows(), general.view().rows(), "{}", String::from_utf8_lossy(line));
    }
    assert!(decoder.quick(&decision(3)).is_some());
}

/// Texts are found again by some of their bytes, which other texts may share by chance: among so many some do.
#[test]
fn a_text_with_an_escape_is_never_taken_for_two() {
    let mut decoder = Decoder::default();
    decoder.line(br#"{"view": 1, "monoliths": [{"id": "m"}]}"#).unwrap();
    let mut excluded = |list: String| match decoder.quick(&decision_line(1, r#"{"m":{"rooms":1}}"#, &list)) {
        Some((_, Item::Decision { call, .. })) => call.excluded.len(),
        other => panic!("{other:?}"),
    };
    for n in 0..16_000 {
        assert_eq!((excluded(format!(r#"["{n}\",\"y"]"#)), excluded(format!(r#"["{n}","y"]"#))), (1, 2), "{n}");
    }
}
