//! Finds the ends of lines and of texts, eight bytes or more at a time. A trace is mostly bytes that end nothing.

const ONES: u64 = u64::from_le_bytes([0x01; 8]);
const TOPS: u64 = u64::from_le_bytes([0x80; 8]);

/// Where the first line end is.
pub(super) fn line_end(bytes: &[u8]) -> Option<usize> {
    let (blocks, _) = bytes.as_chunks::<64>();
    // Without a branch for each byte, so that the compiler compares whole registers.
    let none = |block: &&[u8; 64]| !block.iter().fold(false, |found, byte| found | (*byte == b'\n'));
    let before = blocks.iter().take_while(none).count() * 64;
    let found = first(&bytes[before..], |word| zeros(word ^ (ONES * b'\n' as u64)), |byte| byte == b'\n');
    found.map(|at| before + at)
}

/// How long a plain run of a text is: up to its quote, an escape, or what JSON allows in no text.
pub(super) fn plain_run(bytes: &[u8]) -> Option<usize> {
    let ends = |word: u64| {
        let control = word.wrapping_sub(ONES * 0x20) & !word & TOPS;
        zeros(word ^ (ONES * b'"' as u64)) | zeros(word ^ (ONES * b'\\' as u64)) | control
    };
    first(bytes, ends, |byte| byte < 0x20 || byte == b'"' || byte == b'\\')
}

/// The first byte that is sought: `marks` sets the top bit of each such byte of a word, and may set further ones above the
/// first, where a subtraction borrowed; `is` says it of one byte.
#[inline]
fn first(bytes: &[u8], marks: impl Fn(u64) -> u64, is: impl Fn(u8) -> bool) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (word, at) in words.iter().zip((0..).step_by(8)) {
        let marks = marks(u64::from_le_bytes(*word));
        if marks != 0 {
            return Some(at + marks.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|byte| is(*byte)).map(|at| words.len() * 8 + at)
}

/// Marks the bytes that are zero (Mycroft, 1987).
#[inline]
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & TOPS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_each_byte_finds(
            mut bytes in proptest::collection::vec(prop_oneof![3 => 0x20..=0xffu8, 1 => any::<u8>()], 0..200),
            from in 0..200usize,
        ) {
            // Most runs are longer than random bytes would make them.
            for byte in bytes.iter_mut().take(from) {
                if matches!(*byte, b'"' | b'\\' | b'\n') || *byte < 0x20 {
                    *byte ^= 0x80;
                }
            }
            let end = |byte: &u8| *byte == b'\n';
            prop_assert_eq!(line_end(&bytes), bytes.iter().position(end));
            let end = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
            prop_assert_eq!(plain_run(&bytes), bytes.iter().position(end));
        }
    }
}
