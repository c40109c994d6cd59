//! What the arbiter remembers: keys that are written once, in a file that grows by a line for each.
//!
//! The file begins with [`HEADER`] and a random number, by which this arbiter is told from every other one, as etcd's
//! clusters are; each further line is `CHECKSUM KEY VALUE`. A checksum depends on all lines before it, so that damage is
//! found: a line that was changed, put in, or taken out before the last one. It is no seal: an older copy of a file is a
//! good file. A line is on the disk before anybody hears of it, and after a start before anybody hears of it again. Part of
//! a line at the end was never confirmed to anybody (the power failed while it was written) and is cut off; everything else
//! that is wrong is refused: a term handed out twice is worse than none.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use xxhash_rust::xxh64::xxh64;

/// How a file begins; 16 hexadecimal digits and a line end follow.
const HEADER: &str = "pollux arbiter 2 ";
const DIGITS: usize = 16;
/// Longest key, and longest value, in bytes.
pub const MAX_TEXT: usize = 256;
/// Longest line: checksum, key, value, and what is between and behind them.
const MAX_LINE: u64 = DIGITS as u64 + 2 * MAX_TEXT as u64 + 3;
/// The file grows no further than this, in bytes: some hundred thousand terms.
const MAX_FILE: u64 = 32 << 20;

/// A value and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The value.
    pub value: String,
    /// The number of this write; the first one is 2, as in etcd.
    pub revision: u64,
}

/// The file and what stands in it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    length: u64,
    cluster: u64,
    records: BTreeMap<String, Record>,
    checksum: u64,
    /// A write failed: what is on the disk is not known any more.
    failed: bool,
    /// [`MAX_FILE`], but for tests.
    limit: u64,
}

impl Store {
    /// Opens the file, or creates it; holds it against other processes.
    ///
    /// # Errors
    /// When it cannot be read or written, is damaged, or is in use.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = file.with_context(|| format!("cannot open {shown}"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another arbiter runs with {shown}"),
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("cannot lock {shown}")),
        }
        let length = file.metadata().with_context(|| format!("cannot read {shown}"))?.len();
        ensure!(length <= MAX_FILE, "{shown} is longer than any arbiter's file ({MAX_FILE} bytes)");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
        let Content { cluster, records, checksum, length, tail } =
            read(&bytes).with_context(|| format!("{shown} is damaged and cannot be trusted; {ADVICE}"))?;
        let path = path.to_owned();
        let mut store = Self { path, file, length, cluster, records, checksum, failed: false, limit: MAX_FILE };
        store.file.set_len(length).with_context(|| format!("cannot cut {shown}"))?;
        make_durable(&store.path, &bytes[..length as usize])?;
        if length == 0 {
            store.cluster = u64::from_le_bytes(crate::random::draw()?).max(1);
            store.checksum = store.cluster;
            store.append(&format!("{HEADER}{:016x}\n", store.cluster))?;
        }
        if let Some((key, value)) = tail {
            store.create(&key, &value)?;
        }
        sync_directory(&store.path)?;
        Ok(store)
    }

    /// All keys and values of a file, in order, also while an arbiter runs with it; changes nothing.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read(path: &Path) -> Result<Vec<(String, String)>> {
        let shown = path.display();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let content = read(&bytes).with_context(|| format!("{shown} is damaged and cannot be trusted; {ADVICE}"))?;
        Ok(content.records.into_iter().map(|(key, record)| (key, record.value)).collect())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number that this arbiter has for as long as its file lasts.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// The newest write's number; 1 before the first.
    pub fn revision(&self) -> u64 {
        1 + self.records.len() as u64
    }

    /// Whether the disk has failed, so that nothing can be written any more.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether a key can be written, as far as is known beforehand.
    ///
    /// # Errors
    /// When the file is full, or the disk has failed.
    pub fn check_writable(&self) -> Result<()> {
        let shown = self.path.display();
        ensure!(!self.failed, "{shown} could not be written before: start the arbiter anew when the disk is well");
        ensure!(self.length + MAX_LINE <= self.limit, "{shown} is full ({} bytes); {ADVICE}", self.length);
        Ok(())
    }

    /// Makes it full at so many bytes.
    #[cfg(test)]
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// What was written under a key.
    pub fn get(&self, key: &str) -> Option<&Record> {
        self.records.get(key)
    }

    /// All keys from `first` on and before `end`; without `end`, all from `first` on.
    pub fn range<'a>(
        &'a self,
        first: &str,
        end: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a String, &'a Record)> + use<'a> {
        self.records.range(first.to_owned()..).take_while(move |(key, _)| end.is_none_or(|end| key.as_str() < end))
    }

    /// Writes a key that does not exist. It is on the disk when this returns.
    ///
    /// # Errors
    /// When the key exists or cannot be a line, or the disk fails; after that nothing is written any more.
    pub fn create(&mut self, key: &str, value: &str) -> Result<()> {
        ensure!(!self.records.contains_key(key), "`{key}` is written already, and once is for ever");
        check_text(key, b'!').with_context(|| format!("the key `{key}`"))?;
        if !value.is_empty() {
            check_text(value, b' ').with_context(|| format!("the value of `{key}`"))?;
        }
        self.check_writable()?;
        let content = format!("{key} {value}");
        let checksum = xxh64(content.as_bytes(), self.checksum);
        self.append(&format!("{checksum:016x} {content}\n"))?;
        self.checksum = checksum;
        let revision = self.revision() + 1;
        self.records.insert(key.to_owned(), Record { value: value.to_owned(), revision });
        Ok(())
    }

    fn append(&mut self, line: &str) -> Result<()> {
        let shown = self.path.display();
        let result = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        self.failed = result.is_err();
        result.with_context(|| format!("cannot write {shown}"))?;
        self.length += line.len() as u64;
        Ok(())
    }
}

