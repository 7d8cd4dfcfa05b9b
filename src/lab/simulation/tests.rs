//! Runs in which one relation must hold.

mod traces;

use super::*;
use crate::config::scenario;
use crate::model::assertion::Metric;
use crate::policy::shipped;

/// Three Monoliths at one balancer, and enough arrivals for some dozens of rooms.
const STEADY: &str = "duration = \"30m\"\nseed = 3\nstay = \"8m\"\n\
    [[monoliths]]\nregion = \"ewr\"\ncount = 3\n\
    [[arrivals]]\nregion = \"ewr\"\nper_hour = 1500\n\
    [rooms]\nsize = 6\nlife = \"10m\"\n";

fn simulation(text: &str) -> Simulation {
    let scenario = scenario::parse("test.toml", text).unwrap_or_else(|errors| panic!("{errors}"));
    Simulation::of_scenario("test", scenario, None)
}

fn run_source(simulation: &Simulation, source: &Source) -> Simulated {
    simulation.run(source, &mut |_| {}).unwrap()
}

fn run(text: &str, policy: &str) -> Simulated {
    run_source(&simulation(text), &shipped::resolve(policy).unwrap())
}

fn run_script(text: &str, script: &str) -> Simulated {
    run_source(&simulation(text), &Source::shipped("script", script))
}

impl Simulated {
    fn figure(&self, metric: Metric) -> f64 {
        *self.side.figures.get(&metric).unwrap_or_else(|| panic!("no {metric}"))
    }

