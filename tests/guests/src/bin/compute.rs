//! Computes for ever without any input: integers over memory, calls, SSE. No network, no timer.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use pollux_boot::BootInfo;
use pollux_guests::work::Work;
use pollux_guests::{cpu, println, runtime};

/// Words of memory worked on: 512 KiB.
const WORDS: usize = 64 * 1024;
/// Rounds between two lines of progress: some 10^9 instructions.
const ROUNDS: u64 = 2000;

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    cpu::enable_sse();
    println!("compute: running");
    let mut work = Work::new(WORDS);
    let mut sums = [1.0f64, 0.5];
    for round in 0u64.. {
        work.round();
        average(&mut sums, work.words());
        if round % ROUNDS == 0 {
            let state = work.state();
            println!("compute: round {round} state {state:016x} sums {:016x}", sums[0].to_bits() ^ sums[1].to_bits());
        }
    }
    runtime::halt()
}

/// Folds the first words into two averages with SSE2.
#[inline(never)]
fn average(sums: &mut [f64; 2], words: &[u64]) {
    for pair in words[..1024].chunks_exact(2) {
        // SAFETY: SSE is enabled, this code's target uses no vector register otherwise; both operands are 16 bytes long.
        unsafe {
            asm!(
                "movupd xmm0, [{sums}]",
                "cvtsi2sd xmm1, dword ptr [{pair}]",
                "cvtsi2sd xmm2, dword ptr [{pair} + 8]",
                "unpcklpd xmm1, xmm2",
                "addpd xmm0, xmm1",
                "mulpd xmm0, [{half}]",
                "movupd [{sums}], xmm0",
                sums = in(reg) sums.as_mut_ptr(),
                pair = in(reg) pair.as_ptr(),
                half = in(reg) &raw const HALF,
                options(nostack)
            );
        }
    }
}

#[repr(align(16))]
struct Aligned(#[allow(dead_code, reason = "read by assembly")] [f64; 2]);

static HALF: Aligned = Aligned([0.5, 0.5]);
