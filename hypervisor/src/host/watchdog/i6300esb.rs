//! The watchdog timer of Intel's 6300ESB, which QEMU has as `-device i6300esb`.
//!
//! Two stages count down one after the other; behind the second the machine is reset. Each timer has 20 bits, of a clock
//! that is the PCI clock of 33 MHz divided by 2^15: ticks of about a millisecond. A register takes a write only behind the
//! two words that unlock it, and in its own width. See: Intel 6300ESB I/O Controller Hub datasheet (300641), 16.

/// The device on the PCI bus: vendor and device.
pub const IDS: (u16, u16) = (0x8086, 0x25AB);
/// Bytes of registers.
pub const REGISTER_BYTES: u64 = 16;

/// PCI configuration: what the timer does, 16 bits (60H); whether it runs, 8 bits (68H), in one word each.
pub const CONFIG: u16 = 0x60;
pub const LOCK: u16 = 0x68;
/// The first stage interrupts nobody (bits 0 and 1); ticks of a millisecond (2), and the second stage resets (5).
pub const CONFIG_SILENT: u16 = 0b11;
/// Until the next reset nobody can change whether it runs.
pub const LOCK_LOCKED: u8 = 1 << 0;
/// It runs.
pub const LOCK_ENABLE: u8 = 1 << 1;

/// The values that the stages start from, 32 bits each.
const STAGE: [usize; 2] = [0x0, 0x4];
/// 16 bits.
const RELOAD: usize = 0xC;
/// Starts counting from the first stage's value again.
const RELOAD_NOW: u16 = 1 << 8;
/// It has expired; writing it clears it.
const EXPIRED: u16 = 1 << 9;
const UNLOCK: [u16; 2] = [0x80, 0x86];

/// The largest value of a stage.
const MAX_TICKS: u64 = (1 << 20) - 1;
/// The longest time until a reset in milliseconds, in two stages.
pub const LONGEST_MS: u64 = 2 * MAX_TICKS;

/// Writes to the registers; nothing need be read of them.
pub trait Registers {
    /// 16 bits at `offset`.
    fn write16(&mut self, offset: usize, value: u16);
    /// 32 bits at `offset`.
    fn write32(&mut self, offset: usize, value: u32);
}

/// The timer.
#[derive(Debug)]
pub struct Timer<R> {
    registers: R,
}

impl<R: Registers> Timer<R> {
    /// Takes a timer that does not run.
    pub fn new(mut registers: R) -> Self {
        unlock(&mut registers);
        registers.write16(RELOAD, EXPIRED | RELOAD_NOW);
        Self { registers }
    }

    /// The machine is reset after so many milliseconds, at most [`LONGEST_MS`], unless this is called again before.
    /// A tick is a little shorter than a millisecond (0.993), and rounding is upwards.
    pub fn set(&mut self, ms: u64) {
        let ticks = ms.div_ceil(2).clamp(1, MAX_TICKS);
        for stage in STAGE {
            unlock(&mut self.registers);
            self.registers.write32(stage, ticks as u32);
        }
        self.pet();
    }

    /// Counts anew from the time that was set.
    pub fn pet(&mut self) {
        unlock(&mut self.registers);
        self.registers.write16(RELOAD, RELOAD_NOW);
    }
}

fn unlock(registers: &mut impl Registers) {
    for word in UNLOCK {
        registers.write16(RELOAD, word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The registers as the datasheet has them, and time.
    #[derive(Debug, Default)]
    struct Model {
        stage: [u32; 2],
        count: u32,
        second: bool,
        /// How many words of the unlocking sequence have come.
        unlocked: usize,
        runs: bool,
        reset: bool,
    }

    impl Model {
        /// So many ticks pass.
        fn pass(&mut self, ticks: u64) {
            for _ in 0..ticks {
                if !self.runs || self.reset {
                    return;
                }
                self.count = self.count.saturating_sub(1);
                if self.count == 0 {
                    self.reset |= self.second;
                    self.second = true;
                    self.count = self.stage[1];
                }
            }
        }
    }

    impl Registers for &mut Model {
        fn write16(&mut self, offset: usize, value: u16) {
            assert_eq!(offset, RELOAD, "that register has another width");
            match (self.unlocked, value) {
                (0, 0x80) => self.unlocked = 1,
                (1, 0x86) => self.unlocked = 2,
                (2, value) => {
                    self.unlocked = 0;
                    if value & RELOAD_NOW != 0 {
                        (self.count, self.second) = (self.stage[0], false);
                    }
                }
                // Who does not know the words changes nothing.
                _ => self.unlocked = 0,
            }
        }

        fn write32(&mut self, offset: usize, value: u32) {
            assert!(value < 1 << 20, "a stage has 20 bits");
            if core::mem::take(&mut self.unlocked) == 2 {
                self.stage[offset / 4] = value;
            }
        }
    }

    #[test]
    fn a_machine_that_goes_on_is_never_reset_and_one_that_hangs_is() {
        for ms in [1, 2, 5, 1000, 30_001] {
            let mut model = Model { runs: true, ..Model::default() };
            Timer::new(&mut model).set(ms);
            for _ in 0..10 {
                model.pass(ms.saturating_sub(1));
                assert!(!model.reset, "{ms}");
                Timer { registers: &mut model }.pet();
            }
            model.pass(ms + 1);
            assert!(model.reset, "{ms}");
        }
    }

    #[test]
    fn the_longest_time_is_as_long_as_said() {
        let mut model = Model { runs: true, ..Model::default() };
        Timer::new(&mut model).set(u64::MAX);
        model.pass(LONGEST_MS - 1);
        assert!(!model.reset);
        model.pass(1);
        assert!(model.reset);
    }

    #[test]
    fn without_the_words_nothing_changes() {
        let mut model = Model::default();
        (&mut model).write32(STAGE[0], 7);
        (&mut model).write16(RELOAD, 0x80);
        (&mut model).write32(STAGE[0], 7);
        assert_eq!(model.stage, [0, 0]);
    }
}
