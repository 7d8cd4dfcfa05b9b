//! A story as text: one paragraph a chapter, with its moment, the time since the one before, and for a decision a table
//! of the Monoliths that mattered.

use std::fmt::Write as _;

use crate::lab::page_text::plain;
use crate::model::policy::{Answer, Cause, FaultKind, MonolithRow, MonolithState};
use crate::model::story::{Candidate, Chapter, Decided, MoveEnd, Mover, PolicyOf, Sign, What};
use crate::model::wire::UnloadReason;
use crate::policy::versions::timestamp;

/// Where the text of a chapter begins.
const COLUMN: usize = 28;

/// All chapters, oldest first.
pub(super) fn story(chapters: &[Chapter], forgotten: u64) -> String {
    let mut out = String::new();
    let mut day = String::new();
    let mut before = None;
    if forgotten > 0 {
        line(&mut out, "", &format!("({} before this are not kept)", count(forgotten, "chapter")));
    }
    for chapter in chapters {
        let now = timestamp(chapter.at);
        let (date, time) = now.split_once('T').unwrap_or((&now, ""));
        if date != day {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "\n{date} (UTC)");
            day = date.to_string();
        }
        let time = format!("{}.{:03}", time.trim_end_matches('Z'), chapter.at / 1000 % 1000);
        let since = before.map(|before| format!("+{}", span(chapter.at.saturating_sub(before)))).unwrap_or_default();
        before = Some(chapter.until.unwrap_or(chapter.at));
        let (mut headline, details) = told(&chapter.what);
        if let Some(until) = chapter.until {
            let over = span(until.saturating_sub(chapter.at));
            let _ = write!(headline, " ({} times within {over})", chapter.times);
        }
        line(&mut out, &format!("{time}  {since:>12}"), &headline);
        for detail in details {
            line(&mut out, "", &format!("  {detail}"));
        }
    }
    out
}

fn line(out: &mut String, left: &str, text: &str) {
    // Names and texts of a policy come from far away.
    let padded = format!("{left:COLUMN$}{}", plain(text));
    out.push_str(padded.trim_end());
    out.push('\n');
}

