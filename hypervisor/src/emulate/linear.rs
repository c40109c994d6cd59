//! From a segment and an offset to the guest-physical pieces of an operand, and access to them.

use super::walk::{Access, AccessKind, Paging};
use super::{Bus, Fault, GENERAL_PROTECTION, RFLAGS_AC, RFLAGS_VM, STACK, is_64_bit, is_user};
use crate::cpu::Mode;
use crate::cpu::registers::{CR0_PE, Segment};
use crate::memory::{Gpa, PAGE_SIZE};

/// A segment register. The code segment is there for reads through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// An operand in memory: at most eight bytes on at most two pages, all of them allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    first: Gpa,
    first_len: u8,
    /// Start of the second page, when the operand crosses to it.
    second: Gpa,
    pub(super) size: u8,
}

/// How addresses are made, fixed during one instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct AddressSpace<'a> {
    mode: &'a Mode,
    paging: Paging,
    user: bool,
    smap_off: bool,
    /// Protected mode proper: segments have types.
    protected: bool,
    pub(super) long: bool,
}

impl<'a> AddressSpace<'a> {
    pub(super) fn new(mode: &'a Mode, rflags: u64) -> Self {
        Self {
            mode,
            paging: Paging::from(mode),
            user: is_user(mode, rflags),
            smap_off: rflags & RFLAGS_AC != 0,
            protected: mode.cr0 & CR0_PE != 0 && rflags & RFLAGS_VM == 0,
            long: is_64_bit(mode),
        }
    }

    /// Translates one linear address.
    pub(super) fn translate(&self, bus: &mut dyn Bus, linear: u64, kind: AccessKind) -> Result<Gpa, Fault> {
        let access = Access { kind, user: self.user, smap_off: self.smap_off };
        Ok(bus.translate(&self.paging, linear, access)?)
    }

    /// The linear address `distance` bytes after `linear`.
    pub(super) fn advance(&self, linear: u64, distance: u64) -> u64 {
        let next = linear.wrapping_add(distance);
        if self.long { next } else { next & 0xFFFF_FFFF }
    }

    /// Resolves an operand of `size` bytes (1 to 8). A write is checked as a whole before anything is written.
    pub(super) fn span(
        &self,
        bus: &mut dyn Bus,
        segment: SegmentName,
        offset: u64,
        size: u8,
        kind: AccessKind,
    ) -> Result<Span, Fault> {
        let linear = self.linear(segment, offset, size, kind)?;
        let rest_of_page = PAGE_SIZE - linear % PAGE_SIZE;
        let first_len = rest_of_page.min(u64::from(size)) as u8;
        let first = self.translate(bus, linear, kind)?;
        let second =
            if first_len < size { self.translate(bus, self.advance(linear, rest_of_page), kind)? } else { first };
        Ok(Span { first, first_len, second, size })
    }

    /// Segmentation. See: APM volume 2, 4.12 and 1.3.
    fn linear(&self, name: SegmentName, offset: u64, size: u8, kind: AccessKind) -> Result<u64, Fault> {
        let segment = self.segment(name);
        let fault = if name == SegmentName::Ss { STACK } else { GENERAL_PROTECTION };
        let last = u64::from(size) - 1;
        if self.long {
            let linear = self.base(name).wrapping_add(offset);
            let canonical = is_canonical(linear) && is_canonical(linear.wrapping_add(last));
            return if canonical { Ok(linear) } else { Err(fault) };
        }
        if self.protected && !permits(segment, kind) {
            return Err(GENERAL_PROTECTION);
        }
        if !in_limit(segment, offset, offset + last) {
            return Err(fault);
        }
        Ok(segment.base.wrapping_add(offset) & 0xFFFF_FFFF)
    }

    /// Where the segment begins.
    pub(super) fn base(&self, name: SegmentName) -> u64 {
        let ignored = self.long && !matches!(name, SegmentName::Fs | SegmentName::Gs);
        if ignored { 0 } else { self.segment(name).base }
    }

