//! What the platform and its surroundings say to each other: access widths, outputs, faults.

pub use pollux_driver::PowerEvent;

/// Width of a port, MMIO or configuration access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// One byte.
    Byte,
    /// Two bytes.
    Word,
    /// Four bytes.
    Dword,
    /// Eight bytes (MMIO only).
    Qword,
}

impl Size {
    /// The width of `bytes` bytes; `None` unless it is 1, 2, 4 or 8.
    #[must_use]
    pub const fn from_bytes(bytes: u8) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// Width in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// All ones of this width: what an absent device reads as.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// The part of `register` that an access of this width at byte `offset` reads; zero beyond the register.
    #[must_use]
    pub(crate) const fn extract(self, register: u64, offset: u64) -> u64 {
        if offset >= 8 { 0 } else { (register >> (8 * offset)) & self.mask() }
    }
}

/// Where the guest's outputs go. Called at the guest's own position, in order.
pub trait Outputs {
    /// The guest sent an Ethernet frame (without FCS, 14 to 1518 bytes). The slice is only valid during the call.
    fn frame(&mut self, frame: &[u8]);
    /// The guest wrote to its serial console.
    fn console(&mut self, bytes: &[u8]);
    /// The guest turned its machine off or reset it.
    fn power(&mut self, event: PowerEvent);
}

/// The access raises #GP(0) in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gp;

#[cfg(test)]
pub(crate) mod testing {
    use super::{Outputs, PowerEvent};

    /// Remembers everything that the guest put out.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub(crate) struct Recorder {
        pub(crate) frames: Vec<Vec<u8>>,
        pub(crate) console: Vec<u8>,
        pub(crate) power: Vec<PowerEvent>,
    }

    impl Outputs for Recorder {
        fn frame(&mut self, frame: &[u8]) {
            self.frames.push(frame.to_vec());
        }
        fn console(&mut self, bytes: &[u8]) {
            self.console.extend_from_slice(bytes);
        }
        fn power(&mut self, event: PowerEvent) {
            self.power.push(event);
        }
    }
}
