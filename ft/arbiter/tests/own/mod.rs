//! The program with a file of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::server::{Server, program, serve};

/// The command that serves with `file`; without `keys` in etcd's words.
pub fn command(file: &Path, keys: Option<&Path>) -> Command {
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--file"]).arg(file);
    match keys {
        Some(keys) => command.arg("--keys").arg(keys),
        None => command.arg("--insecure-etcd"),
    };
    command
}

pub fn start(file: &Path, keys: Option<&Path>) -> Server {
    serve(&mut command(file, keys))
}

/// A folder, and the arbiter's file in it.
pub fn desk() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("arbiter.log");
    (directory, file)
}
