//! From PVH's `hvm_start_info` to [`BootInfo`].

use zerocopy::FromBytes;

use crate::pvh::{HvmStartInfo, MEMMAP_ACPI, MEMMAP_NVS, MEMMAP_RAM, MEMMAP_UNUSABLE};
use crate::pvh::{MemmapEntry, ModlistEntry, START_MAGIC};
use crate::{BootError, BootInfo, Loader, MAX_MODULES, MAX_REGIONS, MemoryMap, Module, PhysicalMemory, RegionKind};

/// Longest string taken from a loader, with its zero byte.
const MAX_STRING: usize = 4096;

/// See [`BootInfo::parse`].
pub(crate) fn parse(
    address: u64,
    (image_start, image_len): (u64, u64),
    memory: &dyn PhysicalMemory,
) -> Result<BootInfo, BootError> {
    let info: HvmStartInfo = read(memory, "start info", address)?;
    if info.magic != START_MAGIC {
        return Err(BootError::Malformed("start info"));
    }
    if info.version == 0 || info.memmap_paddr == 0 || info.memmap_entries == 0 {
        return Err(BootError::NoMemoryMap);
    }
    let mut map = memory_map(&info, memory)?;
    map.carve(image_start, image_len, RegionKind::Image)?;
    map.carve(address, size_of::<HvmStartInfo>() as u64, RegionKind::LoaderData)?;
    let command_line = string(memory, "command line", info.cmdline_paddr, &mut map)?;

    let count = info.nr_modules as usize;
    if count > MAX_MODULES {
        return Err(BootError::TooManyModules);
    }
    let mut modules = heapless::Vec::new();
    for number in 0..count {
        let entry: ModlistEntry = read_nth(memory, "module list", info.modlist_paddr, number)?;
        check_module(number, entry.paddr, entry.size, memory)?;
        map.carve(entry.paddr, entry.size, RegionKind::Module)?;
        let name = string(memory, "name of a module", entry.cmdline_paddr, &mut map)?;
        let module = Module { start: entry.paddr, len: entry.size, name };
        modules.push(module).map_err(|_| BootError::TooManyModules)?;
    }
    let rsdp = (info.rsdp_paddr != 0).then_some(info.rsdp_paddr);
    Ok(BootInfo { loader: Loader::Pvh, memory: map, modules, command_line, rsdp })
}

/// Refuses a module whose bytes cannot be read; what names it starts at 0.
pub(crate) fn check_module(number: usize, start: u64, len: u64, memory: &dyn PhysicalMemory) -> Result<(), BootError> {
    let readable = usize::try_from(len).ok().and_then(|len| memory.bytes(start, len));
    readable.map(|_| ()).ok_or(BootError::BadModule(number))
}

/// The kind of an E820 memory map entry; the two protocols have the same numbers.
pub(crate) fn region_kind(kind: u32) -> RegionKind {
    match kind {
        MEMMAP_RAM => RegionKind::Usable,
        MEMMAP_ACPI => RegionKind::AcpiReclaimable,
        MEMMAP_NVS => RegionKind::AcpiNvs,
        MEMMAP_UNUSABLE => RegionKind::Defective,
        // MEMMAP_RESERVED, and kinds that came later.
        _ => RegionKind::Reserved,
    }
}

fn memory_map(info: &HvmStartInfo, memory: &dyn PhysicalMemory) -> Result<MemoryMap, BootError> {
    let mut map = MemoryMap::new();
    let count = info.memmap_entries as usize;
    if count > MAX_REGIONS {
        return Err(BootError::TooManyRegions);
    }
    for number in 0..count {
        let entry: MemmapEntry = read_nth(memory, "memory map", info.memmap_paddr, number)?;
        map.add(entry.addr, entry.size, region_kind(entry.kind))?;
    }
    Ok(map)
}

fn read<T: FromBytes>(memory: &dyn PhysicalMemory, what: &'static str, address: u64) -> Result<T, BootError> {
    let bytes = memory.bytes(address, size_of::<T>());
    bytes.and_then(|bytes| T::read_from_bytes(bytes).ok()).ok_or(BootError::Unreadable(what, address))
}

/// Entry `number` of the array at `address`.
fn read_nth<T: FromBytes>(
    memory: &dyn PhysicalMemory,
    what: &'static str,
    address: u64,
    number: usize,
) -> Result<T, BootError> {
    let at = address.checked_add((number * size_of::<T>()) as u64).ok_or(BootError::Unreadable(what, address))?;
    read(memory, what, at)
}

