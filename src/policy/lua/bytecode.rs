//! What a compiled policy touches: global names and fields, with their lines, also in code that never runs.
//!
//! The compiler has resolved every local variable, so what it left as a global is one. The layout is that of Luau's
//! `lvmload.cpp` for the versions below; of any other version nothing is said.

use super::program;
use crate::policy::lua::Inspection;

/// Versions of the layout that are understood.
const VERSIONS: std::ops::RangeInclusive<u8> = 4..=9;

const GETGLOBAL: u8 = 7;
const SETGLOBAL: u8 = 8;
const GETIMPORT: u8 = 12;
const GETTABLEKS: u8 = 15;
/// Instructions that are followed by a word of data (`getOpLength` in Luau's `BytecodeUtils.h`).
const WITH_DATA: [u8; 30] = [
    7, 8, 12, 15, 16, 20, 27, 28, 29, 30, 31, 32, 53, 55, 58, 60, 66, 74, 75, 77, 78, 79, 80, 83, 84, 85, 86, 87, 88,
    90,
];

/// One function of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Function {
    /// The line at which it begins.
    pub(crate) line: u32,
    /// How many parameters it has; they are in the first registers.
    pub(crate) parameters: u8,
    /// What it touches, in the order of its code.
    pub(crate) touches: Vec<Touch>,
}

/// One thing that a function touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) line: u32,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Reads a global, or `global.member` in one go.
    Global(Vec<String>),
    /// Writes a global.
    SetGlobal(String),
    /// Reads a field of what is in a register into another one. `chained`: nothing came between this and the read
    /// before it.
    Field { from: u8, to: u8, name: String, chained: bool },
}

/// The functions of a text, the file itself last; `None` if it does not compile or the layout is unknown.
pub(crate) fn functions(text: &str) -> Option<Vec<Function>> {
    let compiled = program::compile("policy", text, Inspection::None).ok()?;
    Reader { rest: &compiled }.chunk()
}

enum Constant {
    Text(String),
    Other,
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn chunk(&mut self) -> Option<Vec<Function>> {
        if !VERSIONS.contains(&self.byte()?) {
            return None;
        }
        let types = self.byte()?;
        let strings: Vec<String> = (0..self.varint()?)
            .map(|_| {
                let length = self.varint()? as usize;
                Some(String::from_utf8_lossy(self.take(length)?).into_owned())
            })
            .collect::<Option<_>>()?;
        if types == 3 {
            while self.byte()? != 0 {
                self.varint()?;
            }
        }
        (0..self.varint()?).map(|_| self.function(&strings)).collect()
    }

    fn function(&mut self, strings: &[String]) -> Option<Function> {
        let parameters = self.take(5)?[1];
        let types = self.varint()? as usize;
        self.take(types)?;
        let code: Vec<u32> = (0..self.varint()?).map(|_| self.word()).collect::<Option<_>>()?;
        let constants: Vec<Constant> = (0..self.varint()?).map(|_| self.constant(strings)).collect::<Option<_>>()?;
        for _ in 0..self.varint()? {
            self.varint()?;
        }
        let line = self.varint()?;
        self.varint()?;
        let lines = if self.byte()? == 0 { vec![0; code.len()] } else { self.lines(code.len())? };
        if self.byte()? != 0 {
            for _ in 0..self.varint()? {
                let _name_from_to = [self.varint()?, self.varint()?, self.varint()?];
                self.byte()?;
            }
            for _ in 0..self.varint()? {
                self.varint()?;
            }
        }
        Some(Function { line, parameters, touches: touches(&code, &constants, &lines) })
    }

    fn constant(&mut self, strings: &[String]) -> Option<Constant> {
        match self.byte()? {
            0 => {}
            1 => drop(self.take(1)?),
            2 => drop(self.take(8)?),
            3 => {
                let at = self.varint()? as usize;
                return Some(strings.get(at.checked_sub(1)?).map_or(Constant::Other, |s| Constant::Text(s.clone())));
            }
            4 => drop(self.take(4)?),
            5 => {
                for _ in 0..self.varint()? {
                    self.varint()?;
                }
            }
            6 => drop(self.varint()?),
            7 => drop(self.take(16)?),
            8 => {
                for _ in 0..self.varint()? {
                    self.varint()?;
                    self.take(4)?;
                }
            }
            9 => {
                self.take(1)?;
                while self.byte()? & 0x80 != 0 {}
            }
            _ => return None,
        }
        Some(Constant::Other)
    }

