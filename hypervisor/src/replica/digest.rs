//! State digests: a hash of CPU and platform, and of one slice of memory after the other.
//!
//! A bit that differs in CPU or platform shows at the next digest, [`INTERVAL`] ticks later at most; one in memory when
//! its slice's turn comes, after `memory / SLICE × INTERVAL` ticks at most.

use xxhash_rust::xxh64::xxh64;

use crate::guest::Guest;
use crate::memory::{Gpa, GuestMemory};

/// Ticks between two digests while the guest runs.
pub const INTERVAL: u64 = 1 << 25;
/// Bytes of memory in one slice.
pub const SLICE: u64 = 256 << 10;

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
    /// The digest of `guest` with the slice whose turn it is at its position.
    pub fn of(guest: &mut Guest) -> Self {
        let slices = guest.memory.len().div_ceil(SLICE);
        let slice = (guest.position() / INTERVAL % slices) as u32;
        Self { machine: guest.hash(), slice, memory: hash_slice(&guest.memory, slice) }
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
