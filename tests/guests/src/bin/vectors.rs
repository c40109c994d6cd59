//! Uses all registers that XSAVE saves, and looks whether they keep what they hold: over exits, interrupts whose handler
//! uses them itself, and whatever is done to the machine meanwhile. Says `WRONG` if they do not.
//!
//! What it can see of them, as XSAVE, FNSTENV, XGETBV and CPUID tell it, is hashed; UDP port 7 answers `hash?` with that.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use pollux_boot::BootInfo;
use pollux_guests::net::{Host, now};
use pollux_guests::observe::Observations;
use pollux_guests::options::Options;
use pollux_guests::random::Random;
use pollux_guests::xsave::{self, AVX, AVX512, Area, HEADER, SSE, X87, Ymm};
use pollux_guests::{cpu, interrupts, lapic, println, runtime};

/// Rounds between two lines on the console, and between two looks at the network.
const PRINT_EVERY: u64 = 256;
const POLL_EVERY: u64 = 4;
const UART_SCRATCH: u16 = 0x3ff;
/// Instructions within a round, most of them with x87's last addresses waiting to be read.
const SPIN: u64 = 5000;

/// Exceptions since the last look, and how long the instruction is that may raise one.
static FAULTS: AtomicU64 = AtomicU64::new(0);
static LENGTH: AtomicU64 = AtomicU64::new(3);
/// Handled timer interrupts.
static SIGNALS: AtomicU64 = AtomicU64::new(0);

/// What the handler of the timer saves registers to.
struct Frame(UnsafeCell<Area>);

// SAFETY: one processor, and only the handler uses it, with interrupts off.
unsafe impl Sync for Frame {}

static FRAME: Frame = Frame(UnsafeCell::new(Area::EMPTY));

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    for vector in [6, 13] {
        interrupts::set_handler(vector, |frame| {
            FAULTS.fetch_add(1, Ordering::Relaxed);
            frame.rip += LENGTH.load(Ordering::Relaxed);
        });
    }
    lapic::init(!options.xapic);
    let mut host = match Host::new(&options, false) {
        Ok(host) => host,
        Err(error) => panic!("network: {error}"),
    };
    // The network's own handler only wakes it up.
    interrupts::set_handler(lapic::TIMER_VECTOR, |_| signal());
    let socket = host.add_udp(7);
    let Some(enabled) = xsave::enable() else {
        println!("vectors: no XSAVE");
        runtime::halt()
    };
    refusals(enabled);
    println!("vectors: XCR0 {enabled:#x}, {} bytes", cpu::cpuid(0xd, 0).ebx);
    let mut work = Work::new(enabled, options.seed);
    for round in 0u64.. {
        work.round();
        if round % PRINT_EVERY == 0 {
            let signals = SIGNALS.load(Ordering::Relaxed);
            println!("vectors: round {round} hash {:016x}, {signals} signals", work.observations.hash());
        }
        if round % POLL_EVERY == 0 {
            let now = now();
            host.poll(now);
            host.answer_udp(socket, |datagram| work.observations.answer(datagram));
            host.send(now);
        }
    }
    runtime::halt()
}

/// What a signal handler in Linux comes to: saves all registers, uses them, and loads them again.
fn signal() {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: see `Frame`.
    let frame = unsafe { &mut *FRAME.0.get() };
    let enabled = xsave::xgetbv();
    frame.0[HEADER..HEADER + 64].fill(0);
    frame.save(enabled);
    xsave::fill(&[[!0; 4]; 16], enabled);
    xsave::compute(&7);
    // All components as after a reset, and then as they were.
    Area::EMPTY.load(enabled & !SSE);
    frame.load(enabled);
    lapic::end_of_interrupt();
}

