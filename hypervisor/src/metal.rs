//! From the boot loader to the replica's loop, and what a panic does: only the bare machine needs it.

mod probe;

use alloc::boxed::Box;
use core::fmt::Display;
use core::panic::PanicInfo;
use core::slice;

use linked_list_allocator::LockedHeap;
use pollux_boot::BootInfo;
use pollux_hypervisor::boot_files::BootFiles;
use pollux_hypervisor::config::{Config, Disk, DriveChoice, Part, StartRole};
use pollux_hypervisor::counter::choose::{self, Chosen};
use pollux_hypervisor::counter::selftest::{self, Machine};
use pollux_hypervisor::cpu::{self, Vcpu};
use pollux_hypervisor::extended::Layout;
use pollux_hypervisor::guest::Guest;
use pollux_hypervisor::host::apic::Apic;
use pollux_hypervisor::host::clock::{self, WallClock};
use pollux_hypervisor::host::memory::HostMemory;
use pollux_hypervisor::host::nic::Route;
use pollux_hypervisor::host::nvme::{self, DriveError, OpenDrive};
use pollux_hypervisor::host::pci::Bdf;
use pollux_hypervisor::host::watchdog::{self, Watchdog};
use pollux_hypervisor::host::{entropy, interrupts, logger, nic, pci, reset, serial};
use pollux_hypervisor::memory::{GuestMemory, PAGE_SIZE};
use pollux_hypervisor::mmu;
use pollux_hypervisor::platform::virtio::block::{Place, SECTOR, Storage};
use pollux_hypervisor::platform::{Platform, PlatformConfig, clock::RATE_ONE, cpuid, loader::GuestImage};
use pollux_hypervisor::random::Random;
use pollux_hypervisor::replica::drive::{Drive, Extent, guest_bytes};
use pollux_hypervisor::replica::label::Label;
use pollux_hypervisor::replica::{MachinePlace, Parts, Replica, monitor};
use pollux_hypervisor::stops;
use pollux_nic::MacAddress;
use xxhash_rust::xxh64::xxh64;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Memory for the hypervisor's own data, in bytes.
const HEAP_BYTES: u64 = 56 << 20;
/// Alignment that lets nested paging use large pages.
const GUEST_ALIGN: u64 = 2 << 20;
/// Ticks of the APIC timer after which a host interrupt comes to test what it does to a counter: between 20 microseconds and
/// a millisecond on all known machines.
const TEST_INTERRUPT_TICKS: u32 = 20_000;
/// Below the first MiB lives the firmware.
const FIRST_USED: u64 = 1 << 20;

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    // SAFETY: the two standard serial ports; nothing else uses them.
    unsafe {
        serial::LOG.start(serial::COM1);
        serial::MONITOR.start(serial::COM2);
    }
    logger::start(log::LevelFilter::Info);
    log::info!("Pollux {}, {:?}: {}", env!("CARGO_PKG_VERSION"), info.loader, info.command_line);
    let mut memory = start_memory(info);
    let config = Config::parse(info.command_line).unwrap_or_else(|error| refuse(&error));
    if config.resets {
        reset::allow(config.resets_an_hour);
    }
    if config.role == StartRole::Probe {
        probe::run(info, &config, memory);
    }
    // SAFETY: first and only call; the boot code maps the first 4 GiB one to one.
    let apic = unsafe { interrupts::start() }.unwrap_or_else(|error| refuse(&error));
    let files = find_files(info);
    let (mut random, is_good) = gather_random(&config, files.seed);
    let protection = config.protection([files.key, files.next_key], is_good).unwrap_or_else(|error| refuse(&error));
    let drive = open_drive(&config, &apic, &mut memory);
    let disk_bytes = drive.as_ref().map_or_else(|| disk_bytes(&config, &files), |(_, extent, _)| extent.bytes);
    let guest = make_guest(&files, &config, disk_bytes, &mut random, &apic, &mut memory);
    let drive = drive.map(|(drive, _, route)| (drive, route));
    let mut clock = WallClock::start(&apic).unwrap_or_else(|error| refuse(&error));
    log::info!("ticks per microsecond asleep: {:?}", clock.speeds());
    if config.role == StartRole::Stops {
        stops::run(guest, &config, clock);
    }
    let mut open = |bdf, mac| {
        // SAFETY: the configuration names each card once.
        unsafe { nic::open(bdf, mac, &apic, &mut memory) }.unwrap_or_else(|error| {
            pci::scan(|found| log::info!("PCI {}: {:04x}:{:04x}", found.bdf, found.vendor, found.id));
            refuse(&error)
        })
    };
    let client = config.client_nic.map(|bdf| open(bdf, Some(MacAddress(config.guest_mac))));
    let log = config.log_nic.map(|bdf| open(bdf, None));
    let machine = match own_address(&config, client.as_ref().and_then(|(card, _)| card.card_mac())) {
        OwnAddress::None => None,
        OwnAddress::Shared(mac) => Some(MachinePlace { mac, card: None }),
        OwnAddress::OnCard(bdf) => {
            let (card, route) = open(bdf, config.arbiter.machine_mac.map(MacAddress));
            if card.mac().0 == config.guest_mac {
                refuse(&"option 'arbiter-nic': the card's MAC address is the guest's; give another with 'machine-mac'");
            }
            Some(MachinePlace { mac: card.mac(), card: Some((card, route)) })
        }
    };
    let watchdog = config.watchdog.map(|patience| {
        // SAFETY: first and only call; the boot code maps the first 4 GiB one to one.
        unsafe { Watchdog::arm(clock.now(), patience) }.unwrap_or_else(|error| refuse(&error))
    });
    Replica::new(Parts { config, apic, clock, random, protection, guest, client, log, machine, drive, watchdog }).run()
}

