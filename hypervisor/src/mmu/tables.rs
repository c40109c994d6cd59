//! The tables that the CPU walks, in a pool of fixed size, and what each entry was made from.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;

use super::WINDOW;
use crate::emulate::walk::{ADDRESS, Format};
use crate::memory::PAGE_SIZE;

/// A table of whichever format.
#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u64; 512]);

const _: () = assert!(size_of::<Page>() == PAGE_SIZE as usize);

impl Page {
    const EMPTY: Self = Self([0; 512]);

    fn get(&self, format: Format, index: u64) -> u64 {
        match format {
            Format::Legacy => self.0[index as usize / 2] >> (index % 2 * 32) & 0xFFFF_FFFF,
            _ => self.0[index as usize],
        }
    }

    fn set(&mut self, format: Format, index: u64, entry: u64) {
        match format {
            Format::Legacy => {
                let (word, shift) = (&mut self.0[index as usize / 2], index % 2 * 32);
                *word = *word & !(0xFFFF_FFFF << shift) | entry << shift;
            }
            _ => self.0[index as usize] = entry,
        }
    }
}

/// What a table stands for: a table of the guest's, reached with certain rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Where the guest's table begins.
    pub(super) table: u64,
    /// Its level; 1 is the lowest.
    pub(super) level: u32,
    /// The flags writable and user that all entries above it have.
    pub(super) rights: u64,
    /// An entry above it forbids execution.
    pub(super) no_execute: bool,
}

/// What is known of a table.
#[derive(Clone)]
struct About {
    key: Key,
    /// When it was last compared with the guest's.
    checked: u64,
    /// A bit for each entry that is present.
    present: [u64; 16],
}

/// Number of a table in the pool.
pub(super) type Number = u16;

/// The pool. Tables are handed out in order and taken back only all at once, so that which one is used for what follows
/// from what was asked for.
pub(super) struct Tables {
    pages: Box<[Page]>,
    /// The guest's entry behind each entry.
    sources: Box<[Page]>,
    about: alloc::vec::Vec<About>,
    by_key: BTreeMap<Key, Number>,
}

impl Tables {
    pub(super) fn new(count: usize) -> Self {
        let pages = || vec![Page::EMPTY; count].into_boxed_slice();
        Self { pages: pages(), sources: pages(), about: vec![], by_key: BTreeMap::new() }
    }

    /// Where the tables are in the host's memory, and how many bytes they have.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.pages.as_ptr() as u64, self.pages.len() as u64 * PAGE_SIZE)
    }

    pub(super) fn clear(&mut self) {
        self.about.clear();
        self.by_key.clear();
    }

    /// The table for `key`, or a new one; `None` when there is none left.
    pub(super) fn find_or_make(&mut self, key: Key, now: u64) -> Option<Number> {
        if let Some(&number) = self.by_key.get(&key) {
            return Some(number);
        }
        let number = self.about.len();
        self.pages.get_mut(number)?.0.fill(0);
        self.about.push(About { key, checked: now, present: [0; 16] });
        self.by_key.insert(key, number as Number);
        Some(number as Number)
    }

    /// Where the CPU finds a table.
    pub(super) fn address(number: Number) -> u64 {
        WINDOW.0 + u64::from(number) * PAGE_SIZE
    }

    /// The table that an entry leads to.
    pub(super) fn child(entry: u64) -> Number {
        ((entry & ADDRESS & 0xFFFF_FFFF) - WINDOW.0).div_euclid(PAGE_SIZE) as Number
    }

    pub(super) fn key(&self, number: Number) -> Key {
        self.about[usize::from(number)].key
    }

    /// Notes that a table is compared with the guest's at `now`; returns whether it was not yet.
    pub(super) fn begin_check(&mut self, number: Number, now: u64) -> bool {
        core::mem::replace(&mut self.about[usize::from(number)].checked, now) != now
    }

    /// An entry; 0 where there is none.
    pub(super) fn get(&self, format: Format, number: Number, index: u64) -> u64 {
        self.pages[usize::from(number)].get(format, index)
    }

    /// The guest's entry that an entry was made from.
    pub(super) fn source(&self, format: Format, number: Number, index: u64) -> u64 {
        self.sources[usize::from(number)].get(format, index)
    }

    pub(super) fn set(&mut self, format: Format, number: Number, index: u64, entry: u64, source: u64) {
        let at = usize::from(number);
        self.pages[at].set(format, index, entry);
        self.sources[at].set(format, index, source);
        self.about[at].present[index as usize / 64] |= 1 << (index % 64);
    }

    pub(super) fn remove(&mut self, format: Format, number: Number, index: u64) {
        let at = usize::from(number);
        self.pages[at].set(format, index, 0);
        self.about[at].present[index as usize / 64] &= !(1 << (index % 64));
    }

    /// The first entry from `from` on that is present and was made from another than the guest's table, whose bytes these
    /// are, has now.
    pub(super) fn next_changed(&self, format: Format, number: Number, guests: &[u8], from: u64) -> Option<u64> {
        let sources = &self.sources[usize::from(number)];
        let mut next = self.next_present(number, from);
        while let Some(index) = next {
            let at = index as usize;
            let same = match format {
                Format::Legacy => {
                    let entry = guests[4 * at..].first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes)));
                    entry == Some(sources.get(format, index))
                }
                _ => guests[8 * at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) == Some(sources.0[at]),
            };
            if !same {
                break;
            }
            next = self.next_present(number, index + 1);
        }
        next
    }

    /// The first entry from `from` on that is present.
    pub(super) fn next_present(&self, number: Number, from: u64) -> Option<u64> {
        let present = &self.about[usize::from(number)].present;
        let mut word = from as usize / 64;
        let mut bits = present.get(word)? & u64::MAX << (from % 64);
        loop {
            if bits != 0 {
                return Some(word as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
            word += 1;
            bits = *present.get(word)?;
        }
    }
}
