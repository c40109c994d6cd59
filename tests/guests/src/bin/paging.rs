//! Paging in corners, in pseudo-random order, for ever: events whose tables and stack are not translated yet; SMAP, with CR0.WP
//! clear and in the system's own accesses; stack segments loaded from pages that move; pages of 2 MiB and 1 GiB, global
//! ones; devices in one of 1 GiB; 32-bit paging, with pages of 4 MiB, and PAE; tables that map themselves; tags of address
//! spaces, which are not there.
//!
//! `seed=` chooses the order, `case=` one of the corners. What the architecture promises is checked.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use pollux_boot::BootInfo;
use pollux_guests::interrupts::Frame;
use pollux_guests::options::Options;
use pollux_guests::random::Random;
use pollux_guests::segments::{self, KERNEL_CODE, KERNEL_DATA, LOCAL_DATA, USER_CODE, USER_DATA};
use pollux_guests::tables::{ACCESSED, ADDRESS, DIRTY, Entry, GLOBAL, LARGE, PRESENT, Page, USER, WRITABLE};
use pollux_guests::{compat, cpu, interrupts, lapic, println, runtime};
use x86_64::VirtAddr;
use x86_64::instructions::tables::{lidt, sidt};
use x86_64::instructions::tlb;
use x86_64::structures::DescriptorTablePointer;

/// First address of the pages, behind what the boot page tables map; then a page of 2 MiB and one of 1 GiB.
const WINDOW: u64 = 512 << 30;
const LARGE_PAGE: u64 = WINDOW + (2 << 20);
const HUGE_PAGE: u64 = WINDOW + (1 << 30);
/// Another of 1 GiB, where devices are.
const DEVICE_PAGE: u64 = WINDOW + (2 << 30);
const DEVICES: u64 = 0xC000_0000;
/// The root's entry that leads to the root.
const RECURSIVE: u64 = 2;
/// Memory that nobody uses, for the large pages.
const LARGE_FRAME: u64 = 10 << 20;

/// What the window's pages are.
const GATES: u64 = 0;
const SEGMENTS: u64 = 2;
const STACK: u64 = 3;
const LOCAL: u64 = 4;
const CODE: u64 = 5;
const DATA: u64 = 6;
const ABSENT: u64 = 8;

const SOFTWARE_VECTOR: u8 = 0x60;
const CR0_WP: u64 = 1 << 16;
const CR4_PGE: u64 = 1 << 7;
const CR4_SMAP: u64 = 1 << 21;
const RFLAGS_AC: u64 = 1 << 18;

static POINTERS: Page = Page::new();
static DIRECTORY: Page = Page::new();
static TABLE: Page = Page::new();
static CONTENT: [Page; 16] = [const { Page::new() }; 16];
/// Where interrupts of code with user rights begin their stack.
static INTERRUPT_STACK: Page = Page::new();

/// Events that handlers saw, and page faults among them.
static EVENTS: AtomicU64 = AtomicU64::new(0);
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Where the code with user rights comes back to, and with which stack.
static RESUME: AtomicU64 = AtomicU64::new(0);
static OLD_STACK: AtomicU64 = AtomicU64::new(0);

struct State {
    random: Random,
    gates: u64,
    has_smap: bool,
    has_gib_pages: bool,
    root: u64,
    seen: u64,
}

type Step = fn(&mut State);

const STEPS: [(&str, Step); 10] = [
    ("delivery", delivery),
    ("timer", timer),
    ("protection", protection),
    ("implicit", implicit),
    ("shadow", shadow),
    ("large", large),
    ("compatible", compatible),
    ("devices", devices),
    ("recursive", recursive),
    ("tags", tags),
];

fn entry(page: u64) -> Entry {
    TABLE.entry(page)
}

fn address(page: u64) -> u64 {
    WINDOW + page * 4096
}

fn content(page: u64) -> Entry {
    CONTENT[page as usize].entry(0)
}

/// Changes an entry and forgets its translation.
fn map(page: u64, value: u64) {
    entry(page).set(value);
    tlb::flush(VirtAddr::new(address(page)));
}

