//! The processor's extended state: x87, SSE, AVX and AVX-512 registers, which XSAVE writes to memory and XRSTOR loads.
//!
//! What a CPU writes depends on more than the registers: it leaves out what it takes for unused, in a way of its own. So
//! nothing of its area is sent or hashed as it is, but the registers, always all of them, in the one order of
//! [`ExtendedState`]. The layout of the area, which differs between vendors, stays on the machine.
//! See: SDM volume 1, chapter 13; APM volume 2, 11.5. What of it a guest could see: `docs/determinism.md`.

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

use core::fmt;

use crate::state::{State, StateError, Visitor};

/// XCR0: x87 registers, which are always enabled.
pub const X87: u64 = 1 << 0;
/// XCR0: XMM registers and MXCSR.
pub const SSE: u64 = 1 << 1;
/// XCR0: upper halves of YMM registers.
pub const AVX: u64 = 1 << 2;
/// XCR0: opmask registers, upper halves of ZMM0 to 15, all of ZMM16 to 31.
pub const AVX512: u64 = 1 << 5 | 1 << 6 | 1 << 7;
/// What a guest may have. Left out: bound registers, protection keys, tiles, and all that IA32_XSS enables.
pub const ALLOWED: u64 = X87 | SSE | AVX | AVX512;

/// Bytes of an area: what FXSAVE writes, the header, and the components that are allowed, wherever a CPU has them.
pub const AREA_BYTES: usize = 2752;
/// Bytes of x87 and SSE state at its beginning; what follows up to the header is reserved or software's.
const LEGACY_BYTES: usize = 416;
/// The header: XSTATE_BV, XCOMP_BV, reserved bytes. See: SDM volume 1, 13.4.2.
const HEADER: usize = 512;
const HEADER_BYTES: usize = 64;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
/// The x87 registers: ten bytes each, six reserved ones behind.
const ST: usize = 32;
const XMM: usize = 160;
const FCW_INITIAL: u16 = 0x037F;
const MXCSR_INITIAL: u32 = 0x1F80;
/// Bits of MXCSR where FXSAVE gives no mask. See: SDM volume 1, 11.6.6.
const MXCSR_DEFAULT_MASK: u32 = 0xFFBF;

/// The components behind the header: number in XCR0, bytes. All are zero at first.
const COMPONENTS: [(u32, usize); 4] = [(2, 256), (5, 64), (6, 512), (7, 1024)];
const COMPONENT_BYTES: usize = 256 + 64 + 512 + 1024;
const _: () = assert!(AREA_BYTES.is_multiple_of(64) && AREA_BYTES >= HEADER + HEADER_BYTES + COMPONENT_BYTES);

/// The registers of a CPU: what it has, and access to them.
pub trait ExtendedRegisters {
    /// What of it the guest may have.
    fn layout(&self) -> Layout;

    /// All of it.
    fn save(&self) -> ExtendedState;

    /// Replaces all of it, and with it what the CPU remembers beside the registers, such as which of them it takes for
    /// unused and, where no instruction saves them, the last x87 instruction's addresses. Registers that are not among the
    /// state's components are as after a reset.
    ///
    /// # Panics
    /// If the CPU [cannot load](ExtendedState::check_loading) it.
    fn load(&mut self, state: &ExtendedState);

    /// XCR0.
    fn xcr0(&self) -> u64;

    /// Replaces XCR0.
    ///
    /// # Panics
    /// If the CPU does not [allow](Layout::allows) the value.
    fn set_xcr0(&mut self, value: u64);
}

/// An area as XSAVE64, or FXSAVE64 at its beginning, writes it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Area(pub [u8; AREA_BYTES]);

const _: () = assert!(size_of::<Area>() == AREA_BYTES);

impl Area {
    /// An area of zeros.
    pub const EMPTY: Self = Self([0; AREA_BYTES]);

    fn header(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[HEADER..HEADER + 8]);
        u64::from_le_bytes(bytes)
    }
}

/// Which components a CPU has, and where XSAVE puts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    components: u64,
    /// Bits of MXCSR that may be set.
    mxcsr_mask: u32,
    /// Where those of [`COMPONENTS`] begin.
    offsets: [usize; COMPONENTS.len()],
    xsave: bool,
}

impl Layout {
    /// A CPU without XSAVE: x87 and SSE by FXSAVE.
    pub const LEGACY: Self =
        Self { components: X87 | SSE, mxcsr_mask: MXCSR_DEFAULT_MASK, offsets: [0; COMPONENTS.len()], xsave: false };

