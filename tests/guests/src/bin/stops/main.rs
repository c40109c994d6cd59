//! A guest to be stopped anywhere: all kinds of instructions and events, in pseudo-random order, for ever.
//!
//! `seed=` chooses the order, `case=` one of [`CASES`], and nothing else. Without `xapic` the local APIC is used by MSRs
//! where it can be; with it, by MMIO.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

mod windows;

use alloc::boxed::Box;
use core::arch::asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use pollux_boot::BootInfo;
use pollux_guests::interrupts::Frame;
use pollux_guests::options::Options;
use pollux_guests::random::Random;
use pollux_guests::virtio::PciTransport;
use pollux_guests::xsave::{self, AVX, Area, SSE, X87, Ymm};
use pollux_guests::{cpu, interrupts, lapic, pages, println, runtime};

const SOFTWARE_VECTOR: u8 = 0x60;
const UART_SCRATCH: u16 = 0x3ff;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const PAT: u32 = 0x277;
const TRAP_FLAG: u64 = 1 << 8;
/// DR6 without a cause.
const DR6_CLEAR: u64 = 0xffff_0ff0;

/// What the steps work on.
struct State {
    random: Random,
    memory: Box<[u64; 1024]>,
    /// A virtio device's common configuration, if there is one.
    device: Option<u64>,
    /// Components that XSAVE saves, where it exists.
    enabled: Option<u64>,
    area: Box<Area>,
    /// Results, so that nothing is computed in vain.
    sum: u64,
}

type Step = fn(&mut State);

const STEPS: [Step; 24] = [
    spin,
    spin,
    recurse,
    page_faults,
    divide_error,
    invalid_opcode,
    software_interrupts,
    string_move,
    string_store,
    string_scan,
    local_apic,
    device,
    ports,
    string_ports,
    identify,
    clock,
    model_registers,
    halt,
    flags,
    floating_point,
    extended_control,
    extended_state,
    vectors,
    patched_code,
];

/// Debug traps behind interrupt shadows: single steps; and breakpoints, by which a guest brings down QEMU 7.2 (SVM). `mixed` are
/// single steps among everything else.
const CASES: [(&str, Step); 4] =
    [("steps", single_steps), ("debug", debug_traps), ("mixed", mixed), ("windows", interrupt_windows)];

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    let enabled = xsave::enable();
    lapic::init(!options.xapic);
    pages::init();
    interrupts::set_handler(1, debug_trap);
    // `div ecx` and `ud2` are two bytes long: go on behind them.
    interrupts::set_handler(0, |frame| frame.rip += 2);
    interrupts::set_handler(6, |frame| frame.rip += 2);
    for vector in [3, SOFTWARE_VECTOR] {
        interrupts::set_handler(vector, |frame| frame.rax = frame.rax.rotate_left(7) ^ frame.rip);
    }
    interrupts::set_handler(lapic::TIMER_VECTOR, windows::note);
    println!("stops: running");
    let random = Random::new(options.seed);
    let device = PciTransport::find_net(None).ok().map(|transport| transport.common_config());
    let (memory, area) = (Box::new([0; 1024]), Box::new(Area::EMPTY));
    let mut state = State { random, memory, device, enabled, area, sum: 0 };
    let only = CASES.iter().find(|(name, _)| *name == options.case);
    loop {
        let step = state.random.below(STEPS.len() as u64) as usize;
        only.map_or(STEPS[step], |(_, step)| *step)(&mut state);
        state.sum = black_box(state.sum);
    }
}

/// One in eight is a single step.
fn mixed(state: &mut State) {
    let step = match state.random.below(8) {
        0 => single_steps,
        _ => STEPS[state.random.below(STEPS.len() as u64) as usize],
    };
    step(state);
}

/// Register-only loops, now and then with interrupts on and the timer running.
fn spin(state: &mut State) {
    let count = 1 + state.random.below(2000);
    let interrupts = state.random.below(4) == 0;
    if interrupts {
        lapic::arm_timer(cpu::rdtsc() + state.random.below(3 * count));
        x86_64::instructions::interrupts::enable();
    }
    // SAFETY: changes only the registers named.
    unsafe {
        asm!("2:", "add {1}, {0}", "rol {1}, 3", "imul {1}, {1}, 77", "dec {0}", "jnz 2b",
            inout(reg) count => _, inout(reg) state.sum, options(nomem, nostack));
    }
    x86_64::instructions::interrupts::disable();
}

