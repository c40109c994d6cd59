//! Every stop is exact, at the first instant, whatever disturbs; and what is not exact is never silent.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pollux_ft::Position;
use proptest::prelude::*;

use super::core::{Core, Did};
use super::model::{Model, Nature, Random};
use crate::counter::pmu::{self, Pmu};
use crate::counter::selftest::{Stand, VECTOR, place};
use crate::counter::{Backend, Costs, Counter, Progress, Seen, Skid, Ticks, ticks};
use crate::cpu::pmu::{Layout, Source};
use crate::cpu::{EXIT_KINDS, Entered, Exception, Exit, IoExit, Meter, Vcpu};
use crate::memory::Gpa;

/// Handlers of #UD (goes on behind two bytes) and of interrupts.
const HANDLERS: [(u8, u64, &[u8]); 3] = [
    (6, 0x820, &[0x55, 0x89, 0xE5, 0x83, 0x46, 0x02, 0x02, 0x5D, 0xCF]),
    (0x41, 0x840, &[0x42, 0xCF]),
    (VECTOR, 0x860, &[0x42, 0x42, 0x42, 0xCF]),
];

/// Pieces of programs, each with its end behind its last byte.
const PIECES: [&[u8]; 16] = [
    &[0x90],
    &[0x40, 0x01, 0xC3],
    &[0x89, 0x1E, 0x00, 0x20],
    &[0xCD, 0x41], // int 0x41
    &[0x0F, 0x0B], // ud2
    &[0x0F, 0x0B, 0x0F, 0x0B],
    &[0xB9, 3, 0, 0x40, 0xE2, 0xFD],                // a loop of 3
    &[0xB9, 40, 0, 0x40, 0x42, 0xE2, 0xFC],         // a loop of 40
    &[0xBF, 0x00, 0x30, 0xB9, 9, 0, 0xF3, 0xAA],    // rep stosb of 9
    &[0xBF, 0x00, 0x30, 0xB9, 0xC8, 0, 0xF3, 0xAA], // rep stosb of 200
    &[0xFB],                                        // sti
    &[0xFA],                                        // cli
    &[0x0F, 0xA2],                                  // cpuid
    &[0xE6, 0x80, 0xE4, 0x80, 0x0F, 0x31],          // out, in, rdtsc
    &[0x0F, 0x33],                                  // rdpmc: gets #UD from the hypervisor
    &[0xF4],                                        // hlt
];

/// A program of pieces that goes round and round.
fn program() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::collection::vec(prop::sample::select(&PIECES[..]), 1..60);
    pieces.prop_map(|pieces| round(pieces.into_iter()))
}

/// The pieces, and a jump back to the first.
fn round<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut code: Vec<u8> = pieces.flatten().copied().collect();
    let back = -(code.len() as i16 + 3);
    code.push(0xE9);
    code.extend_from_slice(&back.to_le_bytes());
    code
}

/// Machines whose counter is regular: whatever an event costs, it costs always.
pub fn honest() -> impl Strategy<Value = Nature> {
    let costs = prop::array::uniform16(0..=1_u8);
    let events = (0..=1_u8, 0..=1_u8, 0..=1_u8);
    let interrupts = (0..2_u64, 0..3_u64, 0..3_u64, 1..3_u64);
    (0..=120_u64, costs, events, interrupts, prop::sample::select(vec![32_u8, 40, 48])).prop_map(
        |(skid, exit_costs, (interrupt_cost, exception_cost, fault_cost), (lost, twice, spurious, host), width)| {
            Nature {
                skid,
                exit_costs,
                interrupt_cost,
                exception_cost,
                fault_cost,
                lost_in: lost * 8,
                twice_in: twice * 3,
                spurious_in: spurious * 700,
                host_in: host * 40,
                claimed_width: width,
                width,
                ..Nature::default()
            }
        },
    )
}

/// Machines whose TSC counts, and whose timer is looked at now and then.
pub fn timed() -> impl Strategy<Value = Nature> {
    let interrupts = (0..3_u64, 0..3_u64);
    (prop_oneof![Just(1_u64), 2..40_u64], interrupts, any::<bool>()).prop_map(|(run, (host, spurious), held_back)| {
        Nature {
            tsc: true,
            dead: true,
            run,
            host_in: host * 40,
            spurious_in: spurious * 700,
            held_back,
            ..Nature::default()
        }
    })
}

