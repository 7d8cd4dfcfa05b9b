//! Decisions that changed, by kind: from what to what, how often, with some in full.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;
use serde::Serialize;
use serde_json::Value as Json;

use crate::lab::page::{Flow, Row};
use crate::model::MonolithId;
use crate::model::policy::{Answer, Call, Hook};
use crate::policy::verdict::{self, Verdict};

/// Kinds that are told apart; what comes beyond is counted together.
const KINDS: usize = 200;
/// Examples of each kind, and of all kinds together.
const EXAMPLES: (usize, usize) = (10, 400);
/// The same in a document.
const SHOWN: (usize, usize) = (3, 30);
/// Texts of `usher.explain` in an example, and the most characters of one text.
const EXPLAINED: (usize, usize) = (8, 400);

/// All changes so far.
#[derive(Default)]
pub(super) struct Changes {
    groups: Vec<Group>,
    /// The groups by their kind.
    kinds: BTreeMap<Kind, usize>,
    /// The groups of those where one Monolith was chosen instead of another, by hook and by both: nearly all changes are
    /// of these kinds, and to name a kind takes longer than to find it here.
    moved: [Moved; Hook::ALL.len()],
    pub(super) beyond: u64,
    kept: usize,
}

type Moved = HashMap<MonolithId, HashMap<MonolithId, usize, RandomState>, RandomState>;

/// Hook, from, to.
type Kind = (&'static str, String, String);

struct Group {
    kind: Kind,
    count: u64,
    examples: Vec<Example>,
}

/// One decision that changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Its number in the trace.
    pub decision: u64,
    /// Seconds since the beginning.
    pub at_s: f64,
    /// The hook.
    pub hook: &'static str,
    /// The room, where there is one.
    pub room: Option<String>,
    /// The path, where there is a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The region of whoever asked.
    pub region: Option<String>,
    /// What was decided, in a few words.
    pub from: String,
    /// What is decided instead.
    pub to: String,
    /// What was answered, as in a trace.
    pub from_answer: Json,
    /// What is answered instead.
    pub answer: Json,
    /// What the one policy gave to `usher.explain`.
    pub from_explain: Vec<String>,
    /// What the other one gave to it.
    pub explain: Vec<String>,
    /// Why the built-in default decides instead, if it does by fault.
    pub fault: Option<String>,
}

/// Everything that is known of a changed decision.
pub(super) struct Seen<'a> {
    pub(super) number: u64,
    pub(super) at_us: u64,
    pub(super) call: &'a Call,
    pub(super) answers: [&'a Answer; 2],
    pub(super) from_explain: Vec<String>,
    pub(super) explain: Vec<String>,
    pub(super) fault: Option<String>,
}

impl Changes {
    /// Counts a change; its group comes back if an example of it is wanted.
    pub(super) fn count(&mut self, hook: Hook, from: &Verdict<'_>, to: &Verdict<'_>) -> Option<usize> {
        let Some(at) = self.group(hook, from, to) else {
            self.beyond += 1;
            return None;
        };
        let group = &mut self.groups[at];
        group.count += 1;
        let wanted = group.examples.len() < EXAMPLES.0 && self.kept < EXAMPLES.1;
        wanted.then_some(at)
    }

    /// The group of a kind, if there is one or still room for it.
    fn group(&mut self, hook: Hook, from: &Verdict<'_>, to: &Verdict<'_>) -> Option<usize> {
        let moved = from.only_chose().zip(to.only_chose());
        let known = |(from, to)| self.moved[hook as usize].get(from)?.get(to).copied();
        if let Some(at) = moved.and_then(known) {
            return Some(at);
        }
        let kind = (hook.name(), cut(from.shown()), cut(to.shown()));
        let at = match self.kinds.get(&kind) {
            Some(at) => *at,
            None if self.groups.len() >= KINDS => return None,
            None => {
                self.groups.push(Group { kind: kind.clone(), count: 0, examples: Vec::new() });
                self.kinds.insert(kind, self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        if let Some((from, to)) = moved {
            self.moved[hook as usize].entry(from.clone()).or_default().insert(to.clone(), at);
        }
        Some(at)
    }

    /// Keeps an example that was wanted of this group.
    pub(super) fn example(&mut self, group: usize, seen: Seen<'_>) {
        let Some(group) = self.groups.get_mut(group) else { return };
        let (hook, from, to) = group.kind.clone();
        let Seen { number, at_us, call, answers, from_explain, explain, fault } = seen;
        let json = |answer: &Answer| serde_json::to_value(answer).unwrap_or_default();
        let texts = |texts: Vec<String>| texts.into_iter().take(EXPLAINED.0).map(cut).collect();
        self.kept += 1;
        group.examples.push(Example {
            decision: number,
            at_s: at_us as f64 / 1e6,
            hook,
            room: call.room.as_ref().and_then(|room| room.name.as_deref()).map(str::to_owned),
            path: call.request.as_ref().map(|request| request.path.to_string()),
            region: verdict::region(call).map(ToString::to_string),
            from,
            to,
            from_answer: json(answers[0]),
            answer: json(answers[1]),
            from_explain: texts(from_explain),
            explain: texts(explain),
            fault: fault.map(cut),
        });
    }

    /// The groups, most frequent first, and those of equal frequency in the order of their kinds.
    fn sorted(&self) -> Vec<&Group> {
        let mut groups: Vec<_> = self.kinds.values().map(|at| &self.groups[*at]).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        groups
    }

    /// The kinds with their counts, most frequent first.
    pub(super) fn flows(&self) -> Vec<Flow> {
        let flow = |group: &Group| {
            let (hook, from, to) = &group.kind;
            Flow { hook: (*hook).into(), from: from.clone(), to: to.clone(), count: group.count }
        };
        self.sorted().into_iter().map(flow).collect()
    }

    /// Some of each kind, those of frequent kinds first.
    pub(super) fn examples(&self) -> Vec<Example> {
        let groups = self.sorted().into_iter();
        groups.flat_map(|group| group.examples.iter().take(SHOWN.0)).take(SHOWN.1).cloned().collect()
    }

    /// All examples in the order of the trace, as rows of a page.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut examples: Vec<&Example> = self.kinds.values().flat_map(|at| &self.groups[*at].examples).collect();
        examples.sort_by(|a, b| a.at_s.total_cmp(&b.at_s).then(a.decision.cmp(&b.decision)));
        examples.into_iter().map(row).collect()
    }
}

fn row(example: &Example) -> Row {
    let why = match &example.fault {
        Some(fault) => fault.clone(),
        None => match (example.from_explain.join("; "), example.explain.join("; ")) {
            (from, to) if from.is_empty() || from == to => to,
            (from, to) if to.is_empty() => format!("before: {from}"),
            (from, to) => format!("{to} (before: {from})"),
        },
    };
    Row {
        decision: example.decision,
        at_s: example.at_s,
        hook: example.hook.into(),
        room: example.room.clone().or_else(|| example.path.clone()).unwrap_or_default(),
        region: example.region.clone().unwrap_or_default(),
        from: example.from.clone(),
        to: example.to.clone(),
        why,
    }
}

/// A text of bounded length: scripts and room names make some of them.
fn cut(text: String) -> String {
    match text.char_indices().nth(EXPLAINED.1) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
