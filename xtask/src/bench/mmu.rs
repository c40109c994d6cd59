//! What it costs that the guest never sees the CPU's TLB: the same Debian with `mmu=tracked`, with `mmu=native` and on plain
//! QEMU, one after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::figures::SETTLE;
use super::linux::{BOOT_LIMIT, Change, fresh};
use super::plain::PlainQemu;
use super::report::{Figure, Wanted, quantile};
use crate::driven::client::load;
use crate::driven::{DrivenRig, pause};
use crate::guest::debian;
use crate::output::say;
use crate::platform::Platform;
use crate::rig::control::Request;
use crate::rig::monitor::Status;

/// The figure of Redis.
const INCR: &str = "INCR, 1 client";
/// Redis, something that maps memory, and a compiler.
const PACKAGES: [&str; 3] = ["redis-server", "stress-ng", "tcc"];
/// For how long clients count, for one rate.
const WINDOW: Duration = Duration::from_secs(6);
/// How often each other piece of work is done: the median counts.
const ROUNDS: usize = 3;
/// Work that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// How often the console is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A piece of work for a guest's shell.
struct Work {
    name: &'static str,
    /// What it is counted in.
    unit: &'static str,
    /// How many of these it is, and the command for one.
    count: u32,
    command: &'static str,
    /// A line that is needed first.
    prepare: &'static str,
    /// The least rate with `mmu=tracked`, as a share of that with `mmu=native`.
    wanted: Wanted,
}

const WORK: [Work; 4] = [
    Work {
        name: "fork and exec",
        unit: "programs",
        count: 40,
        command: "/usr/bin/busybox true",
        prepare: "true",
        wanted: Wanted::AtLeast(0.3),
    },
    Work {
        name: "fork alone",
        unit: "processes",
        count: 60,
        command: "(:)",
        prepare: "true",
        wanted: Wanted::Anything,
    },
    Work {
        name: "mmap and munmap",
        unit: "rounds",
        count: 3,
        command: "stress-ng --quiet --mmap 1 --mmap-bytes 1m --mmap-ops 1",
        prepare: "true",
        wanted: Wanted::Anything,
    },
    Work {
        name: "compile",
        unit: "files",
        count: 4,
        command: "tcc -c -o /tmp/f.o /tmp/f.c",
        prepare: "n=0; while [ $n -lt 400 ]; do echo \"int f$n(int a, int b) { int s = a; for (int i = 0; i < b; i++) \
                  s = s * $n + (i ^ a); return s > b ? s - b : s + $n; }\"; n=$((n+1)); done > /tmp/f.c",
        wanted: Wanted::Anything,
    },
];

impl Work {
    /// All of it as a line for the shell.
    fn line(&self) -> String {
        let Self { count, command, .. } = self;
        format!("i=0; while [ $i -lt {count} ]; do {command} || break; i=$((i+1)); done; [ $i = {count} ]")
    }
}

/// A machine with the guest on it.
trait Machine {
    fn service(&self) -> String;
    fn console(&self) -> Result<String>;
    fn type_line(&mut self, line: &str) -> Result<()>;
    /// What has been counted, where somebody counts.
    fn counts(&mut self) -> Result<Option<Status>>;
}

impl Machine for DrivenRig {
    fn service(&self) -> String {
        DrivenRig::service(self).to_owned()
    }

    fn console(&self) -> Result<String> {
        let bytes = std::fs::read(self.directory().join("console.log")).context("console.log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn type_line(&mut self, line: &str) -> Result<()> {
        self.ask(&Request::Command { target: "primary".to_owned(), text: format!("console {line}") })
    }

    fn counts(&mut self) -> Result<Option<Status>> {
        fresh(self).map(Some)
    }
}

impl Machine for PlainQemu {
    fn service(&self) -> String {
        PlainQemu::service(self).to_owned()
    }

    fn console(&self) -> Result<String> {
        PlainQemu::console(self)
    }

    fn type_line(&mut self, line: &str) -> Result<()> {
        PlainQemu::type_line(self, line)
    }

    fn counts(&mut self) -> Result<Option<Status>> {
        Ok(None)
    }
}

/// How fast something went, and what each part of it cost.
struct Seen {
    /// Parts a second.
    rate: f64,
    /// What the machine counted meanwhile, and for how many parts.
    cost: Option<(Change, f64)>,
}

impl Seen {
    fn new(rate: f64, parts: f64, counts: [Option<Status>; 2]) -> Result<Self> {
        let [first, last] = counts;
        let cost = match first.zip(last) {
            Some((first, last)) => Some((Change::between(&first, &last)?, parts)),
            None => None,
        };
        Ok(Self { rate, cost })
    }

    fn told(&self) -> String {
        let Some((change, parts)) = &self.cost else { return "nothing is counted".to_owned() };
        format!("{:.0} k instructions; {}", change.host / parts / 1e3, change.by_reason(*parts))
    }

