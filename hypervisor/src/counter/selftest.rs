//! The boot self-test: counts are calibrated, never believed.
//!
//! Small real-mode guests of which it is known how many instructions they execute and what they leave behind. Each
//! check gives name, got and want; one that fails refuses the counter.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::Counter;
use crate::cpu::registers::{CpuState, RFLAGS_FIXED, RFLAGS_IF, Registers, gpr};
use crate::cpu::{Exit, Limit, Vcpu};
use crate::memory::{Gpa, GuestMemory};

/// Where test code is placed.
pub(super) const CODE: u64 = 0x1000;
/// Handler of the test interrupt.
pub(super) const HANDLER: u64 = 0x800;
/// Vector of the test interrupt.
pub(super) const VECTOR: u8 = 0x40;
/// Guest memory that the tests use, zeroed afterwards.
const USED: u64 = 0x4000;

pub(super) const NOP: u8 = 0x90;
pub(super) const HLT: u8 = 0xF4;
/// 1: inc ax; add bx, ax; mov [0x2000], bx; jmp 1b
const LOOP: [u8; 9] = [0x40, 0x01, 0xC3, 0x89, 0x1E, 0x00, 0x20, 0xEB, 0xF7];
/// Instructions in one turn of [`LOOP`].
const LOOP_LEN: u64 = 4;
/// sti; inc ax, three times; hlt
const AFTER_STI: [u8; 5] = [0xFB, 0x40, 0x40, 0x40, HLT];
/// mov [0x2000], ax; mov [0x3000], ax; hlt
const STORES: [u8; 7] = [0xA3, 0x00, 0x20, 0xA3, 0x00, 0x30, HLT];
/// mov di, 0x3000; mov cx, `count`; rep stosb; hlt
pub(super) const fn rep(count: u8) -> [u8; 9] {
    [0xBF, 0x00, 0x30, 0xB9, count, 0, 0xF3, 0xAA, HLT]
}

/// Random stops that are tried.
pub(super) const STOPS: u64 = 500;
/// Entries that a run may take at most: one that needs more makes no progress.
const MAX_ENTRIES: u32 = 1 << 20;

/// What a result must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// This.
    Is(u64),
    /// This or less.
    AtMost(u64),
    /// This or more.
    AtLeast(u64),
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(value) => f.pad(&format!("{value}")),
            Self::AtMost(value) => f.pad(&format!("<= {value}")),
            Self::AtLeast(value) => f.pad(&format!(">= {value}")),
        }
    }
}

/// One result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was measured.
    pub name: &'static str,
    /// What it must be.
    pub want: Want,
    /// What it was; [`NONSENSE`] when the guest did something else than its code says.
    pub got: u64,
}

impl Check {
    /// Whether it is as it must be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.got != NONSENSE
            && match self.want {
                Want::Is(value) => self.got == value,
                Want::AtMost(value) => self.got <= value,
                Want::AtLeast(value) => self.got >= value,
            }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: want {}, got {}", self.name, self.want, Got(self.got))
    }
}

/// A result in a table.
struct Got(u64);

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == NONSENSE { f.pad("nonsense") } else { f.pad(&format!("{}", self.0)) }
    }
}

/// All results.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// In the order in which they were measured.
    pub checks: Vec<Check>,
}

impl Report {
    /// Notes a result and returns whether it is as it must be.
    pub fn check(&mut self, name: &'static str, want: Want, got: u64) -> bool {
        let check = Check { name, want, got };
        let passed = check.passed();
        self.checks.push(check);
        passed
    }

    /// Whether the counter may be used. No data is a failure.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(Check::passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {:<52} {:>9} {:>9}", "check", "want", "got")?;
        for check in &self.checks {
            let verdict = if check.passed() { "ok" } else { "FAILED" };
            writeln!(f, "  {:<52} {:>9} {:>9} {verdict}", check.name, check.want, Got(check.got))?;
        }
        Ok(())
    }
}

/// The machine whose counter is tested.
pub trait Stand {
    /// Its CPU.
    fn vcpu(&mut self) -> &mut dyn Vcpu;

    /// Writes guest memory, whose first 16 KiB are there.
    fn write(&mut self, at: u64, bytes: &[u8]);

    /// Lets pending host interrupts in.
    fn let_in(&mut self);

    /// Has a host interrupt come soon: after some thousand instructions.
    fn interrupt_soon(&mut self);

    /// Prepares the CPU for exact limits, see [`Vcpu::calibrate`].
    ///
    /// # Errors
    /// Why that is impossible.
    fn calibrate(&mut self) -> Result<String, String>;
}

/// This machine.
pub struct Machine<'a> {
    /// The CPU.
    pub vcpu: &'a mut dyn Vcpu,
    /// Guest memory; its first pages are used and left zeroed.
    pub memory: &'a mut GuestMemory,
    /// Lets pending host interrupts in.
    pub let_in: &'a mut dyn FnMut(),
    /// Has a host interrupt come soon.
    pub interrupt_soon: &'a mut dyn FnMut(),
}

