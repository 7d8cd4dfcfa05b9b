//! What one recorded decision costs to read, and to read and make again: balancers of three and of ten Monoliths with ids as
//! they are. Counts change with every decision and a measurement with every fortieth, as in a recorded demo of ten
//! Monoliths with 3,000 rooms and 200 joins a second.

use std::hint::black_box;
use std::io::Cursor;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use usher::lab::replay::{Instead, Plan, Replay};
use usher::model::policy::{Call, CallClient, CallRoom, Cause, Hook, MonolithRow, View};
use usher::model::{ClientId, MonolithId};
use usher::policy::decide::decide;
use usher::policy::lua::{Environment, Program, Source, Vm};
use usher::policy::shipped::shipped;
use usher::trace::Encoder;
use usher::trace::read::{OnDamage, Reader};
use usher::trace::record::{Decided, Header, Outcome, PolicyText};

const DECISIONS: u64 = 60_000;
/// A measurement changes with one decision of so many.
const MEASURED: u64 = 40;

fn id(number: u64) -> MonolithId {
    MonolithId::from(&*ClientId::from_u128(u128::from(number) << 64 | 0x1234_5678).to_string())
}

fn call(number: u64) -> Call {
    let region = ["ewr", "cdg"][number as usize % 2];
    let room = CallRoom {
        name: Some(format!("room-{}", number % 500).into()),
        region: Some(region.into()),
        clients: 1,
        regions: [(region.into(), 1)].into(),
        attempt: 1,
        ..CallRoom::default()
    };
    Call {
        hook: Hook::Place,
        now_us: 1_700_000_000_000_000 + number * 1000,
        seed: number * 7919,
        region: "ewr".into(),
        room: Some(room),
        client: Some(CallClient { region: Some(region.into()), reconnect: false, attempt: 1 }),
        cause: Some(Cause::Join),
        request: None,
        excluded: Vec::new(),
        rooms: [].into(),
    }
}

fn trace(monoliths: u64) -> Arc<[u8]> {
    let source = Source::shipped("default", shipped("default").map_or("", |policy| policy.text));
    let version: Arc<str> = source.version().into();
    let header = Header { region: "ewr".into(), ..Header::of(PolicyText::of(&source)) };
    let program = Program::compile(source, &Environment::default());
    let mut vm = program.and_then(|program| Vm::new(&program)).unwrap_or_else(|e| panic!("{e}"));
    vm.keep_reads(true);
    let mut view = View::of((0..monoliths).map(|at| MonolithRow {
        id: id(at),
        region: ["ewr", "cdg"][at as usize % 2].into(),
        age_s: 500.0,
        ..MonolithRow::default()
    }));
    let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
    encoder.header(&header, &mut bytes);
    for number in 0..DECISIONS {
        let counts = ((number % 40) as u32, (number % 3) as u32);
        view.update(&id(number % monoliths), |row| (row.rooms, row.pending) = counts);
        if number % MEASURED == 0 {
            view.update(&id(number / MEASURED % monoliths), |row| row.rtt_ms = number as f64 / 7.0);
        }
        let call = call(number);
        let decision = decide(&mut vm, &call, &view);
        let outcome = Outcome {
            reads: vm.take_reads().unwrap_or_default(),
            choice: decision.choices.first().cloned(),
            answer: decision.answer,
            policy: version.clone(),
            ns: 1_000,
            fallback: decision.fault,
            bypassed: false,
            incomplete: false,
        };
        encoder.decision(number * 1000, Decided { call, view: view.clone().into(), outcome }, &mut bytes);
    }
    bytes.into()
}

fn reader(trace: &Arc<[u8]>) -> Reader {
    Reader::new("bench", Cursor::new(trace.clone()), OnDamage::Stop).unwrap_or_else(|e| panic!("{e}"))
}

fn replay(c: &mut Criterion) {
    for monoliths in [3, 10] {
        replay_of(c, monoliths);
    }
}

fn replay_of(c: &mut Criterion, monoliths: u64) {
    let trace = trace(monoliths);
    let mut group = c.benchmark_group(format!("replay/{monoliths}"));
    group.throughput(Throughput::Elements(DECISIONS)).sample_size(20);
    group.bench_function("read", |b| {
        b.iter(|| {
            let mut reader = reader(&trace);
            while let Ok(Some(item)) = reader.read() {
                black_box(item);
            }
        });
    });
    group.bench_function("read_and_decide", |b| {
        b.iter(|| {
            let mut reader = reader(&trace);
            let mut replay = Replay::new(reader.header(), Plan::default()).unwrap_or_else(|e| panic!("{e}"));
            replay.read(&mut reader, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(replay.finish().agreed, DECISIONS);
        });
    });
    for name in ["least-loaded", "region-affinity"] {
        let source = Source::shipped(name, shipped(name).map_or("", |policy| policy.text));
        let plan = Plan { policy: Some(Instead { source, environment: None }), ..Plan::default() };
        group.bench_function(BenchmarkId::new("read_and_decide_otherwise", name), |b| {
            b.iter(|| {
                let mut reader = reader(&trace);
                let mut replay = Replay::new(reader.header(), plan.clone()).unwrap_or_else(|e| panic!("{e}"));
                replay.read(&mut reader, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(replay.finish().decisions, DECISIONS);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, replay);
criterion_main!(benches);
