//! What ends a run, with a CPU that exits as it is told.

mod broken;
mod debug;
mod ends;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;

use super::exits::Done;
use super::shadow::STEPS_AT_ONCE;
use super::*;
use crate::counter::choose::Figures;
use crate::counter::{Counter, Ticks};
use crate::cpu::registers::{
    CR0_PE, CR0_PG, CR4_OSXSAVE, CR4_PAE, CpuMsrs, EFER_LMA, PENDING_STEP, RFLAGS_TF, Registers, Segment, Segments, gpr,
};
use crate::cpu::{Entered, Exception, InstructionCounter, IoExit, LentTsc, Limit, Mode, Right};
use crate::extended::testing::MadeUp;
use crate::extended::{ExtendedRegisters, Layout};
use crate::platform::PlatformConfig;
use crate::platform::clock::RATE_ONE;

const MEMORY: usize = 4 << 20;
/// PM1a control, and what switches the machine off.
const POWER_OFF: (u16, u64) = (0x604, 0x2000);

/// Leaves the guest for one reason after the other, each after a tick; then the limit does.
struct Script {
    exits: VecDeque<Exit>,
    registers: Registers,
    extended: MadeUp,
    mode: Mode,
    lent: Lent,
    injected: bool,
    /// So many deliveries are interrupted when the limit is reached.
    interrupted: u32,
    /// A trap behind an emulated instruction comes next.
    trapped: bool,
    cr2: u64,
    /// Where it is tick by tick, and where the host interrupts it, if that is what it does.
    way: debug::Way,
}

/// What the guest was lent of its TSC, entry by entry.
type Lent = Rc<RefCell<Vec<Option<LentTsc>>>>;

impl Vcpu for Script {
    fn calibrate(&mut self, _: &mut GuestMemory, _: &mut dyn FnMut()) -> Result<String, String> {
        Err("not needed".into())
    }