/// Calls and returns.
fn recurse(state: &mut State) {
    #[inline(never)]
    fn descend(state: &mut State, depth: u64) -> u64 {
        let index = (state.sum % 1024) as usize;
        state.memory[index] = state.memory[index].wrapping_add(depth);
        if depth == 0 { index as u64 } else { black_box(descend(state, depth - 1)) ^ depth }
    }
    let depth = state.random.below(50);
    state.sum ^= descend(state, depth);
}

/// Touches pages that are absent, by reads, writes and a copy over a page's end.
fn page_faults(state: &mut State) {
    let page = state.random.below(pages::PAGES as u64 - 1);
    let at = pages::WINDOW + page * 4096;
    let near_end = at + 4096 - 1 - state.random.below(40);
    // SAFETY: the window's pages exist, or come into being on the fault; nothing else uses them.
    unsafe {
        let value = (at as *const u64).read_volatile();
        ((at + 8) as *mut u64).write_volatile(value.wrapping_add(state.sum));
        asm!("rep movsb", inout("rcx") 64u64 => _, inout("rdi") near_end => _,
            inout("rsi") state.memory.as_ptr() => _, options(nostack));
    }
    pages::unmap(page as usize);
    pages::unmap(page as usize + 1);
}

fn divide_error(state: &mut State) {
    // SAFETY: the handler goes on behind the instruction.
    unsafe {
        asm!("div ecx", in("ecx") 0, inout("eax") state.sum as u32 => _, inout("edx") 0 => _, options(nomem));
    }
}

fn invalid_opcode(_: &mut State) {
    // SAFETY: as for `divide_error`.
    unsafe { asm!("ud2", options(nomem)) };
}

fn software_interrupts(state: &mut State) {
    // SAFETY: the handlers change RAX only. No red zone on this target.
    unsafe {
        asm!("int3", "int {vector}", vector = const SOFTWARE_VECTOR, inout("rax") state.sum);
    }
}

fn string_move(state: &mut State) {
    let count = state.random.below(3000);
    let (from, to) = (state.random.below(1024), state.random.below(1024));
    let memory = state.memory.as_mut_ptr().cast::<u8>();
    // SAFETY: 1024 + 3000 bytes are within the 8192 of the memory; the copy may overlap itself.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rsi") memory.add(from as usize) => _,
            inout("rdi") memory.add(to as usize) => _, options(nostack));
    }
}

fn string_store(state: &mut State) {
    let count = state.random.below(1024);
    // SAFETY: at most 1024 words are written.
    unsafe {
        asm!("rep stosq", inout("rcx") count => _, inout("rdi") state.memory.as_mut_ptr() => _,
            in("rax") state.sum, options(nostack));
    }
}

fn string_scan(state: &mut State) {
    let mut rest = 8192u64;
    // SAFETY: reads at most the 8192 bytes of the memory.
    unsafe {
        asm!("repne scasb", inout("rcx") rest, inout("rdi") state.memory.as_ptr() => _,
            in("al") state.sum as u8, options(nostack, readonly));
    }
    state.sum = state.sum.wrapping_add(rest);
}

fn local_apic(state: &mut State) {
    state.sum ^= u64::from(lapic::read(lapic::TIMER_CURRENT));
    lapic::write(lapic::TPR, state.random.below(2) as u32 * 0x10);
    state.sum ^= u64::from(lapic::read(lapic::TPR));
}

/// Memory-mapped registers, with various instructions and widths.
fn device(state: &mut State) {
    let Some(common) = state.device else { return };
    let value: u64;
    // SAFETY: the feature selector and the feature bits of the device, which nobody drives.
    unsafe {
        asm!(
            "mov dword ptr [{common}], {select:e}",
            "mov {value:e}, [{common} + 4]",
            "mov dword ptr [{common}], 0",
            "movzx {other:e}, byte ptr [{common} + 20]",
            "add {value}, {other}",
            "movzx {other:e}, word ptr [{common} + 18]",
            "add {value}, {other}",
            common = in(reg) common, select = in(reg) state.random.below(2) as u32,
            value = out(reg) value, other = out(reg) _, options(nostack)
        );
    }
    state.sum = state.sum.wrapping_add(value);
}