/// What this machine is known by on the client network.
enum OwnAddress {
    None,
    /// This address, on the client card.
    Shared(MacAddress),
    /// That of a card of its own.
    OnCard(Bdf),
}

/// Which address the options give this machine; `client_card` is the one that the client card was made with.
fn own_address(config: &Config, client_card: Option<MacAddress>) -> OwnAddress {
    let options = &config.arbiter;
    if !config.has_station() {
        return OwnAddress::None;
    }
    if let Some(bdf) = options.nic {
        return OwnAddress::OnCard(bdf);
    }
    let Some(mac) = options.machine_mac.map(MacAddress).or(client_card) else {
        refuse(&"the client card has no MAC address of its own: give this machine one with 'machine-mac'");
    };
    if mac.0 == config.guest_mac {
        refuse(
            &"the client card's own MAC address is the guest's ('guest-mac'): give this machine another one with \
              'machine-mac', or a card of its own with 'arbiter-nic'",
        );
    }
    OwnAddress::Shared(mac)
}

/// Takes stock of usable memory and starts the heap in it.
fn start_memory(info: &BootInfo) -> HostMemory {
    let mut memory = HostMemory::new();
    for region in info.memory.usable() {
        memory.add(region.start.max(FIRST_USED)..region.end());
    }
    let Some(heap) = memory.take(HEAP_BYTES, 4096) else {
        refuse(&"this machine has less memory than Pollux itself needs (56 MiB in one piece)");
    };
    // SAFETY: the range is usable RAM, identity-mapped, and now the heap's alone.
    unsafe { HEAP.lock().init(heap as *mut u8, HEAP_BYTES as usize) };
    memory
}

/// Makes CPU, memory and platform; checks the counter; loads the guest image unless the state will come from the twin.
fn make_guest(
    files: &BootFiles<'static>,
    config: &Config,
    disk_bytes: u64,
    random: &mut Random,
    apic: &Apic,
    memory: &mut HostMemory,
) -> Guest {
    let mut guest_memory = take_guest_memory(config, disk_bytes, memory);
    if let (Disk::Image, Some(image)) = (&config.disk, files.disk) {
        guest_memory.disk_mut(0, disk_bytes).copy_from_slice(image);
    }
    let base = guest_memory.all().as_ptr() as u64;
    // SAFETY: first and only virtual CPU; the memory is the guest's.
    let (mut vcpu, kind) =
        unsafe { cpu::open(base, config.guest_memory, apic, config.vectors) }.unwrap_or_else(|error| refuse(&error));
    log::info!("virtual CPU: {kind}");
    let (counter, tracked) = choose_counter(config, apic, &mut *vcpu, &mut guest_memory);
    let platform = make_platform(config, random, disk_bytes, vcpu.extended().layout(), tracked);
    let image = guest_image(files, config);
    let mut guest = Guest::new(vcpu, counter, guest_memory, platform, image, interrupts::let_in);
    if let Some(rule) = config.broken_rule {
        guest.break_rule(rule, clock::cycles);
    }
    if tracked && !guest.track_paging() {
        refuse(&"option 'mmu': this CPU can only walk the guest's own page tables");
    }
    // A backup tries it too, so that a bad image is found at the start and not at a reset; the state replaces it.
    guest.restart().unwrap_or_else(|error| refuse(&format_args!("the guest: {error}")));
    guest
}

