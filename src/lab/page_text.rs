//! A report for a terminal, or for a file that somebody reads later: aligned tables, a sparkline for each Monolith.

mod table;

use std::fmt::Write;

use super::page::{LoadOverTime, Page};
use super::page_figures::{
    Delta, NOTHING, Verdict, count, delta, demands, find, further, mean, metrics, natural, number, peak, plain_delta,
    span, written,
};
pub use table::plain;
use table::{Cell, Paint, Table, painted};

/// Monoliths of one policy that are shown, the fullest first.
const MONOLITHS: usize = 24;

/// Kinds of changes that are shown, the most frequent first.
const FLOWS: usize = 12;

/// Decisions that are shown.
const ROWS: usize = 10;

/// The longest sparkline, in characters.
const SPARKLINE: usize = 60;

/// What is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Characters in a line; what would be longer is cut short.
    pub width: usize,
    /// Whether escape sequences colour the text.
    pub colours: bool,
}

impl Default for Terminal {
    /// No terminal at all: no colours, and lines that fit a build log.
    fn default() -> Self {
        Self { width: 100, colours: false }
    }
}

/// Writes a report as lines of text. Control characters in names are shown, never sent.
pub fn render(page: &Page, terminal: Terminal) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", painted(&plain(&page.title), Paint::Strong, terminal));
    let mut facts = Table::default();
    for (name, value) in &page.facts {
        facts.row([Cell::left(plain(name)).paint(Paint::Soft), Cell::left(plain(value))]);
    }
    facts.write(&mut text, terminal);
    figures(&mut text, page, terminal);
    assertions(&mut text, page, terminal);
    loads(&mut text, page, terminal);
    flows(&mut text, page, terminal);
    rows(&mut text, page, terminal);
    text
}

fn heading(text: &mut String, says: &str, terminal: Terminal) {
    let _ = writeln!(text, "\n{}", painted(says, Paint::Strong, terminal));
}

fn name(page: &Page, at: usize) -> String {
    match page.sides.get(at).map(|side| side.policy.as_str()) {
        Some("") | None => format!("policy {}", at + 1),
        Some(name) => plain(name),
    }
}

fn change(delta: Option<Delta>) -> Cell {
    let Some(delta) = delta else { return Cell::left("") };
    let paint = match delta.verdict {
        Verdict::Better => Paint::Good,
        Verdict::Worse => Paint::Bad,
        Verdict::Neither => Paint::Soft,
    };
    Cell::left(delta.text).paint(paint)
}

fn figures(text: &mut String, page: &Page, terminal: Terminal) {
    let (metrics, further) = (metrics(page), further(page));
    if metrics.is_empty() && further.is_empty() {
        return;
    }
    text.push('\n');
    let mut table = Table::default();
    let sides = || page.sides.iter().enumerate();
    // What changed stands beside the figure, in a column of its own that the first policy does not need.
    let columns = |label: &str, of: &dyn Fn(usize) -> (Cell, Option<Delta>)| {
        let mut cells = vec![Cell::left(plain(label))];
        for (at, _) in sides() {
            let (value, delta) = of(at);
            cells.push(value);
            cells.extend((at > 0).then(|| change(delta)));
        }
        cells
    };
    table.row(columns("", &|at| (Cell::right(name(page, at)).paint(Paint::Strong), None)));
    if page.sides.iter().any(|side| !side.version.is_empty()) {
        let version = |at: usize| page.sides[at].version.chars().take(12).collect::<String>();
        table.row(columns("", &|at| (Cell::right(plain(&version(at))).paint(Paint::Soft), None)));
    }
    for metric in metrics {
        let value = |at: usize| page.sides[at].figures.get(&metric).copied();
        table.row(columns(metric.name(), &|at| {
            let shown = value(at).map_or(NOTHING.into(), |value| written(metric, value));
            (Cell::right(shown), delta(metric, value(0), value(at)))
        }));
    }
    for wanted in further {
        let value = |at: usize| find(&page.sides[at].more, wanted);
        table.row(columns(wanted, &|at| {
            (Cell::right(value(at).map_or(NOTHING.into(), number)), plain_delta(value(0), value(at)))
        }));
    }
    table.write(text, terminal);
}

fn assertions(text: &mut String, page: &Page, terminal: Terminal) {
    let (all, failed) = demands(page);
    if all == 0 {
        return;
    }
    let says = if failed == 0 { format!("demands: {all} met") } else { format!("demands: {failed} of {all} not met") };
    heading(text, &says, terminal);
    let mut table = Table::default();
    for (at, side) in page.sides.iter().enumerate() {
        for checked in &side.assertions {
            let (mark, paint) = if checked.ok { ("✓", Paint::Good) } else { ("✗", Paint::Bad) };
            table.row([
                Cell::left(mark).paint(paint),
                Cell::left(name(page, at)),
                Cell::left(plain(&checked.expr)),
                Cell::right(checked.value.map_or("no such figure".into(), number)),
            ]);
        }
    }
    table.write(text, terminal);
}

fn loads(text: &mut String, page: &Page, terminal: Terminal) {
    let known = || page.sides.iter().enumerate().filter_map(|(at, side)| Some((at, side.load.as_ref()?)));
    let values = known().flat_map(|(_, load)| &load.monoliths).filter_map(|monolith| peak(&monolith.values));
    // One scale for all: the lines of two policies can be compared.
    let top = values.fold(0.0, f64::max);
    for (at, load) in known().filter(|(_, load)| !load.monoliths.is_empty()) {
        let end = load.at_s.last().copied().unwrap_or(0.0) - load.at_s.first().copied().unwrap_or(0.0);
        heading(text, &format!("{} over {}: {}", plain(&load.unit), span(end), name(page, at)), terminal);
        one_load(text, load, top, terminal);
    }
}

