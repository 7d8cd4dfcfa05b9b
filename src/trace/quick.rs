//! Reads the lines of decisions and views as the encoder writes them, in one pass and with few allocations. A replay reads nothing
//! else by the hundred thousand. It understands a line wholly or not at all: one that looks otherwise, such as one that
//! was written by hand, is left to the general way in `decode.rs`, which also says what is wrong with it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::cursor::Cursor;
use super::record::{Counts, Outcome};
use crate::model::policy::{
    Answer, Call, CallClient, CallRequest, CallRoom, Cause, Fault, FaultKind, Hook, MonolithRow, MonolithState, Move,
    Previous,
};
use crate::model::read::{Kept, Read};
use crate::model::{MonolithId, Region};

/// The most texts that are kept to be shared, and the longest of them in bytes. Beyond them all are forgotten.
const MOST_TEXTS: usize = 4096;
const LONGEST_TEXT: usize = 64;

/// Texts that came up before: ids, regions and rooms stand in line after line, and one allocation serves them all.
#[derive(Debug)]
pub(super) struct Texts {
    known: HashSet<Arc<str>, RandomState>,
    /// Some of them once more, by the bytes with which they stand in a line: to find one here takes neither a look for
    /// its end nor a hash of it. Only such as are short and written without escapes.
    seen: Vec<Option<Arc<str>>>,
}

/// The places of texts that were seen, a power of two.
const SEEN: usize = 1024;

impl Default for Texts {
    fn default() -> Self {
        Self { known: HashSet::default(), seen: vec![None; SEEN] }
    }
}

impl Texts {
    pub(super) fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        let shared = Arc::<str>::from(text);
        if text.len() <= LONGEST_TEXT {
            if self.known.len() >= MOST_TEXTS {
                self.known.clear();
            }
            self.known.insert(shared.clone());
        }
        shared
    }

    /// The text that stands here.
    #[inline]
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Option<Arc<str>> {
        let at = cursor.next_bytes().map_or(0, place);
        if let Some(seen) = self.seen[at].as_ref().filter(|seen| cursor.eat_text(seen)) {
            return Some(seen.clone());
        }
        let text = cursor.text()?;
        let shared = self.shared(&text);
        let plain = matches!(text, Cow::Borrowed(_)) && text.len() <= LONGEST_TEXT;
        self.seen[at] = plain.then(|| shared.clone());
        Some(shared)
    }
}

/// The place of a text that begins with these bytes, be they its own or what follows it.
fn place(bytes: [u64; 2]) -> usize {
    let mixed = (bytes[0] ^ bytes[1].rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - SEEN.trailing_zeros())) as usize
}

/// The counts of the line before, as they were written: most of them stand in the next line again.
#[derive(Debug, Default)]
pub(super) struct Written {
    text: Vec<u8>,
    /// Where the counts of each Monolith end in the text, its row, and the counts.
    entries: Vec<(usize, usize, Counts)>,
    /// Room for those of the next line.
    spare: Vec<(usize, usize, Counts)>,
}

impl Written {
    /// Rows have come or gone.
    pub(super) fn forget(&mut self) {
        self.text.clear();
        self.entries.clear();
    }
}

/// The line of a decision. Its counts went elsewhere while it was read.
pub(super) struct DecisionRead {
    pub(super) t: u64,
    pub(super) number: u64,
    pub(super) view: u64,
    pub(super) call: Box<Call>,
    pub(super) outcome: Box<Outcome>,
}

/// Reads such a line. `rows` are those of the view, and `counted` becomes the places of rows with their counts.
pub(super) fn decision(
    line: &[u8],
    texts: &mut Texts,
    rows: &[MonolithRow],
    written: &mut Written,
    counted: &mut Vec<(usize, Counts)>,
) -> Option<DecisionRead> {
    counted.clear();
    let mut line = Line { cursor: Cursor::new(line), texts };
    line.cursor.expect("{\"t\":")?;
    let t = line.cursor.whole()?;
    line.cursor.expect(",\"decision\":")?;
    let number = line.cursor.whole()?;
    line.cursor.expect(",\"hook\":")?;
    line.hook()?;
    line.cursor.expect(",\"view\":")?;
    let view = line.cursor.whole()?;
    if line.cursor.eat(",\"counts\":") {
        all_counts(&mut line.cursor, rows, written, counted)?;
    }
    line.cursor.expect(",\"call\":")?;
    let call = Box::new(line.call()?);
    let outcome = Box::new(line.outcome()?);
    line.cursor.is_at_end().then_some(DecisionRead { t, number, view, call, outcome })
}

