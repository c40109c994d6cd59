//! What this desk must have, how to find out whether it has, and how to install it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::artefacts::METAL;
use crate::interrupt;
use crate::output::complain;
use crate::process::{self, Process};
use crate::rig::emulator::NicModel;
use crate::rig::emulator::version::{self, BochsHelp};
use crate::spinner::Spinner;

/// The oldest QEMU with `-netdev dgram`.
pub const OLDEST_QEMU: (u32, u32) = (7, 2);
/// QEMU's program.
pub const QEMU: &str = "qemu-system-x86_64";
/// Bochs' program.
pub const BOCHS: &str = "bochs";
/// GRUB's program that makes boot media.
pub const MKRESCUE: &str = "grub-mkrescue";
/// GRUB's program that makes images for the network.
pub const MKIMAGE: &str = "grub-mkimage";
/// GRUB's parts for BIOS.
pub const GRUB_BIOS: &str = "/usr/lib/grub/i386-pc";
/// GRUB's parts for UEFI.
pub const GRUB_UEFI: &str = "/usr/lib/grub/x86_64-efi";
/// UEFI firmware for QEMU.
pub const UEFI: &str = "/usr/share/ovmf/OVMF.fd";
/// Boot ROMs of QEMU's network cards.
pub const CARD_ROMS: &str = "/usr/lib/ipxe/qemu";
/// The BIOS that comes with Bochs.
pub const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
/// The one that comes with QEMU, and takes seconds longer.
pub const SEABIOS: &str = "/usr/share/seabios/bios.bin";
/// The files that Bochs' machines refer to; see `qemu/bochsrc.in`.
const BOCHS_FILES: [&str; 3] = [BOCHS_BIOS, SEABIOS, "/usr/share/vgabios/vgabios.bin"];
/// What Debian signs its packages with.
pub const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where GRUB has its parts, by firmware.
const GRUB_PARTS: [(&str, &str); 2] = [("BIOS", GRUB_BIOS), ("UEFI", GRUB_UEFI)];

/// There while systemd runs the machine.
const SYSTEMD: &str = "/run/systemd/system";

/// An installation that takes longer hangs.
const INSTALL_LIMIT: Duration = Duration::from_secs(1200);

/// Something that has to be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Rust's core library for bare metal.
    Target,
    /// QEMU.
    Qemu,
    /// Bochs with its firmware.
    Bochs,
    /// GRUB, and what it makes boot media with.
    Grub,
    /// What finds, fetches and unpacks Debian's packages, on any desk.
    Apt,
    /// `redis-cli` and `redis-benchmark`, which the tests use as clients.
    Redis,
    /// A real etcd, for tests of the arbiter, and what makes certificates for one.
    Etcd,
    /// What etcd's client library is built with.
    Protoc,
    /// UEFI firmware for QEMU and GRUB's part for it, for tests of boot media.
    Uefi,
    /// Boot ROMs of QEMU's network cards.
    CardRoms,
    /// What makes other formats of disk images raw.
    QemuImg,
    /// A reader of captures, for tests of our dissector.
    Tshark,
    /// GDB, for a test of recordings under it.
    Gdb,
    /// A C++ compiler, which builds libFuzzer.
    Cxx,
}

/// Whether something is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is; with its version or place.
    Present(String),
    /// It is not.
    Missing,
    /// It is, but cannot be used; why.
    Unusable(String),
}

