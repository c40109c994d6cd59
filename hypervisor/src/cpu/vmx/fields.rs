//! Fields of the VMCS, each with its width as a type. See: SDM volume 3, appendix B.

use core::marker::PhantomData;

/// A field that holds a `W`: `u16`, `u32` or `u64` (64-bit and natural-width fields alike).
#[derive(Debug)]
pub(super) struct Field<W>(u32, PhantomData<W>);

impl<W> Clone for Field<W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Field<W> {}

/// What a field can hold.
pub(super) trait Width: Copy {
    /// Widths in bits 13 and 14 of the encoding: 0 is 16 bits, 1 is 64, 2 is 32, 3 is natural.
    const CODES: u32;

    fn from_register(value: u64) -> Self;
    fn to_register(self) -> u64;
}

macro_rules! width {
    ($type:ty, $codes:expr) => {
        impl Width for $type {
            const CODES: u32 = $codes;

            fn from_register(value: u64) -> Self {
                value as Self
            }

            fn to_register(self) -> u64 {
                u64::from(self)
            }
        }
    };
}

width!(u16, 1 << 0);
width!(u32, 1 << 2);
width!(u64, 1 << 1 | 1 << 3);

impl<W: Width> Field<W> {
    /// # Panics
    /// When the encoding says another width: fields are constants, so that this does not compile.
    pub(super) const fn new(encoding: u32) -> Self {
        assert!(W::CODES >> (encoding >> 13 & 3) & 1 == 1, "the width of a VMCS field does not match its encoding");
        Self(encoding, PhantomData)
    }

    pub(super) const fn encoding(self) -> u64 {
        self.0 as u64
    }
}

macro_rules! fields {
    ($($name:ident: $width:ty = $encoding:literal;)*) => {
        $(pub(super) const $name: Field<$width> = Field::new($encoding);)*
    };
}

fields! {
    VPID: u16 = 0x0000;
    HOST_ES: u16 = 0x0C00;
    HOST_CS: u16 = 0x0C02;
    HOST_SS: u16 = 0x0C04;
    HOST_DS: u16 = 0x0C06;
    HOST_FS: u16 = 0x0C08;
    HOST_GS: u16 = 0x0C0A;
    HOST_TR: u16 = 0x0C0C;

    MSR_BITMAP: u64 = 0x2004;
    EXIT_MSR_LOAD_LIST: u64 = 0x2008;
    ENTRY_MSR_LOAD_LIST: u64 = 0x200A;
    TSC_OFFSET: u64 = 0x2010;
    EPT_POINTER: u64 = 0x201A;
    GUEST_PHYSICAL_ADDRESS: u64 = 0x2400;
    VMCS_LINK: u64 = 0x2800;
    GUEST_DEBUGCTL: u64 = 0x2802;
    GUEST_PAT: u64 = 0x2804;
    GUEST_EFER: u64 = 0x2806;
    GUEST_PERF_GLOBAL_CTRL: u64 = 0x2808;
    HOST_PAT: u64 = 0x2C00;
    HOST_EFER: u64 = 0x2C02;
    HOST_PERF_GLOBAL_CTRL: u64 = 0x2C04;

    PIN_CONTROLS: u32 = 0x4000;
    PRIMARY_CONTROLS: u32 = 0x4002;
    EXCEPTION_BITMAP: u32 = 0x4004;
    PAGE_FAULT_MASK: u32 = 0x4006;
    PAGE_FAULT_MATCH: u32 = 0x4008;
    CR3_TARGETS: u32 = 0x400A;
    EXIT_CONTROLS: u32 = 0x400C;
    EXIT_MSR_STORES: u32 = 0x400E;
    EXIT_MSR_LOADS: u32 = 0x4010;
    ENTRY_CONTROLS: u32 = 0x4012;
    ENTRY_MSR_LOADS: u32 = 0x4014;
    ENTRY_EVENT: u32 = 0x4016;
    ENTRY_ERROR_CODE: u32 = 0x4018;
    ENTRY_INSTRUCTION_LENGTH: u32 = 0x401A;
    SECONDARY_CONTROLS: u32 = 0x401E;
    INSTRUCTION_ERROR: u32 = 0x4400;
    EXIT_REASON: u32 = 0x4402;
    EXIT_EVENT: u32 = 0x4404;
    EXIT_EVENT_ERROR_CODE: u32 = 0x4406;
    VECTORING_EVENT: u32 = 0x4408;
    VECTORING_ERROR_CODE: u32 = 0x440A;
    EXIT_INSTRUCTION_LENGTH: u32 = 0x440C;
    GUEST_GDTR_LIMIT: u32 = 0x4810;
    GUEST_IDTR_LIMIT: u32 = 0x4812;
    INTERRUPTIBILITY: u32 = 0x4824;
    ACTIVITY: u32 = 0x4826;
    GUEST_SYSENTER_CS: u32 = 0x482A;
    PREEMPTION_TIMER: u32 = 0x482E;
    HOST_SYSENTER_CS: u32 = 0x4C00;

    CR0_MASK: u64 = 0x6000;
    CR4_MASK: u64 = 0x6002;
    CR0_SHADOW: u64 = 0x6004;
    CR4_SHADOW: u64 = 0x6006;
    EXIT_QUALIFICATION: u64 = 0x6400;
    GUEST_CR0: u64 = 0x6800;
    GUEST_CR3: u64 = 0x6802;
    GUEST_CR4: u64 = 0x6804;
    GUEST_GDTR_BASE: u64 = 0x6816;
    GUEST_IDTR_BASE: u64 = 0x6818;
    GUEST_DR7: u64 = 0x681A;
    GUEST_RSP: u64 = 0x681C;
    GUEST_RIP: u64 = 0x681E;
    GUEST_RFLAGS: u64 = 0x6820;
    PENDING_DEBUG: u64 = 0x6822;
    GUEST_SYSENTER_ESP: u64 = 0x6824;
    GUEST_SYSENTER_EIP: u64 = 0x6826;
    HOST_CR0: u64 = 0x6C00;
    HOST_CR3: u64 = 0x6C02;
    HOST_CR4: u64 = 0x6C04;
    HOST_FS_BASE: u64 = 0x6C06;
    HOST_GS_BASE: u64 = 0x6C08;
    HOST_TR_BASE: u64 = 0x6C0A;
    HOST_GDTR_BASE: u64 = 0x6C0C;
    HOST_IDTR_BASE: u64 = 0x6C0E;
    HOST_SYSENTER_ESP: u64 = 0x6C10;
    HOST_SYSENTER_EIP: u64 = 0x6C12;
    HOST_RSP: u64 = 0x6C14;
    HOST_RIP: u64 = 0x6C16;
}

