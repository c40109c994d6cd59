//! The modelled guest's disk, the last page of its memory: what the guest asks of it, and what it waits for.
//!
//! Each answer to a client is committed first: the client's sector is written twice, with what is there and then with the news,
//! flushed, and read again, all in flight at once; the client is told what was read. A reset takes what the guest remembers:
//! it is read from the disk again.

use super::Guest;
use super::{DISK, NEVER, PAGE, RECORDS};
use pollux_driver::{DiskEnd, DiskOperation, DiskRequest, DiskStatus};

/// Bytes and words of a sector.
const SECTOR: u64 = 512;
const WORDS: usize = SECTOR as usize / 8;
/// Sectors of the disk; a client has one.
const SECTORS: usize = PAGE / WORDS;

/// What a sector says of its client: its last request, and the answer.
type Record = [u64; 2];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InFlight {
    id: u64,
    operation: DiskOperation,
    sector: usize,
    sectors: usize,
    /// What is written there.
    record: Record,
}

/// What the guest waits for: of the requests from one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Nothing,
    /// The client's record becomes durable.
    Commit {
        from: u64,
        sector: usize,
        record: Record,
        read: Record,
        failed: bool,
    },
    /// All records are read.
    Load {
        from: u64,
    },
}

/// The guest's end of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    next_id: u64,
    in_flight: Vec<InFlight>,
    wait: Wait,
    /// The next request that was not handed out. Not part of the state.
    unasked: u64,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self { next_id: 0, in_flight: Vec::new(), wait: Wait::Nothing, unasked: 0 }
    }

    pub(super) fn next_request(&mut self) -> Option<DiskRequest> {
        let InFlight { id, operation, sector, sectors, .. } =
            *self.in_flight.iter().find(|request| request.id >= self.unasked)?;
        self.unasked = id + 1;
        Some(DiskRequest { id, operation, start: sector as u64 * SECTOR, len: sectors as u64 * SECTOR, durable: false })
    }

    fn ask(&mut self, operation: DiskOperation, sector: usize, record: Record) {
        self.in_flight.push(InFlight { id: self.next_id, operation, sector, sectors: 1, record });
        self.next_id += 1;
    }

    fn commit(&mut self, sector: usize, old: Record, record: Record) {
        self.wait = Wait::Commit { from: self.next_id, sector, record, read: [0; 2], failed: false };
        self.ask(DiskOperation::Write, sector, old);
        self.ask(DiskOperation::Write, sector, record);
        self.ask(DiskOperation::Flush, sector, [0; 2]);
        self.ask(DiskOperation::Read, sector, [0; 2]);
    }

    fn load(&mut self) {
        self.wait = Wait::Load { from: self.next_id };
        let request =
            InFlight { id: self.next_id, operation: DiskOperation::Read, sector: 0, sectors: SECTORS, record: [0; 2] };
        self.in_flight.push(request);
        self.next_id += 1;
    }

    /// What is sent and hashed.
    pub(super) fn words(&self) -> Vec<u64> {
        let wait = match self.wait {
            Wait::Nothing => [0; 8],
            Wait::Commit { from, sector, record, read, failed } => {
                [1, from, sector as u64, record[0], record[1], read[0], read[1], u64::from(failed)]
            }
            Wait::Load { from } => [2, from, 0, 0, 0, 0, 0, 0],
        };
        let mut words = vec![self.next_id, self.in_flight.len() as u64];
        words.extend(wait);
        for request in &self.in_flight {
            words.extend([request.id, request.operation as u64, request.sector as u64, request.sectors as u64]);
            words.extend(request.record);
        }
        words
    }

    /// Reads what [`words`](Self::words) gave, and how much that was.
    pub(super) fn of_words(words: &[u64]) -> Option<(Self, usize)> {
        let &[next_id, count, wait, from, sector, number, value, read_number, read_value, failed, ref rest @ ..] =
            words
        else {
            return None;
        };
        let wait = match wait {
            0 => Wait::Nothing,
            1 => Wait::Commit {
                from,
                sector: sector as usize,
                record: [number, value],
                read: [read_number, read_value],
                failed: failed != 0,
            },
            _ => Wait::Load { from },
        };
        let operations = [DiskOperation::Read, DiskOperation::Write, DiskOperation::Zero, DiskOperation::Flush];
        let in_flight: Vec<_> = rest
            .chunks_exact(6)
            .take(count as usize)
            .map(|words| InFlight {
                id: words[0],
                operation: operations[words[1] as usize % operations.len()],
                sector: words[2] as usize,
                sectors: words[3] as usize,
                record: [words[4], words[5]],
            })
            .collect();
        let used = 10 + 6 * in_flight.len();
        Some((Self { next_id, in_flight, wait, unasked: 0 }, used))
    }
}

