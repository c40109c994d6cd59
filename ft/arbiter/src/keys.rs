//! The keys that an arbiter has: one file for each pair, in a folder that nobody but its owner reads.
//!
//! A file is one line, `pollux arbiter key 1 PAIR HEX`. It holds what [`PairKey::arbiter`] derives, not the pair's key: who
//! steals it can give terms away, and can neither read the pair's stream nor speak for a twin. It names the pair, so that
//! no pair speaks for another; pairs of one name would take each other's terms, so that there is one key a name. While a pair
//! changes its key there are two: `... HEX after FINGERPRINT` says that it is the same pair that had the key with this one.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use pollux_ft::PairKey;
use pollux_ft::arbiter::sealed::ArbiterKey;
use pollux_ft::key::KEY_BYTES;
use pollux_ft::pairing::MAX_NAME;

const HEADER: &str = "pollux arbiter key 1 ";
const AFTER: &str = " after ";
/// Files in a folder at most.
const MAX_FILES: usize = 10_000;
/// The folder is read again for an unknown pair no more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// A pair, and what it shares with its arbiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Its name.
    pub name: String,
    /// The key.
    pub key: ArbiterKey,
    /// The fingerprint of the key that it follows, if it is not the pair's first.
    follows: Option<u64>,
}

impl Pair {
    /// The pair called `name` that has this key.
    #[must_use]
    pub fn new(name: &str, key: &PairKey) -> Self {
        Self { name: name.into(), key: key.into(), follows: None }
    }

    /// The same, which had the key `old` before.
    #[must_use]
    pub fn after(self, old: &PairKey) -> Self {
        Self { follows: Some(ArbiterKey::from(old).fingerprint()), ..self }
    }
}

/// Writes the arbiter's key file of the pair called `name`, whose own key is `secret`, for its owner alone. It may follow an
/// `old` one, with which it is valid until that one's file goes.
///
/// # Errors
/// A name that no pair can have; the old key again; a file that exists already, or cannot be written.
pub fn write(name: &str, secret: &[u8; KEY_BYTES], old: Option<&[u8; KEY_BYTES]>, file: &Path) -> Result<()> {
    check_name(name)?;
    ensure!(old != Some(secret), "the new key is the old one");
    let after = old.map(|old| ArbiterKey::from(&PairKey::new(old)).fingerprint());
    let after = after.map_or(String::new(), |old| format!("{AFTER}{old:016x}"));
    let hex: String = PairKey::new(secret).arbiter().iter().map(|byte| format!("{byte:02x}")).collect();
    let shown = file.display();
    let out = OpenOptions::new().create_new(true).write(true).mode(0o600).open(file);
    let mut out = out.with_context(|| format!("cannot make the key {shown}"))?;
    writeln!(out, "{HEADER}{name} {hex}{after}").with_context(|| format!("cannot write {shown}"))
}

fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(fits, "`{name}` is no pair's name: 1 to {MAX_NAME} printable characters without spaces");
    Ok(())
}

/// Reads one file.
fn read(file: &Path) -> Result<Pair> {
    let shown = file.display();
    check_private(file)?;
    let text = fs::read_to_string(file).with_context(|| format!("cannot read the key {shown}"))?;
    parse(&text).with_context(|| format!("{shown} is no arbiter's key: `pollux-arbiter key` makes one of a pair's key"))
}

fn parse(text: &str) -> Option<Pair> {
    let (name, rest) = text.strip_prefix(HEADER)?.strip_suffix('\n')?.split_once(' ')?;
    check_name(name).ok()?;
    let (hex, old) = rest.split_once(AFTER).map_or((rest, None), |(hex, old)| (hex, Some(old)));
    let is_hex = |text: &str, bytes| {
        text.len() == 2 * bytes && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    };
    if !is_hex(hex, KEY_BYTES) || !old.is_none_or(|old| is_hex(old, size_of::<u64>())) {
        return None;
    }
    let follows = old.map(|old| u64::from_str_radix(old, 16)).transpose().ok()?;
    let mut secret = [0; KEY_BYTES];
    for (byte, digits) in secret.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Pair { name: name.into(), key: ArbiterKey::new(&secret), follows })
}

/// That nobody but its owner reads it.
///
/// # Errors
/// When others can, or it is not there.
pub(crate) fn check_private(path: &Path) -> Result<()> {
    let shown = path.display();
    let mode = fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.permissions().mode();
    ensure!(mode & 0o077 == 0, "others than its owner can read {shown}: chmod go= {shown}");
    Ok(())
}

/// All keys by fingerprint.
type Known = HashMap<u64, Pair>;

