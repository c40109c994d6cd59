//! The `xtask` program under test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// What `xtask build` made.
#[derive(Debug)]
pub struct Artefacts {
    paths: BTreeMap<String, PathBuf>,
}

impl Artefacts {
    /// Built once in each test program: a rig would otherwise look at each start whether there is anything to build.
    ///
    /// # Panics
    /// When the build fails: no test can go on.
    pub fn get() -> &'static Self {
        static BUILT: OnceLock<Artefacts> = OnceLock::new();
        BUILT.get_or_init(|| match build() {
            Ok(paths) => Self { paths },
            Err(error) => panic!("{error:#}"),
        })
    }

    /// The image called `name`: `hypervisor`, or a guest.
    ///
    /// # Errors
    /// When there is none.
    pub fn path(&self, name: &str) -> Result<&PathBuf> {
        self.paths.get(name).with_context(|| format!("xtask built no {name}"))
    }
}

/// `xtask`, with arguments to come.
///
/// # Panics
/// Outside of `cargo xtask test rig`: a test that does nothing must not pass.
#[must_use]
pub fn command() -> Command {
    match std::env::var_os("POLLUX_XTASK") {
        Some(path) => Command::new(path),
        None => panic!("POLLUX_XTASK is not set: run these tests by `cargo xtask test rig`"),
    }
}

/// Runs `xtask` with `arguments` to its end.
///
/// # Errors
/// When it cannot be started.
pub fn run(arguments: &[&str]) -> Result<Output> {
    command().args(arguments).output().context("cannot run xtask")
}

/// Where rigs put their files.
///
/// # Panics
/// See [`command`].
#[must_use]
pub fn rig_parent() -> PathBuf {
    match std::env::var_os("POLLUX_RIG_PARENT") {
        Some(path) => path.into(),
        None => panic!("POLLUX_RIG_PARENT is not set: run these tests by `cargo xtask test rig`"),
    }
}

fn build() -> Result<BTreeMap<String, PathBuf>> {
    let output = run(&["build"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "xtask build failed\n{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(read_paths(&text))
}

/// Lines of a name and a path; progress is between them.
fn read_paths(text: &str) -> BTreeMap<String, PathBuf> {
    let pairs = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
    let pairs = pairs.map(|(name, path)| (name.to_owned(), PathBuf::from(path.trim())));
    pairs.filter(|(_, path)| path.is_absolute()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_what_is_printed() {
        let paths = read_paths("building the guests ...\nhypervisor  /t/a b\nidle /t/idle\n");
        let expected = [("hypervisor", "/t/a b"), ("idle", "/t/idle")];
        assert_eq!(paths, expected.map(|(name, path)| (name.to_owned(), path.into())).into());
    }
}
