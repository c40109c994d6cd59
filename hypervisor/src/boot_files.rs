//! The files that the boot loader passed: which module is what.
//!
//! The first word of a module's command line says what it is: `kernel` (or `guest`), `initrd`, `disk`, `key`, `key-next` or
//! `seed`. A module without a name is the kernel, or, since some loaders can pass but one file (QEMU's PVH loader), an archive that holds the others under
//! these names, in the format of initial ramdisks.
//!
//! See: Linux, "initramfs buffer format" (Documentation/driver-api/early-userspace/buffer-format.rst): `newc`.

use core::fmt;

use pollux_ft::key::KEY_BYTES;

/// How an archive begins.
const MAGIC: &[u8] = b"070701";
/// Bytes of the head of a file in an archive: the magic number and thirteen numbers of eight hexadecimal digits.
const HEAD: usize = 110;
/// Which of them are the lengths of a file and of its name.
const FILE_LEN: usize = 6;
const NAME_LEN: usize = 11;
/// A seed has at least so many bytes.
pub const SEED_BYTES: usize = 32;
/// The name of what ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!\0";

/// The files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootFiles<'a> {
    /// The kernel.
    pub kernel: &'a [u8],
    /// The initial ramdisk.
    pub initrd: Option<&'a [u8]>,
    /// What is on the guest's disk at first.
    pub disk: Option<&'a [u8]>,
    /// The pair's key.
    pub key: Option<&'a [u8; KEY_BYTES]>,
    /// The key that follows it, while the pair changes from one to the other.
    pub next_key: Option<&'a [u8; KEY_BYTES]>,
    /// Random bytes for this machine.
    pub seed: Option<&'a [u8]>,
}

/// Why there is no guest to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileError<'a> {
    /// The boot loader passed no module at all.
    NoModule,
    /// There is no kernel among the files.
    NoKernel,
    /// Two files are this.
    Twice(&'static str),
    /// A file has this name, which says nothing to us.
    UnknownName(&'a str),
    /// This file is empty.
    Empty(&'static str),
    /// This key has so many bytes.
    KeyLength(&'static str, usize),
    /// The seed has so few bytes.
    SeedLength(usize),
    /// The archive is damaged at this byte.
    BadArchive(usize),
}

impl fmt::Display for FileError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModule => write!(f, "there is no guest image: the boot loader passed no module"),
            Self::NoKernel => write!(f, "there is no 'kernel' among the boot loader's modules"),
            Self::Twice(what) => write!(f, "the boot loader passed two modules that are the '{what}'"),
            Self::UnknownName(name) => {
                write!(
                    f,
                    "the boot loader's module '{name}' is unknown: modules are called 'kernel', 'initrd', 'disk', 'key', \
                     'key-next' and 'seed'"
                )
            }
            Self::Empty(what) => write!(f, "the boot loader's module '{what}' is empty"),
            Self::KeyLength(name, bytes) => {
                write!(
                    f,
                    "the boot loader's module '{name}' has {bytes} bytes: a pair's key has {KEY_BYTES} ('cargo xtask key new')"
                )
            }
            Self::SeedLength(bytes) => {
                write!(
                    f,
                    "the boot loader's module 'seed' has {bytes} bytes: at least {SEED_BYTES} random ones are needed"
                )
            }
            Self::BadArchive(at) => write!(f, "the archive of the guest's files is damaged at byte {at}"),
        }
    }
}

impl core::error::Error for FileError<'_> {}

impl<'a> BootFiles<'a> {
    /// Finds the files among the boot loader's modules, each with its command line.
    ///
    /// # Errors
    /// What is missing, doubled or not understood.
    pub fn find(modules: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, FileError<'a>> {
        let mut found = Found::default();
        let mut any = false;
        for (command_line, bytes) in modules {
            any = true;
            let name = command_line.split_ascii_whitespace().next().unwrap_or_default();
            if name.is_empty() && bytes.starts_with(MAGIC) {
                found.take_archive(bytes)?;
            } else {
                found.take(name, bytes)?;
            }
        }
        match found {
            _ if !any => Err(FileError::NoModule),
            Found { kernel: Some(kernel), initrd, disk, key, next_key, seed } => {
                let key = key.map(|key| secret("key", key)).transpose()?;
                let next_key = next_key.map(|key| secret("key-next", key)).transpose()?;
                match seed.map(<[u8]>::len) {
                    Some(len) if len < SEED_BYTES => Err(FileError::SeedLength(len)),
                    _ => Ok(Self { kernel, initrd, disk, key, next_key, seed }),
                }
            }
            Found { kernel: None, .. } => Err(FileError::NoKernel),
        }
    }
}

