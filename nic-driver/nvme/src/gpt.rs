//! Partitions: which blocks of a drive are ours.
//!
//! A table is believed only as a whole: header and entries have checksums, and there are two of each. Where the first copy is
//! damaged the second one counts, and that is said. Nothing is ever written.
//!
//! See: UEFI Specification 2.10, chapter 5.

use core::fmt;

mod crc;
mod error;

use self::crc::Crc32;
pub use self::crc::crc32;
pub use self::error::{Damage, GptError};

/// Reads whole blocks of a drive.
pub trait Blocks {
    /// Why they cannot be read.
    type Error: fmt::Display;

    /// Bytes of a block: 512 to [`MAX_BLOCK`].
    fn block_bytes(&self) -> usize;

    /// How many there are.
    fn blocks(&self) -> u64;

    /// Reads block `block` into `bytes`, which has room for one.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&mut self, block: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;
}

/// Largest blocks.
pub const MAX_BLOCK: usize = 4096;
/// Most bytes of entries that a table may have: 64 times what is usual.
const MAX_ENTRIES: u64 = 1 << 20;
/// Least bytes of an entry.
const ENTRY_BYTES: usize = 128;
/// Bytes of a header that have a meaning.
const HEADER_BYTES: usize = 92;
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Letters of a name, each in two bytes.
const NAME_LETTERS: usize = 36;

/// Which partition is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// The one with this unique identifier.
    Guid(Guid),
    /// The only one with this name.
    Name(&'a str),
}

impl<'a> Wanted<'a> {
    /// A GUID if `text` looks like one, else a name.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        Guid::parse(text).map_or(Self::Name(text), Self::Guid)
    }

    fn is(&self, entry: &Entry<'_>) -> bool {
        match self {
            Self::Guid(guid) => entry.guid() == *guid,
            Self::Name(name) => entry.is_named(name),
        }
    }
}

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guid(guid) => guid.fmt(f),
            Self::Name(name) => write!(f, "'{name}'"),
        }
    }
}

/// An identifier as it lies on a drive: the first three numbers with the lowest byte first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

/// Where the bytes of the text lie.
const GUID_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// Reads `01234567-89ab-cdef-0123-456789abcdef`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let dashes = [8, 13, 18, 23];
        if text.len() != 36 || dashes.iter().any(|&at| text[at] != b'-') {
            return None;
        }
        let mut digits = (0..36).filter(|at| !dashes.contains(at)).map(|at| char::from(text[at]).to_digit(16));
        let mut bytes = [0; 16];
        for at in GUID_ORDER {
            bytes[at] = (digits.next()?? << 4 | digits.next()??) as u8;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, at) in GUID_ORDER.into_iter().enumerate() {
            let dash = if matches!(count, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{:02x}", self.0[at])?;
        }
        Ok(())
    }
}

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Its first block.
    pub first: u64,
    /// How many it has: at least one.
    pub blocks: u64,
    /// Its unique identifier.
    pub guid: Guid,
    /// Only one copy of the table is whole.
    pub damaged: bool,
}

/// What tells of partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// None does.
    None,
    /// A partition table by GUIDs, whole or not.
    Gpt,
    /// An older one.
    Mbr,
}

/// Which kind of partition table a drive has. A damaged one counts: something is there.
///
/// # Errors
/// The drive cannot be read.
pub fn label<B: Blocks>(drive: &mut B) -> Result<Label, B::Error> {
    let mut block = [0; MAX_BLOCK];
    let len = drive.block_bytes();
    for at in [1, drive.blocks().saturating_sub(1)] {
        if at < drive.blocks() {
            drive.read(at, &mut block[..len])?;
            if block.starts_with(SIGNATURE) {
                return Ok(Label::Gpt);
            }
        }
    }
    drive.read(0, &mut block[..len])?;
    let kinds = [0x1C2, 0x1D2, 0x1E2, 0x1F2];
    let is_mbr = block[510..512] == [0x55, 0xAA] && kinds.iter().any(|&at| block[at] != 0);
    Ok(if is_mbr { Label::Mbr } else { Label::None })
}

