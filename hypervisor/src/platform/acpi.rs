//! ACPI tables: what an operating system needs to find CPU, interrupt controllers, PCI and the power switch.
//! See: ACPI 6.4, chapter 5.2.

use super::aml::{self, Space};
use super::{ioapic, lapic, pci, power, rtc, uart};
use crate::memory::Gpa;
use alloc::vec;
use alloc::vec::Vec;

/// Where the tables are placed; an operating system also searches here for the root pointer.
pub const AREA: u64 = 0xE_0000;
/// Bytes that the tables may take.
pub const AREA_LEN: u64 = 0x1_0000;

/// I/O APIC pin of the interval timer: ISA interrupt 0 is redirected here, as on every PC.
pub const PIT_PIN: u8 = 2;
/// I/O APIC pin of the first PCI function's INTA; the next functions have the next pins.
pub const PCI_PIN: u8 = 16;
/// PCI functions with a pin of their own.
const PCI_PINS: u8 = 4;
/// Interrupt of ACPI itself. Nothing ever raises it.
const SCI: u8 = 9;

const OEM: &[u8; 6] = b"POLLUX";
const OEM_TABLE: &[u8; 8] = b"PLATFORM";

/// The tables, ready to be copied into guest memory.
pub struct Tables {
    /// Where the first byte belongs.
    pub gpa: Gpa,
    /// All tables.
    pub bytes: Vec<u8>,
    /// Where the root pointer (RSDP) is.
    pub rsdp: Gpa,
}

/// Builds the tables. They are the same for every guest.
#[must_use]
pub fn tables() -> Tables {
    const RSDP_LEN: usize = 36;
    let mut area = Area(vec![0; RSDP_LEN]);
    let facs = area.add(facs());
    let dsdt = area.add(table(b"DSDT", 2, &dsdt()));
    let fadt = area.add(table(b"FACP", 6, &fadt(facs, dsdt)));
    let madt = area.add(table(b"APIC", 5, &madt()));
    let xsdt = area.add(table(b"XSDT", 1, &[fadt.to_le_bytes(), madt.to_le_bytes()].concat()));
    area.0[..RSDP_LEN].copy_from_slice(&rsdp(xsdt));
    debug_assert!(area.0.len() as u64 <= AREA_LEN);
    Tables { gpa: Gpa(AREA), bytes: area.0, rsdp: Gpa(AREA) }
}

/// Tables one after the other, each at an address divisible by 64 (the FACS needs it).
struct Area(Vec<u8>);

impl Area {
    fn add(&mut self, table: Vec<u8>) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(64), 0);
        let address = AREA + self.0.len() as u64;
        self.0.extend(table);
        address
    }
}

/// The value that makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// A system description table: header (5.2.6) and body.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend_from_slice(&(36 + body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[revision, 0]);
    bytes.extend_from_slice(OEM);
    bytes.extend_from_slice(OEM_TABLE);
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(b"PLLX");
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes[9] = checksum(&bytes);
    bytes
}

/// Root system description pointer, 5.2.5.3.
fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0".to_vec();
    bytes.extend_from_slice(OEM);
    // Revision 2; no RSDT.
    bytes.extend_from_slice(&[2, 0, 0, 0, 0]);
    bytes[8] = checksum(&bytes);
    bytes.extend_from_slice(&36u32.to_le_bytes());
    bytes.extend_from_slice(&xsdt.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// Firmware ACPI control structure, 5.2.10.
fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4] = 64;
    bytes[32] = 2;
    bytes
}

/// A generic address of a register in I/O space, 5.2.3.2.
fn io_register(port: u16, bytes: u8) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    // Access size: 1 byte, 2 bytes, 4 bytes are 1, 2, 3.
    [1, bytes * 8, 0, bytes.ilog2() as u8 + 1, low, high, 0, 0, 0, 0, 0, 0]
}

/// Fixed ACPI description table, 5.2.9. Offsets are those of the specification.
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut bytes = vec![0; 276];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let port = |port: u16| u32::from(port).to_le_bytes();
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    // Preferred profile: server.
    put(45, &[4, SCI, 0]);
    put(56, &port(power::PM1_EVENT));
    put(64, &port(power::PM1_CONTROL));
    put(76, &port(power::PM_TIMER));
    // Lengths of the PM1 event, PM1 control, PM2 and timer blocks.
    put(88, &[4, 2, 0, 4]);
    // C2 and C3 latencies: not supported.
    put(96, &[0xFF, 0xFF, 0xFF, 0xFF]);
    put(108, &[rtc::CENTURY]);
    // Boot architecture: there are legacy devices (the serial port); no 8042, no VGA.
    put(109, &(1u16 | 1 << 2).to_le_bytes());
    // WBINVD works, C1 works, no fixed power or sleep button, no RTC wake status, reset register supported.
    put(112, &(1u32 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10).to_le_bytes());
    put(116, &io_register(power::RESET, 1));
    put(128, &[power::RESET_VALUE]);
    // Minor version: 6.4.
    put(131, &[4]);
    put(140, &dsdt.to_le_bytes());
    put(148, &io_register(power::PM1_EVENT, 4));
    put(172, &io_register(power::PM1_CONTROL, 2));
    put(208, &io_register(power::PM_TIMER, 4));
    bytes.split_off(36)
}

