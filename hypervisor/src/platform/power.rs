//! ACPI power management registers, reset ports, and the empty keyboard controller.
//!
//! The machine is born in ACPI mode (SCI_EN set, no SMI command port), as the FADT says.
//! See: ACPI 6.4, 4.8 "ACPI Register Model".

use super::access::{Outputs, PowerEvent, Size};
use super::clock::GuestTime;
use crate::state::{State, StateError, Visitor};

/// PM1a event block: status and enable.
pub const PM1_EVENT: u16 = 0x600;
/// PM1a control block.
pub const PM1_CONTROL: u16 = 0x604;
/// Power management timer.
pub const PM_TIMER: u16 = 0x608;
/// The reset control register, also the FADT's reset register.
pub const RESET: u16 = 0xCF9;
/// Value that resets through [`RESET`].
pub const RESET_VALUE: u8 = 0x06;

/// Frequency of the power management timer in Hz.
const TIMER_HZ: u128 = 3_579_545;
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;
/// Keyboard controller: nothing to read, input buffer empty, self-test passed.
const KEYBOARD_STATUS: u8 = 0x14;
/// Keyboard controller command: pulse the reset line.
const KEYBOARD_RESET: u8 = 0xFE;

/// Power management.
#[derive(Debug, Clone, Default)]
pub struct Power {
    status: u16,
    enable: u16,
    control: u16,
    reset: u8,
}

impl Power {
    /// Whether `port` belongs to this device.
    #[must_use]
    pub const fn claims(port: u16) -> bool {
        matches!(port, PM1_EVENT..=0x60B | RESET | 0x60 | 0x64)
    }

    /// Reads a port.
    #[must_use]
    pub fn read(&self, now: GuestTime, port: u16, size: Size) -> u32 {
        let (register, offset) = match port {
            PM1_EVENT..=0x603 => (u32::from(self.status) | u32::from(self.enable) << 16, port - PM1_EVENT),
            PM1_CONTROL..=0x607 => (u32::from(self.control | SCI_ENABLE), port - PM1_CONTROL),
            // 24 bits are what the FADT promises.
            PM_TIMER..=0x60B => {
                let ticks = (u128::from(now.0) * TIMER_HZ / 1_000_000_000) as u32;
                (ticks & 0xFF_FFFF, port - PM_TIMER)
            }
            RESET => (u32::from(self.reset), 0),
            0x64 => (u32::from(KEYBOARD_STATUS), 0),
            _ => (0, 0),
        };
        size.extract(u64::from(register), u64::from(offset)) as u32
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, size: Size, value: u32, out: &mut dyn Outputs) {
        match port {
            PM1_EVENT if size == Size::Dword => {
                self.status &= !(value as u16);
                self.enable = (value >> 16) as u16;
            }
            // Status bits are cleared by writing ones. None is ever set: the machine has no buttons.
            PM1_EVENT => self.status &= !(value as u16),
            0x602 => self.enable = value as u16,
            PM1_CONTROL => {
                let value = if size == Size::Byte { self.control & 0xFF00 | value as u16 & 0xFF } else { value as u16 };
                self.write_control(value, out);
            }
            0x605 => self.write_control(self.control & 0xFF | (value as u16) << 8, out),
            RESET => {
                self.reset = value as u8 & 0x0A;
                if value & 0x04 != 0 {
                    out.power(PowerEvent::Reset);
                }
            }
            0x64 if value as u8 == KEYBOARD_RESET => out.power(PowerEvent::Reset),
            _ => {}
        }
    }

    /// The DSDT's `\_S5` names sleep type 0; there is no other sleep state.
    fn write_control(&mut self, value: u16, out: &mut dyn Outputs) {
        self.control = value & !SLEEP_ENABLE;
        if value & SLEEP_ENABLE != 0 && value >> 10 & 7 == 0 {
            out.power(PowerEvent::Off);
        }
    }
}

impl State for Power {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u16(&mut self.status)?;
        v.u16(&mut self.enable)?;
        v.u16(&mut self.control)?;
        v.u8(&mut self.reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::access::testing::Recorder;

    #[test]
    fn off_and_reset() {
        let (mut power, mut out) = (Power::default(), Recorder::default());
        assert_eq!(power.read(GuestTime(0), PM1_CONTROL, Size::Word), 1);
        power.write(PM1_CONTROL, Size::Word, 0x3400, &mut out);
        power.write(0x64, Size::Byte, 0xED, &mut out);
        power.write(RESET, Size::Byte, 2, &mut out);
        assert_eq!(out.power, []);
        power.write(PM1_CONTROL, Size::Word, 0x2000, &mut out);
        power.write(0x605, Size::Byte, 0x20, &mut out);
        power.write(RESET, Size::Byte, 6, &mut out);
        power.write(0x64, Size::Byte, 0xFE, &mut out);
        assert_eq!(out.power, [PowerEvent::Off, PowerEvent::Off, PowerEvent::Reset, PowerEvent::Reset]);
    }

    #[test]
    fn timer_counts_guest_time() {
        let power = Power::default();
        assert_eq!(power.read(GuestTime(1_000_000_000), PM_TIMER, Size::Dword), 3_579_545);
        assert_eq!(power.read(GuestTime(5_000_000_000), PM_TIMER, Size::Dword), 17_897_725 & 0xFF_FFFF);
    }
}