fn ports(state: &mut State) {
    // SAFETY: the UART's scratch register, which nothing else uses.
    unsafe { cpu::outb(UART_SCRATCH, state.sum as u8) };
    state.sum = state.sum.rotate_left(8) ^ u64::from(cpu::inb(UART_SCRATCH));
}

fn string_ports(state: &mut State) {
    let count = state.random.below(8);
    let memory = state.memory.as_mut_ptr();
    // SAFETY: the scratch register again, and a few bytes of the memory.
    unsafe {
        asm!("rep outsb", inout("rcx") count => _, inout("rsi") memory => _, in("dx") UART_SCRATCH, options(nostack));
        asm!("rep insb", inout("rcx") count => _, inout("rdi") memory => _, in("dx") UART_SCRATCH, options(nostack));
    }
}

fn identify(state: &mut State) {
    let leaf = cpu::cpuid(state.random.below(8) as u32, 0);
    state.sum = state.sum.wrapping_add(u64::from(leaf.eax ^ leaf.ebx ^ leaf.ecx ^ leaf.edx)) ^ cpu::rdtsc();
}

/// Reads the TSC again and again, with and without other instructions between.
fn clock(state: &mut State) {
    for turn in 0..1 + state.random.below(60) {
        if turn % 3 != 0 {
            state.sum = state.sum.rotate_left(turn as u32);
        }
        state.sum = state.sum.wrapping_mul(5) ^ cpu::rdtsc();
    }
}

fn model_registers(state: &mut State) {
    // SAFETY: the base that SWAPGS would bring, which is never executed.
    unsafe { cpu::wrmsr(KERNEL_GS_BASE, state.sum >> 20) };
    state.sum ^= cpu::rdmsr(KERNEL_GS_BASE) ^ cpu::rdmsr(PAT);
}

/// Halts until the timer fires, soon or at once.
fn halt(state: &mut State) {
    let delay = 10_000 + state.random.below(100_000);
    lapic::arm_timer(cpu::rdtsc() + delay);
    cpu::wait_for_interrupt();
}

/// Interrupt shadows and ways to change the flags.
fn flags(state: &mut State) {
    // SAFETY: every change is undone; SS is loaded with the selector that it holds; interrupts have handlers.
    unsafe {
        asm!("sti", "nop", "cli", "sti", "cli", options(nomem, nostack));
        asm!("mov {0:e}, ss", "mov ss, {0:e}", "inc {0:e}", out(reg) _, options(nomem, nostack));
        asm!("pushfq", "pop {0}", "xor {0}, 0x8d5", "push {0}", "popfq", "pushfq", "pop {0}",
            "and {0}, 0xfffffffffffffbff", "push {0}", "popfq", out(reg) _, options(nomem));
        asm!(
            "mov {frame}, rsp", "mov {word:e}, ss", "push {word}", "push {frame}", "pushfq",
            "mov {word:e}, cs", "push {word}", "lea {word}, [rip + 2f]", "push {word}", "iretq", "2:",
            frame = out(reg) _, word = out(reg) _, options(nomem)
        );
        asm!("lock xadd [{0}], {1}", "lock cmpxchg [{0}], {1}", "bsf {1}, {1}", "bswap {1}",
            in(reg) state.memory.as_mut_ptr(), inout(reg) state.sum, inout("rax") 0u64 => _, options(nostack));
    }
}

/// Debug traps that the handler saw: how many; where they came and why.
static STEPS_SEEN: AtomicU64 = AtomicU64::new(0);
static DEBUG_TRAPS: AtomicU64 = AtomicU64::new(0);

fn debug_trap(frame: &mut Frame) {
    let cause: u64;
    // SAFETY: takes note of what the debug status says, and clears it.
    unsafe { asm!("mov {0}, dr6", "mov dr6, {1}", out(reg) cause, in(reg) DR6_CLEAR, options(nomem, nostack)) };
    STEPS_SEEN.fetch_add(1, Ordering::Relaxed);
    let seen = DEBUG_TRAPS.load(Ordering::Relaxed);
    DEBUG_TRAPS.store(seen.rotate_left(9) ^ frame.rip << 16 ^ cause & 0x400F, Ordering::Relaxed);
}

