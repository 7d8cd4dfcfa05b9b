//! What a seed makes of a run: how many take part, and what goes wrong when.

use std::time::Duration;

use super::STORM;
use super::choosing::POLICIES;
use super::dice::Dice;
use super::monolith::Ending;
use super::scene::GIVES_UP;
use crate::policy::shipped::{SHIPPED, Shipped};

/// Something that goes wrong, or that somebody does at a bad moment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    CutLink { balancer: usize, way: usize },
    SwallowLink { balancer: usize, way: usize },
    CloseWay { balancer: usize, way: usize, lasts: Duration },
    SecondWay { balancer: usize, lasts: Duration },
    Withdraw { balancer: usize, way: usize, lasts: Duration },
    Stall { monolith: usize, lasts: Duration },
    End { monolith: usize, how: Ending, away: Duration },
    Gossip { monolith: usize },
    TidyUp { monolith: usize },
    SwapPolicy { balancer: usize, to: u8 },
    Move { balancer: usize, room: usize, to: usize },
    CrashBalancer { balancer: usize, away: Duration },
    Drain { balancer: usize, monolith: usize, lasts: Duration },
    Outage { balancer: usize, lasts: Duration },
    SilenceStore { lasts: Duration },
    ForgetClaims,
}

impl Fault {
    /// How long it takes until it is over by itself.
    fn lasts(&self) -> Duration {
        match self {
            Self::CloseWay { lasts, .. }
            | Self::SecondWay { lasts, .. }
            | Self::Withdraw { lasts, .. }
            | Self::Stall { lasts, .. }
            | Self::Drain { lasts, .. }
            | Self::Outage { lasts, .. }
            | Self::SilenceStore { lasts } => *lasts,
            Self::End { away, .. } | Self::CrashBalancer { away, .. } => *away,
            Self::SwallowLink { .. } => GIVES_UP,
            Self::CutLink { .. }
            | Self::Gossip { .. }
            | Self::TidyUp { .. }
            | Self::SwapPolicy { .. }
            | Self::Move { .. }
            | Self::ForgetClaims => Duration::ZERO,
        }
    }
}

/// Whether balancers share a store of claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claims {
    /// There is none.
    None,
    /// There is one that always answers, and forgets nothing.
    Sound,
    /// There is one that faults strike too.
    Failing,
}

/// What a run is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Whatever comes.
    Any,
    /// An outage of every balancer.
    Outage,
    /// Late links.
    LateLinks,
    /// Rooms that are moved about.
    Moves,
}

impl Kind {
    /// The one of this name, as it prints itself.
    pub(super) fn named(name: &str) -> Self {
        let kinds = [Self::Any, Self::Outage, Self::LateLinks, Self::Moves];
        kinds.into_iter().find(|kind| format!("{kind:?}") == name).unwrap_or_else(|| panic!("no plan is called {name}"))
    }

    /// The plan of a seed.
    pub(super) fn plan(self, seed: u64) -> Plan {
        match self {
            Self::Any => Plan::of(seed),
            Self::Outage => Plan::of_an_outage(seed),
            Self::LateLinks => Plan::of_late_links(seed),
            Self::Moves => Plan::of_moves(seed),
        }
    }
}

