//! Linux kernels as distributions pack them.
//!
//! A `vmlinuz` unpacks itself when it is booted. In an emulator that takes a guest long (60 MB of zstd: more than a second
//! of guest work), so it is unpacked here, at the desk's own speed. One packed in a way that is not known here is passed on as
//! it is: the hypervisor starts it too.
//!
//! See: Linux, "The Linux/x86 Boot Protocol", `payload_offset` and `payload_length`.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

/// Offsets in the setup header, and what it is known by.
const SETUP_SECTORS: usize = 0x1F1;
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24C;
const SECTOR: usize = 512;
/// No kernel is larger; a length beyond it is damage.
const LARGEST: usize = 1 << 30;
/// Most that a block of Linux's LZ4 format holds. See: lz4, "Legacy frame".
const LZ4_BLOCK: usize = 8 << 20;

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An ELF file.
    Elf,
    /// A Linux kernel as it lies in `/boot`.
    Vmlinuz,
}

/// What `file` is; `None` if it is no kernel.
pub fn kind(file: &[u8]) -> Option<Kind> {
    if file.starts_with(b"\x7fELF") {
        return Some(Kind::Elf);
    }
    file.get(MAGIC.0..).is_some_and(|rest| rest.starts_with(MAGIC.1)).then_some(Kind::Vmlinuz)
}

/// The ELF file in a `vmlinuz`; `None` if it is packed in a way that is not known here.
///
/// # Errors
/// When the file is damaged.
pub fn unpack(vmlinuz: &[u8]) -> Result<Option<Vec<u8>>> {
    let (packed, len) = payload(vmlinuz).context("the vmlinuz is truncated")?;
    ensure!(len <= LARGEST, "the vmlinuz is damaged: {len} bytes unpacked");
    let read = |reader: &mut dyn Read| {
        let mut kernel = Vec::with_capacity(len);
        reader.take(len as u64 + 1).read_to_end(&mut kernel).map(|_| kernel)
    };
    let kernel = match packed {
        [0x1F, 0x8B, ..] => read(&mut flate2::read::GzDecoder::new(packed)).context("gzip")?,
        [0x02, 0x21, 0x4C, 0x18, blocks @ ..] => lz4(blocks, len)?,
        [0x28, 0xB5, 0x2F, 0xFD, ..] => {
            let mut kernel = vec![0; len];
            let mut decoder = ruzstd::decoding::FrameDecoder::new();
            // The window of a kernel is as large as it gets: Linux packs with level 22.
            decoder.set_max_window_size(LARGEST as u64);
            let got = decoder.decode_all(packed, &mut kernel).context("zstd")?;
            kernel.truncate(got);
            kernel
        }
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => read(&mut lzma_rust2::XzReader::new(packed, false)).context("xz")?,
        _ => return Ok(None),
    };
    ensure!(kernel.len() == len, "the vmlinuz is damaged: {} of {len} bytes unpacked", kernel.len());
    ensure!(kind(&kernel) == Some(Kind::Elf), "the vmlinuz holds no ELF file");
    Ok(Some(kernel))
}

/// The packed kernel, and its length when it is unpacked, which Linux writes behind it.
fn payload(file: &[u8]) -> Option<(&[u8], usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
    // 0 sectors mean 4; the boot sector comes before them.
    let sectors = match file.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let payload = file.get((sectors + 1) * SECTOR + word(PAYLOAD_OFFSET)?..)?.get(..word(PAYLOAD_LENGTH)?)?;
    let (packed, len) = payload.split_last_chunk()?;
    // For gzip that is the end of the format itself, which its reader wants to see.
    let packed = if packed.starts_with(&[0x1F, 0x8B]) { payload } else { packed };
    Some((packed, u32::from_le_bytes(*len) as usize))
}

/// Blocks, each behind its length.
fn lz4(mut blocks: &[u8], len: usize) -> Result<Vec<u8>> {
    let mut kernel = vec![0; len];
    let mut at = 0;
    while let Some((head, rest)) = blocks.split_first_chunk() {
        let Some((block, rest)) = rest.split_at_checked(u32::from_le_bytes(*head) as usize) else {
            bail!("lz4: a block is cut off");
        };
        let end = len.min(at + LZ4_BLOCK);
        at += lz4_flex::block::decompress_into(block, &mut kernel[at..end]).context("lz4")?;
        blocks = rest;
    }
    kernel.truncate(at);
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn vmlinuz(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 2 * SECTOR];
        file[SETUP_SECTORS] = 1;
        file[MAGIC.0..MAGIC.0 + 4].copy_from_slice(MAGIC.1);
        file[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&8u32.to_le_bytes());
        file[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend([0; 8]);
        file.extend(payload);
        file
    }

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..100_000u32).flat_map(|number| (number / 7).to_le_bytes()));
        elf
    }

    /// The kernel `elf` packed in each known way.
    fn packed(elf: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(elf).unwrap();
        let mut lz4 = vec![0x02, 0x21, 0x4C, 0x18];
        for block in elf.chunks(LZ4_BLOCK) {
            let block = lz4_flex::block::compress(block);
            lz4.extend((block.len() as u32).to_le_bytes());
            lz4.extend(block);
        }
        let zstd = ruzstd::encoding::compress_to_vec(elf, ruzstd::encoding::CompressionLevel::Fastest);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        xz.write_all(elf).unwrap();
        let with_len = |mut bytes: Vec<u8>| {
            bytes.extend((elf.len() as u32).to_le_bytes());
            bytes
        };
        let xz = xz.finish().unwrap();
        vec![("gzip", gzip.finish().unwrap()), ("lz4", with_len(lz4)), ("zstd", with_len(zstd)), ("xz", with_len(xz))]
    }

    #[test]
    fn every_known_packing_is_unpacked() {
        let elf = elf();
        for (name, packed) in packed(&elf) {
            let file = vmlinuz(&packed);
            assert_eq!(kind(&file), Some(Kind::Vmlinuz));
            assert!(unpack(&file).unwrap().as_deref() == Some(&elf[..]), "{name}");
        }
        assert_eq!(unpack(&vmlinuz(b"BZh91AY....")).unwrap(), None);
    }

    #[test]
    fn damage_is_noticed() {
        for (name, packed) in packed(&elf()) {
            let mut shorter = vmlinuz(&packed);
            let end = shorter.len();
            shorter[end - 4] ^= 1;
            assert!(unpack(&shorter).is_err(), "{name}");
            assert!(unpack(&shorter[..end - 5]).is_err(), "{name}");
        }
        let text = vmlinuz(&packed(b"#!/bin/sh")[0].1);
        assert!(unpack(&text).unwrap_err().to_string().contains("no ELF"));
        assert_eq!(kind(b"#!/bin/sh"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            which in 0usize..4,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            keep in any::<prop::sample::Index>(),
        ) {
            let small: Vec<u8> = b"\x7fELF".iter().copied().chain((0..2000u32).map(|n| (n / 9) as u8)).collect();
            let mut file = vmlinuz(&packed(&small)[which].1);
            for (at, byte) in changes {
                let at = at.index(file.len());
                file[at] = byte;
            }
            // A length that was changed may ask for much memory, which is no fault.
            let _ = unpack(&file[..keep.index(file.len()) + 1]);
        }
    }
}
