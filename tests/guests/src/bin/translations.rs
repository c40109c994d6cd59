//! Edits its page tables and looks at what the CPU makes of them, for ever: accessed and dirty bits that are cleared and pages
//! that are moved, with a flush and without one; large pages; two address spaces; writes with CR0.WP clear.
//!
//! `seed=` chooses the order. What it saw is in its memory, and printed now and then.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;
use core::ptr;

use pollux_boot::BootInfo;
use pollux_guests::options::Options;
use pollux_guests::random::Random;
use pollux_guests::tables::{ACCESSED, ADDRESS, DIRTY, Entry, LARGE, PRESENT, Page, WRITABLE};
use pollux_guests::{println, runtime};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

/// First address of the pages, behind what the boot page tables map; and of a large page.
const WINDOW: u64 = 512 << 30;
const LARGE_PAGE: u64 = WINDOW + (2 << 20);
/// Memory that nobody uses.
const LARGE_FRAME: u64 = 10 << 20;
const PAGES: u64 = 24;
const FRAMES: u64 = 4;

const CR0_WP: u64 = 1 << 16;

/// An address space's own tables: the root, and those that lead to the window.
struct Space([Page; 4]);

static SPACES: [Space; 2] = [const { Space([const { Page::new() }; 4]) }; 2];
static CONTENT: [Page; FRAMES as usize] = [const { Page::new() }; FRAMES as usize];

impl Space {
    /// Everything as it is now, and the window.
    fn fill(&self, old_root: u64, shift: u64) {
        let [root, pointers, directory, table] = &self.0;
        for index in 0..512 {
            root.entry(index).set(Entry::at(old_root + 8 * index).get());
        }
        root.entry(1).set(pointers.address() | PRESENT | WRITABLE);
        pointers.entry(0).set(directory.address() | PRESENT | WRITABLE);
        directory.entry(0).set(table.address() | PRESENT | WRITABLE);
        directory.entry(1).set(LARGE_FRAME | LARGE | PRESENT | WRITABLE);
        for page in 0..PAGES {
            // One in four is read-only.
            let writable = if page % 4 == 3 { 0 } else { WRITABLE };
            table.entry(page).set(CONTENT[((page + shift) % FRAMES) as usize].address() | PRESENT | writable);
        }
    }

    /// A random entry on the way to the window's pages, the page's own more often.
    fn any_entry(&self, random: &mut Random) -> Entry {
        let [root, pointers, directory, table] = &self.0;
        match random.below(8) {
            0 => root.entry(1),
            1 => pointers.entry(0),
            2 => directory.entry(0),
            3 => directory.entry(1),
            _ => table.entry(random.below(PAGES)),
        }
    }
}

fn touch(address: u64, write: Option<u64>) -> u64 {
    // SAFETY: a page of the window, which is mapped to memory of its own; callers write only where they may.
    unsafe {
        let value = ptr::read_volatile(address as *const u64);
        if let Some(value) = write {
            ptr::write_volatile(address as *mut u64, value);
        }
        value
    }
}

/// What the architecture promises: behind a flush, an access goes where the entry says and sets its bits.
fn flushed(address: u64, entry: Entry, frame: u64, value: u64) {
    let writable = entry.get() & WRITABLE != 0;
    entry.set(entry.get() & !(ADDRESS | ACCESSED | DIRTY) | frame);
    tlb::flush(VirtAddr::new(address));
    Entry::at(frame | address & 0xFFF).set(value);
    assert_eq!(touch(address, None), value, "a page that was moved and flushed");
    assert_eq!(entry.get() & (ACCESSED | DIRTY), ACCESSED, "it was read");
    if writable {
        touch(address, Some(!value));
        assert_eq!(entry.get() & (ACCESSED | DIRTY), ACCESSED | DIRTY, "it was written");
        assert_eq!(Entry::at(frame | address & 0xFFF).get(), !value, "where it was written");
    }
}

fn switch(space: &Space) {
    // SAFETY: both spaces map all that is in use alike.
    unsafe { asm!("mov cr3, {}", in(reg) space.0[0].address(), options(nostack)) };
}

/// With CR0.WP clear, a write to a page that may be read-only.
fn write_protected(address: u64, value: u64) {
    // SAFETY: the page is mapped to memory of the window's own; CR0 is put back.
    unsafe {
        let cr0: u64;
        asm!("mov {}, cr0", out(reg) cr0);
        asm!("mov cr0, {}", in(reg) cr0 & !CR0_WP);
        touch(address, Some(value));
        let seen: u64;
        asm!("mov {}, cr0", out(reg) seen);
        assert_eq!(seen & CR0_WP, 0, "what was written to CR0 is read from it");
        asm!("mov cr0, {}", in(reg) cr0 | CR0_WP);
    }
}

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    let root: u64;
    // SAFETY: reads CR3.
    unsafe { asm!("mov {}, cr3", out(reg) root) };
    for (space, shift) in SPACES.iter().zip([0, 2]) {
        space.fill(root & ADDRESS, shift);
    }
    switch(&SPACES[0]);
    println!("translations: running");
    let mut random = Random::new(options.seed);
    let (mut current, mut seen) = (0, 0_u64);
    for step in 0u64.. {
        let space: &Space = &SPACES[current];
        let page = random.below(PAGES);
        let address = WINDOW + page * 4096 + 8 * random.below(8);
        let entry = space.0[3].entry(page);
        let saw = match random.below(16) {
            0..4 => touch(address, None),
            4..7 if entry.get() & WRITABLE != 0 => touch(address, Some(step)),
            7 => touch(LARGE_PAGE + (page << 14), (step % 2 == 0).then_some(seen)),
            kind @ 8..12 => {
                let entry = space.any_entry(&mut random);
                let bits = if kind % 2 == 0 { ACCESSED } else { ACCESSED | DIRTY };
                entry.set(entry.get() & !bits);
                0
            }
            12 => {
                // Moved, and perhaps read through the old translation.
                let frame = CONTENT[random.below(FRAMES) as usize].address();
                entry.set(entry.get() & !ADDRESS | frame);
                touch(address, None)
            }
            13 => {
                flushed(address, entry, CONTENT[random.below(FRAMES) as usize].address(), step);
                tlb::flush(VirtAddr::new(if step % 4 == 0 { LARGE_PAGE } else { address }));
                0
            }
            14 => {
                current = random.below(2) as usize;
                switch(&SPACES[current]);
                0
            }
            15 if step % 8 == 0 => {
                write_protected(address, step);
                1
            }
            _ => entry.get(),
        };
        let bits = [entry, space.0[2].entry(0), space.0[2].entry(1)].map(|entry| entry.get() & (ACCESSED | DIRTY));
        seen = seen.rotate_left(5).wrapping_mul(31).wrapping_add(saw ^ bits[0] ^ bits[1] << 8 ^ bits[2] << 16);
        if step % (1 << 18) == 0 {
            println!("translations: step {step} seen {seen:016x}");
        }
    }
    runtime::halt()
}
