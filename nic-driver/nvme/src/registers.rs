//! Register offsets and bits. See: Base Specification, 3.1.3.

use pollux_nic::Registers;

/// Controller capabilities, low half.
pub(crate) const CAP: usize = 0x00;
/// Their high half.
pub(crate) const CAP_HIGH: usize = 0x04;
/// Interrupt mask set.
pub(crate) const INTMS: usize = 0x0C;
/// Interrupt mask clear.
pub(crate) const INTMC: usize = 0x10;
/// Controller configuration.
pub(crate) const CC: usize = 0x14;
/// Controller status.
pub(crate) const CSTS: usize = 0x1C;
/// Sizes of the admin queues.
pub(crate) const AQA: usize = 0x24;
/// Address of the admin submission queue.
pub(crate) const ASQ: usize = 0x28;
/// Address of the admin completion queue.
pub(crate) const ACQ: usize = 0x30;
/// The first doorbell.
const DOORBELLS: usize = 0x1000;

/// Enabled; the NVM command set, pages of 4 KiB; submissions of 64 bytes, completions of 16.
pub(crate) const CC_ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
/// Ready.
pub(crate) const CSTS_READY: u32 = 1;
/// Fatal status.
pub(crate) const CSTS_FATAL: u32 = 1 << 1;

/// Registers that a driver of a controller needs at least, in bytes: four doorbells, each in a word of its own.
pub const REGISTER_BYTES: usize = DOORBELLS + 4 * 4;

/// What a controller can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities(pub u64);

impl Capabilities {
    pub(crate) fn read(registers: &impl Registers) -> Self {
        Self(u64::from(registers.read32(CAP_HIGH)) << 32 | u64::from(registers.read32(CAP)))
    }

    /// Most entries of a queue.
    pub(crate) const fn most_entries(self) -> u32 {
        (self.0 & 0xFFFF) as u32 + 1
    }

    /// Longest time that it takes to become ready or to stop, in microseconds.
    pub(crate) const fn patience(self) -> u64 {
        let halves = self.0 >> 24 & 0xFF;
        (if halves == 0 { 1 } else { halves }) * 500_000
    }

    /// Bytes from one doorbell to the next.
    pub(crate) const fn stride(self) -> usize {
        4 << (self.0 >> 32 & 0xF)
    }

    /// Whether it has the NVM command set.
    pub(crate) const fn has_nvm(self) -> bool {
        self.0 >> 37 & 1 == 1
    }

    /// Its smallest pages, as a power of two of bytes.
    pub(crate) const fn smallest_page(self) -> u32 {
        12 + (self.0 >> 48 & 0xF) as u32
    }

    /// Offset of the doorbell of a submission queue's tail.
    pub(crate) const fn tail_doorbell(self, queue: usize) -> usize {
        DOORBELLS + 2 * queue * self.stride()
    }

    /// Offset of the doorbell of a completion queue's head.
    pub(crate) const fn head_doorbell(self, queue: usize) -> usize {
        DOORBELLS + (2 * queue + 1) * self.stride()
    }
}