/// Multiple APIC description table, 5.2.12.
fn madt() -> Vec<u8> {
    let mut bytes = (lapic::DEFAULT_BASE as u32).to_le_bytes().to_vec();
    // The dual 8259s exist.
    bytes.extend_from_slice(&1u32.to_le_bytes());
    // One enabled processor, UID 0, APIC ID 0.
    bytes.extend_from_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
    // One I/O APIC, ID 0, interrupts from 0.
    bytes.extend_from_slice(&[1, 12, 0, 0]);
    bytes.extend_from_slice(&(ioapic::BASE as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    // ISA interrupt 0 is at pin 2; the SCI is level-triggered, active high.
    bytes.extend_from_slice(&[2, 10, 0, 0, PIT_PIN, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[2, 10, 0, SCI, SCI, 0, 0, 0, 0x0D, 0]);
    bytes
}

/// The differentiated system description: PCI, serial port, clock, and how to switch off.
fn dsdt() -> Vec<u8> {
    let hid = |product| aml::name(b"_HID", &aml::pnp(product));
    let uid = |number| aml::name(b"_UID", &aml::integer(number));
    let route = |slot: u8| {
        let address = aml::integer(u32::from(slot) << 16 | 0xFFFF);
        let pin = aml::integer(u32::from(PCI_PIN + slot - 1));
        aml::package(&[address, aml::integer(0), aml::integer(0), pin])
    };
    let routes: Vec<_> = (1..=PCI_PINS).map(route).collect();
    let windows = aml::resources(&[
        aml::word_space(Space::Bus, 0, 0),
        aml::io(pci::ADDRESS, 8),
        aml::word_space(Space::Io, 0, 0xCF7),
        aml::word_space(Space::Io, 0xD00, 0xFFFF),
        aml::dword_space(Space::Memory, pci::WINDOW_START as u32, (pci::WINDOW_END - 1) as u32),
    ]);
    let host = [hid(0x0A03), uid(0), aml::name(b"_CRS", &windows), aml::name(b"_PRT", &aml::package(&routes))];
    let serial = aml::resources(&[aml::io(uart::BASE, 8), aml::irq(uart::PIN)]);
    let clock = aml::resources(&[aml::io(0x70, 2), aml::irq(rtc::PIN)]);
    let devices = [
        aml::device(b"PCI0", &host),
        aml::device(b"COM1", &[hid(0x0501), uid(1), aml::name(b"_CRS", &serial)]),
        aml::device(b"RTC_", &[hid(0x0B00), aml::name(b"_CRS", &clock)]),
    ];
    // Sleep type 0 switches off.
    let off = aml::package(&[0, 0, 0, 0].map(aml::integer));
    [aml::scope(b"\\_SB_", &devices), aml::name(b"\\_S5_", &off)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tables: &Tables, gpa: u64) -> &[u8] {
        &tables.bytes[(gpa - AREA) as usize..]
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_reached_and_adds_up() {
        let tables = tables();
        let rsdp = at(&tables, tables.rsdp.0);
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp[..36])), (0, 0));
        let xsdt = at(&tables, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        let fadt = at(&tables, u64::from(u32_at(xsdt, 36)));
        let madt = at(&tables, u64::from(u32_at(xsdt, 44)));
        let dsdt = at(&tables, u64::from(u32_at(fadt, 40)));
        let expected = [(xsdt, b"XSDT"), (fadt, b"FACP"), (madt, b"APIC"), (dsdt, b"DSDT")];
        for (table, signature) in expected {
            assert_eq!(&table[..4], signature);
            assert_eq!(sum(&table[..u32_at(table, 4) as usize]), 0, "{signature:?}");
        }
        assert_eq!(u32_at(fadt, 4), 276);
        assert_eq!(u32_at(fadt, 140), u32_at(fadt, 40));
        let facs = u32_at(fadt, 36);
        assert_eq!((facs % 64, &at(&tables, u64::from(facs))[..4]), (0, &b"FACS"[..]));
    }

    /// Walks the nesting of the definition block: every package ends where its contents end.
    #[test]
    fn definition_block_is_well_formed() {
        fn length(aml: &[u8]) -> (usize, usize) {
            match aml[0] >> 6 {
                0 => (usize::from(aml[0]), 1),
                1 => (usize::from(aml[0] & 0xF) | usize::from(aml[1]) << 4, 2),
                _ => panic!("no such length here"),
            }
        }
        fn path(aml: &[u8]) -> usize {
            let root = usize::from(aml[0] == b'\\');
            let segment = &aml[root..root + 4];
            assert!(segment.iter().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == b'_'));
            root + 4
        }
        /// Returns the length of the term.
        fn term(aml: &[u8]) -> usize {
            let block = |op: usize, head: &dyn Fn(&[u8]) -> usize| {
                let (len, bytes) = length(&aml[op..]);
                let body = &aml[op + bytes..op + len];
                let mut position = head(body);
                while position < body.len() {
                    position += term(&body[position..]);
                }
                assert_eq!(position, body.len());
                op + len
            };
            match aml[0] {
                0 | 1 => 1,
                0x0A => 2,
                0x0B => 3,
                0x0C => 5,
                0x08 => 1 + path(&aml[1..]) + term(&aml[1 + path(&aml[1..])..]),
                0x10 => block(1, &path),
                0x5B => block(2, &path),
                0x12 => block(1, &|_| 1),
                0x11 => {
                    let (len, bytes) = length(&aml[1..]);
                    let size = &aml[1 + bytes..];
                    assert_eq!(size[0], 0x0A);
                    assert_eq!(usize::from(size[1]), len - bytes - 2);
                    assert_eq!(&aml[len - 1..=len], [0x79, 0]);
                    1 + len
                }
                op => panic!("unknown opcode {op:#x}"),
            }
        }
        let aml = dsdt();
        let mut position = 0;
        while position < aml.len() {
            position += term(&aml[position..]);
        }
        assert_eq!(position, aml.len());
    }
}