/// The counts of Monoliths, which the encoder writes in the order of the rows.
fn all_counts(
    cursor: &mut Cursor<'_>,
    rows: &[MonolithRow],
    written: &mut Written,
    counted: &mut Vec<(usize, Counts)>,
) -> Option<()> {
    let start = cursor.place();
    if !written.text.is_empty() && cursor.eat_bytes(&written.text) {
        counted.extend(written.entries.iter().map(|(_, at, counts)| (*at, *counts)));
        return Some(());
    }
    cursor.expect("{")?;
    let (mut entries, mut old, mut next) = (std::mem::take(&mut written.spare), 0, 0);
    entries.clear();
    if !cursor.eat("}") {
        loop {
            while written.entries.get(old).is_some_and(|(_, at, _)| *at < next) {
                old += 1;
            }
            // Each begins behind a brace or a comma.
            let begins = old.checked_sub(1).map_or(1, |before| written.entries[before].0 + 1);
            let known = written.entries.get(old);
            let again =
                known.filter(|(ends, ..)| written.text.get(begins..*ends).is_some_and(|text| cursor.eat_bytes(text)));
            let (at, counts) = match again {
                Some((_, at, counts)) => (*at, *counts),
                None => {
                    let id = cursor.text()?;
                    cursor.expect(":")?;
                    let counts = counts(cursor)?;
                    (next + rows.get(next..)?.binary_search_by(|row| row.id.as_str().cmp(&id)).ok()?, counts)
                }
            };
            next = at + 1;
            counted.push((at, counts));
            entries.push((cursor.place() - start, at, counts));
            if !cursor.eat(",") {
                cursor.expect("}")?;
                break;
            }
        }
    }
    written.text.clear();
    written.text.extend_from_slice(cursor.since(start));
    written.spare = std::mem::replace(&mut written.entries, entries);
    Some(())
}

fn counts(cursor: &mut Cursor<'_>) -> Option<Counts> {
    let mut counts = Counts::default();
    cursor.expect("{")?;
    if cursor.eat("}") {
        return Some(counts);
    }
    loop {
        let field = if cursor.eat("\"rooms\":") {
            &mut counts.rooms
        } else if cursor.eat("\"clients\":") {
            &mut counts.clients
        } else if cursor.eat("\"users\":") {
            &mut counts.users
        } else if cursor.eat("\"pending\":") {
            &mut counts.pending
        } else {
            cursor.expect("\"inflight\":")?;
            &mut counts.inflight
        };
        // A key that comes twice is an error that the general way describes.
        if field.is_some() {
            return None;
        }
        *field = Some(cursor.small()?);
        if !cursor.eat(",") {
            cursor.expect("}")?;
            return Some(counts);
        }
    }
}

/// The line of a view: its number, who is new or another than before, and who is gone.
pub(super) fn view(line: &[u8], texts: &mut Texts) -> Option<(u64, u64, Vec<MonolithRow>, Vec<MonolithId>)> {
    let mut line = Line { cursor: Cursor::new(line), texts };
    line.cursor.expect("{\"t\":")?;
    let t = line.cursor.whole()?;
    line.cursor.expect(",\"view\":")?;
    let number = line.cursor.whole()?;
    line.cursor.expect(",\"monoliths\":")?;
    let monoliths = line.list(Line::row)?;
    line.cursor.expect(",\"gone\":")?;
    let gone = line.list(Line::monolith)?;
    line.cursor.expect("}")?;
    line.cursor.is_at_end().then_some((t, number, monoliths, gone))
}

struct Line<'a, 't> {
    cursor: Cursor<'a>,
    texts: &'t mut Texts,
}

