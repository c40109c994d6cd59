//! The boot self-test of the counter `pmu`: measures what it costs and how late it is, and then checks the stops that it
//! makes. The CPU's claims are believed in nothing: some emulators claim counters that do not count, interrupts that do
//! not come and single steps that do not step.

use alloc::vec::Vec;
use core::fmt;

use super::{Costs, Pmu, Skid, skid};
use crate::counter::selftest::{
    Bench, CODE, HANDLER, HLT, NONSENSE, NOP, Report, Stand, VECTOR, Want, place, place_with_handler, rep,
};
use crate::cpu::registers::{RFLAGS_FIXED, RFLAGS_IF, Registers, gpr};
use crate::cpu::{Entered, Exception, Exit, InstructionCounter, Limit};

/// Fewest bits of a counter: it must not run through its range before a host interrupt comes.
const LEAST_WIDTH: u64 = 32;
/// Overflows that are asked for.
const OVERFLOWS: u64 = 1000;
/// Host interrupts that must have ended a run.
const INTERRUPTS: u64 = 100;
/// How often each cost is measured.
const REPEATS: u64 = 8;
/// Single steps of [`Measurement::steps`].
const STEPS: u64 = 500;
/// Entries after which a program should long have ended.
const MAX_ENTRIES: u64 = 100_000;
/// Turns of the loop that overflows interrupt.
const TURNS: u32 = 100_000;
/// Turns of the loop that host interrupts interrupt: more and more, until the host's timer is fast enough.
const INTERRUPTED_TURNS: [u32; 3] = [100_000, 1_000_000, 10_000_000];
/// Runs of each of these, at most.
const INTERRUPTED_RUNS: u32 = 20;

/// Handlers of the program with faults: of #UD, and of the software interrupt 0x41.
const UNDEFINED_HANDLER: u64 = 0x820;
const SOFTWARE_HANDLER: u64 = 0x840;
const SOFTWARE_VECTOR: u8 = 0x41;
/// push bp; mov bp, sp; add word [bp+2], 2; pop bp; iret: goes on behind UD2.
const SKIP_UNDEFINED: [u8; 9] = [0x55, 0x89, 0xE5, 0x83, 0x46, 0x02, 0x02, 0x5D, 0xCF];
/// inc dx; iret
const COUNT_UP: [u8; 2] = [0x42, 0xCF];
/// mov cx, 20; 1: inc ax; int 0x41; ud2; mov di, 0x3000; push cx; mov cx, 7; rep stosb; pop cx; loop 1b; hlt
const MIXED: [u8; 21] =
    [0xB9, 20, 0, 0x40, 0xCD, 0x41, 0x0F, 0x0B, 0xBF, 0x00, 0x30, 0x51, 0xB9, 7, 0, 0xF3, 0xAA, 0x59, 0xE2, 0xEF, HLT];
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

/// A counter that passed.
#[derive(Debug, Clone)]
pub struct Tested {
    /// The counter.
    pub counter: Pmu,
    /// All results.
    pub report: Report,
    /// How late its overflows came.
    pub skid: Skid,
    /// Single steps that a random stop took, on average.
    pub steps_per_stop: u64,
}

impl fmt::Display for Tested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counter, report, skid, steps_per_stop } = self;
        writeln!(f, "margin {}, {steps_per_stop} steps a stop", counter.margin)?;
        write!(f, "  skid: {skid}\n  counts by themselves: {}\n{report}", counter.costs)
    }
}

/// A check failed; the report says which.
struct Failed;

/// Measures and checks the counter of `stand`. The first check that fails ends the test.
///
/// # Errors
/// All results, the last of which failed.
pub fn run(stand: &mut dyn Stand, claimed: InstructionCounter) -> Result<Tested, Report> {
    let mut measurement =
        Measurement { stand, claimed, report: Report::default(), costs: Costs::default(), skid: Skid::default() };
    let result = measurement.all();
    let Measurement { stand, mut report, costs, skid, .. } = measurement;
    let Ok(program) = result else { return Err(report) };
    let mut counter = Pmu::new(claimed, skid.margin(), costs, program);
    let steps_per_stop = check_stops(stand, &mut counter, &mut report);
    counter.forget_seen();
    if report.passed() { Ok(Tested { counter, report, skid, steps_per_stop }) } else { Err(report) }
}