fn one_load(text: &mut String, load: &LoadOverTime, top: f64, terminal: Terminal) {
    let mut shown: Vec<_> = load.monoliths.iter().collect();
    let hidden = shown.len().saturating_sub(MONOLITHS);
    if hidden > 0 {
        shown.sort_by(|a, b| peak(&b.values).unwrap_or(0.0).total_cmp(&peak(&a.values).unwrap_or(0.0)));
        shown.truncate(MONOLITHS);
    }
    shown.sort_by(|a, b| natural(&a.id, &b.id));
    let numbers = |values: &[Option<f64>]| {
        let there: Vec<f64> = values.iter().flatten().copied().filter(|value| value.is_finite()).collect();
        let shown = |value: Option<f64>| value.map_or(NOTHING.into(), number);
        [shown(there.iter().copied().reduce(f64::min)), shown(mean(&there)), shown(peak(values))]
    };
    let mut table = Table::default();
    let soft = |name: &str| Cell::right(name).paint(Paint::Soft);
    table.row([Cell::left(""), Cell::left(""), soft("min"), soft("mean"), soft("max"), Cell::left("")]);
    for monolith in &shown {
        let [least, mean, most] = numbers(&monolith.values);
        table.row([
            Cell::left(plain(&monolith.id)),
            Cell::left(plain(&monolith.region)).paint(Paint::Soft),
            Cell::right(least),
            Cell::right(mean),
            Cell::right(most),
        ]);
    }
    // The sparklines take what the columns before them leave.
    let room = terminal.width.saturating_sub(table.width() + 2).min(SPARKLINE).min(load.at_s.len());
    for (row, monolith) in shown.iter().enumerate() {
        table.extend(row + 1, Cell::left(sparkline(&monolith.values, room, top)).paint(Paint::Accent));
    }
    table.write(text, terminal);
    if hidden > 0 {
        let _ = writeln!(text, "  and {hidden} more, none fuller than these; --report shows them all");
    }
}

/// Values as bars of eight heights, each the mean of those it stands for; a blank where there are none.
fn sparkline(values: &[Option<f64>], width: usize, top: f64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let bar = |at: usize| {
        let (from, to) = (at * values.len() / width, (at + 1) * values.len() / width);
        let there: Vec<f64> = values[from..to].iter().flatten().copied().filter(|value| value.is_finite()).collect();
        let Some(mean) = mean(&there) else { return ' ' };
        let height = if top > 0.0 { (mean / top).clamp(0.0, 1.0) * 7.0 } else { 0.0 };
        BARS[height.round() as usize]
    };
    (0..width).map(bar).collect()
}

fn flows(text: &mut String, page: &Page, terminal: Terminal) {
    let mut flows: Vec<_> = page.flows.iter().filter(|flow| flow.count > 0 && flow.from != flow.to).collect();
    if flows.is_empty() {
        return;
    }
    flows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| natural(&a.from, &b.from)).then(natural(&a.to, &b.to)));
    let total: u64 = flows.iter().map(|flow| flow.count).sum();
    heading(text, &format!("changed decisions: {}", count(total)), terminal);
    let most = flows[0].count as f64;
    let mut table = Table::default();
    for flow in flows.iter().take(FLOWS) {
        let bar = "█".repeat((flow.count as f64 / most * 20.0).ceil() as usize);
        table.row([
            Cell::left(plain(&flow.hook)).paint(Paint::Soft),
            Cell::left(plain(&flow.from)),
            Cell::left(format!("→ {}", plain(&flow.to))),
            Cell::right(count(flow.count)),
            Cell::left(bar).paint(Paint::Accent),
        ]);
    }
    table.write(text, terminal);
    if flows.len() > FLOWS {
        let rest: u64 = flows[FLOWS..].iter().map(|flow| flow.count).sum();
        let _ = writeln!(text, "  and {} in {} other ways", count(rest), flows.len() - FLOWS);
    }
}

fn rows(text: &mut String, page: &Page, terminal: Terminal) {
    if page.rows.is_empty() {
        return;
    }
    let all = page.rows_of.max(page.rows.len() as u64);
    let shown = page.rows.len().min(ROWS);
    let says = if shown as u64 == all { "decisions".into() } else { format!("decisions: {shown} of {}", count(all)) };
    heading(text, &says, terminal);
    let mut table = Table::default();
    for row in page.rows.iter().take(ROWS) {
        let (answer, paint) = if row.from == row.to || row.from.is_empty() {
            (plain(&row.to), Paint::Plain)
        } else {
            (format!("{} → {}", plain(&row.from), plain(&row.to)), Paint::Accent)
        };
        table.row([
            Cell::right(format!("#{}", row.decision)).paint(Paint::Soft),
            Cell::right(span(row.at_s)),
            Cell::left(plain(&row.hook)).paint(Paint::Soft),
            Cell::left(plain(&row.room)),
            Cell::left(plain(&row.region)).paint(Paint::Soft),
            Cell::left(answer).paint(paint),
            Cell::left(plain(&row.why)).paint(Paint::Soft),
        ]);
    }
    table.write(text, terminal);
}

#[cfg(test)]
mod tests;
