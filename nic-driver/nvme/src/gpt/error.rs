//! Why there is no such partition.

use core::fmt;

/// Why there is no such partition.
#[derive(Debug, PartialEq, Eq)]
pub enum GptError<E> {
    /// The drive cannot be read.
    Read(E),
    /// It has no such table at all.
    NoTable,
    /// Neither copy of it is whole; what the first one lacks.
    Damaged(Damage),
    /// No partition is called so.
    NotFound,
    /// Several are.
    Ambiguous,
    /// It lies where the table does not allow one, or overlaps with another.
    Misplaced,
}

impl<E: fmt::Display> fmt::Display for GptError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "the partition table cannot be read: {error}"),
            Self::NoTable => f.write_str("the drive has no partition table (GPT)"),
            Self::Damaged(damage) => write!(f, "both copies of the partition table are damaged: {damage}"),
            Self::NotFound => f.write_str("there is no such partition"),
            Self::Ambiguous => f.write_str("several partitions are called so: name it by its GUID"),
            Self::Misplaced => f.write_str("the partition overlaps with another one, or with the table"),
        }
    }
}

/// What a copy of a table lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// There is none.
    Signature,
    /// The header's checksum is wrong.
    HeaderChecksum,
    /// The header says what cannot be.
    Header,
    /// The entries' checksum is wrong.
    EntriesChecksum,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => "there is no header",
            Self::HeaderChecksum => "the header's checksum is wrong",
            Self::Header => "the header says what cannot be",
            Self::EntriesChecksum => "the entries' checksum is wrong",
        })
    }
}
