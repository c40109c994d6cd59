//! The local APIC by MMIO, its timer used as an instruction counter's overflow interrupt.
//! See: SDM volume 3, chapter 11.
//!
//! The output of the legacy controllers is an interrupt like others, at [`LEGACY_VECTOR`], not an external one as of old: QEMU
//! loses virtual interrupts of the guest otherwise. See: docs/determinism.md, "Interrupts that an emulator forgets".
#![allow(unsafe_code)]

use core::ptr;

use x86_64::registers::model_specific::Msr;

/// Vector of the timer.
pub const TIMER_VECTOR: u8 = 0x40;
/// Vector for message-signalled interrupts.
pub const MSI_VECTOR: u8 = 0x50;
/// Vector of the legacy controllers' output, which says that one of their lines waits.
pub const LEGACY_VECTOR: u8 = 0x60;
/// Vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xFF;

const IA32_APIC_BASE: u32 = 0x1B;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

const ID: usize = 0x20;
const TPR: usize = 0x80;
const EOI: usize = 0xB0;
const SPURIOUS: usize = 0xF0;
const LVT_TIMER: usize = 0x320;
const LVT_PERFORMANCE: usize = 0x340;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_ERROR: usize = 0x370;
const TIMER_INITIAL_COUNT: usize = 0x380;
const TIMER_CURRENT_COUNT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3E0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const DELIVERY_EXTINT: u32 = 0b111 << 8;
const DELIVERY_NMI: u32 = 0b100 << 8;
const DIVIDE_BY_1: u32 = 0b1011;

/// This CPU's local APIC.
#[derive(Debug, Clone, Copy)]
pub struct Apic {
    base: usize,
}

impl Apic {
    /// Enables the APIC in xAPIC mode: timer one-shot by 1 at [`TIMER_VECTOR`], LINT0 at [`LEGACY_VECTOR`].
    ///
    /// # Safety
    /// Called once, on the only CPU, with the first 4 GiB identity-mapped and a handler for every vector.
    ///
    /// # Errors
    /// When the firmware left the APIC in x2APIC mode.
    pub unsafe fn start() -> Result<Self, &'static str> {
        let mut msr = Msr::new(IA32_APIC_BASE);
        // SAFETY: every x86-64 CPU has this register; enabling the APIC touches no memory.
        let value = unsafe {
            let value = msr.read();
            msr.write(value | APIC_BASE_ENABLE);
            value
        };
        if value & APIC_BASE_X2APIC != 0 {
            return Err("the firmware left the local APIC in x2APIC mode, which is not supported yet");
        }
        let apic = Self { base: (value & APIC_BASE_ADDRESS) as usize };
        apic.write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
        apic.write(TPR, 0);
        apic.write(LVT_LINT0, u32::from(LEGACY_VECTOR));
        apic.write(LVT_LINT1, DELIVERY_NMI);
        apic.write(LVT_PERFORMANCE, MASKED);
        apic.write(LVT_ERROR, MASKED);
        apic.write(TIMER_DIVIDE, DIVIDE_BY_1);
        apic.write(LVT_TIMER, u32::from(TIMER_VECTOR));
        Ok(apic)
    }

    /// From here on the CPU acknowledges interrupts of the legacy controllers itself, and takes their vectors: for machines
    /// in which LINT0 brings no other ones, such as KVM's.
    pub fn acknowledge_legacy(&self) {
        self.write(LVT_LINT0, DELIVERY_EXTINT);
    }

    /// This CPU's APIC id, for message-signalled interrupts.
    #[must_use]
    pub fn id(&self) -> u8 {
        (self.read(ID) >> 24) as u8
    }

    /// Arms the timer to fire after `ticks`; 0 disarms it.
    pub fn arm_timer(&self, ticks: u32) {
        self.write(TIMER_INITIAL_COUNT, ticks);
    }

    /// Ticks that are left until the timer fires; 0 when it has fired or is not armed.
    #[must_use]
    pub fn timer_left(&self) -> u32 {
        self.read(TIMER_CURRENT_COUNT)
    }

    /// The next overflow of a performance counter raises an NMI; this masks the entry again.
    pub fn interrupt_at_overflow(&self) {
        self.write(LVT_PERFORMANCE, DELIVERY_NMI);
    }

    /// Address of the timer's initial-count register, for the world switch that arms it just before guest entry.
    #[must_use]
    pub fn timer_register(&self) -> *mut u32 {
        (self.base + TIMER_INITIAL_COUNT) as *mut u32
    }

    /// Ends the interrupt in service.
    pub fn end_of_interrupt(&self) {
        self.write(EOI, 0);
    }

    fn read(&self, register: usize) -> u32 {
        // SAFETY: `base` is the APIC's page, mapped one to one; registers are 32-bit and 16-byte aligned.
        unsafe { ptr::read_volatile((self.base + register) as *const u32) }
    }

    fn write(&self, register: usize, value: u32) {
        // SAFETY: as for `read`; the registers used here affect interrupts of this CPU only.
        unsafe { ptr::write_volatile((self.base + register) as *mut u32, value) }
    }
}
