//! SSE moves to and from devices.

use super::*;

const OLD: u128 = 0x0123_4567_89AB_CDEF_1122_3344_5566_7788;

/// A machine in 64-bit mode with a device's address in RBX and something in XMM1 and XMM9.
fn rig() -> Rig {
    let mut rig = Rig::long();
    rig.registers.gpr[3] = DEVICE;
    rig.vectors.0[1] = OLD;
    rig.vectors.0[9] = !OLD;
    rig
}

fn device(at: u64) -> u128 {
    u128::from(device_value(at, 8)) | u128::from(device_value(at + 8, 8)) << 64
}

#[test]
fn whole_registers_are_loaded() {
    // movups, movupd, movdqu, movaps, movapd, movdqa, lddqu, movntdqa xmm1, [rbx]
    let loads: [&[u8]; 8] = [
        &[0x0F, 0x10, 0x0B],
        &[0x66, 0x0F, 0x10, 0x0B],
        &[0xF3, 0x0F, 0x6F, 0x0B],
        &[0x0F, 0x28, 0x0B],
        &[0x66, 0x0F, 0x28, 0x0B],
        &[0x66, 0x0F, 0x6F, 0x0B],
        &[0xF2, 0x0F, 0xF0, 0x0B],
        &[0x66, 0x0F, 0x38, 0x2A, 0x0B],
    ];
    for code in loads {
        let mut rig = rig();
        assert_eq!(rig.run(code), Ok(Emulated::Retired), "{code:x?}");
        assert_eq!(rig.vectors.0[1], device(DEVICE), "{code:x?}");
        assert_eq!(rig.bus.reads, [(DEVICE, 8), (DEVICE + 8, 8)]);
        assert_eq!(rig.registers.rip, CODE + code.len() as u64);
    }
}

#[test]
fn whole_registers_are_stored() {
    // movups, movdqu, movaps, movdqa, movntps, movntdq [rbx], xmm1
    let stores: [&[u8]; 6] = [
        &[0x0F, 0x11, 0x0B],
        &[0xF3, 0x0F, 0x7F, 0x0B],
        &[0x0F, 0x29, 0x0B],
        &[0x66, 0x0F, 0x7F, 0x0B],
        &[0x0F, 0x2B, 0x0B],
        &[0x66, 0x0F, 0xE7, 0x0B],
    ];
    for code in stores {
        let mut rig = rig();
        assert_eq!(rig.run(code), Ok(Emulated::Retired), "{code:x?}");
        assert_eq!(rig.bus.writes, [(DEVICE, 8, OLD as u64), (DEVICE + 8, 8, (OLD >> 64) as u64)], "{code:x?}");
        assert_eq!(rig.vectors.0[1], OLD);
    }
}

#[test]
fn parts_of_registers() {
    let whole = device(DEVICE);
    let (low, high) = (whole & u128::from(u64::MAX), OLD >> 64 << 64);
    // movd, movss, movq (both), movsd, movlps, movhps xmm1, [rbx]
    let loads: [(&[u8], u128); 7] = [
        (&[0x66, 0x0F, 0x6E, 0x0B], whole & 0xFFFF_FFFF),
        (&[0xF3, 0x0F, 0x10, 0x0B], whole & 0xFFFF_FFFF),
        (&[0x66, 0x48, 0x0F, 0x6E, 0x0B], low),
        (&[0xF3, 0x0F, 0x7E, 0x0B], low),
        (&[0xF2, 0x0F, 0x10, 0x0B], low),
        (&[0x0F, 0x12, 0x0B], high | low),
        (&[0x0F, 0x16, 0x0B], OLD & u128::from(u64::MAX) | low << 64),
    ];
    for (code, expected) in loads {
        let mut rig = rig();
        assert_eq!(rig.run(code), Ok(Emulated::Retired), "{code:x?}");
        assert_eq!(rig.vectors.0[1], expected, "{code:x?}");
    }
    // movd, movss, movq, movsd, movlps, movhps [rbx], xmm1
    let stores: [(&[u8], u8, u64); 6] = [
        (&[0x66, 0x0F, 0x7E, 0x0B], 4, 0x5566_7788),
        (&[0xF3, 0x0F, 0x11, 0x0B], 4, 0x5566_7788),
        (&[0x66, 0x0F, 0xD6, 0x0B], 8, OLD as u64),
        (&[0xF2, 0x0F, 0x11, 0x0B], 8, OLD as u64),
        (&[0x0F, 0x13, 0x0B], 8, OLD as u64),
        (&[0x0F, 0x17, 0x0B], 8, (OLD >> 64) as u64),
    ];
    for (code, size, value) in stores {
        let mut rig = rig();
        assert_eq!(rig.run(code), Ok(Emulated::Retired), "{code:x?}");
        assert_eq!(rig.bus.writes, [(DEVICE, size, value)], "{code:x?}");
    }
}

