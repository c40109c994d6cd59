//! `cargo xtask replay FILE --gdb`: a recording under GDB, forwards and backwards.

mod debugger;
mod live;
mod peer;
mod registers;
mod target;
#[cfg(test)]
mod tests;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use anyhow::{Context, Result, anyhow};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine as State;
use gdbstub::stub::{DisconnectReason, GdbStub};
use pollux_record::Session;

use self::debugger::Machine;
use self::live::Live;
use self::peer::is_own;
use self::target::{Guest, Reason};
use super::Replay;
use crate::output::say;

/// Ctrl-C in GDB.
const INTERRUPT: u8 = 3;

/// Lets GDB look at a session; when it lets go, the rest is replayed and judged. With `port` 0 a free one is taken; `flip` is
/// as without GDB.
pub fn serve(replay: &Replay<'_>, index: usize, session: &Session, (port, flip): (u16, Option<u64>)) -> Result<()> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("cannot listen on {port}"))?;
    listener.set_nonblocking(true).context("cannot listen")?;
    let live = Live::start(replay, index, session, flip)?;
    let (begin, end) = live.bounds();
    say!(
        "session {} stands at position {begin} of {begin} to {end} (ready in {:.1} s). In gdb type:",
        index + 1,
        live.rewound_in.as_secs_f64()
    );
    say!("target remote :{}", listener.local_addr().context("cannot listen")?.port());
    let mut guest = Guest::new(live, |live: &Live<'_>, word| match word {
        "digest" => {
            let stands = live.stands().unwrap_or_default();
            Some(format!("{} digests were equal\n{stands}", live.digests()).trim_end().to_owned())
        }
        "entries" => Some(live.entries().unwrap_or_else(|error| format!("{error:#}"))),
        _ => None,
    });
    let stream = loop {
        match listener.accept() {
            Ok((stream, peer)) if is_own(&stream, peer) => break stream,
            Ok((_, peer)) => say!("refused: {peer} is another user's, who may not see this guest"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("cannot listen"),
        }
        guest.debugger.machine.turn()?;
    };
    stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).context("GDB's connection")?;
    let left = converse(&mut guest, Wire::new(stream), |guest| guest.debugger.machine.turn())?;
    if left == DisconnectReason::Kill {
        say!("GDB has ended the replay at position {}", guest.debugger.machine.position());
        return Ok(());
    }
    say!("GDB has let go at position {}", guest.debugger.machine.position());
    guest.debugger.machine.finish()
}

/// The connection to GDB.
#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    /// What is to be sent, until all of an answer is there.
    waiting: Vec<u8>,
    /// Bytes that still belong to the packet that comes, as far as that can be said.
    left: Option<Left>,
}

/// What is missing of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Its end, and the checksum.
    Body,
    /// So many digits of the checksum.
    Digits(u8),
}

impl Wire {
    /// On this connection.
    fn new(stream: TcpStream) -> Self {
        Self { stream, waiting: Vec::new(), left: None }
    }

    /// The next byte, if one has come.
    fn next(&mut self) -> Result<Option<u8>> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => Err(anyhow!(Gone)),
            // GDB has lost patience, and asks for an answer again that is on its way: TCP loses nothing.
            Ok(_) if byte == *b"-" && self.left.is_none() => Ok(None),
            Ok(_) => {
                self.left = match (self.left, byte[0]) {
                    (None, b'$') => Some(Left::Body),
                    (Some(Left::Body), b'#') => Some(Left::Digits(2)),
                    (Some(Left::Digits(left)), _) => (left > 1).then_some(Left::Digits(left - 1)),
                    (left, _) => left,
                };
                Ok(Some(byte[0]))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(_) => Err(anyhow!(Gone)),
        }
    }

    /// Whether GDB says something, or is gone. That it has got an answer is nothing.
    fn speaks(&self) -> bool {
        let mut byte = [0];
        loop {
            match self.stream.peek(&mut byte) {
                Ok(1) if matches!(byte[0], b'+' | b'-') => drop((&self.stream).read(&mut byte)),
                Ok(_) => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }

    /// Shows a text while GDB waits for a stop.
    fn show(&mut self, text: &str) -> std::io::Result<()> {
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        let sum = hex.bytes().fold(b'O', u8::wrapping_add);
        self.waiting.extend(format!("$O{hex}#{sum:02x}").bytes());
        self.flush()
    }
}

impl Connection for Wire {
    type Error = std::io::Error;

    fn write(&mut self, byte: u8) -> std::io::Result<()> {
        self.waiting.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.set_nonblocking(false)?;
        Write::write_all(&mut self.stream, &self.waiting)?;
        self.waiting.clear();
        self.stream.set_nonblocking(true)
    }
}

/// GDB has closed its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GDB is gone")
    }
}

impl std::error::Error for Gone {}

/// Speaks with GDB until it leaves; `idle` is called while there is nothing to do. Says how it left.
fn converse<M: Machine>(
    guest: &mut Guest<M>,
    wire: Wire,
    mut idle: impl FnMut(&mut Guest<M>) -> Result<()>,
) -> Result<DisconnectReason> {
    let stub = GdbStub::new(wire).run_state_machine(guest).map_err(|error| anyhow!("GDB: {error}"))?;
    let mut state = stub;
    loop {
        let stepped = match state {
            State::Idle(mut inner) => match inner.borrow_conn().next() {
                Ok(Some(byte)) => inner.incoming_data(guest, byte),
                Ok(None) => {
                    idle(guest)?;
                    Ok(inner.into())
                }
                Err(_) => return Ok(DisconnectReason::Disconnect),
            },
            State::Running(mut inner) => {
                let wire = inner.borrow_conn();
                let reason = guest.obey(&mut || wire.speaks())?;
                if let Some(news) = guest.news.take() {
                    wire.show(&format!("{news}\n")).context("GDB's connection")?;
                }
                if reason == Reason::Signal(gdbstub::common::Signal::SIGINT) {
                    match wire.next() {
                        Ok(Some(INTERRUPT) | None) => {}
                        _ => return Ok(DisconnectReason::Disconnect),
                    }
                }
                inner.report_stop(guest, reason)
            }
            // It was about to stop anyhow.
            State::CtrlCInterrupt(inner) => inner.interrupt_handled(guest, None::<Reason>),
            State::Disconnected(inner) => return Ok(inner.get_reason()),
        };
        state = stepped.map_err(|error| anyhow!("GDB: {error}"))?;
    }
}
