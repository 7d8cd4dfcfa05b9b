//! What a Monolith and the balancer say to each other on a link.
//!
//! Frames are JSON objects `{"type", "payload"}`. One pass finds the fields; values that only travel through are kept
//! as the bytes they came in.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{CloseCode, Epoch, MemberId, MonolithId, Region, RoomName};

/// One frame of a Monolith, understood.
#[derive(Debug)]
pub enum FromMonolith<'a> {
    /// Its first frame.
    Init(Init),
    /// A room is in its memory.
    Loaded(RoomReport),
    /// A room has left its memory.
    Unloaded {
        /// Which.
        room: RoomName,
        /// Why.
        reason: UnloadReason,
    },
    /// Everything that is loaded there.
    Gossip(Gossip<'a>),
    /// For one client of a room, or for all.
    RoomMessage(RoomMessage<'a>),
    /// One client has to go; the Monolith has forgotten it already.
    Kick {
        /// Whom; `None` if the id is none that this balancer can have minted.
        client: Option<MemberId>,
        /// The close code; what is none becomes 4000.
        code: CloseCode,
    },
    /// A type that this version does not know.
    Unknown,
}

/// Everything that is loaded on a Monolith, not yet taken apart: most of it is as it was 20 seconds ago.
#[derive(Clone, Copy, Debug)]
pub struct Gossip<'a> {
    rooms: &'a str,
}

impl Gossip<'_> {
    /// The rooms, and how many entries were not understood. A room whose metadata is byte for byte as `known` has it is
    /// not read again.
    pub fn reports<'k>(
        &self,
        known: impl Fn(&str) -> Option<&'k RoomReport>,
    ) -> Result<(Vec<RoomReport>, u64), FrameError> {
        #[derive(Deserialize)]
        struct Entry<'a> {
            #[serde(borrow)]
            room: &'a RawValue,
            #[serde(borrow)]
            load_epoch: &'a RawValue,
        }
        let one = |entry: &Entry<'_>| {
            let epoch = epoch(entry.load_epoch, "gossip")?;
            match leading_name(entry.room.get()).and_then(&known) {
                Some(same) if same.metadata.raw() == entry.room.get() => Ok(RoomReport { epoch, ..same.clone() }),
                _ => report(entry.room, epoch),
            }
        };
        let mut skipped = 0;
        let mut reports = Vec::new();
        if let Ok(entries) = serde_json::from_str::<Vec<Entry<'_>>>(self.rooms) {
            reports.reserve_exact(entries.len());
            for entry in &entries {
                one(entry).map_or_else(|_: FrameError| skipped += 1, |report| reports.push(report));
            }
            return Ok((reports, skipped));
        }
        // One malformed entry says nothing about the others.
        for raw in serde_json::from_str::<Vec<&RawValue>>(self.rooms).map_err(FrameError::json)? {
            let entry = serde_json::from_str::<Entry<'_>>(raw.get()).map_err(FrameError::json);
            entry.and_then(|entry| one(&entry)).map_or_else(|_| skipped += 1, |report| reports.push(report));
        }
        Ok((reports, skipped))
    }
}

/// The name of a room's metadata if it is the first key and holds no escape, as the real Monolith writes it.
fn leading_name(metadata: &str) -> Option<&str> {
    let name = metadata.strip_prefix(r#"{"name":""#)?;
    let name = &name[..name.find('"')?];
    (!name.contains('\\')).then_some(name)
}

/// What a Monolith says of itself.
#[derive(Clone)]
pub struct Init {
    /// Its HTTP port on the host of the link.
    pub port: u16,
    /// Its region.
    pub region: Region,
    /// Its id.
    pub id: MonolithId,
    /// The secret of the link, if it carries one.
    pub token: Option<String>,
}

impl fmt::Debug for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Init").field("port", &self.port).field("region", &self.region).field("id", &self.id).finish()
    }
}

/// A message on its way to clients.
#[derive(Debug)]
pub struct RoomMessage<'a> {
    /// The room, as the Monolith spells it.
    pub room: Cow<'a, str>,
    /// Whom it is for.
    pub to: Recipient,
    /// The bytes that go out.
    pub payload: &'a str,
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// Every client of the room.
    Everyone,
    /// One client.
    Member(MemberId),
    /// A client that this balancer cannot know.
    Nobody,
}

/// Why a room was unloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnloadReason {
    /// Nobody was there.
    Keepalive,
    /// An administrator asked.
    Admin,
    /// A balancer asked.
    Commanded,
    /// The Monolith stops.
    Shutdown,
    /// A reason of a later Monolith.
    Other,
}

