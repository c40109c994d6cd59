//! What machines boot over the network: GRUB's images for BIOS and UEFI, its configuration, a script for iPXE, hypervisor,
//! guest, and what is each machine's own. `cargo xtask netboot` makes it of a `pair.toml`, and rigs of what they run.

pub mod pair;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::grub;
use crate::guest::GuestFiles;
use crate::needs;
use crate::process::Process;
use crate::secret::{self, Secret};

/// What firmware of the old kind loads.
pub const BIOS_IMAGE: &str = "grub/i386-pc/core.0";
/// What UEFI loads.
pub const UEFI_IMAGE: &str = "grub/x86_64-efi/core.efi";
/// What iPXE loads, which knows no Multiboot2 by itself.
pub const IPXE_SCRIPT: &str = "boot.ipxe";

/// The directory with what is each machine's own, by its name.
pub const MACHINES: &str = "machines";

/// How GRUB's first configuration begins.
pub const MADE: &str = "# Made by cargo xtask netboot.";

/// GRUB's modules in an image: all that it needs, so that it fetches none. HTTP is there for firmware that booted by it;
/// `minicmd` has `exit`.
const MODULES: &str = "net tftp http configfile echo sleep minicmd";
/// GRUB's images take a moment; longer than this they hang.
const LIMIT: Duration = Duration::from_secs(60);

/// GRUB for one kind of firmware.
struct Firmware {
    /// Where its parts are.
    parts: &'static str,
    /// What `grub-mkimage` calls the image.
    format: &'static str,
    /// The module that drives the card.
    card: &'static str,
    image: &'static str,
}

const FIRMWARE: [Firmware; 2] = [
    Firmware { parts: needs::GRUB_BIOS, format: "i386-pc-pxe", card: "pxe", image: BIOS_IMAGE },
    Firmware { parts: needs::GRUB_UEFI, format: "x86_64-efi", card: "efinet", image: UEFI_IMAGE },
];

/// What all machines of a pair boot.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// The hypervisor's image.
    pub hypervisor: &'a Path,
    /// The guest's files.
    pub guest: &'a GuestFiles,
    /// The machines by name, each with the MAC address of the card that it boots from, in small letters with colons.
    pub machines: &'a [(&'a str, &'a str)],
}

/// What is a machine's own.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Its name.
    pub name: &'a str,
    /// The hypervisor's options, one by one, without quotes.
    pub options: &'a [String],
    /// Secrets, by the names that the hypervisor knows them by; each in a file for its owner alone.
    pub secrets: &'a [(&'static str, Secret)],
}

impl Common<'_> {
    /// Writes it into `directory`. Main thread only.
    ///
    /// # Errors
    /// Files that cannot be read or written, and what GRUB complains about.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let mut firmware = FIRMWARE.iter().filter(|firmware| Path::new(firmware.parts).is_dir()).peekable();
        ensure!(firmware.peek().is_some(), "GRUB is there for no firmware: cargo xtask doctor");
        firmware.try_for_each(|firmware| firmware.write(directory))?;
        write(directory, "grub/grub.cfg", self.choice().as_bytes())?;
        write(directory, IPXE_SCRIPT, self.script().as_bytes())?;
        write(directory, "pollux", &grub::without_sections(read(self.hypervisor)?))?;
        // The guest may hold secrets of its own, and is nobody's who cannot read its files.
        self.guest.modules().try_for_each(|(name, path)| {
            let to = directory.join(name);
            fs::copy(path, &to).map(drop).with_context(|| format!("cannot copy {} to {}", path.display(), to.display()))
        })
    }

    /// GRUB's first configuration: which machine is it?
    fn choice(&self) -> String {
        let mut text = format!("{MADE}\n");
        for (index, (name, mac)) in self.machines.iter().enumerate() {
            let word = if index == 0 { "if" } else { "elif" };
            text += &format!(
                "{word} [ \"$net_default_mac\" = \"{mac}\" ]; then\n    configfile /{MACHINES}/{name}/grub.cfg\n"
            );
        }
        // Any other one goes on to its next way to boot, as iPXE's script has it, once somebody could read why.
        text + "else\n    echo \"Pollux: no machine of this pair boots from the card $net_default_mac\"\n    sleep 5\n    \
                exit\nfi\n"
    }

    /// iPXE's script: only for machines of the pair, so that others go on to their next way to boot.
    fn script(&self) -> String {
        let known: String =
            self.machines.iter().map(|(_, mac)| format!("iseq ${{netX/mac}} {mac} && goto known ||\n")).collect();
        format!(
            "#!ipxe\n\
             # Made by cargo xtask netboot. GRUB picks the machine by its MAC address.\n\
             {known}\
             echo Pollux: no machine of this pair boots from the card ${{netX/mac}}\n\
             exit 1\n\
             :known\n\
             iseq ${{platform}} efi && goto efi ||\n\
             chain {BIOS_IMAGE} || exit 1\n\
             :efi\n\
             chain {UEFI_IMAGE} || exit 1\n"
        )
    }
}

