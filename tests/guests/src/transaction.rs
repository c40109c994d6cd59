//! Commands that are carried out together.

use alloc::vec::Vec;

use crate::command::{self, Call};
use crate::reply::Replies;
use crate::resp::parse;
use crate::store::StoreError;

/// Most commands of a transaction: the replies to all of them wait together.
const MAX_QUEUED: usize = 1024;

/// Commands that wait for `EXEC`.
#[derive(Debug, Default)]
pub struct Transaction {
    /// As they came in.
    encoded: Vec<u8>,
    count: usize,
    /// One of them was refused.
    failed: bool,
}

impl Transaction {
    /// Bytes of memory that it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.encoded.capacity()
    }

    /// A command was refused: `EXEC` will be, too.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// Takes a command, which is known to be one, as it came in.
    pub fn queue(&mut self, encoded: &[u8], has_room: bool, replies: &mut Replies) {
        if self.count == MAX_QUEUED || !has_room {
            self.failed = true;
            return replies.error(&[StoreError::Full.message().as_bytes()]);
        }
        self.count += 1;
        self.encoded.extend_from_slice(encoded);
        replies.simple("QUEUED");
    }
}

/// `MULTI`: from here on commands wait.
pub fn multi(call: &mut Call<'_>) {
    if call.client.transaction.is_some() {
        return call.client.replies.error(&[b"ERR MULTI calls can not be nested"]);
    }
    call.client.transaction = Some(Transaction::default());
    call.client.replies.simple("OK");
}

/// `EXEC`: all that waited is carried out, with nothing between.
pub fn exec(call: &mut Call<'_>) {
    let replies = &mut call.client.replies;
    let Some(transaction) = call.client.transaction.take() else {
        return replies.error(&[b"ERR EXEC without MULTI"]);
    };
    if transaction.failed {
        return replies.error(&[b"EXECABORT Transaction discarded because of previous errors."]);
    }
    replies.array(transaction.count);
    let mut rest = &transaction.encoded[..];
    let mut unquoted = Vec::new();
    while let Ok((arguments, len)) = parse(rest, &mut unquoted) {
        command::run(&arguments, &rest[..len], call.server, call.client, call.time);
        rest = &rest[len..];
        unquoted = Vec::new();
    }
}

/// `DISCARD`: what waited is forgotten.
pub fn discard(call: &mut Call<'_>) {
    match call.client.transaction.take() {
        Some(_) => call.client.replies.simple("OK"),
        None => call.client.replies.error(&[b"ERR DISCARD without MULTI"]),
    }
}
