//! What clients and the guest say to each other, as Ethernet frames.

/// Marks the guest's unasked frames.
pub(crate) const NO_CLIENT: u64 = u64::MAX;
/// The request that makes the guest switch itself off.
pub(crate) const POWER_OFF: u64 = u64::MAX;
/// The request that makes it ask for a reset.
pub(crate) const RESET: u64 = u64::MAX - 1;
/// Bytes before the numbers: an Ethernet header with an experimental type. See: IEEE 802, 9.2.4.
const HEADER: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) client: u64,
    /// Counts the client's requests; a repeated one has the same number.
    pub(crate) number: u64,
}

/// What the guest sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Which frame of the guest's life this is, from 0.
    pub(crate) index: u64,
    /// The guest's chain when it was made: two frames are equal only if all that came before them is.
    pub(crate) chain: u64,
    /// Guest time in nanoseconds.
    pub(crate) time: u64,
    /// Whose request it answers, or [`NO_CLIENT`].
    pub(crate) client: u64,
    pub(crate) number: u64,
    /// What the counter said.
    pub(crate) value: u64,
}

fn encode(numbers: &[u64], padding: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER.len() + numbers.len() * 8 + padding);
    frame.extend_from_slice(&HEADER);
    for number in numbers {
        frame.extend_from_slice(&number.to_le_bytes());
    }
    frame.resize(frame.len() + padding, 0x5a);
    frame
}

fn numbers<const N: usize>(frame: &[u8]) -> Option<[u64; N]> {
    let body = frame.strip_prefix(&HEADER)?.get(..N * 8)?;
    let mut words = body.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    Some([(); N].map(|()| words.next().expect("N words")))
}

impl Request {
    /// The request as a frame with `padding` bytes behind it.
    pub(crate) fn encode(&self, padding: usize) -> Vec<u8> {
        encode(&[self.client, self.number], padding)
    }

    /// Reads a frame; `None` if it is none of ours.
    pub(crate) fn decode(frame: &[u8]) -> Option<Self> {
        numbers(frame).map(|[client, number]| Self { client, number })
    }
}

impl Reply {
    /// The reply as a frame; its length depends on the chain.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let numbers = [self.index, self.chain, self.time, self.client, self.number, self.value];
        encode(&numbers, (self.chain % 200) as usize)
    }

    /// Reads a frame; `None` if it is none of ours.
    pub(crate) fn decode(frame: &[u8]) -> Option<Self> {
        let [index, chain, time, client, number, value] = numbers(frame)?;
        Some(Self { index, chain, time, client, number, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let request = Request { client: 3, number: 9 };
        assert_eq!(Request::decode(&request.encode(50)), Some(request));
        let reply = Reply { index: 1, chain: 77, time: 5, client: 3, number: 9, value: 4 };
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        assert_eq!(Reply::decode(&request.encode(0)), None);
    }
}
