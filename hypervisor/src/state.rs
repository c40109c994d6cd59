//! One description of a piece of guest state serves saving, loading and hashing.
//!
//! A device lists its fields once, in [`State::visit`]; the visitor decides what happens to them. So what is
//! transferred to a new backup and what the digests cover can never differ.

use alloc::vec::Vec;
use core::fmt;
use xxhash_rust::xxh64::Xxh64;

/// Why a saved state was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateError {
    /// The bytes ended before all fields were read.
    Truncated,
    /// More bytes than fields.
    TrailingBytes,
    /// A field holds a value that the device can never have.
    BadValue(&'static str),
    /// The state has other registers than the CPU: bits of XCR0 of both.
    OtherComponents {
        /// The state's.
        state: u64,
        /// The CPU's.
        cpu: u64,
    },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("state ends too early"),
            Self::TrailingBytes => f.write_str("state has trailing bytes"),
            Self::BadValue(field) => write!(f, "state holds an impossible value for {field}"),
            Self::OtherComponents { state, cpu } => write!(
                f,
                "state has the registers that {state:#x} enables in XCR0, this CPU those of {cpu:#x}: vector units differ"
            ),
        }
    }
}

/// What is done with each field: read it out, overwrite it, or hash it.
pub trait Visitor {
    /// Visits raw bytes of a length that both sides know.
    fn bytes(&mut self, data: &mut [u8]) -> Result<(), StateError>;

    /// Visits a byte string of variable length, at most `max` bytes long.
    fn blob(&mut self, data: &mut Vec<u8>, max: usize) -> Result<(), StateError>;

    /// Visits an integer.
    fn u64(&mut self, value: &mut u64) -> Result<(), StateError> {
        let mut raw = value.to_le_bytes();
        self.bytes(&mut raw)?;
        *value = u64::from_le_bytes(raw);
        Ok(())
    }

    /// Visits an integer.
    fn u32(&mut self, value: &mut u32) -> Result<(), StateError> {
        let mut raw = value.to_le_bytes();
        self.bytes(&mut raw)?;
        *value = u32::from_le_bytes(raw);
        Ok(())
    }

    /// Visits an integer.
    fn u16(&mut self, value: &mut u16) -> Result<(), StateError> {
        let mut raw = value.to_le_bytes();
        self.bytes(&mut raw)?;
        *value = u16::from_le_bytes(raw);
        Ok(())
    }

    /// Visits an integer.
    fn u8(&mut self, value: &mut u8) -> Result<(), StateError> {
        self.bytes(core::slice::from_mut(value))
    }

    /// Visits a flag; loading refuses anything but 0 and 1.
    fn bool(&mut self, value: &mut bool) -> Result<(), StateError> {
        let mut raw = u8::from(*value);
        self.u8(&mut raw)?;
        *value = match raw {
            0 => false,
            1 => true,
            _ => return Err(StateError::BadValue("a flag")),
        };
        Ok(())
    }

    /// Visits an optional integer.
    fn option_u64(&mut self, value: &mut Option<u64>) -> Result<(), StateError> {
        let mut some = value.is_some();
        let mut inner = value.unwrap_or(0);
        self.bool(&mut some)?;
        self.u64(&mut inner)?;
        *value = some.then_some(inner);
        Ok(())
    }
}

/// A part of the guest that is saved, loaded and hashed as a whole.
pub trait State {
    /// Shows every field of the state to `visitor`, always in the same order.
    ///
    /// # Errors
    /// Only a loading visitor fails; the state is then half loaded and must be thrown away.
    fn visit(&mut self, visitor: &mut dyn Visitor) -> Result<(), StateError>;
}

/// Saves `state` into bytes.
pub fn save(state: &mut dyn State) -> Vec<u8> {
    let mut saver = Saver(Vec::new());
    // A saver never fails, and a device has no other source of errors.
    let _ = state.visit(&mut saver);
    saver.0
}

/// Loads `state` from bytes made by [`save`].
///
/// # Errors
/// When the bytes are too short, too long, or hold an impossible value.
pub fn load(state: &mut dyn State, bytes: &[u8]) -> Result<(), StateError> {
    let mut loader = Loader(bytes);
    state.visit(&mut loader)?;
    if loader.0.is_empty() { Ok(()) } else { Err(StateError::TrailingBytes) }
}

/// Hashes `state`: xxh64 over exactly the bytes that [`save`] would write.
pub fn hash(state: &mut dyn State) -> u64 {
    let mut hasher = Hasher(Xxh64::new(0));
    // A hasher never fails.
    let _ = state.visit(&mut hasher);
    hasher.0.digest()
}

struct Saver(Vec<u8>);

impl Visitor for Saver {
    fn bytes(&mut self, data: &mut [u8]) -> Result<(), StateError> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn blob(&mut self, data: &mut Vec<u8>, _max: usize) -> Result<(), StateError> {
        self.0.extend_from_slice(&(data.len() as u32).to_le_bytes());
        self.0.extend_from_slice(data);
        Ok(())
    }
}

struct Hasher(Xxh64);

impl Visitor for Hasher {
    fn bytes(&mut self, data: &mut [u8]) -> Result<(), StateError> {
        self.0.update(data);
        Ok(())
    }

    fn blob(&mut self, data: &mut Vec<u8>, _max: usize) -> Result<(), StateError> {
        self.0.update(&(data.len() as u32).to_le_bytes());
        self.0.update(data);
        Ok(())
    }
}

struct Loader<'a>(&'a [u8]);

impl<'a> Loader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(StateError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }
}

impl Visitor for Loader<'_> {
    fn bytes(&mut self, data: &mut [u8]) -> Result<(), StateError> {
        data.copy_from_slice(self.take(data.len())?);
        Ok(())
    }

    fn blob(&mut self, data: &mut Vec<u8>, max: usize) -> Result<(), StateError> {
        let mut len = 0;
        self.u32(&mut len)?;
        if len as usize > max {
            return Err(StateError::BadValue("a length"));
        }
        *data = self.take(len as usize)?.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample(u64, bool, Vec<u8>, Option<u64>);

    impl State for Sample {
        fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
            v.u64(&mut self.0)?;
            v.bool(&mut self.1)?;
            v.blob(&mut self.2, 16)?;
            v.option_u64(&mut self.3)
        }
    }

    #[test]
    fn what_is_saved_loads_and_hashes_equal() {
        let mut one = Sample(7, true, vec![1, 2, 3], Some(9));
        let bytes = save(&mut one);
        let mut two = Sample(0, false, vec![], None);
        load(&mut two, &bytes).unwrap();
        assert_eq!((two.0, two.1, &two.2[..], two.3), (7, true, &[1u8, 2, 3][..], Some(9)));
        assert_eq!(hash(&mut one), hash(&mut two));
        two.0 ^= 1;
        assert_ne!(hash(&mut one), hash(&mut two));
    }

    #[test]
    fn bad_bytes_are_refused() {
        let mut one = Sample(7, true, vec![1; 16], None);
        let bytes = save(&mut one);
        for cut in 0..bytes.len() {
            assert_eq!(load(&mut one, &bytes[..cut]), Err(StateError::Truncated));
        }
        let mut long = bytes.clone();
        long.push(0);
        assert_eq!(load(&mut one, &long), Err(StateError::TrailingBytes));
        let mut flag = bytes.clone();
        flag[8] = 2;
        assert_eq!(load(&mut one, &flag), Err(StateError::BadValue("a flag")));
        let mut len = bytes;
        len[9] = 17;
        assert_eq!(load(&mut one, &len), Err(StateError::BadValue("a length")));
    }
}