impl UnloadReason {
    /// How clients that are left of the room are closed.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Keepalive | Self::Admin => CloseCode::ROOM_UNLOADED,
            Self::Commanded | Self::Shutdown | Self::Other => CloseCode::AWAY,
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "Keepalive" => Self::Keepalive,
            "Admin" => Self::Admin,
            "Commanded" => Self::Commanded,
            "Shutdown" => Self::Shutdown,
            _ => Self::Other,
        }
    }
}

/// One loaded room, as its Monolith reports it.
#[derive(Clone, Debug)]
pub struct RoomReport {
    /// Its name in the Monolith's spelling.
    pub name: RoomName,
    /// The number of its load.
    pub epoch: Epoch,
    /// Everything else.
    pub metadata: Arc<Metadata>,
}

/// A room's metadata, verbatim, with the few fields that the balancer itself reads. It is `Eq`, so that two pointers to one
/// are known to be equal without a look at it.
#[derive(Debug, PartialEq, Eq)]
pub struct Metadata {
    raw: Box<str>,
    users_at: Option<Range<usize>>,
    /// The number of users that the Monolith counts.
    pub users: u32,
    /// Whether the room is listed.
    pub public: bool,
    /// Whether the room's name is a capability and its state short-lived.
    pub temporary: bool,
}

impl Metadata {
    /// The JSON object as it came.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// Appends the object with `users` set to this number and every other byte as it came.
    pub fn write_with_users(&self, users: u32, to: &mut String) {
        use fmt::Write as _;
        match &self.users_at {
            Some(at) => {
                to.push_str(&self.raw[..at.start]);
                // Writing to a String cannot fail.
                let _ = write!(to, "{users}");
                to.push_str(&self.raw[at.end..]);
            }
            None => {
                // One brace only: what stands before it may be the end of a nested object.
                let object = self.raw.trim_end();
                let open = object.strip_suffix('}').unwrap_or(object).trim_end();
                to.push_str(open);
                let comma = if open.ends_with('{') { "" } else { "," };
                let _ = write!(to, "{comma}\"users\":{users}}}");
            }
        }
    }

    fn parse(raw: &str) -> Result<(RoomName, Self), FrameError> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow)]
            name: Text<'a>,
            #[serde(borrow, default)]
            visibility: Option<&'a RawValue>,
            #[serde(borrow, default, rename = "isTemporary")]
            temporary: Option<&'a RawValue>,
            #[serde(borrow, default, deserialize_with = "present")]
            users: Option<&'a RawValue>,
        }
        // A null has a place too: with a second key beside it, readers could differ in which one counts.
        fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
            Deserialize::deserialize(from).map(Some)
        }
        if !raw.trim_ascii_start().starts_with('{') {
            // serde reads an array as the fields in their order, and the list of rooms would pass it on.
            return Err(FrameError::Field { kind: "metadata", field: "object" });
        }
        let fields: Fields<'_> = serde_json::from_str(raw).map_err(FrameError::json)?;
        let users_at = fields.users.map(|users| {
            let start = users.get().as_ptr() as usize - raw.as_ptr() as usize;
            start..start + users.get().len()
        });
        let users = fields.users.and_then(|users| serde_json::from_str(users.get()).ok()).unwrap_or(0);
        let metadata = Self {
            users_at,
            users,
            public: fields.visibility.is_some_and(|v| v.get() == "\"public\""),
            temporary: fields.temporary.is_some_and(|t| t.get() == "true"),
            raw: raw.into(),
        };
        Ok((RoomName::reported(&fields.name.0), metadata))
    }
}

/// Why a frame was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not JSON, or not of the shape of an envelope. The text names a position, never a value.
    #[error("not a link message: {0}")]
    Json(String),
    /// A known type without a field that it needs.
    #[error("{kind} without a valid {field}")]
    Field {
        /// The message type.
        kind: &'static str,
        /// The field.
        field: &'static str,
    },
}

impl FrameError {
    // The error of serde_json may quote a value, and values may be secrets: only the position goes on.
    #[allow(clippy::needless_pass_by_value)]
    fn json(error: serde_json::Error) -> Self {
        let what = if error.is_eof() { "ends too early" } else { "malformed" };
        Self::Json(format!("{what} at line {} column {}", error.line(), error.column()))
    }
}

