//! Boot media: an ISO image with GRUB, hypervisor and guest, for optical drives and USB sticks, BIOS and UEFI.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::guest::GuestFiles;
use crate::needs;
use crate::process::Process;
use crate::secret::{self, Secret};

/// GRUB's modules on the medium: what reads our configuration and boots, and those partition tables that GRUB's start-up
/// for UEFI asks for by name.
const MODULES: &str = "multiboot2 normal test mmap iso9660 part_acorn part_amiga part_apple part_bsd part_dfly part_dvh \
                       part_gpt part_msdos part_plan part_sun part_sunpc";
/// An image takes a second; longer than this it hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// What is on a medium.
#[derive(Debug)]
pub struct Image<'a> {
    /// The hypervisor's image.
    pub hypervisor: &'a Path,
    /// The guest's files.
    pub guest: &'a GuestFiles,
    /// The options on the hypervisor's command line, one by one, without quotes.
    pub options: Vec<String>,
    /// Secrets, by the names that the hypervisor knows them by. The medium is for its owner alone if there are any.
    pub secrets: &'a [(&'static str, Secret)],
}

impl Image<'_> {
    /// Makes the medium, replacing what is at `out`. Main thread only.
    ///
    /// # Errors
    /// Options that GRUB cannot pass on, files that cannot be read or written, and what GRUB complains about.
    pub fn write(&self, out: &Path) -> Result<()> {
        let tree = tempfile::Builder::new().prefix("pollux-image-").tempdir().context("cannot create a directory")?;
        let boot = tree.path().join("boot");
        fs::create_dir_all(boot.join("grub"))?;
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let write = |name, bytes| fs::write(boot.join(name), bytes).context("cannot write a temporary file");
        let modules = self.guest.modules().map(|(name, _)| name).chain(self.secrets.iter().map(|(name, _)| *name));
        write("grub/grub.cfg", configuration(&self.options, modules)?.into())?;
        write("pollux", without_sections(read(self.hypervisor)?))?;
        self.guest.modules().try_for_each(|(name, path)| write(name, read(path)?))?;
        self.secrets.iter().try_for_each(|(name, secret)| write(name, secret.bytes().to_vec()))?;
        if !self.secrets.is_empty() {
            secret::private(OpenOptions::new().create(true).truncate(true), out)
                .with_context(|| format!("cannot make the image {}", out.display()))?;
        }
        let mut command = Command::new(needs::MKRESCUE);
        command.arg("-o").arg(out).arg(tree.path());
        command.arg(format!("--install-modules={MODULES}")).args(["--locales=", "--fonts=", "--themes="]);
        let log = tempfile::tempfile().context("cannot create a temporary file")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let status = Process::spawn(&mut command)?.wait(LIMIT)?;
        ensure!(status.success(), "cannot make the image {} ({status})\n{}", out.display(), needs::tail(log));
        Ok(())
    }
}

/// GRUB's configuration: boot at once.
fn configuration(options: &[String], modules: impl Iterator<Item = &'static str>) -> Result<String> {
    // GRUB passes on what stands behind the file's name.
    let modules: String = modules.map(|name| format!("    module2 /boot/{name} {name}\n")).collect();
    let mut words = String::new();
    for word in options {
        // Quoted thus GRUB takes all other characters as they are. It passes an option with spaces in double quotes, and
        // what it would escape our command line does not know how to read.
        if let Some(bad) = word.chars().find(|c| "'\"\\".contains(*c)) {
            bail!("GRUB cannot pass {bad} in the option `{word}`");
        }
        words += &format!(" '{word}'");
    }
    // By UEFI, GRUB would put a small guest at address 0, where nothing in Rust can be.
    Ok(format!(
        "set timeout=0\n\
         set gfxpayload=text\n\
         if [ $grub_platform = efi ]; then cutmem 0 4K; fi\n\
         menuentry Pollux {{\n\
         \x20   multiboot2 /boot/pollux{words}\n\
         {modules}\
         }}\n"
    ))
}

/// An ELF file without its sections, which GRUB would read and pass on, and which are mostly for debuggers. One is left,
/// the null section at index 0: a file without any is refused by GRUB 2.12 as Debian 13 has it ("invalid section header
/// table offset"). What cannot be understood is returned as it is: GRUB will complain.
/// See: "System V ABI", ELF-64 header, section header and program header.
fn without_sections(mut elf: Vec<u8>) -> Vec<u8> {
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

    const MODULES_OF_LINUX: [&str; 2] = ["kernel", "initrd"];

    fn options(given: &[&str]) -> Vec<String> {
        given.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn options_are_quoted_for_grub() {
        let text = configuration(
            &options(&["role=solo", "guest-args=ip=10.0.2.15/24 x=$y;{z}", "quiet"]),
            MODULES_OF_LINUX.into_iter(),
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
            let error = configuration(&options(&[bad]), MODULES_OF_LINUX.into_iter()).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
