//! The modelled guest: a service that counts, and a chain of all that it saw.
//!
//! Its state is a function of its first state and of the entries applied to it, each at its position. A frame of it
//! carries the chain, so that two frames are equal only if everything before them was. It runs in ticks, but only
//! blocks of ticks, entries and its own events are hashed: what lies between changes nothing.

mod disk;
mod driven;

use crate::frame::{NO_CLIENT, POWER_OFF, RESET, Reply, Request};
use crate::rng::mix;
use disk::Disk;
pub(crate) use driven::Driven;
use pollux_driver::clock::{GuestClock, GuestTime, RATE_ONE};
use pollux_driver::pages::{PAGE_SIZE, PageSet};
use pollux_ft::{Control, EntryRef, Position, disk::decode};
use std::collections::VecDeque;

/// Pages of guest memory.
pub(crate) const PAGES: u64 = 17;
const BYTES: usize = (PAGES * PAGE_SIZE) as usize;
const WORDS: usize = BYTES / 8;
/// Words in a page.
const PAGE: usize = PAGE_SIZE as usize / 8;
/// The first word of the disk, which is the last page; what lies before is RAM.
const DISK: usize = WORDS - PAGE;
/// When a job ends that waits for the disk.
const NEVER: u64 = u64::MAX;
/// Words of memory that hold the counter and the clients' last requests; the others are scribbled on.
const RECORDS: usize = 64;
/// Ticks between two steps of the chain.
const BLOCK: u64 = 8192;
/// Requests that wait at most; more are dropped, as by any server.
const QUEUE: usize = 32;
/// Guest time for a tick of a guest that runs as fast as most: a microsecond.
const USUAL_RATE: u64 = 1000 * RATE_ONE;

/// Why the guest stopped running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It stands where it was to go.
    Target,
    /// It made this frame.
    Frame(Vec<u8>),
    /// It has nothing to do and sleeps.
    Asleep,
    /// It switched itself off.
    PowerOff,
    /// It wants to be reset.
    Reset,
}

/// What the guest is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Job {
    done_at: u64,
    request: Request,
}

/// The guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    position: u64,
    chain: u64,
    clock: GuestClock,
    /// Guest time of its next timer.
    alarm: u64,
    /// Ticks that a request takes at most.
    work: u64,
    /// It computes without end; else it sleeps when it has nothing to do.
    busy: bool,
    off: bool,
    wants_reset: bool,
    frames: u64,
    job: Option<Job>,
    queue: VecDeque<Request>,
    disk: Option<Disk>,
    memory: Vec<u8>,
    /// Pages written since they were last asked for, if anybody wants to know. Not part of the state.
    dirty: Option<PageSet>,
}

/// Guest time between two alarms, in nanoseconds.
const ALARM: u64 = 60_000_000;

impl Guest {
    /// A guest that was just booted, with something in every page of RAM but the last.
    pub(crate) fn booted(busy: bool, work: u64) -> Self {
        let used = RECORDS..DISK - PAGE;
        let words = (0..WORDS).map(|word| if used.contains(&word) { mix(word as u64, work) } else { 0 });
        let memory = words.flat_map(u64::to_le_bytes).collect();
        Self { busy, work, memory, clock: GuestClock::new(USUAL_RATE), alarm: ALARM, ..Self::empty() }
    }

    /// The same with a disk, on which nothing is.
    pub(crate) fn with_disk(self) -> Self {
        Self { disk: Some(Disk::new()), ..self }
    }

    /// No guest: memory of zeros.
    pub(crate) fn empty() -> Self {
        Self {
            position: 0,
            chain: 0,
            clock: GuestClock::new(0),
            alarm: 0,
            work: 1,
            busy: false,
            off: false,
            wants_reset: false,
            frames: 0,
            job: None,
            queue: VecDeque::new(),
            disk: None,
            memory: vec![0; BYTES],
            dirty: None,
        }
    }

    /// Guest time in nanoseconds.
    fn time(&self) -> u64 {
        self.clock.time_at(Position(self.position)).0
    }

    /// It has nothing to do.
    fn is_asleep(&self) -> bool {
        !self.busy && self.job.is_none_or(|job| job.done_at == NEVER) && !self.off && !self.wants_reset
    }

