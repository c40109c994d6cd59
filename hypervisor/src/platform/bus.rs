//! Which device answers at a port or a guest-physical address.

use super::access::{Outputs, Size};
use super::clock::GuestTime;
use super::power::Power;
use super::virtio::transport::Io;
use super::{NET_SLOT, Platform, disk, ioapic, pci, uart};
use crate::memory::{Gpa, GuestMemory};

impl Platform {
    // ---- Ports ----

    /// IN from `port`. Absent devices read as all ones.
    pub fn io_read(&mut self, now: GuestTime, port: u16, size: Size) -> u32 {
        match port {
            uart::BASE..=0x3FF if size == Size::Byte => {
                let value = self.uart.read(port - uart::BASE);
                self.update_uart();
                u32::from(value)
            }
            pci::ADDRESS if size == Size::Dword => self.config_address.get(),
            pci::DATA..=0xCFF => self.config_read(now, port, size),
            _ if Power::claims(port) => self.power.read(now, port, size),
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 if size == Size::Byte => u32::from(self.pic.read(port)),
            0x40..=0x43 | 0x61 if size == Size::Byte => u32::from(self.pit.read(now, port)),
            0x70 | 0x71 if size == Size::Byte => {
                let value = self.rtc.read(now, port);
                self.update_rtc();
                u32::from(value)
            }
            _ => size.mask() as u32,
        }
    }

    /// OUT to `port`.
    pub fn io_write(
        &mut self,
        now: GuestTime,
        port: u16,
        size: Size,
        value: u32,
        memory: &mut GuestMemory,
        out: &mut dyn Outputs,
    ) {
        let byte = value as u8;
        match port {
            uart::BASE..=0x3FF if size == Size::Byte => {
                self.uart.write(port - uart::BASE, byte, out);
                self.update_uart();
            }
            pci::ADDRESS if size == Size::Dword => self.config_address.set(value),
            _ if Power::claims(port) => self.power.write(port, size, value, out),
            pci::DATA..=0xCFF => self.config_write(now, port, size, value, memory, out),
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 if size == Size::Byte => self.pic.write(port, byte),
            0x40..=0x43 | 0x61 if size == Size::Byte => self.pit.write(now, port, byte),
            0x70 | 0x71 if size == Size::Byte => {
                self.rtc.write(now, port, byte);
                self.update_rtc();
            }
            _ => {}
        }
    }

    fn config_read(&mut self, now: GuestTime, port: u16, size: Size) -> u32 {
        let value = match (self.config_address.target(port), &mut self.disk) {
            (Some((0, at)), _) => self.bridge.read(at, size),
            (Some((NET_SLOT, at)), _) => {
                let value = self.net.config_read(at, size);
                self.update_net();
                value
            }
            (Some((disk::SLOT, at)), Some(disk)) => {
                let value = disk.config_read(at, size);
                self.update_disk(now);
                value
            }
            _ => u32::MAX,
        };
        value & size.mask() as u32
    }

    fn config_write(
        &mut self,
        now: GuestTime,
        port: u16,
        size: Size,
        value: u32,
        memory: &mut GuestMemory,
        out: &mut dyn Outputs,
    ) {
        let mut io = Io { memory, out, lapic: &mut self.lapic };
        match (self.config_address.target(port), &mut self.disk) {
            (Some((0, at)), _) => self.bridge.write(at, size, value),
            (Some((NET_SLOT, at)), _) => {
                self.net.config_write(at, size, value, &mut io);
                self.update_net();
            }
            (Some((disk::SLOT, at)), Some(disk)) => {
                disk.config_write(at, size, value, &mut io);
                self.update_disk(now);
            }
            _ => {}
        }
    }

    // ---- Memory-mapped registers ----

    /// A read at `gpa`, which is not RAM. Absent devices read as all ones.
    pub fn mmio_read(&mut self, now: GuestTime, gpa: Gpa, size: Size) -> u64 {
        if let Some(at) = self.net.decode(gpa.0) {
            let value = self.net.mmio_read(at, size);
            self.update_net();
            return value;
        }
        if let Some((at, disk)) = self.disk.as_mut().and_then(|disk| Some((disk.decode(gpa.0)?, disk))) {
            let value = disk.mmio_read(at, size);
            self.update_disk(now);
            return value;
        }
        if let Some(at) = self.lapic_offset(gpa) {
            return self.lapic.mmio_read(now, at, size);
        }
        match gpa.0.checked_sub(ioapic::BASE) {
            Some(at) if at < ioapic::LEN => self.ioapic.mmio_read(at, size),
            _ => size.mask(),
        }
    }

    /// A write at `gpa`, which is not RAM.
    pub fn mmio_write(
        &mut self,
        now: GuestTime,
        gpa: Gpa,
        size: Size,
        value: u64,
        memory: &mut GuestMemory,
        out: &mut dyn Outputs,
    ) {
        let value = value & size.mask();
        if let Some(at) = self.net.decode(gpa.0) {
            self.net.mmio_write(at, size, value, &mut Io { memory, out, lapic: &mut self.lapic });
            self.update_net();
        } else if let Some((at, disk)) = self.disk.as_mut().and_then(|disk| Some((disk.decode(gpa.0)?, disk))) {
            disk.mmio_write(at, size, value, &mut Io { memory, out, lapic: &mut self.lapic });
            self.update_disk(now);
        } else if let Some(at) = self.lapic_offset(gpa) {
            let ended = self.lapic.mmio_write(now, at, size, value);
            self.end_of_interrupt(ended);
            self.lapic.advance(now);
        } else if let Some(at) = gpa.0.checked_sub(ioapic::BASE).filter(|&at| at < ioapic::LEN) {
            self.ioapic.mmio_write(at, size, value, &mut self.lapic);
        }
    }

    fn lapic_offset(&self, gpa: Gpa) -> Option<u64> {
        let at = gpa.0.checked_sub(self.lapic.page()?)?;
        (at < crate::memory::PAGE_SIZE).then_some(at)
    }

    pub(super) fn end_of_interrupt(&mut self, ended: Option<u8>) {
        if let Some(vector) = ended {
            self.ioapic.end_of_interrupt(vector, &mut self.lapic);
        }
    }
}
