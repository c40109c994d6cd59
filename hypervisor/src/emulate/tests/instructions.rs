//! Single instructions: operands, results, RIP.

use core::arch::asm;

use super::*;
use crate::cpu::registers::{RFLAGS_RF, gpr};
use crate::emulate::decode;

const CF: u64 = 1;
const ZF: u64 = 1 << 6;

const fn index_of(name: &str) -> usize {
    match name.as_bytes() {
        b"rax" => gpr::RAX,
        b"rcx" => gpr::RCX,
        b"rdx" => gpr::RDX,
        b"rbx" => gpr::RBX,
        b"rsp" => gpr::RSP,
        b"rsi" => gpr::RSI,
        b"rdi" => gpr::RDI,
        b"r9" => 9,
        _ => panic!("no such register"),
    }
}

/// What an instruction reads from the device and leaves in a register.
struct Load {
    code: &'static [u8],
    reads: &'static [(u64, u8)],
    register: &'static str,
    value: u64,
}

/// RBX points to the device; every other register starts as all ones. The device answers 81, 92, A3, B4, C5, D6, E7, F8.
#[test]
fn loads_in_64_bit_mode() {
    const AT: u64 = DEVICE;
    let ones = u64::MAX;
    let table = [
        // mov al, [rbx]; mov ah, [rbx]; mov ax, [rbx]; mov eax, [rbx]; mov rax, [rbx].
        Load { code: &[0x8A, 0x03], reads: &[(AT, 1)], register: "rax", value: ones & !0xFF | 0x81 },
        Load { code: &[0x8A, 0x23], reads: &[(AT, 1)], register: "rax", value: ones & !0xFF00 | 0x8100 },
        Load { code: &[0x66, 0x8B, 0x03], reads: &[(AT, 2)], register: "rax", value: ones & !0xFFFF | 0x9281 },
        Load { code: &[0x8B, 0x03], reads: &[(AT, 4)], register: "rax", value: 0xB4A3_9281 },
        Load { code: &[0x48, 0x8B, 0x03], reads: &[(AT, 8)], register: "rax", value: 0xF8E7_D6C5_B4A3_9281 },
        // mov r9d, [rbx]; mov sil, [rbx].
        Load { code: &[0x44, 0x8B, 0x0B], reads: &[(AT, 4)], register: "r9", value: 0xB4A3_9281 },
        Load { code: &[0x40, 0x8A, 0x33], reads: &[(AT, 1)], register: "rsi", value: ones & !0xFF | 0x81 },
        // movzx eax, byte [rbx]; movzx ecx, word [rbx]; movsx eax, byte [rbx]; movsx rax, word [rbx]; movsxd rax, [rbx].
        Load { code: &[0x0F, 0xB6, 0x03], reads: &[(AT, 1)], register: "rax", value: 0x81 },
        Load { code: &[0x0F, 0xB7, 0x0B], reads: &[(AT, 2)], register: "rcx", value: 0x9281 },
        Load { code: &[0x0F, 0xBE, 0x03], reads: &[(AT, 1)], register: "rax", value: 0xFFFF_FF81 },
        Load { code: &[0x48, 0x0F, 0xBF, 0x03], reads: &[(AT, 2)], register: "rax", value: ones & !0xFFFF | 0x9281 },
        Load { code: &[0x48, 0x63, 0x03], reads: &[(AT, 4)], register: "rax", value: 0xFFFF_FFFF_B4A3_9281 },
        // movbe eax, [rbx]; movbe cx, [rbx].
        Load { code: &[0x0F, 0x38, 0xF0, 0x03], reads: &[(AT, 4)], register: "rax", value: 0x8192_A3B4 },
        Load {
            code: &[0x66, 0x0F, 0x38, 0xF0, 0x0B],
            reads: &[(AT, 2)],
            register: "rcx",
            value: ones & !0xFFFF | 0x8192,
        },
        // and eax, [rbx]; add eax, [rbx]; sub eax, [rbx]; xor eax, [rbx].
        Load { code: &[0x23, 0x03], reads: &[(AT, 4)], register: "rax", value: 0xB4A3_9281 },
        Load { code: &[0x03, 0x03], reads: &[(AT, 4)], register: "rax", value: 0xB4A3_9280 },
        Load { code: &[0x2B, 0x03], reads: &[(AT, 4)], register: "rax", value: 0x4B5C_6D7E },
        Load { code: &[0x33, 0x03], reads: &[(AT, 4)], register: "rax", value: 0x4B5C_6D7E },
        // cmovne eax, [rbx] (holds); cmove eax, [rbx] (does not, but reads and extends).
        Load { code: &[0x0F, 0x45, 0x03], reads: &[(AT, 4)], register: "rax", value: 0xB4A3_9281 },
        Load { code: &[0x0F, 0x44, 0x03], reads: &[(AT, 4)], register: "rax", value: 0xFFFF_FFFF },
        // mov eax, [rbx + 3], which the bus sees in aligned pieces.
        Load {
            code: &[0x8B, 0x43, 0x03],
            reads: &[(AT + 3, 1), (AT + 4, 2), (AT + 6, 1)],
            register: "rax",
            value: 0xE7D6_C5B4,
        },
        // mov rax, [0xFEE00004], absolute of 64 bits.
        Load {
            code: &[0xA1, 0x04, 0x00, 0xE0, 0xFE, 0, 0, 0, 0],
            reads: &[(AT + 4, 4)],
            register: "rax",
            value: 0xF8E7_D6C5,
        },
        // a32 mov eax, [ebx + 4].
        Load { code: &[0x67, 0x8B, 0x43, 0x04], reads: &[(AT + 4, 4)], register: "rax", value: 0xF8E7_D6C5 },
        // xchg eax, [rbx].
        Load { code: &[0x87, 0x03], reads: &[(AT, 4)], register: "rax", value: 0xB4A3_9281 },
        // lock xadd [rbx], ecx; lock cmpxchg [rbx], ecx, which fails.
        Load { code: &[0xF0, 0x0F, 0xC1, 0x0B], reads: &[(AT, 4)], register: "rcx", value: 0xB4A3_9281 },
        Load { code: &[0xF0, 0x0F, 0xB1, 0x0B], reads: &[(AT, 4)], register: "rax", value: 0xB4A3_9281 },
        // cmpxchg8b [rbx], which fails: the high half is in RDX.
        Load { code: &[0x0F, 0xC7, 0x0B], reads: &[(AT, 8)], register: "rdx", value: 0xF8E7_D6C5 },
    ];
    for Load { code, reads, register, value } in table {
        let mut rig = Rig::long();
        rig.registers.gpr = [u64::MAX; 16];
        rig.registers.gpr[gpr::RBX] = DEVICE;
        rig.registers.rflags |= RFLAGS_RF;
        assert_eq!(rig.run(code), Ok(Emulated::Retired), "{code:02x?}");
        assert_eq!(rig.bus.reads, reads, "{code:02x?}");
        assert_eq!(rig.registers.gpr[index_of(register)], value, "{code:02x?}");
        assert_eq!(rig.registers.rip, CODE + code.len() as u64, "{code:02x?}");
        assert_eq!(rig.registers.rflags & RFLAGS_RF, 0, "{code:02x?}");
    }
}

