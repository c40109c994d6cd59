//! Reads whatever differs between machines and moments, and hashes it: TSC, CPUID, date, random numbers, timer counts.
//!
//! Prints the hash now and then; UDP port 7 answers `hash?` with it.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use pollux_boot::BootInfo;
use pollux_guests::net::{Host, now};
use pollux_guests::observe::Observations;
use pollux_guests::options::Options;
use pollux_guests::{clock, cpu, interrupts, lapic, println, runtime};

/// Loops between two lines on the console.
const PRINT_EVERY: u64 = 16 * 1024;
/// Loops between two looks at the network.
const POLL_EVERY: u64 = 16;
/// CPUID leaves that are read: identity, features, topology, extended state, frequencies, hypervisor, extended.
const LEAVES: [u32; 13] =
    [0, 1, 4, 7, 0xb, 0xd, 0x15, 0x16, 0x4000_0000, 0x4000_0100, 0x8000_0001, 0x8000_0007, 0x8000_0008];

/// Invalid-opcode exceptions: RDRAND and RDSEED where they do not exist.
static INVALID_OPCODES: AtomicU64 = AtomicU64::new(0);

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    lapic::init(!options.xapic);
    interrupts::set_handler(6, |frame| {
        INVALID_OPCODES.fetch_add(1, Ordering::Relaxed);
        // RDRAND and RDSEED of a 64-bit register are four bytes long.
        frame.rip += 4;
    });
    let mut host = match Host::new(&options, false) {
        Ok(host) => host,
        Err(error) => panic!("network: {error}"),
    };
    let socket = host.add_udp(7);
    println!("nondet: running");
    let mut observations = Observations::default();
    for round in 0u64.. {
        observe(&mut observations);
        if round % PRINT_EVERY == 0 {
            println!("nondet: round {round} hash {:016x}", observations.hash());
        }
        if round % POLL_EVERY == 0 {
            let now = now();
            host.poll(now);
            host.answer_udp(socket, |datagram| observations.answer(datagram));
            host.send(now);
        }
    }
    runtime::halt()
}

fn observe(observations: &mut Observations) {
    observations.add_number(cpu::rdtsc());
    for leaf in LEAVES {
        let result = cpu::cpuid(leaf, 0);
        for register in [result.eax, result.ebx, result.ecx, result.edx] {
            observations.add_number(register.into());
        }
    }
    for register in [0, 2, 4, 7, 8, 9, 0xa] {
        observations.add_number(clock::cmos(register).into());
    }
    for random in [rdrand(), rdseed()] {
        observations.add_number(random);
    }
    observations.add_number(INVALID_OPCODES.load(Ordering::Relaxed));
    lapic::arm_timer(cpu::rdtsc() + 1_000_000);
    observations.add_number(lapic::read(lapic::TIMER_CURRENT).into());
    observations.add_number(cpu::rdtsc());
}

/// A random number; 0 when there is none.
fn rdrand() -> u64 {
    let value: u64;
    // SAFETY: where the instruction does not exist the handler above skips it.
    unsafe { asm!("xor eax, eax", "rdrand rax", out("rax") value, options(nomem, nostack)) };
    value
}

/// A random seed; 0 when there is none.
fn rdseed() -> u64 {
    let value: u64;
    // SAFETY: as for `rdrand`.
    unsafe { asm!("xor eax, eax", "rdseed rax", out("rax") value, options(nomem, nostack)) };
    value
}
