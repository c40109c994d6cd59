//! Tracked paging: the guest's page faults and its accesses to control registers. See [`crate::mmu`].

use alloc::boxed::Box;

use pollux_ft::Position;

use super::exits::Done;
use super::mmio::fault;
use super::{Guest, Noting};
use crate::cpu::registers::{CR0_CD, CR0_ET, CR0_NW, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, Segment};
use crate::cpu::{Exception, Mode};
use crate::emulate::control::{self, Control};
use crate::emulate::walk::{Access, AccessKind, Paging, WalkError, error_code};
use crate::emulate::{Emulated, Fault};
use crate::mmu::{Mmu, TABLES};
use crate::platform::{CpuidContext, Platform};

const RFLAGS_AC: u64 = 1 << 18;

/// Bits of CR4, each with the bit of a CPUID register that offers it: leaf 1 EDX, leaf 1 ECX, leaf 7 EBX.
const CR4_BITS: [&[(u32, u32)]; 3] = [
    // VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE (with every local APIC), OSFXSR, OSXMMEXCPT.
    &[(0, 1), (1, 1), (2, 4), (3, 2), (4, 3), (5, 6), (6, 7), (7, 13), (8, 9), (9, 24), (10, 25)],
    // PCIDE, OSXSAVE.
    &[(17, 17), (18, 26)],
    // FSGSBASE, SMEP, SMAP.
    &[(16, 0), (20, 7), (21, 20)],
];

/// The bits that the guest may set in CR4.
fn allowed_cr4(platform: &Platform) -> u64 {
    let leaf = |leaf| platform.cpuid(leaf, 0, CpuidContext::default());
    let ([_, _, ecx, edx], [_, ebx, ..]) = (leaf(1), leaf(7));
    let offered = [edx, ecx, ebx].into_iter().zip(CR4_BITS);
    offered
        .flat_map(|(register, bits)| bits.iter().filter(move |&&(_, feature)| register >> feature & 1 != 0))
        .fold(0, |mask, &(bit, _)| mask | 1 << bit)
}

/// An access that faulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    position: Position,
    rip: u64,
    linear: u64,
    code: u32,
}

/// A write to a control register raises #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused;

/// The registers after a write to CR0. See: APM volume 2, 3.1.1 and 14.6.
fn write_cr0(mode: &Mode, value: u64) -> Result<Paging, Refused> {
    let begins = value & !mode.cr0 & CR0_PG != 0;
    let ends = mode.cr0 & !value & CR0_PG != 0;
    let in_64_bit = mode.efer & EFER_LMA != 0 && mode.segments.cs.attributes & Segment::LONG != 0;
    let long = mode.efer & EFER_LME != 0;
    let malformed = value >> 32 != 0
        || value & (CR0_PG | CR0_PE) == CR0_PG
        || value & (CR0_NW | CR0_CD) == CR0_NW
        || begins && long && (mode.cr4 & CR4_PAE == 0 || mode.segments.cs.attributes & Segment::LONG != 0)
        || ends && in_64_bit;
    if malformed {
        return Err(Refused);
    }
    let efer = match value & CR0_PG != 0 {
        true if long => mode.efer | EFER_LMA,
        _ => mode.efer & !EFER_LMA,
    };
    Ok(Paging { cr0: value | CR0_ET, efer, ..Paging::from(mode) })
}

/// The registers after a write to CR4.
fn write_cr4(mode: &Mode, value: u64, allowed: u64) -> Result<Paging, Refused> {
    let leaves_long = mode.efer & EFER_LMA != 0 && value & CR4_PAE == 0;
    if value & !allowed != 0 || leaves_long { Err(Refused) } else { Ok(Paging { cr4: value, ..Paging::from(mode) }) }
}

/// The registers after a write to CR3.
fn write_cr3(mode: &Mode, value: u64, physical_bits: u32) -> Result<Paging, Refused> {
    let long = mode.efer & EFER_LMA != 0;
    if long && value >> physical_bits != 0 { Err(Refused) } else { Ok(Paging { cr3: value, ..Paging::from(mode) }) }
}

impl Guest {
    /// Lets the CPU walk tables that follow from the guest's instructions alone. Returns whether it can. The guest's state is
    /// to be loaded, or the guest to be started, behind that.
    pub fn track_paging(&mut self) -> bool {
        let mmu = Box::new(Mmu::new(TABLES, self.platform.physical_bits()));
        let can = self.vcpu.track_paging(mmu.place());
        self.mmu = can.then_some(mmu);
        can
    }

    /// Begins anew with the guest's translations: those of before are no part of the state that is saved and loaded.
    pub(super) fn restart_paging(&mut self) {
        if let Some(mmu) = &mut self.mmu {
            mmu.reset();
        }
        self.opened = None;
        self.reload_paging();
    }

    /// The control registers were written.
    pub(super) fn reload_paging(&mut self) {
        if self.mmu.is_some() {
            let paging = Paging::from(&self.vcpu.mode());
            self.set_paging(&paging);
        }
    }

    fn set_paging(&mut self, paging: &Paging) {
        let Some(mmu) = &mut self.mmu else { return self.vcpu.set_paging(paging, None) };
        match mmu.load(&self.memory, paging) {
            Ok(root) => self.vcpu.set_paging(paging, root),
            Err(error) => self.crash = Some(alloc::format!("{}", Fault::from(error))),
        }
    }

