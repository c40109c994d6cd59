//! The emulators that can play a machine. What is particular to one of them stays in its file in here, and in the
//! descriptions in `qemu/`.

mod bochs;
pub mod qemu;
pub mod version;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::accelerator::{Accelerator, Vendor};
use super::options::CommandLine;
use crate::guest::GuestFiles;
use crate::needs::{self, Need};
use crate::net::{Network, Plug, Transport};
use crate::secret::Secret;

pub use qemu::plain as plain_machine;

/// An emulator, ready to start machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emulator {
    /// QEMU.
    Qemu(Accelerator, Hardware),
    /// Bochs.
    Bochs,
}

/// The model of QEMU's NICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NicModel {
    /// Intel 82540EM.
    E1000,
    /// Intel 82574L.
    E1000e,
}

impl NicModel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::E1000, Self::E1000e];

    /// What QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
        }
    }

    /// The file with its boot ROM, for BIOS and UEFI in one.
    pub fn boot_rom(self) -> String {
        format!("{}/efi-{}.rom", needs::CARD_ROMS, self.name())
    }
}

/// What QEMU's machines boot from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Boot {
    /// QEMU itself puts hypervisor and guest into memory
    Kernel,
    /// A medium as `cargo xtask image` makes it, by BIOS
    Iso,
    /// The same by UEFI
    UefiIso,
    /// The client network, by BIOS: the card's own iPXE, then GRUB
    Pxe,
    /// The same by UEFI
    UefiPxe,
}

impl Boot {
    /// Whether machines boot from the client network.
    pub fn is_by_network(self) -> bool {
        matches!(self, Self::Pxe | Self::UefiPxe)
    }

    /// Whether their firmware is UEFI.
    pub fn is_by_uefi(self) -> bool {
        matches!(self, Self::UefiIso | Self::UefiPxe)
    }

    /// Memory that firmware and loader take of a machine beside the hypervisor, in bytes.
    fn memory(self) -> u64 {
        match self {
            Self::Kernel => 0,
            Self::Iso | Self::Pxe => 32 << 20,
            Self::UefiIso | Self::UefiPxe => 192 << 20,
        }
    }
}

/// What runs the wall clock of QEMU's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RtcClock {
    /// This desk's.
    Host,
    /// The machine's instructions, however slowly they are run.
    Vm,
}

/// What QEMU's machines have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Their cards.
    pub nic: NicModel,
    /// Their wall clock.
    pub rtc: RtcClock,
    /// What they boot from.
    pub boot: Boot,
}

/// The patience of the twins with each other, as options of the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// `heartbeat=`
    pub heartbeat: &'static str,
    /// `suspect=`
    pub suspect: &'static str,
}

/// What a NIC is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The guest's frames and, where cards take frames to other addresses than their own, the machine's.
    Client,
    /// The twin.
    Log,
    /// The machine's own frames in the clients' network.
    Machine,
}

impl Purpose {
    /// The network that it is in.
    pub fn network(self) -> Network {
        match self {
            Self::Client | Self::Machine => Network::Client,
            Self::Log => Network::Log,
        }
    }

    /// What a description of a machine calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Log => "log",
            Self::Machine => "machine",
        }
    }

    /// Its place among those of the machine's NICs that are in the same network.
    fn place(self) -> usize {
        match self {
            Self::Client | Self::Log => 0,
            Self::Machine => 1,
        }
    }
}

/// A NIC and its cable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// What it is for.
    pub purpose: Purpose,
    /// Where its cable ends.
    pub plug: Plug,
    /// Its hardware address.
    pub mac: String,
}

/// A machine to be started.
#[derive(Debug)]
pub struct MachineSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// The hypervisor's image.
    pub hypervisor: &'a Path,
    /// The guest's files.
    pub guest: &'a GuestFiles,
    /// Secrets for the machine, by the names that the hypervisor knows them by.
    pub secrets: Vec<(&'static str, Secret)>,
    /// The hypervisor's command line.
    pub options: CommandLine,
    /// The rig's directory, where files of the emulator may go that begin with the machine's name.
    pub directory: &'a Path,
    /// A directory for its owner alone, for what has secrets in it; what machines boot over the network is in
    /// [`network_files`] there.
    pub private: &'a Path,
    /// What COM1 is connected to: the path of a file that is appended to or, if the emulator cannot do that
    /// ([`Emulator::appends`]), a listener's address.
    pub log: String,
    /// The listener's address that COM2 is connected to.
    pub monitor: String,
    /// Its NICs, in the order of their places on the PCI bus.
    pub cards: Vec<Card>,
    /// Bytes of its drive, if it has one.
    pub drive: Option<u64>,
}

