//! State digests: a hash of CPU and platform, and of one slice of memory after the other.
//!
//! One is due after [`INTERVAL`] ticks, and after [`INTERVAL_US`] for a guest that runs but gets nowhere near that. A bit
//! that differs in CPU or platform shows at the next digest, one in memory when its slice's turn comes, after
//! `memory / SLICE` digests at most. The first time around, with a new backup, it goes faster.

use alloc::vec::Vec;

use xxhash_rust::xxh64::xxh64;

use crate::guest::Guest;
use crate::memory::{Gpa, GuestMemory, is_zero};

/// Ticks between two digests while the guest runs.
pub const INTERVAL: u64 = 1 << 25;
/// Wall time between two digests of a guest that runs slowly, in microseconds.
pub const INTERVAL_US: u64 = 1_000_000;
/// The same until all of a new backup's memory was compared once, in microseconds.
pub const FIRST_INTERVAL_US: u64 = 25_000;
/// Bytes of memory in one slice.
pub const SLICE: u64 = 256 << 10;

/// When the primary makes the next digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NextDigest {
    /// The slice whose turn it is.
    pub slice: u32,
    /// Every slice had its turn.
    pub all_compared: bool,
    /// Where the last digest was made.
    pub after: u64,
    /// Due at this position …
    pub position: u64,
    /// … or from this wall time on when the guest has run at all, in microseconds.
    pub at_us: u64,
}

/// What the guest looks like at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// Hash of CPU, platform and position.
    pub machine: u64,
    /// Number of the slice of memory.
    pub slice: u32,
    /// Hash of that slice.
    pub memory: u64,
}

impl Digest {
    /// The digest of `guest` with this slice of its memory.
    pub fn of(guest: &mut Guest, slice: u32) -> Self {
        Self { machine: guest.hash(), slice, memory: hash_slice(&guest.memory, slice) }
    }

    /// The slice whose turn comes after this one's.
    pub fn next_slice(&self, guest: &Guest) -> u32 {
        let slices = guest.memory.len().div_ceil(SLICE) as u32;
        (self.slice + 1) % slices
    }

    /// What differs between `self`, which was logged, and `own`.
    pub fn difference(&self, own: &Self) -> Option<&'static str> {
        if self.machine != own.machine {
            Some("CPU or platform")
        } else if (self.slice, self.memory) != (own.slice, own.memory) {
            Some("memory")
        } else {
            None
        }
    }
}

fn hash_slice(memory: &GuestMemory, slice: u32) -> u64 {
    let start = (u64::from(slice) * SLICE).min(memory.len());
    let len = SLICE.min(memory.len() - start);
    // The range was cut to fit.
    memory.slice(Gpa(start), len).map_or(0, |bytes| xxh64(bytes, 0))
}

/// A hash of all memory that is kept while pages are sent or arrive, one after the other and some repeatedly. Zero pages
/// have no part in it.
#[derive(Debug, Default)]
pub struct MemoryDigest {
    /// What each page contributes.
    pages: Vec<u64>,
    sum: u64,
}

impl MemoryDigest {
    /// Of a memory of zeros.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self { pages: alloc::vec![0; pages as usize], sum: 0 }
    }

    /// Page number `page`, which must exist, has this content now.
    pub fn set(&mut self, page: u64, content: &[u8]) {
        self.replace(page, if is_zero(content) { 0 } else { xxh64(content, page) });
    }

    /// Whether the page is known to have a content other than zeros.
    #[must_use]
    pub fn is_used(&self, page: u64) -> bool {
        self.pages[page as usize] != 0
    }

    /// Page number `page`, which must exist, is zero now.
    pub fn clear(&mut self, page: u64) {
        self.replace(page, 0);
    }

    fn replace(&mut self, page: u64, new: u64) {
        let old = core::mem::replace(&mut self.pages[page as usize], new);
        self.sum = self.sum.wrapping_sub(old).wrapping_add(new);
    }

    /// The hash of this memory together with the rest of the guest's state.
    pub fn with_machine(&self, guest: &mut Guest) -> u64 {
        guest.hash() ^ self.sum.rotate_left(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_memory_is_that_of_its_last_content() {
        let page = |value: u8| [value; 4096];
        let mut once = MemoryDigest::new(4);
        once.set(1, &page(3));
        let mut often = MemoryDigest::new(4);
        often.set(2, &page(9));
        often.set(1, &page(8));
        often.set(1, &page(3));
        assert_ne!(once.sum, often.sum);
        often.clear(2);
        assert_eq!(once.sum, often.sum);
        assert!(often.is_used(1) && !often.is_used(2));
        often.set(3, &page(0));
        assert_eq!(once.sum, often.sum);
        often.clear(1);
        often.set(2, &page(3));
        assert_ne!(once.sum, often.sum, "the same content elsewhere is another memory");
    }
}
