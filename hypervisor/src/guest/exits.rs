//! What each exit means: the guest's instruction is carried out on the platform, or refused as hardware would.

use alloc::format;

use super::mmio::fault;
use super::{Guest, Noting};
use crate::cpu::registers::{CR4_OSXSAVE, CpuMsrs, EFER_LMA, EFER_LME, RFLAGS_RF, RFLAGS_TF, gpr};
use crate::cpu::{EXIT_KINDS, Exception, Exit, IoExit};
use crate::emulate::{decode, is_64_bit};
use crate::platform::{CpuidContext, Outputs, PowerEvent, Size, kvm};

/// Exits by kind, in the order of [`EXIT_KINDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExitCounts(pub [u64; EXIT_KINDS.len()]);

impl ExitCounts {
    pub(super) fn count(&mut self, exit: Exit) {
        self.0[exit.kind()] += 1;
    }
}

const MSR_EFER: u32 = 0xC000_0080;
/// Bits of EFER that a guest may set: SCE, LME, NXE (LMA is the CPU's).
const EFER_WRITABLE: u64 = 1 << 0 | EFER_LME | 1 << 11;

/// How an instruction ended.
pub(super) enum Done {
    /// It is complete; RIP goes on by its length in bytes.
    Next(u8),
    /// It is complete and has set RIP itself.
    Moved,
    /// It has not begun, and can now.
    Again,
    /// It raised an exception.
    Fault(Exception),
    /// It raised an exception that cannot be delivered: the machine is reset.
    TripleFault,
    /// It cannot be carried out; the guest is brought down, with the reason.
    Crash(alloc::string::String),
}

impl Guest {
    /// Handles an exit of the guest's own. Returns whether the guest stands at an exact stop now.
    pub(super) fn handle(&mut self, exit: Exit, out: &mut Noting<'_>) -> bool {
        let done = match exit {
            Exit::Interrupted | Exit::Overflow | Exit::Stepped | Exit::Kept => return false,
            Exit::Memory { gpa } => self.device_access(gpa, out),
            Exit::Io(io) => self.port_access(io, out),
            Exit::Cpuid => self.cpuid(),
            Exit::Rdtsc => self.read_tsc(false),
            Exit::Rdtscp => self.read_tsc(true),
            Exit::Rdmsr => self.read_msr(),
            Exit::Wrmsr => self.write_msr(),
            Exit::Hlt => {
                self.halted = true;
                self.by_length()
            }
            Exit::Cr8 => self.access_cr8(),
            Exit::PageFault { linear, error_code } => self.page_fault(linear, error_code),
            Exit::Control => self.control(out),
            Exit::CacheFlush => self.by_length(),
            Exit::Xsetbv => self.write_xcr0(),
            Exit::Rdpmc => Done::Fault(Exception::GENERAL_PROTECTION),
            Exit::Hypercall => self.hypercall(),
            Exit::Undefined => Done::Fault(Exception::UNDEFINED),
            Exit::Shutdown => Done::TripleFault,
            Exit::Invalid => Done::Crash("the CPU refuses the guest's state".into()),
            Exit::Unsupported(what) => Done::Crash(format!("{what} is not supported")),
            Exit::Unknown(code) => Done::Crash(format!("the CPU leaves it for {code:#x}, which is not known")),
            Exit::Unexpected(code) => panic!("exit {code:#x} at position {}", self.position()),
        };
        self.finish(done, out)
    }

    fn finish(&mut self, done: Done, out: &mut Noting<'_>) -> bool {
        match done {
            Done::Again => false,
            Done::TripleFault => {
                out.power(PowerEvent::Reset);
                self.finish(Done::Crash("triple fault".into()), out)
            }
            Done::Next(length) => {
                let rip = self.vcpu.registers().rip.wrapping_add(u64::from(length));
                self.retire(rip);
                true
            }
            Done::Moved => {
                let rip = self.vcpu.registers().rip;
                self.retire(rip);
                true
            }
            Done::Fault(exception) => {
                self.halted = false;
                self.vcpu.inject(exception);
                false
            }
            Done::Crash(reason) => {
                self.crash = Some(reason);
                true
            }
        }
    }

