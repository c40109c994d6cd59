//! The boot self-test of the counter `pmu`: measures what it costs and how late it is, and then checks the stops that it
//! makes. The CPU's claims are believed in nothing: some emulators claim counters that do not count, interrupts that do
//! not come and single steps that do not step.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{POLICY, Pmu};
use crate::counter::selftest::trial::{MAX_ENTRIES, REPEATS, per_event};
use crate::counter::selftest::{
    Bench, Failed, HANDLER, HLT, NONSENSE, NOP, Report, Stand, Tested, Trial, VECTOR, Want, place, place_with_handler,
    rep,
};
use crate::counter::{Costs, Counter};
use crate::cpu::registers::{RFLAGS_FIXED, RFLAGS_IF, gpr};
use crate::cpu::{Entered, Exception, Exit, InstructionCounter, Meter};

/// Fewest bits of a counter: it must not run through its range before a host interrupt comes.
const LEAST_WIDTH: u64 = 32;
/// Host interrupts that must have ended a run.
const INTERRUPTS: u64 = 100;
/// Turns of the loop that host interrupts interrupt: more and more, until the host's timer is fast enough.
const INTERRUPTED_TURNS: [u32; 3] = [100_000, 1_000_000, 10_000_000];
/// Runs of each of these, at most.
const INTERRUPTED_RUNS: u32 = 20;

/// sti; nop, four times; hlt
const STI: [u8; 6] = [0xFB, NOP, NOP, NOP, NOP, HLT];

/// Instructions that exit on one vendor's CPUs or on all of them. Where they do not, #UD leads to a HLT.
const EXITING: [&[u8]; 16] = [
    &[HLT],
    &[0x0F, 0xA2],       // cpuid
    &[0xE6, 0x80],       // out 0x80, al
    &[0xE4, 0x80],       // in al, 0x80
    &[0x6E],             // outsb
    &[0x6C],             // insb
    &[0x0F, 0x31],       // rdtsc
    &[0x0F, 0x01, 0xF9], // rdtscp
    &[0x0F, 0x33],       // rdpmc
    &[0x0F, 0x32],       // rdmsr
    &[0x0F, 0x30],       // wrmsr
    &[0x67, 0x88, 0x00], // mov [eax], al
    &[0x0F, 0x01, 0xC1], // vmcall
    &[0x0F, 0x01, 0xD9], // vmmcall
    &[0x0F, 0x09],       // wbinvd
    &[0x0F, 0x01, 0xC8], // monitor
];

/// The counter before anything is known of it.
pub(in crate::counter) fn untested(claimed: InstructionCounter) -> Counter {
    Counter::new(Box::new(Pmu::new(claimed, Costs::default(), 0)), 0)
}

/// Measures and checks the counter of `stand`. The first check of the measurement that fails ends the test.
///
/// # Errors
/// All results, if one of them is not as it must be.
pub fn run(stand: &mut dyn Stand, claimed: InstructionCounter) -> Result<Tested, Report> {
    let mut measurement = Measurement { trial: Trial::new(stand, Meter::Instructions, claimed.longest) };
    let result = measurement.all(claimed);
    let trial = measurement.trial;
    let Ok(program) = result else { return Err(trial.report) };
    let backend = Pmu::new(claimed, trial.costs, program);
    let margin = trial.skid.margin(POLICY);
    Tested::check(trial, Counter::new(Box::new(backend), margin), |bench, report| {
        report.check("rep stosb of 100 counts", Want::Is(1), bench.rep(100).wrapping_sub(2));
        report.check("stop behind rep stosb: bytes stored", Want::Is(100), stop_behind_rep(bench));
        report.check("delivering an interrupt when STI allows it counts", Want::Is(0), window_cost(bench));
    })
}

/// A stop at the count that the string instruction brings leaves it complete.
fn stop_behind_rep(bench: &mut Bench<'_>) -> u64 {
    place(bench.stand, &rep(100));
    match bench.run(3) {
        (None, 3) => 100 - bench.registers().gpr[gpr::RCX],
        _ => NONSENSE,
    }
}

/// An interrupt waits while interrupts are off: the ticks beyond STI and the instruction in its shadow.
fn window_cost(bench: &mut Bench<'_>) -> u64 {
    place_with_handler(bench.stand, &STI);
    bench.stand.vcpu().offer_interrupt(Some(VECTOR));
    match bench.run(u64::MAX) {
        (Some(Exit::Hlt), ticks) if bench.registers().rip == HANDLER => ticks.wrapping_sub(2),
        _ => NONSENSE,
    }
}

/// What the counter counts.
struct Measurement<'a> {
    trial: Trial<'a>,
}

