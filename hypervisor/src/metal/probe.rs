//! `role=probe`: finds out what this machine is, tells it to whoever looks, and halts. Nothing of it is changed that lasts.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::slice;

use pollux_boot::{BootInfo, PhysicalMemory};
use pollux_hypervisor::config::{Config, GUEST_MEMORY};
use pollux_hypervisor::counter::Counter;
use pollux_hypervisor::counter::choose::{self, Wanted};
use pollux_hypervisor::counter::selftest::{self, Machine, Report as Results, Stand};
use pollux_hypervisor::cpu;
use pollux_hypervisor::host::apic::Apic;
use pollux_hypervisor::host::clock::WallClock;
use pollux_hypervisor::host::memory::HostMemory;
use pollux_hypervisor::host::{entropy, interrupts, logger, msr, nvme, pci, reset, serial, watchdog};
use pollux_hypervisor::memory::GuestMemory;
use pollux_hypervisor::probe::{
    CARDS_OF_A_PAIR, Clock, Cpu, Device, EXIT_GO, EXIT_NO_GO, Facts, Guests, Memory, Report, Tried, acpi,
};
use pollux_nic::e1000::{DMA_ALIGNMENT, Model, needed_dma_bytes};
use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;

use super::{GUEST_ALIGN, TEST_INTERRUPT_TICKS};

/// Microcode's revision, on processors of both vendors. See: SDM volume 4, table 2-2 (IA32_BIOS_SIGN_ID).
const MICROCODE: u32 = 0x8B;
/// The base class of network cards. See: PCI Code and ID Assignment 1.11, 1.3.
const NETWORK: u8 = 0x02;
/// Tables that say that there is an IOMMU, and whose it is.
const IOMMU_TABLES: [(acpi::Signature, &str); 2] = [(*b"DMAR", "DMAR (Intel VT-d)"), (*b"IVRS", "IVRS (AMD-Vi)")];

/// Tells what this machine is, and whether it can run Pollux. Never returns.
pub(super) fn run(info: &BootInfo, config: &Config, memory: HostMemory) -> ! {
    let report = Report::new(&gather(info, config, memory));
    logger::raw(format_args!("{report}"));
    if config.monitor {
        serial::MONITOR.write(report.to_string().replace('\n', "\r\n").as_bytes());
        serial::MONITOR.write(b"\r\n");
    }
    if let Some(port) = config.exit_port {
        // SAFETY: the user says that this port ends an emulator, and it was asked for this alone.
        unsafe { Port::<u32>::new(port).write(if report.is_go() { EXIT_GO } else { EXIT_NO_GO }) };
    }
    reset::hang()
}

fn gather(info: &BootInfo, config: &Config, mut memory: HostMemory) -> Facts {
    // SAFETY: first and only call; the boot code maps the first 4 GiB one to one.
    let apic = unsafe { interrupts::start() };
    let (cards, drives) = devices();
    for _ in 0..CARDS_OF_A_PAIR {
        // What does not fit makes the guest's memory too small.
        let _ = memory.take(needed_dma_bytes() as u64, (DMA_ALIGNMENT as u64).max(4096));
    }
    let usable = info.memory.usable().map(|region| region.len).sum();
    let room = Memory { usable, guest: memory.largest(GUEST_ALIGN).min(*GUEST_MEMORY.end()) };
    let random = entropy::gather(None, &[]);
    Facts {
        cpu: cpu(),
        // Counters are tested before the wall clock interrupts, as when a guest starts.
        guests: apic.ok().and_then(|apic| guests(config, &apic, &mut memory)),
        clock: apic.ok().map(|apic| clock(&apic)),
        apic: apic.map(|_| "xAPIC").map_err(str::to_string),
        memory: room,
        iommu: iommu(info),
        cards,
        drives,
        watchdog: watchdog::find().map(|at| at.to_string()),
        random: (random.source.to_string(), random.good),
    }
}

fn cpu() -> Cpu {
    let id = CpuId::new();
    let features = id.get_feature_info();
    let signature = features.as_ref().map(|info| [info.family_id(), info.model_id(), info.stepping_id()]);
    // SAFETY: the interrupt table is loaded.
    let revision = unsafe { msr::try_read(MICROCODE) };
    Cpu {
        brand: id.get_processor_brand_string().map_or_else(|| "-".into(), |brand| brand.as_str().trim().to_string()),
        signature: signature.unwrap_or_default(),
        // Intel has it in the upper half, AMD in the lower one.
        microcode: revision.map(|value| if value >> 32 != 0 { value >> 32 } else { value }).filter(|value| *value != 0),
        is_virtual: features.is_some_and(|info| info.has_hypervisor()),
    }
}

