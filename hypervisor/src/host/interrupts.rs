//! The interrupt table. Hypervisor code runs with interrupts off; [`open_window`] and [`wait`] let pending ones in.
//!
//! A handler only notes which source fired and ends the interrupt: the main loop does the work.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::InterruptDescriptorTable;

use super::apic::{self, Apic};
use super::{clock, msr, pic};

/// Ends this machine at once, as a power cut does: nothing that a card has not got yet leaves. A test's way to die.
///
/// An exception that finds no interrupt table shuts the CPU down (SDM Vol. 3, 6.15, "double fault"); the board resets.
pub fn power_cut() -> ! {
    let nothing = DescriptorTablePointer { limit: 0, base: VirtAddr::zero() };
    // SAFETY: with an empty table the next exception ends this machine, which is what is wanted; until then interrupts
    // are off, so that nothing looks at the table.
    unsafe {
        lidt(&nothing);
    }
    loop {
        interrupts::int3();
    }
}

/// What has fired since it was last asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fired(u32);

impl Fired {
    const TIMER: u32 = 1 << 16;
    const MSI: u32 = 1 << 17;

    /// Interrupt line `line` of the 8259 pair fired.
    #[must_use]
    pub fn line(self, line: u8) -> bool {
        self.0 & 1 << line != 0
    }

    /// A message-signalled interrupt came.
    #[must_use]
    pub fn message(self) -> bool {
        self.0 & Self::MSI != 0
    }

    /// Any source but the timer fired: a device or the wall clock wants attention.
    #[must_use]
    pub fn device(self) -> bool {
        self.0 & !Self::TIMER != 0
    }
}

static FIRED: AtomicU32 = AtomicU32::new(0);
static APIC: Once<Apic> = Once::new();
static TABLE: Once<InterruptDescriptorTable> = Once::new();

// 256 stubs of 16 bytes. Each leaves vector and error code on the stack in the same places, whether or not the CPU
// pushed an error code, so that one Rust function serves all. Only general registers need saving: the hypervisor is
// compiled without floating point.
global_asm!(
    ".global pollux_interrupt_stubs",
    ".balign 16",
    "pollux_interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    // Exceptions 8, 10-14, 17, 21, 29 and 30 push an error code.
    ".if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30",
    "push 0",
    ".endif",
    "push vector",
    "jmp pollux_interrupt_common",
    ".set vector, vector + 1",
    ".endr",
    "pollux_interrupt_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "mov rdi, [rsp + 9 * 8]",
    "mov rsi, [rsp + 10 * 8]",
    "mov rdx, [rsp + 11 * 8]",
    "cld",
    // The CPU aligned the stack to 16 before its five pushes; with two stub pushes and nine registers it is again.
    "call {handler}",
    // Where the code that was interrupted goes on.
    "mov [rsp + 11 * 8], rax",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    handler = sym handle,
);

unsafe extern "C" {
    static pollux_interrupt_stubs: [[u8; 16]; 256];
}

/// Returns where the code that was interrupted at `rip` goes on.
extern "C" fn handle(vector: u64, error: u64, rip: u64) -> u64 {
    const FIRST_LINE: u64 = pic::VECTOR_BASE as u64;
    const LAST_LINE: u64 = FIRST_LINE + pic::LINES as u64 - 1;
    const TIMER: u64 = apic::TIMER_VECTOR as u64;
    const MSI: u64 = apic::MSI_VECTOR as u64;
    const LEGACY: u64 = apic::LEGACY_VECTOR as u64;
    const NMI: u64 = 2;
    const GENERAL_PROTECTION: u64 = 13;
    const SPURIOUS: u64 = apic::SPURIOUS_VECTOR as u64;
    match vector {
        FIRST_LINE..=LAST_LINE => end_line((vector - FIRST_LINE) as u8),
        // The CPU may have acknowledged it before: QEMU's does.
        LEGACY => {
            end_apic(0);
            while let Some(line) = pic::poll() {
                end_line(line);
            }
        }
        TIMER => end_apic(Fired::TIMER),
        MSI => end_apic(Fired::MSI),
        SPURIOUS => {}
        // The overflow of a counter, which came after the guest's exit: whoever armed it reads the counter.
        NMI => {}
        GENERAL_PROTECTION => return msr::recovery(rip).unwrap_or_else(|| exception(vector, error, rip)),
        _ => exception(vector, error, rip),
    }
    rip
}

/// An interrupt of a legacy line is in service.
fn end_line(line: u8) {
    FIRED.fetch_or(1 << line, Ordering::Relaxed);
    // A level-triggered line stays raised until its device is served; the device's owner unmasks it then.
    if line != clock::RTC_LINE {
        pic::mask(line);
    }
    pic::end_of_interrupt(line);
}

fn end_apic(flag: u32) {
    FIRED.fetch_or(flag, Ordering::Relaxed);
    if let Some(apic) = APIC.get() {
        apic.end_of_interrupt();
    }
}

fn exception(vector: u64, error: u64, rip: u64) -> ! {
    let cr2 = x86_64::registers::control::Cr2::read_raw();
    panic!("exception {vector} at {rip:#x}, error code {error:#x}, CR2 {cr2:#x}");
}

/// Loads the interrupt table, initialises both interrupt controllers and leaves interrupts off.
///
/// # Safety
/// Called once, early, on the only CPU, with the first 4 GiB identity-mapped.
///
/// # Errors
/// When the local APIC is in a mode that is not supported.
pub unsafe fn start() -> Result<Apic, &'static str> {
    interrupts::disable();
    TABLE
        .call_once(|| {
            let mut table = InterruptDescriptorTable::new();
            fill(&mut table);
            table
        })
        .load();
    pic::start();
    // SAFETY: the table just loaded has a handler for every vector; the caller vouches for the rest.
    let apic = unsafe { Apic::start() }?;
    Ok(*APIC.call_once(|| apic))
}

fn fill(table: &mut InterruptDescriptorTable) {
    let raw = core::ptr::from_mut(table).cast::<[u64; 2]>();
    let selector = u64::from(CS::get_reg().0);
    for vector in 0..256 {
        // SAFETY: the stubs are 256 entries of 16 bytes.
        let address =
            VirtAddr::from_ptr(unsafe { (&raw const pollux_interrupt_stubs).cast::<[u8; 16]>().add(vector) }).as_u64();
        // A present 64-bit interrupt gate at privilege 0. See: SDM volume 3, figure 6-8.
        let low = (address & 0xFFFF) | selector << 16 | 0x8E00 << 32 | (address >> 16 & 0xFFFF) << 48;
        // SAFETY: the table is 256 gates of 16 bytes; each gate written is valid.
        unsafe { raw.add(vector).write([low, address >> 32]) };
    }
}

/// Lets pending interrupts in, for a moment.
pub fn open_window() {
    interrupts::enable();
    // STI holds interrupts off for one more instruction.
    x86_64::instructions::nop();
    x86_64::instructions::nop();
    interrupts::disable();
}

/// Lets pending interrupts in; returns whether a device or the wall clock wants attention.
pub fn let_in() -> bool {
    open_window();
    Fired(FIRED.load(Ordering::Relaxed)).device()
}

/// Sleeps until an interrupt comes, and lets it in. Returns at once when one is pending.
pub fn wait() {
    interrupts::enable_and_hlt();
    interrupts::disable();
}

/// Takes what has fired since the last call.
pub fn take_fired() -> Fired {
    Fired(FIRED.swap(0, Ordering::Relaxed))
}