/// The zero-terminated string at `address`, whose pages are taken out of usable memory; empty when the address is 0.
fn string(
    memory: &dyn PhysicalMemory,
    what: &'static str,
    address: u64,
    map: &mut MemoryMap,
) -> Result<&'static str, BootError> {
    if address == 0 {
        return Ok("");
    }
    // A string may end closely before the end of memory: look for its end byte by byte, and only then take it whole.
    let mut len = 0;
    loop {
        if len == MAX_STRING {
            return Err(BootError::BadString(what));
        }
        let at = address.checked_add(len as u64);
        match at.and_then(|at| memory.bytes(at, 1)) {
            Some([0]) => break,
            Some(_) => len += 1,
            None => return Err(BootError::Unreadable(what, address)),
        }
    }
    map.carve(address, len as u64 + 1, RegionKind::LoaderData)?;
    let bytes = memory.bytes(address, len).ok_or(BootError::Unreadable(what, address))?;
    core::str::from_utf8(bytes).map_err(|_| BootError::BadString(what))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Region;
    use crate::info::Fake;
    use crate::pvh::{MEMMAP_RESERVED, StartInfo, StartModule};

    const BASE: u64 = 0x9000;
    const MEMORY: [MemmapEntry; 3] = [
        MemmapEntry::new(0, 0x9_f000, MEMMAP_RAM),
        MemmapEntry::new(0xf_0000, 0x1_0000, MEMMAP_RESERVED),
        MemmapEntry::new(0x10_0000, 0x70_0000, MEMMAP_RAM),
    ];

    fn written(info: &StartInfo<'_>) -> Fake {
        let mut bytes = vec![0xaa; 0x4000];
        info.write(BASE, &mut bytes).unwrap();
        Fake(BASE, bytes.leak())
    }

    #[test]
    fn what_is_written_is_read() {
        let modules = [
            StartModule { start: BASE + 0x2000, len: 0x123, command_line: "guest.elf x=1" },
            StartModule { start: BASE + 0x3000, len: 8, command_line: "" },
        ];
        let info = StartInfo { command_line: "ip=1 ü", modules: &modules, memory: &MEMORY, rsdp: Some(0xf_0000) };
        let parsed = BootInfo::parse(Loader::Pvh, BASE, (0x20_0000, 0x1000), &written(&info)).unwrap();
        assert_eq!(parsed.command_line, "ip=1 ü");
        assert_eq!(parsed.rsdp, Some(0xf_0000));
        assert_eq!(parsed.modules[0], Module { start: BASE + 0x2000, len: 0x123, name: "guest.elf x=1" });
        assert_eq!(parsed.modules[1], Module { start: BASE + 0x3000, len: 8, name: "" });
        let usable: Vec<_> = parsed.memory.usable().map(|Region { start, len, .. }| (start, start + len)).collect();
        assert_eq!(
            usable,
            [(0, 0x9000), (0xa000, 0xb000), (0xd000, 0x9_f000), (0x10_0000, 0x20_0000), (0x20_1000, 0x80_0000)]
        );
    }

    #[test]
    fn bad_data_is_refused() {
        let parse = |fake: &Fake| BootInfo::parse(Loader::Pvh, BASE, (0x20_0000, 0x1000), fake).map(|_| ());
        let module = StartModule { start: BASE, len: 0x1_0000, command_line: "" };
        let good = StartInfo { command_line: "x", modules: &[], memory: &MEMORY, rsdp: None };
        assert_eq!(parse(&written(&good)), Ok(()));
        assert_eq!(parse(&Fake(BASE, &[0; 56])), Err(BootError::Malformed("start info")));
        assert_eq!(parse(&Fake(BASE, &[0; 55])), Err(BootError::Unreadable("start info", BASE)));
        assert_eq!(parse(&written(&StartInfo { memory: &[], ..good })), Err(BootError::NoMemoryMap));
        assert_eq!(parse(&written(&StartInfo { modules: &[module], ..good })), Err(BootError::BadModule(0)));
        let many = [StartModule { len: 1, ..module }; MAX_MODULES + 1];
        assert_eq!(parse(&written(&StartInfo { modules: &many, ..good })), Err(BootError::TooManyModules));
        let long = "x".repeat(MAX_STRING);
        let info = StartInfo { command_line: &long, ..good };
        assert_eq!(parse(&written(&info)), Err(BootError::BadString("command line")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            words in prop::collection::vec(prop_oneof![Just(0u64), 0u64..4, BASE..BASE + 0x200, any::<u64>()], 0..64),
            magic in any::<bool>(),
        ) {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            if magic && bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&START_MAGIC.to_le_bytes());
                bytes[4] = 1;
            }
            let fake = Fake(BASE, bytes.leak());
            let _ = BootInfo::parse(Loader::Pvh, BASE, (0x20_0000, 0x1000), &fake);
        }
    }
}
