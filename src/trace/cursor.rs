//! JSON as the encoder writes it, read piece by piece in one pass: keys in their order, no white space, texts as slices of
//! the line. Whatever looks otherwise is no error here but none of a cursor's business.

use std::borrow::Cow;
use std::str::FromStr;

use serde::Deserialize;

use super::scan;

/// A place in a line. Every read is `None` where something else stands, and then says nothing about where it stopped.
pub(super) struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(line: &'a [u8]) -> Self {
        Self { line, at: 0 }
    }

    /// Whether everything is read.
    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.line.len()
    }

    #[inline]
    fn rest(&self) -> &'a [u8] {
        &self.line[self.at..]
    }

    /// Goes past this if it stands here. Where it is known to the compiler, it takes a comparison or two and no call.
    #[inline(always)]
    pub(super) fn eat(&mut self, what: &str) -> bool {
        self.eat_bytes(what.as_bytes())
    }

    /// The same with bytes, which may have been read from a line before.
    #[inline(always)]
    pub(super) fn eat_bytes(&mut self, what: &[u8]) -> bool {
        let found = self.rest().starts_with(what);
        if found {
            self.at += what.len();
        }
        found
    }

    /// Goes past this, which has to stand here.
    #[inline(always)]
    pub(super) fn expect(&mut self, what: &str) -> Option<()> {
        self.eat(what).then_some(())
    }

    /// Goes past this text if it stands here. It has to be one that was read without escapes, and so is written without.
    #[inline]
    pub(super) fn eat_text(&mut self, known: &str) -> bool {
        let body = self.rest().strip_prefix(b"\"").and_then(|body| body.strip_prefix(known.as_bytes()));
        let found = body.is_some_and(|rest| rest.first() == Some(&b'"'));
        if found {
            self.at += known.len() + 2;
        }
        found
    }

    /// The next sixteen bytes, where there are as many.
    #[inline]
    pub(super) fn next_bytes(&self) -> Option<[u64; 2]> {
        let (words, _) = self.rest().first_chunk::<16>()?.as_chunks::<8>();
        Some([words[0], words[1]].map(u64::from_le_bytes))
    }

    /// What was read since a place that [`Self::place`] named.
    pub(super) fn since(&self, place: usize) -> &'a [u8] {
        self.line.get(place..self.at).unwrap_or_default()
    }

    /// Where it is.
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// A text; one with escapes is copied.
    pub(super) fn text(&mut self) -> Option<Cow<'a, str>> {
        let body = self.rest().strip_prefix(b"\"")?;
        let end = scan::plain_run(body)?;
        if body[end] != b'"' {
            return self.value::<String>().map(Cow::Owned);
        }
        let text = std::str::from_utf8(&body[..end]).ok()?;
        self.at += end + 2;
        Some(Cow::Borrowed(text))
    }

    /// One of a few texts, by its place among them; quotes included.
    #[inline(always)]
    pub(super) fn one_of<T: Copy>(&mut self, known: &[(&str, T)]) -> Option<T> {
        known.iter().find(|(text, _)| self.eat(text)).map(|(_, value)| *value)
    }

    /// A whole number. What follows it is for the next read to judge, so that `1.5` is not taken for 1.
    pub(super) fn whole(&mut self) -> Option<u64> {
        let (value, digits) = digits(self.rest());
        let leads = self.rest().first() == Some(&b'0');
        if digits == 0 || digits > 20 || leads && digits > 1 {
            return None;
        }
        // Nineteen digits always fit.
        let value = if digits < 20 { value } else { self.parsed(digits)? };
        self.at += digits;
        Some(value)
    }

    /// The next bytes as the library reads them.
    fn parsed<T: FromStr>(&self, length: usize) -> Option<T> {
        std::str::from_utf8(self.line.get(self.at..self.at + length)?).ok()?.parse().ok()
    }

    /// A whole number of a smaller type.
    pub(super) fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.whole()?).ok()
    }

    /// A number.
    pub(super) fn number(&mut self) -> Option<f64> {
        if let Some(value) = self.short_decimal() {
            return Some(value);
        }
        let rest = self.rest();
        let digits = |from: usize| rest[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let sign = usize::from(rest.first() == Some(&b'-'));
        let whole = digits(sign);
        if whole == 0 || whole > 1 && rest[sign] == b'0' {
            return None;
        }
        let mut end = sign + whole;
        if rest.get(end) == Some(&b'.') {
            let fraction = digits(end + 1);
            if fraction == 0 {
                return None;
            }
            end += 1 + fraction;
        }
        if let Some(b'e' | b'E') = rest.get(end) {
            let sign = usize::from(matches!(rest.get(end + 1), Some(b'+' | b'-')));
            let power = digits((end + 1 + sign).min(rest.len()));
            if power == 0 {
                return None;
            }
            end += 1 + sign + power;
        }
        let value: f64 = self.parsed(end)?;
        self.at += end;
        value.is_finite().then_some(value)
    }

    /// A number such as `1.5`, of at most fifteen digits. Those and the powers of ten up to 10^15 are exact, so that one
    /// division rounds as it should (Clinger, "How to read floating point numbers accurately", 1990).
    #[inline]
    fn short_decimal(&mut self) -> Option<f64> {
        let rest = self.rest();
        let (whole, before) = digits(rest);
        if before == 0 || before > 1 && rest[0] == b'0' || rest.get(before) != Some(&b'.') {
            return None;
        }
        let (fraction, after) = digits(&rest[before + 1..]);
        let end = before + 1 + after;
        if after == 0 || before + after > 15 || matches!(rest.get(end), Some(b'e' | b'E')) {
            return None;
        }
        let scale = POWERS_OF_TEN[after];
        self.at += end;
        Some((whole * scale + fraction) as f64 / scale as f64)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self) -> Option<bool> {
        self.one_of(&[("false", false), ("true", true)])
    }

    /// Any value, which takes as long as it takes.
    pub(super) fn value<T: Deserialize<'a>>(&mut self) -> Option<T> {
        let mut values = serde_json::Deserializer::from_slice(self.rest()).into_iter::<T>();
        let value = values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(value)
    }

    /// Reads the values of an object, each by its key.
    pub(super) fn object(&mut self, mut entry: impl FnMut(&mut Self, Cow<'a, str>) -> Option<()>) -> Option<()> {
        self.expect("{")?;
        if self.eat("}") {
            return Some(());
        }
        loop {
            let key = self.text()?;
            self.expect(":")?;
            entry(self, key)?;
            if !self.eat(",") {
                return self.expect("}");
            }
        }
    }
}

