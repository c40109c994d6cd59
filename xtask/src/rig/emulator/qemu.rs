//! QEMU: a machine is a list of arguments.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Boot, Hardware, MachineSpec, Purpose, RtcClock, fill, lookup, medium, modules_file, network_files};
use crate::image::Image;
use crate::rig::accelerator::Accelerator;
use crate::{needs, netboot};

/// The machine; see the file.
const MACHINE: &str = include_str!("../../../../qemu/machine.args");
/// How a machine boots from what QEMU puts into its memory; see the file.
const KERNEL: &str = include_str!("../../../../qemu/kernel.args");
/// The same from a medium.
const MEDIUM: &str = include_str!("../../../../qemu/medium.args");
/// The same from the client network.
const NETWORK: &str = include_str!("../../../../qemu/network.args");
/// Firmware other than QEMU's own.
const UEFI: &str = include_str!("../../../../qemu/uefi.args");
/// The CPU without KVM; see the file.
const TCG: &str = include_str!("../../../../qemu/tcg.args");
/// The CPU with KVM; see the file.
const KVM: &str = include_str!("../../../../qemu/kvm.args");

/// The watchdog of a machine that is told to use one: not every QEMU has it.
const WATCHDOG: [&str; 2] = ["-device", "i6300esb,addr=8"];

/// What ends QEMU when a machine's probe is over, by twice the number that is written to its port, and one.
const EXIT: [&str; 2] = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"];
/// The option that says so.
const EXIT_OPTION: (&str, &str) = ("exit-port", "0xf4");

/// QEMU's own monitor, for `cargo xtask bench --profile` alone: a thread of it wakes at each end of a timer.
const CONTROL: &str = "-qmp unix:{control},server=on,wait=off";

/// The PCI device number of the first NIC in the machine's file.
pub const FIRST_SLOT: usize = 4;
/// The NICs in that file.
pub const CARDS: [Purpose; 2] = [Purpose::Client, Purpose::Log];

/// Where a machine's drive is on the PCI bus, if it has one.
pub const DRIVE: &str = "0:6.0";

/// Writes what the machine boots from, and makes its drive if there is none yet; the command that starts `machine` with `hardware`.
pub fn command(machine: &MachineSpec<'_>, accelerator: Accelerator, hardware: Hardware) -> Result<Command> {
    write_boot_files(machine, hardware.boot)?;
    if let Some(bytes) = machine.drive {
        make_drive(&drive_file(machine), bytes)?;
    }
    invocation(machine, accelerator, hardware)
}

/// Writes what the machine boots from.
fn write_boot_files(machine: &MachineSpec<'_>, boot: Boot) -> Result<()> {
    let MachineSpec { name, hypervisor, guest, private, .. } = *machine;
    let (options, secrets) = (machine.options.words().collect::<Vec<_>>(), &machine.secrets[..]);
    match boot {
        Boot::Kernel => guest.write_archive(&modules_file(machine), secrets),
        Boot::Iso | Boot::UefiIso => Image { hypervisor, guest, options, secrets }.write(&medium(machine)),
        Boot::Pxe | Boot::UefiPxe => {
            netboot::Machine { name, options: &options, secrets }.write(&network_files(private), guest)
        }
    }
}

/// The command alone.
fn invocation(machine: &MachineSpec<'_>, accelerator: Accelerator, hardware: Hardware) -> Result<Command> {
    let cpu = match accelerator {
        Accelerator::Tcg => arguments(TCG, machine, hardware)?,
        Accelerator::Kvm(vendor) => arguments(&KVM.replace("{virtualization}", vendor.feature()), machine, hardware)?,
    };
    let mut command = Command::new(needs::QEMU);
    command.args(cpu).args(arguments(MACHINE, machine, hardware)?);
    let boot = match hardware.boot {
        Boot::Kernel => KERNEL,
        Boot::Iso | Boot::UefiIso => MEDIUM,
        Boot::Pxe | Boot::UefiPxe => NETWORK,
    };
    command.args(arguments(boot, machine, hardware)?);
    if hardware.boot.is_by_uefi() {
        command.args(arguments(UEFI, machine, hardware)?);
    }
    if hardware.rtc == RtcClock::Vm {
        command.args(arguments(CONTROL, machine, hardware)?);
    }
    if machine.options.value("watchdog").is_some_and(|value| value != "off") {
        command.args(WATCHDOG);
    }
    if machine.options.value(EXIT_OPTION.0) == Some(EXIT_OPTION.1) {
        command.args(EXIT);
    }
    if machine.drive.is_some() {
        let file = drive_file(machine).display().to_string().replace(',', ",,");
        let drive = format!("file={file},if=none,id=drive,format=raw,discard=unmap,detect-zeroes=unmap");
        let device = format!("nvme,drive=drive,serial={},addr=6", machine.name);
        command.args(["-drive", &drive, "-device", &device]);
    }
    Ok(command)
}

/// What is on the machine's drive.
fn drive_file(machine: &MachineSpec<'_>) -> PathBuf {
    machine.directory.join(format!("{}.drive", machine.name))
}

/// Makes an empty drive of so many bytes; one that is there is kept as it is.
fn make_drive(path: &Path, bytes: u64) -> Result<()> {
    let shown = path.display();
    match File::create_new(path) {
        Ok(file) => file.set_len(bytes).with_context(|| format!("no room for the drive {shown}")),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let there = fs::metadata(path).with_context(|| format!("cannot read the drive {shown}"))?.len();
            ensure!(
                there == bytes,
                "the drive {shown} has {there} bytes, and should have {bytes}: give another --dir or --disk"
            );
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("cannot make the drive {shown}")),
    }
}

