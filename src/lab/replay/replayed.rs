//! What came of a replay: as a JSON document, as the data of a report, and whether it is good.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::changes::Example;
use super::figures::{Tally, rounded};
use super::{Baseline, OfHook, Replay};
use crate::lab::page::{Flow, Page, Side};
use crate::model::assertion::{Assertion, Checked, Figures, Metric};
use crate::trace::record::Gap;

/// What came of a replay.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Decisions that were made again and compared.
    pub decisions: u64,
    /// Those of which nobody notices who decided; without another policy, those with the same bytes.
    pub agreed: u64,
    /// Those without a usable answer.
    pub faults: u64,
    /// Those of them that did not fail before.
    pub new_faults: u64,
    /// Who decided again.
    pub policy: Named,
    /// Whom it was compared with; none: what was recorded.
    pub against: Option<Named>,
    /// Figures of who decided again.
    pub figures: Figures,
    /// Figures of whom it was compared with.
    pub base_figures: Figures,
    /// What was demanded.
    pub assertions: Vec<Checked>,
    /// Kinds of changes, most frequent first; what comes beyond their bound is counted.
    pub kinds: Vec<Flow>,
    /// Changes of further kinds.
    pub kinds_beyond: u64,
    /// Some changed decisions.
    pub examples: Vec<Example>,
    /// Decisions that could not be compared, by the reason.
    pub passed_over: BTreeMap<&'static str, u64>,
    /// Decisions on which something had a part that outlives a call and that the contract does not know.
    pub hidden_state: u64,
    /// What the recording itself says is missing.
    pub gaps: Gap,
    /// Lines that could not be understood.
    pub damaged: u64,
    /// The first of them.
    pub first_damage: Option<String>,
    /// Whether the trace ends in the middle of a line.
    pub cut: bool,
    /// Whether names of rooms are hashed, so that policies that decide by the name answer differently.
    pub redacted: bool,
    /// Whether a policy that was named was recorded with other settings or limits than those that it decided with here.
    pub other_settings: bool,
    /// From the beginning to the last decision, in seconds.
    pub span_s: f64,
    by_hook: BTreeMap<&'static str, OfHook>,
    ns_p50: [u64; 2],
    fault_kinds: BTreeMap<&'static str, u64>,
    placed: Vec<(String, [u64; 2])>,
    /// Whether each decision was made again by the version that had made it.
    own: bool,
    page: Page,
}

/// A policy by name and content hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its content hash, 12 hex digits.
    pub version: String,
}

impl Replayed {
    pub(super) fn of(replay: Replay) -> Self {
        let figures = |side: usize| {
            let mut figures = replay.sides[side].figures();
            replay.placements.add_figures(side, &mut figures);
            if side == 1 && replay.decisions > 0 {
                let agreement = rounded(replay.agreed as f64 / replay.decisions as f64);
                figures.insert(Metric::Agreement, agreement);
            }
            figures
        };
        let (base_figures, figures) = (figures(0), figures(1));
        let named = |warm: &super::Warm| Named { name: warm.name().into(), version: warm.version().into() };
        let own = replay.subject.is_none();
        let policy = match &replay.subject {
            Some(warm) => named(warm),
            None => {
                let text = &replay.first.policy;
                Named { name: text.name.clone(), version: text.version.clone() }
            }
        };
        let against = match &replay.baseline {
            Baseline::Recorded => None,
            Baseline::Other(warm) => Some(named(warm)),
        };
        let assertions = replay.plan.assertions.iter().map(|assertion: &Assertion| assertion.check(&figures)).collect();
        let fault_kinds = replay.sides[1].faults.iter().map(|(kind, count)| (kind.label(), *count)).collect();
        let mut replayed = Self {
            decisions: replay.decisions,
            agreed: replay.agreed,
            faults: replay.sides[1].faults(),
            new_faults: replay.new_faults,
            policy,
            against,
            figures,
            base_figures,
            assertions,
            kinds: replay.changes.flows(),
            kinds_beyond: replay.changes.beyond,
            examples: replay.changes.examples(),
            passed_over: replay.passed.iter().map(|(why, count)| (why.name(), *count)).collect(),
            hidden_state: replay.hidden_state,
            gaps: replay.gaps,
            damaged: replay.damaged,
            first_damage: replay.first_damage.clone(),
            cut: replay.cut,
            redacted: replay.first.redacted,
            other_settings: replay.other_settings,
            span_s: replay.last_us as f64 / 1e6,
            by_hook: replay.by_hook.clone(),
            ns_p50: [0, 1].map(|side: usize| replay.sides[side].times.percentile(0.5)),
            fault_kinds,
            placed: replay.placements.totals().map(|(id, totals)| (id.to_string(), totals)).collect(),
            own,
            page: Page::default(),
        };
        replayed.page = replayed.to_page(&replay);
        replayed
    }

