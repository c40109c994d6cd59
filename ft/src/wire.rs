//! Checked reading and writing of integers, byte strings and text.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Why received bytes were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes ended inside a field.
    Truncated,
    /// Bytes are left over behind the last field.
    TrailingBytes,
    /// A variable-length integer has too many bytes.
    BadInteger,
    /// A type, kind, role or reason that does not exist.
    UnknownKind(u8),
    /// A byte string or text is longer than allowed.
    TooLong,
    /// A text is not UTF-8.
    BadText,
    /// A field holds a value that cannot occur.
    BadValue(&'static str),
    /// The tag does not fit: it is damaged, or was made under a key that is not ours.
    Tag,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("ends too early"),
            Self::TrailingBytes => f.write_str("has bytes left over"),
            Self::BadInteger => f.write_str("has an integer with too many bytes"),
            Self::UnknownKind(kind) => write!(f, "is of unknown kind {kind}"),
            Self::TooLong => f.write_str("has a field that is too long"),
            Self::BadText => f.write_str("has text that is not UTF-8"),
            Self::BadValue(field) => write!(f, "has an impossible value for {field}"),
            Self::Tag => f.write_str("has a tag that does not fit"),
        }
    }
}

/// Reads fields from the front of a byte slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::BadValue("a flag")),
        }
    }

    /// Reads a LEB128 integer. Each value has one spelling only: superfluous bytes are refused.
    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for index in 0..10 {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if (index == 9 && byte > 1) || (index > 0 && byte == 0) {
                return Err(DecodeError::BadInteger);
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::BadInteger)
    }

    /// Reads a byte string with its length in front, at most `max` bytes long.
    pub(crate) fn blob(&mut self, max: usize) -> Result<&'a [u8], DecodeError> {
        match usize::try_from(self.varint()?) {
            Ok(len) if len <= max => self.bytes(len),
            _ => Err(DecodeError::TooLong),
        }
    }

    pub(crate) fn text(&mut self, max: usize) -> Result<String, DecodeError> {
        let raw = self.blob(max)?;
        core::str::from_utf8(raw).map(String::from).map_err(|_| DecodeError::BadText)
    }

    pub(crate) fn finish(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_blob(out: &mut Vec<u8>, data: &[u8]) {
    put_varint(out, data.len() as u64);
    out.extend_from_slice(data);
}

/// Writes at most `max` bytes of `text`, cut at a character.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str, max: usize) {
    put_blob(out, &text.as_bytes()[..text.floor_char_boundary(max)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn superfluous_bytes_are_refused() {
        assert_eq!(Reader(&[0x80, 0x00]).varint(), Err(DecodeError::BadInteger));
        assert_eq!(Reader(&[0xff; 10]).varint(), Err(DecodeError::BadInteger));
        assert_eq!(Reader(&[0x80]).varint(), Err(DecodeError::Truncated));
    }

    #[test]
    fn text_is_cut_at_a_character() {
        let mut out = Vec::new();
        put_text(&mut out, "aäb", 2);
        assert_eq!(Reader(&out).text(2).unwrap(), "a");
    }

    proptest! {
        #[test]
        fn varint_round_trip(value: u64, tail: Vec<u8>) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert!(out.len() <= 10);
            out.extend_from_slice(&tail);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.rest(), &tail[..]);
        }
    }
}
