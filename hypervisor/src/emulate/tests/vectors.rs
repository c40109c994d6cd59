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
