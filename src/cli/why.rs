//! `usher room why` and `usher trace why`: the story of a room, from a running usher or from a trace, in the same words.

mod text;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use http::Method;
use serde::Deserialize;
use serde_json::json;

use super::offline::Format;
use super::output::{complain, say, show};
use super::progress::Progress;
use super::steer::{AdminArgs, ask, print_json, report};
use super::{BAD, GOOD, UNABLE};
use crate::lab::page_text::plain;
use crate::lab::{RoomStory, room_story};
use crate::model::story::Chapter;
use crate::model::{Epoch, MonolithId};
use crate::trace::read::{OnDamage, Reader};

/// Names that are shown to whoever asks for a room that a trace does not hold.
const SUGGESTED: usize = 5;

/// What a running usher tells of a room, and a trace cannot.
const UNTOLD: &str = "(not in a trace: waits, joins sent without asking the policy, attempts that were not confirmed, ends of moves, \
    canaries)";

/// `usher trace why`.
#[derive(Args, Debug)]
pub(super) struct TracedArgs {
    /// The trace
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The room; in a trace without names its hash, as it stands there
    #[arg(value_name = "ROOM")]
    room: String,
    /// How many chapters are told at most, the last ones
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    last: u32,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
}

/// The document of a room, as far as it is told.
#[derive(Deserialize)]
struct Document {
    name: String,
    state: String,
    monolith: Option<MonolithId>,
    epoch: Option<Epoch>,
    clients: u64,
    #[serde(default)]
    story: Vec<Chapter>,
    #[serde(default)]
    forgotten: u64,
}

/// Tells the story of a room of a running usher.
pub(super) fn live(args: &AdminArgs, name: &str, format: Format) -> u8 {
    let path = format!("/_usher/v1/rooms/{name}");
    report(args, ask(args, Method::GET, &path, None), |document| match format {
        Format::Json => print_json(document),
        // A later usher may say something that this one does not understand; the document says it all.
        Format::Pretty => match Document::deserialize(document) {
            Ok(document) => show!("{}", told(&document)),
            Err(_) => print_json(document),
        },
    })
}

fn told(document: &Document) -> String {
    let Document { name, state, monolith, epoch, clients, story, forgotten } = document;
    let name = plain(name);
    let mut out = match (state.as_str(), monolith) {
        ("absent", _) => format!("{name}: no Monolith has it, as far as is known here"),
        (state, Some(monolith)) => format!("{name}: {state} on {}", plain(monolith.as_str())),
        (state, None) => format!("{name}: {state}"),
    };
    // Writing to a String cannot fail.
    if let Some(epoch) = epoch {
        let _ = write!(out, ", epoch {epoch}");
    }
    if *clients > 0 {
        let _ = write!(out, ", {}", text::count(*clients, "client"));
    }
    out.push('\n');
    if story.is_empty() {
        out.push_str("nothing is remembered of it: its story was forgotten for rooms that were touched later\n");
    } else {
        out.push_str(&text::story(story, *forgotten));
    }
    out
}

/// Tells the story of a room from a trace.
pub(super) fn traced(args: &TracedArgs) -> u8 {
    let last = usize::try_from(args.last).unwrap_or(usize::MAX);
    let read = Reader::open(&args.file, OnDamage::Skip).and_then(|mut reader| {
        let mut progress = Progress::new("why", "lines", None);
        let story = room_story(&mut reader, &args.room, last, &mut |lines| progress.at(lines))?;
        drop(progress);
        let (damaged, first) = reader.damage();
        if let Some(first) = first {
            complain!("{} could not be understood and were passed over; the first: {first}", lines(damaged));
        }
        if reader.was_cut() {
            complain!("{} ends in the middle of a line; it is told up to there", args.file.display());
        }
        Ok(story)
    });
    let story = match read {
        Ok(story) => story,
        Err(error) => {
            complain!("{error}");
            return UNABLE;
        }
    };
    if story.chapters.is_empty() {
        complain!("{}", not_there(args, &story));
        return BAD;
    }
    match args.format {
        Format::Pretty => {
            say!("{} in {}", args.room, args.file.display());
            say!("{UNTOLD}");
            show!("{}", text::story(&story.chapters, story.forgotten));
        }
        Format::Json => {
            let decisions: Vec<&Chapter> = story.chapters.iter().filter(|chapter| chapter.what.is_decision()).collect();
            print_json(&json!({
                "name": args.room,
                "file": args.file.display().to_string(),
                "redacted": story.redacted,
                "decisions": decisions,
                "story": story.chapters,
                "forgotten": story.forgotten,
            }));
        }
    }
    GOOD
}

fn lines(count: u64) -> String {
    text::count(count, "line")
}

/// Why a room is not in a trace, and what is.
fn not_there(args: &TracedArgs, story: &RoomStory) -> String {
    let file = args.file.display();
    let mut others: Vec<&(Arc<str>, u64)> = story.others.iter().collect();
    let mut out = format!("{file} tells nothing of a room {:?}", args.room);
    if story.redacted {
        out.push_str(
            ": it was recorded with redact_rooms, so that names stand in it as hashes whose salt is not kept; \
             give the hash (r- and 16 digits)",
        );
    } else {
        // The likeliest misspellings first; the busiest otherwise.
        let asked = args.room.to_ascii_lowercase();
        others.sort_by_cached_key(|(name, _)| strsim::damerau_levenshtein(name, &asked).min(3));
    }
    if others.is_empty() {
        out.push_str("; it holds no other room either");
    } else {
        let names: Vec<String> =
            others.iter().take(SUGGESTED).map(|(name, count)| format!("{name} ({count})")).collect();
        // Writing to a String cannot fail.
        let _ =
            write!(out, "; it tells of {}, among them {}", text::count(others.len() as u64, "room"), names.join(", "));
    }
    out
}
