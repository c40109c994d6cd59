//! The 8254 interval timer and port 0x61, counting from guest time.
//!
//! Channel 0 interrupts, channel 2 serves calibration loops and has its gate at port 0x61, channel 1 only counts.
//! A count is loaded when it is written, and not with the input clock's next tick. See: Intel 8254 datasheet (231164-005).

use super::clock::GuestTime;
use crate::state::{State, StateError, Visitor};

/// Input clock in Hz.
const HZ: u128 = 1_193_182;
const SECOND: u128 = 1_000_000_000;
/// Shortest reload of a periodic count, about 10 µs: the guest must get to run between two interrupts.
const MIN_PERIOD: u64 = 12;
/// A count waits for the gate to rise.
const AT_TRIGGER: u64 = u64::MAX;

const STATUS_OUTPUT: u8 = 1 << 7;
/// The count that was written is not the one that is counted.
const STATUS_NULL: u8 = 1 << 6;
/// Port 0x61: the gate of channel 2, and all that can be written.
const GATE: u8 = 1 << 0;
const PORT_B: u8 = 0x0F;

#[derive(Debug, Clone, Default)]
struct Channel {
    /// The low six bits of the control word: bytes to access, mode, decimal.
    control: u8,
    /// The count register as it was written.
    count: u16,
    /// Low byte waiting for its high byte.
    low: u8,
    low_written: bool,
    /// The count that comes next, and when.
    next: u16,
    next_at: Option<u64>,
    /// Latched count and how many of its bytes are unread; latched status.
    latch: u16,
    latched: u8,
    status: Option<u8>,
    read_high: bool,
    gate: bool,
    /// Nanoseconds that a loaded count was counted before `since`.
    ran: Option<u64>,
    /// Since when it is counted, if the gate lets it.
    since: Option<u64>,
    /// Expiries already turned into interrupts.
    fired: u64,
}

/// Nanoseconds until the input clock has ticked so often.
const fn ns(ticks: u64) -> u128 {
    (ticks as u128 * SECOND).div_ceil(HZ)
}

/// The value of four decimal digits.
fn from_decimal(digits: u16) -> u64 {
    let digit = |place: u32| (digits >> (4 * place) & 0xF) as u64;
    digit(0) + 10 * digit(1) + 100 * digit(2) + 1000 * digit(3)
}

const fn to_decimal(value: u64) -> u16 {
    let (low, high) = (value % 100, value / 100 % 100);
    ((low % 10) | (low / 10) << 4 | (high % 10) << 8 | (high / 10) << 12) as u16
}

impl Channel {
    /// 1: low byte, 2: high byte, else low then high.
    const fn access(&self) -> u8 {
        self.control >> 4
    }

    /// Operating mode 0–5: modes 2 and 3 ignore their top bit.
    const fn mode(&self) -> u8 {
        match self.control >> 1 & 7 {
            mode @ 0..=5 => mode,
            mode => mode & 3,
        }
    }

    const fn is_periodic(&self) -> bool {
        matches!(self.mode(), 2 | 3)
    }

    /// Counting begins when the gate rises, and goes on whatever it does.
    const fn is_triggered(&self) -> bool {
        matches!(self.mode(), 1 | 5)
    }

    /// How many values there are.
    const fn modulus(&self) -> u64 {
        if self.control & 1 != 0 { 10_000 } else { 0x1_0000 }
    }

    fn period(&self) -> u64 {
        let value = if self.control & 1 != 0 { from_decimal(self.count) } else { self.count as u64 };
        if value == 0 { self.modulus() } else { value }
    }

    /// Ticks of the input clock that were counted.
    fn elapsed(&self, now: GuestTime) -> u64 {
        let running = self.since.map_or(0, |since| now.since(GuestTime(since)));
        (u128::from(self.ran.unwrap_or(0).saturating_add(running)) * HZ / SECOND) as u64
    }