    /// An instruction was carried out: it counts, and the next is at `rip`.
    fn retire(&mut self, rip: u64) {
        let mode = self.vcpu.mode();
        let registers = self.vcpu.registers_mut();
        registers.rip = if is_64_bit(&mode) { rip } else { rip & 0xFFFF_FFFF };
        registers.rflags &= !RFLAGS_RF;
        let steps = registers.rflags & RFLAGS_TF != 0;
        self.vcpu.clear_interrupt_shadow();
        if steps {
            self.vcpu.trap_step();
            // HLT, too.
            self.halted = false;
        }
        self.progress.emulated();
    }

    /// Completes an instruction that needs nothing but its length.
    fn by_length(&mut self) -> Done {
        match self.instruction_length() {
            Ok(length) => Done::Next(length),
            Err(done) => done,
        }
    }

    fn instruction_length(&mut self) -> Result<u8, Done> {
        let mode = self.vcpu.mode();
        self.examine(&mode, |registers, bus| decode::instruction_length(&mode, registers, bus)).map_err(fault)
    }

    fn set_low(&mut self, index: usize, value: u32) {
        self.vcpu.registers_mut().gpr[index] = u64::from(value);
    }

    fn low(&self, index: usize) -> u32 {
        self.vcpu.registers().gpr[index] as u32
    }

    fn cpuid(&mut self) -> Done {
        let cr4_osxsave = self.vcpu.mode().cr4 & CR4_OSXSAVE != 0;
        let context = CpuidContext { cr4_osxsave, xcr0: self.vcpu.extended().xcr0() };
        let [eax, ebx, ecx, edx] = self.platform.cpuid(self.low(gpr::RAX), self.low(gpr::RCX), context);
        self.set_low(gpr::RAX, eax);
        self.set_low(gpr::RBX, ebx);
        self.set_low(gpr::RCX, ecx);
        self.set_low(gpr::RDX, edx);
        self.by_length()
    }

    fn read_tsc(&mut self, with_aux: bool) -> Done {
        let tsc = self.platform.tsc(self.now()).wrapping_add(self.clock_error());
        self.set_low(gpr::RAX, tsc as u32);
        self.set_low(gpr::RDX, (tsc >> 32) as u32);
        if with_aux {
            let aux = self.platform.tsc_aux();
            self.set_low(gpr::RCX, aux);
        }
        self.by_length()
    }

    fn read_msr(&mut self) -> Done {
        let msr = self.low(gpr::RCX);
        let value = match cpu_msr(&mut self.vcpu.msrs(), msr) {
            Some(value) => Ok(*value),
            None => {
                let now = self.now();
                self.platform.rdmsr(now, msr)
            }
        };
        match value {
            Ok(value) => {
                self.set_low(gpr::RAX, value as u32);
                self.set_low(gpr::RDX, (value >> 32) as u32);
                self.by_length()
            }
            Err(_) => Done::Fault(Exception::GENERAL_PROTECTION),
        }
    }

    fn write_msr(&mut self) -> Done {
        let msr = self.low(gpr::RCX);
        let value = u64::from(self.low(gpr::RDX)) << 32 | u64::from(self.low(gpr::RAX));
        let written = if msr == MSR_EFER {
            self.write_efer(value)
        } else {
            let mut msrs = self.vcpu.msrs();
            if let Some(place) = cpu_msr(&mut msrs, msr) {
                *place = value;
                self.vcpu.set_msrs(&msrs);
                true
            } else {
                let now = self.now();
                self.platform.wrmsr(now, msr, value, &mut self.memory).is_ok()
            }
        };
        if written { self.by_length() } else { Done::Fault(Exception::GENERAL_PROTECTION) }
    }

    /// See: APM volume 2, 3.1.7. LME cannot change while paging is on.
    fn write_efer(&mut self, value: u64) -> bool {
        let mut msrs = self.vcpu.msrs();
        let paging = self.vcpu.mode().cr0 & crate::cpu::registers::CR0_PG != 0;
        let changed = value ^ msrs.efer;
        if value & !(EFER_WRITABLE | EFER_LMA) != 0 || (paging && changed & EFER_LME != 0) {
            return false;
        }
        msrs.efer = (value & EFER_WRITABLE) | (msrs.efer & EFER_LMA);
        self.vcpu.set_msrs(&msrs);
        self.reload_paging();
        true
    }

