//! Reading other people's metrics: the page of a real Monolith, every oddity of the format, and noise.

use proptest::prelude::*;

use super::*;

const PAGE: &str = include_str!("../../tests/fixtures/monolith-metrics.txt");

fn wanted(selectors: &[(&str, &str)]) -> BTreeMap<String, Selector> {
    selectors.iter().map(|(key, text)| ((*key).to_owned(), Selector::parse(text).unwrap())).collect()
}

#[track_caller]
fn check(page: &str, selector: &str, expected: Option<f64>) {
    assert_eq!(pick(page, &wanted(&[("x", selector)])).get("x").copied(), expected, "{selector}");
}

#[test]
fn the_page_of_a_real_monolith_is_read() {
    check(PAGE, "nodejs_eventloop_lag_seconds", Some(0.009_433_929));
    check(PAGE, "process_resident_memory_bytes", Some(130_191_360.0));
    check(PAGE, "ott_users_in_rooms", Some(103.0));
    check(PAGE, "ott_room_count", Some(20.0));
    check(PAGE, r#"ott_room_count{visibility="unlisted"}"#, Some(20.0));
    check(PAGE, r#"ott_room_count{roomType="permanent"}"#, Some(0.0));
    check(PAGE, r#"nodejs_active_resources{type="Timeout"}"#, Some(15.0));
    check(PAGE, "nodejs_active_resources", Some(23.0));
    check(PAGE, r#"nodejs_gc_duration_seconds_bucket{kind="minor",le="+Inf"}"#, Some(244.0));
    check(PAGE, "nodejs_eventloop", None);
    let lines = PAGE.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    for line in lines {
        assert!(sample(line).is_some(), "{line}");
    }
}

type Read<'a> = Option<(String, Labels<'a>, f64)>;

fn read(line: &str) -> Read<'_> {
    sample(line).map(|sample| (sample.name.to_owned(), sample.labels, sample.value))
}

#[test]
fn every_oddity_of_a_line_is_understood() {
    let owned = |name: &str, labels: &[(&'static str, &str)], value: f64| {
        let labels = labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect();
        Some((name.to_owned(), labels, value))
    };
    assert_eq!(read("a 1"), owned("a", &[], 1.0));
    assert_eq!(read("  a:b_c9 \t -1.5e3 1395066363000"), owned("a:b_c9", &[], -1500.0));
    assert_eq!(read("a{} +2\r"), owned("a", &[], 2.0));
    assert_eq!(read(r#"a { x = "1" , y="2", } 3 # {id="7"} 0.5"#), owned("a", &[("x", "1"), ("y", "2")], 3.0));
    assert_eq!(read(r#"a{x="C:\\DIR\n\"q\" } , é"} 4"#), owned("a", &[("x", "C:\\DIR\n\"q\" } , é")], 4.0));
    assert_eq!(read("a +Inf").unwrap().2, f64::INFINITY);
    assert_eq!(read("a -Inf 5").unwrap().2, f64::NEG_INFINITY);
    assert!(read("a NaN").unwrap().2.is_nan());
    for bad in [
        "",
        "# HELP a An a.",
        "# EOF",
        "a",
        "a one",
        "a 1 2 3",
        "a 1 x",
        "9a 1",
        "a{x=1} 1",
        "a{x=\"1} 1",
        "a{x=\"1\\\"} 1",
        "a{x=\"1\" y=\"2\"} 1",
        "a{x} 1",
        "a{=\"1\"} 1",
        "a{x=\"1\" 1",
        "a infinity",
        "a 0x1p-2",
        "{a=\"b\"} 1",
        "é 1",
    ] {
        assert_eq!(read(bad), None, "{bad:?}");
    }
}

#[test]
fn series_that_match_are_added_up_and_what_is_not_finite_is_left_out() {
    let page = "a{k=\"x\",i=\"1\"} 1\na{k=\"x\",i=\"2\"} 2\na{k=\"y\"} NaN\na{k=\"z\"} +Inf\nb 1e308\nb{k=\"x\"} 1e308\n\
                a{k=\"x\"} nonsense\n";
    check(page, "a", Some(3.0));
    check(page, r#"a{k="x"}"#, Some(3.0));
    check(page, r#"a{k="x",i="2"}"#, Some(2.0));
    check(page, r#"a{k="y"}"#, None);
    check(page, r#"a{k="z"}"#, None);
    check(page, r#"a{k="w"}"#, None);
    check(page, "b", None);
    let both = pick(page, &wanted(&[("one", "a"), ("two", "a")]));
    assert_eq!(both.values().copied().collect::<Vec<_>>(), [3.0, 3.0]);
}

#[test]
fn selectors_are_read_and_written_alike() {
    for text in ["a", "a:b", r#"a{x="1"}"#, r#"a{x="1",y="\\ \" \n"}"#] {
        assert_eq!(Selector::parse(text).unwrap().to_string(), text);
    }
    assert_eq!(Selector::parse(" a { x = \"1\" , } ").unwrap().to_string(), r#"a{x="1"}"#);
    for bad in ["", "1a", "a b", "a{", "a{x}", "a{x=1}", "a{x=\"1\"}}", "a{x=\"1\"} 5", "a-b"] {
        assert_eq!(Selector::parse(bad), Err(InvalidSelector), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn whatever_was_written_is_read_back(value in "\\PC{0,12}|[\\\\\"\n{},= ]{0,8}", number in -1e9..1e9f64, stamp: Option<i32>) {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let stamp = stamp.map_or(String::new(), |stamp| format!(" {stamp}"));
        let line = format!("m{{a=\"{escaped}\",b=\"\"}} {number}{stamp}");
        let read = sample(&line).unwrap();
        prop_assert_eq!(&read.labels, &vec![("a", value), ("b", String::new())]);
        prop_assert_eq!(read.value.to_bits(), number.to_bits());
    }

    #[test]
    fn noise_is_no_sample_and_hides_no_other_line(noise in "[a{}\"\\\\=,# 1.eN+\\-é]{0,40}") {
        // Whatever it is, it must not panic; and a line after it counts as before.
        let _ = sample(&noise);
        let page = format!("# {noise}\nzz_{noise}\nwanted 7\n");
        let found = pick(&page, &wanted(&[("x", "wanted")]));
        prop_assert_eq!(found.get("x").copied(), Some(7.0));
    }

    #[test]
    fn a_cut_page_never_panics(cut in 0..PAGE.len()) {
        let page = PAGE.get(..cut).unwrap_or_default();
        let found = pick(page, &wanted(&[("lag", "nodejs_eventloop_lag_seconds"), ("rooms", "ott_room_count")]));
        prop_assert!(found.values().all(|value| value.is_finite()));
    }
}
