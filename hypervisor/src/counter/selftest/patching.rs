//! Guests that change their own code, in long mode: a CPU that goes on with the old instructions, or only sometimes,
//! executes something else than its twin.

use alloc::vec::Vec;

use super::{Bench, CODE, HLT, NONSENSE, NOP, Report, Want};
use crate::cpu::Exit;
use crate::cpu::registers::{CpuState, Table, gpr};

/// The one page of page tables; its entry 0 leads back to itself, so that it serves at all levels.
const TABLES: u64 = 0x3000;
/// Flags of an entry of it: present, writable, accessed; and of one for a page of 2 MiB, dirty if it says so.
const TABLE: u64 = 0x23;
const LARGE: u64 = 0xA3;
const DIRTY: u64 = 1 << 6;
/// Where code is executed, and where the same memory is seen too.
const EXECUTED: u64 = 2 << 20;
const ALIAS: u64 = 4 << 20;
/// What is copied over code.
const SOURCE: u64 = 0x2800;
/// inc eax, twice: in place of four NOPs. Behind them for PUSH, which writes eight bytes, HLTs.
const INCREMENTS: u64 = 0xF4F4_F4F4_C0FF_C0FF;

/// A program that changes its four NOPs.
struct Program {
    /// Where it begins.
    at: u64,
    code: &'static [u8],
    /// Where in it the NOPs are.
    target: u64,
    /// What EAX comes to.
    sum: u64,
    /// Instructions, where they do not depend on how a CPU counts string instructions.
    ticks: Option<u64>,
}

const PROGRAMS: [Program; 6] = [
    // mov [rdi], ecx: the next instruction.
    Program { at: CODE, code: &[0x89, 0x0F, NOP, NOP, NOP, NOP, HLT], target: 2, sum: 2, ticks: Some(3) },
    // The same with some NOPs between.
    Program {
        at: CODE,
        code: &[0x89, 0x0F, NOP, NOP, NOP, NOP, NOP, NOP, NOP, NOP, NOP, NOP, HLT],
        target: 8,
        sum: 2,
        ticks: Some(9),
    },
    // And across a page.
    Program { at: 0x1FFC, code: &[0x89, 0x0F, NOP, NOP, NOP, NOP, HLT], target: 2, sum: 2, ticks: Some(3) },
    // push rcx
    Program { at: CODE, code: &[0x51, NOP, NOP, NOP, NOP, HLT, HLT, HLT, HLT], target: 1, sum: 2, ticks: Some(3) },
    // rep movsb
    Program { at: CODE, code: &[0xF3, 0xA4, NOP, NOP, NOP, NOP, HLT], target: 2, sum: 2, ticks: None },
    // 1: cmp edx, 3; jne 2f; mov [rdi], ecx; 2: nop, four times; dec edx; jnz 1b
    Program {
        at: CODE,
        code: &[0x83, 0xFA, 0x03, 0x75, 0x02, 0x89, 0x0F, NOP, NOP, NOP, NOP, 0xFF, 0xCA, 0x75, 0xF1, HLT],
        target: 7,
        sum: 6,
        ticks: Some(35),
    },
];
const REP_MOVSB: u8 = 0xF3;

/// A stack in the page of the handlers.
const AMONG_HANDLERS: u64 = 0x700;
/// int 0x41; ud2; int 0x41; hlt
const EVENTS: [u8; 7] = [0xCD, 0x41, 0x0F, 0x0B, 0xCD, 0x41, HLT];

/// A program, the address at which it writes, and the flags of its pages' entries.
type Case = (&'static Program, u64, u64);

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for program in &PROGRAMS {
        for (seen_at, flags) in [(EXECUTED, DIRTY), (EXECUTED, 0), (ALIAS, DIRTY), (ALIAS, 0)] {
            cases.push((program, seen_at, flags));
        }
    }
    cases
}