/// What the manual says that a processor refuses. See: SDM volume 2D, "XSETBV"; volume 1, 13.8.
fn refusals(enabled: u64) {
    let expect = |what: &str, expected: u64| {
        let faults = FAULTS.swap(0, Ordering::Relaxed);
        if faults != expected {
            println!("vectors: WRONG: {what}: {faults} exceptions instead of {expected}");
        }
    };
    let refused = [
        0,
        SSE,
        X87 | AVX,
        X87 | AVX512,
        X87 | SSE | 1 << 5,
        X87 | SSE | AVX | 1 << 6,
        1 << 62 | X87,
        1 << 9 | X87 | SSE,
    ];
    for value in refused {
        xsave::xsetbv(0, value);
        expect("XSETBV with a value that is not allowed", 1);
    }
    for register in [1, 2, 0xffff_ffff] {
        xsave::xsetbv(register, enabled);
        expect("XSETBV of a register that does not exist", 1);
    }
    for value in [X87, X87 | SSE, enabled] {
        xsave::xsetbv(0, value);
        expect("XSETBV", 0);
        let leaf = cpu::cpuid(0xd, 0);
        let bytes = if value & !(X87 | SSE) == 0 { 576 } else { leaf.ecx };
        if xsave::xgetbv() != value || leaf.ebx != bytes {
            println!("vectors: WRONG: XCR0 is {:#x}, {} bytes, after {value:#x}", xsave::xgetbv(), leaf.ebx);
        }
    }
    let osxsave = || cpu::cpuid(1, 0).ecx >> 27 & 1;
    let on = osxsave();
    xsave::set_osxsave(false);
    let off = osxsave();
    xsave::xsetbv(0, enabled);
    expect("XSETBV without CR4.OSXSAVE", 1);
    xsave::set_osxsave(true);
    if (on, off, xsave::xgetbv()) != (1, 0, enabled) {
        println!("vectors: WRONG: CPUID shows OSXSAVE as {on} when it is set, as {off} when it is clear");
    }
    LENGTH.store(4, Ordering::Relaxed);
    // A component that is not enabled, bits that say compacted wrongly, reserved bytes of the header.
    for (at, value) in [(HEADER + 7, 0x40), (HEADER + 15, 0x40), (HEADER + 16, 1), (HEADER + 23, 1)] {
        let mut area = Area::EMPTY;
        area.0[at] = value;
        area.load(enabled);
        expect("XRSTOR of an area that is not allowed", 1);
    }
    // Reserved bits of MXCSR, which QEMU 7.2 loads.
    let mut area = Area::EMPTY;
    area.0[24..28].fill(0xff);
    area.load(enabled);
    FAULTS.store(0, Ordering::Relaxed);
    LENGTH.store(3, Ordering::Relaxed);
}

/// What the rounds work with.
struct Work {
    enabled: u64,
    random: Random,
    observations: Observations,
    area: Box<Area>,
}

impl Work {
    fn new(enabled: u64, seed: u64) -> Self {
        let (random, observations) = (Random::new(seed), Observations::default());
        Self { enabled, random, observations, area: Box::new(Area::EMPTY) }
    }

    fn round(&mut self) {
        let enabled = self.enabled;
        let mut values: Ymm = [[0; 4]; 16];
        // Some registers are zero, so that components come to be as after a reset in many ways.
        let zeros = self.random.below(3);
        for (index, word) in values.iter_mut().flatten().enumerate() {
            *word = if zeros == 0 || (zeros == 1 && index % 4 >= 2) { 0 } else { self.random.number() };
        }
        if enabled & AVX == 0 {
            values.iter_mut().for_each(|register| register[2..].fill(0));
        }
        let number = self.random.number();
        let factor = number as i32;
        xsave::fill(&values, enabled);
        if enabled & AVX512 == AVX512 {
            xsave::fill_zmm(number);
        }
        xsave::compute(&factor);
        self.meanwhile();
        let environment = xsave::environment();
        if xsave::read(enabled) != values || enabled & AVX512 == AVX512 && !xsave::zmm_hold(number) {
            println!("vectors: WRONG: registers changed");
        }
        environment.into_iter().for_each(|word| self.observations.add_number(word.into()));
        self.observe();
    }

    /// Exits, interrupts and time, in which the registers should not change.
    fn meanwhile(&mut self) {
        let interrupted = self.random.below(2) == 0;
        if interrupted {
            lapic::arm_timer(cpu::rdtsc() + self.random.below(SPIN));
            x86_64::instructions::interrupts::enable();
        }
        match self.random.below(8) {
            0 => self.observations.add_number(cpu::cpuid(0xd, 0).ebx.into()),
            1 => self.observations.add_number(cpu::rdtsc()),
            2 => {
                // SAFETY: the UART's scratch register.
                unsafe { cpu::outb(UART_SCRATCH, self.enabled as u8) };
                self.observations.add_number(cpu::inb(UART_SCRATCH).into());
            }
            3 => {
                x86_64::instructions::interrupts::disable();
                lapic::arm_timer(cpu::rdtsc() + 20_000);
                cpu::wait_for_interrupt();
            }
            // Registers that are not enabled keep what they hold.
            4 => {
                x86_64::instructions::interrupts::disable();
                xsave::xsetbv(0, X87);
                core::hint::black_box(xsave::xgetbv());
                xsave::xsetbv(0, self.enabled);
            }
            _ => {}
        }
        for spin in 0..SPIN {
            core::hint::black_box(spin);
        }
        x86_64::instructions::interrupts::disable();
    }

    /// What XSAVE writes over what was there, with all components and with some.
    fn observe(&mut self) {
        for mask in [self.enabled, self.enabled & !SSE, self.random.below(8) & self.enabled] {
            self.area.0[..HEADER + 64].fill(0);
            self.area.save(mask);
            self.observations.add(&self.area.0);
        }
        self.observations.add_number(xsave::xgetbv());
        for subleaf in 0..8 {
            let leaf = cpu::cpuid(0xd, subleaf);
            self.observations.add_number(u64::from(leaf.eax) << 32 | u64::from(leaf.ebx));
            self.observations.add_number(u64::from(leaf.ecx) << 32 | u64::from(leaf.edx));
        }
    }
}
