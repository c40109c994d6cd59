//! What machines run: hypervisor, guest, and their options.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::options::{
    Common, Disk, GUEST_ARGUMENTS, GUEST_MEMORY, GUEST_PORT, GivenOption, HYPERVISOR_MEMORY, parse_guest_arguments,
};
use crate::artefacts;
use crate::guest::{GuestFiles, LINUX_ARGUMENTS, LINUX_MEMORY, Probe, debian, disk};
use crate::secret::{KeyChoice, Secret};
use crate::units::{format_size, parse_size};

/// The guest unless another one is named. It speaks the protocol that a rig can probe.
pub const DEFAULT_GUEST: &str = "counter";
/// Our guests' memory unless `--guest-memory` says otherwise.
const USUAL_MEMORY: u64 = 64 << 20;
/// Memory of a machine in one piece: what lies below the devices.
const MACHINE_MEMORY: u64 = 3 << 30;
/// What a disk's size is a multiple of.
const SECTOR: u64 = 512;

/// The service of the small guest, and what is looked for in one that nothing is known of.
pub const COUNTER: Probe = Probe { name: DEFAULT_GUEST, port: GUEST_PORT, question: b"PING\r\n", answer: b"+PONG" };

/// What is to run.
#[derive(Debug, Args)]
pub struct SoftwareArgs {
    /// One of our guests, the path of an image, `debian`, or the place of a guest of that kind (see `cargo xtask guest`)
    #[arg(long, default_value = DEFAULT_GUEST, value_name = "NAME|PATH")]
    pub guest: String,
    /// A Linux kernel as the guest: a vmlinuz as it lies in /boot, or an ELF file
    #[arg(long, value_name = "FILE", conflicts_with = "guest")]
    pub kernel: Option<PathBuf>,
    /// Its initial ramdisk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The guest's command line [default: what the guest needs to be reached; for --kernel console=ttyS0]
    #[arg(long, visible_alias = "append", value_name = "TEXT", value_parser = parse_guest_arguments)]
    pub guest_args: Option<String>,
    /// The guest's memory [default: 64M; for --kernel 512M; for debian what it needs]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub guest_memory: Option<u64>,
    /// A disk for the guest, empty at first: SIZE in the memory of the machines, kept as long as one of them lives; nvme:SIZE on
    /// a drive of each machine's own, an image in the rig's directory that is kept
    #[arg(long, value_name = "[nvme:]SIZE", value_parser = parse_disk)]
    pub disk: Option<Disk>,
    /// The same, filled from this file, an image of a disk; the file itself is not changed
    #[arg(long, value_name = "FILE", conflicts_with = "disk")]
    pub disk_image: Option<PathBuf>,
    /// What the image is [default: raw]
    #[arg(long, requires = "disk_image", value_name = "FORMAT")]
    pub disk_format: Option<disk::Format>,
    /// Options of the hypervisors, or of one of them.
    #[arg(long, value_name = "OPTION", num_args = 1..)]
    #[arg(help = "An option of the hypervisors, or of one: [MACHINE:]KEY=VALUE (repeatable)")]
    pub hypervisor_option: Vec<GivenOption>,
    /// The pair's key (see `cargo xtask key`), or `none`: a pair without one [default: for rigs a fresh one; none for an image]
    #[arg(long, value_name = "FILE|none")]
    pub key: Option<KeyChoice>,
    /// The key that follows it, while the pair changes from one to the other: both are valid
    #[arg(long, value_name = "FILE", requires = "key")]
    pub key_next: Option<PathBuf>,
    /// Use this hypervisor instead of building one
    #[arg(long, value_name = "PATH")]
    pub hypervisor: Option<PathBuf>,
    /// Install what is missing
    #[arg(long)]
    pub yes: bool,
}

/// What runs.
#[derive(Debug)]
pub struct Software {
    /// The hypervisor's image.
    pub hypervisor: PathBuf,
    /// The guest's files.
    pub guest: GuestFiles,
    /// The options of the hypervisors.
    pub options: Common,
    /// What the guest serves once it is up.
    pub services: Vec<Probe>,
    /// Whether it is a whole operating system, which takes a while until it does.
    pub boots_long: bool,
}

