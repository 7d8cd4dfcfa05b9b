//! A reader of Rust sources that knows just enough: words and marks with their lines, without comments and texts, and
//! which of them are for tests only.

use std::iter::Peekable;
use std::str::Chars;

/// What one file says.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Paths from the root of the crate, outside test modules.
    pub(crate) imports: Vec<Import>,
    /// Modules that are declared for tests only and live in other files.
    pub(crate) test_modules: Vec<TestModule>,
    /// Every function, with its line.
    pub(crate) tests: Vec<(usize, String)>,
    /// Lines with code on them, outside test modules.
    pub(crate) code_lines: usize,
    /// Whether it begins with `//!`.
    pub(crate) starts_with_doc: bool,
}

/// A path from the root of the crate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// Where.
    pub(crate) line: usize,
    /// Its first part.
    pub(crate) module: String,
}

/// `#[cfg(test)] mod name;`
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestModule {
    /// Its name.
    pub(crate) name: String,
    /// Its `#[path]`.
    pub(crate) path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Mark(char),
}

impl Token {
    fn is(&self, mark: char) -> bool {
        *self == Self::Mark(mark)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(text) if text == word)
    }
}

impl Source {
    /// Reads a file that is the inside of this module.
    pub(crate) fn parse(text: &str, module: &[String]) -> Self {
        let tokens = tokens(text);
        let test_only = test_only(&tokens);
        let mut source = Self { starts_with_doc: text.starts_with("//!"), ..Self::default() };
        source.read_code_lines(&tokens, &test_only);
        source.read_functions(&tokens);
        source.read_test_modules(&tokens, &test_only);
        source.read_imports(&tokens, &test_only, module.len());
        source
    }

    fn read_code_lines(&mut self, tokens: &[Lexed], test_only: &[bool]) {
        let mut last = 0;
        for (token, test) in tokens.iter().zip(test_only) {
            if !test {
                let first = token.line.max(last + 1);
                self.code_lines += (token.code_end + 1).saturating_sub(first)
                    - token.blank_inside.min(token.code_end + 1 - token.line);
                last = last.max(token.code_end);
            }
        }
    }

    fn read_functions(&mut self, tokens: &[Lexed]) {
        for pair in tokens.windows(2) {
            if let [Lexed { token: keyword, .. }, Lexed { token: Token::Word(name), line, .. }] = pair
                && keyword.is_word("fn")
            {
                self.tests.push((*line, name.clone()));
            }
        }
    }

    fn read_test_modules(&mut self, tokens: &[Lexed], test_only: &[bool]) {
        for at in 0..tokens.len().saturating_sub(2) {
            let [keyword, name, end] = [&tokens[at].token, &tokens[at + 1].token, &tokens[at + 2].token];
            if test_only[at]
                && keyword.is_word("mod")
                && end.is(';')
                && let Token::Word(name) = name
            {
                self.test_modules.push(TestModule { name: name.clone(), path: path_before(tokens, at) });
            }
        }
    }

    fn read_imports(&mut self, tokens: &[Lexed], test_only: &[bool], file_depth: usize) {
        // Where each brace that is the body of a module ends the module again.
        let mut braces: Vec<bool> = Vec::new();
        let mut depth = file_depth;
        let mut at = 0;
        while at < tokens.len() {
            let token = &tokens[at].token;
            if token.is('{') {
                let module = at >= 2 && tokens[at - 2].token.is_word("mod");
                depth += usize::from(module);
                braces.push(module);
            } else if token.is('}') {
                depth -= usize::from(braces.pop() == Some(true));
            }
            let starts = at == 0 || !tokens[at - 1].token.is(':');
            if starts
                && !test_only[at]
                && let Some(after) = root_path(tokens, at, depth, file_depth)
            {
                self.first_parts(tokens, after);
            }
            at += 1;
        }
    }

    /// The first part of a path, or of each path of a group.
    fn first_parts(&mut self, tokens: &[Lexed], at: usize) {
        let Some(first) = tokens.get(at) else { return };
        if let Token::Word(module) = &first.token {
            self.imports.push(Import { line: first.line, module: module.clone() });
        } else if first.token.is('{') {
            let mut depth = 0;
            let mut begins = false;
            for token in &tokens[at..] {
                match &token.token {
                    Token::Mark('{') => {
                        depth += 1;
                        begins = depth == 1;
                    }
                    Token::Mark('}') => {
                        depth -= 1;
                        if depth == 0 {
                            return;
                        }
                    }
                    Token::Mark(',') => begins = depth == 1,
                    Token::Word(module) if begins => {
                        self.imports.push(Import { line: token.line, module: module.clone() });
                        begins = false;
                    }
                    _ => begins = false,
                }
            }
        }
    }
}

/// If a path from the crate's root begins here (`crate::`, `usher::`, or as many `super::` as there are modules around),
/// where its rest begins.
fn root_path(tokens: &[Lexed], at: usize, depth: usize, file_depth: usize) -> Option<usize> {
    let after = |at: usize| {
        let both = tokens.get(at + 1)?.token.is(':') && tokens.get(at + 2)?.token.is(':');
        both.then_some(at + 3)
    };
    let token = &tokens[at].token;
    if token.is_word("crate") || (token.is_word("usher") && file_depth == 0) {
        return after(at);
    }
    let mut at = at;
    let mut supers = 0;
    while tokens.get(at)?.token.is_word("super") {
        supers += 1;
        at = after(at)?;
    }
    (supers > 0 && supers == depth).then_some(at)
}