impl Need {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Target,
        Self::Qemu,
        Self::Bochs,
        Self::Grub,
        Self::Apt,
        Self::Redis,
        Self::Etcd,
        Self::Protoc,
        Self::Uefi,
        Self::CardRoms,
        Self::QemuImg,
        Self::Tshark,
        Self::Gdb,
        Self::Cxx,
    ];

    /// Whether nothing needs it but fuzzing, single options, and single tests, which are skipped without it.
    pub fn is_optional(self) -> bool {
        matches!(
            self,
            Self::Etcd
                | Self::Protoc
                | Self::Uefi
                | Self::CardRoms
                | Self::QemuImg
                | Self::Tshark
                | Self::Gdb
                | Self::Cxx
        )
    }

    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Target => "Rust for x86_64-unknown-none",
            Self::Qemu => "QEMU 7.2 or newer",
            Self::Bochs => "Bochs",
            Self::Grub => "GRUB and xorriso",
            Self::Apt => "apt-get, dpkg-deb, Debian's keys",
            Self::Redis => "redis-cli, redis-benchmark",
            Self::Etcd => "etcd, openssl (optional)",
            Self::Protoc => "protoc (optional)",
            Self::Uefi => "UEFI firmware (optional)",
            Self::CardRoms => "boot ROMs of QEMU's cards (optional)",
            Self::QemuImg => "qemu-img (optional)",
            Self::Tshark => "tshark (optional)",
            Self::Gdb => "gdb (optional)",
            Self::Cxx => "C++ compiler (optional)",
        }
    }

    /// What it is for.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Target => "build the hypervisor and the guests",
            Self::Qemu => "cargo xtask qemu, cargo xtask test rig",
            Self::Bochs => "cargo xtask bochs, cargo xtask test rig",
            Self::Grub => "cargo xtask image, netboot and bochs, cargo xtask test rig",
            Self::Apt => "cargo xtask guest",
            Self::Redis => "cargo xtask test rig",
            Self::Etcd => "tests of the arbiter with a real etcd",
            Self::Protoc => "an arbiter in front of an etcd cluster, and its tests",
            Self::Uefi => "cargo xtask qemu --boot uefi-iso and uefi-pxe, tests that boot by UEFI",
            Self::CardRoms => "cargo xtask qemu --boot pxe and uefi-pxe, and their tests",
            Self::QemuImg => "--disk-format qcow2, and its test",
            Self::Tshark => "tests of the dissector for Wireshark",
            Self::Gdb => "recordings under GDB, and their test",
            Self::Cxx => "cargo xtask fuzz",
        }
    }

    /// Looks for it.
    pub fn state(self) -> Result<State> {
        match self {
            Self::Target => target_state(),
            Self::Qemu => match version_line(QEMU)? {
                Some(line) => Ok(judge_qemu(&line)),
                None => Ok(State::Missing),
            },
            Self::Bochs => bochs_state(),
            Self::Grub => grub_state(),
            Self::Apt => match (version_line("apt-get")?, version_line("dpkg-deb")?) {
                (Some(line), Some(_)) if Path::new(DEBIAN_KEYS).is_file() => Ok(State::Present(line)),
                _ => Ok(State::Missing),
            },
            Self::Redis => match (version_line("redis-cli")?, version_line("redis-benchmark")?) {
                (Some(line), Some(_)) => Ok(State::Present(line)),
                _ => Ok(State::Missing),
            },
            Self::Etcd => match (version_line("etcd")?, output_line("openssl", "version")?) {
                (Some(line), Some(_)) => Ok(State::Present(line)),
                _ => Ok(State::Missing),
            },
            Self::Protoc => protoc_state(),
            Self::Uefi => Ok(uefi_state()),
            Self::CardRoms => Ok(card_roms_state()),
            Self::QemuImg => Ok(version_line("qemu-img")?.map_or(State::Missing, State::Present)),
            Self::Tshark => Ok(version_line("tshark")?.map_or(State::Missing, State::Present)),
            Self::Gdb => Ok(version_line("gdb")?.map_or(State::Missing, State::Present)),
            Self::Cxx => Ok(version_line("c++")?.map_or(State::Missing, State::Present)),
        }
    }

    /// The commands that install it.
    fn commands(self) -> Vec<Vec<&'static str>> {
        match self {
            Self::Target => vec![vec!["rustup", "target", "add", METAL]],
            Self::Qemu => apt(&["qemu-system-x86"]),
            Self::Bochs => apt(&["bochs", "bochsbios", "seabios", "vgabios"]),
            Self::Grub => apt(&["grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "xorriso", "mtools"]),
            Self::Apt => apt(&["apt", "dpkg", "debian-archive-keyring"]),
            Self::Redis => apt(&["redis-tools"]),
            Self::Etcd => etcd_commands(Path::new(SYSTEMD).exists()),
            Self::Protoc => apt(&["protobuf-compiler", "libprotobuf-dev"]),
            Self::Uefi => apt(&["ovmf", "grub-efi-amd64-bin"]),
            Self::CardRoms => apt(&["ipxe-qemu"]),
            Self::QemuImg => apt(&["qemu-utils"]),
            Self::Tshark => apt(&["tshark"]),
            Self::Gdb => apt(&["gdb"]),
            Self::Cxx => apt(&["g++"]),
        }
    }

    /// The same as a line for a shell.
    pub fn command_line(self) -> String {
        let commands = self.commands().into_iter();
        commands.map(|command| shell_line(&with_sudo(command, is_root()))).collect::<Vec<_>>().join(" && ")
    }

    /// Installs it.
    fn install(self) -> Result<()> {
        if self.commands().iter().any(|command| needs_root(command)) && !is_root() {
            // Asks for the password, if need be, while we still have the terminal.
            let status = Command::new("sudo").arg("-v").status().context("cannot run sudo")?;
            ensure!(status.success(), "sudo refuses; as root: {}", self.command_line());
        }
        let spinner = Spinner::start(format!("installing {}", self.name()));
        for command in self.commands() {
            let command = with_sudo(command, is_root());
            let line = shell_line(&command);
            spinner.detail(&line);
            let [program, arguments @ ..] = command.as_slice() else { continue };
            let mut child = Command::new(program);
            child.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
            // The output would disturb the progress line, and matters only when it fails.
            let log = tempfile::tempfile().context("cannot create a temporary file")?;
            child.stdout(log.try_clone()?).stderr(log.try_clone()?);
            let status = Process::spawn(&mut child)?.wait(INSTALL_LIMIT)?;
            ensure!(status.success(), "`{line}` failed ({status})\n{}", tail(log));
        }
        spinner.done();
        match self.state()? {
            State::Present(_) => Ok(()),
            State::Missing => bail!("{} is still missing after `{}`", self.name(), self.command_line()),
            State::Unusable(why) => bail!("{}: {why}", self.name()),
        }
    }
}