/// Whether a drive whose first `end` blocks are a guest's disk, on which the guest may have a table of its own, was divided by
/// somebody else since: there is a table that does not lie on that disk alone.
///
/// # Errors
/// The drive cannot be read.
pub fn is_divided<B: Blocks>(drive: &mut B, end: u64) -> Result<bool, B::Error> {
    let mut block = [0; MAX_BLOCK];
    let (len, last) = (drive.block_bytes(), drive.blocks().saturating_sub(1));
    drive.read(last, &mut block[..len])?;
    if last >= end && block.starts_with(SIGNATURE) {
        return Ok(true);
    }
    if last > 0 {
        drive.read(1, &mut block[..len])?;
    }
    // Where the second copy is.
    Ok(block.starts_with(SIGNATURE) && number64(&block, 32) >= end)
}

/// Finds a partition.
///
/// # Errors
/// Why there is none that can be used.
pub fn find<B: Blocks>(drive: &mut B, wanted: &Wanted<'_>) -> Result<Partition, GptError<B::Error>> {
    let last = drive.blocks().saturating_sub(1);
    let (primary, backup) = (Header::read(drive, 1), Header::read(drive, last));
    // Where the other copy's entries are, or, if that is damaged, usually are.
    let usual = |header: Header, entries_at| Header { entries_at, ..header };
    let (header, other, damaged) = match (primary, backup) {
        (Ok(Ok(header)), Ok(Ok(other))) => (header, other, false),
        (Ok(Ok(header)), _) => (header, usual(header, last.saturating_sub(header.entry_blocks)), true),
        (_, Ok(Ok(header))) => (header, usual(header, 2), true),
        (Err(error), _) | (_, Err(error)) => return Err(GptError::Read(error)),
        (Ok(Err(Damage::Signature)), Ok(Err(Damage::Signature))) => return Err(GptError::NoTable),
        (Ok(Err(damage)), Ok(Err(_))) => return Err(GptError::Damaged(damage)),
    };
    let mut found = Ok(None);
    header.visit(drive, |index, entry| {
        if wanted.is(entry) {
            found = match found {
                Ok(None) => Ok(Some((index, entry.first(), entry.last(), entry.guid()))),
                _ => Err(GptError::Ambiguous),
            };
        }
    })?;
    let (own, first, last, guid) = found?.ok_or(GptError::NotFound)?;
    let mut misplaced = first > last || first < header.first_usable || last > header.last_usable;
    misplaced |= other.entries_overlap(first, last);
    let mut twice = false;
    header.visit(drive, |index, entry| {
        twice |= index != own && entry.guid() == guid;
        misplaced |= index != own && entry.first() <= last && first <= entry.last();
    })?;
    match (twice, misplaced) {
        (true, _) => Err(GptError::Ambiguous),
        (_, true) => Err(GptError::Misplaced),
        _ => Ok(Partition { first, blocks: last - first + 1, guid, damaged }),
    }
}

/// A header whose checksums are right, those of its entries as well.
#[derive(Debug, Clone, Copy)]
struct Header {
    first_usable: u64,
    last_usable: u64,
    entries_at: u64,
    entries: u32,
    entry_bytes: u32,
    /// Blocks that the entries take up.
    entry_blocks: u64,
    checksum: u32,
}

impl Header {
    /// Reads the copy of the table whose header is in block `at`.
    fn read<B: Blocks>(drive: &mut B, at: u64) -> Result<Result<Self, Damage>, B::Error> {
        let (len, blocks) = (drive.block_bytes(), drive.blocks());
        let mut bytes = [0; MAX_BLOCK];
        if at >= blocks {
            return Ok(Err(Damage::Signature));
        }
        drive.read(at, &mut bytes[..len])?;
        let header = match Self::parse(&mut bytes[..len], at, blocks) {
            Ok(header) => header,
            Err(damage) => return Ok(Err(damage)),
        };
        let mut crc = Crc32::default();
        header.scan(drive, |bytes| crc.add(bytes))?;
        Ok(if crc.value() == header.checksum { Ok(header) } else { Err(Damage::EntriesChecksum) })
    }

