//! Runs a program with 32-bit paging or PAE paging: outside of long mode, in 32-bit code.
//!
//! The program edits entries of one page table at random, with a flush and without one, and touches the pages.
#![allow(unsafe_code)]

use core::arch::global_asm;

use crate::cpu;
use crate::segments::{COMPATIBLE_CODE, KERNEL_CODE, KERNEL_DATA};
use crate::tables::{ACCESSED, DIRTY, LARGE, PRESENT, Page, WRITABLE};

/// First address of the pages that the program touches.
const WINDOW: u32 = 0x8000_0000;
/// Pages, and frames for them.
const PAGES: u64 = 16;
const CR4_PSE: u32 = 1 << 4;
const CR4_PAE: u32 = 1 << 5;
/// CPUID leaf 1, EDX: addresses of 36 bits and more in entries of pages of 4 MiB.
const PSE_36: u32 = 1 << 17;
/// Memory that is mapped one to one.
const MAPPED: u64 = 64 << 20;
/// A frame for a page of 4 MiB that nobody uses.
const LARGE_FRAME: u64 = 12 << 20;

static ROOT: Page = Page::new();
static DIRECTORIES: [Page; 2] = [const { Page::new() }; 2];
static TABLE: Page = Page::new();
static FRAMES: [Page; PAGES as usize] = [const { Page::new() }; PAGES as usize];

/// What the program is told, and what it leaves.
#[repr(C)]
struct Arguments {
    cr3: u32,
    cr4: u32,
    table: u32,
    /// Binary logarithm of an entry's size.
    shift: u32,
    rounds: u32,
    random: u32,
    seen: u32,
    old_cr4: u32,
    old_cr3: u32,
    frames: u32,
    /// The directory's entry for the window, and what changes it from the table to a large page.
    directory_entry: u32,
    exchange: u32,
    old_stack: u64,
    /// What is read behind each flush: where, and the last value.
    probe: u32,
    probed: u32,
}

global_asm!(
    r#"
    .section .text
    .global run_compatible
run_compatible:
    push rbx
    push rbp
    mov rsi, rdi
    mov [rsi + 48], rsp
    push {compatible}
    lea rax, [rip + 2f]
    push rax
    retfq
    .code32
2:  mov eax, {data}
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    mov eax, cr4
    mov [esi + 28], eax
    and eax, 0xffffffcf
    or eax, [esi + 4]
    mov cr4, eax
    mov eax, cr3
    mov [esi + 32], eax
    mov eax, [esi]
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax

    // A random number decides about page, entry and what is done.
3:  imul eax, [esi + 20], 1664525
    add eax, 1013904223
    mov [esi + 20], eax
    mov edi, eax
    shr edi, 28
    mov ebx, edi
    mov ecx, [esi + 12]
    shl ebx, cl
    add ebx, [esi + 8]
    shl edi, 12
    add edi, {window}
    mov ecx, eax
    shr ecx, 20
    and ecx, 7
    cmp ecx, 2
    jb 4f
    je 5f
    cmp ecx, 4
    jb 6f
    je 7f
    cmp ecx, 6
    jb 8f
    je 9f
    test eax, 0x70000
    jnz 10f
    // Table and large page change places.
    mov ecx, [esi + 40]
    mov edx, [esi + 44]
    xor [ecx], edx
10: mov ecx, cr3
    mov cr3, ecx
    mov ecx, [esi + 56]
    mov ecx, [ecx]
    mov [esi + 60], ecx
    jmp 11f
4:  mov ecx, [edi]
    add [esi + 24], ecx
    jmp 11f
5:  mov [edi + 4], eax
    jmp 11f
6:  and dword ptr [ebx], 0xffffffdf
    jmp 11f
7:  and dword ptr [ebx], 0xffffff9f
    jmp 11f
8:  mov edx, eax
    shr edx, 4
    and edx, 0xf000
    add edx, [esi + 36]
    mov ecx, [ebx]
    and ecx, 0xfff
    or ecx, edx
    mov [ebx], ecx
    mov ecx, [edi]
    add [esi + 24], ecx
    jmp 11f
9:  invlpg [edi]
11: mov eax, [esi + 24]
    rol eax, 5
    add eax, [ebx]
    mov ecx, [esi + 40]
    xor eax, [ecx]
    mov [esi + 24], eax
    dec dword ptr [esi + 16]
    jnz 3b

    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, [esi + 28]
    mov cr4, eax
    mov eax, [esi + 32]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    push {kernel}
    mov eax, offset back_from_compatible
    push eax
    retf
    .code64
back_from_compatible:
    mov esi, esi
    mov rsp, [rsi + 48]
    pop rbp
    pop rbx
    ret
"#,
    compatible = const COMPATIBLE_CODE,
    kernel = const KERNEL_CODE,
    data = const KERNEL_DATA,
    window = const WINDOW,
);