/// RBX points to the device, RCX is 0x1122334455667788, RAX what the device holds.
#[test]
fn stores_in_64_bit_mode() {
    const AT: u64 = DEVICE;
    type Store = (&'static [u8], &'static [(u64, u8, u64)]);
    let table: [Store; 25] = [
        // mov [rbx], cl; ch; cx; ecx; rcx.
        (&[0x88, 0x0B], &[(AT, 1, 0x88)]),
        (&[0x88, 0x2B], &[(AT, 1, 0x77)]),
        (&[0x66, 0x89, 0x0B], &[(AT, 2, 0x7788)]),
        (&[0x89, 0x0B], &[(AT, 4, 0x5566_7788)]),
        (&[0x48, 0x89, 0x0B], &[(AT, 8, 0x1122_3344_5566_7788)]),
        // mov byte [rbx], 0x5A; mov dword [rbx], -2; mov qword [rbx], -2; movnti [rbx], ecx; movbe [rbx], ecx.
        (&[0xC6, 0x03, 0x5A], &[(AT, 1, 0x5A)]),
        (&[0xC7, 0x03, 0xFE, 0xFF, 0xFF, 0xFF], &[(AT, 4, 0xFFFF_FFFE)]),
        (&[0x48, 0xC7, 0x03, 0xFE, 0xFF, 0xFF, 0xFF], &[(AT, 8, u64::MAX - 1)]),
        (&[0x0F, 0xC3, 0x0B], &[(AT, 4, 0x5566_7788)]),
        (&[0x0F, 0x38, 0xF1, 0x0B], &[(AT, 4, 0x8877_6655)]),
        // or dword [rbx], 1 (imm8); and [rbx], ecx; add byte [rbx], 0x7F; adc byte [rbx], 0; not, neg, inc, dec byte.
        (&[0x83, 0x0B, 0x02], &[(AT, 4, 0xB4A3_9283)]),
        (&[0x21, 0x0B], &[(AT, 4, 0x1422_1280)]),
        (&[0x80, 0x03, 0x7F], &[(AT, 1, 0x00)]),
        (&[0x80, 0x13, 0x00], &[(AT, 1, 0x82)]),
        (&[0xF6, 0x13], &[(AT, 1, 0x7E)]),
        (&[0xF6, 0x1B], &[(AT, 1, 0x7F)]),
        (&[0xFE, 0x03], &[(AT, 1, 0x82)]),
        (&[0xFE, 0x0B], &[(AT, 1, 0x80)]),
        // setb byte [rbx]; sete byte [rbx].
        (&[0x0F, 0x92, 0x03], &[(AT, 1, 1)]),
        (&[0x0F, 0x94, 0x03], &[(AT, 1, 0)]),
        // bts dword [rbx], 33 (modulo 32); btr; btc.
        (&[0x0F, 0xBA, 0x2B, 0x21], &[(AT, 4, 0xB4A3_9283)]),
        (&[0x0F, 0xBA, 0x33, 0x00], &[(AT, 4, 0xB4A3_9280)]),
        (&[0x0F, 0xBA, 0x3B, 0x01], &[(AT, 4, 0xB4A3_9283)]),
        // cmpxchg [rbx], ecx, which succeeds; cmp dword [rbx], 0, which does not write.
        (&[0x0F, 0xB1, 0x0B], &[(AT, 4, 0x5566_7788)]),
        (&[0x83, 0x3B, 0x00], &[]),
    ];
    for (code, writes) in table {
        let mut rig = Rig::long();
        rig.registers.gpr[gpr::RAX] = device_value(DEVICE, 8);
        rig.registers.gpr[gpr::RBX] = DEVICE;
        rig.registers.gpr[gpr::RCX] = 0x1122_3344_5566_7788;
        rig.registers.rflags |= CF;
        assert_eq!(rig.run(code), Ok(Emulated::Retired), "{code:02x?}");
        assert_eq!(rig.bus.writes, writes, "{code:02x?}");
        assert_eq!(rig.registers.rip, CODE + code.len() as u64, "{code:02x?}");
    }
}