    /// A hypercall of KVM's: Linux makes some that no feature bit offers, and wants to hear that there are none. See: Linux,
    /// Documentation/virt/kvm/x86/hypercalls.rst.
    fn hypercall(&mut self) -> Done {
        let length = match self.instruction_length() {
            Ok(length) => length,
            Err(done) => return done,
        };
        let mode = self.vcpu.mode();
        let result = if mode.segments.ss.dpl() == 0 { kvm::NO_SUCH_CALL } else { kvm::NOT_ALLOWED };
        // Sign-extended in 64-bit mode, zero-extended else.
        let wide = if is_64_bit(&mode) { result as i64 as u64 } else { u64::from(result as u32) };
        self.vcpu.registers_mut().gpr[gpr::RAX] = wide;
        Done::Next(length)
    }

    /// XSETBV. See: SDM volume 2D, "XSETBV".
    fn write_xcr0(&mut self) -> Done {
        let mode = self.vcpu.mode();
        let value = u64::from(self.low(gpr::RDX)) << 32 | u64::from(self.low(gpr::RAX));
        let (register, extended) = (self.low(gpr::RCX), self.vcpu.extended());
        if !extended.layout().has_xsave() || mode.cr4 & CR4_OSXSAVE == 0 {
            return Done::Fault(Exception::UNDEFINED);
        }
        if mode.segments.ss.dpl() != 0 || register != 0 || !extended.layout().allows(value) {
            return Done::Fault(Exception::GENERAL_PROTECTION);
        }
        extended.set_xcr0(value);
        self.by_length()
    }

    pub(super) fn access_cr8(&mut self) -> Done {
        let mode = self.vcpu.mode();
        match self.examine(&mode, |registers, bus| decode::mov_cr8(&mode, registers, bus)) {
            Ok(access) if access.write => {
                match u8::try_from(self.vcpu.registers().gpr[access.register]) {
                    Ok(value) if value <= 15 => self.platform.set_cr8(value),
                    _ => return Done::Fault(Exception::GENERAL_PROTECTION),
                }
                Done::Next(access.length)
            }
            Ok(access) => {
                self.vcpu.registers_mut().gpr[access.register] = u64::from(self.platform.cr8());
                Done::Next(access.length)
            }
            Err(error) => fault(error),
        }
    }

    fn port_access(&mut self, io: IoExit, out: &mut Noting<'_>) -> Done {
        if io.string {
            return self.string_port_access(io, out);
        }
        let Some(size) = Size::from_bytes(io.size) else {
            return Done::Crash(format!("port access of {} bytes", io.size));
        };
        let now = self.now();
        if io.input {
            let value = u64::from(self.platform.io_read(now, io.port, size)) & size.mask();
            let rax = &mut self.vcpu.registers_mut().gpr[gpr::RAX];
            // A 32-bit result clears the upper half, narrower ones leave the rest alone.
            *rax = if size == Size::Dword { value } else { *rax & !size.mask() | value };
        } else {
            let value = self.low(gpr::RAX) & size.mask() as u32;
            self.platform.io_write(now, io.port, size, value, &mut self.memory, out);
        }
        self.vcpu.registers_mut().rip = io.next_rip;
        Done::Moved
    }
}

/// The CPU's own register with number `msr`. EFER can be read here, but is written with checks.
fn cpu_msr(msrs: &mut CpuMsrs, msr: u32) -> Option<&mut u64> {
    match msr {
        MSR_EFER => Some(&mut msrs.efer),
        0x174 => Some(&mut msrs.sysenter_cs),
        0x175 => Some(&mut msrs.sysenter_esp),
        0x176 => Some(&mut msrs.sysenter_eip),
        0xC000_0081 => Some(&mut msrs.star),
        0xC000_0082 => Some(&mut msrs.lstar),
        0xC000_0083 => Some(&mut msrs.cstar),
        0xC000_0084 => Some(&mut msrs.sfmask),
        0xC000_0102 => Some(&mut msrs.kernel_gs_base),
        _ => None,
    }
}
