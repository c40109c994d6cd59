//! What the boot loader says, and the files that it passes: options, lists of modules, kernels, archives.

use pollux_boot::elf::KernelImage;
use pollux_boot::linux::BzImage;
use pollux_boot::{BootInfo, Loader, PhysicalMemory};
use pollux_hypervisor::boot_files::BootFiles;
use pollux_hypervisor::config::Config;
use pollux_hypervisor::platform::loader::{self, GuestImage};

use crate::guest::with_memory;

/// The hypervisor's command line.
pub(crate) fn options(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    match Config::parse(line) {
        // What was taken, the protocol takes, too.
        Ok(config) => assert_eq!(config.protocol().check(), Ok(())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Where the fuzzed bytes lie.
const BASE: u64 = 0x1_0000;

/// Memory that holds nothing but these bytes.
struct Memory(&'static [u8]);

impl PhysicalMemory for Memory {
    fn bytes(&self, address: u64, len: usize) -> Option<&'static [u8]> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

/// The boot information of both protocols.
pub(crate) fn loader(data: &[u8]) {
    let bytes = Box::into_raw(Box::<[u8]>::from(data));
    // SAFETY: the box was just taken apart; nobody writes to it while it is lent out.
    #[allow(unsafe_code)]
    let memory = Memory(unsafe { &*bytes });
    for loader in [Loader::Pvh, Loader::Multiboot2] {
        let Ok(info) = BootInfo::parse(loader, BASE, (0x20_0000, 0x10_0000), &memory) else { continue };
        for module in &info.modules {
            let there = usize::try_from(module.len).ok().and_then(|len| memory.bytes(module.start, len));
            assert!(there.is_some(), "a module that cannot be read: {module:?}");
        }
        let regions = info.memory.regions();
        assert!(regions.windows(2).all(|pair| pair[0].end() <= pair[1].start), "{regions:?}");
        let _ = Config::parse(info.command_line);
    }
    // SAFETY: it is the box from above, and nothing that was made of it has outlived the loop.
    #[allow(unsafe_code)]
    drop(unsafe { Box::from_raw(bytes) });
}

/// The boot loader's one module when it can pass no more: an archive.
pub(crate) fn archive(data: &[u8]) {
    let Ok(files) = BootFiles::find([("", data)].into_iter()) else { return };
    assert!(!files.kernel.is_empty());
}

/// A guest's ELF file, or what calls itself one.
pub(crate) fn elf(data: &[u8]) {
    if let Ok(image) = KernelImage::parse(data) {
        let (start, end) = image.bounds();
        for segment in image.segments() {
            assert!(segment.gpa >= start && segment.end() <= end);
            assert!(segment.file_bytes.len() as u64 <= segment.mem_len);
        }
    }
    load(data, None);
}

/// A guest's `vmlinuz`, with what follows it as its ramdisk.
pub(crate) fn linux(data: &[u8]) {
    if let Ok(image) = BzImage::parse(data) {
        assert!(image.start().checked_add(image.mem_len()).is_some_and(|end| end <= 1 << 32));
    }
    load(data, Some(&data[data.len() / 2..]));
}

fn load(kernel: &[u8], initrd: Option<&[u8]>) {
    let image = GuestImage { kernel, command_line: "console=ttyS0", initrd };
    with_memory(|memory| {
        // Most are refused.
        let _ = loader::load(&image, &[0x5E; 32], memory);
    });
}