/// The four page-directory pointers of a guest with PAE paging.
pub(super) const GUEST_PDPTES: [Field<u64>; 4] =
    [Field::new(0x280A), Field::new(0x280C), Field::new(0x280E), Field::new(0x2810)];

/// The fields of one of the guest's segment registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentFields {
    pub(super) selector: Field<u16>,
    pub(super) limit: Field<u32>,
    pub(super) access_rights: Field<u32>,
    pub(super) base: Field<u64>,
}

impl SegmentFields {
    /// `index`: the order of the SDM, which is that of [`Segments`](crate::cpu::registers::Segments).
    const fn new(index: u32) -> Self {
        Self {
            selector: Field::new(0x0800 + 2 * index),
            limit: Field::new(0x4800 + 2 * index),
            access_rights: Field::new(0x4814 + 2 * index),
            base: Field::new(0x6806 + 2 * index),
        }
    }
}

pub(super) const ES: SegmentFields = SegmentFields::new(0);
pub(super) const CS: SegmentFields = SegmentFields::new(1);
pub(super) const SS: SegmentFields = SegmentFields::new(2);
pub(super) const DS: SegmentFields = SegmentFields::new(3);
pub(super) const FS: SegmentFields = SegmentFields::new(4);
pub(super) const GS: SegmentFields = SegmentFields::new(5);
pub(super) const LDTR: SegmentFields = SegmentFields::new(6);
pub(super) const TR: SegmentFields = SegmentFields::new(7);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_have_the_encodings_of_the_manual() {
        let encodings = |fields: SegmentFields| {
            [
                fields.selector.encoding(),
                fields.limit.encoding(),
                fields.access_rights.encoding(),
                fields.base.encoding(),
            ]
        };
        assert_eq!(encodings(ES), [0x0800, 0x4800, 0x4814, 0x6806]);
        assert_eq!(encodings(SS), [0x0804, 0x4804, 0x4818, 0x680A]);
        assert_eq!(encodings(TR), [0x080E, 0x480E, 0x4822, 0x6814]);
    }

    #[test]
    #[should_panic(expected = "width")]
    fn a_wrong_width_is_refused() {
        let _ = Field::<u16>::new(0x4402);
    }
}
