//! Log entries: everything that enters the guest, and the marks that the protocol needs.

use crate::disk;
use crate::types::{Position, Seq};
use crate::wire::{DecodeError, Reader, put_blob, put_varint};
use alloc::vec::Vec;

/// Largest data of one entry in bytes: a jumbo frame and some room.
pub const MAX_DATA: usize = 16 * 1024;

/// Most bytes an encoded entry takes beyond its data: kind, position and the numbers of the longest kind.
pub const MAX_OVERHEAD: usize = 1 + 10 + 8 + 5 + 8;

/// Events that concern the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Control {
    /// The guest switched itself off. Both twins end; nobody takes over.
    PowerOff,
    /// The guest is reset; both twins reset it at this position.
    Reset,
    /// The primary stopped its guest here: the backup goes live from this position on, and the log ends.
    SwitchOver,
}

/// An entry with its data: borrowed where the primary appends it ([`EntryRef`]), owned where the backup holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<D = Vec<u8>> {
    /// Guest time is steered.
    Clock {
        /// Guest time at the entry's position, in nanoseconds since the guest was created.
        base_ns: u64,
        /// Nanoseconds per tick from here on, 32.32 fixed point.
        rate: u64,
    },
    /// A frame for the guest, at most [`MAX_DATA`] bytes.
    PacketIn(D),
    /// Bytes for the guest's console, at most [`MAX_DATA`].
    ConsoleIn(D),
    /// Nothing will be logged before this position.
    Horizon,
    /// Frames wait at the gate for the ack of this entry.
    Output,
    /// What the guest's state must be at this position.
    Digest {
        /// Hash of vCPU and platform.
        machine: u64,
        /// Which slice of memory is hashed.
        slice: u32,
        /// Hash of that slice.
        memory: u64,
    },
    /// Power-off, reset, change of roles.
    Control(Control),
    /// Requests to the guest's disk ended, as [`disk::encode`] says it.
    DiskDone(D),
}

/// An entry that borrows its data.
pub type EntryRef<'a> = Entry<&'a [u8]>;

/// An entry in its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number; without gaps.
    pub seq: Seq,
    /// Where the guest stands when it is applied; never decreases along the log.
    pub position: Position,
    /// What is applied.
    pub entry: Entry,
}

/// The kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Entry::Clock`]
    Clock,
    /// [`Entry::PacketIn`]
    Packet,
    /// [`Entry::ConsoleIn`]
    Console,
    /// [`Entry::Horizon`]
    Horizon,
    /// [`Entry::Output`]
    Output,
    /// [`Entry::Digest`]
    Digest,
    /// [`Entry::Control`]
    Control,
    /// [`Entry::DiskDone`]
    Disk,
}

impl Kind {
    /// All kinds, in the order of their numbers on the wire.
    pub const ALL: [Self; 8] = [
        Self::Clock,
        Self::Packet,
        Self::Console,
        Self::Horizon,
        Self::Output,
        Self::Digest,
        Self::Control,
        Self::Disk,
    ];

    /// A short lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Packet => "packet",
            Self::Console => "console",
            Self::Horizon => "horizon",
            Self::Output => "output",
            Self::Digest => "digest",
            Self::Control => "control",
            Self::Disk => "disk",
        }
    }

    /// Its number on the wire and its index in [`Kind::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl<'a> EntryRef<'a> {
    /// The kind of this entry.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Clock { .. } => Kind::Clock,
            Self::PacketIn(_) => Kind::Packet,
            Self::ConsoleIn(_) => Kind::Console,
            Self::Horizon => Kind::Horizon,
            Self::Output => Kind::Output,
            Self::Digest { .. } => Kind::Digest,
            Self::Control(_) => Kind::Control,
            Self::DiskDone(_) => Kind::Disk,
        }
    }

    /// Bytes of data that the entry carries beyond its fixed fields.
    #[must_use]
    pub const fn data_len(&self) -> usize {
        match self {
            Self::PacketIn(data) | Self::ConsoleIn(data) | Self::DiskDone(data) => data.len(),
            _ => 0,
        }
    }

    /// Appends kind, distance to the previous entry's position, and data to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, distance: u64) {
        out.push(self.kind().index() as u8);
        put_varint(out, distance);
        match *self {
            Self::Clock { base_ns, rate } => {
                put_varint(out, base_ns);
                put_varint(out, rate);
            }
            Self::PacketIn(data) | Self::ConsoleIn(data) | Self::DiskDone(data) => put_blob(out, data),
            Self::Horizon | Self::Output => {}
            Self::Digest { machine, slice, memory } => {
                out.extend_from_slice(&machine.to_le_bytes());
                put_varint(out, u64::from(slice));
                out.extend_from_slice(&memory.to_le_bytes());
            }
            Self::Control(control) => out.push(control as u8),
        }
    }

    /// Reads what [`Self::encode`] wrote: the distance and the entry.
    pub(crate) fn decode(reader: &mut Reader<'a>) -> Result<(u64, Self), DecodeError> {
        let code = reader.u8()?;
        let distance = reader.varint()?;
        let kind = Kind::ALL.get(usize::from(code)).ok_or(DecodeError::UnknownKind(code))?;
        let entry = match kind {
            Kind::Clock => Self::Clock { base_ns: reader.varint()?, rate: reader.varint()? },
            Kind::Packet => Self::PacketIn(reader.blob(MAX_DATA)?),
            Kind::Console => Self::ConsoleIn(reader.blob(MAX_DATA)?),
            Kind::Horizon => Self::Horizon,
            Kind::Output => Self::Output,
            Kind::Digest => {
                let machine = reader.u64()?;
                let slice = u32::try_from(reader.varint()?).map_err(|_| DecodeError::BadValue("slice"))?;
                Self::Digest { machine, slice, memory: reader.u64()? }
            }
            Kind::Control => Self::Control(match reader.u8()? {
                0 => Control::PowerOff,
                1 => Control::Reset,
                2 => Control::SwitchOver,
                other => return Err(DecodeError::UnknownKind(other)),
            }),
            Kind::Disk => {
                let data = reader.blob(MAX_DATA)?;
                disk::decode(data)?;
                Self::DiskDone(data)
            }
        };
        Ok((distance, entry))
    }

    /// The same entry with data of its own.
    #[must_use]
    pub fn to_owned(&self) -> Entry {
        self.map(|data| data.to_vec())
    }
}

impl Entry {
    /// The same entry with borrowed data.
    #[must_use]
    pub fn borrow(&self) -> EntryRef<'_> {
        self.map(Vec::as_slice)
    }
}

impl<D> Entry<D> {
    fn map<'a, E>(&'a self, data: impl FnOnce(&'a D) -> E) -> Entry<E> {
        match *self {
            Self::Clock { base_ns, rate } => Entry::Clock { base_ns, rate },
            Self::PacketIn(ref bytes) => Entry::PacketIn(data(bytes)),
            Self::ConsoleIn(ref bytes) => Entry::ConsoleIn(data(bytes)),
            Self::Horizon => Entry::Horizon,
            Self::Output => Entry::Output,
            Self::Digest { machine, slice, memory } => Entry::Digest { machine, slice, memory },
            Self::Control(control) => Entry::Control(control),
            Self::DiskDone(ref bytes) => Entry::DiskDone(data(bytes)),
        }
    }
}
