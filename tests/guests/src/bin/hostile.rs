//! Does absurd things to the machine; `case=` names which. Prints `hostile: <case> survived` when hardware would survive it.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use pollux_boot::BootInfo;
use pollux_guests::interrupts::{self, Frame};
use pollux_guests::options::Options;
use pollux_guests::{absurd_rings, cpu, lapic, pci, println, runtime, xsave};
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

/// Exceptions since the last look.
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Length of the instruction that may fault.
static LENGTH: AtomicU64 = AtomicU64::new(2);

const CASES: [(&str, fn()); 14] = [
    ("msr", msr),
    ("ports", ports),
    ("mmio", mmio),
    ("mmio-unaligned", mmio_unaligned),
    ("mmio-instructions", mmio_instructions),
    ("control-registers", control_registers),
    ("hidden-instructions", hidden_instructions),
    ("pci-absent", pci_absent),
    ("bar-over-ram", bar_over_ram),
    ("lapic", local_apic),
    ("timer-storm", timer_storm),
    ("uart-wide", uart_wide),
    ("cr4-reserved", cr4_reserved),
    ("timer-flood", timer_flood),
];

/// Not among `all`, since they end or stop QEMU 7.2.
const APART: [&str; 4] = ["uart-wide", "cr4-reserved", "timer-flood", "short-frames"];

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    for vector in [6, 13] {
        interrupts::set_handler(vector, skip);
    }
    lapic::init(!options.xapic);
    let cases = CASES.into_iter().chain(absurd_rings::CASES);
    let mut known = false;
    let wanted = |name: &str| options.case == name || options.case == "all" && !APART.contains(&name);
    for (name, case) in cases.filter(|(name, _)| wanted(name)) {
        known = true;
        println!("hostile: {name}");
        case();
        println!("hostile: {name} survived");
    }
    if !known {
        println!("hostile: unknown case `{}`; known:", options.case);
        for (name, _) in CASES.into_iter().chain(absurd_rings::CASES) {
            println!("  {name}");
        }
    }
    println!("hostile: end");
    runtime::power_off()
}

/// Counts the exception and goes on behind the instruction.
fn skip(frame: &mut Frame) {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    frame.rip += LENGTH.load(Ordering::Relaxed);
}

/// Takes the number of exceptions since the last call.
fn faults() -> u64 {
    FAULTS.swap(0, Ordering::Relaxed)
}

/// MSRs that do not exist, and values that those which exist refuse: #GP each.
fn msr() {
    const ABSENT: [u32; 8] =
        [0x0000_ffff, 0x1234_5678, 0x3fff_ffff, 0x4000_0105, 0x8000_0000, 0xbfff_ffff, 0xc000_2000, 0xffff_ffff];
    // EFER reserved bits; PAT type 2; APIC base beyond physical memory; FS base not canonical.
    const REFUSED: [(u32, u64); 4] =
        [(0xc000_0080, 1 << 63), (0x277, 2), (0x1b, !0xfff), (0xc000_0100, 0x8000_0000_0000_0000)];
    for msr in ABSENT {
        // The fault leaves the registers as they are: the handler skips the two bytes of the instruction.
        let value = cpu::rdmsr(msr);
        let read = faults();
        // SAFETY: the MSR does not exist.
        unsafe { cpu::wrmsr(msr, u64::MAX) };
        println!("  MSR {msr:#x}: read {}, write {}", outcome(read, value), outcome(faults(), 0));
    }
    for (msr, value) in REFUSED {
        let before = cpu::rdmsr(msr);
        // SAFETY: the processor refuses the value; if not, the value before is restored.
        unsafe {
            cpu::wrmsr(msr, value);
            let refused = faults();
            cpu::wrmsr(msr, before);
            println!("  MSR {msr:#x} = {value:#x}: {}", outcome(refused, value));
        }
    }
}

fn outcome(faults: u64, value: u64) -> &'static str {
    match (faults, value) {
        (0, _) => "accepted",
        (1, _) => "#GP",
        _ => "several faults",
    }
}

/// Ports without devices, and devices at widths they do not have. Left out: whatever switches off or resets.
fn ports() {
    read_all_widths((0x3e8..0x3f0).chain([0x40, 0x61, 0x70, 0x71, 0x80, 0x300, 0xcf8, 0xcfc, 0xcff, 0x608, 0xfffc]));
    for port in [0x300u16, 0x2e8, 0xeeee, 0xfffe, 0xffff] {
        // SAFETY: no device is there.
        unsafe {
            cpu::outb(port, 0xff);
            cpu::outw(port, 0xffff);
            cpu::outl(port, u32::MAX);
        }
    }
}

