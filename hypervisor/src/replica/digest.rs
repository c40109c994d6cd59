//! State digests: a hash of CPU and platform, and of one slice of memory after the other.
//!
//! One is due after [`INTERVAL`] ticks, and after [`INTERVAL_US`] for a guest that runs but gets nowhere near that. A bit
//! that differs in CPU or platform shows at the next digest, one in memory when its slice's turn comes, after
//! `memory / SLICE` digests at most.

use xxhash_rust::xxh64::xxh64;

use crate::guest::Guest;
use crate::memory::{Gpa, GuestMemory};

/// Ticks between two digests while the guest runs.
pub const INTERVAL: u64 = 1 << 25;
/// Wall time between two digests of a guest that runs slowly, in microseconds.
pub const INTERVAL_US: u64 = 1_000_000;
/// Bytes of memory in one slice.
pub const SLICE: u64 = 256 << 10;

/// When the primary makes the next digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NextDigest {
    /// The slice whose turn it is.
    pub slice: u32,
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

/// A hash of the whole guest, for a state that was transferred. Zero pages have no part in it.
pub fn of_all(guest: &mut Guest) -> u64 {
    let memory = guest.memory.used_pages().fold(0_u64, |sum, (gpa, page)| sum.wrapping_add(xxh64(page, gpa.0)));
    guest.hash() ^ memory.rotate_left(1)
}