/// A time span in the largest units that say something: `0.006 s`, `2 min 5 s`.
fn span(us: u64) -> String {
    let seconds = us / 1_000_000;
    match seconds {
        0..60 => format!("{:.3} s", us as f64 / 1e6),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `1 client`, `2 clients`.
pub(super) fn count(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A headline, and lines below it.
fn told(what: &What) -> (String, Vec<String>) {
    let clients = |clients: &usize| count(*clients as u64, "client");
    let headline = match what {
        What::Decided(decided) => return self::decided(decided),
        What::Sent { attempt, monolith, .. } => {
            format!("placed (move, attempt {attempt}): {monolith}, where it was to move; the policy was not asked")
        }
        What::Claimed { monolith, instead_of } => {
            format!("another balancer was first to send it to {monolith}, so it goes there and not to {instead_of}")
        }
        What::Waits => "waits until every Monolith has said what it has: one of them may have it".into(),
        What::Bound { monolith, epoch, how, instead_of } => {
            let how = match (how, epoch) {
                (Sign::Reported, Some(epoch)) => format!("it has reported it, epoch {epoch}"),
                (Sign::Reported, None) => "it has reported it".into(),
                (Sign::Answered, _) => "it has answered the first client".into(),
                (Sign::Served, _) => "it has served it over HTTP".into(),
            };
            let instead = instead_of
                .as_ref()
                .map_or_else(String::new, |id| format!("; it had been sent to {id}, but another balancer was first"));
            format!("on {monolith}: {how}{instead}")
        }
        What::Found { monolith, epoch } => {
            format!("on {monolith}: it reports it, epoch {epoch}, and nobody here had asked for it")
        }
        What::Created { monolith } => format!("created on {monolith} over HTTP"),
        What::NotConfirmed { monolith, attempt, why } => {
            let why = match why.as_str() {
                "timeout" => "did not confirm it in time",
                "link_down" => "was lost before it confirmed it",
                "refused" => "could not be reached",
                other => other,
            };
            format!("attempt {attempt} failed: {monolith} {why}")
        }
        What::Denied { monolith, code: 404 | 4002 } => format!("{monolith} says that there is no such room"),
        What::Denied { monolith, code } => format!("{monolith} did not create it: {code}"),
        What::Refused { waiting, code } => {
            format!("nobody takes it: whoever waited ({waiting}) was refused with {code}")
        }
        What::WaitedTooLong { code } => format!("somebody had waited for too long and was refused with {code}"),
        What::Unreported { monolith } => format!("given up: {monolith} never reported it, and nobody is in it"),
        What::Unloaded { monolith, reason, clients: left } => {
            let why = match reason {
                Some(UnloadReason::Keepalive) => "nobody was there",
                Some(UnloadReason::Admin) => "an administrator asked",
                Some(UnloadReason::Commanded) => "a balancer asked",
                Some(UnloadReason::Shutdown) => "it stops",
                Some(UnloadReason::Other) => "for a reason of its own",
                None => "it no longer lists it",
            };
            let closed = if *left > 0 { format!("; closes {}", clients(left)) } else { String::new() };
            format!("{monolith} has unloaded it ({why}){closed}")
        }
        What::Lost { monolith, clients: left } => format!("{monolith} was lost, with {} in it", clients(left)),
        What::Duplicate { kept, kept_epoch, lost, lost_epoch, clients: closed } => {
            let epoch = |epoch: &Option<crate::model::Epoch>| {
                epoch.map_or_else(|| "not reported".to_string(), |epoch| format!("epoch {epoch}"))
            };
            let (kept_epoch, lost_epoch) = (epoch(kept_epoch), epoch(lost_epoch));
            let closed =
                if *closed > 0 { format!("; closes {}, to come back", clients(closed)) } else { String::new() };
            format!(
                "conflict: {kept} ({kept_epoch}) and {lost} ({lost_epoch}) both have it; the older load stays, \
                 {lost} is to unload it{closed}"
            )
        }
        What::SecondLoad { monolith, first } => format!("conflict: loaded on {monolith} as well, while {first} has it"),
        What::MoveNamed { to, policy } => format!("rebalance of {} wants it on {to}", version(policy)),
        What::WouldMove { to, policy } => {
            let policy = policy.as_ref().map(version).unwrap_or_default();
            format!("rebalance {policy} would move it to {to} (dry: nothing moves)")
        }
        What::Moving { from, to, clients: moved, by, lossy, policy, explained } => {
            let who = match (by, policy) {
                (Mover::Hand, _) => "by hand".into(),
                (Mover::Drain, _) => "by a drain".into(),
                (Mover::Policy, Some(policy)) => format!("by rebalance of {}", version(policy)),
                (Mover::Policy, None) => "by rebalance".into(),
            };
            let to = to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
            let lossy = if *lossy { "; somebody still talked" } else { "" };
            let headline = format!("moves from {from}{to}, {who}, with {}{lossy}", clients(moved));
            return (headline, explained.iter().map(|text| format!("said: {text}")).collect());
        }
        What::MoveRefused { to, by, why } => {
            let who = match by {
                Mover::Hand => "by hand",
                Mover::Policy => "by rebalance",
                Mover::Drain => "by a drain",
            };
            let to = to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
            format!("does not move{to} ({who}): {why}")
        }
        What::MoveEnded { from, to, how } => {
            let sent = to.as_ref().map(|to| format!(": whoever asks for it soon is sent to {to}")).unwrap_or_default();
            let not = to.as_ref().map(|to| format!("; it does not move to {to}")).unwrap_or_default();
            match how {
                MoveEnd::LetGo => format!("{from} has let it go{sent}"),
                MoveEnd::SourceLost => format!("{from} was lost while it moved{sent}"),
                MoveEnd::TimedOut => format!("{from} did not let it go in time and keeps it{not}"),
                MoveEnd::Deserted => format!("everybody had left before {from} was asked, which keeps it{not}"),
                MoveEnd::LoadedAgain => format!("{from} has loaded it anew and keeps it{not}"),
                MoveEnd::Elsewhere => format!("left {from}, as another Monolith's report says"),
            }
        }
        What::Admission { policy, answer, fault } => {
            let said = match answer {
                Answer::Reject { code, reason } if reason.is_empty() => format!("refused a client with {code}"),
                Answer::Reject { code, reason } => format!("refused a client with {code}: {reason}"),
                Answer::Hold { delay } => format!("held a client for {} ms", delay.as_millis()),
                _ => "let a client in".into(),
            };
            let fault = fault.iter().map(|fault| format!("failed: {fault}")).collect();
            return (format!("admit of {} {said}", version(policy)), fault);
        }
        What::Clients { joined, left, requests } => {
            let parts = [(joined, "joined"), (left, "left")].map(|(n, what)| (*n > 0).then(|| format!("{n} {what}")));
            let requests = (*requests > 0).then(|| count(*requests, "request"));
            let parts: Vec<String> = parts.into_iter().chain([requests]).flatten().collect();
            format!("clients: {}", parts.join(", "))
        }
        What::Gap { events, decisions } => {
            format!("a gap: {} and {} were not recorded", count(*events, "event"), count(*decisions, "decision"))
        }
        What::Unknown => "something that this version of usher does not know; --format json shows it".into(),
    };
    (headline, Vec::new())
}

fn version(policy: &PolicyOf) -> String {
    format!("{} {}{}", policy.name, policy.version, if policy.canary { " (canary)" } else { "" })
}

fn decided(decided: &Decided) -> (String, Vec<String>) {
    let cause = match decided.cause {
        Some(Cause::Join) => "join",
        Some(Cause::Create) => "create",
        Some(Cause::Http) => "request",
        Some(Cause::Move) => "move",
        Some(Cause::Lost) => "its Monolith was lost",
        None => "no cause given",
    };
    let outcome = match (&decided.monolith, &decided.answer) {
        (Some(monolith), _) => monolith.to_string(),
        (None, Answer::Reject { code, .. }) => format!("refused with {code}"),
        (None, _) => "no Monolith may take it".into(),
    };
    let headline = format!("placed ({cause}, attempt {}): {outcome}", decided.attempt);
    let mut details = vec![who(decided)];
    if let Some(fault) = &decided.fault {
        let what = if decided.fault_kind == Some(FaultKind::NotEligible) { "overruled" } else { "fault" };
        details.push(format!("{what}: {fault}"));
    }
    details.extend(decided.explained.iter().map(|text| format!("said: {text}")));
    details.extend(decided.overruled.iter().map(|one| format!("overruled: {}: {}", one.monolith, one.why)));
    if !decided.excluded.is_empty() {
        let ids: Vec<&str> = decided.excluded.iter().map(crate::model::MonolithId::as_str).collect();
        details.push(format!("tried before: {}", ids.join(", ")));
    }
    if let Some(previous) = &decided.previous {
        details.push(format!("before, it was on {} ({})", previous.monolith, previous.why));
    }
    if !decided.candidates.is_empty() {
        details.extend(table(decided));
    }
    (headline, details)
}

/// Who decided, and what it said.
fn who(decided: &Decided) -> String {
    let by = version(&decided.policy);
    let took = format!("{:.1} us", decided.ns as f64 / 1e3);
    let for_whom = match &decided.region {
        Some(region) => format!("; {} of {region}", count(u64::from(decided.clients), "client")),
        None => String::new(),
    };
    let said = match &decided.answer {
        _ if decided.bypassed => "its breaker is open, so the built-in default chose".to_string(),
        _ if decided.fault.is_some() => "it failed, so the built-in default chose".into(),
        Answer::Default => "it left the choice to the built-in default".into(),
        Answer::Ranked(ids) if decided.named > 1 => {
            let shown: Vec<&str> = ids.iter().take(3).map(crate::model::MonolithId::as_str).collect();
            let more = if decided.named > shown.len() {
                format!(" and {} more", decided.named - shown.len())
            } else {
                String::new()
            };
            format!("it named {}{more}", shown.join(", "))
        }
        Answer::Ranked(ids) => match ids.first() {
            Some(id) => format!("it named {id}"),
            None => "it named nobody, so the built-in default chose".into(),
        },
        Answer::Reject { reason, .. } if reason.is_empty() => "it refused".into(),
        Answer::Reject { reason, .. } => format!("it refused: {reason}"),
        Answer::Admit | Answer::Hold { .. } | Answer::Moves(_) => "it gave an answer of another hook".into(),
    };
    format!("by {by}, {took}: {said}{for_whom}")
}

/// A column of the table: its head, and the text of a row.
type Column = (&'static str, fn(&MonolithRow) -> String);

/// Columns that are left out where they say nothing about anybody.
const COLUMNS: [Column; 12] = [
    ("rooms", |row| row.rooms.to_string()),
    ("pending", |row| row.pending.to_string()),
    ("clients", |row| row.clients.to_string()),
    ("users", |row| row.users.to_string()),
    ("inflight", |row| row.inflight.to_string()),
    ("queue", |row| row.queue.to_string()),
    ("rtt_ms", |row| number(row.rtt_ms)),
    ("latency_ms", |row| number(row.latency_ms)),
    ("errors", |row| number(row.errors)),
    ("age_s", |row| number(row.age_s)),
    ("weight", |row| if row.weight == 1.0 { "0".into() } else { number(row.weight) }),
    ("load_age_s", |row| row.load_age_s.map_or_else(|| "0".into(), number)),
];

fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    match text.trim_end_matches('0').trim_end_matches('.') {
        "-0" => "0".into(),
        text => text.into(),
    }
}

/// The Monoliths that mattered: `>` is the one that was chosen, a number the place at which the policy named it.
fn table(decided: &Decided) -> Vec<String> {
    let rows = &decided.candidates;
    let mut columns: Vec<Vec<String>> = Vec::new();
    let mark = |one: &Candidate| {
        let chosen = if decided.monolith.as_ref() == Some(&one.row.id) { ">" } else { " " };
        format!("{chosen} {}", one.named.map(|at| at.to_string()).unwrap_or_default())
    };
    let state = |row: &MonolithRow| match row.state {
        MonolithState::Up => "up",
        MonolithState::Suspect => "suspect",
        MonolithState::Draining => "draining",
        MonolithState::Ejected => "ejected",
    };
    let column = |head: &str, text: &dyn Fn(&Candidate) -> String| -> Vec<String> {
        std::iter::once(head.to_string()).chain(rows.iter().map(text)).collect()
    };
    columns.push(column("", &mark));
    columns.push(column("monolith", &|one| one.row.id.to_string()));
    columns.push(column("region", &|one| one.row.region.to_string()));
    columns.push(column("state", &|one| state(&one.row).to_string()));
    for (head, text) in COLUMNS {
        let cells = column(head, &|one| text(&one.row));
        if head == "rooms" || cells[1..].iter().any(|cell| cell != "0") {
            columns.push(cells);
        }
    }
    let loads: std::collections::BTreeSet<&String> = rows.iter().flat_map(|one| one.row.load.keys()).collect();
    for name in loads {
        let head = format!("load.{name}");
        columns.push(column(&head, &|one| one.row.load.get(name).map_or_else(|| "-".into(), |value| number(*value))));
    }
    columns.push(column("", &|one| one.why_not.clone().unwrap_or_default()));
    let widths: Vec<usize> =
        columns.iter().map(|cells| cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    let numeric = |at: usize| at >= 4 && at + 1 < columns.len();
    let mut lines: Vec<String> = (0..=rows.len())
        .map(|row| {
            let cells = columns.iter().zip(&widths).enumerate().map(|(at, (cells, width))| match numeric(at) {
                true => format!("{:>width$}", cells[row]),
                false => format!("{:width$}", cells[row]),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
        })
        .collect();
    let more = decided.monoliths.saturating_sub(rows.len());
    if more > 0 {
        lines.push(format!("  and {more} more {}", if more == 1 { "Monolith" } else { "Monoliths" }));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::Hook;
    use crate::model::story::Overruled;

    fn candidate(id: &str, rooms: u32, named: Option<usize>, why_not: Option<&str>) -> Candidate {
        let row = MonolithRow { id: id.into(), region: "ewr".into(), rooms, rtt_ms: 1.5, ..MonolithRow::default() };
        Candidate { row, named, why_not: why_not.map(str::to_string) }
    }

    fn example() -> Decided {
        Decided {
            hook: Hook::Place,
            cause: Some(Cause::Join),
            attempt: 2,
            policy: PolicyOf { name: "calm".into(), version: "0123456789ab".into(), canary: true },
            region: Some("cdg".into()),
            clients: 1,
            previous: None,
            answer: Answer::Ranked(vec!["m3".into(), "m1".into()]),
            named: 2,
            monolith: Some("m1".into()),
            fault: None,
            fault_kind: None,
            bypassed: false,
            overruled: vec![Overruled { monolith: "m3".into(), why: "draining".into() }],
            excluded: vec!["m2".into()],
            explained: vec!["fewest rooms".into()],
            ns: 12_345,
            monoliths: 1000,
            candidates: vec![candidate("m3", 1, Some(1), Some("draining")), candidate("m1", 12, Some(2), None)],
        }
    }

    #[test]
    fn a_story_reads_like_one() {
        let at = 1_700_000_000_004_000;
        let mut refused = Chapter::new(
            at + 65_000_000,
            What::Admission {
                policy: PolicyOf { name: "calm".into(), version: "0123456789ab".into(), canary: false },
                answer: Answer::Reject { code: 503, reason: "full".into() },
                fault: None,
            },
        );
        refused.again(at + 66_000_000, refused.what.clone());
        let chapters = [
            Chapter::new(at, What::Decided(Box::new(example()))),
            Chapter::new(
                at + 6_000,
                What::Bound {
                    monolith: "m1".into(),
                    epoch: Some(crate::model::Epoch(3)),
                    how: Sign::Reported,
                    instead_of: None,
                },
            ),
            refused,
            Chapter::new(at + 86_400_000_000, What::Lost { monolith: "m1".into(), clients: 2 }),
        ];
        let expected = "                            (2 chapters before this are not kept)

2023-11-14 (UTC)
22:13:20.004                placed (join, attempt 2): m1
                              by calm 0123456789ab (canary), 12.3 us: it named m3, m1; 1 client of cdg
                              said: fewest rooms
                              overruled: m3: draining
                              tried before: m2
                                   monolith  region  state  rooms  rtt_ms
                                1  m3        ewr     up         1     1.5  draining
                              > 2  m1        ewr     up        12     1.5
                                and 998 more Monoliths
22:13:20.010      +0.006 s  on m1: it has reported it, epoch 3
22:14:25.004    +1 min 4 s  admit of calm 0123456789ab refused a client with 503: full (2 times within 1.000 s)

2023-11-15 (UTC)
22:13:20.004  +23 h 58 min  m1 was lost, with 2 clients in it
";
        assert_eq!(story(&chapters, 2), expected);
    }

    #[test]
    fn who_decided_is_always_said() {
        let check = |change: &dyn Fn(&mut Decided), expected: &str| {
            let mut decided = example();
            change(&mut decided);
            let (headline, details) = self::decided(&decided);
            let all = format!("{headline}\n{}", details.join("\n"));
            assert!(all.contains(expected), "{expected} is not in\n{all}");
        };
        check(&|d| d.bypassed = true, "its breaker is open, so the built-in default chose");
        check(&|d| d.fault = Some("calm.lua:3: boom".into()), "fault: calm.lua:3: boom");
        let not_eligible = |d: &mut Decided| {
            (d.fault, d.fault_kind) = (Some("calm.lua:3: nobody".into()), Some(FaultKind::NotEligible));
        };
        check(&not_eligible, "overruled: calm.lua:3: nobody");
        check(&|d| d.answer = Answer::Default, "it left the choice to the built-in default");
        check(&|d| (d.answer, d.named) = (Answer::Ranked(vec![]), 0), "it named nobody");
        let reject = |d: &mut Decided| {
            d.answer = Answer::Reject { code: 503, reason: "closed".into() };
            d.monolith = None;
        };
        check(&reject, "placed (join, attempt 2): refused with 503");
        check(&reject, "it refused: closed");
        check(&|d| d.named = 40, "it named m3, m1 and 38 more");
    }
}
