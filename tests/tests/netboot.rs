//! Pairs that start as machines do: from a medium and over the network, by BIOS and by UEFI. The machine that was killed
//! boots the same way again.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pollux_tests::resp::Client;
use pollux_tests::rig::{Platform, Rig, TAKEOVER_LIMIT, fresh_directory};
use pollux_tests::{skip, xtask};

/// Firmware and loader run in software, two of each side by side.
const BOOT_LIMIT: Duration = Duration::from_secs(360);
/// How long a client waits for its answer.
const ANSWER: Duration = Duration::from_secs(20);
/// What the ways to boot need.
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";
const GRUB_FOR_UEFI: &str = "/usr/lib/grub/x86_64-efi";
const CARD_ROM: &str = "/usr/lib/ipxe/qemu/efi-e1000e.rom";

/// Starts a pair that boots by `way`, kills its primary, and has the dead machine boot again.
fn survives(way: &str, needs: &[&str]) -> Result<()> {
    if Platform::get() != Platform::Qemu {
        return skip("Bochs' machines boot from a medium in all tests");
    }
    if let Some(missing) = needs.iter().find(|path| !Path::new(path).exists()) {
        return skip(&format!("there is no {missing} (cargo xtask doctor --yes)"));
    }
    let mut rig = Rig::start(&format!("boot-{way}"), "counter", &["--boot", way])?;
    rig.wait_file("protected", BOOT_LIMIT, |file| file.protected)?;
    let mut client = Client::connect(&rig.service()?, ANSWER)?;
    ensure!(client.increment("x")? == 1);
    for log in ["castor.log", "pollux.log"] {
        ensure!(rig.read(log).contains("Multiboot2"), "{log}: it was no loader that started it\n{}", rig.report());
    }
    let survivor = rig.file()?.machine("backup")?.name.clone();
    let dead = rig.kill("primary")?;
    ensure!(client.increment("x")? == 2, "on the same connection");
    rig.wait_role(&survivor, "primary", TAKEOVER_LIMIT)?;
    rig.ask(&["start", "backup"])?;
    rig.wait_role(&dead, "backup", BOOT_LIMIT)?;
    rig.wait_file("protected again", BOOT_LIMIT, |file| file.protected)?;
    ensure!(client.increment("x")? == 3);
    let starts = rig.read(&format!("{dead}.log")).matches("Multiboot2").count();
    ensure!(starts == 2, "{dead} was started {starts} times by a loader");
    rig.stop()
}

