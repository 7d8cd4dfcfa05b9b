//! The Redis that holds the claims: one key for each room, whose value is the token of the balancer that claimed it and
//! the id of the Monolith that it is for.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value};

use crate::config::Secret;
use crate::model::claims::ClaimOutcome;
use crate::model::{MonolithId, RoomKey};

/// How long a connection may take. Nobody waits for it.
const CONNECT: Duration = Duration::from_secs(2);

/// Claims a room, or renews its claim: answers nothing if it is ours, else the value and how long it holds.
/// KEYS: the room. ARGV: our token and the Monolith, the lease in milliseconds, our token.
const CLAIM: &str = "\
local held = redis.call('GET', KEYS[1])
if not held or string.sub(held, 1, #ARGV[3]) == ARGV[3] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return false
end
return {held, redis.call('PTTL', KEYS[1])}";

/// Gives a claim back, if it is still this one.
const RELEASE: &str = "\
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0";

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

    pub(super) fn claim(&mut self, room: &RoomKey, monolith: &MonolithId) {
        let (key, value) = (self.words.key(room), self.words.value(monolith));
        let lease = u64::try_from(self.words.lease.as_millis()).unwrap_or(u64::MAX);
        self.pipeline.cmd("EVAL").arg(CLAIM).arg(1).arg(key).arg(value).arg(lease).arg(&self.words.token);
    }

    pub(super) fn release(&mut self, room: &RoomKey, monolith: &MonolithId) {
        let (key, value) = (self.words.key(room), self.words.value(monolith));
        self.pipeline.cmd("EVAL").arg(RELEASE).arg(1).arg(key).arg(value);
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

    fn value(&self, monolith: &MonolithId) -> String {
        format!("{} {}", self.token, monolith.as_str())
    }
}

/// What the answer to a claim means. What nobody understands is no answer.
pub(super) fn outcome(value: &Value) -> ClaimOutcome {
    match value {
        Value::Nil => ClaimOutcome::Granted,
        Value::Array(parts) => match parts.as_slice() {
            [Value::BulkString(held), Value::Int(milliseconds)] => {
                let held = String::from_utf8_lossy(held);
                let Some((_, monolith)) = held.split_once(' ') else { return ClaimOutcome::Unavailable };
                let expires_in = u64::try_from(*milliseconds).unwrap_or(0).saturating_mul(1000);
                ClaimOutcome::Taken { by: MonolithId::from(monolith), expires_in }
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
