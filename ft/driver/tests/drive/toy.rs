//! A guest that follows a script.

use pollux_driver::clock::{GuestClock, GuestTime, RATE_ONE};
use pollux_driver::pages::{PAGE_SIZE, PageSet};
use pollux_driver::{DiskRequest, Guest, Output, PowerEvent, Stop};
use pollux_ft::{Control, Entry, EntryRef, Position};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Pages of its memory.
pub const PAGES: u64 = 100;
/// Nanoseconds of guest time for a tick.
pub const TICK_NS: u64 = 100;

/// What a guest does when it has come to a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Frame(&'static [u8]),
    Console(&'static [u8]),
    /// Sleeps, until something comes or its deadline.
    Sleep,
    Off,
    Reset,
    Crash,
    Ask(DiskRequest),
    /// Fills a page of its memory.
    Fill(u64, u8),
}

/// The guest; twins have the same script.
#[derive(Debug, Clone)]
pub struct Toy {
    pub script: Vec<(u64, Step)>,
    /// Steps that were done.
    done: usize,
    pub position: u64,
    clock: GuestClock,
    memory: Vec<u8>,
    pub settled: bool,
    pub halted: bool,
    /// Guest time at which it wakes by itself.
    pub deadline: Option<u64>,
    pub asked: VecDeque<DiskRequest>,
    /// A part of its CPU that has no effect.
    pub flipped: u64,
    pub dirty: Option<PageSet>,
    /// Its host stops it here, once, away from an exact stop.
    pub interrupted_at: Option<u64>,
    /// All that was applied, and where.
    pub seen: Vec<(u64, Entry)>,
    /// Dates at which it began its life.
    pub began: Vec<u64>,
    /// Where it was to run to, run by run.
    pub targets: Vec<u64>,
    /// Shares of memory that are left to be made ready for a reset.
    pub shares: u32,
    /// Bytes that make its saved state longer.
    pub padding: usize,
    /// What is wrong with it.
    pub fault: Option<Fault>,
}

/// What can be wrong with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It takes no state.
    Load,
    /// It stands elsewhere after a load.
    Position,
    /// Its CPU is another after a load.
    Machine,
    /// It cannot be reset.
    Reset,
}

impl Toy {
    /// With a memory of zeros.
    pub fn new(script: &[(u64, Step)]) -> Self {
        Self {
            script: script.to_vec(),
            done: 0,
            position: 0,
            clock: GuestClock::new(TICK_NS * RATE_ONE),
            memory: vec![0; (PAGES * PAGE_SIZE) as usize],
            settled: true,
            halted: false,
            deadline: None,
            asked: VecDeque::new(),
            dirty: None,
            interrupted_at: None,
            seen: Vec::new(),
            began: Vec::new(),
            targets: Vec::new(),
            shares: 2,
            padding: 0,
            fault: None,
            flipped: 0,
        }
    }

    /// Has the rest of its memory no more.
    pub fn shrink(&mut self, pages: u64) {
        self.memory.truncate((pages * PAGE_SIZE) as usize);
    }

    /// Fills a page.
    pub fn fill(&mut self, page: u64, value: u8) {
        let start = (page * PAGE_SIZE) as usize;
        self.memory[start..start + PAGE_SIZE as usize].fill(value);
        if let Some(dirty) = &mut self.dirty {
            dirty.insert(page);
        }
    }

    /// The first byte of a page.
    pub fn page(&self, page: u64) -> u8 {
        self.memory[(page * PAGE_SIZE) as usize]
    }

    /// The positions at which entries of this kind were applied.
    pub fn seen_at(&self, kind: pollux_ft::Kind) -> Vec<u64> {
        self.seen.iter().filter(|(_, entry)| entry.borrow().kind() == kind).map(|(position, _)| *position).collect()
    }

    fn step(&mut self, step: Step, out: &mut impl Output) -> Option<Stop> {
        self.done += 1;
        match step {
            Step::Frame(frame) => {
                out.frame(frame);
                Some(Stop::Output)
            }
            Step::Console(text) => {
                out.console(text);
                None
            }
            Step::Sleep => {
                self.halted = true;
                None
            }
            Step::Off => Some(Stop::Power(PowerEvent::Off)),
            Step::Reset => Some(Stop::Power(PowerEvent::Reset)),
            Step::Crash => Some(Stop::Crashed),
            Step::Ask(request) => {
                self.asked.push_back(request);
                Some(Stop::Output)
            }
            Step::Fill(page, value) => {
                self.fill(page, value);
                None
            }
        }
    }
}

impl Guest for Toy {
    fn begin(&mut self, unix_time: u64) {
        assert_eq!(self.position, 0, "it has run");
        self.began.push(unix_time);
    }

    fn position(&self) -> Position {
        Position(self.position)
    }

