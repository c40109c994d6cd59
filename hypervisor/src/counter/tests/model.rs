//! A model of a machine: a CPU, a counter of retired instructions with its overflow interrupt, a TSC with a timer, each
//! with whatever bugs are wanted, and a host that disturbs. Everything follows from the seed.

use alloc::string::String;

use super::core::{Core, Did};
use crate::counter::selftest::Stand;
use crate::cpu::pmu::{Layout, Source};
use crate::cpu::registers::{CpuMsrs, CpuState, RFLAGS_IF, Registers, Shadow};
use crate::cpu::{EXIT_KINDS, Entered, Exception, Exit, InstructionCounter, Limit, Meter, Mode, Vcpu};
use crate::extended::ExtendedRegisters;
use crate::memory::{Gpa, GuestMemory};

/// More than any entry passes that ends.
const MOST_BOUNDARIES: u64 = 1 << 24;

/// A splitmix64 generator.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    /// Once in so many times; never for 0.
    pub fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }
}

/// How the machine behaves. All `*_in` are "once in so many times", 0 is never.
#[derive(Debug, Clone)]
pub struct Nature {
    /// Width in bits, as CPUID says.
    pub claimed_width: u8,
    /// Width in bits.
    pub width: u8,
    /// Largest skid in boundaries.
    pub skid: u64,
    /// Overflow interrupts that come `late` boundaries later still.
    pub late: u64,
    pub late_in: u64,
    /// Overflow interrupts that do not come.
    pub lost_in: u64,
    /// Overflow interrupts that come again.
    pub twice_in: u64,
    /// Boundaries at which another non-maskable interrupt comes.
    pub spurious_in: u64,
    /// Boundaries at which a host interrupt comes, the next one after three times as many at the latest. Where that is less
    /// than every margin, an overflow interrupt that does not come is made up for.
    pub host_in: u64,
    /// Host interrupts are held back from an entry that begins with the guest's IF clear, as Bochs does.
    pub held_back: bool,
    /// What kinds of exit count.
    pub exit_costs: [u8; EXIT_KINDS.len()],
    /// Exits of a host interrupt that count one more.
    pub host_overcount_in: u64,
    /// What the delivery of an interrupt, of an injected exception and of the guest's own fault count.
    pub interrupt_cost: u8,
    pub exception_cost: u8,
    pub fault_cost: u8,
    /// Faults that count one more.
    pub fault_overcount_in: u64,
    /// Instructions that do not count.
    pub undercount_in: u64,
    /// What it counts of the hypervisor's own instructions at each entry.
    pub host_count: u64,
    /// The counter reads 0 and drops writes.
    pub dead: bool,
    /// Single steps do nothing.
    pub no_steps: bool,
    /// Single steps that take a second instruction.
    pub long_step_in: u64,
    /// The TSC counts: one for each instruction, iteration of a string instruction and fault of the guest's own.
    pub tsc: bool,
    /// Most boundaries that are passed before the timer and the host are looked at again, as long as there is no branch. 1
    /// is a machine that looks at each.
    pub run: u64,
    /// Ticks of the guest for which the timer does not go on: once in so many.
    pub slow_in: u64,
}

impl Default for Nature {
    fn default() -> Self {
        Self {
            claimed_width: 48,
            width: 48,
            skid: 18,
            late: 0,
            late_in: 0,
            lost_in: 0,
            twice_in: 0,
            spurious_in: 0,
            host_in: 0,
            held_back: false,
            exit_costs: [0; EXIT_KINDS.len()],
            host_overcount_in: 0,
            interrupt_cost: 0,
            exception_cost: 0,
            fault_cost: 0,
            fault_overcount_in: 0,
            undercount_in: 0,
            host_count: 0,
            dead: false,
            no_steps: false,
            long_step_in: 0,
            tsc: false,
            run: 1,
            slow_in: 0,
        }
    }
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Model {
    pub core: Core,
    pub nature: Nature,
    pub random: Random,
    value: u64,
    /// Ticks since the entry, and those until the timer of a limit comes.
    ticks: u64,
    end: Option<u64>,
    /// Boundaries until the overflow interrupt comes.
    pmi: Option<u64>,
    /// A non-maskable interrupt is pending.
    nmi: bool,
    /// Boundaries until the host's timer interrupt comes.
    timer: Option<u64>,
    host: bool,
    /// Boundaries since the host last interrupted by itself.
    quiet: u64,
    pub offered: Option<u8>,
    injected: Option<Exception>,
    /// Length of the instruction that exited last.
    exited: u8,
}

impl Model {
    pub fn new(nature: Nature, seed: u64) -> Self {
        Self {
            core: Core::new(),
            nature,
            random: Random(seed),
            value: 0,
            ticks: 0,
            end: None,
            pmi: None,
            nmi: false,
            timer: None,
            host: false,
            quiet: 0,
            offered: None,
            injected: None,
            exited: 0,
        }
    }

