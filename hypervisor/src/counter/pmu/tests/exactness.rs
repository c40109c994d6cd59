//! Every stop is exact, at the first instant, whatever disturbs; and what is not exact is never silent.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;

use super::core::{Core, Did};
use super::model::{Model, Nature, Random};
use crate::counter::pmu::registers::{Layout, Source};
use crate::counter::pmu::{Costs, Pmu, Skid};
use crate::counter::selftest::{Stand, VECTOR, place};
use crate::counter::{Counter, Progress, Seen};
use crate::cpu::{EXIT_KINDS, Entered, Exception, Exit, IoExit, Limit, Vcpu};
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
    let costs = prop::array::uniform14(0..=1_u8);
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
    fault_cost: u64,
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
                Did::Iterate => {}
                Did::Fault => self.position += self.fault_cost,
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
fn go(model: &mut Model, progress: &mut Progress, counter: &mut dyn Counter, target: u64) {
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
fn compare(model: &mut Model, counter: &mut dyn Counter, code: &[u8], plan: u64, noise: u64) -> Result<(), String> {
    start(model, code);
    let mut oracle =
        Oracle { core: model.core.clone(), position: 0, offered: None, fault_cost: model.nature.fault_cost.into() };
    let (mut plan, mut noise) = (Random(plan), Random(noise));
    let mut progress = Progress::at(0);
    for stop in 0..25 {
        let gap = 1 + plan.below([4, 60, 900, 6000][stop % 4]);
        let target = progress.position() + gap;
        let run = catch_unwind(AssertUnwindSafe(|| {
            if noise.once_in(2) && gap > 1 {
                go(model, &mut progress, counter, target - noise.below(gap));
            }
            go(model, &mut progress, counter, target);
        }));
        if let Err(panic) = run {
            return Err(panic.downcast_ref::<String>().cloned().unwrap_or_default());
        }
        oracle.go(target);
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
pub fn counter_for(nature: &Nature) -> Pmu {
    let mut skid = Skid::default();
    skid.note(nature.skid);
    let mut costs = Costs::default();
    for exit in MEASURED {
        assert_eq!(costs.note(exit, nature.exit_costs[exit.kind()]), Ok(()));
    }
    costs.note_interrupt(nature.interrupt_cost);
    costs.note_exception(nature.exception_cost);
    let program = 1 + 20 * (15 + u64::from(nature.fault_cost));
    let layout = Layout { source: Source::Fixed, width: nature.width };
    Pmu::new(layout.describe(), skid.margin(), costs, program)
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

/// All pieces, from the last to the first: STI comes behind CLI.
fn all_pieces() -> Vec<u8> {
    round(PIECES.iter().rev().copied())
}

/// How many of 40 runs on a busy machine go wrong with the counter that `make` makes of the right one, and whether any of
/// them went wrong without a panic.
fn failures(nature: &Nature, make: impl Fn(Pmu) -> Box<dyn Counter>) -> (usize, bool) {
    let right = counter_for(nature);
    let code = all_pieces();
    let errors: Vec<String> = (0..40)
        .filter_map(|seed| {
            let mut counter = make(right.clone());
            compare(&mut Model::new(nature.clone(), seed), &mut *counter, &code, seed, !seed).err()
        })
        .collect();
    (errors.len(), errors.iter().any(|error| error.starts_with("stop ")))
}

#[test]
fn the_right_counter_has_no_failures() {
    assert_eq!(failures(&busy(), |right| Box::new(right)), (0, false));
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
        for part in ["ran past its stop", "beyond", "Overflow(", "margin of 960", "skid:"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
}

/// A broken variant of the right counter.
struct Broken {
    right: Pmu,
    limit: fn(&Pmu, u64) -> Limit,
    read: fn(&mut Pmu, Limit, &Entered) -> u64,
}

impl Broken {
    fn new(right: Pmu) -> Self {
        Self {
            right,
            limit: |right, distance| right.limit(distance),
            read: |right, limit, entered| right.read(limit, entered),
        }
    }
}

impl Counter for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn limit(&self, distance: u64) -> Limit {
        (self.limit)(&self.right, distance)
    }

    fn read(&mut self, limit: Limit, entered: &Entered) -> u64 {
        (self.read)(&mut self.right, limit, entered)
    }
}

/// Each of these is an obvious way to be wrong; the comparison must find it.
#[test]
fn broken_counters_are_found() {
    let nature = busy();
    let broken = |name, change: fn(&mut Broken)| {
        let (failed, silent) = failures(&nature, |right| {
            let mut broken = Broken::new(right);
            change(&mut broken);
            Box::new(broken)
        });
        assert!(failed > 0, "{name}: not found");
        silent
    };
    for margin in [0, 1, 30] {
        let found = failures(&nature, |right| Box::new(Pmu { margin, ..right }));
        assert!(matches!(found, (1.., false)), "a margin of {margin} overshoots, and never silently: {found:?}");
    }
    assert!(!broken("the overflow armed at the target itself", |broken| {
        broken.limit = |_, distance| if distance > 1 { Limit::Overflow(distance) } else { Limit::Step };
    }));
    broken("a step counts one", |broken| {
        broken.read = |right, limit, entered| {
            let ticks = right.read(limit, entered);
            if entered.exit == Exit::Stepped { 1 } else { ticks }
        };
    });
    broken("costs are not taken off", |broken| broken.read = |_, _, entered| entered.ticks);
    broken("an interrupt's delivery costs nothing", |broken| {
        broken.read = |right, limit, entered| right.read(limit, &Entered { interrupt_taken: false, ..*entered });
    });
    broken("an injected exception costs nothing", |broken| {
        broken.read = |right, limit, entered| right.read(limit, &Entered { exception_taken: false, ..*entered });
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_stop_is_exact_and_at_the_first_instant(
        nature in honest(), code in program(), plan: u64, seeds: [u64; 2],
    ) {
        let counter = counter_for(&nature);
        // Two runs with the same stops and different disturbances: both are as the oracle has it.
        for seed in seeds {
            let mut model = Model::new(nature.clone(), seed);
            prop_assert_eq!(compare(&mut model, &mut counter.clone(), &code, plan, !seed), Ok(()));
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
}
