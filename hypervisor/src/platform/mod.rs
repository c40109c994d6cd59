//! The guest's machine: pure, deterministic device models.
//!
//! No hardware, no clock, no randomness: guest time comes in with each call, outputs go to [`Outputs`], and
//! everything else is [`State`], so that equal calls leave equal machines.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0 … memory | RAM, at most up to [`pci::WINDOW_START`] |
//! | [`pci::WINDOW_START`] … [`pci::WINDOW_END`] | PCI memory window |
//! | [`ioapic::BASE`] | I/O APIC |
//! | [`lapic::DEFAULT_BASE`] | local APIC |

pub mod access;
pub mod acpi;
mod aml;
mod bus;
pub mod clock;
pub mod cpuid;
mod disk;
pub mod ioapic;
pub mod kvm;
pub mod lapic;
pub mod loader;
pub mod msr;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod power;
mod registers;
pub mod rtc;
#[cfg(test)]
mod tests;
pub mod uart;
pub mod virtio;
mod watch;

pub use access::{Gp, Outputs, PowerEvent, Size};
pub use clock::{ClockError, GuestClock, GuestTime};
pub use cpuid::{CpuidContext, HostCpuid};
pub use watch::{LOOK_TICKS, OFTEN_TICKS, OWED_NS};

use crate::extended::Layout;
use crate::memory::GuestMemory;
use crate::random::{self, Random};
use crate::state::{State, StateError, Visitor};
use core::fmt;
use cpuid::Cpuid;
use ioapic::Ioapic;
use kvm::Kvm;
use lapic::Lapic;
use msr::Msrs;
use pci::{ConfigAddress, ConfigSpace};
use pic::Pic;
use pit::Pit;
use power::Power;
use rtc::Rtc;
use uart::Uart;
use virtio::block::{Block, Place, SECTOR, Storage};
use virtio::net::{Net, NetStats};
use virtio::transport::{BAR_LEN, Transport};
use watch::Watch;

/// PCI device number of the network function on bus 0.
const NET_SLOT: u8 = 1;
/// Interrupt pin of the network function's INTA, as the DSDT's `_PRT` says.
const NET_PIN: u8 = acpi::PCI_PIN;
/// Where firmware would have placed the network function's BAR.
const NET_BAR: u32 = 0xFE00_0000;

/// Largest guest memory in bytes: RAM ends where the PCI window begins.
pub const MAX_MEMORY: u64 = pci::WINDOW_START;
/// Smallest guest memory in bytes: guests are loaded at 1 MiB and above.
pub const MIN_MEMORY: u64 = 2 << 20;

/// What a guest's machine is made of.
pub struct PlatformConfig<'a> {
    /// Size of RAM in bytes: a multiple of 4 KiB from [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory_bytes: u64,
    /// Size of the disk in bytes, a multiple of 512, for which there is room where it lies; 0: there is none.
    pub disk_bytes: u64,
    /// Where its bytes lie, and who says when a request ends.
    pub disk_place: Place,
    /// The guest's own MAC address.
    pub mac: [u8; 6],
    /// The date at guest time 0, in seconds since 1970.
    pub start_unix_seconds: u64,
    /// The host's CPUID.
    pub host_cpuid: HostCpuid<'a>,
    /// The guest may use RDTSCP.
    pub rdtscp: bool,
    /// What of the processor's extended state the guest may have.
    pub extended: Layout,
    /// Random bytes, no two guests' the same: all that is random for the guest comes from them.
    pub entropy: [u8; random::BYTES],
    /// The guest clock's rate at first, in 32.32 fixed point nanoseconds per tick.
    pub rate: u64,
}

/// Why no machine can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlatformError {
    /// The memory size is too small, too large, or not a whole number of pages.
    MemorySize(u64),
    /// The size of the disk is no whole number of sectors.
    DiskSize(u64),
}

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MemorySize(bytes) => write!(
                f,
                "guest memory of {bytes} bytes: it must be a multiple of 4096 from {MIN_MEMORY} to {MAX_MEMORY}"
            ),
            Self::DiskSize(bytes) => write!(f, "a disk of {bytes} bytes: it must be a multiple of {SECTOR}"),
        }
    }
}