    fn time(&self) -> GuestTime {
        self.clock.time_at(Position(self.position))
    }

    fn rate(&self) -> u64 {
        self.clock.rate()
    }

    fn is_settled(&self) -> bool {
        self.settled
    }

    fn next_stop(&self) -> Position {
        Position(self.position + u64::from(!self.settled))
    }

    fn is_idle(&self) -> bool {
        self.halted && self.deadline.is_none_or(|deadline| self.time().0 < deadline)
    }

    fn is_halted(&self) -> bool {
        self.halted
    }

    fn next_deadline(&self) -> Option<GuestTime> {
        self.deadline.map(GuestTime)
    }

    fn run(&mut self, target: Position, out: &mut impl Output) -> Stop {
        self.targets.push(target.0);
        if self.is_idle() {
            return Stop::Halted;
        }
        self.halted = false;
        if let Some(at) = self.interrupted_at.take_if(|at| (self.position..target.0).contains(at)) {
            (self.position, self.settled) = (at, false);
            return Stop::Host;
        }
        while self.position < target.0 {
            self.settled = true;
            match self.script.get(self.done) {
                Some(&(at, step)) if at <= target.0 => {
                    self.position = at;
                    if let Some(stop) = self.step(step, out) {
                        return stop;
                    }
                    if self.is_idle() && at < target.0 {
                        return Stop::Halted;
                    }
                }
                _ => self.position = target.0,
            }
        }
        Stop::Target
    }

    fn prepare_reset(&mut self) -> bool {
        self.shares = self.shares.saturating_sub(1);
        self.shares == 0
    }

    fn apply(&mut self, entry: &EntryRef<'_>) -> Result<(), String> {
        assert!(self.settled, "an entry away from an exact stop");
        match *entry {
            EntryRef::Clock { base_ns, rate } => {
                let steered = self.clock.steer(Position(self.position), GuestTime(base_ns), rate);
                steered.map_err(|error| error.to_string())?;
            }
            EntryRef::PacketIn(_) | EntryRef::ConsoleIn(_) | EntryRef::DiskDone(_) => self.halted = false,
            EntryRef::Control(Control::Reset) => {
                assert_eq!(self.shares, 0, "a reset before all is ready for it");
                if self.fault == Some(Fault::Reset) {
                    return Err("no reset today".to_owned());
                }
            }
            _ => {}
        }
        self.seen.push((self.position, entry.to_owned()));
        Ok(())
    }

    fn next_disk_request(&mut self) -> Option<DiskRequest> {
        self.asked.pop_front()
    }

    fn disk_data(&self, _: u64) -> &[u8] {
        &[]
    }

    fn disk_read_came(&mut self, _: u64, _: &[u8]) {}

    fn hash(&mut self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.done, self.halted, self.clock.rate(), self.clock.base(), self.flipped).hash(&mut hasher);
        hasher.finish()
    }

    fn memory(&self) -> &[u8] {
        &self.memory
    }

    fn memory_mut(&mut self, start: u64, len: u64) -> Option<&mut [u8]> {
        self.memory.get_mut(start as usize..)?.get_mut(..len as usize)
    }

    fn track_memory(&mut self) {
        self.dirty = Some(PageSet::new(PAGES));
    }

    fn stop_tracking(&mut self) {
        self.dirty = None;
    }

    fn take_dirty(&mut self) -> PageSet {
        self.dirty.as_mut().map_or_else(|| PageSet::new(0), |dirty| core::mem::replace(dirty, PageSet::new(PAGES)))
    }

    fn save(&mut self) -> Vec<u8> {
        let words = [
            self.position,
            self.done as u64,
            u64::from(self.halted),
            self.clock.base().0,
            self.clock.base_position().0,
            self.clock.rate(),
            self.deadline.unwrap_or(u64::MAX),
        ];
        let words = words.iter().flat_map(|word| word.to_le_bytes());
        words.chain((0..self.padding).map(|at| at as u8)).collect()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), String> {
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let &[position, done, halted, base, base_position, rate, deadline, ..] = &words[..] else {
            return Err(format!("{} bytes", bytes.len()));
        };
        if !bytes[56..].iter().enumerate().all(|(at, byte)| *byte == at as u8) {
            return Err("the padding is not what it was".to_owned());
        }
        if self.fault == Some(Fault::Load) {
            return Err("no state today".to_owned());
        }
        (self.position, self.done, self.halted, self.settled) = (position, done as usize, halted != 0, true);
        self.clock = GuestClock::at(GuestTime(base), Position(base_position), rate);
        self.deadline = (deadline != u64::MAX).then_some(deadline);
        self.position += u64::from(self.fault == Some(Fault::Position));
        self.flipped = u64::from(self.fault == Some(Fault::Machine));
        self.asked.clear();
        Ok(())
    }
}
