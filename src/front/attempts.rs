//! How often and how long one request may look for the Monolith of its room.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::respond::Refusal;
use crate::config::Config;
use crate::control::Placement;

/// What the answer of the control thread may take that nobody takes a room.
const MOMENT: Duration = Duration::from_millis(100);

/// The bounds of every request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Choices that are tried: `limits.place_attempts`.
    pub(crate) choices: u32,
    /// How long a request waits for one of them: `Timeouts::patience`.
    pub(crate) patience: Duration,
}

impl Bounds {
    /// As they are configured.
    pub(crate) fn of(config: &Config) -> Self {
        let Config { limits, timeouts, .. } = config;
        Self { choices: limits.place_attempts, patience: timeouts.patience(limits) }
    }
}

/// What one request has left of them.
#[derive(Debug)]
pub(crate) struct Attempts {
    left: u32,
    /// Each wait for a choice has its own end. This is that of all of them.
    end: Instant,
}

impl Attempts {
    /// For a request that begins to look now.
    pub(crate) fn new(Bounds { choices, patience }: Bounds) -> Self {
        Self { left: choices, end: Instant::now() + patience.saturating_add(MOMENT) }
    }

    /// The next choice, if there may be one and it comes in time.
    pub(crate) async fn next(
        &mut self,
        place: impl Future<Output = Result<Placement, Refusal>>,
    ) -> Result<Placement, Refusal> {
        if self.left == 0 || Instant::now() >= self.end {
            return Err(Refusal::unavailable());
        }
        self.left -= 1;
        timeout_at(self.end, place).await.unwrap_or_else(|_| Err(Refusal::unavailable()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::sleep;

    use super::*;
    use crate::control::routes::Target;
    use crate::model::LinkId;

    const BOUNDS: Bounds = Bounds { choices: 3, patience: Duration::from_secs(25) };

    /// A choice that is made after so long.
    async fn choice(after: Duration) -> Result<Placement, Refusal> {
        sleep(after).await;
        let http = ([127, 0, 0, 1], 1).into();
        let target = Target::new("m1".into(), "eu".into(), http, LinkId(1), Arc::default());
        Ok(Placement { target, sent: None })
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_of_one_request_have_one_end_together() {
        let began = Instant::now();
        let mut attempts = Attempts::new(BOUNDS);
        let long = Duration::from_secs(10);
        assert!(attempts.next(choice(long)).await.is_ok());
        assert!(attempts.next(choice(long)).await.is_ok());
        assert!(attempts.next(choice(long)).await.is_err());
        assert_eq!(began.elapsed(), BOUNDS.patience + MOMENT);
        assert!(attempts.next(choice(Duration::ZERO)).await.is_err(), "there is none after the end");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_choices_are_tried_and_no_more() {
        let mut attempts = Attempts::new(BOUNDS);
        for _ in 0..BOUNDS.choices {
            assert!(attempts.next(choice(Duration::ZERO)).await.is_ok());
        }
        assert!(attempts.next(choice(Duration::ZERO)).await.is_err());
    }
}
