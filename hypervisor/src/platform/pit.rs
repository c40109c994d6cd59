//! The 8254 interval timer and port 0x61, counting from guest time.
//!
//! Channel 0 interrupts, channel 2 serves calibration loops, channel 1 only counts.
//! See: Intel 8254 datasheet (231164-005).

use super::clock::GuestTime;
use crate::state::{State, StateError, Visitor};

/// Input clock in Hz.
const HZ: u128 = 1_193_182;
/// Shortest reload of a periodic count, about 10 µs: the guest must get to run between two interrupts.
const MIN_PERIOD: u64 = 12;

#[derive(Debug, Clone, Default)]
struct Channel {
    /// Operating mode 0–5.
    mode: u8,
    /// 1: low byte, 2: high byte, 3: low then high.
    access: u8,
    /// The count register as written; 0 stands for 65536.
    reload: u16,
    /// Low byte waiting for its high byte.
    low: u8,
    low_written: bool,
    /// Latched count and how many of its bytes are unread.
    latch: u16,
    latched: u8,
    read_high: bool,
    /// When the count was loaded; nothing counts before.
    start: Option<u64>,
    /// Expiries already turned into interrupts.
    fired: u64,
}

impl Channel {
    fn period(&self) -> u64 {
        if self.reload == 0 { 0x1_0000 } else { u64::from(self.reload) }
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn elapsed(&self, now: GuestTime) -> u64 {
        let ns = self.start.map_or(0, |start| now.since(GuestTime(start)));
        (u128::from(ns) * HZ / 1_000_000_000) as u64
    }

    fn count(&self, now: GuestTime) -> u16 {
        let (elapsed, period) = (self.elapsed(now), self.period());
        let left = match self.mode {
            2 => period - elapsed % period,
            3 => period - (elapsed % period * 2) % period,
            _ => period.wrapping_sub(elapsed),
        };
        left as u16
    }

    fn output(&self, now: GuestTime) -> bool {
        let (elapsed, period) = (self.elapsed(now), self.period());
        match self.mode {
            0 | 1 => self.start.is_some() && elapsed >= period,
            3 => elapsed % period < period.div_ceil(2),
            _ => true,
        }
    }

    fn deadline(&self) -> Option<GuestTime> {
        let start = self.start?;
        let period = if self.periodic() { self.period().max(MIN_PERIOD) } else { self.period() };
        if self.fired != 0 && !self.periodic() {
            return None;
        }
        let ticks = u128::from(self.fired + 1) * u128::from(period);
        let ns = (ticks * 1_000_000_000).div_ceil(HZ);
        u64::try_from(ns).ok().and_then(|ns| start.checked_add(ns)).map(GuestTime)
    }

    fn write(&mut self, value: u8, now: GuestTime) {
        let reload = match self.access {
            1 => u16::from(value),
            2 => u16::from(value) << 8,
            _ if !self.low_written => {
                self.low = value;
                self.low_written = true;
                return;
            }
            _ => u16::from_le_bytes([self.low, value]),
        };
        self.low_written = false;
        self.reload = reload;
        self.restart(now);
    }

    fn restart(&mut self, now: GuestTime) {
        self.start = Some(now.0);
        self.fired = 0;
    }

    fn read(&mut self, now: GuestTime) -> u8 {
        let (count, latched) = if self.latched > 0 { (self.latch, true) } else { (self.count(now), false) };
        let high = match self.access {
            1 => false,
            2 => true,
            _ => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if latched {
            self.latched -= 1;
        }
        count.to_le_bytes()[usize::from(high)]
    }

    fn latch(&mut self, now: GuestTime) {
        if self.latched == 0 {
            self.latch = self.count(now);
            self.latched = if self.access == 3 { 2 } else { 1 };
        }
    }

    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u8(&mut self.mode)?;
        v.u8(&mut self.access)?;
        v.u16(&mut self.reload)?;
        v.u8(&mut self.low)?;
        v.bool(&mut self.low_written)?;
        v.u16(&mut self.latch)?;
        v.u8(&mut self.latched)?;
        v.bool(&mut self.read_high)?;
        v.option_u64(&mut self.start)?;
        v.u64(&mut self.fired)?;
        // One interrupt takes at least a nanosecond, so an honest count stays far below this.
        if self.fired > u64::MAX / 2 { Err(StateError::BadValue("the interval timer's count")) } else { Ok(()) }
    }
}

/// The interval timer.
#[derive(Debug, Clone, Default)]
pub struct Pit {
    channels: [Channel; 3],
    /// Port 0x61, bits 0 (gate of channel 2) and 1 (speaker).
    port_b: u8,
}

impl Pit {
    /// Reads port 0x40 to 0x43 or 0x61.
    pub fn read(&mut self, now: GuestTime, port: u16) -> u8 {
        match port {
            0x40..=0x42 => self.channels[usize::from(port - 0x40)].read(now),
            // Bit 4 toggles with each memory refresh, every 15 µs.
            0x61 => {
                let refresh = ((now.0 / 15_085) & 1) as u8;
                self.port_b | refresh << 4 | u8::from(self.channels[2].output(now)) << 5
            }
            _ => 0xFF,
        }
    }

    /// Writes to one of these ports.
    pub fn write(&mut self, now: GuestTime, port: u16, value: u8) {
        match port {
            0x40..=0x42 => self.channels[usize::from(port - 0x40)].write(value, now),
            0x43 => self.command(now, value),
            0x61 => {
                let gate_rises = value & 1 != 0 && self.port_b & 1 == 0;
                self.port_b = value & 3;
                if gate_rises && self.channels[2].start.is_some() {
                    self.channels[2].restart(now);
                }
            }
            _ => {}
        }
    }

    fn command(&mut self, now: GuestTime, value: u8) {
        let select = value >> 6;
        if select == 3 {
            // Read-back: latch the count (bit 5 clear) of each selected channel. Status is not kept.
            for (index, channel) in self.channels.iter_mut().enumerate() {
                if value & 0x20 == 0 && value & 2 << index != 0 {
                    channel.latch(now);
                }
            }
            return;
        }
        let channel = &mut self.channels[usize::from(select)];
        match value >> 4 & 3 {
            0 => channel.latch(now),
            access => {
                let mode = value >> 1 & 7;
                // Modes 2 and 3 ignore their top bit.
                let mode = if mode > 5 { mode & 3 } else { mode };
                *channel = Channel { mode, access, ..Channel::default() };
            }
        }
    }

    /// When channel 0 interrupts next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        // Unused on most guests: keep this path short, it runs at every exit.
        self.channels[0].start?;
        self.channels[0].deadline()
    }

    /// Whether channel 0 interrupts at `now`. Missed periods count once.
    pub fn advance(&mut self, now: GuestTime) -> bool {
        let channel = &mut self.channels[0];
        if channel.start.is_none() || channel.deadline().is_none_or(|due| due > now) {
            return false;
        }
        channel.fired = (channel.elapsed(now) / channel.period().max(MIN_PERIOD)).max(channel.fired + 1);
        true
    }
}

impl State for Pit {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        self.channels.iter_mut().try_for_each(|channel| channel.visit(v))?;
        v.u8(&mut self.port_b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

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
}
