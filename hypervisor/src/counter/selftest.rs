//! The boot self-test: counts are calibrated, never believed.
//!
//! Small real-mode guests of which it is known how many instructions they execute and what they leave behind. Each
//! check gives name, got and want; one that fails refuses the counter.

use alloc::vec::Vec;
use core::fmt;

use super::{Counter, Progress};
use crate::cpu::registers::{CpuState, RFLAGS_FIXED, RFLAGS_IF, gpr};
use crate::cpu::{Exit, Limit, Vcpu};
use crate::memory::{Gpa, GuestMemory};

/// Where test code is placed.
const CODE: u64 = 0x1000;
/// Handler of the test interrupt.
const HANDLER: u64 = 0x800;
/// Vector of the test interrupt.
const VECTOR: u8 = 0x40;
/// Guest memory that the tests use, zeroed afterwards.
const USED: u64 = 0x4000;

const NOP: u8 = 0x90;
const HLT: u8 = 0xF4;
/// 1: inc ax; add bx, ax; mov [0x2000], bx; jmp 1b
const LOOP: [u8; 9] = [0x40, 0x01, 0xC3, 0x89, 0x1E, 0x00, 0x20, 0xEB, 0xF7];
/// Instructions in one turn of [`LOOP`].
const LOOP_LEN: u64 = 4;
/// sti; inc ax, three times; hlt
const AFTER_STI: [u8; 5] = [0xFB, 0x40, 0x40, 0x40, HLT];
/// mov [0x2000], ax; mov [0x3000], ax; hlt
const STORES: [u8; 7] = [0xA3, 0x00, 0x20, 0xA3, 0x00, 0x30, HLT];
/// mov di, 0x3000; mov cx, `count`; rep stosb; hlt
const fn rep(count: u8) -> [u8; 9] {
    [0xBF, 0x00, 0x30, 0xB9, count, 0, 0xF3, 0xAA, HLT]
}

/// Random stops that are tried.
const STOPS: u64 = 500;

/// One result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was measured.
    pub name: &'static str,
    /// What it must be.
    pub want: u64,
    /// What it was.
    pub got: u64,
}

impl Check {
    /// Whether it is as it must be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.got == self.want
    }
}

/// All results.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// In the order in which they were measured.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether the counter may be used. No data is a failure.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(Check::passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {:<44} {:>12} {:>12}", "check", "want", "got")?;
        for check in &self.checks {
            let verdict = if check.passed() { "ok" } else { "FAILED" };
            writeln!(f, "  {:<44} {:>12} {:>12} {verdict}", check.name, check.want, check.got)?;
        }
        Ok(())
    }
}

/// A guest under test.
struct Bench<'a> {
    vcpu: &'a mut dyn Vcpu,
    counter: &'a dyn Counter,
    memory: &'a mut GuestMemory,
    /// Lets host interrupts in after an interrupted run.
    settle: &'a mut dyn FnMut(),
}

/// Runs all checks on `vcpu`, whose state and first pages of memory are used and left zeroed. `settle` is called after
/// each interrupted entry, to let the pending host interrupt in.
pub fn run(vcpu: &mut dyn Vcpu, counter: &dyn Counter, memory: &mut GuestMemory, settle: &mut dyn FnMut()) -> Report {
    let mut bench = Bench { vcpu, counter, memory, settle };
    let mut report = Report::default();
    let mut check = |name, want, got| report.checks.push(Check { name, want, got });
    check("1000 instructions count", 1000, bench.straight(1000));
    check("100 equal runs that count differently", 0, bench.unequal_runs());
    let stops = bench.random_stops();
    check("500 random stops: exact ones", STOPS, stops.exact);
    check("500 random stops: largest skid in ticks", 0, stops.skid);
    check("500 single steps: exact ones", 500, bench.single_steps());
    // Some CPUs count the end of the repetition, too.
    check("100 iterations more of rep stosb count", 100, bench.rep(200).wrapping_sub(bench.rep(100)));
    check("stop inside rep stosb: bytes stored", 50, bench.stop_in_rep());
    for (name, code) in EXITS {
        check(name, 0, bench.exit_cost(code));
    }
    check("delivering an interrupt counts", 0, bench.interrupt_cost());
    check("instructions between STI and an interrupt", 1, bench.after_sti());
    check("stores to 2 pages, twice: pages seen written", 4, bench.pages_written());
    if let Ok(used) = bench.memory.slice_mut(Gpa(0), USED) {
        used.fill(0);
    }
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
    skid: u64,
}

/// A count that no run can have: the guest did something else than expected.
const NONSENSE: u64 = u64::MAX;

