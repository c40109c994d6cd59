//! Brings up a network card found on the PCI bus.
#![allow(unsafe_code)]

use core::fmt;

use pollux_nic::e1000::{DMA_ALIGNMENT, E1000, Interrupts, Model, NicError, REGISTER_BYTES, needed_dma_bytes};
use pollux_nic::{DmaMemory, MacAddress, MmioRegion};

use super::apic::Apic;
use super::interrupts::Fired;
use super::memory::HostMemory;
use super::pci::{self, Bdf, Interrupt, PciError};
use super::pic;

/// Why a network card cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// PCI says no.
    Pci(PciError),
    /// There is a device, but no card that Pollux drives: its PCI ids.
    Unsupported(Bdf, u16, u16),
    /// The machine has too little memory for its buffers.
    NoMemory,
    /// The card does not come up.
    Card(Bdf, NicError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(error) => error.fmt(f),
            Self::Unsupported(bdf, vendor, device) => write!(
                f,
                "the PCI device at {bdf} ({vendor:04x}:{device:04x}) is no network card that Pollux drives \
                 (e1000 8086:100e, 82574L 8086:10d3)"
            ),
            Self::NoMemory => f.write_str("too little memory for the network card's buffers"),
            Self::Card(bdf, error) => write!(f, "the network card at {bdf}: {error}"),
        }
    }
}

impl From<PciError> for OpenError {
    fn from(error: PciError) -> Self {
        Self::Pci(error)
    }
}

/// Where a card's interrupts come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route(Interrupt);

impl Route {
    /// Where a device interrupts that is no card.
    pub(super) const fn of(interrupt: Interrupt) -> Self {
        Self(interrupt)
    }

    /// Whether it interrupts at all.
    pub(super) fn interrupts(self) -> bool {
        self.0 != Interrupt::None
    }

    /// Whether `fired` may have come from this card.
    #[must_use]
    pub fn fired(self, fired: Fired) -> bool {
        match self.0 {
            Interrupt::Msi => fired.message(),
            Interrupt::Line(line) => fired.line(line),
            Interrupt::None => false,
        }
    }

    /// Lets the card's line through again, after it was served.
    pub fn rearm(self) {
        if let Interrupt::Line(line) = self.0 {
            pic::unmask(line);
        }
    }
}

/// Brings up the card at `bdf`, receiving for `mac` or else for its own address, with receive interrupts on.
///
/// # Safety
/// Called once for each card, with its BAR identity-mapped as device memory and `memory` as in
/// [`HostMemory::take_zeroed`].
///
/// # Errors
/// When there is no such card, or it does not come up.
pub unsafe fn open(
    bdf: Bdf,
    mac: Option<MacAddress>,
    apic: &Apic,
    memory: &mut HostMemory,
) -> Result<(E1000, Route), OpenError> {
    let endpoint = pci::enable(bdf, apic)?;
    let (vendor, id) = (endpoint.device.vendor, endpoint.device.id);
    let model = Model::from_pci_ids(vendor, id).ok_or(OpenError::Unsupported(bdf, vendor, id))?;
    if model.needs_aspm_off() {
        let link = pci::disable_aspm(bdf);
        let level = if link.is_stuck() { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "{bdf}: {link}");
    }
    let len = needed_dma_bytes() as u64;
    // SAFETY: the caller vouches for `memory`.
    let buffers = unsafe { memory.take_zeroed(len, (DMA_ALIGNMENT as u64).max(4096)) }.ok_or(OpenError::NoMemory)?;
    let physical = buffers.as_ptr() as u64;
    // SAFETY: memory is identity-mapped and there is no IOMMU, so devices reach it at the same addresses.
    let dma = unsafe { DmaMemory::new(physical, buffers) };
    // SAFETY: BAR 0 is this card's alone and is opened once, says the caller.
    let registers =
        unsafe { MmioRegion::new(endpoint.bar0 as *mut u8, REGISTER_BYTES.min(endpoint.bar0_size as usize)) }
            .ok_or(OpenError::Card(bdf, NicError::Absent))?;
    let mut card = E1000::new(model, registers, dma, mac).map_err(|error| OpenError::Card(bdf, error))?;
    card.enable_interrupts(Interrupts::RECEIVE);
    log::info!("{bdf}: {model:?}, {}, {:?}", card.mac(), endpoint.interrupt);
    Ok((card, Route(endpoint.interrupt)))
}