impl Measurement<'_> {
    /// Everything, in an order in which each step needs only what those before it found. Returns what the program with
    /// faults counts.
    fn all(&mut self, claimed: InstructionCounter) -> Result<u64, Failed> {
        self.trial.check("counter width in bits, as claimed", Want::AtLeast(LEAST_WIDTH), claimed.width.into())?;
        self.counting()?;
        let program = self.trial.repetition()?;
        self.exits()?;
        self.trial.steps(program, 1)?;
        self.trial.lateness(1)?;
        self.host_interrupts()?;
        self.events()?;
        Ok(program)
    }

    /// One entry that nothing but the guest's own exit ends: a few attempts, as an interrupt of another origin may come.
    fn whole(&mut self, prepare: impl Fn(&mut Trial<'_>)) -> Option<Entered> {
        for _ in 0..REPEATS {
            prepare(&mut self.trial);
            let entered = self.trial.enter();
            if entered.exit.is_own() {
                return Some(entered);
            }
            self.trial.stand.let_in();
        }
        None
    }

    fn straight(&mut self, instructions: usize) -> u64 {
        let mut code: Vec<u8> = alloc::vec![NOP; instructions];
        code.push(HLT);
        self.trial.count(|trial| trial.place(&code))
    }

    /// Does it count the guest's instructions, and nothing of what the hypervisor does around them?
    fn counting(&mut self) -> Result<(), Failed> {
        let empty = self.straight(0);
        self.trial.check("count of a program that only halts", Want::AtMost(1), empty)?;
        let counted = self.straight(1000).wrapping_sub(empty);
        self.trial.check("1000 instructions count", Want::Is(1000), counted)?;
        let _ = self.trial.costs.note(Exit::Hlt, empty as u8);
        Ok(())
    }

    fn exits(&mut self) -> Result<(), Failed> {
        let mut odd = 0;
        for code in EXITING {
            for round in 0..REPEATS {
                odd += u64::from(!self.exit_is_regular(code, round as usize % 4));
            }
        }
        self.trial.check("exits that count neither 0 nor 1, or vary", Want::Is(0), odd)
    }

    /// Provokes an exit behind some NOPs and notes its cost.
    fn exit_is_regular(&mut self, instruction: &[u8], nops: usize) -> bool {
        let mut code: Vec<u8> = alloc::vec![NOP; nops];
        code.extend_from_slice(instruction);
        let entered = self.whole(|trial| {
            trial.place(&code);
            // No memory, for the device access.
            trial.registers().gpr[gpr::RAX] = 0xFEC0_0000;
        });
        let Some(Entered { exit, ticks, .. }) = entered else { return false };
        if exit == Exit::Hlt && instruction != [HLT] {
            // This CPU does not have the instruction.
            return true;
        }
        match ticks.wrapping_sub(nops as u64) {
            cost @ (0 | 1) if exit.kind() != Exit::Shutdown.kind() => self.trial.costs.note(exit, cost as u8).is_ok(),
            _ => false,
        }
    }

    /// What does a host interrupt count?
    fn host_interrupts(&mut self) -> Result<(), Failed> {
        let (mut ticks, mut instructions, mut interrupts) = (0_u64, 0, 0);
        for turns in INTERRUPTED_TURNS {
            for _ in 0..INTERRUPTED_RUNS {
                if interrupts < INTERRUPTS {
                    self.trial.place_loop(&[0x40], turns);
                    instructions += 1 + 2 * u64::from(turns);
                    // Bochs holds interrupts back from an entry that begins with IF clear.
                    self.trial.registers().rflags = RFLAGS_FIXED | RFLAGS_IF;
                    ticks = ticks.wrapping_add(self.interrupted_run(&mut interrupts));
                }
            }
        }
        self.trial.check("host interrupts that ended a run", Want::AtLeast(INTERRUPTS), interrupts)?;
        let cost = per_event(ticks, instructions, interrupts);
        self.trial.check("counts of a host interrupt's exit", Want::AtMost(1), cost)?;
        let _ = self.trial.costs.note(Exit::Interrupted, cost as u8);
        Ok(())
    }

    /// The count of one run with host interrupts, costs of other exits taken off.
    fn interrupted_run(&mut self, interrupts: &mut u64) -> u64 {
        let mut ticks = 0_u64;
        for _ in 0..MAX_ENTRIES {
            self.trial.stand.interrupt_soon();
            let entered = self.trial.enter();
            ticks = ticks.wrapping_add(entered.ticks);
            match entered.exit {
                Exit::Interrupted => {
                    *interrupts += 1;
                    // Every other one stays pending, and ends the next entry before anything runs.
                    if interrupts.is_multiple_of(2) {
                        self.trial.stand.let_in();
                    }
                }
                Exit::Overflow | Exit::Hlt => {
                    ticks = ticks.wrapping_sub(self.trial.costs.exit(entered.exit).into());
                    if entered.exit == Exit::Hlt {
                        return ticks;
                    }
                }
                _ => return NONSENSE,
            }
        }
        NONSENSE
    }

    /// What do the deliveries of an interrupt and of an exception count?
    fn events(&mut self) -> Result<(), Failed> {
        let interrupt = self.event_cost(|trial| {
            trial.registers().rflags = RFLAGS_FIXED | RFLAGS_IF;
            trial.stand.vcpu().offer_interrupt(Some(VECTOR));
        });
        self.trial.check("counts of an interrupt's delivery", Want::AtMost(1), interrupt)?;
        self.trial.costs.note_interrupt(interrupt as u8);
        let exception = self.event_cost(|trial| trial.stand.vcpu().inject(Exception::UNDEFINED));
        self.trial.check("counts of an injected exception's delivery", Want::AtMost(1), exception)?;
        self.trial.costs.note_exception(exception as u8);
        Ok(())
    }

    /// The count of the delivery of an event whose handler halts; [`NONSENSE`] if it varies.
    fn event_cost(&mut self, prepare: impl Fn(&mut Trial<'_>)) -> u64 {
        let mut first = None;
        for _ in 0..REPEATS {
            let entered = self.whole(|trial| {
                trial.place(&[NOP; 64]);
                prepare(trial);
            });
            let Some(entered) = entered else { return NONSENSE };
            let taken = entered.interrupt_taken || entered.exception_taken;
            let cost = entered.ticks.wrapping_sub(self.trial.costs.exit(Exit::Hlt).into());
            let regular = taken && entered.exit == Exit::Hlt && self.trial.registers().rip == HANDLER;
            if !regular || *first.get_or_insert(cost) != cost {
                return NONSENSE;
            }
        }
        first.unwrap_or(NONSENSE)
    }
}