/// RAM of the guest, and its disk behind it.
fn take_guest_memory(config: &Config, disk_bytes: u64, memory: &mut HostMemory) -> GuestMemory {
    let (ram, left) = (config.guest_memory, memory.left());
    let memory_bytes = if config.disk_place() == Place::Drive { 0 } else { disk_bytes };
    // SAFETY: what the firmware calls usable is RAM; the boot code maps it one to one.
    match unsafe { memory.take_zeroed(ram + Storage::room(memory_bytes), GUEST_ALIGN) } {
        Some(bytes) => GuestMemory::with_disk(bytes, ram),
        None if memory_bytes == 0 => {
            refuse(&format_args!("option 'guest-memory': {} MiB do not fit, {} MiB are left", ram >> 20, left >> 20))
        }
        None => refuse(&format_args!(
            "options 'guest-memory' and 'disk': {} MiB and {} MiB do not fit in one piece, {} MiB are left",
            ram >> 20,
            disk_bytes.div_ceil(1 << 20),
            left >> 20
        )),
    }
}

/// The drive that the guest's disk lies on, if it does.
fn open_drive(config: &Config, apic: &Apic, memory: &mut HostMemory) -> Option<(Drive, Extent, Route)> {
    let Disk::Drive(choice) = &config.disk else { return None };
    // SAFETY: the configuration names the drive once, and no card is one.
    let mut drive = unsafe { nvme::open(choice.at, apic, memory) }.unwrap_or_else(|error| refuse_drive(&error));
    let (extent, label) = drive_extent(&mut drive, choice, &config.pair).unwrap_or_else(|error| refuse_drive(&error));
    if config.role == StartRole::Primary
        && let Err(why) = label.may_begin(0, choice.stale)
    {
        // Before it costs a term.
        refuse(&format_args!("option 'role=primary': {why}"));
    }
    let (nvme, route) = drive.into_parts();
    Some((Drive::new(nvme, extent, label, choice.stale), extent, route))
}

/// Which bytes of the drive are the guest's disk, and what it says of it.
fn drive_extent(drive: &mut OpenDrive, choice: &DriveChoice, pair: &str) -> Result<(Extent, Label), DriveError> {
    let region = match &choice.part {
        Part::Whole | Part::WholeByForce => drive.whole(),
        Part::Named(name) => drive.partition(name)?,
    };
    let block = u64::from(drive.geometry().block_bytes);
    if block != SECTOR {
        refuse(&format_args!("option 'disk=nvme': the drive's blocks have {block} bytes; format it with {SECTOR}"));
    }
    let bytes = guest_bytes(region.blocks * block, choice.bytes).unwrap_or_else(|error| {
        refuse(&format_args!(
            "option 'disk=nvme': there is room for a disk of {} bytes, beside 1 MiB of our own, and not for {}",
            error.room, error.wanted
        ))
    });
    let (start, room) = (region.first * block, guest_bytes(region.blocks * block, None).unwrap_or(bytes));
    let extent = Extent { start, bytes, label: start + room };
    let mut newest: Option<Label> = None;
    for copy in 0..2 {
        let mut page = [0; PAGE_SIZE as usize];
        drive.read_bytes(extent.label + copy * PAGE_SIZE, &mut page)?;
        let label = Label::decode(&page);
        newest = newest.into_iter().chain(label).max_by_key(|label| label.sequence);
    }
    if choice.part == Part::Whole {
        drive.refuse_table(newest.map(|_| bytes / block))?;
    }
    let pair = xxh64(pair.as_bytes(), 0);
    let label = newest.unwrap_or(Label::fresh(pair, bytes));
    label.check(pair, bytes).unwrap_or_else(|why| refuse(&format_args!("option 'disk=nvme': {why}")));
    Ok((extent, label))
}

fn refuse_drive(error: &DriveError) -> ! {
    refuse(&format_args!("option 'disk=nvme': {error}"))
}

/// Size of the guest's disk in memory.
fn disk_bytes(config: &Config, files: &BootFiles<'_>) -> u64 {
    match (&config.disk, files.disk) {
        (Disk::Image, None) => refuse(&"option 'disk=image': the boot loader passed no module 'disk'"),
        (Disk::Image, Some(image)) if !image.len().is_multiple_of(SECTOR as usize) => refuse(&format_args!(
            "the boot loader's module 'disk' has {} bytes, which is no multiple of {SECTOR}",
            image.len()
        )),
        (Disk::Image, Some(image)) => image.len() as u64,
        (_, Some(_)) => refuse(&"the boot loader passed a module 'disk', but the option 'disk' is not 'image'"),
        (Disk::Ram(bytes), None) => *bytes,
        (Disk::None | Disk::Drive(_), None) => 0,
    }
}

