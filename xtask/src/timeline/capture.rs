//! Captures read back: frames and when they were sent.

use std::time::Duration;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [8, 0];
const RARP: [u8; 2] = [0x80, 0x35];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A frame of a capture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame<'a> {
    /// Since 1970.
    pub time: Duration,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl Frame<'_> {
    /// Its time in seconds.
    pub fn unix_s(&self) -> f64 {
        self.time.as_secs_f64()
    }

    /// Whether it tells switches where an address is: a new primary's are such.
    pub fn announces(&self) -> bool {
        self.bytes.get(12..ETHERNET) == Some(&RARP)
    }
}

/// The frames of a capture as rigs write them; a record that is cut short ends it. None when it is no such file.
pub fn frames(file: &[u8]) -> Option<impl Iterator<Item = Frame<'_>>> {
    let word = move |at: usize| file.get(at..at + 4)?.first_chunk().copied().map(u32::from_le_bytes);
    (word(0)? == MAGIC_NANOSECONDS).then_some(())?;
    let mut at = FILE_HEADER;
    Some(std::iter::from_fn(move || {
        let [seconds, nanoseconds, length] = [word(at)?, word(at + 4)?, word(at + 8)?];
        let start = at + RECORD_HEADER;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        let bytes = file.get(start..end)?;
        at = end;
        Some(Frame { time: Duration::new(u64::from(seconds), nanoseconds), bytes })
    }))
}

/// One end of a conversation.
pub type End = ([u8; 4], u16);

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who sent it, by its MAC address.
    pub source_mac: [u8; 6],
    /// Address and port of the sender.
    pub from: End,
    /// Address and port of the receiver.
    pub to: End,
    /// What is on top of IP.
    pub transport: Transport,
    /// What is in there.
    pub data: &'a [u8],
}

/// What is on top of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Number of the first byte.
        sequence: u32,
        /// Number of the byte that is awaited from the other end.
        acknowledges: u32,
        /// It begins a connection.
        opens: bool,
    },
    /// UDP.
    Udp,
}

impl<'a> Packet<'a> {
    /// Reads a frame; none when it is no whole TCP segment or UDP datagram in one piece.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let source_mac = *frame.get(6..)?.first_chunk()?;
        let packet = frame.get(ETHERNET..).filter(|_| frame[12..ETHERNET] == IPV4)?;
        let short = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes);
        let long = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_be_bytes);
        let header = usize::from(packet.first()? & 15) * 4;
        // A fragment has no head, or not all of its data.
        (packet[0] >> 4 == 4 && short(packet, 6)? & 0x3FFF == 0).then_some(())?;
        let segment = packet.get(header..usize::from(short(packet, 2)?))?;
        let address = |at: usize| packet.get(at..)?.first_chunk().copied();
        let (transport, head) = match *packet.get(9)? {
            TCP => {
                let transport = Transport::Tcp {
                    sequence: long(segment, 4)?,
                    acknowledges: long(segment, 8)?,
                    opens: segment.get(13)? & 2 != 0,
                };
                (transport, usize::from(segment.get(12)? >> 4) * 4)
            }
            UDP => (Transport::Udp, 8),
            _ => return None,
        };
        let from = (address(12)?, short(segment, 0)?);
        let to = (address(16)?, short(segment, 2)?);
        Some(Self { source_mac, from, to, transport, data: segment.get(head..)? })
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as [`Packet::parse`] reads it back.
    pub fn frame(packet: &Packet<'_>) -> Vec<u8> {
        let (protocol, mut segment) = match packet.transport {
            Transport::Udp => (UDP, vec![0; 8]),
            Transport::Tcp { sequence, acknowledges, opens } => {
                let mut head = vec![0; 20];
                head[4..8].copy_from_slice(&sequence.to_be_bytes());
                head[8..12].copy_from_slice(&acknowledges.to_be_bytes());
                (head[12], head[13]) = (5 << 4, if opens { 2 } else { 16 });
                (TCP, head)
            }
        };
        segment[0..2].copy_from_slice(&packet.from.1.to_be_bytes());
        segment[2..4].copy_from_slice(&packet.to.1.to_be_bytes());
        segment.extend_from_slice(packet.data);
        let mut frame = [&[2; 6][..], &packet.source_mac, &IPV4, &[0x45, 0]].concat();
        frame.extend(u16::try_from(20 + segment.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend([packet.from.0, packet.to.0].concat());
        frame.extend(segment);
        frame
    }

    #[test]
    fn what_was_captured_is_read_back() {
        let transport = Transport::Tcp { sequence: 7, acknowledges: 9, opens: false };
        let packet =
            Packet { source_mac: [1; 6], from: ([10, 0, 2, 2], 5), to: ([10, 0, 2, 15], 6379), transport, data: b"hi" };
        let bytes = frame(&packet);
        assert_eq!(Packet::parse(&bytes), Some(packet));
        let datagram = Packet { transport: Transport::Udp, ..packet };
        assert_eq!(Packet::parse(&frame(&datagram)), Some(datagram));

        let mut file = [&MAGIC_NANOSECONDS.to_le_bytes()[..], &[0; 20]].concat();
        let length = u32::try_from(bytes.len()).unwrap();
        for word in [3, 500_000_000, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(&bytes);
        let read: Vec<_> = frames(&file).unwrap().collect();
        assert_eq!(read, [Frame { time: Duration::from_millis(3500), bytes: &bytes }]);
        file.extend([0; 20]);
        file.truncate(file.len() - 1);
        assert_eq!(frames(&file[..file.len() - 18]).unwrap().count(), 1);
        assert!(frames(b"no capture at all, however long").is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(mut frame in prop::collection::vec(any::<u8>(), 0..80), ip: bool) {
            if ip && frame.len() > 24 {
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
                frame[23] = TCP;
            }
            Packet::parse(&frame);
            let file = [&MAGIC_NANOSECONDS.to_le_bytes()[..], &frame].concat();
            frames(&file).unwrap().for_each(drop);
        }
    }
}
