//! The walk over a document: every key is read once by name, and what nobody read is unknown. So the set of known keys
//! is the set of reads, and cannot differ from it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::problem::{Place, Problem};
use super::tree::{Node, Table, Value};

/// What is found on the walk.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Whether unknown keys are only warned about: a file that was written for another balancer.
    pub(super) lenient: bool,
    pub(super) errors: RefCell<Vec<Problem>>,
    pub(super) warnings: RefCell<Vec<Problem>>,
    /// Every key that was asked for, with dots.
    pub(super) known: RefCell<BTreeSet<String>>,
    unknown: RefCell<Vec<(Place, String)>>,
    /// Where a problem is placed whose key is not set.
    whole: Option<Place>,
}

/// One table of the document, present or not.
pub(super) struct Section<'a> {
    walk: &'a Walk,
    path: String,
    table: Option<&'a Table>,
    place: Option<Place>,
    known: BTreeSet<&'static str>,
}

impl Walk {
    pub(super) fn new(lenient: bool, whole: Place) -> Self {
        Self { lenient, whole: Some(whole), ..Self::default() }
    }

    /// The document itself.
    pub(super) fn root<'a>(&'a self, table: &'a Table) -> Section<'a> {
        Section { walk: self, path: String::new(), table: Some(table), place: None, known: BTreeSet::new() }
    }

    pub(super) fn whole(&self) -> Place {
        self.whole.clone().unwrap_or(Place::Defaults)
    }

    /// Reports the keys that nobody asked for. To be called when the walk is over.
    pub(super) fn report_unknown(&self) {
        let known = self.known.borrow();
        for (place, key) in self.unknown.take() {
            let message = format!("unknown key; {}", suggestion(&key, &known));
            let environment = matches!(place, Place::Environment { .. });
            let to = if self.lenient || environment { &self.warnings } else { &self.errors };
            let message = if self.lenient || environment { format!("{message}; ignored") } else { message };
            to.borrow_mut().push(Problem { place, key, message });
        }
    }
}

/// The longest key that others are guessed for, in bytes.
const LONGEST_GUESS: usize = 64;

/// The nearest known key of the same section; else the same name in another one (a key that lacks its section may be
/// misspelled as well); else all that is known there.
fn suggestion(unknown: &str, known: &BTreeSet<String>) -> String {
    let (section, name) = split(unknown);
    let allowed = (name.chars().count() / 3).max(1);
    // Nobody misspells a key to this length, and a comparison takes time with the square of it.
    let comparable = name.len() <= LONGEST_GUESS;
    let close = |key: &&String| comparable && strsim::damerau_levenshtein(split(key).1, name) <= allowed;
    let distance = |key: &&String| {
        let (its_section, its_name) = split(key);
        // Of two names at one distance, swapped letters are likelier than a wrong one.
        let swapped = letters(its_name) == letters(name);
        (strsim::damerau_levenshtein(its_name, name), !swapped, strsim::damerau_levenshtein(its_section, section))
    };
    let siblings = || known.iter().filter(|key| split(key).0 == section);
    if let Some(key) = siblings().filter(close).min_by_key(distance) {
        return format!("did you mean {}?", split(key).1);
    }
    let elsewhere = |key: &&String| !key.contains('[') && (split(key).1 == name || (section.is_empty() && close(key)));
    if let Some(key) = known.iter().filter(elsewhere).min_by_key(distance) {
        return format!("did you mean {key}?");
    }
    let names: Vec<&str> = siblings().map(|key| split(key).1).collect();
    if names.is_empty() { "remove it".into() } else { format!("known here: {}", names.join(", ")) }
}

fn letters(name: &str) -> Vec<char> {
    let mut letters: Vec<char> = name.chars().collect();
    letters.sort_unstable();
    letters
}

fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

impl<'a> Section<'a> {
    /// The value of a key, if it is set.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Node> {
        self.known.insert(key);
        self.walk.known.borrow_mut().insert(self.path_of(key));
        self.table?.get(key).map(|(_, node)| node)
    }

    /// The value of a key as `read` understands it; none if it is not set or wrong (then the error is noted).
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Node) -> Result<T, String>,
    ) -> Option<T> {
        let node = self.get(key)?;
        match read(node) {
            Ok(value) => Some(value),
            Err(message) => {
                self.error(key, message);
                None
            }
        }
    }

    /// Puts the value of a key where its default stands, if it is set.
    pub(super) fn read<T>(&mut self, into: &mut T, key: &'static str, read: impl FnOnce(&Node) -> Result<T, String>) {
        if let Some(value) = self.optional(key, read) {
            *into = value;
        }
    }

    /// The section under a key; an error if the key holds something else.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        let node = self.get(key);
        let table = match node.map(|node| &node.value) {
            Some(Value::Table(table)) => Some(table),
            Some(_) => {
                self.wrong_type(key, "a table");
                None
            }
            None => None,
        };
        let place = node.map(|node| node.place.clone());
        Section { walk: self.walk, path: self.path_of(key), table, place, known: BTreeSet::new() }
    }

    /// A section of the same document under a path of its own, such as one item of a list of tables.
    pub(super) fn item(&self, path: String, node: &'a Node) -> Option<Section<'a>> {
        let Value::Table(table) = &node.value else { return None };
        let place = Some(node.place.clone());
        Some(Section { walk: self.walk, path, table: Some(table), place, known: BTreeSet::new() })
    }

    /// Whether the table stands in the document.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the table stands in the document and holds a key.
    pub(super) fn is_set(&self) -> bool {
        self.table.is_some_and(|table| !table.is_empty())
    }

    /// Whether a key is set.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether unknown things are only warned about.
    pub(super) fn is_lenient(&self) -> bool {
        self.walk.lenient
    }

    /// The table as it stands, for free-form ones.
    pub(super) fn table(&self) -> Option<&'a Table> {
        self.table
    }

    /// Notes an error about a key.
    pub(super) fn error(&self, key: &str, message: impl Into<String>) {
        self.note(&self.walk.errors, key, message.into());
    }

    /// Notes a warning about a key.
    pub(super) fn warn(&self, key: &str, message: impl Into<String>) {
        self.note(&self.walk.warnings, key, message.into());
    }

    /// Notes that a key holds another type than the expected one, without a word of what it holds.
    pub(super) fn wrong_type(&self, key: &str, expected: &str) {
        let found = self.table.and_then(|table| table.get(key)).map_or("nothing", |(_, node)| node.kind());
        self.error(key, format!("expected {expected}, found {found}"));
    }

    fn note(&self, to: &RefCell<Vec<Problem>>, key: &str, message: String) {
        let place = self.table.and_then(|table| table.get(key)).map(|(place, node)| match node.value {
            Value::Table(_) => place.clone(),
            _ => node.place.clone(),
        });
        let place = place.or_else(|| self.place.clone()).unwrap_or_else(|| self.walk.whole());
        to.borrow_mut().push(Problem { place, key: self.path_of(key), message });
    }

    fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    /// Ends the section: what was not asked for is unknown.
    pub(super) fn finish(self) {
        let Some(table) = self.table else { return };
        for (key, (place, _)) in table.iter().filter(|(key, _)| !self.known.contains(key.as_str())) {
            self.walk.unknown.borrow_mut().push((place.clone(), self.path_of(key)));
        }
    }
}