/// The `#[path = "..."]` among the attributes before an item.
fn path_before(tokens: &[Lexed], item: usize) -> Option<String> {
    let start =
        tokens[..item].iter().rposition(|token| token.token.is(';') || token.token.is('}')).map_or(0, |at| at + 1);
    let attributes = &tokens[start..item];
    let at = attributes.iter().position(|token| token.token.is_word("path"))?;
    match attributes.get(at + 2).map(|token| &token.token) {
        Some(Token::Text(path)) => Some(path.clone()),
        _ => None,
    }
}

/// Which tokens belong to items under `#[cfg(test)]`.
fn test_only(tokens: &[Lexed]) -> Vec<bool> {
    let mut marks = vec![false; tokens.len()];
    let mut at = 0;
    while at < tokens.len() {
        if is_cfg_test(&tokens[at..]) {
            let end = end_of_item(tokens, at);
            marks[at..end].fill(true);
            at = end;
        } else {
            at += 1;
        }
    }
    marks
}

fn is_cfg_test(tokens: &[Lexed]) -> bool {
    let [hash, open, cfg, paren, test, close, ..] = tokens else { return false };
    hash.token.is('#')
        && open.token.is('[')
        && cfg.token.is_word("cfg")
        && paren.token.is('(')
        && test.token.is_word("test")
        && close.token.is(')')
}

/// One past the last token of the item whose attributes begin here: its `;` or the end of its body.
fn end_of_item(tokens: &[Lexed], start: usize) -> usize {
    let mut depth = 0usize;
    let mut is_import = false;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match &token.token {
            Token::Word(word) if depth == 0 && word == "use" => is_import = true,
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']') => depth = depth.saturating_sub(1),
            Token::Mark('}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 && !is_import {
                    return at + 1;
                }
            }
            Token::Mark(';' | ',') if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// A token with the lines that it stands on.
#[derive(Clone, Debug)]
struct Lexed {
    token: Token,
    line: usize,
    /// The last line of it; a text may have several.
    code_end: usize,
    /// Blank lines within it.
    blank_inside: usize,
}

fn tokens(text: &str) -> Vec<Lexed> {
    let mut lexer = Lexer { chars: text.chars().peekable(), line: 1 };
    let mut tokens = Vec::new();
    while let Some((token, line, blank_inside)) = lexer.next() {
        tokens.push(Lexed { token, line, code_end: lexer.line, blank_inside });
    }
    tokens
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    fn bump(&mut self) -> Option<char> {
        let char = self.chars.next();
        self.line += usize::from(char == Some('\n'));
        char
    }

    fn second(&self) -> Option<char> {
        self.chars.clone().nth(1)
    }

    /// The next token, its first line, and how many blank lines are within it.
    fn next(&mut self) -> Option<(Token, usize, usize)> {
        loop {
            let line = self.line;
            let char = *self.chars.peek()?;
            if char.is_whitespace() {
                self.bump();
            } else if char == '/' && self.second() == Some('/') {
                while self.chars.peek().is_some_and(|char| *char != '\n') {
                    self.bump();
                }
            } else if char == '/' && self.second() == Some('*') {
                self.block_comment();
            } else if char == '"' {
                return Some(self.text(line));
            } else if char == '\'' {
                return Some((self.char_or_lifetime(), line, 0));
            } else if char.is_alphanumeric() || char == '_' {
                let word = self.word();
                match (word.as_str(), self.chars.peek()) {
                    ("b" | "c", Some('"')) => return Some(self.text(line)),
                    ("r" | "br" | "cr", Some('"' | '#')) => {
                        if let Some(text) = self.raw_text(line) {
                            return Some(text);
                        }
                    }
                    _ => return Some((Token::Word(word), line, 0)),
                }
            } else {
                self.bump();
                return Some((Token::Mark(char), line, 0));
            }
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(char) = self.chars.next_if(|char| char.is_alphanumeric() || *char == '_') {
            word.push(char);
        }
        word
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while let Some(char) = self.bump() {
            match (char, self.chars.peek()) {
                ('/', Some('*')) => {
                    self.bump();
                    depth += 1;
                }
                ('*', Some('/')) => {
                    self.bump();
                    depth -= 1;
                    if depth == 0 {
                        return;
                    }
                }
                _ => {}
            }
        }
    }

    fn text(&mut self, line: usize) -> (Token, usize, usize) {
        self.bump();
        let mut text = String::new();
        while let Some(char) = self.bump() {
            match char {
                '"' => break,
                '\\' => text.extend(self.bump()),
                char => text.push(char),
            }
        }
        let blank = blank_lines(&text);
        (Token::Text(text), line, blank)
    }

    /// After the `r` of a raw text; none if it was a raw identifier.
    fn raw_text(&mut self, line: usize) -> Option<(Token, usize, usize)> {
        let mut hashes = 0;
        while self.chars.next_if_eq(&'#').is_some() {
            hashes += 1;
        }
        self.chars.next_if_eq(&'"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let mut text = String::new();
        while let Some(char) = self.bump() {
            text.push(char);
            if text.ends_with(&end) {
                text.truncate(text.len() - end.len());
                break;
            }
        }
        let blank = blank_lines(&text);
        Some((Token::Text(text), line, blank))
    }

    fn char_or_lifetime(&mut self) -> Token {
        self.bump();
        let escaped = self.chars.peek() == Some(&'\\');
        if escaped || self.second() == Some('\'') {
            if self.bump() == Some('\\') {
                self.bump();
            }
            while self.bump().is_some_and(|char| char != '\'') {}
            return Token::Text(String::new());
        }
        self.word();
        Token::Mark('\'')
    }
}

fn blank_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.split('\n').collect();
    let inner = lines.get(1..lines.len().saturating_sub(1)).unwrap_or_default();
    inner.iter().filter(|line| line.trim().is_empty()).count()
}
