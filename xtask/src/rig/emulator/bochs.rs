//! Bochs: a machine is a file of settings and a disc to boot from.
//!
//! Bochs splits its settings at commas and knows no way to quote a quote, so that it is given plain names only, relative to
//! the rig's directory.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use xxhash_rust::xxh64::xxh64;

use super::version::BochsHelp;
use super::{MachineSpec, Patience, Purpose, fill, lookup, own_file};
use crate::image::Image;
use crate::needs;

/// The machine; see the file.
const MACHINE: &str = include_str!("../../../../qemu/bochsrc.in");
/// BIOSes of Bochs' that start nothing, by their XXH64: that of Ubuntu 24.04 (bochsbios 2.7+dfsg-4build5) writes a date over
/// its own stack, with any machine.
const BROKEN_BIOSES: [u64; 1] = [0x8271_e67a_a34e_a648];
/// What tells a debugger to go on.
const DEBUGGER: &str = "c\n";

/// The PCI device number of the first NIC: Bochs' slot 1 comes after host bridge and ISA bridge.
pub const FIRST_SLOT: usize = 2;
/// The NICs in the machine's file.
pub const CARDS: [Purpose; 3] = [Purpose::Client, Purpose::Log, Purpose::Machine];
/// Bochs keeps pace with the wall clock only to within a second: see the machine's file.
pub const PATIENCE: Patience = Patience { heartbeat: "200ms", suspect: "2500ms" };

/// Writes the machine's settings and its disc; the command that starts it.
pub fn command(machine: &MachineSpec<'_>) -> Result<Command> {
    let MachineSpec { hypervisor, guest, options, secrets, .. } = machine;
    let image = Image { hypervisor, guest, options: options.words().collect(), secrets };
    image.write(&own_file(machine, "iso"))?;
    let own = fs::read(needs::BOCHS_BIOS).with_context(|| format!("cannot read {}", needs::BOCHS_BIOS))?;
    write(machine, "bochsrc", &settings(machine, &own)?)?;
    let mut command = Command::new(needs::BOCHS);
    command.current_dir(machine.directory);
    // A killed machine leaves locks at what it had opened.
    command.args(["-q", "-unlock", "-f"]).arg(format!("{}.bochsrc", machine.name));
    if BochsHelp::ask()?.is_some_and(|help| help.starts_in_debugger()) {
        write(machine, "bochs-commands", DEBUGGER)?;
        command.arg("-rc").arg(format!("{}.bochs-commands", machine.name));
    }
    Ok(command)
}

/// Writes the machine's file called `what`.
fn write(machine: &MachineSpec<'_>, what: &str, text: &str) -> Result<()> {
    let path = own_file(machine, what);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The machine's file, where Bochs comes with the BIOS `own`.
fn settings(machine: &MachineSpec<'_>, own: &[u8]) -> Result<String> {
    fill(MACHINE, |name| if name == "bios" { Ok(bios(own)) } else { lookup(name, machine) })
}

/// What the machine starts from.
fn bios(own: &[u8]) -> String {
    if BROKEN_BIOSES.contains(&xxh64(own, 0)) {
        return needs::SEABIOS.to_owned();
    }
    format!("{}, options=fastboot", needs::BOCHS_BIOS)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Card, Plug};
    use super::*;
    use crate::guest::GuestFiles;
    use crate::rig::options::CommandLine;

    #[test]
    fn settings_are_filled_in() {
        let card = |purpose, ports: &[u16], mac: &str| {
            let plug = Plug::Udp(ports.to_vec());
            Card { purpose, plug, mac: mac.to_owned() }
        };
        let machine = MachineSpec {
            name: "castor",
            memory_mib: 160,
            hypervisor: Path::new("/b/hypervisor"),
            guest: &GuestFiles::image("/b/guest".into()),
            options: CommandLine::given(&[]).unwrap(),
            secrets: Vec::new(),
            directory: Path::new("/d, with a comma"),
            private: Path::new("/p"),
            log: "localhost:1".into(),
            monitor: "localhost:2".into(),
            cards: vec![
                card(Purpose::Client, &[20_000, 20_002], "52:54:00:12:34:56"),
                card(Purpose::Log, &[20_004], "52:54:00:20:00:01"),
                card(Purpose::Machine, &[20_000, 20_002], "52:54:00:10:00:01"),
            ],
            drive: None,
        };
        let settings = settings(&machine, b"works").unwrap();
        let lines: Vec<_> = settings.lines().filter(|line| !line.starts_with('#')).collect();
        for expected in [
            "megs: 160",
            "romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot",
            "ata0-master: type=cdrom, path=castor.iso, status=inserted",
            "com1: enabled=1, mode=socket-client, dev=localhost:1",
            "com2: enabled=1, mode=socket-client, dev=localhost:2",
            "e1000: card=0, enabled=1, mac=52:54:00:12:34:56, ethmod=socket, ethdev=20000",
            "e1000: card=1, enabled=1, mac=52:54:00:20:00:01, ethmod=socket, ethdev=20004",
            "e1000: card=2, enabled=1, mac=52:54:00:10:00:01, ethmod=socket, ethdev=20002",
        ] {
            assert!(lines.contains(&expected), "{expected} is not in\n{settings}");
        }
        assert!(!lines.iter().any(|line| line.contains('{') || line.contains("/d")), "{settings}");
    }
}
