//! The emulators that can play a machine. What is particular to one of them stays in here and in its folder of descriptions.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::accelerator::{Accelerator, Vendor};
use crate::needs::{self, Need};

/// QEMU's machine; see the file.
const QEMU_MACHINE: &str = include_str!("../../../qemu/machine.args");
/// QEMU's CPU without KVM; see the file.
const QEMU_TCG: &str = include_str!("../../../qemu/tcg.args");
/// QEMU's CPU with KVM; see the file.
const QEMU_KVM: &str = include_str!("../../../qemu/kvm.args");

/// An emulator, ready to start machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emulator {
    /// QEMU.
    Qemu(Accelerator),
}

/// The model of both NICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NicModel {
    /// Intel 82540EM.
    E1000,
    /// Intel 82574L.
    E1000e,
}

/// One end of a NIC's cable: a pair of datagram sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cable {
    /// The emulator's socket.
    pub local: PathBuf,
    /// The switch's socket.
    pub remote: PathBuf,
    /// The NIC's hardware address.
    pub mac: &'static str,
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
    /// The guest's image.
    pub guest: &'a Path,
    /// The hypervisor's command line.
    pub options: String,
    /// The file that COM1 is appended to.
    pub serial: &'a Path,
    /// The socket that COM2 connects to; somebody must listen.
    pub monitor: &'a Path,
    /// The model of the NICs.
    pub nic: NicModel,
    /// The client NIC's cable.
    pub client: Cable,
    /// The log NIC's cable.
    pub log: Cable,
}

impl Emulator {
    /// What has to be installed for it.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Qemu(_) => &[Need::Target, Need::Qemu],
        }
    }

    /// What was chosen, for the user.
    pub fn description(self) -> &'static str {
        match self {
            Self::Qemu(Accelerator::Tcg) => "QEMU TCG (AMD SVM in software)",
            Self::Qemu(Accelerator::Kvm(Vendor::Intel)) => "QEMU KVM (Intel VMX)",
            Self::Qemu(Accelerator::Kvm(Vendor::Amd)) => "QEMU KVM (AMD SVM)",
        }
    }

    /// The command that starts `machine`.
    pub fn command(self, machine: &MachineSpec<'_>) -> Result<Command> {
        let Self::Qemu(accelerator) = self;
        let cpu = match accelerator {
            Accelerator::Tcg => fill(QEMU_TCG, machine)?,
            Accelerator::Kvm(vendor) => fill(&QEMU_KVM.replace("{virtualization}", vendor.feature()), machine)?,
        };
        let mut command = Command::new(needs::QEMU);
        command.args(cpu).args(fill(QEMU_MACHINE, machine)?);
        Ok(command)
    }
}

/// The arguments of a description with the braces filled in.
fn fill(description: &str, machine: &MachineSpec<'_>) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for line in description.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (flag, value) = line.split_once(' ').map_or((line, None), |(flag, value)| (flag, Some(value.trim())));
        arguments.push(flag.to_owned());
        if let Some(value) = value {
            arguments.push(fill_value(value, machine)?);
        }
    }
    Ok(arguments)
}

fn fill_value(value: &str, machine: &MachineSpec<'_>) -> Result<String> {
    if let Some(name) =
        value.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).filter(|name| !name.contains('{'))
    {
        return lookup(name, machine);
    }
    let mut filled = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else { bail!("a brace is not closed in `{value}`") };
        filled.push_str(before);
        filled.push_str(&lookup(name, machine)?.replace(',', ",,"));
        rest = after;
    }
    Ok(filled + rest)
}

fn lookup(name: &str, machine: &MachineSpec<'_>) -> Result<String> {
    let path = |path: &Path| match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => bail!("the path {} is not UTF-8", path.display()),
    };
    Ok(match name {
        "name" => machine.name.to_owned(),
        "memory-mib" => machine.memory_mib.to_string(),
        "hypervisor" => path(machine.hypervisor)?,
        "guest" => path(machine.guest)?,
        "options" => machine.options.clone(),
        "serial" => path(machine.serial)?,
        "monitor" => path(machine.monitor)?,
        "nic" => match machine.nic {
            NicModel::E1000 => "e1000".to_owned(),
            NicModel::E1000e => "e1000e".to_owned(),
        },
        "client-mac" => machine.client.mac.to_owned(),
        "client-local" => path(&machine.client.local)?,
        "client-remote" => path(&machine.client.remote)?,
        "log-mac" => machine.log.mac.to_owned(),
        "log-local" => path(&machine.log.local)?,
        "log-remote" => path(&machine.log.remote)?,
        _ => bail!("unknown name {{{name}}} in a description of a machine"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(accelerator: Accelerator, serial: &str) -> Vec<String> {
        let cable =
            |name: &str, mac| Cable { local: format!("/t/{name}a").into(), remote: format!("/t/{name}b").into(), mac };
        let machine = MachineSpec {
            name: "castor",
            memory_mib: 160,
            hypervisor: Path::new("/b/hyper,visor"),
            guest: Path::new("/b/guest"),
            options: "role=primary name=castor".into(),
            serial: Path::new(serial),
            monitor: Path::new("/t/monitor"),
            nic: NicModel::E1000,
            client: cable("c", "52:54:00:10:00:01"),
            log: cable("l", "52:54:00:20:00:01"),
        };
        let command = Emulator::Qemu(accelerator).command(&machine).unwrap();
        command.get_args().map(|argument| argument.to_str().unwrap().to_owned()).collect()
    }

    /// What stands behind each `flag`.
    fn values<'a>(arguments: &'a [String], flag: &str) -> Vec<&'a str> {
        let pairs = arguments.windows(2).filter(|pair| pair[0] == flag);
        pairs.map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn kvm_offers_virtualization_and_counters() {
        for (vendor, cpu) in [(Vendor::Intel, "host,pmu=on,+vmx"), (Vendor::Amd, "host,pmu=on,+svm")] {
            let arguments = arguments(Accelerator::Kvm(vendor), "/d/castor.log");
            assert_eq!(values(&arguments, "-cpu"), [cpu]);
            assert_eq!(values(&arguments, "-accel"), ["kvm,kernel-irqchip=on"]);
            assert!(values(&arguments, "-icount").is_empty());
        }
    }

    #[test]
    fn braces_are_filled_in() {
        let arguments = arguments(Accelerator::Tcg, "/d/castor.log");
        let after = |flag| values(&arguments, flag);
        assert_eq!(after("-m"), ["160"]);
        assert_eq!(after("-append"), ["role=primary name=castor"]);
        assert_eq!(after("-icount"), ["shift=0,sleep=on"]);
        assert_eq!(after("-serial"), ["chardev:log", "chardev:monitor"]);
        assert_eq!(after("-device")[0], "e1000,netdev=client,mac=52:54:00:10:00:01,addr=4,romfile=");
        assert!(!arguments.iter().any(|argument| argument.contains('{')), "{arguments:?}");
    }

    #[test]
    fn commas_are_doubled_only_within_lists() {
        let arguments = arguments(Accelerator::Tcg, "/d,e/castor.log");
        assert!(arguments.contains(&"file,id=log,path=/d,,e/castor.log,append=on".to_owned()));
        assert!(arguments.contains(&"/b/hyper,visor".to_owned()));
    }
}
