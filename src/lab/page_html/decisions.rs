//! The table of decisions. It is whole without the script, which sorts and filters it.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Text, name, section};
use crate::lab::page::{Page, Row};
use crate::lab::page_figures::{count, number};

pub(super) fn write(text: &mut String, page: &Page) {
    if page.rows.is_empty() {
        return;
    }
    let shown = page.rows.len() as u64;
    let lead = match page.rows_of.max(shown) {
        all if all == shown => format!("All {}.", count(all)),
        all => format!("{} of {}, those worth reading first.", count(shown), count(all)),
    };
    section(text, "decisions", "Decisions", lead);
    let compared = page.sides.len() > 1 || page.rows.iter().any(|row| row.from != row.to);
    controls(text, page, compared);
    text.push_str("<div class=\"scroll tall\" tabindex=\"0\" role=\"region\" aria-label=\"Decisions\">\n");
    text.push_str("<table class=\"decisions\" id=\"rows\">\n<thead><tr>");
    let (from, to) = if page.sides.len() > 1 {
        (name(page, 0), name(page, 1))
    } else {
        ("Before".to_owned(), if compared { "After" } else { "Decided" }.to_owned())
    };
    column(text, "number", "#");
    column(text, "number", "Time");
    column(text, "", "Hook");
    column(text, "", "Room");
    column(text, "", "Region");
    if compared {
        column(text, "", &from);
    }
    column(text, "", &to);
    column(text, "", "Why");
    text.push_str("</tr></thead>\n<tbody>\n");
    for decision in &page.rows {
        row(text, decision, compared);
    }
    text.push_str(
        "</tbody>\n</table>\n<p class=\"empty\" id=\"none\" hidden>No decision matches.</p>\n</div>\n</section>\n",
    );
}

fn column(text: &mut String, class: &str, heading: &str) {
    let _ = write!(text, "<th scope=\"col\" class=\"{class}\">{}</th>", Text(heading));
}

fn controls(text: &mut String, page: &Page, compared: bool) {
    let hooks: BTreeSet<&str> = page.rows.iter().map(|row| row.hook.as_str()).collect();
    text.push_str("<form class=\"controls bar\" id=\"filter\" hidden>\n");
    text.push_str("<label>Find <input type=\"search\" id=\"find\" placeholder=\"room, Monolith, reason\" autocomplete=\"off\" spellcheck=\"false\"></label>\n");
    text.push_str("<label>Hook <select id=\"hook\"><option value=\"\">all</option>");
    for hook in hooks {
        let _ = write!(text, "<option>{}</option>", Text(hook));
    }
    text.push_str("</select></label>\n");
    if compared {
        text.push_str("<label class=\"check\"><input type=\"checkbox\" id=\"changed\"> only changed</label>\n");
    }
    text.push_str("<button type=\"button\" id=\"flow\" hidden></button>\n<output id=\"count\"></output>\n</form>\n");
}

fn row(text: &mut String, row: &Row, compared: bool) {
    let _ = write!(
        text,
        "<tr{0}><td class=\"number\" data-value=\"{1}\">{2}</td><td class=\"number\" data-value=\"{3}\">{4}</td><td>\
         <code>{5}</code></td><td class=\"room\"><bdi>{6}</bdi></td><td><bdi>{7}</bdi></td>",
        if row.from == row.to { "" } else { " class=\"changed\"" },
        row.decision,
        row.decision,
        if row.at_s.is_finite() { row.at_s } else { 0.0 },
        time(row.at_s),
        Text(&row.hook),
        Text(&row.room),
        Text(&row.region),
    );
    if compared {
        let _ = write!(text, "<td class=\"from\"><bdi>{}</bdi></td>", Text(&row.from));
    }
    let _ = writeln!(
        text,
        "<td class=\"to\"><bdi>{}</bdi></td><td class=\"why\"><bdi>{}</bdi></td></tr>",
        Text(&row.to),
        Text(&row.why)
    );
}

/// `12.34 s`, `3:05`, `26:03:05`: short, and readable one below another.
fn time(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 60.0 {
        return format!("{} s", number(seconds));
    }
    let all = seconds.round() as u64;
    match (all / 3600, all / 60 % 60, all % 60) {
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}