    /// Decisions that differ.
    pub fn changed(&self) -> u64 {
        self.decisions - self.agreed
    }

    /// Why the replay is not good, if it is not: what was demanded and does not hold, or that a version did not decide
    /// again as it had.
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> =
            self.assertions.iter().filter(|checked| !checked.ok).map(ToString::to_string).collect();
        if self.own && self.changed() > 0 && !self.redacted {
            failures.push(format!(
                "{} of {} decisions were not made again as they were recorded",
                self.changed(),
                self.decisions
            ));
        }
        // What was not compared proves nothing.
        let unknown = self.passed_over.get("no_such_version").copied().unwrap_or_default();
        if self.own && unknown > 0 {
            failures.push(format!("{unknown} decisions were taken by versions that the trace does not hold"));
        } else if self.own && self.decisions == 0 && !self.passed_over.is_empty() {
            failures.push("none of the decisions could be made again".into());
        }
        failures
    }

    /// What is worth knowing besides the figures, each in a line.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.decisions == 0 {
            notes.push("there was no decision to make again".into());
        }
        for (why, count) in &self.passed_over {
            let why = match *why {
                "bypassed" => "an open breaker had kept them from the policy",
                "cpu_time" => "they were stopped for their CPU time, which is the machine's",
                "memory" => "they were stopped for the memory of their VM, which depends on the calls before",
                "reads_lost" => "they read more than a trace keeps of a call",
                _ => "the trace does not hold the version that decided them",
            };
            notes.push(format!("{count} decisions passed over: {why}"));
        }
        if self.hidden_state > 0 {
            notes.push(format!(
                "hidden state had a part in {} decisions, such as a variable of the script that outlives its call",
                self.hidden_state
            ));
        }
        if self.other_settings {
            notes.push(
                "the policy was also recorded with other settings or limits than those at the head of the trace, \
                 with which it decided here; --config gives it others"
                    .into(),
            );
        }
        if self.redacted {
            notes.push("names of rooms are hashed: a policy that decides by the name answers differently".into());
        }
        if self.gaps != Gap::default() {
            notes.push(format!(
                "the recording dropped {} decisions and {} events",
                self.gaps.decisions, self.gaps.events
            ));
        }
        if let Some(first) = &self.first_damage {
            notes.push(format!("{} lines could not be read and were passed over, the first: {first}", self.damaged));
        }
        if self.cut {
            notes.push("the trace ends in the middle of a line: the recording was cut off".into());
        }
        if self.kinds_beyond > 0 {
            notes.push(format!("{} changes of further kinds are counted and not shown", self.kinds_beyond));
        }
        notes
    }

    /// How often hooks were asked: hook, decisions, agreed, changed, faults.
    pub fn hooks(&self) -> impl Iterator<Item = (&'static str, [u64; 4])> {
        self.by_hook.iter().map(|(hook, of)| (*hook, [of.decisions, of.agreed, of.changed, of.faults]))
    }

    /// The median time of one call in nanoseconds: of whom it was compared with, and of who decided again.
    pub fn ns_p50(&self) -> [u64; 2] {
        self.ns_p50
    }

    /// What the first side of the comparison is called.
    pub fn base_name(&self) -> &str {
        self.against.as_ref().map_or("recorded", |named| &named.name)
    }

    /// The data of a report.
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// The document of `--format json`.
    pub fn document(&self) -> Json {
        let mut document = Map::new();
        let mut put = |key: &str, value: Json| drop(document.insert(key.into(), value));
        put("decisions", self.decisions.into());
        put("agreed", self.agreed.into());
        put("changed", self.changed().into());
        put("faults", self.faults.into());
        put("policy", self.policy.name.as_str().into());
        if let Some(against) = &self.against {
            put("against", against.name.as_str().into());
            put("against_version", against.version.as_str().into());
        }
        put("metrics", metrics(&self.figures, self.ns_p50[1]));
        put("assertions", json!(self.assertions));
        put("examples", json!(self.examples));
        put("policy_version", self.policy.version.as_str().into());
        put("base_metrics", metrics(&self.base_figures, self.ns_p50[0]));
        put("new_faults", self.new_faults.into());
        put("faults_by_kind", json!(self.fault_kinds));
        put("by_hook", json!(self.by_hook));
        put("kinds", json!(self.kinds));
        put("kinds_beyond", self.kinds_beyond.into());
        let placed = |(id, [base, now]): &(String, [u64; 2])| json!({"id": id, "base": base, "now": now});
        put("placed", self.placed.iter().map(placed).collect());
        put("passed_over", json!(self.passed_over));
        put("hidden_state", self.hidden_state.into());
        put("gaps", json!(self.gaps));
        put("damage", json!({"lines": self.damaged, "first": self.first_damage, "cut": self.cut}));
        put("redacted", self.redacted.into());
        put("other_settings", self.other_settings.into());
        put("span_s", self.span_s.into());
        put("failures", json!(self.failures()));
        Json::Object(document)
    }

    fn to_page(&self, replay: &Replay) -> Page {
        let side = |at: usize, name: &str, version: &str, figures: &Figures, assertions: Vec<Checked>| {
            let tally: &Tally = &replay.sides[at];
            let mut more = vec![("us_p50".to_owned(), self.ns_p50[at] as f64 / 1e3)];
            more.extend(tally.faults.iter().map(|(kind, count)| (format!("faults: {}", kind.label()), *count as f64)));
            Side {
                policy: name.into(),
                version: version.into(),
                figures: figures.clone(),
                more,
                assertions,
                load: replay.placements.over_time(at),
            }
        };
        let base_version = self.against.as_ref().map_or("", |against| &against.version);
        let mut facts = vec![
            ("recorded by".to_owned(), format!("{} in {}", replay.first.balancer, replay.first.region)),
            ("span".to_owned(), format!("{:.1} s", self.span_s)),
            ("decisions".to_owned(), self.decisions.to_string()),
            ("changed".to_owned(), self.changed().to_string()),
        ];
        facts.extend(self.notes().into_iter().map(|note| ("note".to_owned(), note)));
        Page {
            title: format!("Replay: {} beside {}", self.policy.name, self.base_name()),
            facts,
            sides: vec![
                side(0, self.base_name(), base_version, &self.base_figures, Vec::new()),
                side(1, &self.policy.name, &self.policy.version, &self.figures, self.assertions.clone()),
            ],
            flows: self.kinds.clone(),
            rows: replay.changes.rows(),
            rows_of: self.changed(),
        }
    }
}

fn metrics(figures: &Figures, ns_p50: u64) -> Json {
    let mut metrics = json!(figures);
    if ns_p50 > 0 {
        metrics["ns_p50"] = ns_p50.into();
    }
    metrics
}
