//! Scripts that try to hang, to eat memory, to leave the sandbox or to poison later calls. Each ends at its limit, the
//! next call works, and the memory comes back.

use super::*;
use crate::model::policy::FaultKind;
use crate::policy::lua::meter::thread_cpu_ns;

/// What tells an attack that got past its limits from a build without optimisations on a slow machine.
const MOST_CPU_TIME: Duration = Duration::from_secs(3);

/// Runs an attack in `place` with a region of "attack", then an honest call in the same VM.
fn check(attack: &str, expected: &[FaultKind]) {
    let text = format!(
        "local policy = {{}}
        function policy.place(call)
            if call.region == 'attack' then
                {attack}
            end
            return call.monoliths[1]
        end
        return policy"
    );
    let environment = environment(4 << 20);
    let budget = environment.limits.budget;
    let mut vm = vm_with(&text, &environment);
    let hostile = Call { region: "attack".into(), ..call(Hook::Place) };
    for _ in 0..2 {
        let began = thread_cpu_ns();
        let fault = vm.call(&hostile, &view()).expect_err(attack);
        let took = Duration::from_nanos(thread_cpu_ns() - began);
        assert!(took < MOST_CPU_TIME.max(budget * 20), "{attack}: {took:?} of CPU time");
        assert!(expected.contains(&fault.kind), "{attack}: {fault:?}");
        assert!(vm.memory() < 3 << 20, "{attack}: {} bytes stay", vm.memory());
        assert_eq!(ask(&mut vm).expect(attack), ids(&["m1"]), "{attack}");
    }
}

#[test]
fn f47_endless_loops_run_out_of_fuel() {
    use FaultKind::Fuel;
    for attack in [
        "while true do end",
        "repeat until false",
        "for i = 1, math.huge do end",
        "local function f() return f() end f()",
        "while true do pcall(function() while true do end end) end",
        "pcall(function() while true do end end)",
        "for i = 1, 200 do pcall(function() while true do end end) end",
        "xpcall(function() while true do end end, function() while true do end end)",
        "local t = setmetatable({}, { __index = function(t, k) return t[k .. 'x'] end }) pcall(function() return t.a end) while true do end",
        "local t = setmetatable({}, { __eq = function() while true do end end }) return t == setmetatable({}, getmetatable(t))",
        "table.sort({ 3, 2, 1, 5, 4 }, function(a, b) while true do end end)",
        "string.gsub('abc', '.', function() while true do end end)",
    ] {
        check(attack, &[Fuel, FaultKind::Error]);
    }
    check("while true do end", &[Fuel]);
    check("while true do pcall(function() while true do end end) end", &[Fuel]);
    check("pcall(function() while true do end end)", &[Fuel]);
}

#[test]
fn deep_recursion_ends() {
    use FaultKind::{CpuTime, Error, Fuel, Memory};
    for attack in [
        "local function f() return 1 + f() end f()",
        "local function f() pcall(f) end f() while true do end",
        "local function f() string.gsub('a', 'a', f) end f() while true do end",
        "local t = setmetatable({}, {}) getmetatable(t).__tostring = function() return tostring(t) end tostring(t)",
    ] {
        check(attack, &[Error, Fuel, Memory, CpuTime]);
    }
}

#[test]
fn memory_has_a_limit() {
    use FaultKind::{CpuTime, Fuel, Memory};
    for attack in [
        "string.rep('x', 1e9)",
        "local s = 'x' while true do s = s .. s end",
        "local t = {} while true do t[#t + 1] = string.rep('x', 10000) .. #t end",
        "local t = {} while true do t = { t, t, {}, string.rep('y', 4096) .. tostring(t) } end",
        "local t = {} while true do local x = #t t[x + 1] = function() return x, string.rep('z', 9999) .. x end t[-x] = table.create(1000, x) end",
        "table.create(2 ^ 26)",
    ] {
        check(attack, &[Memory, Fuel, CpuTime]);
    }
    check("string.rep('x', 1e9)", &[Memory]);
}