/// Makes sure that all of `needs` are there. What is missing is installed if we are root or `yes` was said; otherwise the
/// error is the command to type.
pub fn ensure_present(needs: &[Need], yes: bool) -> Result<()> {
    for &need in needs {
        match need.state()? {
            State::Present(_) => {}
            State::Unusable(why) => bail!("{}: {why}", need.name()),
            State::Missing if yes || is_root() => need.install()?,
            State::Missing => bail!(
                "{} is missing ({}); install it with\n\n    {}\n\nor let us do it: --yes",
                need.name(),
                need.purpose(),
                need.command_line()
            ),
        }
    }
    Ok(())
}

/// Installs what is missing of `needs`, if we are root or `yes` was said. What is still missing then, and why, a line
/// each: the caller can do without.
pub fn install_if_possible(needs: &[Need], yes: bool) -> Result<Vec<String>> {
    let mut absent = Vec::new();
    for &need in needs {
        let why = match need.state()? {
            State::Present(_) => continue,
            State::Unusable(why) => why,
            State::Missing if yes || is_root() => {
                let Err(error) = need.install() else { continue };
                interrupt::check()?;
                complain!("{error:#}");
                ends(&format!("{error:#}"))
            }
            State::Missing => format!("install it with `{}`", need.command_line()),
        };
        absent.push(format!("{} is missing ({}): {why}", need.name(), need.purpose()));
    }
    Ok(absent)
}

/// The first and the last line of a text: what was tried, and how it ended.
fn ends(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    lines.next_back().map_or_else(|| first.to_owned(), |last| format!("{first}: {last}"))
}

/// Whether we may do everything.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The first line that `program --version` prints; `None` when there is no such program.
pub fn version_line(program: &str) -> Result<Option<String>> {
    output_line(program, "--version")
}

/// The first line that `program argument` prints; `None` when there is no such program.
fn output_line(program: &str, argument: &str) -> Result<Option<String>> {
    let output = process::output(Command::new(program).arg(argument))?;
    Ok(output.map(|output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()))
}

/// The versions of `line`, as in `QEMU emulator version 7.2.22 (Debian ...)`.
fn judge_qemu(line: &str) -> State {
    let version = line.split("version ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    let Some((major, minor)) = version::number(version) else {
        return State::Unusable(format!("cannot read its version from `{line}`"));
    };
    if (major, minor) < OLDEST_QEMU {
        let (major, minor) = OLDEST_QEMU;
        return State::Unusable(format!("version {version} is too old, {major}.{minor} is the oldest that works"));
    }
    State::Present(format!("version {version}"))
}

fn target_state() -> Result<State> {
    let mut command = Command::new("rustc");
    command.current_dir(crate::artefacts::root()).args(["--print", "target-libdir", "--target", METAL]);
    let Some(output) = process::output(&mut command)? else { return Ok(State::Missing) };
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let present = output.status.success() && Path::new(&path).is_dir();
    Ok(if present { State::Present("installed".to_owned()) } else { State::Missing })
}

fn bochs_state() -> Result<State> {
    let Some(help) = BochsHelp::ask()? else { return Ok(State::Missing) };
    if BOCHS_FILES.into_iter().any(|path| !Path::new(path).exists()) {
        return Ok(State::Missing);
    }
    Ok(State::Present(help.version().map_or("installed".to_owned(), |version| format!("version {version}"))))
}