/// What to do about a file that is damaged or full.
const ADVICE: &str = "stop both machines of the pair, and start them with a new file and a term that was never used";

/// What a file says.
#[derive(Debug, Default)]
struct Content {
    cluster: u64,
    records: BTreeMap<String, Record>,
    /// That of the last line.
    checksum: u64,
    /// Bytes in whole lines.
    length: u64,
    /// A last line that lacks nothing but its end.
    tail: Option<(String, String)>,
}

fn read(bytes: &[u8]) -> Result<Content> {
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let (lines, torn) = bytes.split_at(whole);
    if lines.is_empty() {
        // Not even the first line was written to its end.
        let (begin, digits) = torn.split_at(torn.len().min(HEADER.len()));
        let begun = HEADER.as_bytes().starts_with(begin) && digits.len() <= DIGITS && digits.iter().all(is_digit);
        ensure!(begun, "it does not begin with `{}`", HEADER.trim_end());
        return Ok(Content::default());
    }
    let (cluster, lines) =
        header(lines).with_context(|| format!("it does not begin with `{}` and a number", HEADER.trim_end()))?;
    let mut content = Content { cluster, checksum: cluster, length: whole as u64, ..Content::default() };
    for (index, line) in lines.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let number = index + 2;
        let line = &line[..line.len() - 1];
        let (sum, key, value) = split(line).with_context(|| format!("line {number} is malformed"))?;
        content.checksum = xxh64(&line[17..], content.checksum);
        ensure!(content.checksum == sum, "line {number} has another checksum, or lines before it are missing");
        let record = Record { value: value.to_owned(), revision: index as u64 + 2 };
        let fresh = content.records.insert(key.to_owned(), record).is_none();
        ensure!(fresh, "line {number} writes `{key}` a second time");
    }
    // A line whose end was damaged later may have been confirmed.
    let ends = [torn.len(), torn.len().saturating_sub(1)];
    content.tail = ends.into_iter().find_map(|end| {
        let (sum, key, value) = split(&torn[..end])?;
        (xxh64(&torn[17..end], content.checksum) == sum).then(|| (key.to_owned(), value.to_owned()))
    });
    Ok(content)
}

