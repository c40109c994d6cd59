//! Plays the primary of a recorded session to a machine that follows it.

use std::collections::VecDeque;

use pollux_ft::batch::Batch;
use pollux_ft::entry::Kind;
use pollux_ft::message::Message;
use pollux_ft::{
    Action, AppendError, Config, Control, Entry, HaltReason, Identity, LossReason, Node, NodeId, Position, Role, Seq,
    Start, Time,
};

/// How a replay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The machine executed all of it, and found every digest as it was recorded.
    Equal,
    /// The machine found a difference; in its words, with the recording's number of the entry.
    Diverged(String),
    /// The machine was lost, or would not begin.
    Failed(String),
}

/// How far a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of state that were sent.
    pub state: u64,
    /// Entries that were sent.
    pub entries: u64,
    /// Of these, those that the machine has not applied.
    pub behind: u64,
    /// Where the machine's guest stands, as far as it has said.
    pub position: Position,
    /// Digests that the machine has compared.
    pub digests: u64,
}

/// Frames that are longer carry data of TCP over IPv4.
const HEADERS: usize = 70;
/// Where their destination begins, without which no guest takes them.
const ADDRESSES: usize = 30;

/// What is to be handed to the node next.
#[derive(Debug)]
enum Pending {
    Memory { gpa: u64, data: Vec<u8> },
    Zero { gpa: u64, len: u64 },
    Machine { data: Vec<u8>, used: usize },
    End { position: Position, digest: u64 },
}

/// The primary of a machine that plays a recording. Hand its [`node`](Self::node) what comes from the machine, ask
/// [`wants`](Self::wants) for how long to hand in messages, and call [`turn`](Self::turn).
#[derive(Debug)]
pub struct Player {
    node: Node,
    pending: Option<Pending>,
    entries: VecDeque<(Seq, Position, Entry)>,
    /// Own numbers from which on the recording's are so much higher: marks at the same place are sent as one.
    numbers: Vec<(Seq, u64)>,
    /// Positions of digests that were sent and are not known to have been passed.
    digests: VecDeque<Position>,
    progress: Progress,
    newest: Position,
    /// The entry from which on the next with input for the guest is changed.
    flip: Option<Seq>,
    flipped: Option<Seq>,
    complete: bool,
    outcome: Option<Outcome>,
}

