//! What controller and namespace say of themselves.
//! See: Base Specification, 5.17.2.1; NVM Command Set Specification, 4.1.5.1.

use core::fmt;

use pollux_nic::DmaMemory;

use crate::buffers::BUFFER_BYTES;

/// What is stored how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block: 512, 1024, 2048 or 4096.
    pub block_bytes: u32,
    /// How many there are.
    pub blocks: u64,
    /// Most bytes of data in one command: a whole number of blocks.
    pub most_bytes: u32,
    /// Whether what was written is durable only after a flush.
    pub has_write_cache: bool,
    /// Whether [`Request::Zero`](crate::Request::Zero) is understood.
    pub can_zero: bool,
}

/// Why a drive cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// It has no namespace of this number, or nothing is stored there.
    NoNamespace(u32),
    /// Its blocks have so many bytes, as a power of two.
    BlockBytes(u8),
    /// Its blocks carry metadata.
    Metadata(u16),
    /// What it says of itself is no more what it was.
    Changed,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNamespace(number) => write!(f, "it has no namespace {number}"),
            Self::BlockBytes(power) => write!(f, "its blocks have 2^{power} bytes, and not 512 to 4096"),
            Self::Metadata(bytes) => write!(f, "its blocks carry {bytes} bytes of metadata; format it without"),
            Self::Changed => f.write_str("after a reset it is not the drive that it was"),
        }
    }
}

/// What is kept of what the controller says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Controller {
    most_bytes: u32,
    namespaces: u32,
    has_write_cache: bool,
    can_zero: bool,
}

impl Controller {
    /// `page`: its smallest pages, as a power of two of bytes.
    pub(crate) fn read(data: &DmaMemory, page: u32) -> Self {
        let limit = byte(data, 77);
        let most = if limit == 0 { None } else { 1u32.checked_shl(page + u32::from(limit)).filter(|&most| most > 0) };
        Self {
            most_bytes: most.unwrap_or(u32::MAX).min(BUFFER_BYTES as u32),
            namespaces: number(data, 516, 4) as u32,
            has_write_cache: byte(data, 525) & 1 == 1,
            can_zero: number(data, 520, 2) & 1 << 3 != 0,
        }
    }

    /// The geometry of namespace `number`, by what it says of itself.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn geometry(&self, data: &DmaMemory, number_of_it: u32) -> Result<Geometry, Unusable> {
        let blocks = number(data, 0, 8);
        if number_of_it == 0 || number_of_it > self.namespaces || blocks == 0 {
            return Err(Unusable::NoNamespace(number_of_it));
        }
        let flags = byte(data, 26);
        let format = usize::from(flags & 0xF | flags >> 1 & 0x30);
        let (metadata, power) = (number(data, 128 + 4 * format, 2) as u16, byte(data, 130 + 4 * format));
        if metadata != 0 {
            return Err(Unusable::Metadata(metadata));
        }
        // A drive whose bytes no number counts is none.
        if !(9..=12).contains(&power) || blocks > u64::MAX >> power {
            return Err(Unusable::BlockBytes(power));
        }
        let Self { most_bytes, has_write_cache, can_zero, .. } = *self;
        Ok(Geometry { block_bytes: 1 << power, blocks, most_bytes, has_write_cache, can_zero })
    }
}

fn byte(data: &DmaMemory, at: usize) -> u8 {
    number(data, at, 1) as u8
}

/// The number in `len` bytes at `at`, which lie in one word.
fn number(data: &DmaMemory, at: usize, len: usize) -> u64 {
    let word = data.read64(at & !7) >> (8 * (at & 7));
    if len == 8 { word } else { word & ((1 << (8 * len)) - 1) }
}
