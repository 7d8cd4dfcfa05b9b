//! As much of a Redis as claims need: keys that expire, and the two scripts, known by what they do. It can fall silent,
//! go, and come back.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::model::Epoch;

/// The longest argument that is taken.
const LONGEST: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Answers,
    Silent,
    Gone,
}

struct Shared {
    keys: Mutex<HashMap<String, (String, Instant)>>,
    password: Option<String>,
    mood: watch::Sender<Mood>,
}

/// A simulated Redis on a port of its own, gone when this is dropped.
pub struct Redis {
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Redis {
    /// One that answers. With a password it wants that first.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(password: Option<&str>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (mood, _) = watch::channel(Mood::Answers);
        let shared = Arc::new(Shared { keys: Mutex::default(), password: password.map(str::to_owned), mood });
        Ok(Self { addr, shared: shared.clone(), task: tokio::spawn(accept(listener, shared)) })
    }

    /// How a balancer is told of it.
    pub fn url(&self) -> String {
        match &self.shared.password {
            Some(password) => format!("redis://:{password}@{}", self.addr),
            None => format!("redis://{}", self.addr),
        }
    }

    /// From now on it reads and says nothing.
    pub fn fall_silent(&self) {
        self.shared.mood.send_replace(Mood::Silent);
    }

    /// Ends every connection, and each new one at once.
    pub fn go(&self) {
        self.shared.mood.send_replace(Mood::Gone);
    }

    /// Answers again, with the keys that it had.
    pub fn come_back(&self) {
        self.shared.mood.send_replace(Mood::Answers);
    }

    /// The value of a key that has not expired.
    pub fn get(&self, key: &str) -> Option<String> {
        self.shared.get(key).map(|(value, _)| value)
    }

    /// Sets a key, as another balancer would.
    pub fn set(&self, key: &str, value: &str, expires_in: Duration) {
        self.shared.keys().insert(key.to_owned(), (value.to_owned(), Instant::now() + expires_in));
    }

    /// Removes a key.
    pub fn remove(&self, key: &str) {
        self.shared.keys().remove(key);
    }
}

impl Shared {
    fn keys(&self) -> MutexGuard<'_, HashMap<String, (String, Instant)>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &str) -> Option<(String, Duration)> {
        let keys = self.keys();
        let (value, until) = keys.get(key)?;
        let left = until.checked_duration_since(Instant::now())?;
        Some((value.clone(), left))
    }

    /// What a command is answered. `known` is whether the password has been given.
    fn answer(&self, command: &[String], known: &mut bool) -> String {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let name = words.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
        match (name.as_str(), &words[1.min(words.len())..]) {
            ("AUTH", [.., password]) => {
                *known = self.password.as_deref() == Some(password);
                if *known { "+OK\r\n".into() } else { "-WRONGPASS invalid password\r\n".into() }
            }
            _ if !*known => "-NOAUTH Authentication required.\r\n".into(),
            ("PING", _) => "+PONG\r\n".into(),
            ("CLIENT" | "SELECT", _) => "+OK\r\n".into(),
            ("EVAL", [script, "1", key, ours, epoch, monolith]) if script.contains("'DEL'") => {
                let goes = self.get(key).is_some_and(|(held, _)| goes(&held, ours, epoch, monolith));
                if goes {
                    self.keys().remove(*key);
                }
                format!(":{}\r\n", u8::from(goes))
            }
            ("EVAL", [_, "1", key, value, lease, ours, replaced]) => match self.get(key) {
                Some((held, left)) if !held.starts_with(ours) && held != *replaced => {
                    format!("*2\r\n${}\r\n{held}\r\n:{}\r\n", held.len(), left.as_millis())
                }
                Some(_) | None => {
                    let lease = Duration::from_millis(lease.parse().unwrap_or(0));
                    self.keys().insert((*key).to_owned(), ((*value).to_owned(), Instant::now() + lease));
                    "$-1\r\n".into()
                }
            },
            _ => "-ERR unknown command\r\n".into(),
        }
    }
}

/// Whether a claim is given back by whoever says that a load is over: it is theirs, for that Monolith, and for no newer
/// load.
fn goes(held: &str, ours: &str, epoch: &str, monolith: &str) -> bool {
    let Some((claimed, there)) = held.strip_prefix(ours).and_then(|rest| rest.split_once(' ')) else { return false };
    let not_newer = match (claimed.parse().map(Epoch), epoch.parse().map(Epoch)) {
        (Ok(claimed), Ok(over)) => claimed.compare(over).is_le(),
        (Ok(_), Err(_)) => false,
        (Err(_), _) => true,
    };
    there == monolith && not_newer
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let (shared, mut mood) = (shared.clone(), shared.mood.subscribe());
                connections.spawn(async move {
                    tokio::select! {
                        // The end of a connection is its client's concern.
                        _ = serve(stream, &shared) => {}
                        _ = mood.wait_for(|mood| *mood == Mood::Gone) => {}
                    }
                });
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut mood = shared.mood.subscribe();
    let mut known = shared.password.is_none();
    loop {
        let count = number(&mut reader, '*').await?;
        let mut command = Vec::new();
        for _ in 0..count.min(64) {
            let length = number(&mut reader, '$').await?.min(LONGEST);
            let mut bytes = vec![0; length + 2];
            reader.read_exact(&mut bytes).await?;
            bytes.truncate(length);
            command.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        // An error means that it is gone, and this connection with it.
        let _ = mood.wait_for(|mood| *mood != Mood::Silent).await;
        writer.write_all(shared.answer(&command, &mut known).as_bytes()).await?;
    }
}

/// The number of a line such as `*3`.
async fn number(reader: &mut (impl AsyncBufReadExt + Unpin), kind: char) -> io::Result<usize> {
    let mut line = String::new();
    if reader.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.trim_end().strip_prefix(kind).and_then(|number| number.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
}
