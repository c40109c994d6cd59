//! A tiny real-mode CPU: the instructions of the self-test's programs, without counters and without a host.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::cpu::registers::{RFLAGS_FIXED, RFLAGS_IF, Registers, gpr};
use crate::cpu::{Exit, IoExit};
use crate::memory::{Gpa, PAGE_SIZE};

/// Bytes of RAM.
pub const RAM: usize = 0x1_0000;

/// What one step between two boundaries did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// An instruction is complete.
    Retire,
    /// An iteration of a string instruction that goes on.
    Iterate,
    /// The instruction raised a fault, whose handler comes next.
    Fault,
    /// The instruction is the hypervisor's to carry out; its length in bytes.
    Exit(Exit, u8),
}

/// All of the guest that a stop must leave equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    pub registers: Registers,
    pub shadow: bool,
    pub ram: Vec<u8>,
    /// Pages written since somebody wanted to know.
    pub written: Option<BTreeSet<u64>>,
}

impl Core {
    pub fn new() -> Self {
        Self { registers: Registers::default(), shadow: false, ram: alloc::vec![0; RAM], written: None }
    }

    /// Whether an external interrupt would be taken now.
    pub fn is_open(&self) -> bool {
        self.registers.rflags & RFLAGS_IF != 0 && !self.shadow
    }

    /// Delivers an event.
    pub fn deliver(&mut self, vector: u8) {
        for value in [self.registers.rflags as u16, 0, self.registers.rip as u16] {
            self.push(value);
        }
        self.registers.rflags &= !RFLAGS_IF;
        self.shadow = false;
        self.registers.rip = u64::from(self.read16(usize::from(vector) * 4));
    }

    /// Completes the instruction at RIP, which was carried out by somebody else.
    pub fn complete(&mut self, length: u8) {
        self.registers.rip += u64::from(length);
        self.shadow = false;
    }

    /// Runs to the next boundary.
    pub fn step(&mut self) -> Did {
        let code: [u8; 8] = core::array::from_fn(|offset| self.ram[(self.registers.rip as usize + offset) % RAM]);
        if let Some((exit, length)) = exit(&code, self.registers.gpr[gpr::RAX]) {
            return Did::Exit(exit, length);
        }
        self.execute(&code)
    }

    fn execute(&mut self, code: &[u8; 8]) -> Did {
        let word = |at: usize| u16::from_le_bytes([code[at], code[at + 1]]);
        let length = match code {
            [0x90, ..] => 1,
            [0x40, ..] => self.add(gpr::RAX, 1),
            [0x42, ..] => self.add(gpr::RDX, 1),
            [0x01, 0xC3, ..] => 1 + self.add(gpr::RBX, self.registers.gpr[gpr::RAX] as u16),
            [0x89, 0xE5, ..] => 1 + self.set(gpr::RBP, self.registers.gpr[gpr::RSP] as u16),
            [0x89, 0x1E, ..] => 1 + self.store(word(2), gpr::RBX),
            [0xA3, ..] => self.store(word(1), gpr::RAX),
            [0xB9, ..] => 2 + self.set(gpr::RCX, word(1)),
            [0xBF, ..] => 2 + self.set(gpr::RDI, word(1)),
            [0x66, 0xB9, a, b, c, d, ..] => {
                self.registers.gpr[gpr::RCX] = u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
                6
            }
            [0x51, ..] => self.push(self.registers.gpr[gpr::RCX] as u16),
            [0x55, ..] => self.push(self.registers.gpr[gpr::RBP] as u16),
            [0x59, ..] => self.pop_to(gpr::RCX),
            [0x5D, ..] => self.pop_to(gpr::RBP),
            [0x83, 0x46, offset, value, ..] => {
                let at = self.registers.gpr[gpr::RBP] as usize + usize::from(*offset);
                let sum = self.read16(at).wrapping_add(u16::from(*value));
                self.write16(at, sum);
                4
            }
            [0xFB, ..] => {
                let shadow = self.registers.rflags & RFLAGS_IF == 0;
                self.registers.rflags |= RFLAGS_IF;
                self.retire(1);
                self.shadow = shadow;
                return Did::Retire;
            }
            [0xFA, ..] => {
                self.registers.rflags &= !RFLAGS_IF;
                1
            }
            [0xE9, ..] => return self.jump(3, word(1)),
            [0xEB, near, ..] => return self.jump(2, sign_extend(*near)),
            [0xE2, near, ..] => return self.repeat(2, *near, 0xFFFF),
            [0x67, 0xE2, near, ..] => return self.repeat(3, *near, 0xFFFF_FFFF),
            [0xF3, 0xAA, ..] => return self.store_string(),
            [0xCD, vector, ..] => {
                self.registers.rip += 2;
                self.deliver(*vector);
                return Did::Retire;
            }
            [0xCF, ..] => {
                self.retire(0);
                self.registers.rip = u64::from(self.pop());
                self.pop();
                self.registers.rflags = u64::from(self.pop()) | RFLAGS_FIXED;
                return Did::Retire;
            }
            _ => {
                self.deliver(6);
                return Did::Fault;
            }
        };
        self.retire(length)
    }

