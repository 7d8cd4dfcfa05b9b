//! The map of changed decisions: from what to what, and how often, a matrix for each hook.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Text, name, section};
use crate::lab::page::{Flow, Page};
use crate::lab::page_figures::{count, natural};

/// Rows and columns of a matrix; what is rarer stands together.
const MOST: usize = 16;

/// Changes that are also listed, the most frequent first.
const LISTED: usize = 8;

/// What stands for all that have no row or column of their own.
const OTHERS: &str = "others";

pub(super) fn write(text: &mut String, page: &Page) {
    let mut hooks: BTreeMap<&str, Vec<&Flow>> = BTreeMap::new();
    for flow in page.flows.iter().filter(|flow| flow.count > 0 && flow.from != flow.to) {
        hooks.entry(&flow.hook).or_default().push(flow);
    }
    if hooks.is_empty() {
        return;
    }
    section(
        text,
        "changes",
        "Changed decisions",
        format!(
            "Rows: what {} decided. Columns: what {} decides instead. Choose a change to see its decisions below.",
            name(page, 0),
            name(page, 1)
        ),
    );
    for (hook, flows) in hooks {
        one(text, hook, &flows);
    }
    text.push_str("</section>\n");
}

fn one(text: &mut String, hook: &str, flows: &[&Flow]) {
    let total: u64 = flows.iter().map(|flow| flow.count).sum();
    let _ = writeln!(
        text,
        "<div class=\"card change\">\n<h3><code>{}</code> <span>{} changed</span></h3>\n<div class=\"halves\">",
        Text(hook),
        count(total)
    );
    matrix(text, hook, flows);
    list(text, hook, flows);
    text.push_str("</div>\n</div>\n");
}

/// The names of one side in order, the rarer ones beyond [`MOST`] left out; and whether any was.
fn axis<'a>(flows: &[&'a Flow], of: impl Fn(&'a Flow) -> &'a str) -> (Vec<&'a str>, bool) {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for flow in flows {
        *sums.entry(of(flow)).or_default() += flow.count;
    }
    let mut names: Vec<(&str, u64)> = sums.into_iter().collect();
    names.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| natural(a.0, b.0)));
    let rest = names.len() > MOST;
    let mut names: Vec<&str> = names.into_iter().take(MOST).map(|(name, _)| name).collect();
    names.sort_by(|a, b| natural(a, b));
    (names, rest)
}

fn matrix(text: &mut String, hook: &str, flows: &[&Flow]) {
    let (rows, other_rows) = axis(flows, |flow| flow.from.as_str());
    let (columns, other_columns) = axis(flows, |flow| flow.to.as_str());
    let place = |names: &[&str], name: &str| names.iter().position(|known| *known == name).unwrap_or(names.len());
    let mut counts = vec![vec![0u64; columns.len() + 1]; rows.len() + 1];
    for flow in flows {
        counts[place(&rows, &flow.from)][place(&columns, &flow.to)] += flow.count;
    }
    let most = counts.iter().flatten().copied().max().unwrap_or(1).max(1);
    let (all_rows, all_columns) = (rows.len() + usize::from(other_rows), columns.len() + usize::from(other_columns));
    let title = |names: &[&str], at: usize| names.get(at).copied().unwrap_or(OTHERS).to_owned();
    let turned = if all_columns > 6 { " turned" } else { "" };
    let _ = writeln!(
        text,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Changes of {0}\">\n<table \
         class=\"matrix{turned}\">\n<caption class=\"unseen\">Changes of {0}: rows from, columns to</caption>\n\
         <thead><tr><td><span aria-hidden=\"true\">from ╲ to</span></td>",
        Text(hook)
    );
    for column in 0..all_columns {
        let name = title(&columns, column);
        let _ = write!(text, "<th scope=\"col\" title=\"{0}\"><span>{0}</span></th>", Text(name));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for (row, counts) in counts.iter().enumerate().take(all_rows) {
        let from = title(&rows, row);
        let _ = write!(text, "<tr><th scope=\"row\" title=\"{0}\">{0}</th>", Text(&from));
        for (column, changed) in counts.iter().enumerate().take(all_columns) {
            if *changed == 0 {
                text.push_str("<td class=\"none\"></td>");
                continue;
            }
            let to = title(&columns, column);
            let heat = 6.0 + 38.0 * (*changed as f64 / most as f64).sqrt();
            let _ =
                write!(text, "<td class=\"heat\" style=\"--heat:{heat:.0}%\" title=\"{} → {}", Text(&from), Text(&to));
            // Others are many, and no filter finds them.
            if row < rows.len() && column < columns.len() {
                let _ = write!(text, "\"{}", choice(hook, &from, &to));
            } else {
                text.push('"');
            }
            let _ = write!(text, ">{}</td>", count(*changed));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody>\n</table>\n</div>\n");
}

/// What the script filters by.
fn choice(hook: &str, from: &str, to: &str) -> String {
    format!(" data-hook=\"{}\" data-from=\"{}\" data-to=\"{}\"", Text(hook), Text(from), Text(to))
}

fn list(text: &mut String, hook: &str, flows: &[&Flow]) {
    let mut sorted = flows.to_vec();
    sorted.sort_by(|a, b| {
        b.count.cmp(&a.count).then_with(|| natural(&a.from, &b.from)).then_with(|| natural(&a.to, &b.to))
    });
    let most = sorted.first().map_or(1, |flow| flow.count).max(1);
    text.push_str("<ol class=\"flows\">\n");
    for flow in sorted.iter().take(LISTED) {
        let _ = writeln!(
            text,
            "<li><button type=\"button\"{}><span class=\"way\"><bdi>{}</bdi> → <bdi>{}</bdi></span> <b>{}</b><span \
             class=\"share\" style=\"width:{:.1}%\"></span></button></li>",
            choice(hook, &flow.from, &flow.to),
            Text(&flow.from),
            Text(&flow.to),
            count(flow.count),
            flow.count as f64 / most as f64 * 100.0,
        );
    }
    if sorted.len() > LISTED {
        let rest: u64 = sorted[LISTED..].iter().map(|flow| flow.count).sum();
        let _ = writeln!(text, "<li class=\"rest\">{} other ways, {}</li>", sorted.len() - LISTED, count(rest));
    }
    text.push_str("</ol>\n");
}
