//! The Redis that holds the claims: one key for each room, that expires with its lease, and whose value is
//!
//! ```text
//! TOKEN:EPOCH MONOLITH
//! ```
//!
//! the token of the balancer that claimed the room, the epoch of the load that it is claimed for (`-` while the room is
//! only placed and nobody has reported it), and the id of the Monolith. A value without `:EPOCH` is read as one with `-`:
//! balancers wrote such values once, and they read the Monolith of these ones, and leave alone what is not theirs.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value};

use crate::config::Secret;
use crate::model::claims::{ClaimOutcome, RoomLoad};
use crate::model::{Epoch, MonolithId, RoomKey, wire};

/// How long a connection may take. Nobody waits for it.
const CONNECT: Duration = Duration::from_secs(2);

/// Claims a room, or renews its claim: answers nothing if it is ours by now, else the value and how long it holds. A key
/// that somebody else has made something of concerns that room alone, which goes without a claim.
/// KEYS: the room. ARGV: the value, the lease in milliseconds, what our values begin with, and another balancer's value
/// that is to be replaced, or nothing.
const CLAIM: &str = "\
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
local held = redis.pcall('GET', KEYS[1])
if type(held) ~= 'string' then return 'odd' end
if string.sub(held, 1, #ARGV[3]) == ARGV[3] or held == ARGV[4] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return false
end
return {held, redis.call('PTTL', KEYS[1])}";

/// Gives a claim back, if it is ours, for this Monolith, and not for a newer load: no load is older than all, and others
/// compare as `Epoch::compare` does. KEYS: the room. ARGV: what our values begin with, the epoch, the Monolith.
const RELEASE: &str = "\
local held = redis.pcall('GET', KEYS[1])
if type(held) ~= 'string' or string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
local epoch, monolith = string.match(held, '^(%S+) (.*)$', #ARGV[1] + 1)
if monolith ~= ARGV[3] then return 0 end
if epoch ~= '-' and (ARGV[2] == '-' or (ARGV[2] - epoch) % 2147483648 >= 1073741824) then return 0 end
return redis.call('DEL', KEYS[1])";

/// How keys and values are written.
pub(super) struct Words {
    /// What tells this process from all others.
    pub(super) token: String,
    pub(super) prefix: String,
    pub(super) lease: Duration,
}

/// Commands that share one round trip.
pub(super) struct Batch<'a> {
    words: &'a Words,
    pipeline: Pipeline,
}

impl<'a> Batch<'a> {
    pub(super) fn new(words: &'a Words) -> Self {
        Self { words, pipeline: Pipeline::new() }
    }

    pub(super) fn claim(&mut self, room: &RoomKey, load: &RoomLoad, instead_of: Option<&str>) {
        let (key, ours) = (self.words.key(room), self.words.ours());
        let value = format!("{ours}{} {}", epoch_word(load.epoch), load.monolith.as_str());
        let lease = u64::try_from(self.words.lease.as_millis()).unwrap_or(u64::MAX);
        let command = self.pipeline.cmd("EVAL").arg(CLAIM).arg(1).arg(key);
        command.arg(value).arg(lease).arg(ours).arg(instead_of.unwrap_or_default());
    }

    pub(super) fn release(&mut self, room: &RoomKey, load: &RoomLoad) {
        let command = self.pipeline.cmd("EVAL").arg(RELEASE).arg(1).arg(self.words.key(room));
        command.arg(self.words.ours()).arg(epoch_word(load.epoch)).arg(load.monolith.as_str());
    }

    pub(super) fn ping(&mut self) {
        self.pipeline.cmd("PING");
    }

    /// One value for each command, in their order.
    pub(super) async fn send(&self, connection: &mut MultiplexedConnection) -> Result<Vec<Value>, RedisError> {
        self.pipeline.query_async(connection).await
    }
}

impl Words {
    fn key(&self, room: &RoomKey) -> String {
        format!("{}room:{}", self.prefix, room.as_str())
    }

    /// What each of our values begins with.
    fn ours(&self) -> String {
        format!("{}:", self.token)
    }
}

fn epoch_word(epoch: Option<Epoch>) -> String {
    epoch.map_or_else(|| "-".into(), |epoch| epoch.to_string())
}

/// What a value says, whoever wrote it.
fn read(value: &str) -> Option<RoomLoad> {
    let (owner, monolith) =
        value.split_once(' ').filter(|(_, monolith)| !monolith.is_empty() && wire::is_name(monolith))?;
    let epoch = owner.split_once(':').and_then(|(_, epoch)| epoch.parse().ok()).map(Epoch);
    Some(RoomLoad { monolith: MonolithId::from(monolith), epoch })
}

/// What the answer to a claim means. What nobody understands is no answer.
pub(super) fn outcome(value: &Value) -> ClaimOutcome {
    match value {
        Value::Nil => ClaimOutcome::Granted,
        Value::Array(parts) => match parts.as_slice() {
            [Value::BulkString(held), Value::Int(milliseconds)] => {
                let Ok(held) = std::str::from_utf8(held) else { return ClaimOutcome::Unavailable };
                let Some(by) = read(held) else { return ClaimOutcome::Unavailable };
                let expires_in = u64::try_from(*milliseconds).unwrap_or(0).saturating_mul(1000);
                ClaimOutcome::Taken { by, held: Arc::from(held), expires_in }
            }
            _ => ClaimOutcome::Unavailable,
        },
        _ => ClaimOutcome::Unavailable,
    }
}

/// Connects and asks for a sign of life.
pub(super) async fn connect(url: &Secret, timeout: Duration) -> Result<MultiplexedConnection, RedisError> {
    let client = Client::open(url.expose())?;
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(timeout));
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    redis::cmd("PING").query_async::<Value>(&mut connection).await?;
    Ok(connection)
}

/// Where it is, without what may be a password.
pub(super) fn address(url: &Secret) -> String {
    Client::open(url.expose()).map(|client| client.get_connection_info().addr().to_string()).unwrap_or_default()
}

/// What went wrong, in words that cannot hold what was sent.
pub(super) fn reason(error: &RedisError, timeout: Duration) -> String {
    if error.is_timeout() {
        return format!("no answer within {timeout:?}");
    }
    match error.code() {
        Some(code) => format!("{} ({code})", error.category()),
        None if error.is_connection_refusal() => "connection refused".into(),
        None if error.is_connection_dropped() => "connection lost".into(),
        None => error.category().to_string(),
    }
}
