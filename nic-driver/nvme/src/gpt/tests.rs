use proptest::prelude::*;

use super::*;

/// A drive in memory.
#[derive(Clone)]
struct Drive {
    block_bytes: usize,
    bytes: Vec<u8>,
    /// Blocks that cannot be read.
    bad: Vec<u64>,
}

impl Blocks for Drive {
    type Error = &'static str;

    fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    fn blocks(&self) -> u64 {
        (self.bytes.len() / self.block_bytes) as u64
    }

    fn read(&mut self, block: u64, bytes: &mut [u8]) -> Result<(), &'static str> {
        if self.bad.contains(&block) {
            return Err("a bad block");
        }
        let start = block as usize * self.block_bytes;
        bytes.copy_from_slice(self.bytes.get(start..start + self.block_bytes).ok_or("no such block")?);
        Ok(())
    }
}

const BLOCKS: u64 = 400;
const ENTRIES: u32 = 128;

fn guid(number: u8) -> Guid {
    Guid([number; 16])
}

/// A drive with partitions: name, number of its GUID, first and last block.
fn drive(block_bytes: usize, partitions: &[(&str, u8, u64, u64)]) -> Drive {
    let entry_blocks = u64::from(ENTRIES) * 128 / block_bytes as u64;
    let mut entries = vec![0; ENTRIES as usize * 128];
    for (entry, &(name, number, first, last)) in entries.chunks_mut(128).skip(1).zip(partitions) {
        entry[..16].fill(7);
        entry[16..32].copy_from_slice(&guid(number).0);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (place, letter) in entry[56..].chunks_mut(2).zip(name.encode_utf16()) {
            place.copy_from_slice(&letter.to_le_bytes());
        }
    }
    let mut drive = Drive { block_bytes, bytes: vec![0; BLOCKS as usize * block_bytes], bad: Vec::new() };
    drive.bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    drive.bytes[0x1C2] = 0xEE;
    for (at, other, entries_at) in [(1, BLOCKS - 1, 2), (BLOCKS - 1, 1, BLOCKS - 1 - entry_blocks)] {
        let mut header = vec![0; block_bytes];
        header[..8].copy_from_slice(SIGNATURE);
        header[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        let numbers = [at, other, 2 + entry_blocks, BLOCKS - 2 - entry_blocks];
        for (place, number) in header[24..].chunks_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        header[72..80].copy_from_slice(&entries_at.to_le_bytes());
        header[80..84].copy_from_slice(&ENTRIES.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        let checksum = crc32(&header[..92]);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        drive.bytes[at as usize * block_bytes..][..block_bytes].copy_from_slice(&header);
        drive.bytes[entries_at as usize * block_bytes..][..entries.len()].copy_from_slice(&entries);
    }
    drive
}

const TWO: [(&str, u8, u64, u64); 2] = [("boot", 1, 40, 99), ("gäste", 2, 100, 199)];

#[test]
fn the_checksum_is_the_known_one() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
}

#[test]
fn guids_are_read_and_shown() {
    let text = "0fc63daf-8483-4772-8e79-3d69d8477de4";
    let guid = Guid::parse(text).unwrap();
    assert_eq!(guid.0[..8], [0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47]);
    assert_eq!(guid.to_string(), text);
    assert_eq!(Wanted::parse(&text.to_uppercase()), Wanted::Guid(guid));
    for name in ["", "data", "0fc63daf-8483-4772-8e79-3d69d8477de", "0fc63daf+8483-4772-8e79-3d69d8477de4"] {
        assert_eq!(Wanted::parse(name), Wanted::Name(name));
    }
}

#[test]
fn partitions_are_found_by_name_and_guid() {
    for block_bytes in [512, 4096] {
        let mut drive = drive(block_bytes, &TWO);
        let expected = Partition { first: 100, blocks: 100, guid: guid(2), damaged: false };
        assert_eq!(find(&mut drive, &Wanted::Name("gäste")), Ok(expected));
        assert_eq!(find(&mut drive, &Wanted::Guid(guid(2))), Ok(expected));
        assert_eq!(find(&mut drive, &Wanted::Name("gäst")), Err(GptError::NotFound));
        assert_eq!(find(&mut drive, &Wanted::Guid(guid(0))), Err(GptError::NotFound));
        assert_eq!(label(&mut drive), Ok(Label::Gpt));
    }
}

#[test]
fn one_damaged_copy_is_survived_and_two_are_not() {
    let whole = drive(512, &TWO);
    let find = |drive: &mut Drive| find(drive, &Wanted::Name("boot"));
    let damage = |drive: &mut Drive, block: u64| drive.bytes[block as usize * 512 + 30] ^= 1;
    // Header and entries of either copy.
    let (first, second) = ([1, 3], [BLOCKS - 1, BLOCKS - 33 + 1]);
    for block in first.into_iter().chain(second) {
        let mut drive = whole.clone();
        damage(&mut drive, block);
        assert_eq!(find(&mut drive).map(|found| (found.first, found.damaged)), Ok((40, true)), "block {block}");
        assert_eq!(label(&mut drive), Ok(Label::Gpt));
    }
    for (a, expected) in first.into_iter().zip([Damage::HeaderChecksum, Damage::EntriesChecksum]) {
        for b in second {
            let mut drive = whole.clone();
            damage(&mut drive, a);
            damage(&mut drive, b);
            assert_eq!(find(&mut drive), Err(GptError::Damaged(expected)));
        }
    }
}

#[test]
fn one_copy_that_cannot_be_read_is_survived() {
    let mut drive = drive(512, &TWO);
    let wanted = Wanted::Name("boot");
    for block in [1, 3, BLOCKS - 1, BLOCKS - 33 + 1] {
        drive.bad = vec![block];
        assert_eq!(find(&mut drive, &wanted).map(|found| (found.first, found.damaged)), Ok((40, true)), "{block}");
    }
    drive.bad = vec![1, BLOCKS - 1];
    assert_eq!(find(&mut drive, &wanted), Err(GptError::Read("a bad block")));
}

/// Changes both headers, and makes their checksums right again.
fn with_headers(mut drive: Drive, change: impl Fn(&mut [u8])) -> Drive {
    for at in [512, (BLOCKS as usize - 1) * 512] {
        let header = &mut drive.bytes[at..at + 512];
        change(header);
        header[16..20].fill(0);
        let checksum = crc32(&header[..92]);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
    }
    drive
}

#[test]
fn tables_that_let_partitions_lie_on_themselves_are_refused() {
    let find = |place: usize, value: u64, partition| {
        let drive = drive(512, &[partition]);
        let mut drive = with_headers(drive, |header| header[place..place + 8].copy_from_slice(&value.to_le_bytes()));
        find(&mut drive, &Wanted::Name("a"))
    };
    assert_eq!(find(40, 34, ("a", 1, 34, 99)).map(|found| found.first), Ok(34));
    // Up to the header of the second copy, and on the entries of the other one.
    assert_eq!(find(48, BLOCKS - 1, ("a", 1, 40, 99)), Err(GptError::Damaged(Damage::Header)));
    assert!(find(48, BLOCKS - 2, ("a", 1, 40, BLOCKS - 2)).is_err());
    assert!(find(40, 1, ("a", 1, 40, 99)).is_err());
    assert!(find(40, 4, ("a", 1, 4, 99)).is_err());
}

#[test]
fn two_partitions_with_one_guid_are_no_name() {
    let mut drive = drive(512, &[("a", 1, 40, 99), ("b", 1, 90, 199)]);
    assert_eq!(find(&mut drive, &Wanted::Name("a")), Err(GptError::Ambiguous));
    assert_eq!(find(&mut drive, &Wanted::Guid(guid(1))), Err(GptError::Ambiguous));
}

/// A table of the guest's own lies on its disk; one that somebody else made reaches further.
#[test]
fn a_drive_that_was_divided_since_is_noticed() {
    let whole = drive(512, &TWO);
    assert_eq!(is_divided(&mut whole.clone(), BLOCKS - 8), Ok(true));
    let mut first = whole.clone();
    first.bytes[(BLOCKS as usize - 1) * 512..].fill(0);
    assert_eq!(is_divided(&mut first, BLOCKS - 8), Ok(true));
    let mut second = whole;
    second.bytes[512..1024].fill(0);
    assert_eq!(is_divided(&mut second, BLOCKS - 8), Ok(true));
    second.bytes[(BLOCKS as usize - 1) * 512..].fill(0);
    assert_eq!(is_divided(&mut second, BLOCKS - 8), Ok(false));
    // The guest's, whose second copy is its disk's last block.
    first.bytes[512 + 32..512 + 40].copy_from_slice(&(BLOCKS - 9).to_le_bytes());
    assert_eq!(is_divided(&mut first, BLOCKS - 8), Ok(false));
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |partitions: &[_], name| find(&mut drive(512, partitions), &Wanted::Name(name)).unwrap_err();
    assert_eq!(refused(&[("a", 1, 40, 99), ("a", 2, 100, 199)], "a"), GptError::Ambiguous);
    assert_eq!(refused(&[("a", 1, 40, 99), ("b", 2, 99, 199)], "a"), GptError::Misplaced);
    assert_eq!(refused(&[("a", 1, 99, 40)], "a"), GptError::Misplaced);
    assert_eq!(refused(&[("a", 1, 1, 99)], "a"), GptError::Misplaced);
    assert_eq!(refused(&[("a", 1, 40, 399)], "a"), GptError::Misplaced);
    assert_eq!(refused(&[("a", 1, 40, u64::MAX)], "a"), GptError::Misplaced);
}

#[test]
fn drives_without_a_table_are_told_apart() {
    let mut empty = Drive { block_bytes: 512, bytes: vec![0; 100 * 512], bad: Vec::new() };
    assert_eq!(find(&mut empty, &Wanted::Name("a")), Err(GptError::NoTable));
    assert_eq!(label(&mut empty), Ok(Label::None));
    empty.bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(label(&mut empty), Ok(Label::None), "a boot sector alone");
    empty.bytes[0x1D2] = 0x83;
    assert_eq!(label(&mut empty), Ok(Label::Mbr));
    for blocks in [1, 2] {
        let mut tiny = Drive { block_bytes: 512, bytes: vec![0; blocks * 512], bad: Vec::new() };
        assert_eq!(find(&mut tiny, &Wanted::Name("a")), Err(GptError::NoTable));
        assert_eq!(label(&mut tiny), Ok(Label::None));
    }
}

proptest! {
    /// Any header with a right checksum: no panic, and what is found lies on the drive.
    #[test]
    fn any_header_is_read(fields in prop::collection::vec((24usize..92, any::<u8>()), 0..12), primary in any::<bool>()) {
        let mut drive = drive(512, &TWO);
        let at = if primary { 512 } else { (BLOCKS as usize - 1) * 512 };
        let header = &mut drive.bytes[at..at + 512];
        for (place, value) in fields {
            header[place] = value;
        }
        header[16..20].fill(0);
        let checksum = crc32(&header[..92]);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(found) = find(&mut drive, &Wanted::Name("boot")) {
            prop_assert!(found.first + found.blocks <= BLOCKS);
        }
    }

    /// Any bytes at all.
    #[test]
    fn any_drive_is_read(bytes in prop::collection::vec(any::<u8>(), 512..4096)) {
        let mut bytes = bytes;
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let mut drive = Drive { block_bytes: 512, bytes, bad: Vec::new() };
        let _ = (find(&mut drive, &Wanted::Name("a")), label(&mut drive));
    }
}
