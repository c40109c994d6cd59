//! What was on the client network: frames of a capture, and whether those that came twice are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket};

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// Reads the frames of a capture in the pcap format that xtask writes. A record that is cut short ends it.
///
/// # Errors
/// When the file is none.
pub fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.starts_with(&MAGIC_NANOSECONDS.to_le_bytes()), "{} is no capture", path.display());
    Ok(records(&bytes, FILE_HEADER).0)
}

/// A capture that grows.
#[derive(Debug)]
pub struct Tail {
    file: fs::File,
    bytes: Vec<u8>,
}

impl Tail {
    /// From its first frame on.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        file.seek(SeekFrom::Start(FILE_HEADER as u64))?;
        Ok(Self { file, bytes: Vec::new() })
    }

    /// The frames that have come since.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn frames(&mut self) -> Result<Vec<Vec<u8>>> {
        self.file.read_to_end(&mut self.bytes)?;
        let (frames, used) = records(&self.bytes, 0);
        self.bytes.drain(..used);
        Ok(frames)
    }
}

/// The frames in the records from a place on that are there as a whole, and where they end.
fn records(bytes: &[u8], start: usize) -> (Vec<Vec<u8>>, usize) {
    let (mut frames, mut at) = (Vec::new(), start);
    while let Some(&[a, b, c, d]) = bytes.get(at + 8..at + 12) {
        let (from, length) = (at + RECORD_HEADER, u32::from_le_bytes([a, b, c, d]) as usize);
        let Some(frame) = bytes.get(from..from + length) else { break };
        frames.push(frame.to_vec());
        at = from + length;
    }
    (frames, at)
}

/// What was sent more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repeats {
    /// TCP segments with data from the address looked at.
    pub segments: usize,
    /// Those that are, bit by bit, an earlier frame.
    pub identical: usize,
    /// Those with data that had been sent before, but another header: sent again by the guest's TCP itself.
    pub retransmitted: usize,
}

impl fmt::Display for Repeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segments, identical, retransmitted } = self;
        write!(f, "{segments} segments with data, {identical} of them again bit by bit, {retransmitted} retransmitted")
    }
}

/// Ports and address of a connection.
type Connection = (u16, [u8; 4], u16);

/// Looks at all TCP data that `source` sent.
///
/// # Errors
/// When the same place of a connection was sent with different data: then the receiver could tell who sent it.
pub fn repeats(frames: &[Vec<u8>], source: [u8; 6]) -> Result<Repeats> {
    let mut repeats = Repeats::default();
    let mut whole: BTreeSet<&[u8]> = BTreeSet::new();
    let mut sent: BTreeMap<(Connection, u32), u8> = BTreeMap::new();
    for frame in frames {
        let Some((connection, sequence, data)) = tcp_data(frame, source) else { continue };
        repeats.segments += 1;
        if !whole.insert(frame) {
            repeats.identical += 1;
            continue;
        }
        let mut again = false;
        for (distance, &byte) in (0..).zip(&data) {
            let place = (connection, sequence.wrapping_add(distance));
            if let Some(earlier) = sent.insert(place, byte) {
                again = true;
                ensure!(earlier == byte, "sequence number {} of port {} came with other data", place.1, connection.2);
            }
        }
        repeats.retransmitted += usize::from(again);
    }
    Ok(repeats)
}

fn tcp_data(frame: &[u8], source: [u8; 6]) -> Option<(Connection, u32, Vec<u8>)> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.src_addr() != EthernetAddress(source) || ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    let connection = (tcp.src_port(), ip.dst_addr().octets(), tcp.dst_port());
    (!tcp.payload().is_empty()).then(|| (connection, tcp.seq_number().0.cast_unsigned(), tcp.payload().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GUEST_MAC;

    /// A TCP segment with data, from the guest to a client.
    fn segment(sequence: u32, ack: u8, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1];
        frame.extend(GUEST_MAC);
        frame.extend([8, 0]);
        let length = (40 + data.len()) as u16;
        frame.extend([0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        frame.extend([0x18, 0xEB, 0x12, 0x34]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, ack, 0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0]);
        frame.extend(data);
        frame
    }

    #[test]
    fn repeats_are_told_apart() {
        let frames = [
            segment(1, 1, b":1\r\n"),
            segment(5, 1, b":2\r\n"),
            segment(5, 1, b":2\r\n"),
            segment(5, 2, b":2\r\n:3\r\n"),
            segment(9, 2, b""),
            vec![1, 2, 3],
        ];
        assert_eq!(repeats(&frames, GUEST_MAC).unwrap(), Repeats { segments: 4, identical: 1, retransmitted: 1 });
        assert_eq!(repeats(&frames, [0; 6]).unwrap(), Repeats::default());
    }

    #[test]
    fn other_data_at_the_same_place_is_an_error() {
        let error = repeats(&[segment(5, 1, b":2\r\n"), segment(5, 1, b":9\r\n")], GUEST_MAC).unwrap_err();
        assert!(error.to_string().contains("sequence number 6"), "{error}");
    }

    #[test]
    fn captures_are_read_as_far_as_they_go() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = MAGIC_NANOSECONDS.to_le_bytes().to_vec();
        bytes.resize(FILE_HEADER, 0);
        for frame in [&b"one"[..], b"three"] {
            bytes.extend([0; 8]);
            bytes.extend([frame.len() as u32, frame.len() as u32].map(u32::to_le_bytes).concat());
            bytes.extend(frame);
        }
        fs::write(file.path(), &bytes).unwrap();
        assert_eq!(read(file.path()).unwrap(), [b"one".to_vec(), b"three".to_vec()]);
        fs::write(file.path(), &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read(file.path()).unwrap().len(), 1);
        fs::write(file.path(), b"no").unwrap();
        assert!(read(file.path()).is_err());
    }
}
