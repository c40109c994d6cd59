//! The part of KVM's paravirtual interface that is a pure function of the machine's state: its clock, and ends of interrupts
//! without an exit.
//!
//! Guests that know it learn the TSC's frequency and the date without a measurement, take x2APIC without interrupt
//! remapping, and neither delay port accesses nor test their timers. Guest time is the TSC, but for an offset: so what the
//! structure in guest memory says holds until the guest itself moves its TSC.
//!
//! A word of guest memory says whether the guest may end its interrupt by clearing the word. It is set when an interrupt
//! becomes pending and no other is pending or in service, and cleared when another joins it: at an exact stop in either case,
//! so that the word is a function of the position. A guest may also set it again: so whether it was cleared is looked at only
//! where both twins do, before something happens to the machine or its state is saved; until then it does not matter.
//! See: Linux, Documentation/virt/kvm/x86/cpuid.rst, msr.rst; arch/x86/include/asm/pvclock-abi.h.

use super::access::Gp;
use super::clock::GuestTime;
use crate::memory::{Gpa, GuestMemory};
use crate::state::{State, StateError, Visitor};

/// The first CPUID leaf of the interface: signature in EBX, ECX, EDX.
pub const CPUID: u32 = 0x4000_0000;
/// "KVMKVMKVM" and three zeros.
pub const SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";
/// EAX of the second leaf: port accesses need no delay, the clock by the MSRs below, which never jumps against the TSC, and
/// ends of interrupts by a word in memory.
pub const FEATURES: u32 = 1 << 1 | 1 << 3 | 1 << 6 | 1 << 24;

/// Written with an address: the date at guest time 0 is put there.
pub const WALL_CLOCK: u32 = 0x4B56_4D00;
/// Written with an address and `ENABLE`: what makes time of the TSC is put there.
pub const SYSTEM_TIME: u32 = 0x4B56_4D01;
/// Written with an address and `ENABLE`: the word by which the guest ends interrupts.
pub const EOI: u32 = 0x4B56_4D04;
/// [`SYSTEM_TIME`], [`EOI`]: in use.
const ENABLE: u64 = 1 << 0;

/// What a hypercall gives that is not there: KVM's ENOSYS. None is there.
pub const NO_SUCH_CALL: i32 = -1000;
/// What it gives to code without the system's rights: EPERM.
pub const NOT_ALLOWED: i32 = -1;

/// The word's bit: the guest may end its interrupt by clearing it.
const MAY_END: u32 = 1 << 0;

/// `pvclock_vcpu_time_info.flags`: equal on all processors.
const TSC_STABLE: u8 = 1 << 0;
/// A nanosecond a TSC tick: shifted left by one, then times one half, in 0.32 fixed point.
const SHIFT: u8 = 1;
const HALF: u32 = 1 << 31;
const _: () = assert!(super::cpuid::TSC_HZ == 1_000_000_000);

/// What the guest wrote to the registers.
#[derive(Debug, Clone, Default)]
pub struct Kvm {
    wall_clock: u64,
    system_time: u64,
    eoi: u64,
    /// [`MAY_END`] was set and not taken back.
    may_end: bool,
}

impl Kvm {
    /// Reads one of the registers; `None` if `msr` is no such.
    #[must_use]
    pub const fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            WALL_CLOCK => Some(self.wall_clock),
            SYSTEM_TIME => Some(self.system_time),
            EOI => Some(self.eoi),
            _ => None,
        }
    }

    /// [`WALL_CLOCK`] is written; at guest time 0 it was `epoch`, in seconds since 1970.
    ///
    /// # Errors
    /// The address is not aligned, or no memory.
    pub fn write_wall_clock(&mut self, value: u64, epoch: u64, memory: &mut GuestMemory) -> Result<(), Gp> {
        let place = place::<12>(value, memory)?;
        let version = next_version(place);
        place[4..8].copy_from_slice(&(epoch as u32).to_le_bytes());
        place[8..].fill(0);
        place[..4].copy_from_slice(&version.to_le_bytes());
        self.wall_clock = value;
        Ok(())
    }

    /// [`SYSTEM_TIME`] is written at `now`, while the TSC reads `tsc`.
    ///
    /// # Errors
    /// The address is not aligned, or no memory.
    pub fn write_system_time(
        &mut self,
        value: u64,
        now: GuestTime,
        tsc: u64,
        memory: &mut GuestMemory,
    ) -> Result<(), Gp> {
        if value & ENABLE != 0 {
            place::<32>(value & !ENABLE, memory)?;
        }
        self.system_time = value;
        self.tsc_moved(now, tsc, memory);
        Ok(())
    }

    /// [`EOI`] is written.
    ///
    /// # Errors
    /// The address is not aligned, or no memory.
    pub fn write_eoi(&mut self, value: u64, memory: &mut GuestMemory) -> Result<(), Gp> {
        if value & ENABLE != 0 {
            place::<4>(value & !ENABLE, memory)?;
        }
        self.set_may_end(false, memory);
        self.eoi = value;
        Ok(())
    }

    /// Whether the guest has ended the interrupt that it is serving; asked when it is serving one.
    pub fn take_end(&mut self, memory: &GuestMemory) -> bool {
        let ended = self.may_end && self.word(memory).is_some_and(|word| word & MAY_END == 0);
        self.may_end &= !ended;
        ended
    }

    /// At an exact stop: `wanted` says whether the guest may end its interrupt by memory. It may go on to if it could.
    pub fn let_end(&mut self, wanted: MayEnd, memory: &mut GuestMemory) {
        match wanted {
            MayEnd::Begin if !self.may_end && self.eoi & ENABLE != 0 => self.set_may_end(true, memory),
            MayEnd::No => self.set_may_end(false, memory),
            _ => {}
        }
    }

    fn set_may_end(&mut self, on: bool, memory: &mut GuestMemory) {
        if self.may_end == on {
            return;
        }
        let Some(word) = self.word(memory) else { return };
        let word = if on { word | MAY_END } else { word & !MAY_END };
        self.may_end = memory.write(Gpa(self.eoi & !ENABLE), &word.to_le_bytes()).is_ok() && on;
    }

    fn word(&self, memory: &GuestMemory) -> Option<u32> {
        memory.read(Gpa(self.eoi & !ENABLE)).ok().map(u32::from_le_bytes)
    }

    /// The TSC reads `tsc` at `now`, and not what it read before.
    pub fn tsc_moved(&self, now: GuestTime, tsc: u64, memory: &mut GuestMemory) {
        if self.system_time & ENABLE == 0 {
            return;
        }
        let Ok(place) = place::<32>(self.system_time & !ENABLE, memory) else { return };
        let version = next_version(place);
        place[4..8].fill(0);
        place[8..16].copy_from_slice(&tsc.to_le_bytes());
        place[16..24].copy_from_slice(&now.0.to_le_bytes());
        place[24..28].copy_from_slice(&HALF.to_le_bytes());
        place[28..].copy_from_slice(&[SHIFT, TSC_STABLE, 0, 0]);
        place[..4].copy_from_slice(&version.to_le_bytes());
    }
}

