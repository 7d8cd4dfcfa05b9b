//! A policy's text, checked and compiled once. Every VM of a version starts from the same bytecode.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlua::chunk::Compiler;
use sha2::{Digest, Sha256};

use super::environment::Environment;
use super::inspect::Inspection;

/// The largest policy file, in bytes. A policy is a page of code; the compiler has no limits of its own.
pub const MAX_SOURCE: u64 = 1 << 20;

/// Where a policy's text came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The binary.
    Shipped,
    /// A file.
    File(PathBuf),
}

/// A policy's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name: that of the file without `.lua`, or of the shipped policy.
    pub name: String,
    /// The text.
    pub text: Arc<str>,
    /// Where it came from.
    pub origin: Origin,
}

/// Why a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct LoadError {
    /// The file, as errors name it.
    pub file: String,
    /// The line, where one is to blame.
    pub line: Option<u32>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.reason),
            None => write!(f, "{}: {}", self.file, self.reason),
        }
    }
}

impl Source {
    /// A policy's text that is part of the binary, or made by a test.
    pub fn shipped(name: &str, text: &str) -> Self {
        Self { name: name.into(), text: text.into(), origin: Origin::Shipped }
    }

    /// Reads a policy's file.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = read_text(path)?;
        let name = path.file_stem().map_or_else(|| "policy".into(), |stem| stem.to_string_lossy().into_owned());
        Ok(Self { name, text: text.into(), origin: Origin::File(path.to_path_buf()) })
    }

    /// The file name that errors of this policy carry.
    pub fn file(&self) -> String {
        match &self.origin {
            Origin::Shipped => format!("policies/{}.lua", self.name),
            Origin::File(path) => path.display().to_string(),
        }
    }

    /// The first 12 hex digits of the text's SHA-256: equal texts are equal versions.
    pub fn version(&self) -> String {
        Sha256::digest(self.text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first line that looks as if it gave this name a value. Values carry no place of their own, so this is read off
    /// the text: good enough to point at.
    pub(super) fn assignment_of(&self, name: &str) -> Option<u32> {
        self.lines()
            .find(|(_, line)| {
                line.match_indices(name).any(|(at, _)| {
                    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    let rest = line[at + name.len()..].trim_start_matches([' ', '\t', '"', '\'', ']']);
                    !line[..at].ends_with(word) && rest.starts_with('=') && !rest.starts_with("==")
                })
            })
            .map(|(at, _)| at)
    }

    /// The line of the last `return`.
    pub(super) fn last_return(&self) -> Option<u32> {
        self.lines().filter(|(_, line)| line.trim_start().starts_with("return")).last().map(|(at, _)| at)
    }

    fn lines(&self) -> impl Iterator<Item = (u32, &str)> {
        (1..).zip(self.text.lines())
    }

    /// Something that is wrong with this text.
    pub fn problem(&self, line: Option<u32>, reason: impl Into<String>) -> LoadError {
        LoadError { file: self.file(), line, reason: reason.into() }
    }
}

/// Reads a Lua file as text: a file, of bounded size, in UTF-8.
pub fn read_text(path: &Path) -> Result<String, LoadError> {
    let error = |reason: String| LoadError { file: path.display().to_string(), line: None, reason };
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => error("no such file; give a path or the name of a shipped policy".into()),
        _ => error(format!("cannot be read: {e}")),
    })?;
    if !meta.is_file() {
        return Err(error("is not a file; name the policy's .lua file".into()));
    }
    if meta.len() > MAX_SOURCE {
        return Err(error(format!("has {} bytes; a policy may have {MAX_SOURCE}", meta.len())));
    }
    // One more byte than is allowed, in case it has grown since.
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_SOURCE + 1).read_to_end(&mut bytes));
    read.map_err(|e| error(format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > MAX_SOURCE {
        return Err(error(format!("has grown beyond {MAX_SOURCE} bytes while it was read; a policy may have no more")));
    }
    // The mark with which some editors begin a file in UTF-8 is no part of the text.
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        LoadError { line: u32::try_from(line).ok(), ..error("is not UTF-8; policies are text".into()) }
    })
}

/// A compiled policy with everything that its VMs need. Cheap to clone.
#[derive(Clone)]
pub struct Program {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) source: Source,
    pub(super) version: String,
    pub(super) bytecode: Arc<[u8]>,
    pub(super) environment: Environment,
    pub(super) inspection: Inspection,
}

impl Program {
    /// Compiles a policy. Nothing of it is run.
    pub fn compile(source: Source, environment: &Environment) -> Result<Self, LoadError> {
        Self::inspected(source, environment, Inspection::None)
    }