fn collect(pairs: impl IntoIterator<Item = Pair>) -> Result<Known> {
    let (mut known, mut names) = (Known::new(), HashMap::<_, Vec<Pair>>::new());
    for pair in pairs {
        let name = pair.name.clone();
        names.entry(name.clone()).or_default().push(pair.clone());
        if let Some(other) = known.insert(pair.key.fingerprint(), pair) {
            bail!("the pairs {} and {name} have the same key", other.name);
        }
    }
    for (name, keys) in names {
        let follows = |new: &Pair, old: &Pair| new.follows == Some(old.key.fingerprint());
        match &keys[..] {
            [_] => {}
            [one, other] => ensure!(
                follows(one, other) || follows(other, one),
                "two keys are for pairs called {name}, and neither says that it follows the other (key --follows): call one \
                 of the pairs otherwise"
            ),
            more => {
                bail!("{} keys are for the pair {name}, and two may be valid at a time: remove the oldest", more.len())
            }
        }
    }
    Ok(known)
}

fn read_folder(folder: &Path) -> Result<Known> {
    let shown = folder.display();
    check_private(folder)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {shown}"))? {
        let path = entry.with_context(|| format!("cannot read {shown}"))?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_file() {
            files.push(path);
        }
    }
    ensure!(files.len() <= MAX_FILES, "{shown} has more than {MAX_FILES} files");
    files.sort();
    collect(files.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?)
}

/// The keys of an arbiter at work.
#[derive(Debug)]
pub struct Keyring {
    folder: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: Known,
    /// When the folder was read, and when it had changed last.
    read: Instant,
    changed: Option<SystemTime>,
}

impl State {
    fn new(known: Known, changed: Option<SystemTime>) -> Self {
        Self { known, read: Instant::now(), changed }
    }
}

/// When a file was put into the folder, or taken out.
fn changed(folder: &Path) -> Option<SystemTime> {
    fs::metadata(folder).and_then(|folder| folder.modified()).ok()
}

impl Keyring {
    /// The keys in the files of `folder`. Files that come later, or go, count from the next question on, a second later at most.
    ///
    /// # Errors
    /// A file or folder that others can read, that is no key's, or two pairs with one key or one name.
    pub fn open(folder: &Path) -> Result<Self> {
        // What changes meanwhile is found later.
        let changed = changed(folder);
        let state = State::new(read_folder(folder)?, changed);
        Ok(Self { folder: Some(folder.to_owned()), state: Mutex::new(state) })
    }

    /// These, and never others.
    ///
    /// # Errors
    /// Two pairs with one key or one name.
    pub fn of(pairs: impl IntoIterator<Item = Pair>) -> Result<Self> {
        let state = State::new(collect(pairs)?, None);
        Ok(Self { folder: None, state: Mutex::new(state) })
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.known.values().map(|pair| &pair.name).collect::<HashSet<_>>().len()
    }