impl Player {
    /// One that plays to a machine like the one that recorded, which is `identity`, by these options; `id` must be another
    /// at each time.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn new(now: Time, config: Config, identity: Identity, id: NodeId) -> Result<Self, &'static str> {
        let identity = Identity { node: id, ..identity };
        Ok(Self {
            node: Node::new(now, Start::Primary, config, identity)?,
            pending: None,
            entries: VecDeque::new(),
            numbers: Vec::new(),
            digests: VecDeque::new(),
            progress: Progress::default(),
            newest: Position(0),
            flip: None,
            flipped: None,
            complete: false,
            outcome: None,
        })
    }

    /// Changes one bit of the first entry from `from` on that brings the guest a frame with data or typed text. (What a clock
    /// says holds until the next one, and may never be read; an acknowledgement says no more than the next one.)
    pub fn flip(&mut self, from: Seq) {
        self.flip = Some(from);
    }

    /// Which entry was changed.
    #[must_use]
    pub fn flipped(&self) -> Option<Seq> {
        self.flipped
    }

    /// The primary's node.
    pub fn node(&mut self) -> &mut Node {
        &mut self.node
    }

    /// Whether the next message of the session may be handed in.
    #[must_use]
    pub fn wants(&self) -> bool {
        let begun = matches!(self.node.role(), Role::Transferring | Role::Protected);
        begun && self.pending.is_none() && self.entries.is_empty() && !self.complete && self.outcome.is_none()
    }

    /// The next message of the session: its type and its content.
    ///
    /// # Errors
    /// When it is none, or none of a recording.
    pub fn message(&mut self, now: Time, kind: u8, payload: &[u8]) -> Result<(), &'static str> {
        let message = Message::decode(kind, payload).map_err(|_| "a message that cannot be understood")?;
        self.pending = match message {
            Message::Memory { gpa, data } => Some(Pending::Memory { gpa, data: data.to_vec() }),
            Message::Zero { gpa, len } => Some(Pending::Zero { gpa, len }),
            Message::Machine(data) => Some(Pending::Machine { data: data.to_vec(), used: 0 }),
            Message::StateEnd { position, .. } if position < self.newest => return Err("a state out of order"),
            Message::StateEnd { position, digest, .. } => {
                self.newest = position;
                Some(Pending::End { position, digest })
            }
            Message::Entries(payload) => {
                let mut batch = Batch::open(payload).map_err(|_| "a malformed batch")?;
                while let Some((seq, position, entry)) = batch.next_entry().map_err(|_| "a malformed entry")? {
                    if position < self.newest {
                        return Err("entries out of order");
                    }
                    self.newest = position;
                    let mut entry = entry.to_owned();
                    self.damage(seq, &mut entry);
                    self.entries.push_back((seq, position, entry));
                }
                None
            }
            Message::Hello(_) | Message::StateBegin { .. } | Message::Bye(_) => None,
            _ => return Err("a message that is of no recording"),
        };
        self.feed(now);
        Ok(())
    }

    fn damage(&mut self, seq: Seq, entry: &mut Entry) {
        if self.flip.is_none_or(|from| seq < from) {
            return;
        }
        match entry {
            Entry::PacketIn(data) if data.len() > HEADERS => data[ADDRESSES] ^= 1,
            Entry::ConsoleIn(data) if !data.is_empty() => data[0] ^= 1,
            _ => return,
        }
        (self.flip, self.flipped) = (None, Some(seq));
    }

    /// No more messages come.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Does what can be done now.
    pub fn turn(&mut self, now: Time) {
        self.node.tick(now);
        self.feed(now);
        while let Some(action) = self.node.poll_action() {
            match action {
                // What it allowed to leave would have left long ago.
                Action::Release(seq) => self.node.output_left(seq),
                Action::Unprotected { reason } => self.end(lost(reason)),
                Action::Refused { reason, .. } => {
                    self.end(Outcome::Failed(format!("the machine cannot play it: {reason}")))
                }
                Action::Halt { reason: HaltReason::PoweredOff } => self.end(Outcome::Equal),
                Action::Halt { reason } => self.end(Outcome::Failed(reason.to_string())),
                Action::CloseConnection => {}
                _ => {}
            }
        }
        self.note_progress(now);
        let all_sent = self.complete && self.entries.is_empty() && self.pending.is_none();
        if all_sent && self.node.role() == Role::Protected {
            self.node.flush(now);
            if self.progress.behind == 0 && self.progress.position == self.newest {
                self.end(Outcome::Equal);
            }
        }
    }

    fn end(&mut self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Diverged(details) => Outcome::Diverged(self.renumber(&details)),
            Outcome::Equal => {
                self.progress.digests += self.digests.len() as u64;
                self.digests.clear();
                Outcome::Equal
            }
            other => other,
        };
        self.outcome.get_or_insert(outcome);
    }

    /// The machine names the entry by our number.
    fn renumber(&self, details: &str) -> String {
        let named = details.strip_prefix("entry ").and_then(|rest| rest.split_once(':'));
        let Some((own, rest)) = named.and_then(|(number, rest)| Some((number.parse().ok()?, rest))) else {
            return details.to_owned();
        };
        let more = self.numbers.iter().rev().find(|(from, _)| from.0 <= own).map_or(0, |(_, more)| *more);
        format!("entry {}:{rest}", own + more)
    }

    /// Hands the node as much as it takes.
    fn feed(&mut self, now: Time) {
        if self.outcome.is_some() {
            return;
        }
        if let Some(pending) = &mut self.pending {
            let bytes = match pending {
                Pending::Memory { gpa, data } => self.node.push_memory(*gpa, data).map(|()| Some(data.len())),
                Pending::Zero { gpa, len } => self.node.push_zero(*gpa, *len).map(|()| Some(0)),
                Pending::Machine { data, used } => self.node.push_machine(&data[*used..]).map(|taken| {
                    *used += taken;
                    (*used == data.len()).then_some(*used)
                }),
                Pending::End { position, digest } => {
                    self.node.progress(*position);
                    self.node.finish_state(*position, *digest).map(|()| Some(0))
                }
            };
            match bytes {
                Ok(Some(bytes)) => {
                    self.progress.state += bytes as u64;
                    self.pending = None;
                }
                Ok(None) | Err(AppendError::Full) => {}
                Err(error) => {
                    let error = format!("the state cannot be sent: {error}");
                    return self.end(Outcome::Failed(error));
                }
            }
        }
        while let Some((seq, position, entry)) = self.entries.front() {
            // It would have the machine go live, and the recording ends with it: what is said of it is how far the guest ran.
            let entry = match entry {
                Entry::Control(Control::SwitchOver) => &Entry::Horizon,
                entry => entry,
            };
            self.node.progress(*position);
            match self.node.append(now, *position, entry.borrow()) {
                Ok(own) => {
                    let more = seq.0.saturating_sub(own.0);
                    if self.numbers.last().is_none_or(|(_, last)| *last != more) {
                        self.numbers.push((own, more));
                    }
                    if entry.borrow().kind() == Kind::Digest {
                        self.digests.push_back(*position);
                    }
                }
                Err(AppendError::Full) => return,
                Err(error) => {
                    let error = format!("the log cannot be sent: {error}");
                    return self.end(Outcome::Failed(error));
                }
            }
            self.progress.entries += 1;
            self.entries.pop_front();
        }
    }

    fn note_progress(&mut self, now: Time) {
        if self.node.role() != Role::Protected {
            return;
        }
        let lag = self.node.lag(now);
        // The node stands where its newest entry is.
        self.progress.behind = lag.entries;
        self.progress.position = Position(self.newest_sent().0.saturating_sub(lag.ticks));
        while self.digests.pop_front_if(|position| *position < self.progress.position).is_some() {
            self.progress.digests += 1;
        }
    }

    /// The position of the newest entry that the node took.
    fn newest_sent(&self) -> Position {
        self.entries.front().map_or(self.newest, |(_, position, _)| *position)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }
}

fn lost(reason: LossReason) -> Outcome {
    match reason {
        LossReason::Diverged(details) => Outcome::Diverged(details),
        reason => Outcome::Failed(format!("the machine was lost: {reason}")),
    }
}
