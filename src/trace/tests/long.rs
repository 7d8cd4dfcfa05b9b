//! A trace that is longer than memory: read as it is made.

use super::*;

/// A trace that is made while it is read.
struct Endless {
    encoder: Encoder,
    view: View,
    ready: Vec<u8>,
    at: usize,
    lines: u64,
    made: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

const LONG: u64 = 200_000;

impl Endless {
    fn make(&mut self) {
        self.ready.clear();
        self.at = 0;
        let (n, out) = (self.lines, &mut self.ready);
        let client = ClientId::from_u128(u128::from(n / 2));
        match n {
            0 => self.encoder.header(&header(), out),
            n if n % 5000 == 0 => {
                let policy = PolicyText { version: format!("{n:012}"), ..header().policy };
                self.encoder.policy(n, &policy, out);
            }
            n if n % 100 == 0 => {
                self.view.update(&MonolithId::from("a"), |row| row.rtt_ms = n as f64);
                self.encoder.decision(n, decided("room", &self.view, "a"), out);
            }
            n if n % 2 == 0 => {
                let room = format!("room-{n}").as_str().into();
                self.encoder.event(n, TraceEvent::Join { client, room, region: None, reconnect: false }, out);
            }
            n => self.encoder.event(n, TraceEvent::Leave { client }, out),
        }
        self.lines += 1;
        let ends = self.ready.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.made.fetch_add(ends, std::sync::atomic::Ordering::Relaxed);
    }
}

impl std::io::Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.ready.len() {
            if self.lines > LONG {
                return Ok(0);
            }
            self.make();
        }
        let length = into.len().min(self.ready.len() - self.at);
        into[..length].copy_from_slice(&self.ready[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// However long a trace is and however many views and policies it has, no more of it is read ahead than a buffer holds.
#[test]
fn a_long_trace_is_read_in_little_memory() {
    let made = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let view = View::of([row("a", 1), row("b", 2)]);
    let source = Endless { encoder: Encoder::new(None), view, ready: Vec::new(), at: 0, lines: 0, made: made.clone() };
    let mut reader = Reader::new("long", source, OnDamage::Stop).unwrap();
    let (mut items, mut policies, mut views) = (0u64, 0, 0);
    while let Some((_, item)) = reader.read().unwrap() {
        items += 1;
        policies += u64::from(matches!(item, Item::Policy(_)));
        views += u64::from(matches!(item, Item::View));
        assert_eq!(reader.view().rows().len(), if views == 0 { 0 } else { 2 });
        // No line is shorter than 16 bytes, so a buffer of 64 KiB holds no more than 4096.
        let ahead = made.load(std::sync::atomic::Ordering::Relaxed).saturating_sub(reader.line());
        assert!(ahead <= 4096, "{ahead} lines are in memory");
    }
    assert_eq!((policies, views), (LONG / 5000, LONG / 100 - LONG / 5000));
    assert!(items > LONG / 2 && !reader.was_cut() && reader.damage().0 == 0);
}