fn start(model: &mut Model, code: &[u8]) {
    for (vector, at, handler) in HANDLERS {
        Stand::write(model, at, handler);
        Stand::write(model, u64::from(vector) * 4, &(at as u32).to_le_bytes());
    }
    place(model, code);
}

/// What the guest does by itself: positions without any counter.
struct Oracle {
    core: Core,
    position: u64,
    offered: Option<u8>,
    /// What an iteration of a string instruction that goes on counts, and what a fault does.
    iteration: u64,
    fault: u64,
}

impl Oracle {
    /// Goes to the first instant at which the position is `target`.
    fn go(&mut self, target: u64) {
        while self.position < target {
            if self.core.is_open()
                && let Some(vector) = self.offered.take()
            {
                self.core.deliver(vector);
            }
            match self.core.step() {
                Did::Retire => self.position += 1,
                Did::Iterate => self.position += self.iteration,
                Did::Fault => self.position += self.fault,
                Did::Exit(Exit::Rdpmc, _) => self.core.deliver(6),
                Did::Exit(_, length) => {
                    self.core.complete(length);
                    self.position += 1;
                }
            }
        }
    }
}

/// The guest on the machine, driven as `guest/` drives it.
fn go(model: &mut Model, progress: &mut Progress, counter: &mut Counter, target: Position) {
    while progress.position() < target {
        let entered = progress.enter(target, counter, model);
        match entered.exit {
            Exit::Stepped => {}
            Exit::Interrupted | Exit::Overflow => model.let_in(),
            Exit::Rdpmc => model.inject(Exception::UNDEFINED),
            _ => {
                model.complete();
                progress.emulated();
            }
        }
    }
}

/// Runs the program with stops and interrupts at them that follow from `plan`, and between them stops that follow from
/// `noise`; every stop must leave the guest as the oracle has it. The error says where it does not, or what panicked.
fn compare(model: &mut Model, counter: &mut Counter, code: &[u8], plan: u64, noise: u64) -> Result<(), String> {
    start(model, code);
    let (iteration, fault) = match counter.backend.meter() {
        Meter::Tsc => (1, 1),
        Meter::Instructions => (0, model.nature.fault_cost.into()),
    };
    let mut oracle = Oracle { core: model.core.clone(), position: 0, offered: None, iteration, fault };
    let (mut plan, mut noise) = (Random(plan), Random(noise));
    let mut progress = Progress::at(Position(0));
    for stop in 0..25 {
        let gap = 1 + plan.below([4, 60, 900, 6000][stop % 4]);
        let target = progress.position().after(gap);
        let run = catch_unwind(AssertUnwindSafe(|| {
            if noise.once_in(2) && gap > 1 {
                go(model, &mut progress, counter, Position(target.0 - noise.below(gap)));
            }
            go(model, &mut progress, counter, target);
        }));
        if let Err(panic) = run {
            return Err(panic.downcast_ref::<String>().cloned().unwrap_or_default());
        }
        oracle.go(target.0);
        if (progress.position(), &model.core) != (target, &oracle.core) {
            let (is, should) = (model.core.registers, oracle.core.registers);
            return Err(format!("stop {stop} at {target}: {is:x?} instead of {should:x?}"));
        }
        if plan.once_in(2) && oracle.offered.is_none() {
            oracle.offered = Some(VECTOR);
            model.offer_interrupt(Some(VECTOR));
        }
    }
    Ok(())
}

/// The counter that the self-test makes for this nature (see [`super::lies`]), made of what the nature says.
pub fn counter_for(nature: &Nature) -> Counter {
    let mut skid = Skid::default();
    if nature.tsc {
        skid.note(nature.run - 1);
        return Counter::new(Box::new(Ticks), skid.margin(ticks::POLICY));
    }
    skid.note(nature.skid);
    Counter::new(Box::new(pmu_for(nature)), skid.margin(pmu::POLICY))
}

