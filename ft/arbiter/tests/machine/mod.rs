//! What machines do with an arbiter.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use pollux_ft::arbiter::{Ask, Failure, Manner, Try};

use crate::server::PATIENCE;

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// One try, which may end without an answer, in pieces of `piece` bytes in both directions.
pub fn ask<A: Ask>(address: SocketAddr, manner: &Manner, ask: &A, piece: usize) -> Result<A::Answer, Failure> {
    let nonce = pollux_arbiter::random::draw().unwrap();
    let (mut attempt, record) = Try::begin(ask, manner, &address.to_string(), nonce);
    let mut stream = connect(address);
    for bytes in record.chunks(piece) {
        // It may close as soon as it has seen enough.
        let _ = stream.write_all(bytes);
    }
    let mut buffer = vec![0; piece];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return attempt.closed(ask),
            Ok(count) => {
                if let Some(answer) = attempt.receive(ask, &buffer[..count])? {
                    return Ok(answer);
                }
            }
        }
    }
}
