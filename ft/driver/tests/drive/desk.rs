//! A machine around a guest: a gate, a link, a line and a disk that do as a test says, and write down what they are told.

use super::toy::Toy;
use pollux_driver::{
    ArbiterLine, Boundary, Clock, CopyState, Disk, DiskEnd, DiskRequest, Driver, Event, LogLink, Observer, Outlet,
};
use pollux_ft::{Position, Seq, Term, Time};
use std::collections::VecDeque;

/// The date, which the machine has from elsewhere.
pub const DATE: u64 = 1_796_000_000;

/// What becomes of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Closed,
    Retained,
    Held,
    Open,
}

/// The machine.
#[derive(Debug)]
pub struct Desk {
    pub now: u64,
    pub mode: Mode,
    /// Frames without a mark, and where the first of them was noticed.
    pub unsealed: Vec<Vec<u8>>,
    since: Option<Position>,
    /// Frames that wait for an entry, or are retained up to a position.
    pub held: Vec<(u64, Vec<u8>)>,
    /// Frames that may leave.
    pub ready: Vec<(u64, Vec<u8>)>,
    /// Frames that left.
    pub left: Vec<Vec<u8>>,
    sent: Option<Seq>,
    /// The card takes nothing.
    pub stuck: bool,
    /// There is no room for frames.
    pub full: bool,
    pub console: Vec<u8>,
    pub inputs: VecDeque<Vec<u8>>,
    pub announcements: usize,
    /// Microseconds that it takes to open the gate.
    pub open_takes: u64,
    /// Datagrams and bytes on their way to the twin.
    pub datagrams: Vec<Vec<u8>>,
    pub stream: Vec<u8>,
    /// Bytes that the link holds at most.
    pub window: usize,
    /// The stream was closed from here; and how often it was.
    pub hung_up: bool,
    pub hang_ups: usize,
    pub flushes: usize,
    pub asked: Vec<Term>,
    /// Requests at work, ends to be told, and when.
    pub begun: Vec<DiskRequest>,
    pub ends: VecDeque<DiskEnd>,
    pub disk_ends_at: Option<u64>,
    /// What is on the drive, if there is one; what it has read; which block it cannot read.
    pub drive: Vec<u8>,
    fetched: VecDeque<(u64, Option<Vec<u8>>)>,
    pub unreadable: Option<u64>,
    /// How far the copy to it is, and whether it is refused.
    pub copy: CopyState,
    pub refuses_copy: bool,
    /// How far the drive is with saying whose it is, and whether the guest must not live on it.
    pub reign: CopyState,
    pub refuses_reign: bool,
    pub forgotten_fetches: usize,
    pub reigns: Vec<(Term, bool)>,
    pub forgotten_disks: usize,
    pub forgotten_inputs: usize,
    /// What was observed, in words.
    pub events: Vec<String>,
    /// The power fails here.
    pub power: Option<Boundary>,
}

impl Desk {
    pub fn new(now: u64) -> Self {
        Self {
            now,
            mode: Mode::Closed,
            unsealed: Vec::new(),
            since: None,
            held: Vec::new(),
            ready: Vec::new(),
            left: Vec::new(),
            sent: None,
            stuck: false,
            full: false,
            console: Vec::new(),
            inputs: VecDeque::new(),
            announcements: 0,
            open_takes: 0,
            datagrams: Vec::new(),
            stream: Vec::new(),
            window: usize::MAX,
            hung_up: false,
            hang_ups: 0,
            flushes: 0,
            asked: Vec::new(),
            begun: Vec::new(),
            ends: VecDeque::new(),
            disk_ends_at: None,
            drive: Vec::new(),
            fetched: VecDeque::new(),
            unreadable: None,
            copy: CopyState::Done,
            refuses_copy: false,
            reign: CopyState::Done,
            refuses_reign: false,
            forgotten_fetches: 0,
            reigns: Vec::new(),
            forgotten_disks: 0,
            forgotten_inputs: 0,
            events: Vec::new(),
            power: None,
        }
    }

    /// Whether these were observed in this order, each with words that begin so.
    pub fn saw(&self, order: &[&str]) -> bool {
        let mut wanted = order.iter().peekable();
        for event in &self.events {
            wanted.next_if(|what| event.starts_with(**what));
        }
        wanted.peek().is_none()
    }

    /// How often something was observed whose words begin so.
    pub fn count(&self, what: &str) -> usize {
        self.events.iter().filter(|event| event.starts_with(what)).count()
    }

    fn all_ready(&mut self) {
        self.ready.append(&mut self.held);
        self.ready.extend(self.unsealed.drain(..).map(|frame| (0, frame)));
        self.since = None;
    }
}

impl Clock for Desk {
    fn now(&mut self) -> Time {
        Time(self.now)
    }

    fn unix_time(&mut self) -> u64 {
        DATE
    }
}

impl Outlet for Desk {
    fn transmit(&mut self, frame: &[u8]) {
        match self.mode {
            Mode::Closed => {}
            Mode::Open => self.ready.push((0, frame.to_vec())),
            Mode::Held | Mode::Retained => self.unsealed.push(frame.to_vec()),
        }
    }

    fn console(&mut self, bytes: &[u8]) {
        self.console.extend_from_slice(bytes);
    }

    fn close(&mut self) {
        self.mode = Mode::Closed;
        (self.unsealed, self.held, self.ready, self.since) = Default::default();
    }

    fn retain(&mut self) {
        self.mode = Mode::Retained;
    }