fn pmu_for(nature: &Nature) -> Pmu {
    let mut costs = Costs::default();
    for exit in MEASURED {
        assert_eq!(costs.note(exit, nature.exit_costs[exit.kind()]), Ok(()));
    }
    costs.note_interrupt(nature.interrupt_cost);
    costs.note_exception(nature.exception_cost);
    let program = 1 + 20 * (15 + u64::from(nature.fault_cost));
    let layout = Layout { source: Source::Fixed, width: nature.width };
    Pmu::new(layout.describe(), costs, program)
}

/// An exit of each kind that the self-test measures.
const MEASURED: [Exit; 12] = [
    Exit::Interrupted,
    Exit::Overflow,
    Exit::Stepped,
    Exit::Memory { gpa: Gpa(0) },
    Exit::Io(IoExit { port: 0, size: 1, input: false, string: false, next_rip: 0 }),
    Exit::Cpuid,
    Exit::Rdtsc,
    Exit::Rdmsr,
    Exit::Hlt,
    Exit::Hypercall,
    Exit::CacheFlush,
    Exit::Undefined,
];

/// A busy machine: everything costs, and everything happens.
fn busy() -> Nature {
    Nature {
        skid: 120,
        exit_costs: [1; EXIT_KINDS.len()],
        interrupt_cost: 1,
        exception_cost: 1,
        fault_cost: 1,
        twice_in: 4,
        spurious_in: 900,
        host_in: 60,
        ..Nature::default()
    }
}

/// A machine that looks at its timer after 32 boundaries only, and is disturbed.
fn chaining() -> Nature {
    Nature { tsc: true, dead: true, run: 32, host_in: 60, held_back: true, ..Nature::default() }
}

/// All pieces, from the last to the first: STI comes behind CLI.
fn all_pieces() -> Vec<u8> {
    round(PIECES.iter().rev().copied())
}

/// How many of 40 runs go wrong with the counters that `make` makes, and whether any of them went wrong without a panic.
fn failures(nature: &Nature, make: impl Fn() -> Counter) -> (usize, bool) {
    failures_of(&all_pieces(), nature, make)
}

/// The same with a program.
fn failures_of(code: &[u8], nature: &Nature, make: impl Fn() -> Counter) -> (usize, bool) {
    let errors: Vec<String> = (0..40)
        .filter_map(|seed| compare(&mut Model::new(nature.clone(), seed), &mut make(), code, seed, !seed).err())
        .collect();
    (errors.len(), errors.iter().any(|error| error.starts_with("stop ")))
}

#[test]
fn the_right_counters_have_no_failures() {
    for nature in [busy(), chaining()] {
        assert_eq!(failures(&nature, || counter_for(&nature)), (0, false), "{nature:?}");
    }
}

#[test]
fn what_happens_is_noted() {
    let nature = Nature { lost_in: 20, late: 100, late_in: 5, ..busy() };
    let mut counter = counter_for(&busy());
    let mut model = Model::new(nature, 3);
    for plan in 0..20 {
        compare(&mut model, &mut counter, &all_pieces(), plan, 9).unwrap();
    }
    let Seen { skid, spurious, .. } = counter.seen();
    assert!((50..=counter.margin()).contains(&skid.largest()) && spurious > 0, "{:?}", counter.seen());
}

