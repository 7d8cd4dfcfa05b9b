//! Somebody who asks for rooms over HTTP, and does as the front does: a bound room's Monolith is asked at once, another
//! one's is waited for, and what came of it is reported. The requests place rooms, load them, and may be given up at any
//! moment.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::client::{Guests, Stage};
use super::dice::Dice;
use super::monolith::{Monolith, Reply};
use crate::control::{Control, Placement};
use crate::front::attempts::{Attempts, Bounds};
use crate::front::respond::Refusal;
use crate::model::event::RequestOutcome;
use crate::model::policy::Cause;
use crate::model::{MonolithId, RoomName};

/// How long a request may wait for a Monolith, whatever happens meanwhile: as long as a join is held, and then as many
/// attempts as one room gets, with what timers may be late.
const LONGEST: Duration = Duration::from_millis(6010);
/// How long all that it waits for may take together, one choice after another: as long as one wait, and a moment.
const LONGEST_OF_ALL: Duration = Duration::from_millis(6110);

/// What a caller shares with all others.
#[derive(Clone)]
pub(super) struct Callers {
    pub(super) guests: Arc<Guests>,
    pub(super) monoliths: Vec<Monolith>,
    pub(super) rooms: usize,
    /// What the front gives a request.
    pub(super) bounds: Bounds,
}

/// What is asked for.
enum Wish {
    /// A room.
    Room(RoomName),
    /// That a room be made, of this name or any.
    Creation(Option<RoomName>),
}

impl Callers {
    /// One caller, from the beginning of the run to its end.
    pub(super) async fn call(self, mut dice: Dice) {
        while self.guests.stages.now() != Stage::Farewell {
            sleep(dice.millis(100..2500)).await;
            let Some(balancer) = self.guests.balancer(dice.below(self.guests.balancers.len())) else { continue };
            let name = match dice.below(10) {
                0 => "missing".into(),
                1 | 2 => format!("Club-{}", dice.below(4)),
                _ => format!("Room-{}", dice.below(self.rooms)),
            };
            let Ok(room) = RoomName::parse(&name) else { continue };
            let wish = match dice.below(10) {
                0 => Wish::Creation(None),
                1..=5 if name.starts_with("Club") => Wish::Creation(Some(room)),
                _ => Wish::Room(room),
            };
            let patience = if dice.percent(15) { dice.millis(1..800) } else { Duration::from_secs(3600) };
            self.guests.ledger.count("requests");
            let reply = timeout(patience, self.request(&balancer.control, &wish, &mut dice)).await;
            self.guests.ledger.tell(|| format!("a request for {name}: {reply:?}"));
        }
    }

    async fn request(&self, control: &Control, wish: &Wish, dice: &mut Dice) -> Option<Reply> {
        let (room, cause) = match wish {
            Wish::Room(room) => (Some(room), Cause::Http),
            Wish::Creation(room) => (room.as_ref(), Cause::Create),
        };
        if let Wish::Room(room) = wish
            && let Some(target) = control.routes().find(room.key())
        {
            return Some(self.ask(&target.id, wish, dice).await);
        }
        let began = Instant::now();
        let mut attempts = Attempts::new(self.bounds);
        loop {
            let place = self.place(control, room, cause);
            let Ok(Placement { target, sent }) = attempts.next(place).await else {
                self.guests.ledger.count("requests without a Monolith");
                return None;
            };
            self.guests.ledger.count("requests that were placed");
            let all = began.elapsed();
            if all > LONGEST_OF_ALL {
                self.guests.ledger.violation(format!("a request for {room:?} is still tried after {all:?}"));
            }
            let reply = self.ask(&target.id, wish, dice).await;
            match (&reply, sent) {
                (Reply::NotSent, Some(sent)) => {
                    sent.done(RequestOutcome::NotSent);
                    continue;
                }
                (Reply::Status(code), Some(sent)) => sent.done(RequestOutcome::Status(*code)),
                (Reply::Created(name), Some(sent)) => match RoomName::parse(name) {
                    Ok(name) => sent.done(RequestOutcome::Created(name)),
                    Err(_) => sent.done(RequestOutcome::Status(201)),
                },
                // Dropping what is owed reports the failure.
                (Reply::Broken, _) | (_, None) => {}
            }
            return Some(reply);
        }
    }

    /// One question to the control loop.
    async fn place(&self, control: &Control, room: Option<&RoomName>, cause: Cause) -> Result<Placement, Refusal> {
        let asked = Instant::now();
        let placed = timeout(LONGEST, control.place(room.cloned(), cause, None)).await;
        let waited = asked.elapsed();
        self.guests.ledger.most("longest wait of a request in ms", waited.as_millis() as u64);
        let Ok(placed) = placed else {
            self.guests.ledger.violation(format!("a request for {room:?} waits for {waited:?}"));
            return Err(Refusal::unavailable());
        };
        placed.map_err(|_| Refusal::unavailable())
    }

    /// One request to one Monolith. Now and then it cannot be reached this way although its link stands.
    async fn ask(&self, id: &MonolithId, wish: &Wish, dice: &mut Dice) -> Reply {
        let found = self.monoliths.iter().find(|monolith| monolith.id().as_deref() == Some(id.as_str()));
        let Some(monolith) = found.filter(|_| !dice.percent(3)) else { return Reply::NotSent };
        let arrives = dice.millis(1..20);
        match wish {
            Wish::Room(room) => monolith.request(room.key().as_str(), arrives).await,
            Wish::Creation(room) => monolith.create(room.as_ref().map(|room| room.key().as_str()), arrives).await,
        }
    }
}
