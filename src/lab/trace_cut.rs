//! A part of a trace that stands alone: with the policy that was in force, the Monoliths that were linked, the rooms that
//! were loaded and the clients that were in them when it begins.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::texts::Texts;
use super::when::When;
use crate::model::policy::View;
use crate::model::{ClientId, MonolithId, Region};
use crate::trace::read::{Reader, TraceError};
use crate::trace::record::{Decided, Gap, Header, LiveEvent, PolicyText, TraceEvent};
use crate::trace::{Encoder, Item};

/// Clients and rooms that are remembered until the part begins. A client beyond them is not there, and its leave is not
/// written.
const MAX_CLIENTS: usize = 1_000_000;
const MAX_ROOMS: usize = 1_000_000;
/// How hard `.zst` files are compressed.
const LEVEL: i32 = 3;

/// What was cut out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// Events, without those that restate what was there before.
    pub events: u64,
    /// Decisions.
    pub decisions: u64,
    /// The numbers of the first and the last decision in the file that was cut, where several files in one are counted
    /// through; they begin with 1 in the new one.
    pub numbers: Option<(u64, u64)>,
    /// Monoliths, rooms and clients that were there when the part begins.
    pub restated: (usize, usize, usize),
    /// Lines that could not be understood: told as missing events.
    pub damaged: u64,
}

/// Why nothing was cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The new file cannot be written.
    #[error("{}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Asked(String),
}

/// Copies what happened from one moment on and before another into a file, which is compressed if its name ends in `.zst`.
/// It appears under its name when it is complete. `force` replaces a file of that name; the input is never replaced. `progress` hears of every line.
pub fn cut_file(
    reader: &mut Reader,
    input: &Path,
    span: (When, When),
    (out, force): (&Path, bool),
    progress: &mut dyn FnMut(u64),
) -> Result<Cut, CutError> {
    let write = |error| CutError::Write { path: out.into(), error };
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(input, out) {
        return Err(CutError::Asked(format!("{}: is the trace that is cut; write to another file", out.display())));
    }
    if out.exists() && !force {
        return Err(CutError::Asked(format!("{}: exists; --force replaces it", out.display())));
    }
    let name = out.file_name().ok_or_else(|| CutError::Asked(format!("{}: is no name of a file", out.display())))?;
    let part = out.with_file_name(format!(".{}.part", name.to_string_lossy()));
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&part).map_err(write)?;
    let cut = write_part(reader, span, file, out, progress).and_then(|cut| {
        std::fs::rename(&part, out).map_err(write)?;
        Ok(cut)
    });
    if cut.is_err() {
        // What is incomplete is of no use; that it cannot be removed says nothing new.
        let _ = std::fs::remove_file(&part);
    }
    cut
}

