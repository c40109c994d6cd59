//! What the driver leaves to the card: the checksum of a packet, and cutting a large TCP segment into frames. Pure.
//!
//! Nothing that the driver says is believed: lengths come from the packet itself, and each is checked against the frame.
//! See: VIRTIO 1.2, section 5.1.6.2.

use super::MAX_FRAME;

/// Length of the header before each frame. See: 5.1.6.
pub(super) const HEADER: usize = 12;
/// Longest packet to be cut: the largest of IPv6 behind an Ethernet header with two tags.
pub(super) const MAX_LARGE: usize = 22 + 40 + 0xFFFF;

/// Features: the device completes checksums, cuts TCP over IPv4 and over IPv6, also such with ECN.
const F_CSUM: u64 = 1 << 0;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
/// All of them.
pub(super) const FEATURES: u64 = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88A8;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86DD;
const PROTOCOL_TCP: u8 = 6;
/// Extension headers of IPv6 before which fragments and segments are alike: hop-by-hop and destination options.
const OPTIONS: [u8; 2] = [0, 60];
/// Where a TCP header has its checksum.
const TCP_CHECKSUM: usize = 16;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// What is to be done before a frame leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing.
    Nothing,
    /// Its checksum is to be completed.
    Checksum { start: usize, offset: usize },
    /// It is to be cut into segments of `size` bytes of payload.
    Cut { ipv6: bool, start: usize, offset: usize, size: usize },
}

impl Work {
    /// What the header before a frame asks for, if `features` were negotiated that allow it. Flags of other meaning are not
    /// ours to look at (5.1.6.2.2), and neither are fields to which no flag points.
    pub(super) fn asked(header: &[u8; HEADER], features: u64) -> Option<Self> {
        let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (size, start, offset) = (word(4), word(6), word(8));
        let has = |feature| features & feature == feature;
        let needs_csum = header[0] & NEEDS_CSUM != 0;
        let ecn = header[1] & GSO_ECN != 0;
        if needs_csum && !has(F_CSUM) || ecn && !has(F_HOST_ECN) {
            return None;
        }
        match header[1] & !GSO_ECN {
            GSO_NONE if ecn => None,
            GSO_NONE if needs_csum => Some(Self::Checksum { start, offset }),
            GSO_NONE => Some(Self::Nothing),
            GSO_TCPV4 if needs_csum && has(F_HOST_TSO4) => Some(Self::Cut { ipv6: false, start, offset, size }),
            GSO_TCPV6 if needs_csum && has(F_HOST_TSO6) => Some(Self::Cut { ipv6: true, start, offset, size }),
            _ => None,
        }
    }
}

/// Completes the checksum at `offset` behind `start` over all that follows `start`; what is there already, the sum over
/// the pseudo-header, counts. `None`, and nothing is changed, when there is no such place.
#[must_use]
pub(super) fn complete_checksum(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let covered = frame.get_mut(start..)?;
    covered.get(offset..offset + 2)?;
    let sum = sum(covered);
    put(covered, offset, checksum(sum));
    Some(())
}

/// A large segment, and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Large {
    ipv6: bool,
    /// Where the headers of IP and TCP begin, and the payload.
    ip: usize,
    tcp: usize,
    headers: usize,
    /// Bytes of payload, in all and in a frame.
    payload: usize,
    size: usize,
    identification: u16,
    sequence: u32,
    flags: u8,
}