    fn hold(&mut self) {
        self.all_ready();
        (self.mode, self.sent) = (Mode::Held, None);
    }

    fn open(&mut self) {
        self.all_ready();
        self.mode = Mode::Open;
        self.announcements += 1;
        self.now += self.open_takes;
        self.release();
    }

    fn announce(&mut self) {
        self.announcements += 1;
    }

    fn is_open(&self) -> bool {
        self.mode == Mode::Open
    }

    fn is_full(&self) -> bool {
        self.full
    }

    fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn unsealed(&self) -> usize {
        self.unsealed.len()
    }

    fn guest_at(&mut self, position: Position) {
        if !self.unsealed.is_empty() {
            self.since.get_or_insert(position);
        }
    }

    fn unsealed_since(&self) -> Option<Position> {
        self.since
    }

    fn seal(&mut self, entry: Seq) {
        assert!(!self.unsealed.is_empty(), "an entry for no frame");
        self.held.extend(self.unsealed.drain(..).map(|frame| (entry.0, frame)));
        self.since = None;
    }

    fn seal_at(&mut self, position: Position) {
        assert!(!self.unsealed.is_empty(), "a position for no frame");
        self.held.extend(self.unsealed.drain(..).map(|frame| (position.0, frame)));
    }

    fn acked(&mut self, entry: Seq) {
        self.ready.extend(self.held.extract_if(.., |(seq, _)| *seq <= entry.0));
    }

    fn released(&mut self, position: Position) {
        self.held.retain(|(at, _)| *at > position.0);
    }

    fn release(&mut self) {
        if !self.stuck {
            for (seq, frame) in self.ready.drain(..) {
                self.left.push(frame);
                self.sent = Some(Seq(seq)).filter(|_| seq > 0).or(self.sent);
            }
        }
    }

    fn sent(&self) -> Option<Seq> {
        self.sent
    }

    fn has_input(&self) -> bool {
        !self.inputs.is_empty()
    }

    fn next_input(&mut self) -> Option<Vec<u8>> {
        self.inputs.pop_front()
    }

    fn recycle(&mut self, _: Vec<u8>) {}

    fn put_back(&mut self, frame: Vec<u8>) {
        self.inputs.push_front(frame);
    }

    fn forget_input(&mut self) {
        self.inputs.clear();
        self.forgotten_inputs += 1;
    }
}

impl LogLink for Desk {
    fn send_datagram(&mut self, datagram: &[u8]) {
        self.datagrams.push(datagram.to_vec());
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.window.saturating_sub(self.stream.len()));
        self.stream.extend_from_slice(&bytes[..taken]);
        taken
    }

    fn flush(&mut self) {
        self.flushes += 1;
    }

    fn hang_up(&mut self, rest: &[u8]) -> usize {
        self.hung_up = true;
        self.hang_ups += 1;
        self.send(rest)
    }
}

impl ArbiterLine for Desk {
    fn ask(&mut self, term: Term) {
        self.asked.push(term);
    }

    fn withdraw(&mut self) {
        self.asked.clear();
    }
}

impl Disk for Desk {
    fn begin_on_disk(&mut self, request: &DiskRequest, _: &[u8]) {
        self.begun.push(*request);
    }

    fn poll_disk(&mut self, _: &mut Vec<u8>) -> Option<DiskEnd> {
        self.ends.pop_front()
    }

    fn disk_ends_at(&self) -> Option<Time> {
        self.disk_ends_at.map(Time)
    }

    fn forget_disk(&mut self) {
        self.forgotten_disks += 1;
    }

    fn drive_bytes(&self) -> u64 {
        self.drive.len() as u64
    }

    fn drive_reigns(&mut self, term: Term, creates: bool) -> Result<(), String> {
        self.reigns.push((term, creates));
        if self.refuses_reign { Err("not on this one".to_owned()) } else { Ok(()) }
    }

    fn reign_state(&self) -> CopyState {
        self.reign
    }

    fn drive_label(&self) -> Vec<u8> {
        vec![0x1A; 4096]
    }

    fn fetch(&mut self, start: u64, len: u64) {
        let mut bytes = vec![0; len as usize];
        let there = &self.drive[start as usize..self.drive.len().min((start + len) as usize)];
        bytes[..there.len()].copy_from_slice(there);
        let readable = self.unreadable != Some(start);
        // The later one comes first, as drives may have it.
        self.fetched.push_front((start, readable.then_some(bytes)));
    }

    fn fetched(&mut self) -> Option<(u64, Option<Vec<u8>>)> {
        self.fetched.pop_front()
    }

    fn forget_fetched(&mut self) {
        self.fetched.clear();
        self.forgotten_fetches += 1;
    }

    fn begin_copy(&mut self, label: &[u8]) -> Result<(), String> {
        assert_eq!(label, [0x1A; 4096]);
        if self.refuses_copy { Err("never".to_owned()) } else { Ok(()) }
    }

    fn store(&mut self, start: u64, len: u64, data: &[u8]) {
        let end = self.drive.len().min((start + len) as usize);
        let place = &mut self.drive[start as usize..end];
        if data.is_empty() { place.fill(0) } else { place.copy_from_slice(&data[..place.len()]) }
    }

    fn copy_state(&self) -> CopyState {
        self.copy
    }
}

impl Observer<Toy> for Desk {
    fn observe(&mut self, event: Event<'_>, _: &Driver<Toy>) {
        self.events.push(format!("{event:?}"));
    }

    fn goes_on(&mut self, at: Boundary) -> bool {
        self.power != Some(at)
    }
}