impl Stand for Machine<'_> {
    fn vcpu(&mut self) -> &mut dyn Vcpu {
        &mut *self.vcpu
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        // Guest memory has at least 8 MiB; a write that does not take place lets the test fail.
        let _ = self.memory.write(Gpa(at), bytes);
    }

    fn let_in(&mut self) {
        (self.let_in)();
    }

    fn interrupt_soon(&mut self) {
        (self.interrupt_soon)();
    }

    fn calibrate(&mut self) -> Result<String, String> {
        self.vcpu.calibrate(self.memory, self.let_in)
    }
}

/// A guest under test.
pub(super) struct Bench<'a> {
    pub(super) stand: &'a mut dyn Stand,
    pub(super) counter: &'a mut dyn Counter,
    /// Entries that ended by a single step.
    steps: u64,
    /// Single steps that each of the random stops took, on average.
    pub(super) steps_per_stop: u64,
}

/// Checks a counter of ticks.
pub fn ticks(stand: &mut dyn Stand, counter: &mut dyn Counter) -> Report {
    let mut bench = Bench::new(stand, counter);
    let mut report = Report::default();
    bench.exactness(&mut report);
    // Some CPUs count the end of the repetition, too.
    report.check("100 iterations more of rep stosb count", Want::Is(100), bench.rep(200).wrapping_sub(bench.rep(100)));
    report.check("stop inside rep stosb: bytes stored", Want::Is(50), bench.stop_in_rep());
    bench.exits(&mut report);
    bench.clear();
    report
}

/// Instructions that exit, followed by nothing. A count of 0 means that the emulator of the instruction adds 1.
const EXITS: [(&str, &[u8]); 6] = [
    ("exit of CPUID counts", &[0x0F, 0xA2]),
    ("exit of HLT counts", &[HLT]),
    ("exit of OUT counts", &[0xE6, 0x80]),
    ("exit of RDTSC counts", &[0x0F, 0x31]),
    ("exit of RDMSR counts", &[0x0F, 0x32]),
    // mov byte [0xFFFF:0xFFFF ...] cannot leave 1 MiB; 32-bit addressing reaches unmapped memory by EAX.
    ("exit of a device access counts", &[0x67, 0x88, 0x00]),
];

struct Stops {
    exact: u64,
    error: u64,
}

/// A count that no run can have: the guest did something else than expected.
pub const NONSENSE: u64 = u64::MAX;

/// Places code at [`CODE`] and lets the guest stand there, in real mode.
pub(super) fn place(stand: &mut dyn Stand, code: &[u8]) {
    stand.write(CODE, code);
    let mut state = CpuState::real_mode(CODE);
    // Real-mode segments reach 64 KiB; the device access needs 4 GiB.
    state.segments.ds.limit = u32::MAX;
    state.registers.gpr[gpr::RSP] = 0x700;
    stand.vcpu().load(&state);
}

/// Places code, and a HLT as the handler of the test interrupt.
pub(super) fn place_with_handler(stand: &mut dyn Stand, code: &[u8]) {
    stand.write(HANDLER, &[HLT]);
    stand.write(u64::from(VECTOR) * 4, &(HANDLER as u32).to_le_bytes());
    place(stand, code);
}

impl<'a> Bench<'a> {
    pub(super) fn new(stand: &'a mut dyn Stand, counter: &'a mut dyn Counter) -> Self {
        Self { stand, counter, steps: 0, steps_per_stop: 0 }
    }

    /// Checks that the counter counts and stops exactly.
    pub(super) fn exactness(&mut self, report: &mut Report) {
        report.check("1000 instructions count", Want::Is(1000), self.straight(1000));
        report.check("100 equal runs that count differently", Want::Is(0), self.unequal_runs());
        let before = self.steps;
        let stops = self.random_stops();
        self.steps_per_stop = (self.steps - before) / STOPS;
        report.check("500 random stops: exact ones", Want::Is(STOPS), stops.exact);
        report.check("500 random stops: largest error in ticks", Want::Is(0), stops.error);
        report.check("500 stops one tick apart: exact ones", Want::Is(500), self.neighbours());
    }

    /// Checks what exits and events count.
    pub(super) fn exits(&mut self, report: &mut Report) {
        for (name, code) in EXITS {
            report.check(name, Want::Is(0), self.exit_cost(code));
        }
        report.check("delivering an interrupt counts", Want::Is(0), self.interrupt_cost());
        report.check("instructions between STI and an interrupt", Want::Is(1), self.after_sti());
        report.check("stores to 2 pages, twice: pages seen written", Want::Is(4), self.pages_written());
    }

    /// Leaves the memory that was used zeroed.
    pub(super) fn clear(&mut self) {
        self.stand.write(0, &[0; USED as usize]);
    }

    pub(super) fn registers(&mut self) -> &mut Registers {
        self.stand.vcpu().registers_mut()
    }