impl Bench<'_> {
    /// Checks that changed code is executed as it is, whatever that counts.
    pub(in crate::counter) fn changed_code(&mut self, report: &mut Report) {
        let cases = cases();
        let right = cases.iter().filter(|case| self.changes(case)).count() as u64;
        report.check("24 programs change their own code: right sums", Want::Is(cases.len() as u64), right);
    }

    fn changes(&mut self, &(program, seen_at, flags): &Case) -> bool {
        self.place_program(program, seen_at, flags);
        self.run(u64::MAX).0 == Some(Exit::Hlt) && self.registers().gpr[gpr::RAX] == program.sum
    }

    /// Checks that changed code is executed as it is at each moment, wherever the guest was stopped before.
    pub(in crate::counter) fn patching(&mut self, report: &mut Report) {
        let cases = cases();
        let total = cases.len() as u64;
        let right = cases.iter().filter(|case| self.patched(case, None).is_some()).count() as u64;
        report.check("24 programs change their own code: right ones", Want::Is(total), right);
        let (mut tried, mut right) = (0_u64, 0_u64);
        for case in &cases {
            let ticks = case.0.ticks.unwrap_or(6);
            for stop in 1..ticks {
                tried += 1;
                right += u64::from(self.patched(case, Some(stop)).is_some());
            }
        }
        report.check("the same, stopped at each tick: wrong ones", Want::Is(0), tried - right);
        report.check("events with a stack among code: other counts", Want::Is(0), self.events_differ());
    }

    /// The ticks of a run, if it did what it should.
    fn patched(&mut self, &(program, seen_at, flags): &Case, stop: Option<u64>) -> Option<u64> {
        self.place_program(program, seen_at, flags);
        let before = match stop {
            Some(stop) => match self.run(stop) {
                (None, ticks) if ticks == stop => ticks,
                _ => return None,
            },
            None => 0,
        };
        let (Some(Exit::Hlt), ticks) = self.run(u64::MAX) else { return None };
        let ticks = before + ticks;
        let right = self.registers().gpr[gpr::RAX] == program.sum && program.ticks.is_none_or(|want| want == ticks);
        right.then_some(ticks)
    }

    fn place_program(&mut self, program: &Program, seen_at: u64, flags: u64) {
        let Program { at, code, target, .. } = *program;
        let entries = [TABLES | TABLE, LARGE | flags, LARGE | flags];
        for (entry, place) in entries.into_iter().zip((TABLES..).step_by(8)) {
            self.stand.write(place, &entry.to_le_bytes());
        }
        self.stand.write(SOURCE, &INCREMENTS.to_le_bytes());
        self.stand.write(at, code);
        let mut state = CpuState::linux(EXECUTED + at, EXECUTED + SOURCE, TABLES, Table::default());
        let registers = &mut state.registers.gpr;
        registers[gpr::RDI] = seen_at + at + target;
        registers[gpr::RSP] = seen_at + at + target + 8;
        registers[gpr::RCX] = if code[0] == REP_MOVSB { 4 } else { INCREMENTS };
        registers[gpr::RDX] = 5;
        self.stand.vcpu().load(&state);
    }

    /// Software interrupts and a fault, delivered to a stack in the page of their handlers: how many of the runs, each
    /// with a stop at another tick, count otherwise than the first.
    fn events_differ(&mut self) -> u64 {
        let first = self.events(None);
        if first == NONSENSE {
            return NONSENSE;
        }
        (1..first).filter(|&stop| self.events(Some(stop)) != first).count() as u64
    }

    fn events(&mut self, stop: Option<u64>) -> u64 {
        super::trial::place_events(self.stand, &EVENTS);
        self.registers().gpr[gpr::RSP] = AMONG_HANDLERS;
        let before = match stop {
            Some(stop) => match self.run(stop) {
                (None, ticks) if ticks == stop => ticks,
                _ => return NONSENSE,
            },
            None => 0,
        };
        match self.run(u64::MAX) {
            (Some(Exit::Hlt), ticks) if self.registers().gpr[gpr::RDX] == 2 => before + ticks,
            _ => NONSENSE,
        }
    }
}
