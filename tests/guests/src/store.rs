//! The keys and values of the counter guest, in bounded memory.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::reply::push_integer;
use crate::resp::integer;

/// Longest key in bytes.
pub const MAX_KEY: usize = 1024;
/// What an entry is reckoned to cost beyond its key and value.
pub const ENTRY_BYTES: usize = 96;

/// A change that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// The key is longer than [`MAX_KEY`].
    KeyTooLong,
    /// The store would grow beyond its limit.
    Full,
    /// The value is not an integer in 64 bits.
    NotAnInteger,
    /// The sum is not an integer in 64 bits.
    Overflow,
}

impl StoreError {
    /// The reply that Redis gives, or would give.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::KeyTooLong => "ERR key is too long",
            Self::Full => "OOM command not allowed when used memory > 'maxmemory'.",
            Self::NotAnInteger => "ERR value is not an integer or out of range",
            Self::Overflow => "ERR increment or decrement would overflow",
        }
    }
}

/// The store. The default one is always full.
#[derive(Debug, Default)]
pub struct Store {
    entries: BTreeMap<Box<[u8]>, Vec<u8>>,
    bytes: usize,
    limit: usize,
}

impl Store {
    /// An empty store whose keys and values take `limit` bytes at most, [`ENTRY_BYTES`] for each entry included.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// When the key is too long or the store full; nothing is changed then.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if key.len() > MAX_KEY {
            return Err(StoreError::KeyTooLong);
        }
        let old = self.entries.get_mut(key);
        let old_bytes = old.as_ref().map_or(0, |old| cost(key, old));
        let bytes = self.bytes - old_bytes + cost(key, value);
        if bytes > self.limit {
            return Err(StoreError::Full);
        }
        self.bytes = bytes;
        match old {
            Some(old) => {
                // A value that became much shorter gives its memory back: `bytes` must stay true.
                if old.capacity() > 2 * value.len() + ENTRY_BYTES {
                    *old = Vec::with_capacity(value.len());
                }
                old.clear();
                old.extend_from_slice(value);
            }
            None => drop(self.entries.insert(key.into(), value.into())),
        }
        Ok(())
    }

    /// Whether all these pairs of key and value can be set, one after the other, even if no key is there yet.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn check_room(&self, pairs: &[[&[u8]; 2]]) -> Result<(), StoreError> {
        if pairs.iter().any(|[key, _]| key.len() > MAX_KEY) {
            return Err(StoreError::KeyTooLong);
        }
        let more: usize = pairs.iter().map(|[key, value]| cost(key, value)).sum();
        if self.bytes + more > self.limit { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Adds to the integer that is the value of a key, 0 when there is none, and returns the sum.
    ///
    /// # Errors
    /// When value or sum are no 64-bit integers, or as [`set`](Self::set).
    pub fn add(&mut self, key: &[u8], amount: i64) -> Result<i64, StoreError> {
        let old = match self.get(key) {
            Some(value) => integer(value).ok_or(StoreError::NotAnInteger)?,
            None => 0,
        };
        let sum = old.checked_add(amount).ok_or(StoreError::Overflow)?;
        let mut text = Vec::with_capacity(20);
        push_integer(&mut text, sum);
        self.set(key, &text)?;
        Ok(sum)
    }

    /// Deletes a key; whether there was one.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        let old = self.entries.remove(key);
        self.bytes -= old.as_ref().map_or(0, |old| cost(key, old));
        old.is_some()
    }

    /// Deletes all keys.
    pub fn clear(&mut self) {
        *self = Self::with_limit(self.limit);
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes in use, as they are reckoned.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 4 << 20;

    #[test]
    fn full_and_too_long() {
        let mut store = Store::with_limit(LIMIT);
        assert_eq!(store.set(&[0; MAX_KEY + 1], b""), Err(StoreError::KeyTooLong));
        let value = vec![0; 64 * 1024];
        let mut keys = 0u32;
        while store.set(&keys.to_le_bytes(), &value).is_ok() {
            keys += 1;
        }
        assert_eq!(keys as usize, LIMIT / (value.len() + 4 + ENTRY_BYTES));
        assert_eq!(store.len(), keys as usize);
        assert!(store.delete(&0u32.to_le_bytes()));
        assert_eq!(store.set(b"last", &value), Ok(()));
        store.clear();
        assert_eq!(store.set(b"first", &value), Ok(()));
    }

    #[test]
    fn room_for_all_or_none() {
        let store = Store::with_limit(2 * (ENTRY_BYTES + 2));
        assert_eq!(store.check_room(&[[b"a", b"1"], [b"b", b"2"]]), Ok(()));
        assert_eq!(store.check_room(&[[b"a", b"1"], [b"b", b"22"]]), Err(StoreError::Full));
        assert_eq!(store.check_room(&[[&[0; MAX_KEY + 1], b"1"]]), Err(StoreError::KeyTooLong));
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_the_entries(steps in prop::collection::vec((0u8..3, 0u8..4, any::<i64>()), 0..50)) {
            let mut store = Store::with_limit(LIMIT);
            let mut model = BTreeMap::<u8, i64>::new();
            for (step, key, value) in steps {
                match step {
                    0 => {
                        store.set(&[key], value.to_string().as_bytes()).unwrap();
                        model.insert(key, value);
                    }
                    1 => prop_assert_eq!(store.delete(&[key]), model.remove(&key).is_some()),
                    _ => {
                        let sum = model.get(&key).unwrap_or(&0).checked_add(value);
                        prop_assert_eq!(store.add(&[key], value), sum.ok_or(StoreError::Overflow));
                        if let Some(sum) = sum {
                            model.insert(key, sum);
                        }
                    }
                }
            }
            let bytes: usize = model.values().map(|value| 1 + value.to_string().len() + ENTRY_BYTES).sum();
            prop_assert_eq!(store.bytes(), bytes);
            prop_assert_eq!(store.len(), model.len());
        }
    }
}
