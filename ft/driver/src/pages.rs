//! Pages of guest memory: sets of them, and whether they are zero.

use alloc::vec::Vec;

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// A set of page numbers below a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    bound: u64,
    len: u64,
}

impl PageSet {
    /// An empty set of numbers below `bound`.
    #[must_use]
    pub fn new(bound: u64) -> Self {
        Self { words: alloc::vec![0; bound.div_ceil(64) as usize], bound, len: 0 }
    }

    /// How many pages are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a page. One beyond the bound is not guest memory: it is left out.
    pub fn insert(&mut self, page: u64) {
        if page < self.bound {
            let (word, bit) = (&mut self.words[(page / 64) as usize], 1 << (page % 64));
            self.len += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Takes a page out; returns whether it was in.
    pub fn remove(&mut self, page: u64) -> bool {
        let Some(word) = self.words.get_mut((page / 64) as usize) else { return false };
        let bit = 1 << (page % 64);
        let was_in = *word & bit != 0;
        *word &= !bit;
        self.len -= u64::from(was_in);
        was_in
    }

    /// Whether a page is in the set.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        self.words.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// The lowest page not below `from`.
    #[must_use]
    pub fn first_from(&self, from: u64) -> Option<u64> {
        let start = (from / 64) as usize;
        let mut mask = u64::MAX << (from % 64);
        for (index, word) in self.words.iter().enumerate().skip(start) {
            let found = word & mask;
            if found != 0 {
                return Some(index as u64 * 64 + u64::from(found.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }
}

/// Whether all of `bytes` are zero. Looks at 64 bytes at a time.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    let empty = |block: &[u8; 64]| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    };
    blocks.iter().all(empty) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_new_set_is_empty() {
        assert!(PageSet::new(200).is_empty());
    }

    proptest! {
        #[test]
        fn a_page_set_is_a_set(pages in prop::collection::vec((0u64..200, any::<bool>()), 0..100), from in 0u64..220) {
            let mut set = PageSet::new(200);
            let mut model = alloc::collections::BTreeSet::new();
            for (page, insert) in pages {
                if insert {
                    set.insert(page);
                    model.insert(page);
                } else {
                    prop_assert_eq!(set.remove(page), model.remove(&page));
                }
            }
            set.insert(200);
            prop_assert_eq!((set.len(), set.is_empty()), (model.len() as u64, model.is_empty()));
            prop_assert_eq!(set.contains(from), model.contains(&from));
            prop_assert_eq!(set.first_from(from), model.range(from..).next().copied());
        }

        #[test]
        fn zeros_are_zeros_alone(len in 0usize..300, at in 0usize..300, value: u8) {
            let mut bytes = alloc::vec![0; len];
            prop_assert!(is_zero(&bytes));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
                prop_assert_eq!(is_zero(&bytes), value == 0);
            }
        }
    }
}