fn clock(apic: &Apic) -> Result<Clock, String> {
    let clock = WallClock::start(apic)?;
    let power = CpuId::new().get_advanced_power_mgmt_info();
    Ok(Clock { speeds: clock.speeds(), invariant: power.is_some_and(|info| info.has_invariant_tsc()) })
}

/// Runs the self-tests of what guests need. `None` where there is no memory for that.
fn guests(config: &Config, apic: &Apic, memory: &mut HostMemory) -> Tried<Guests> {
    let len = *GUEST_MEMORY.start();
    // SAFETY: what the firmware calls usable is RAM; the boot code maps it one to one.
    let mut guest = GuestMemory::with_disk(unsafe { memory.take_zeroed(len, GUEST_ALIGN) }?, len);
    let base = guest.all().as_ptr() as u64;
    // SAFETY: first and only virtual CPU; the memory is the guest's.
    let opened = unsafe { cpu::open(base, len, apic, config.vectors) };
    // It is kept for good: the CPU's own tables may be part of it.
    let (vcpu, kind) = match opened {
        Ok((vcpu, kind)) => (Box::leak(vcpu), kind),
        Err(error) => return Some(Err(error.to_string())),
    };
    let mut stand = Machine {
        vcpu,
        memory: &mut guest,
        let_in: &mut interrupts::open_window,
        interrupt_soon: &mut || apic.arm_timer(TEST_INTERRUPT_TICKS),
    };
    let mut try_one = |wanted| {
        let allowed = config.counter == wanted || config.counter == Wanted::Auto;
        allowed.then(|| choose::choose(wanted, &mut stand).map_err(|refused| why(&refused.to_string())))
    };
    let pmu = try_one(Wanted::Pmu);
    // As at a start: where retired instructions are exact, nothing else is looked for.
    let ticks = if matches!(pmu, Some(Ok(_))) { None } else { try_one(Wanted::Ticks) };
    let figures =
        [&pmu, &ticks].map(|tried| Some(tried.as_ref()?.as_ref().map(|chosen| chosen.figures).map_err(Clone::clone)));
    let chosen = pmu.and_then(Result::ok).or(ticks.and_then(Result::ok));
    let (native_paging, control_registers) = chosen.map(|chosen| registers(&mut stand, chosen.counter)).unzip();
    apic.arm_timer(0);
    interrupts::open_window();
    let [pmu, ticks] = figures;
    Some(Ok(Guests { kind, pmu, ticks, native_paging, control_registers }))
}

/// The reason alone, without the counter's name, which stands in front of it.
fn why(refused: &str) -> String {
    refused.split_once(" is refused: ").map_or(refused, |(_, why)| why).to_string()
}

/// What the guest would see of page tables that the CPU walks, and of control registers, with a counter that is exact.
fn registers(stand: &mut dyn Stand, mut counter: Counter) -> (Result<(), String>, Result<(), String>) {
    let translations = selftest::translations(stand, &mut counter);
    let hidden = selftest::hidden_registers(stand, &mut counter, !translations.passed());
    (first_failure(&translations), first_failure(&hidden))
}

fn first_failure(results: &Results) -> Result<(), String> {
    results.checks.iter().find(|check| !check.passed()).map_or(Ok(()), |check| Err(check.to_string()))
}

/// All network cards and NVMe controllers; their configuration space is read and nothing else.
fn devices() -> (Vec<Device>, Vec<Device>) {
    let (mut cards, mut drives) = (Vec::new(), Vec::new());
    pci::scan(|found| {
        let driver = Model::from_pci_ids(found.vendor, found.id).map(Model::name);
        let device = Device { at: found.bdf.to_string(), ids: (found.vendor, found.id), driver };
        match pci::class(found.bdf) {
            [NETWORK, ..] => cards.push(device),
            nvme::CONTROLLER => drives.push(device),
            _ => {}
        }
    });
    (cards, drives)
}

fn iommu(info: &BootInfo) -> Result<Vec<&'static str>, &'static str> {
    let tables = acpi::tables(&Mapped, info.rsdp)?;
    Ok(IOMMU_TABLES.iter().filter(|(signature, _)| tables.contains(signature)).map(|(_, name)| *name).collect())
}

/// Memory as the boot code maps it: the first 4 GiB one to one.
struct Mapped;

impl PhysicalMemory for Mapped {
    fn bytes(&self, address: u64, len: usize) -> Option<&'static [u8]> {
        if address == 0 || address.checked_add(len as u64)? > 1 << 32 {
            return None;
        }
        // SAFETY: mapped and readable; whether RAM or not, any bytes are a valid value. The firmware's tables lie in none of
        // the regions that are usable, so that nobody writes there.
        Some(unsafe { slice::from_raw_parts(address as *const u8, len) })
    }
}
