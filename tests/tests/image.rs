//! The boot medium that users write to a stick: every kind of firmware starts Pollux from it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::rig::{Platform, fresh_directory};
use pollux_tests::{skip, xtask};

const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";
/// Without it media boot by BIOS only.
const GRUB_FOR_UEFI: &str = "/usr/lib/grub/x86_64-efi";
/// Software emulation of UEFI takes most of it.
const LIMIT: Duration = Duration::from_secs(120);

/// An emulator that ends with the test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots `image` in a machine with some `firmware`; the first line that Pollux says.
fn first_line(image: &Path, firmware: &[&str]) -> Result<String> {
    let serial = image.with_extension("log");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "pc", "-m", "256", "-accel", "tcg", "-cpu", "EPYC", "-display", "none", "-nodefaults"]);
    command.arg("-cdrom").arg(image).args(firmware).arg("-serial").arg(format!("file:{}", serial.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut machine = Machine(command.spawn().context("cannot start QEMU")?);
    let deadline = Instant::now() + LIMIT;
    loop {
        let log = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
        // A line that is not finished yet comes again.
        let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
        if let Some(line) = complete.lines().find(|line| line.contains("Pollux ") && line.contains("Multiboot2")) {
            return Ok(line.to_owned());
        }
        ensure!(machine.0.try_wait()?.is_none(), "QEMU ended\n{log}");
        ensure!(Instant::now() < deadline, "Pollux does not start\n{log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn boots(name: &str, firmware: &[&str]) -> Result<()> {
    if Platform::get() != Platform::Qemu {
        return skip("a Bochs rig boots such an image in all of its tests");
    }
    let image = fresh_directory(name)?.join("pollux.iso");
    let path = image.to_str().context("path")?;
    let options = ["--hypervisor-option", "role=solo", "name=stick", "--guest-args", "two words"];
    let made = xtask::run(&[&["image", "--guest", "idle", "--out", path], &options[..]].concat())?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let line = first_line(&image, firmware)?;
    ensure!(line.contains("role=solo name=stick guest-memory=64M \"guest-args=two words\""), "{line}");
    Ok(())
}

#[test]
fn it_boots_by_bios() -> Result<()> {
    boots("image-bios", &[])
}

#[test]
fn it_boots_by_uefi() -> Result<()> {
    for path in [FIRMWARE, GRUB_FOR_UEFI] {
        if !Path::new(path).exists() {
            return skip(&format!("there is no {path} (cargo xtask doctor --yes)"));
        }
    }
    boots("image-uefi", &["-bios", FIRMWARE])
}
