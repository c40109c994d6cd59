//! What GRUB is given, on a medium and over the network: its configuration, and the hypervisor as it takes it.

use anyhow::{Result, bail};

/// GRUB's modules that read our configuration and boot, whatever they are read from.
pub const MODULES: &str = "multiboot2 normal test mmap";

/// A configuration that boots at once: the hypervisor at `hypervisor` with `options`, one by one and without quotes, and
/// `modules`, each by its path and the name that the hypervisor knows it by.
///
/// # Errors
/// Options that GRUB cannot pass on.
pub fn configuration(
    hypervisor: &str,
    options: &[String],
    modules: impl Iterator<Item = (String, &'static str)>,
) -> Result<String> {
    // GRUB passes on what stands behind the file's name.
    let modules: String = modules.map(|(path, name)| format!("    module2 {path} {name}\n")).collect();
    let mut words = String::new();
    for word in options {
        check_option(word)?;
        words += &format!(" '{word}'");
    }
    // By UEFI, GRUB would put a small guest at address 0, where nothing in Rust can be.
    Ok(format!(
        "set timeout=0\n\
         set gfxpayload=text\n\
         if [ $grub_platform = efi ]; then cutmem 0 4K; fi\n\
         menuentry Pollux {{\n\
         \x20   multiboot2 {hypervisor}{words}\n\
         {modules}\
         }}\n"
    ))
}

/// Whether GRUB can pass on an option. Quoted as it is here GRUB takes all other characters as they are. It passes an
/// option with spaces in double quotes, and what it would escape our command line does not know how to read.
///
/// # Errors
/// Names the character.
pub fn check_option(word: &str) -> Result<()> {
    match word.chars().find(|c| "'\"\\".contains(*c)) {
        Some(bad) => bail!("GRUB cannot pass {bad} in the option `{word}`"),
        None => Ok(()),
    }
}

/// An ELF file without its sections, which GRUB would read and pass on, and which are mostly for debuggers. One is left,
/// the null section at index 0: a file without any is refused by GRUB 2.12 as Debian 13 has it ("invalid section header
/// table offset"). What cannot be understood is returned as it is: GRUB will complain.
/// See: "System V ABI", ELF-64 header, section header and program header.
pub fn without_sections(mut elf: Vec<u8>) -> Vec<u8> {
    const SECTION_OFFSET: std::ops::Range<usize> = 40..48;
    // Size of a header, how many, and which has the names.
    const SECTION_COUNTS: std::ops::Range<usize> = 58..64;
    const SECTION_HEADER: u8 = 64;
    if let Some(end) = end_of_segments(&elf)
        && end <= elf.len()
    {
        let table = end.next_multiple_of(8);
        elf[SECTION_OFFSET].copy_from_slice(&(table as u64).to_le_bytes());
        elf[SECTION_COUNTS].copy_from_slice(&[SECTION_HEADER, 0, 1, 0, 0, 0]);
        elf.truncate(end);
        elf.resize(table + usize::from(SECTION_HEADER), 0);
    }
    elf
}

/// Where the last of what the headers and segments need ends.
fn end_of_segments(elf: &[u8]) -> Option<usize> {
    const HEADER: usize = 64;
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?)));
    let u64_at = |at: usize| usize::try_from(u64::from_le_bytes(*elf.get(at..)?.first_chunk()?)).ok();
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (u64_at(32)?, u16_at(54)?, u16_at(56)?);
    let mut end = HEADER.max(table.checked_add(size * count)?);
    for header in (0..count).map(|number| table + number * size) {
        let (offset, length) = (u64_at(header.checked_add(8)?)?, u64_at(header.checked_add(32)?)?);
        end = end.max(offset.checked_add(length)?);
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> impl Iterator<Item = (String, &'static str)> {
        ["kernel", "initrd"].into_iter().map(|name| (format!("/boot/{name}"), name))
    }

    fn options(given: &[&str]) -> Vec<String> {
        given.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn options_are_quoted_for_grub() {
        let text = configuration(
            "/boot/pollux",
            &options(&["role=solo", "guest-args=ip=10.0.2.15/24 x=$y;{z}", "quiet"]),
            modules(),
        );
        let text = text.unwrap();
        let line = "    multiboot2 /boot/pollux 'role=solo' 'guest-args=ip=10.0.2.15/24 x=$y;{z}' 'quiet'\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("    module2 /boot/kernel kernel\n    module2 /boot/initrd initrd\n}\n"), "{text}");
    }

    /// A header, one program header, a segment of `segment` bytes, and as many of a section.
    fn elf(segment: u64) -> Vec<u8> {
        let mut elf = [&b"\x7fELF\x02\x01"[..], &[0xee; 114]].concat();
        let fields: [(usize, &[u8]); 5] = [
            (32, &64u64.to_le_bytes()),
            (54, &56u16.to_le_bytes()),
            (56, &1u16.to_le_bytes()),
            (64 + 8, &120u64.to_le_bytes()),
            (64 + 32, &segment.to_le_bytes()),
        ];
        for (at, bytes) in fields {
            elf[at..at + bytes.len()].copy_from_slice(bytes);
        }
        elf.resize(120 + 2 * 100, 7);
        elf
    }

    #[test]
    fn sections_are_left_out_and_segments_are_not() {
        let short = without_sections(elf(100));
        // The segment, padding, and the null section.
        assert_eq!(short.len(), 120 + 100 + 4 + 64);
        assert_eq!(short[40..48], 224u64.to_le_bytes());
        assert_eq!(short[58..64], [64, 0, 1, 0, 0, 0]);
        assert_eq!(short[120..220], [7; 100]);
        assert_eq!(short[220..], [0; 68]);
    }

    #[test]
    fn other_files_are_left_alone() {
        for strange in [elf(201), elf(u64::MAX), elf(100)[..100].to_vec(), b"#!/bin/sh".to_vec(), Vec::new()] {
            assert_eq!(without_sections(strange.clone()), strange);
        }
    }

    #[test]
    fn what_grub_cannot_pass_is_refused() {
        for bad in ["name=it's", "name=a\\b"] {
            let error = configuration("/boot/pollux", &options(&[bad]), modules()).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
