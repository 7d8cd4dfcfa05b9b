//! What a simulated Monolith is built with, and the defaults, which are the real server's where it has them.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use uuid::Uuid;

use super::super::world::World;
use super::shared::Shared;
use super::state::{InitStyle, Knobs, State};
use super::{Monolith, run};

/// What a Monolith is built with.
pub struct Builder {
    world: World,
    id: Option<String>,
    region: String,
    log_limit: usize,
    knobs: Knobs,
}

impl Builder {
    pub(super) fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            id: None,
            region: "ewr".to_owned(),
            log_limit: 20_000,
            knobs: Knobs {
                load_delay: Duration::from_millis(5),
                loads_frozen: false,
                answer_joins: true,
                answer_creations: true,
                init: InitStyle::Normal,
                refuse_links: false,
                keep_alive: None,
                gossip_every: Duration::from_secs(20),
                init_timeout: Duration::from_secs(10),
                user_list_limit: usize::MAX,
                token: None,
                api_key: "test-key".to_owned(),
                http_idle: Duration::from_secs(5),
                metrics: String::new(),
            },
        }
    }

    /// The id in its `init`. Without one: a random UUID.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The region in its `init`, `ewr` by default.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = region.into();
        self
    }

    /// The link token in its `init`; none by default.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.knobs.token = Some(token.into());
        self
    }

    /// The key that `/api/room/list` and `DELETE /api/room/NAME` take in the header `apikey`; `test-key` by default.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.knobs.api_key = key.into();
        self
    }

    /// The time between two gossips, 20 s by default.
    #[must_use]
    pub fn gossip_every(mut self, interval: Duration) -> Self {
        self.knobs.gossip_every = interval;
        self
    }

    /// How long a room takes to load, 5 ms by default. Joins of one room that come within it load it several times.
    #[must_use]
    pub fn load_delay(mut self, delay: Duration) -> Self {
        self.knobs.load_delay = delay;
        self
    }

    /// After how long an empty room is unloaded; never by default.
    #[must_use]
    pub fn keep_alive(mut self, idle: Duration) -> Self {
        self.knobs.keep_alive = Some(idle);
        self
    }

    /// How long a balancer has for its `init`, 10 s by default.
    #[must_use]
    pub fn init_timeout(mut self, timeout: Duration) -> Self {
        self.knobs.init_timeout = timeout;
        self
    }

    /// How it introduces itself.
    #[must_use]
    pub fn init(mut self, style: InitStyle) -> Self {
        self.knobs.init = style;
        self
    }

    /// How many users the list that a joining client gets names at most. The real server names all, which makes a
    /// join of a big room expensive; a load test sets a limit.
    #[must_use]
    pub fn user_list_limit(mut self, limit: usize) -> Self {
        self.knobs.user_list_limit = limit;
        self
    }

    /// How many records of each kind are kept, 20000 by default; the counters go on.
    #[must_use]
    pub fn log_limit(mut self, limit: usize) -> Self {
        self.log_limit = limit;
        self
    }

    /// After how long an idle HTTP connection is closed, 5 s by default.
    #[must_use]
    pub fn http_idle(mut self, idle: Duration) -> Self {
        self.knobs.http_idle = idle;
        self
    }

    /// Starts it on two free ports of the loopback interface.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(self) -> io::Result<Monolith> {
        let id = self.id.unwrap_or_else(|| Uuid::new_v4().to_string());
        let state = State::new(self.world, id, self.region, self.knobs, self.log_limit);
        let links = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let requests = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (link_addr, http_addr) = (links.local_addr()?, requests.local_addr()?);
        let shared = Arc::new(Shared::new(state));
        shared.change(|state| state.http_port = http_addr.port());
        let process = tokio::spawn(run(shared.clone(), links, requests));
        Ok(Monolith { shared, process: Mutex::new(Some(process)), link_addr, http_addr })
    }
}