/// What one seed makes of a run.
pub(super) struct Plan {
    pub(super) balancers: usize,
    pub(super) monoliths: usize,
    pub(super) rooms: usize,
    pub(super) clients: usize,
    /// Those who ask for rooms over HTTP.
    pub(super) callers: usize,
    pub(super) claims: Claims,
    /// The Lua policy with which balancers begin.
    pub(super) script: Option<&'static Shipped>,
    /// In a hundred links, those that are later than others.
    pub(super) late_links: u64,
    /// Joins per second and Monolith after an outage, where they are fewer than there usually are.
    pub(super) pace: Option<u32>,
    /// Whether a Monolith is drained in the calm, where nothing else may keep it from becoming empty.
    pub(super) empties: bool,
    pub(super) faults: Vec<(Duration, Fault)>,
    /// What is drawn from here on.
    pub(super) dice: Dice,
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn of(seed: u64) -> Self {
        let dice = &mut Dice::new(seed);
        let (balancers, monoliths) = (1 + dice.below(2), 2 + dice.below(3));
        let (rooms, clients) = (1 + dice.below(5), 3 + dice.below(10));
        let count = 3 + dice.below(12);
        let claims = match dice.below(10) {
            0 | 1 => Claims::Sound,
            2 => Claims::Failing,
            _ => Claims::None,
        };
        let kinds = if claims == Claims::Failing { 20 } else { 18 };
        let mut faults: Vec<(Duration, Fault)> = (0..count)
            .map(|_| {
                let balancer = dice.below(balancers);
                let (monolith, way) = (dice.below(monoliths), dice.below(monoliths));
                let lasts = dice.millis(100..4000);
                let fault = match dice.below(kinds) {
                    0 | 1 => Fault::CutLink { balancer, way },
                    2 => Fault::SwallowLink { balancer, way },
                    3 => Fault::CloseWay { balancer, way, lasts },
                    4 => Fault::SecondWay { balancer, lasts },
                    5 => Fault::Withdraw { balancer, way, lasts },
                    6 | 7 => Fault::Stall { monolith, lasts },
                    8 => Fault::End { monolith, how: Ending::Crash, away: lasts },
                    9 => Fault::End { monolith, how: Ending::Goodbye, away: lasts },
                    10 => Fault::End { monolith, how: Ending::InOrder, away: lasts },
                    11 => Fault::Gossip { monolith },
                    12 => Fault::TidyUp { monolith },
                    13 => Fault::SwapPolicy { balancer, to: dice.below(usize::from(POLICIES)) as u8 },
                    14 => Fault::Move { balancer, room: dice.below(rooms), to: monolith },
                    15 => Fault::CrashBalancer { balancer, away: lasts },
                    16 => Fault::Outage { balancer, lasts },
                    // Long enough for rooms that are never quiet.
                    17 => Fault::Drain { balancer, monolith, lasts: 2 * lasts },
                    18 => Fault::SilenceStore { lasts },
                    _ => Fault::ForgetClaims,
                };
                (dice.millis(500..STORM.as_millis() as u64 - 500), fault)
            })
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        let callers = dice.below(3);
        let script = if dice.percent(5) { Some(&SHIPPED[dice.below(SHIPPED.len())]) } else { None };
        let late_links = if dice.percent(40) { 40 } else { 0 };
        let pace = dice.percent(25).then_some(5);
        let empties = dice.percent(12);
        Self {
            balancers,
            monoliths,
            rooms,
            clients,
            callers,
            claims,
            script,
            late_links,
            pace,
            empties,
            faults,
            dice: dice.clone(),
        }
    }

    /// When whatever goes wrong has been over for a second, so that what it led to is seen before everything is made well.
    pub(super) fn faults_end(&self) -> Duration {
        let ends = self.faults.iter().map(|(at, fault)| *at + fault.lasts()).max();
        ends.unwrap_or_default() + Duration::from_secs(1)
    }

    /// The same with an outage of every balancer that lasts longer than anybody waits for its upgrade.
    fn of_an_outage(seed: u64) -> Self {
        let mut plan = Self::of(seed);
        let (at, lasts) = (Duration::from_secs(2), Duration::from_secs(6));
        let outages = (0..plan.balancers).map(|balancer| (at, Fault::Outage { balancer, lasts }));
        plan.faults.extend(outages);
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    /// The same with nothing but two balancers that move rooms about all the time, each behind the other's back.
    fn of_moves(seed: u64) -> Self {
        let mut plan = Self { balancers: 2, claims: Claims::None, late_links: 50, ..Self::of(seed) };
        let (rooms, monoliths) = (plan.rooms, plan.monoliths);
        let dice = &mut plan.dice.apart(1);
        plan.faults = (0..40)
            .map(|number| {
                let (balancer, room, to) = (dice.below(2), dice.below(rooms), dice.below(monoliths));
                (Duration::from_millis(1000 + number * 250), Fault::Move { balancer, room, to })
            })
            .collect();
        plan
    }

    /// The same among links of which half are late, for a room that two balancers send to two Monoliths.
    fn of_late_links(seed: u64) -> Self {
        Self { balancers: 2, claims: Claims::None, late_links: 50, ..Self::of(seed) }
    }
}
