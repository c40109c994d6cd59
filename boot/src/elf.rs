//! Reads kernels in ELF64: those with a PVH entry point, such as our own images, and Linux's `vmlinux`.
//!
//! See: System V ABI, "ELF-64 Object File Format"; the note is described in Xen's `public/elfnote.h`.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::pvh::NOTE_PHYS32_ENTRY;

/// The ELF header.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    phoff: u64,
    shoff: u64,
    flags: u32,
    ehsize: u16,
    phentsize: u16,
    phnum: u16,
    shentsize: u16,
    shnum: u16,
    shstrndx: u16,
}
const _: () = assert!(size_of::<Header>() == 64);

/// A program header.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}
const _: () = assert!(size_of::<ProgramHeader>() == 56);

/// e_ident: magic number, 64-bit, little-endian, version 1.
const IDENT: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// The file is no kernel that can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageError {
    /// It does not begin like an ELF file.
    NotElf,
    /// It is ELF, but not a 64-bit x86 program.
    NotX86_64,
    /// The file ends before the part named.
    Truncated(&'static str),
    /// No PVH entry point is noted (`XEN_ELFNOTE_PHYS32_ENTRY`), and it is not Linux.
    NoPvhNote,
    /// The segment at this physical address has more bytes in the file than in memory, or wraps around the address space.
    BadSegment(u64),
    /// No segment holds the entry point.
    EntryOutside(u64),
    /// The segment reaches to this physical address, but memory ends before.
    OutsideMemory(u64),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => write!(f, "the image is not an ELF file"),
            Self::NotX86_64 => write!(f, "the image is not a 64-bit x86 program"),
            Self::Truncated(what) => write!(f, "the image is truncated: its {what} lies behind the end of the file"),
            Self::NoPvhNote => write!(f, "the image has no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY)"),
            Self::BadSegment(paddr) => write!(f, "the image's segment at {paddr:#x} is malformed"),
            Self::EntryOutside(entry) => write!(f, "the image's entry point {entry:#x} is in no segment"),
            Self::OutsideMemory(end) => write!(f, "the image is too large: it reaches to {end:#x} in memory"),
        }
    }
}

impl core::error::Error for ImageError {}

/// A part of an image to be placed in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Its first bytes; never more than `mem_len`.
    pub file_bytes: &'a [u8],
    /// Its length in memory, not zero; what the file does not give is zero.
    pub mem_len: u64,
}

impl Segment<'_> {
    /// Address of the first byte behind the segment.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.gpa + self.mem_len
    }
}

/// How an image is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// In 32-bit protected mode; see [`pvh`](crate::pvh).
    Pvh,
    /// In 64-bit mode by the Linux/x86 boot protocol; see [`linux`](crate::linux).
    Linux,
}

/// A checked image.
#[derive(Debug, Clone, Copy)]
pub struct KernelImage<'a> {
    file: &'a [u8],
    header: Header,
    protocol: Protocol,
    entry: u32,
}

