//! Reads recordings of a real Monolith, its balancer and their clients; the format is described beside them, in
//! `tests/fixtures/README.md`. Takes text: whoever has a packed file unpacks it first.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// Which way something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Balancer to Monolith.
    B2m,
    /// Monolith to balancer.
    M2b,
    /// Client to balancer.
    C2b,
    /// Balancer to client.
    B2c,
    /// Client straight to a Monolith.
    C2m,
    /// Monolith straight to a client.
    M2c,
}

/// One finished HTTP exchange; headers in the order of the wire.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Exchange {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The status.
    pub status: u16,
    /// Names and values of the request.
    pub request_headers: Vec<(String, String)>,
    /// Names and values of the response.
    pub response_headers: Vec<(String, String)>,
    /// The body of the request, cut off.
    #[serde(default)]
    pub request_body: Option<String>,
    /// The body of the response, cut off.
    #[serde(default)]
    pub response_body: Option<String>,
    /// Whether it is the upgrade of a WebSocket.
    #[serde(default)]
    pub upgrade: bool,
}

/// What one line tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A text message, verbatim.
    Frame(String),
    /// A binary message; only its length.
    Binary(usize),
    /// A close frame; no code if it had none.
    Close {
        /// The close code.
        code: Option<u16>,
        /// The text.
        reason: String,
    },
    /// An HTTP exchange.
    Http(Box<Exchange>),
    /// What the recording script did at that moment.
    Mark(String),
    /// Any other event, such as `tcp_open`, `tcp_fin`, `ping`.
    Other(String),
}

/// One line of a recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Milliseconds since the start.
    pub t_ms: f64,
    /// The connection, such as `balancer-monolith:0` or `client:7`; empty for marks.
    pub conn: String,
    /// The number of the TCP connection on a link.
    pub generation: u32,
    /// Which way it went, if it has a direction.
    pub direction: Option<Direction>,
    /// What happened.
    pub kind: Kind,
}

impl Event {
    /// The text of a frame.
    pub fn frame(&self) -> Option<&str> {
        match &self.kind {
            Kind::Frame(text) => Some(text),
            _ => None,
        }
    }

    /// The `type` and the `payload` of a frame of the link.
    pub fn link_message(&self) -> Option<(String, Value)> {
        let frame: Value = serde_json::from_str(self.frame()?).ok()?;
        Some((frame.get("type")?.as_str()?.to_owned(), frame.get("payload").cloned().unwrap_or_default()))
    }
}

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    line: usize,
    reason: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for BadLine {}

#[derive(Deserialize)]
struct Line {
    t_ms: f64,
    #[serde(default)]
    conn: String,
    #[serde(default, rename = "gen")]
    generation: u32,
    dir: Option<Direction>,
    frame: Option<String>,
    event: Option<String>,
    code: Option<u16>,
    reason: Option<String>,
    len: Option<usize>,
    text: Option<String>,
    http: Option<Box<Exchange>>,
}

impl From<Line> for Event {
    fn from(line: Line) -> Self {
        let kind = match (line.frame, line.http, line.event.as_deref()) {
            (Some(text), _, _) => Kind::Frame(text),
            (_, Some(exchange), _) => Kind::Http(exchange),
            (_, _, Some("close")) => Kind::Close { code: line.code, reason: line.reason.unwrap_or_default() },
            (_, _, Some("binary")) => Kind::Binary(line.len.unwrap_or_default()),
            (_, _, Some("mark")) => Kind::Mark(line.text.unwrap_or_default()),
            (_, _, other) => Kind::Other(other.unwrap_or_default().to_owned()),
        };
        Self { t_ms: line.t_ms, conn: line.conn, generation: line.generation, direction: line.dir, kind }
    }
}

/// A whole recording.
#[derive(Clone, Debug)]
pub struct Recording {
    events: Vec<Event>,
}

impl Recording {
    /// Reads the lines of a recording.
    ///
    /// # Errors
    /// When a line is not what the format says; the error names it.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
        let events = lines.map(|(index, line)| {
            let bad = |error: serde_json::Error| BadLine { line: index + 1, reason: error.to_string() };
            serde_json::from_str::<Line>(line).map(Event::from).map_err(bad)
        });
        Ok(Self { events: events.collect::<Result<_, _>>()? })
    }

    /// All events, in their order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The events from the first mark that contains `start` to the next mark.
    pub fn step(&self, start: &str) -> &[Event] {
        let is_mark = |event: &Event, part: &str| matches!(&event.kind, Kind::Mark(text) if text.contains(part));
        let Some(first) = self.events.iter().position(|event| is_mark(event, start)) else { return &[] };
        let rest = self.events.get(first + 1..).unwrap_or_default();
        let end = rest.iter().position(|event| is_mark(event, "")).unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_events_and_marks_divide_them() {
        let text = r#"{"t_ms":0.5,"event":"mark","text":"first step"}
{"t_ms":1,"conn":"balancer-monolith:0","gen":2,"dir":"m2b","frame":"{\"type\":\"x\",\"payload\":1}"}
{"t_ms":2,"event":"mark","text":"second step"}
{"t_ms":3,"conn":"client:1","gen":0,"dir":"b2c","event":"close","code":null,"reason":""}
"#;
        let recording = Recording::parse(text).unwrap();
        let step = recording.step("first");
        assert_eq!(step.len(), 1);
        assert_eq!((step[0].generation, step[0].direction), (2, Some(Direction::M2b)));
        assert_eq!(step[0].link_message(), Some(("x".to_owned(), Value::from(1))));
        assert_eq!(recording.step("second")[0].kind, Kind::Close { code: None, reason: String::new() });
        assert!(recording.step("third").is_empty());
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = Recording::parse("{\"t_ms\":0}\nnonsense\n").unwrap_err();
        assert!(error.to_string().starts_with("line 2: "), "{error}");
    }
}