    /// It waits for its disk.
    fn waits_for_disk(&self) -> bool {
        self.job.is_some_and(|job| job.done_at == NEVER)
    }

    /// Where the alarm rings if nothing is changed.
    fn alarm_position(&self) -> u64 {
        self.clock.position_at(GuestTime(self.alarm)).map_or(u64::MAX, |at| at.0).max(self.position + 1)
    }

    /// Where something happens next by itself.
    fn next_event(&self) -> u64 {
        self.alarm_position().min(self.job.map_or(u64::MAX, |job| job.done_at))
    }

    /// Runs to `target` or to the next event, exactly.
    fn run(&mut self, target: u64) -> Stop {
        if self.off {
            return Stop::PowerOff;
        }
        if self.wants_reset {
            return Stop::Reset;
        }
        if self.is_asleep() {
            return Stop::Asleep;
        }
        if target <= self.position {
            return Stop::Target;
        }
        let event = self.next_event();
        self.advance(event.min(target));
        if self.position == event { self.happen() } else { Stop::Target }
    }

    fn advance(&mut self, to: u64) {
        for block in self.position / BLOCK + 1..=to / BLOCK {
            self.chain = mix(self.chain, block);
        }
        self.position = to;
    }

    /// The event of this position: the job's end goes before the alarm.
    fn happen(&mut self) -> Stop {
        match self.job {
            Some(job) if job.done_at == self.position => {
                self.job = None;
                let reply = match self.take_committed() {
                    Some(value) => Some(self.frame(job.request.client, job.request.number, value)),
                    None => self.finish(job.request),
                };
                if self.job.is_none()
                    && let Some(next) = self.queue.pop_front()
                {
                    self.start(next);
                }
                if self.off {
                    return Stop::PowerOff;
                }
                if self.wants_reset {
                    return Stop::Reset;
                }
                reply.map_or(Stop::Target, Stop::Frame)
            }
            _ => {
                self.alarm = self.time().max(self.alarm) + ALARM;
                Stop::Frame(self.frame(NO_CLIENT, 0, 0))
            }
        }
    }

    fn start(&mut self, request: Request) {
        let done_at = self.position + 1 + self.chain % self.work;
        self.job = Some(Job { done_at, request });
    }

    /// Counts, once for each request, and answers.
    fn finish(&mut self, request: Request) -> Option<Vec<u8>> {
        if request.number == POWER_OFF {
            self.off = true;
            return None;
        }
        if request.number == RESET {
            self.wants_reset = true;
            return None;
        }
        if request.client == NO_CLIENT {
            return Some(self.frame(NO_CLIENT, 0, 0));
        }
        let record = 2 + 2 * (request.client as usize % ((RECORDS - 2) / 2));
        if request.number > self.word(record) {
            self.write(0, self.word(0) + 1);
            self.write(record, request.number);
            self.write(record + 1, self.word(0));
            if self.commit(request.client, [request.number, self.word(0)]) {
                self.job = Some(Job { done_at: NEVER, request });
                return None;
            }
        }
        let current = request.number == self.word(record);
        current.then(|| self.frame(request.client, request.number, self.word(record + 1)))
    }

    fn frame(&mut self, client: u64, number: u64, value: u64) -> Vec<u8> {
        let (index, time) = (self.frames, self.time());
        self.frames += 1;
        self.chain = mix(self.chain, mix(index, value));
        Reply { index, chain: self.chain, time, client, number, value }.encode()
    }