    fn more(&self, name: &str) -> f64 {
        self.side.more.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    /// The most rooms that a Monolith had at any of the plotted moments.
    fn most_rooms(&self, monolith: &str) -> f64 {
        let load = self.side.load.as_ref().unwrap();
        let series = load.monoliths.iter().find(|series| series.id == monolith).unwrap();
        series.values.iter().flatten().copied().fold(0.0, f64::max)
    }
}

const PILE: &str = "return { place = function(call) return call.monoliths[1] end }";

#[test]
fn a_seed_gives_the_same_run_to_the_byte_and_another_one_another() {
    let text = format!("{STEADY}[[failures]]\nat = \"10m\"\nkind = \"crash\"\nmonolith = \"ewr-2\"\n");
    let document = |seed: u64| {
        let scenario = scenario::parse("test.toml", &text).unwrap();
        let simulation = Simulation::of_scenario("test", scenario, Some(seed));
        let simulated = ["random", "hash-ring"].map(|name| run_source(&simulation, &shipped::resolve(name).unwrap()));
        let demands = ["faults == 0".parse().unwrap()];
        serde_json::to_string(&simulation.page(&simulated, &demands)).unwrap()
    };
    let first = document(1);
    assert_eq!(first, document(1));
    assert_ne!(first, document(2));
}

#[test]
fn every_visit_is_served_and_one_balancer_never_splits_a_room() {
    for policy in ["default", "random", "hash-ring", "least-loaded"] {
        let found = run(STEADY, policy);
        assert!(found.more("visits") > 500.0, "{policy}");
        assert_eq!(found.more("joins"), found.more("visits"), "{policy}: {:?}", found.side);
        for metric in [Metric::SplitRoomS, Metric::Duplicates, Metric::Faults, Metric::Rejected, Metric::Held] {
            assert_eq!(found.figure(metric), 0.0, "{policy}: {metric}");
        }
        assert_eq!(found.figure(Metric::OwnRegionShare), 1.0, "{policy}");
    }
}

#[test]
fn rooms_in_one_heap_are_as_uneven_as_can_be() {
    let heap = run_script(STEADY, PILE);
    // All on one of three: three times the mean, and a deviation of the square root of two.
    assert!((heap.figure(Metric::MaxLoadOverMean) - 3.0).abs() < 1e-6, "{:?}", heap.side.figures);
    assert!((heap.figure(Metric::LoadCv) - 2f64.sqrt()).abs() < 1e-5, "{:?}", heap.side.figures);
    assert!(heap.most_rooms("ewr-1") > 5.0 && heap.most_rooms("ewr-2") == 0.0);
    let even = run(STEADY, "least-loaded");
    assert!(even.figure(Metric::MaxLoadOverMean) < 1.3, "{:?}", even.side.figures);
    let random = run(STEADY, "random").figure(Metric::MaxLoadOverMean);
    assert!(random > even.figure(Metric::MaxLoadOverMean) && random < 3.0, "{random}");
}

#[test]
fn a_policy_that_knows_the_members_region_serves_more_of_them_there() {
    // One balancer for two regions: its own region says little about its members.
    let text = "duration = \"30m\"\n[[balancers]]\nregion = \"ewr\"\n\
        [[monoliths]]\nregion = \"ewr\"\ncount = 2\n[[monoliths]]\nregion = \"cdg\"\ncount = 2\n\
        [[arrivals]]\nregion = \"ewr\"\nper_hour = 600\n[[arrivals]]\nregion = \"cdg\"\nper_hour = 600\n\
        [rooms]\nmixing = 0.0\n";
    let (near, plain) = (run(text, "region-affinity"), run(text, "default"));
    assert_eq!(near.figure(Metric::OwnRegionShare), 1.0);
    let share = plain.figure(Metric::OwnRegionShare);
    assert!(share > 0.3 && share < 0.7, "{share}");
    assert_eq!((near.more("latency_mean_ms"), near.more("latency_p99_ms")), (0.0, 0.0));
    assert!(plain.more("latency_mean_ms") > 25.0 && plain.more("latency_p99_ms") > 70.0, "{:?}", plain.side.more);
}

#[test]
fn after_a_crash_members_come_back_and_are_served_elsewhere() {
    let text = format!("{STEADY}[[failures]]\nat = \"15m\"\nkind = \"crash\"\nmonolith = \"ewr-1\"\nlasts = \"5m\"\n");
    let (calm, crash) = (run(STEADY, "default"), run(&text, "default"));
    assert_eq!((calm.more("interrupted"), crash.more("gave_up")), (0.0, 0.0));
    let interrupted = crash.more("interrupted");
    assert!(interrupted > 20.0, "{interrupted}");
    // Whoever lost the room is served again, save for those whose visit ended meanwhile.
    let again = crash.more("joins") - crash.more("visits");
    assert!(again <= interrupted && again > 0.9 * interrupted, "{again} of {interrupted}");
    let series = crash.side.load.as_ref().unwrap();
    let away = series.monoliths[0].values.iter().filter(|value| value.is_none()).count();
    assert_eq!((series.monoliths[0].id.as_str(), away), ("ewr-1", 40), "5 of 30 minutes in 240 moments");
    assert!(crash.more("wait_p99_ms") > 500.0 && calm.more("wait_p99_ms") < 300.0, "{:?}", crash.side.more);
}

#[test]
fn a_deploy_takes_every_monolith_in_turn() {
    let text = format!("{STEADY}[[deploys]]\nat = \"5m\"\ndown = \"30s\"\npause = \"2m\"\ndrain = \"30s\"\n");
    let found = run(&text, "default");
    assert!(found.more("interrupted") > 60.0, "{:?}", found.side.more);
    for series in &found.side.load.as_ref().unwrap().monoliths {
        let away = series.values.iter().filter(|value| value.is_none()).count();
        assert_eq!(away, 4, "{}: 30 of 1800 seconds in 240 moments", series.id);
    }
    assert_eq!((found.figure(Metric::SplitRoomS), found.figure(Metric::Rejected)), (0.0, 0.0));
}

/// Two balancers an ocean apart, whose members go to the same few rooms, which are loaded again and again.
fn crowded(policy: &str) -> Simulated {
    let text = "duration = \"15m\"\nstay = \"2s\"\n[[balancers]]\nregion = \"ewr\"\n[[balancers]]\nregion = \"cdg\"\n\
        [[monoliths]]\nregion = \"ewr\"\ncount = 2\nload = \"50ms\"\n\
        [[monoliths]]\nregion = \"cdg\"\ncount = 2\nload = \"50ms\"\n\
        [[arrivals]]\nregion = \"ewr\"\nper_hour = 10000\n[[arrivals]]\nregion = \"cdg\"\nper_hour = 10000\n\
        [rooms]\nlasting = 40\nlasting_share = 1.0\npopularity = 0.0\n[behaviour]\nkeep_alive = \"0s\"\nrestart = \"1m\"\n\
        [policy.settings]\nfactor = 0\n";
    run(text, policy)
}

#[test]
fn balancers_that_do_not_talk_agree_on_a_hash_and_not_on_chance() {
    let chance = crowded("random");
    let duplicates = chance.figure(Metric::Duplicates);
    assert!(duplicates > 0.0, "{:?}", chance.side.figures);
    // Each is put right as soon as the balancers hear of both copies.
    let split = chance.figure(Metric::SplitRoomS);
    assert!(split > 0.0 && split < 0.3 * duplicates, "{split} s for {duplicates}");
    // Without its bound the ring depends on nothing but names.
    let hash = crowded("hash-ring");
    assert_eq!((hash.figure(Metric::Duplicates), hash.figure(Metric::SplitRoomS)), (0.0, 0.0), "{:?}", hash.side);
    assert!(hash.more("joins") > 4000.0);
}

#[test]
fn full_monoliths_turn_joins_away_and_admit_refuses_or_holds() {
    let full = run(&STEADY.replace("count = 3", "count = 3\nclients = 20"), "default");
    assert!(full.figure(Metric::Rejected) > 50.0 && full.more("joins") > 100.0, "{:?}", full.side);
    let nobody = run_script(STEADY, "return { admit = function() return usher.reject(4100, 'closed') end }");
    assert_eq!((nobody.figure(Metric::Rejected), nobody.more("joins")), (nobody.more("visits"), 0.0));
    assert_eq!(nobody.more("gave_up"), nobody.more("visits"));
    let later = run_script(
        STEADY,
        "return { admit = function(call) if call.client.attempt < 3 then return usher.hold('500ms') end end }",
    );
    assert!(later.figure(Metric::Held) > 500.0 && later.figure(Metric::Rejected) == 0.0, "{:?}", later.side);
    assert!(later.more("wait_p50_ms") > 900.0, "{:?}", later.side.more);
    let never = run_script(STEADY, "return { admit = function() return usher.hold('3s') end }");
    assert!(never.figure(Metric::Rejected) > 500.0 && never.more("joins") == 0.0, "{:?}", never.side);
}

#[test]
fn faults_are_counted_and_the_first_is_named() {
    let found = run_script(STEADY, "return { place = function(call)\n  error('oh no')\nend }");
    assert_eq!(found.figure(Metric::Faults), found.more("placements"));
    assert!(found.fault.as_ref().is_some_and(|fault| fault.contains("script.lua:2: oh no")), "{:?}", found.fault);
    assert_eq!(found.more("joins"), found.more("visits"), "the built-in default decides");
    // The breaker keeps most of these from the script; each of them is a fault all the same.
    let endless = run_script(STEADY, "return { place = function() while true do end end }");
    assert_eq!(endless.figure(Metric::Faults), endless.more("placements"));
}

#[test]
fn rebalance_moves_rooms_and_their_members_come_back() {
    let text = format!("{STEADY}[policy]\nrebalance_every = \"30s\"\n");
    let script = "return { place = function(call) return call.monoliths[1] end,\n\
        rebalance = function(call)\n  local first, moves = call.monoliths[1], {}\n\
        for _, room in call.rooms do\n    if room.owner == first.id and #moves < 2 then\n\
        moves[#moves + 1] = usher.move(room, call.monoliths[2]) end\n  end\n  return moves\nend }";
    let found = run_script(&text, script);
    assert!(found.figure(Metric::Moves) > 20.0, "{:?} {:?}", found.side, found.fault);
    assert!(found.most_rooms("ewr-2") > 3.0);
    assert_eq!((found.figure(Metric::SplitRoomS), found.figure(Metric::Duplicates)), (0.0, 0.0));
    assert!(found.more("interrupted") >= found.figure(Metric::Moves));
}

#[test]
fn slow_loads_time_out_and_go_elsewhere() {
    let text = format!(
        "{STEADY}[[failures]]\nat = \"5m\"\nkind = \"slow\"\nmonolith = \"ewr-1\"\nfactor = 100\nlasts = \"10m\"\n"
    );
    let found = run(&text, "default");
    assert!(found.more("load_timeouts") > 0.0, "{:?}", found.side.more);
    assert_eq!((found.figure(Metric::SplitRoomS), found.figure(Metric::Rejected)), (0.0, 0.0));
}

#[test]
fn load_is_as_old_as_it_was_read_and_stale_monoliths_say_nothing() {
    let script = "return { place = function(call)\n\
        for _, m in call.monoliths do\n    if m.load and m.load.rooms then usher.counter('read')() end\n  end\nend,\n\
        admit = function(call) for _, m in call.monoliths do if m.load and m.load.rooms then return usher.reject(4100, 'seen') end end end }";
    let with = run_script(&format!("{STEADY}[behaviour]\nload = \"5m\"\n"), script);
    let without = run_script(STEADY, script);
    assert_eq!(without.figure(Metric::Rejected), 0.0);
    assert!(with.more("joins") > 50.0 && with.figure(Metric::Rejected) > 300.0, "{:?} {:?}", with.side, with.fault);
    let stale =
        format!("{STEADY}[behaviour]\nload = \"5m\"\n[[failures]]\nat = \"0s\"\nkind = \"stale\"\nlasts = \"1h\"\n");
    assert_eq!(run_script(&stale, script).figure(Metric::Rejected), 0.0);
}

#[test]
fn the_warm_up_does_not_count() {
    let found = run(&format!("warm_up = \"20m\"\n{STEADY}"), "default");
    let whole = run(STEADY, "default");
    let (part, all) = (found.more("visits"), whole.more("visits"));
    assert!(part > 0.2 * all && part < 0.45 * all, "{part} of {all}");
    assert!(found.more("placements") < 0.5 * whole.more("placements"));
}

#[test]
fn the_time_of_decisions_is_a_figure_only_for_those_who_ask() {
    let found = run(STEADY, "default");
    assert!(!found.side(&[]).figures.contains_key(&Metric::NsP99));
    let asked = found.side(&["ns_p99 > 0".parse().unwrap(), "moves > 0".parse().unwrap()]);
    assert_eq!(asked.assertions.iter().map(|checked| checked.ok).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn the_example_can_be_simulated_and_shows_every_key() {
    let text = include_str!("../../../examples/scenario.toml");
    scenario::parse("examples/scenario.toml", text).unwrap_or_else(|errors| panic!("{errors}"));
    let missing: Vec<String> = scenario::known_keys(text)
        .into_iter()
        .filter(|key| {
            let name = key.rsplit('.').next().unwrap();
            !key.starts_with("limits.")
                && !key.starts_with("timeouts.")
                && !key.starts_with("regions.")
                && !text.contains(name)
        })
        .collect();
    assert!(missing.is_empty(), "not in examples/scenario.toml: {missing:?}");
}

#[test]
fn what_overlaps_ends_with_the_last_that_began_it() {
    let text = format!(
        "{STEADY}[[failures]]\nat = \"10m\"\nkind = \"crash\"\nmonolith = \"ewr-1\"\nlasts = \"5m\"\n\
        [[deploys]]\nat = \"11m\"\ndown = \"10s\"\nmonolith = \"ewr-1\"\n\
        [[failures]]\nat = \"0s\"\nkind = \"slow\"\nmonolith = \"ewr-2\"\nfactor = 30\nlasts = \"30m\"\n\
        [[failures]]\nat = \"1s\"\nkind = \"slow\"\nmonolith = \"ewr-2\"\nfactor = 2\nlasts = \"1s\"\n"
    );
    let found = run(&text, "default");
    let series = found.side.load.as_ref().unwrap();
    let away = series.monoliths[0].values.iter().filter(|value| value.is_none()).count();
    assert_eq!((series.monoliths[0].id.as_str(), away), ("ewr-1", 40), "5 of 30 minutes in 240 moments");
    assert!(found.more("wait_p99_ms") > 1500.0, "slow to the end: {:?}", found.side.more);
}

#[test]
fn balancers_that_see_one_duplicate_take_turns_at_asking_for_it() {
    let found = crowded("random");
    let figure = |metric| found.figure(metric);
    assert!(figure(Metric::Duplicates) > 0.0, "{:?}", found.side.figures);
    // A second request would find the room gone, and end its Monolith.
    let demand: Assertion = "crossed_unloads == 0".parse().unwrap();
    assert!(found.side(&[demand]).assertions[0].ok, "{:?}", found.side.figures);
    let series = &found.side.load.as_ref().unwrap().monoliths;
    assert!(!series.iter().any(|one| one.values.iter().any(Option::is_none)), "a Monolith was away");
}