fn handle(frame: &mut Frame) {
    EVENTS.fetch_add(1, Ordering::Relaxed);
    match frame.vector {
        // `div ecx` has two bytes, `ud2` too.
        6 if frame.cs & 3 == 3 => {
            frame.cs = u64::from(KERNEL_CODE);
            frame.ss = u64::from(KERNEL_DATA);
            frame.rip = RESUME.load(Ordering::Relaxed);
            frame.rsp = OLD_STACK.load(Ordering::Relaxed);
            frame.rflags = 2;
        }
        0 | 6 => frame.rip += if frame.rsi == SKIP_FIVE { 5 } else { 2 },
        // `mov cr4, reg`.
        13 => frame.rip += 3,
        // All instructions here that fault have two bytes, and the others none but `mov rax, [rdi]` with three.
        14 => {
            FAULTS.fetch_add(1, Ordering::Relaxed);
            frame.rip += if frame.rsi == SKIP_THREE { 3 } else { 2 };
        }
        vector if vector == u64::from(lapic::TIMER_VECTOR) => lapic::end_of_interrupt(),
        _ => {}
    }
}

/// In RSI: an instruction that may fault has three bytes.
const SKIP_THREE: u64 = 0x5333;
/// The same, five: INVPCID.
const SKIP_FIVE: u64 = 0x5335;

/// Kinds of events: INT, INT3, UD2, a division by zero, a page fault, the timer's interrupt.
const EVENT_VECTORS: [u8; 6] = [SOFTWARE_VECTOR, 3, 6, 0, 14, lapic::TIMER_VECTOR];
const TIMER: u64 = 5;

/// An event of a random kind.
fn delivery(state: &mut State) {
    let kind = state.random.below(EVENT_VECTORS.len() as u64);
    event(state, kind);
}

/// Nothing but interrupts, each of which comes when the guest can take it for three instructions in some ten.
fn timer(state: &mut State) {
    event(state, TIMER);
}

/// An event whose gate, code segment and stack may have to be walked for.
fn event(state: &mut State, kind: u64) {
    let gates_at = address(GATES) + state.gates % 4096;
    // SAFETY: the window shows the tables in use; what is loaded again below means the same.
    unsafe { lidt(&DescriptorTablePointer { limit: 16 * 256 - 1, base: VirtAddr::new(gates_at) }) };
    segments::load_at(address(SEGMENTS));
    let pages = [GATES, GATES + 1, SEGMENTS, STACK];
    let forgotten = state.random.below(16);
    for (bit, page) in pages.into_iter().enumerate() {
        if forgotten >> bit & 1 != 0 {
            map(page, entry(page).get() & !(ACCESSED | DIRTY));
        }
    }
    let before = EVENTS.load(Ordering::Relaxed);
    let stack = address(STACK) + 4096 - 16 * state.random.below(64);
    let vector = EVENT_VECTORS[kind as usize];
    macro_rules! on_stack {
        ($($code:literal),*) => {
            asm!("mov {old}, rsp", "mov rsp, {stack}", $($code,)* "mov rsp, {old}", old = out(reg) _, stack = in(reg) stack,
                in("rdi") address(ABSENT), in("rsi") SKIP_THREE, inout("rax") 1u64 => _, inout("rcx") 0u64 => _,
                inout("rdx") 0u64 => _)
        };
    }
    // SAFETY: each event has a handler, which goes on behind the instruction; the stack is a page of its own.
    unsafe {
        match kind {
            0 => on_stack!("int 0x60"),
            1 => on_stack!("int3"),
            2 => on_stack!("ud2"),
            3 => on_stack!("div ecx"),
            4 => on_stack!("mov rax, [rdi]"),
            _ => {
                lapic::arm_timer(cpu::rdtsc() + state.random.below(200));
                while EVENTS.load(Ordering::Relaxed) == before {
                    on_stack!("sti", "nop", "nop", "nop", "cli");
                }
            }
        }
    }
    assert_eq!(EVENTS.load(Ordering::Relaxed), before + 1, "one event of vector {vector}");
    let gate = (gates_at + 16 * u64::from(vector)) / 4096 - WINDOW / 4096;
    let bits = [gate, SEGMENTS, STACK].map(|page| entry(page).get() & (ACCESSED | DIRTY));
    assert!(bits[0] & bits[1] & ACCESSED != 0, "its tables were read: {bits:x?}");
    assert_eq!(bits[2], ACCESSED | DIRTY, "its stack was written");
    state.seen = state.seen.rotate_left(3) ^ kind ^ forgotten << 8;
}