/// The UART at widths that it does not have. QEMU 7.2 ends itself with an assertion.
fn uart_wide() {
    read_all_widths(0x3f8..0x400);
}

/// Reads a byte, a word and a double word at each port.
fn read_all_widths(ports: impl Iterator<Item = u16>) {
    let mut sum = 0u32;
    for port in ports {
        let (byte, word, long): (u8, u16, u32);
        // SAFETY: reading devices changes only their own state.
        unsafe {
            asm!("in al, dx", in("dx") port, out("al") byte, options(nomem, nostack));
            asm!("in ax, dx", in("dx") port, out("ax") word, options(nomem, nostack));
            asm!("in eax, dx", in("dx") port, out("eax") long, options(nomem, nostack));
        }
        sum = sum.wrapping_add(u32::from(byte) + u32::from(word)).wrapping_add(long);
    }
    println!("  sum {sum:#x}");
}

/// Memory where nothing is.
fn mmio() {
    for address in [0xd000_0000u64, 0xdfff_fffc, 0xfea0_0000, 0xfec0_1000, 0xfee0_1000, 0xfeff_fff8, 0xffe0_0000] {
        let pointer = address as *mut u32;
        // SAFETY: neither RAM nor, on any of the machines, a device that does more than ignore it.
        let value = unsafe {
            pointer.write_volatile(0xdead_beef);
            pointer.read_volatile()
        };
        println!("  {address:#x}: {value:#x}");
    }
}

/// Accesses to device registers that are unaligned, too wide, or cross a page's end.
fn mmio_unaligned() {
    let mut sum = 0u64;
    let devices = [0xfee0_0000u64, 0xfec0_0000, 0xfee0_0ffd];
    for base in devices.into_iter().chain(absurd_rings::device_config()) {
        for offset in [0u64, 1, 2, 3, 5, 0x21] {
            let at = base + offset;
            // SAFETY: registers of devices; reading them at odd places returns something.
            unsafe {
                let (byte, word, long, quad): (u8, u16, u32, u64);
                asm!("mov {0}, [{1}]", out(reg_byte) byte, in(reg) at, options(nostack, readonly));
                asm!("mov {0:x}, [{1}]", out(reg) word, in(reg) at, options(nostack, readonly));
                asm!("mov {0:e}, [{1}]", out(reg) long, in(reg) at, options(nostack, readonly));
                asm!("mov {0}, [{1}]", out(reg) quad, in(reg) at, options(nostack, readonly));
                sum = sum.wrapping_add(u64::from(byte) + u64::from(word) + u64::from(long)).wrapping_add(quad);
            }
        }
    }
    println!("  sum {sum:#x}, {} faults", faults());
}

/// Instructions that no driver uses on registers.
fn mmio_instructions() {
    cpu::enable_sse();
    let absent = 0xd000_0000u64;
    let mut buffer = [0u64; 8];
    // SAFETY: nothing is at the address, nor in the page behind it.
    unsafe {
        asm!(
            "xchg {0}, [{1}]", "lock add dword ptr [{1}], 1", "or byte ptr [{1}], 3", "inc word ptr [{1}]",
            "cmp dword ptr [{1}], 5", "test byte ptr [{1}], 1", "push qword ptr [{1}]", "pop qword ptr [{1}]",
            "bts dword ptr [{1}], 3", "movsx {0}, byte ptr [{1}]",
            inout(reg) 7u64 => _, in(reg) absent
        );
        asm!("rep movsb", inout("rcx") 16u64 => _, inout("rsi") absent => _, inout("rdi") buffer.as_mut_ptr() => _,
            options(nostack));
        asm!("rep movsq", inout("rcx") 8u64 => _, inout("rsi") buffer.as_ptr() => _, inout("rdi") absent => _,
            options(nostack));
        asm!("rep stosd", inout("rcx") 8u64 => _, inout("rdi") absent => _, in("eax") 1, options(nostack));
        asm!("movdqu xmm0, [{0}]", "movdqu [{0}], xmm0", in(reg) absent, options(nostack));
        if xsave::enable().is_some_and(|enabled| enabled & xsave::AVX != 0) {
            asm!("vmovdqu ymm0, [{0}]", "vmovdqu [{0}], ymm0", "vmovups xmm1, [{0}]", "vmovss [{0}], xmm1",
                "vmovups [{1}], ymm0", in(reg) absent, in(reg) buffer.as_mut_ptr(), options(nostack));
        }
    }
    println!("  read {:#x}, {} faults", buffer[0], faults());
}

