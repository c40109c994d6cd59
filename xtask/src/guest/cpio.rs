//! Writes archives in the format of initial ramdisks.
//!
//! See: Linux, "initramfs buffer format" (Documentation/driver-api/early-userspace/buffer-format.rst): `newc`.

use std::io::{self, Write};

/// The kinds of files, in the upper bits of a mode. See: inode(7).
pub const DIRECTORY: u32 = 0o040_000;
pub const REGULAR: u32 = 0o100_000;
pub const SYMLINK: u32 = 0o120_000;
pub const CHARACTER: u32 = 0o020_000;

/// What an archive says of a file besides its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Kind and permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Major and minor number, of a device.
    pub device: (u32, u32),
}

/// An archive in the making.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Files so far: their numbers tell them apart.
    files: u32,
}

impl<W: Write> Writer<W> {
    /// An archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, files: 0 }
    }

    /// Adds a file; a symbolic link contains its target.
    ///
    /// # Errors
    /// When `out` fails, and for files of 4 GiB and more.
    pub fn add(&mut self, name: &str, meta: Meta, content: &[u8]) -> io::Result<()> {
        self.files += 1;
        let Ok(len) = u32::try_from(content.len()) else {
            return Err(io::Error::other(format!("{name} is too large for an initial ramdisk")));
        };
        let (major, minor) = meta.device;
        let name_len = name.len() as u32 + 1;
        // See: the document above. Time of change, number of links, and the device that the file is on say nothing here.
        let numbers = [self.files, meta.mode, meta.uid, meta.gid, 1, 0, len, 0, 0, major, minor, name_len, 0];
        let mut head = "070701".to_owned();
        head.extend(numbers.map(|number| format!("{number:08x}")));
        head += name;
        self.write_padded(&[head.as_bytes(), b"\0"])?;
        self.write_padded(&[content])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.add("TRAILER!!!", Meta::default(), b"")?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// The parts, and zeros up to a multiple of four bytes: everything begins at one.
    fn write_padded(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        parts.iter().try_for_each(|part| self.out.write_all(part))?;
        self.out.write_all(&[0; 3][..len.next_multiple_of(4) - len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_known_form() {
        let mut writer = Writer::new(Vec::new());
        let meta = Meta { mode: REGULAR | 0o644, uid: 7, gid: 8, device: (0, 0) };
        writer.add("ab", meta, b"hello").unwrap();
        let archive = writer.finish().unwrap();
        let head = "07070100000001000081a400000007000000080000000100000000000000050000000000000000\
                    00000000000000000000000300000000ab\0";
        assert_eq!(String::from_utf8_lossy(&archive[..113]), head);
        assert_eq!(&archive[113..124], b"\0\0\0hello\0\0\0");
        assert_eq!(&archive[124..130], b"070701");
        assert!(archive.ends_with(b"TRAILER!!!\0\0\0\0") && archive.len() == 124 + 124);
    }
}
