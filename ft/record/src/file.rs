//! The file of a recording.
//!
//! All integers are little-endian. A head of 16 bytes: magic, version of the format, version of the protocol whose messages
//! are in it, checksum of these. Then blocks, each a head of 16 bytes (length packed, length unpacked, checksum of the
//! block's number, these lengths and what follows) and records packed by LZ4. A record is its kind, its length (4 bytes) and
//! its content; it never crosses a block. A file that was closed in order ends with the record [`Record::End`].

use std::fmt;
use std::io::{self, Read, Write};

use pollux_ft::pairing::PROTOCOL;
use pollux_ft::seal::MAX_PAYLOAD;
use xxhash_rust::xxh64::xxh64;

/// How a recording begins.
pub const MAGIC: [u8; 4] = *b"PLXr";
/// Version of the format.
pub const VERSION: u16 = 1;
const HEAD: usize = 16;
/// A block is packed when it has so many bytes.
const BLOCK: usize = 256 << 10;
/// Most bytes of a block, unpacked: one that is about to be full, and the longest record.
const MAX_BLOCK: usize = BLOCK + MAX_CONTENT + RECORD_HEAD;
/// Most bytes of a record's content.
const MAX_CONTENT: usize = MAX_PAYLOAD + 64;
/// Kind and length.
const RECORD_HEAD: usize = 5;
/// Most bytes of a file in one record.
pub const MAX_PIECE: usize = 64 << 10;

/// One thing in a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// How the machines were made; whoever writes the file decides what it looks like.
    Setup(String),
    /// The next piece, of [`MAX_PIECE`] bytes at most, of the file with this name.
    File(String, Vec<u8>),
    /// A machine begins a session.
    Session {
        /// The name of the machine that recorded it.
        machine: String,
    },
    /// Microseconds since the recording began: what follows came then.
    Time(u64),
    /// A message of the session: its type and its content.
    Message(u8, Vec<u8>),
    /// Nothing more came of the session, and why.
    SessionEnd(String),
    /// The recording was ended in order.
    End,
}

const SETUP: u8 = 0x80;
const FILE: u8 = 0x81;
const SESSION: u8 = 0x82;
const TIME: u8 = 0x83;
const SESSION_END: u8 = 0x84;
const END: u8 = 0x85;

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Setup(_) => SETUP,
            Self::File(..) => FILE,
            Self::Session { .. } => SESSION,
            Self::Time(_) => TIME,
            Self::Message(kind, _) => *kind,
            Self::SessionEnd(_) => SESSION_END,
            Self::End => END,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Setup(text) | Self::SessionEnd(text) | Self::Session { machine: text } => {
                out.extend_from_slice(text.as_bytes());
            }
            Self::File(name, piece) => {
                out.push(name.len() as u8);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(piece);
            }
            Self::Time(us) => out.extend_from_slice(&us.to_le_bytes()),
            Self::Message(_, payload) => out.extend_from_slice(payload),
            Self::End => {}
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, Fault> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Fault::Damaged("text is not UTF-8"));
        Ok(match kind {
            SETUP => Self::Setup(text(content)?),
            FILE => {
                let (&len, rest) = content.split_first().ok_or(Fault::Damaged("a file without a name"))?;
                let (name, piece) = rest.split_at_checked(len.into()).ok_or(Fault::Damaged("a file without a name"))?;
                Self::File(text(name)?, piece.to_vec())
            }
            SESSION => Self::Session { machine: text(content)? },
            TIME => Self::Time(u64::from_le_bytes(content.try_into().map_err(|_| Fault::Damaged("a time"))?)),
            SESSION_END => Self::SessionEnd(text(content)?),
            END if content.is_empty() => Self::End,
            kind if kind < SETUP => Self::Message(kind, content.to_vec()),
            _ => return Err(Fault::Damaged("a record of unknown kind")),
        })
    }
}

/// Why a recording cannot be read on.
#[derive(Debug)]
pub enum Fault {
    /// It is no recording.
    NoRecording,
    /// The format's version is this one and not [`VERSION`].
    Version(u16),
    /// The protocol's version is this one and not ours.
    Protocol(u16),
    /// It ends in the middle: whoever wrote it was interrupted. What came before is whole.
    Truncated,
    /// Something in it is not what was written; with what.
    Damaged(&'static str),
    /// It cannot be read.
    Io(io::Error),
}

/// A fault, and where in the file.
#[derive(Debug)]
pub struct ReadError {
    /// Bytes from the file's start.
    pub offset: u64,
    /// What is wrong there.
    pub fault: Fault,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Fault::NoRecording => f.write_str("this is no recording of Pollux"),
            Fault::Version(theirs) => {
                write!(f, "a recording of version {theirs}, and this program reads version {VERSION}")
            }
            Fault::Protocol(theirs) => {
                write!(f, "a recording of protocol {theirs}, and this program speaks protocol {PROTOCOL}")
            }
            Fault::Truncated => write!(f, "the recording breaks off at byte {}", self.offset),
            Fault::Damaged(what) => write!(f, "the recording is damaged at byte {}: {what}", self.offset),
            Fault::Io(error) => write!(f, "the recording cannot be read at byte {}: {error}", self.offset),
        }
    }
}

impl std::error::Error for ReadError {}

fn block_check(number: u64, lengths: &[u8; 8], packed: &[u8]) -> u64 {
    xxh64(packed, xxh64(lengths, number))
}

