//! What is in the document; how it looks is a matter of `tests/report.rs`.

use super::*;
use crate::lab::page::{Flow, LoadOverTime, MonolithLoad, Row, Side};
use crate::model::assertion::{Assertion, Figures, Metric};

const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\u{2028}{{data}}'\"&\u{1b}";

fn load(monoliths: usize, moments: usize) -> LoadOverTime {
    let one = |which: usize| MonolithLoad {
        id: format!("m{which}"),
        region: "ams".into(),
        values: (0..moments).map(|moment| Some(((moment * 7 + which * 13) % 97) as f64 + 1.0 / 3.0)).collect(),
    };
    LoadOverTime {
        unit: "rooms".into(),
        at_s: (0..moments).map(|moment| moment as f64 * 10.0).collect(),
        monoliths: (0..monoliths).map(one).collect(),
    }
}

fn side(policy: &str, load: LoadOverTime) -> Side {
    let figures = Figures::from([(Metric::MaxLoadOverMean, 1.5), (Metric::OwnRegionShare, 0.9)]);
    Side { policy: policy.into(), version: "abcdef".into(), figures, load: Some(load), ..Side::default() }
}

/// Where the lines are drawn.
fn drawn(html: &str, id: &str) -> String {
    let start = html.split_once(&format!("<path id=\"{id}\" vector-effect=\"non-scaling-stroke\" d=\"")).unwrap().1;
    start.split_once('"').unwrap().0.to_owned()
}

#[test]
fn names_are_text_wherever_they_stand() {
    let page = Page {
        title: HOSTILE.into(),
        facts: vec![(HOSTILE.into(), HOSTILE.into())],
        sides: [HOSTILE, "other"]
            .map(|name| {
                let mut load = load(2, 3);
                load.unit = HOSTILE.into();
                load.monoliths[0].id = HOSTILE.into();
                load.monoliths[0].region = HOSTILE.into();
                let mut side = side(name, load);
                side.version = HOSTILE.into();
                side.more = vec![(HOSTILE.into(), 1.0)];
                side
            })
            .to_vec(),
        flows: vec![Flow { hook: HOSTILE.into(), from: HOSTILE.into(), to: "m2".into(), count: 3 }],
        rows: vec![Row {
            hook: HOSTILE.into(),
            room: HOSTILE.into(),
            region: HOSTILE.into(),
            from: HOSTILE.into(),
            to: HOSTILE.into(),
            why: HOSTILE.into(),
            ..Row::default()
        }],
        rows_of: 1,
    };
    let html = render(&page);
    assert!(!html.contains("<img") && !html.contains("\u{1b}"));
    assert_eq!(html.matches("</script>").count(), 2, "the two of the template");
    assert_eq!(html.matches("<script").count(), 2);
    let data = html.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    assert!(!data.contains(['<', '>', '&', '\u{2028}']));
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["sides"][0]["policy"], HOSTILE, "escaped, and the same when it is read");
    assert!(html.contains("{{data}}"), "what is filled in is not filled again");
}

#[test]
fn nothing_on_the_page_comes_from_elsewhere() {
    let html = render(&Page { sides: vec![side("p", load(3, 5))], ..Page::default() });
    for needle in ["http://", "https://", "url(", "@import", "fetch(", "XMLHttpRequest", "innerHTML", "eval("] {
        assert!(!html.contains(needle), "{needle}");
    }
    assert!(html.contains("default-src 'none'"));
    // The known digest of a text proves the encoding, the rest is the hash's own affair.
    assert_eq!(base64(&Sha256::digest(b"")), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    assert_eq!([base64(b"M"), base64(b"Ma"), base64(b"Man")], ["TQ==", "TWE=", "TWFu"]);
}

#[test]
fn an_empty_report_says_so() {
    let html = render(&Page::default());
    assert!(html.contains("There is nothing to show") && !html.contains("class=\"plot"));
    assert!(html.contains("<title>Report</title>"));
    let without = Side { policy: "p".into(), load: Some(LoadOverTime::default()), ..Side::default() };
    assert!(!render(&Page { sides: vec![without], ..Page::default() }).contains("class=\"plot"));
    assert!(html.len() < 60_000, "{} bytes without data", html.len());
}

#[test]
fn a_moment_without_a_value_is_a_gap() {
    let mut load = load(1, 6);
    load.monoliths[0].values = vec![Some(10.0), Some(0.0), None, Some(5.0), None, Some(f64::NAN)];
    let html = render(&Page { sides: vec![side("p", load)], ..Page::default() });
    assert_eq!(drawn(&html, "l0-0"), "M0 0l200 1000M600 500h0");
    assert!(html.contains("[10,0,null,5,null,null]"));
}

#[test]
fn one_moment_and_no_load_at_all_can_be_drawn() {
    let mut load = load(1, 1);
    load.monoliths[0].values = vec![Some(0.0)];
    let html = render(&Page { sides: vec![side("p", load)], ..Page::default() });
    assert_eq!(drawn(&html, "l0-0"), "M0 1000h0");
    assert!(!html.contains("NaN") && !html.contains("inf%"));
}

#[test]
fn one_policy_has_nothing_to_be_compared_with() {
    let mut one = side("only", load(4, 20));
    one.assertions = vec!["max_load_over_mean < 1.3".parse::<Assertion>().unwrap().check(&one.figures)];
    let rows = vec![Row { room: "r".into(), from: "m1".into(), to: "m1".into(), ..Row::default() }];
    let html = render(&Page { sides: vec![one], rows, rows_of: 9, ..Page::default() });
    assert!(!html.contains("class=\"delta") && !html.contains("id=\"changes\"") && !html.contains("id=\"changed\""));
    assert!(html.contains("The demand is not met") && html.contains("1 of 9, those worth reading first"));
    assert!(html.contains("<code>max_load_over_mean &lt; 1.3</code><b>1.5</b>"));
}

#[test]
fn a_hundred_monoliths_stay_small() {
    let sides = vec![side("a", load(100, 300)), side("b", load(100, 300))];
    let html = render(&Page { sides, ..Page::default() });
    assert_eq!(html.matches("<path id=\"l").count(), 200);
    assert!(html.len() < 1_200_000, "{} bytes", html.len());
}

#[test]
fn a_map_of_many_changes_keeps_the_frequent_ones() {
    let flow = |from: usize, to: usize| Flow {
        hook: "place".into(),
        from: format!("m{from}"),
        to: format!("m{to}"),
        count: (from + 1) as u64,
    };
    let flows: Vec<Flow> = (0..40).flat_map(|from| (0..40).map(move |to| flow(from, to))).collect();
    let all: u64 = flows.iter().filter(|flow| flow.from != flow.to).map(|flow| flow.count).sum();
    let sides = vec![Side::default(), Side::default()];
    let html = render(&Page { sides, flows, ..Page::default() });
    assert_eq!(html.matches("title=\"others\"").count(), 2, "a row and a column");
    assert!(html.contains("<th scope=\"row\" title=\"m39\">") && !html.contains("<th scope=\"row\" title=\"m3\">"));
    let matrix = html.split_once("<tbody>").unwrap().1.split_once("</tbody>").unwrap().0;
    let counts = matrix.split("</td>").filter_map(|cell| cell.rsplit_once('>')?.1.replace(',', "").parse::<u64>().ok());
    assert_eq!(counts.sum::<u64>(), all, "no change is lost");
    assert!(html.contains("other ways"));
}
