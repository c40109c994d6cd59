//! A meter under measurement: how late it ends runs, whether single steps step, and what either counts by itself.

use alloc::vec::Vec;

use super::{CODE, HANDLER, HLT, NONSENSE, NOP, Random, Report, Stand, Want, place_with_handler};
use crate::counter::{Costs, Skid, skid};
use crate::cpu::registers::Registers;
use crate::cpu::{Entered, Exit, Limit, Meter};

/// Ends of runs that are asked for.
const ENDS: u64 = 1000;
/// Longest run, in ticks, after which one is asked for.
const LONGEST: u64 = 2000;
/// Interrupts before an end is due, after which no more ends are asked for.
const EARLY: u64 = 10_000;
/// Single steps of [`Trial::steps`].
const STEPS: u64 = 500;
/// How often what another interrupt may end is tried.
pub(in crate::counter) const REPEATS: u64 = 8;
/// Entries after which a program should long have ended.
pub(in crate::counter) const MAX_ENTRIES: u64 = 100_000;

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

/// Programs that ends of runs interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// inc ax, again and again: branches as near to each other as they can be.
    Branches,
    /// NOPs: no branch for longer than an emulator looks ahead.
    Straight,
    /// push cx; mov di, 0x3000; mov cx, 100; rep stosb; pop cx: long string instructions.
    Strings,
}

impl Program {
    const ALL: [Self; 3] = [Self::Branches, Self::Straight, Self::Strings];

    /// What its loop does, and how often.
    fn body(self) -> (&'static [u8], u32) {
        match self {
            Self::Branches => (&[0x40], 100_000),
            Self::Straight => (&[NOP; 120], 1000),
            Self::Strings => (&[0x51, 0xBF, 0x00, 0x30, 0xB9, 100, 0, 0xF3, 0xAA, 0x59], 2000),
        }
    }
}

/// A check failed; the report says which.
pub(in crate::counter) struct Failed;

/// The measurement and what it found so far.
pub(in crate::counter) struct Trial<'a> {
    pub(in crate::counter) stand: &'a mut dyn Stand,
    pub(in crate::counter) report: Report,
    pub(in crate::counter) costs: Costs,
    pub(in crate::counter) skid: Skid,
    meter: Meter,
    longest: u64,
}

impl<'a> Trial<'a> {
    /// A meter that can be armed for `longest` at most.
    pub(in crate::counter) fn new(stand: &'a mut dyn Stand, meter: Meter, longest: u64) -> Self {
        Self { stand, report: Report::default(), costs: Costs::default(), skid: Skid::default(), meter, longest }
    }

    /// Notes a result, and ends the measurement if it is not as it must be.
    pub(in crate::counter) fn check(&mut self, name: &'static str, want: Want, got: u64) -> Result<(), Failed> {
        if self.report.check(name, want, got) { Ok(()) } else { Err(Failed) }
    }

    /// Places code, and handlers that halt.
    pub(in crate::counter) fn place(&mut self, code: &[u8]) {
        place_with_handler(self.stand, code);
        self.vector(6, HANDLER, &[HLT]);
    }

    fn vector(&mut self, vector: u8, at: u64, handler: &[u8]) {
        place_vector(self.stand, vector, at, handler);
    }

    fn place_mixed(&mut self) {
        place_events(self.stand, &MIXED);
    }

    /// mov ecx, turns; 1: (the body); loop 1b (by ECX); hlt.
    pub(in crate::counter) fn place_loop(&mut self, body: &[u8], turns: u32) {
        let mut code: Vec<u8> = alloc::vec![0x66, 0xB9];
        code.extend_from_slice(&turns.to_le_bytes());
        code.extend_from_slice(body);
        // At most 125 bytes.
        let back = -(body.len() as i8 + 3);
        code.extend_from_slice(&[0x67, 0xE2, back as u8, HLT]);
        self.place(&code);
    }

    pub(in crate::counter) fn registers(&mut self) -> &mut Registers {
        self.stand.vcpu().registers_mut()
    }

    /// One entry without an end in sight.
    pub(in crate::counter) fn enter(&mut self) -> Entered {
        let limit = Limit::After(self.meter, self.longest);
        self.stand.vcpu().enter(limit)
    }

    /// The raw count of a program that ends by a HLT.
    pub(in crate::counter) fn count(&mut self, prepare: impl Fn(&mut Self)) -> u64 {
        for _ in 0..REPEATS {
            prepare(self);
            if let Some(count) = self.count_to_halt() {
                return count;
            }
        }
        NONSENSE
    }

    /// `None` if something else interrupted it that may count by itself.
    fn count_to_halt(&mut self) -> Option<u64> {
        let mut ticks = 0_u64;
        for _ in 0..MAX_ENTRIES {
            let entered = self.enter();
            ticks = ticks.wrapping_add(entered.ticks);
            match (entered.exit, self.meter) {
                (Exit::Hlt, _) => return Some(ticks),
                (Exit::Interrupted, Meter::Tsc) => self.stand.let_in(),
                (exit, _) if exit.is_own() => return Some(NONSENSE),
                _ => {
                    self.stand.let_in();
                    return None;
                }
            }
        }
        Some(NONSENSE)
    }

    /// The count of the program with faults, which must be the same every time.
    pub(in crate::counter) fn repetition(&mut self) -> Result<u64, Failed> {
        let program = self.mixed();
        let unequal = (1..100).filter(|_| self.mixed() != program).count();
        self.check("100 equal runs with faults that count differently", Want::Is(0), unequal as u64)?;
        // 10 for each turn, and whatever faults and software interrupts count: that is constant, and taken as it is.
        self.check("instructions of the program with faults", Want::AtLeast(1 + 20 * 8), program)?;
        Ok(program)
    }