impl<'a> KernelImage<'a> {
    /// Checks an image file: headers, segments and the notes that say how and where it is entered. A Linux kernel, known by
    /// its notes (those of Linux 5.0 and later), is entered as Linux even if it knows PVH: only so it gets a seed.
    ///
    /// # Errors
    /// When the file cannot be started by either protocol.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        if !file.starts_with(&IDENT[..4]) {
            return Err(ImageError::NotElf);
        }
        let (header, _) = Header::read_from_prefix(file).map_err(|_| ImageError::Truncated("header"))?;
        let executable = header.kind == ET_EXEC || header.kind == ET_DYN;
        let known_layout = usize::from(header.phentsize) == size_of::<ProgramHeader>() || header.phnum == 0;
        if !header.ident.starts_with(&IDENT) || header.machine != EM_X86_64 || !executable || !known_layout {
            return Err(ImageError::NotX86_64);
        }
        let mut image = Self { file, header, protocol: Protocol::Pvh, entry: 0 };
        let mut entry = None;
        for number in 0..header.phnum {
            let program = image.program_header(number).ok_or(ImageError::Truncated("program header table"))?;
            match program.kind {
                PT_LOAD => {
                    image.segment(&program)?;
                }
                PT_NOTE => {
                    let notes = image.file_bytes(&program).ok_or(ImageError::Truncated("note"))?;
                    if find_note(notes, program.align, |note| (note.name == b"Linux\0").then_some(())).is_some() {
                        image.protocol = Protocol::Linux;
                    }
                    entry = entry.or_else(|| find_note(notes, program.align, pvh_entry));
                }
                _ => {}
            }
        }
        let entry = match image.protocol {
            Protocol::Linux => header.entry,
            Protocol::Pvh => entry.ok_or(ImageError::NoPvhNote)?,
        };
        if !image.segments().any(|segment| (segment.gpa..segment.end()).contains(&entry)) {
            return Err(ImageError::EntryOutside(entry));
        }
        image.entry = u32::try_from(entry).map_err(|_| ImageError::EntryOutside(entry))?;
        Ok(image)
    }

    /// How it is entered.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Physical address at which execution begins.
    #[must_use]
    pub fn entry(&self) -> u32 {
        self.entry
    }

    /// The parts to be placed in memory, in the file's order. Where they overlap, later ones win.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> + '_ {
        (0..self.header.phnum)
            .filter_map(|number| self.program_header(number))
            .filter(|program| program.kind == PT_LOAD)
            .filter_map(|program| self.segment(&program).ok().flatten())
    }

    /// Lowest and first free guest-physical address: all segments lie between.
    #[must_use]
    pub fn bounds(&self) -> (u64, u64) {
        let (starts, ends) = (self.segments().map(|s| s.gpa), self.segments().map(|s| s.end()));
        (starts.min().unwrap_or(0), ends.max().unwrap_or(0))
    }

    /// Checks that all segments lie in memory of `len` bytes from address 0 on.
    ///
    /// # Errors
    /// When one reaches further.
    pub fn check_fits(&self, len: u64) -> Result<(), ImageError> {
        let (_, end) = self.bounds();
        if end > len { Err(ImageError::OutsideMemory(end)) } else { Ok(()) }
    }

    fn program_header(&self, number: u16) -> Option<ProgramHeader> {
        let start = usize::try_from(self.header.phoff).ok()?;
        let start = start.checked_add(usize::from(number) * size_of::<ProgramHeader>())?;
        ProgramHeader::read_from_prefix(self.file.get(start..)?).ok().map(|(program, _)| program)
    }

    /// The segment's bytes. One that has none, such as a `.bss` of its own, may be said to lie behind the end of the file.
    fn file_bytes(&self, program: &ProgramHeader) -> Option<&'a [u8]> {
        if program.filesz == 0 {
            return Some(&[]);
        }
        let start = usize::try_from(program.offset).ok()?;
        let end = start.checked_add(usize::try_from(program.filesz).ok()?)?;
        self.file.get(start..end)
    }

    /// The segment, or `None` when it is empty.
    fn segment(&self, program: &ProgramHeader) -> Result<Option<Segment<'a>>, ImageError> {
        if program.filesz > program.memsz || program.paddr.checked_add(program.memsz).is_none() {
            return Err(ImageError::BadSegment(program.paddr));
        }
        if program.memsz == 0 {
            return Ok(None);
        }
        let file_bytes = self.file_bytes(program).ok_or(ImageError::Truncated("segment"))?;
        Ok(Some(Segment { gpa: program.paddr, file_bytes, mem_len: program.memsz }))
    }
}

/// One ELF note.
struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    description: &'a [u8],
}

/// What `wanted` makes of the first note of its liking in a segment with this alignment.
///
/// Notes are padded to 4 bytes, or to 8 in a segment that is aligned to 8. But linkers put sections of both kinds into one
/// segment, as `.note.gnu.property` and the kernel's own notes, and align it to 8. So when the alignment finds nothing the
/// other padding is tried.
fn find_note<T>(notes: &[u8], align: u64, wanted: impl Fn(Note<'_>) -> Option<T>) -> Option<T> {
    let paddings = if align == 8 { [8, 4] } else { [4, 8] };
    paddings.into_iter().find_map(|padding| Notes { bytes: notes, at: 0, padding }.find_map(&wanted))
}

/// The notes of a segment; ends at the first that is malformed.
struct Notes<'a> {
    bytes: &'a [u8],
    at: usize,
    padding: usize,
}

impl<'a> Notes<'a> {
    /// Takes `len` bytes and the padding behind them. The last padding may be missing.
    fn take(&mut self, len: u32) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len as usize)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end.next_multiple_of(self.padding).min(self.bytes.len());
        Some(bytes)
    }
}

impl<'a> Iterator for Notes<'a> {
    type Item = Note<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let ([name_len, description_len, kind], _) = <[u32; 3]>::read_from_prefix(&self.bytes[self.at..]).ok()?;
            if name_len == 0 {
                // Between two sections: the second is aligned to more than the first ends at. No note is without a name.
                self.at += 4;
                continue;
            }
            // The name follows at once: it is the description and the next note that are aligned.
            self.at += size_of::<[u32; 3]>();
            return Some(Note { name: self.take(name_len)?, description: self.take(description_len)?, kind });
        }
    }
}

/// The entry point, when this is the PVH note; 4 bytes or (as Linux has it) 8.
fn pvh_entry(note: Note<'_>) -> Option<u64> {
    if note.name != b"Xen\0" || note.kind != NOTE_PHYS32_ENTRY {
        return None;
    }
    match note.description.len() {
        4 => u32::read_from_bytes(note.description).ok().map(u64::from),
        8 => u64::read_from_bytes(note.description).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
