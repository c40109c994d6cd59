//! The clock by its datasheet.

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
    assert_eq!(flags, C_REQUEST | B_PERIODIC | B_ALARM | B_UPDATE);
    assert!(!rtc.line());
}

#[test]
fn the_periodic_interrupt_keeps_its_rate() {
    let mut rtc = Rtc::new(0);
    set(&mut rtc, GuestTime(1), 0x0B, B_PERIODIC);
    // Rate 6 is 1024 Hz: 976 562.5 ns.
    for tick in 1..=4096u64 {
        let due = GuestTime((tick * 1_953_125).div_ceil(2));
        assert_eq!(rtc.next_deadline(), Some(due));
        rtc.advance(GuestTime(due.0 - 1));
        assert!(!rtc.line());
        rtc.advance(due);
        assert!(rtc.line());
        assert_ne!(get(&mut rtc, due, 0x0C) & B_PERIODIC, 0);
    }
}

/// Each selection's frequency. See: table 5, the time base of 32.768 kHz.
#[test]
fn rates_of_the_periodic_interrupt() {
    let hertz = [0, 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2];
    for (rate, hertz) in (0..).zip(hertz) {
        let mut rtc = Rtc::new(0);
        set(&mut rtc, GuestTime(0), 0x0A, 0x20 | rate);
        set(&mut rtc, GuestTime(0), 0x0B, B_PERIODIC);
        let period = (hertz > 0).then(|| GuestTime(SECOND.div_ceil(hertz)));
        assert_eq!(rtc.next_deadline().filter(|due| due.0 < u64::MAX), period, "selection {rate}");
    }
}

/// "The flag bits are set independent of the enable bits". A program that polls sees them, and reading clears them.
#[test]
fn flags_are_set_without_interrupts() {
    let mut rtc = Rtc::new(0);
    set(&mut rtc, GuestTime(0), 0x0A, 0x26);
    assert_eq!(get(&mut rtc, GuestTime(500_000), 0x0C), 0);
    assert_eq!(get(&mut rtc, GuestTime(976_563), 0x0C), B_PERIODIC);
    assert_eq!(get(&mut rtc, GuestTime(976_564), 0x0C), 0, "it was read");
    assert_eq!(get(&mut rtc, GuestTime(SECOND - 1), 0x0C), B_PERIODIC);
    assert_eq!(get(&mut rtc, GuestTime(SECOND), 0x0C), B_PERIODIC | B_UPDATE);
    assert_eq!(rtc.next_deadline(), None, "nothing to stop for");
    assert!(!rtc.line());
}

#[test]
fn an_alarm_is_noticed_when_it_is_looked_for_late() {
    // 1970-01-01 00:00:00; the alarm at 01:02:03.
    let mut rtc = Rtc::new(0);
    for (register, value) in [(5, 0x01), (3, 0x02), (1, 0x03)] {
        set(&mut rtc, GuestTime(0), register, value);
    }
    let at = (3600 + 120 + 3) * SECOND;
    assert_eq!(get(&mut rtc, GuestTime(at - 1), 0x0C) & B_ALARM, 0);
    assert_eq!(get(&mut rtc, GuestTime(at + 100 * SECOND), 0x0C) & B_ALARM, B_ALARM);
    assert_eq!(get(&mut rtc, GuestTime(at + 200 * SECOND), 0x0C) & B_ALARM, 0);
    // Days later.
    assert_eq!(get(&mut rtc, GuestTime(5 * 86_400 * SECOND), 0x0C) & B_ALARM, B_ALARM);
    // No hour has this number.
    set(&mut rtc, GuestTime(5 * 86_400 * SECOND), 5, 0x33);
    get(&mut rtc, GuestTime(5 * 86_400 * SECOND), 0x0C);
    assert_eq!(get(&mut rtc, GuestTime(9 * 86_400 * SECOND), 0x0C) & B_ALARM, 0);
}