#[test]
fn a_caught_memory_error_leaves_no_full_vm_behind() {
    let mut vm = vm_with(
        "local kept = {}
        return { place = function(call)
            pcall(function() while true do kept[#kept + 1] = string.rep('x', 100000) .. #kept end end)
            return call.monoliths[1]
        end }",
        &environment(4 << 20),
    );
    for _ in 0..5 {
        assert_eq!(ask(&mut vm).unwrap(), ids(&["m1"]));
        assert!(vm.memory() < 3 << 20, "{}", vm.memory());
    }
}

#[test]
fn pattern_bombs_run_out() {
    use FaultKind::{CpuTime, Error, Fuel};
    for attack in [
        "string.find(string.rep('a', 30), string.rep('a?', 30) .. string.rep('a', 30) .. 'b')",
        "string.find(string.rep('a', 200), string.rep('.-', 10) .. 'b')",
        "string.match(string.rep('(', 20000), string.rep('.-%b()', 3))",
        "string.gsub(string.rep('a', 3000), '(.-)-(.-)-(.-)b', '')",
    ] {
        check(attack, &[Fuel, CpuTime, Error]);
    }
}

#[test]
fn f47_library_calls_that_ignore_the_interrupt_are_capped() {
    for attack in [
        "table.move({}, 1, 2 ^ 30, 2)",
        "table.move({}, 1, 2 ^ 30, 2, {})",
        "local s = string.rep('a', 1000000) string.find(s, string.rep('a', 500000) .. 'b', 1, true)",
        "local s = string.rep('a', 1000000) return (s:find(string.rep('a', 500000) .. 'b', 1, true))",
        "string.split(string.rep('a', 1000000), string.rep('a', 500000) .. 'b')",
        "local s = string.rep('a', 1000000) s:split(string.rep('a', 500000) .. 'b')",
        "local t = table.create(200000, 1) table.sort(t)",
        "pcall(table.move, {}, 1, 2 ^ 30, 2)",
        "pcall(function() table.move({}, 1, 2 ^ 30, 2) end) while true do end",
    ] {
        check(attack, &[FaultKind::NativeCap]);
    }
    // Looking for magic characters in so long a pattern takes fuel itself, so either limit may come first.
    let plain_by_content = "local s = string.rep('a', 1000000) return (s:find(string.rep('a', 500000) .. 'b'))";
    check(plain_by_content, &[FaultKind::NativeCap, FaultKind::Fuel]);
}

#[test]
fn numbers_as_texts_and_metamethods_pass_no_cap() {
    use FaultKind::{Error, Fuel, Memory, NativeCap};
    for attack in [
        "table.move({}, '1', 1073741824, 2)",
        "table.move({}, 1, '1073741824', 2)",
        "table.move({}, '1', '1073741824', '2')",
        "table.move({}, ' 0x1 ', '1e9', 2)",
        "pcall(table.move, {}, '-2147483648', '-5', 2) table.move({}, -2147483648, -5, 2)",
        "table.unpack({}, '1', '900000')",
        "unpack({}, 1, 1e9)",
        "select('#', unpack({}, '1', '100000'))",
        "local t = setmetatable(table.create(200000, 1), { __len = function() return 0 end }) table.sort(t)",
    ] {
        check(attack, &[NativeCap]);
    }
    for attack in [
        "table.move({}, 0 / 0, -5, 2)",
        "table.move({}, 1, 1e300, 2)",
        "table.move({}, 1, 2, math.huge)",
        "table.move({}, 1, 2, '1.5')",
        "table.move({}, 1, nil, 2)",
        "table.unpack({}, 0 / 0)",
        "table.create(0 / 0)",
        "table.create('1e300')",
        "table.concat({}, ',', '1', '1073741824')",
        "table.concat({}, ',', '-2147483648', '2147483647')",
        "table.insert({}, '1e9', 1, 2)",
        "string.format('%' .. '999' .. 'd', 1)",
    ] {
        check(attack, &[Error]);
    }
    for attack in [
        "table.create('100000000', 1)",
        "('x'):rep('1000000000')",
        "table.sort(table.create(200000, 1), rawequal)",
        "local s = ('x'):rep('1000000') while true do s:byte('1', '7000') s:sub('1', '-1') s:upper() end",
        "local t = table.create('60000', 1) while true do table.insert(t, '1', 1) table.remove(t, '1') end",
        "local t = table.create('60000', 1) while true do table.find(t, 2, '1') end",
        "while true do utf8.char(1) bit32.rrotate('1', '1e9') bit32.extract('1', '0', '32') end",
    ] {
        check(attack, &[Memory, Fuel, Error, FaultKind::CpuTime]);
    }
}

#[test]
fn long_keys_are_refused_and_regions_of_clients_do_not_pile_up() {
    let fault = ask(&mut place("return usher.rendezvous(('k'):rep(1025), call.monoliths)")).unwrap_err();
    assert!(fault.message.contains("the key has 1025 bytes; give one of at most 1024"), "{fault}");
    assert!(ask(&mut place("return usher.bounded(('k'):rep(1024), call.monoliths)")).is_ok());
    let mut vm = place("for i = 1, 300 do usher.nearest(call.monoliths, 'r' .. usher.random()) end return 'm1'");
    let sizes: Vec<usize> = (0..20).map(|_| ask(&mut vm).map(|_| vm.memory()).unwrap()).collect();
    assert!(sizes[19] < sizes[0] + (1 << 20), "{sizes:?}");
}

#[test]
fn an_error_of_a_guarded_function_names_the_line_of_the_policy() {
    for body in ["string.format('%d', 'x')", "table.concat({ {} })", "table.move({}, 1, {}, 2)", "('x'):rep({})"] {
        let fault = ask(&mut place(body)).unwrap_err();
        assert!(fault.message.starts_with("policies/test.lua:1: "), "{body}: {fault}");
    }
}

#[test]
fn a_caught_cap_is_still_told() {
    let body = "pcall(table.move, {}, 1, 2 ^ 30, 2) for i = 1, 9 do end return 'm1'";
    let fault = ask(&mut place(body)).unwrap_err();
    assert_eq!(fault.kind, FaultKind::NativeCap);
    assert!(fault.message.contains("table.move would take"), "{fault}");
    let fault = ask(&mut place("table.move({}, 1, 2 ^ 30, 2)")).unwrap_err();
    assert!(fault.message.starts_with("policies/test.lua:1: table.move would take"), "{fault}");
}

/// Every function that scripts are left with and that takes time in proportion to its input, on the largest input that the
/// memory allows, over and over.
#[test]
fn f47_library_calls_that_are_slow_in_proportion_end_with_the_call() {
    use FaultKind::{CpuTime, Error, Fuel, Memory, NativeCap};
    for body in [
        "table.concat(t, 'x')",
        "table.clone(t)",
        "table.find(t, 2)",
        "table.insert(t, 1, 1) table.remove(t, 1)",
        "table.unpack(t, 1, 7000)",
        "table.clear(table.clone(t))",
        "table.create(100000, 1)",
        "table.sort(table.clone(t))",
        "s:upper() s:lower() s:reverse()",
        "s:rep(2)",
        "s:byte(1, 7000)",
        "s:find('b', 1, true) s:find('b')",
        "s:split('')",
        "s:split('b')",
        "s:gsub('a', 'bb')",
        "s:gmatch('.-b')()",
        "string.format('%s %q', s, s)",
        "utf8.len(s) utf8.offset(s, 900000)",
        "tostring(s) tonumber(s)",
        "string.pack('s', s)",
        "usher.hash(s) usher.rendezvous(s, call.monoliths)",
        "usher.explain(s)",
        "usher.set('k', s)",
        "usher.get('k')",
        "usher.random() usher.now()",
    ] {
        let attack = format!("local t, s = table.create(60000, 1), string.rep('a', 1000000) while true do {body} end");
        check(&attack, &[Fuel, CpuTime, Memory, NativeCap, Error]);
    }
}

#[test]
fn what_is_left_of_the_known_attacks_ends_too() {
    use FaultKind::{CpuTime, Error, Fuel, Memory};
    let nested = format!("{}while true do end{}", "pcall(function() ".repeat(100), " end)".repeat(100));
    for attack in [
        nested.as_str(),
        "local function f() return pcall(f) end while true do f() end",
        "xpcall(error, function() while true do end end)",
        "local t = setmetatable({}, { __call = function(t) return t() end }) t()",
        "local t = setmetatable({}, { __newindex = function(t, k, v) t[k .. 'x'] = v end }) pcall(function() t.a = 1 end) while true do end",
        "local t = setmetatable({}, { __lt = function() while true do end end }) return t < t",
        "local t = setmetatable({}, { __concat = function(a, b) return a .. b end }) return t .. t",
        "local t = setmetatable({}, { __iter = function() return function() return 1 end end }) for _ in t do end",
        "local t = setmetatable({}, { __len = function() while true do end end }) return #t",
        "while true do usher.min_by(call.monoliths, function() while true do end end) end",
        "usher.sort_by(call.monoliths, function() while true do end end)",
        "usher.filter(call.monoliths, function() while true do end end)",
        "usher.spill(call.monoliths, function() while true do end end)",
        "usher.rendezvous('k', call.monoliths, function() while true do end end)",
        "for i = 1, math.huge do usher.counter('n')() end",
    ] {
        check(attack, &[Fuel, Error, Memory, CpuTime]);
    }
}

#[test]
fn nothing_that_a_call_does_to_its_globals_or_finalisers_reaches_the_api() {
    let mut vm = place(
        "if call.region == 'attack' then
            setmetatable({}, { __gc = function() while true do end end })
            string, table, math, usher, error, type, select = nil, nil, nil, nil, nil, nil, nil
            function pairs() while true do end end
            assert(not pcall(function() getmetatable('').__index = {} end))
            _G = {}
            return 'm1'
        end
        return call.monoliths[1]",
    );
    let hostile = Call { region: "attack".into(), ..call(Hook::Place) };
    for _ in 0..3 {
        // The second time its own globals are gone: that is its own fault, and nobody else's.
        let _ = vm.call(&hostile, &view());
        assert_eq!(ask(&mut vm).unwrap(), ids(&["m1"]));
    }
    // A fresh VM of the same process has everything.
    assert_eq!(ask(&mut place("return usher.min_by(call.monoliths, 'rooms')")).unwrap(), ids(&["m3"]));
}

#[test]
fn a_limit_is_hit_at_the_same_line_with_the_same_fuel_in_every_vm() {
    let text = "local p = {}
        local function step(n)
            return if n > 0 then n + usher.random() else 0
        end
        function p.place(call)
            local sum = 0
            for i = 1, 1e9 do
                sum += step(i % 7)
                if i % 3 == 0 then
                    pcall(function() for j = 1, 5 do sum -= j end end)
                end
            end
            return 'm1'
        end
        return p";
    let mut seen = std::collections::BTreeSet::new();
    for fuel in [1_000, 20_000] {
        let limits = Limits { fuel, budget: Duration::from_secs(60), ..Limits::default() };
        let environment = Environment { limits, ..Environment::default() };
        let faults: Vec<_> = (0..4)
            .map(|_| {
                let mut vm = vm_with(text, &environment);
                let fault = ask(&mut vm).unwrap_err();
                assert_eq!(fault.kind, FaultKind::Fuel);
                (fault.message, vm.fuel_used())
            })
            .collect();
        assert!(faults.iter().all(|fault| *fault == faults[0]), "{faults:?}");
        // The same VM after the fault is a fresh one.
        assert_eq!(faults[0].1, fuel + 1);
        seen.insert(faults[0].0.clone());
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn a_source_that_nests_too_deeply_is_refused() {
    for text in [
        format!("return {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("return {}1{}", "{".repeat(100_000), "}".repeat(100_000)),
        format!("return -{}1", " -".repeat(100_000)),
    ] {
        assert!(Program::compile(Source::shipped("test", &text), &environment(4 << 20)).is_err());
    }
}

#[test]
fn a_thousand_monoliths_fit_into_the_fuel() {
    let view = View::of((0..1000).map(|i| row(&format!("m{i:04}"), "ewr", i * 37 % 101)));
    let bodies = [
        "return usher.min_by(call.monoliths, function(m) return m.rooms + m.pending end)",
        "return usher.sort_by(call.monoliths, function(m) return m.rooms end)[1]",
        "return usher.sort_by(call.monoliths, 'rooms')[1]",
        "return usher.spill(usher.in_region(call.monoliths), 50)[1]",
        "return usher.bounded('key', usher.in_region(call.monoliths), 1.5)",
    ];
    for body in bodies {
        let mut vm = place(body);
        assert!(vm.call(&call(Hook::Place), &view).is_ok(), "{body}");
        assert!(vm.fuel_used() < 10_000, "{body}: {}", vm.fuel_used());
    }
}

#[test]
fn guards_let_honest_use_through() {
    let mut vm = place(
        "local t = { 3, 1, 2 }
        table.sort(t) assert(t[1] == 1 and t[3] == 3)
        table.sort(t, function(a, b) return a > b end) assert(t[1] == 3)
        local moved = table.move({ 1, 2 }, 1, 2, 2, { 9 }) assert(#moved == 3 and moved[1] == 9)
        assert(table.move({ 1, 2 }, 1, 2, 2)[3] == 2)
        assert(table.move({ 1, 2 }, '1', '2', '2')[3] == 2 and select('#', table.unpack({ 1, 2, 3 }, 2)) == 2)
        assert(unpack({ 7 }) == 7 and table.concat({ 1, 2, 3 }, '-', 2) == '2-3' and #table.create(3, 1) == 3)
        local list = { 1, 3 } table.insert(list, 2, 2) table.insert(list, 4) assert(table.concat(list) == '1234')
        assert(table.remove(list, 1) == 1 and table.remove(list) == 4 and #list == 2 and table.find(list, 3) == 2)
        assert(('ab'):rep(2, '') == 'abab' and ('ab'):upper() == 'AB' and ('%d'):format(3) == '3')
        assert(('a.b'):find('.', 1, true) == 2 and ('abc'):find('b') == 2 and not ('abc'):find('z'))
        local s, e, c = string.find('key=1', '(%w+)=') assert(s == 1 and e == 4 and c == 'key')
        assert(#('a,b'):split(',') == 2 and #string.split('a,b') == 2 and #string.split('a-b', '-') == 2)
        return 'm1'",
    );
    assert_eq!(ask(&mut vm).unwrap(), ids(&["m1"]));
}

#[test]
fn the_sandbox_has_no_way_out() {
    let mut vm = place(
        "for _, name in { 'require', 'loadstring', 'load', 'dofile', 'loadfile', 'getfenv', 'setfenv', 'newproxy', 'gcinfo',
            'print', 'collectgarbage', 'coroutine', 'os', 'io', 'debug', 'package', 'buffer', 'vector' } do
            assert(_G[name] == nil and rawget(_G, name) == nil, name)
        end
        assert(string.dump == nil)
        for _, attempt in {
            function() string.find = nil end,
            function() usher.min_by = nil end,
            function() usher.settings.x = 1 end,
            function() getmetatable('').__index = nil end,
            function() call.monoliths[1] = nil end,
            function() call.monoliths[1].rooms = 0 end,
            function() rawset(call.monoliths[1], 'rooms', 0) end,
            function() rawset(usher, 'x', 0) end,
            function() setmetatable(call.monoliths, {}) end,
            function() table.insert(call.all_monoliths, 1) end,
            function() table.clear(call.monoliths) end,
            function() table.sort(call.monoliths, function(a, b) return a.id > b.id end) end,
        } do
            assert(not pcall(attempt))
        end
        return call.monoliths[1]",
    );
    assert_eq!(ask(&mut vm).unwrap(), ids(&["m1"]));
}

#[test]
fn errors_name_file_and_line_and_never_an_address() {
    let fault =
        ask(&mut vm("local p = {}\nfunction p.place(call)\n  return call.nothing.id\nend\nreturn p")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Error);
    assert!(fault.message.starts_with("policies/test.lua:3: attempt to index nil"), "{fault}");
    let fault = ask(&mut vm("local p = {}\nfunction p.place(call)\n  while true do end\nend\nreturn p")).unwrap_err();
    assert!(fault.message.starts_with("policies/test.lua:3: more than 20000 safepoints"), "{fault}");
    let fault = ask(&mut place("error({})")).unwrap_err();
    assert!(!fault.message.contains("0x"), "{fault}");
}