/// The number in the first line, and what follows.
fn header(lines: &[u8]) -> Option<(u64, &[u8])> {
    let (digits, rest) = lines.strip_prefix(HEADER.as_bytes())?.split_at_checked(DIGITS)?;
    Some((number(std::str::from_utf8(digits).ok()?)?, rest.strip_prefix(b"\n")?))
}

/// A digit as we write it: there is one way to write a number.
fn is_digit(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn number(text: &str) -> Option<u64> {
    let ours = text.len() == DIGITS && text.as_bytes().iter().all(is_digit);
    if ours { u64::from_str_radix(text, 16).ok() } else { None }
}

/// Checksum, key and value of a line.
fn split(line: &[u8]) -> Option<(u64, &str, &str)> {
    let line = std::str::from_utf8(line).ok()?;
    let (sum, content) = line.split_once(' ')?;
    let (key, value) = content.split_once(' ')?;
    Some((number(sum)?, key, value))
}

/// Only printable ASCII from `lowest` on, of a length that fits.
fn check_text(text: &str, lowest: u8) -> Result<()> {
    ensure!(!text.is_empty() && text.len() <= MAX_TEXT, "has {} bytes, not 1 to {MAX_TEXT}", text.len());
    ensure!(text.bytes().all(|byte| (lowest..=b'~').contains(&byte)), "has characters that are not allowed");
    Ok(())
}

/// Writes what the file holds over itself, and waits for the disk. The one who wrote it may have ended before that, and if
/// the disk failed then, what was read may be a memory's: the kernel takes such pages for written. See: fsync(2).
fn make_durable(path: &Path, content: &[u8]) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot make sure of what is in {}", path.display()))
}

