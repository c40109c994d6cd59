//! The program in a process of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

/// Starts what serves, and waits until it says where.
pub fn serve(command: &mut Command) -> Server {
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("listening at ").nth(1).and_then(|rest| rest.split(',').next()).expect(&line);
    Server { address: address.parse().unwrap(), process }
}
