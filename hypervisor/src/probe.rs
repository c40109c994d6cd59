//! Whether a machine can run Pollux (`role=probe`): what was found out about it, as a report with a verdict. What finds it out
//! touches no disk and no card; it is in the binary. This part is pure.

pub mod acpi;
#[cfg(test)]
mod tests;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Display};

use crate::config::GUEST_MEMORY;
use crate::counter::choose::Figures;
use crate::host::clock::Speeds;

/// The first line of each report.
pub const TITLE: &str = "role=probe: what this machine is to Pollux";
/// Network cards that a machine of a pair needs: one for the clients, one for the log.
pub const CARDS_OF_A_PAIR: usize = 2;
/// What is written to `exit-port` by a machine that can run Pollux, and by one that cannot.
pub const EXIT_GO: u32 = 0x10;
/// See [`EXIT_GO`].
pub const EXIT_NO_GO: u32 = 0x11;

/// What was found out about a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Its processor.
    pub cpu: Cpu,
    /// The local APIC's mode, or why it cannot be used: then nothing was tried that interrupts.
    pub apic: Result<&'static str, String>,
    /// The wall clock, or why there is none.
    pub clock: Tried<Clock>,
    /// The virtual CPU, or why there is none.
    pub guests: Tried<Guests>,
    /// Its memory.
    pub memory: Memory,
    /// The names of its IOMMU's ACPI tables, or why that is not known.
    pub iommu: Result<Vec<&'static str>, &'static str>,
    /// Its network cards.
    pub cards: Vec<Device>,
    /// Its NVMe controllers.
    pub drives: Vec<Device>,
    /// Where a watchdog is that Pollux knows.
    pub watchdog: Option<String>,
    /// Where random numbers come from, and whether nobody can guess them.
    pub random: (String, bool),
}

/// What came of a trial; `None`: it was not made, since something before it failed.
pub type Tried<T> = Option<Result<T, String>>;

/// A processor.
#[derive(Debug, Clone, PartialEq)]
pub struct Cpu {
    /// What it calls itself.
    pub brand: String,
    /// Family, model and stepping, by CPUID.
    pub signature: [u8; 3],
    /// The revision of its microcode, if it says so.
    pub microcode: Option<u64>,
    /// The processor says that it is a virtual machine's.
    pub is_virtual: bool,
}

/// A wall clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Clock {
    /// How fast counters run.
    pub speeds: Speeds,
    /// The TSC keeps its speed, by CPUID.
    pub invariant: bool,
}

/// How guests run.
#[derive(Debug, Clone, PartialEq)]
pub struct Guests {
    /// The kind of virtualization.
    pub kind: &'static str,
    /// The counter of retired instructions.
    pub pmu: Tried<Figures>,
    /// Ticks of the TSC.
    pub ticks: Tried<Figures>,
    /// Whether a CPU that walks the guest's own page tables shows it what it must see, or what not.
    pub native_paging: Tried<()>,
    /// The same for control registers.
    pub control_registers: Tried<()>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// What the boot loader calls usable.
    pub usable: u64,
    /// The largest guest that fits in one piece beside Pollux and its cards' buffers.
    pub guest: u64,
}

/// A device on the PCI bus.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Where.
    pub at: String,
    /// Vendor and device id.
    pub ids: (u16, u16),
    /// What drives it, if anything does.
    pub driver: Option<&'static str>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: String,
    value: String,
    /// `ok`, `missing`, or why it is neither.
    verdict: String,
}

/// What a person in front of the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    lines: Vec<Line>,
    reasons: Vec<String>,
}

impl Report {
    /// The report on these facts.
    #[must_use]
    pub fn new(facts: &Facts) -> Self {
        let mut report = Self { lines: Vec::new(), reasons: Vec::new() };
        report.cpu(&facts.cpu);
        report.apic_and_clock(facts);
        report.guests(&facts.guests);
        report.memory(facts.memory);
        report.devices(facts);
        report
    }

    /// Whether a pair can run on two machines like this one.
    #[must_use]
    pub fn is_go(&self) -> bool {
        self.reasons.is_empty()
    }

    fn line(&mut self, name: &str, value: impl Display, verdict: impl Display) {
        let (name, value, verdict) = (name.to_owned(), value.to_string(), verdict.to_string());
        self.lines.push(Line { name, value, verdict });
    }

    fn ok(&mut self, name: &str, value: impl Display) {
        self.line(name, value, "ok");
    }

    fn cpu(&mut self, cpu: &Cpu) {
        let [family, model, stepping] = cpu.signature;
        self.ok("cpu", &cpu.brand);
        self.ok("cpu model", format_args!("family {family:02x}h, model {model:02x}h, stepping {stepping}"));
        match cpu.microcode {
            Some(revision) => self.ok("microcode", format_args!("{revision:#x}")),
            None => self.line("microcode", "-", "the CPU does not say"),
        }
        let what = if cpu.is_virtual { "virtual, says the CPU" } else { "real, or does not say" };
        self.ok("machine", what);
    }

    fn apic_and_clock(&mut self, facts: &Facts) {
        match &facts.apic {
            Ok(mode) => self.ok("local APIC", mode),
            Err(why) => self.fail("local APIC", "-", why, why.clone()),
        }
        match &facts.clock {
            None => self.not_tried("wall clock"),
            Some(Ok(Clock { speeds, invariant })) => {
                self.ok("wall clock", "RTC");
                let kind = if *invariant { ", invariant" } else { "" };
                self.ok("TSC", format_args!("{} ticks per microsecond{kind}", speeds.tsc));
                self.ok("APIC timer", format_args!("{} ticks per microsecond", speeds.timer));
            }
            Some(Err(why)) => self.fail("wall clock", "RTC", why, why.clone()),
        }
    }

