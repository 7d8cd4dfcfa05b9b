//! Who comes: drawn from a scenario, or recorded in a trace. It does not depend on what becomes of those who came, so every
//! policy has to do with the same.

use std::collections::HashMap;

use super::random::{Random, Sampler, Stream, Zipf};
use super::world::{Regions, micros};
use crate::config::scenario::{Arrivals, Scenario};
use crate::model::event::Micros;
use crate::model::{RoomKey, RoomName};

const HOUR: f64 = 3600e6;

/// Somebody who wants into a room.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Visit {
    /// When, in microseconds since the beginning.
    pub(super) at: Micros,
    /// Which room, by its number.
    pub(super) room: u32,
    /// From which region.
    pub(super) region: u16,
    /// When it is over; [`Micros::MAX`]: it stays to the end.
    pub(super) until: Micros,
    /// Whether it says that it comes back.
    pub(super) reconnect: bool,
}

/// Rooms by number.
#[derive(Clone, Default)]
pub(super) struct Rooms {
    names: Vec<RoomName>,
    numbers: HashMap<RoomKey, u32>,
}

impl Rooms {
    pub(super) fn name(&self, number: u32) -> &RoomName {
        &self.names[number as usize]
    }

    pub(super) fn find(&self, key: &RoomKey) -> Option<u32> {
        self.numbers.get(key).copied()
    }

    /// The number of a room, which is given one if it has none.
    pub(super) fn number(&mut self, name: &str) -> u32 {
        let name = RoomName::reported(name);
        if let Some(number) = self.find(name.key()) {
            return number;
        }
        let number = self.names.len() as u32;
        self.numbers.insert(name.key().clone(), number);
        self.names.push(name);
        number
    }
}

/// Where visits come from.
pub(super) enum Traffic<'a> {
    Drawn(Box<Demand>),
    Recorded(std::slice::Iter<'a, Visit>),
}

impl Traffic<'_> {
    /// The next visit, in the order of time.
    pub(super) fn next(&mut self, rooms: &mut Rooms) -> Option<Visit> {
        match self {
            Self::Drawn(demand) => demand.next(rooms),
            Self::Recorded(visits) => visits.next().copied(),
        }
    }
}

/// Arrivals of a scenario, one after another.
pub(super) struct Demand {
    random: Random,
    /// Microseconds from midnight to the beginning.
    start: Micros,
    sources: Vec<Source>,
    new: f64,
    size: Sampler,
    life: Sampler,
    stay: Sampler,
    mixing: f64,
    lasting: Zipf,
    lasting_share: f64,
    /// Places in rooms that still get members, by the region that opened them.
    seats: Vec<Vec<Seat>>,
    opened: u32,
}

struct Source {
    arrivals: Arrivals,
    region: u16,
    most: f64,
    next: f64,
}

#[derive(Clone, Copy)]
struct Seat {
    room: u32,
    until: Micros,
}

impl Demand {
    pub(super) fn new(scenario: &Scenario, regions: &Regions, seed: u64, rooms: &mut Rooms) -> Self {
        let mut random = Random::new(seed, Stream::Demand);
        let start = micros(scenario.start);
        let mut sources: Vec<Source> = (scenario.arrivals.iter())
            .filter_map(|arrivals| {
                let (region, arrivals) = (regions.find(&arrivals.region)?, arrivals.clone());
                let most = arrivals.per_hour.iter().copied().fold(0.0, f64::max);
                Some(Source { arrivals, region, most, next: 0.0 })
            })
            .filter(|source| source.most > 0.0)
            .collect();
        sources.iter_mut().for_each(|source| source.advance(start, &mut random));
        let habits = &scenario.rooms;
        let size = Sampler::new(habits.size);
        for lasting in 0..habits.lasting {
            rooms.number(&format!("lasting-{}", lasting + 1));
        }
        Self {
            new: habits.new.unwrap_or_else(|| 1.0 / size.mean_count()),
            size,
            life: Sampler::new(habits.life),
            stay: Sampler::new(scenario.stay),
            mixing: habits.mixing,
            lasting: Zipf::new(habits.popularity, habits.lasting),
            lasting_share: habits.lasting_share,
            seats: vec![Vec::new(); regions.len()],
            opened: 0,
            random,
            start,
            sources,
        }
    }

    fn next(&mut self, rooms: &mut Rooms) -> Option<Visit> {
        let source = self.sources.iter_mut().min_by(|a, b| a.next.total_cmp(&b.next))?;
        let (at, region) = (source.next as Micros, source.region);
        source.advance(self.start, &mut self.random);
        let room = self.choose_room(at, region, rooms);
        let until = at.saturating_add((self.stay.draw(&mut self.random) * 1e6) as Micros);
        Some(Visit { at, room, region, until, reconnect: false })
    }

    fn choose_room(&mut self, at: Micros, region: u16, rooms: &mut Rooms) -> u32 {
        if self.lasting_share > 0.0 && self.random.chance(self.lasting_share) {
            return self.lasting.draw(&mut self.random) as u32;
        }
        if !self.random.chance(self.new) {
            let home = if self.random.chance(self.mixing) { self.elsewhere(region) } else { usize::from(region) };
            if let Some(room) = self.take_seat(home, at) {
                return room;
            }
        }
        self.opened += 1;
        let room = rooms.number(&format!("room-{}", self.opened));
        let until = at.saturating_add((self.life.draw(&mut self.random) * 1e6) as Micros);
        let more = self.size.draw(&mut self.random).round().max(1.0) as usize - 1;
        self.seats[usize::from(region)].extend(std::iter::repeat_n(Seat { room, until }, more));
        room
    }

    /// A place in a room, by chance: a room of which more is free is likelier.
    fn take_seat(&mut self, home: usize, at: Micros) -> Option<u32> {
        let seats = &mut self.seats[home];
        while !seats.is_empty() {
            let seat = seats.swap_remove(self.random.below(seats.len()));
            if seat.until > at {
                return Some(seat.room);
            }
        }
        None
    }

    /// Another region, the likelier the more free places there are; the same if there is none.
    fn elsewhere(&mut self, region: u16) -> usize {
        let own = usize::from(region);
        let total: usize =
            self.seats.iter().enumerate().filter(|(at, _)| *at != own).map(|(_, seats)| seats.len()).sum();
        if total == 0 {
            return own;
        }
        let mut left = self.random.below(total);
        for (at, seats) in self.seats.iter().enumerate().filter(|(at, _)| *at != own) {
            if left < seats.len() {
                return at;
            }
            left -= seats.len();
        }
        own
    }
}

impl Source {
    /// The next arrival after the last: those of the highest rate, of which the rate of the moment keeps its share.
    fn advance(&mut self, start: Micros, random: &mut Random) {
        loop {
            self.next += random.exponential(HOUR / self.most);
            let rate = self.rate(start as f64 + self.next);
            if random.chance(rate / self.most) || self.next > 1e18 {
                return;
            }
        }
    }

    /// Arrivals an hour at a moment after midnight.
    fn rate(&self, at: f64) -> f64 {
        let hours = at / HOUR;
        let of = |hour: f64| self.arrivals.per_hour[hour.rem_euclid(24.0) as usize % 24];
        if !self.arrivals.smooth {
            return of(hours);
        }
        let before = (hours - 0.5).floor();
        let part = hours - 0.5 - before;
        of(before) * (1.0 - part) + of(before + 1.0) * part
    }
}