/// A key, if it is as long as one.
fn secret<'a>(name: &'static str, key: &'a [u8]) -> Result<&'a [u8; KEY_BYTES], FileError<'a>> {
    key.try_into().map_err(|_| FileError::KeyLength(name, key.len()))
}

#[derive(Default)]
struct Found<'a> {
    kernel: Option<&'a [u8]>,
    initrd: Option<&'a [u8]>,
    disk: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    next_key: Option<&'a [u8]>,
    seed: Option<&'a [u8]>,
}

impl<'a> Found<'a> {
    fn take(&mut self, name: &'a str, bytes: &'a [u8]) -> Result<(), FileError<'a>> {
        let (place, name) = match name {
            "" | "kernel" | "guest" => (&mut self.kernel, "kernel"),
            "initrd" => (&mut self.initrd, "initrd"),
            "disk" => (&mut self.disk, "disk"),
            "key" => (&mut self.key, "key"),
            "key-next" => (&mut self.next_key, "key-next"),
            "seed" => (&mut self.seed, "seed"),
            _ => return Err(FileError::UnknownName(name)),
        };
        if bytes.is_empty() {
            return Err(FileError::Empty(name));
        }
        if place.replace(bytes).is_some() { Err(FileError::Twice(name)) } else { Ok(()) }
    }

    fn take_archive(&mut self, archive: &'a [u8]) -> Result<(), FileError<'a>> {
        let mut at = 0;
        loop {
            let (name, file, next) = entry(archive, at).ok_or(FileError::BadArchive(at))?;
            if name == TRAILER {
                return Ok(());
            }
            let name = name.split_last().and_then(|(_, name)| str::from_utf8(name).ok());
            self.take(name.ok_or(FileError::BadArchive(at))?, file)?;
            at = next;
        }
    }
}

