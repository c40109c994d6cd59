//! Stops that are known to be exact, or not, by what the guest did.

use super::{
    CODE, HANDLER, HLT, NONSENSE, NOP, Random, Report, Stand, USED, VECTOR, Want, place, place_with_handler, rep,
};
use crate::counter::Counter;
use crate::cpu::registers::{RFLAGS_FIXED, RFLAGS_IF, Registers, gpr};
use crate::cpu::{Exit, Limit, Meter};

/// 1: inc ax; add bx, ax; mov [0x2000], bx; jmp 1b
const LOOP: [u8; 9] = [0x40, 0x01, 0xC3, 0x89, 0x1E, 0x00, 0x20, 0xEB, 0xF7];
/// Instructions in one turn of [`LOOP`].
const LOOP_LEN: u64 = 4;
/// sti; inc ax, three times; hlt
const AFTER_STI: [u8; 5] = [0xFB, 0x40, 0x40, 0x40, HLT];
/// mov [0x2000], ax; mov [0x3000], ax; hlt
const STORES: [u8; 7] = [0xA3, 0x00, 0x20, 0xA3, 0x00, 0x30, HLT];
/// Random stops that are tried.
const STOPS: u64 = 500;
/// Entries that a run may take at most: one that needs more makes no progress.
const MAX_ENTRIES: u32 = 1 << 20;

/// A guest under test.
pub(in crate::counter) struct Bench<'a> {
    pub(in crate::counter) stand: &'a mut dyn Stand,
    pub(in crate::counter) counter: &'a mut Counter,
    /// Entries that ended by a single step.
    steps: u64,
    /// Single steps that each of the random stops took, on average.
    pub(in crate::counter) steps_per_stop: u64,
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

impl<'a> Bench<'a> {
    pub(in crate::counter) fn new(stand: &'a mut dyn Stand, counter: &'a mut Counter) -> Self {
        Self { stand, counter, steps: 0, steps_per_stop: 0 }
    }

    /// Checks that the counter counts and stops exactly.
    pub(in crate::counter) fn exactness(&mut self, report: &mut Report) {
        report.check("1000 instructions count", Want::Is(1000), self.straight(1000));
        report.check("100 equal runs that count differently", Want::Is(0), self.unequal_runs());
        let before = self.steps;
        let stops = self.random_stops();
        self.steps_per_stop = (self.steps - before) / STOPS;
        report.check("500 random stops: exact ones", Want::Is(STOPS), stops.exact);
        report.check("500 random stops: largest error in ticks", Want::Is(0), stops.error);
        report.check("500 random stops in straight code: exact ones", Want::Is(STOPS), self.straight_stops());
        report.check("500 stops one tick apart: exact ones", Want::Is(500), self.neighbours());
    }

    /// Checks what exits and events count.
    pub(in crate::counter) fn exits(&mut self, report: &mut Report) {
        for (name, code) in EXITS {
            report.check(name, Want::Is(0), self.exit_cost(code));
        }
        report.check("delivering an interrupt counts", Want::Is(0), self.interrupt_cost());
        report.check("instructions between STI and an interrupt", Want::Is(1), self.after_sti());
        report.check("stores to 2 pages, twice: pages seen written", Want::Is(4), self.pages_written());
    }

    /// Leaves the memory that was used zeroed.
    pub(in crate::counter) fn clear(&mut self) {
        self.stand.write(0, &[0; USED as usize]);
    }

    pub(in crate::counter) fn registers(&mut self) -> &mut Registers {
        self.stand.vcpu().registers_mut()
    }

    /// Runs to `target` or to an exit of the guest's own. Returns that exit, if any, and the ticks run.
    pub(in crate::counter) fn run(&mut self, target: u64) -> (Option<Exit>, u64) {
        let mut position = 0;
        for _ in 0..MAX_ENTRIES {
            if position >= target {
                return (None, position);
            }
            let (exit, ticks) = self.enter(target - position);
            position += ticks;
            if exit.is_own() {
                return (Some(exit), position);
            }
        }
        (None, NONSENSE)
    }

    /// One entry towards a target `distance` ticks away: how it ended, and the ticks run.
    pub(in crate::counter) fn enter(&mut self, distance: u64) -> (Exit, u64) {
        let limit = self.counter.limit(distance);
        if let Limit::After(Meter::Instructions, _) = limit {
            // Should the overflow not come, this ends the run.
            self.stand.interrupt_soon();
        }
        let entered = self.stand.vcpu().enter(limit);
        self.steps += u64::from(entered.exit == Exit::Stepped);
        if !entered.exit.is_own() && entered.exit != Exit::Stepped {
            self.stand.let_in();
        }
        (entered.exit, self.counter.read(limit, &entered))
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
        let mut random = Random::new();
        for round in 0..STOPS {
            // Short and long runs alike.
            let target = random.up_to([20, 2000, 60_000][round as usize % 3]);
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

    /// Stops where no branch is near.
    fn straight_stops(&mut self) -> u64 {
        place(self.stand, &[NOP; 2001]);
        let mut random = Random::new();
        let mut exact = 0;
        for _ in 0..STOPS {
            let target = random.up_to(2000);
            self.registers().rip = CODE;
            exact += u64::from(self.run(target) == (None, target) && self.registers().rip == CODE + target);
        }
        exact
    }

    fn neighbours(&mut self) -> u64 {
        place(self.stand, &[NOP; 501]);
        let next = |bench: &mut Self, stop: u64| bench.run(1) == (None, 1) && bench.registers().rip == CODE + stop;
        (1..=500).take_while(|&stop| next(self, stop)).count() as u64
    }

    pub(in crate::counter) fn rep(&mut self, count: u8) -> u64 {
        place(self.stand, &rep(count));
        match self.run(u64::MAX) {
            (Some(Exit::Hlt), ticks) => ticks,
            _ => NONSENSE,
        }
    }

    pub(in crate::counter) fn stop_in_rep(&mut self) -> u64 {
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
            (Some(Exit::Shutdown | Exit::Invalid | Exit::Unknown(_) | Exit::Unexpected(_)) | None, _) => NONSENSE,
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
