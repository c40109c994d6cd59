//! Measures what the world switch itself costs in ticks, so that only the guest's instructions are counted.

use alloc::vec::Vec;
use core::fmt;

use super::registers::{CpuState, gpr};
use super::{Exit, LentTsc, Vcpu};
use crate::memory::{Gpa, GuestMemory, OutsideMemory};

const CODE: u64 = 0x1000;
const NOP: u8 = 0x90;
const HLT: u8 = 0xF4;
const RDTSC: [u8; 2] = [0x0F, 0x31];
/// A timer whose lead varies by more ticks counts something else than instructions.
const LARGEST_SPREAD: u64 = 1024;
/// NOPs that a timer interrupts.
const NOPS: usize = 8000;
/// Timer counts that are tried, larger than any plausible lead: neighbours, for timers that are looked at only now and
/// then, and two that are far away, for timers that do not count instructions.
fn timer_counts() -> impl Iterator<Item = u32> {
    (200..264).chain([500, 3000])
}

/// What the world switch costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calibration {
    /// TSC ticks of the world switch itself.
    pub overhead: u64,
    /// Timer ticks that pass between arming the timer and the guest's first instruction; less than none when the guest
    /// runs on beyond the timer. Where it varies, the largest that was seen: a timer that is armed with it comes late
    /// rather than early.
    pub lead: i64,
    /// Ticks between the smallest and the largest lead.
    pub spread: u64,
    /// What a guest whose TSC is lent as 0 reads by its first instruction; `None` where it cannot be lent.
    pub tsc_lead: Option<u64>,
}

impl Calibration {
    /// What the timer is set to, so that it comes when the guest has run `ticks`.
    pub(super) fn timer_count(&self, ticks: u64) -> u32 {
        // With 0 it would not come at all, or before the guest has run.
        ticks.saturating_add_signed(self.lead).clamp(1, u32::MAX.into()) as u32
    }
}

/// A virtual CPU whose entries are counted by the TSC and limited by a timer.
pub trait Timed: Vcpu {
    /// One entry with a raw timer count, 0 for none; returns the exit and raw TSC ticks.
    fn enter_raw(&mut self, timer_count: u32) -> (Exit, u64);
}

/// Why no constant could be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalibrationError {
    /// The guest does not have the memory for the test code.
    Memory(OutsideMemory),
    /// A run ended otherwise than the code says.
    Exit(Exit),
    /// The overhead of the world switch is not the same every time: TSC ticks first and later.
    OverheadVaries(u64, u64),
    /// The timer fires at distances that nothing could be made of: its smallest and its largest lead.
    LeadVaries(i64, i64),
}

impl fmt::Display for CalibrationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Exit(exit) => write!(f, "a straight run of instructions ended by {exit:?}"),
            Self::OverheadVaries(first, later) => {
                write!(f, "the TSC does not count instructions: a world switch took {first} ticks, then {later}")
            }
            Self::LeadVaries(smallest, largest) => {
                write!(f, "the timer does not count instructions: its lead was {smallest} to {largest} ticks")
            }
        }
    }
}

/// Finds the constants of `vcpu` with straight runs of NOPs in `memory` (left zeroed). `settle` lets host interrupts in.
///
/// # Errors
/// When the overhead is not constant, or the timer's lead varies more than a skid may: then TSC and timer do not count
/// instructions on this machine. A timer that is late by less is for the counter's self-test to judge.
pub fn calibrate(
    vcpu: &mut dyn Timed,
    memory: &mut GuestMemory,
    settle: &mut dyn FnMut(),
) -> Result<Calibration, CalibrationError> {
    let mut overhead = None;
    for count in [0, 1, 10, 1000, 1000, 10, 1, 0] {
        place(memory, count)?;
        let (exit, ticks) = straight(vcpu, 0);
        if exit != Exit::Hlt {
            return Err(CalibrationError::Exit(exit));
        }
        let found = ticks.wrapping_sub(count as u64);
        let first = *overhead.get_or_insert(found);
        if found != first {
            return Err(CalibrationError::OverheadVaries(first, found));
        }
    }
    let (smallest, lead) = leads(vcpu, memory, settle)?;
    let spread = lead.abs_diff(smallest);
    if spread > LARGEST_SPREAD {
        return Err(CalibrationError::LeadVaries(smallest, lead));
    }
    let tsc_lead = tsc_lead(vcpu, memory)?;
    memory.slice_mut(Gpa(CODE), 0x2000).map_err(CalibrationError::Memory)?.fill(0);
    Ok(Calibration { overhead: overhead.unwrap_or(0), lead, spread, tsc_lead })
}

/// What a guest whose TSC is lent as 0 reads by its first instruction. The CPU has no calibration yet that takes it off.
fn tsc_lead(vcpu: &mut dyn Timed, memory: &mut GuestMemory) -> Result<Option<u64>, CalibrationError> {
    if !vcpu.lend_tsc(Some(LentTsc { now: 0, aux: 0 })) {
        return Ok(None);
    }
    memory.write(Gpa(CODE), &[RDTSC[0], RDTSC[1], HLT]).map_err(CalibrationError::Memory)?;
    let (exit, _) = straight(vcpu, 0);
    vcpu.lend_tsc(None);
    let registers = &vcpu.registers().gpr;
    let read = registers[gpr::RDX] << 32 | registers[gpr::RAX] & u64::from(u32::MAX);
    Ok((exit == Exit::Hlt).then_some(read))
}

/// The smallest and the largest lead of the timer.
fn leads(
    vcpu: &mut dyn Timed,
    memory: &mut GuestMemory,
    settle: &mut dyn FnMut(),
) -> Result<(i64, i64), CalibrationError> {
    place(memory, NOPS)?;
    let (mut smallest, mut largest) = (i64::MAX, i64::MIN);
    for timer in timer_counts() {
        let (exit, _) = straight(vcpu, timer);
        settle();
        if exit != Exit::Interrupted {
            return Err(CalibrationError::Exit(exit));
        }
        // At most NOPS: the guest halts behind them.
        let ran = vcpu.registers().rip.wrapping_sub(CODE) as i64;
        let lead = i64::from(timer) - ran;
        (smallest, largest) = (smallest.min(lead), largest.max(lead));
    }
    Ok((smallest, largest))
}

/// Places `count` NOPs and a HLT.
fn place(memory: &mut GuestMemory, count: usize) -> Result<(), CalibrationError> {
    let mut code: Vec<u8> = alloc::vec![NOP; count];
    code.push(HLT);
    memory.write(Gpa(CODE), &code).map_err(CalibrationError::Memory)
}

/// One entry at the beginning of the code.
fn straight(vcpu: &mut dyn Timed, timer: u32) -> (Exit, u64) {
    vcpu.load(&CpuState::real_mode(CODE));
    vcpu.enter_raw(timer)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn the_timer_is_set_ahead_by_the_lead_and_never_to_nothing() {
        let count = |lead, ticks| Calibration { lead, ..Calibration::default() }.timer_count(ticks);
        assert_eq!((count(1, 1), count(1, 0), count(0, 0)), (2, 1, 1));
        assert_eq!((count(-23, 200), count(-23, 10)), (177, 1));
        assert_eq!(count(20, u64::MAX), u32::MAX);
    }

    #[test]
    fn a_negative_lead_is_printed_as_what_it_is() {
        let error = CalibrationError::LeadVaries(-5024, -23).to_string();
        assert!(error.ends_with("its lead was -5024 to -23 ticks"), "{error}");
    }
}