    fn guests(&mut self, guests: &Tried<Guests>) {
        let guests = match guests {
            None => return self.not_tried("virtualization"),
            Some(Err(why)) => return self.fail("virtualization", "-", why, why.clone()),
            Some(Ok(guests)) => guests,
        };
        self.ok("virtualization", guests.kind);
        self.counter("counter pmu", &guests.pmu);
        self.counter("counter ticks", &guests.ticks);
        let exact = |counter: &Tried<Figures>| matches!(counter, Some(Ok(_)));
        if exact(&guests.pmu) {
            self.ok("positions", "retired instructions");
        } else if exact(&guests.ticks) {
            self.line("positions", "ticks of an emulated clock", "ok, for an emulator: a real TSC counts cycles");
        } else {
            let reason = "no exact counter, and without one Pollux runs no guest, alone or in a pair";
            self.fail("positions", "-", "missing", reason.to_owned());
        }
        match &guests.native_paging {
            None => self.not_tried("mmu=native"),
            Some(Ok(())) => self.ok("mmu=native", "exact"),
            Some(Err(why)) => self.line("mmu=native", "not exact, mmu=auto takes tracked", why),
        }
        match &guests.control_registers {
            None => self.not_tried("control registers"),
            Some(Ok(())) => self.ok("control registers", "the guest reads its own"),
            Some(Err(why)) => {
                let reason = format!("the guest would read control registers that are not its own: {why}");
                self.fail("control registers", "not the guest's", why, reason);
            }
        }
    }

    fn counter(&mut self, name: &str, tried: &Tried<Figures>) {
        match tried {
            None => self.not_tried(name),
            Some(Ok(figures)) => {
                let Figures { checks, skid, margin, steps_per_stop, .. } = figures;
                self.ok(name, format_args!("exact in {checks} checks, margin {margin}, {steps_per_stop} steps a stop"));
                self.ok("skid", skid);
            }
            Some(Err(why)) => self.line(name, "refused", why),
        }
    }

    fn memory(&mut self, memory: Memory) {
        const MIB: u64 = 1 << 20;
        let (least, most) = (GUEST_MEMORY.start() / MIB, GUEST_MEMORY.end() / MIB);
        self.ok("memory", format_args!("{} MiB usable", memory.usable / MIB));
        let fits = memory.guest / MIB;
        let value = format!("{fits} MiB fit");
        if memory.guest < *GUEST_MEMORY.start() {
            let reason = format!("too little memory: a guest of {fits} MiB fits, and the smallest has {least} MiB");
            self.fail("largest guest", value, format_args!("less than {least} MiB"), reason);
        } else if fits >= most {
            self.line("largest guest", value, "ok, the most that Pollux gives");
        } else {
            self.ok("largest guest", value);
        }
    }

    fn devices(&mut self, facts: &Facts) {
        match &facts.iommu {
            Ok(tables) if tables.is_empty() => self.ok("IOMMU", "none"),
            Ok(tables) => self.line(
                "IOMMU",
                tables.join(", "),
                "there is one, which Pollux does not drive: switch it off in the firmware's setup",
            ),
            Err(why) => self.line("IOMMU", "-", why),
        }
        for Device { at, ids: (vendor, id), driver } in &facts.cards {
            let name = format!("card {at}");
            let value = format!("{vendor:04x}:{id:04x} {}", driver.unwrap_or("unknown"));
            match driver {
                Some(_) => self.line(&name, value, "ok, link not looked at"),
                None => self.line(&name, value, "no driver"),
            }
        }
        let known = facts.cards.iter().filter(|card| card.driver.is_some()).count();
        if known < CARDS_OF_A_PAIR {
            let reason = format!(
                "{known} network cards that Pollux drives, and a pair needs {CARDS_OF_A_PAIR} (role=solo runs with less)"
            );
            self.fail("cards", format_args!("{known} with a driver"), format_args!("a pair needs 2"), reason);
        } else {
            self.ok("cards", format_args!("{known} with a driver"));
        }
        for Device { at, ids: (vendor, id), .. } in &facts.drives {
            self.line(&format!("drive {at}"), format_args!("{vendor:04x}:{id:04x} NVMe"), "ok, not touched");
        }
        match &facts.watchdog {
            Some(at) => self.ok("watchdog", format_args!("i6300esb at {at}")),
            None => self.line("watchdog", "-", "missing"),
        }
        let (source, good) = &facts.random;
        self.line("random numbers", source, if *good { "ok" } else { "a pair with a key needs a module 'seed' here" });
    }

    fn not_tried(&mut self, name: &str) {
        self.line(name, "-", "not tried");
    }

    /// A line that is a reason for NO-GO.
    fn fail(&mut self, name: &str, value: impl Display, verdict: impl Display, reason: String) {
        self.line(name, value, verdict);
        self.reasons.push(reason);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{TITLE}")?;
        for Line { name, value, verdict } in &self.lines {
            writeln!(f, "{name:<17}  {value:<48}  {verdict}")?;
        }
        if self.is_go() { f.write_str("GO") } else { write!(f, "NO-GO: {}", self.reasons.join("; ")) }
    }
}