/// A frame with how many of its fields were unknown.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The message.
    pub message: FromMonolith<'a>,
    /// Fields of the envelope or the payload that this version does not know.
    pub unknown_fields: u32,
}

impl<'a> Frame<'a> {
    /// Reads one text frame of a Monolith.
    pub fn parse(text: &'a str) -> Result<Self, FrameError> {
        let envelope: Envelope<'a> = serde_json::from_str(text).map_err(FrameError::json)?;
        let unknown_fields = envelope.unknown + envelope.payload.unknown;
        let message = envelope.payload.into_message(&envelope.kind)?;
        Ok(Self { message, unknown_fields })
    }
}

struct Envelope<'a> {
    kind: Cow<'a, str>,
    payload: Payload<'a>,
    unknown: u32,
}

/// The fields of all payloads together: their names do not clash, and so one pass serves every type in either order of
/// `type` and `payload`.
#[derive(Default)]
struct Payload<'a> {
    room: Option<&'a RawValue>,
    client_id: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    load_epoch: Option<&'a RawValue>,
    rooms: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    reason: Option<&'a RawValue>,
    port: Option<&'a RawValue>,
    region: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    token: Option<&'a RawValue>,
    unknown: u32,
}

impl<'a> Payload<'a> {
    fn into_message(self, kind: &str) -> Result<FromMonolith<'a>, FrameError> {
        Ok(match kind {
            "room_msg" => FromMonolith::RoomMessage(RoomMessage {
                room: text(self.room, "room_msg", "room")?,
                to: match self.client_id.map(RawValue::get) {
                    None | Some("null") => Recipient::Everyone,
                    Some(id) => member(id).map_or(Recipient::Nobody, Recipient::Member),
                },
                payload: required(self.payload, "room_msg", "payload")?.get(),
            }),
            "kick" => FromMonolith::Kick {
                client: member(required(self.client_id, "kick", "client_id")?.get()),
                code: self
                    .reason
                    .and_then(|reason| reason.get().parse::<u16>().ok())
                    .and_then(CloseCode::sendable)
                    .unwrap_or(CloseCode::UNKNOWN),
            },
            "loaded" => FromMonolith::Loaded(report(
                required(self.room, "loaded", "room")?,
                epoch(required(self.load_epoch, "loaded", "load_epoch")?, "loaded")?,
            )?),
            "unloaded" => FromMonolith::Unloaded {
                room: RoomName::reported(&text(self.name, "unloaded", "name")?),
                reason: text(self.reason, "unloaded", "reason")
                    .map_or(UnloadReason::Other, |reason| UnloadReason::parse(&reason)),
            },
            "gossip" => FromMonolith::Gossip(Gossip { rooms: required(self.rooms, "gossip", "rooms")?.get() }),
            "init" => FromMonolith::Init(Init {
                port: required(self.port, "init", "port")?
                    .get()
                    .parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or(FrameError::Field { kind: "init", field: "port" })?,
                region: Some(text(self.region, "init", "region")?)
                    .filter(|region| is_name(region))
                    .map(|region| Region::from(&*region))
                    .ok_or(FrameError::Field { kind: "init", field: "region" })?,
                id: Some(text(self.id, "init", "id")?)
                    .filter(|id| !id.is_empty() && is_name(id))
                    .map(|id| MonolithId::from(&*id))
                    .ok_or(FrameError::Field { kind: "init", field: "id" })?,
                token: self.token.and_then(|token| serde_json::from_str(token.get()).ok()),
            }),
            _ => FromMonolith::Unknown,
        })
    }
}

/// The longest id and the longest region of a Monolith, in bytes.
const LONGEST_NAME: usize = 128;

/// Whether a text can stand in every log line, metric and header that names a Monolith or its region.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= LONGEST_NAME && !text.chars().any(char::is_control)
}

fn required<'a>(
    value: Option<&'a RawValue>,
    kind: &'static str,
    field: &'static str,
) -> Result<&'a RawValue, FrameError> {
    value.ok_or(FrameError::Field { kind, field })
}

fn text<'a>(value: Option<&'a RawValue>, kind: &'static str, field: &'static str) -> Result<Cow<'a, str>, FrameError> {
    let raw = required(value, kind, field)?.get();
    serde_json::from_str::<Text<'a>>(raw).map(|text| text.0).map_err(|_| FrameError::Field { kind, field })
}

fn member(raw: &str) -> Option<MemberId> {
    MemberId::parse(raw.strip_prefix('"')?.strip_suffix('"')?)
}