    fn exits(&self) -> Option<f64> {
        self.cost.as_ref().map(|(change, parts)| change.exits.values().sum::<f64>() / parts)
    }
}

/// Ratios and counts of Debian with `mmu=tracked`, `mmu=native`, and on plain QEMU.
pub fn mmu(bench: &Bench) -> Result<Vec<Figure>> {
    ensure!(
        bench.platform == Platform::Qemu,
        "Linux takes minutes to boot in {}: measured in QEMU",
        bench.platform.verb()
    );
    let (guest, place) = debian::ensure_with(&PACKAGES, false)?;
    let place = place.to_str().context("the guest's place is not UTF-8")?;
    let under = |option: &str| -> Result<Vec<Seen>> {
        let mut rig = bench.start(&["--guest", place, "--solo", "--hypervisor-option", option])?;
        rig.wait_until("an answer", BOOT_LIMIT, |snapshot| snapshot.first_answer_s.is_some())?;
        all(&mut rig, option).with_context(|| option.to_owned())
    };
    let (native, tracked) = (under("mmu=native")?, under("mmu=tracked")?);
    let plain = all(&mut PlainQemu::start(bench, &guest)?, "plain QEMU").context("plain QEMU")?;
    let names = [(INCR, "requests", Wanted::AtLeast(0.97))];
    let names = names.into_iter().chain(WORK.iter().map(|work| (work.name, work.unit, work.wanted)));
    let mut figures = Vec::new();
    for ((((name, unit, wanted), native), tracked), plain) in names.zip(&native).zip(&tracked).zip(&plain) {
        let beside = |base: &Seen| format!("{:.1} against {:.1} {unit}/s", tracked.rate, base.rate);
        let ratio = |base: &Seen| tracked.rate / base.rate;
        figures.push(Figure::new(&format!("{name}, tracked / native"), wanted, ratio(native), "", beside(native)));
        let title = format!("{name}, tracked / plain QEMU");
        figures.push(Figure::new(&title, Wanted::Anything, ratio(plain), "", beside(plain)));
        for (mode, seen) in [("tracked", tracked), ("native", native)] {
            let exits = seen.exits().context("no exits were counted")?;
            figures.push(Figure::new(&format!("  exits each, {mode}"), Wanted::Anything, exits, "", seen.told()));
        }
    }
    Ok(figures)
}

/// All rates that one machine reaches: that of a client, and those of the work. They are told as they come.
fn all(machine: &mut dyn Machine, mode: &str) -> Result<Vec<Seen>> {
    pause(SETTLE)?;
    load(&machine.service(), 1, SETTLE)?;
    let first = machine.counts()?;
    let (times, rate) = load(&machine.service(), 1, WINDOW)?;
    say!("{mode}: {INCR}: {rate:.1} requests/s");
    let mut seen = vec![Seen::new(rate, times.len() as f64, [first, machine.counts()?])?];
    let mut shell = Shell::open(machine)?;
    for work in &WORK {
        shell.run(machine, work.prepare)?;
        let first = machine.counts()?;
        let rates: Vec<f64> = (0..ROUNDS)
            .map(|_| Ok(f64::from(work.count) / shell.run(machine, &work.line())?.as_secs_f64()))
            .collect::<Result<_>>()?;
        let rate = quantile(&rates, 0.5).context("no rate")?;
        say!("{mode}: {}: {rate:.1} {}/s", work.name, work.unit);
        seen.push(Seen::new(rate, f64::from(work.count) * ROUNDS as f64, [first, machine.counts()?])?);
    }
    Ok(seen)
}

/// A shell on the guest's console, in which each command is waited for.
struct Shell {
    commands: usize,
}

impl Shell {
    /// Logs in as root, who has no password.
    fn open(machine: &mut dyn Machine) -> Result<Self> {
        wait_for(machine, 0, "pollux login: ")?;
        machine.type_line("root")?;
        wait_for(machine, 0, "built-in shell")?;
        // Without an echo, which would be taken for what is waited for, and without the exits that editing a line costs.
        machine.type_line("stty -echo; exec sh -c 'while read -r line; do eval \"$line\"; done'")?;
        let mut shell = Self { commands: 0 };
        shell.run(machine, "true")?;
        Ok(shell)
    }

    /// How long a command takes.
    fn run(&mut self, machine: &mut dyn Machine, command: &str) -> Result<Duration> {
        self.commands += 1;
        let from = machine.console()?.len();
        let started = Instant::now();
        machine.type_line(&format!(
            "{command} && echo over-$(({}+0))- || echo over-$(({}+0))-not",
            self.commands, self.commands
        ))?;
        let end = format!("over-{}-", self.commands);
        let said = wait_for(machine, from, &end)?;
        let took = started.elapsed();
        ensure!(!said.contains(&format!("{end}not")), "`{command}` failed: {said}");
        Ok(took)
    }
}

/// Waits until the console says `text` behind its first `from` bytes; all that it says there, up to the end of that line.
fn wait_for(machine: &dyn Machine, from: usize, text: &str) -> Result<String> {
    let deadline = Instant::now() + LIMIT.max(BOOT_LIMIT);
    loop {
        let console = machine.console()?;
        let said = console.get(from..).unwrap_or_default();
        // A prompt is no line, and is not followed by anything.
        if said.find(text).is_some_and(|at| text.ends_with(' ') || said[at..].contains('\n')) {
            return Ok(said.to_owned());
        }
        ensure!(Instant::now() < deadline, "the console does not say `{text}`: {said}");
        pause(POLL)?;
    }
}
