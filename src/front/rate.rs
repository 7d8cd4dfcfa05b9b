//! How often one address may connect: a bucket of tokens for each, in a table that forgets by halves and so never grows.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use foldhash::fast::RandomState;
use tokio::time::Instant;

/// Addresses in one half of the table. What was forgotten begins anew, with all its tokens.
const HALF: usize = 32_768;

type Table = HashMap<IpAddr, Bucket, RandomState>;

/// The addresses that connected lately. One task owns it.
#[derive(Debug, Default)]
pub(super) struct Rates {
    young: Table,
    old: Table,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    /// Whether an address may connect now, at `rate` times a second and as many at once; if so that is counted.
    pub(super) fn take(&mut self, address: IpAddr, rate: u32, now: Instant) -> bool {
        let (address, rate) = (network(address), f64::from(rate));
        let known = self.young.get(&address).or_else(|| self.old.get(&address)).copied();
        let mut bucket = known.unwrap_or(Bucket { tokens: rate, at: now });
        let refill = now.saturating_duration_since(bucket.at).as_secs_f64() * rate;
        bucket = Bucket { tokens: (bucket.tokens + refill).min(rate), at: now };
        let may = bucket.tokens >= 1.0;
        if may {
            bucket.tokens -= 1.0;
        }
        if self.young.len() >= HALF && !self.young.contains_key(&address) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(address, bucket);
        may
    }
}

/// What is counted together: a household has 2^64 addresses of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn each_address_has_its_own_rate() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut taken = |number, after| rates.take(address(number), 3, start + Duration::from_millis(after));
        assert_eq!([taken(1, 0), taken(1, 0), taken(1, 0), taken(1, 0)], [true, true, true, false]);
        assert!(taken(2, 0));
        assert_eq!([taken(1, 200), taken(1, 340), taken(1, 350)], [false, true, false]);
        let after_long: Vec<bool> = (0..5).map(|_| taken(1, 60_000)).collect();
        assert_eq!(after_long, [true, true, true, false, false]);
    }

    #[test]
    fn neighbours_of_ipv6_share_one_and_the_table_is_bounded() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        assert!(rates.take("2001:db8::1".parse().unwrap(), 1, now));
        assert!(!rates.take("2001:db8::2".parse().unwrap(), 1, now));
        assert!(rates.take("2001:db8:0:1::1".parse().unwrap(), 1, now));
        for number in 0..4 * HALF as u32 {
            rates.take(address(number), 1, now);
        }
        assert!(rates.young.len() + rates.old.len() <= 2 * HALF);
        assert!(!rates.take(address(4 * HALF as u32 - 1), 1, now), "the last ones are remembered");
    }
}
