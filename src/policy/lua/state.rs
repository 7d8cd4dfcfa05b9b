//! State that a policy keeps across calls, workers and reloads: counters and a small dictionary, both bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most counters, and the most keys of the dictionary.
pub const MAX_KEYS: usize = 1024;
/// The most bytes of keys and values together.
pub const MAX_BYTES: usize = 64 << 10;
/// The longest name of a counter or key, in bytes.
pub const MAX_NAME: usize = 128;

pub use crate::model::read::Kept;

/// Why a script may not keep something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateFull {
    /// See [`MAX_NAME`].
    #[error("the name is longer than {MAX_NAME} bytes")]
    Name,
    /// See [`MAX_KEYS`].
    #[error("there are {MAX_KEYS} names already; set one to nil first")]
    Keys,
    /// See [`MAX_KEYS`]. A counter is never forgotten.
    #[error("there are {MAX_KEYS} counters already, and none is ever forgotten; name them for what there is little of")]
    Counters,
    /// See [`MAX_BYTES`].
    #[error("all names and values together may have {MAX_BYTES} bytes")]
    Bytes,
}

/// What all VMs of all versions share, and how many of them there are.
#[derive(Debug, Default)]
pub struct SharedState {
    counters: Mutex<HashMap<String, Arc<AtomicU64>>>,
    dictionary: Mutex<Dictionary>,
    vms: Arc<AtomicUsize>,
}

/// Held by a VM for as long as its engine exists.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Dictionary {
    values: HashMap<Box<str>, Kept>,
    bytes: usize,
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
            return Err(StateFull::Counters);
        }
        Ok(counters.entry(name.into()).or_default().clone())
    }

    /// How many VMs there are that share it or a copy of it.
    pub fn vms(&self) -> usize {
        self.vms.load(Ordering::Relaxed)
    }

    pub(super) fn counted(&self) -> Counted {
        self.vms.fetch_add(1, Ordering::Relaxed);
        Counted(self.vms.clone())
    }

    /// A copy of what is kept at this moment, which goes its own way from then on. VMs that use it count as well.
    pub fn copy(&self) -> Self {
        let (counters, dictionary) = (lock(&self.counters), lock(&self.dictionary));
        let counters = counters.iter().map(|(name, counter)| {
            let value = counter.load(Ordering::Relaxed);
            (name.clone(), Arc::new(AtomicU64::new(value)))
        });
        let dictionary = Dictionary { values: dictionary.values.clone(), bytes: dictionary.bytes };
        Self { counters: Mutex::new(counters.collect()), dictionary: Mutex::new(dictionary), vms: self.vms.clone() }
    }

    /// Adds one and says the new value.
    pub fn count(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What was kept under a key.
    pub fn get(&self, key: &str) -> Option<Kept> {
        lock(&self.dictionary).values.get(key).cloned()
    }

    /// Keeps a value under a key, or forgets the key.
    pub fn set(&self, key: &str, value: Option<Kept>) -> Result<(), StateFull> {
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

    fn text(n: usize) -> Option<Kept> {
        Some(Kept::Text("x".repeat(n).into()))
    }

    #[test]
    fn values_are_kept_replaced_and_forgotten() {
        let state = SharedState::default();
        state.set("a", Some(Kept::Number(1.0))).unwrap();
        state.set("a", Some(Kept::Text("x".into()))).unwrap();
        assert_eq!(state.get("a"), Some(Kept::Text("x".into())));
        state.set("a", None).unwrap();
        assert_eq!(state.get("a"), None);
        assert_eq!(lock(&state.dictionary).bytes, 0);
    }

    #[test]
    fn a_copy_goes_its_own_way() {
        let state = SharedState::default();
        state.set("a", Some(Kept::Number(1.0))).unwrap();
        SharedState::count(&state.counter("n").unwrap());
        let copy = state.copy();
        assert_eq!(SharedState::count(&copy.counter("n").unwrap()), 2);
        copy.set("a", None).unwrap();
        assert_eq!(state.get("a"), Some(Kept::Number(1.0)));
        assert_eq!(SharedState::count(&state.counter("n").unwrap()), 2);
        assert_eq!((lock(&copy.dictionary).bytes, lock(&state.dictionary).bytes), (0, 9));
    }

    #[test]
    fn everything_is_bounded() {
        let state = SharedState::default();
        assert_eq!(state.set(&"k".repeat(MAX_NAME + 1), text(1)), Err(StateFull::Name));
        assert_eq!(state.set("k", text(MAX_BYTES)), Err(StateFull::Bytes));
        state.set("k", text(MAX_BYTES - 1)).unwrap();
        assert_eq!(state.set("l", text(0)), Err(StateFull::Bytes));
        // What is refused changes nothing.
        assert_eq!((state.set("k", text(MAX_BYTES)), state.get("k")), (Err(StateFull::Bytes), text(MAX_BYTES - 1)));
        state.set("k", None).unwrap();
        for i in 0..MAX_KEYS {
            state.set(&i.to_string(), Some(Kept::Boolean(true))).unwrap();
            state.counter(&i.to_string()).unwrap();
        }
        assert_eq!(state.set("one more", Some(Kept::Boolean(true))), Err(StateFull::Keys));
        assert_eq!(state.counter("one more").unwrap_err(), StateFull::Counters);
        assert_eq!(state.counter(&"n".repeat(MAX_NAME + 1)).unwrap_err(), StateFull::Name);
        state.set("7", Some(Kept::Boolean(false))).unwrap();
        // Forgetting one makes room for another.
        state.set("7", None).unwrap();
        state.set("one more", Some(Kept::Boolean(true))).unwrap();
    }

    #[test]
    fn bytes_are_counted_exactly_while_many_threads_write() {
        let state = SharedState::default();
        std::thread::scope(|scope| {
            for thread in 0..8usize {
                let state = &state;
                scope.spawn(move || {
                    for i in 0..500 {
                        // Some are refused: the bound is reached over and over.
                        let _ = state.set(&format!("k{}", (thread * 7 + i) % 40), text(i * 37 % 4000));
                        let _ = state.set(&format!("k{}", (i * 3) % 40), None);
                        SharedState::count(&state.counter("n").unwrap());
                    }
                });
            }
        });
        let dictionary = lock(&state.dictionary);
        let counted: usize = dictionary.values.iter().map(|(key, value)| key.len() + value.bytes()).sum();
        assert_eq!(dictionary.bytes, counted);
        assert!(counted <= MAX_BYTES);
        drop(dictionary);
        assert_eq!(SharedState::count(&state.counter("n").unwrap()), 4001);
    }
}