    fn retire(&mut self, length: u64) -> Did {
        self.registers.rip += length;
        self.shadow = false;
        Did::Retire
    }

    fn jump(&mut self, length: u64, by: u16) -> Did {
        self.registers.rip = (self.registers.rip + length + u64::from(by)) & 0xFFFF;
        self.shadow = false;
        Did::Retire
    }

    fn repeat(&mut self, length: u64, near: u8, mask: u64) -> Did {
        let count = self.registers.gpr[gpr::RCX].wrapping_sub(1) & mask;
        self.registers.gpr[gpr::RCX] = self.registers.gpr[gpr::RCX] & !mask | count;
        if count == 0 { self.retire(length) } else { self.jump(length, sign_extend(near)) }
    }

    /// One iteration of REP STOSB.
    fn store_string(&mut self) -> Did {
        if self.registers.gpr[gpr::RCX] as u16 != 0 {
            let at = self.registers.gpr[gpr::RDI] as usize % RAM;
            self.write8(at, self.registers.gpr[gpr::RAX] as u8);
            self.add(gpr::RDI, 1);
            self.add(gpr::RCX, 0xFFFF);
        }
        if self.registers.gpr[gpr::RCX] as u16 == 0 { self.retire(2) } else { Did::Iterate }
    }

    fn add(&mut self, register: usize, value: u16) -> u64 {
        self.set(register, (self.registers.gpr[register] as u16).wrapping_add(value))
    }

    fn set(&mut self, register: usize, value: u16) -> u64 {
        self.registers.gpr[register] = self.registers.gpr[register] & !0xFFFF | u64::from(value);
        1
    }

    fn store(&mut self, at: u16, register: usize) -> u64 {
        self.write16(at.into(), self.registers.gpr[register] as u16);
        3
    }

    fn push(&mut self, value: u16) -> u64 {
        self.add(gpr::RSP, 0xFFFE);
        self.write16(self.registers.gpr[gpr::RSP] as usize, value);
        1
    }

    fn pop(&mut self) -> u16 {
        let value = self.read16(self.registers.gpr[gpr::RSP] as usize);
        self.add(gpr::RSP, 2);
        value
    }

    fn pop_to(&mut self, register: usize) -> u64 {
        let value = self.pop();
        self.set(register, value)
    }

    fn read16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.ram[at % RAM], self.ram[(at + 1) % RAM]])
    }

    fn write16(&mut self, at: usize, value: u16) {
        let [low, high] = value.to_le_bytes();
        self.write8(at % RAM, low);
        self.write8((at + 1) % RAM, high);
    }

    fn write8(&mut self, at: usize, value: u8) {
        self.ram[at] = value;
        if let Some(written) = &mut self.written {
            written.insert(at as u64 & !(PAGE_SIZE - 1));
        }
    }
}

fn sign_extend(near: u8) -> u16 {
    near as i8 as u16
}

/// The instructions that the hypervisor carries out, as an Intel CPU has them.
fn exit(code: &[u8; 8], rax: u64) -> Option<(Exit, u8)> {
    let io = |input, string| Exit::Io(IoExit { port: 0x80, size: 1, input, string, next_rip: 0 });
    Some(match code {
        [0xF4, ..] => (Exit::Hlt, 1),
        [0x0F, 0xA2, ..] => (Exit::Cpuid, 2),
        [0x0F, 0x31, ..] => (Exit::Rdtsc, 2),
        [0x0F, 0x32, ..] => (Exit::Rdmsr, 2),
        [0x0F, 0x30, ..] => (Exit::Wrmsr, 2),
        [0x0F, 0x33, ..] => (Exit::Rdpmc, 2),
        [0x0F, 0x09, ..] => (Exit::CacheFlush, 2),
        [0x0F, 0x01, 0xF9, ..] => (Exit::Rdtscp, 3),
        [0x0F, 0x01, 0xC1, ..] => (Exit::Hypercall, 3),
        [0x0F, 0x01, 0xC8, ..] => (Exit::Undefined, 3),
        [0xE6, ..] => (io(false, false), 2),
        [0xE4, ..] => (io(true, false), 2),
        [0x6E, ..] => (io(false, true), 1),
        [0x6C, ..] => (io(true, true), 1),
        [0x67, 0x88, 0x00, ..] if rax & 0xFFFF_FFFF >= RAM as u64 => (Exit::Memory { gpa: Gpa(rax & 0xFFFF_FFFF) }, 3),
        _ => return None,
    })
}
