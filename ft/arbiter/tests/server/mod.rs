//! The program in a process of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Nothing takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A process with an arbiter; killed, as by a power failure, when it is dropped.
pub struct Server {
    pub process: Child,
    pub address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollux-arbiter"));
    command.stdin(Stdio::null());
    command
}

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
    let mut process = command(file, keys).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("listening at ").nth(1).and_then(|rest| rest.split(',').next()).expect(&line);
    Server { address: address.parse().unwrap(), process }
}

/// A folder, and the arbiter's file in it.
pub fn desk() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("arbiter.log");
    (directory, file)
}