/// The counter that the options ask for and the self-test proves, and whether the guest's paging is tracked.
fn choose_counter(config: &Config, apic: &Apic, vcpu: &mut dyn Vcpu, memory: &mut GuestMemory) -> (Chosen, bool) {
    let mut stand = Machine {
        vcpu,
        memory,
        let_in: &mut interrupts::open_window,
        interrupt_soon: &mut || apic.arm_timer(TEST_INTERRUPT_TICKS),
    };
    let mut chosen = choose::choose(config.counter, &mut stand).unwrap_or_else(|refused| refuse(&refused));
    let translations = selftest::translations(&mut stand, &mut chosen.counter);
    let tracked = match config.mmu {
        mmu::Wanted::Auto => !translations.passed(),
        wanted => wanted == mmu::Wanted::Tracked,
    };
    let hidden = selftest::hidden_registers(&mut stand, &mut chosen.counter, tracked);
    apic.arm_timer(0);
    interrupts::open_window();
    log::info!("counter '{}': {}", chosen.counter.identity(), chosen.why);
    let who =
        if tracked { "the hypervisor walks the guest's page tables" } else { "the CPU walks the guest's page tables" };
    log::info!("{who}; what it would see otherwise:\n{translations}");
    if let Some(check) = hidden.checks.iter().find(|check| !check.passed()) {
        refuse(&format_args!("the guest would read control registers that are not its own: {check}"));
    }
    log::info!("control registers of the guest's:\n{hidden}");
    (chosen, tracked)
}

fn make_platform(config: &Config, random: &mut Random, disk_bytes: u64, extended: Layout, tracked: bool) -> Platform {
    let host_cpuid = |leaf, subleaf| {
        let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        let registers = [result.eax, result.ebx, result.ecx, result.edx];
        if tracked { cpuid::without_tags(leaf, registers) } else { registers }
    };
    let rdtscp = raw_cpuid::CpuId::new()
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|features| features.has_rdtscp());
    let (start_unix_seconds, entropy) = birth(config, random);
    let platform = PlatformConfig {
        memory_bytes: config.guest_memory,
        disk_bytes,
        disk_place: config.disk_place(),
        mac: config.guest_mac,
        start_unix_seconds,
        host_cpuid: &host_cpuid,
        rdtscp,
        extended,
        entropy,
        rate: RATE_ONE,
    };
    Platform::new(&platform).unwrap_or_else(|error| refuse(&error))
}

/// The guest's date for now, in seconds since 1970, which becomes that of its creation, and the random bytes that it is born with.
fn birth(config: &Config, random: &mut Random) -> (u64, [u8; 32]) {
    if config.role == StartRole::Stops {
        // The year 2000: this test's digests are to be the same every time.
        return (946_684_800, config.guest_seed.unwrap_or_default());
    }
    let mut guests = random.fork();
    if let Some(seed) = &config.guest_seed {
        guests.add(seed);
    }
    (clock::unix_time(), guests.draw())
}

/// This machine's random numbers, and whether nobody can guess them.
fn gather_random(config: &Config, seed: Option<&[u8]>) -> (Random, bool) {
    let gathered = entropy::gather(seed, &[config.pair.as_bytes(), config.name.as_bytes()]);
    let level = if gathered.good { log::Level::Info } else { log::Level::Warn };
    log::log!(level, "random numbers come from {}", gathered.source);
    (Random::new(gathered.bytes), gathered.good)
}

/// The files that the boot loader passed as modules.
fn find_files(info: &'static BootInfo) -> BootFiles<'static> {
    let modules = info.modules.iter().map(|module| {
        // SAFETY: the loader put the module into memory that the memory map does not call usable.
        let bytes = unsafe { slice::from_raw_parts(module.start as *const u8, module.len as usize) };
        (module.name, bytes)
    });
    BootFiles::find(modules).unwrap_or_else(|error| refuse(&error))
}

/// What the guest is made of at its start and at each reset; what was on its disk at first is no part of that.
fn guest_image(files: &BootFiles<'static>, config: &Config) -> GuestImage<'static> {
    let command_line: &'static str = Box::leak(config.guest_args.clone().into_boxed_str());
    GuestImage { kernel: files.kernel, command_line, initrd: files.initrd }
}

/// Ends a start that cannot succeed: says why on the log and the monitor, and halts.
fn refuse(reason: &dyn Display) -> ! {
    log::error!("refused: {reason}");
    monitor::halt_event(reason);
    reset::hang()
}

/// A bug of ours: say what and where, then be silent for good. The twin lives on.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    // SAFETY: interrupts are off and this never returns, so whoever held a line is gone for good. The ports are the
    // serial ones; a panic may come before `main` has started them.
    unsafe {
        serial::LOG.force_unlock();
        serial::MONITOR.force_unlock();
        serial::LOG.start(serial::COM1);
    }
    logger::raw(format_args!(
        "PANIC: {info}\nThis machine halts; its twin goes on. To reproduce: boot the same image with the options above."
    ));
    monitor::panic_event();
    watchdog::stop();
    if let Some(left) = reset::due_in() {
        logger::raw(format_args!("It resets itself in {left} s (on-halt=reset)."));
        reset::when_due();
    }
    reset::hang()
}