/// A machine with the CPU of a rig's, without KVM, and nothing else but the chipset and a wall clock.
pub fn plain() -> Command {
    let mut command = Command::new(needs::QEMU);
    command.args(TCG.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace));
    command.args([
        "-M",
        "pc",
        "-smp",
        "1",
        "-rtc",
        "clock=host,base=utc",
        "-display",
        "none",
        "-nodefaults",
        "-no-reboot",
    ]);
    command
}

/// The arguments of a description with the braces filled in.
fn arguments(description: &str, machine: &MachineSpec<'_>, hardware: Hardware) -> Result<Vec<String>> {
    let value = &|name: &str| match (name, hardware.rtc) {
        ("nic", _) => Ok(hardware.nic.name().to_owned()),
        ("boot-rom", _) => Ok(hardware.nic.boot_rom()),
        ("rtc", RtcClock::Host) => Ok("host".to_owned()),
        ("rtc", RtcClock::Vm) => Ok("vm".to_owned()),
        _ => lookup(name, machine),
    };
    let mut arguments = Vec::new();
    for line in description.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (flag, given) = line.split_once(' ').map_or((line, None), |(flag, given)| (flag, Some(given.trim())));
        arguments.push(flag.to_owned());
        if let Some(given) = given {
            let alone = given.starts_with('{') && given.find('}') == Some(given.len() - 1);
            // Within a list of options, commas are doubled.
            let in_list = |name: &str| value(name).map(|text| text.replace(',', ",,"));
            arguments.push(if alone { fill(given, value) } else { fill(given, in_list) }?);
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::super::{Card, NicModel, Plug};
    use super::*;
    use crate::guest::GuestFiles;
    use crate::net::PortPaths;
    use crate::rig::accelerator::Vendor;
    use crate::rig::options::CommandLine;

    fn rendered(accelerator: Accelerator, log: &str) -> Vec<String> {
        booted(Boot::Kernel, accelerator, log)
    }

    fn booted(boot: Boot, accelerator: Accelerator, log: &str) -> Vec<String> {
        let card = |purpose, mac: &str| {
            let paths = PortPaths { local: format!("/t/{mac}a").into(), remote: format!("/t/{mac}b").into() };
            Card { purpose, plug: Plug::Unix(paths), mac: mac.to_owned() }
        };
        let machine = MachineSpec {
            name: "castor",
            memory_mib: 160,
            hypervisor: Path::new("/b/hyper,visor"),
            guest: &GuestFiles::image("/b/guest".into()),
            options: CommandLine::given(&["role=primary".parse().unwrap(), "name=castor".parse().unwrap()]).unwrap(),
            secrets: Vec::new(),
            directory: Path::new("/d"),
            private: Path::new("/p"),
            log: log.into(),
            monitor: "/t/monitor".into(),
            cards: vec![card(Purpose::Client, "52:54:00:10:00:01"), card(Purpose::Log, "52:54:00:20:00:01")],
            drive: None,
        };
        let command =
            invocation(&machine, accelerator, Hardware { nic: NicModel::E1000, rtc: RtcClock::Host, boot }).unwrap();
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
            let arguments = rendered(Accelerator::Kvm(vendor), "/d/castor.log");
            assert_eq!(values(&arguments, "-cpu"), [cpu]);
            assert_eq!(values(&arguments, "-accel"), ["kvm,kernel-irqchip=on"]);
            assert!(values(&arguments, "-icount").is_empty());
        }
    }

    #[test]
    fn braces_are_filled_in() {
        let arguments = rendered(Accelerator::Tcg, "/d/castor.log");
        let after = |flag| values(&arguments, flag);
        assert_eq!(after("-m"), ["160"]);
        assert_eq!(after("-initrd"), ["/p/castor.modules"]);
        assert_eq!(after("-append"), ["role=primary name=castor"]);
        assert_eq!(after("-icount"), ["shift=0,sleep=on"]);
        assert_eq!(after("-serial"), ["chardev:log", "chardev:monitor"]);
        assert!(after("-device").contains(&"e1000,netdev=client,mac=52:54:00:10:00:01,addr=4,romfile="));
        assert!(!arguments.iter().any(|argument| argument.contains('{')), "{arguments:?}");
    }

    #[test]
    fn a_machine_boots_from_one_thing() {
        for boot in [Boot::Kernel, Boot::Iso, Boot::UefiIso, Boot::Pxe, Boot::UefiPxe] {
            let arguments = booted(boot, Accelerator::Tcg, "/d/castor.log");
            let all = arguments.join(" ");
            assert_eq!(all.contains("-kernel"), boot == Boot::Kernel);
            assert_eq!(all.contains("/p/castor.iso"), matches!(boot, Boot::Iso | Boot::UefiIso));
            assert_eq!(all.contains("efi-e1000.rom,bootindex=0"), boot.is_by_network());
            assert_eq!(all.contains(needs::UEFI), boot.is_by_uefi());
            assert_eq!(all.matches("netdev=client").count(), 1, "{all}");
            assert!(!all.contains('{'), "{all}");
        }
    }

    #[test]
    fn a_drive_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("castor.drive");
        make_drive(&path, 8192).unwrap();
        fs::write(&path, [7; 8192]).unwrap();
        make_drive(&path, 8192).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [7; 8192]);
        assert!(make_drive(&path, 4096).unwrap_err().to_string().contains("has 8192 bytes"));
        assert!(make_drive(directory.path().join("no/where").as_path(), 4096).is_err());
    }

    #[test]
    fn commas_are_doubled_only_within_lists() {
        let arguments = rendered(Accelerator::Tcg, "/d,e/castor.log");
        assert!(arguments.contains(&"file,id=log,path=/d,,e/castor.log,append=on".to_owned()));
        assert!(arguments.contains(&"/b/hyper,visor".to_owned()));
    }
}