    /// Carries out the instruction that exited.
    pub fn complete(&mut self) {
        self.core.complete(self.exited);
    }

    fn layout(&self) -> Layout {
        Layout { source: Source::Fixed, width: self.nature.claimed_width }
    }

    fn write(&mut self, value: u64) {
        if !self.nature.dead {
            self.value = value & (u64::MAX >> (64 - self.nature.width));
        }
    }

    fn count(&mut self, counts: u64) {
        for _ in 0..counts {
            self.write(self.value.wrapping_add(1));
            if self.value == 0 && !self.nature.dead && !self.random.once_in(self.nature.lost_in) {
                let late = if self.random.once_in(self.nature.late_in) { self.nature.late } else { 0 };
                self.pmi = Some(self.random.below(self.nature.skid + 1) + late);
            }
        }
    }

    /// The guest goes on by so many ticks.
    fn tick(&mut self, ticks: u64) {
        self.ticks += ticks;
        if !self.random.once_in(self.nature.slow_in) {
            self.end = self.end.map(|end| end.saturating_sub(ticks));
        }
    }

    /// Whether something ends the run here that is looked at only now and then.
    fn interruption(&mut self, held_back: bool) -> Option<Exit> {
        if self.nmi {
            self.nmi = false;
            return Some(Exit::Overflow);
        }
        (self.end == Some(0) || self.host && !held_back).then_some(Exit::Interrupted)
    }