    /// What is allowed of what CPUID says.
    pub fn find(cpuid: &dyn Fn(u32, u32) -> [u32; 4]) -> Self {
        let [last, ..] = cpuid(0, 0);
        let [_, _, features, _] = cpuid(1, 0);
        if last < 0xD || features & 1 << 26 == 0 {
            return Self::LEGACY;
        }
        let [low, _, _, high] = cpuid(0xD, 0);
        let claimed = (u64::from(high) << 32 | u64::from(low)) & ALLOWED;
        if claimed & (X87 | SSE) != X87 | SSE {
            return Self::LEGACY;
        }
        let mut layout = Self { components: X87 | SSE, xsave: true, ..Self::LEGACY };
        for (index, (number, bytes)) in COMPONENTS.into_iter().enumerate() {
            let [size, offset, flags, _] = cpuid(0xD, number);
            let (size, offset) = (size as usize, offset as usize);
            let fits =
                offset >= HEADER + HEADER_BYTES && offset.checked_add(bytes).is_some_and(|end| end <= AREA_BYTES);
            // Bit 0 of the flags: it belongs to IA32_XSS.
            if claimed & 1 << number != 0 && size == bytes && fits && flags & 1 == 0 {
                layout.components |= 1 << number;
                layout.offsets[index] = offset;
            }
        }
        let [_, extended, _, _] = if layout.components & AVX512 == AVX512 { cpuid(7, 0) } else { [0; 4] };
        if features & 1 << 28 == 0 || layout.components & AVX == 0 {
            layout.within(X87 | SSE)
        } else if extended & 1 << 16 == 0 {
            layout.within(X87 | SSE | AVX)
        } else {
            layout
        }
    }

    /// The same without the components that `allowed` does not have. x87 and SSE always stay; without SSE in `allowed` there
    /// is nothing else, and no XSAVE.
    #[must_use]
    pub const fn within(self, allowed: u64) -> Self {
        let xsave = self.xsave && allowed & SSE != 0;
        let components = if xsave { self.components & (allowed | X87) } else { X87 | SSE };
        Self { components, xsave, ..self }
    }

    /// The same for a CPU whose FXSAVE gives `mask` as the bits of MXCSR, 0 for those that every CPU has.
    #[must_use]
    pub const fn with_mxcsr_mask(self, mask: u32) -> Self {
        Self { mxcsr_mask: if mask == 0 { MXCSR_DEFAULT_MASK } else { mask }, ..self }
    }

    /// Bits of XCR0 that the guest may set.
    #[must_use]
    pub const fn components(&self) -> u64 {
        self.components
    }

    /// Whether there is XSAVE.
    #[must_use]
    pub const fn has_xsave(&self) -> bool {
        self.xsave
    }

    /// Whether XSETBV takes this value for XCR0. See: SDM volume 1, 13.3.
    #[must_use]
    pub fn allows(&self, xcr0: u64) -> bool {
        let has = |bits| xcr0 & bits == bits;
        has(X87)
            && xcr0 & !self.components == 0
            && (xcr0 & AVX == 0 || has(SSE))
            && (xcr0 & AVX512 == 0 || has(AVX512 | AVX | SSE))
    }

    /// Bytes that XSAVE needs for the components of `xcr0`. See: SDM volume 1, 13.2.
    #[must_use]
    pub fn bytes(&self, xcr0: u64) -> u32 {
        let ends = self.places().filter(|(number, _)| xcr0 & 1 << number != 0).map(|(_, place)| place.end);
        ends.fold(HEADER + HEADER_BYTES, usize::max) as u32
    }

    /// The components behind the header: number in XCR0, where they are.
    pub fn places(&self) -> impl Iterator<Item = (u32, core::ops::Range<usize>)> {
        let all = COMPONENTS.into_iter().zip(self.offsets).map(|((number, bytes), at)| (number, at..at + bytes));
        all.filter(|(number, _)| self.components & 1 << number != 0)
    }
}

/// The extended state in the form that is sent and hashed: registers, and nothing that depends on how they were saved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ExtendedState {
    /// Bits of XCR0 that the CPU has which it comes from.
    pub components: u64,
    /// XCR0.
    pub xcr0: u64,
    /// x87 and SSE as FXSAVE64 writes them, reserved bytes cleared.
    legacy: [u8; LEGACY_BYTES],
    /// [`COMPONENTS`] one after the other, zeros for those that the CPU does not have.
    rest: [u8; COMPONENT_BYTES],
}

impl Default for ExtendedState {
    /// The state after a reset and FNINIT on a CPU without more than x87 and SSE.
    fn default() -> Self {
        let mut legacy = [0; LEGACY_BYTES];
        legacy[0..2].copy_from_slice(&FCW_INITIAL.to_le_bytes());
        legacy[MXCSR..MXCSR + 4].copy_from_slice(&MXCSR_INITIAL.to_le_bytes());
        Self { components: X87 | SSE, xcr0: X87, legacy, rest: [0; COMPONENT_BYTES] }
    }
}

impl fmt::Debug for ExtendedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExtendedState({:#x} of {:#x})", self.xcr0, self.components)
    }
}

impl ExtendedState {
    /// The state after a reset and FNINIT on a CPU with `layout`.
    #[must_use]
    pub fn initial(layout: &Layout) -> Self {
        Self { components: layout.components, ..Self::default() }
    }

    /// Other than at first in every register that `layout` has, for a look whether a CPU saves and loads them.
    #[must_use]
    pub fn pattern(layout: &Layout) -> Self {
        let mut state = Self::initial(layout);
        // All x87 registers in use.
        state.legacy[4] = 0xFF;
        let numbers = (1..=250).cycle();
        let registers = state.legacy[ST..].iter_mut().chain(&mut state.rest);
        registers.zip(numbers).for_each(|(byte, number)| *byte = number);
        state.clear_what_is_absent();
        state.clear_reserved();
        state
    }

