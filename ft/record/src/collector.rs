//! Writes down what machines send.

use std::io::{self, Write};

use pollux_ft::message::{Bye, Hello, Message};
use pollux_ft::record::HELLO;

use crate::file::{Record, Writer};

/// Microseconds between two notes of the time.
const TIMES: u64 = 10_000;

/// A recording in the making, of machines on any number of connections. One is recorded at a time: who begins a session
/// last, as whoever becomes the pair's backup does.
#[derive(Debug)]
pub struct Collector<W> {
    writer: Writer<W>,
    /// The connection that is recorded.
    from: Option<u64>,
    /// The newest time that was noted.
    noted: Option<u64>,
    sessions: u64,
}

impl<W: Write> Collector<W> {
    /// Goes on with this recording, in which there is no session yet.
    pub fn new(writer: Writer<W>) -> Self {
        Self { writer, from: None, noted: None, sessions: 0 }
    }

    /// A message came on a connection, `us` microseconds after the recording began.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn message(&mut self, connection: u64, us: u64, kind: u8, payload: &[u8]) -> io::Result<()> {
        let Ok(message) = Message::decode(kind, payload) else {
            return self.closed(connection, "it said something that cannot be understood");
        };
        match &message {
            Message::Hello(Hello::Known { claim, .. }) => {
                self.end_session("another session began")?;
                (self.from, self.noted) = (Some(connection), None);
                self.sessions += 1;
                self.note(us)?;
                self.writer.write(&Record::Session { machine: format!("{:016x}", claim.identity.node.0) })?;
            }
            _ if self.from != Some(connection) => return Ok(()),
            Message::Bye(_) => {}
            message if message.is_of_a_recording() => {}
            _ => return self.closed(connection, "it said something that is of no recording"),
        }
        self.note(us)?;
        self.writer.write(&Record::Message(kind, payload.to_vec()))?;
        match message {
            Message::Bye(bye) => self.end_session(&describe(&bye)),
            _ => Ok(()),
        }
    }

    fn note(&mut self, us: u64) -> io::Result<()> {
        if self.noted.is_none_or(|noted| us >= noted.saturating_add(TIMES)) {
            self.noted = Some(us);
            self.writer.write(&Record::Time(us))?;
        }
        Ok(())
    }

    /// Nothing more comes on a connection, and why.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn closed(&mut self, connection: u64, why: &str) -> io::Result<()> {
        if self.from == Some(connection) { self.end_session(why) } else { Ok(()) }
    }

    fn end_session(&mut self, why: &str) -> io::Result<()> {
        if self.from.take().is_none() {
            return Ok(());
        }
        self.writer.write(&Record::SessionEnd(why.to_owned()))?;
        self.writer.flush()
    }

    /// Puts into the file what has come so far.
    ///
    /// # Errors
    /// When that fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// How many sessions have begun.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.writer.written()
    }

    /// Ends the recording; its size in bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<u64> {
        self.end_session("the recording was ended")?;
        self.writer.finish()
    }
}

/// Whether a message of this type begins a session.
pub(crate) fn begins(kind: u8) -> bool {
    kind == HELLO
}

/// How a session ended, in words.
pub(crate) fn describe(bye: &Bye) -> String {
    match bye {
        Bye::Leaving => "the machine left".to_owned(),
        Bye::Diverged(details) => format!("the guest diverged: {details}"),
        Bye::GaveUp(why) => format!("the backup gave up: {why}"),
        Bye::TookOver(term) => format!("the machine took over, in term {}", term.0),
    }
}
