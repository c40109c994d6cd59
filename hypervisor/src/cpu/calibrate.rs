//! Measures what the world switch itself costs in ticks, so that only the guest's instructions are counted.

use alloc::vec::Vec;
use core::fmt;

use super::registers::CpuState;
use super::{Exit, Vcpu};
use crate::memory::{Gpa, GuestMemory, OutsideMemory};

const CODE: u64 = 0x1000;
const NOP: u8 = 0x90;
const HLT: u8 = 0xF4;
/// Timer counts that are tried; larger than any plausible lead.
const TIMER_COUNTS: [u32; 4] = [200, 201, 500, 3000];

/// What the world switch costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calibration {
    /// TSC ticks of the world switch itself.
    pub overhead: u64,
    /// Timer ticks that pass between arming the timer and the guest's first instruction.
    pub lead: u64,
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
    /// The timer does not fire at a constant distance: ticks first and later.
    LeadVaries(u64, u64),
}

impl fmt::Display for CalibrationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Exit(exit) => write!(f, "a straight run of instructions ended by {exit:?}"),
            Self::OverheadVaries(first, later) => {
                write!(f, "the TSC does not count instructions: a world switch took {first} ticks, then {later}")
            }
            Self::LeadVaries(first, later) => {
                write!(f, "the timer does not count instructions: its lead was {first} ticks, then {later}")
            }
        }
    }
}

/// Finds the constants of `vcpu` with straight runs of NOPs in `memory` (left zeroed). `settle` lets host interrupts in.
///
/// # Errors
/// When the constants are not constant: then TSC and timer do not count instructions on this machine.
pub fn calibrate(
    vcpu: &mut dyn Timed,
    memory: &mut GuestMemory,
    settle: &mut dyn FnMut(),
) -> Result<Calibration, CalibrationError> {
    let mut overhead = None;
    for count in [0, 1, 10, 1000, 1000, 10, 1, 0] {
        let (exit, ticks) = straight(vcpu, memory, count, 0)?;
        if exit != Exit::Hlt {
            return Err(CalibrationError::Exit(exit));
        }
        let found = ticks.wrapping_sub(count as u64);
        let first = *overhead.get_or_insert(found);
        if found != first {
            return Err(CalibrationError::OverheadVaries(first, found));
        }
    }
    let mut lead = None;
    for timer in TIMER_COUNTS {
        let (exit, _) = straight(vcpu, memory, 8000, timer)?;
        settle();
        if exit != Exit::Interrupted {
            return Err(CalibrationError::Exit(exit));
        }
        let found = u64::from(timer).wrapping_sub(vcpu.registers().rip - CODE);
        let first = *lead.get_or_insert(found);
        if found != first {
            return Err(CalibrationError::LeadVaries(first, found));
        }
    }
    memory.slice_mut(Gpa(CODE), 0x2000).map_err(CalibrationError::Memory)?.fill(0);
    Ok(Calibration { overhead: overhead.unwrap_or(0), lead: lead.unwrap_or(0) })
}

fn straight(
    vcpu: &mut dyn Timed,
    memory: &mut GuestMemory,
    count: usize,
    timer: u32,
) -> Result<(Exit, u64), CalibrationError> {
    let mut code: Vec<u8> = alloc::vec![NOP; count];
    code.push(HLT);
    memory.write(Gpa(CODE), &code).map_err(CalibrationError::Memory)?;
    vcpu.load(&CpuState::real_mode(CODE));
    Ok(vcpu.enter_raw(timer))
}
