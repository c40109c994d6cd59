//! The checksum of partition tables. See: UEFI Specification 2.10, 5.3.2.

/// CRC-32 as in IEEE 802.3; a table is small, so bit by bit is quick enough.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crc32(u32);

impl Default for Crc32 {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc32 {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 ^= u32::from(byte);
            for _ in 0..8 {
                self.0 = self.0 >> 1 ^ if self.0 & 1 == 1 { 0xEDB8_8320 } else { 0 };
            }
        }
    }

    pub(super) const fn value(self) -> u32 {
        !self.0
    }
}

/// CRC-32 of all of `bytes`.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc32::default();
    crc.add(bytes);
    crc.value()
}
