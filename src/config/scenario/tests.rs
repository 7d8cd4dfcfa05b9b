//! Scenarios that are right, and what is said of those that are not.

use super::*;

/// The least that a scenario needs.
const LEAST: &str = "[[monoliths]]\nregion = \"ewr\"\n[[arrivals]]\nregion = \"ewr\"\nper_hour = 10\n";

fn errors(text: &str) -> String {
    parse("s.toml", text).unwrap_err().to_string()
}

#[test]
fn the_least_scenario_has_one_balancer_where_the_first_monolith_is() {
    let scenario = parse("s.toml", LEAST).unwrap();
    assert_eq!(scenario.balancers, [Region::from("ewr")]);
    assert_eq!((scenario.monoliths.len(), scenario.monoliths[0].name.as_str()), (1, "ewr-1"));
    assert_eq!(scenario.arrivals[0].per_hour, [10.0; 24]);
    assert_eq!((scenario.duration, scenario.seed), (Duration::from_secs(3600), 1));
}

#[test]
fn amounts_are_bare_or_drawn() {
    let stay = |stay: &str| parse("s.toml", &format!("stay = {stay}\n{LEAST}")).unwrap().stay;
    assert_eq!(stay("\"90s\""), Amount::Fixed(90.0));
    assert_eq!(
        stay("{ distribution = \"uniform\", min = \"1m\", max = \"2m\" }"),
        Amount::Uniform { min: 60.0, max: 120.0 }
    );
    assert_eq!(
        stay("{ distribution = \"lognormal\", median = \"1m\", sigma = 0.5, max = \"1h\" }"),
        Amount::Lognormal { median: 60.0, sigma: 0.5, max: 3600.0 }
    );
    assert_eq!(
        stay("{ distribution = \"exponential\", mean = \"1m\", max = \"5m\" }"),
        Amount::Exponential { mean: 60.0, max: 300.0 }
    );
}

#[test]
fn mistakes_come_all_at_once_with_line_and_way_out() {
    let text = "duraton = \"1h\"\nseed = -1\nstay = 5\n[[monoliths]]\nregion = \"ewr\"\ncont = 3\n\
                [[arrivals]]\nregion = \"ewr\"\nper_hour = [1, 2]\n\
                [[failures]]\nat = \"2h\"\nkind = \"fire\"\nmonolith = \"ewr-9\"\n\
                [rooms]\nsize = { distribution = \"pareto\" }\nmixing = 2\n";
    let found = errors(text);
    for says in [
        "s.toml:1: duraton: unknown key; did you mean duration?",
        "s.toml:2: seed: -1 is out of range",
        "s.toml:3: stay: expected a duration, found 5 without a unit",
        "s.toml:6: monoliths[0].cont: unknown key; did you mean count?",
        "s.toml:9: arrivals[0].per_hour: has 2 numbers; write 24",
        "s.toml:11: failures[0].at: is not before the end, 1h",
        "s.toml:12: failures[0].kind: \"fire\" is none; write \"crash\"",
        "s.toml:13: failures[0].monolith: no Monolith matches; there are ewr-1",
        "s.toml:15: rooms.size.distribution: \"pareto\" is none; write \"fixed\"",
        "s.toml:16: rooms.mixing: 2 is out of range",
    ] {
        assert!(found.contains(says), "{says}\nis not in\n{found}");
    }
}

#[test]
fn what_no_scenario_can_do_without_is_asked_for() {
    let found = errors("");
    assert!(found.contains("s.toml: monoliths: there are none; write at least one [[monoliths]]"), "{found}");
    assert!(found.contains("s.toml: arrivals: nobody arrives"), "{found}");
    let twice = errors(&format!("{LEAST}[[monoliths]]\nregion = \"ewr\"\n"));
    assert!(twice.contains("another group is called \"ewr\" already"), "{twice}");
    let missing = errors("[[monoliths]]\n[[arrivals]]\nregion = \"ewr\"\nper_hour = 0\n[rooms]\nlasting_share = 0.5\n");
    for says in ["monoliths[0].region: missing", "nobody arrives at any hour", "write rooms.lasting"] {
        assert!(missing.contains(says), "{missing}");
    }
}
