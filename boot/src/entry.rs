//! The entry points: from 32-bit protected mode to Rust.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use crate::{BootInfo, Loader, PhysicalMemory, STACK_BYTES};

/// What [`entry!`](crate::entry) names.
pub type BootFunction = fn(&'static BootInfo) -> !;

unsafe extern "Rust" {
    /// Defined by [`entry!`](crate::entry) in the binary.
    static POLLUX_BOOT_MAIN: BootFunction;
}

unsafe extern "C" {
    /// First byte of the image (`link.ld`).
    static pollux_image_start: u8;
    /// First byte behind the image (`link.ld`).
    static pollux_image_end: u8;
}

/// The memory of this binary, page tables and stack included: start and length in bytes.
#[must_use]
pub fn image() -> (u64, u64) {
    let (start, end) = (&raw const pollux_image_start as u64, &raw const pollux_image_end as u64);
    (start, end - start)
}

// Headers and notes. The Multiboot2 header asks for page-aligned modules and names the 32-bit entry point; since there is
// no EFI tag, a UEFI GRUB ends boot services and enters the same way (Multiboot2 3.1.10).
// The console tag says that text mode is supported and that no console is required.
global_asm!(
    r#"
    .section .boot.multiboot2, "a"
    .balign 8
multiboot2_header:
    .long 0xe85250d6, 0, multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + 0 + (multiboot2_header_end - multiboot2_header))
    .short 3, 0 // entry address
    .long 12, pollux_boot_multiboot2, 0
    .short 4, 1 // console flags, optional
    .long 12, 2, 0
    .short 6, 0 // page-aligned modules
    .long 8
    .short 0, 0 // end
    .long 8
multiboot2_header_end:

    .section .note.pollux, "a", @note
    .balign 4
    .long 4, 8, {note}
    .asciz "Xen"
    .quad pollux_boot_pvh
"#,
    note = const crate::pvh::NOTE_PHYS32_ENTRY,
);

// Page tables: 4 GiB in pages of 2 MiB, what is above in pages of 1 GiB when the processor has them.
// The page directory entry of the stack's guard page is replaced in `unmap_guard_page`.
global_asm!(
    r#"
    .section .boot.stack, "aw", @nobits
    .balign 4096
boot_stack_guard:
    .skip 4096
    .skip {stack}
boot_stack_top:
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
boot_guard_pt:
    .skip 4096

    .section .data.boot_gdt, "aw"
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff // 0x08: 64-bit code, accessed
    .quad 0x00cf93000000ffff // 0x10: data, accessed
boot_gdt_pointer:
    .short boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt, 0

    .section .boot.text, "ax"
    .code32
    .global pollux_boot_pvh
pollux_boot_pvh:
    xor ebp, ebp
    jmp 1f
    .global pollux_boot_multiboot2
pollux_boot_multiboot2:
    mov ebp, 1
    cmp eax, 0x36d76289
    jne 9f
1:
    cli
    cld
    // Nothing of a loader's may lie in .bss, but not every loader zeroes it.
    mov edi, offset pollux_bss_start
    mov ecx, offset pollux_bss_end
    sub ecx, edi
    shr ecx, 2
    xor eax, eax
    rep stosd

    mov eax, 0x80000000
    mov esi, ebx
    cpuid
    cmp eax, 0x80000001
    jb 9f
    mov eax, 0x80000001
    cpuid
    bt edx, 29 // long mode
    jnc 9f
    mov ebx, edx

    mov dword ptr [boot_pml4], offset boot_pdpt + 3
    mov eax, offset boot_pd + 3
    mov edi, offset boot_pdpt
    mov ecx, 4
2:  mov [edi], eax
    add eax, 4096
    add edi, 8
    loop 2b

    mov eax, 0x83 // present, writable, large
    mov edi, offset boot_pd
    mov ecx, 2048
3:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 3b

    bt ebx, 26 // 1 GiB pages
    jnc 5f
    mov edi, offset boot_pdpt + 4 * 8
    mov eax, 0x83
    mov edx, 1 // address bits 32 and up: 4 GiB
    mov ecx, 508
4:  mov [edi], eax
    mov [edi + 4], edx
    add edi, 8
    add eax, 0x40000000
    adc edx, 0
    loop 4b

5:  mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x20 // PAE
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100 // EFER.LME
    wrmsr
    mov eax, cr0
    or eax, 0x80010000 // PG, WP
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    // A far return: the assembler's far jumps differ between syntaxes.
    mov esp, offset boot_stack_top
    push 0x08
    mov eax, offset boot_long_mode
    push eax
    retf

9:  cli
    hlt
    jmp 9b

    .code64
boot_long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lldt ax
    mov rsp, offset boot_stack_top
    mov edi, ebp
    mov esi, esi
    xor ebp, ebp
    call {start}
    ud2
"#,
    stack = const STACK_BYTES,
    start = sym start,
);

unsafe extern "C" {
    static boot_stack_guard: u8;
    static boot_pd: UnsafeCell<[u64; 2048]>;
    static boot_guard_pt: UnsafeCell<[u64; 512]>;
}

/// Where the boot information stays for the life of the binary.
struct InfoCell(UnsafeCell<MaybeUninit<BootInfo>>);

// SAFETY: written once by `start`, before anything else runs, then only read.
unsafe impl Sync for InfoCell {}

static INFO: InfoCell = InfoCell(UnsafeCell::new(MaybeUninit::uninit()));

/// Called once by the code above, on the boot stack.
extern "C" fn start(protocol: u32, address: u32) -> ! {
    unmap_guard_page();
    let loader = if protocol == 0 { Loader::Pvh } else { Loader::Multiboot2 };
    match BootInfo::parse(loader, u64::from(address), image(), &IdentityMapped) {
        // SAFETY: this runs once and before anybody can read `INFO`; from here on it is only read.
        Ok(info) => unsafe {
            let info: &'static BootInfo = (*INFO.0.get()).write(info);
            POLLUX_BOOT_MAIN(info)
        },
        Err(error) => panic!("boot: {error}"),
    }
}

/// Makes the page below the stack inaccessible, so that an overflow faults instead of damaging data.
fn unmap_guard_page() {
    let guard = &raw const boot_stack_guard as u64;
    let (large, page) = ((guard >> 21) as usize, ((guard >> 12) & 511) as usize);
    let base = guard & !0x1f_ffff;
    // SAFETY: the tables are only used by the processor, nothing else refers to them. The new table maps what the large page
    // mapped, without the guard page, which nothing uses; reloading CR3 drops stale translations.
    unsafe {
        let table = &mut *boot_guard_pt.get();
        for (number, entry) in table.iter_mut().enumerate() {
            *entry = if number == page { 0 } else { (base + ((number as u64) << 12)) | 3 };
        }
        (*boot_pd.get())[large] = (&raw const boot_guard_pt as u64) | 3;
        core::arch::asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags));
    }
}

/// Physical memory below 4 GiB as the boot page tables map it: where loaders put things.
struct IdentityMapped;

impl PhysicalMemory for IdentityMapped {
    fn bytes(&self, address: u64, len: usize) -> Option<&'static [u8]> {
        let end = address.checked_add(len as u64)?;
        let (image_start, image_len) = image();
        if address == 0 || end > 1 << 32 || (address < image_start + image_len && end > image_start) {
            return None;
        }
        // SAFETY: mapped and readable; whether RAM or not, any bytes are a valid value. The loader's data lies outside this
        // image, and the memory map keeps it from being handed out.
        Some(unsafe { core::slice::from_raw_parts(address as *const u8, len) })
    }
}
