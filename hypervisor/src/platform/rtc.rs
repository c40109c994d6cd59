//! The CMOS real-time clock: the date is the guest's birth date plus guest time.
//!
//! The flags of register C are functions of guest time, too, whether anybody is interrupted by them or polls them. See: Motorola MC146818A datasheet; the century byte at 0x32 is the PC's (named by the FADT).

use super::clock::GuestTime;
use crate::state::{State, StateError, Visitor};

/// Interrupt pin.
pub const PIN: u8 = 8;
/// Where the century is.
pub const CENTURY: u8 = 0x32;

const SECOND: u64 = 1_000_000_000;
/// Update-in-progress shows this long before the second changes.
const UPDATE_NS: u64 = 244_000;

/// The time base of 32.768 kHz, periodic interrupts at 1024 Hz.
const A_USUAL: u8 = 0x26;
const B_24_HOURS: u8 = 0x02;
const B_BINARY: u8 = 0x04;
const B_UPDATE: u8 = 0x10;
const B_ALARM: u8 = 0x20;
const B_PERIODIC: u8 = 0x40;
const B_SET: u8 = 0x80;
/// Register B's enable bits, and register C's flags.
const SOURCES: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
const C_REQUEST: u8 = 0x80;
/// Ticks of the time base a second.
const BASE_HZ: u128 = 32_768;
const SECONDS_A_DAY: u64 = 86_400;

/// Days from 1970-01-01 to the given civil date. Months beyond December run into the next year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years start in March, so that the leap day is the last one.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The civil date (year, month, day) of a day counted from 1970-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * month_from_march + 2) / 5 + 1)
}

/// The real-time clock and its CMOS memory.
#[derive(Debug, Clone)]
pub struct Rtc {
    index: u8,
    /// All 128 bytes; those of time and date are only meaningful while they are being set.
    cmos: [u8; 128],
    /// Seconds since 1970 at guest time 0, wrapping.
    epoch: i64,
    /// Up to here the flags of register C are known.
    seen: u64,
}

/// Registers that hold time and date.
const fn is_date(register: u8) -> bool {
    matches!(register, 0 | 2 | 4 | 6 | 7 | 8 | 9 | CENTURY)
}

impl Rtc {
    /// A clock that shows `start_unix_seconds` at guest time 0, in 24-hour BCD as firmware leaves it.
    #[must_use]
    pub fn new(start_unix_seconds: u64) -> Self {
        let mut cmos = [0; 128];
        cmos[0x0A] = A_USUAL;
        cmos[0x0B] = B_24_HOURS;
        // Dates beyond the year 9999 cannot be shown; the modulus keeps the arithmetic far from overflow.
        let epoch = (start_unix_seconds % 253_402_300_800) as i64;
        Self { index: 0, cmos, epoch, seen: 0 }
    }

