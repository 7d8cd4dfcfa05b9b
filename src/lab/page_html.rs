//! A report as one page that needs nothing else: no network, no library, no font. What it shows is written here; the
//! script in it only answers the reader (values under the pointer, sorting, filters), so it can be read without.
//!
//! Names of rooms come from clients and are hostile: everything goes through `Text`, and the page's own policy for
//! content allows one script, by its hash, and no request at all.

mod decisions;
mod figures;
mod flows;
mod load;

use std::fmt::{self, Display, Write};

use sha2::{Digest, Sha256};

use super::page::Page;
use super::page_figures as figure;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Accents that the style knows; a policy beyond them takes the first one again.
const ACCENTS: usize = 6;

/// Writes a report as one HTML document in UTF-8.
pub fn render(page: &Page) -> String {
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; img-src data:; base-uri 'none'; \
         form-action 'none'",
        base64(&Sha256::digest(SCRIPT.as_bytes())),
    );
    let title = if page.title.is_empty() { "Report" } else { &page.title };
    let load = load::Load::of(page);
    let mut body = String::new();
    verdict(&mut body, page);
    figures::write(&mut body, page);
    figures::assertions(&mut body, page);
    load.write(&mut body);
    flows::write(&mut body, page);
    decisions::write(&mut body, page);
    if page.sides.is_empty() && page.flows.is_empty() && page.rows.is_empty() {
        body.push_str("<p class=\"empty\">There is nothing to show: no decision was made.</p>\n");
    }
    fill(TEMPLATE, |name| match name {
        "policy" => policy.clone(),
        "title" => Text(title).to_string(),
        "style" => STYLE.trim().into(),
        "facts" => facts(page),
        "body" => body.clone(),
        "version" => env!("CARGO_PKG_VERSION").into(),
        "data" => data(&load.data()),
        "script" => SCRIPT.into(),
        _ => String::new(),
    })
}

/// Replaces every `{{name}}` of the template once: what is put in is not looked at again.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut text = String::from(parts.next().unwrap_or_default());
    for part in parts {
        let Some((name, rest)) = part.split_once("}}") else { continue };
        text.push_str(&value(name));
        text.push_str(rest);
    }
    text
}

/// Text of any origin, for content and quoted attributes.
struct Text<T>(T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut escape = Escape(f);
        write!(escape, "{}", self.0)
    }
}

struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                // No document may hold these; a reader sees that something was there.
                c if c.is_control() && c != '\n' && c != '\t' => self.0.write_char('\u{fffd}')?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// JSON inside of a script element: nothing in it can end the element or begin a comment, and line separators, which
/// older engines took for line ends, are escaped as well.
fn data(value: &serde_json::Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let at = |place: usize| u32::from(three.get(place).copied().unwrap_or(0));
        let all = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let letter = LETTERS[(all >> (18 - 6 * place) & 63) as usize];
            text.push(if place > three.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

/// The class that gives a policy its colour.
fn accent(side: usize) -> String {
    format!("p{}", side % ACCENTS)
}

/// A policy's name; one that has none is told by its place.
fn name(page: &Page, side: usize) -> String {
    match page.sides.get(side).map(|side| side.policy.as_str()) {
        Some("") | None => format!("policy {}", side + 1),
        Some(name) => name.to_owned(),
    }
}

fn facts(page: &Page) -> String {
    if page.facts.is_empty() {
        return String::new();
    }
    let mut text = String::from("<dl class=\"facts\">\n");
    for (name, value) in &page.facts {
        let _ = writeln!(text, "<div><dt>{}</dt><dd>{}</dd></div>", Text(name), Text(value));
    }
    text.push_str("</dl>");
    text
}

/// The first thing to read: do the demands hold?
fn verdict(text: &mut String, page: &Page) {
    let (all, failed) = figure::demands(page);
    if all == 0 {
        return;
    }
    let (class, mark, says) = match (all, failed) {
        (1, 0) => ("good", "✓", "The demand is met".to_owned()),
        (all, 0) => ("good", "✓", format!("All {all} demands are met")),
        (1, _) => ("bad", "✗", "The demand is not met".to_owned()),
        (all, failed) => ("bad", "✗", format!("{failed} of {all} demands are not met")),
    };
    let _ = writeln!(text, "<p class=\"verdict {class}\"><span aria-hidden=\"true\">{mark}</span> {says}</p>");
}

/// Begins a section with a heading and a line on what it shows.
fn section(text: &mut String, id: &str, heading: &str, lead: impl Display) {
    let _ = writeln!(
        text,
        "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n<p class=\"lead\">{}</p>",
        Text(lead)
    );
}

#[cfg(test)]
mod tests;
