//! A guest that clears accessed bits without a flush and looks whether its next access sets them again: what it sees depends
//! on what the CPU remembers of its page tables, unless there is nothing to remember.

use super::{Bench, CODE, HLT, NONSENSE, NOP, Report, Want};
use crate::cpu::Exit;
use crate::cpu::registers::{CpuState, Table, gpr};

/// The one page of page tables, as for code that changes itself.
const TABLES: u64 = 0x3000;
const TABLE: u64 = 0x23;
const LARGE: u64 = 0xA3;
/// Where all is seen, and the page whose entry is cleared.
const BASE: u64 = 2 << 20;
const WATCHED: u64 = 4 << 20;
/// How often an accessed bit is cleared.
const ROUNDS: u64 = 8;

/// 1: and byte [rdi], ~0x20; nop, twice; mov eax, [rsi]; movzx eax, byte [rdi]; shr eax, 5; and eax, 1; add edx, eax; dec ecx;
/// jnz 1b; hlt
const PROGRAM: [u8; 23] = [
    0x80, 0x27, 0xDF, NOP, NOP, 0x8B, 0x06, 0x0F, 0xB6, 0x07, 0xC1, 0xE8, 0x05, 0x83, 0xE0, 0x01, 0x01, 0xC2, 0xFF,
    0xC9, 0x75, 0xEA, HLT,
];

impl Bench<'_> {
    /// Checks whether the CPU, as it walks the guest's tables itself, remembers nothing of them.
    pub(in crate::counter) fn translations(&mut self, report: &mut Report) {
        let (ticks, set) = self.cleared_bits(None).unwrap_or((0, NONSENSE));
        report.check("8 cleared accessed bits: those set again", Want::Is(ROUNDS), set);
        let differs = (1..ticks).filter(|&stop| self.cleared_bits(Some(stop)) != Some((ticks, set))).count() as u64;
        report.check("stops after which other ones were", Want::Is(0), differs);
    }

    /// Ticks of a run, and how many of the cleared bits were set again.
    fn cleared_bits(&mut self, stop: Option<u64>) -> Option<(u64, u64)> {
        for (entry, place) in [TABLES | TABLE, LARGE, LARGE].into_iter().zip((TABLES..).step_by(8)) {
            self.stand.write(place, &entry.to_le_bytes());
        }
        self.stand.write(CODE, &PROGRAM);
        let mut state = CpuState::linux(BASE + CODE, WATCHED, TABLES, Table::default());
        state.registers.gpr[gpr::RDI] = BASE + TABLES + 16;
        state.registers.gpr[gpr::RCX] = ROUNDS;
        self.stand.vcpu().load(&state);
        let before = match stop {
            Some(stop) => match self.run(stop) {
                (None, ticks) if ticks == stop => ticks,
                _ => return None,
            },
            None => 0,
        };
        match self.run(u64::MAX) {
            (Some(Exit::Hlt), ticks) => Some((before + ticks, self.registers().gpr[gpr::RDX])),
            _ => None,
        }
    }
}