impl<'a> Line<'a, '_> {
    fn hook(&mut self) -> Option<Hook> {
        self.cursor.one_of(&[
            ("\"place\"", Hook::Place),
            ("\"admit\"", Hook::Admit),
            ("\"route\"", Hook::Route),
            ("\"rebalance\"", Hook::Rebalance),
        ])
    }

    fn shared(&mut self) -> Option<Arc<str>> {
        self.texts.read(&mut self.cursor)
    }

    fn region(&mut self) -> Option<Region> {
        self.shared().map(Region::new)
    }

    fn monolith(&mut self) -> Option<MonolithId> {
        self.shared().map(MonolithId::new)
    }

    fn string(&mut self) -> Option<String> {
        self.cursor.text().map(Into::into)
    }

    /// The value of a key that may be absent.
    #[inline(always)]
    fn maybe<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.cursor.eat(key) { read(self).map(Some) } else { Some(None) }
    }

    /// The value of a key that comes first in its object if it comes at all.
    #[inline(always)]
    fn first<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        let found = self.maybe(key, read)?;
        if found.is_some() {
            self.cursor.expect(",")?;
        }
        Some(found)
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        self.cursor.expect("[")?;
        if self.cursor.eat("]") {
            return Some(items);
        }
        loop {
            items.push(item(self)?);
            if !self.cursor.eat(",") {
                self.cursor.expect("]")?;
                return Some(items);
            }
        }
    }

    /// The value of the key that comes next.
    #[inline(always)]
    fn next<T>(&mut self, key: &str, read: impl FnOnce(&mut Cursor<'a>) -> Option<T>) -> Option<T> {
        self.cursor.expect(key)?;
        read(&mut self.cursor)
    }

    fn row(&mut self) -> Option<MonolithRow> {
        self.cursor.expect("{\"id\":")?;
        let id = self.monolith()?;
        self.cursor.expect(",\"region\":")?;
        let region = self.region()?;
        let state = self.next(",\"state\":", |cursor| {
            cursor.one_of(&[
                ("\"up\"", MonolithState::Up),
                ("\"suspect\"", MonolithState::Suspect),
                ("\"draining\"", MonolithState::Draining),
                ("\"ejected\"", MonolithState::Ejected),
            ])
        })?;
        let row = MonolithRow {
            id,
            region,
            state,
            rooms: self.next(",\"rooms\":", Cursor::small)?,
            clients: self.next(",\"clients\":", Cursor::small)?,
            users: self.next(",\"users\":", Cursor::small)?,
            pending: self.next(",\"pending\":", Cursor::small)?,
            inflight: self.next(",\"inflight\":", Cursor::small)?,
            queue: self.next(",\"queue\":", Cursor::small)?,
            rtt_ms: self.next(",\"rtt_ms\":", Cursor::number)?,
            latency_ms: self.next(",\"latency_ms\":", Cursor::number)?,
            errors: self.next(",\"errors\":", Cursor::number)?,
            age_s: self.next(",\"age_s\":", Cursor::number)?,
            weight: self.next(",\"weight\":", Cursor::number)?,
            draining: self.next(",\"draining\":", Cursor::flag)?,
            load: self.maybe(",\"load\":", Self::load)?.unwrap_or_default(),
            load_age_s: self.maybe(",\"load_age_s\":", |line| line.cursor.number())?,
        };
        self.cursor.expect("}")?;
        Some(row)
    }

    fn load(&mut self) -> Option<BTreeMap<String, f64>> {
        let mut load = BTreeMap::new();
        self.cursor.object(|cursor, name| {
            load.insert(name.into(), cursor.number()?);
            Some(())
        })?;
        Some(load)
    }

    fn call(&mut self) -> Option<Call> {
        self.cursor.expect("{\"hook\":")?;
        let hook = self.hook()?;
        self.cursor.expect(",\"now_us\":")?;
        let now_us = self.cursor.whole()?;
        self.cursor.expect(",\"seed\":")?;
        let seed = self.cursor.whole()?;
        self.cursor.expect(",\"region\":")?;
        let region = self.region()?;
        let room = self.maybe(",\"room\":", Self::room)?;
        let client = self.maybe(",\"client\":", Self::client)?;
        let cause = self.maybe(",\"cause\":", |line| {
            line.cursor.one_of(&[
                ("\"join\"", Cause::Join),
                ("\"create\"", Cause::Create),
                ("\"http\"", Cause::Http),
                ("\"move\"", Cause::Move),
                ("\"lost\"", Cause::Lost),
            ])
        })?;
        let request = self.maybe(",\"request\":", Self::request)?;
        let excluded = self.maybe(",\"excluded\":", |line| line.list(Self::monolith))?.unwrap_or_default();
        let rooms = self.maybe(",\"rooms\":", |line| line.list(Self::room))?.unwrap_or_default();
        self.cursor.expect("}")?;
        let rooms = if rooms.is_empty() { Arc::default() } else { rooms.into() };
        Some(Call { hook, now_us, seed, region, room, client, cause, request, excluded, rooms })
    }

    fn room(&mut self) -> Option<CallRoom> {
        self.cursor.expect("{")?;
        let name = self.first("\"name\":", Self::shared)?;
        let region = self.first("\"region\":", Self::region)?;
        self.cursor.expect("\"clients\":")?;
        let clients = self.cursor.small()?;
        self.cursor.expect(",\"regions\":")?;
        let regions = self.counts_by_region()?;
        // Nothing and null are the same.
        let metadata = self.maybe(",\"metadata\":", |line| line.cursor.value::<Option<serde_json::Value>>())?.flatten();
        let previous = self.maybe(",\"previous\":", Self::previous)?;
        self.cursor.expect(",\"attempt\":")?;
        let attempt = self.cursor.small()?;
        self.cursor.expect(",\"bound\":")?;
        let bound = self.cursor.flag()?;
        let owner = self.maybe(",\"owner\":", Self::monolith)?;
        let age_s = self.maybe(",\"age_s\":", |line| line.cursor.number())?;
        self.cursor.expect("}")?;
        Some(CallRoom { name, region, clients, regions, metadata, previous, attempt, bound, owner, age_s })
    }

    fn counts_by_region(&mut self) -> Option<BTreeMap<Region, u32>> {
        let mut regions = BTreeMap::new();
        self.cursor.expect("{")?;
        if self.cursor.eat("}") {
            return Some(regions);
        }
        loop {
            let region = self.region()?;
            self.cursor.expect(":")?;
            regions.insert(region, self.cursor.small()?);
            if !self.cursor.eat(",") {
                self.cursor.expect("}")?;
                return Some(regions);
            }
        }
    }

    fn previous(&mut self) -> Option<Previous> {
        self.cursor.expect("{\"monolith\":")?;
        let monolith = self.monolith()?;
        self.cursor.expect(",\"why\":")?;
        let why = self.string()?;
        self.cursor.expect("}")?;
        Some(Previous { monolith, why })
    }

    fn client(&mut self) -> Option<CallClient> {
        self.cursor.expect("{")?;
        let region = self.first("\"region\":", Self::region)?;
        self.cursor.expect("\"reconnect\":")?;
        let reconnect = self.cursor.flag()?;
        self.cursor.expect(",\"attempt\":")?;
        let attempt = self.cursor.small()?;
        self.cursor.expect("}")?;
        Some(CallClient { region, reconnect, attempt })
    }

    fn request(&mut self) -> Option<CallRequest> {
        self.cursor.expect("{\"method\":")?;
        let method = self.shared()?;
        self.cursor.expect(",\"path\":")?;
        let path = self.shared()?;
        let host = self.maybe(",\"host\":", Self::shared)?;
        let region = self.maybe(",\"region\":", Self::region)?;
        self.cursor.expect(",\"headers\":")?;
        let headers = self.texts_by_name()?;
        self.cursor.expect(",\"query\":")?;
        let query = self.texts_by_name()?;
        self.cursor.expect("}")?;
        Some(CallRequest { method, path, host, region, headers, query })
    }

    fn texts_by_name(&mut self) -> Option<BTreeMap<String, String>> {
        let mut texts = BTreeMap::new();
        self.cursor.object(|cursor, name| {
            texts.insert(name.into(), cursor.text()?.into());
            Some(())
        })?;
        Some(texts)
    }

    fn outcome(&mut self) -> Option<Outcome> {
        let reads = self.maybe(",\"reads\":", |line| line.list(Self::read))?.unwrap_or_default();
        self.cursor.expect(",\"answer\":")?;
        let answer = self.answer()?;
        self.cursor.expect(",\"choice\":")?;
        let choice = if self.cursor.eat("null") { None } else { Some(self.monolith()?) };
        self.cursor.expect(",\"policy\":")?;
        let policy = self.shared()?;
        self.cursor.expect(",\"ns\":")?;
        let ns = self.cursor.whole()?;
        let fallback = self.maybe(",\"fallback\":", Self::fault)?;
        let bypassed = self.cursor.eat(",\"bypassed\":true");
        let incomplete = self.cursor.eat(",\"incomplete\":true");
        self.cursor.expect("}")?;
        Some(Outcome { reads, answer, choice, policy, ns, fallback, bypassed, incomplete })
    }

    fn read(&mut self) -> Option<Read> {
        let read = if self.cursor.eat("{\"random\":") {
            Read::Random(self.cursor.number()?)
        } else if self.cursor.eat("{\"now\":") {
            Read::Now(self.cursor.number()?)
        } else if self.cursor.eat("{\"counter\":[") {
            let name = self.shared()?;
            self.cursor.expect(",")?;
            let value = self.cursor.whole()?;
            self.cursor.expect("]")?;
            Read::Counter(name, value)
        } else {
            self.cursor.expect("{\"get\":[")?;
            let key = self.shared()?;
            self.cursor.expect(",")?;
            let kept = if self.cursor.eat("null") { None } else { Some(self.kept()?) };
            self.cursor.expect("]")?;
            Read::Get(key, kept)
        };
        self.cursor.expect("}")?;
        Some(read)
    }

    fn kept(&mut self) -> Option<Kept> {
        if let Some(flag) = self.cursor.flag() {
            return Some(Kept::Boolean(flag));
        }
        match self.cursor.number() {
            Some(number) => Some(Kept::Number(number)),
            None => self.shared().map(Kept::Text),
        }
    }

    fn answer(&mut self) -> Option<Answer> {
        if self.cursor.eat("\"default\"") {
            return Some(Answer::Default);
        }
        if self.cursor.eat("\"admit\"") {
            return Some(Answer::Admit);
        }
        let answer = if self.cursor.eat("{\"ranked\":") {
            Answer::Ranked(self.list(Self::monolith)?)
        } else if self.cursor.eat("{\"reject\":{\"code\":") {
            let code = self.cursor.small()?;
            self.cursor.expect(",\"reason\":")?;
            let reason = self.string()?;
            self.cursor.expect("}")?;
            Answer::Reject { code, reason }
        } else if self.cursor.eat("{\"hold\":{\"delay\":") {
            let delay = Duration::from_millis(self.cursor.whole()?);
            self.cursor.expect("}")?;
            Answer::Hold { delay }
        } else {
            self.cursor.expect("{\"moves\":")?;
            Answer::Moves(self.list(Self::one_move)?)
        };
        self.cursor.expect("}")?;
        Some(answer)
    }

    fn one_move(&mut self) -> Option<Move> {
        self.cursor.expect("{\"room\":")?;
        let room = self.string()?;
        self.cursor.expect(",\"to\":")?;
        let to = self.monolith()?;
        self.cursor.expect("}")?;
        Some(Move { room, to })
    }

    fn fault(&mut self) -> Option<Fault> {
        self.cursor.expect("{\"kind\":")?;
        let kind = self.cursor.one_of(&[
            ("\"error\"", FaultKind::Error),
            ("\"fuel\"", FaultKind::Fuel),
            ("\"cpu_time\"", FaultKind::CpuTime),
            ("\"memory\"", FaultKind::Memory),
            ("\"native_cap\"", FaultKind::NativeCap),
            ("\"bad_answer\"", FaultKind::BadAnswer),
            ("\"not_eligible\"", FaultKind::NotEligible),
        ])?;
        self.cursor.expect(",\"message\":")?;
        let message = self.string()?;
        self.cursor.expect("}")?;
        Some(Fault { kind, message })
    }
}
