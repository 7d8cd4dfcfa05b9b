//! What a Monolith of a run does over HTTP: a request loads its room, a creation makes one, and both are answered when it is
//! there.

use std::time::Duration;

use tokio::time::sleep;

use super::Monolith;

/// How often a request looks whether it can be answered.
const LOOK: Duration = Duration::from_millis(10);

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::faults) enum Reply {
    Status(u16),
    Created(String),
    /// The Monolith could not be reached.
    NotSent,
    /// It has gone since.
    Broken,
}

impl Monolith {
    /// A request for a room arrives after a while.
    pub(in crate::faults) async fn request(&self, room: &str, arrives: Duration) -> Reply {
        let life = match self.read(arrives).await {
            Ok(life) => life,
            Err(reply) => return reply,
        };
        if !self.lock().world.has(room) {
            return Reply::Status(404);
        }
        self.load_unless_there(life, room);
        if self.is_there(life, room).await { Reply::Status(200) } else { Reply::Broken }
    }

    /// The creation of a room, whose name it makes up if none is asked for.
    pub(in crate::faults) async fn create(&self, name: Option<&str>, arrives: Duration) -> Reply {
        let life = match self.read(arrives).await {
            Ok(life) => life,
            Err(reply) => return reply,
        };
        let created = self.lock().world.create(name);
        let Some(room) = created else { return Reply::Status(409) };
        self.load_unless_there(life, &room);
        if self.is_there(life, &room).await { Reply::Created(room) } else { Reply::Broken }
    }

    /// Waits until a request has come and is read, in this life of the process.
    async fn read(&self, arrives: Duration) -> Result<u64, Reply> {
        let (life, up) = {
            let state = self.lock();
            (state.life, state.up)
        };
        if !up {
            return Err(Reply::NotSent);
        }
        sleep(arrives).await;
        while self.lives(life) {
            if !self.lock().asleep {
                return Ok(life);
            }
            sleep(LOOK).await;
        }
        Err(Reply::Broken)
    }

    fn load_unless_there(&self, life: u64, room: &str) {
        let mut state = self.lock();
        if state.rooms.contains_key(room) || state.loading.contains_key(room) {
            return;
        }
        state.loading.insert(room.to_owned(), Vec::new());
        state.ledger.count("loads because of a request");
        let delay = state.time_to_load();
        drop(state);
        self.load(life, room.to_owned(), delay);
    }

    async fn is_there(&self, life: u64, room: &str) -> bool {
        while self.lives(life) {
            if !self.lock().loading.contains_key(room) {
                return true;
            }
            sleep(LOOK).await;
        }
        false
    }
}
