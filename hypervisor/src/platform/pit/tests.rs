//! The timer by its datasheet.

use super::*;

const MS: u64 = 1_000_000;

/// The moment when the timer's input clock has ticked so often.
fn tick(ticks: u64) -> GuestTime {
    GuestTime((u128::from(ticks) * 1_000_000_000).div_ceil(HZ) as u64)
}

fn load(pit: &mut Pit, now: GuestTime, channel: u16, count: u16) {
    for byte in count.to_le_bytes() {
        pit.write(now, 0x40 + channel, byte);
    }
}

fn read(pit: &mut Pit, now: GuestTime, channel: u16) -> u16 {
    u16::from_le_bytes([0, 1].map(|_| pit.read(now, 0x40 + channel)))
}

fn out(pit: &mut Pit, now: GuestTime) -> bool {
    pit.read(now, 0x61) & 0x20 != 0
}

fn status(pit: &mut Pit, now: GuestTime, channel: u16) -> u8 {
    pit.write(now, 0x43, 0xE0 | 2 << channel);
    pit.read(now, 0x40 + channel)
}

#[test]
fn channel_2_ends_a_calibration_loop() {
    let mut pit = Pit::default();
    let start = GuestTime(7 * MS);
    pit.write(start, 0x61, 1);
    pit.write(start, 0x43, 0xB0);
    // 50 ms.
    pit.write(start, 0x42, (59_659u16 & 0xFF) as u8);
    pit.write(start, 0x42, (59_659u16 >> 8) as u8);
    assert_eq!(pit.read(start.after(49 * MS), 0x61) & 0x20, 0);
    assert_eq!(pit.read(start.after(51 * MS), 0x61) & 0x20, 0x20);
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn channel_0_interrupts_periodically() {
    let mut pit = Pit::default();
    pit.write(GuestTime(0), 0x43, 0x34);
    pit.write(GuestTime(0), 0x40, (11_932u16 & 0xFF) as u8);
    pit.write(GuestTime(0), 0x40, (11_932u16 >> 8) as u8);
    for n in 1..100u64 {
        let due = pit.next_deadline().unwrap();
        assert!(due.0.abs_diff(n * 10_000_150) < 20_000, "{due:?}");
        assert!(!pit.advance(GuestTime(due.0 - 1)));
        assert!(pit.advance(due));
        assert!(!pit.advance(due));
    }
    let late = GuestTime(5000 * MS);
    assert!(pit.advance(late));
    assert!(!pit.advance(late));
    assert!(pit.next_deadline().unwrap() > late);
}

#[test]
fn counts_read_low_then_high_and_latch() {
    let mut pit = Pit::default();
    pit.write(GuestTime(0), 0x43, 0x34);
    pit.write(GuestTime(0), 0x40, 0);
    pit.write(GuestTime(0), 0x40, 0x10);
    let now = GuestTime(MS);
    pit.write(now, 0x43, 0x00);
    let later = GuestTime(2 * MS);
    let latched = u16::from_le_bytes([pit.read(later, 0x40), pit.read(later, 0x40)]);
    assert_eq!(latched, 0x1000 - 1193);
    let live = u16::from_le_bytes([pit.read(later, 0x40), pit.read(later, 0x40)]);
    assert_eq!(live, 0x1000 - 2386);
}

/// "Read-Back Command", figures 9 to 12.
#[test]
fn read_back_latches_status_and_counts() {
    let mut pit = Pit::default();
    for channel in 0..3u8 {
        pit.write(tick(0), 0x43, channel << 6 | 0x30 | 2 << 1);
        load(&mut pit, tick(0), u16::from(channel), 1000 * (u16::from(channel) + 1));
    }
    pit.write(tick(0), 0x61, 1);
    // Status and count of all three.
    pit.write(tick(100), 0x43, 0xCE);
    for channel in 0..3 {
        assert_eq!(pit.read(tick(150), 0x40 + channel), 0xB4, "OUT, both bytes, mode 2");
        let expected = 1000 * (channel + 1) - if channel == 2 { 99 } else { 100 };
        assert!(read(&mut pit, tick(200), channel).abs_diff(expected) <= 1, "latched, channel {channel}");
    }
    assert_eq!(read(&mut pit, tick(200), 1), 1800, "not latched any more");
    // Counts only; a second latch has no effect until the first is read.
    pit.write(tick(300), 0x43, 0xD2);
    pit.write(tick(400), 0x43, 0xC2);
    assert_eq!(pit.read(tick(410), 0x40), 0xB4, "the status was not latched before");
    assert_eq!(read(&mut pit, tick(410), 0), 700);
    // Nothing at all is latched by bits that are both set.
    pit.write(tick(420), 0x43, 0xFE);
    assert_eq!(read(&mut pit, tick(430), 0), 570);
}

/// A latch between the two bytes of a live read.
#[test]
fn a_latched_count_is_whole() {
    let mut pit = Pit::default();
    pit.write(tick(0), 0x43, 0x34);
    load(&mut pit, tick(0), 0, 0x1234);
    assert_eq!(pit.read(tick(1), 0x40), 0x33);
    pit.write(tick(1), 0x43, 0x00);
    assert_eq!(read(&mut pit, tick(0x134), 0), 0x1233);
}

#[test]
fn status_tells_what_was_programmed() {
    let mut pit = Pit::default();
    // Mode 0: OUT low, null count, low byte only, BCD.
    pit.write(tick(0), 0x43, 0x11);
    assert_eq!(status(&mut pit, tick(0), 0), 0x51);
    pit.write(tick(0), 0x40, 0x25);
    assert_eq!(status(&mut pit, tick(24), 0), 0x11);
    assert_eq!(status(&mut pit, tick(25), 0), 0x91, "the terminal count");
    // A count of two bytes is none before both are there.
    pit.write(tick(30), 0x43, 0x3A);
    pit.write(tick(30), 0x40, 1);
    assert_eq!(status(&mut pit, tick(30), 0), 0xFA, "mode 5 waits with OUT high");
    // Modes 6 and 7 are 2 and 3, and told as they were written.
    pit.write(tick(30), 0x43, 0x2E);
    assert_eq!(status(&mut pit, tick(30), 0), 0xEE);
}

#[test]
fn counts_in_decimal() {
    let mut pit = Pit::default();
    pit.write(tick(0), 0x43, 0x31);
    load(&mut pit, tick(0), 0, 0x1000);
    assert_eq!(read(&mut pit, tick(1), 0), 0x0999);
    assert_eq!(pit.next_deadline(), Some(tick(1000)));
    assert_eq!(read(&mut pit, tick(1001), 0), 0x9999, "it counts on");
    pit.write(tick(2000), 0x43, 0x35);
    load(&mut pit, tick(2000), 0, 0);
    assert!(pit.next_deadline().unwrap().0.abs_diff(tick(12_000).0) <= 1, "0 is 10 000");
}

/// "Operation summary of GATE", table 3 (figure 21).
#[test]
fn the_gate_holds_counts() {
    for mode in [0, 4] {
        let mut pit = Pit::default();
        pit.write(tick(0), 0x43, 0xB0 | mode << 1);
        load(&mut pit, tick(0), 2, 100);
        assert_eq!(read(&mut pit, tick(50), 2), 100, "mode {mode}: the gate is low");
        pit.write(tick(50), 0x61, 1);
        assert_eq!(read(&mut pit, tick(80), 2), 70);
        pit.write(tick(80), 0x61, 0);
        assert!(read(&mut pit, tick(200), 2).abs_diff(70) <= 1);
        pit.write(tick(200), 0x61, 1);
        assert!(read(&mut pit, tick(220), 2).abs_diff(50) <= 1, "it goes on");
        assert_eq!(out(&mut pit, tick(220)), mode == 4);
        assert!(out(&mut pit, tick(280)));
    }
    for mode in [2, 3] {
        let mut pit = Pit::default();
        pit.write(tick(0), 0x61, 1);
        pit.write(tick(0), 0x43, 0xB0 | mode << 1);
        load(&mut pit, tick(0), 2, 100);
        assert_eq!(out(&mut pit, tick(70)), mode == 2);
        pit.write(tick(70), 0x61, 0);
        assert!(out(&mut pit, tick(71)), "mode {mode}: OUT goes high at once");
        pit.write(tick(90), 0x61, 1);
        assert!(read(&mut pit, tick(91), 2).abs_diff(100) <= 2, "and it begins anew");
    }
}

/// Modes 1 and 5 wait for the gate; channel 0 has none that rises.
#[test]
fn triggered_modes() {
    for mode in [1, 5] {
        let mut pit = Pit::default();
        pit.write(tick(0), 0x61, 1);
        pit.write(tick(0), 0x43, 0xB0 | mode << 1);
        load(&mut pit, tick(0), 2, 100);
        assert!(out(&mut pit, tick(150)), "mode {mode}");
        pit.write(tick(200), 0x61, 0);
        pit.write(tick(200), 0x61, 1);
        assert_eq!(out(&mut pit, tick(250)), mode == 5);
        assert!(read(&mut pit, tick(250), 2).abs_diff(50) <= 1);
        // Retriggered.
        pit.write(tick(260), 0x61, 0);
        pit.write(tick(260), 0x61, 1);
        assert_eq!(out(&mut pit, tick(320)), mode == 5);
        assert!(out(&mut pit, tick(362)));
        pit.write(tick(400), 0x43, 0x30 | mode << 1);
        load(&mut pit, tick(400), 0, 100);
        assert_eq!(pit.next_deadline(), None);
    }
}

#[test]
fn the_square_wave() {
    let mut pit = Pit::default();
    pit.write(tick(0), 0x61, 1);
    pit.write(tick(0), 0x43, 0xB6);
    load(&mut pit, tick(0), 2, 5);
    let seen: [(u16, bool); 10] = core::array::from_fn(|at| {
        let now = GuestTime(tick(at as u64).0 + 100);
        (read(&mut pit, now, 2), out(&mut pit, now))
    });
    let period = [(4, true), (2, true), (0, true), (4, false), (2, false)];
    assert_eq!(seen, [period, period].concat()[..]);
}

/// A new count is used from the end of the period on.
#[test]
fn a_periodic_count_changes_at_the_end_of_its_period() {
    let mut pit = Pit::default();
    pit.write(tick(0), 0x43, 0x34);
    load(&mut pit, tick(0), 0, 1000);
    load(&mut pit, tick(300), 0, 200);
    assert_eq!(read(&mut pit, tick(400), 0), 600);
    assert_eq!(status(&mut pit, tick(400), 0) & 0x40, 0x40, "null count");
    for due in [1000, 1200, 1400] {
        assert!(pit.next_deadline().unwrap().0.abs_diff(tick(due).0) <= 1, "{due}");
        assert!(pit.advance(GuestTime(tick(due).0 + 1)));
        assert!(!pit.advance(GuestTime(tick(due).0 + 1)));
    }
    assert_eq!(status(&mut pit, tick(1500), 0) & 0x40, 0);
    assert!(read(&mut pit, tick(1500), 0).abs_diff(100) <= 1);
}