    /// Time passes by one boundary.
    fn pass(&mut self) {
        match &mut self.pmi {
            Some(0) => {
                self.nmi = true;
                self.pmi = self.random.once_in(self.nature.twice_in).then(|| self.random.below(500));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.nmi |= self.random.once_in(self.nature.spurious_in);
        self.quiet += 1;
        if self.random.once_in(self.nature.host_in) || self.quiet == 3 * self.nature.host_in {
            (self.host, self.quiet) = (true, 0);
        }
        match &mut self.timer {
            Some(0) => (self.timer, self.host) = (None, true),
            Some(left) => *left -= 1,
            None => {}
        }
    }

    /// Delivers what the entry injects. Returns whether there was something.
    fn inject_at_entry(&mut self, entered: &mut Entered) -> bool {
        if let Some(exception) = self.injected.take() {
            entered.exception_taken = true;
            self.core.deliver(exception.vector);
            self.count(self.nature.exception_cost.into());
        } else if self.core.is_open()
            && let Some(vector) = self.offered.take()
        {
            entered.interrupt_taken = true;
            self.core.deliver(vector);
            self.count(self.nature.interrupt_cost.into());
        } else {
            return false;
        }
        true
    }

    fn go(&mut self, stepping: bool, entered: &mut Entered) -> Exit {
        if self.inject_at_entry(entered) && stepping {
            return Exit::Stepped;
        }
        let mut held_back = self.nature.held_back;
        let mut run = 0;
        for boundary in 0.. {
            assert!(boundary < MOST_BOUNDARIES, "an entry does not end: {:?}", self.nature);
            held_back &= self.core.registers.rflags & RFLAGS_IF == 0;
            if run == 0
                && let Some(exit) = self.interruption(held_back)
            {
                return exit;
            }
            // An interrupt window.
            if self.offered.is_some() && self.core.is_open() {
                return Exit::Interrupted;
            }
            let rip = self.core.registers.rip;
            match self.core.step() {
                Did::Retire => {
                    let counts = !self.random.once_in(self.nature.undercount_in);
                    self.count(counts.into());
                    self.tick(counts.into());
                }
                Did::Iterate => self.tick(1),
                Did::Fault => {
                    let overcount = self.random.once_in(self.nature.fault_overcount_in);
                    self.count(u64::from(self.nature.fault_cost) + u64::from(overcount));
                    self.tick(1 + u64::from(overcount));
                }
                Did::Exit(exit, length) => {
                    self.exited = length;
                    return exit;
                }
            }
            self.pass();
            if stepping && !self.random.once_in(self.nature.long_step_in) {
                return Exit::Stepped;
            }
            let branched = !(1..=8).contains(&self.core.registers.rip.wrapping_sub(rip));
            run = if branched || run + 1 >= self.nature.run { 0 } else { run + 1 };
        }
        unreachable!("all boundaries were passed")
    }
}

impl Vcpu for Model {
    fn calibrate(&mut self, _: &mut GuestMemory, _: &mut dyn FnMut()) -> Result<String, String> {
        Err("this machine has no clock that counts instructions".into())
    }

    fn instruction_counter(&self) -> Result<InstructionCounter, &'static str> {
        Ok(self.layout().describe())
    }

    fn enter(&mut self, limit: Limit) -> Entered {
        let stepping = matches!(limit, Limit::Step(_)) && !self.nature.no_steps;
        let (meter, before) = match limit {
            Limit::After(Meter::Instructions, counts) => (Meter::Instructions, self.layout().preload(counts)),
            Limit::After(meter, _) | Limit::Step(meter) => (meter, 0),
        };
        self.end = match limit {
            Limit::After(Meter::Tsc, ticks) => Some(ticks),
            _ => None,
        };
        self.ticks = 0;
        self.write(before);
        let mut entered = Entered { exit: Exit::Interrupted, ticks: 0, interrupt_taken: false, exception_taken: false };
        entered.exit = self.go(stepping, &mut entered);
        let cost = self.nature.exit_costs[entered.exit.kind()];
        let overcount = entered.exit == Exit::Interrupted && self.random.once_in(self.nature.host_overcount_in);
        self.count(u64::from(cost) + u64::from(overcount));
        entered.ticks = match meter {
            Meter::Tsc => self.ticks + u64::from(overcount),
            Meter::Instructions => self.layout().counted(before, self.value).wrapping_add(self.nature.host_count),
        };
        // What is pending now comes while the hypervisor runs, or at the next entry.
        if self.random.once_in(2) {
            (self.nmi, self.pmi) = (false, None);
        }
        entered
    }

    fn registers(&self) -> &Registers {
        &self.core.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.core.registers
    }

    fn mode(&self) -> Mode {
        Mode::default()
    }

    fn offer_interrupt(&mut self, vector: Option<u8>) {
        self.offered = vector;
    }

    fn inject(&mut self, exception: Exception) {
        self.injected = Some(exception);
    }

    fn cr2(&self) -> u64 {
        0
    }

    fn set_cr2(&mut self, _: u64) {}

    fn clear_interrupt_shadow(&mut self) {
        self.core.shadow = false;
    }

    fn trap_step(&mut self) {}

    fn msrs(&self) -> CpuMsrs {
        CpuMsrs::default()
    }

    fn set_msrs(&mut self, _: &CpuMsrs) {}

    fn extended(&mut self) -> &mut dyn ExtendedRegisters {
        unreachable!("the self-test looks at no such registers")
    }

    fn track_writes(&mut self, on: bool) {
        self.core.written = on.then(Default::default);
    }

    fn take_written(&mut self, written: &mut dyn FnMut(Gpa)) {
        if let Some(pages) = &mut self.core.written {
            core::mem::take(pages).into_iter().for_each(|page| written(Gpa(page)));
        }
    }

    fn save(&mut self) -> CpuState {
        CpuState {
            registers: self.core.registers,
            shadow: Shadow::guess(self.core.shadow, self.core.registers.rflags),
            ..CpuState::default()
        }
    }

    fn load(&mut self, state: &CpuState) {
        self.core.registers = state.registers;
        self.core.shadow = state.shadow != Shadow::None;
        (self.offered, self.injected) = (None, None);
    }
}

impl Stand for Model {
    fn vcpu(&mut self) -> &mut dyn Vcpu {
        self
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.core.ram[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn executes_any_code(&self) -> bool {
        false
    }

    fn let_in(&mut self) {
        self.host = false;
    }

    fn interrupt_soon(&mut self) {
        self.timer = Some(self.random.below(3000));
    }

    fn calibrate(&mut self) -> Result<String, String> {
        const NONE: &str = "this machine has no clock that counts instructions";
        if self.nature.tsc { Ok("calibrated".into()) } else { Err(NONE.into()) }
    }
}