impl Large {
    /// A packet of `total` bytes that begins with `head`, of which there is as much as a frame has room for. `None` when it is
    /// no TCP segment of the kind announced, or the frames would be too long.
    pub(super) fn parse(head: &[u8], total: usize, work: Work) -> Option<Self> {
        let Work::Cut { ipv6, start: tcp, offset: TCP_CHECKSUM, size: size @ 1.. } = work else { return None };
        let ip = behind_ethernet(head, if ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 })?;
        let (reached, protocol) = if ipv6 { behind_ipv6(head, ip, tcp) } else { behind_ipv4(head, ip) }?;
        if reached != tcp || protocol != PROTOCOL_TCP {
            return None;
        }
        let fixed: &[u8; 20] = head.get(tcp..)?.first_chunk()?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        let headers = tcp + header_len;
        let payload = total.checked_sub(headers)?;
        if header_len < fixed.len() || headers > head.len() || headers + payload.min(size) > MAX_FRAME {
            return None;
        }
        let identification = if ipv6 { 0 } else { word(head, ip + 4)? };
        let sequence = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        Some(Self { ipv6, ip, tcp, headers, payload, size, identification, sequence, flags: fixed[13] })
    }

    /// Into how many frames it is cut, at least one.
    pub(super) fn frames(&self) -> usize {
        self.payload.div_ceil(self.size).max(1)
    }

    /// How long the headers are, which each frame begins with.
    pub(super) fn headers(&self) -> usize {
        self.headers
    }

    /// Which part of the packet is the payload of frame `index`: where it begins, and its length.
    pub(super) fn part(&self, index: usize) -> (usize, usize) {
        let skip = index * self.size;
        (self.headers + skip, self.payload.saturating_sub(skip).min(self.size))
    }

    /// Makes frame `index` of the packet's headers, or of those of another frame of it, and this frame's payload.
    pub(super) fn finish(&self, index: usize, frame: &mut [u8]) {
        let Self { ip, tcp, .. } = *self;
        if self.ipv6 {
            let len = frame.len() - ip - 40;
            put(frame, ip + 4, len as u16);
        } else {
            let len = frame.len() - ip;
            put(frame, ip + 2, len as u16);
            put(frame, ip + 4, self.identification.wrapping_add(index as u16));
            put(frame, ip + 10, 0);
            let sum = sum(&frame[ip..tcp]);
            put(frame, ip + 10, checksum(sum));
        }
        let sequence = self.sequence.wrapping_add((index * self.size) as u32);
        frame[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
        let is_last = index + 1 == self.frames();
        let not_here = if is_last { 0 } else { TCP_FIN | TCP_PSH } | if index == 0 { 0 } else { TCP_CWR };
        frame[tcp + 13] = self.flags & !not_here;
        put(frame, tcp + TCP_CHECKSUM, 0);
        let addresses = if self.ipv6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
        let segment = &frame[tcp..];
        let pseudo = sum(&frame[addresses]) + u64::from(PROTOCOL_TCP) + segment.len() as u64;
        let total = pseudo + sum(segment);
        put(frame, tcp + TCP_CHECKSUM, checksum(total));
    }
}

/// Where the packet of this type begins, behind all tags.
fn behind_ethernet(head: &[u8], wanted: u16) -> Option<usize> {
    let mut at = 12;
    loop {
        match word(head, at)? {
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => at += 4,
            found => return (found == wanted).then_some(at + 2),
        }
    }
}

/// Where the header of IPv4 at `ip` ends, and what follows it; `None` for a fragment, too.
fn behind_ipv4(head: &[u8], ip: usize) -> Option<(usize, u8)> {
    let fixed: &[u8; 20] = head.get(ip..)?.first_chunk()?;
    let len = usize::from(fixed[0] & 0xF) * 4;
    let is_whole = word(fixed, 6)? & 0x3FFF == 0;
    (fixed[0] >> 4 == 4 && len >= fixed.len() && is_whole).then_some((ip + len, fixed[9]))
}

/// Where the headers of IPv6 at `ip` end, those with options included, at `end` or behind it, and what follows them.
fn behind_ipv6(head: &[u8], ip: usize, end: usize) -> Option<(usize, u8)> {
    let fixed: &[u8; 40] = head.get(ip..)?.first_chunk()?;
    let (mut at, mut next) = (ip + fixed.len(), fixed[6]);
    while at < end && OPTIONS.contains(&next) {
        next = *head.get(at)?;
        at += 8 * (usize::from(*head.get(at + 1)?) + 1);
    }
    (fixed[0] >> 4 == 6).then_some((at, next))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum of the big-endian words in `bytes`, an odd last byte being the high one, up to multiples of 0xFFFF; 0 only if
/// all are 0. Eight bytes at once: the order of bytes does not matter before the end. See: RFC 1071, section 2.
fn sum(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let halves = |chunk: &[u8; 8]| {
        let both = u64::from_le_bytes(*chunk);
        (both & 0xFFFF_FFFF) + (both >> 32)
    };
    let total = chunks.iter().map(halves).sum::<u64>() + halves(&last);
    u64::from(fold(total).swap_bytes())
}

const fn fold(mut total: u64) -> u16 {
    while total > 0xFFFF {
        total = (total & 0xFFFF) + (total >> 16);
    }
    total as u16
}

/// The checksum for a sum; never 0, which would mean "none" to UDP and is the same as 0xFFFF elsewhere.
const fn checksum(sum: u64) -> u16 {
    match !fold(sum) {
        0 => 0xFFFF,
        value => value,
    }
}