fn control_register(set: u64, clear: u64) -> u64 {
    let old: u64;
    // SAFETY: callers change what they are about, and nothing that Rust relies on.
    unsafe {
        asm!("mov {0}, cr4", out(reg) old, options(nostack));
        asm!("mov cr4, {}", in(reg) old & !clear | set, options(nostack));
    }
    old
}

fn write_protect(on: bool) {
    // SAFETY: nothing of Rust's lies in read-only pages.
    unsafe {
        let cr0: u64;
        asm!("mov {}, cr0", out(reg) cr0, options(nostack));
        asm!("mov cr0, {}", in(reg) if on { cr0 | CR0_WP } else { cr0 & !CR0_WP }, options(nostack));
    }
}

/// Whether an access by the system faults, to a page of the user's; `ac` lets SMAP pass.
fn faults(page: u64, write: bool, ac: bool) -> bool {
    let before = FAULTS.load(Ordering::Relaxed);
    // SAFETY: the handler goes on behind a fault; the page is one of the window's data.
    unsafe {
        asm!(
            "pushfq", "pushfq", "or qword ptr [rsp], {flag}", "test {ac}, {ac}", "jnz 2f", "and qword ptr [rsp], {no_flag}",
            "2:", "popfq", "test {write}, {write}", "jnz 3f", "mov eax, [rdi]", "jmp 4f", "3:", "mov [rdi], edx", "4:",
            "popfq",
            ac = in(reg) u64::from(ac), write = in(reg) u64::from(write), flag = const RFLAGS_AC,
            no_flag = const !(RFLAGS_AC as i64), in("rdi") address(page), in("rdx") 5u64, in("rsi") 0u64, out("rax") _
        );
    }
    FAULTS.load(Ordering::Relaxed) != before
}