#[test]
fn bit_strings_reach_in_both_directions() {
    // bts [rbx], ecx; the number of the bit is signed.
    for (number, at, bit) in [(0, 0, 0), (31, 0, 31), (32, 4, 0), (-1, -4, 31), (-32, -4, 0), (-33, -8, 31)] {
        let mut rig = Rig::long();
        rig.registers.gpr[gpr::RBX] = DATA + 0x100;
        rig.registers.gpr[gpr::RCX] = u64::from(number as u32);
        assert_eq!(rig.run(&[0x0F, 0xAB, 0x0B]), Ok(Emulated::Retired));
        assert_eq!(rig.at((DATA + 0x100).wrapping_add_signed(at), 4), 1 << bit, "bit {number}");
        assert_eq!(rig.registers.rflags & CF, 0);
        rig.registers.rip = CODE;
        rig.run(&[0x0F, 0xA3, 0x0B]).unwrap();
        assert_eq!(rig.registers.rflags & CF, CF, "bit {number}");
    }
}

#[test]
fn compare_exchange_of_8_bytes_stores_when_equal() {
    let mut rig = Rig::flat();
    rig.put(DATA, &0x1111_2222_3333_4444_u64.to_le_bytes());
    rig.registers.gpr[gpr::RAX] = 0x3333_4444;
    rig.registers.gpr[gpr::RDX] = 0x1111_2222;
    rig.registers.gpr[gpr::RBX] = 0xAAAA_AAAA;
    rig.registers.gpr[gpr::RCX] = 0xBBBB_BBBB;
    rig.registers.gpr[gpr::RSI] = DATA;
    rig.run(&[0x0F, 0xC7, 0x0E]).unwrap();
    assert_eq!(rig.at(DATA, 8), 0xBBBB_BBBB_AAAA_AAAA);
    assert_eq!(rig.registers.rflags & ZF, ZF);
}

