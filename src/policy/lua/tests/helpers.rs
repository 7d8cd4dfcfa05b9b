//! The helpers of `usher.*` by their properties, as a script meets them.

use proptest::prelude::*;

use super::*;
use crate::policy::lua::Distances;

const REGIONS: [&str; 5] = ["ams", "bos", "cdg", "ewr", "syd"];

/// Monoliths of some regions with these loads.
fn fleet(rows: &[(usize, u32, u32)]) -> View {
    View::of(rows.iter().enumerate().map(|(at, (region, rooms, pending))| MonolithRow {
        pending: *pending,
        ..row(&format!("m{at:02}"), REGIONS[*region], *rooms)
    }))
}

fn rows(least: usize) -> impl Strategy<Value = Vec<(usize, u32, u32)>> {
    prop::collection::vec((0..REGIONS.len(), 0u32..20, 0u32..4), least..12)
}

/// Runs a script over this view; it fails by its assertions.
fn run(body: &str, view: &View, seed: u64) -> Result<(), TestCaseError> {
    let distances = Distances::new(|from, to| {
        // Made up, and not symmetric; nobody knows how far `syd` is.
        let number = |name: &str| REGIONS.iter().position(|region| *region == name).filter(|at| *at < 4);
        let (from, to) = (number(from.as_str())?, number(to.as_str())?);
        Some(((from * 7 + to * 3) % 11) as f64 + 1.0)
    });
    let limits = Limits { fuel: 2_000_000, ..environment(8 << 20).limits };
    let environment = Environment { distances, limits, ..Environment::default() };
    let mut vm = vm_with(&format!("return {{ place = function(call) {body} return nil end }}"), &environment);
    let answer = vm.call(&Call { seed, ..call(Hook::Place) }, view);
    prop_assert_eq!(answer, Ok(Answer::Default));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn rendezvous_moves_only_the_keys_of_a_lost_monolith(rows in rows(2), lost in 0usize..12, salt in 0u32..1000) {
        let lost = lost % rows.len() + 1;
        run(&format!(
            "local list, lost = call.monoliths, call.monoliths[{lost}]
            local rest = usher.filter(list, function(m) return m ~= lost end)
            for i = 1, 40 do
                local key = '{salt}-' .. i
                local before, after = usher.rendezvous(key, list), usher.rendezvous(key, rest)
                assert(before == lost or before == after, key)
                assert(after ~= lost)
            end"
        ), &fleet(&rows), 1)?;
    }

    #[test]
    fn bounded_never_exceeds_the_factor_times_the_mean(n in 1usize..10, factor in 1.0f64..3.0, salt in 0u32..1000) {
        // It holds for what the helper itself placed: every one of these rooms was.
        run(&format!(
            "local list = {{}}
            for i = 1, {n} do list[i] = {{ id = 'm' .. i, rooms = 0, pending = 0, weight = 1 + i % 3 }} end
            local weights = 0
            for _, m in list do weights += m.weight end
            for placed = 1, 60 do
                local m = usher.bounded('{salt}-' .. placed, list, {factor})
                m.pending += 1
                for _, m in list do
                    local bound = math.ceil({factor} * placed * m.weight / weights)
                    assert(m.rooms + m.pending <= bound, m.id .. ' has ' .. m.pending .. ' over ' .. bound)
                end
            end"
        ), &fleet(&[(0, 0, 0)]), 1)?;
    }

    #[test]
    fn slow_start_never_falls(seconds in 0.0f64..600.0, step in 0.01f64..50.0) {
        run(&format!(
            "local before = 0
            for i = 0, 60 do
                local now = usher.slow_start({{ age_s = i * {step} }}, {seconds})
                assert(now >= before and now >= 0.1 and now <= 1, now)
                before = now
            end
            assert(usher.slow_start({{ age_s = {seconds} }}, {seconds}) == 1)"
        ), &fleet(&[(0, 0, 0)]), 1)?;
    }

    #[test]
    fn two_choices_never_picks_the_worse_of_its_two(rows in rows(2), seed: u64) {
        run(
            "for _ = 1, 20 do
                local drawn = {}
                local chosen = usher.two_choices(call.monoliths, function(m) table.insert(drawn, m) return m.rooms end)
                assert(#drawn == 2 and drawn[1] ~= drawn[2], 'two different ones')
                assert(chosen == drawn[1] or chosen == drawn[2])
                assert(chosen.rooms == math.min(drawn[1].rooms, drawn[2].rooms))
            end
            if #call.monoliths == 2 then
                local a, b = call.monoliths[1], call.monoliths[2]
                local chosen = usher.two_choices(call.monoliths)
                assert(chosen.rooms + chosen.pending == math.min(a.rooms + a.pending, b.rooms + b.pending))
            end",
            &fleet(&rows),
            seed,
        )?;
    }

    #[test]
    fn sorting_agrees_with_the_extremes(rows in rows(1)) {
        run(
            "local by = function(m) return m.rooms + m.pending end
            for _, score in { 'rooms', by } do
                local value = if score == 'rooms' then function(m) return m.rooms end else by
                local sorted = usher.sort_by(call.monoliths, score)
                assert(#sorted == #call.monoliths and sorted[1] == usher.min_by(call.monoliths, score))
                for i = 2, #sorted do
                    local a, b = sorted[i - 1], sorted[i]
                    assert(value(a) < value(b) or value(a) == value(b) and a.id < b.id)
                end
                assert(value(usher.max_by(call.monoliths, score)) == value(sorted[#sorted]))
            end",
            &fleet(&rows),
            1,
        )?;
    }

    #[test]
    fn nearest_and_spill_go_by_distance(rows in rows(1), from in 0..REGIONS.len(), limit in 0u32..24) {
        let region = REGIONS[from];
        run(&format!(
            "local REGIONS = {{ ams = 0, bos = 1, cdg = 2, ewr = 3 }}
            local function far(m)
                if m.region == {region:?} then return 0 end
                local from, to = REGIONS.{region}, REGIONS[m.region]
                return if from and to then (from * 7 + to * 3) % 11 + 1 else math.huge
            end
            local own = usher.in_region(call.monoliths, {region:?})
            for _, m in call.monoliths do
                assert((m.region == {region:?}) == (table.find(own, m) ~= nil))
            end
            local function check(list, candidates)
                local least = math.huge
                for _, m in candidates do least = math.min(least, far(m)) end
                for _, m in list do
                    assert(m.region == list[1].region and far(m) == least and table.find(candidates, m))
                end
                for _, m in candidates do
                    assert(m.region ~= list[1].region or table.find(list, m), m.id .. ' is missing')
                end
            end
            local near = usher.nearest(call.monoliths, {region:?})
            local known = usher.filter(call.monoliths, function(m) return far(m) < math.huge end)
            if #known == 0 then assert(near == call.monoliths) else check(near, known) end
            local free = usher.filter(call.monoliths, function(m) return m.rooms + m.pending < {limit} end)
            local spilled = usher.spill(call.monoliths, {limit}, {region:?})
            if #free == 0 then assert(spilled == call.monoliths) else check(spilled, free) end
            assert(#usher.spill(call.monoliths, function() return false end, {region:?}) == #(if #known == 0 then
                usher.in_region(call.monoliths, call.monoliths[1].region) else near))"
        ), &fleet(&rows), 1)?;
    }
}
