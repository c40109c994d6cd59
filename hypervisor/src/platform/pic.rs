//! The pair of 8259 interrupt controllers, as far as an operating system probes and masks them.
//!
//! Nothing is ever delivered through them: the guest uses the APICs.
//! See: Intel 8259A datasheet (231468-003).

use crate::state::{State, StateError, Visitor};

/// One controller: which initialisation word it expects next, and its mask.
#[derive(Debug, Clone, Default)]
struct Chip {
    mask: u8,
    /// 0: operating; otherwise the number of the next initialisation word at the data port.
    expects: u8,
    needs_word_4: bool,
    single: bool,
    read_isr: bool,
}

impl Chip {
    fn command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            *self = Self { expects: 2, needs_word_4: value & 1 != 0, single: value & 2 != 0, ..Self::default() };
        } else if value & 0x0A == 0x0A {
            self.read_isr = value & 1 != 0;
        }
    }

    fn data(&mut self, value: u8) {
        self.expects = match self.expects {
            2 if !self.single => 3,
            2 | 3 if self.needs_word_4 => 4,
            0 => {
                self.mask = value;
                0
            }
            _ => 0,
        };
    }

    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u8(&mut self.mask)?;
        v.u8(&mut self.expects)?;
        v.bool(&mut self.needs_word_4)?;
        v.bool(&mut self.single)?;
        v.bool(&mut self.read_isr)
    }
}

/// Both controllers and their edge/level registers.
#[derive(Debug, Clone, Default)]
pub struct Pic {
    chips: [Chip; 2],
    edge_level: [u8; 2],
}

impl Pic {
    /// Reads port 0x20, 0x21, 0xA0, 0xA1, 0x4D0 or 0x4D1.
    #[must_use]
    pub fn read(&self, port: u16) -> u8 {
        match port {
            // Neither requests nor services exist.
            0x20 | 0xA0 => 0,
            0x21 => self.chips[0].mask,
            0xA1 => self.chips[1].mask,
            0x4D0 => self.edge_level[0],
            0x4D1 => self.edge_level[1],
            _ => 0xFF,
        }
    }

    /// Writes to one of these ports.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.chips[0].command(value),
            0xA0 => self.chips[1].command(value),
            0x21 => self.chips[0].data(value),
            0xA1 => self.chips[1].data(value),
            0x4D0 => self.edge_level[0] = value & 0xF8,
            0x4D1 => self.edge_level[1] = value & 0xDE,
            _ => {}
        }
    }
}

impl State for Pic {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        self.chips.iter_mut().try_for_each(|chip| chip.visit(v))?;
        v.bytes(&mut self.edge_level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_read_back_after_initialisation() {
        let mut pic = Pic::default();
        for (command, data) in [(0x20, 0x21), (0xA0, 0xA1)] {
            pic.write(command, 0x11);
            for word in [0x30, 4, 1] {
                pic.write(data, word);
                assert_eq!(pic.read(data), 0, "an initialisation word is no mask");
            }
            pic.write(data, 0xFB);
            assert_eq!(pic.read(data), 0xFB);
            assert_eq!(pic.read(command), 0);
        }
    }
}
