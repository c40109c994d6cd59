//! The self-test finds out every machine that lies, and takes honest ones with all their quirks.

use alloc::vec::Vec;

use proptest::prelude::*;

use super::exactness;
use super::model::{Model, Nature};
use crate::counter::Seen;
use crate::counter::choose::{Wanted, choose};
use crate::counter::pmu;
use crate::counter::selftest::{self, Report, Tested};
use crate::cpu::{EXIT_KINDS, Exit, Vcpu};

fn test(nature: Nature) -> Result<Tested, Report> {
    test_seed(nature, 1)
}

fn test_seed(nature: Nature, seed: u64) -> Result<Tested, Report> {
    let mut model = Model::new(nature, seed);
    if model.nature.tsc {
        return selftest::ticks(&mut model);
    }
    let claimed = model.instruction_counter().expect("the model has a counter");
    pmu::selftest::run(&mut model, claimed)
}

/// The name of the check that refused the machine.
fn refused(nature: Nature) -> &'static str {
    match test(nature.clone()) {
        Ok(tested) => panic!("{nature:?} passed:\n{}", tested.report),
        Err(report) => report.checks.iter().find(|check| !check.passed()).expect("a refusal has a reason").name,
    }
}

/// A machine as pmu.md's sources describe it.
#[test]
fn an_honest_machine_passes() {
    let tested = test(Nature::default()).map_err(|report| panic!("\n{report}")).unwrap();
    assert_eq!((tested.skid.largest(), tested.counter.margin()), (18, 256));
    assert!((100..300).contains(&tested.steps_per_stop), "{}", tested.steps_per_stop);
    assert_eq!(tested.counter.seen(), Seen::default(), "what the self-test saw is not what the guest will see");
    assert!(tested.report.checks.len() > 30 && tested.report.passed());
    assert!(tested.to_string().contains("cpuid 0") && tested.to_string().contains("largest 18"), "{tested}");
}

#[test]
fn a_large_skid_has_a_large_margin() {
    let tested = test(Nature { skid: 125, ..Nature::default() }).unwrap();
    assert_eq!((tested.skid.largest(), tested.counter.margin()), (125, 1000));
}

#[test]
fn host_interrupts_are_looked_for_where_the_guest_takes_interrupts() {
    let tested = test(Nature { held_back: true, ..Nature::default() });
    assert!(tested.is_ok(), "\n{}", tested.unwrap_err());
}