/// The guest's machine, without its RAM and without the CPU's execution state.
#[derive(Clone)]
pub struct Platform {
    clock: GuestClock,
    cpuid: Cpuid,
    msrs: Msrs,
    kvm: Kvm,
    lapic: Lapic,
    ioapic: Ioapic,
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    power: Power,
    config_address: ConfigAddress,
    bridge: ConfigSpace,
    net: Transport<Net>,
    watch: Watch,
    disk: Option<Transport<Block<Storage>>>,
    /// When the disk goes on by itself.
    disk_due: Option<GuestTime>,
    random: Random,
    memory_bytes: u64,
}

impl Platform {
    /// The machine as it is when the guest starts.
    ///
    /// # Errors
    /// The configuration is impossible.
    pub fn new(config: &PlatformConfig<'_>) -> Result<Self, PlatformError> {
        let bytes = config.memory_bytes;
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) || !bytes.is_multiple_of(crate::memory::PAGE_SIZE) {
            return Err(PlatformError::MemorySize(bytes));
        }
        if !config.disk_bytes.is_multiple_of(SECTOR) {
            return Err(PlatformError::DiskSize(config.disk_bytes));
        }
        const { assert!(NET_BAR.is_multiple_of(BAR_LEN)) };
        let disk =
            (config.disk_bytes > 0).then(|| Block::new(Storage::new(config.disk_bytes / SECTOR, config.disk_place)));
        let cpuid = Cpuid::new(config.host_cpuid, config.rdtscp, config.extended);
        let msrs = Msrs::new(cpuid.physical_bits());
        Ok(Self {
            clock: GuestClock::new(config.rate),
            cpuid,
            msrs,
            kvm: Kvm::default(),
            lapic: Lapic::new(),
            ioapic: Ioapic::new(),
            pic: Pic::default(),
            pit: Pit::default(),
            rtc: Rtc::new(config.start_unix_seconds),
            uart: Uart::default(),
            power: Power::default(),
            config_address: ConfigAddress::default(),
            bridge: pci::host_bridge(),
            net: Transport::new(Net::new(config.mac), NET_BAR, NET_PIN),
            watch: Watch::default(),
            disk: disk.map(disk::plug),
            disk_due: None,
            random: Random::new(config.entropy),
            memory_bytes: bytes,
        })
    }

    /// Resets all devices at `now`, as the reset line does. Time goes on, the RTC keeps its date, and the disk what is on it.
    pub fn reset(&mut self, now: GuestTime) {
        self.msrs = Msrs::new(self.cpuid.physical_bits());
        self.kvm = Kvm::default();
        self.lapic = Lapic::new();
        self.ioapic = Ioapic::new();
        self.pic = Pic::default();
        self.pit = Pit::default();
        self.rtc.reset(now);
        self.uart = Uart::default();
        self.power = Power::default();
        self.config_address = ConfigAddress::default();
        self.bridge = pci::host_bridge();
        self.net = Transport::new(Net::new(self.net.device.mac()), NET_BAR, NET_PIN);
        self.watch = Watch::default();
        self.reset_disk();
    }

    /// The guest is born at `unix_seconds` since 1970: that is the date at guest time 0. For a guest that has not run.
    pub fn set_birth(&mut self, unix_seconds: u64) {
        self.rtc = Rtc::new(unix_seconds);
    }

    /// Random bytes for a guest that starts, other ones at each call.
    pub fn draw_seed(&mut self) -> [u8; random::BYTES] {
        self.random.draw()
    }

    /// Size of the guest's RAM in bytes.
    #[must_use]
    pub const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The guest's clock.
    #[must_use]
    pub const fn clock(&self) -> &GuestClock {
        &self.clock
    }

    /// The guest's clock, to steer it.
    pub const fn clock_mut(&mut self) -> &mut GuestClock {
        &mut self.clock
    }

    /// What happened to network frames.
    #[must_use]
    pub const fn net_stats(&self) -> NetStats {
        self.net.device.stats()
    }

    /// Frames that wait for the guest's receive buffers.
    #[must_use]
    pub fn net_backlog(&self) -> usize {
        self.net.device.backlog()
    }

    /// How often the guest broke a virtqueue.
    #[must_use]
    pub fn malformed_queues(&self) -> u64 {
        self.net.malformed() + self.disk.as_ref().map_or(0, Transport::malformed)
    }

    // ---- Time and interrupts ----

    /// When the machine next does something by itself. Stop there and call [`advance`](Self::advance).
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        let others = [self.pit.next_deadline(), self.rtc.next_deadline(), self.disk_due, self.owed()];
        others.into_iter().flatten().chain(self.lapic.next_deadline()).min()
    }

    /// Does what is due at `now`; without effect when nothing is.
    pub fn advance(&mut self, now: GuestTime, memory: &mut GuestMemory) {
        self.lapic.advance(now);
        if self.pit.advance(now) {
            self.ioapic.set_line(acpi::PIT_PIN, true, &mut self.lapic);
            self.ioapic.set_line(acpi::PIT_PIN, false, &mut self.lapic);
        }
        if self.rtc.next_deadline().is_some() {
            self.rtc.advance(now);
            self.update_rtc();
        }
        if self.disk_due.is_some_and(|due| due <= now) {
            self.resume_disk(now, memory);
        }
        if self.owed().is_some_and(|due| due <= now) {
            self.pay(memory);
        }
    }

    /// The vector that the CPU should take, if its flags allow.
    #[must_use]
    pub fn pending_interrupt(&self) -> Option<u8> {
        self.lapic.pending()
    }

    /// The CPU took the interrupt `vector`, which was pending.
    pub fn interrupt_taken(&mut self, vector: u8) {
        self.lapic.taken(vector);
    }

    /// Takes note of an interrupt that the guest ended by memory. Before anything is done to the machine, and before its
    /// state is looked at: where both twins do, and nowhere else, as the guest may write the word again.
    pub fn take_end(&mut self, memory: &GuestMemory) {
        if self.lapic.is_serving() && self.kvm.take_end(memory) {
            self.lapic.ended();
        }
    }

    /// Says in memory whether the guest may end its interrupt there: after everything that was done to the machine.
    pub fn let_end(&mut self, memory: &mut GuestMemory) {
        self.kvm.let_end(self.lapic.may_end(), memory);
    }

    /// CR8, the task priority class.
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.lapic.cr8()
    }

    /// Writes CR8. The caller raises #GP for values above 15.
    pub fn set_cr8(&mut self, value: u8) {
        self.lapic.set_cr8(value);
    }

    // ---- Inputs ----

    /// An Ethernet frame arrives; the guest is stopped, so it sees all of it or nothing.
    pub fn packet_in(&mut self, memory: &mut GuestMemory, frame: &[u8]) {
        let live = self.net.work(memory, &mut self.lapic, |net, queues, memory| net.receive(frame, queues, memory));
        if live {
            self.was_paid();
            self.update_net();
        } else {
            self.net.device.refuse();
        }
    }

    /// Half of a frame arrives, and the device says nothing of it: only for a rule that is switched off. Returns whether the guest
    /// has a buffer for it.
    pub fn packet_half_in(&mut self, memory: &mut GuestMemory, frame: &[u8]) -> bool {
        let mut begun = false;
        self.net.work(memory, &mut self.lapic, |net, queues, memory| {
            begun = net.receive_half(frame, queues, memory)?;
            Ok(0)
        });
        begun
    }

    /// Console input arrives. Returns how many bytes were dropped for lack of room.
    pub fn console_in(&mut self, bytes: &[u8]) -> usize {
        let dropped = self.uart.receive(bytes);
        self.update_uart();
        dropped
    }

    fn update_uart(&mut self) {
        self.ioapic.set_line(uart::PIN, self.uart.line(), &mut self.lapic);
    }

    fn update_rtc(&mut self) {
        self.ioapic.set_line(rtc::PIN, self.rtc.line(), &mut self.lapic);
    }

    fn update_net(&mut self) {
        self.ioapic.set_line(NET_PIN, self.net.line(), &mut self.lapic);
    }
}

impl State for Platform {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        // What the machine is made of must be the same on both sides.
        let (digest, memory_bytes) = (self.cpuid.digest(), self.memory_bytes);
        let (mut their_digest, mut their_memory) = (digest, memory_bytes);
        v.u64(&mut their_digest)?;
        v.u64(&mut their_memory)?;
        if their_digest != digest {
            return Err(StateError::BadValue("the CPUID digest"));
        }
        if their_memory != memory_bytes {
            return Err(StateError::BadValue("the size of guest memory"));
        }
        self.clock.visit(v)?;
        self.msrs.visit(v)?;
        self.kvm.visit(v)?;
        self.lapic.visit(v)?;
        self.ioapic.visit(v)?;
        self.pic.visit(v)?;
        self.pit.visit(v)?;
        self.rtc.visit(v)?;
        self.uart.visit(v)?;
        self.power.visit(v)?;
        self.config_address.visit(v)?;
        self.bridge.visit(v)?;
        self.net.visit(v)?;
        self.watch.visit(v)?;
        self.visit_disk(v)?;
        self.random.visit(v)
    }
}
