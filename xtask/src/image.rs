//! Boot media: an ISO image with GRUB, hypervisor and guest, for optical drives and USB sticks, BIOS and UEFI.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::grub;
use crate::guest::GuestFiles;
use crate::needs;
use crate::process::Process;
use crate::secret::{self, Secret};

/// GRUB's modules on the medium beside the usual ones: what reads it, and those partition tables that GRUB's start-up for
/// UEFI asks for by name.
const MODULES: &str = "iso9660 part_acorn part_amiga part_apple part_bsd part_dfly part_dvh part_gpt part_msdos part_plan \
                       part_sun part_sunpc";
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
        let modules = modules.map(|name| (format!("/boot/{name}"), name));
        write("grub/grub.cfg", grub::configuration("/boot/pollux", &self.options, modules)?.into())?;
        write("pollux", grub::without_sections(read(self.hypervisor)?))?;
        self.guest.modules().try_for_each(|(name, path)| write(name, read(path)?))?;
        self.secrets.iter().try_for_each(|(name, secret)| write(name, secret.bytes().to_vec()))?;
        if !self.secrets.is_empty() {
            secret::private(OpenOptions::new().create(true).truncate(true), out)
                .with_context(|| format!("cannot make the image {}", out.display()))?;
        }
        let mut command = Command::new(needs::MKRESCUE);
        command.arg("-o").arg(out).arg(tree.path());
        command.arg(format!("--install-modules={} {MODULES}", grub::MODULES)).args([
            "--locales=",
            "--fonts=",
            "--themes=",
        ]);
        let log = tempfile::tempfile().context("cannot create a temporary file")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let status = Process::spawn(&mut command)?.wait(LIMIT)?;
        ensure!(status.success(), "cannot make the image {} ({status})\n{}", out.display(), needs::tail(log));
        Ok(())
    }
}
