//! Bends good input: seeded changes that keep most of the structure, since a parser gives up early on noise.

/// A small generator of pseudo-random numbers (SplitMix64): the same seed gives the same inputs on every machine.
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Longer inputs are cut: their length is a matter for tests of limits.
const LONGEST: usize = 128 << 10;

const NUMBERS: [&str; 16] = [
    "0",
    "-0",
    "-1",
    "1e999",
    "-1e999",
    "1e-999",
    "00",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "0.1",
    "NaN",
];

const BYTES: [&[u8]; 14] = [
    b"\0",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\x1b[2J",
    b"\xe2\x80\xa8",
];

const OPENINGS: [&[u8]; 7] = [b"[", b"{\"a\":", b"{", b"(", b"{a=", b"not ", b"-"];

/// One of the seeds with one to five changes.
pub fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = random.pick(seeds).clone();
    for _ in 0..=random.below(5) {
        change(&mut bytes, seeds, random);
    }
    bytes.truncate(LONGEST);
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let to = (at + 1 + random.below(64)).min(bytes.len());
    match random.below(12) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.next() as u8,
        2 if at < to => drop(bytes.drain(at..to)),
        3 if at < to => {
            let again = bytes[at..to].to_vec();
            bytes.splice(to..to, again);
        }
        4 => {
            let other = random.pick(seeds);
            let from = random.below(other.len() + 1);
            let part = other[from..(from + random.below(200)).min(other.len())].to_vec();
            bytes.splice(at..to.max(at), part);
        }
        5 => bytes.truncate(at),
        6 => replace(bytes, random, |byte| byte.is_ascii_digit(), |random| random.pick(&NUMBERS).as_bytes().to_vec()),
        7 => {
            let opening = random.pick(&OPENINGS);
            let depth = *random.pick(&[1, 10, 130, 5000]);
            bytes.splice(at..at, opening.repeat(depth));
        }
        8 => {
            let odd = random.pick(&BYTES).to_vec();
            bytes.splice(at..at, odd);
        }
        9 => {
            let unit: &[u8] = random.pick::<&[u8]>(&[b"x", b"\\u0000", b"\xc3\xa9", b" ", b"%"]);
            let long = unit.repeat(*random.pick(&[65, 257, 4097, 20_000]));
            bytes.splice(at..at, long);
        }
        // A word in the place of another: keys and values change places, and keys come twice.
        10 => {
            let words = runs(bytes, |byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !words.is_empty() {
                let word = bytes[random.pick(&words).clone()].to_vec();
                let place = random.pick(&words).clone();
                bytes.splice(place, word);
            }
        }
        _ => replace(
            bytes,
            random,
            |byte| byte.is_ascii_alphanumeric(),
            |random| random.pick::<&[u8]>(&[b"null", b"true", b"{}", b"[]", b"\"\"", b"", b"[[]]"]).to_vec(),
        ),
    }
}

fn replace(bytes: &mut Vec<u8>, random: &mut Random, of: impl Fn(u8) -> bool, with: impl Fn(&mut Random) -> Vec<u8>) {
    let found = runs(bytes, of);
    if !found.is_empty() {
        let place = random.pick(&found).clone();
        bytes.splice(place, with(random));
    }
}

/// The longest ranges whose bytes are all of a kind.
fn runs(bytes: &[u8], of: impl Fn(u8) -> bool) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut from = None;
    for (at, byte) in bytes.iter().enumerate() {
        match (of(*byte), from) {
            (true, None) => from = Some(at),
            (false, Some(start)) => {
                found.push(start..at);
                from = None;
            }
            _ => {}
        }
    }
    found.extend(from.map(|start| start..bytes.len()));
    found
}
