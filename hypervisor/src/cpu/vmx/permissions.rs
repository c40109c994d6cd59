//! The MSR bitmap: which model-specific registers cause an exit. See: SDM volume 3, 25.6.9.

use crate::cpu::registers::DIRECT_MSRS;

/// Four bitmaps of 1 KiB: reads of 0–0x1FFF, reads of 0xC0000000–0xC0001FFF, writes of the same. All others always exit.
#[repr(C, align(4096))]
pub(super) struct MsrPermissions([u8; 4096]);

const _: () = assert!(size_of::<MsrPermissions>() == 4096);

const WRITES: usize = 2048;

impl MsrPermissions {
    /// Everything exits but the registers that belong to the guest while it runs.
    pub(super) fn for_guest() -> Self {
        let mut map = Self([0xFF; 4096]);
        for msr in DIRECT_MSRS {
            if let Some((byte, bit)) = position(msr) {
                map.0[byte] &= !(1 << bit);
                map.0[WRITES + byte] &= !(1 << bit);
            }
        }
        map
    }
}

/// Byte and bit of a register's read permission; `None` for registers outside the map.
fn position(msr: u32) -> Option<(usize, u32)> {
    let base = match msr {
        0..=0x1FFF => 0,
        0xC000_0000..=0xC000_1FFF => 1024,
        _ => return None,
    };
    Some((base + (msr & 0x1FFF) as usize / 8, msr % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_registers_are_open() {
        let map = MsrPermissions::for_guest();
        for offset in [0, WRITES] {
            let open = (0..0x2000)
                .chain(0xC000_0000..0xC000_2000)
                .filter(|&msr| position(msr).is_some_and(|(byte, bit)| map.0[offset + byte] >> bit & 1 == 0));
            assert!(open.eq(DIRECT_MSRS));
        }
    }
}
