//! One client of the counter guest: bytes in, replies out.

use alloc::format;
use alloc::vec::Vec;

use crate::command::{Client, OWN_BUFFER, Server, run};
use crate::resp::{Stop, parse};

/// Replies beyond this many bytes stop the reading of commands until some were sent.
pub const MAX_PENDING_REPLIES: usize = OWN_BUFFER;

/// A client's connection.
#[derive(Debug, Default)]
pub struct Session {
    /// Input that is not a whole command yet.
    input: Vec<u8>,
    /// Length of `input` below which it is no use to parse it.
    need: usize,
    client: Client,
    /// What it takes of the memory that connections share, in bytes.
    charged: usize,
}

impl Session {
    /// Whether input would be used now. When not, send replies first.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.client.closing && self.pending().len() < MAX_PENDING_REPLIES
    }

    /// Replies to be sent.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.client.replies.pending()
    }

    /// Notes that the first `count` bytes of [`pending`](Self::pending) were sent.
    pub fn sent(&mut self, count: usize, server: &mut Server) {
        self.client.replies.sent(count, MAX_PENDING_REPLIES);
        self.charge(server);
    }

    /// Whether the connection is to be closed once all replies are sent.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.client.closing
    }

    /// Forgets everything, for the next client.
    pub fn reset(&mut self, server: &mut Server) {
        server.buffered -= self.charged;
        *self = Self::default();
    }

    /// Whether there is input left over from when replies held it back: [`feed`](Self::feed) nothing to go on.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.wants_input() && !self.input.is_empty() && self.input.len() >= self.need
    }

    /// Takes input and executes the commands in it, as long as not too many replies wait. `unix_microseconds` is the time.
    pub fn feed(&mut self, bytes: &[u8], server: &mut Server, unix_microseconds: impl Fn() -> u64) {
        if self.client.closing {
            return;
        }
        if self.client.id == 0 {
            server.newest_client += 1;
            self.client.id = server.newest_client;
        }
        if self.input.is_empty() {
            // The usual case: whole commands, used where they are.
            let used = self.execute_all(bytes, server, &unix_microseconds);
            if !self.client.closing {
                self.input.extend_from_slice(&bytes[used..]);
            }
        } else {
            self.input.extend_from_slice(bytes);
            if self.input.len() >= self.need {
                let input = core::mem::take(&mut self.input);
                let used = self.execute_all(&input, server, &unix_microseconds);
                if !self.client.closing {
                    self.input = input;
                    self.input.drain(..used);
                }
            }
        }
        self.charge(server);
    }

    /// Executes the whole commands at the front of `input`; returns their length.
    fn execute_all(&mut self, input: &[u8], server: &mut Server, time: &dyn Fn() -> u64) -> usize {
        let mut used = 0;
        self.need = 0;
        while self.wants_input() {
            let rest = &input[used..];
            match parse(rest, &mut Vec::new()) {
                Ok((arguments, len)) => {
                    used += len;
                    if !arguments.is_empty() {
                        run(&arguments, &rest[..len], server, &mut self.client, time);
                    }
                }
                Err(Stop::Incomplete(need)) => {
                    self.need = need;
                    break;
                }
                Err(Stop::Invalid(error)) => {
                    self.client.replies.error(&[format!("ERR Protocol error: {error}").as_bytes()]);
                    self.client.closing = true;
                }
            }
        }
        used
    }

    /// Reckons with the memory in use. Who wants more when connections have taken all that they may is sent away: what
    /// clients do must not use up the guest's memory.
    fn charge(&mut self, server: &mut Server) {
        if self.input.is_empty() {
            self.input.shrink_to(OWN_BUFFER);
        }
        // Of what is doubled when it grows half may be empty.
        let used = self.input.capacity() + self.client.memory();
        let charge = used.saturating_sub(2 * OWN_BUFFER);
        server.buffered = server.buffered - self.charged + charge;
        let grown = charge > self.charged;
        self.charged = charge;
        if grown && server.buffered > server.buffer_limit && !self.client.closing {
            self.input = Vec::new();
            self.client.replies.error(&[b"OOM the buffers of all connections are full"]);
            self.client.closing = true;
            self.charge(server);
        }
    }
}

#[cfg(test)]
mod tests;