impl Machine<'_> {
    /// Writes it into the `directory` where `guest` is already.
    ///
    /// # Errors
    /// Options that GRUB cannot pass on, and files that cannot be written.
    pub fn write(&self, directory: &Path, guest: &GuestFiles) -> Result<()> {
        let own = format!("{MACHINES}/{}", self.name);
        let files = guest.modules().map(|(name, _)| (format!("/{name}"), name));
        let secrets = self.secrets.iter().map(|(name, _)| (format!("/{own}/{name}"), *name));
        let text = grub::configuration("/pollux", self.options, files.chain(secrets))?;
        write(directory, &format!("{own}/grub.cfg"), text.as_bytes())?;
        self.secrets.iter().try_for_each(|(name, secret)| {
            let path = directory.join(&own).join(name);
            let file = secret::private(OpenOptions::new().create(true).truncate(true), &path);
            file.and_then(|mut file| file.write_all(secret.bytes()))
                .with_context(|| format!("cannot write {}", path.display()))
        })
    }
}

impl Firmware {
    fn write(&self, directory: &Path) -> Result<()> {
        let out = directory.join(self.image);
        make_parent(&out)?;
        let mut command = Command::new(needs::MKIMAGE);
        // Where this begins with no device, GRUB adds the server that it came from.
        command.args(["-O", self.format, "-d", self.parts, "-p", "/grub", "-o"]).arg(&out).arg(self.card);
        command.args(MODULES.split(' ').chain(grub::MODULES.split(' ')));
        let log = tempfile::tempfile().context("cannot create a temporary file")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        let status = Process::spawn(&mut command)?.wait(LIMIT)?;
        ensure!(status.success(), "cannot make {} ({status})\n{}", out.display(), needs::tail(log));
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = directory.join(name);
    make_parent(&path)?;
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_machine_finds_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let guest = GuestFiles::image("/g/guest".into());
        let machines = [("castor", "52:54:00:10:00:01"), ("pollux", "52:54:00:10:00:02")];
        let common = Common { hypervisor: Path::new("/h"), guest: &guest, machines: &machines };
        let (choice, script) = (common.choice(), common.script());
        for (name, mac) in machines {
            let lines =
                format!("if [ \"$net_default_mac\" = \"{mac}\" ]; then\n    configfile /machines/{name}/grub.cfg\n");
            assert!(choice.contains(&lines), "{choice}");
            assert!(script.contains(&format!("iseq ${{netX/mac}} {mac} && goto known ||\n")), "{script}");
        }
        let (_, other) = choice.split_once("else\n").unwrap();
        assert!(other.contains("    exit\n") && !choice.contains("reboot"), "{choice}");
        let secrets = [("key", Secret::draw().unwrap())];
        let options = ["role=auto".to_owned(), "guest-args=a b".to_owned()];
        Machine { name: "castor", options: &options, secrets: &secrets }.write(directory.path(), &guest).unwrap();
        let own = directory.path().join("machines/castor");
        let text = fs::read_to_string(own.join("grub.cfg")).unwrap();
        assert!(
            text.contains("    multiboot2 /pollux 'role=auto' 'guest-args=a b'\n    module2 /kernel kernel\n"),
            "{text}"
        );
        assert!(text.contains("    module2 /machines/castor/key key\n"), "{text}");
        let key = own.join("key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&key).unwrap(), secrets[0].1.bytes());
    }
}
