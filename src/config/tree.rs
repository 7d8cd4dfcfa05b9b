//! A TOML document as a tree in which every value knows where it comes from, whether file or environment.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem};

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// The value.
    pub(super) value: Value,
    /// Where it stands.
    pub(super) place: Place,
    /// The text of an environment variable that reads as something else than text: a key that wants a text takes it.
    pub(super) raw: Option<String>,
}

/// A TOML value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// `"text"`.
    Text(String),
    /// A whole number. TOML's are 64 bits wide; a wider one is kept as its digits.
    Integer(Result<i64, String>),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Flag(bool),
    /// A date or a time.
    Date(String),
    /// `[...]`.
    List(Vec<Node>),
    /// `{...}` or `[section]`.
    Table(Table),
}

/// Keys and their values. The key's own place is kept: it is where an unknown key is reported.
pub(super) type Table = BTreeMap<String, (Place, Node)>;

impl Node {
    /// A text from elsewhere than a document.
    pub(super) fn text(text: &str, place: Place) -> Self {
        Self { value: Value::Text(text.to_owned()), place, raw: None }
    }

    /// The kind of value, for an error.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "a text",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Flag(_) => "true or false",
            Value::Date(_) => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// What was found, for an error; only for keys that are no secret. Long values are cut.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Value::Text(text) if text.chars().count() > 80 => {
                format!("{:?}...", text.chars().take(80).collect::<String>())
            }
            Value::Text(text) => format!("{text:?}"),
            Value::Integer(Ok(number)) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::Integer(Err(_)) | Value::Date(_) | Value::List(_) | Value::Table(_) => self.kind().to_owned(),
        }
    }
}

/// Parses a document. Syntax errors come all at once, at most one a line; they say what was expected and never quote
/// the line, which may hold a secret.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Result<Table, Vec<Problem>> {
    let lines = Lines::of(text);
    let at = |position: usize| Place::File { file: file.clone(), line: lines.line(position) };
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table(document.get_ref(), &at));
    }
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| Problem {
            place: at(error.span().map_or(0, |span| span.start)),
            key: String::new(),
            message: format!("not valid TOML: {}", error.message()),
        })
        .collect();
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    problems.dedup_by(|a, b| a.place == b.place);
    Err(problems)
}

/// Parses one value, as an environment variable holds it: TOML if it is, else text.
pub(super) fn parse_value(text: &str, place: Place) -> Node {
    match DeValue::parse(text.trim()) {
        Ok(parsed) => {
            let mut node = node(parsed.get_ref(), place.clone(), &|_| place.clone());
            node.raw = Some(text.to_owned());
            node
        }
        Err(_) => Node::text(text, place),
    }
}

fn table(from: &DeTable<'_>, at: &dyn Fn(usize) -> Place) -> Table {
    let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let key: &toml::Spanned<std::borrow::Cow<'_, str>> = key;
        let place = at(key.span().start);
        // A section's own span may begin at its header or at its first key; the key's place is right for both.
        let node_place = if value.get_ref().is_table() { place.clone() } else { at(value.span().start) };
        (key.get_ref().to_string(), (place, node(value.get_ref(), node_place, at)))
    };
    from.iter().map(entry).collect()
}

fn node(from: &DeValue<'_>, place: Place, at: &dyn Fn(usize) -> Place) -> Node {
    let value = match from {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).map_err(|_| number.to_string()))
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| node(item.get_ref(), at(item.span().start), at)).collect())
        }
        DeValue::Table(entries) => Value::Table(table(entries, at)),
    };
    Node { value, place, raw: None }
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line of a byte, from 1.
    fn line(&self, position: usize) -> usize {
        1 + self.0.partition_point(|newline| *newline < position)
    }
}