impl Bench<'_> {
    fn place(&mut self, code: &[u8]) {
        // The self-test runs in the first pages of guest memory, whose presence the caller checked.
        let _ = self.memory.write(Gpa(CODE), code);
        let mut state = CpuState::real_mode(CODE);
        // Real-mode segments reach 64 KiB; the device access needs 4 GiB.
        state.segments.ds.limit = u32::MAX;
        state.registers.gpr[gpr::RSP] = 0x700;
        self.vcpu.load(&state);
    }

    /// Runs to `target` or to an exit of the guest's own. Returns that exit, if any, and the ticks run.
    fn run(&mut self, target: u64) -> (Option<Exit>, u64) {
        let mut progress = Progress::at(0);
        while progress.position() < target {
            let entered = self.vcpu.enter(self.counter.limit(target - progress.position()));
            progress = Progress::at(progress.position() + entered.ticks);
            if entered.exit != Exit::Interrupted {
                return (Some(entered.exit), progress.position());
            }
            (self.settle)();
        }
        (None, progress.position())
    }

    fn straight(&mut self, instructions: usize) -> u64 {
        let mut code = alloc::vec![NOP; instructions];
        code.push(HLT);
        self.place(&code);
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
        let mut stops = Stops { exact: 0, skid: 0 };
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        for round in 0..STOPS {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Short and long runs alike.
            let target = 1 + (random >> 40) % [20, 2000, 60_000][round as usize % 3];
            self.place(&LOOP);
            let (exit, ticks) = self.run(target);
            let turns = self.vcpu.registers().gpr[gpr::RAX];
            let offset = [0, 1, 3, 7][(target % LOOP_LEN) as usize];
            let landed = turns == target.div_ceil(LOOP_LEN) && self.vcpu.registers().rip == CODE + offset;
            stops.exact += u64::from(exit.is_none() && ticks == target && landed);
            stops.skid = stops.skid.max(ticks.abs_diff(target));
        }
        stops
    }

    fn single_steps(&mut self) -> u64 {
        self.place(&[NOP; 501]);
        let stepped = |bench: &mut Self, step: u64| {
            let entered = bench.vcpu.enter(Limit::Exact(1));
            (bench.settle)();
            entered.ticks == 1 && bench.vcpu.registers().rip == CODE + step
        };
        (1..=500).take_while(|&step| stepped(self, step)).count() as u64
    }

    fn rep(&mut self, count: u8) -> u64 {
        self.place(&rep(count));
        match self.run(u64::MAX) {
            (Some(Exit::Hlt), ticks) => ticks,
            _ => NONSENSE,
        }
    }

    fn stop_in_rep(&mut self) -> u64 {
        self.place(&rep(100));
        match self.run(2 + 50) {
            (None, 52) => 100 - self.vcpu.registers().gpr[gpr::RCX],
            _ => NONSENSE,
        }
    }

    fn exit_cost(&mut self, code: &[u8]) -> u64 {
        self.place(code);
        // An address that is no memory, for the device access; no register of the others' concern.
        self.vcpu.registers_mut().gpr[gpr::RAX] = 0xFEC0_0000;
        self.vcpu.registers_mut().gpr[gpr::RBX] = 0xFEC0_0000;
        match self.run(u64::MAX) {
            (Some(Exit::Shutdown | Exit::Invalid | Exit::Unknown(_)) | None, _) => NONSENSE,
            (Some(_), ticks) => ticks,
        }
    }

    /// Places code, and a HLT as the handler of the test interrupt.
    fn place_with_handler(&mut self, code: &[u8]) {
        let _ = self.memory.write(Gpa(HANDLER), &[HLT]);
        let _ = self.memory.write(Gpa(u64::from(VECTOR) * 4), &(HANDLER as u32).to_le_bytes());
        self.place(code);
    }

    /// Two NOPs, an interrupt whose handler is a HLT: the ticks beyond the two.
    fn interrupt_cost(&mut self) -> u64 {
        self.place_with_handler(&[NOP; 64]);
        self.vcpu.registers_mut().rflags = RFLAGS_FIXED | RFLAGS_IF;
        let (None, 2) = self.run(2) else { return NONSENSE };
        self.vcpu.offer_interrupt(Some(VECTOR));
        match self.run(1000) {
            (Some(Exit::Hlt), ticks) if self.vcpu.registers().rip == HANDLER => ticks,
            _ => NONSENSE,
        }
    }

    /// An interrupt waits while the guest stands behind STI, and a host interrupt ends the next entry before anything
    /// ran: the instructions that still come before the guest's handler. The guest counts them in AX.
    fn after_sti(&mut self) -> u64 {
        self.place_with_handler(&AFTER_STI);
        // The stop's own interrupt is not let in: it is the host's that the next entry meets.
        if self.vcpu.enter(Limit::Exact(1)).exit != Exit::Interrupted {
            return NONSENSE;
        }
        self.vcpu.offer_interrupt(Some(VECTOR));
        match self.run(1000) {
            (Some(Exit::Hlt), _) if self.vcpu.registers().rip == HANDLER => self.vcpu.registers().gpr[gpr::RAX],
            _ => NONSENSE,
        }
    }

    /// The second time shows whether a page that was told once is told again.
    fn pages_written(&mut self) -> u64 {
        self.vcpu.track_writes(true);
        let mut pages = 0;
        for _ in 0..2 {
            self.place(&STORES);
            if self.run(u64::MAX) != (Some(Exit::Hlt), 2) {
                pages = NONSENSE;
                break;
            }
            self.vcpu.take_written(&mut |_| pages += 1);
        }
        self.vcpu.track_writes(false);
        pages
    }
}