/// Single steps over interrupt shadows. The trap of a MOV SS waits for the end of its shadow, that of an STI does not.
fn single_steps(state: &mut State) {
    emulated_steps(state);
    shadows(state, false, true);
}

/// Single steps over instructions that the hypervisor carries out: each of them traps.
fn emulated_steps(state: &mut State) {
    let before = STEPS_SEEN.load(Ordering::Relaxed);
    // SAFETY: the traps' handler goes on; nothing is at port 0x80. The flags are put back.
    unsafe {
        asm!(
            "push rbx", "pushfq", "pushfq", "or qword ptr [rsp], {trap}", "popfq",
            "cpuid", "in al, 0x80", "nop", "popfq", "pop rbx",
            trap = const TRAP_FLAG, inout("eax") 0 => _, inout("ecx") 0 => _, out("edx") _
        );
    }
    // The last is POPFQ.
    assert_eq!(STEPS_SEEN.load(Ordering::Relaxed), before + 4, "an instruction without a trap");
    state.sum ^= DEBUG_TRAPS.load(Ordering::Relaxed);
}

/// The same with a breakpoint on the operand of what begins the shadow, too.
fn debug_traps(state: &mut State) {
    let (breakpoint, steps) = (state.random.below(2) == 0, state.random.below(2) == 0);
    emulated_steps(state);
    shadows(state, breakpoint, steps);
}

fn shadows(state: &mut State, breakpoint: bool, steps: bool) {
    /// Breakpoint 0, on reads and writes of two bytes; 1, on an instruction.
    const DATA: u64 = 0x7_0405;
    const NONE: u64 = 0x400;
    let dr7 = if breakpoint { DATA } else { NONE };
    // SAFETY: SS is loaded with what it holds; the traps' handler goes on. The flags are put back.
    unsafe {
        asm!(
            "mov {word:e}, ss", "mov [{memory}], {word:x}", "mov dr0, {memory}",
            "lea {word}, [rip + 2f]", "mov dr1, {word}", "mov {word:e}, ss", "mov dr7, {dr7}",
            "pushfq", "pushfq", "or [rsp], {trap}", "popfq",
            "mov ss, [{memory}]", "inc {word:e}", "inc {word:e}", "2:", "mov ss, [{memory}]", "nop",
            "sti", "nop", "cli", "mov {word:x}, [{memory}]", "inc {word:e}",
            "popfq", "mov dr7, {none}",
            memory = in(reg) state.memory.as_mut_ptr(), word = out(reg) _, dr7 = in(reg) dr7, none = in(reg) NONE,
            trap = in(reg) if steps { TRAP_FLAG } else { 0 }
        );
    }
    state.sum ^= DEBUG_TRAPS.load(Ordering::Relaxed);
}

/// x87 and SSE2.
fn floating_point(state: &mut State) {
    let memory = state.memory.as_mut_ptr();
    // SAFETY: SSE is enabled; this target's code uses neither x87 nor vector registers. 48 bytes of the memory are used.
    unsafe {
        asm!(
            "fldpi", "fild qword ptr [{0}]", "fmulp", "fabs", "fsqrt", "fld1", "faddp", "fstp qword ptr [{0} + 8]",
            in(reg) memory, options(nostack)
        );
        asm!(
            "movdqu xmm0, [{0}]", "movdqu xmm1, [{0} + 16]", "paddq xmm0, xmm1", "pshufd xmm2, xmm0, 0x1b",
            "pmuludq xmm2, xmm1", "pxor xmm0, xmm2", "cvtsi2sd xmm3, {1}", "sqrtpd xmm3, xmm3", "movdqu [{0} + 16], xmm0",
            "movupd [{0} + 32], xmm3", "movq {1}, xmm0",
            in(reg) memory, inout(reg) state.sum, options(nostack)
        );
    }
}

/// XCR0 and what shows it.
fn extended_control(state: &mut State) {
    let Some(enabled) = state.enabled else { return };
    for value in [X87, X87 | SSE, enabled] {
        xsave::xsetbv(0, value);
        let shown = xsave::xgetbv() ^ u64::from(cpu::cpuid(0xd, 0).ebx);
        state.sum = state.sum.rotate_left(5) ^ shown;
    }
}