/// Where a sector's record is in the guest's memory.
fn word_of(sector: usize) -> usize {
    DISK + sector * WORDS
}

impl Guest {
    /// A client's record is to become durable; the job ends when it is.
    pub(super) fn commit(&mut self, client: u64, record: Record) -> bool {
        let sector = client as usize % SECTORS;
        let old = [0, 1].map(|word| self.word(word_of(sector) + word));
        let Some(disk) = &mut self.disk else { return false };
        disk.commit(sector, old, record);
        true
    }

    /// What the disk says that was committed, once that is so.
    pub(super) fn take_committed(&mut self) -> Option<u64> {
        let disk = self.disk.as_mut()?;
        match core::mem::replace(&mut disk.wait, Wait::Nothing) {
            Wait::Commit { read, .. } => Some(read[1]),
            other => {
                disk.wait = other;
                None
            }
        }
    }

    /// All that was remembered is gone, and read from the disk again.
    pub(super) fn forget_all(&mut self) -> bool {
        let Some(disk) = &mut self.disk else { return false };
        disk.load();
        (0..RECORDS).for_each(|word| self.write(word, 0));
        true
    }

    /// Requests ended; `false` when one of them was never made, or has ended before.
    pub(super) fn disk_done(&mut self, ends: &[DiskEnd]) -> bool {
        ends.iter().all(|end| self.end(end))
    }

    fn end(&mut self, end: &DiskEnd) -> bool {
        let Some(disk) = &mut self.disk else { return false };
        let Some(at) = disk.in_flight.iter().position(|request| request.id == end.id) else { return false };
        let InFlight { id, operation, sector, record, .. } = disk.in_flight.remove(at);
        let done = end.status == DiskStatus::Done;
        if done && operation == DiskOperation::Write {
            self.write(word_of(sector), record[0]);
            self.write(word_of(sector) + 1, record[1]);
        }
        let content = [self.word(word_of(sector)), self.word(word_of(sector) + 1)];
        let Some(disk) = &mut self.disk else { return false };
        match &mut disk.wait {
            Wait::Commit { from, sector, record, read, failed } if id >= *from => {
                *failed |= !done;
                if operation == DiskOperation::Read {
                    *read = content;
                }
                let (again, sector, record, from) = (*failed, *sector, *record, *from);
                let is_last = disk.in_flight.iter().all(|request| request.id < from);
                match (is_last, again) {
                    (true, true) => disk.commit(sector, content, record),
                    (true, false) => self.go_on(),
                    (false, _) => {}
                }
            }
            Wait::Load { from } if id >= *from && done => {
                disk.wait = Wait::Nothing;
                self.remember();
                self.go_on();
            }
            Wait::Load { from } if id >= *from => disk.load(),
            // Nobody waits for it since a reset.
            _ => {}
        }
        true
    }

    fn remember(&mut self) {
        let mut newest = 0;
        for sector in 0..SECTORS {
            let [number, value] = [0, 1].map(|word| self.word(word_of(sector) + word));
            self.write(2 + 2 * sector, number);
            self.write(3 + 2 * sector, value);
            newest = newest.max(value);
        }
        self.write(0, newest);
    }

    /// The job that waited for the disk ends at the next tick.
    fn go_on(&mut self) {
        let next = self.position + 1;
        if let Some(job) = self.job.as_mut().filter(|job| job.done_at == NEVER) {
            job.done_at = next;
        }
    }
}
