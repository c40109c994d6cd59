//! Each way in which a guest becomes able to take an interrupt, and to lose that again, with one on its way.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use pollux_guests::interrupts::Frame;
use pollux_guests::{cpu, lapic};

use crate::SOFTWARE_VECTOR;

/// Where the timer's interrupts came, and what RAX was there.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// The timer's handler.
pub fn note(frame: &mut Frame) {
    let seen = SEEN.load(Ordering::Relaxed);
    SEEN.store(seen.rotate_left(11) ^ frame.rip << 20 ^ frame.rax, Ordering::Relaxed);
    lapic::end_of_interrupt();
}

/// All that [`note`] has seen.
pub fn seen() -> u64 {
    SEEN.load(Ordering::Relaxed)
}

/// Code for a window, given some memory. Each instruction counts in RAX, so that it shows where an interrupt was taken.
type Open = fn(&mut [u64; 1024]);

const OPEN: [Open; 10] = [sti, popf, iret, mov_ss, software_interrupt, fault, string, task_priority, local_apic, halt];

/// Opens one of the windows, and closes it. Interrupts are off before and after.
pub fn open(kind: u64, memory: &mut [u64; 1024]) {
    OPEN[kind as usize % OPEN.len()](memory);
}

/// Kinds of windows.
pub const KINDS: u64 = OPEN.len() as u64;

macro_rules! window {
    ($($code:tt)*) => {
        // SAFETY: interrupts, INT and UD2 have handlers, which come back. Registers are named; flags, CR8 and SS are as before.
        unsafe { asm!($($code)*) }
    };
}

fn sti(_: &mut [u64; 1024]) {
    window!("sti", "inc eax", "inc eax", "inc eax", "cli", "inc eax", "sti", "cli", inout("eax") 0 => _);
}

fn popf(_: &mut [u64; 1024]) {
    window!("pushfq", "pushfq", "or qword ptr [rsp], 0x200", "popfq", "inc eax", "inc eax", "popfq", inout("eax") 0 => _);
}

fn iret(_: &mut [u64; 1024]) {
    window!(
        "mov {frame}, rsp", "mov {word:e}, ss", "push {word}", "push {frame}", "pushfq", "or qword ptr [rsp], 0x200",
        "mov {word:e}, cs", "push {word}", "lea {word}, [rip + 2f]", "push {word}", "iretq",
        "2:", "inc eax", "inc eax", "cli", frame = out(reg) _, word = out(reg) _, inout("eax") 0 => _
    );
}

fn mov_ss(_: &mut [u64; 1024]) {
    window!(
        "mov {0:e}, ss", "sti", "inc eax", "mov ss, {0:e}", "inc eax", "inc eax", "mov ss, {0:e}", "cli",
        out(reg) _, inout("eax") 0 => _
    );
}

fn software_interrupt(_: &mut [u64; 1024]) {
    window!("sti", "int {0}", "inc eax", "int3", "inc eax", "cli", const SOFTWARE_VECTOR, inout("rax") 0u64 => _);
}

fn fault(_: &mut [u64; 1024]) {
    window!("sti", "ud2", "inc eax", "ud2", "inc eax", "cli", inout("eax") 0 => _);
}

fn string(memory: &mut [u64; 1024]) {
    window!(
        // Not right behind STI: see docs/determinism.md, "Not closed".
        "sti", "inc eax", "rep stosb", "inc eax", "mov ecx, 9", "rep lodsb", "inc eax", "cli", inout("eax") 0 => _,
        inout("ecx") 20 => _, inout("rdi") memory.as_mut_ptr() => _, inout("rsi") memory.as_ptr() => _
    );
}

/// By CR8.
fn task_priority(_: &mut [u64; 1024]) {
    window!(
        "mov cr8, {high}", "sti", "inc eax", "inc eax", "mov cr8, {low}", "inc eax", "inc eax", "mov cr8, {high}",
        "inc eax", "mov cr8, {low}", "cli", high = in(reg) 15u64, low = in(reg) 0u64, inout("eax") 0 => _
    );
}

fn local_apic(_: &mut [u64; 1024]) {
    const HIGHEST: u32 = 0xF0;
    lapic::write(lapic::TPR, HIGHEST);
    window!("sti", "inc eax", "inc eax", "inc eax", inout("eax") 0 => _);
    lapic::write(lapic::TPR, 0);
    window!("inc eax", "inc eax", "cli", inout("eax") 0 => _);
}

fn halt(_: &mut [u64; 1024]) {
    // One that has come is taken then.
    window!("sti", "nop", "cli");
    lapic::arm_timer(cpu::rdtsc() + 40);
    window!("inc eax", "sti", "hlt", "inc eax", "cli", inout("eax") 0 => _);
}
