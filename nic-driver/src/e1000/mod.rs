//! The driver for the e1000 family.
//!
//! Costs: polling for frames and for sent descriptors reads memory only. The transmit tail is written once per batch, by
//! [`E1000::flush`]; **whoever queues frames must flush**. The receive tail is written when a quarter of the ring was
//! read: an emulator looks for frames that wait each time, and wakes a thread for it.
//!
//! Writing RCTL makes QEMU's `e1000` deaf for a second of virtual time, so it is written only at the start and when
//! [`E1000::set_promiscuous`] changes it. Frames that arrive meanwhile are kept by QEMU.

mod device;
mod init;
mod model;
mod registers;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use core::fmt;

use bitflags::bitflags;

pub use device::{E1000RxToken, E1000TxToken};
pub use model::Model;

use crate::frame::{FrameSink, FrameSource, MacAddress, SendError};
use crate::mmio::{MmioRegion, Registers};
use crate::ring::{RingError, RxRing, RxStats, TxRing, TxStats, ring_bytes};
use registers::{ICR, IMC, IMS, ITR, MPC, RCTL, RCTL_UPE, RDT, ROC, STATUS, STATUS_LU, TCTL, TDT};

/// Receive descriptors.
pub const RX_DESCRIPTORS: u16 = 256;
/// Transmit descriptors.
pub const TX_DESCRIPTORS: u16 = 256;
/// Length of the register window in BAR 0, in bytes.
pub const REGISTER_BYTES: usize = 0x2_0000;
/// Alignment of the DMA memory, in bytes.
pub const DMA_ALIGNMENT: usize = crate::ring::BUFFER_BYTES;

/// Memory that [`E1000::new`] needs, in bytes; aligned to [`DMA_ALIGNMENT`].
pub const fn needed_dma_bytes() -> usize {
    ring_bytes(RX_DESCRIPTORS) + ring_bytes(TX_DESCRIPTORS)
}

bitflags! {
    /// Interrupt causes. See: 8254x SDM, 13.4.17 (ICR).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Interrupts: u32 {
        /// TXDW: a transmit descriptor was written back.
        const TRANSMITTED = 1 << 0;
        /// LSC: the link went up or down.
        const LINK_CHANGE = 1 << 2;
        /// RXDMT0: half of the receive buffers are used.
        const RX_LOW = 1 << 4;
        /// RXO: a frame found no receive buffer.
        const RX_OVERRUN = 1 << 6;
        /// RXT0: frames were received.
        const RECEIVED = 1 << 7;
    }
}

impl Interrupts {
    /// What [`E1000::enable_interrupts`] usually gets: everything about reception, and the link.
    pub const RECEIVE: Self = Self::RECEIVED.union(Self::RX_LOW).union(Self::RX_OVERRUN).union(Self::LINK_CHANGE);
}

/// Why a card could not be brought up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicError {
    /// The register window is shorter than [`REGISTER_BYTES`]; its length in bytes.
    RegistersTooSmall(usize),
    /// The DMA memory is shorter than [`needed_dma_bytes`], or misaligned.
    Memory(RingError),
    /// All registers read as ones: no card decodes the address.
    Absent,
    /// The reset bit did not clear within the bounded number of reads.
    ResetTimeout,
    /// No usable MAC address in the EEPROM or the card's address register, and none given.
    NoMac,
    /// The given MAC address is not a unicast address, or zero, or a second one that is like the first.
    BadMac(MacAddress),
}

impl From<RingError> for NicError {
    fn from(error: RingError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for NicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegistersTooSmall(len) => write!(f, "register window of {len:#x} bytes, not {REGISTER_BYTES:#x}"),
            Self::Memory(error) => write!(f, "unsuitable DMA memory: {error:?}"),
            Self::Absent => f.write_str("no card answers: all registers read as ones"),
            Self::ResetTimeout => f.write_str("the card does not come out of reset"),
            Self::NoMac => f.write_str("the card has no MAC address"),
            Self::BadMac(mac) => write!(f, "{mac} is no unicast MAC address, or in use already"),
        }
    }
}

impl core::error::Error for NicError {}

/// What a card has done; all counts since the driver started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// The receive ring's counts.
    pub rx: RxStats,
    /// The transmit ring's counts.
    pub tx: TxStats,
    /// Times that [`E1000::interrupt_cause`] reported an overrun.
    pub rx_overruns: u64,
    /// Frames that the card itself counted as lost for want of a buffer, as of the last
    /// [`E1000::update_counters`]. Emulators may deliver such frames later after all.
    pub rx_missed: u64,
    /// Frames that the card itself dropped as too long, as of then.
    pub rx_oversize: u64,
    /// Times that the link changed.
    pub link_changes: u64,
}

/// A running card.
#[derive(Debug)]
pub struct E1000<R: Registers = MmioRegion> {
    registers: R,
    model: Model,
    mac: MacAddress,
    card_mac: Option<MacAddress>,
    /// RCTL as last written.
    rctl: u32,
    rx: RxRing,
    tx: TxRing,
    rx_overruns: u64,
    rx_missed: u64,
    rx_oversize: u64,
    link_changes: u64,
}

impl<R: Registers> E1000<R> {
    /// The card's model.
    pub fn model(&self) -> Model {
        self.model
    }