/// Writes a recording.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    block: Vec<u8>,
    blocks: u64,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a recording.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(mut to: W) -> io::Result<Self> {
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&PROTOCOL.to_le_bytes());
        head.extend_from_slice(&xxh64(&head, 0).to_le_bytes());
        to.write_all(&head)?;
        Ok(Self { to, block: Vec::new(), blocks: 0, written: HEAD as u64 })
    }

    /// Writes a record. It is in the file after [`flush`](Self::flush).
    ///
    /// # Errors
    /// When it cannot be written, or is too long.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let start = self.block.len();
        self.block.extend_from_slice(&[record.kind(), 0, 0, 0, 0]);
        record.encode(&mut self.block);
        let len = self.block.len() - start - RECORD_HEAD;
        if len > MAX_CONTENT || matches!(record, Record::File(name, _) if name.len() > 255) {
            self.block.truncate(start);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a record of {len} bytes")));
        }
        self.block[start + 1..start + RECORD_HEAD].copy_from_slice(&(len as u32).to_le_bytes());
        if self.block.len() >= BLOCK { self.close_block() } else { Ok(()) }
    }

    /// Writes a file, piece by piece.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(MAX_PIECE).try_for_each(|piece| self.write(&Record::File(name.to_owned(), piece.to_vec())))
    }

    fn close_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let packed = lz4_flex::block::compress(&self.block);
        let mut lengths = [0; 8];
        lengths[..4].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        lengths[4..].copy_from_slice(&(self.block.len() as u32).to_le_bytes());
        self.to.write_all(&lengths)?;
        self.to.write_all(&block_check(self.blocks, &lengths, &packed).to_le_bytes())?;
        self.to.write_all(&packed)?;
        self.blocks += 1;
        self.written += (HEAD + packed.len()) as u64;
        self.block.clear();
        Ok(())
    }

    /// Puts into the file what was written so far.
    ///
    /// # Errors
    /// When that fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.close_block()?;
        self.to.flush()
    }

    /// Ends the recording; its size in bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<u64> {
        self.write(&Record::End)?;
        self.flush()?;
        Ok(self.written)
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }
}

/// Reads a recording.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    block: Vec<u8>,
    /// What of the block was read.
    used: usize,
    blocks: u64,
    /// Where the block begins, and where the next one does.
    at: u64,
    next_at: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// When this is no recording, or one that we cannot read.
    pub fn new(mut from: R) -> Result<Self, ReadError> {
        let fail = |fault| ReadError { offset: 0, fault };
        let mut head = [0; HEAD];
        let len = read_up_to(&mut from, &mut head).map_err(|error| fail(Fault::Io(error)))?;
        if len < MAGIC.len() || head[..MAGIC.len()] != MAGIC {
            return Err(fail(Fault::NoRecording));
        }
        if len < HEAD {
            return Err(fail(Fault::Truncated));
        }
        if xxh64(&head[..8], 0).to_le_bytes() != head[8..] {
            return Err(fail(Fault::Damaged("its head")));
        }
        let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        match (number(4), number(6)) {
            (VERSION, PROTOCOL) => {}
            (VERSION, other) => return Err(fail(Fault::Protocol(other))),
            (other, _) => return Err(fail(Fault::Version(other))),
        }
        Ok(Self { from, block: Vec::new(), used: 0, blocks: 0, at: HEAD as u64, next_at: HEAD as u64, ended: false })
    }

    /// The next record; none behind the end of a recording that was ended in order.
    ///
    /// # Errors
    /// When the file breaks off, or is damaged, or cannot be read. What was read before is as it was written.
    pub fn next_record(&mut self) -> Result<Option<Record>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        let record = self.read().map_err(|fault| ReadError { offset: self.at, fault })?;
        self.ended = record == Record::End;
        Ok((!self.ended).then_some(record))
    }

    /// Where the block begins that the last record was in, in bytes from the file's start.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at
    }

    fn read(&mut self) -> Result<Record, Fault> {
        if self.used == self.block.len() {
            self.read_block()?;
        }
        let rest = &self.block[self.used..];
        let (&[kind, a, b, c, d], content) = rest.split_first_chunk().ok_or(Fault::Damaged("a record is cut off"))?;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let content = content.get(..len).ok_or(Fault::Damaged("a record is cut off"))?;
        let record = Record::decode(kind, content)?;
        self.used += RECORD_HEAD + len;
        Ok(record)
    }

    fn read_block(&mut self) -> Result<(), Fault> {
        self.at = self.next_at;
        let mut head = [0; HEAD];
        if read_up_to(&mut self.from, &mut head).map_err(Fault::Io)? < HEAD {
            return Err(Fault::Truncated);
        }
        let (lengths, check) = head.split_at(8);
        let lengths: [u8; 8] = lengths.try_into().expect("half of it");
        let length = |at: usize| u32::from_le_bytes(*lengths[at..].first_chunk().expect("it has two")) as usize;
        let (packed_len, len) = (length(0), length(4));
        if len == 0 || len > MAX_BLOCK || packed_len > lz4_flex::block::get_maximum_output_size(len) {
            return Err(Fault::Damaged("a block of an impossible length"));
        }
        let mut packed = vec![0; packed_len];
        if read_up_to(&mut self.from, &mut packed).map_err(Fault::Io)? < packed_len {
            return Err(Fault::Truncated);
        }
        if block_check(self.blocks, &lengths, &packed).to_le_bytes() != check {
            return Err(Fault::Damaged("a block's checksum"));
        }
        self.block.resize(len, 0);
        let unpacked = lz4_flex::block::decompress_into(&packed, &mut self.block);
        self.used = 0;
        if unpacked.ok() != Some(len) {
            self.block.clear();
            return Err(Fault::Damaged("a block cannot be unpacked"));
        }
        self.blocks += 1;
        self.next_at = self.at + (HEAD + packed_len) as u64;
        Ok(())
    }
}

/// Reads until the buffer is full or nothing more comes; how many bytes.
fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match from.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests;
