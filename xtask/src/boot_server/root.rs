//! The files that are served: those below one directory, and nothing else.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::netboot::MACHINES;

/// A directory that is served.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

/// Who asks for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker<'a> {
    /// That cannot be known: he gets whatever there is.
    Unknown,
    /// The machine of this name.
    Machine(&'a str),
    /// None of the machines.
    Stranger,
}

/// A file that is served.
#[derive(Debug)]
pub struct Served {
    file: File,
    len: u64,
}

/// What bytes come from.
pub trait Source {
    /// How many there are.
    fn len(&self) -> u64;

    /// Reads those from `offset` on, as many as `buffer` holds.
    ///
    /// # Errors
    /// When they cannot be read, or there are fewer.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for Served {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl Asker<'_> {
    /// Whether this file of a machine, from the name of its directory on, is his.
    fn may_read(self, own: &Path) -> bool {
        match self {
            Self::Unknown => true,
            Self::Machine(name) => own.starts_with(name),
            Self::Stranger => false,
        }
    }
}

impl Root {
    /// Serves `directory`.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(directory: &Path) -> Result<Self> {
        let shown = directory.display();
        let path = directory.canonicalize().with_context(|| format!("cannot serve {shown}"))?;
        ensure!(path.is_dir(), "cannot serve {shown}: it is no directory");
        Ok(Self(path))
    }

    /// Opens the file with this name, which may begin with a slash. Names that lead out of the directory, by `..` or by
    /// a link, are those of no file. What lies in `machines/NAME` has keys with it, and is that machine's alone.
    ///
    /// # Errors
    /// When there is no such file or it cannot be read; [`io::ErrorKind::PermissionDenied`] when it is another machine's.
    pub fn open(&self, name: &str, asker: Asker<'_>) -> io::Result<Served> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let relative = Path::new(name.trim_start_matches('/'));
        if name.contains('\0') || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(missing());
        }
        let path = self.0.join(relative).canonicalize()?;
        let inside = path.strip_prefix(&self.0).map_err(|_| missing())?;
        if !path.is_file() {
            return Err(missing());
        }
        if let Ok(own) = inside.strip_prefix(MACHINES)
            && !asker.may_read(own)
        {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Served { file, len })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_files_below_the_root_are_served() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("served");
        fs::create_dir_all(directory.join("grub")).unwrap();
        fs::write(directory.join("grub/core.0"), b"core").unwrap();
        fs::write(place.path().join("secret"), b"secret").unwrap();
        std::os::unix::fs::symlink(place.path().join("secret"), directory.join("link")).unwrap();
        let root = Root::new(&directory).unwrap();
        for name in ["grub/core.0", "/grub/core.0", "//grub/core.0"] {
            let served = root.open(name, Asker::Stranger).unwrap();
            let mut bytes = [0; 4];
            served.read(0, &mut bytes).unwrap();
            assert_eq!((served.len(), &bytes), (4, b"core"));
            assert!(served.read(1, &mut bytes).is_err());
        }
        for name in
            ["", "/", "grub", "../secret", "grub/../../secret", "/../secret", "link", "none", "grub/core.0\0", "."]
        {
            assert!(root.open(name, Asker::Unknown).is_err(), "{name}");
        }
        assert!(Root::new(&directory.join("none")).is_err() && Root::new(&place.path().join("secret")).is_err());
    }

    #[test]
    fn what_is_a_machines_own_is_for_it_alone() {
        let place = tempfile::tempdir().unwrap();
        for name in ["castor", "castor2"] {
            let own = place.path().join(MACHINES).join(name);
            fs::create_dir_all(&own).unwrap();
            fs::write(own.join("key"), name).unwrap();
        }
        // By another way, it is the same file.
        std::os::unix::fs::symlink(place.path().join(MACHINES), place.path().join("link")).unwrap();
        let root = Root::new(place.path()).unwrap();
        for name in ["machines/castor/key", "/machines/castor/key", "machines//castor/key", "link/castor/key"] {
            for asker in [Asker::Unknown, Asker::Machine("castor")] {
                assert!(root.open(name, asker).is_ok(), "{name} {asker:?}");
            }
            for asker in [Asker::Stranger, Asker::Machine("castor2"), Asker::Machine("cast")] {
                let error = root.open(name, asker).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name} {asker:?}");
            }
        }
        let none = root.open("machines/castor/none", Asker::Stranger).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
