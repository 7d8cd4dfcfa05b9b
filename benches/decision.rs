//! What one decision costs: the shipped policies and the helpers, over fleets of several sizes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use usher::model::policy::{Call, CallClient, CallRoom, Cause, Hook, MonolithRow, View};
use usher::policy::lua::{Environment, Program, Source, Vm};
use usher::policy::shipped::shipped;
use usher::policy::{Builtin, Policy, decide};

const SIZES: [u32; 4] = [2, 10, 100, 1000];

fn view(size: u32) -> View {
    View::of((0..size).map(|i| MonolithRow {
        id: format!("m{i:04}").as_str().into(),
        region: ["ewr", "cdg", "syd"][i as usize % 3].into(),
        rooms: (i * 37) % 101,
        ..MonolithRow::default()
    }))
}

fn call() -> Call {
    let room = CallRoom {
        name: Some("movie-night".into()),
        region: Some("cdg".into()),
        clients: 1,
        regions: [("cdg".into(), 1)].into(),
        attempt: 1,
        ..CallRoom::default()
    };
    Call {
        hook: Hook::Place,
        now_us: 1_700_000_000_000_000,
        seed: 7,
        region: "ewr".into(),
        room: Some(room),
        client: Some(CallClient { region: Some("cdg".into()), reconnect: false, attempt: 1 }),
        cause: Some(Cause::Join),
        request: None,
        excluded: Vec::new(),
        rooms: [].into(),
    }
}

fn vm(text: &str) -> Vm {
    let program = Program::compile(Source::shipped("bench", text), &Environment::default());
    program.and_then(|program| Vm::new(&program)).unwrap_or_else(|e| panic!("{e}"))
}

fn place(c: &mut Criterion) {
    let texts = [
        ("call_only", "return { place = function() return nil end }"),
        ("min_by_field", "return { place = function(call) return usher.min_by(call.monoliths, 'rooms') end }"),
        (
            "min_by_function",
            "return { place = function(call) return usher.min_by(call.monoliths, function(m) return m.rooms + m.pending end) end }",
        ),
        ("rendezvous", "return { place = function(call) return usher.rendezvous(call.room.name, call.monoliths) end }"),
    ];
    let shipped_texts = ["default", "hash-ring", "random"].map(|name| (name, shipped(name).map_or("", |p| p.text)));
    let mut group = c.benchmark_group("place");
    for (name, text) in texts.into_iter().chain(shipped_texts) {
        for size in SIZES {
            let (view, call, mut vm) = (view(size), call(), vm(text));
            group.bench_function(BenchmarkId::new(name, size), |b| b.iter(|| black_box(vm.call(&call, &view))));
        }
    }
    group.finish();
}

fn patched(c: &mut Criterion) {
    let mut group = c.benchmark_group("place_after_change");
    for size in SIZES {
        let (mut view, call) = (view(size), call());
        let mut vm = vm("return { place = function(call) return usher.min_by(call.monoliths, 'rooms') end }");
        let id = "m0001".into();
        group.bench_function(BenchmarkId::new("one_row", size), |b| {
            b.iter(|| {
                view.update(&id, |row| row.pending += 1);
                black_box(vm.call(&call, &view))
            });
        });
    }
    group.finish();
}

fn whole(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for size in SIZES {
        let (view, call) = (view(size), call());
        let mut vm = vm(shipped("default").map_or("", |policy| policy.text));
        group
            .bench_function(BenchmarkId::new("default", size), |b| b.iter(|| black_box(decide(&mut vm, &call, &view))));
        group.bench_function(BenchmarkId::new("builtin", size), |b| {
            b.iter(|| black_box(decide(&mut Builtin, &call, &view)))
        });
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    let text = shipped("default").map_or("", |policy| policy.text);
    let program =
        Program::compile(Source::shipped("bench", text), &Environment::default()).unwrap_or_else(|e| panic!("{e}"));
    c.bench_function("vm_from_bytecode", |b| b.iter(|| black_box(Vm::new(&program).is_ok())));
}

criterion_group!(benches, place, patched, whole, build);
criterion_main!(benches);
