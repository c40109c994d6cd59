//! The content of a drive on its way to a new backup: block by block in rounds, as memory goes, while the guest runs; what it
//! writes meanwhile goes again.
//!
//! In the addresses of a state a drive's label lies at [`ADDRESS`], and its content a page behind that. A block counts as
//! changed when a write to it *ends*: one that has not ended when the state is saved is in flight in that, and the backup carries
//! it out itself.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pollux_ft::disk::ADDRESS;
use pollux_ft::message::MAX_MEMORY;
use pollux_ft::{AppendError, Node, Role, Time};

use crate::disk::DiskRequest;
use crate::driver::Driver;
use crate::guest::Guest;
use crate::host::{CopyState, Host};
use crate::pages::{PAGE_SIZE, PageSet, is_zero};
use crate::rounds::{Enough, Next, Rounds};

/// Bytes of a block: what goes into one message.
const BLOCK: u64 = MAX_MEMORY as u64;
/// Where the content begins in the addresses of a state.
const CONTENT: u64 = ADDRESS + PAGE_SIZE;
/// Blocks that the drive reads at once.
const AHEAD: u64 = 8;
/// Longest run of zeros in one message, in bytes.
const MAX_ZEROS: u64 = 16 << 20;

/// Bytes of a disk, in whole pages.
fn pages_of(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_SIZE)
}

/// A drive's content on its way to the backup.
#[derive(Debug)]
pub(crate) struct DiskCopy {
    bytes: u64,
    rounds: Rounds,
    changed: PageSet,
    /// The backup knows which drive it is.
    labelled: bool,
    /// Blocks that the drive is reading.
    fetching: u64,
    /// Zeros that were read and not told: first byte and length.
    zeros: (u64, u64),
    /// A block that the protocol did not take.
    waits: Option<(u64, Vec<u8>)>,
    /// The drive could not read a block: the copy will never be complete.
    failed: bool,
}

impl DiskCopy {
    pub(crate) fn new(bytes: u64, now: Time) -> Self {
        let blocks = bytes.div_ceil(BLOCK);
        let enough = Enough { few_pages: 4, ..Enough::default() };
        Self {
            bytes,
            rounds: Rounds::new(blocks, now, enough),
            changed: PageSet::new(blocks),
            labelled: false,
            fetching: 0,
            zeros: (0, 0),
            waits: None,
            failed: false,
        }
    }

    /// A request has ended on the drive.
    pub(crate) fn ended(&mut self, request: &DiskRequest) {
        if request.operation.writes() && request.len > 0 {
            let last = (request.start + request.len - 1) / BLOCK;
            (request.start / BLOCK..=last).for_each(|block| self.changed.insert(block));
        }
    }

    /// Whether the drive could not read a block.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether all of this round is with the protocol.
    fn is_quiet(&self) -> bool {
        self.labelled && !self.failed && self.fetching == 0 && self.waits.is_none() && self.zeros.1 == 0
    }

    /// Begins the next round with what changed; whether little is left.
    pub(crate) fn begin_round(&mut self, now: Time) -> bool {
        let blocks = self.bytes.div_ceil(BLOCK);
        self.rounds.begin(core::mem::replace(&mut self.changed, PageSet::new(blocks)), now)
    }

    /// Adds what changed to this round: the guest stands still.
    pub(crate) fn add_changed(&mut self) {
        let blocks = self.bytes.div_ceil(BLOCK);
        let changed = core::mem::replace(&mut self.changed, PageSet::new(blocks));
        self.rounds.add(&changed);
    }

    /// Sends what is left of this round as far as the protocol takes it; whether that was all.
    pub(crate) fn send<G: Guest>(&mut self, node: &mut Node, host: &mut impl Host<G>) -> Result<bool, AppendError> {
        if !self.labelled {
            node.push_memory(ADDRESS, &host.drive_label())?;
            self.labelled = true;
        }
        loop {
            if let Some((start, data)) = self.waits.take()
                && let Err(error) = self.send_block(node, start, &data)
            {
                self.waits = Some((start, data));
                return Err(error);
            }
            match host.fetched() {
                Some((start, Some(data))) => {
                    self.fetching -= 1;
                    self.waits = Some((start, data));
                }
                Some((_, None)) => (self.fetching, self.failed) = (self.fetching - 1, true),
                None => break,
            }
        }
        while self.fetching < AHEAD
            && let Next::Pages { first, .. } = self.rounds.next(1)
        {
            let start = first * BLOCK;
            host.fetch(start, BLOCK.min(pages_of(self.bytes) - start));
            self.rounds.done(first, 1, 1);
            self.fetching += 1;
        }
        if self.fetching == 0 {
            self.send_zeros(node)?;
        }
        Ok(self.is_quiet())
    }

    fn send_block(&mut self, node: &mut Node, start: u64, data: &[u8]) -> Result<(), AppendError> {
        let (first, len) = self.zeros;
        if is_zero(data) && (len == 0 || first + len == start) && len < MAX_ZEROS {
            self.zeros = (if len == 0 { start } else { first }, len + data.len() as u64);
            return Ok(());
        }
        self.send_zeros(node)?;
        if is_zero(data) {
            self.zeros = (start, data.len() as u64);
            return Ok(());
        }
        node.push_memory(CONTENT + start, data)
    }

    fn send_zeros(&mut self, node: &mut Node) -> Result<(), AppendError> {
        let (first, len) = self.zeros;
        if len > 0 {
            node.push_zero(CONTENT + first, len)?;
            self.zeros = (0, 0);
        }
        Ok(())
    }
}

impl<G: Guest> Driver<G> {
    /// A piece of a drive arrived, or of its label; `data` is empty for `len` zeros.
    pub(crate) fn load_disk(&mut self, host: &mut impl Host<G>, address: u64, len: u64, data: &[u8]) {
        if self.node.role() == Role::Halted {
            // It came together with what was refused.
            return;
        }
        let bytes = host.drive_bytes();
        let result = if bytes == 0 {
            Err(String::from("the state has a disk on a drive, and this machine's is none"))
        } else if address == ADDRESS {
            let begun = host.begin_copy(data);
            self.incoming.has_label = begun.is_ok();
            begun
        } else {
            let start = address.checked_sub(CONTENT);
            match start.filter(|start| start.checked_add(len).is_some_and(|end| end <= pages_of(bytes))) {
                Some(start) if self.incoming.has_label => {
                    host.store(start, len, data);
                    Ok(())
                }
                _ => Err(format!("the state does not fit: {len} bytes at {address:#x} are not on the disk")),
            }
        };
        if let Err(why) = result {
            self.diverge(host, &why);
        }
    }

    /// Whether all that was copied is durable here. The error says why it never will be.
    pub(crate) fn copy_complete(&self, host: &impl Host<G>) -> Result<bool, String> {
        if host.drive_bytes() == 0 {
            return Ok(true);
        }
        match host.copy_state() {
            CopyState::Busy => Ok(false),
            CopyState::Done => Ok(true),
            CopyState::Failed => Err(String::from("this machine's drive failed while the disk was copied to it")),
        }
    }
}