    /// Checks all but the entries. See: 5.3.2.
    fn parse(bytes: &mut [u8], at: u64, blocks: u64) -> Result<Self, Damage> {
        if !bytes.starts_with(SIGNATURE) {
            return Err(Damage::Signature);
        }
        let (size, checksum) = (number32(bytes, 12) as usize, number32(bytes, 16));
        if !(HEADER_BYTES..=bytes.len()).contains(&size) {
            return Err(Damage::Header);
        }
        bytes[16..20].fill(0);
        if crc32(&bytes[..size]) != checksum {
            return Err(Damage::HeaderChecksum);
        }
        let header = Self {
            first_usable: number64(bytes, 40),
            last_usable: number64(bytes, 48),
            entries_at: number64(bytes, 72),
            entries: number32(bytes, 80),
            entry_bytes: number32(bytes, 84),
            entry_blocks: 0,
            checksum: number32(bytes, 88),
        };
        let header = Self { entry_blocks: header.entries_len().div_ceil(bytes.len() as u64), ..header };
        let whole = header.entry_bytes.is_power_of_two()
            && (ENTRY_BYTES..=MAX_BLOCK).contains(&(header.entry_bytes as usize))
            && header.entries_len() <= MAX_ENTRIES;
        let entries_end = header.entries_at.checked_add(header.entry_blocks);
        let in_place = number64(bytes, 24) == at
            && (2..=header.last_usable).contains(&header.first_usable)
            && header.last_usable < blocks - 1
            && header.entries_at > 1
            && entries_end.is_some_and(|end| end <= blocks)
            && !header.entries_overlap(header.first_usable, header.last_usable);
        if whole && in_place { Ok(header) } else { Err(Damage::Header) }
    }

    /// Whether the entries lie on some of the blocks from `first` to `last`.
    const fn entries_overlap(&self, first: u64, last: u64) -> bool {
        self.entries_at <= last && first < self.entries_at.saturating_add(self.entry_blocks)
    }

    fn entries_len(&self) -> u64 {
        u64::from(self.entries) * u64::from(self.entry_bytes)
    }

    /// Shows the entries' bytes, block by block, the last one cut off.
    fn scan<B: Blocks>(&self, drive: &mut B, mut see: impl FnMut(&[u8])) -> Result<(), B::Error> {
        let (len, mut left, mut bytes) = (drive.block_bytes(), self.entries_len(), [0; MAX_BLOCK]);
        for at in self.entries_at.. {
            if left == 0 {
                break;
            }
            drive.read(at, &mut bytes[..len])?;
            let part = left.min(len as u64);
            see(&bytes[..part as usize]);
            left -= part;
        }
        Ok(())
    }

    /// Shows the entries that are in use, and which they are. What has changed since their checksum was looked at is an error.
    fn visit<B: Blocks>(&self, drive: &mut B, mut see: impl FnMut(u32, &Entry<'_>)) -> Result<(), GptError<B::Error>> {
        let (size, mut buffer, mut crc) = (self.entry_bytes as usize, [0; MAX_BLOCK], Crc32::default());
        let (mut filled, mut index) = (0, 0);
        let scanned = self.scan(drive, |bytes| {
            crc.add(bytes);
            // Blocks and entries have lengths of which one is a multiple of the other.
            for piece in bytes.chunks(size) {
                buffer[filled..filled + piece.len()].copy_from_slice(piece);
                filled += piece.len();
                if filled == size {
                    filled = 0;
                    let entry = Entry(&buffer[..size]);
                    if entry.is_used() {
                        see(index, &entry);
                    }
                    index += 1;
                }
            }
        });
        scanned.map_err(GptError::Read)?;
        if crc.value() == self.checksum { Ok(()) } else { Err(GptError::Damaged(Damage::EntriesChecksum)) }
    }
}

/// An entry of the table. See: 5.3.3.
struct Entry<'a>(&'a [u8]);

impl Entry<'_> {
    fn is_used(&self) -> bool {
        self.0[..16] != [0; 16]
    }

    fn guid(&self) -> Guid {
        let mut guid = [0; 16];
        guid.copy_from_slice(&self.0[16..32]);
        Guid(guid)
    }

    fn first(&self) -> u64 {
        number64(self.0, 32)
    }

    fn last(&self) -> u64 {
        number64(self.0, 40)
    }

    fn is_named(&self, name: &str) -> bool {
        let letters = self.0[56..56 + 2 * NAME_LETTERS].chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        letters.take_while(|&letter| letter != 0).eq(name.encode_utf16())
    }
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().copied().map_or(0, u32::from_le_bytes)
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