    fn instruction_counter(&self) -> Result<InstructionCounter, &'static str> {
        Err("there is none")
    }

    fn lend_tsc(&mut self, tsc: Option<LentTsc>) -> bool {
        self.lent.borrow_mut().push(tsc);
        true
    }

    fn enter(&mut self, limit: Limit) -> Entered {
        if !self.way.is_over() {
            if self.injected
                && let Some(exit) = self.way.deliver(&mut self.registers.rip)
            {
                return Entered { exit, ticks: 0, interrupt_taken: false, exception_taken: false };
            }
            self.injected = false;
            return self.way.enter(limit, &mut self.registers.rip);
        }
        let end = match limit {
            Limit::After(_, limit) => (Exit::Interrupted, limit),
            Limit::Step(_) => (Exit::Stepped, 1),
        };
        // What exits has not run yet: it counts when it was emulated.
        let (exit, ticks) = self.exits.pop_front().map_or(end, |exit| match exit {
            // Missed for the instruction behind the last one.
            Exit::PageFault { .. } => (exit, end.1),
            exit => (exit, 0),
        });
        // Delivered, unless a translation was missed for that.
        self.injected &= matches!(exit, Exit::PageFault { .. });
        if exit == Exit::Interrupted && self.interrupted > 0 {
            (self.injected, self.interrupted) = (true, self.interrupted - 1);
        }
        Entered { exit, ticks, interrupt_taken: false, exception_taken: false }
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn offer_interrupt(&mut self, vector: Option<u8>) {
        self.way.offer(vector);
    }

    fn inject(&mut self, _: Exception) {
        self.injected = true;
    }

    fn has_undelivered(&self) -> bool {
        self.injected
    }

    fn cr2(&self) -> u64 {
        self.cr2
    }

    fn set_cr2(&mut self, cr2: u64) {
        self.cr2 = cr2;
    }

    fn clear_interrupt_shadow(&mut self) {}

    fn trap_step(&mut self) {
        self.trapped = true;
    }

    fn msrs(&self) -> CpuMsrs {
        CpuMsrs::default()
    }

    fn set_msrs(&mut self, _: &CpuMsrs) {}

    fn extended(&mut self) -> &mut dyn ExtendedRegisters {
        &mut self.extended
    }

    fn keep_pages(&mut self, pages: &[(Gpa, Right)]) -> bool {
        self.way.keep(pages)
    }

    fn track_writes(&mut self, _: bool) {}

    fn take_written(&mut self, _: &mut dyn FnMut(Gpa)) {}

    fn save(&mut self) -> CpuState {
        let pending_debug = if self.trapped { PENDING_STEP } else { 0 };
        CpuState { registers: self.registers, extended: self.extended.save(), pending_debug, ..CpuState::default() }
    }

    fn load(&mut self, state: &CpuState) {
        self.registers = state.registers;
        self.extended.load(&state.extended);
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

/// A CPU that leaves its guest for `exits`.
fn script(exits: &[Exit]) -> Script {
    let mut registers = Registers::default();
    registers.gpr[0] = POWER_OFF.1;
    Script {
        exits: exits.iter().copied().collect(),
        registers,
        extended: MadeUp::default(),
        mode: Mode::default(),
        lent: Lent::default(),
        injected: false,
        interrupted: 0,
        trapped: false,
        cr2: 0,
        way: debug::Way::default(),
    }
}

/// A guest whose CPU leaves it for `exits`; `host` says whether the host always wants attention.
fn guest(exits: &[Exit], host: bool) -> Guest {
    let vcpu = Box::new(script(exits));
    let counter = Chosen { counter: counter(0), figures: Figures::default(), why: "a test".into(), lends_tsc: false };
    let memory = GuestMemory::for_test(MEMORY);
    let config = PlatformConfig {
        memory_bytes: MEMORY as u64,
        disk_bytes: 0,
        disk_place: crate::platform::virtio::block::Place::Memory,
        mac: [2, 0, 0, 0, 0, 1],
        start_unix_seconds: 0,
        host_cpuid: &|_, _| [0; 4],
        rdtscp: false,
        extended: Layout::LEGACY,
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

/// HLT, too, ends before the trap.
#[test]
fn a_step_over_an_emulated_instruction_traps() {
    for exit in [Exit::Rdtsc, Exit::Hlt] {
        for (flag, trap) in [(0, 0), (RFLAGS_TF, PENDING_STEP)] {
            let mut guest = guest(&[exit], false);
            guest.vcpu.registers_mut().rflags |= flag;
            assert_eq!(guest.run(Position(1), &mut Nothing), Stop::Target);
            assert_eq!(guest.vcpu.save().pending_debug, trap, "{exit:?}");
            assert_eq!(guest.is_halted(), exit == Exit::Hlt && flag == 0);
        }
    }
}

/// Pages of 2 MiB and 4 KiB, a hole, and the end of memory; and nothing is touched by looking.
#[test]
fn what_is_looked_at_stays_as_it_is() {
    let mut guest = guest(&[], false);
    for (gpa, entry) in [(0x1000, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83), (0x3008, 0x4003), (0x4000, 0x5003)] {
        guest.memory.write(Gpa(gpa), &entry.to_le_bytes()).unwrap();
    }
    guest.memory.write(Gpa(0x5FFE), &[7, 8]).unwrap();
    guest.memory.write(Gpa(0x9000), &[1, 2, 3, 4]).unwrap();
    let before = guest.memory.all().to_vec();
    // Without paging an address is what it is.
    assert_eq!(guest.peek(0x9001, 2), [2, 3]);
    assert_eq!(guest.peek(MEMORY as u64, 1), []);
    let mut cpu = Mode { cr0: CR0_PG | CR0_PE, cr3: 0x1000, cr4: CR4_PAE, efer: EFER_LMA, ..Mode::default() };
    cpu.segments.cs.attributes = Segment::LONG;
    guest.vcpu = Box::new(Script { mode: cpu, ..script(&[]) });
    assert_eq!(guest.peek(0x9000, 4), [1, 2, 3, 4]);
    // From the small page into the one behind it, which is not there.
    assert_eq!(guest.peek(0x20_0FFE, 10), [7, 8]);
    assert_eq!(guest.peek(0x40_0000, 1), []);
    assert_eq!(guest.code_at(), (0, 64));
    assert!(before == guest.memory.all());
}

#[test]
fn a_translation_that_is_missed_at_a_stop_belongs_to_the_next_run() {
    let mut guest = guest(&[Exit::PageFault { linear: 0, error_code: 0 }], false);
    assert_eq!(guest.run(Position(100), &mut Nothing), Stop::Target);
    assert!(guest.is_settled() && guest.crash().is_none());
}

/// What was not delivered is no part of a state.
#[test]
fn a_stop_is_none_before_an_event_is_delivered() {
    for deliveries in 0..4 {
        let mut guest = guest(&[], false);
        guest.vcpu = Box::new(Script { interrupted: deliveries, ..script(&[]) });
        assert_eq!(guest.run(Position(100), &mut Nothing), Stop::Target);
        assert!(guest.is_settled() && !guest.vcpu.has_undelivered());
        assert_eq!(guest.position(), Position(100));
    }
}

#[test]
fn the_host_is_served_after_every_exit() {
    let mut guest = guest(&[out(0x80); 3], true);
    for position in 1..=3 {
        assert_eq!((guest.run(Position(100), &mut Nothing), guest.position()), (Stop::Host, Position(position)));
    }
    assert_eq!((guest.run(Position(100), &mut Nothing), guest.position()), (Stop::Target, Position(100)));
}

#[test]
fn what_the_guest_did_is_not_forgotten_for_the_host() {
    for host in [false, true] {
        let mut guest = guest(&[out(POWER_OFF.0)], host);
        assert_eq!(guest.run(Position(100), &mut Nothing), Stop::Power(PowerEvent::Off), "host: {host}");
        let mut guest = self::guest(&[Exit::Invalid], host);
        assert_eq!(guest.run(Position(100), &mut Nothing), Stop::Crashed, "host: {host}");
    }
}

#[test]
fn single_steps_go_on_without_the_host_but_not_for_ever() {
    // As many iterations of a string instruction, which do not count.
    let mut guest = guest(&[Exit::Stepped; 1000], true);
    // A counter that takes single steps only, as far as this goes.
    guest.counter.counter = counter(1000);
    let stepped = |guest: &Guest| guest.exits().0[Exit::Stepped.kind()];
    assert_eq!(
        (guest.run(Position(100), &mut Nothing), guest.position(), stepped(&guest)),
        (Stop::Host, Position(0), STEPS_AT_ONCE)
    );
    while guest.run(Position(100), &mut Nothing) == Stop::Host {}
    assert_eq!((guest.position(), stepped(&guest)), (Position(100), 1100));
}

#[test]
fn the_clock_is_lent_as_the_position_says_and_only_while_it_goes_on_by_ticks() {
    let mut guest = guest(&[], false);
    let lent = Lent::default();
    let (exits, registers) = ([out(0x80), out(0x80)].into(), Registers::default());
    let (extended, mode) = (MadeUp::default(), Mode::default());
    guest.vcpu = Box::new(Script { exits, registers, extended, mode, lent: Rc::clone(&lent), ..script(&[]) });
    guest.run(Position(10), &mut Nothing);
    assert!(lent.take().is_empty(), "a CPU whose reads are not exact");
    guest.counter.lends_tsc = true;
    guest.platform.wrmsr(guest.now(), 0x3B, 1000, &mut guest.memory).unwrap();
    guest.run(Position(20), &mut Nothing);
    guest.steer_clock(GuestTime(500), RATE_ONE).unwrap();
    guest.run(Position(30), &mut Nothing);
    guest.steer_clock(GuestTime(600), RATE_ONE + 1).unwrap();
    guest.run(Position(40), &mut Nothing);
    let now: Vec<_> = lent.take().into_iter().map(|lent| lent.map(|tsc| tsc.now)).collect();
    assert_eq!(now, [Some(1010), Some(1500), None]);
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

/// A CPU with XSAVE and YMM registers.
fn with_avx() -> Layout {
    Layout::find(&|leaf, subleaf| match (leaf, subleaf) {
        (0, _) => [0xD, 0, 0, 0],
        (1, _) => [0, 0, 1 << 26 | 1 << 28, 0],
        (0xD, 0) => [7, 0, 0, 0],
        (0xD, 2) => [256, 576, 0, 0],
        _ => [0; 4],
    })
}

/// A CPU with AVX in protected mode and at this privilege level, and with this CR4, that leaves for an XSETBV of ECX and EDX:EAX.
fn with_xsetbv(layout: Layout, level: u16, cr4: u64, register: u64, value: u64) -> Guest {
    let mut guest = guest(&[], false);
    let mut registers = Registers { rip: 0x1000, ..Registers::default() };
    (registers.gpr[gpr::RAX], registers.gpr[gpr::RDX], registers.gpr[gpr::RCX]) =
        (value as u32 as u64, value >> 32, register);
    let mut mode = Mode { cr0: 1, cr4, ..Mode::default() };
    mode.segments.cs = Segment::flat(8, 0xC9B);
    mode.segments.ss = Segment::flat(0x10, 0xC93 | level << 5);
    guest.memory.slice_mut(Gpa(0x1000), 3).unwrap().copy_from_slice(&[0x0F, 0x01, 0xD1]);
    let exits = [Exit::Xsetbv].into();
    guest.vcpu = Box::new(Script {
        exits,
        registers,
        extended: MadeUp::new(layout),
        mode,
        lent: Lent::default(),
        ..script(&[])
    });
    guest
}

#[test]
fn xsetbv_does_what_the_manual_says() {
    for (level, cr4, register, value, expected) in [
        (0, CR4_OSXSAVE, 0, 7, Some(7)),
        (0, CR4_OSXSAVE, 0xFFFF_FFFF_0000_0000, 3, Some(3)),
        (0, 0, 0, 7, None),
        (3, CR4_OSXSAVE, 0, 7, None),
        (0, CR4_OSXSAVE, 1, 7, None),
        (0, CR4_OSXSAVE, 0, 5, None),
        (0, CR4_OSXSAVE, 0, 1 << 32 | 7, None),
    ] {
        let mut guest = with_xsetbv(with_avx(), level, cr4, register, value);
        guest.run(Position(1), &mut Nothing);
        let state = (guest.vcpu.extended().xcr0(), guest.vcpu.registers().rip);
        assert_eq!(
            state,
            expected.map_or((1, 0x1000), |value| (value, 0x1003)),
            "{level} {cr4:#x} {register:#x} {value:#x}"
        );
    }
    let mut guest = with_xsetbv(Layout::LEGACY, 0, CR4_OSXSAVE, 0, 3);
    guest.run(Position(1), &mut Nothing);
    assert_eq!(guest.vcpu.registers().rip, 0x1000);
}

#[test]
fn what_is_sent_is_loaded_by_the_sender_too() {
    let extended = MadeUp::new(with_avx());
    let loads = Rc::clone(&extended.loads);
    let mut guest = guest(&[], false);
    guest.vcpu = Box::new(Script {
        exits: [].into(),
        registers: Registers::default(),
        extended,
        mode: Mode::default(),
        lent: Lent::default(),
        ..script(&[])
    });
    let hash = guest.hash();
    assert_eq!(loads.get(), 0);
    assert!(!guest.save().is_empty());
    assert_eq!((loads.get(), guest.hash()), (1, hash));
}

#[test]
fn a_state_with_other_registers_is_refused_with_the_reason() {
    let mut rich = with_xsetbv(with_avx(), 0, CR4_OSXSAVE, 0, 7);
    rich.run(Position(1), &mut Nothing);
    let saved = rich.save();
    let mut poor = with_xsetbv(Layout::LEGACY, 0, 0, 0, 0);
    let error = poor.load(&saved).unwrap_err();
    assert_eq!(error, StateError::OtherComponents { state: 7, cpu: 3 });
    assert!(rich.load(&saved).is_ok());
    assert_eq!(rich.vcpu.extended().xcr0(), 7);
}

#[test]
fn a_delivery_at_the_target_comes_to_its_end_before_the_host_is_served() {
    let missed = Exit::PageFault { linear: 0, error_code: 0 };
    // A fault is missed behind the last tick while another is delivered: the delivery goes on, without a tick.
    let mut guest = guest(&[missed], true);
    guest.vcpu.inject(Exception::UNDEFINED);
    let mmu = Mmu::new(4, 40);
    guest.mmu = Some(Box::new(mmu));
    assert_eq!(guest.run(Position(100), &mut Nothing), Stop::Target);
    assert!(guest.is_settled() && guest.position() == Position(100));
}

#[test]
fn what_the_cpu_refuses_twice_is_no_access_of_the_instructions_own() {
    let mut guest = guest(&[], false);
    let (smap, alignment_check) = (1 << 21, 1 << 18);
    let mode =
        Mode { cr0: CR0_PG | CR0_PE | 1 << 16, cr3: 0x1000, cr4: CR4_PAE | smap, efer: EFER_LMA, ..Mode::default() };
    let registers = Registers { rflags: alignment_check, ..Registers::default() };
    let (exits, extended, lent) = (VecDeque::new(), MadeUp::default(), Lent::default());
    guest.vcpu = Box::new(Script { exits, registers, extended, mode, lent, ..script(&[]) });
    // A page of the user's at 0.
    for table in [0x1000, 0x2000, 0x3000, 0x4000_u64] {
        guest.memory.write(Gpa(table), &(table + 0x1007).to_le_bytes()).unwrap();
    }
    guest.mmu = Some(Box::new(Mmu::new(8, 40)));
    guest.reload_paging();
    let present = 1;
    for code in [0, present, 0, present] {
        assert!(matches!(guest.page_fault(8, code), Done::Again), "filled, or forgotten by the CPU");
    }
    let Done::Fault(exception) = guest.page_fault(8, present) else { panic!("SMAP forbids it") };
    assert_eq!((exception.vector, exception.error_code, exception.cr2), (14, Some(present), Some(8)));
}

/// Some CPUs exit for all control registers when one is asked for.
#[test]
fn registers_that_are_nobodys_concern_are_the_guests_own() {
    // mov rdi, cr2; mov cr2, rax; mov rbx, cr8; mov cr8, rcx
    const CODE: [u8; 14] = [0x0F, 0x20, 0xD7, 0x0F, 0x22, 0xD0, 0x44, 0x0F, 0x20, 0xC3, 0x44, 0x0F, 0x22, 0xC1];
    let mut guest = guest(&[Exit::Control; 4], false);
    let long = Segment { attributes: Segment::LONG, ..Segment::default() };
    let segments = Segments { cs: long, ..Segments::default() };
    let mode = Mode { segments, cr0: CR0_PE, efer: EFER_LMA, ..Mode::default() };
    let mut registers = Registers { rip: 0x1000, ..Registers::default() };
    (registers.gpr[gpr::RAX], registers.gpr[gpr::RCX]) = (0x1234_5678_9ABC, 5);
    let (exits, extended, lent) = (VecDeque::from([Exit::Control; 4]), MadeUp::default(), Lent::default());
    let cr2 = 0xFFFF_8000_0000_1008;
    guest.vcpu = Box::new(Script { exits, registers, extended, mode, lent, cr2, ..script(&[]) });
    guest.memory.write(Gpa(0x1000), &CODE).unwrap();
    guest.platform.set_cr8(7);
    assert_eq!(guest.run(Position(4), &mut Nothing), Stop::Target);
    let registers = guest.vcpu.registers();
    assert_eq!((registers.gpr[gpr::RDI], registers.gpr[gpr::RBX]), (cr2, 7));
    assert_eq!((guest.vcpu.cr2(), guest.platform.cr8()), (0x1234_5678_9ABC, 5));
    assert_eq!((registers.rip, guest.position()), (0x1000 + CODE.len() as u64, Position(4)));
}

#[test]
fn a_reset_is_prepared_share_by_share() {
    let mut guest = guest(&[], false);
    let marks = [0, 1 << 20, MEMORY as u64 - 1].map(Gpa);
    let left = |guest: &Guest| marks.map(|at| guest.memory.slice(at, 1).unwrap()[0]);
    let mark = |guest: &mut Guest| marks.iter().for_each(|at| guest.memory.write(*at, &[1]).unwrap());
    mark(&mut guest);
    assert!(!guest.prepare_reset() && left(&guest) == [0, 1, 1]);
    // Another guest comes from the twin: nothing of it is done.
    let state = guest.save();
    guest.load(&state).unwrap();
    mark(&mut guest);
    let shares = MEMORY as u64 / CLEARED_AT_ONCE;
    assert!((1..shares).all(|_| !guest.prepare_reset()) && left(&guest) == [0, 0, 1]);
    assert!(guest.prepare_reset() && left(&guest) == [0; 3]);
    assert!(guest.prepare_reset(), "the log may be full, and the reset comes later");
}

/// What a hypercall comes to at this privilege level, in 64-bit mode or in 32-bit mode; RAX holds garbage.
fn after_hypercall(level: u16, long: bool, code: [u8; 3]) -> Registers {
    let mut guest = guest(&[], false);
    guest.memory.slice_mut(Gpa(0x1000), 3).unwrap().copy_from_slice(&code);
    let mut registers = Registers { rip: 0x1000, ..Registers::default() };
    registers.gpr[gpr::RAX] = 9;
    let mut mode = Mode { cr0: 1, efer: if long { EFER_LMA } else { 0 }, ..Mode::default() };
    mode.segments.cs = Segment::flat(8, if long { 0xA9B } else { 0xC9B });
    mode.segments.ss = Segment::flat(0x10, 0xC93 | level << 5);
    let (lent, extended, exits) = (Lent::default(), MadeUp::default(), [Exit::Hypercall].into());
    guest.vcpu = Box::new(Script { exits, registers, extended, mode, lent, ..script(&[]) });
    guest.run(Position(1), &mut Nothing);
    *guest.vcpu.registers()
}

#[test]
fn hypercalls_are_there_and_none_is_known() {
    const CODES: [[u8; 3]; 2] = [[0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9]];
    for code in CODES {
        for (level, result) in [(0, -1000_i32), (3, -1)] {
            for (long, result) in [(false, u64::from(result as u32)), (true, i64::from(result) as u64)] {
                let registers = after_hypercall(level, long, code);
                assert_eq!((registers.rip, registers.gpr[gpr::RAX]), (0x1003, result), "{level} {long}");
            }
        }
    }
}

/// A CPU that is newer than this hypervisor. The guest is started anew, on both machines.
#[test]
fn an_exit_that_is_not_known_brings_down_the_guest_alone() {
    let mut guest = guest(&[Exit::Unknown(0x3FFF)], false);
    assert_eq!(guest.run(Position(100), &mut Nothing), Stop::Crashed);
    assert!(guest.crash().is_some_and(|crash| crash.contains("0x3fff")), "{:?}", guest.crash());
}