/// IRQF is a function of flags and enable bits. See: "Register C".
#[test]
fn the_line_follows_flags_and_enables() {
    let mut rtc = Rtc::new(0);
    let now = GuestTime(3 * SECOND / 2);
    set(&mut rtc, now, 0x0B, B_24_HOURS | B_UPDATE);
    assert!(rtc.line(), "the flag was there already");
    set(&mut rtc, now, 0x0B, B_24_HOURS);
    assert!(!rtc.line());
    set(&mut rtc, now, 0x0B, B_24_HOURS | B_PERIODIC);
    assert!(rtc.line());
    assert_eq!(get(&mut rtc, now, 0x0C), C_REQUEST | B_PERIODIC | B_UPDATE);
    assert!(!rtc.line());
    // Changing the rate forgets nothing.
    let later = GuestTime(now.0 + 1_000_000);
    set(&mut rtc, later, 0x0A, 0x2F);
    assert!(rtc.line());
}

/// While the clock is being set it does not go on, and asks for no interrupt at the end of updates.
#[test]
fn setting_the_clock_stops_updates() {
    let mut rtc = Rtc::new(0);
    set(&mut rtc, GuestTime(0), 0x0B, B_24_HOURS | B_UPDATE | B_ALARM);
    set(&mut rtc, GuestTime(10), 0x0B, B_24_HOURS | B_UPDATE | B_ALARM | B_SET);
    assert_eq!(get(&mut rtc, GuestTime(10), 0x0B), B_24_HOURS | B_ALARM | B_SET, "SET clears the update's enable");
    assert_eq!(get(&mut rtc, GuestTime(9 * SECOND), 0x0C) & (B_UPDATE | B_ALARM), 0);
    assert_eq!(get(&mut rtc, GuestTime(10 * SECOND - 1), 0x0A) & 0x80, 0, "no update is in progress");
    set(&mut rtc, GuestTime(9 * SECOND), 0x0B, B_24_HOURS);
    assert_eq!(get(&mut rtc, GuestTime(9 * SECOND + 1), 0x0C) & B_UPDATE, 0);
    assert_eq!(get(&mut rtc, GuestTime(10 * SECOND), 0x0C) & B_UPDATE, B_UPDATE);
}

#[test]
fn a_reset_ends_interrupts_and_keeps_the_date() {
    let mut rtc = Rtc::new(1_709_251_198);
    set(&mut rtc, GuestTime(0), 0x0B, B_BINARY | B_PERIODIC | B_UPDATE);
    set(&mut rtc, GuestTime(0), 0x40, 0x5A);
    rtc.advance(GuestTime(SECOND));
    assert!(rtc.line());
    rtc.reset(GuestTime(SECOND));
    assert!(!rtc.line() && rtc.next_deadline().is_none());
    assert_eq!(get(&mut rtc, GuestTime(SECOND), 0x0C), 0);
    assert_eq!(date(&mut rtc, GuestTime(2 * SECOND)), [0x20, 0x24, 3, 1, 6, 0, 0, 0]);
    assert_eq!(get(&mut rtc, GuestTime(SECOND), 0x40), 0x5A, "the battery keeps the memory");
}

proptest! {
    #[test]
    fn civil_dates_round_trip(days in -700_000i64..5_000_000) {
        let (year, month, day) = civil_from_days(days);
        prop_assert_eq!(days_from_civil(year, month, day), days);
        prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day));
    }

    /// What a program sees does not depend on how often somebody looked in between.
    #[test]
    fn looks_leave_no_trace(
        enabled in any::<u8>(),
        rate in 0u8..16,
        alarm in prop::array::uniform3(prop_oneof![0u8..0x60, 0xC0u8..=0xFF]),
        times in prop::collection::vec(0u64..4_000_000_000, 1..12),
    ) {
        let start = |rtc: &mut Rtc| {
            set(rtc, GuestTime(0), 0x0A, 0x20 | rate);
            for (register, value) in [1, 3, 5].into_iter().zip(alarm) {
                set(rtc, GuestTime(0), register, value);
            }
            set(rtc, GuestTime(0), 0x0B, enabled & !B_SET);
        };
        let (mut looked, mut left) = (Rtc::new(0), Rtc::new(0));
        start(&mut looked);
        start(&mut left);
        let mut now = 0;
        for step in times {
            for part in 1..=3 {
                looked.advance(GuestTime(now + step / 4 * part));
                get(&mut looked, GuestTime(now + step / 4 * part), 0x0A);
            }
            now += step;
            prop_assert_eq!(get(&mut looked, GuestTime(now), 0x0C), get(&mut left, GuestTime(now), 0x0C));
            prop_assert_eq!(looked.line(), left.line());
        }
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