    /// Reads what a CPU with `layout` has saved of all its components into an area of zeros. Bits of MXCSR that it does not
    /// have are left out: QEMU 7.2 lets a guest load them.
    #[must_use]
    pub fn from_area(area: &Area, layout: &Layout, xcr0: u64) -> Self {
        let initial = Self::initial(layout);
        let mut state = Self { xcr0, ..initial };
        state.legacy.copy_from_slice(&area.0[..LEGACY_BYTES]);
        // Without XSAVE there is no header, and all is written.
        let written = if layout.xsave { area.header() } else { X87 | SSE };
        if written & X87 == 0 {
            state.legacy[..MXCSR].copy_from_slice(&initial.legacy[..MXCSR]);
            state.legacy[ST..XMM].copy_from_slice(&initial.legacy[ST..XMM]);
        }
        if written & SSE == 0 {
            state.legacy[XMM..].fill(0);
        }
        for (number, place) in layout.places().filter(|(number, _)| written & 1 << number != 0) {
            state.component_mut(number).copy_from_slice(&area.0[place]);
        }
        let mxcsr = state.mxcsr() & layout.mxcsr_mask;
        state.legacy[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
        state.clear_reserved();
        state
    }

    /// An area from which XRSTOR, or FXRSTOR, loads this on a CPU with `layout`. It says of no component that is as at
    /// first that it is in use.
    #[must_use]
    pub fn to_area(&self, layout: &Layout) -> Area {
        let initial = Self::default();
        let mut area = Area::EMPTY;
        area.0[..LEGACY_BYTES].copy_from_slice(&self.legacy);
        let same = |place: core::ops::Range<usize>| self.legacy[place.clone()] == initial.legacy[place];
        let mut used = 0;
        if !(same(0..MXCSR) && same(ST..XMM)) {
            used |= X87;
        }
        if !same(XMM..LEGACY_BYTES) {
            used |= SSE;
        }
        for (number, place) in layout.places() {
            let component = self.component(number);
            if component.iter().any(|byte| *byte != 0) {
                used |= 1 << number;
                area.0[place].copy_from_slice(component);
            }
        }
        if layout.xsave {
            area.0[HEADER..HEADER + 8].copy_from_slice(&used.to_le_bytes());
        }
        area
    }

    /// Whether loading this on a CPU with `layout` raises no exception.
    ///
    /// # Errors
    /// What would.
    pub fn check_loading(&self, layout: &Layout) -> Result<(), StateError> {
        if !layout.allows(self.xcr0) {
            return Err(StateError::BadValue("XCR0"));
        }
        if self.mxcsr() & !layout.mxcsr_mask != 0 {
            return Err(StateError::BadValue("MXCSR"));
        }
        Ok(())
    }

    /// Whether this can be the state of a CPU with `layout`: of those components, no more and no fewer, and as one is saved.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, layout: &Layout) -> Result<(), StateError> {
        if self.components != layout.components {
            return Err(StateError::OtherComponents { state: self.components, cpu: layout.components });
        }
        self.check_loading(layout)?;
        let mut cleared = *self;
        cleared.clear_reserved();
        if cleared != *self {
            return Err(StateError::BadValue("a reserved byte of x87 state"));
        }
        Ok(())
    }

    fn mxcsr(&self) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.legacy[MXCSR..MXCSR + 4]);
        u32::from_le_bytes(bytes)
    }

    fn component(&self, number: u32) -> &[u8] {
        &self.rest[place_in_rest(number)]
    }

    fn component_mut(&mut self, number: u32) -> &mut [u8] {
        &mut self.rest[place_in_rest(number)]
    }

    fn clear_reserved(&mut self) {
        self.legacy[5] = 0;
        self.legacy[MXCSR_MASK..ST].fill(0);
        self.legacy[ST..XMM].chunks_exact_mut(16).for_each(|register| register[10..].fill(0));
    }

    fn clear_what_is_absent(&mut self) {
        for (number, _) in COMPONENTS {
            if self.components & 1 << number == 0 {
                self.component_mut(number).fill(0);
            }
        }
    }
}

/// Where a component is in [`ExtendedState::rest`]; nowhere if it is none.
fn place_in_rest(number: u32) -> core::ops::Range<usize> {
    let mut at = 0;
    for (other, bytes) in COMPONENTS {
        if other == number {
            return at..at + bytes;
        }
        at += bytes;
    }
    at..at
}

impl State for ExtendedState {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u64(&mut self.components)?;
        if self.components & !ALLOWED != 0 {
            return Err(StateError::BadValue("the components of the extended state"));
        }
        v.u64(&mut self.xcr0)?;
        v.bytes(&mut self.legacy)?;
        for (number, _) in COMPONENTS {
            if self.components & 1 << number != 0 {
                v.bytes(self.component_mut(number))?;
            }
        }
        self.clear_what_is_absent();
        Ok(())
    }
}