/// The number that the digits here make, and how many they are. One of more than nineteen may be wrong.
#[inline]
fn digits(bytes: &[u8]) -> (u64, usize) {
    let (mut value, mut count) = (0u64, 0);
    for byte in bytes {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        count += 1;
    }
    (value, count)
}

const POWERS_OF_TEN: [u64; 16] = {
    let mut powers = [1; 16];
    let mut at = 1;
    while at < 16 {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a cursor reads if that is all there is.
    fn all<'a, T>(text: &'a str, read: impl FnOnce(&mut Cursor<'a>) -> Option<T>) -> Option<T> {
        let mut cursor = Cursor::new(text.as_bytes());
        read(&mut cursor).filter(|_| cursor.is_at_end())
    }

    #[test]
    fn numbers_are_those_of_json() {
        for text in ["", "-", "01", "1.", ".5", "+1", "1e", "1e+", "1e400", "-01", "0x1", "NaN", "inf", "1 "] {
            assert_eq!(all(text, Cursor::number), None, "{text}");
            assert_eq!(all(text, Cursor::whole), None, "{text}");
        }
        for text in ["18446744073709551616", "99999999999999999999", "100000000000000000000", "-1", "1.0", "1e3"] {
            assert_eq!(all(text, Cursor::whole), None, "{text}");
        }
        assert_eq!(all("18446744073709551615", Cursor::whole), Some(u64::MAX));
        assert_eq!(all("4294967296", Cursor::small::<u32>), None);
        assert_eq!(all("-0", Cursor::number).map(f64::to_bits), Some((-0.0f64).to_bits()));
    }

    proptest! {
        #[test]
        fn it_reads_as_serde_does(text in r#"[-+]?[0-9]{0,21}(\.[0-9]{0,18})?([eE][-+]?[0-9]{0,3})?"#) {
            let bits = |number: Option<f64>| number.map(f64::to_bits);
            prop_assert_eq!(bits(all(&text, Cursor::number)), bits(serde_json::from_str(&text).ok()));
            prop_assert_eq!(all(&text, Cursor::whole), serde_json::from_str(&text).ok());
        }

        #[test]
        fn texts_too(text in r#""([a-z"\\/u0-9é\u{1}\u{7f}\n]|\\[nu"\\]|\\u00[0-9a-f]{2}){0,12}""#) {
            let found = all(&text, Cursor::text).map(Cow::into_owned);
            prop_assert_eq!(found, serde_json::from_str(&text).ok());
        }

        #[test]
        fn and_texts_of_all_kinds(text in ".{0,20}") {
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(all(&json, Cursor::text).map(Cow::into_owned), Some(text));
        }
    }
}