/// Overflows that come beyond every margin after a self-test that could not know.
#[test]
fn overflows_that_become_late_are_fatal() {
    // Any exit in time would make up for the overflow.
    let code = round([PIECES[1], PIECES[7]].into_iter());
    let nature = Nature { late: 5000, late_in: 2, host_in: 100_000, spurious_in: 0, ..busy() };
    let errors: Vec<_> = (0..20)
        .filter_map(|seed| {
            let mut model = Model::new(nature.clone(), seed);
            compare(&mut model, &mut counter_for(&busy()), &code, seed, seed).err()
        })
        .collect();
    assert!(!errors.is_empty());
    for error in errors {
        for part in ["ran past its stop", "beyond", "After(Instructions, ", "margin of 960", "skid:"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
}

/// A broken variant of the right backend.
struct Broken {
    right: Pmu,
    ticks: fn(&Pmu, &Entered) -> u64,
}

impl Backend for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn meter(&self) -> Meter {
        self.right.meter()
    }

    fn longest(&self) -> u64 {
        self.right.longest()
    }

    fn ticks(&self, entered: &Entered) -> u64 {
        (self.ticks)(&self.right, entered)
    }
}

/// The margin is what keeps late ends harmless, whatever counts.
#[test]
fn margins_that_are_too_small_overshoot_and_never_silently() {
    // No branch for as long as the timer is not looked at.
    let straight = round(PIECES[..3].iter().copied().cycle().take(120));
    let quiet = Nature { host_in: 0, ..chaining() };
    for (code, nature, margins) in [(all_pieces(), busy(), [1, 30]), (straight, quiet, [1, 15])] {
        for margin in margins {
            let found = failures_of(&code, &nature, || Counter { margin, ..counter_for(&nature) });
            assert!(matches!(found, (1.., false)), "{margin}: {found:?}");
        }
    }
}

/// Each of these is an obvious way to be wrong; the comparison must find it.
#[test]
fn broken_backends_are_found() {
    let nature = busy();
    let broken = |name, ticks: fn(&Pmu, &Entered) -> u64| {
        let margin = counter_for(&nature).margin();
        let make = || Counter::new(Box::new(Broken { right: pmu_for(&nature), ticks }), margin);
        assert!(failures(&nature, make).0 > 0, "{name}: not found");
    };
    broken("a step counts one", |right, entered| {
        let ticks = right.ticks(entered);
        if entered.exit == Exit::Stepped { 1 } else { ticks }
    });
    broken("costs are not taken off", |_, entered| entered.ticks);
    broken("an interrupt's delivery costs nothing", |right, entered| {
        right.ticks(&Entered { interrupt_taken: false, ..*entered })
    });
    broken("an injected exception costs nothing", |right, entered| {
        right.ticks(&Entered { exception_taken: false, ..*entered })
    });
}

/// Where nothing is late nothing is stepped: a stop costs one entry.
#[test]
fn without_skid_nothing_is_stepped() {
    let nature = Nature { tsc: true, dead: true, no_steps: true, ..Nature::default() };
    let mut model = Model::new(nature.clone(), 1);
    let mut counter = counter_for(&nature);
    start(&mut model, &[0x90; 4000]);
    let mut progress = Progress::at(Position(0));
    for target in [1, 2, 50, 700, 701, 3999].map(Position) {
        let entered = progress.enter(target, &mut counter, &mut model);
        assert_eq!((entered.exit, progress.position()), (Exit::Interrupted, target));
    }
    assert_eq!(counter.seen(), Seen::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_stop_is_exact_and_at_the_first_instant(
        nature in prop_oneof![honest(), timed()], code in program(), plan: u64, seeds: [u64; 2],
    ) {
        // Two runs with the same stops and different disturbances: both are as the oracle has it.
        for seed in seeds {
            let mut model = Model::new(nature.clone(), seed);
            prop_assert_eq!(compare(&mut model, &mut counter_for(&nature), &code, plan, !seed), Ok(()));
        }
    }

    /// After a self-test that could not know, overflows become late or are lost, beyond every margin.
    #[test]
    fn an_overshoot_is_never_silent(
        nature in honest(), code in program(), plan: u64, seed: u64, late in 0..3000_u64, lost in 0..3_u64,
    ) {
        let mut counter = counter_for(&nature);
        let worse = Nature { late, late_in: 2, lost_in: lost, host_in: 4000, ..nature };
        if let Err(error) = compare(&mut Model::new(worse, seed), &mut counter, &code, plan, !seed) {
            prop_assert!(error.contains("ran past its stop") && error.contains("margin of"), "{}", error);
        }
    }
    /// After a self-test that could not know, the timer is looked at more rarely, or goes more slowly.
    #[test]
    fn a_timer_that_becomes_worse_is_never_silent(
        // A timer that is slow once in one time stands still: nothing would end the entry of a guest that keeps its IF clear.
        nature in timed(), code in program(), plan: u64, seed: u64, run in 40..3000_u64, slow in prop_oneof![Just(0), 2..20_u64],
    ) {
        prop_assume!(nature.run > 1);
        let mut counter = counter_for(&nature);
        let worse = Nature { run, slow_in: slow, host_in: 4000, ..nature };
        if let Err(error) = compare(&mut Model::new(worse, seed), &mut counter, &code, plan, !seed) {
            prop_assert!(error.contains("ran past its stop") && error.contains("margin of"), "{}", error);
        }
    }
}
