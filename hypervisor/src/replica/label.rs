//! What a drive says of the guest's disk on it: whose it is, which of several it is, and whether it is whole. Pure.
//!
//! Each time that a machine begins to write what no other machine has, its disk gets a *generation*: a random number behind those
//! before it. A disk may be overwritten by another only if the other one grew out of it: its own generation is among the other's.
//! So a copy never goes the wrong way, whoever was started first.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use pollux_nvme::gpt::crc32;

use crate::memory::PAGE_SIZE;

/// Generations that are remembered beside the newest.
const PAST: usize = 16;
const MAGIC: &[u8; 8] = b"POLLUXD1";
/// Bytes that have a meaning; a checksum follows.
const LEN: usize = 8 + 8 * (7 + PAST);

/// What a drive says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Hash of the pair's name.
    pair: u64,
    /// Bytes of the guest's disk.
    bytes: u64,
    /// How often the label was written: of two copies the later one counts.
    pub sequence: u64,
    /// The newest reign whose writes are all on it.
    term: u64,
    /// What is on it; 0: nothing yet.
    generation: u64,
    /// What it grew out of, the newest first.
    past: [u64; PAST],
    /// It is no mixture of two.
    whole: bool,
    /// It was written to by a guest that lived here, not by one that followed.
    reigned: bool,
}

impl Label {
    /// That of a disk of `bytes` bytes of which nothing was written.
    #[must_use]
    pub const fn fresh(pair: u64, bytes: u64) -> Self {
        Self { pair, bytes, sequence: 0, term: 0, generation: 0, past: [0; PAST], whole: true, reigned: true }
    }

    /// As it lies on the drive: a page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flags = u64::from(self.whole) | u64::from(self.reigned) << 1;
        let Self { pair, bytes, sequence, term, generation, past, .. } = *self;
        let mut page = vec![0; PAGE_SIZE as usize];
        page[..8].copy_from_slice(MAGIC);
        let numbers = [pair, bytes, sequence, term, generation, flags, 0].into_iter().chain(past);
        for (place, number) in page[8..LEN].chunks_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32(&page[..LEN]);
        page[LEN..LEN + 4].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    /// Reads what [`encode`](Self::encode) made; nothing if it is something else, or damaged.
    #[must_use]
    pub fn decode(page: &[u8]) -> Option<Self> {
        let checksum = page.get(LEN..LEN + 4)?;
        if !page.starts_with(MAGIC) || crc32(&page[..LEN]).to_le_bytes() != *checksum {
            return None;
        }
        let mut numbers =
            page[8..LEN].chunks(8).map(|bytes| bytes.first_chunk().copied().map_or(0, u64::from_le_bytes));
        let mut next = || numbers.next().unwrap_or(0);
        let (pair, bytes, sequence, term, generation, flags, _) =
            (next(), next(), next(), next(), next(), next(), next());
        let past = core::array::from_fn(|_| next());
        let (whole, reigned) = (flags & 1 != 0, flags & 2 != 0);
        Some(Self { pair, bytes, sequence, term, generation, past, whole, reigned })
    }

