//! What a link and its control thread say to each other, on its way: in order, but later than what other links are told, as
//! where tasks run on threads that have other things to do. Whoever is sent out with a claim is looked at here.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::dice::Dice;
use super::store::Claimant;
use crate::link::{Command, Report};
use crate::model::MonolithId;

/// How much of what is said comes late.
const LATE: u64 = 30;

/// The way between one link and the control thread.
pub(super) struct Relay {
    /// Whether this link is one that is late.
    pub(super) lags: bool,
    pub(super) dice: Dice,
    pub(super) monolith: MonolithId,
    pub(super) claims: Option<Arc<Claimant>>,
}

impl Relay {
    /// Where a link reports, so that it gets there.
    pub(super) fn begin(self, control: mpsc::Sender<Report>) -> mpsc::Sender<Report> {
        if !self.lags && self.claims.is_none() {
            return control;
        }
        let (reports, mut from_link) = mpsc::channel(64);
        let Self { lags, mut dice, monolith, claims } = self;
        tokio::spawn(async move {
            while let Some(report) = from_link.recv().await {
                let report = match report {
                    Report::Up { link, endpoint, monolith: id, region, http, commands, stats } => {
                        let commands = slow_down(commands, lags, dice.apart(1), monolith.clone(), claims.clone());
                        Report::Up { link, endpoint, monolith: id, region, http, commands, stats }
                    }
                    event @ Report::Event(_) => event,
                };
                pause(lags, &mut dice).await;
                if control.send(report).await.is_err() {
                    return;
                }
            }
        });
        reports
    }
}

fn slow_down(
    link: mpsc::UnboundedSender<Command>,
    lags: bool,
    mut dice: Dice,
    monolith: MonolithId,
    claims: Option<Arc<Claimant>>,
) -> mpsc::UnboundedSender<Command> {
    let (commands, mut decided) = mpsc::unbounded_channel();
    let (late, mut waiting) = mpsc::unbounded_channel();
    // It is judged when it is decided, not when the link hears of it.
    tokio::spawn(async move {
        while let Some(command) = decided.recv().await {
            if let (Command::Attach { room, open: false, .. }, Some(claims)) = (&command, &claims) {
                claims.goes(room.key(), &monolith);
            }
            if late.send(command).is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(command) = waiting.recv().await {
            pause(lags, &mut dice).await;
            if link.send(command).is_err() {
                return;
            }
        }
    });
    commands
}

async fn pause(lags: bool, dice: &mut Dice) {
    if lags && dice.percent(LATE) {
        sleep(dice.millis(1..150)).await;
    }
}