    /// The date at guest time 0, in seconds since 1970; 0 for those before.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        u64::try_from(self.epoch).unwrap_or(0)
    }

    /// Reads port 0x70 (write-only: all ones) or 0x71.
    pub fn read(&mut self, now: GuestTime, port: u16) -> u8 {
        if port != 0x71 {
            return 0xFF;
        }
        match self.index {
            register if is_date(register) => {
                self.refresh(now);
                self.cmos[usize::from(register)]
            }
            0x0A => self.cmos[0x0A] | if self.updating(now) { 0x80 } else { 0 },
            // Reading the flags clears them, and the interrupt line with them.
            0x0C => {
                self.catch_up(now);
                let request = if self.line() { C_REQUEST } else { 0 };
                core::mem::take(&mut self.cmos[0x0C]) | request
            }
            // Battery and memory are good.
            0x0D => 0x80,
            register => self.cmos[usize::from(register & 0x7F)],
        }
    }

    /// Writes port 0x70 (index; the NMI mask in bit 7 is ignored) or 0x71.
    pub fn write(&mut self, now: GuestTime, port: u16, value: u8) {
        if port == 0x70 {
            self.index = value & 0x7F;
            return;
        }
        // What was due came by the registers as they were.
        self.catch_up(now);
        match self.index {
            register if is_date(register) => {
                self.refresh(now);
                self.cmos[usize::from(register)] = value;
                if self.cmos[0x0B] & B_SET == 0 {
                    self.set_clock(now);
                }
            }
            0x0A => self.cmos[0x0A] = value & 0x7F,
            0x0B => self.write_b(now, value),
            0x0C | 0x0D => {}
            register => self.cmos[usize::from(register & 0x7F)] = value,
        }
    }

    fn write_b(&mut self, now: GuestTime, value: u8) {
        self.refresh(now);
        // Who sets the clock is not told of ends of updates.
        let value = if value & B_SET == 0 { value } else { value & !B_UPDATE };
        let old = core::mem::replace(&mut self.cmos[0x0B], value);
        if old & B_SET != 0 && value & B_SET == 0 {
            self.set_clock(now);
        }
    }

    /// A reset of the machine: no interrupts, no flags, the modes as firmware leaves them. Date and memory stay.
    pub fn reset(&mut self, now: GuestTime) {
        self.index = 0;
        self.seen = now.0;
        self.cmos[0x0A] = A_USUAL;
        self.cmos[0x0B] = B_24_HOURS;
        self.cmos[0x0C] = 0;
    }

    const fn updating(&self, now: GuestTime) -> bool {
        self.cmos[0x0B] & B_SET == 0 && now.0 % SECOND >= SECOND - UPDATE_NS
    }

    /// Brings the date registers up to `now`, unless the guest is setting them.
    fn refresh(&mut self, now: GuestTime) {
        if self.cmos[0x0B] & B_SET != 0 {
            return;
        }
        let seconds = self.epoch.wrapping_add((now.0 / SECOND) as i64);
        let a_day = SECONDS_A_DAY as i64;
        let (days, second) = (seconds.div_euclid(a_day), seconds.rem_euclid(a_day));
        let (year, month, day) = civil_from_days(days);
        let [second, minute, hour] = self.time_of_day(second);
        let values = [
            (6, (days + 4).rem_euclid(7) + 1),
            (7, day),
            (8, month),
            (9, year.rem_euclid(100)),
            (CENTURY, year.div_euclid(100).rem_euclid(100)),
        ];
        for (register, value) in values {
            self.cmos[usize::from(register)] = self.encode(value as u8);
        }
        (self.cmos[0], self.cmos[2], self.cmos[4]) = (second, minute, hour);
    }

    /// What the registers show of a second of the day: second, minute, hour.
    const fn time_of_day(&self, second: i64) -> [u8; 3] {
        let hour = (second / 3600) as u8;
        let shown = if self.cmos[0x0B] & B_24_HOURS != 0 {
            self.encode(hour)
        } else {
            self.encode((hour + 11) % 12 + 1) | if hour >= 12 { 0x80 } else { 0 }
        };
        [self.encode((second % 60) as u8), self.encode((second / 60 % 60) as u8), shown]
    }

    /// Takes the date registers as the time at `now`. Nonsense in them gives some other date, nothing worse.
    fn set_clock(&mut self, now: GuestTime) {
        let field = |register: u8| i64::from(self.decode(self.cmos[usize::from(register)]));
        let hour = if self.cmos[0x0B] & B_24_HOURS != 0 {
            field(4)
        } else {
            let afternoon = i64::from(self.cmos[4] >> 7) * 12;
            i64::from(self.decode(self.cmos[4] & 0x7F)) % 12 + afternoon
        };
        let days = days_from_civil(field(CENTURY) * 100 + field(9), field(8), field(7));
        let seconds = days * 86_400 + hour * 3600 + field(2) * 60 + field(0);
        self.epoch = seconds.wrapping_sub((now.0 / SECOND) as i64);
    }

    const fn encode(&self, value: u8) -> u8 {
        if self.cmos[0x0B] & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    const fn decode(&self, value: u8) -> u8 {
        if self.cmos[0x0B] & B_BINARY != 0 { value } else { (value >> 4).wrapping_mul(10).wrapping_add(value & 0xF) }
    }

    /// Period of the periodic interrupt in ticks of the time base; `None` when the rate selection is off.
    const fn period(&self) -> Option<u64> {
        match self.cmos[0x0A] & 0xF {
            0 => None,
            // The two fastest selections repeat 8 and 9 with this time base.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// When a source is due that may interrupt and has not raised its flag yet.
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        // Unused on most guests: keep this path short, it runs at every exit.
        let awaited = self.cmos[0x0B] & !self.cmos[0x0C] & SOURCES;
        if awaited == 0 {
            return None;
        }
        let period = self.period().filter(|_| awaited & B_PERIODIC != 0);
        let periodic = period.and_then(|period| base_time((base_ticks(self.seen) / period + 1).checked_mul(period)?));
        let updates = awaited & (B_ALARM | B_UPDATE) != 0 && self.cmos[0x0B] & B_SET == 0;
        let update = (self.seen / SECOND + 1).checked_mul(SECOND).filter(|_| updates);
        periodic.into_iter().chain(update).min().map(GuestTime)
    }

    /// Raises the interrupt flags that are due at `now`, when one of them may interrupt.
    pub fn advance(&mut self, now: GuestTime) {
        if self.next_deadline().is_some_and(|due| due <= now) {
            self.catch_up(now);
        }
    }

    /// Sets the flags that came up until `now`.
    fn catch_up(&mut self, now: GuestTime) {
        let seen = core::mem::replace(&mut self.seen, now.0);
        if self.period().is_some_and(|period| base_ticks(seen) / period < base_ticks(now.0) / period) {
            self.cmos[0x0C] |= B_PERIODIC;
        }
        let (old, new) = (seen / SECOND, now.0 / SECOND);
        if self.cmos[0x0B] & B_SET == 0 && old < new {
            self.cmos[0x0C] |= B_UPDATE;
            // Whatever the alarm is, it comes back each day.
            let first = new - (new - old - 1).min(SECONDS_A_DAY - 1);
            if self.cmos[0x0C] & B_ALARM == 0 && self.alarm_within(first, new) {
                self.cmos[0x0C] |= B_ALARM;
            }
        }
    }

    /// Whether the alarm is for one of these seconds of guest time, of a day at most. Alarm bytes with both top bits set match
    /// anything.
    fn alarm_within(&self, first: u64, last: u64) -> bool {
        let matches = |register: usize, value: u8| {
            let alarm: u8 = self.cmos[register];
            alarm & 0xC0 == 0xC0 || alarm == value
        };
        if !(0..60).any(|second| matches(1, self.encode(second))) {
            return false;
        }
        let a_day = SECONDS_A_DAY as i64;
        let mut at = self.epoch.wrapping_add(first as i64).rem_euclid(a_day);
        let end = at + (last - first) as i64;
        while at <= end {
            let [second, minute, hour] = self.time_of_day(at % a_day);
            let step = match (matches(5, hour), matches(3, minute), matches(1, second)) {
                (false, ..) => 3600,
                (true, false, _) => 60,
                (true, true, false) => 1,
                (true, true, true) => return true,
            };
            at = at / step * step + step;
        }
        false
    }

    /// The interrupt line: a flag whose source is enabled.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.cmos[0x0C] & self.cmos[0x0B] & SOURCES != 0
    }
}

/// Ticks of the time base until a guest time.
const fn base_ticks(ns: u64) -> u64 {
    (ns as u128 * BASE_HZ / SECOND as u128) as u64
}

/// The guest time of a tick of the time base, if there is such a time.
fn base_time(ticks: u64) -> Option<u64> {
    u64::try_from((u128::from(ticks) * u128::from(SECOND)).div_ceil(BASE_HZ)).ok()
}

impl State for Rtc {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u8(&mut self.index)?;
        v.bytes(&mut self.cmos)?;
        let mut epoch = self.epoch as u64;
        v.u64(&mut epoch)?;
        self.epoch = epoch as i64;
        v.u64(&mut self.seen)?;
        if self.index > 0x7F { Err(StateError::BadValue("the clock's index")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
