//! Time: the TSC since start, and the date from the CMOS clock.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;

const NANOSECONDS: u64 = 1_000_000_000;

static TSC_HZ: AtomicU64 = AtomicU64::new(NANOSECONDS);

/// Learns the TSC's frequency from CPUID leaf 0x15 (SDM volume 3, 20.7.3). Without it 1 GHz is assumed, which is exact under
/// QEMU's `-icount shift=0`.
pub fn init() {
    if cpu::cpuid(0, 0).eax < 0x15 {
        return;
    }
    let leaf = cpu::cpuid(0x15, 0);
    let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx);
    if leaf.eax != 0 && hz != 0 {
        TSC_HZ.store((hz / u64::from(leaf.eax)).max(1), Ordering::Relaxed);
    }
}

/// TSC ticks per second.
#[must_use]
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// Converts a number of TSC ticks.
#[must_use]
pub fn ticks_to_nanoseconds(ticks: u64) -> u64 {
    match tsc_hz() {
        NANOSECONDS => ticks,
        hz => (u128::from(ticks) * u128::from(NANOSECONDS) / u128::from(hz)) as u64,
    }
}

/// Converts microseconds to TSC ticks, rounded up: at the tick a deadline has passed, by [`microseconds`] too.
#[must_use]
pub fn microseconds_to_ticks(microseconds: u64) -> u64 {
    (u128::from(microseconds) * u128::from(tsc_hz())).div_ceil(1_000_000) as u64
}

/// Time since the TSC was zero, in microseconds.
#[must_use]
pub fn microseconds() -> u64 {
    ticks_to_nanoseconds(cpu::rdtsc()) / 1000
}

/// Reads a CMOS register.
#[must_use]
pub fn cmos(register: u8) -> u8 {
    // SAFETY: the CMOS clock has no DMA.
    unsafe { cpu::outb(0x70, register) };
    cpu::inb(0x71)
}

/// Seconds, minutes, hours, day, month, year, and register B, read twice alike while no update goes on.
fn cmos_date() -> [u8; 7] {
    let read = || [0u8, 2, 4, 7, 8, 9, 0xb].map(cmos);
    loop {
        while cmos(0xa) & 0x80 != 0 {}
        let date = read();
        if date == read() {
            return date;
        }
    }
}

/// Seconds since 1970 by the CMOS clock, which is taken to run in UTC and this century.
#[must_use]
pub fn unix_seconds() -> u64 {
    let [seconds, minutes, hours, day, month, year, mode] = cmos_date();
    let number = |byte: u8| u64::from(if mode & 4 == 0 { (byte >> 4) * 10 + (byte & 15) } else { byte });
    let mut hour = number(hours & 0x7f);
    if mode & 2 == 0 {
        hour = hour % 12 + if hours & 0x80 != 0 { 12 } else { 0 };
    }
    let days = days_since_1970(2000 + number(year), number(month), number(day));
    ((days * 24 + hour) * 60 + number(minutes)) * 60 + number(seconds)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; the year is counted from March, so that leap days come last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.max(1) - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}
