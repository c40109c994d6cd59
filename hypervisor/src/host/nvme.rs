//! Brings up an NVMe drive found on the PCI bus, and finds the part of it that is the guest's disk.
#![allow(unsafe_code)]

use core::fmt;

use pollux_nic::{DmaMemory, MmioRegion};
use pollux_nvme::gpt::{self, Blocks, GptError, Label, Wanted};
use pollux_nvme::{Condition, DMA_ALIGNMENT, DMA_BYTES, Fault, Geometry, Lost, Nvme, OpenError, Request, Settings};

use super::apic::Apic;
use super::clock;
use super::memory::HostMemory;
use super::nic::Route;
use super::pci::{self, Bdf, PciError};

/// Microseconds of the start's clock in a second: it is four times too slow, so that its coarse steps end no patience early.
const SECOND: u64 = 250_000;
/// Looks at a drive between two looks at the clock, which take longer.
const LOOKS: u32 = 1000;
/// Registers that are mapped: all doorbells that are used, however far apart.
const REGISTERS: u64 = 0x4000;
/// What the boot code maps.
const MAPPED: u64 = 1 << 32;

/// Class, subclass and interface of an NVMe controller. See: PCI Code and ID Assignment 1.11, 1.9.
pub const CONTROLLER: [u8; 3] = [0x01, 0x08, 0x02];

/// A part of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its first block.
    pub first: u64,
    /// How many it has.
    pub blocks: u64,
}

/// A drive at work.
#[derive(Debug)]
pub struct OpenDrive {
    nvme: Nvme,
    geometry: Geometry,
    route: Route,
    bdf: Bdf,
}

/// Why there is no drive.
#[derive(Debug)]
pub enum DriveError {
    /// PCI says no.
    Pci(PciError),
    /// It is no NVMe controller: its class.
    NoController(Bdf, [u8; 3]),
    /// Its registers lie where they are not mapped.
    OutOfReach(Bdf, u64),
    /// The machine has too little memory for its buffers.
    NoMemory,
    /// It cannot be driven.
    Open(Bdf, OpenError),
    /// It does not come up.
    Fault(Bdf, Fault),
    /// It cannot be read.
    Read(Bdf, Lost),
    /// There is no such partition.
    Partition(Bdf, GptError<Lost>),
    /// It has a partition table, and nobody said which partition.
    HasTable(Bdf, Label),
}

impl fmt::Display for DriveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(error) => error.fmt(f),
            Self::NoController(bdf, class) => {
                write!(f, "the PCI device at {bdf} is no NVMe controller (class {class:x?})")
            }
            Self::OutOfReach(bdf, address) => {
                write!(f, "the drive at {bdf}: its registers lie at {address:#x}, above 4 GiB")
            }
            Self::NoMemory => f.write_str("too little memory for the drive's buffers"),
            Self::Open(bdf, error) => write!(f, "the drive at {bdf}: {error}"),
            Self::Fault(bdf, fault) => write!(f, "the drive at {bdf}: {fault}"),
            Self::Read(bdf, lost) => write!(f, "the drive at {bdf} cannot be read: {lost}"),
            Self::Partition(bdf, error) => write!(f, "the drive at {bdf}: {error}"),
            Self::HasTable(bdf, label) => {
                let kind = if *label == Label::Gpt { "GPT" } else { "MBR" };
                write!(
                    f,
                    "the drive at {bdf} has a partition table ({kind}): name one of its partitions with partition=, or say \
                     whole to overwrite all of it"
                )
            }
        }
    }
}

/// Time while the machine starts.
struct Stopwatch {
    began: u64,
    looks: u32,
    now: u64,
}

impl Stopwatch {
    fn start() -> Self {
        Self { began: clock::unix_time(), looks: 0, now: 0 }
    }

    fn now(&mut self) -> u64 {
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS) {
            self.now = self.now.max(clock::unix_time().saturating_sub(self.began) * SECOND);
        }
        self.now
    }
}

