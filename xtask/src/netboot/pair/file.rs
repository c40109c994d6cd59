//! `pair.toml` as it is written, and where each word of it stands.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use serde::Deserialize;
use toml::Spanned;

/// A text and where it stands.
pub(super) type Text = Spanned<String>;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    /// The pair's name.
    pub(super) pair: Option<Text>,
    /// The file with its key.
    pub(super) key: Option<Text>,
    /// The one with the key that follows.
    pub(super) key_next: Option<Text>,
    /// That it does without.
    #[serde(default)]
    pub(super) insecure: bool,
    /// Addresses of the arbiter, or `none`.
    pub(super) arbiter: Text,
    /// Options of both machines.
    #[serde(default)]
    pub(super) options: Vec<Text>,
    #[serde(default)]
    pub(super) guest: Guest,
    #[serde(rename = "machine")]
    pub(super) machines: Vec<Spanned<MachineTable>>,
}

/// What runs.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Guest {
    /// One of ours, `debian`, or the path of an image.
    pub(super) image: Option<Text>,
    pub(super) kernel: Option<Text>,
    pub(super) initrd: Option<Text>,
    pub(super) append: Option<Text>,
    pub(super) memory: Option<Text>,
    pub(super) mac: Option<Text>,
    pub(super) disk: Option<Text>,
    pub(super) disk_image: Option<Text>,
}

/// One of the two.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct MachineTable {
    pub(super) name: Text,
    /// Of the card that it boots from.
    pub(super) mac: Text,
    pub(super) client_nic: Text,
    pub(super) log_nic: Text,
    pub(super) log_address: Text,
    pub(super) machine_address: Option<Text>,
    pub(super) machine_gateway: Option<Text>,
    #[serde(default)]
    pub(super) options: Vec<Text>,
}

/// The file while it is looked at.
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Reader<'_> {
    pub(super) fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }

    /// The error `what` about the text.
    pub(super) fn wrong(&self, text: &Text, what: impl std::fmt::Display) -> anyhow::Error {
        self.at(self.line(text.span().start), what)
    }

    pub(super) fn at(&self, line: usize, what: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{}:{line}: {what}", self.path.display())
    }

    /// The path that is written there, from the file's own place on.
    pub(super) fn path(&self, text: &Text) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(text.get_ref())
    }

    /// The same of a file that must be there.
    pub(super) fn file(&self, text: &Text) -> Result<PathBuf> {
        let path = self.path(text);
        match std::fs::File::open(&path) {
            Ok(_) if path.is_file() => Ok(path),
            Ok(_) => Err(self.wrong(text, format_args!("{} is no file", path.display()))),
            Err(error) => Err(self.wrong(text, format_args!("cannot read {}: {error}", path.display()))),
        }
    }

    /// The value as `parse` reads it.
    pub(super) fn value<T>(&self, text: &Text, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T> {
        parse(text.get_ref()).map_err(|what| self.wrong(text, what))
    }

    /// The two machines may not have this in common.
    pub(super) fn differ(&self, what: &str, texts: [&Text; 2], same: bool) -> Result<()> {
        let first = self.line(texts[0].span().start);
        let [_, second] = texts;
        match same {
            true => {
                Err(self.wrong(second, format_args!("the {what} {} is there twice (line {first})", second.get_ref())))
            }
            false => Ok(()),
        }
    }
}