    fn segment(&self, name: SegmentName) -> &'a Segment {
        let segments = &self.mode.segments;
        match name {
            SegmentName::Es => &segments.es,
            SegmentName::Cs => &segments.cs,
            SegmentName::Ss => &segments.ss,
            SegmentName::Ds => &segments.ds,
            SegmentName::Fs => &segments.fs,
            SegmentName::Gs => &segments.gs,
        }
    }
}

/// Whether bits 47 to 63 are all equal.
pub(super) fn is_canonical(linear: u64) -> bool {
    let top = linear as i64 >> 47;
    top == 0 || top == -1
}

/// Attribute bits of the type: code; for data expand-down and writable, for code readable.
const CODE: u16 = 1 << 3;
const EXPAND_DOWN: u16 = 1 << 2;
const READ_OR_WRITE: u16 = 1 << 1;

/// Whether the type of a segment permits an access. A null selector leaves a segment that is not present.
fn permits(segment: &Segment, kind: AccessKind) -> bool {
    let code = segment.attributes & CODE != 0;
    let extra = segment.attributes & READ_OR_WRITE != 0;
    segment.attributes & Segment::PRESENT != 0
        && match kind {
            AccessKind::Read => !code || extra,
            AccessKind::Write => !code && extra,
            AccessKind::Fetch => code,
        }
}

fn in_limit(segment: &Segment, first: u64, last: u64) -> bool {
    let limit = u64::from(segment.limit);
    if segment.attributes & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let top = if segment.attributes & Segment::DEFAULT_BIG != 0 { 0xFFFF_FFFF } else { 0xFFFF };
        first > limit && last <= top
    } else {
        last <= limit
    }
}

impl Span {
    /// The value there, little-endian.
    pub(super) fn read(&self, bus: &mut dyn Bus) -> u64 {
        let low = read_piece(bus, self.first, self.first_len);
        if self.first_len == self.size {
            return low;
        }
        low | read_piece(bus, self.second, self.size - self.first_len) << (8 * self.first_len)
    }

    /// Stores the low bytes of `value`.
    pub(super) fn write(&self, bus: &mut dyn Bus, value: u64) {
        write_piece(bus, self.first, self.first_len, value);
        if self.first_len < self.size {
            write_piece(bus, self.second, self.size - self.first_len, value >> (8 * self.first_len));
        }
    }
}

/// The largest naturally aligned access that starts a run of `len` bytes at `gpa`.
fn aligned(gpa: u64, len: u8) -> u8 {
    let mut size = 8;
    while size > len || !gpa.is_multiple_of(u64::from(size)) {
        size /= 2;
    }
    size
}

const fn low_bytes(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

/// Reads 1 to 8 bytes of one page.
fn read_piece(bus: &mut dyn Bus, gpa: Gpa, len: u8) -> u64 {
    if let Ok(bytes) = bus.memory().slice(gpa, u64::from(len)) {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        return u64::from_le_bytes(value);
    }
    let (mut value, mut done) = (0, 0);
    while done < len {
        let at = gpa.0 + u64::from(done);
        let size = aligned(at, len - done);
        value |= (bus.mmio_read(Gpa(at), size) & low_bytes(size)) << (8 * done);
        done += size;
    }
    value
}

/// Writes 1 to 8 bytes of one page.
fn write_piece(bus: &mut dyn Bus, gpa: Gpa, len: u8, value: u64) {
    if bus.memory().write(gpa, &value.to_le_bytes()[..usize::from(len)]).is_ok() {
        return;
    }
    let mut done = 0;
    while done < len {
        let at = gpa.0 + u64::from(done);
        let size = aligned(at, len - done);
        bus.mmio_write(Gpa(at), size, value >> (8 * done) & low_bytes(size));
        done += size;
    }
}