unsafe extern "sysv64" {
    fn run_compatible(arguments: *mut Arguments);
}

/// An entry of either size.
fn put(table: &Page, index: u64, pae: bool, entry: u64) {
    if pae {
        table.entry(index).set(entry);
    } else {
        let word = table.entry(index / 2);
        let shift = index % 2 * 32;
        word.set(word.get() & !(0xFFFF_FFFF << shift) | entry << shift);
    }
}

/// Runs the program for `rounds`, with PAE paging or with 32-bit paging. Returns what it saw. Interrupts are off; the
/// segments of [`crate::segments`] are loaded, and stack and code lie in the first 64 MiB.
pub fn run(pae: bool, rounds: u32, random: u32) -> u32 {
    let flags = PRESENT | WRITABLE;
    let large_bytes: u64 = if pae { 2 << 20 } else { 4 << 20 };
    let [low, high] = if pae { [&DIRECTORIES[0], &DIRECTORIES[1]] } else { [&ROOT, &ROOT] };
    for page in [&ROOT, low, high, &TABLE] {
        (0..512).for_each(|index| page.entry(index).set(0));
    }
    for index in 0..MAPPED / large_bytes {
        put(low, index, pae, (index * large_bytes) | flags | LARGE | ACCESSED | DIRTY);
    }
    if pae {
        ROOT.entry(0).set(low.address() | PRESENT);
        ROOT.entry(2).set(high.address() | PRESENT);
    }
    for page in 0..PAGES {
        put(&TABLE, page, pae, FRAMES[page as usize].address() | flags);
    }
    let index = if pae { 0 } else { u64::from(WINDOW >> 22) };
    let (to_table, to_page) = (TABLE.address() | flags, LARGE_FRAME | flags | LARGE);
    put(high, index, pae, to_table);
    // A page of 4 MiB may lie beyond 4 GiB, where nothing is: bits 13 on are bits 32 on of its address.
    let has_high_pages = !pae && cpu::cpuid(1, 0).edx & PSE_36 != 0;
    if has_high_pages {
        put(high, index + 1, pae, flags | LARGE | 1 << 13);
    }
    let shift = if pae { 3 } else { 2 };
    let mut arguments = Arguments {
        cr3: ROOT.address() as u32,
        cr4: if pae { CR4_PAE } else { CR4_PSE },
        table: TABLE.address() as u32,
        shift,
        rounds,
        random,
        seen: 0,
        old_cr4: 0,
        old_cr3: 0,
        frames: FRAMES[0].address() as u32,
        directory_entry: (high.address() + (index << shift)) as u32,
        exchange: (to_table ^ to_page) as u32,
        old_stack: 0,
        probe: if has_high_pages { WINDOW + (4 << 20) } else { WINDOW },
        probed: u32::MAX,
    };
    // SAFETY: the tables map code, stack and arguments one to one; the program writes to its pages, to the tables above and
    // to a frame that nobody uses, and comes back with everything as it was but registers that calls may change.
    unsafe { run_compatible(&raw mut arguments) };
    assert!(!has_high_pages || arguments.probed == u32::MAX, "there is no memory: {:#x}", arguments.probed);
    arguments.seen
}
