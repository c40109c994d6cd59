//! From Multiboot2's boot information to [`BootInfo`].
//!
//! See: "Multiboot2 Specification version 2.0", 3.6. Read here rather than by a library: those at hand assert what a
//! malformed tag does not keep, and refuse memory map entries longer than today's.

use zerocopy::FromBytes;

use crate::pvh_parse::{check_module, region_kind};
use crate::{BootError, BootInfo, Loader, MAX_MODULES, MAX_REGIONS, MemoryMap, Module, PhysicalMemory, RegionKind};

const TAG_END: u32 = 0;
const TAG_COMMAND_LINE: u32 = 1;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY_MAP: u32 = 6;
const TAG_RSDP_V1: u32 = 14;
const TAG_RSDP_V2: u32 = 15;
const TAG_BOOT_SERVICES_RUNNING: u32 = 18;

/// Longest boot information taken.
const MAX_BYTES: u32 = 1 << 20;
/// Most tags looked at.
const MAX_TAGS: usize = 4096;

/// One tag: its type, the address of its content, and the content.
struct Tag {
    kind: u32,
    address: u64,
    content: &'static [u8],
}

/// See [`BootInfo::parse`].
pub(crate) fn parse(
    address: u64,
    (image_start, image_len): (u64, u64),
    memory: &dyn PhysicalMemory,
) -> Result<BootInfo, BootError> {
    let head = memory.bytes(address, 8).ok_or(BootError::Unreadable("boot information", address))?;
    let total = u32_at(head, 0)?;
    if !(8..=MAX_BYTES).contains(&total) {
        return Err(BootError::Malformed("boot information"));
    }
    let bytes = memory.bytes(address, total as usize).ok_or(BootError::Unreadable("boot information", address))?;

    let mut map = None;
    let mut modules = heapless::Vec::<Module, MAX_MODULES>::new();
    let mut command_line = "";
    let (mut rsdp_v1, mut rsdp_v2) = (None, None);
    let mut tags = Tags { address, bytes, at: 8 };
    for _ in 0..MAX_TAGS {
        let tag = tags.next()?;
        match tag.kind {
            TAG_END => break,
            TAG_COMMAND_LINE => command_line = string(tag.content, "command line")?,
            TAG_MODULE => {
                let module = module(&tag, modules.len(), memory)?;
                modules.push(module).map_err(|_| BootError::TooManyModules)?;
            }
            TAG_MEMORY_MAP => map = Some(memory_map(tag.content)?),
            TAG_RSDP_V1 => rsdp_v1 = Some(tag.address),
            TAG_RSDP_V2 => rsdp_v2 = Some(tag.address),
            TAG_BOOT_SERVICES_RUNNING => return Err(BootError::BootServicesRunning),
            _ => {}
        }
    }
    let mut map = map.ok_or(BootError::NoMemoryMap)?;
    map.carve(image_start, image_len, RegionKind::Image)?;
    map.carve(address, u64::from(total), RegionKind::LoaderData)?;
    for module in &modules {
        map.carve(module.start, module.len, RegionKind::Module)?;
    }
    Ok(BootInfo { loader: Loader::Multiboot2, memory: map, modules, command_line, rsdp: rsdp_v2.or(rsdp_v1) })
}

/// Walks the tags: each begins at a multiple of 8 with its type and length.
struct Tags {
    address: u64,
    bytes: &'static [u8],
    at: usize,
}

impl Tags {
    fn next(&mut self) -> Result<Tag, BootError> {
        let damaged = BootError::Malformed("list of tags");
        let rest = self.bytes.get(self.at..).ok_or(damaged)?;
        let (kind, len) = (u32_at(rest, 0)?, u32_at(rest, 4)? as usize);
        let content = rest.get(8..len).ok_or(damaged)?;
        let tag = Tag { kind, address: self.address + self.at as u64 + 8, content };
        self.at += len.next_multiple_of(8);
        Ok(tag)
    }
}

fn module(tag: &Tag, number: usize, memory: &dyn PhysicalMemory) -> Result<Module, BootError> {
    let (start, end) = (u32_at(tag.content, 0)?, u32_at(tag.content, 4)?);
    let len = u64::from(end.checked_sub(start).ok_or(BootError::BadModule(number))?);
    let start = u64::from(start);
    check_module(number, start, len, memory)?;
    Ok(Module { start, len, name: string(&tag.content[8..], "name of a module")? })
}

fn memory_map(content: &[u8]) -> Result<MemoryMap, BootError> {
    let damaged = BootError::Malformed("memory map");
    let entry_len = u32_at(content, 0)? as usize;
    if entry_len < 24 {
        return Err(damaged);
    }
    let mut map = MemoryMap::new();
    for (number, entry) in content.get(8..).ok_or(damaged)?.chunks_exact(entry_len).enumerate() {
        if number == MAX_REGIONS {
            return Err(BootError::TooManyRegions);
        }
        let ([start, len], rest) = <[u64; 2]>::read_from_prefix(entry).map_err(|_| damaged)?;
        map.add(start, len, region_kind(u32_at(rest, 0)?))?;
    }
    Ok(map)
}