fn write_part(
    reader: &mut Reader,
    span: (When, When),
    file: File,
    out: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Cut, CutError> {
    let write = |error| CutError::Write { path: out.into(), error };
    let plain = BufWriter::with_capacity(1 << 16, file);
    if out.extension().is_none_or(|extension| extension != "zst") {
        let mut plain = plain;
        let cut = cut(reader, span, |bytes| plain.write_all(bytes).map_err(write), progress)?;
        plain.flush().map_err(write)?;
        return Ok(cut);
    }
    let mut packed = zstd::stream::write::Encoder::new(plain, LEVEL).map_err(write)?;
    // Without it damage inside a block may come out as other text.
    packed.include_checksum(true).map_err(write)?;
    let cut = cut(reader, span, |bytes| packed.write_all(bytes).map_err(write), progress)?;
    packed.finish().and_then(|mut plain| plain.flush()).map_err(write)?;
    Ok(cut)
}

/// The same, to wherever the lines are to go.
pub fn cut(
    reader: &mut Reader,
    span: (When, When),
    write: impl FnMut(&[u8]) -> Result<(), CutError>,
    progress: &mut dyn FnMut(u64),
) -> Result<Cut, CutError> {
    let started_us = reader.header().started_us;
    let (from, to) = (span.0.after(started_us), span.1.after(started_us));
    if to <= from {
        return Err(CutError::Asked("--to is not after --from; give a part of the trace".into()));
    }
    let mut cutter = Cutter {
        header: reader.header().clone(),
        from,
        before: Before::default(),
        out: None,
        lines: Vec::new(),
        damaged: 0,
        done: Cut::default(),
        write,
    };
    cutter.before.policies.declare(reader.header().policy.clone());
    let (mut file, mut shift, mut last) = (0, 0, None);
    // The last number of the files before this one, and of this one so far.
    let (mut before, mut latest) = (0, 0);
    while let Some((t, item)) = reader.read()? {
        progress(reader.line());
        if let Item::Header(header) = item {
            // A further file: its clients have numbers of their own, its times count from another start.
            file += 1;
            shift = header.started_us.saturating_sub(started_us);
            before += std::mem::take(&mut latest);
            // It decides from then on, and never before what stands in front of it.
            let begins = shift.max(last.unwrap_or(0));
            if begins >= to {
                break;
            }
            cutter.declared(begins.saturating_sub(from), header.policy)?;
            continue;
        }
        let t = t.saturating_add(shift);
        last = last.max(Some(t));
        if t >= to {
            break;
        }
        let item = match item {
            Item::Decision { number, call, outcome } => {
                latest = latest.max(number);
                Item::Decision { number: before.saturating_add(number), call, outcome }
            }
            other => other,
        };
        cutter.item(t, file, item, reader)?;
    }
    if cutter.done.events + cutter.done.decisions == 0 {
        let last =
            last.map_or_else(|| "it is empty".into(), |t: u64| format!("it was read up to {:.3} s", t as f64 / 1e6));
        return Err(CutError::Asked(format!("nothing is recorded between --from and --to; {last} after the start")));
    }
    cutter.damage(last.map_or(from, |last| last.clamp(from, to)), reader)?;
    Ok(cutter.done)
}

/// What holds at a moment.
#[derive(Default)]
struct Before {
    policies: Texts,
    up: BTreeMap<MonolithId, Region>,
    loaded: BTreeMap<Arc<str>, MonolithId>,
    clients: HashMap<ClientId, LiveEvent>,
    /// The order in which they came, which a restated trace keeps; those that went are still in it.
    order: VecDeque<ClientId>,
}

struct Cutter<W> {
    header: Header,
    from: u64,
    before: Before,
    /// None until the part begins.
    out: Option<Encoder>,
    lines: Vec<u8>,
    damaged: u64,
    done: Cut,
    write: W,
}

impl<W: FnMut(&[u8]) -> Result<(), CutError>> Cutter<W> {
    fn item(&mut self, t: u64, file: u64, item: Item, reader: &Reader) -> Result<(), CutError> {
        if t < self.from {
            // What is damaged up to here is no part of the cut.
            self.damaged = reader.damage().0;
            match item {
                Item::Policy(policy) => self.before.policies.declare(*policy),
                Item::Event(event) => self.before.event(live(event, file)),
                // A recording that began later than the links says nothing else of them.
                Item::View => self.before.seen(reader.view()),
                Item::Header(_) | Item::Gap(_) | Item::Decision { .. } => {}
            }
            return Ok(());
        }
        self.damage(t, reader)?;
        let at = t - self.from;
        match item {
            // Views are written again where decisions need them.
            Item::Header(_) | Item::View => {}
            Item::Policy(policy) => self.declared(at, *policy)?,
            Item::Gap(gap) => self.line(|out, lines| out.gap(at, gap, lines))?,
            Item::Event(event) => {
                self.done.events += 1;
                let event = live(event, file);
                self.line(|out, lines| out.event(at, event, lines))?;
            }
            Item::Decision { number, call, outcome } => {
                self.done.decisions += 1;
                let (first, _) = self.done.numbers.unwrap_or((number, number));
                self.done.numbers = Some((first, number));
                let decided = Decided { call: *call, view: reader.view().clone().into(), outcome: *outcome };
                self.declare_for(at, &decided.outcome.policy)?;
                self.line(|out, lines| out.decision(at, decided, lines))?;
            }
        }
        Ok(())
    }

    /// Another version decides from here on.
    fn declared(&mut self, at: u64, policy: PolicyText) -> Result<(), CutError> {
        if self.out.is_none() {
            self.before.policies.declare(policy);
            return Ok(());
        }
        self.before.policies.take(&policy.version);
        self.line(|out, lines| out.policy(at, &policy, lines))
    }

    /// A version that was declared before the part began, and decides within it: a canary, or one that was rolled back to.
    fn declare_for(&mut self, at: u64, version: &str) -> Result<(), CutError> {
        self.begin()?;
        match self.before.policies.take(version) {
            Some(policy) => self.line(|out, lines| out.policy(at, &policy, lines)),
            None => Ok(()),
        }
    }

    /// Says in the new file what could not be understood in the old one.
    fn damage(&mut self, t: u64, reader: &Reader) -> Result<(), CutError> {
        let events = reader.damage().0 - self.damaged;
        if events == 0 {
            return Ok(());
        }
        self.damaged += events;
        self.done.damaged += events;
        let at = t.saturating_sub(self.from);
        self.line(|out, lines| out.gap(at, Gap { events, decisions: 0 }, lines))
    }

    fn line(&mut self, write: impl FnOnce(&mut Encoder, &mut Vec<u8>)) -> Result<(), CutError> {
        self.begin()?;
        if let Some(out) = &mut self.out {
            write(out, &mut self.lines);
        }
        (self.write)(&self.lines)?;
        self.lines.clear();
        Ok(())
    }

    /// Writes the header and what holds at the beginning.
    fn begin(&mut self) -> Result<(), CutError> {
        if self.out.is_some() {
            return Ok(());
        }
        if let Some(policy) = self.before.policies.take_last() {
            self.header.policy = policy;
        }
        self.header.started_us = self.header.started_us.saturating_add(self.from);
        let mut out = Encoder::new(None);
        out.header(&self.header, &mut self.lines);
        let before = &mut self.before;
        self.done.restated = (before.up.len(), before.loaded.len(), before.clients.len());
        for (monolith, region) in std::mem::take(&mut before.up) {
            out.event(0, TraceEvent::MonolithUp { monolith, region }, &mut self.lines);
        }
        for (room, monolith) in std::mem::take(&mut before.loaded) {
            out.event(0, TraceEvent::Loaded { monolith, room }, &mut self.lines);
        }
        for client in std::mem::take(&mut before.order) {
            if let Some(join) = before.clients.remove(&client) {
                out.event(0, join, &mut self.lines);
            }
            if self.lines.len() > 1 << 16 {
                (self.write)(&self.lines)?;
                self.lines.clear();
            }
        }
        before.clients = HashMap::new();
        self.out = Some(out);
        Ok(())
    }
}

impl Before {
    fn seen(&mut self, view: &View) {
        for row in view.rows() {
            if !self.up.contains_key(&row.id) {
                self.up.insert(row.id.clone(), row.region.clone());
            }
        }
    }

    fn event(&mut self, event: LiveEvent) {
        match event {
            TraceEvent::MonolithUp { monolith, region } => {
                self.up.insert(monolith, region);
            }
            TraceEvent::MonolithDown { monolith } => {
                self.up.remove(&monolith);
                self.loaded.retain(|_, owner| *owner != monolith);
            }
            TraceEvent::Loaded { monolith, room } => {
                if self.loaded.len() < MAX_ROOMS || self.loaded.contains_key(&room) {
                    self.loaded.insert(room, monolith);
                }
            }
            TraceEvent::Unloaded { monolith, room, .. } => {
                if self.loaded.get(&room) == Some(&monolith) {
                    self.loaded.remove(&room);
                }
            }
            TraceEvent::Join { client, .. } => {
                if self.clients.len() < MAX_CLIENTS {
                    self.clients.insert(client, event);
                    self.order.push_back(client);
                    self.tidy();
                }
            }
            TraceEvent::Leave { client } => {
                self.clients.remove(&client);
            }
            TraceEvent::Load { .. } | TraceEvent::Gossip { .. } | TraceEvent::Request { .. } => {}
        }
    }

    /// Forgets the order of those that went, before it outgrows those that are there.
    fn tidy(&mut self) {
        if self.order.len() > 1024 && self.order.len() > 2 * self.clients.len() {
            self.order.retain(|client| self.clients.contains_key(client));
        }
    }
}

/// An event with a client that is told apart from those of other files.
fn live(event: TraceEvent, file: u64) -> LiveEvent {
    let id = |number: u64| ClientId::from_u128(u128::from(file) << 64 | u128::from(number));
    match event {
        TraceEvent::Join { client, room, region, reconnect } => {
            TraceEvent::Join { client: id(client), room, region, reconnect }
        }
        TraceEvent::Leave { client } => TraceEvent::Leave { client: id(client) },
        TraceEvent::MonolithUp { monolith, region } => TraceEvent::MonolithUp { monolith, region },
        TraceEvent::MonolithDown { monolith } => TraceEvent::MonolithDown { monolith },
        TraceEvent::Load { monolith, load } => TraceEvent::Load { monolith, load },
        TraceEvent::Gossip { monolith, rooms, users } => TraceEvent::Gossip { monolith, rooms, users },
        TraceEvent::Loaded { monolith, room } => TraceEvent::Loaded { monolith, room },
        TraceEvent::Unloaded { monolith, room, reason } => TraceEvent::Unloaded { monolith, room, reason },
        TraceEvent::Request { room, region } => TraceEvent::Request { room, region },
    }
}
