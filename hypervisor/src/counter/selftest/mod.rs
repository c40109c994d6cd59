//! The boot self-test: counts are calibrated, never believed.
//!
//! Small real-mode guests of which it is known how many instructions they execute and what they leave behind. First a
//! `Trial` measures how late the ends of runs come and whether single steps step, then a `Bench` checks the stops that
//! are made with it. Each check gives name, got and want; one that fails refuses the counter.

mod bench;
mod clock;
mod hidden;
mod interrupts;
mod patching;
mod report;
mod translations;
pub(super) mod trial;

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use super::{Backend, Costs, Counter, Skid, Ticks, ticks};
use crate::cpu::Vcpu;
use crate::cpu::registers::{CpuState, gpr};
use crate::memory::{Gpa, GuestMemory};
pub(super) use bench::Bench;
pub use report::{Check, NONSENSE, Report, Want};
pub(super) use trial::{Failed, Trial};

/// Where test code is placed.
pub(super) const CODE: u64 = 0x1000;
/// Handler of the test interrupt.
pub(super) const HANDLER: u64 = 0x800;
/// Top of the stack, in a page where no code is: pages that are written and executed by turns cost exits where executed
/// ones are guarded.
const STACK: u64 = 0x2F00;
/// Vector of the test interrupt.
pub(super) const VECTOR: u8 = 0x40;
/// Guest memory that the tests use, zeroed afterwards.
const USED: u64 = 0x4000;

pub(super) const NOP: u8 = 0x90;
pub(super) const HLT: u8 = 0xF4;
/// mov di, 0x3000; mov cx, `count`; rep stosb; hlt
pub(super) const fn rep(count: u8) -> [u8; 9] {
    [0xBF, 0x00, 0x30, 0xB9, count, 0, 0xF3, 0xAA, HLT]
}

/// Random numbers, the same at every start.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }

    /// A number from 1 to `most`.
    fn up_to(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (self.0 >> 40) % most
    }
}

/// The machine whose counter is tested.
pub trait Stand {
    /// Its CPU.
    fn vcpu(&mut self) -> &mut dyn Vcpu;

    /// Writes guest memory, whose first 16 KiB are there.
    fn write(&mut self, at: u64, bytes: &[u8]);

    /// Whether it executes any code: models know the instructions of the counters' own tests, and those of real mode only.
    fn executes_any_code(&self) -> bool {
        true
    }

    /// Lets pending host interrupts in.
    fn let_in(&mut self);

    /// Has a host interrupt come soon: after some thousand instructions.
    fn interrupt_soon(&mut self);

    /// Has the TSC count the guest's instructions alone, see [`Vcpu::calibrate`].
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

/// A counter that passed, and what its self-test found.
#[derive(Debug)]
pub struct Tested {
    /// The counter.
    pub counter: Counter,
    /// All results.
    pub report: Report,
    /// How late the ends of runs came.
    pub skid: Skid,
    /// Single steps that a random stop took, on average.
    pub steps_per_stop: u64,
}

impl fmt::Display for Tested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counter, report, skid, steps_per_stop } = self;
        writeln!(f, "margin {}, {steps_per_stop} steps a stop\n  skid: {skid}", counter.margin())?;
        if counter.costs() != Costs::default() {
            writeln!(f, "  counts by themselves: {}", counter.costs())?;
        }
        write!(f, "{report}")
    }
}

