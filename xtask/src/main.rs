//! `cargo xtask`: the one tool a user types.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod arbiter;
mod artefacts;
mod bench;
mod boot_server;
mod checks;
mod doctor;
mod driven;
mod fuzz;
mod grub;
mod guest;
mod image;
mod interrupt;
mod lesson;
mod needs;
mod net;
mod netboot;
mod output;
mod platform;
mod process;
mod replay;
mod rig;
mod secret;
mod sim;
mod spinner;
mod timeline;
mod transcript;
mod units;
mod verbs;
mod view;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use output::{complain, say};

/// Build, run, test and measure Pollux.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build everything for bare metal and say where it is
    Build,
    /// Run a guest on two machines in QEMU
    Qemu(Box<verbs::run::QemuArgs>),
    /// Run a guest on two machines in Bochs
    Bochs(Box<verbs::run::RunArgs>),
    /// Make a boot medium with hypervisor and guest, for real machines too
    Image(verbs::image::ImageArgs),
    /// Make what two real machines boot over the network, from one file that describes the pair
    Netboot(verbs::netboot::NetbootArgs),
    /// Make the key of a pair
    Key {
        #[command(subcommand)]
        command: secret::KeyCommand,
    },
    /// Make a guest of a distribution's packages
    Guest(guest::debian::GuestArgs),
    /// Look at a running rig, and make faults in it
    Rig(verbs::rig::RigArgs),
    /// Run a recorded guest again, instruction by instruction, and look whether it is the same
    Replay(replay::ReplayArgs),
    /// Show what fault tolerance by a log teaches, lesson by lesson
    Lesson(lesson::LessonArgs),
    /// Draw what happened in a rig: a page for browser and paper
    Timeline(timeline::TimelineArgs),
    /// Give terms to the machines of pairs: at most one machine for each (see --help)
    #[command(disable_help_flag = true)]
    Arbiter(arbiter::ArbiterArgs),
    /// Run the tests
    Test(checks::TestArgs),
    /// Simulate the replication protocol: seeds, broken rules, model (see --help)
    #[command(disable_help_flag = true)]
    Sim(sim::SimArgs),
    /// Search for inputs that break what reads bytes from outside
    Fuzz(fuzz::FuzzArgs),
    /// Measure the figures
    Bench(bench::BenchArgs),
    /// Show what this desk can run, what is missing, and how to install it
    Doctor {
        /// Install what is missing
        #[arg(long)]
        yes: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            complain!("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            complain!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    interrupt::install()?;
    match arguments.task {
        Task::Build => build(),
        Task::Qemu(arguments) => verbs::run::qemu(*arguments),
        Task::Bochs(arguments) => verbs::run::bochs(*arguments),
        Task::Image(arguments) => verbs::image::run(&arguments),
        Task::Netboot(arguments) => verbs::netboot::run(&arguments),
        Task::Key { command } => secret::run(&command),
        Task::Guest(arguments) => guest::debian::run(&arguments),
        Task::Rig(arguments) => verbs::rig::run(arguments),
        Task::Replay(arguments) => replay::run(&arguments),
        Task::Lesson(arguments) => lesson::run(&arguments),
        Task::Timeline(arguments) => timeline::run(&arguments),
        Task::Arbiter(arguments) => arbiter::run(&arguments),
        Task::Test(arguments) => checks::run(&arguments),
        Task::Sim(arguments) => sim::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Doctor { yes } => doctor::run(yes),
    }
}

fn build() -> Result<()> {
    say!("hypervisor  {}", artefacts::build_hypervisor()?.display());
    for (name, path) in artefacts::build_guests()? {
        say!("{name:<11} {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn promised_forms_are_accepted() {
        let forms = [
            "qemu --solo --headless --dir D --port 7777 --for 60s --guest counter --accel auto",
            "qemu --accel kvm",
            "qemu --record F",
            "replay F",
            "replay F --session 2 --on bochs --flip 7 --dir D --yes",
            "replay F --list",
            "qemu --guest ./x --guest-memory 128M --tap tap0 --seed 3 --hypervisor-option a=1 b=2 --yes",
            "qemu --hypervisor-option a=1 --hypervisor-option pollux:b=2",
            "qemu --nic e1000e --accel tcg",
            "qemu --probe --for 20s --hypervisor-option counter=pmu",
            "bochs --probe",
            "qemu --boot uefi-pxe",
            "bochs --solo --headless --dir D --port 7777 --for 60s --guest counter --hypervisor-option a=1 b=2",
            "image --out pollux.iso",
            "image --out F --guest ./x --guest-args a --hypervisor-option role=primary log-nic=0:3.0 --yes",
            "qemu --kernel vmlinuz --initrd initrd.img --append console=ttyS0",
            "qemu --forward 2222:22 --forward 8080:80 --forward 5353:53/udp",
            "bochs --kernel vmlinux --guest-memory 384M",
            "image --out F --kernel vmlinuz --initrd initrd.img --append quiet",
            "qemu --guest debian --backup answering",
            "netboot --config pair.toml --out D --hypervisor F --yes",
            "netboot --out D --serve --interface eth0",
            "netboot --out D --serve --address 10.0.2.1 --dhcp",
            "guest debian",
            "key new F",
            "qemu --key F",
            "bochs --key none",
            "image --out F --key F --hypervisor-option role=primary",
            "guest debian --packages redis-server,python3 --suite trixie",
            "guest debian --packages openssh-server --ssh-key key.pub --suite sid --aside",
            "test rig transactions --long --on qemu",
            "rig --dir D status --json",
            "rig --dir D kill primary",
            "rig --dir D start backup",
            "rig --dir D start backup --wait --timeout 30s",
            "rig --dir D link log delay=5ms loss=1% down",
            "rig --dir D link arbiter down",
            "qemu --arbiter 127.0.0.1:7003",
            "qemu --arbiter none",
            "rig --dir D stop",
            "timeline",
            "lesson",
            "lesson 1 --dir D --hypervisor F --guests G",
            "timeline D --out F --svg G --pcapng",
            "rig --dir D switch --timeout 20s",
            "rig --dir D console",
            "qemu --arbiter etcd://127.0.0.1:2379",
            "arbiter serve --listen 127.0.0.1:7003 --file F --keys K",
            "test",
            "test host",
            "test rig takeover",
            "sim --seeds 100",
            "sim --seeds 100 --from 7",
            "sim --forever",
            "sim --seed 3 --trace",
            "sim --model",
            "sim --help",
            "test rig --on bochs",
            "bench --json F start blackout",
            "fuzz",
            "fuzz stream --for 10min --seed 7",
            "fuzz stream --input F",
            "fuzz --for 30s --keep --yes",
            "doctor --yes",
            "build",
        ];
        for form in forms {
            let words = ["cargo xtask"].into_iter().chain(form.split(' '));
            if let Err(error) = Arguments::try_parse_from(words) {
                panic!("{form}: {error}");
            }
        }
    }
}