#[test]
fn costs_are_found() {
    let mut nature = Nature { interrupt_cost: 1, fault_cost: 1, ..Nature::default() };
    for exit in [Exit::Interrupted, Exit::Overflow, Exit::Cpuid] {
        nature.exit_costs[exit.kind()] = 1;
    }
    let tested = test(nature).map_err(|report| panic!("\n{report}")).unwrap();
    let text = tested.to_string();
    for part in ["interrupt 1", "overflow 1", "step 0", "cpuid 1", "io 0", "injected interrupt 1", "exception 0"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let counting: Vec<_> = tested.counter.costs().counting().collect();
    assert_eq!(counting, ["interrupt", "overflow", "cpuid", "injected interrupt"]);
    let without = test(Nature::default()).unwrap();
    assert_ne!(tested.counter.identity(), without.counter.identity(), "faults count on one machine only");
}

#[test]
fn each_lie_is_named() {
    let honest = Nature::default;
    let cases = [
        ("only halts", Nature { dead: true, ..honest() }),
        ("only halts", Nature { host_count: 7, ..honest() }),
        ("width in bits", Nature { claimed_width: 16, width: 16, ..honest() }),
        ("those that came", Nature { claimed_width: 40, ..honest() }),
        ("only halts", Nature { width: 40, ..honest() }),
        ("1000 instructions", Nature { undercount_in: 50, ..honest() }),
        ("count differently", Nature { undercount_in: 5_000, ..honest() }),
        ("count differently", Nature { fault_overcount_in: 20, ..honest() }),
        ("single steps: exact", Nature { no_steps: true, ..honest() }),
        ("single steps: exact", Nature { long_step_in: 20, ..honest() }),
        ("those that came", Nature { lost_in: 1, ..honest() }),
        ("those that came", Nature { lost_in: 30, ..honest() }),
        ("largest skid", Nature { skid: 2000, ..honest() }),
        ("largest skid", Nature { late: 5000, late_in: 30, ..honest() }),
        ("host interrupt's exit", Nature { host_overcount_in: 2, ..honest() }),
        ("host interrupt's exit", Nature { host_overcount_in: 20, ..honest() }),
        ("neither 0 nor 1", Nature { exit_costs: [2; EXIT_KINDS.len()], ..honest() }),
        ("interrupt's delivery", Nature { interrupt_cost: 2, ..honest() }),
        ("exception's delivery", Nature { exception_cost: 2, ..honest() }),
    ];
    for (want, nature) in cases {
        let name = refused(nature.clone());
        let halts = nature.exit_costs == [2; EXIT_KINDS.len()] && name.contains("only halts");
        assert!(name.contains(want) || halts, "refused for '{name}' instead of '{want}': {nature:?}");
    }
}

/// A Bochs that runs decoded instructions in one go.
#[test]
fn a_timer_that_is_looked_at_now_and_then_has_a_margin() {
    let nature = Nature { tsc: true, run: 32, held_back: true, ..Nature::default() };
    let tested = test(nature).map_err(|report| panic!("\n{report}")).unwrap();
    assert_eq!((tested.skid.largest(), tested.counter.margin(), tested.counter.name()), (31, 62, "ticks"));
    assert!((20..62).contains(&tested.steps_per_stop), "{}", tested.steps_per_stop);
    assert_eq!(tested.counter.seen(), Seen::default());
}

/// A Bochs whose monitor trap flag does nothing, and QEMU.
#[test]
fn a_timer_without_skid_needs_no_steps() {
    let nature = Nature { tsc: true, no_steps: true, ..Nature::default() };
    let tested = test(nature).map_err(|report| panic!("\n{report}")).unwrap();
    assert_eq!((tested.skid.largest(), tested.counter.margin(), tested.steps_per_stop), (0, 0, 0));
}

#[test]
fn each_lie_of_a_tsc_is_named() {
    let late = || Nature { tsc: true, run: 32, ..Nature::default() };
    let exact = || Nature { run: 1, ..late() };
    let cases = [
        ("single steps: exact", Nature { no_steps: true, ..late() }),
        ("single steps: exact", Nature { long_step_in: 20, ..late() }),
        // Beyond what the trial's programs show.
        ("straight code", Nature { run: 5000, ..late() }),
        // A timer at half the speed of the TSC.
        ("largest skid", Nature { slow_in: 2, ..exact() }),
        ("those that came", Nature { slow_in: 1, ..exact() }),
        ("such an end's exit", Nature { undercount_in: 50, ..exact() }),
        ("such an end's exit", Nature { host_overcount_in: 20, ..late() }),
        ("such an end's exit", Nature { host_overcount_in: 1, ..exact() }),
        ("count differently", Nature { fault_overcount_in: 20, ..late() }),
    ];
    for (want, nature) in cases {
        let name = refused(nature.clone());
        assert!(name.contains(want), "refused for '{name}' instead of '{want}': {nature:?}");
    }
}

#[test]
fn a_step_that_counts_two_is_refused() {
    // A stop between the two could not be reached.
    assert!(refused(Nature { fault_cost: 2, ..Nature::default() }).contains("largest count of one of its steps"));
}

#[test]
fn auto_says_what_it_refused_and_why() {
    let choice = |wanted, dead| choose(wanted, &mut Model::new(Nature { dead, ..Nature::default() }, 1));
    let chosen = choice(Wanted::Auto, false).unwrap();
    assert_eq!(chosen.counter.name(), "pmu");
    assert_eq!((chosen.figures.margin, chosen.figures.skid.largest()), (256, 18));
    assert_eq!(chosen.why, "counter=auto, and its self-test passed");
    assert_eq!(choice(Wanted::Pmu, false).unwrap().why, "counter=pmu");

    let both = choice(Wanted::Auto, true).unwrap_err().to_string();
    assert!(both.contains("'pmu' is refused") && both.contains("'ticks' is refused"), "{both}");
    assert!(both.contains("count of a program that only halts: want <= 1, got"), "{both}");
    let mut chaining = Model::new(Nature { dead: true, tsc: true, run: 32, ..Nature::default() }, 1);
    let chosen = choose(Wanted::Auto, &mut chaining).unwrap();
    assert_eq!((chosen.counter.name(), chosen.figures.margin, chosen.figures.skid.largest()), ("ticks", 62, 31));

    let forced = choice(Wanted::Pmu, true).unwrap_err().to_string();
    assert!(forced.contains("'pmu' is refused") && !forced.contains("ticks"), "{forced}");
    let forced = choice(Wanted::Ticks, false).unwrap_err().to_string();
    assert!(forced.contains("'ticks' is refused") && !forced.contains("pmu"), "{forced}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn honest_machines_pass(nature in prop_oneof![exactness::honest(), exactness::timed()], seed: u64) {
        // A machine with rare other interrupts is honest, too, but its self-test may have to be repeated.
        let nature = Nature { lost_in: 0, spurious_in: 0, host_in: 0, ..nature };
        let most = if nature.tsc { nature.run - 1 } else { nature.skid + 1 };
        match test_seed(nature.clone(), seed) {
            Err(report) => prop_assert!(false, "\n{report}"),
            Ok(tested) => {
                let known = exactness::counter_for(&nature);
                prop_assert_eq!(tested.counter.costs(), known.costs());
                prop_assert_eq!(tested.counter.identity(), known.identity());
                prop_assert!(tested.skid.largest() <= most);
            }
        }
    }
}