    /// Whether a machine of this pair may use it, for a disk of so many bytes.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, pair: u64, bytes: u64) -> Result<(), String> {
        if self.pair != pair {
            return Err("the disk on it belongs to another pair (option 'pair')".into());
        }
        if self.bytes != bytes {
            return Err(format!("the disk on it has {} bytes, and not {bytes} (give 'size=')", self.bytes));
        }
        Ok(())
    }

    /// Whether a guest may begin its life in `term` with what is on it.
    ///
    /// # Errors
    /// Why not, unless it must (`stale`).
    pub fn may_begin(&self, term: u64, stale: bool) -> Result<(), &'static str> {
        if !self.whole {
            Err(
                "a copy to it was not completed: what is on it is of no use; start this machine as backup of the other one",
            )
        } else if !self.reigned && !stale {
            Err("the guest lived on the other machine last: start that one first, or, if its disk is lost, say 'stale'")
        } else if self.generation != 0 && term > self.term.saturating_add(1) && !stale {
            Err(
                "the arbiter has given a term since: either a guest has lived on the other machine after this one, and that one is \
                 to be started first; or a start that came to nothing has used it up, and this is the newest disk, or the other \
                 one's is lost: then say 'stale'",
            )
        } else {
            Ok(())
        }
    }

    /// The guest lives here alone in `term`, from here on.
    pub fn reign(&mut self, term: u64, generation: u64) {
        if self.generation != 0 {
            self.past.rotate_right(1);
            self.past[0] = self.generation;
        }
        (self.term, self.generation) = (term, generation.max(1));
        (self.whole, self.reigned) = (true, true);
    }

    /// Whether what is on it may be replaced by what is on `source`.
    ///
    /// # Errors
    /// Why not.
    pub fn may_become(&self, source: &Self) -> Result<(), String> {
        self.check(source.pair, source.bytes)?;
        let grew = self.generation == source.generation || source.past.contains(&self.generation);
        if source.generation == 0 || !source.whole {
            Err("the other machine's disk is not whole".into())
        } else if self.generation == 0 || grew {
            Ok(())
        } else {
            Err("the disk here holds what the other machine's does not: nothing was overwritten. If it is not needed any more, \
                 clear the last MiB of its place on the drive"
                .into())
        }
    }

    /// A copy from `source` begins.
    pub fn begin_copy(&mut self) {
        // What it was is what may be overwritten again when the copy breaks off.
        self.whole = false;
    }

    /// A copy from `source` is complete.
    pub fn end_copy(&mut self, source: &Self) {
        *self = Self { sequence: self.sequence, whole: true, reigned: false, ..*source };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(generations: &[u64]) -> Label {
        let mut label = Label::fresh(7, 4096);
        generations.iter().for_each(|&generation| label.reign(1, generation));
        label
    }

    #[test]
    fn a_label_is_what_it_was_or_nothing() {
        let mut label = of(&[1, 2, 3]);
        label.sequence = 9;
        label.begin_copy();
        let page = label.encode();
        assert_eq!(Label::decode(&page), Some(label));
        for at in 0..LEN + 4 {
            let mut damaged = page.clone();
            damaged[at] ^= 4;
            assert_eq!(Label::decode(&damaged), None, "byte {at}");
        }
        assert_eq!((Label::decode(&[]), Label::decode(&[0; 4096])), (None, None));
    }

    #[test]
    fn disks_of_others_are_refused() {
        let label = of(&[1]);
        assert_eq!(label.check(7, 4096), Ok(()));
        assert!(label.check(8, 4096).unwrap_err().contains("another pair"));
        assert!(label.check(7, 8192).unwrap_err().contains("4096 bytes, and not 8192"));
        assert!(label.may_become(&Label { pair: 8, ..of(&[1, 2]) }).is_err());
    }

    #[test]
    fn a_copy_goes_one_way() {
        // One was left behind; both went on by themselves; one is new.
        assert!(of(&[1]).may_become(&of(&[1, 2, 3])).is_ok() && of(&[1, 2]).may_become(&of(&[1, 2])).is_ok());
        assert!(of(&[1, 2, 3]).may_become(&of(&[1])).is_err() && of(&[1, 2]).may_become(&of(&[1, 3])).is_err());
        assert!(of(&[]).may_become(&of(&[1])).is_ok() && of(&[1]).may_become(&of(&[])).is_err());
        let mut mixed = of(&[1, 2]);
        mixed.begin_copy();
        assert!(of(&[1]).may_become(&mixed).is_err());
        // One that broke off may begin again, and from the same only.
        assert!(mixed.may_become(&of(&[1, 2, 3])).is_ok() && mixed.may_become(&of(&[5])).is_err());
        assert!(mixed.may_begin(2, true).is_err());
    }

    #[test]
    fn a_guest_begins_with_the_newest_disk_only() {
        let source = of(&[1, 2]);
        let mut follower = of(&[]);
        assert_eq!(follower.may_begin(1, false), Ok(()));
        follower.begin_copy();
        follower.end_copy(&source);
        assert!(follower.may_begin(2, false).unwrap_err().contains("other machine last"));
        assert_eq!((follower.may_begin(2, true), source.may_begin(2, false)), (Ok(()), Ok(())));
        assert!(source.may_begin(3, false).unwrap_err().contains("given a term since"));
        // What needs no term is known before one is asked for.
        assert!(follower.may_begin(0, false).is_err() && source.may_begin(0, false).is_ok());
        assert_eq!(source.may_begin(3, true), Ok(()));
        // It takes over: the other one's is an older one of its own.
        follower.reign(2, 3);
        assert!(source.may_become(&follower).is_ok() && follower.may_become(&source).is_err());
        assert_eq!(follower.may_begin(3, false), Ok(()));
    }

    #[test]
    fn old_generations_are_forgotten_and_then_refused() {
        let all: Vec<u64> = (1..40).collect();
        let newest = of(&all);
        assert!(of(&all[..38 - PAST + 1]).may_become(&newest).is_ok());
        assert!(of(&all[..38 - PAST]).may_become(&newest).is_err());
    }

    /// A machine with a disk, and whether its copy is under way.
    #[derive(Debug, Clone)]
    struct Machine {
        label: Label,
        /// Every generation whose writes are on it.
        holds: Vec<u64>,
    }

    proptest! {
        /// Whatever happens in whatever order: nothing that only one disk holds is overwritten.
        #[test]
        fn nothing_is_overwritten_that_is_nowhere_else(events in prop::collection::vec((0usize..2, 0u8..3), 0..40)) {
            let fresh = Machine { label: Label::fresh(7, 4096), holds: Vec::new() };
            let mut machines = [fresh.clone(), fresh];
            for (next, (who, what)) in (1u64..).zip(events) {
                let other = machines[1 - who].clone();
                let machine = &mut machines[who];
                match what {
                    0 if machine.label.whole => {
                        machine.label.reign(next, next);
                        machine.holds.push(next);
                    }
                    1 if machine.label.may_become(&other.label).is_ok() => {
                        prop_assert!(machine.holds.iter().all(|held| other.holds.contains(held)));
                        machine.label.begin_copy();
                    }
                    2 if machine.label.may_become(&other.label).is_ok() => {
                        prop_assert!(machine.holds.iter().all(|held| other.holds.contains(held)));
                        machine.label.end_copy(&other.label);
                        machine.holds = other.holds;
                    }
                    _ => {}
                }
            }
        }
    }
}