    /// These and no others from now on, if they are not those of a folder.
    ///
    /// # Errors
    /// Two pairs with one key or one name. Then nothing changes.
    pub fn replace(&self, pairs: impl IntoIterator<Item = Pair>) -> Result<()> {
        let known = collect(pairs)?;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).known = known;
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pair whose key has this fingerprint. Where the folder has changed, or has no such key, it is read again, once a
    /// second at most.
    pub fn find(&self, fingerprint: u64) -> Option<Pair> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = &self.folder
            && state.read.elapsed() >= PAUSE
        {
            let changed = changed(folder);
            if changed != state.changed || !state.known.contains_key(&fingerprint) {
                state.read = Instant::now();
                match read_folder(folder) {
                    Ok(known) => *state = State::new(known, changed),
                    Err(error) => eprintln!("arbiter: the keys stay as they were: {error:#}"),
                }
            }
        }
        state.known.get(&fingerprint).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        folder
    }

    fn print(byte: u8) -> u64 {
        Pair::new("x", &PairKey::new(&[byte; 32])).key.fingerprint()
    }

    #[test]
    fn each_pair_is_known_by_its_key() {
        let folder = folder();
        for (name, byte) in [("castor", 1), ("helen", 2)] {
            write(name, &[byte; 32], None, &folder.path().join(name)).unwrap();
            assert!(write(name, &[9; 32], None, &folder.path().join(name)).is_err(), "never over another one");
        }
        let keys = Keyring::open(folder.path()).unwrap();
        assert_eq!((keys.len(), keys.find(print(1)).unwrap()), (2, Pair::new("castor", &PairKey::new(&[1; 32]))));
        assert_eq!(keys.find(print(3)), None);
        // One more pair.
        write("leda", &[3; 32], None, &folder.path().join("leda")).unwrap();
        keys.state.lock().unwrap().read -= PAUSE;
        assert_eq!(keys.find(print(3)).unwrap().name, "leda");
        // One less: its key was stolen, say.
        fs::remove_file(folder.path().join("helen")).unwrap();
        keys.state.lock().unwrap().read -= PAUSE;
        assert_eq!((keys.find(print(2)), keys.len()), (None, 2));
        // A file that is no key's changes nothing.
        fs::write(folder.path().join("odd"), "odd").unwrap();
        keys.state.lock().unwrap().read -= PAUSE;
        assert_eq!((keys.find(print(4)), keys.len()), (None, 2));
    }

    /// Who has the arbiter's file has not the pair's key.
    #[test]
    fn a_file_holds_no_pairs_key() {
        let folder = folder();
        let file = folder.path().join("key");
        write("castor", &[0x5a; 32], None, &file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&file).unwrap().contains("5a5a"));
    }

    /// A pair changes its key: old and new are valid together if the new one says so, whichever file comes or goes first.
    #[test]
    fn a_key_follows_another() {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        write("castor", &[1; 32], None, &path("old")).unwrap();
        let keys = Keyring::open(folder.path()).unwrap();
        let later = |keys: &Keyring| keys.state.lock().unwrap().read -= PAUSE;
        let valid = |keys: &Keyring| {
            (1..=3u8)
                .filter(|byte| keys.find(print(*byte)).is_some_and(|pair| pair.name == "castor"))
                .collect::<Vec<_>>()
        };
        assert!(write("castor", &[1; 32], Some(&[1; 32]), &path("same")).is_err());
        write("castor", &[2; 32], Some(&[1; 32]), &path("new")).unwrap();
        later(&keys);
        keys.find(print(2));
        assert_eq!((valid(&keys), keys.len()), (vec![1, 2], 1));
        // A third one, or one that follows none of them, changes nothing, and is refused at a start.
        for old in [Some(&[2; 32]), None] {
            write("castor", &[3; 32], old, &path("third")).unwrap();
            later(&keys);
            keys.find(print(3));
            assert_eq!(valid(&keys), [1, 2]);
            let error = Keyring::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("remove the oldest"), "{error}");
            fs::remove_file(path("third")).unwrap();
        }
        fs::remove_file(path("old")).unwrap();
        later(&keys);
        keys.find(print(1));
        assert_eq!(valid(&keys), [2]);
        // The next one: the file of the second still says that it followed the first.
        write("castor", &[3; 32], Some(&[2; 32]), &path("third")).unwrap();
        assert_eq!(valid(&Keyring::open(folder.path()).unwrap()), [2, 3]);
        let fixed = Keyring::of([Pair::new("castor", &PairKey::new(&[1; 32]))]).unwrap();
        let second = Pair::new("castor", &PairKey::new(&[2; 32]));
        assert!(fixed.replace([fixed.find(print(1)).unwrap(), second.clone()]).is_err());
        assert_eq!(valid(&fixed), [1]);
        fixed.replace([fixed.find(print(1)).unwrap(), second.after(&PairKey::new(&[1; 32]))]).unwrap();
        assert_eq!(valid(&fixed), [1, 2]);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = format!("{HEADER}castor {}\n", "0a".repeat(32));
        assert!(parse(&good).is_some());
        for bad in [
            String::new(),
            good.replace("0a", "0A"),
            good.replace("castor", "ca stor"),
            good.replace("castor", &"x".repeat(MAX_NAME + 1)),
            good.replace("key 1", "key 2"),
            good.trim_end().to_owned(),
            good.clone() + "\n",
            good.replace('\n', " after \n"),
            good.replace('\n', " after 00\n"),
            good.replace('\n', " after 000000000000000G\n"),
            good.replace('\n', " after 0000000000000000 after 0000000000000000\n"),
        ] {
            assert!(parse(&bad).is_none(), "{bad}");
        }
        let folder = folder();
        let file = folder.path().join("key");
        for bytes in [&[1; 32][..], b"text\n"] {
            let _ = fs::remove_file(&file);
            OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&file)
                .unwrap()
                .write_all(bytes)
                .unwrap();
            let error = format!("{:#}", Keyring::open(folder.path()).unwrap_err());
            assert!(error.contains("key"), "{error}");
        }
        assert!(write("", &[1; 32], None, &folder.path().join("x")).is_err());
    }

    #[test]
    fn others_must_not_read_keys() {
        let folder = folder();
        let file = folder.path().join("key");
        write("castor", &[1; 32], None, &file).unwrap();
        let refused = || Keyring::open(folder.path()).unwrap_err().to_string().contains("others than its owner");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(Keyring::open(folder.path()).is_ok());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(refused());
    }

    #[test]
    fn one_key_is_one_pairs() {
        let key = PairKey::new(&[1; 32]);
        let error = Keyring::of([Pair::new("castor", &key), Pair::new("helen", &key)]).unwrap_err().to_string();
        assert_eq!(error, "the pairs castor and helen have the same key");
    }

    /// Each would find terms taken that it needs.
    #[test]
    fn one_name_is_one_pairs() {
        let error = Keyring::of([1, 2].map(|byte| Pair::new("castor", &PairKey::new(&[byte; 32])))).unwrap_err();
        assert!(error.to_string().contains("neither says that it follows the other"), "{error}");
    }
}
