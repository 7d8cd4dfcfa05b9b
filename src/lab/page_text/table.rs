//! Aligned columns of text of any origin, coloured or not, cut at the width of the terminal.

use std::fmt::Write;

use super::Terminal;

/// The longest text in a column that is not the last one.
const WIDEST: usize = 40;

/// How a text looks where there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Plain,
    Strong,
    Soft,
    Accent,
    Good,
    Bad,
}

/// One field.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    right: bool,
    paint: Paint,
}

impl Cell {
    pub(super) fn left(text: impl Into<String>) -> Self {
        Self { text: text.into(), right: false, paint: Paint::Plain }
    }

    pub(super) fn right(text: impl Into<String>) -> Self {
        Self { right: true, ..Self::left(text) }
    }

    pub(super) fn paint(self, paint: Paint) -> Self {
        Self { paint, ..self }
    }
}

/// Rows of fields. Columns are two blanks apart, and lines begin with two.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<Vec<Cell>>);

impl Table {
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.0.push(cells.into_iter().collect());
    }

    /// Adds a field to a row that is there.
    pub(super) fn extend(&mut self, row: usize, cell: Cell) {
        if let Some(cells) = self.0.get_mut(row) {
            cells.push(cell);
        }
    }

    /// How many characters the longest line has.
    pub(super) fn width(&self) -> usize {
        self.columns().iter().map(|width| width + 2).sum()
    }

    fn columns(&self) -> Vec<usize> {
        let many = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let column = |at: usize| {
            let widest = self.0.iter().filter_map(|row| row.get(at)).map(|cell| width(&cell.text)).max().unwrap_or(0);
            if at + 1 == many { widest } else { widest.min(WIDEST) }
        };
        (0..many).map(column).collect()
    }

    pub(super) fn write(&self, text: &mut String, terminal: Terminal) {
        let columns = self.columns();
        for row in &self.0 {
            let last = row.iter().rposition(|cell| !cell.text.trim_end().is_empty());
            let mut used = 0;
            for (at, cell) in row.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
                // A column that is empty everywhere takes no place.
                if columns[at] == 0 {
                    continue;
                }
                let left = terminal.width.saturating_sub(used + 2);
                if left == 0 {
                    break;
                }
                let column = columns[at].min(left);
                let shown = cut(&cell.text, column);
                let blank = " ".repeat(column.saturating_sub(width(&shown)));
                let coloured = painted(&shown, cell.paint, terminal);
                let _ = match (cell.right, last == Some(at)) {
                    (true, _) => write!(text, "  {blank}{coloured}"),
                    (false, true) => write!(text, "  {coloured}"),
                    (false, false) => write!(text, "  {coloured}{blank}"),
                };
                used += 2 + column;
            }
            text.push('\n');
        }
    }
}

/// Text with the escape sequences of its look, where there are colours.
pub(super) fn painted(text: &str, paint: Paint, terminal: Terminal) -> String {
    let code = match paint {
        Paint::Strong => "1",
        Paint::Soft => "2",
        Paint::Accent => "36",
        Paint::Good => "32",
        Paint::Bad => "31",
        Paint::Plain => "",
    };
    if code.is_empty() || text.is_empty() || !terminal.colours {
        return text.to_owned();
    }
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Text that a terminal shows and does not obey: controls, and marks that turn the direction of writing, are spelled out.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(' '),
            c if c.is_control() => shown.extend(c.escape_default()),
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    shown
}

/// The beginning of a text that is too long, with a sign that there was more.
fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += columns_of(c);
        if used > most {
            break;
        }
        shown.push(c);
    }
    shown.push('…');
    shown
}

pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// How many columns a character takes: what East Asian writing and pictures take two for, and marks none. The blocks of
/// Unicode are taken as a whole, which is right for what names are made of.
fn columns_of(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200d | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}