/// The zero-terminated string at the front of `content`.
fn string(content: &'static [u8], what: &'static str) -> Result<&'static str, BootError> {
    let text = core::ffi::CStr::from_bytes_until_nul(content).map_err(|_| BootError::BadString(what))?;
    text.to_str().map_err(|_| BootError::BadString(what))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BootError> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or(BootError::Malformed("boot information"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::info::Fake;

    const BASE: u64 = 0x9000;

    fn tag(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_le_bytes(), (content.len() as u32 + 8).to_le_bytes()].concat();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn memory_tag(entry_len: u32) -> Vec<u8> {
        let mut content = [entry_len.to_le_bytes(), [0; 4]].concat();
        for (start, len, kind) in [(0u64, 0x9_f000u64, 1u32), (0x10_0000, 0x70_0000, 1), (0x80_0000, 0x1000, 4)] {
            let end = content.len() + entry_len as usize;
            content.extend(start.to_le_bytes());
            content.extend(len.to_le_bytes());
            content.extend(kind.to_le_bytes());
            content.resize(end, 0);
        }
        tag(TAG_MEMORY_MAP, &content)
    }

    fn module_tag(start: u32, end: u32, name: &[u8]) -> Vec<u8> {
        tag(TAG_MODULE, &[&start.to_le_bytes(), &end.to_le_bytes(), name].concat())
    }

    fn parse_tags(tags: &[Vec<u8>]) -> Result<BootInfo, BootError> {
        let tags = tags.concat();
        let mut bytes = [(tags.len() as u32 + 8).to_le_bytes(), [0; 4]].concat();
        bytes.extend(tags);
        bytes.resize(0x4000, 0xaa);
        BootInfo::parse(Loader::Multiboot2, BASE, (0x20_0000, 0x1000), &Fake(BASE, bytes.leak()))
    }

    #[test]
    fn a_whole_boot_information() {
        let info = parse_tags(&[
            tag(TAG_COMMAND_LINE, b"role=primary\0"),
            module_tag(0xb000, 0xb800, b"guest\0"),
            memory_tag(32),
            tag(TAG_RSDP_V1, &[0; 20]),
            tag(TAG_RSDP_V2, &[0; 36]),
            tag(TAG_END, b""),
        ])
        .unwrap();
        assert_eq!((info.command_line, info.loader), ("role=primary", Loader::Multiboot2));
        assert_eq!(info.modules[..], [Module { start: 0xb000, len: 0x800, name: "guest" }]);
        let rsdp_v2 = BASE + 8 + 24 + 24 + (16 + 3 * 32) + 32 + 8;
        assert_eq!(info.rsdp, Some(rsdp_v2));
        let regions: Vec<_> = info.memory.regions().iter().map(|region| (region.start, region.kind)).collect();
        assert_eq!(
            regions,
            [
                (0, RegionKind::Usable),
                (0x9000, RegionKind::LoaderData),
                (0xa000, RegionKind::Usable),
                (0xb000, RegionKind::Module),
                (0xc000, RegionKind::Usable),
                (0x10_0000, RegionKind::Usable),
                (0x20_0000, RegionKind::Image),
                (0x20_1000, RegionKind::Usable),
                (0x80_0000, RegionKind::AcpiNvs),
            ]
        );
    }

    #[test]
    fn bad_data_is_refused() {
        let end = || tag(TAG_END, b"");
        let error = |tags: &[Vec<u8>]| parse_tags(tags).map(|_| ()).unwrap_err();
        assert_eq!(error(&[end()]), BootError::NoMemoryMap);
        assert_eq!(error(&[memory_tag(24)]), BootError::Malformed("boot information"));
        assert_eq!(error(&[tag(TAG_BOOT_SERVICES_RUNNING, b""), end()]), BootError::BootServicesRunning);
        assert_eq!(error(&[tag(TAG_COMMAND_LINE, b"x"), end()]), BootError::BadString("command line"));
        assert_eq!(error(&[module_tag(0xb000, 0xa000, b"\0"), end()]), BootError::BadModule(0));
        assert_eq!(error(&[module_tag(0xb000, 0xd001, b"\0"), end()]), BootError::BadModule(0));
        let modules = vec![module_tag(0xb000, 0xb001, b"\0"); MAX_MODULES + 1];
        assert_eq!(error(&modules), BootError::TooManyModules);
    }

    proptest! {
        #[test]
        fn arbitrary_tags_never_panic(
            tags in prop::collection::vec((0u32..20, prop::collection::vec(any::<u8>(), 0..64), 0u32..80), 0..12),
            with_map in any::<bool>(),
        ) {
            let mut all: Vec<_> = tags
                .iter()
                .map(|(kind, content, len)| {
                    let mut bytes = tag(*kind, content);
                    if *len < 20 {
                        bytes[4..8].copy_from_slice(&len.to_le_bytes());
                    }
                    bytes
                })
                .collect();
            if with_map {
                all.insert(0, memory_tag(24));
            }
            all.push(tag(TAG_END, b""));
            let _ = parse_tags(&all);
        }
    }
}