impl Emulator {
    /// What has to be installed for it.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Qemu(_, Hardware { boot, .. }) => match boot {
                Boot::Kernel => &[Need::Target, Need::Qemu],
                Boot::Iso => &[Need::Target, Need::Qemu, Need::Grub],
                Boot::UefiIso => &[Need::Target, Need::Qemu, Need::Grub, Need::Uefi],
                Boot::Pxe => &[Need::Target, Need::Qemu, Need::Grub, Need::CardRoms],
                Boot::UefiPxe => &[Need::Target, Need::Qemu, Need::Grub, Need::CardRoms, Need::Uefi],
            },
            Self::Bochs => &[Need::Target, Need::Bochs, Need::Grub],
        }
    }

    /// What was chosen, for the user.
    pub fn description(self) -> &'static str {
        match self {
            Self::Qemu(Accelerator::Tcg, _) => "QEMU TCG (AMD SVM in software)",
            Self::Qemu(Accelerator::Kvm(Vendor::Intel), _) => "QEMU KVM (Intel VMX)",
            Self::Qemu(Accelerator::Kvm(Vendor::Amd), _) => "QEMU KVM (AMD SVM)",
            Self::Bochs => "Bochs (Intel VMX in software)",
        }
    }

    /// What its machines boot from; none if that is no choice.
    pub fn boot(self) -> Option<Boot> {
        match self {
            Self::Qemu(_, Hardware { boot, .. }) => Some(boot),
            Self::Bochs => None,
        }
    }

    /// Whether its machines boot from the client network.
    pub fn boots_by_network(self) -> bool {
        self.boot().is_some_and(Boot::is_by_network)
    }

    /// Memory that firmware and loader take of a machine beside the hypervisor, in bytes.
    pub fn firmware_memory(self) -> u64 {
        self.boot().map_or(0, Boot::memory)
    }

    /// How its machines are attached to networks and monitors.
    pub fn transport(self) -> Transport {
        match self {
            Self::Qemu(..) => Transport::Unix,
            Self::Bochs => Transport::Loopback,
        }
    }

    /// Whether it appends to the file of a serial line, rather than to overwrite it at the next start.
    pub fn appends(self) -> bool {
        match self {
            Self::Qemu(..) => true,
            Self::Bochs => false,
        }
    }

    /// Whether a NIC drops frames to all addresses but its own, so that the client NIC must have the guest's.
    pub fn nics_are_strict(self) -> bool {
        match self {
            Self::Qemu(..) => false,
            Self::Bochs => true,
        }
    }

    /// The NICs of its machines, in the order of their places on the PCI bus.
    pub fn cards(self) -> &'static [Purpose] {
        match self {
            Self::Qemu(..) => &qemu::CARDS,
            Self::Bochs => &bochs::CARDS,
        }
    }

    /// The PCI address of its machines' NIC for `purpose`, if they have one.
    pub fn pci_address(self, purpose: Purpose) -> Option<String> {
        let first = match self {
            Self::Qemu(..) => qemu::FIRST_SLOT,
            Self::Bochs => bochs::FIRST_SLOT,
        };
        let place = self.cards().iter().position(|&card| card == purpose)?;
        Some(format!("0:{}.0", first + place))
    }

    /// How long the twins wait for each other.
    pub fn patience(self) -> Patience {
        match self {
            Self::Qemu(..) => Patience { heartbeat: "100ms", suspect: "1000ms" },
            Self::Bochs => bochs::PATIENCE,
        }
    }

    /// Writes what it needs into the machine's directory; the command that starts `machine`.
    pub fn command(self, machine: &MachineSpec<'_>) -> Result<Command> {
        match self {
            Self::Qemu(accelerator, hardware) => qemu::command(machine, accelerator, hardware),
            Self::Bochs if machine.drive.is_some() => bail!("Bochs has no NVMe drive: give --disk a size alone"),
            Self::Bochs => bochs::command(machine),
        }
    }
}

/// Replaces each `{name}` in `text` by its value.
fn fill(text: &str, value: impl Fn(&str) -> Result<String>) -> Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, behind)) = after.split_once('}') else { bail!("unclosed brace in `{text}`") };
        filled += before;
        filled += &value(name)?;
        rest = behind;
    }
    Ok(filled + rest)
}

/// What stands in a description for `name`, the same for all emulators: a property of the machine or, as in `client-mac`,
/// of one of its cards.
fn lookup(name: &str, machine: &MachineSpec<'_>) -> Result<String> {
    Ok(match name {
        "name" => machine.name.to_owned(),
        "memory-mib" => machine.memory_mib.to_string(),
        "hypervisor" => utf8(machine.hypervisor)?,
        "modules" => utf8(&modules_file(machine))?,
        "medium" => utf8(&medium(machine))?,
        "uefi" => needs::UEFI.to_owned(),
        "options" => machine.options.to_string(),
        "log" => machine.log.clone(),
        "monitor" => machine.monitor.clone(),
        "control" => utf8(&machine.private.join(format!("{}.qmp", machine.name)))?,
        _ => {
            let unknown = || format!("unknown name {{{name}}} in a description of a machine");
            let (purpose, property) = name.split_once('-').with_context(unknown)?;
            let card = machine.cards.iter().find(|card| card.purpose.name() == purpose).with_context(unknown)?;
            match (property, &card.plug) {
                ("mac", _) => card.mac.clone(),
                ("port", Plug::Udp(ports)) => ports.get(card.purpose.place()).with_context(unknown)?.to_string(),
                ("local", Plug::Unix(paths)) => utf8(&paths.local)?,
                ("remote", Plug::Unix(paths)) => utf8(&paths.remote)?,
                _ => bail!(unknown()),
            }
        }
    })
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("the path {} is not UTF-8", path.display()))
}

/// What machines boot over the network, in a rig's private directory.
pub fn network_files(private: &Path) -> PathBuf {
    private.join("netboot")
}

/// The medium that the machine boots from.
fn medium(machine: &MachineSpec<'_>) -> PathBuf {
    machine.private.join(format!("{}.iso", machine.name))
}

/// Guest and secrets in one file.
fn modules_file(machine: &MachineSpec<'_>) -> PathBuf {
    machine.private.join(format!("{}.modules", machine.name))
}

/// The file of the machine's emulator called `what`.
fn own_file(machine: &MachineSpec<'_>, what: &str) -> PathBuf {
    machine.directory.join(format!("{}.{what}", machine.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_filled_in() {
        let value = |name: &str| if name == "x" { Ok("y".to_owned()) } else { bail!("unknown name {name}") };
        assert_eq!(fill("a{x}b{x}", value).unwrap(), "ayby");
        assert_eq!(fill("none", value).unwrap(), "none");
        assert!(fill("{z}", value).unwrap_err().to_string().contains('z'));
        assert!(fill("{x", value).unwrap_err().to_string().contains("unclosed"));
    }
}