    fn count(&self, now: GuestTime) -> u16 {
        let (elapsed, period, modulus) = (self.elapsed(now), self.period(), self.modulus());
        let left = match self.mode() {
            2 => period - elapsed % period,
            3 => {
                // Down by two in each half; an odd count begins one lower, and its first half is longer.
                let (at, half) = (elapsed % period, period.div_ceil(2));
                (period & !1) - 2 * if at < half { at } else { at - half }
            }
            _ => period + modulus - elapsed % modulus,
        };
        if self.control & 1 != 0 { to_decimal(left % modulus) } else { left as u16 }
    }

    fn output(&self, now: GuestTime) -> bool {
        let (elapsed, period) = (self.elapsed(now), self.period());
        match self.mode() {
            mode if self.ran.is_none() => mode != 0,
            0 | 1 => elapsed >= period,
            2 => !self.gate || elapsed % period != period - 1,
            3 => !self.gate || elapsed % period < period.div_ceil(2),
            _ => elapsed != period,
        }
    }

    /// When the output rises next.
    fn deadline(&self) -> Option<GuestTime> {
        let since = self.since?;
        let ticks = match self.mode() {
            2 | 3 => self.period().max(MIN_PERIOD).saturating_mul(self.fired + 1),
            _ if self.fired != 0 => return None,
            4 | 5 => self.period() + 1,
            _ => self.period(),
        };
        let left = u64::try_from(ns(ticks)).ok()?.saturating_sub(self.ran.unwrap_or(0));
        let due = since.checked_add(left)?;
        Some(GuestTime(self.next_at.map_or(due, |at| at.min(due))))
    }

    /// Begins to count from the top.
    fn begin(&mut self, at: u64) {
        if self.next_at.take().is_some() {
            self.count = self.next;
        }
        self.ran = Some(0);
        self.since = (self.gate || self.is_triggered()).then_some(at);
        self.fired = 0;
    }

    /// The period with the old count may be over by now.
    fn settle(&mut self, now: GuestTime) {
        if let Some(at) = self.next_at.filter(|&at| at <= now.0 && at != AT_TRIGGER) {
            self.begin(at);
        }
    }

    fn write(&mut self, value: u8, now: GuestTime) {
        let count = match self.access() {
            1 => u16::from(value),
            2 => u16::from(value) << 8,
            _ if !self.low_written => {
                self.low = value;
                self.low_written = true;
                if self.mode() == 0 {
                    // Half a count stops the old one.
                    (self.ran, self.since) = (None, None);
                }
                return;
            }
            _ => u16::from_le_bytes([self.low, value]),
        };
        self.low_written = false;
        self.next = count;
        // In periodic modes the period under way comes to its end first.
        self.next_at = match self.since {
            _ if self.is_triggered() => Some(AT_TRIGGER),
            Some(since) if self.is_periodic() => {
                let end = ns((self.elapsed(now) / self.period() + 1).saturating_mul(self.period()));
                Some(u64::try_from(end).map_or(AT_TRIGGER - 1, |end| since.saturating_add(end).min(AT_TRIGGER - 1)))
            }
            _ => {
                self.next_at = Some(now.0);
                return self.begin(now.0);
            }
        };
    }

    /// See: "Gate", and table "Gate Pin Operations Summary".
    fn set_gate(&mut self, high: bool, now: GuestTime) {
        if core::mem::replace(&mut self.gate, high) == high {
            return;
        }
        let has_count = self.ran.is_some() || self.next_at.is_some();
        match (self.mode(), high) {
            (1 | 5, false) => {}
            (_, false) => {
                let running = self.since.take().map_or(0, |since| now.since(GuestTime(since)));
                self.ran = self.ran.map(|ran| ran.saturating_add(running));
            }
            (0 | 4, true) => self.since = self.ran.map(|_| now.0),
            (_, true) if has_count => self.begin(now.0),
            (_, true) => {}
        }
    }

