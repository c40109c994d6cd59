//! The registers, as the page and the MSRs show them.
//! See: SDM volume 3 (revision 083), 11.4.1 and 11.12.1.2.

use super::super::access::{Gp, Size};
use super::super::clock::GuestTime;
use super::{ESR_REGISTER, LVT_MASKED, Lapic, SVR_ENABLE, Trigger};

/// Version 0x14, six LVT entries. See: 11.4.8.
const VERSION: u32 = 0x0005_0014;

/// Register numbers: the MMIO offset divided by 16, which is also the MSR's distance from 0x800.
mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0A;
    pub const EOI: u32 = 0x0B;
    pub const LDR: u32 = 0x0D;
    pub const DFR: u32 = 0x0E;
    pub const SVR: u32 = 0x0F;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const ICR_LOW: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3E;
    pub const SELF_IPI: u32 = 0x3F;
}

/// Writable bits of the LVT entries timer, thermal, performance, LINT0, LINT1, error. See: 11.5.1.
const LVT_WRITABLE: [u32; 6] = [0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF];
/// An unknown register, or a write to a read-only one.
struct NoRegister;

impl Lapic {
    /// Reads from the register page. Anything but an aligned doubleword reads that doubleword's part.
    pub fn mmio_read(&mut self, now: GuestTime, offset: u64, size: Size) -> u64 {
        let register = if offset & 0xC == 0 { self.read((offset >> 4) as u32, now) } else { None };
        let Some(value) = register else {
            self.error(ESR_REGISTER);
            return 0;
        };
        size.extract(u64::from(value), offset & 3)
    }

    /// Writes to the register page; only aligned doublewords take effect (11.4.1). Returns the level-triggered
    /// vector whose service just ended, for the IOAPIC.
    pub fn mmio_write(&mut self, now: GuestTime, offset: u64, size: Size, value: u64) -> Option<u8> {
        if size != Size::Dword || offset & 0xF != 0 || offset >> 4 == u64::from(reg::SELF_IPI) {
            return None;
        }
        let result = self.write((offset >> 4) as u32, value as u32, now);
        result.unwrap_or_else(|NoRegister| {
            self.error(ESR_REGISTER);
            None
        })
    }

    /// Reads an x2APIC MSR, `msr` in 0x800–0x8FF. See: 11.12.1.2.
    ///
    /// # Errors
    /// Not in x2APIC mode, or no such register.
    pub fn msr_read(&mut self, now: GuestTime, msr: u32) -> Result<u64, Gp> {
        match msr & 0xFF {
            _ if !self.x2apic() => Err(Gp),
            reg::ICR_LOW => Ok(self.icr),
            reg::ICR_HIGH | reg::DFR | reg::EOI | reg::SELF_IPI => Err(Gp),
            reg::LDR => Ok(1),
            register => self.read(register, now).map(u64::from).ok_or(Gp),
        }
    }

    /// Writes an x2APIC MSR, `msr` in 0x800–0x8FF; returns what [`mmio_write`](Self::mmio_write) does.
    ///
    /// # Errors
    /// Not in x2APIC mode, no such register, a read-only one, or reserved bits set.
    pub fn msr_write(&mut self, now: GuestTime, msr: u32, value: u64) -> Result<Option<u8>, Gp> {
        let register = msr & 0xFF;
        let allowed = match register {
            _ if !self.x2apic() => return Err(Gp),
            reg::ICR_LOW => 0xFFFF_FFFF_000C_CFFF,
            reg::EOI | reg::ESR => 0,
            reg::TPR | reg::SELF_IPI => 0xFF,
            reg::SVR => 0x1FF,
            reg::LVT_TIMER..=reg::LVT_ERROR => u64::from(LVT_WRITABLE[(register - reg::LVT_TIMER) as usize]) | 0x5000,
            reg::INITIAL_COUNT => u64::from(u32::MAX),
            reg::DIVIDE => 0xB,
            _ => return Err(Gp),
        };
        if value & !allowed != 0 {
            return Err(Gp);
        }
        match register {
            reg::ICR_LOW => self.send(value),
            reg::SELF_IPI => self.accept(value as u8, Trigger::Edge),
            _ => return self.write(register, value as u32, now).map_err(|NoRegister| Gp),
        }
        Ok(None)
    }

    fn read(&self, register: u32, now: GuestTime) -> Option<u32> {
        Some(match register {
            reg::ID | reg::EOI => 0,
            reg::VERSION => VERSION,
            reg::TPR => u32::from(self.tpr),
            reg::PPR => u32::from(self.ppr()),
            reg::LDR => self.ldr,
            reg::DFR => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..=0x17 => self.isr.dword(register - reg::ISR),
            reg::TMR..=0x1F => self.tmr.dword(register - reg::TMR),
            reg::IRR..=0x27 => self.irr.dword(register - reg::IRR),
            reg::ESR => self.esr,
            reg::ICR_LOW => self.icr as u32,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(register - reg::LVT_TIMER) as usize],
            reg::INITIAL_COUNT => self.timer.initial(),
            reg::CURRENT_COUNT => self.timer.current(now),
            reg::DIVIDE => self.timer.divide_register(),
            _ => return None,
        })
    }

    fn write(&mut self, register: u32, value: u32, now: GuestTime) -> Result<Option<u8>, NoRegister> {
        match register {
            reg::ID => {}
            reg::TPR => self.tpr = value as u8,
            reg::EOI => return Ok(self.end_of_interrupt()),
            reg::LDR => self.ldr = value & 0xFF00_0000,
            reg::DFR => self.dfr = value | 0x0FFF_FFFF,
            reg::SVR => {
                self.svr = value & 0x1FF;
                if self.svr & SVR_ENABLE == 0 {
                    self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
                }
            }
            reg::ESR => self.esr = core::mem::take(&mut self.errors),
            reg::ICR_LOW => self.send(self.icr & !u64::from(u32::MAX) | u64::from(value)),
            reg::ICR_HIGH => self.icr = self.icr & u64::from(u32::MAX) | u64::from(value & 0xFF00_0000) << 32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt((register - reg::LVT_TIMER) as usize, value),
            reg::INITIAL_COUNT => self.timer.start(value, self.lvt[0], now),
            reg::DIVIDE => self.timer.set_divide(value, self.lvt[0], now),
            _ => return Err(NoRegister),
        }
        Ok(None)
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let masked = if self.svr & SVR_ENABLE == 0 { LVT_MASKED } else { 0 };
        let new = value & LVT_WRITABLE[index] | masked;
        if index == 0 {
            self.timer.mode_changed(self.lvt[0], new);
        }
        self.lvt[index] = new;
    }
}
