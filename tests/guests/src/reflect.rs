//! Sends a frame back to where it came from, whatever VLAN it is in.

const VLAN: [u8; 2] = [0x81, 0x00];
const IPV4: [u8; 2] = [0x08, 0x00];
const UDP: u8 = 17;

/// Makes a UDP datagram over IPv4, with any number of VLAN tags, the answer to itself: addresses and ports change places,
/// which no checksum notices. Whether it was one, and not to a group.
pub fn reflect(frame: &mut [u8]) -> bool {
    let mut at = 12;
    while frame.get(at..at + 2) == Some(&VLAN) {
        at += 4;
    }
    if frame.get(at..at + 2) != Some(&IPV4) || frame[0] & 1 != 0 {
        return false;
    }
    let ip = at + 2;
    let Some(&[head, .., protocol]) = frame.get(ip..ip + 10) else { return false };
    let udp = ip + 4 * usize::from(head & 0xF);
    if protocol != UDP || udp < ip + 20 || frame.len() < udp + 8 {
        return false;
    }
    swap(&mut frame[..12]);
    swap(&mut frame[ip + 12..ip + 20]);
    swap(&mut frame[udp..udp + 4]);
    true
}

/// The halves change places.
fn swap(bytes: &mut [u8]) {
    let (first, second) = bytes.split_at_mut(bytes.len() / 2);
    first.swap_with_slice(second);
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use proptest::prelude::*;

    use super::*;

    fn datagram(tags: usize) -> Vec<u8> {
        let mut frame = Vec::from(*b"\x02aaaaa\x04bbbbb");
        (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 5]));
        frame.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, UDP, 0xAB, 0xCD]);
        frame.extend(*b"srceDEST\x11\x12\x21\x22\x00\x0c\x99\x99data");
        frame
    }

    #[test]
    fn addresses_and_ports_change_places() {
        for tags in 0..3 {
            let mut frame = datagram(tags);
            assert!(reflect(&mut frame));
            assert_eq!(frame[..12], *b"\x04bbbbb\x02aaaaa");
            assert_eq!(frame[24 + 4 * tags..], *b"\xab\xcdDESTsrce\x21\x22\x11\x12\x00\x0c\x99\x99data");
            assert!(reflect(&mut frame));
            assert_eq!(frame, datagram(tags));
        }
    }

    proptest! {
        #[test]
        fn what_is_no_datagram_is_left_alone(tags in 0usize..3, len in 0usize..60, at in 0usize..60, byte in any::<u8>()) {
            let mut frame = datagram(tags);
            frame.truncate(len);
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
            let before = frame.clone();
            if !reflect(&mut frame) {
                prop_assert_eq!(frame, before);
            }
        }
    }
}