impl SoftwareArgs {
    /// Builds what is ours. A pair gets a key: the one that the user named, else what `usual` draws.
    pub fn build(&self, usual: impl FnOnce() -> Result<Option<Secret>>) -> Result<Software> {
        let key = match &self.key {
            Some(KeyChoice::File(path)) => Some(Secret::read(path)?),
            Some(KeyChoice::Without) => None,
            None if self.hypervisor_option.iter().any(GivenOption::is_insecure) => None,
            None => usual()?,
        };
        let next_key = self.key_next.as_deref().map(Secret::read).transpose()?;
        ensure!(next_key.is_none() || key.is_some(), "--key-next follows a --key FILE, and this pair has no key");
        ensure!(next_key.is_none() || next_key != key, "--key and --key-next are the same key");
        // The guest first: a wrong name should not have to wait for the hypervisor's build.
        let (guest, memory, arguments, services) = self.build_guest()?;
        let boots_long = guest.has_initrd();
        let (guest, disk) = self.add_disk(guest, memory)?;
        let hypervisor = match &self.hypervisor {
            Some(path) => path.canonicalize().with_context(|| format!("hypervisor {}", path.display()))?,
            None => artefacts::build_hypervisor()?,
        };
        let options = Common {
            guest_memory: memory,
            disk,
            guest_arguments: self.guest_args.clone().unwrap_or(arguments),
            guest_seed: Secret::draw()?.hex(),
            key,
            next_key,
            record: false,
            given: self.hypervisor_option.clone(),
        };
        Ok(Software { hypervisor, guest, options, services, boots_long })
    }

    /// Whether it is the small guest that nobody asked for by name.
    pub fn is_default(&self) -> bool {
        self.kernel.is_none() && self.guest == DEFAULT_GUEST
    }

    /// The guest's files with those of its disk.
    fn add_disk(&self, guest: GuestFiles, memory: u64) -> Result<(GuestFiles, Option<Disk>)> {
        let (guest, disk) = match (&self.disk_image, self.disk) {
            (Some(image), _) => {
                let (guest, len) = guest.with_disk(image, self.disk_format, MACHINE_MEMORY)?;
                (guest, Disk::Image(len))
            }
            (None, Some(disk)) => (guest, disk),
            (None, None) => return Ok((guest, None)),
        };
        let needed = memory + HYPERVISOR_MEMORY + guest.len()? + disk.bytes();
        ensure!(
            needed <= MACHINE_MEMORY,
            "the guest's memory of {} and a disk of {} in memory do not fit into one machine, which has {}",
            format_size(memory),
            format_size(disk.bytes()),
            format_size(MACHINE_MEMORY)
        );
        Ok((guest, Some(disk)))
    }

    /// The guest's files, its memory, its usual command line, and its services.
    fn build_guest(&self) -> Result<(GuestFiles, u64, String, Vec<Probe>)> {
        if let Some(kernel) = &self.kernel {
            let memory = self.guest_memory.unwrap_or(LINUX_MEMORY);
            let files = GuestFiles::linux(kernel, self.initrd.as_deref(), memory)?;
            return Ok((files, memory, LINUX_ARGUMENTS.to_owned(), Vec::new()));
        }
        let built = match debian::in_place(Path::new(&self.guest)) {
            None if self.guest == debian::NAME && !Path::new(&self.guest).is_file() => {
                Some(debian::ensure_built(self.yes)?)
            }
            there => there,
        };
        if let Some(built) = built {
            ensure!(
                !built.needs_disk() || self.disk.is_some() || self.disk_image.is_some(),
                "this guest keeps its data on a disk: give it one, such as --disk nvme:1G"
            );
            let memory = self.guest_memory.unwrap_or(built.memory);
            let files = GuestFiles::linux(&built.kernel, Some(&built.initrd), memory)?;
            let services = built.probes().collect();
            return Ok((files, memory, built.arguments, services));
        }
        let memory = self.guest_memory.unwrap_or(USUAL_MEMORY);
        let files = GuestFiles::image(artefacts::guest(&self.guest, memory)?);
        let services = if self.guest == DEFAULT_GUEST { vec![COUNTER] } else { Vec::new() };
        Ok((files, memory, GUEST_ARGUMENTS.to_owned(), services))
    }
}

/// Reads the value of `--guest-memory`.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if !bytes.is_multiple_of(2 << 20) || !GUEST_MEMORY.contains(&bytes) {
        return Err(format!("`{text}` is not an even number of MiB from 8M to 3G"));
    }
    Ok(bytes)
}

/// Reads the value of `--disk`.
pub fn parse_disk(text: &str) -> Result<Disk, String> {
    let drive = text.strip_prefix("nvme:");
    let bytes = parse_size(drive.unwrap_or(text))?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        return Err(format!("`{text}` is no multiple of {SECTOR} bytes above 0"));
    }
    Ok(if drive.is_some() { Disk::Drive(bytes) } else { Disk::Ram(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_whole_sectors() {
        assert_eq!((parse_disk("512"), parse_disk("2G")), (Ok(Disk::Ram(512)), Ok(Disk::Ram(2 << 30))));
        assert_eq!(parse_disk("nvme:2G"), Ok(Disk::Drive(2 << 30)));
        for bad in ["0", "1000", "M", "", "nvme:", "nvme:1000", "nvme"] {
            assert!(parse_disk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_has_limits() {
        assert_eq!(parse_memory("64M"), Ok(64 << 20));
        for bad in ["1M", "4G", "64", "5000K", "x"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