    fn write(&mut self, word: usize, value: u64) {
        self.memory[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
        if let Some(dirty) = &mut self.dirty {
            dirty.insert((word / PAGE) as u64);
        }
    }

    fn word(&self, word: usize) -> u64 {
        u64::from_le_bytes(self.memory[word * 8..][..8].try_into().expect("eight bytes"))
    }

    /// Sees an entry at this position; `false` when guest time would run backwards.
    fn apply(&mut self, entry: &EntryRef<'_>) -> bool {
        let seen = match *entry {
            EntryRef::PacketIn(data) => {
                self.receive(data);
                data.iter().fold(data.len() as u64, |sum, byte| mix(sum, u64::from(*byte)))
            }
            EntryRef::ConsoleIn(data) => data.iter().fold(1, |sum, byte| mix(sum, u64::from(*byte))),
            EntryRef::Clock { base_ns, rate } => {
                if self.clock.steer(Position(self.position), GuestTime(base_ns), rate).is_err() {
                    return false;
                }
                if self.is_asleep() && base_ns >= self.alarm {
                    self.alarm = base_ns + ALARM;
                    if !self.waits_for_disk() {
                        self.start(Request { client: NO_CLIENT, number: 0 });
                    }
                }
                mix(base_ns, rate)
            }
            EntryRef::Control(Control::Reset) => {
                self.queue.clear();
                let request = Request { client: NO_CLIENT, number: 0 };
                self.job = self.forget_all().then_some(Job { done_at: NEVER, request });
                self.wants_reset = false;
                2
            }
            EntryRef::DiskDone(data) => {
                let Ok(ends) = decode(data) else { return false };
                if !self.disk_done(&ends) {
                    return false;
                }
                ends.iter().fold(3, |sum, end| mix(sum, end.id << 1 | end.status as u64))
            }
            EntryRef::Control(_) | EntryRef::Horizon | EntryRef::Output | EntryRef::Digest { .. } => return true,
        };
        self.chain = mix(self.chain, mix(seen, self.position));
        let word = RECORDS + (self.chain % (DISK - RECORDS) as u64) as usize;
        // One page in eight becomes all zeros again from time to time.
        let value = if self.chain >> 61 == 0 { 0 } else { seen };
        self.write(word, value);
        true
    }

    fn receive(&mut self, frame: &[u8]) {
        let Some(request) = Request::decode(frame) else { return };
        if request.number == RESET && self.waits_for_disk() {
            // As by a button: what is in flight stays so.
            self.wants_reset = true;
            return;
        }
        if self.job.is_none() {
            self.start(request);
        } else if self.queue.len() < QUEUE {
            self.queue.push_back(request);
        }
    }

    /// A hash of everything but memory.
    pub(crate) fn machine_digest(&self) -> u64 {
        self.save_words().fold(self.queue.len() as u64, mix)
    }

    fn save_words(&self) -> impl Iterator<Item = u64> {
        let job = self.job.map_or([0; 3], |job| [job.done_at, job.request.client, job.request.number]);
        let flags = [self.busy, self.off, self.job.is_some(), self.wants_reset, self.disk.is_some()];
        let flags = flags.iter().rev().fold(0, |flags, flag| flags << 1 | u64::from(*flag));
        let fixed = [
            self.position,
            self.chain,
            self.clock.base().0,
            self.clock.base_position().0,
            self.clock.rate(),
            self.alarm,
            self.work,
            flags,
            self.frames,
        ];
        let disk = self.disk.iter().flat_map(Disk::words);
        let queue = self.queue.iter().flat_map(|request| [request.client, request.number]);
        fixed.into_iter().chain(job).chain(disk).chain(queue)
    }

    /// Everything but memory, as bytes.
    fn save(&self) -> Vec<u8> {
        self.save_words().flat_map(u64::to_le_bytes).collect()
    }

    /// Takes what [`save`](Self::save) gave; `false` when it is not that.
    fn load(&mut self, bytes: &[u8]) -> bool {
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect();
        let Some((fixed, rest)) = words.split_first_chunk::<12>() else { return false };
        let [position, chain, base, base_position, rate, alarm, work, flags, frames, done_at, client, number] = *fixed;
        let job = Job { done_at, request: Request { client, number } };
        let (disk, rest) = match flags & 16 != 0 {
            true => match Disk::of_words(rest) {
                Some((disk, used)) => (Some(disk), &rest[used..]),
                None => return false,
            },
            false => (None, rest),
        };
        *self = Self {
            position,
            chain,
            clock: GuestClock::at(GuestTime(base), Position(base_position), rate),
            alarm,
            work,
            frames,
            busy: flags & 1 != 0,
            off: flags & 2 != 0,
            wants_reset: flags & 8 != 0,
            job: (flags & 4 != 0).then_some(job),
            queue: rest.chunks_exact(2).map(|pair| Request { client: pair[0], number: pair[1] }).collect(),
            disk,
            memory: core::mem::take(&mut self.memory),
            dirty: None,
        };
        true
    }

    /// Turns a bit, of the chain or of memory that nobody uses: a fault that only digests find.
    pub(crate) fn flip(&mut self, bit: u64) {
        match bit / 64 % 8 {
            0 => self.chain ^= 1 << (bit % 64),
            unused => self.memory[(RECORDS - unused as usize) * 8 + (bit % 64 / 8) as usize] ^= 1 << (bit % 8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(guest: &mut Guest, target: u64) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while guest.position < target {
            match guest.run(target) {
                Stop::Frame(frame) => frames.push(frame),
                Stop::Target => {}
                Stop::Asleep | Stop::PowerOff | Stop::Reset => break,
            }
        }
        frames
    }

    #[test]
    fn the_same_entries_at_the_same_positions_give_the_same_guest() {
        let request = Request { client: 1, number: 1 }.encode(9);
        let mut guests = [Guest::booted(true, 500), Guest::booted(true, 500)];
        // One runs in small steps, the other in large ones.
        let made = [7, 100_000].map(|step| {
            let guest = &mut guests[usize::from(step > 7)];
            let mut made = Vec::new();
            for position in [5_000, 70_000] {
                while guest.position < position {
                    made.extend(frames(guest, position.min(guest.position + step)));
                }
                assert!(guest.apply(&EntryRef::PacketIn(&request)));
            }
            made.extend(frames(guest, 90_000));
            made
        });
        assert_eq!(made[0], made[1]);
        assert_eq!(guests[0], guests[1]);
        let values: Vec<_> = made[0].iter().filter_map(|frame| Reply::decode(frame)).map(|reply| reply.value).collect();
        assert_eq!(values, [1, 0, 1], "the repeated request counts once, the alarm is between");
    }

    #[test]
    fn a_tick_more_or_less_is_seen() {
        let request = Request { client: 1, number: 1 }.encode(0);
        let [a, b] = [5_000, 5_001].map(|position| {
            let mut guest = Guest::booted(true, 500);
            frames(&mut guest, position);
            guest.apply(&EntryRef::PacketIn(&request));
            frames(&mut guest, 9_000);
            guest.machine_digest()
        });
        assert_ne!(a, b);
    }

    #[test]
    fn a_guest_survives_its_transfer() {
        let mut guest = Guest::booted(false, 500);
        for number in 1..4 {
            guest.apply(&EntryRef::PacketIn(&Request { client: number, number }.encode(0)));
        }
        let mut copy = Guest::empty();
        copy.memory.copy_from_slice(&guest.memory);
        assert!(copy.load(&guest.save()));
        assert_eq!(copy, guest);
        copy.flip(77);
        assert_ne!(copy, guest);
        assert!(!copy.load(&[0; 40]));
    }

    #[test]
    fn a_sleeping_guest_is_woken_by_its_clock_only() {
        let mut guest = Guest::booted(false, 50);
        assert_eq!(guest.run(100), Stop::Asleep);
        assert!(guest.apply(&EntryRef::Clock { base_ns: ALARM - 1, rate: USUAL_RATE }));
        assert_eq!(guest.run(100), Stop::Asleep);
        assert!(guest.apply(&EntryRef::Clock { base_ns: ALARM, rate: USUAL_RATE }));
        assert!(matches!(guest.run(100), Stop::Frame(_)));
        assert_eq!(guest.run(200), Stop::Asleep);
    }

    #[test]
    fn a_guest_that_wants_a_reset_does_nothing_else() {
        let mut guest = Guest::booted(true, 50);
        guest.apply(&EntryRef::PacketIn(&Request { client: 0, number: RESET }.encode(0)));
        assert_eq!(guest.run(100), Stop::Reset);
        let position = guest.position;
        assert_eq!((guest.run(200), guest.position), (Stop::Reset, position));
        assert!(guest.apply(&EntryRef::Control(Control::Reset)));
        assert_eq!(guest.run(200), Stop::Target);
    }
}
