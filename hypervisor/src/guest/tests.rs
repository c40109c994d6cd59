//! What ends a run, with a CPU that exits as it is told.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;

use super::shadow::STEPS_AT_ONCE;
use super::*;
use crate::counter::choose::Figures;
use crate::counter::{Counter, Ticks};
use crate::cpu::registers::{CpuMsrs, Registers};
use crate::cpu::{Entered, Exception, InstructionCounter, IoExit, Limit, Mode};
use crate::platform::PlatformConfig;
use crate::platform::clock::RATE_ONE;

const MEMORY: usize = 4 << 20;
/// PM1a control, and what switches the machine off.
const POWER_OFF: (u16, u64) = (0x604, 0x2000);

/// Leaves the guest for one reason after the other, each after a tick; then the limit does.
struct Script {
    exits: VecDeque<Exit>,
    registers: Registers,
}

impl Vcpu for Script {
    fn calibrate(&mut self, _: &mut GuestMemory, _: &mut dyn FnMut()) -> Result<String, String> {
        Err("not needed".into())
    }

    fn instruction_counter(&self) -> Result<InstructionCounter, &'static str> {
        Err("there is none")
    }

    fn enter(&mut self, limit: Limit) -> Entered {
        let end = match limit {
            Limit::After(_, limit) => (Exit::Interrupted, limit),
            Limit::Step(_) => (Exit::Stepped, 1),
        };
        // What exits has not run yet: it counts when it was emulated.
        let (exit, ticks) = self.exits.pop_front().map_or(end, |exit| (exit, 0));
        Entered { exit, ticks, interrupt_taken: false, exception_taken: false }
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn mode(&self) -> Mode {
        Mode::default()
    }

    fn offer_interrupt(&mut self, _: Option<u8>) {}

    fn inject(&mut self, _: Exception) {}

    fn clear_interrupt_shadow(&mut self) {}

    fn msrs(&self) -> CpuMsrs {
        CpuMsrs::default()
    }

    fn set_msrs(&mut self, _: &CpuMsrs) {}

    fn track_writes(&mut self, _: bool) {}

    fn take_written(&mut self, _: &mut dyn FnMut(Gpa)) {}

    fn save(&mut self) -> CpuState {
        CpuState { registers: self.registers, ..CpuState::default() }
    }

    fn load(&mut self, state: &CpuState) {
        self.registers = state.registers;
    }
}

struct Nothing;

impl Outputs for Nothing {
    fn frame(&mut self, _: &[u8]) {}

    fn console(&mut self, _: &[u8]) {}

    fn power(&mut self, _: PowerEvent) {}
}

fn counter(margin: u64) -> Counter {
    Counter::new(Box::new(Ticks), margin)
}

/// A guest whose CPU leaves it for `exits`; `host` says whether the host always wants attention.
fn guest(exits: &[Exit], host: bool) -> Guest {
    let mut registers = Registers::default();
    registers.gpr[0] = POWER_OFF.1;
    let vcpu = Box::new(Script { exits: exits.iter().copied().collect(), registers });
    let counter = Chosen { counter: counter(0), figures: Figures::default(), why: "a test".into(), lends_tsc: false };
    let memory = GuestMemory::for_test(MEMORY);
    let config = PlatformConfig {
        memory_bytes: MEMORY as u64,
        mac: [2, 0, 0, 0, 0, 1],
        start_unix_seconds: 0,
        host_cpuid: &|_, _| [0; 4],
        rdtscp: false,
        entropy: [0; 32],
        rate: RATE_ONE,
    };
    let platform = Platform::new(&config).unwrap();
    let image = GuestImage { kernel: &[], command_line: "", initrd: None };
    Guest::new(vcpu, counter, memory, platform, image, if host { || true } else { || false })
}

fn out(port: u16) -> Exit {
    Exit::Io(IoExit { port, size: 2, input: false, string: false, next_rip: 0 })
}

#[test]
fn the_host_is_served_after_every_exit() {
    let mut guest = guest(&[out(0x80); 3], true);
    for position in 1..=3 {
        assert_eq!((guest.run(100, &mut Nothing), guest.position()), (Stop::Host, position));
    }
    assert_eq!((guest.run(100, &mut Nothing), guest.position()), (Stop::Target, 100));
}

#[test]
fn what_the_guest_did_is_not_forgotten_for_the_host() {
    for host in [false, true] {
        let mut guest = guest(&[out(POWER_OFF.0)], host);
        assert_eq!(guest.run(100, &mut Nothing), Stop::Power(PowerEvent::Off), "host: {host}");
        let mut guest = self::guest(&[Exit::Invalid], host);
        assert_eq!(guest.run(100, &mut Nothing), Stop::Crashed, "host: {host}");
    }
}

#[test]
fn single_steps_go_on_without_the_host_but_not_for_ever() {
    // As many iterations of a string instruction, which do not count.
    let mut guest = guest(&[Exit::Stepped; 1000], true);
    // A counter that takes single steps only, as far as this goes.
    guest.counter.counter = counter(1000);
    let stepped = |guest: &Guest| guest.exits().0[Exit::Stepped.kind()];
    assert_eq!((guest.run(100, &mut Nothing), guest.position(), stepped(&guest)), (Stop::Host, 0, STEPS_AT_ONCE));
    while guest.run(100, &mut Nothing) == Stop::Host {}
    assert_eq!((guest.position(), stepped(&guest)), (100, 1100));
}

/// Twins compare what the wire carries of the name.
#[test]
fn images_with_long_arguments_have_names_that_differ_early() {
    let name = |last: &str| {
        let arguments: &'static str = std::format!("{}{last}", "x".repeat(300)).leak();
        let mut guest = guest(&[], false);
        guest.image.command_line = arguments;
        guest.image_name()
    };
    assert_ne!(name("1")[..pollux_ft::pairing::MAX_TEXT], name("2")[..pollux_ft::pairing::MAX_TEXT]);
}
