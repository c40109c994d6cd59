//! Permission maps: which ports and model-specific registers cause an exit. See: APM volume 2, 15.10 and 15.11.

use crate::cpu::registers::DIRECT_MSRS;

/// A bit per port, one page more than 64 Ki bits because accesses may straddle the end.
#[repr(C, align(4096))]
pub(super) struct IoPermissions([u8; 3 * 4096]);

/// Two bits per register (read, write) for three ranges of 8192 registers; all others always exit.
#[repr(C, align(4096))]
pub(super) struct MsrPermissions([u8; 2 * 4096]);

const _: () = {
    assert!(size_of::<IoPermissions>() == 3 * 4096);
    assert!(size_of::<MsrPermissions>() == 2 * 4096);
};

impl IoPermissions {
    /// Every port access exits.
    pub(super) fn intercept_all() -> Self {
        Self([0xFF; 3 * 4096])
    }
}

impl MsrPermissions {
    /// Everything exits but the registers that the hardware switches itself.
    pub(super) fn for_guest() -> Self {
        let mut map = Self([0xFF; 2 * 4096]);
        for msr in DIRECT_MSRS {
            if let Some((byte, shift)) = position(msr) {
                map.0[byte] &= !(0b11 << shift);
            }
        }
        map
    }
}

/// Byte and bit of a register's two bits; `None` for registers outside the map. See: APM volume 2, table 15-8.
fn position(msr: u32) -> Option<(usize, u32)> {
    let (base, index) = match msr {
        0..=0x1FFF => (0, msr),
        0xC000_0000..=0xC000_1FFF => (0x800, msr & 0x1FFF),
        0xC001_0000..=0xC001_1FFF => (0x1000, msr & 0x1FFF),
        _ => return None,
    };
    Some((base + index as usize / 4, index % 4 * 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_registers_are_open() {
        let map = MsrPermissions::for_guest();
        let open = (0..0x2000)
            .chain(0xC000_0000..0xC000_2000)
            .chain(0xC001_0000..0xC001_2000)
            .filter(|&msr| position(msr).is_some_and(|(byte, shift)| map.0[byte] >> shift & 0b11 != 0b11));
        assert!(open.eq(DIRECT_MSRS));
    }
}
