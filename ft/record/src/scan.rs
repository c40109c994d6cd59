//! What is in a recording.

use std::io::Read;

use pollux_ft::batch::Batch;
use pollux_ft::entry::Kind;
use pollux_ft::message::{Hello, Message};
use pollux_ft::pairing::Claim;
use pollux_ft::{Control, Entry, Position, Seq, Term};

use crate::collector::begins;
use crate::file::{Fault, ReadError, Reader, Record};

/// From a state on to the end of the backup that was given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// What the machine that recorded it said of itself.
    pub claim: Claim,
    /// The primary's term.
    pub term: Term,
    /// Where the guest stands in the state; none if the state is not complete.
    pub state: Option<Position>,
    /// Bytes of state.
    pub state_bytes: u64,
    /// The first and the last entry.
    pub entries: Option<(Seq, Seq)>,
    /// How far the log leads.
    pub position: Position,
    /// Entries of each kind, in the order of [`Kind::ALL`].
    pub kinds: [u64; Kind::ALL.len()],
    /// Whether the log ends because the guest switched itself off.
    pub powered_off: bool,
    /// Microseconds since the recording began: when the session began, when its state was complete, when it ended.
    pub times: [u64; 3],
    /// Why it ended; none if the file breaks off before.
    pub end: Option<String>,
}

impl Session {
    /// Number of entries.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.kinds.iter().sum()
    }

    /// Number of entries of this kind.
    #[must_use]
    pub fn of_kind(&self, kind: Kind) -> u64 {
        self.kinds[kind.index()]
    }
}

/// What is in a recording.
#[derive(Debug, Default)]
pub struct Contents {
    /// How the machines were made.
    pub setup: Option<String>,
    /// The sessions, in their order.
    pub sessions: Vec<Session>,
    /// Where the file breaks off, if it was not ended in order.
    pub broken_off: Option<u64>,
}

/// Where in a recording a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Between,
    /// A session was announced; the next message is the machine's Hello.
    Announced,
    Session,
}

/// Looks through a recording; files in it are handed to `file`, piece by piece.
///
/// # Errors
/// When it is damaged or cannot be read. One that breaks off is read up to there.
pub fn scan(from: impl Read, mut file: impl FnMut(&str, &[u8]) -> std::io::Result<()>) -> Result<Contents, ReadError> {
    let mut reader = Reader::new(from)?;
    let mut contents = Contents::default();
    let (mut now, mut place) = (0, Place::Between);
    loop {
        let record = match reader.next_record() {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(contents),
            Err(ReadError { offset, fault: Fault::Truncated }) => {
                contents.broken_off = Some(offset);
                return Ok(contents);
            }
            Err(error) => return Err(error),
        };
        let fail = |what| ReadError { offset: reader.offset(), fault: Fault::Damaged(what) };
        match record {
            Record::Setup(text) => contents.setup = Some(text),
            Record::File(name, piece) => {
                file(&name, &piece).map_err(|error| ReadError { offset: reader.offset(), fault: Fault::Io(error) })?;
            }
            Record::Time(us) => now = us,
            Record::Session { .. } if place != Place::Between => return Err(fail("a session within another")),
            Record::Session { .. } => place = Place::Announced,
            Record::Message(kind, payload) => {
                let message = Message::decode(kind, &payload).map_err(|_| fail("a message"))?;
                match (place, contents.sessions.last_mut()) {
                    (Place::Announced, _) => {
                        contents.sessions.push(begin(message, now).ok_or_else(|| fail("a session's beginning"))?);
                        place = Place::Session;
                    }
                    (Place::Session, _) if begins(kind) => return Err(fail("a session within another")),
                    (Place::Session, Some(session)) => session.take(&message, now).map_err(fail)?,
                    _ => return Err(fail("a message of no session")),
                }
            }
            Record::SessionEnd(why) => {
                let session = contents.sessions.last_mut().filter(|_| place == Place::Session);
                session.ok_or_else(|| fail("the end of no session"))?.end = Some(why);
                place = Place::Between;
            }
            Record::End => {}
        }
    }
}

fn begin(hello: Message<'_>, now: u64) -> Option<Session> {
    let Message::Hello(Hello::Known { claim, .. }) = hello else { return None };
    Some(Session {
        claim: *claim,
        term: Term(0),
        state: None,
        state_bytes: 0,
        entries: None,
        position: Position(0),
        kinds: [0; Kind::ALL.len()],
        powered_off: false,
        times: [now; 3],
        end: None,
    })
}

impl Session {
    fn take(&mut self, message: &Message<'_>, now: u64) -> Result<(), &'static str> {
        self.times[2] = now;
        match message {
            Message::StateBegin { term, .. } => self.term = *term,
            Message::Memory { data, .. } | Message::Machine(data) if self.state.is_none() => {
                self.state_bytes += data.len() as u64;
            }
            Message::Zero { .. } if self.state.is_none() => {}
            Message::StateEnd { position, .. } if self.state.is_none() => {
                (self.state, self.position, self.times[1]) = (Some(*position), *position, now);
            }
            Message::Entries(payload) if self.state.is_some() => self.take_entries(payload)?,
            Message::Bye(_) => {}
            _ => return Err("a message out of order"),
        }
        Ok(())
    }

    fn take_entries(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        const BATCH: &str = "a batch of entries";
        let mut batch = Batch::open(payload).map_err(|_| BATCH)?;
        while let Some((seq, position, entry)) = batch.next_entry().map_err(|_| BATCH)? {
            let last = self.entries.map(|(_, last)| last);
            if last.is_some_and(|last| seq.0 != last.0 + 1) || position < self.position || self.powered_off {
                return Err("entries out of order");
            }
            self.entries = Some((self.entries.map_or(seq, |(first, _)| first), seq));
            self.position = position;
            self.kinds[entry.kind().index()] += 1;
            self.powered_off = entry == Entry::Control(Control::PowerOff);
        }
        Ok(())
    }
}
