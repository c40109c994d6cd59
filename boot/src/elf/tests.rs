use proptest::prelude::*;

use super::*;

/// A file with one loaded segment (16 bytes in the file, 64 in memory, at 1 MiB) and a note.
fn file(entry: &[u8], note_name: &[u8; 4]) -> Vec<u8> {
    let header = Header {
        ident: [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        kind: ET_EXEC,
        machine: EM_X86_64,
        version: 1,
        entry: 0,
        phoff: 64,
        shoff: 0,
        flags: 0,
        ehsize: 64,
        phentsize: 56,
        phnum: 2,
        shentsize: 0,
        shnum: 0,
        shstrndx: 0,
    };
    let load = ProgramHeader {
        kind: PT_LOAD,
        flags: 7,
        offset: 176,
        vaddr: !0,
        paddr: 0x10_0000,
        filesz: 16,
        memsz: 64,
        align: 4096,
    };
    let note_len = 16 + entry.len() as u64;
    let note =
        ProgramHeader { kind: PT_NOTE, offset: 192, filesz: note_len, memsz: note_len, align: 4, paddr: 0, ..load };
    let mut file = Vec::new();
    file.extend(header.as_bytes());
    file.extend(load.as_bytes());
    file.extend(note.as_bytes());
    file.extend(*b"0123456789abcdef");
    file.extend([4, entry.len() as u32, NOTE_PHYS32_ENTRY].as_bytes());
    file.extend(note_name);
    file.extend(entry);
    file
}

#[test]
fn a_good_image() {
    for entry in [&[8, 0, 0x10, 0][..], &[8, 0, 0x10, 0, 0, 0, 0, 0]] {
        let file = file(entry, b"Xen\0");
        let image = KernelImage::parse(&file).unwrap();
        assert_eq!(image.entry(), 0x10_0008);
        let segments: Vec<_> = image.segments().collect();
        assert_eq!(segments, [Segment { gpa: 0x10_0000, file_bytes: b"0123456789abcdef", mem_len: 64 }]);
        assert_eq!(image.bounds(), (0x10_0000, 0x10_0040));
        assert_eq!(image.check_fits(0x10_0040), Ok(()));
        assert_eq!(image.check_fits(0x10_003f), Err(ImageError::OutsideMemory(0x10_0040)));
    }
}

/// Replaces the notes of [`file`] and says how their segment is aligned.
fn with_notes(notes: &[u8], align: u64) -> Vec<u8> {
    let mut file = file(&[8, 0, 0x10, 0], b"GNU\0");
    file.truncate(192);
    file.extend(notes);
    let len = notes.len() as u64;
    file[120 + 32..120 + 40].copy_from_slice(&len.to_le_bytes());
    file[120 + 48..120 + 56].copy_from_slice(&align.to_le_bytes());
    file
}

/// A note as an assembler writes it into a section with this padding.
fn push_note(out: &mut Vec<u8>, name: &[u8], kind: u32, description: &[u8], padding: usize) {
    out.extend([name.len() as u32, description.len() as u32, kind].as_bytes());
    out.extend(name);
    out.resize(out.len().next_multiple_of(padding), 0);
    out.extend(description);
    out.resize(out.len().next_multiple_of(padding), 0);
}

/// What a linker makes of a kernel whose objects were compiled with `-fcf-protection`.
#[test]
fn a_property_note_before_ours() {
    for padding in [4, 8] {
        for align in [0, 4, 8] {
            let mut notes = Vec::new();
            push_note(&mut notes, b"GNU\0", 5, &[2, 0, 0, 0xc0, 4, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0], 8);
            push_note(&mut notes, b"Maker\0", 0x101, &[0], padding);
            push_note(&mut notes, b"Xen\0", NOTE_PHYS32_ENTRY, &[8, 0, 0x10, 0], padding);
            let file = with_notes(&notes, align);
            assert_eq!(KernelImage::parse(&file).map(|image| image.entry()), Ok(0x10_0008), "{padding} {align}");
        }
    }
}

#[test]
fn a_segment_without_bytes_may_lie_behind_the_file() {
    let mut file = file(&[8, 0, 0x10, 0], b"Xen\0");
    file[64 + 8..64 + 16].copy_from_slice(&0x10_0000u64.to_le_bytes());
    file[64 + 32..64 + 40].copy_from_slice(&0u64.to_le_bytes());
    let image = KernelImage::parse(&file).unwrap();
    let segments: Vec<_> = image.segments().collect();
    assert_eq!(segments, [Segment { gpa: 0x10_0000, file_bytes: b"", mem_len: 64 }]);
}

#[test]
fn bad_images_are_refused() {
    let good = file(&[8, 0, 0x10, 0], b"Xen\0");
    let with = |at: usize, byte: u8| {
        let mut file = good.clone();
        file[at] = byte;
        KernelImage::parse(&file).map(|image| image.entry())
    };
    assert_eq!(KernelImage::parse(b"").map(|_| ()), Err(ImageError::NotElf));
    assert_eq!(with(0, 0), Err(ImageError::NotElf));
    assert_eq!(with(4, 1), Err(ImageError::NotX86_64));
    assert_eq!(with(18, 3), Err(ImageError::NotX86_64));
    assert_eq!(with(56, 200), Err(ImageError::Truncated("program header table")));
    assert_eq!(with(64 + 33, 1), Err(ImageError::BadSegment(0x10_0000)));
    assert_eq!(with(64 + 15, 1), Err(ImageError::Truncated("segment")));
    assert_eq!(with(120 + 15, 1), Err(ImageError::Truncated("note")));
    assert_eq!(with(192 + 16, 0x40), Err(ImageError::EntryOutside(0x10_0040)));
    assert_eq!(KernelImage::parse(&good[..63]).map(|_| ()), Err(ImageError::Truncated("header")));
    let other = file(&[8, 0, 0x10, 0], b"GNU\0");
    assert_eq!(KernelImage::parse(&other).map(|_| ()), Err(ImageError::NoPvhNote));
}

#[test]
fn linux_is_known_by_its_note() {
    let mut file = file(&[8, 0, 0x10, 0], b"Xen\0");
    file[24..32].copy_from_slice(&0x10_0004u64.to_le_bytes());
    let pvh = KernelImage::parse(&file).unwrap();
    assert_eq!((pvh.protocol(), pvh.entry()), (Protocol::Pvh, 0x10_0008));
    file.extend([6u32, 4, 0x100].as_bytes());
    file.extend(b"Linux\0\0\0\0\0\0\0");
    for len in [120 + 32, 120 + 40] {
        file[len] = 20 + 24;
    }
    let linux = KernelImage::parse(&file).unwrap();
    assert_eq!((linux.protocol(), linux.entry()), (Protocol::Linux, 0x10_0004));
    file[24] = 0x40;
    assert_eq!(KernelImage::parse(&file).map(|_| ()), Err(ImageError::EntryOutside(0x10_0040)));
}

fn any_note() -> impl Strategy<Value = (Vec<u8>, u32, Vec<u8>)> {
    (prop::collection::vec(1u8..=255, 1..12), any::<u32>(), prop::collection::vec(any::<u8>(), 0..40))
}

proptest! {
    /// Two sections, each with its own padding of 4 or 8 and aligned to it, in a segment aligned to what the linker likes.
    #[test]
    fn our_note_is_found_among_others(
        before in prop::collection::vec(any_note(), 0..4),
        after in prop::collection::vec(any_note(), 0..4),
        property in prop::option::of(0usize..4),
        long in any::<bool>(),
        padding in prop::sample::select(vec![4, 8]),
        align in prop::sample::select(vec![0, 1, 4, 8]),
    ) {
        let mut notes = Vec::new();
        if let Some(words) = property {
            push_note(&mut notes, b"GNU\0", 5, &vec![1; words * 8], 8);
        }
        for (name, kind, description) in &before {
            push_note(&mut notes, name, *kind, description, padding);
        }
        let entry: &[u8] = if long { &[8, 0, 0x10, 0, 0, 0, 0, 0] } else { &[8, 0, 0x10, 0] };
        push_note(&mut notes, b"Xen\0", NOTE_PHYS32_ENTRY, entry, padding);
        for (name, kind, description) in &after {
            push_note(&mut notes, name, *kind, description, padding);
        }
        let file = with_notes(&notes, align);
        prop_assert_eq!(KernelImage::parse(&file).map(|image| image.entry()), Ok(0x10_0008));
    }

    /// A property section behind a section that ends in the middle of eight bytes.
    #[test]
    fn gaps_between_sections_are_no_notes(before in prop::collection::vec(any_note(), 0..4)) {
        let mut notes = Vec::new();
        for (name, kind, description) in &before {
            push_note(&mut notes, name, *kind, description, 4);
        }
        notes.resize(notes.len().next_multiple_of(8), 0);
        push_note(&mut notes, b"GNU\0", 5, &[1; 16], 8);
        push_note(&mut notes, b"Xen\0", NOTE_PHYS32_ENTRY, &[8, 0, 0x10, 0], 4);
        let file = with_notes(&notes, 8);
        prop_assert_eq!(KernelImage::parse(&file).map(|image| image.entry()), Ok(0x10_0008));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        changes in prop::collection::vec((0usize..212, any::<u8>()), 0..12),
        len in 0usize..=212,
    ) {
        let mut file = file(&[8, 0, 0x10, 0], b"Xen\0");
        for (at, byte) in changes {
            file[at] = byte;
        }
        if let Ok(image) = KernelImage::parse(&file[..len]) {
            for segment in image.segments() {
                prop_assert!(segment.file_bytes.len() as u64 <= segment.mem_len);
                prop_assert!(segment.gpa.checked_add(segment.mem_len).is_some());
            }
        }
    }
}
