//! JSON as the encoder writes it, read piece by piece in one pass: keys in their order, no white space, texts as slices of
//! the line. Whatever looks otherwise is no error here but none of a cursor's business.

use std::borrow::Cow;

use serde::Deserialize;

/// A place in a line. Every read is `None` where something else stands, and then says nothing about where it stopped.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Whether everything is read.
    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    /// Goes past this if it stands here.
    #[inline]
    pub(super) fn eat(&mut self, what: &str) -> bool {
        let found = self.rest().starts_with(what.as_bytes());
        if found {
            self.at += what.len();
        }
        found
    }

    /// Goes past this, which has to stand here.
    #[inline]
    pub(super) fn expect(&mut self, what: &str) -> Option<()> {
        self.eat(what).then_some(())
    }

    /// A text; one with escapes is copied.
    pub(super) fn text(&mut self) -> Option<Cow<'a, str>> {
        let body = self.rest().strip_prefix(b"\"")?;
        let end = body.iter().position(|byte| ENDS_TEXT[usize::from(*byte)])?;
        if body[end] != b'"' {
            return self.value::<String>().map(Cow::Owned);
        }
        let start = self.at + 1;
        self.at = start + end + 1;
        self.text.get(start..start + end).map(Cow::Borrowed)
    }

    /// One of a few texts, by its place among them; quotes included.
    pub(super) fn one_of<T: Copy>(&mut self, known: &[(&str, T)]) -> Option<T> {
        known.iter().find(|(text, _)| self.eat(text)).map(|(_, value)| *value)
    }

    /// A whole number. What follows it is for the next read to judge, so that `1.5` is not taken for 1.
    pub(super) fn whole(&mut self) -> Option<u64> {
        let rest = self.rest();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (all, leads) = (&rest[..digits], rest.first() == Some(&b'0'));
        if digits == 0 || digits > 20 || leads && digits > 1 {
            return None;
        }
        self.at += digits;
        // Nineteen digits always fit.
        let (safe, last) = all.split_at(digits.min(19));
        let value = safe.iter().fold(0, |value: u64, byte| value * 10 + u64::from(byte - b'0'));
        match last {
            [] => Some(value),
            [byte, ..] => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        }
    }

    /// A whole number of a smaller type.
    pub(super) fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.whole()?).ok()
    }

    /// A number.
    pub(super) fn number(&mut self) -> Option<f64> {
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
        let value: f64 = self.text.get(self.at..self.at + end)?.parse().ok()?;
        self.at += end;
        value.is_finite().then_some(value)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self) -> Option<bool> {
        self.one_of(&[("false", false), ("true", true)])
    }

    /// Any value, which takes as long as it takes.
    pub(super) fn value<T: Deserialize<'a>>(&mut self) -> Option<T> {
        let mut values = serde_json::Deserializer::from_str(self.text.get(self.at..)?).into_iter::<T>();
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

/// The bytes at which a plain run of a text ends: its quote, an escape, and what JSON allows in no text.
const ENDS_TEXT: [bool; 256] = {
    let mut ends = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        ends[byte] = true;
        byte += 1;
    }
    ends[b'"' as usize] = true;
    ends[b'\\' as usize] = true;
    ends
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a cursor reads if that is all there is.
    fn all<'a, T>(text: &'a str, read: impl FnOnce(&mut Cursor<'a>) -> Option<T>) -> Option<T> {
        let mut cursor = Cursor::new(text);
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