/// Reserved bits of control registers, and instructions that are not enabled.
fn control_registers() {
    cpu::enable_sse();
    LENGTH.store(3, Ordering::Relaxed);
    // SAFETY: each instruction is three bytes long and refused.
    unsafe {
        asm!("mov {0}, cr0", "bts {0}, 32", "mov cr0, {0}", out(reg_abcd) _, options(nomem, nostack));
        println!("  CR0 bit 32: {}", outcome(faults(), 0));
        asm!("xsetbv", in("ecx") 0x55, in("eax") 1, in("edx") 0, options(nomem, nostack));
        println!("  XSETBV: {} fault(s)", faults());
        let (mut of_amd, mut of_intel) = (0x1234_u64, 0x1234_u64);
        asm!("vmmcall", inout("rax") of_amd, options(nomem, nostack));
        let refused = faults();
        asm!("vmcall", inout("rax") of_intel, options(nomem, nostack));
        let results = [(refused, of_amd), (faults(), of_intel)];
        println!("  VMMCALL, VMCALL: {results:x?}");
        // "KVMK" of its signature: the vendor's own instruction says that there is no such call, the other one is none.
        if cpu::cpuid(0x4000_0000, 0).ebx == 0x4B4D_564B {
            const THERE: (u64, u64) = (0, -1000_i64 as u64);
            assert!(results.contains(&THERE) && results.contains(&(1, 0x1234)), "{results:x?}");
        }
    }
    LENGTH.store(2, Ordering::Relaxed);
}

/// Instructions that CPUID hides, or that no guest has: #UD each.
fn hidden_instructions() {
    static DESCRIPTOR: [u64; 2] = [0; 2];
    let [leaf_1, leaf_7] = [cpu::cpuid(1, 0).ecx, cpu::cpuid(7, 0).ebx];
    macro_rules! refuse {
        ($name:literal, $length:literal, $code:literal) => {
            LENGTH.store($length, Ordering::Relaxed);
            // SAFETY: what follows is refused, and skipped; an INVPCID that is not forgets all translations.
            unsafe {
                asm!(concat!(".byte ", $code), inout("rax") 2u64 => _, inout("rcx") DESCRIPTOR.as_ptr() => _,
                    inout("rdx") 0u64 => _);
            }
            assert_eq!(faults(), 1, "{} raises #UD", $name);
        };
    }
    if leaf_7 & 1 << 10 == 0 {
        refuse!("INVPCID", 5, "0x66, 0x0f, 0x38, 0x82, 0x01");
    }
    if leaf_1 & 1 << 3 == 0 {
        refuse!("MONITOR", 3, "0x0f, 0x01, 0xc8");
        refuse!("MWAIT", 3, "0x0f, 0x01, 0xc9");
    }
    refuse!("VMLAUNCH", 3, "0x0f, 0x01, 0xc2");
    refuse!("VMXOFF", 3, "0x0f, 0x01, 0xc4");
    refuse!("VMREAD", 3, "0x0f, 0x78, 0xc1");
    refuse!("VMFUNC", 3, "0x0f, 0x01, 0xd4");
    refuse!("GETSEC", 2, "0x0f, 0x37");
    refuse!("TDCALL", 4, "0x66, 0x0f, 0x01, 0xcc");
    refuse!("SEAMCALL", 4, "0x66, 0x0f, 0x01, 0xcf");
    refuse!("VMRUN", 3, "0x0f, 0x01, 0xd8");
    refuse!("STGI", 3, "0x0f, 0x01, 0xdc");
    refuse!("SKINIT", 3, "0x0f, 0x01, 0xde");
    refuse!("INVLPGA", 3, "0x0f, 0x01, 0xdf");
    refuse!("RDPRU", 3, "0x0f, 0x01, 0xfd");
    LENGTH.store(2, Ordering::Relaxed);
}

/// A reserved bit of CR4. QEMU 7.2 with `-icount` never gets past the instruction.
fn cr4_reserved() {
    LENGTH.store(3, Ordering::Relaxed);
    // SAFETY: three bytes long, and refused.
    unsafe { asm!("mov {0}, cr4", "bts {0}, 63", "mov cr4, {0}", out(reg_abcd) _, options(nomem, nostack)) };
    println!("  CR4 bit 63: {}", outcome(faults(), 0));
    LENGTH.store(2, Ordering::Relaxed);
}