impl Tested {
    /// With what a trial measured the counter must be exact: `checks` are those of its backend. Leaves the memory that was
    /// used zeroed.
    ///
    /// # Errors
    /// All results, if one of them is not as it must be.
    pub(super) fn check(
        trial: Trial<'_>,
        mut counter: Counter,
        checks: impl FnOnce(&mut Bench<'_>, &mut Report),
    ) -> Result<Self, Report> {
        let Trial { stand, mut report, skid, .. } = trial;
        let mut bench = Bench::new(stand, &mut counter);
        bench.exactness(&mut report);
        checks(&mut bench, &mut report);
        bench.exits(&mut report);
        bench.clear();
        let steps_per_stop = bench.steps_per_stop;
        counter.forget_seen();
        if report.passed() { Ok(Self { counter, report, skid, steps_per_stop }) } else { Err(report) }
    }
}

/// Checks whether changed code is executed as it is, with a counter that need not count right. Leaves the memory that was
/// used zeroed.
pub(super) fn changed_code(stand: &mut dyn Stand, counter: &mut Counter) -> Report {
    let mut report = Report::default();
    let mut bench = Bench::new(stand, counter);
    bench.changed_code(&mut report);
    bench.clear();
    report
}

/// Checks what stops must leave no trace of: code that changes itself, and interrupts. Leaves the memory that was used
/// zeroed.
pub(super) fn hazards(stand: &mut dyn Stand, counter: &mut Counter) -> Report {
    let mut report = Report::default();
    let mut bench = Bench::new(stand, counter);
    bench.patching(&mut report);
    bench.interrupts_at_stops(&mut report);
    bench.clear();
    counter.forget_seen();
    report
}

/// Checks clock reads without an exit; `None` where all of them exit. Leaves the memory that was used zeroed.
pub(super) fn clock_reads(stand: &mut dyn Stand, counter: &mut Counter) -> Option<Report> {
    let mut report = Report::default();
    let mut bench = Bench::new(stand, counter);
    let any = bench.clock_reads(&mut report);
    bench.clear();
    counter.forget_seen();
    any.then_some(report)
}

/// Checks what a CPU that walks the guest's page tables itself lets the guest see of its memory of them; with a counter that
/// passed. Leaves the memory that was used zeroed.
pub fn translations(stand: &mut dyn Stand, counter: &mut Counter) -> Report {
    let mut report = Report::default();
    let mut bench = Bench::new(stand, counter);
    bench.translations(&mut report);
    bench.clear();
    counter.forget_seen();
    report
}

/// The TSC before anything is known of it.
pub(super) fn untested_ticks() -> Counter {
    Counter::new(Box::new(Ticks), 0)
}

/// Checks what the guest reads of control registers in which the CPU has something else than the guest's; with a counter that
/// passed. If its paging is to be `tracked`, the CPU is made ready for that. Leaves the memory that was used zeroed.
pub fn hidden_registers(stand: &mut dyn Stand, counter: &mut Counter, tracked: bool) -> Report {
    let mut report = Report::default();
    let mut bench = Bench::new(stand, counter);
    bench.hidden_registers(tracked, &mut report);
    bench.clear();
    counter.forget_seen();
    report
}

/// Measures and checks the TSC of `stand`, which is calibrated. The first check of the measurement that fails ends the test.
///
/// # Errors
/// All results, if one of them is not as it must be.
pub fn ticks(stand: &mut dyn Stand) -> Result<Tested, Report> {
    let backend = Ticks;
    let mut trial = Trial::new(stand, backend.meter(), backend.longest());
    let Ok(margin) = measure_ticks(&mut trial) else { return Err(trial.report) };
    Tested::check(trial, Counter::new(Box::new(backend), margin), |bench, report| {
        // Some CPUs count the end of the repetition, too.
        let more = bench.rep(200).wrapping_sub(bench.rep(100));
        report.check("100 iterations more of rep stosb count", Want::Is(100), more);
        report.check("stop inside rep stosb: bytes stored", Want::Is(50), bench.stop_in_rep());
    })
}

/// Returns the margin.
fn measure_ticks(trial: &mut Trial<'_>) -> Result<u64, Failed> {
    trial.lateness(0)?;
    let margin = trial.skid.margin(ticks::POLICY);
    // Steps that no stop will need are no condition: there are emulators that claim them and have none.
    if margin > 0 {
        let program = trial.repetition()?;
        trial.steps(program, 0)?;
    }
    Ok(margin)
}

/// Places code at [`CODE`] and lets the guest stand there, in real mode.
pub(super) fn place(stand: &mut dyn Stand, code: &[u8]) {
    stand.write(CODE, code);
    let mut state = CpuState::real_mode(CODE);
    // Real-mode segments reach 64 KiB; the device access needs 4 GiB.
    state.segments.ds.limit = u32::MAX;
    state.registers.gpr[gpr::RSP] = STACK;
    stand.vcpu().load(&state);
}

/// Places code, and a HLT as the handler of the test interrupt.
pub(super) fn place_with_handler(stand: &mut dyn Stand, code: &[u8]) {
    stand.write(HANDLER, &[HLT]);
    stand.write(u64::from(VECTOR) * 4, &(HANDLER as u32).to_le_bytes());
    place(stand, code);
}