/// Name with its zero byte, content and end of the file at `at` of an archive.
fn entry(archive: &[u8], at: usize) -> Option<(&[u8], &[u8], usize)> {
    let head = archive.get(at..at.checked_add(HEAD)?).filter(|head| head.starts_with(MAGIC))?;
    let number = |index: usize| {
        let digits = str::from_utf8(&head[MAGIC.len() + 8 * index..][..8]).ok()?;
        u32::from_str_radix(digits, 16).ok().map(|number| number as usize)
    };
    let name_end = (at + HEAD).checked_add(number(NAME_LEN)?)?;
    let file_start = name_end.checked_next_multiple_of(4)?;
    let file_end = file_start.checked_add(number(FILE_LEN)?)?;
    let next = file_end.checked_next_multiple_of(4)?;
    Some((archive.get(at + HEAD..name_end)?, archive.get(file_start..file_end)?, next))
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, bytes) in files.iter().copied().chain([("TRAILER!!!", &b""[..])]) {
            let numbers = [0, 0, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0];
            archive.extend_from_slice(MAGIC);
            archive.extend(numbers.iter().flat_map(|number| format!("{number:08x}").into_bytes()));
            archive.extend_from_slice(name.as_bytes());
            archive.push(0);
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend_from_slice(bytes);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }

    fn find<'a>(modules: &[(&'a str, &'a [u8])]) -> Result<BootFiles<'a>, FileError<'a>> {
        BootFiles::find(modules.iter().copied())
    }

    #[test]
    fn files_are_told_apart_by_name() {
        let kernel = BootFiles { kernel: b"k", initrd: None, disk: None, key: None, next_key: None, seed: None };
        let both = Ok(BootFiles { initrd: Some(b"i"), ..kernel });
        assert_eq!(find(&[("", b"k")]), Ok(kernel));
        let with_disk = [("kernel", &b"k"[..]), ("disk", b"d")];
        assert_eq!(find(&with_disk), Ok(BootFiles { disk: Some(b"d"), ..kernel }));
        assert_eq!(find(&[("", &archive(&with_disk))]), find(&with_disk));
        assert_eq!(find(&[("guest", b"k"), ("initrd /boot/initrd.img", b"i")]), both);
        assert_eq!(find(&[("initrd", b"i"), ("kernel", b"k")]), both);
        let archive = archive(&[("kernel", b"k"), ("initrd", b"i")]);
        assert_eq!(find(&[("", &archive)]), both);
        let secrets = BootFiles { key: Some(&[7; 32]), seed: Some(&[8; 40]), ..kernel };
        let both = Ok(BootFiles { next_key: Some(&[9; 32]), ..secrets });
        let secrets = Ok(secrets);
        assert_eq!(find(&[("key", &[7; 32]), ("", b"k"), ("seed", &[8; 40])]), secrets);
        assert_eq!(find(&[("", &self::archive(&[("key", &[7; 32]), ("seed", &[8; 40]), ("kernel", b"k")]))]), secrets);
        assert_eq!(find(&[("key", &[7; 32]), ("", b"k"), ("key-next", &[9; 32]), ("seed", &[8; 40])]), both);
        // An initial ramdisk is an archive, too: its name tells.
        assert_eq!(find(&[("", b"k"), ("initrd", &archive)]).unwrap().initrd, Some(&archive[..]));
    }

    #[test]
    fn what_is_missing_doubled_or_unknown_is_named() {
        let error = |modules: &[(&'static str, &'static [u8])], want: &str| {
            let text = find(modules).unwrap_err().to_string();
            assert!(text.contains(want), "{text}");
        };
        error(&[], "no module");
        error(&[("initrd", b"i")], "no 'kernel'");
        error(&[("kernel", b"k"), ("guest", b"k")], "two modules that are the 'kernel'");
        error(&[("", b"k"), ("initrd", b"i"), ("initrd", b"i")], "two modules that are the 'initrd'");
        error(&[("", b"k"), ("disk", b"i"), ("disk", b"i")], "two modules that are the 'disk'");
        error(&[("disk", b"i")], "no 'kernel'");
        error(&[("", b"k"), ("ramdisk", b"i")], "'ramdisk' is unknown");
        error(&[("", b"k"), ("initrd", b"")], "'initrd' is empty");
        error(&[("key", &[1; 32]), ("seed", &[1; 32])], "no 'kernel'");
        error(&[("", b"k"), ("key", &[1; 32]), ("key", &[1; 32])], "two modules that are the 'key'");
        error(&[("", b"k"), ("key", &[1; 33])], "has 33 bytes: a pair's key has 32");
        error(&[("", b"k"), ("key-next", &[1; 31])], "'key-next' has 31 bytes");
        error(&[("", b"k"), ("key-next", &[1; 32]), ("key-next", &[1; 32])], "two modules that are the 'key-next'");
        error(&[("", b"k"), ("key", b"")], "'key' is empty");
        error(&[("", b"k"), ("seed", &[1; 31])], "has 31 bytes: at least 32");
        let good = archive(&[("kernel", b"k")]);
        for len in [6, 109, 110, 120, good.len() - 120] {
            assert!(matches!(find(&[("", &good[..len])]), Err(FileError::BadArchive(_))), "{len}");
        }
        assert_eq!(find(&[("", &archive(&[("initrd", b"i")]))]), Err(FileError::NoKernel));
        assert_eq!(find(&[("", &archive(&[("kernel", b"k"), ("kernel", b"k")]))]), Err(FileError::Twice("kernel")));
    }

    proptest! {
        #[test]
        fn arbitrary_archives_never_panic(
            changes in prop::collection::vec((0usize..250, prop_oneof![any::<u8>(), Just(b'f'), Just(b'0')]), 0..12),
            len in 0usize..400,
        ) {
            let mut archive = archive(&[("kernel", b"12345"), ("initrd", b"1")]);
            for (at, byte) in changes {
                archive[at] = byte;
            }
            let _ = find(&[("", &archive[..len.min(archive.len())])]);
        }
    }
}
