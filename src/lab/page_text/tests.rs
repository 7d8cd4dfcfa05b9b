//! The text is compared whole: what is aligned with what is the point of it.

use super::*;
use crate::lab::page::{Flow, MonolithLoad, Row, Side};
use crate::model::assertion::{Assertion, Figures, Metric};

fn load(values: &[(&str, &[Option<f64>])]) -> LoadOverTime {
    let moments = values.first().map_or(0, |(_, values)| values.len());
    let one = |(id, values): &(&str, &[Option<f64>])| MonolithLoad {
        id: (*id).into(),
        region: "ams".into(),
        values: values.to_vec(),
    };
    LoadOverTime {
        unit: "rooms".into(),
        at_s: (0..moments).map(|moment| moment as f64 * 60.0).collect(),
        monoliths: values.iter().map(one).collect(),
    }
}

fn page() -> Page {
    let recorded = Figures::from([(Metric::MaxLoadOverMean, 1.5), (Metric::OwnRegionShare, 0.9)]);
    let other = Figures::from([(Metric::MaxLoadOverMean, 1.2), (Metric::OwnRegionShare, 0.85), (Metric::Faults, 0.0)]);
    let check = |text: &str| text.parse::<Assertion>().unwrap().check(&other);
    let assertions = vec![check("max_load_over_mean < 1.3"), check("own_region_share > 0.95"), check("held == 0")];
    let steps: Vec<Option<f64>> = (0..8).map(|step| Some(f64::from(step))).collect();
    let away: Vec<Option<f64>> = (0..8).map(|step| (!(3..=5).contains(&step)).then_some(7.0)).collect();
    Page {
        title: "replay of busy.jsonl.zst".into(),
        facts: vec![("trace".into(), "8 min".into()), ("decisions".into(), "1,000".into())],
        sides: vec![
            Side {
                policy: "recorded".into(),
                version: "0123456789abcdef".into(),
                figures: recorded,
                load: Some(load(&[("m10", &away), ("m2", &steps)])),
                ..Side::default()
            },
            Side {
                policy: "spread.lua".into(),
                version: "fedcba9876543210".into(),
                figures: other,
                more: vec![("vm restarts".into(), 3.0)],
                assertions,
                load: None,
            },
        ],
        flows: vec![
            Flow { hook: "admit".into(), from: "admit".into(), to: "reject 503".into(), count: 2 },
            Flow { hook: "place".into(), from: "m2".into(), to: "m10".into(), count: 1200 },
        ],
        rows: vec![Row {
            decision: 42,
            at_s: 12.5,
            hook: "place".into(),
            room: "evil\u{1b}[2J\u{202e}".into(),
            region: "ams".into(),
            from: "m2".into(),
            to: "m10".into(),
            why: "least rooms".into(),
        }],
        rows_of: 1000,
    }
}

#[test]
fn the_report_as_it_is_printed() {
    let expected = "\
replay of busy.jsonl.zst
  trace      8 min
  decisions  1,000

                          recorded    spread.lua
                      0123456789ab  fedcba987654
  max_load_over_mean           1.5           1.2  −20 %
  own_region_share            90 %          85 %  −5 pp
  faults                         –             0
  vm restarts                    –             3

demands: 2 of 3 not met
  ✓  spread.lua  max_load_over_mean < 1.3             1.2
  ✗  spread.lua  own_region_share > 0.95             0.85
  ✗  spread.lua  held == 0                 no such figure

rooms over 7 min: recorded
            min  mean  max
  m2   ams    0   3.5    7  ▁▂▃▄▅▆▇█
  m10  ams    7     7    7  ███   ██

changed decisions: 1,202
  place  m2     → m10         1,200  ████████████████████
  admit  admit  → reject 503      2  █

decisions: 1 of 1,000
  #42  12.5 s  place  evil\\u{1b}[2J\\u{202e}  ams  m2 → m10  least rooms
";
    let text = render(&page(), Terminal::default());
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn colours_change_nothing_but_the_colour() {
    let plain = render(&page(), Terminal::default());
    let coloured = render(&page(), Terminal { colours: true, ..Terminal::default() });
    assert!(!plain.contains('\x1b') && coloured.contains("\x1b[32m✓\x1b[0m") && coloured.contains("\x1b[31m✗\x1b[0m"));
    let mut stripped = String::new();
    for (at, part) in coloured.split("\x1b[").enumerate() {
        stripped.push_str(if at == 0 { part } else { part.split_once('m').unwrap().1 });
    }
    assert_eq!(stripped, plain);
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    let mut page = page();
    page.rows[0].why = "because ".repeat(50);
    page.rows[0].room = "部屋".repeat(60);
    page.sides[0].policy = "a-policy-with-a-very-long-name-indeed-and-more.lua".into();
    for width in [40, 60, 80, 200] {
        let text = render(&page, Terminal { width, colours: false });
        let widest = text.lines().max_by_key(|line| table::width(line)).unwrap();
        // Headings are the reader's own words, and wrap.
        let tables = text.lines().filter(|line| line.starts_with("  ")).all(|line| table::width(line) <= width);
        assert!(tables, "{width}: {widest}");
    }
}

#[test]
fn many_monoliths_are_cut_to_the_fullest() {
    let values: Vec<(String, Vec<Option<f64>>)> =
        (0..100).map(|at| (format!("m{at}"), vec![Some(f64::from(at)); 300])).collect();
    let named: Vec<(&str, &[Option<f64>])> =
        values.iter().map(|(id, values)| (id.as_str(), values.as_slice())).collect();
    let side = Side { policy: "p".into(), load: Some(load(&named)), ..Side::default() };
    let text = render(&Page { sides: vec![side], ..Page::default() }, Terminal::default());
    assert!(text.contains("  m99 ") && text.contains("  m76 ") && !text.contains("  m75 "), "{text}");
    assert!(text.contains("and 76 more"));
    assert!(text.lines().any(|line| line.chars().filter(|c| *c == '█').count() == SPARKLINE), "{text}");
}

#[test]
fn an_empty_report_is_a_title() {
    let page = Page { title: "nothing".into(), ..Page::default() };
    assert_eq!(render(&page, Terminal::default()), "nothing\n");
}
