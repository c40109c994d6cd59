//! Guests that are more than one of our own images: a kernel with an initial ramdisk, and what distributions make of them.

pub(crate) mod cpio;
pub mod debian;
pub mod disk;
mod kernel;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::secret::{self, Secret};
use crate::units::format_size;
use kernel::Kind;

/// What Linux is told unless `--append` says otherwise: a rig shows the first serial line and nothing else.
pub const LINUX_ARGUMENTS: &str = "console=ttyS0";
/// Linux's memory unless `--guest-memory` says otherwise.
pub const LINUX_MEMORY: u64 = 512 << 20;

/// How one finds out that a service of a guest serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// What the service is called.
    pub name: &'static str,
    /// Its TCP port.
    pub port: u16,
    /// What is sent to it.
    pub question: &'static [u8],
    /// How its answer begins.
    pub answer: &'static [u8],
}

/// The files that a guest starts from.
#[derive(Debug)]
pub struct GuestFiles {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    /// What is on the disk at first.
    disk: Option<PathBuf>,
    /// Where those are that were made for this run.
    scratch: Option<TempDir>,
}

impl GuestFiles {
    /// A guest that is one image.
    pub fn image(path: PathBuf) -> Self {
        Self { kernel: path, initrd: None, disk: None, scratch: None }
    }

    /// A Linux kernel, as it lies in `/boot` or unpacked, with an initial ramdisk, for a guest with `memory` bytes.
    ///
    /// # Errors
    /// Files that cannot be read, are not what they should be, or do not fit into the memory.
    pub fn linux(kernel: &Path, initrd: Option<&Path>, memory: u64) -> Result<Self> {
        let name = |what: &str, path: &Path| format!("{what} {}", path.display());
        let mut bytes = read(kernel, "kernel")?;
        let scratch = scratch_directory()?;
        let mut path = kernel.canonicalize().with_context(|| name("kernel", kernel))?;
        match kernel::kind(&bytes) {
            None => bail!("{} is neither an ELF file nor a vmlinuz", name("kernel", kernel)),
            Some(Kind::Elf) => {}
            Some(Kind::Vmlinuz) => {
                if let Some(unpacked) = kernel::unpack(&bytes).with_context(|| name("kernel", kernel))? {
                    path = scratch.path().join("kernel");
                    write(&path, &unpacked)?;
                    bytes = unpacked;
                }
            }
        }
        let ramdisk = initrd.map(|path| read(path, "initrd")).transpose()?;
        let total = bytes.len() as u64 + ramdisk.as_ref().map_or(0, |ramdisk| ramdisk.len() as u64);
        ensure!(
            total < memory,
            "kernel and initrd ({total} bytes) do not fit into the guest's memory of {}; see --guest-memory",
            format_size(memory)
        );
        let initrd = initrd.map(Path::canonicalize).transpose().context("initrd")?;
        Ok(Self { kernel: path, initrd, disk: None, scratch: Some(scratch) })
    }

    /// The same with a disk of at most `most` bytes that is filled from `image` at first; its length.
    ///
    /// # Errors
    /// See [`disk::make_raw`].
    pub fn with_disk(mut self, image: &Path, format: Option<disk::Format>, most: u64) -> Result<(Self, u64)> {
        let scratch = match self.scratch.take() {
            Some(scratch) => scratch,
            None => scratch_directory()?,
        };
        // What machines start with later must be what the first one started with.
        let copy = scratch.path().join("disk");
        let len = disk::make_raw(image, format, &copy, most)?;
        (self.disk, self.scratch) = (Some(copy), Some(scratch));
        Ok((self, len))
    }

    /// The names that files of guests have among [modules](Self::modules).
    pub const NAMES: [&str; 3] = ["kernel", "initrd", "disk"];

    /// The files of these names in `directory`; none without a kernel.
    pub fn unpacked(directory: &Path) -> Option<Self> {
        let [kernel, initrd, disk] = Self::NAMES.map(|name| Some(directory.join(name)).filter(|path| path.is_file()));
        Some(Self { kernel: kernel?, initrd, disk, scratch: None })
    }

    /// Whether it is a kernel with an initial ramdisk.
    pub fn has_initrd(&self) -> bool {
        self.initrd.is_some()
    }

