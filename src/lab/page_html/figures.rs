//! Figures of all policies side by side, and what was demanded of them.

use std::fmt::Write;

use super::{Text, accent, name, section};
use crate::lab::page::Page;
use crate::lab::page_figures::{Delta, NOTHING, Verdict, delta, find, further, metrics, number, plain_delta, written};
use crate::model::assertion::Metric;

/// How many figures are shown large.
const TILES: usize = 4;

/// Those that are shown large, if they are there, the first ones first.
const HEADLINES: [Metric; 6] =
    [Metric::MaxLoadOverMean, Metric::OwnRegionShare, Metric::Agreement, Metric::Faults, Metric::LoadCv, Metric::NsP99];

pub(super) fn write(text: &mut String, page: &Page) {
    let (metrics, further) = (metrics(page), further(page));
    if metrics.is_empty() && further.is_empty() {
        return;
    }
    let lead = match page.sides.len() {
        0 | 1 => "What the policy did.".to_owned(),
        _ => format!("Each policy against the first, {}.", name(page, 0)),
    };
    section(text, "figures", "Figures", lead);
    let headlines = HEADLINES.into_iter().filter(|metric| metrics.contains(metric)).take(TILES);
    tiles(text, page, headlines);
    table(text, page, &metrics, &further);
    text.push_str("</section>\n");
}

fn tiles(text: &mut String, page: &Page, metrics: impl Iterator<Item = Metric>) {
    // The table below says the same and more: to who listens, once is enough.
    text.push_str("<div class=\"tiles\" aria-hidden=\"true\">\n");
    for metric in metrics {
        let _ = writeln!(text, "<div class=\"tile\"><p>{}</p>", super::figure::label(metric));
        let first = page.sides.first().and_then(|side| side.figures.get(&metric)).copied();
        for (at, side) in page.sides.iter().enumerate() {
            let value = side.figures.get(&metric).copied();
            let shown = value.map_or(NOTHING.into(), |value| written(metric, value));
            let change = if at == 0 { None } else { delta(metric, first, value) };
            let _ = writeln!(
                text,
                "<div class=\"row {}\"><span class=\"who\">{}</span><b>{shown}</b>{}</div>",
                accent(at),
                Text(name(page, at)),
                change.map(|change| badge(&change)).unwrap_or_default(),
            );
        }
        text.push_str("</div>\n");
    }
    text.push_str("</div>\n");
}

/// A change: an arrow, how much, and (to who listens or sees no colours) whether that is good.
fn badge(change: &Delta) -> String {
    let (class, says) = match change.verdict {
        Verdict::Better => ("good", ", better"),
        Verdict::Worse => ("bad", ", worse"),
        Verdict::Neither => ("", ""),
    };
    let arrow = if change.up { "▲" } else { "▼" };
    let title = says.trim_start_matches(", ");
    format!(
        "<span class=\"delta {class}\" title=\"{title}\"><span aria-hidden=\"true\">{arrow}</span> {}<span \
         class=\"unseen\">{says}</span></span>",
        Text(&change.text)
    )
}

fn table(text: &mut String, page: &Page, metrics: &[Metric], further: &[&str]) {
    text.push_str("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"All figures\">\n");
    text.push_str("<table class=\"figures\">\n<thead><tr><th scope=\"col\">Figure</th>");
    for (at, side) in page.sides.iter().enumerate() {
        let _ = write!(
            text,
            "<th scope=\"col\" class=\"{}\"><span class=\"who\">{}</span> <code>{}</code></th>",
            accent(at),
            Text(name(page, at)),
            Text(side.version.chars().take(12).collect::<String>()),
        );
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for &metric in metrics {
        let of = |at: usize| page.sides.get(at).and_then(|side| side.figures.get(&metric)).copied();
        let heading = format!("{} <code>{metric}</code>", super::figure::label(metric));
        let cells = (0..page.sides.len()).map(|at| {
            let shown = of(at).map_or(NOTHING.into(), |value| written(metric, value));
            (shown, delta(metric, of(0), of(at)))
        });
        row(text, &heading, cells);
    }
    for wanted in further {
        let of = |at: usize| page.sides.get(at).and_then(|side| find(&side.more, wanted));
        let cells = (0..page.sides.len()).map(|at| (of(at).map_or(NOTHING.into(), number), plain_delta(of(0), of(at))));
        row(text, &Text(wanted).to_string(), cells);
    }
    text.push_str("</tbody>\n</table>\n</div>\n");
}

fn row(text: &mut String, heading: &str, cells: impl Iterator<Item = (String, Option<Delta>)>) {
    let _ = write!(text, "<tr><th scope=\"row\">{heading}</th>");
    for (shown, change) in cells {
        let change = change.map(|change| badge(&change)).unwrap_or_default();
        let _ = write!(text, "<td>{change} <b>{}</b></td>", Text(shown));
    }
    text.push_str("</tr>\n");
}

/// What was demanded, by policy; the failures first.
pub(super) fn assertions(text: &mut String, page: &Page) {
    if page.sides.iter().all(|side| side.assertions.is_empty()) {
        return;
    }
    section(text, "demands", "Demands", "What was asserted, and the figure that decided it.");
    text.push_str("<div class=\"demands\">\n");
    for (at, side) in page.sides.iter().enumerate().filter(|(_, side)| !side.assertions.is_empty()) {
        let who = Text(name(page, at));
        let _ = writeln!(text, "<div class=\"card {}\"><h3 class=\"who\">{who}</h3>\n<ul>", accent(at));
        let mut sorted: Vec<_> = side.assertions.iter().collect();
        sorted.sort_by_key(|checked| checked.ok);
        for checked in sorted {
            let (class, mark, says) = if checked.ok { ("good", "✓", "met") } else { ("bad", "✗", "not met") };
            let value = checked.value.map_or("no such figure".into(), number);
            let _ = writeln!(
                text,
                "<li><span class=\"mark {class}\" aria-hidden=\"true\">{mark}</span><span class=\"unseen\">{says}: \
                 </span><code>{}</code><b>{}</b></li>",
                Text(&checked.expr),
                Text(value),
            );
        }
        text.push_str("</ul>\n</div>\n");
    }
    text.push_str("</div>\n</section>\n");
}