/// Brings up the drive at `bdf`.
///
/// # Safety
/// As [`nic::open`](super::nic::open).
///
/// # Errors
/// When there is no such drive, or it does not come up.
pub unsafe fn open(bdf: Bdf, apic: &Apic, memory: &mut HostMemory) -> Result<OpenDrive, DriveError> {
    let class = pci::class(bdf);
    if class != CONTROLLER && class != [0xFF; 3] {
        return Err(DriveError::NoController(bdf, class));
    }
    let endpoint = pci::enable(bdf, apic).map_err(DriveError::Pci)?;
    let len = endpoint.bar0_size.min(REGISTERS);
    if endpoint.bar0.checked_add(len).is_none_or(|end| end > MAPPED) {
        return Err(DriveError::OutOfReach(bdf, endpoint.bar0));
    }
    // SAFETY: the caller vouches for `memory`.
    let buffers = unsafe { memory.take_zeroed(DMA_BYTES as u64, DMA_ALIGNMENT as u64) }.ok_or(DriveError::NoMemory)?;
    let physical = buffers.as_ptr() as u64;
    // SAFETY: memory is identity-mapped and there is no IOMMU, so devices reach it at the same addresses.
    let dma = unsafe { DmaMemory::new(physical, buffers) };
    // SAFETY: BAR 0 is this drive's alone, is mapped, and is opened once, says the caller.
    let registers = unsafe { MmioRegion::new(endpoint.bar0 as *mut u8, len as usize) }
        .ok_or(DriveError::Open(bdf, OpenError::Absent))?;
    let route = Route::of(endpoint.interrupt);
    let settings = Settings { interrupts: route.interrupts(), ..Settings::default() };
    let mut watch = Stopwatch::start();
    let mut nvme = Nvme::new(registers, dma, settings, watch.now()).map_err(|error| DriveError::Open(bdf, error))?;
    loop {
        match nvme.condition() {
            Condition::Ready(geometry) => {
                let Geometry { block_bytes, blocks, has_write_cache, .. } = geometry;
                let cache = if has_write_cache { "a" } else { "no" };
                log::info!(
                    "{bdf}: NVMe, {blocks} blocks of {block_bytes} bytes, {cache} write cache, {:?}",
                    endpoint.interrupt
                );
                return Ok(OpenDrive { nvme, geometry, route, bdf });
            }
            Condition::GivenUp(fault) => return Err(DriveError::Fault(bdf, fault)),
            Condition::Starting => nvme.poll(watch.now(), |_, _| {}),
        }
    }
}

impl OpenDrive {
    /// Bytes of its blocks, and how many there are.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// All of it.
    #[must_use]
    pub const fn whole(&self) -> Region {
        Region { first: 0, blocks: self.geometry.blocks }
    }

    /// Makes sure that it has no partition table, but for one on its first `guests` blocks, if these are a guest's disk.
    ///
    /// # Errors
    /// It has one, or cannot be read.
    pub fn refuse_table(&mut self, guests: Option<u64>) -> Result<(), DriveError> {
        let label = match guests {
            None => gpt::label(self),
            Some(end) => gpt::is_divided(self, end).map(|divided| if divided { Label::Gpt } else { Label::None }),
        };
        match label.map_err(|lost| DriveError::Read(self.bdf, lost))? {
            Label::None => Ok(()),
            label => Err(DriveError::HasTable(self.bdf, label)),
        }
    }

    /// Fills `bytes`, a whole number of blocks, with what lies from byte `start` on, the first one of a block.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_bytes(&mut self, start: u64, bytes: &mut [u8]) -> Result<(), DriveError> {
        let block = self.block_bytes();
        for (at, part) in (start / block as u64..).zip(bytes.chunks_mut(block)) {
            self.read(at, part).map_err(|lost| DriveError::Read(self.bdf, lost))?;
        }
        Ok(())
    }

    /// The partition called `name`, or with that GUID.
    ///
    /// # Errors
    /// There is none.
    pub fn partition(&mut self, name: &str) -> Result<Region, DriveError> {
        let wanted = Wanted::parse(name);
        let found = gpt::find(self, &wanted).map_err(|error| DriveError::Partition(self.bdf, error))?;
        log::info!(
            "{}: partition {wanted} ({}) has {} blocks from {}",
            self.bdf,
            found.guid,
            found.blocks,
            found.first
        );
        if found.damaged {
            log::warn!("{}: one of the two copies of the partition table is damaged", self.bdf);
        }
        Ok(Region { first: found.first, blocks: found.blocks })
    }

    /// The drive for whoever works with it.
    #[must_use]
    pub fn into_parts(self) -> (Nvme, Route) {
        (self.nvme, self.route)
    }
}

impl Blocks for OpenDrive {
    type Error = Lost;

    fn block_bytes(&self) -> usize {
        self.geometry.block_bytes as usize
    }

    fn blocks(&self) -> u64 {
        self.geometry.blocks
    }

    /// Waits for it: only while the machine starts.
    fn read(&mut self, block: u64, bytes: &mut [u8]) -> Result<(), Lost> {
        let mut watch = Stopwatch::start();
        let taken = self.nvme.submit(Request::Read { block, blocks: 1 }, 0, watch.now());
        taken.unwrap_or_else(|error| panic!("a read of block {block} while nothing is at work: {error:?}"));
        let mut ended = None;
        while ended.is_none() {
            self.nvme.poll(watch.now(), |_, result| ended = Some(result.map(|data| data.copy_to(bytes))));
        }
        ended.unwrap_or(Ok(()))
    }
}