/// Registers by XSAVE to memory, over others, and back by XRSTOR.
fn extended_state(state: &mut State) {
    let Some(enabled) = state.enabled else { return };
    let mask = state.random.below(8) & enabled;
    let mut values: Ymm = [[state.sum; 4]; 16];
    values[state.random.below(16) as usize][3] = 0;
    xsave::fill(&values, enabled);
    xsave::compute(&3);
    state.area.0.fill(0);
    state.area.save(mask);
    xsave::fill(&[[0; 4]; 16], enabled);
    state.area.load(mask);
    let kept = xsave::read(enabled);
    let words = kept.iter().flatten().copied().chain(xsave::environment().map(u64::from));
    state.sum = words.fold(state.sum, |sum, word| sum.rotate_left(7) ^ word);
}

/// AVX, over the end of a page that is absent now and then.
fn vectors(state: &mut State) {
    if state.enabled.is_none_or(|enabled| enabled & AVX == 0) {
        return;
    }
    let page = state.random.below(pages::PAGES as u64 - 1);
    let at = pages::WINDOW + page * 4096 + 4096 - state.random.below(40);
    // SAFETY: the window's pages exist, or come into being on the fault. Rust code here uses no vector registers.
    unsafe {
        asm!(
            "vmovq xmm0, {1}", "vpermilpd xmm1, xmm0, 0", "vinsertf128 ymm0, ymm0, xmm1, 1", "vaddps ymm1, ymm0, [{0}]",
            "vxorps ymm0, ymm0, ymm1", "vmovups [{0}], ymm0", "vextractf128 xmm2, ymm0, 1", "vzeroupper", "vmovq {1}, xmm2",
            in(reg) at, inout(reg) state.sum, options(nostack)
        );
    }
    pages::unmap(page as usize);
    pages::unmap(page as usize + 1);
}

/// Ways to become able to take an interrupt, one of which comes by then; and code that changes itself meanwhile.
fn interrupt_windows(state: &mut State) {
    let (kind, delay) = (state.random.below(windows::KINDS + 1), state.random.below(60));
    if kind < windows::KINDS {
        lapic::arm_timer(cpu::rdtsc() + delay);
        windows::open(kind, &mut state.memory);
    } else {
        lapic::arm_timer(cpu::rdtsc() + 8 * delay);
        x86_64::instructions::interrupts::enable();
        patched_code(state);
        x86_64::instructions::interrupts::disable();
    }
    state.sum ^= windows::seen();
}

/// Code that changes what it is about to execute, where it is executed or where its page is seen too; over a page's end
/// now and then.
fn patched_code(state: &mut State) {
    /// mov [rdi], ecx
    const STORE: [u8; 2] = [0x89, 0x0f];
    const NOP: u8 = 0x90;
    const RET: u8 = 0xc3;
    /// inc eax, twice; NOPs
    const PATCHES: [u32; 2] = [0xc0ff_c0ff, 0x9090_9090];
    let page = state.random.below(pages::PAGES as u64 - 1) as usize;
    let offset = if state.random.below(4) == 0 { 4096 - 1 - state.random.below(12) } else { state.random.below(4080) };
    let between = state.random.below(8);
    let target = offset + STORE.len() as u64 + between;
    let code = pages::content(page) + offset;
    let seen_at = if state.random.below(2) == 0 { pages::content(page) } else { pages::WINDOW + page as u64 * 4096 };
    let patch = PATCHES[state.random.below(2) as usize];
    // SAFETY: the content of two neighbouring pages, which nothing else uses now, is memory that may be executed; the code
    // there writes to itself, changes EAX and returns. No red zone on this target.
    unsafe {
        let bytes = core::slice::from_raw_parts_mut(code as *mut u8, 15);
        bytes.fill(NOP);
        bytes[..STORE.len()].copy_from_slice(&STORE);
        bytes[14] = RET;
        asm!("call {code}", code = in(reg) code, in("rdi") seen_at + target, in("ecx") patch, inout("rax") state.sum);
    }
    pages::unmap(page);
    pages::unmap(page + 1);
}
