//! How requests to the guest's disk ended, as a log entry says it: which, and how. Their data is not in it: each machine has a
//! disk of its own.

use alloc::vec::Vec;

use crate::wire::{DecodeError, Reader, put_varint};

/// Where a disk that lies on a drive begins in the addresses of a state: behind all memory. What lies where there, the machines
/// agree on; here whatever is behind this address may be sent.
pub const ADDRESS: u64 = 1 << 62;

/// Most requests whose end one entry tells.
pub const MAX_ENDS: usize = 256;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskStatus {
    /// It was done; what it was to make durable is.
    Done = 0,
    /// The disk failed it.
    Failed = 1,
}

/// The end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskEnd {
    /// Which one: no two of a guest's life have the same number.
    pub id: u64,
    /// How it ended.
    pub status: DiskStatus,
}

/// The data of an entry that tells of `ends`: 1 to [`MAX_ENDS`] of them, by rising numbers.
///
/// # Panics
/// When they are none, too many, or in another order: a bug of ours.
#[must_use]
pub fn encode(ends: &[DiskEnd]) -> Vec<u8> {
    assert!((1..=MAX_ENDS).contains(&ends.len()), "an entry cannot tell of {} ends", ends.len());
    let mut out = Vec::new();
    let mut next = 0;
    for end in ends {
        put_varint(&mut out, end.id.checked_sub(next).expect("ends are told by rising numbers"));
        out.push(end.status as u8);
        next = end.id + 1;
    }
    out
}

/// Reads what [`encode`] made.
///
/// # Errors
/// It is something else.
pub fn decode(data: &[u8]) -> Result<Vec<DiskEnd>, DecodeError> {
    let (mut reader, mut ends, mut next) = (Reader(data), Vec::new(), 0u64);
    while !reader.is_empty() && ends.len() < MAX_ENDS {
        let id = next.checked_add(reader.varint()?).filter(|&id| id < u64::MAX);
        let id = id.ok_or(DecodeError::BadValue("disk request"))?;
        let status = match reader.u8()? {
            0 => DiskStatus::Done,
            1 => DiskStatus::Failed,
            _ => return Err(DecodeError::BadValue("disk status")),
        };
        ends.push(DiskEnd { id, status });
        next = id + 1;
    }
    reader.finish()?;
    if ends.is_empty() { Err(DecodeError::BadValue("disk requests")) } else { Ok(ends) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip(all in prop::collection::btree_map(0..u64::MAX, any::<bool>(), 1..MAX_ENDS)) {
            let all: BTreeMap<u64, bool> = all;
            let status = |failed| if failed { DiskStatus::Failed } else { DiskStatus::Done };
            let ends: Vec<_> = all.into_iter().map(|(id, failed)| DiskEnd { id, status: status(failed) }).collect();
            prop_assert_eq!(decode(&encode(&ends)), Ok(ends));
        }

        /// What is read could have been written.
        #[test]
        fn any_bytes_are_refused_or_ends(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(ends) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&ends)), Ok(ends));
            }
        }
    }

    #[test]
    fn ends_are_short_and_in_bounds() {
        let ends: Vec<_> = (1000..1000 + MAX_ENDS as u64).map(|id| DiskEnd { id, status: DiskStatus::Done }).collect();
        let bytes = encode(&ends);
        assert!(bytes.len() <= 2 * ends.len() + 1, "{} bytes", bytes.len());
        let one_more = [&bytes[..], &[0, 0]].concat();
        assert!(decode(&bytes).is_ok() && decode(&one_more).is_err());
        for bad in [&[][..], &[1], &[1, 2], &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0]] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }
}