/// A new file is safe only when its directory's entry is. See: fsync(2).
fn sync_directory(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let sync = File::open(parent).and_then(|directory| directory.sync_all());
    sync.with_context(|| format!("cannot make sure that {} stays", path.display()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn desk() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("arbiter.log");
        (directory, path)
    }

    /// A file with three records, and its bytes.
    fn filled(path: &Path) -> Vec<u8> {
        let mut store = Store::open(path).unwrap();
        for term in 1..=3 {
            store.create(&format!("pollux/p/{term}"), &format!("000000000000000{term} castor")).unwrap();
        }
        std::fs::read(path).unwrap()
    }

    fn keys(store: &Store) -> usize {
        store.range("", None).count()
    }

    #[test]
    fn what_is_written_stays_and_cannot_change() {
        let (_directory, path) = desk();
        filled(&path);
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.get("pollux/p/2").unwrap(), &Record { value: "0000000000000002 castor".into(), revision: 3 });
        assert!(store.create("pollux/p/2", "x").unwrap_err().to_string().contains("once is for ever"));
        assert_eq!((store.revision(), keys(&store)), (4, 3));
        store.create("pollux/p/4", "x").unwrap();
        drop(store);
        assert_eq!(keys(&Store::open(&path).unwrap()), 4);
    }

    #[test]
    fn an_arbiter_is_told_from_others_for_as_long_as_its_file_lasts() {
        let ((_one, path), (_two, other)) = (desk(), desk());
        let cluster = Store::open(&path).unwrap().cluster();
        assert_eq!(Store::open(&path).unwrap().cluster(), cluster);
        assert_ne!(Store::open(&other).unwrap().cluster(), cluster);
        std::fs::remove_file(&path).unwrap();
        assert_ne!(Store::open(&path).unwrap().cluster(), cluster, "one that has forgotten all is another one");
    }

    #[test]
    fn what_cannot_be_a_line_is_refused() {
        let (_directory, path) = desk();
        let mut store = Store::open(&path).unwrap();
        let long = "x".repeat(MAX_TEXT + 1);
        for (key, value) in [("", "v"), ("a b", "v"), ("a\n", "v"), ("ä", "v"), (&long, "v")] {
            assert!(store.create(key, value).is_err(), "{key}");
            assert!(store.create("k", if value == "v" { "\n" } else { value }).is_err());
        }
        store.create("k", "a value ~").unwrap();
        store.create("nothing", "").unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(["k", "nothing"].map(|key| store.get(key).unwrap().value.as_str()), ["a value ~", ""]);
    }

    #[test]
    fn a_full_file_still_says_what_it_holds() {
        let (_directory, path) = desk();
        let limit = 3000;
        let mut store = Store::open(&path).unwrap();
        store.set_limit(limit);
        let full = (1..).find_map(|term| store.create(&format!("pollux/p/{term}"), "castor").err()).unwrap();
        assert!(full.to_string().contains("is full"), "{full:#}");
        let held = keys(&store);
        store.check_writable().unwrap_err();
        drop(store);
        assert!(std::fs::metadata(&path).unwrap().len() <= limit);
        assert_eq!(keys(&Store::open(&path).unwrap()), held);
    }

    #[test]
    fn one_arbiter_a_file() {
        let (_directory, path) = desk();
        let _store = Store::open(&path).unwrap();
        assert!(Store::open(&path).unwrap_err().to_string().contains("another arbiter"));
    }

    #[test]
    fn a_torn_tail_is_cut_off_wherever_it_is_torn() {
        let (_directory, path) = desk();
        let bytes = filled(&path);
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let mut store = Store::open(&path).unwrap();
            // A line that lacks nothing but its end counts.
            let whole = bytes[..=length].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(keys(&store), whole.saturating_sub(1), "{length}");
            store.create("next", "value").unwrap();
            drop(store);
            assert_eq!(keys(&Store::open(&path).unwrap()), whole.saturating_sub(1) + 1, "{length}");
        }
    }

    #[test]
    fn damage_is_refused() {
        let (_directory, path) = desk();
        let bytes = filled(&path);
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<_> = text.split_inclusive('\n').collect();
        for (damaged, named) in [
            ("something else\n".to_owned(), "does not begin"),
            (text.replacen("arbiter 2 ", "arbiter 1 ", 1), "does not begin"),
            (text.replacen(&lines[0][17..33], "00000000000000ab", 1), "line 2 has another checksum"),
            ("something else".to_owned(), "does not begin"),
            ([lines[0], lines[1], lines[3]].concat(), "line 3"),
            ([lines[0], lines[2], lines[1], lines[3]].concat(), "line 2"),
            ([lines[0], lines[1], lines[1], lines[2]].concat(), "line 3"),
            ([&text, "\n"].concat(), "line 5 is malformed"),
            (text.replace("castor", "pollux"), "line 2"),
        ] {
            std::fs::write(&path, &damaged).unwrap();
            let error = format!("{:#}", Store::open(&path).unwrap_err());
            assert!(error.contains(named) && error.contains("a term that was never used"), "{damaged}: {error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged, "a refused file is left alone");
        }
    }

    #[test]
    fn a_checksum_is_written_in_one_way() {
        let line = |sum: &str| format!("{sum} key value");
        assert!(split(line("00000000000000ab").as_bytes()).is_some());
        for other in ["00000000000000AB", "+0000000000000ab", "0000000000000ab", "000000000000000ab"] {
            assert!(split(line(other).as_bytes()).is_none(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_changes_a_value(at in any::<prop::sample::Index>(), byte: u8) {
            let (_directory, path) = desk();
            let original = filled(&path);
            let mut bytes = original.clone();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            std::fs::write(&path, &bytes).unwrap();
            match Store::open(&path) {
                // The last line end is the only byte that does not matter.
                Ok(store) => {
                    prop_assert!(bytes == original || at == bytes.len() - 1);
                    prop_assert_eq!(keys(&store), 3);
                }
                Err(_) => prop_assert!(bytes != original),
            }
        }

        #[test]
        fn any_file_is_survived(bytes: Vec<u8>) {
            let _ = read(&bytes);
            let _ = read(&[HEADER.as_bytes(), &bytes].concat());
            let _ = read(&[HEADER.as_bytes(), b"0123456789abcdef\n", &bytes].concat());
        }
    }
}