/// By AVX a load clears what it does not fill, by SSE it leaves the upper half alone.
#[test]
fn moves_by_avx() {
    let wide = |at| [device(at), device(at + 16)];
    let low = device(DEVICE) & u128::from(u64::MAX);
    // vmovups, vmovdqu, vmovaps, vmovdqa ymm1, [rbx]; vmovups, vmovdqa xmm1, [rbx]; vmovss, vmovd, vmovsd, vmovq
    let loads: [(&[u8], [u128; 2]); 10] = [
        (&[0xC5, 0xFC, 0x10, 0x0B], wide(DEVICE)),
        (&[0xC5, 0xFE, 0x6F, 0x0B], wide(DEVICE)),
        (&[0xC5, 0xFC, 0x28, 0x0B], wide(DEVICE)),
        (&[0xC5, 0xFD, 0x6F, 0x0B], wide(DEVICE)),
        (&[0xC5, 0xF8, 0x10, 0x0B], [device(DEVICE), 0]),
        (&[0xC5, 0xF9, 0x6F, 0x0B], [device(DEVICE), 0]),
        (&[0xC5, 0xFA, 0x10, 0x0B], [low & 0xFFFF_FFFF, 0]),
        (&[0xC5, 0xF9, 0x6E, 0x0B], [low & 0xFFFF_FFFF, 0]),
        (&[0xC5, 0xFB, 0x10, 0x0B], [low, 0]),
        (&[0xC5, 0xFA, 0x7E, 0x0B], [low, 0]),
    ];
    for (code, expected) in loads {
        let mut rig = rig();
        rig.vectors.1[1] = OLD;
        assert_eq!(rig.run(code), Ok(Emulated::Retired), "{code:x?}");
        assert_eq!(rig.vectors.get_wide(1), expected, "{code:x?}");
        assert_eq!(rig.registers.rip, CODE + code.len() as u64);
    }
    let mut machine = rig();
    machine.vectors.1[1] = OLD;
    assert_eq!(machine.run(&[0x0F, 0x10, 0x0B]), Ok(Emulated::Retired));
    assert_eq!(machine.vectors.get_wide(1), [device(DEVICE), OLD]);
    // vmovdqu, vmovntdq [rbx], ymm1; vmovups [rbx], xmm1; vmovhps, vmovlps, vmovss [rbx], xmm1
    let words = [OLD as u64, (OLD >> 64) as u64, !OLD as u64, (!OLD >> 64) as u64];
    let stores: [(&[u8], u8, &[u64]); 6] = [
        (&[0xC5, 0xFE, 0x7F, 0x0B], 8, &words),
        (&[0xC5, 0xFD, 0xE7, 0x0B], 8, &words),
        (&[0xC5, 0xF8, 0x11, 0x0B], 8, &words[..2]),
        (&[0xC5, 0xF8, 0x17, 0x0B], 8, &words[1..2]),
        (&[0xC5, 0xF8, 0x13, 0x0B], 8, &words[..1]),
        (&[0xC5, 0xFA, 0x11, 0x0B], 4, &[OLD as u64 & 0xFFFF_FFFF]),
    ];
    for (code, size, words) in stores {
        let mut rig = rig();
        rig.vectors.1[1] = !OLD;
        assert_eq!(rig.run(code), Ok(Emulated::Retired), "{code:x?}");
        let expected: Vec<_> = (DEVICE..).step_by(8).zip(words).map(|(at, word)| (at, size, *word)).collect();
        assert_eq!(rig.bus.writes, expected, "{code:x?}");
    }
    // vmovaps ymm1, [rbx + 16]: aligned for half of it only.
    let mut machine = rig();
    assert_eq!(vector(machine.run(&[0xC5, 0xFC, 0x28, 0x4B, 0x10])), 13);
    // vmovdqu [rbx], ymm1 with its end on an absent page: nothing is written.
    let mut machine = rig();
    machine.map_small(0, DEVICE | 7);
    machine.registers.gpr[3] = SMALL + 0xFE8;
    assert_eq!(page_fault(machine.run(&[0xC5, 0xFE, 0x7F, 0x0B])), (0b10, SMALL + 0x1000));
    assert!(machine.bus.writes.is_empty());
    // AVX is disabled: the bytes are not what was executed.
    for code in [[0xC5, 0xFC, 0x10, 0x0B], [0xC5, 0xF8, 0x11, 0x0B]] {
        let mut machine = rig();
        machine.vectors.2 = true;
        assert!(matches!(machine.run(&code), Err(Fault::Unsupported(_))));
    }
    // vmovhps xmm1, xmm1, [rbx]; vaddps ymm1, ymm1, [rbx]; vmovups zmm1, [rbx]
    for code in [&[0xC5, 0xF0, 0x16, 0x0B][..], &[0xC5, 0xF4, 0x58, 0x0B], &[0x62, 0xF1, 0x7C, 0x48, 0x10, 0x0B]] {
        let mut rig = rig();
        assert!(matches!(rig.run(code), Err(Fault::Unsupported(_))), "{code:x?}");
    }
}

#[test]
fn alignment_and_pages() {
    // movaps xmm1, [rbx + 8]: not aligned.
    let mut machine = rig();
    assert_eq!(vector(machine.run(&[0x0F, 0x28, 0x4B, 0x08])), 13);
    assert!(machine.bus.reads.is_empty());
    // movups xmm9, [rbx + 1]: any address, and the upper registers.
    assert_eq!(machine.run(&[0x44, 0x0F, 0x10, 0x4B, 0x01]), Ok(Emulated::Retired));
    assert_eq!(machine.vectors.0[9], device(DEVICE + 1));
    // movups [rbx], xmm1 with the second half on an absent page: nothing is written.
    let mut machine = rig();
    machine.map_small(0, DEVICE | 7);
    machine.registers.gpr[3] = SMALL + 0xFF8;
    assert_eq!(page_fault(machine.run(&[0x0F, 0x11, 0x0B])), (0b10, SMALL + 0x1000));
    assert!(machine.bus.writes.is_empty());
}

#[test]
fn other_vector_instructions_are_refused() {
    // addps xmm1, [rbx]; movq mm1, [rbx]
    for code in [&[0x0F, 0x58, 0x0B], &[0x0F, 0x6F, 0x0B]] {
        let mut rig = rig();
        assert!(matches!(rig.run(code), Err(Fault::Unsupported(_))), "{code:x?}");
        assert_eq!(rig.vectors.0[1], OLD);
    }
}