#[test]
fn push_and_pop_move_between_device_and_stack() {
    let mut rig = Rig::long();
    rig.registers.gpr[gpr::RBX] = DEVICE;
    rig.registers.gpr[gpr::RSP] = DATA;
    rig.run(&[0xFF, 0x33]).unwrap();
    assert_eq!(rig.registers.gpr[gpr::RSP], DATA - 8);
    assert_eq!(rig.at(DATA - 8, 8), device_value(DEVICE, 8));
    rig.run(&[0x8F, 0x43, 0x08]).unwrap();
    assert_eq!(rig.registers.gpr[gpr::RSP], DATA);
    assert_eq!(rig.bus.writes, [(DEVICE + 8, 8, device_value(DEVICE, 8))]);
    // pop qword [rsp + 8]: the address is made after the stack pointer moved.
    rig.registers.gpr[gpr::RSP] = DATA - 8;
    rig.run(&[0x8F, 0x44, 0x24, 0x08]).unwrap();
    assert_eq!(rig.at(DATA + 8, 8), device_value(DEVICE, 8));
    // Real mode: the stack pointer has 16 bits and wraps, the rest of ESP stays.
    let mut rig = Rig::real();
    rig.registers.gpr[gpr::RSP] = 0x55_0000;
    rig.put(DATA, &[0x34, 0x12]);
    rig.run(&[0xFF, 0x36, 0x00, 0x90]).unwrap();
    assert_eq!(rig.registers.gpr[gpr::RSP], 0x55_FFFE);
    assert_eq!(rig.at(0xFFFE, 2), 0x1234);
}

#[test]
fn addresses_wrap_at_their_size() {
    // mov al, [bx + si] in real mode.
    let mut rig = Rig::real();
    rig.registers.gpr[gpr::RBX] = 0x1_F000;
    rig.registers.gpr[gpr::RSI] = 0xA004;
    rig.put(0x9004, &[0x77]);
    rig.run(&[0x8A, 0x00]).unwrap();
    assert_eq!(rig.registers.gpr[gpr::RAX], 0x77);
    // mov al, fs:[ebx + 4] in protected mode: base and offset wrap at 32 bits.
    let mut rig = Rig::flat();
    rig.mode.segments.fs.base = 0xFFFF_F000;
    rig.registers.gpr[gpr::RBX] = DATA + 0x1000 - 4;
    rig.put(DATA, &[0x78]);
    rig.run(&[0x64, 0x8A, 0x43, 0x04]).unwrap();
    assert_eq!(rig.registers.gpr[gpr::RAX], 0x78);
    // mov eax, gs:[rbx] and mov eax, ds:[rbx] in 64-bit mode: only the former has a base.
    let mut rig = Rig::long();
    rig.mode.segments.gs.base = 0x10;
    rig.mode.segments.ds.base = 0x20;
    rig.registers.gpr[gpr::RBX] = DEVICE;
    rig.run(&[0x65, 0x8B, 0x03]).unwrap();
    rig.run(&[0x3E, 0x8B, 0x03]).unwrap();
    assert_eq!(rig.bus.reads, [(DEVICE + 0x10, 4), (DEVICE, 4)]);
    // mov eax, [rip + 0x100].
    let mut rig = Rig::long();
    rig.put(CODE + 6 + 0x100, &[1, 2, 3, 4]);
    rig.run(&[0x8B, 0x05, 0x00, 0x01, 0x00, 0x00]).unwrap();
    assert_eq!(rig.registers.gpr[gpr::RAX], 0x0403_0201);
    // mov eax, [eip + disp] with a 32-bit address that wraps around to RAM: from CODE back below 0 to the device.
    let mut rig = Rig::long();
    let displacement = (DEVICE as u32).wrapping_sub(CODE as u32 + 7);
    let mut code = [0x67, 0x8B, 0x05, 0, 0, 0, 0];
    code[3..].copy_from_slice(&displacement.to_le_bytes());
    rig.run(&code).unwrap();
    assert_eq!(rig.bus.reads, [(DEVICE, 4)]);
}