    /// Runs to `target` or to an exit of the guest's own. Returns that exit, if any, and the ticks run.
    pub(super) fn run(&mut self, target: u64) -> (Option<Exit>, u64) {
        let mut position = 0;
        for _ in 0..MAX_ENTRIES {
            if position >= target {
                return (None, position);
            }
            let limit = self.counter.limit(target - position);
            if let Limit::Overflow(_) = limit {
                // Should the overflow not come, this ends the run.
                self.stand.interrupt_soon();
            }
            let entered = self.stand.vcpu().enter(limit);
            position += self.counter.read(limit, &entered);
            if entered.exit.is_own() {
                return (Some(entered.exit), position);
            }
            self.steps += u64::from(entered.exit == Exit::Stepped);
            if entered.exit != Exit::Stepped {
                self.stand.let_in();
            }
        }
        (None, NONSENSE)
    }

    fn straight(&mut self, instructions: usize) -> u64 {
        let mut code = alloc::vec![NOP; instructions];
        code.push(HLT);
        place(self.stand, &code);
        match self.run(u64::MAX) {
            (Some(Exit::Hlt), ticks) => ticks,
            _ => NONSENSE,
        }
    }

    fn unequal_runs(&mut self) -> u64 {
        let first = self.straight(777);
        (1..100).filter(|_| self.straight(777) != first).count() as u64
    }

    fn random_stops(&mut self) -> Stops {
        let mut stops = Stops { exact: 0, error: 0 };
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        for round in 0..STOPS {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Short and long runs alike.
            let target = 1 + (random >> 40) % [20, 2000, 60_000][round as usize % 3];
            place(self.stand, &LOOP);
            let (exit, ticks) = self.run(target);
            let turns = self.registers().gpr[gpr::RAX];
            let offset = [0, 1, 3, 7][(target % LOOP_LEN) as usize];
            let landed = turns == target.div_ceil(LOOP_LEN) && self.registers().rip == CODE + offset;
            stops.exact += u64::from(exit.is_none() && ticks == target && landed);
            stops.error = stops.error.max(ticks.abs_diff(target));
        }
        stops
    }

    fn neighbours(&mut self) -> u64 {
        place(self.stand, &[NOP; 501]);
        let next = |bench: &mut Self, stop: u64| bench.run(1) == (None, 1) && bench.registers().rip == CODE + stop;
        (1..=500).take_while(|&stop| next(self, stop)).count() as u64
    }

    pub(super) fn rep(&mut self, count: u8) -> u64 {
        place(self.stand, &rep(count));
        match self.run(u64::MAX) {
            (Some(Exit::Hlt), ticks) => ticks,
            _ => NONSENSE,
        }
    }

    fn stop_in_rep(&mut self) -> u64 {
        place(self.stand, &rep(100));
        match self.run(2 + 50) {
            (None, 52) => 100 - self.registers().gpr[gpr::RCX],
            _ => NONSENSE,
        }
    }

    fn exit_cost(&mut self, code: &[u8]) -> u64 {
        place(self.stand, code);
        // An address that is no memory, for the device access; no register of the others' concern.
        self.registers().gpr[gpr::RAX] = 0xFEC0_0000;
        self.registers().gpr[gpr::RBX] = 0xFEC0_0000;
        match self.run(u64::MAX) {
            (Some(Exit::Shutdown | Exit::Invalid | Exit::Unknown(_)) | None, _) => NONSENSE,
            (Some(_), ticks) => ticks,
        }
    }

    /// Two NOPs, an interrupt whose handler is a HLT: the ticks beyond the two.
    fn interrupt_cost(&mut self) -> u64 {
        place_with_handler(self.stand, &[NOP; 64]);
        self.registers().rflags = RFLAGS_FIXED | RFLAGS_IF;
        let (None, 2) = self.run(2) else { return NONSENSE };
        self.stand.vcpu().offer_interrupt(Some(VECTOR));
        match self.run(1000) {
            (Some(Exit::Hlt), ticks) if self.registers().rip == HANDLER => ticks,
            _ => NONSENSE,
        }
    }

    /// An interrupt waits while the guest stands behind STI, and a host interrupt ends the next entry before anything
    /// ran: the instructions that still come before the guest's handler. The guest counts them in AX.
    fn after_sti(&mut self) -> u64 {
        place_with_handler(self.stand, &AFTER_STI);
        // The stop's own interrupt is not let in: it is the host's that the next entry meets.
        let limit = self.counter.limit(1);
        if self.stand.vcpu().enter(limit).exit.is_own() {
            return NONSENSE;
        }
        self.stand.vcpu().offer_interrupt(Some(VECTOR));
        match self.run(1000) {
            (Some(Exit::Hlt), _) if self.registers().rip == HANDLER => self.registers().gpr[gpr::RAX],
            _ => NONSENSE,
        }
    }

    /// The second time shows whether a page that was told once is told again.
    fn pages_written(&mut self) -> u64 {
        self.stand.vcpu().track_writes(true);
        let mut pages = 0;
        for _ in 0..2 {
            place(self.stand, &STORES);
            if self.run(u64::MAX) != (Some(Exit::Hlt), 2) {
                pages = NONSENSE;
                break;
            }
            self.stand.vcpu().take_written(&mut |_| pages += 1);
        }
        self.stand.vcpu().track_writes(false);
        pages
    }
}