/// Configuration space of devices that do not exist.
fn pci_absent() {
    let mut config = pci::ConfigPorts;
    let mut present = 0;
    for (bus, device, function) in [(0, 31, 7), (0, 17, 0), (1, 0, 0), (255, 31, 7)] {
        let at = DeviceFunction { bus, device, function };
        for offset in (0..=252).step_by(4) {
            present += u32::from(config.read_word(at, offset) != u32::MAX);
        }
        // Only where nothing answers: other machines have devices there.
        if config.read_word(at, 0) == u32::MAX {
            config.write_word(at, 0x10, u32::MAX);
        }
    }
    for width in 0..4u16 {
        let _ = cpu::inb(0xcfc + width);
    }
    // SAFETY: the enable bit is clear: no device is selected.
    unsafe { cpu::outl(0xcf8, 0x7fff_fffc) };
    println!("  {present} words answered, {:#x} without selection", cpu::inl(0xcfc));
}

/// A BAR placed over RAM, over the local APIC, and at the end of the address space.
fn bar_over_ram() {
    let Some(device) = pci::find(0x1af4, 0x1041) else { return println!("  no device") };
    let mut root = pci::root();
    let bars = match root.bars(device) {
        Ok(bars) => bars,
        Err(error) => return println!("  {error}"),
    };
    let memory = alloc::vec![0x5au8; 0x20000];
    let mut config = pci::ConfigPorts;
    for (index, bar) in (0u8..).zip(bars.iter()).filter_map(|(index, bar)| Some((index, bar.as_ref()?))) {
        let Some((original, _)) = bar.memory_address_size() else { continue };
        let register = 0x10 + 4 * index;
        for address in [memory.as_ptr() as u32, 0, 0xfee0_0000, 0xffff_f000] {
            config.write_word(device, register, address);
            if bar.takes_two_entries() {
                config.write_word(device, register + 4, if address == 0xffff_f000 { u32::MAX } else { 0 });
            }
            // SAFETY: the buffer is RAM, or a register of the device that is not driven lies over it.
            let seen = unsafe { memory.as_ptr().read_volatile() };
            let _ = lapic::read(lapic::TPR);
            if seen != 0x5a {
                println!("  BAR {index} at {address:#x} hides RAM: {seen:#x}");
            }
        }
        config.write_word(device, register, original as u32);
        if bar.takes_two_entries() {
            config.write_word(device, register + 4, (original >> 32) as u32);
        }
    }
    println!("  RAM intact: {}", memory.iter().all(|byte| *byte == 0x5a));
}

/// Interrupt commands to processors that do not exist, reserved vectors, reserved registers.
fn local_apic() {
    interrupts::set_handler(5, |_| lapic::end_of_interrupt());
    for (offset, value) in [
        (0x300, 0x000c_4500), // INIT to all but itself
        (0x300, 0x000c_4610), // start-up to all but itself
        (0x300, 0x0000_0005), // illegal vector 5 to itself; QEMU delivers it
        (0x320, 0x0001_0003), // timer vector 3, masked
        (0x3e0, 0xffff_ffff),
        (0x2f0, 0xffff_ffff),
        (0x020, 0x1200_0000), // read-only
        (0x380, 1),
        (0x3f0, 0xffff_ffff), // reserved
    ] {
        lapic::write(offset, value);
    }
    let _ = lapic::read(0x040) ^ lapic::read(0x3f0);
    println!("  {} faults", faults());
    lapic::init(false);
}

/// A periodic timer that interrupts very often.
fn timer_storm() {
    periodic_timer(5000);
}

/// A periodic timer with the shortest period. Brings QEMU 7.2 to a standstill.
fn timer_flood() {
    periodic_timer(1);
}

fn periodic_timer(period: u32) {
    static TICKS: AtomicU64 = AtomicU64::new(0);
    interrupts::set_handler(lapic::TIMER_VECTOR, |_| {
        TICKS.fetch_add(1, Ordering::Relaxed);
        lapic::end_of_interrupt();
    });
    lapic::write(0x3e0, 0xb);
    lapic::write(0x320, 1 << 17 | u32::from(lapic::TIMER_VECTOR));
    lapic::write(0x380, period);
    for _ in 0..100_000 {
        x86_64::instructions::interrupts::enable();
        x86_64::instructions::nop();
        x86_64::instructions::interrupts::disable();
    }
    lapic::write(0x380, 0);
    lapic::write(0x320, 1 << 16);
    println!("  ticks: {}", TICKS.load(Ordering::Relaxed) > 0);
}
