use proptest::prelude::*;

use super::*;

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let offset = offset as usize;
        buffer.copy_from_slice(&self[offset..offset + buffer.len()]);
        Ok(())
    }
}

fn request(file: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let options: String = options.iter().map(|(name, value)| format!("{name}\0{value}\0")).collect();
    [&READ.to_be_bytes()[..], format!("{file}\0octet\0{options}").as_bytes()].concat()
}

fn ack(number: u64) -> Vec<u8> {
    [ACK.to_be_bytes(), (number as u16).to_be_bytes()].concat()
}

/// A client that takes blocks in their order, acknowledges each or the last of a burst, and loses what `loses` says.
fn fetch(file: &[u8], options: &[(&str, &str)], mut loses: impl FnMut() -> bool) -> Option<Vec<u8>> {
    let request = Request::parse(&request("f", options)).unwrap();
    let (mut transfer, mut packets) = Transfer::start(&request, file.to_vec(), Duration::ZERO);
    let (mut got, mut next, mut now) = (Vec::new(), 1u64, Duration::ZERO);
    let block = usize::from(request.block.unwrap_or(USUAL_BLOCK));
    while !transfer.is_over() {
        assert!(packets.len() <= usize::from(request.window.unwrap_or(1)), "more than the window");
        let mut answer = None;
        for packet in packets.drain(..).filter(|_| !loses()) {
            match u16::from_be_bytes([packet[0], packet[1]]) {
                OPTIONS => answer = Some(0),
                DATA if packet[2..4] == (next as u16).to_be_bytes() => {
                    assert!(packet.len() <= 4 + block, "more than a block");
                    got.extend_from_slice(&packet[4..]);
                    answer = Some(next);
                    next += 1;
                }
                DATA => answer = answer.or(Some(next - 1)),
                other => panic!("{other}"),
            }
        }
        match answer.filter(|_| !loses()) {
            Some(number) => packets = transfer.receive(&ack(number), now),
            None => {
                now = transfer.deadline();
                packets = transfer.poll(now);
            }
        }
        if packets.is_empty() && !transfer.is_over() {
            now = transfer.deadline();
            packets = transfer.poll(now);
        }
    }
    (transfer.arrived() == file.len() as u64).then_some(got)
}

#[test]
fn a_file_arrives_whatever_its_length() {
    for len in [0, 1, 511, 512, 513, 1024, 70_000 * 8] {
        let file: Vec<u8> = (0..len).map(|n| (n * 7 % 251) as u8).collect();
        assert_eq!(fetch(&file, &[], || false).unwrap(), file, "{len}");
        // Numbers of blocks wrap.
        assert_eq!(fetch(&file, &[("blksize", "8"), ("tsize", "0")], || false).unwrap(), file, "{len}");
    }
}

#[test]
fn options_are_granted_within_bounds() {
    let granted = |options: &[(&str, &str)]| {
        let request = Request::parse(&request("f", options)).unwrap();
        request.granted(300).map(|packet| String::from_utf8(packet[2..].to_vec()).unwrap().replace('\0', " "))
    };
    assert_eq!(granted(&[]), None);
    assert_eq!(granted(&[("what", "1")]), None);
    assert_eq!((granted(&[("timeout", "6")]), granted(&[("timeout", "255")])), (None, None));
    assert_eq!(granted(&[("timeout", "5")]).unwrap(), "timeout 5 ");
    assert_eq!(granted(&[("blksize", "7"), ("timeout", "0"), ("windowsize", "0")]), None);
    assert_eq!(granted(&[("BLKSIZE", "65000"), ("tsize", "0")]).unwrap(), "blksize 1468 tsize 300 ");
    assert_eq!(granted(&[("windowsize", "64"), ("timeout", "3")]).unwrap(), "windowsize 16 timeout 3 ");
}

#[test]
fn what_is_no_request_is_refused_or_ignored() {
    let code = |packet: &[u8]| Request::parse(packet).unwrap_err().map(|packet| packet[3]);
    assert_eq!(code(b"\0\x02f\0octet\0"), Some(ErrorCode::Access as u8));
    for illegal in
        [&b"\0\x01"[..], b"\0\x01f", b"\0\x01f\0", b"\0\x01\0octet\0", b"\0\x01f\0mail\0", b"\0\x01\xff\0octet\0"]
    {
        assert_eq!(code(illegal), Some(ErrorCode::Illegal as u8), "{illegal:?}");
    }
    assert_eq!(code(&request(&"x".repeat(2000), &[])), Some(ErrorCode::Illegal as u8));
    for silent in [&b""[..], b"\0", b"\0\x03\0\x01", b"\0\x04\0\x01", b"\0\x05\0\x01x\0", b"\0\x09"] {
        assert_eq!(Request::parse(silent), Err(None), "{silent:?}");
    }
}

#[test]
fn a_client_that_is_gone_is_given_up() {
    let request = Request::parse(&request("f", &[])).unwrap();
    let (mut transfer, first) = Transfer::start(&request, vec![1; 600], Duration::ZERO);
    let mut sent = first.len();
    for second in 1..100 {
        sent += transfer.poll(Duration::from_secs(second)).len();
    }
    assert!(transfer.is_over() && sent == TRIES as usize, "{sent}");
    let (mut transfer, _) = Transfer::start(&request, vec![1; 600], Duration::ZERO);
    assert!(transfer.receive(&error(ErrorCode::Other, "enough"), Duration::ZERO).is_empty() && transfer.is_over());
}

#[test]
fn an_old_acknowledgement_doubles_nothing() {
    let request = Request::parse(&request("f", &[])).unwrap();
    let (mut transfer, _) = Transfer::start(&request, vec![1; 2000], Duration::ZERO);
    assert_eq!(transfer.receive(&ack(1), Duration::ZERO).len(), 1);
    for old in [0, 1, 3, 4, 65_535] {
        assert!(transfer.receive(&ack(old), Duration::ZERO).is_empty(), "{old}");
    }
    assert_eq!(transfer.receive(&ack(2), Duration::ZERO).len(), 1);
}

proptest! {
    #[test]
    fn any_packet_can_be_looked_at(packet in prop::collection::vec(any::<u8>(), 0..80), code in 0u8..8, as_request: bool) {
        let mut packet = packet;
        if as_request {
            packet.splice(0..0, [0, code]);
        }
        let _ = Request::parse(&packet);
        let request = Request::parse(&request("f", &[("windowsize", "4")])).unwrap();
        let (mut transfer, _) = Transfer::start(&request, vec![0; 5000], Duration::ZERO);
        transfer.receive(&ack(0), Duration::ZERO);
        prop_assert!(transfer.receive(&packet, Duration::ZERO).len() <= 4);
    }

    #[test]
    fn loss_delays_and_never_damages(
        file in prop::collection::vec(any::<u8>(), 0..3000), seed: u64, window in 1u16..20, block in 8u16..2000,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (window, block) = (window.to_string(), block.to_string());
        let options = [("windowsize", window.as_str()), ("blksize", block.as_str())];
        // With so much loss a client may be given up; what arrived whole is right.
        if let Some(got) = fetch(&file, &options, || rng.f64() < 0.1) {
            prop_assert_eq!(got, file);
        }
    }
}