#[test]
fn segments_protect() {
    // mov [ebx], al with a read-only, an absent and a too short data segment; mov [ebp], al with a short stack.
    let mut rig = Rig::flat();
    rig.registers.gpr[gpr::RBX] = DATA;
    rig.mode.segments.ds.attributes = 0xC91;
    assert_eq!(vector(rig.run(&[0x88, 0x03])), 13);
    rig.mode.segments.ds = Segment::default();
    assert_eq!(vector(rig.run(&[0x88, 0x03])), 13);
    rig.mode.segments.ds = Segment { limit: DATA as u32, ..Segment::flat(16, 0x493) };
    assert_eq!(rig.run(&[0x88, 0x03]), Ok(Emulated::Retired));
    assert_eq!(vector(rig.run(&[0x89, 0x03])), 13);
    rig.mode.segments.ss.limit = 0x10;
    rig.registers.gpr[5] = DATA;
    assert_eq!(vector(rig.run(&[0x88, 0x45, 0x00])), 12);
    // Expand-down: offsets above the limit are inside.
    rig.mode.segments.ds = Segment { limit: 0x8FFF, ..Segment::flat(16, 0xC97) };
    assert_eq!(rig.run(&[0x88, 0x03]), Ok(Emulated::Retired));
    rig.registers.gpr[gpr::RBX] = 0x8FFF;
    assert_eq!(vector(rig.run(&[0x88, 0x03])), 13);
    // 64-bit mode: addresses that are not canonical.
    let mut rig = Rig::long();
    rig.registers.gpr[gpr::RBX] = 0x8000_0000_0000_0000;
    rig.registers.gpr[gpr::RSP] = 0x8000_0000_0000_0000;
    assert_eq!(vector(rig.run(&[0x88, 0x03])), 13);
    assert_eq!(vector(rig.run(&[0x88, 0x04, 0x24])), 12);
}

#[test]
fn what_is_not_implemented_is_reported_with_its_bytes() {
    // addps xmm0, [rbx].
    let mut rig = Rig::long();
    rig.registers.gpr[gpr::RBX] = DEVICE;
    let before = rig.registers;
    let Err(Fault::Unsupported(bytes)) = rig.run(&[0x0F, 0x58, 0x03]) else { panic!("it is implemented") };
    assert_eq!(bytes.as_slice(), [0x0F, 0x58, 0x03]);
    assert_eq!(alloc::format!("{bytes:?}"), "0f 58 03");
    assert_eq!(rig.registers, before);
    // lock mov; nothing but prefixes.
    assert_eq!(vector(rig.run(&[0xF0, 0x89, 0x03])), 6);
    assert_eq!(vector(rig.run(&[0x66; 16])), 6);
}

#[test]
fn lengths() {
    // CPUID, RDTSC, RDTSCP, HLT, RDMSR, WRMSR, VMMCALL, VMCALL, XSETBV, WBINVD, INVD; with prefixes; others.
    let table: [&[u8]; 15] = [
        &[0x0F, 0xA2],
        &[0x0F, 0x31],
        &[0x0F, 0x01, 0xF9],
        &[0xF4],
        &[0x0F, 0x32],
        &[0x0F, 0x30],
        &[0x0F, 0x01, 0xD9],
        &[0x0F, 0x01, 0xC1],
        &[0x0F, 0x01, 0xD1],
        &[0x0F, 0x09],
        &[0x0F, 0x08],
        &[0x48, 0x0F, 0xA2],
        &[0xF3, 0x2E, 0x0F, 0xA2],
        &[0x66, 0xF4],
        &[0x48, 0xB8, 1, 2, 3, 4, 5, 6, 7, 8],
    ];
    for code in table {
        // Ending on the last byte of mapped memory: the next page must not be touched.
        let mut rig = Rig::long();
        rig.map_small(0, 0xA000 | 7);
        rig.put(0xB000 - code.len() as u64, code);
        rig.registers.rip = SMALL + 0x1000 - code.len() as u64;
        let length = decode::instruction_length(&rig.mode, &rig.registers, &mut rig.bus);
        assert_eq!(length, Ok(code.len() as u8), "{code:02x?}");
    }
    // The same bytes have another length in another mode: mov eax, imm32 and mov ax, imm16.
    for (mut rig, want) in [(Rig::flat(), 5), (Rig::real(), 3)] {
        rig.put(CODE, &[0xB8, 0, 0, 0, 0]);
        assert_eq!(decode::instruction_length(&rig.mode, &rig.registers, &mut rig.bus), Ok(want));
    }
}