#[test]
#[ignore = "takes a minute: cargo xtask test rig NAME --long"]
fn a_pair_that_boots_from_a_medium_by_bios() -> Result<()> {
    survives("iso", &[])
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_pair_that_boots_from_a_medium_by_uefi() -> Result<()> {
    survives("uefi-iso", &[FIRMWARE, GRUB_FOR_UEFI])
}

#[test]
#[ignore = "takes a minute: cargo xtask test rig NAME --long"]
fn a_pair_that_boots_over_the_network_by_bios() -> Result<()> {
    survives("pxe", &[CARD_ROM])
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_pair_that_boots_over_the_network_by_uefi() -> Result<()> {
    survives("uefi-pxe", &[CARD_ROM, FIRMWARE, GRUB_FOR_UEFI])
}

/// A pair without any machine.
fn write_pair(name: &str, address: &str) -> Result<PathBuf> {
    let directory = fresh_directory(name)?;
    fs::write(directory.join("pair.key"), [7; 32])?;
    let machine = |name: &str, last: u8, address: &str| {
        format!(
            "[[machine]]\nname = \"{name}\"\nmac = \"52:54:00:10:00:0{last}\"\nclient-nic = \"0:4.0\"\n\
             log-nic = \"0:5.0\"\nlog-address = \"{address}\"\n"
        )
    };
    let text = format!(
        "key = \"pair.key\"\narbiter = \"10.1.0.3\"\n[guest]\nimage = \"idle\"\n{}{}",
        machine("castor", 1, "10.1.0.1/24"),
        machine("pollux", 2, address)
    );
    fs::write(directory.join("pair.toml"), text)?;
    Ok(directory)
}

fn netboot(directory: &Path) -> Result<(bool, String)> {
    let [config, out] = ["pair.toml", "served"].map(|name| directory.join(name).display().to_string());
    let output = xtask::run(&["netboot", "--config", &config, "--out", &out])?;
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Ok((output.status.success(), text))
}

#[test]
fn what_a_pair_boots_is_made_of_one_file() -> Result<()> {
    if Platform::get() != Platform::Qemu {
        return skip("it needs no emulator");
    }
    let directory = write_pair("netboot", "10.1.0.2/24")?;
    let served = directory.join("served");
    // What is there already is replaced.
    for _ in 0..2 {
        let (made, text) = netboot(&directory)?;
        ensure!(made, "{text}");
    }
    for file in ["grub/i386-pc/core.0", "boot.ipxe", "pollux", "kernel", "machines/castor/key", "machines/pollux/key"] {
        ensure!(served.join(file).is_file(), "no {file}");
    }
    for name in ["castor", "pollux"] {
        let seed = fs::metadata(served.join(format!("machines/{name}/seed")))?;
        ensure!(seed.mode() & 0o777 == 0o600 && seed.len() == 32, "{seed:?}");
    }
    let own = fs::read_to_string(served.join("machines/pollux/grub.cfg")).context("pollux")?;
    ensure!(
        own.contains("'log-peer=10.1.0.1'")
            && own.contains("'role=auto'")
            && own.contains("/machines/pollux/seed seed"),
        "{own}"
    );
    let choice = fs::read_to_string(served.join("grub/grub.cfg"))?;
    ensure!(choice.contains("52:54:00:10:00:02") && choice.contains("/machines/pollux/grub.cfg"), "{choice}");
    Ok(())
}

#[test]
fn a_wrong_pair_is_refused_by_line_before_anything_is_written() -> Result<()> {
    if Platform::get() != Platform::Qemu {
        return skip("it needs no emulator");
    }
    let directory = write_pair("netboot-wrong", "10.1.9.2/24")?;
    let (made, text) = netboot(&directory)?;
    ensure!(!made && text.contains("pair.toml:16: 10.1.9.2/24 is not in the log network of its twin"), "{text}");
    ensure!(!directory.join("served").exists(), "something was written");
    Ok(())
}

/// A file by TFTP from the server at this port; none if it is refused. Asks again until there is a server.
fn fetch(port: u16, name: &str) -> Result<Option<Vec<u8>>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let (deadline, mut file, mut expected) = (Instant::now() + BOOT_LIMIT, Vec::new(), 1u16);
    let request = [b"\0\x01", name.as_bytes(), b"\0octet\0"].concat();
    let mut packet = [0; 1500];
    loop {
        ensure!(Instant::now() < deadline, "no answer");
        if expected == 1 {
            // Nobody may be there yet.
            let _ = socket.send_to(&request, ("127.0.0.1", port));
        }
        let Ok((len, from)) = socket.recv_from(&mut packet) else { continue };
        match packet[..len] {
            [0, 3, high, low, ref data @ ..] if u16::from_be_bytes([high, low]) == expected => {
                file.extend_from_slice(data);
                socket.send_to(&[0, 4, high, low], from)?;
                expected += 1;
                if data.len() < 512 {
                    return Ok(Some(file));
                }
            }
            [0, 3, ..] => {}
            [0, 5, ..] => return Ok(None),
            ref other => bail!("{other:?}"),
        }
    }
}

#[test]
fn a_desk_serves_what_was_made_and_nothing_else() -> Result<()> {
    if Platform::get() != Platform::Qemu {
        return skip("it needs no emulator");
    }
    let directory = write_pair("netboot-serve", "10.1.0.2/24")?;
    let [config, out] = ["pair.toml", "served"].map(|name| directory.join(name).display().to_string());
    let sockets = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0"));
    let mut ports = Vec::new();
    for socket in sockets {
        ports.push(socket?.local_addr()?.port());
    }
    let mut command = xtask::command();
    command.args(["netboot", "--config", &config, "--out", &out, "--serve", "--address", "127.0.0.1", "--ports"]);
    command.args(ports.iter().map(u16::to_string)).stdout(Stdio::null()).stdin(Stdio::null());
    let mut desk = command.spawn()?;
    let look = || -> Result<()> {
        for name in ["boot.ipxe", "/machines/castor/key", "pollux"] {
            let file = fetch(ports[2], name)?.with_context(|| format!("{name} is refused"))?;
            ensure!(
                file == fs::read(directory.join("served").join(name.trim_start_matches('/')))?,
                "{name} is another one"
            );
        }
        for name in ["../pair.key", "/../pair.toml", "grub", "none"] {
            ensure!(fetch(ports[2], name)?.is_none(), "{name} is served");
        }
        Ok(())
    };
    let looked = look();
    kill(Pid::from_raw(desk.id().cast_signed()), Signal::SIGINT)?;
    let status = desk.wait()?;
    looked?;
    ensure!(status.success(), "{status}");
    Ok(())
}
