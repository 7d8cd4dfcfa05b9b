//! Scraped load: each Monolith is asked for its metrics from time to time, and the numbers that the configuration names
//! become `m.load` of policies. A Monolith that does not answer keeps its last numbers, and they grow old.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use foldhash::fast::FixedState;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Control;
use super::routes::{Load, Published, Target};
use crate::config::{Config, LoadConfig};
use crate::model::LinkId;
use crate::model::exposition;
use crate::model::metrics::MetricsText;

/// The longest page that is read; a longer one counts as no answer.
const LONGEST: usize = 1 << 20;
/// Requests under way at once, over all Monoliths; the others wait for their turn.
const AT_ONCE: usize = 64;
/// How long a page may take: as long as the interval, within these.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How soon a new Monolith, or a changed configuration, is noticed.
const LOOK: Duration = Duration::from_millis(250);

/// Asks the Monoliths for as long as usher runs.
pub struct Scraper {
    config: Arc<ArcSwap<Config>>,
    control: Control,
    counters: Arc<ScrapeCounters>,
    /// What is asked for at present.
    load: LoadConfig,
    jobs: BTreeMap<LinkId, Job>,
    under_way: JoinSet<(LinkId, Result<Load, ScrapeError>)>,
}

/// One Monolith that is asked.
struct Job {
    target: Arc<Target>,
    due: Instant,
    /// At most one request at a time.
    flight: Option<AbortHandle>,
    rounds: u64,
    failing: bool,
    missing: Vec<String>,
}

/// What came of asking.
#[derive(Debug, Default)]
pub struct ScrapeCounters {
    pages: AtomicU64,
    failures: [AtomicU64; ScrapeError::LABELS.len()],
}

/// Why a page was not had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum ScrapeError {
    #[error("it takes no connection")]
    Connect,
    #[error("no answer in time")]
    Timeout,
    #[error("the answer broke off, or was none")]
    Broken,
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its page is longer than 1MiB")]
    TooLong,
    #[error("its page is no text")]
    NoText,
}

impl ScrapeError {
    const LABELS: [&str; 6] = ["connect", "timeout", "broken", "status", "too_long", "no_text"];

    /// The place of its label.
    fn kind(self) -> usize {
        match self {
            Self::Connect => 0,
            Self::Timeout => 1,
            Self::Broken => 2,
            Self::Status(_) => 3,
            Self::TooLong => 4,
            Self::NoText => 5,
        }
    }
}

impl ScrapeCounters {
    /// Writes what is counted.
    pub fn write_metrics(&self, out: &mut MetricsText) {
        out.counter("usher_load_scrapes_total", "Metrics pages read from Monoliths.", self.pages.load(Relaxed));
        let labels = ScrapeError::LABELS.map(|label| [("kind", label)]);
        let samples: Vec<(&[(&str, &str)], u64)> =
            labels.iter().zip(&self.failures).map(|(label, count)| (&label[..], count.load(Relaxed))).collect();
        out.family("usher_load_scrape_failures_total", "Metrics pages that were not had.", "counter", &samples);
    }
}

impl Scraper {
    /// A scraper that asks for what the configuration names at each moment.
    pub fn new(config: Arc<ArcSwap<Config>>, control: Control, counters: Arc<ScrapeCounters>) -> Self {
        let load = LoadConfig::default();
        Self { config, control, counters, load, jobs: BTreeMap::new(), under_way: JoinSet::new() }
    }