    /// The files by the names that the hypervisor knows them by, for loaders that can pass several.
    pub fn modules(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let initrd = self.initrd.as_deref().map(|initrd| ("initrd", initrd));
        let disk = self.disk.as_deref().map(|disk| ("disk", disk));
        [("kernel", self.kernel.as_path())].into_iter().chain(initrd).chain(disk)
    }

    /// Writes all of it, and `secrets`, into one file for its owner alone: for loaders that can pass but one.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn write_archive(&self, path: &Path, secrets: &[(&str, Secret)]) -> Result<()> {
        let files = self.modules().map(|(name, path)| Ok((name, read(path, name)?))).collect::<Result<Vec<_>>>()?;
        let all = files.iter().map(|(name, content)| (*name, content.as_slice()));
        let all = all.chain(secrets.iter().map(|(name, secret)| (*name, secret.bytes())));
        let attempt = |mut all: Box<dyn Iterator<Item = (&str, &[u8])>>| -> std::io::Result<()> {
            let file = secret::private(fs::OpenOptions::new().create(true).truncate(true), path)?;
            let mut archive = cpio::Writer::new(std::io::BufWriter::new(file));
            let meta = cpio::Meta { mode: cpio::REGULAR | 0o600, ..cpio::Meta::default() };
            all.try_for_each(|(name, content)| archive.add(name, meta, content))?;
            archive.finish().map(drop)
        };
        attempt(Box::new(all)).with_context(|| format!("cannot write {}", path.display()))
    }

    /// How many bytes a boot loader puts into memory beside the guest's; heads of files and secrets find room in the
    /// hypervisor's share.
    ///
    /// # Errors
    /// When the files are gone.
    pub fn len(&self) -> Result<u64> {
        let len = |(_, path): (_, &Path)| {
            Ok(path.metadata().with_context(|| format!("guest image {}", path.display()))?.len())
        };
        self.modules().map(len).sum()
    }
}

fn scratch_directory() -> Result<TempDir> {
    tempfile::Builder::new().prefix("pollux-guest-").tempdir().context("cannot create a directory")
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {what} {}", path.display()))?;
    ensure!(!bytes.is_empty(), "{what} {} is empty", path.display());
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let (elf, text) = (file("vmlinux", b"\x7fELF and more"), file("script", b"#!/bin/sh"));
        let (initrd, empty) = (file("initrd", &[7; 100]), file("empty", b""));
        let error = |kernel: &Path, initrd: Option<&Path>, memory| {
            GuestFiles::linux(kernel, initrd, memory).map(|_| ()).unwrap_err().to_string()
        };
        assert!(error(&directory.path().join("none"), None, 1 << 20).contains("cannot read kernel"));
        assert!(error(&text, None, 1 << 20).contains("neither an ELF file nor a vmlinuz"));
        assert!(error(&elf, Some(&empty), 1 << 20).contains("is empty"));
        assert!(error(&elf, Some(&initrd), 113).contains("do not fit"));
        let files = GuestFiles::linux(&elf, Some(&initrd), 114).unwrap();
        assert_eq!(files.modules().map(|(name, _)| name).collect::<Vec<_>>(), ["kernel", "initrd"]);
        let archive = directory.path().join("archive");
        let secret = Secret::draw().unwrap();
        files.write_archive(&archive, &[("key", secret.clone())]).unwrap();
        let bytes = fs::read(&archive).unwrap();
        assert!(bytes.starts_with(b"070701"));
        for content in [&b"\x7fELF and more"[..], &[7; 100], secret.bytes()] {
            assert!(bytes.windows(content.len()).any(|window| window == content));
        }
        assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);

        let image = file("disk", &[7; 1024]);
        for (guest, names) in
            [(GuestFiles::image(elf.clone()), &["kernel", "disk"][..]), (files, &["kernel", "initrd", "disk"][..])]
        {
            let (guest, len) = guest.with_disk(&image, None, 1024).unwrap();
            assert_eq!((len, guest.modules().map(|(name, _)| name).collect::<Vec<_>>()), (1024, names.to_vec()));
            assert!(guest.len().unwrap() > 1024);
            // Whoever changes the file now changes nothing for this rig.
            fs::write(&image, [8; 1024]).unwrap();
            assert_eq!(fs::read(guest.modules().last().unwrap().1).unwrap(), [7; 1024]);
            fs::write(&image, [7; 1024]).unwrap();
        }
    }
}