#[test]
fn instructions_cross_pages() {
    // mov dword [rbx], imm32 with its first two bytes on one page and the rest on another.
    let mut rig = Rig::long();
    let code = [0xC7, 0x03, 0x11, 0x22, 0x33, 0x44];
    rig.map_small(0, 0xA000 | 7);
    rig.put(0xAFFE, &code[..2]);
    rig.put(0xC000, &code[2..]);
    rig.registers.rip = SMALL + 0xFFE;
    rig.registers.gpr[gpr::RBX] = DEVICE;
    assert_eq!(page_fault(rig.step()), (0x10, SMALL + 0x1000));
    rig.map_small(1, 0xC000 | 7);
    assert_eq!(rig.step(), Ok(Emulated::Retired));
    assert_eq!(rig.bus.writes, [(DEVICE, 4, 0x4433_2211)]);
    assert_eq!(rig.registers.rip, SMALL + 0x1004);
    // Code on a device.
    rig.registers.rip = DEVICE;
    assert_eq!(rig.step(), Err(Fault::FetchOutsideMemory(Gpa(DEVICE))));
}

#[test]
fn rip_has_32_bits_outside_of_64_bit_mode() {
    // mov al, [ebx] ending at the last address of a segment that begins in RAM.
    let mut rig = Rig::flat();
    rig.mode.segments.cs.base = CODE + 2;
    rig.registers.rip = 0xFFFF_FFFE;
    rig.registers.gpr[gpr::RBX] = DATA;
    rig.put(CODE, &[0x8A, 0x03]);
    assert_eq!(rig.step(), Ok(Emulated::Retired));
    assert_eq!(rig.registers.rip, 0);
}

#[test]
fn cr8_moves() {
    let mut rig = Rig::long();
    let mut decoded = |code: &[u8]| {
        rig.put(CODE, code);
        decode::mov_cr8(&rig.mode, &rig.registers, &mut rig.bus)
    };
    let access = |write, register| Ok(decode::Cr8Access { write, register, length: 4 });
    assert_eq!(decoded(&[0x44, 0x0F, 0x20, 0xC3]), access(false, gpr::RBX));
    assert_eq!(decoded(&[0x44, 0x0F, 0x22, 0xC0]), access(true, gpr::RAX));
    assert_eq!(decoded(&[0x45, 0x0F, 0x22, 0xC1]), access(true, 9));
    assert!(matches!(decoded(&[0x0F, 0x20, 0xC0]), Err(Fault::Unsupported(_))));
}

/// Carries out SETcc natively with the given flags.
macro_rules! native_set {
    ($name:literal, $flags:expr) => {{
        let value: u8;
        // SAFETY: pushes and pops are balanced; only status flags are changed.
        #[allow(unsafe_code)]
        unsafe {
            asm!("push {flags}", "popfq", concat!($name, " {value}"), flags = in(reg) $flags, value = out(reg_byte) value);
        }
        value
    }};
}

#[test]
fn conditions_as_the_cpu_does() {
    for bits in 0..32_u64 {
        // CF, PF, ZF, SF, OF and the bits that are always set in user mode: 1 and IF.
        let flag = |from: u32, to: u32| (bits >> from & 1) << to;
        let flags = flag(0, 0) | flag(1, 2) | flag(2, 6) | flag(3, 7) | flag(4, 11) | 0x202;
        let want = [
            native_set!("seto", flags),
            native_set!("setno", flags),
            native_set!("setb", flags),
            native_set!("setae", flags),
            native_set!("sete", flags),
            native_set!("setne", flags),
            native_set!("setbe", flags),
            native_set!("seta", flags),
            native_set!("sets", flags),
            native_set!("setns", flags),
            native_set!("setp", flags),
            native_set!("setnp", flags),
            native_set!("setl", flags),
            native_set!("setge", flags),
            native_set!("setle", flags),
            native_set!("setg", flags),
        ];
        for (condition, want) in want.into_iter().enumerate() {
            let mut rig = Rig::long();
            rig.registers.rflags = flags;
            rig.registers.gpr[gpr::RBX] = DATA;
            rig.run(&[0x0F, 0x90 + condition as u8, 0x03]).unwrap();
            assert_eq!(rig.at(DATA, 1), u64::from(want), "condition {condition:x} flags {flags:#x}");
        }
    }
}
