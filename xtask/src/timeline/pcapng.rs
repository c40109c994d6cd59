//! A capture in the newer format of Wireshark, pcapng, in which packets can have comments: what happened in the rig stands
//! at the first frame after it. See: draft-ietf-opsawg-pcapng.

use super::capture::Frame;

const SECTION: u32 = 0x0A0D_0D0A;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1A2B_3C4D;
const ETHERNET: u32 = 1;
const COMMENT: u16 = 1;
const NAME: u16 = 2;
/// Option: the unit of time is ten to the minus this.
const RESOLUTION: u16 = 9;
/// Longest comment in bytes.
const MAX_COMMENT: usize = 1000;

/// The frames of the network `name`, with `comments`, which are in the order of their times, in seconds since 1970. What
/// happened after the last frame is not told.
pub fn annotated<'a>(name: &str, frames: impl Iterator<Item = Frame<'a>>, comments: &[(f64, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    // Version 1.0; the section's length is not told.
    block(&mut out, SECTION, &[&BYTE_ORDER.to_le_bytes()[..], &[1, 0, 0, 0], &[0xFF; 8]].concat());
    let mut interface = [ETHERNET.to_le_bytes(), [0; 4]].concat();
    option(&mut interface, NAME, name.as_bytes());
    option(&mut interface, RESOLUTION, &[9]);
    option(&mut interface, 0, &[]);
    block(&mut out, INTERFACE, &interface);
    let mut comments = comments.iter().peekable();
    for frame in frames {
        // Enough until 2554.
        let nanoseconds = frame.time.as_nanos() as u64;
        // A frame is no longer than 2^32 bytes: its length was read from such a number.
        let length = frame.bytes.len() as u32;
        let words = [0, (nanoseconds >> 32) as u32, nanoseconds as u32, length, length];
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        padded(&mut body, frame.bytes);
        let before = body.len();
        while let Some((_, text)) = comments.next_if(|(at, _)| *at <= frame.unix_s()) {
            option(&mut body, COMMENT, &text.as_bytes()[..text.floor_char_boundary(MAX_COMMENT)]);
        }
        if body.len() > before {
            option(&mut body, 0, &[]);
        }
        block(&mut out, PACKET, &body);
    }
    out
}

fn block(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let length = (body.len() + 12) as u32;
    out.extend(kind.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(body);
    out.extend(length.to_le_bytes());
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_le_bytes());
    // Not longer than a comment may be.
    out.extend((value.len() as u16).to_le_bytes());
    padded(out, value);
}

/// All in a block begins at a multiple of four.
fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Kinds and bodies of blocks.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut found = Vec::new();
        while !file.is_empty() {
            let length = word(&file[4..]) as usize;
            assert_eq!((length % 4, word(&file[length - 4..]) as usize), (0, length));
            found.push((word(file), &file[8..length - 4]));
            file = &file[length..];
        }
        found
    }

    #[test]
    fn comments_stand_at_the_first_frame_after_what_they_tell() {
        let frames = [(1000, &b"one"[..]), (2500, b"four"), (3000, b"")];
        let frames = frames.map(|(ms, bytes)| Frame { time: Duration::from_millis(ms), bytes });
        let comments = [(1.5, "born".to_owned()), (2.5, "ü".repeat(MAX_COMMENT)), (9.0, "late".to_owned())];
        let file = annotated("log", frames.into_iter(), &comments);
        let blocks = blocks(&file);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, PACKET, PACKET]);
        assert_eq!(blocks[1].1[8..], *b"\x02\0\x03\0log\0\x09\0\x01\0\x09\0\0\0\0\0\0\0");
        let lengths: Vec<_> = blocks[2..].iter().map(|(_, body)| body.len()).collect();
        assert_eq!(lengths, [24, 24 + 8 + 4 + MAX_COMMENT + 4, 20]);
        assert_eq!(blocks[3].1[20..32], *b"four\x01\0\x04\0born");
        let nanoseconds = u64::from(u32::from_le_bytes(blocks[3].1[8..12].try_into().unwrap()));
        assert_eq!(nanoseconds, 2_500_000_000);
    }
}