/// Writes with CR0.WP clear to a read-only page of the user's, and what SMAP says of the next accesses.
fn protection(state: &mut State) {
    if !state.has_smap {
        return;
    }
    let page = DATA + state.random.below(2);
    let dirty = if state.random.below(2) == 0 { DIRTY } else { 0 };
    map(page, content(page).place() | PRESENT | USER | dirty);
    content(page).set(0);
    control_register(CR4_SMAP, 0);
    write_protect(false);
    assert!(faults(page, true, false), "SMAP forbids the write");
    if state.random.below(2) == 0 {
        assert!(!faults(page, false, true), "RFLAGS.AC allows reads");
    }
    assert!(!faults(page, true, true), "CR0.WP does not forbid the write");
    assert_eq!(content(page).get(), 5);
    assert!(faults(page, false, false), "SMAP still forbids reads");
    assert!(faults(page, true, false), "and writes");
    assert!(!faults(page, true, true), "and RFLAGS.AC allows them");
    write_protect(true);
    assert!(faults(page, true, true), "CR0.WP forbids the write");
    assert!(!faults(page, false, true) && faults(page, false, false));
    control_register(0, CR4_SMAP);
    assert_eq!(entry(page).get() & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    state.seen = state.seen.wrapping_mul(31) ^ page;
}

/// A segment is loaded by code with user rights from a table in a page of the user's: SMAP forbids the system's access,
/// whatever RFLAGS.AC is; and it must end, whatever the CPU makes of it.
fn implicit(state: &mut State) {
    /// mov fs, eax; ud2
    const PROGRAM: u64 = 0x0B0F_E08E;
    if !state.has_smap {
        return;
    }
    content(CODE).set(PROGRAM);
    map(CODE, content(CODE).place() | PRESENT | USER);
    map(LOCAL, content(LOCAL).place() | PRESENT | WRITABLE | if state.random.below(4) == 0 { 0 } else { USER });
    let may = entry(LOCAL).get() & USER == 0;
    if state.random.below(2) == 0 {
        // The translation is there already.
        // SAFETY: without SMAP the table is read, whose descriptor is good.
        unsafe { asm!("mov fs, {0:e}", "mov fs, {1:e}", in(reg) u32::from(LOCAL_DATA), in(reg) 0, options(nostack)) };
    }
    control_register(CR4_SMAP, 0);
    let before = FAULTS.load(Ordering::Relaxed);
    // SAFETY: the program ends by an exception whose handler comes back behind IRETQ, with this stack.
    unsafe {
        asm!(
            "push rbx", "push rbp", "lea rax, [rip + 2f]", "mov [{resume}], rax", "mov [{old}], rsp",
            "push {data}", "push 0", "push {flags}", "push {code}", "push {rip}", "mov eax, {selector}", "iretq",
            "2:", "pop rbp", "pop rbx",
            resume = in(reg) RESUME.as_ptr(), old = in(reg) OLD_STACK.as_ptr(), data = const USER_DATA,
            flags = const RFLAGS_AC | 2, code = const USER_CODE, rip = in(reg) address(CODE), selector = const LOCAL_DATA,
            in("rsi") 0u64, out("rax") _
        );
    }
    let faulted = FAULTS.load(Ordering::Relaxed) != before;
    assert!(!(may && faulted), "a table of the system's can be read");
    // Bochs 2.7 lets RFLAGS.AC hold for it.
    control_register(0, CR4_SMAP);
    state.seen = state.seen.wrapping_mul(31) ^ u64::from(faulted) << 1 ^ u64::from(may);
}

/// Loads the stack segment from a page that was moved and not flushed: whichever page is read, it is always the same.
fn shadow(state: &mut State) {
    let page = DATA + state.random.below(2);
    let frames = [10, 11].map(content);
    frames[0].set(u64::from(KERNEL_DATA));
    frames[1].set(0);
    map(page, frames[0].place() | PRESENT | WRITABLE);
    let seen: u64;
    // SAFETY: both selectors can be loaded; SS is put back. No interrupt comes between.
    unsafe {
        asm!(
            "mov {old:e}, ss", "mov {seen:e}, [{page}]", "mov [{entry}], {moved}", "mov ss, [{page}]", "mov {seen:e}, ss",
            "mov ss, {old:e}", "sti", "nop", "cli",
            old = out(reg) _, seen = out(reg) seen, page = in(reg) address(page), entry = in(reg) entry(page).place(),
            moved = in(reg) frames[1].place() | PRESENT | WRITABLE, options(nostack)
        );
    }
    tlb::flush(VirtAddr::new(address(page)));
    state.seen = state.seen.wrapping_mul(31) ^ seen ^ entry(page).get() & (ACCESSED | DIRTY);
}

/// Large pages that are moved, split and joined, with and without a flush; global pages.
fn large(state: &mut State) {
    let (directory, pointer) = (DIRECTORY.entry(1), POINTERS.entry(1));
    let value = state.random.number();
    let at = Entry::at(LARGE_PAGE + DATA * 4096);
    if entry(DATA).get() & WRITABLE == 0 {
        map(DATA, content(DATA).place() | PRESENT | WRITABLE);
        tlb::flush(VirtAddr::new(at.place()));
    }
    match state.random.below(8) {
        0 => directory.clear(ACCESSED | DIRTY),
        1 => pointer.clear(ACCESSED | DIRTY),
        2 => {
            // The page becomes a table, or the table a page.
            directory.set(if directory.get() & LARGE == 0 {
                LARGE_FRAME | PRESENT | WRITABLE | LARGE
            } else {
                TABLE.address() | PRESENT | WRITABLE
            });
            tlb::flush_all();
        }
        3 => {
            entry(DATA)
                .set(content(DATA + value % 2).place() | PRESENT | WRITABLE | if value & 4 == 0 { GLOBAL } else { 0 });
            tlb::flush_all();
        }
        4 => {
            let old = control_register(CR4_PGE, 0);
            if old & CR4_PGE != 0 {
                control_register(0, CR4_PGE);
            }
        }
        _ => {
            directory.clear(ACCESSED | DIRTY);
            tlb::flush(VirtAddr::new(at.place()));
            state.seen ^= at.get();
            assert_eq!(directory.get() & ACCESSED, ACCESSED);
            at.set(value);
            assert_eq!(at.get(), value);
            assert!(directory.get() & (LARGE | DIRTY) != LARGE, "a large page that was written is dirty");
        }
    }
    if state.has_gib_pages {
        let at = Entry::at(HUGE_PAGE + LARGE_FRAME + 8 * (value % 512));
        at.set(value);
        assert_eq!(Entry::at(LARGE_FRAME + 8 * (value % 512)).get(), value);
    }
    Entry::at(address(DATA)).set(value);
    let bits = [directory, pointer, entry(DATA)].map(|entry| entry.get() & (ACCESSED | DIRTY));
    state.seen = state.seen.rotate_left(5) ^ bits[0] ^ bits[1] << 8 ^ bits[2] << 16;
}

/// The last GiB below 4 GiB in one page: the I/O APIC and the local APIC are where they are without it.
fn devices(state: &mut State) {
    const IOAPIC: u64 = 0xFEC0_0000;
    const LAPIC_VERSION: u64 = 0xFEE0_0030;
    if !state.has_gib_pages {
        return;
    }
    if state.random.below(4) == 0 {
        POINTERS.entry(2).clear(ACCESSED | DIRTY);
        tlb::flush_all();
    }
    let [versions, others] = [0, DEVICE_PAGE - DEVICES].map(|offset| {
        // SAFETY: registers of devices that are there; selecting one and reading it changes nothing else.
        unsafe {
            ((IOAPIC + offset) as *mut u32).write_volatile(1);
            [IOAPIC + 16, LAPIC_VERSION].map(|device| ((device + offset) as *const u32).read_volatile())
        }
    });
    assert_eq!(versions, others, "by the pages of the boot loader, and by one of 1 GiB");
    assert_ne!(others[0], u32::MAX);
    state.seen = state.seen.rotate_left(7) ^ POINTERS.entry(2).get();
}

/// Where the root's entry that leads to itself shows the window's page table.
const TABLE_SEEN: u64 = RECURSIVE << 39 | 1 << 30;

/// The page table is read and written where the tables map themselves: there the directory's entry is that of a page.
fn recursive(state: &mut State) {
    let page = DATA + state.random.below(2);
    let seen = Entry::at(TABLE_SEEN + 8 * page);
    let frame = content(10 + state.random.below(2));
    let value = state.random.number();
    frame.set(value);
    match state.random.below(4) {
        0 => {
            // Used as a directory's entry and as a page's, it has one accessed bit and one dirty bit.
            DIRECTORY.entry(0).clear(ACCESSED | DIRTY);
            tlb::flush_all();
            assert_eq!(seen.get(), entry(page).get());
            assert_eq!(DIRECTORY.entry(0).get() & (ACCESSED | DIRTY), ACCESSED, "the table was read");
            seen.set(frame.place() | PRESENT | WRITABLE);
            assert_eq!(DIRECTORY.entry(0).get() & (ACCESSED | DIRTY), ACCESSED | DIRTY, "the table was written");
        }
        1 => {
            // Moved without a flush: the old page or the new one.
            seen.set(frame.place() | PRESENT | WRITABLE);
            state.seen ^= Entry::at(address(page)).get();
        }
        2 => Entry::at(state.root + 8 * RECURSIVE).clear(ACCESSED | DIRTY),
        _ => seen.clear(ACCESSED | DIRTY),
    }
    seen.set(frame.place() | PRESENT | WRITABLE);
    tlb::flush(VirtAddr::new(address(page)));
    assert_eq!(Entry::at(address(page)).get(), value, "a page that was moved through its table's own page");
    assert_eq!(seen.get() & (ACCESSED | DIRTY), ACCESSED);
    Entry::at(address(page)).set(!value);
    assert_eq!((seen.get() & (ACCESSED | DIRTY), frame.get()), (ACCESSED | DIRTY, !value));
    let bits = Entry::at(state.root + 8 * RECURSIVE).get() & (ACCESSED | DIRTY);
    state.seen = state.seen.rotate_left(11) ^ value ^ bits ^ DIRECTORY.entry(0).get();
}

/// Where CPUID shows no tags of address spaces, CR4.PCIDE is reserved; and INVPCID does not exist without its own bit.
fn tags(state: &mut State) {
    const CR4_PCIDE: u64 = 1 << 17;
    let (has_tags, has_invpcid) = (cpu::cpuid(1, 0).ecx & 1 << 17 != 0, cpu::cpuid(7, 0).ebx & 1 << 10 != 0);
    let before = EVENTS.load(Ordering::Relaxed);
    if !has_tags {
        control_register(CR4_PCIDE, 0);
        assert_eq!(EVENTS.load(Ordering::Relaxed), before + 1, "CR4.PCIDE is reserved");
        assert_eq!(control_register(0, 0) & CR4_PCIDE, 0);
    }
    let faults = EVENTS.load(Ordering::Relaxed);
    if !has_invpcid {
        let descriptor = [0u64; 2];
        // SAFETY: the handler goes on behind the instruction; it would forget all translations.
        unsafe {
            asm!("invpcid rax, [rdi]", in("rax") 2u64, in("rdi") descriptor.as_ptr(), in("rsi") SKIP_FIVE, options(nostack));
        }
        assert_eq!(EVENTS.load(Ordering::Relaxed), faults + 1, "INVPCID is undefined");
    }
    state.seen = state.seen.wrapping_mul(31) ^ u64::from(has_tags) ^ u64::from(has_invpcid) << 1;
}

/// 32-bit paging or PAE, outside of long mode.
fn compatible(state: &mut State) {
    let pae = state.random.below(2) == 0;
    let rounds = 1 + state.random.below(200) as u32;
    state.seen = state.seen.rotate_left(9) ^ u64::from(compat::run(pae, rounds, state.random.number() as u32));
}

fn set_up(random: Random) -> State {
    let flags = PRESENT | WRITABLE | USER;
    let root = x86_64::registers::control::Cr3::read().0.start_address().as_u64();
    Entry::at((root & ADDRESS) + 8).set(POINTERS.address() | flags);
    POINTERS.entry(0).set(DIRECTORY.address() | flags);
    POINTERS.entry(1).set(PRESENT | WRITABLE | LARGE);
    POINTERS.entry(2).set(DEVICES | PRESENT | WRITABLE | LARGE);
    DIRECTORY.entry(0).set(TABLE.address() | flags);
    DIRECTORY.entry(1).set(LARGE_FRAME | PRESENT | WRITABLE | LARGE);
    content(LOCAL).set(segments::LOCAL_TABLE);
    let gates = sidt().base.as_u64();
    let segments = segments::load(INTERRUPT_STACK.address() + 4096, address(LOCAL));
    for (page, frame) in [(GATES, gates & ADDRESS), (GATES + 1, (gates & ADDRESS) + 4096), (SEGMENTS, segments)] {
        map(page, frame | PRESENT | WRITABLE);
    }
    for page in [STACK, LOCAL, CODE, DATA, DATA + 1] {
        map(page, content(page).place() | PRESENT | WRITABLE);
    }
    for vector in [0, 3, 6, 13, 14, SOFTWARE_VECTOR, lapic::TIMER_VECTOR] {
        interrupts::set_handler(vector, handle);
    }
    let has_smap = cpu::cpuid(7, 0).ebx & 1 << 20 != 0;
    let has_gib_pages = cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0;
    Entry::at((root & ADDRESS) + 8 * RECURSIVE).set((root & ADDRESS) | PRESENT | WRITABLE);
    State { random, gates, has_smap, has_gib_pages, root: root & ADDRESS, seen: 0 }
}

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    lapic::init(true);
    let mut state = set_up(Random::new(options.seed));
    println!("paging: running, SMAP {}, 1 GiB pages {}", state.has_smap, state.has_gib_pages);
    for step in 0u64.. {
        let (name, run) = STEPS[state.random.below(STEPS.len() as u64) as usize];
        if options.case.is_empty() || options.case == name {
            run(&mut state);
        }
        if step % (1 << 14) == 0 {
            println!("paging: step {step} seen {:016x}", state.seen);
        }
    }
    runtime::halt()
}
