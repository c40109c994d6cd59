use proptest::prelude::*;

use super::*;

fn write(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    records.iter().for_each(|record| writer.write(record).unwrap());
    let size = writer.finish().unwrap();
    assert_eq!(size, bytes.len() as u64);
    bytes
}

/// Everything up to the end or the fault.
fn read(bytes: &[u8]) -> (Vec<Record>, Option<ReadError>) {
    let mut records = Vec::new();
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (records, Some(error)),
    };
    loop {
        match reader.next_record() {
            Ok(Some(record)) => records.push(record),
            Ok(None) => return (records, None),
            Err(error) => return (records, Some(error)),
        }
    }
}

fn record() -> impl Strategy<Value = Record> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        "[ -~]{0,40}".prop_map(Record::Setup),
        ("[a-z]{1,20}", bytes(5000)).prop_map(|(name, piece)| Record::File(name, piece)),
        "[a-z]{0,20}".prop_map(|machine| Record::Session { machine }),
        any::<u64>().prop_map(Record::Time),
        (0..0x80u8, bytes(70_000)).prop_map(|(kind, payload)| Record::Message(kind, payload)),
        "[ -~]{0,40}".prop_map(Record::SessionEnd),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(records in prop::collection::vec(record(), 0..30)) {
        let (again, error) = read(&write(&records));
        prop_assert!(error.is_none(), "{error:?}");
        prop_assert_eq!(again, records);
    }

    /// What came before the fault is as it was written, and the fault has its place.
    #[test]
    fn a_flipped_bit_is_found(records in prop::collection::vec(record(), 1..12), at: prop::sample::Index, bit in 0..8u8) {
        let mut bytes = write(&records);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (again, error) = read(&bytes);
        let error = error.expect("a flipped bit is a fault");
        prop_assert!(error.offset <= at as u64, "{error} by a flip at {at}");
        prop_assert!(again.len() <= records.len());
        prop_assert_eq!(&again[..], &records[..again.len()]);
    }

    #[test]
    fn a_file_that_breaks_off_is_read_up_to_there(records in prop::collection::vec(record(), 1..12), at: prop::sample::Index) {
        let mut bytes = write(&records);
        bytes.truncate(at.index(bytes.len()));
        let (again, error) = read(&bytes);
        let error = error.expect("it breaks off");
        prop_assert!(error.offset <= bytes.len() as u64);
        prop_assert!(matches!(error.fault, Fault::Truncated | Fault::NoRecording), "{error:?}");
        prop_assert_eq!(&again[..], &records[..again.len()]);
    }

    #[test]
    fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..400), begins: bool, lengths: [u8; 2]) {
        if begins {
            let mut whole = write(&[]);
            whole.truncate(HEAD);
            whole.extend_from_slice(&[lengths[0], 0, 0, 0, lengths[1], 0, 0, 0]);
            whole.append(&mut bytes);
            bytes = whole;
        }
        let (_, error) = read(&bytes);
        prop_assert!(error.is_some());
    }
}

#[test]
fn what_was_flushed_survives_a_crash() {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    writer.write(&Record::Time(7)).unwrap();
    writer.flush().unwrap();
    writer.write(&Record::Time(8)).unwrap();
    drop(writer);
    let (records, error) = read(&bytes);
    assert_eq!(records, [Record::Time(7)]);
    let error = error.unwrap();
    assert_eq!(error.to_string(), format!("the recording breaks off at byte {}", bytes.len()));
}

#[test]
fn blocks_stay_in_their_order() {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    for us in [1, 2] {
        writer.write(&Record::Time(us)).unwrap();
        writer.flush().unwrap();
    }
    drop(writer);
    let (head, blocks) = bytes.split_at(HEAD);
    let (first, second) = blocks.split_at(blocks.len() / 2);
    let (records, error) = read(&[head, second, first].concat());
    assert_eq!(
        (records, error.unwrap().to_string().as_str()),
        (vec![], "the recording is damaged at byte 16: a block's checksum")
    );
}

#[test]
fn other_versions_are_refused_by_name() {
    let head = |version: u16, protocol: u16| {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&version.to_le_bytes());
        head.extend_from_slice(&protocol.to_le_bytes());
        head.extend_from_slice(&xxh64(&head, 0).to_le_bytes());
        read(&head).1.unwrap().to_string()
    };
    assert!(head(VERSION + 1, PROTOCOL).contains("of version 2"));
    assert!(head(VERSION, PROTOCOL + 1).contains("protocol"));
    assert!(head(VERSION, PROTOCOL).contains("breaks off at byte 16"));
    assert_eq!(read(b"#!/bin/sh\n").1.unwrap().to_string(), "this is no recording of Pollux");
    assert_eq!(read(b"").1.unwrap().to_string(), "this is no recording of Pollux");
}

#[test]
fn files_come_in_pieces() {
    let bytes: Vec<u8> = (0..MAX_PIECE * 2 + 5).map(|n| (n / 7) as u8).collect();
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out).unwrap();
    writer.write_file("kernel", &bytes).unwrap();
    writer.finish().unwrap();
    let (records, error) = read(&out);
    let pieces = records.iter().map(|record| match record {
        Record::File(name, piece) if name == "kernel" => piece.as_slice(),
        other => panic!("{other:?}"),
    });
    assert!(error.is_none() && pieces.collect::<Vec<_>>().concat() == bytes);
    let mut writer = Writer::new(Vec::new()).unwrap();
    assert!(writer.write(&Record::Message(8, vec![0; MAX_CONTENT + 1])).is_err());
    assert!(writer.write(&Record::File("x".repeat(256), vec![])).is_err());
}
