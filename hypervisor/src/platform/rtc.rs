//! The CMOS real-time clock: the date is the guest's birth date plus guest time.
//!
//! See: Motorola MC146818A datasheet; the century byte at 0x32 is the PC's (named by the FADT).

use super::clock::GuestTime;
use crate::state::{State, StateError, Visitor};

/// Interrupt pin.
pub const PIN: u8 = 8;
/// Where the century is.
pub const CENTURY: u8 = 0x32;

const SECOND: u64 = 1_000_000_000;
/// Update-in-progress shows this long before the second changes.
const UPDATE_NS: u64 = 244_000;

const B_24_HOURS: u8 = 0x02;
const B_BINARY: u8 = 0x04;
const B_UPDATE: u8 = 0x10;
const B_ALARM: u8 = 0x20;
const B_PERIODIC: u8 = 0x40;
const B_SET: u8 = 0x80;
const C_REQUEST: u8 = 0x80;

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
    /// Up to here interrupt sources were looked at, while one of them was enabled.
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
        cmos[0x0A] = 0x26;
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
            0x0C => core::mem::take(&mut self.cmos[0x0C]),
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
        match self.index {
            register if is_date(register) => {
                self.refresh(now);
                self.cmos[usize::from(register)] = value;
                if self.cmos[0x0B] & B_SET == 0 {
                    self.set_clock(now);
                }
            }
            0x0A => {
                self.cmos[0x0A] = value & 0x7F;
                self.seen = now.0;
            }
            0x0B => self.write_b(now, value),
            0x0C | 0x0D => {}
            register => self.cmos[usize::from(register & 0x7F)] = value,
        }
    }

    fn write_b(&mut self, now: GuestTime, value: u8) {
        self.refresh(now);
        let old = core::mem::replace(&mut self.cmos[0x0B], value);
        if old & B_SET != 0 && value & B_SET == 0 {
            self.set_clock(now);
        }
        self.seen = now.0;
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
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        let hour = second / 3600;
        let values = [
            (0, second % 60),
            (2, second / 60 % 60),
            (6, (days + 4).rem_euclid(7) + 1),
            (7, day),
            (8, month),
            (9, year.rem_euclid(100)),
            (CENTURY, year.div_euclid(100).rem_euclid(100)),
        ];
        for (register, value) in values {
            self.cmos[usize::from(register)] = self.encode(value as u8);
        }
        self.cmos[4] = if self.cmos[0x0B] & B_24_HOURS != 0 {
            self.encode(hour as u8)
        } else {
            self.encode(((hour + 11) % 12 + 1) as u8) | if hour >= 12 { 0x80 } else { 0 }
        };
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

    /// Period of the periodic interrupt in ns, rounded down; `None` when the rate selection is off.
    const fn period(&self) -> Option<u64> {
        match self.cmos[0x0A] & 0xF {
            0 => None,
            // The two fastest selections repeat 8 and 9 with the 32 kHz base.
            rate @ 1..=2 => Some(SECOND / (32_768 >> (rate + 6))),
            rate => Some(SECOND / (32_768 >> (rate - 1))),
        }
    }

    /// When an enabled interrupt source must be looked at next.
    #[must_use]
    pub const fn next_deadline(&self) -> Option<GuestTime> {
        let enabled = self.cmos[0x0B];
        if enabled & (B_PERIODIC | B_ALARM | B_UPDATE) == 0 {
            return None;
        }
        let mut next = u64::MAX;
        if enabled & B_PERIODIC != 0
            && let Some(period) = self.period()
        {
            next = (self.seen / period + 1).saturating_mul(period);
        }
        if enabled & (B_ALARM | B_UPDATE) != 0 && enabled & B_SET == 0 {
            let second = (self.seen / SECOND + 1).saturating_mul(SECOND);
            next = if second < next { second } else { next };
        }
        Some(GuestTime(next))
    }

    /// Raises the interrupt flags that are due at `now`.
    pub fn advance(&mut self, now: GuestTime) {
        if self.next_deadline().is_none_or(|due| due > now) {
            return;
        }
        let seen = core::mem::replace(&mut self.seen, now.0);
        let mut flags = 0;
        if let Some(period) = self.period()
            && seen / period != now.0 / period
        {
            flags |= B_PERIODIC;
        }
        if self.cmos[0x0B] & B_SET == 0 && seen / SECOND != now.0 / SECOND {
            flags |= B_UPDATE;
            self.refresh(now);
            if self.alarm_matches() {
                flags |= B_ALARM;
            }
        }
        self.cmos[0x0C] |= flags;
        if self.cmos[0x0C] & self.cmos[0x0B] & (B_PERIODIC | B_ALARM | B_UPDATE) != 0 {
            self.cmos[0x0C] |= C_REQUEST;
        }
    }

    /// Alarm bytes with both top bits set match anything.
    fn alarm_matches(&self) -> bool {
        [(1, 0), (3, 2), (5, 4)].iter().all(|&(alarm, time)| {
            let alarm: u8 = self.cmos[alarm];
            alarm & 0xC0 == 0xC0 || alarm == self.cmos[time]
        })
    }

    /// The interrupt line.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.cmos[0x0C] & C_REQUEST != 0
    }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(rtc: &mut Rtc, now: GuestTime, register: u8) -> u8 {
        rtc.write(now, 0x70, register);
        rtc.read(now, 0x71)
    }

    fn set(rtc: &mut Rtc, now: GuestTime, register: u8, value: u8) {
        rtc.write(now, 0x70, register);
        rtc.write(now, 0x71, value);
    }

    fn date(rtc: &mut Rtc, now: GuestTime) -> [u8; 8] {
        [CENTURY, 9, 8, 7, 6, 4, 2, 0].map(|register| get(rtc, now, register))
    }

    #[test]
    fn shows_the_date_in_bcd() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let mut rtc = Rtc::new(1_709_251_198);
        assert_eq!(date(&mut rtc, GuestTime(0)), [0x20, 0x24, 2, 0x29, 5, 0x23, 0x59, 0x58]);
        assert_eq!(date(&mut rtc, GuestTime(2 * SECOND)), [0x20, 0x24, 3, 1, 6, 0, 0, 0]);
        assert_eq!(get(&mut rtc, GuestTime(SECOND - 1), 0x0A), 0xA6);
        assert_eq!(get(&mut rtc, GuestTime(SECOND), 0x0A), 0x26);
    }

    #[test]
    fn can_be_set() {
        let mut rtc = Rtc::new(0);
        let now = GuestTime(5 * SECOND);
        set(&mut rtc, now, 0x0B, B_SET | B_BINARY);
        for (register, value) in [(CENTURY, 20), (9, 99), (8, 12), (7, 31), (4, 0x80 | 11), (2, 59), (0, 59)] {
            set(&mut rtc, now, register, value);
        }
        set(&mut rtc, GuestTime(6 * SECOND), 0x0B, B_BINARY | B_24_HOURS | B_SET);
        set(&mut rtc, GuestTime(6 * SECOND), 4, 23);
        set(&mut rtc, GuestTime(6 * SECOND), 0x0B, B_BINARY | B_24_HOURS);
        assert_eq!(date(&mut rtc, GuestTime(7 * SECOND))[..4], [21, 0, 1, 1]);
    }

    #[test]
    fn update_and_alarm_interrupt() {
        let mut rtc = Rtc::new(0);
        assert_eq!(rtc.next_deadline(), None);
        set(&mut rtc, GuestTime(100), 5, 0xFF);
        set(&mut rtc, GuestTime(100), 3, 0xFF);
        set(&mut rtc, GuestTime(100), 1, 0x03);
        set(&mut rtc, GuestTime(100), 0x0B, B_ALARM | B_24_HOURS);
        for second in 1..=3 {
            assert!(!rtc.line());
            assert_eq!(rtc.next_deadline(), Some(GuestTime(second * SECOND)));
            rtc.advance(GuestTime(second * SECOND));
        }
        assert!(rtc.line());
        let flags = get(&mut rtc, GuestTime(3 * SECOND), 0x0C);
        assert_eq!(flags & !B_PERIODIC, C_REQUEST | B_ALARM | B_UPDATE);
        assert!(!rtc.line());
    }

    #[test]
    fn periodic_rate() {
        let mut rtc = Rtc::new(0);
        set(&mut rtc, GuestTime(1), 0x0B, B_PERIODIC);
        // Rate 6 is 1024 Hz.
        assert_eq!(rtc.next_deadline(), Some(GuestTime(976_562)));
        rtc.advance(GuestTime(976_562));
        assert!(rtc.line());
    }

    proptest! {
        #[test]
        fn civil_dates_round_trip(days in -700_000i64..5_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert_eq!(days_from_civil(year, month, day), days);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day));
        }

        #[test]
        fn any_writes_are_harmless(writes in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u64>()), 0..40)) {
            let mut rtc = Rtc::new(u64::MAX);
            for (register, value, time) in writes {
                set(&mut rtc, GuestTime(time), register, value);
                get(&mut rtc, GuestTime(time), register);
                rtc.advance(GuestTime(time));
            }
        }
    }
}