    fn read(&mut self, now: GuestTime) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let (count, first) = match self.latched {
            0 => (self.count(now), !self.read_high),
            unread => (self.latch, unread > 1),
        };
        let high = match self.access() {
            1 => false,
            2 => true,
            _ => !first,
        };
        match self.latched {
            0 => self.read_high = first,
            _ => self.latched -= 1,
        }
        count.to_le_bytes()[usize::from(high)]
    }

    /// Holds the count until it is read.
    fn latch(&mut self, now: GuestTime) {
        if self.latched == 0 {
            self.latch = self.count(now);
            self.latched = if matches!(self.access(), 1 | 2) { 1 } else { 2 };
        }
    }

    /// Holds the status until it is read. See: "Read-Back Command", "Status Byte".
    fn latch_status(&mut self, now: GuestTime) {
        let output = if self.output(now) { STATUS_OUTPUT } else { 0 };
        let null = if self.ran.is_none() || self.next_at.is_some() { STATUS_NULL } else { 0 };
        self.status.get_or_insert(output | null | self.control);
    }

    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u8(&mut self.control)?;
        v.u16(&mut self.count)?;
        v.u8(&mut self.low)?;
        v.bool(&mut self.low_written)?;
        v.u16(&mut self.next)?;
        v.option_u64(&mut self.next_at)?;
        v.u16(&mut self.latch)?;
        v.u8(&mut self.latched)?;
        let mut status = self.status.map(u64::from);
        v.option_u64(&mut status)?;
        self.status = status.map(|status| status as u8);
        v.bool(&mut self.read_high)?;
        v.bool(&mut self.gate)?;
        v.option_u64(&mut self.ran)?;
        v.option_u64(&mut self.since)?;
        v.u64(&mut self.fired)?;
        // One interrupt takes at least a nanosecond, so an honest count stays far below this.
        let is_good = self.fired <= u64::MAX / 2 && self.control < 0x40 && self.latched <= 2;
        if is_good { Ok(()) } else { Err(StateError::BadValue("the interval timer")) }
    }
}

/// The interval timer.
#[derive(Debug, Clone)]
pub struct Pit {
    channels: [Channel; 3],
    /// Port 0x61, bits 0 (gate of channel 2), 1 (speaker), 2 and 3 (checks that never fail).
    port_b: u8,
}

impl Default for Pit {
    fn default() -> Self {
        let gates = [true, true, false];
        Self { channels: gates.map(|gate| Channel { gate, ..Channel::default() }), port_b: 0 }
    }
}

impl Pit {
    /// Reads port 0x40 to 0x43 or 0x61.
    pub fn read(&mut self, now: GuestTime, port: u16) -> u8 {
        self.channels.iter_mut().for_each(|channel| channel.settle(now));
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
        self.channels.iter_mut().for_each(|channel| channel.settle(now));
        match port {
            0x40..=0x42 => self.channels[usize::from(port - 0x40)].write(value, now),
            0x43 => self.command(now, value),
            0x61 => {
                self.port_b = value & PORT_B;
                self.channels[2].set_gate(value & GATE != 0, now);
            }
            _ => {}
        }
    }

    fn command(&mut self, now: GuestTime, value: u8) {
        let select = value >> 6;
        if select == 3 {
            // Read-back: what is to be latched of the selected channels has its bit clear.
            let selected = self.channels.iter_mut().zip([2, 4, 8]).filter(|(_, bit)| value & bit != 0);
            for (channel, _) in selected {
                if value & 0x20 == 0 {
                    channel.latch(now);
                }
                if value & 0x10 == 0 {
                    channel.latch_status(now);
                }
            }
            return;
        }
        let channel = &mut self.channels[usize::from(select)];
        if value & 0x30 == 0 {
            channel.latch(now);
        } else {
            *channel = Channel { control: value & 0x3F, gate: channel.gate, ..Channel::default() };
        }
    }

    /// When channel 0 interrupts next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        // Unused on most guests: keep this path short, it runs at every exit.
        self.channels[0].since?;
        self.channels[0].deadline()
    }

    /// Whether channel 0 interrupts at `now`. Missed periods count once.
    pub fn advance(&mut self, now: GuestTime) -> bool {
        let channel = &mut self.channels[0];
        if channel.since.is_none() || channel.deadline().is_none_or(|due| due > now) {
            return false;
        }
        let changes = channel.next_at.is_some_and(|at| at <= now.0);
        let least = if changes { 0 } else { channel.fired + 1 };
        channel.settle(now);
        channel.fired = (channel.elapsed(now) / channel.period().max(MIN_PERIOD)).max(least);
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
mod tests;
