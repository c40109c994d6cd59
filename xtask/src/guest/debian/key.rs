//! Public keys in OpenSSH's form.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// How the kinds of keys begin that may log in.
const KINDS: [&str; 4] = ["ssh-ed25519 ", "ssh-rsa ", "ecdsa-sha2-", "sk-"];

/// Reads the file of a public key; its line.
///
/// # Errors
/// A file that cannot be read, or holds something else: of a private key, too, it is said that it is none.
pub fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the key {}", path.display()))?;
    let line = text.trim();
    let is_key = KINDS.iter().any(|kind| line.starts_with(kind)) && !line.contains(char::is_control);
    ensure!(is_key, "{} is no public key of OpenSSH's (ssh-keygen writes it into a file .pub)", path.display());
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_public_key_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            super::read(&path)
        };
        assert_eq!(read("ssh-ed25519 AAAA me@here\n").unwrap(), "ssh-ed25519 AAAA me@here");
        for bad in ["", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "ssh-rsa AA\nssh-rsa BB\n", "command=\"x\" ssh-rsa AA"]
        {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("is no public key"), "{bad:?}: {error}");
        }
        assert!(super::read(&directory.path().join("none")).is_err());
    }
}
