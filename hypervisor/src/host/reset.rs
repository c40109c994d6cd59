//! Starting this machine anew, as after a power cycle, when its part has ended by an error: `on-halt=reset`.
//!
//! How often that may be is not counted, as nothing could be counted on to keep the count: firmware may clear memory at
//! any reset, and calls the bytes beside the RTC its own, by a checksum in places that nobody documents. Instead each life
//! resets itself only once it has lasted for its share of an hour, and waits until then. So a machine that fails at
//! every start begins anew at most so many times an hour, whatever is forgotten in between. Time is that of the RTC, which
//! even a panic can read.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::Port;
use x86_64::structures::DescriptorTablePointer;

use super::clock;

/// The chip set's reset control. See: Intel ICH9 datasheet 13.7.5 (RST_CNT); PIIX3 datasheet 2.5.3 (RC).
const RESET_CONTROL: u16 = 0xCF9;
/// Of everything, not of the CPU alone; and now.
const SYSTEM: u8 = 1 << 1;
const NOW: u8 = 1 << 2;
/// The keyboard controller's command port, and the command that pulses the CPU's reset line.
const KEYBOARD: u16 = 0x64;
const PULSE_RESET: u8 = 0xFE;
/// How often to look at something that changes within microseconds, or not at all.
const LOOKS: u32 = 100_000;

/// The time from which on this machine may reset itself, in seconds since 1970; 0 is never.
static NOT_BEFORE: AtomicU64 = AtomicU64::new(0);

/// From which time on a machine may reset itself that was started at `born`, both in seconds: so many times `an_hour`.
fn not_before(born: u64, an_hour: u64) -> u64 {
    born.saturating_add(3600_u64.div_ceil(an_hour.max(1))).max(1)
}

/// This machine, which was just started, may reset itself so many times an hour.
pub fn allow(an_hour: u64) {
    NOT_BEFORE.store(not_before(clock::unix_time(), an_hour), Ordering::Relaxed);
}

/// In how many seconds this machine may reset itself; `None`: never.
#[must_use]
pub fn due_in() -> Option<u64> {
    match NOT_BEFORE.load(Ordering::Relaxed) {
        0 => None,
        at => Some(at.saturating_sub(clock::unix_time())),
    }
}

/// Resets this machine, when it may. Returns at once if it never may.
pub fn when_due() {
    while let Some(left) = due_in() {
        if left == 0 {
            now();
        }
        core::hint::spin_loop();
    }
}

/// Resets this machine: by the chip set, else by the keyboard controller, else by a fault that no handler takes.
pub fn now() -> ! {
    x86_64::instructions::interrupts::disable();
    // SAFETY: these ports do nothing but reset the machine, after which nothing of ours is left; where they do not exist,
    // writing has no effect. In the end there are no interrupt handlers, which the breakpoint turns into a shutdown.
    unsafe {
        let mut control = Port::<u8>::new(RESET_CONTROL);
        control.write(SYSTEM);
        control.write(SYSTEM | NOW);
        linger();
        let mut keyboard = Port::<u8>::new(KEYBOARD);
        for _ in 0..LOOKS {
            // Its input buffer is free.
            if keyboard.read() & 2 == 0 {
                break;
            }
        }
        keyboard.write(PULSE_RESET);
        linger();
        x86_64::instructions::tables::lidt(&DescriptorTablePointer { limit: 0, base: x86_64::VirtAddr::zero() });
        x86_64::instructions::interrupts::int3();
    }
    hang()
}

/// Makes no progress any more; only the power switch, or a watchdog that runs, helps then.
pub fn hang() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// A reset takes its time to arrive.
fn linger() {
    for _ in 0..LOOKS {
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_lasts_for_its_share_of_an_hour() {
        assert_eq!(not_before(1000, 60), 1060);
        assert_eq!(not_before(1000, 3600), 1001);
        assert_eq!(not_before(1000, 7), 1515);
        assert_eq!(not_before(1000, 0), 4600);
        assert_eq!(not_before(u64::MAX, 1), u64::MAX);
        // A machine that fails at once, every time, for ten hours.
        for an_hour in [1, 7, 60, 3600] {
            let resets = core::iter::successors(Some(0), |born| Some(not_before(*born, an_hour)));
            let count = resets.skip(1).take_while(|at| *at <= 36_000).count();
            assert!(count as u64 <= 10 * an_hour, "{count} of {an_hour}");
        }
    }
}
