//! Secrets: keys of pairs, and seeds for random numbers. `cargo xtask key` makes a key; it never stands on a command line.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use pollux_ft::PairKey;

use crate::output::{complain, say};

/// Bytes of a secret.
const BYTES: usize = 32;

/// What to do about keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Draw a new key for a pair
    New {
        /// Where it goes; for its owner alone
        file: PathBuf,
    },
}

/// Makes a key.
pub fn run(command: &KeyCommand) -> Result<()> {
    let KeyCommand::New { file } = command;
    let key = Secret::draw()?;
    // Never over another one, which machines may have.
    let mut out = private(OpenOptions::new().create_new(true), file)
        .with_context(|| format!("cannot make the key {}", file.display()))?;
    out.write_all(key.bytes()).with_context(|| format!("cannot write {}", file.display()))?;
    say!("key         {} (both machines of the pair get it as the module 'key', nobody else does)", file.display());
    Ok(())
}

/// Opens a file for its owner alone.
///
/// # Errors
/// When the system refuses.
pub fn private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.write(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Random bytes that nobody else knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; BYTES]);

/// It is not shown.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Draws one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn draw() -> Result<Self> {
        pollux_arbiter::random::draw().map(Self)
    }

    /// The key in a file.
    ///
    /// # Errors
    /// When it cannot be read or has not the length of a key.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read the key {}", path.display()))?;
        let Ok(key) = bytes.try_into().map_err(|bytes: Vec<u8>| bytes.len()).map(Self) else {
            bail!("{} is no key of {BYTES} bytes: cargo xtask key new makes one", path.display());
        };
        if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
            complain!("warning: others than its owner can read the key {} (chmod 600 helps)", path.display());
        }
        Ok(key)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The pair's key that it is.
    pub fn pair_key(&self) -> PairKey {
        PairKey::new(&self.0)
    }

    /// What tells it from other keys, as the machines write it; no secret.
    pub fn fingerprint(&self) -> String {
        format!("{:016x}", self.pair_key().fingerprint())
    }

    /// Its bytes in hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The key of a pair, as the user chose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChoice {
    /// The one in this file.
    File(PathBuf),
    /// None.
    Without,
}

impl FromStr for KeyChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(if text == "none" { Self::Without } else { Self::File(text.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        run(&KeyCommand::New { file: file.clone() }).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let key = Secret::read(&file).unwrap();
        assert_eq!(key.bytes(), fs::read(&file).unwrap());
        let again = run(&KeyCommand::New { file: file.clone() }).unwrap_err();
        assert!(format!("{again:#}").contains("exists"), "{again:#}");
        assert_eq!(Secret::read(&file).unwrap(), key);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        assert!(Secret::read(&file).unwrap_err().to_string().contains("cannot read the key"));
        for length in [0, 31, 33, 64] {
            fs::write(&file, vec![1; length]).unwrap();
            assert!(Secret::read(&file).unwrap_err().to_string().contains("is no key of 32 bytes"));
        }
    }

    #[test]
    fn secrets_are_different_and_not_shown() {
        let [one, other] = [(); 2].map(|()| Secret::draw().unwrap());
        assert!(one != other && one.hex().len() == 64);
        assert_eq!(format!("{one:?}"), "Secret");
    }
}