    /// The raw count of the program with faults, less what its exit costs.
    fn mixed(&mut self) -> u64 {
        self.count(Self::place_mixed).wrapping_sub(self.costs.exit(Exit::Hlt).into())
    }

    /// Do single steps step, and what does each count beyond its instruction, `most` at most? `program` is the count of
    /// the program with faults.
    pub(in crate::counter) fn steps(&mut self, program: u64, most: u64) -> Result<(), Failed> {
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
        self.check("counts of a single step beyond its instruction", Want::AtMost(most), cost)?;
        let _ = self.costs.note(Exit::Stepped, cost as u8);
        let (total, largest) = self.mixed_in_steps();
        self.check("the program with faults, stepped, counts", Want::Is(program), total)?;
        self.check("largest count of one of its steps", Want::AtMost(1), largest)
    }

    /// One single step. Interrupts of another origin come before it, and are passed over.
    fn step(&mut self) -> Entered {
        let limit = Limit::Step(self.meter);
        let mut entered = self.stand.vcpu().enter(limit);
        for _ in 0..REPEATS {
            if !matches!(entered.exit, Exit::Interrupted | Exit::Overflow) {
                break;
            }
            self.stand.let_in();
            entered = self.stand.vcpu().enter(limit);
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

    /// Do runs end when asked, how late, and what does the end count, `most` at most?
    pub(in crate::counter) fn lateness(&mut self, most: u64) -> Result<(), Failed> {
        let (mut found, mut random) = (Ends::default(), Random::new());
        let halt = u64::from(self.costs.exit(Exit::Hlt));
        let lengths = Program::ALL.map(|program| self.count(|trial| trial.place_program(program)).wrapping_sub(halt));
        while found.asked < ENDS && found.lost == 0 && found.early < EARLY {
            for (program, length) in Program::ALL.into_iter().zip(lengths) {
                self.interrupted_program(program, length, &mut random, &mut found);
            }
        }
        self.check("1000 ends of runs asked for: those that came", Want::AtLeast(ENDS), found.asked)?;
        self.check("ends of runs that did not come", Want::Is(0), found.lost)?;
        self.check("largest skid in ticks", Want::AtMost(skid::LARGEST_USABLE), self.skid.largest())?;
        let cost = per_event(found.ticks, found.instructions, found.exits);
        self.check("counts of such an end's exit", Want::AtMost(most), cost)?;
        let _ = self.costs.note(self.end(), cost as u8);
        Ok(())
    }

    /// How runs end that have counted enough.
    fn end(&self) -> Exit {
        match self.meter {
            Meter::Tsc => Exit::Interrupted,
            Meter::Instructions => Exit::Overflow,
        }
    }

    fn place_program(&mut self, program: Program) {
        let (body, turns) = program.body();
        self.place_loop(body, turns);
    }

    /// One run of a program, interrupted by ends at random distances.
    fn interrupted_program(&mut self, program: Program, length: u64, random: &mut Random, found: &mut Ends) {
        self.place_program(program);
        found.instructions = found.instructions.wrapping_add(length);
        let mut ticks = 0_u64;
        for _ in 0..MAX_ENTRIES {
            let armed = random.up_to(LONGEST);
            // So far before its end that every end of a run is seen.
            let last = found.asked >= ENDS || ticks.saturating_add(armed + 8 * skid::LARGEST_USABLE) > length;
            let limit = Limit::After(self.meter, if last { self.longest } else { armed });
            let entered = self.stand.vcpu().enter(limit);
            ticks = ticks.wrapping_add(entered.ticks);
            if entered.exit == self.end() {
                found.exits += 1;
                // Otherwise another interrupt, or one that came twice.
                if !last && entered.ticks >= armed {
                    found.asked += 1;
                    self.skid.note(entered.ticks - armed);
                } else if !last {
                    found.early += 1;
                }
                self.stand.let_in();
                continue;
            }
            if entered.exit == Exit::Hlt {
                found.lost += u64::from(!last);
                ticks = ticks.wrapping_sub(self.costs.exit(Exit::Hlt).into());
            } else {
                ticks = NONSENSE;
            }
            break;
        }
        found.ticks = found.ticks.wrapping_add(ticks);
    }
}

fn place_vector(stand: &mut dyn Stand, vector: u8, at: u64, handler: &[u8]) {
    stand.write(at, handler);
    stand.write(u64::from(vector) * 4, &(at as u32).to_le_bytes());
}

/// Places code with handlers of #UD, which goes on behind UD2, and of the software interrupt 0x41, which counts in DX.
pub(super) fn place_events(stand: &mut dyn Stand, code: &[u8]) {
    place_with_handler(stand, code);
    place_vector(stand, 6, UNDEFINED_HANDLER, &SKIP_UNDEFINED);
    place_vector(stand, SOFTWARE_VECTOR, SOFTWARE_HANDLER, &COUNT_UP);
}

/// What runs with ends found.
#[derive(Default)]
struct Ends {
    asked: u64,
    lost: u64,
    early: u64,
    exits: u64,
    ticks: u64,
    instructions: u64,
}

/// What each of `events` counts beyond the instructions, if all count the same.
pub(in crate::counter) fn per_event(ticks: u64, instructions: u64, events: u64) -> u64 {
    let excess = ticks.wrapping_sub(instructions);
    match excess.checked_div(events) {
        Some(each) if each * events == excess => each,
        _ => NONSENSE,
    }
}