    /// As [`Program::compile`], for VMs that look closer and do not decide.
    pub fn inspected(source: Source, environment: &Environment, inspection: Inspection) -> Result<Self, LoadError> {
        if source.text.len() as u64 > MAX_SOURCE {
            let reason = format!("has {} bytes; a policy may have {MAX_SOURCE}", source.text.len());
            return Err(source.problem(None, reason));
        }
        let bytecode = compile(&source.file(), &source.text, inspection)?;
        let version = source.version();
        let (bytecode, environment) = (bytecode.into(), environment.clone());
        Ok(Self { inner: Arc::new(Inner { source, version, bytecode, environment, inspection }) })
    }

    /// The text that it was compiled from.
    pub fn source(&self) -> &Source {
        &self.inner.source
    }

    /// The content hash, 12 hex digits.
    pub fn version(&self) -> &str {
        &self.inner.version
    }

    /// Whether this is the very same program, and not one like it.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The same program in another environment.
    pub fn within(&self, environment: &Environment) -> Self {
        let Inner { source, version, bytecode, inspection, .. } = &*self.inner;
        let (source, version, bytecode) = (source.clone(), version.clone(), bytecode.clone());
        let (environment, inspection) = (environment.clone(), *inspection);
        Self { inner: Arc::new(Inner { source, version, bytecode, environment, inspection }) }
    }

    /// The reason to refuse this program that a message `file:line: reason` gives.
    pub(crate) fn refused(&self, context: &str, message: &str) -> LoadError {
        let error = located(&self.source().file(), message);
        LoadError { reason: format!("{context}{}", error.reason), ..error }
    }

    /// What the script may see besides its calls, and its limits.
    pub fn environment(&self) -> &Environment {
        &self.inner.environment
    }
}

/// Compiles a text; an error names the file, which the compiler does not know.
pub(crate) fn compile(file: &str, text: &str, inspection: Inspection) -> Result<Vec<u8>, LoadError> {
    // Level 1 keeps calls apart, which the positions in error messages rely on.
    let coverage = if inspection == Inspection::Coverage { 2 } else { 0 };
    let compiler = Compiler::new().set_optimization_level(1).set_debug_level(1).set_coverage_level(coverage);
    compiler.compile(text).map_err(|e| {
        let mlua::Error::SyntaxError { message, .. } = e else {
            return LoadError { file: file.into(), line: None, reason: e.to_string() };
        };
        let (line, reason) = numbered(message.trim_start_matches(':'));
        LoadError { file: file.into(), line, reason: reason.into() }
    })
}

/// The error that a message `file:line: reason` of the engine stands for.
pub(crate) fn located(file: &str, message: &str) -> LoadError {
    let (line, reason) = match message.strip_prefix(file).and_then(|rest| rest.strip_prefix(':')) {
        Some(rest) => numbered(rest),
        None => (None, message),
    };
    LoadError { file: file.into(), line, reason: reason.into() }
}

fn numbered(message: &str) -> (Option<u32>, &str) {
    match message.split_once(':') {
        Some((line, rest)) if line.parse::<u32>().is_ok() => (line.parse().ok(), rest.trim_start()),
        _ => (None, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_policy_is_told_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("bytes.lua"), b"return {}\n\xff").unwrap();
        std::fs::write(path("big.lua"), vec![b' '; MAX_SOURCE as usize + 1]).unwrap();
        std::fs::write(path("good.lua"), "return {}").unwrap();
        for (name, line, reason) in [
            ("missing.lua", None, "no such file"),
            ("", None, "is not a file"),
            ("bytes.lua", Some(2), "is not UTF-8"),
            ("big.lua", None, "has 1048577 bytes; a policy may have 1048576"),
        ] {
            let error = Source::read(&path(name)).unwrap_err();
            assert!(error.reason.contains(reason), "{error}");
            assert_eq!(error.line, line);
        }
        std::fs::write(path("marked.lua"), "\u{feff}return {}").unwrap();
        assert_eq!(Source::read(&path("marked.lua")).unwrap().text, Source::shipped("x", "return {}").text);
        let good = Source::read(&path("good.lua")).unwrap();
        assert_eq!(
            (good.name.as_str(), good.version().as_str()),
            ("good", Source::shipped("x", "return {}").version().as_str())
        );
    }

    #[test]
    fn bytecode_in_a_file_is_text_that_does_not_parse() {
        let bytecode = compile("x", "return {}", Inspection::None).unwrap();
        let source = Source::shipped("x", &String::from_utf8_lossy(&bytecode));
        assert!(Program::compile(source, &Environment::default()).is_err());
    }
}