fn epoch(raw: &RawValue, kind: &'static str) -> Result<Epoch, FrameError> {
    let number = raw.get().parse::<u64>().map_err(|_| FrameError::Field { kind, field: "load_epoch" })?;
    // Only the low bits count, so a counter that outgrew 32 bits is still compared rightly.
    Ok(Epoch(number as u32))
}

fn report(room: &RawValue, epoch: Epoch) -> Result<RoomReport, FrameError> {
    let (name, metadata) = Metadata::parse(room.get())?;
    Ok(RoomReport { name, epoch, metadata: Arc::new(metadata) })
}

/// A string that is borrowed from the frame unless it holds an escape.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(TextVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct EnvelopeVisitor;
        impl<'de> Visitor<'de> for EnvelopeVisitor {
            type Value = Envelope<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with type and payload")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope<'de>, A::Error> {
                let (mut kind, mut payload, mut unknown) = (None, None, 0);
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match &*key.0 {
                        "type" => kind = Some(map.next_value::<Text<'de>>()?.0),
                        "payload" => payload = Some(map.next_value::<Payload<'de>>()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            unknown += 1;
                        }
                    }
                }
                let kind = kind.ok_or_else(|| serde::de::Error::missing_field("type"))?;
                let payload = payload.ok_or_else(|| serde::de::Error::missing_field("payload"))?;
                Ok(Envelope { kind, payload, unknown })
            }
        }
        from.deserialize_map(EnvelopeVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Payload<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct PayloadVisitor;
        impl<'de> Visitor<'de> for PayloadVisitor {
            type Value = Payload<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Payload<'de>, A::Error> {
                let mut payload = Payload::default();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    let field = match &*key.0 {
                        "room" => &mut payload.room,
                        "client_id" => &mut payload.client_id,
                        "payload" => &mut payload.payload,
                        "load_epoch" => &mut payload.load_epoch,
                        "rooms" => &mut payload.rooms,
                        "name" => &mut payload.name,
                        "reason" => &mut payload.reason,
                        "port" => &mut payload.port,
                        "region" => &mut payload.region,
                        "id" => &mut payload.id,
                        "token" => &mut payload.token,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            payload.unknown += 1;
                            continue;
                        }
                    };
                    *field = Some(map.next_value()?);
                }
                Ok(payload)
            }
        }
        from.deserialize_map(PayloadVisitor)
    }
}

/// `init` of the balancer: a fresh id for every link connection.
pub fn init(id: Uuid) -> String {
    format!(r#"{{"type":"init","payload":{{"id":"{id}"}}}}"#)
}

/// `join`: a client wants into a room.
pub fn join(room: &str, member: MemberId, token: &str) -> String {
    let (room, token) = (Quoted(room), Quoted(token));
    format!(r#"{{"type":"join","payload":{{"room":{room},"client":"{member}","token":{token}}}}}"#)
}

/// `leave`: a client has gone.
pub fn leave(member: MemberId) -> String {
    format!(r#"{{"type":"leave","payload":{{"client":"{member}"}}}}"#)
}

/// `unload`: only ever for a room that the Monolith has reported.
pub fn unload(room: &str) -> String {
    format!(r#"{{"type":"unload","payload":{{"room":{}}}}}"#, Quoted(room))
}

/// `client_msg`: what a client said, byte for byte. `payload` has to be one JSON object, see [`is_object`](super::hello::is_object).
pub fn client_message(member: MemberId, payload: &str) -> String {
    let mut frame = String::with_capacity(SAID_AT + payload.len() + SAID_TAIL.len());
    frame.push_str(SAID_HEAD);
    frame.push_str(member.encode(&mut [0; 36]));
    frame.push_str(SAID_MIDDLE);
    frame.push_str(payload);
    frame.push_str(SAID_TAIL);
    frame
}

const SAID_HEAD: &str = r#"{"type":"client_msg","payload":{"client_id":""#;
const SAID_MIDDLE: &str = r#"","payload":"#;
const SAID_TAIL: &str = "}}";
const SAID_AT: usize = SAID_HEAD.len() + 36 + SAID_MIDDLE.len();

/// What the client said in a frame of [`client_message`], byte for byte.
pub fn said(frame: &str) -> &str {
    frame.get(SAID_AT..frame.len().saturating_sub(SAID_TAIL.len())).unwrap_or_default()
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self.0).map_err(|_| fmt::Error)?;
        f.write_str(&json)
    }
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