    /// Runs until it is dropped, and its requests with it.
    pub async fn run(mut self) {
        loop {
            self.reconfigure();
            if self.load.metrics.is_empty() {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let published = self.control.routes().published();
            self.follow(&published);
            let next = self.start_due();
            tokio::select! {
                biased;
                Some(done) = self.under_way.join_next() => {
                    // One that was aborted belongs to a Monolith that has gone.
                    if let Ok((link, result)) = done {
                        self.finish(link, result);
                    }
                }
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Takes up a changed configuration: everybody is asked anew, and old numbers stay until then. Those that nobody
    /// asks for any more go.
    fn reconfigure(&mut self) {
        let config = self.config.load();
        if config.load == self.load {
            return;
        }
        self.load = config.load.clone();
        // What the old one still brings would stand under the old names.
        self.under_way = JoinSet::new();
        let off = self.load.metrics.is_empty();
        for target in self.control.routes().published().targets.values().filter(|_| off) {
            target.set_load(None);
        }
        self.jobs.clear();
    }

    /// Brings the jobs in line with the Monoliths that are linked.
    fn follow(&mut self, published: &Published) {
        self.jobs.retain(|_, job| {
            let linked = published.targets.get(&job.target.id).is_some_and(|target| target.link == job.target.link);
            if !linked && let Some(flight) = &job.flight {
                flight.abort();
            }
            linked
        });
        for target in published.targets.values() {
            self.jobs.entry(target.link).or_insert_with(|| Job {
                target: target.clone(),
                // Spread over the first moments, so that they are not all asked in the same one ever after.
                due: Instant::now() + self.load.interval.min(LOOK).mul_f64(draw(target.link, 0)),
                flight: None,
                rounds: 0,
                failing: false,
                missing: Vec::new(),
            });
        }
    }

    /// Asks those whose time has come, and says when to look again.
    fn start_due(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + LOOK;
        for (link, job) in self.jobs.iter_mut().filter(|(_, job)| job.flight.is_none()) {
            if job.due > now {
                next = next.min(job.due);
            } else if self.under_way.len() < AT_ONCE {
                job.rounds += 1;
                // Every round is up to a tenth early or late.
                job.due = now + self.load.interval.mul_f64(0.9 + 0.2 * draw(*link, job.rounds));
                let (link, http, load) = (*link, job.target.http, self.load.clone());
                let flight = self.under_way.spawn(async move { (link, scrape(http, &load).await) });
                job.flight = Some(flight);
            }
        }
        next
    }

    fn finish(&mut self, link: LinkId, result: Result<Load, ScrapeError>) {
        let Some(job) = self.jobs.get_mut(&link) else { return };
        job.flight = None;
        let monolith = &job.target.id;
        match result {
            Ok(load) => {
                self.counters.pages.fetch_add(1, Relaxed);
                if std::mem::take(&mut job.failing) {
                    info!(%monolith, "its metrics can be read again");
                }
                let missing: Vec<String> =
                    self.load.metrics.keys().filter(|name| !load.values.contains_key(*name)).cloned().collect();
                if missing != job.missing && !missing.is_empty() {
                    let metrics = missing.join(", ");
                    warn!(%monolith, metrics, "not among its metrics (load.metrics), or no finite number");
                }
                job.missing = missing;
                job.target.set_load(Some(load));
            }
            Err(error) => {
                self.counters.failures[error.kind()].fetch_add(1, Relaxed);
                if std::mem::replace(&mut job.failing, true) {
                    debug!(%monolith, %error, "its metrics cannot be read");
                } else {
                    warn!(%monolith, %error, "its metrics cannot be read; its last numbers stay, and grow old");
                }
            }
        }
    }
}

/// A number from 0 to 1 that differs from Monolith to Monolith and from round to round.
fn draw(link: LinkId, round: u64) -> f64 {
    let hash = FixedState::default().hash_one((link, round));
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// One page, and what of it is asked for.
async fn scrape(http: SocketAddr, load: &LoadConfig) -> Result<Load, ScrapeError> {
    let patience = load.interval.clamp(PATIENCE.0, PATIENCE.1);
    let page = tokio::time::timeout(patience, page(http, load)).await.map_err(|_| ScrapeError::Timeout)??;
    let text = std::str::from_utf8(&page).map_err(|_| ScrapeError::NoText)?;
    Ok(Load { values: exposition::pick(text, &load.metrics), at: Instant::now() })
}

/// A request on a connection of its own: they are too rare to keep one, and Monoliths close idle ones soon.
async fn page(http: SocketAddr, load: &LoadConfig) -> Result<Bytes, ScrapeError> {
    let stream = TcpStream::connect(http).await.map_err(|_| ScrapeError::Connect)?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| ScrapeError::Broken)?;
    let request = request(http, load).ok_or(ScrapeError::Broken)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|_| ScrapeError::Broken)?;
        if response.status() != StatusCode::OK {
            return Err(ScrapeError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), LONGEST).collect().await;
        let too_long = |error: Box<dyn std::error::Error + Send + Sync>| match error.downcast::<LengthLimitError>() {
            Ok(_) => ScrapeError::TooLong,
            Err(_) => ScrapeError::Broken,
        };
        body.map(http_body_util::Collected::to_bytes).map_err(too_long)
    };
    let (mut exchange, connection) = (pin!(exchange), pin!(connection));
    tokio::select! {
        biased;
        page = &mut exchange => page,
        // What has come is still to be read.
        _ = connection => exchange.await,
    }
}

fn request(http: SocketAddr, load: &LoadConfig) -> Option<Request<Empty<Bytes>>> {
    let mut request = Request::get(load.path.as_str())
        .header(HOST, http.to_string())
        .header(ACCEPT, "text/plain")
        .header(CONNECTION, "close");
    if let Some((name, value)) = &load.header {
        let mut value = HeaderValue::from_str(value.expose()).ok()?;
        value.set_sensitive(true);
        request = request.header(name.as_str(), value);
    }
    request.body(Empty::new()).ok()
}