    /// Who walks the guest's page tables, for people and for twins to compare.
    #[must_use]
    pub fn paging_name(&self) -> &'static str {
        if self.mmu.is_some() { "tracked paging" } else { "native paging" }
    }

    /// Of what went through the guest's translations, for hashes.
    pub(super) fn paging_history(&self) -> u64 {
        self.mmu.as_ref().map_or(0, |mmu| mmu.history())
    }

    /// The guest's instruction needs a translation that the CPU did not find, or gets a page fault.
    pub(super) fn page_fault(&mut self, linear: u64, code: u32) -> Done {
        let has = |bit| code & bit != 0;
        let kind = match (has(error_code::WRITE), has(error_code::FETCH)) {
            (true, _) => AccessKind::Write,
            (false, true) => AccessKind::Fetch,
            (false, false) => AccessKind::Read,
        };
        let mode = self.vcpu.mode();
        let attempt = Attempt { position: self.position(), rip: self.vcpu.registers().rip, linear, code };
        // What the CPU refuses although our tables allow it, and it has just forgotten all others, is no access of the
        // instruction's own, but one to a table of the system's: RFLAGS.AC means nothing to that. Code with user rights
        // has no other accesses with the system's. See: SDM volume 3, 5.6.
        let implicit = mode.segments.ss.dpl() == 3 || self.attempt.replace(attempt) == Some(attempt);
        let smap_off = !implicit && self.vcpu.registers().rflags & RFLAGS_AC != 0;
        let access = Access { kind, user: has(error_code::USER), smap_off };
        let Some(mmu) = &mut self.mmu else {
            return Done::Crash("a page fault exits, and no paging is tracked".into());
        };
        // Our tables have no reserved bits but those of the guest's pages that this CPU does not know.
        let filled = match has(error_code::RESERVED) {
            true => return self.deliver_fault(linear, code),
            false => mmu.fault(&mut self.memory, linear, access),
        };
        match filled {
            Ok(root) => {
                self.walk_anew(&mode, root);
                Done::Again
            }
            Err(WalkError::PageFault(fault)) => self.deliver_fault(fault.address, fault.error_code),
            Err(error) => fault(error.into()),
        }
    }

    /// Has the CPU forget what it has cached and walk from `root`, if there is one.
    pub(super) fn walk_anew(&mut self, mode: &Mode, root: Option<u64>) {
        if root.is_some() {
            self.vcpu.set_paging(&Paging::from(mode), root);
        }
    }

    /// As long as pages are open to one instruction, the guest stops behind it: closes them when it has run, and says where
    /// that is.
    pub(super) fn close_pages(&mut self) -> Option<Position> {
        let opened = self.opened?;
        if self.position() == opened {
            return Some(opened.after(1));
        }
        self.opened = None;
        let root = self.mmu.as_mut().and_then(|mmu| mmu.close());
        let mode = self.vcpu.mode();
        self.walk_anew(&mode, root);
        None
    }

    /// The guest gets the page fault, or what it makes of an exception that was being delivered. See: APM volume 2, 8.2.9.
    fn deliver_fault(&mut self, address: u64, code: u32) -> Done {
        const DOUBLE_FAULT: u8 = 8;
        // Contributory: divide error, invalid TSS, segments, stack, general protection; and a page fault.
        const DOUBLES: [u8; 6] = [0, 10, 11, 12, 13, 14];
        let cr2 = Some(address);
        match self.vcpu.interrupted_exception() {
            Some(DOUBLE_FAULT) => Done::TripleFault,
            Some(first) if DOUBLES.contains(&first) => Done::Fault(Exception { cr2, ..Exception::DOUBLE_FAULT }),
            _ => Done::Fault(Exception { vector: 14, error_code: Some(code), cr2 }),
        }
    }

    /// An access to a control register, or INVLPG.
    pub(super) fn control(&mut self, out: &mut Noting<'_>) -> Done {
        let mode = self.vcpu.mode();
        let cr2 = self.vcpu.cr2();
        let mut stepped = None;
        let done = self.emulate(out, |cpu, bus| {
            stepped = Some(control::step(cpu, cr2, bus)?);
            Ok(Emulated::Retired)
        });
        let Some((control, after)) = stepped else { return done };
        let written = match control {
            Control::Priority => return self.access_cr8(),
            Control::Read => Ok(None),
            Control::Write { register: 2, value } => {
                self.vcpu.set_cr2(value);
                Ok(None)
            }
            Control::Invalidate { linear } => {
                self.invalidate(&mode, linear);
                Ok(None)
            }
            Control::Write { register: 0, value } => write_cr0(&mode, value).map(Some),
            Control::Write { register: 3, value } => write_cr3(&mode, value, self.platform.physical_bits()).map(Some),
            Control::Write { value, .. } => write_cr4(&mode, value, allowed_cr4(&self.platform)).map(Some),
        };
        let Ok(written) = written else { return Done::Fault(Exception::GENERAL_PROTECTION) };
        *self.vcpu.registers_mut() = after;
        if let Some(paging) = written {
            self.set_paging(&paging);
        }
        done
    }

    fn invalidate(&mut self, mode: &Mode, linear: u64) {
        let Some(mmu) = &mut self.mmu else { return };
        let root = mmu.invalidate(&self.memory, linear);
        self.walk_anew(mode, root);
    }
}
