//! Which lines of the policies ran under their tests: for people, as data, and as lcov.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::policy::lua::inspect::Lines;

/// The lines of all policies of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Coverage {
    /// Lines that ran, of a hundred with code.
    pub percent: f64,
    /// Lines that ran.
    pub covered: usize,
    /// Lines with code.
    pub lines: usize,
    /// Each policy, by the name of its file.
    pub files: Vec<FileCoverage>,
}

/// The lines of one policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FileCoverage {
    /// The policy's file.
    pub file: String,
    /// Lines that ran, of a hundred with code.
    pub percent: f64,
    /// Lines that ran.
    pub covered: usize,
    /// Lines with code.
    pub lines: usize,
    /// First and last line of each range that did not run.
    pub missed: Vec<(u32, u32)>,
    #[serde(skip)]
    hits: BTreeMap<u32, u64>,
}

impl Coverage {
    /// Sums up what each file's VMs have counted.
    pub(super) fn of(files: BTreeMap<String, Lines>) -> Self {
        let files: Vec<FileCoverage> = files.into_iter().map(|(file, lines)| FileCoverage::of(file, lines.0)).collect();
        let (covered, lines) = files.iter().fold((0, 0), |sum, file| (sum.0 + file.covered, sum.1 + file.lines));
        Self { percent: percent(covered, lines), covered, lines, files }
    }

    /// For people: a line for each file with the lines that did not run.
    pub fn pretty(&self) -> String {
        let width = self.files.iter().map(|file| file.file.len()).max().unwrap_or(0).max(5);
        let mut text = String::new();
        for file in &self.files {
            let _ = write!(text, "{:width$}  {:5.1} %  {}/{} lines", file.file, file.percent, file.covered, file.lines);
            let missed: Vec<String> = file.missed.iter().map(range).collect();
            let _ = if missed.is_empty() { writeln!(text) } else { writeln!(text, "  missed: {}", missed.join(", ")) };
        }
        let _ = writeln!(text, "{:width$}  {:5.1} %  {}/{} lines", "total", self.percent, self.covered, self.lines);
        text
    }

    /// As `geninfo` writes it: one record a file, `DA:line,count` for each line with code.
    pub fn lcov(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            let _ = writeln!(text, "TN:\nSF:{}", file.file);
            for (line, hits) in &file.hits {
                let _ = writeln!(text, "DA:{line},{hits}");
            }
            let _ = writeln!(text, "LF:{}\nLH:{}\nend_of_record", file.lines, file.covered);
        }
        text
    }
}

impl FileCoverage {
    fn of(file: String, hits: BTreeMap<u32, u64>) -> Self {
        let covered = hits.values().filter(|hits| **hits > 0).count();
        let mut missed: Vec<(u32, u32)> = Vec::new();
        let mut joined = false;
        // Lines without code between two that did not run do not part a range.
        for (line, hits) in &hits {
            match missed.last_mut() {
                Some(range) if *hits == 0 && joined => range.1 = *line,
                _ if *hits == 0 => missed.push((*line, *line)),
                _ => {}
            }
            joined = *hits == 0;
        }
        Self { percent: percent(covered, hits.len()), covered, lines: hits.len(), missed, file, hits }
    }
}

/// A policy without code has nothing that could be missed.
fn percent(covered: usize, lines: usize) -> f64 {
    if lines == 0 { 100.0 } else { (covered as f64 * 1000.0 / lines as f64).floor() / 10.0 }
}

fn range((first, last): &(u32, u32)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_lines_are_ranges_and_lcov_has_every_line() {
        let lines = |pairs: &[(u32, u64)]| Lines(pairs.iter().copied().collect());
        let files = [
            ("b.lua".to_owned(), lines(&[(1, 1), (3, 0), (4, 0), (7, 0), (9, 2), (10, 0)])),
            ("a.lua".to_owned(), lines(&[(1, 5)])),
        ];
        let coverage = Coverage::of(files.into());
        assert_eq!((coverage.covered, coverage.lines, coverage.percent), (3, 7, 42.8));
        assert_eq!(coverage.files[1].missed, [(3, 7), (10, 10)]);
        assert_eq!(
            coverage.pretty(),
            "a.lua  100.0 %  1/1 lines\nb.lua   33.3 %  2/6 lines  missed: 3-7, 10\ntotal   42.8 %  3/7 lines\n"
        );
        assert!(
            coverage
                .lcov()
                .starts_with("TN:\nSF:a.lua\nDA:1,5\nLF:1\nLH:1\nend_of_record\nTN:\nSF:b.lua\nDA:1,1\nDA:3,0\n")
        );
        assert_eq!(serde_json::to_value(&coverage.files[1].missed).unwrap(), serde_json::json!([[3, 7], [10, 10]]));
    }
}