    /// The line of each instruction: a small offset for each, and a base for each run of them.
    fn lines(&mut self, count: usize) -> Option<Vec<u32>> {
        let run = self.byte()?;
        let mut offset = 0u8;
        let offsets: Vec<u8> = (self.take(count)?.iter())
            .map(|delta| {
                offset = offset.wrapping_add(*delta);
                offset
            })
            .collect();
        let runs = (count.checked_sub(1)? >> run) + 1;
        let mut base = 0u32;
        let bases: Vec<u32> = (0..runs)
            .map(|_| {
                base = base.wrapping_add(self.word()?);
                Some(base)
            })
            .collect::<Option<_>>()?;
        Some(offsets.iter().enumerate().map(|(at, offset)| bases[at >> run] + u32::from(*offset)).collect())
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn word(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn varint(&mut self) -> Option<u32> {
        let mut value = 0u32;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }
}

fn touches(code: &[u32], constants: &[Constant], lines: &[u32]) -> Vec<Touch> {
    let text = |at: u32| match constants.get(at as usize) {
        Some(Constant::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let mut found = Vec::new();
    let mut at = 0;
    let mut after_field = usize::MAX;
    while at < code.len() {
        let [op, a, b, _] = code[at].to_le_bytes();
        let data = code.get(at + 1).copied().unwrap_or(0);
        let length = 1 + usize::from(WITH_DATA.contains(&op));
        let what = match op {
            GETGLOBAL => text(data).map(|name| What::Global(vec![name])),
            SETGLOBAL => text(data).map(What::SetGlobal),
            GETIMPORT => {
                let names = (0..data >> 30).map(|part| text((data >> (20 - 10 * part)) & 1023));
                names.collect::<Option<_>>().map(What::Global)
            }
            GETTABLEKS => text(data).map(|name| What::Field { from: b, to: a, name, chained: after_field == at }),
            _ => None,
        };
        if op == GETTABLEKS {
            after_field = at + length;
        }
        found.extend(what.map(|what| Touch { line: lines[at], what }));
        at += length;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when the engine's compiler writes a layout that is not understood: then `check` would fall silent.
    #[test]
    fn the_layout_of_this_engine_is_understood() {
        let text = "local p = {}
count = 1
local n = 2^53 + 0.5
function p.place(call)
  local t = { a = 1, b = nil, [3] = { 'x' } }
  if call.room.name == 'x' and n > 3 then
    count = count + 1
    return usher.min_by(call.monoliths, function(m) return m.room end)
  end
  for _, m in call.monoliths do print(m.id) end
end
return p";
        let functions = functions(text).unwrap();
        assert_eq!(functions.iter().map(|f| (f.line, f.parameters)).collect::<Vec<_>>(), [(8, 1), (4, 1), (1, 0)]);
        let touched = |at: usize| functions[at].touches.iter().map(|t| (t.line, t.what.clone())).collect::<Vec<_>>();
        let global = |path: &[&str]| What::Global(path.iter().map(|s| (*s).to_owned()).collect());
        assert_eq!(touched(0), [(8, What::Field { from: 0, to: 1, name: "room".into(), chained: false })]);
        let place = touched(1);
        assert!(place.contains(&(6, What::Field { from: 0, to: 2, name: "room".into(), chained: false })), "{place:?}");
        assert!(place.iter().any(
            |(line, what)| *line == 6 && matches!(what, What::Field { name, chained: true, .. } if name == "name")
        ));
        assert!(place.contains(&(7, global(&["count"]))) && place.contains(&(7, What::SetGlobal("count".into()))));
        assert!(place.contains(&(8, global(&["usher", "min_by"]))) && place.contains(&(10, global(&["print"]))));
        assert_eq!(touched(2), [(2, What::SetGlobal("count".into()))]);
    }

    #[test]
    fn a_cut_or_foreign_layout_says_nothing() {
        let whole = program::compile("x", "local p = { a = usher.hash('x') } return p", Inspection::None).unwrap();
        for end in 0..whole.len() - 1 {
            Reader { rest: &whole[..end] }.chunk();
        }
        assert_eq!(Reader { rest: &[99, 1, 0] }.chunk(), None);
    }
}
