//! What QEMU wrote down: one line for each block of code that it ran, in order.

use std::collections::BTreeMap;
use std::io::BufRead;

use anyhow::{Context, Result};

use super::symbols::Symbols;

/// In a block's flags: it is the guest's, run under SVM. See: QEMU, `HF_GUEST_MASK`.
const GUEST: u32 = 1 << 21;

/// The hypervisor's instructions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// How often the one at each address was run.
    pub instructions: BTreeMap<u64, u64>,
    /// How often the guest was left.
    pub exits: u64,
}

/// Where a block begins, and whether it is the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    address: u64,
    of_guest: bool,
}

/// `Trace 0: 0x7f… [cs base/pc/flags/cflags] symbol`; none for other lines.
fn parse(line: &str) -> Option<Block> {
    let (_, rest) = line.strip_prefix("Trace ")?.split_once('[')?;
    let mut fields = rest.split(']').next()?.split('/');
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let (_, address, flags) = (fields.next()?, number(fields.next()?)?, number(fields.next()?)?);
    Some(Block { address, of_guest: flags & u64::from(GUEST) != 0 })
}

/// `Stopped execution of TB chain before 0x7f… [pc] symbol`: the block of the line before was not run after all.
fn was_stopped(line: &str) -> bool {
    line.starts_with("Stopped execution")
}

/// Reads all of it.
///
/// A block is run from its beginning to a branch, or to the beginning of the next one if that comes first.
pub fn read(mut trace: impl BufRead, symbols: &Symbols) -> Result<Blocks> {
    let mut counts = BTreeMap::<(u64, Option<u64>), u64>::new();
    let mut blocks = Blocks::default();
    let (mut line, mut last) = (Vec::new(), None::<Block>);
    loop {
        line.clear();
        if trace.read_until(b'\n', &mut line).context("what QEMU wrote")? == 0 {
            break;
        }
        let Ok(text) = std::str::from_utf8(&line) else { continue };
        if was_stopped(text) {
            last = None;
            continue;
        }
        let Some(block) = parse(text) else { continue };
        if let Some(before) = last.replace(block) {
            if before.of_guest {
                blocks.exits += u64::from(!block.of_guest);
            } else {
                let end = (!block.of_guest).then_some(block.address);
                *counts.entry((before.address, end)).or_insert(0) += 1;
            }
        }
    }
    for ((address, end), count) in counts {
        for instruction in symbols.block(address, end) {
            *blocks.instructions.entry(instruction).or_insert(0) += count;
        }
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
Trace 0: 0x7f31c0000100 [0000000000000000/0000000000001000/0x0000c0b2/0xff000000] \n\
Trace 0: 0x7f31c0000200 [0000000000000000/0000000000001002/0x0000c0b2/0xff000000] \n\
Trace 0: 0x7f31c0000200 [0000000000000000/ffffffff81000000/0x0020c0b2/0xff000000] \n\
Trace 0: 0x7f31c0000300 [0000000000000000/0000000000001000/0x0000c0b2/0xff000000] \n\
Stopped execution of TB chain before 0x7f31c0000300 [0000000000001000] \n\
Trace 0: 0x7f31c0000100 [0000000000000000/0000000000001000/0x0000c0b2/0xff000000] main\n\
something else\n\
Trace 0: 0x7f31c0000200 [0000000000000000/0000000000001004/0x0000c0b2/0xff000000] \n";

    #[test]
    fn blocks_are_counted() {
        // inc rax; nop; nop; jmp
        let symbols = Symbols::of_code(0x1000, &[0x90, 0x90, 0x90, 0x90, 0xeb, 0x00]);
        let blocks = read(TRACE.as_bytes(), &symbols).unwrap();
        let expected = [(0x1000, 2), (0x1001, 2), (0x1002, 2), (0x1003, 2), (0x1004, 1)];
        assert_eq!(blocks, Blocks { instructions: expected.into(), exits: 1 });
    }

    #[test]
    fn other_lines_are_none() {
        for line in ["", "Trace 0: 0x7f [0/", "Trace 0: 0x7f [0/zz/1/2]", "IN: main", "Trace 0: [1/2]"] {
            assert_eq!(parse(line), None, "{line}");
        }
        let short = "Trace 0: 0x7f31c0000100 [00000000/0000000000100040/0x0000c0b2/0xff000000] ";
        assert_eq!(parse(short), Some(Block { address: 0x10_0040, of_guest: false }));
    }
}