fn grub_state() -> Result<State> {
    let (Some(line), Some(_)) = (version_line(MKRESCUE)?, version_line("xorriso")?) else { return Ok(State::Missing) };
    let firmware: Vec<_> =
        GRUB_PARTS.into_iter().filter(|(_, path)| Path::new(path).is_dir()).map(|(name, _)| name).collect();
    Ok(if firmware.contains(&"BIOS") {
        State::Present(format!("{line}: {}", firmware.join(", ")))
    } else {
        State::Missing
    })
}

fn uefi_state() -> State {
    if [UEFI, GRUB_UEFI].into_iter().all(|path| Path::new(path).exists()) {
        State::Present(UEFI.to_owned())
    } else {
        State::Missing
    }
}

fn card_roms_state() -> State {
    if NicModel::ALL.into_iter().all(|nic| Path::new(&nic.boot_rom()).exists()) {
        State::Present(CARD_ROMS.to_owned())
    } else {
        State::Missing
    }
}

/// The program alone is not enough: Debian has the definitions that all others build on in a package of their own.
fn protoc_state() -> Result<State> {
    let probe = tempfile::Builder::new().suffix(".proto").tempfile().context("cannot create a temporary file")?;
    std::fs::write(probe.path(), "syntax = \"proto3\";\nimport \"google/protobuf/struct.proto\";\n")?;
    let mut command = Command::new("protoc");
    command.arg("--descriptor_set_out=/dev/null").arg("--proto_path").args(probe.path().parent()).arg(probe.path());
    match (version_line("protoc")?, process::output(&mut command)?) {
        (Some(line), Some(output)) if output.status.success() => Ok(State::Present(line)),
        _ => Ok(State::Missing),
    }
}

/// Debian's package starts a server, which nobody here has asked for.
fn etcd_commands(systemd: bool) -> Vec<Vec<&'static str>> {
    let mut commands = apt(&["openssl", "etcd-server"]);
    commands.extend(systemd.then(|| vec!["systemctl", "disable", "--now", "etcd.service"]));
    commands
}

fn apt(packages: &[&'static str]) -> Vec<Vec<&'static str>> {
    let install = ["apt-get", "install", "-y", "--no-install-recommends"];
    vec![vec!["apt-get", "update"], install.into_iter().chain(packages.iter().copied()).collect()]
}

fn needs_root(command: &[&str]) -> bool {
    command.first().is_some_and(|program| ["apt-get", "systemctl"].contains(program))
}

fn with_sudo(command: Vec<&'static str>, root: bool) -> Vec<&'static str> {
    if needs_root(&command) && !root { [vec!["sudo"], command].concat() } else { command }
}

fn shell_line(command: &[&str]) -> String {
    command.join(" ")
}

/// The last lines of what a command wrote.
pub fn tail(mut log: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut text = Vec::new();
    // A log that cannot be read is not worth a second error.
    let _ = log.rewind().and_then(|()| log.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_versions() {
        let judge = |version: &str| judge_qemu(&format!("QEMU emulator version {version}"));
        assert_eq!(judge("7.2.22 (Debian 1:7.2+dfsg-7)"), State::Present("version 7.2.22".into()));
        for version in ["7.2.0", "8.2.2", "10.0.0"] {
            assert_eq!(judge(version), State::Present(format!("version {version}")));
        }
        for old in ["7.1.9", "6.2.0", "5.2.0 (Debian)"] {
            assert!(matches!(judge(old), State::Unusable(why) if why.contains("too old") && why.contains(&old[..3])));
        }
        assert!(matches!(judge_qemu("something else"), State::Unusable(_)));
    }

    #[test]
    fn the_ends_of_an_error_say_enough() {
        let apt =
            "`apt-get install -y x` failed (exit status: 100)\nReading package lists...\nE: Unable to locate package x";
        assert_eq!(ends(apt), "`apt-get install -y x` failed (exit status: 100): E: Unable to locate package x");
        assert_eq!((ends("one line"), ends("")), ("one line".to_owned(), String::new()));
    }

    #[test]
    fn a_server_that_comes_along_is_stopped() {
        let last = |systemd| etcd_commands(systemd).pop().unwrap();
        assert_eq!(last(true), ["systemctl", "disable", "--now", "etcd.service"]);
        assert_eq!(last(false).last(), Some(&"etcd-server"));
        assert!(etcd_commands(true).iter().all(|command| needs_root(command)));
    }

    #[test]
    fn only_apt_needs_sudo() {
        assert_eq!(with_sudo(vec!["apt-get", "update"], false), ["sudo", "apt-get", "update"]);
        assert_eq!(with_sudo(vec!["apt-get", "update"], true), ["apt-get", "update"]);
        assert_eq!(with_sudo(vec!["rustup"], false), ["rustup"]);
    }
}
