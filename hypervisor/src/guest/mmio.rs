//! Accesses to devices in memory, and string accesses to ports: instructions that must be emulated.

use super::exits::Done;
use super::{Guest, Noting};
use crate::cpu::registers::Registers;
use crate::cpu::vectors::LiveVectors;
use crate::cpu::{IoExit, Mode};
use crate::emulate::walk::{self, Access, Paging, WalkError};
use crate::emulate::{Bus, CpuView, Fault, io, mmio};
use crate::memory::{Gpa, GuestMemory};
use crate::mmu::Mmu;
use crate::platform::{GuestTime, Platform, Size};

/// Memory as the emulator sees it: by the translations that the CPU uses. No device is there.
pub(super) struct MemoryBus<'a> {
    memory: &'a mut GuestMemory,
    mmu: Option<&'a mut Mmu>,
    /// The CPU must walk anew, from here.
    root: Option<u64>,
}

impl Bus for MemoryBus<'_> {
    fn mmio_read(&mut self, _: Gpa, _: u8) -> u64 {
        u64::MAX
    }

    fn mmio_write(&mut self, _: Gpa, _: u8, _: u64) {}

    fn memory(&mut self) -> &mut GuestMemory {
        self.memory
    }

    fn translate(&mut self, paging: &Paging, linear: u64, access: Access) -> Result<Gpa, WalkError> {
        let Some(mmu) = &mut self.mmu else { return walk::translate(paging, self.memory, linear, access) };
        let (gpa, root) = mmu.translate(self.memory, linear, access)?;
        self.root = root.or(self.root);
        Ok(gpa)
    }
}

/// The platform as the emulator sees it, at one instant.
pub(super) struct PlatformBus<'a, 'b> {
    platform: &'a mut Platform,
    memory: MemoryBus<'a>,
    out: &'a mut Noting<'b>,
    now: GuestTime,
}

/// The emulator accesses 1, 2, 4 or 8 bytes.
fn width(size: u8) -> Size {
    Size::from_bytes(size).expect("the emulator splits accesses into 1, 2, 4 or 8 bytes")
}

impl Bus for PlatformBus<'_, '_> {
    fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        self.platform.mmio_read(self.now, gpa, width(size))
    }

    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        self.platform.mmio_write(self.now, gpa, width(size), value, self.memory.memory, self.out);
    }

    fn memory(&mut self) -> &mut GuestMemory {
        self.memory.memory
    }

    fn translate(&mut self, paging: &Paging, linear: u64, access: Access) -> Result<Gpa, WalkError> {
        self.memory.translate(paging, linear, access)
    }
}

impl io::PortBus for PlatformBus<'_, '_> {
    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        self.platform.io_read(self.now, port, width(size))
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.platform.io_write(self.now, port, width(size), value, self.memory.memory, self.out);
    }
}

impl Guest {
    /// An instruction touched guest-physical memory that is not RAM.
    pub(super) fn device_access(&mut self, gpa: Gpa, out: &mut Noting<'_>) -> Done {
        if gpa.0 < self.memory.len() {
            return Done::Crash(alloc::format!("memory at {gpa:?} is not mapped"));
        }
        self.emulate(out, |cpu, bus| mmio::step(cpu, bus))
    }

    /// INS or OUTS.
    pub(super) fn string_port_access(&mut self, exit: IoExit, out: &mut Noting<'_>) -> Done {
        self.emulate(out, |cpu, bus| io::string_io(cpu, bus, &exit))
    }

    /// Carries out one instruction, or one iteration of a repeated one: either counts as one tick.
    pub(super) fn emulate(
        &mut self,
        out: &mut Noting<'_>,
        step: impl FnOnce(&mut CpuView<'_>, &mut PlatformBus<'_, '_>) -> Result<crate::emulate::Emulated, Fault>,
    ) -> Done {
        let now = self.now();
        let mode = self.vcpu.mode();
        let mut cpu = CpuView { registers: self.vcpu.registers_mut(), mode: &mode, vectors: &mut LiveVectors };
        let memory = MemoryBus { memory: &mut self.memory, mmu: self.mmu.as_deref_mut(), root: None };
        let mut bus = PlatformBus { platform: &mut self.platform, memory, out, now };
        let done = step(&mut cpu, &mut bus);
        let root = bus.memory.root;
        self.walk_anew(&mode, root);
        match done {
            Ok(_) => Done::Moved,
            Err(error) => fault(error),
        }
    }

    /// Looks at the next instruction, or at as much of what it does as needs memory alone.
    pub(super) fn examine<R>(&mut self, mode: &Mode, look: impl FnOnce(&Registers, &mut MemoryBus<'_>) -> R) -> R {
        let mut bus = MemoryBus { memory: &mut self.memory, mmu: self.mmu.as_deref_mut(), root: None };
        let found = look(self.vcpu.registers(), &mut bus);
        let root = bus.root;
        self.walk_anew(mode, root);
        found
    }
}

/// What becomes of an instruction that the emulator did not carry out.
pub(super) fn fault(fault: Fault) -> Done {
    match fault {
        Fault::Exception(exception) => Done::Fault(exception),
        other => Done::Crash(alloc::format!("{other}")),
    }
}