/// Whether the guest may end its interrupt by memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayEnd {
    /// An interrupt waits, which is the only one.
    Begin,
    /// It is being served, and still the only one.
    GoOn,
    /// There is none, there are several, or it has to be told to the I/O APIC when it ends.
    No,
}

/// A structure of the guest's.
fn place<const LEN: usize>(gpa: u64, memory: &mut GuestMemory) -> Result<&mut [u8], Gp> {
    if !gpa.is_multiple_of(4) {
        return Err(Gp);
    }
    memory.slice_mut(Gpa(gpa), LEN as u64).map_err(|_| Gp)
}

/// The version that follows: another even number, so that who reads just now reads again.
fn next_version(place: &[u8]) -> u32 {
    let version = place.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    (version | 1).wrapping_add(1)
}

impl State for Kvm {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u64(&mut self.wall_clock)?;
        v.u64(&mut self.system_time)?;
        v.u64(&mut self.eoi)?;
        v.bool(&mut self.may_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time that a guest makes of the structure at `gpa`, as Linux' `__pvclock_read_cycles` does.
    fn time_of(memory: &GuestMemory, gpa: u64, tsc: u64) -> u64 {
        let bytes: [u8; 32] = memory.read(Gpa(gpa)).unwrap();
        let number = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        assert_eq!((number(0) & 1, bytes[28], bytes[29]), (0, 1, TSC_STABLE));
        let shifted = u128::from(tsc.wrapping_sub(number(8)) << bytes[28]);
        number(16) + ((shifted * u128::from(number(24) as u32)) >> 32) as u64
    }

    #[test]
    fn guests_make_guest_time_of_the_tsc() {
        let mut memory = GuestMemory::for_test(8192);
        let mut kvm = Kvm::default();
        memory.write(Gpa(64), &[7, 0, 0, 0]).unwrap();
        kvm.write_system_time(64 | ENABLE, GuestTime(5_000), 1_000, &mut memory).unwrap();
        assert_eq!(memory.read(Gpa(64)), Ok([8, 0, 0, 0]));
        for ticks in [0, 1, 12_345, 1 << 40] {
            assert_eq!(time_of(&memory, 64, 1_000 + ticks), 5_000 + ticks);
        }
        kvm.tsc_moved(GuestTime(6_000), 1 << 63, &mut memory);
        assert_eq!(memory.read(Gpa(64)), Ok([10, 0, 0, 0]));
        assert_eq!(time_of(&memory, 64, (1 << 63) + 9), 6_009);
        assert_eq!(kvm.read(SYSTEM_TIME), Some(65));
        kvm.write_system_time(0, GuestTime(7_000), 0, &mut memory).unwrap();
        kvm.tsc_moved(GuestTime(8_000), 5, &mut memory);
        assert_eq!(time_of(&memory, 64, (1 << 63) + 9), 6_009, "who does not use it is left alone");
    }

    #[test]
    fn the_date_is_that_of_guest_time_0() {
        let mut memory = GuestMemory::for_test(4096);
        let mut kvm = Kvm::default();
        kvm.write_wall_clock(4084, 1_700_000_000, &mut memory).unwrap();
        let date = 1_700_000_000_u32.to_le_bytes();
        assert_eq!(memory.read(Gpa(4084)), Ok([2, 0, 0, 0, date[0], date[1], date[2], date[3], 0, 0, 0, 0]));
    }

    #[test]
    fn structures_that_are_no_memory_are_refused() {
        let mut memory = GuestMemory::for_test(4096);
        let mut kvm = Kvm::default();
        for bad in [2, 4096 - 8, 4096, u64::MAX - 3] {
            assert_eq!(kvm.write_wall_clock(bad, 0, &mut memory), Err(Gp), "{bad:#x}");
            assert_eq!(kvm.write_system_time(bad | ENABLE, GuestTime(0), 0, &mut memory), Err(Gp), "{bad:#x}");
        }
        assert_eq!((kvm.read(WALL_CLOCK), kvm.read(SYSTEM_TIME)), (Some(0), Some(0)));
        kvm.write_system_time(u64::MAX - 1, GuestTime(0), 0, &mut memory).unwrap();
    }
}