    /// The address whose unicast frames are received.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// The address that the card was made with; none if its EEPROM has no usable one.
    pub fn card_mac(&self) -> Option<MacAddress> {
        self.card_mac
    }

    /// Receives unicast frames for `mac` too, beside [`mac`](Self::mac); instead of an earlier second address.
    ///
    /// # Errors
    /// [`NicError::BadMac`] when it is no unicast address, or is the first one.
    pub fn receive_also(&mut self, mac: MacAddress) -> Result<(), NicError> {
        if !init::is_usable(mac) || mac == self.mac {
            return Err(NicError::BadMac(mac));
        }
        init::write_receive_address(&mut self.registers, 1, mac);
        Ok(())
    }

    /// Whether the link is up. One register read.
    pub fn link_up(&self) -> bool {
        self.registers.read32(STATUS) & STATUS_LU != 0
    }

    /// Hands the next good frame to `f`. Bad ones in front of it are dropped and counted.
    pub fn receive<T>(&mut self, f: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let result = self.rx.receive(f);
        self.return_many();
        result
    }

    /// Whether a frame waits. Reads memory only.
    pub fn has_received(&mut self) -> bool {
        self.rx.is_ready()
    }

    /// Queues a frame of `len` bytes (14 to [`MAX_FRAME`](crate::frame::MAX_FRAME)) that `fill` writes into the card's own buffer. A full ring is
    /// flushed, so that it drains, and reported.
    pub fn transmit<T>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> T) -> Result<T, SendError> {
        let result = self.tx.transmit(len, fill);
        if matches!(result, Err(SendError::Full)) {
            self.flush_tx();
        }
        result
    }

    /// How many frames can be queued now. Reads memory only.
    pub fn tx_free(&mut self) -> usize {
        usize::from(self.tx.free())
    }

    /// Starts transmission of what is queued, and gives read buffers back if they are many. At most two register writes,
    /// none if there is nothing to do.
    pub fn flush(&mut self) {
        self.flush_tx();
        self.return_many();
    }

    /// Lets the card raise these interrupts, and no others.
    pub fn enable_interrupts(&mut self, causes: Interrupts) {
        self.registers.write32(IMC, !causes.bits());
        self.registers.write32(IMS, causes.bits());
    }

    /// Keeps the card from raising interrupts.
    pub fn disable_interrupts(&mut self) {
        self.registers.write32(IMC, u32::MAX);
    }

    /// Smallest distance between two interrupts in units of 256 ns; 0, the default, is none.
    /// See: 8254x SDM, 13.4.18 (ITR).
    pub fn set_interrupt_interval(&mut self, interval: u16) {
        self.registers.write32(ITR, u32::from(interval));
    }

    /// Reads and acknowledges the causes of the interrupt. One register read.
    pub fn interrupt_cause(&mut self) -> Interrupts {
        let causes = Interrupts::from_bits_truncate(self.registers.read32(ICR));
        self.rx_overruns += u64::from(causes.contains(Interrupts::RX_OVERRUN));
        self.link_changes += u64::from(causes.contains(Interrupts::LINK_CHANGE));
        causes
    }

    /// Receives unicast frames to any address, or to [`mac`](Self::mac) only.
    pub fn set_promiscuous(&mut self, on: bool) {
        let rctl = if on { self.rctl | RCTL_UPE } else { self.rctl & !RCTL_UPE };
        if rctl != self.rctl {
            self.rctl = rctl;
            self.registers.write32(RCTL, rctl);
        }
    }

    /// Adds what the card itself has counted of lost frames. Two register reads.
    pub fn update_counters(&mut self) {
        self.rx_missed += u64::from(self.registers.read32(MPC));
        self.rx_oversize += u64::from(self.registers.read32(ROC));
    }

    /// What the card has done. Reads memory only.
    pub fn stats(&self) -> Stats {
        Stats {
            rx: self.rx.stats(),
            tx: self.tx.stats(),
            rx_overruns: self.rx_overruns,
            rx_missed: self.rx_missed,
            rx_oversize: self.rx_oversize,
            link_changes: self.link_changes,
        }
    }

    /// Silences the card: no reception, no transmission, no interrupts. Frames that wait to be sent may be lost.
    /// There is no way back; for the last moments of a machine that halts.
    pub fn stop(&mut self) {
        self.disable_interrupts();
        self.registers.write32(TCTL, 0);
        self.registers.write32(RCTL, 0);
    }

    fn flush_tx(&mut self) {
        if self.tx.is_unflushed() {
            let tail = self.tx.tail();
            self.registers.write32(TDT, u32::from(tail));
        }
    }

    fn return_buffers(&mut self) {
        let tail = self.rx.tail();
        self.registers.write32(RDT, u32::from(tail));
    }

    /// Gives buffers back before the card runs out of them, even if nobody flushes.
    fn return_many(&mut self) {
        if self.rx.unreturned() >= self.rx.descriptors() / 4 {
            self.return_buffers();
        }
    }
}

impl<R: Registers> FrameSink for E1000<R> {
    fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        self.transmit(frame.len(), |buffer| buffer.copy_from_slice(frame))
    }

    fn flush(&mut self) {
        self.flush();
    }
}

impl<R: Registers> FrameSource for E1000<R> {
    fn receive<T>(&mut self, f: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.receive(f)
    }
}
