//! State that a policy keeps across calls, workers and reloads: counters and a small dictionary, both bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most counters, and the most keys of the dictionary.
pub const MAX_KEYS: usize = 1024;
/// The most bytes of keys and values together.
pub const MAX_BYTES: usize = 64 << 10;
/// The longest name of a counter or key, in bytes.
pub const MAX_NAME: usize = 128;

/// A value that a script may keep.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// `true` or `false`.
    Boolean(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(Box<[u8]>),
}

/// Why a script may not keep something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateFull {
    /// See [`MAX_NAME`].
    #[error("the name is longer than {MAX_NAME} bytes")]
    Name,
    /// See [`MAX_KEYS`].
    #[error("there are {MAX_KEYS} names already; set one to nil first")]
    Keys,
    /// See [`MAX_BYTES`].
    #[error("all names and values together may have {MAX_BYTES} bytes")]
    Bytes,
}

/// What all VMs of all versions share.
#[derive(Debug, Default)]
pub struct SharedState {
    counters: Mutex<HashMap<String, Arc<AtomicU64>>>,
    dictionary: Mutex<Dictionary>,
}

#[derive(Debug, Default)]
struct Dictionary {
    values: HashMap<Box<[u8]>, Kept>,
    bytes: usize,
}

impl Kept {
    fn bytes(&self) -> usize {
        match self {
            Self::Boolean(_) | Self::Number(_) => 8,
            Self::Text(text) => text.len(),
        }
    }
}

impl SharedState {
    /// The counter of this name, which starts at 0. It lives as long as the state does.
    pub fn counter(&self, name: &str) -> Result<Arc<AtomicU64>, StateFull> {
        let mut counters = lock(&self.counters);
        if let Some(counter) = counters.get(name) {
            return Ok(counter.clone());
        }
        if name.len() > MAX_NAME {
            return Err(StateFull::Name);
        }
        if counters.len() >= MAX_KEYS {
            return Err(StateFull::Keys);
        }
        Ok(counters.entry(name.into()).or_default().clone())
    }

    /// A copy of what is kept at this moment, which goes its own way from then on.
    pub fn copy(&self) -> Self {
        let (counters, dictionary) = (lock(&self.counters), lock(&self.dictionary));
        let counters = counters.iter().map(|(name, counter)| {
            let value = counter.load(Ordering::Relaxed);
            (name.clone(), Arc::new(AtomicU64::new(value)))
        });
        let dictionary = Dictionary { values: dictionary.values.clone(), bytes: dictionary.bytes };
        Self { counters: Mutex::new(counters.collect()), dictionary: Mutex::new(dictionary) }
    }

    /// Adds one and says the new value.
    pub fn count(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What was kept under a key.
    pub fn get(&self, key: &[u8]) -> Option<Kept> {
        lock(&self.dictionary).values.get(key).cloned()
    }

    /// Keeps a value under a key, or forgets the key.
    pub fn set(&self, key: &[u8], value: Option<Kept>) -> Result<(), StateFull> {
        if key.len() > MAX_NAME {
            return Err(StateFull::Name);
        }
        let mut dictionary = lock(&self.dictionary);
        let old = dictionary.values.get(key).map(|value| key.len() + value.bytes());
        let rest = dictionary.bytes - old.unwrap_or(0);
        let Some(value) = value else {
            dictionary.values.remove(key);
            dictionary.bytes = rest;
            return Ok(());
        };
        if old.is_none() && dictionary.values.len() >= MAX_KEYS {
            return Err(StateFull::Keys);
        }
        // Checked against the room that is left, so that no length can make the sum wrap.
        if key.len() + value.bytes() > MAX_BYTES - rest {
            return Err(StateFull::Bytes);
        }
        dictionary.bytes = rest + key.len() + value.bytes();
        dictionary.values.insert(key.into(), value);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_replaced_and_forgotten() {
        let state = SharedState::default();
        state.set(b"a", Some(Kept::Number(1.0))).unwrap();
        state.set(b"a", Some(Kept::Text(b"x"[..].into()))).unwrap();
        assert_eq!(state.get(b"a"), Some(Kept::Text(b"x"[..].into())));
        state.set(b"a", None).unwrap();
        assert_eq!(state.get(b"a"), None);
        assert_eq!(lock(&state.dictionary).bytes, 0);
    }

    #[test]
    fn a_copy_goes_its_own_way() {
        let state = SharedState::default();
        state.set(b"a", Some(Kept::Number(1.0))).unwrap();
        SharedState::count(&state.counter("n").unwrap());
        let copy = state.copy();
        assert_eq!(SharedState::count(&copy.counter("n").unwrap()), 2);
        copy.set(b"a", None).unwrap();
        assert_eq!(state.get(b"a"), Some(Kept::Number(1.0)));
        assert_eq!(SharedState::count(&state.counter("n").unwrap()), 2);
        assert_eq!((lock(&copy.dictionary).bytes, lock(&state.dictionary).bytes), (0, 9));
    }

    #[test]
    fn everything_is_bounded() {
        let state = SharedState::default();
        let big = |n| Some(Kept::Text(vec![b'x'; n].into()));
        assert_eq!(state.set(&[b'k'; MAX_NAME + 1], big(1)), Err(StateFull::Name));
        assert_eq!(state.set(b"k", big(MAX_BYTES)), Err(StateFull::Bytes));
        state.set(b"k", big(MAX_BYTES - 1)).unwrap();
        assert_eq!(state.set(b"l", big(0)), Err(StateFull::Bytes));
        state.set(b"k", None).unwrap();
        for i in 0..MAX_KEYS {
            state.set(i.to_string().as_bytes(), Some(Kept::Boolean(true))).unwrap();
            state.counter(&i.to_string()).unwrap();
        }
        assert_eq!(state.set(b"one more", Some(Kept::Boolean(true))), Err(StateFull::Keys));
        assert_eq!(state.counter("one more").unwrap_err(), StateFull::Keys);
        state.set(b"7", Some(Kept::Boolean(false))).unwrap();
    }
}
