//! Made-up reports: what a replay or a simulation could have filled in, the same in every run.

use std::f64::consts::TAU;

use usher::lab::page::{Flow, LoadOverTime, MonolithLoad, Page, Row, Side};
use usher::model::assertion::{Assertion, Figures, Metric};

/// A name that a client could have chosen to do harm.
pub(crate) const HOSTILE: &str = "</script><img src=x onerror=\"window.harmed=1\">'\u{2028}&amp;\u{202e}";

/// A report with so many policies, Monoliths, moments and decisions.
pub(crate) fn page(policies: usize, monoliths: usize, moments: usize, rows: usize) -> Page {
    let names = ["recorded", "spread.lua", "nearest.lua", "hash-ring"];
    Page {
        title: "replay of friday-evening.jsonl.zst".into(),
        facts: [
            ("Trace", "friday-evening.jsonl.zst, 1,204,311 decisions"),
            ("Span", "2026-03-06 18:00 to 22:00 UTC"),
            ("Monoliths", "12 in 3 regions"),
            ("Gaps", "none"),
            ("Seed", "7"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        sides: (0..policies).map(|at| side(at, names[at % names.len()], monoliths, moments)).collect(),
        flows: if policies > 1 { flows(monoliths) } else { Vec::new() },
        rows: (0..rows as u64).map(|at| row(at, monoliths)).collect(),
        rows_of: 1_204_311,
    }
}

fn side(at: usize, name: &str, monoliths: usize, moments: usize) -> Side {
    let better = at as f64;
    let figures = Figures::from([
        (Metric::MaxLoadOverMean, 1.62 - 0.31 * better),
        (Metric::LoadCv, 0.34 - 0.1 * better),
        (Metric::OwnRegionShare, 0.962 - 0.013 * better),
        (Metric::Agreement, 1.0 - 0.094 * better),
        (Metric::Faults, 2.0 * better),
        (Metric::Moves, 118.0 + 20.0 * better),
        (Metric::Rejected, 12.0),
        (Metric::NsP99, 1840.0 + 410.0 * better),
    ]);
    let asserted = ["max_load_over_mean < 1.4", "own_region_share > 0.95", "faults == 0"];
    let assertions = asserted.map(|text| text.parse::<Assertion>().unwrap().check(&figures)).to_vec();
    Side {
        policy: name.into(),
        version: format!("{:012x}", 0x9f3c_41aa_8871_u64.wrapping_mul(at as u64 + 1)),
        assertions: if at > 0 { assertions } else { Vec::new() },
        figures,
        more: vec![("decisions".into(), 1_204_311.0), ("latency estimate, ms".into(), 21.4 + 1.7 * better)],
        load: Some(load(at, monoliths, moments)),
    }
}

fn load(side: usize, monoliths: usize, moments: usize) -> LoadOverTime {
    let at_s: Vec<f64> = (0..moments).map(|moment| moment as f64 * 14_400.0 / moments.max(2) as f64).collect();
    let one = |which: usize| {
        let share = 1.0 + 0.5 * noise(which as u64, 7) * if side == 0 { 1.0 } else { 0.35 };
        let phase = noise(which as u64, 3);
        let value = |moment: usize| {
            let part = moment as f64 / moments as f64;
            // The third one is away for a while, and the last one comes late.
            let away = which == 2 && (0.4..0.5).contains(&part) || which + 1 == monoliths && which > 3 && part < 0.2;
            let day = 40.0 + 70.0 * (part * TAU / 2.0).sin() + 6.0 * (part * TAU * 3.0 + phase * 3.0).sin();
            (!away).then(|| {
                (day * share + 3.0 * noise((which * moments + moment) as u64, side as u64 + 11)).max(0.0).round()
            })
        };
        MonolithLoad {
            id: format!("m{}", which + 1),
            region: ["ams", "iad", "nrt"][which % 3].into(),
            values: (0..moments).map(value).collect(),
        }
    };
    LoadOverTime { unit: "rooms".into(), at_s, monoliths: (0..monoliths).map(one).collect() }
}

fn flows(monoliths: usize) -> Vec<Flow> {
    let mut flows = Vec::new();
    for from in 0..monoliths {
        for to in 0..monoliths {
            let weight = noise((from * monoliths + to) as u64, 23);
            if from != to && weight > 0.1 {
                let count = (weight * weight * 4000.0) as u64 + 1;
                flows.push(Flow { hook: "place".into(), from: id(from), to: id(to), count });
            }
        }
    }
    for (from, to, count) in [("admit", "reject 503", 41), ("hold", "admit", 812), ("admit", "hold", 77)] {
        flows.push(Flow { hook: "admit".into(), from: from.into(), to: to.into(), count });
    }
    flows
}

fn row(at: u64, monoliths: usize) -> Row {
    let from = id((noise(at, 31).abs() * monoliths as f64) as usize);
    let to = if at.is_multiple_of(4) { from.clone() } else { id((noise(at, 37).abs() * monoliths as f64) as usize) };
    Row {
        decision: 1000 + at * 7919 % 9001,
        at_s: at as f64 * 11.7,
        hook: if at.is_multiple_of(5) { "route" } else { "place" }.into(),
        room: if at == 3 { HOSTILE.into() } else { format!("room-{}", at * 7919 % 1000) },
        region: ["ams", "iad", "nrt"][at as usize % 3].into(),
        why: format!("least rooms in the region: {to} with {}", 20 + at % 30),
        from,
        to,
    }
}

fn id(which: usize) -> String {
    format!("m{}", which + 1)
}

/// From -1 to 1, by a hash of two numbers.
fn noise(a: u64, b: u64) -> f64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 31).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 29;
    (x % 20_001) as f64 / 10_000.0 - 1.0
}
