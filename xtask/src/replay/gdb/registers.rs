//! The registers as GDB wants them.

use std::collections::BTreeMap;

use gdbstub::arch::{Arch, Registers};

/// x86-64, with the registers of `target.xml`.
#[derive(Debug)]
pub enum Amd64 {}

/// What is told: one number of `bits` each, in the order of `target.xml`.
const TOLD: [(&str, usize); 24] = [
    ("rax", 64),
    ("rbx", 64),
    ("rcx", 64),
    ("rdx", 64),
    ("rsi", 64),
    ("rdi", 64),
    ("rbp", 64),
    ("rsp", 64),
    ("r8", 64),
    ("r9", 64),
    ("r10", 64),
    ("r11", 64),
    ("r12", 64),
    ("r13", 64),
    ("r14", 64),
    ("r15", 64),
    ("rip", 64),
    ("rflags", 32),
    ("cs", 32),
    ("ss", 32),
    ("ds", 32),
    ("es", 32),
    ("fs", 32),
    ("gs", 32),
];
/// Bytes of st0 to st7, and of the eight registers that control them: GDB wants them to be there, and they are not told.
const X87: usize = 8 * 10 + 8 * 4;
/// Behind those.
const SYSTEM: [&str; 9] = ["fs_base", "gs_base", "k_gs_base", "cr0", "cr2", "cr3", "cr4", "efer", "position"];

/// Registers by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named(pub BTreeMap<String, u64>);

impl Named {
    fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }
}

impl Registers for Named {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.get("rip").unwrap_or_default()
    }

    fn gdb_serialize(&self, mut write: impl FnMut(Option<u8>)) {
        let number = |name: &str, bytes: usize, write: &mut dyn FnMut(Option<u8>)| {
            let value = self.get(name).map(u64::to_le_bytes);
            (0..bytes).for_each(|index| write(value.map(|value| value[index])));
        };
        TOLD.iter().for_each(|&(name, bits)| number(name, bits / 8, &mut write));
        (0..X87).for_each(|_| write(None));
        SYSTEM.iter().for_each(|name| number(name, 8, &mut write));
    }

    fn gdb_deserialize(&mut self, _: &[u8]) -> Result<(), ()> {
        // What was recorded is not changed. Whoever is to write them says so: an error here would end the session.
        Ok(())
    }
}

impl Arch for Amd64 {
    type Usize = u64;
    type Registers = Named;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_told_in_the_order_of_the_description() {
        let all = TOLD.iter().map(|(name, _)| *name).chain(SYSTEM);
        let named = Named(all.zip(1..).map(|(name, value)| (name.to_owned(), value)).collect());
        let mut bytes = Vec::new();
        named.gdb_serialize(|byte| bytes.push(byte));
        let mut at = 0;
        let mut seen = 0;
        let xml = Amd64::target_description_xml().unwrap();
        for line in xml.lines().filter(|line| line.contains("<reg ")) {
            let value = |key: &str| line.split_once(&format!("{key}=\"")).unwrap().1.split('"').next().unwrap();
            let len = value("bitsize").parse::<usize>().unwrap() / 8;
            let name = match value("name") {
                "eflags" => "rflags",
                name => name,
            };
            let told = bytes[at..at + len].iter().copied().collect::<Option<Vec<_>>>();
            let expected = named.get(name).map(|value| value.to_le_bytes()[..len].to_vec());
            assert_eq!(told, expected, "{name}");
            seen += usize::from(told.is_some());
            at += len;
        }
        assert_eq!((at, seen), (bytes.len(), TOLD.len() + SYSTEM.len()));
    }
}