/// With what was measured, the counter must be exact. Returns the single steps for each stop.
fn check_stops(stand: &mut dyn Stand, counter: &mut Pmu, report: &mut Report) -> u64 {
    let mut bench = Bench::new(stand, counter);
    bench.exactness(report);
    report.check("rep stosb of 100 counts", Want::Is(1), bench.rep(100).wrapping_sub(2));
    report.check("stop behind rep stosb: bytes stored", Want::Is(100), stop_behind_rep(&mut bench));
    bench.exits(report);
    report.check("delivering an interrupt when STI allows it counts", Want::Is(0), window_cost(&mut bench));
    bench.clear();
    bench.steps_per_stop
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

/// Raw counts under measurement.
struct Measurement<'a> {
    stand: &'a mut dyn Stand,
    claimed: InstructionCounter,
    report: Report,
    costs: Costs,
    skid: Skid,
}

impl Measurement<'_> {
    /// Everything, in an order in which each step needs only what those before it found. Returns what the program with
    /// faults counts.
    fn all(&mut self) -> Result<u64, Failed> {
        self.check("counter width in bits, as claimed", Want::AtLeast(LEAST_WIDTH), self.claimed.width.into())?;
        self.counting()?;
        let program = self.repetition()?;
        self.exits()?;
        self.steps(program)?;
        self.overflows()?;
        self.host_interrupts()?;
        self.events()?;
        Ok(program)
    }

    fn check(&mut self, name: &'static str, want: Want, got: u64) -> Result<(), Failed> {
        if self.report.check(name, want, got) { Ok(()) } else { Err(Failed) }
    }

    fn place(&mut self, code: &[u8]) {
        place_with_handler(self.stand, code);
        self.vector(6, HANDLER, &[HLT]);
    }

    fn vector(&mut self, vector: u8, at: u64, handler: &[u8]) {
        self.stand.write(at, handler);
        self.stand.write(u64::from(vector) * 4, &(at as u32).to_le_bytes());
    }

    fn place_mixed(&mut self) {
        self.place(&MIXED);
        self.vector(6, UNDEFINED_HANDLER, &SKIP_UNDEFINED);
        self.vector(SOFTWARE_VECTOR, SOFTWARE_HANDLER, &COUNT_UP);
    }

    /// mov ecx, turns; 1: inc ax; loop 1b (by ECX); hlt. Returns its number of instructions without the HLT.
    fn place_loop(&mut self, turns: u32) -> u64 {
        let [a, b, c, d] = turns.to_le_bytes();
        self.place(&[0x66, 0xB9, a, b, c, d, 0x40, 0x67, 0xE2, 0xFC, HLT]);
        1 + 2 * u64::from(turns)
    }

    fn registers(&mut self) -> &mut Registers {
        self.stand.vcpu().registers_mut()
    }

    /// One entry without an end in sight.
    fn enter(&mut self) -> Entered {
        self.stand.vcpu().enter(Limit::Overflow(self.claimed.longest))
    }

    /// One entry that nothing but the guest's own exit ends: a few attempts, as an interrupt of another origin may come.
    fn whole(&mut self, prepare: impl Fn(&mut Self)) -> Option<Entered> {
        for _ in 0..REPEATS {
            prepare(self);
            let entered = self.enter();
            if entered.exit.is_own() {
                return Some(entered);
            }
            self.stand.let_in();
        }
        None
    }

    /// The raw count of a program that ends by a HLT.
    fn count(&mut self, prepare: impl Fn(&mut Self)) -> u64 {
        match self.whole(prepare) {
            Some(Entered { exit: Exit::Hlt, ticks, .. }) => ticks,
            _ => NONSENSE,
        }
    }

    fn straight(&mut self, instructions: usize) -> u64 {
        let mut code: Vec<u8> = alloc::vec![NOP; instructions];
        code.push(HLT);
        self.count(|measurement| measurement.place(&code))
    }

    /// Does it count the guest's instructions, and nothing of what the hypervisor does around them?
    fn counting(&mut self) -> Result<(), Failed> {
        let empty = self.straight(0);
        self.check("count of a program that only halts", Want::AtMost(1), empty)?;
        let counted = self.straight(1000).wrapping_sub(empty);
        self.check("1000 instructions count", Want::Is(1000), counted)?;
        let _ = self.costs.note(Exit::Hlt, empty as u8);
        Ok(())
    }

    /// The raw count of the program with faults, less what its exit costs.
    fn mixed(&mut self) -> u64 {
        self.count(Self::place_mixed).wrapping_sub(self.costs.exit(Exit::Hlt).into())
    }

    fn repetition(&mut self) -> Result<u64, Failed> {
        let program = self.mixed();
        let unequal = (1..100).filter(|_| self.mixed() != program).count();
        self.check("100 equal runs with faults that count differently", Want::Is(0), unequal as u64)?;
        // 10 for each turn, and whatever faults and software interrupts count: that is constant, and taken as it is.
        self.check("instructions of the program with faults", Want::AtLeast(1 + 20 * 8), program)?;
        Ok(program)
    }

    fn exits(&mut self) -> Result<(), Failed> {
        let mut odd = 0;
        for code in EXITING {
            for round in 0..REPEATS {
                odd += u64::from(!self.exit_is_regular(code, round as usize % 4));
            }
        }
        self.check("exits that count neither 0 nor 1, or vary", Want::Is(0), odd)
    }

    /// Provokes an exit behind some NOPs and notes its cost.
    fn exit_is_regular(&mut self, instruction: &[u8], nops: usize) -> bool {
        let mut code: Vec<u8> = alloc::vec![NOP; nops];
        code.extend_from_slice(instruction);
        let entered = self.whole(|measurement| {
            measurement.place(&code);
            // No memory, for the device access.
            measurement.registers().gpr[gpr::RAX] = 0xFEC0_0000;
        });
        let Some(Entered { exit, ticks, .. }) = entered else { return false };
        if exit == Exit::Hlt && instruction != [HLT] {
            // This CPU does not have the instruction.
            return true;
        }
        match ticks.wrapping_sub(nops as u64) {
            cost @ (0 | 1) if exit.kind() != Exit::Shutdown.kind() => self.costs.note(exit, cost as u8).is_ok(),
            _ => false,
        }
    }

    /// Do single steps step, and what does each count beyond its instruction?
    fn steps(&mut self, program: u64) -> Result<(), Failed> {
        self.place(&[NOP; STEPS as usize + 1]);
        let (mut exact, mut ticks) = (0, 0_u64);
        while exact < STEPS {
            let entered = self.step();
            if entered.exit != Exit::Stepped || self.registers().rip != CODE + exact + 1 {
                break;
            }
            ticks = ticks.wrapping_add(entered.ticks);
            exact += 1;
        }
        self.check("500 single steps: exact ones", Want::Is(STEPS), exact)?;
        let cost = per_event(ticks, STEPS, STEPS);
        self.check("counts of a single step beyond its instruction", Want::AtMost(1), cost)?;
        let _ = self.costs.note(Exit::Stepped, cost as u8);
        let (total, largest) = self.mixed_in_steps();
        self.check("the program with faults, stepped, counts", Want::Is(program), total)?;
        self.check("largest count of one of its steps", Want::AtMost(1), largest)
    }

    /// One single step. Interrupts of another origin come before it, and are passed over.
    fn step(&mut self) -> Entered {
        let mut entered = self.stand.vcpu().enter(Limit::Step);
        for _ in 0..REPEATS {
            if !matches!(entered.exit, Exit::Interrupted | Exit::Overflow) {
                break;
            }
            self.stand.let_in();
            entered = self.stand.vcpu().enter(Limit::Step);
        }
        entered
    }

    /// The count of the program with faults in single steps, and the largest of these.
    fn mixed_in_steps(&mut self) -> (u64, u64) {
        self.place_mixed();
        let (mut total, mut largest) = (0_u64, 0);
        for _ in 0..MAX_ENTRIES {
            let entered = self.step();
            let ticks = entered.ticks.wrapping_sub(self.costs.of(&entered));
            total = total.wrapping_add(ticks);
            largest = largest.max(ticks);
            if entered.exit != Exit::Stepped {
                let own = entered.exit == Exit::Hlt;
                return (if own { total } else { NONSENSE }, largest);
            }
        }
        (NONSENSE, largest)
    }

    /// Do overflows interrupt when asked, and how late?
    fn overflows(&mut self) -> Result<(), Failed> {
        let mut found = Overflows { random: 0x9E37_79B9_7F4A_7C15, ..Overflows::default() };
        for _ in 0..OVERFLOWS {
            if found.lost == 0 && found.asked < OVERFLOWS {
                self.overflow_run(&mut found);
            }
        }
        self.check("1000 overflows asked for: interrupts that came", Want::AtLeast(OVERFLOWS), self.skid.count())?;
        self.check("overflows whose interrupt did not come", Want::Is(0), found.lost)?;
        self.check("largest skid in instructions", Want::AtMost(skid::LARGEST_USABLE), self.skid.largest())?;
        let cost = per_event(found.ticks, found.instructions, found.exits);
        self.check("counts of an overflow's exit", Want::AtMost(1), cost)?;
        let _ = self.costs.note(Exit::Overflow, cost as u8);
        Ok(())
    }

    /// One run of the loop, interrupted by overflows at random distances.
    fn overflow_run(&mut self, found: &mut Overflows) {
        let length = self.place_loop(TURNS);
        found.instructions += length;
        let mut ticks = 0;
        for _ in 0..MAX_ENTRIES {
            let armed = found.distance();
            // So far before its end that every overflow is seen.
            let last = ticks + armed + 8 * skid::LARGEST_USABLE > length;
            let limit = if last { self.claimed.longest } else { armed };
            let entered = self.stand.vcpu().enter(Limit::Overflow(limit));
            ticks += entered.ticks;
            match entered.exit {
                Exit::Overflow => {
                    found.exits += 1;
                    // Otherwise another interrupt, or one that came twice.
                    if !last && entered.ticks >= armed {
                        found.asked += 1;
                        self.skid.note(entered.ticks - armed);
                    }
                }
                Exit::Hlt => {
                    found.lost += u64::from(!last);
                    ticks = ticks.wrapping_sub(self.costs.exit(Exit::Hlt).into());
                    break;
                }
                _ => {
                    ticks = NONSENSE;
                    break;
                }
            }
        }
        found.ticks = found.ticks.wrapping_add(ticks);
    }

    /// What does a host interrupt count?
    fn host_interrupts(&mut self) -> Result<(), Failed> {
        let (mut ticks, mut instructions, mut interrupts) = (0_u64, 0, 0);
        for turns in INTERRUPTED_TURNS {
            for _ in 0..INTERRUPTED_RUNS {
                if interrupts < INTERRUPTS {
                    instructions += self.place_loop(turns);
                    // Bochs holds interrupts back from an entry that begins with IF clear.
                    self.registers().rflags = RFLAGS_FIXED | RFLAGS_IF;
                    ticks = ticks.wrapping_add(self.interrupted_run(&mut interrupts));
                }
            }
        }
        self.check("host interrupts that ended a run", Want::AtLeast(INTERRUPTS), interrupts)?;
        let cost = per_event(ticks, instructions, interrupts);
        self.check("counts of a host interrupt's exit", Want::AtMost(1), cost)?;
        let _ = self.costs.note(Exit::Interrupted, cost as u8);
        Ok(())
    }

    /// The count of one run with host interrupts, costs of other exits taken off.
    fn interrupted_run(&mut self, interrupts: &mut u64) -> u64 {
        let mut ticks = 0_u64;
        for _ in 0..MAX_ENTRIES {
            self.stand.interrupt_soon();
            let entered = self.enter();
            ticks = ticks.wrapping_add(entered.ticks);
            match entered.exit {
                Exit::Interrupted => {
                    *interrupts += 1;
                    // Every other one stays pending, and ends the next entry before anything runs.
                    if interrupts.is_multiple_of(2) {
                        self.stand.let_in();
                    }
                }
                Exit::Overflow | Exit::Hlt => {
                    ticks = ticks.wrapping_sub(self.costs.exit(entered.exit).into());
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
        let interrupt = self.event_cost(|measurement| {
            measurement.registers().rflags = RFLAGS_FIXED | RFLAGS_IF;
            measurement.stand.vcpu().offer_interrupt(Some(VECTOR));
        });
        self.check("counts of an interrupt's delivery", Want::AtMost(1), interrupt)?;
        self.costs.note_interrupt(interrupt as u8);
        let exception = self.event_cost(|measurement| measurement.stand.vcpu().inject(Exception::UNDEFINED));
        self.check("counts of an injected exception's delivery", Want::AtMost(1), exception)?;
        self.costs.note_exception(exception as u8);
        Ok(())
    }

    /// The count of the delivery of an event whose handler halts; [`NONSENSE`] if it varies.
    fn event_cost(&mut self, prepare: impl Fn(&mut Self)) -> u64 {
        let mut first = None;
        for _ in 0..REPEATS {
            let entered = self.whole(|measurement| {
                measurement.place(&[NOP; 64]);
                prepare(measurement);
            });
            let Some(entered) = entered else { return NONSENSE };
            let taken = entered.interrupt_taken || entered.exception_taken;
            let cost = entered.ticks.wrapping_sub(self.costs.exit(Exit::Hlt).into());
            let regular = taken && entered.exit == Exit::Hlt && self.registers().rip == HANDLER;
            if !regular || *first.get_or_insert(cost) != cost {
                return NONSENSE;
            }
        }
        first.unwrap_or(NONSENSE)
    }
}

/// What runs with overflows found.
#[derive(Default)]
struct Overflows {
    random: u64,
    asked: u64,
    lost: u64,
    exits: u64,
    ticks: u64,
    instructions: u64,
}

impl Overflows {
    /// The next distance in instructions, 1 to 2000.
    fn distance(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (self.random >> 40) % 2000
    }
}

/// What each of `events` counts beyond the instructions, if all count the same.
fn per_event(ticks: u64, instructions: u64, events: u64) -> u64 {
    let excess = ticks.wrapping_sub(instructions);
    match excess.checked_div(events) {
        Some(each) if each * events == excess => each,
        _ => NONSENSE,
    }
}
