//! The exact-stop property test on the machine itself (`role=stops`): the same guest runs twice and is stopped at the
//! same thousands of random positions. Each stop must land exactly, and the guest must look the same both times.
//!
//! The second run is disturbed: it makes extra stops in between and takes the wall clock's interrupts, neither of which
//! may leave a trace. In the first the clock's line moves as often, without an interrupt: none of them has been acknowledged.
//! With `transfer=stop` the first run's state is saved at some stops, as a primary's, and the second run's is loaded, as a
//! backup's: nothing of what the CPU and the devices hold may be missing from it.

use alloc::vec::Vec;
use core::fmt;

use pollux_ft::Position;
use xxhash_rust::xxh64::xxh64;

use crate::config::Config;
use crate::guest::{Guest, Outline, Stop};
use crate::host::clock::WallClock;
use crate::host::{interrupts, logger};
use crate::platform::{GuestTime, Outputs, PowerEvent};

/// Ticks between two stops are below one of these, in turn: neighbours, one loop, far away.
const GAPS: [u64; 4] = [4, 60, 5_000, 400_000];
/// Memory is hashed at every so many stops; the machine's state at each.
const MEMORY_EVERY: u64 = 50;
/// The state is transferred at one of so many stops.
const TRANSFER_EVERY: u64 = 4;

/// A splitmix64 generator: small, seeded, and good enough to choose stops.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// Console output goes to the log once; frames go nowhere.
struct Sink<'a> {
    line: &'a mut Vec<u8>,
    quiet: bool,
}

impl Outputs for Sink<'_> {
    fn frame(&mut self, _: &[u8]) {}

    fn console(&mut self, bytes: &[u8]) {
        for &byte in bytes.iter().filter(|_| !self.quiet) {
            if byte == b'\n' {
                log::info!("guest: {}", core::str::from_utf8(self.line).unwrap_or("?").trim_end());
                self.line.clear();
            } else if self.line.len() < 200 {
                self.line.push(byte);
            }
        }
    }

    fn power(&mut self, _: PowerEvent) {}
}

/// What the guest looked like at a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    position: Position,
    machine: u64,
    memory: Option<u64>,
    /// For whoever looks into a difference.
    outline: Outline,
}

impl Seen {
    /// A hash of what was seen up to here and this: equal for the same seed, on every machine with the same CPU.
    fn add_to(&self, digest: u64) -> u64 {
        let words = [self.position.0, self.machine, self.memory.unwrap_or(0)];
        words.iter().fold(digest, |digest, word| xxh64(&word.to_le_bytes(), digest))
    }
}

/// Why the test failed.
enum Failure {
    /// A run ended somewhere else than at its stop.
    Ended { target: Position, position: Position, stop: Stop },
    /// The guest waits for an interrupt that nothing will send.
    Asleep { position: Position },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { target, position, stop } => {
                write!(f, "the run to {target} ended at {position} with {stop:?}")
            }
            Self::Asleep { position } => write!(f, "the guest sleeps for ever at {position}"),
        }
    }
}

/// Runs the test on `guest` and prints the verdict, a line that begins with `stops: PASS` or `stops: FAIL`. Never returns.
pub fn run(mut guest: Guest, config: &Config, mut clock: WallClock) -> ! {
    clock.hurry();
    let verdict = compare(&mut guest, config, clock);
    match verdict {
        Ok(summary) => logger::raw(format_args!("stops: PASS {summary}")),
        Err(reason) => logger::raw(format_args!(
            "stops: FAIL {reason}; reproduce with stops={} seed={}",
            config.stops, config.seed
        )),
    }
    loop {
        interrupts::wait();
    }
}

fn compare(
    guest: &mut Guest,
    config: &Config,
    clock: WallClock,
) -> Result<alloc::string::String, alloc::string::String> {
    let start = Snapshot::take(guest);
    let first = record(guest, config, None).map_err(|failure| alloc::format!("first run: {failure}"))?;
    start.restore(guest);
    let second =
        record(guest, config, Some((clock, &start))).map_err(|failure| alloc::format!("second run: {failure}"))?;
    if let Some(index) = (0..first.len()).find(|&index| first[index] != second[index]) {
        return Err(alloc::format!("stop {index} differs: {:?} against {:?}", first[index], second[index]));
    }
    let last = first.last().map_or(Position(0), |seen| seen.position);
    let digest = first.iter().fold(0, |digest, seen| seen.add_to(digest));
    let exits: u64 = guest.exits().0.iter().sum();
    Ok(alloc::format!(
        "{} stops exact and equal in two runs, digest {digest:016x}, {last} ticks each, {exits} exits, seed {}, exits by kind {:?}",
        first.len(),
        config.seed,
        guest.exits().0
    ))
}

fn record(guest: &mut Guest, config: &Config, disturbed: Option<(WallClock, &Snapshot)>) -> Result<Vec<Seen>, Failure> {
    let (mut clock, other) = disturbed.unzip();
    let mut random = Random(config.seed);
    let mut noise = Random(!config.seed);
    let mut seen = Vec::with_capacity(config.stops as usize);
    let mut line = Vec::new();
    for round in 0..config.stops {
        let gap = 1 + random.below(GAPS[round as usize % GAPS.len()]);
        let target = guest.position().after(gap);
        let mut sink = Sink { line: &mut line, quiet: clock.is_some() };
        if clock.is_some() && gap > 1 {
            let between = guest.position().after(1 + noise.below(gap - 1));
            go(guest, between, &mut sink, &mut clock)?;
        }
        go(guest, target, &mut sink, &mut clock)?;
        if config.transfer_stops && random.below(TRANSFER_EVERY) == 0 {
            let machine = guest.save();
            if let Some(other) = other {
                // What is not in the state would be that of another one.
                guest.load(&other.machine).expect("a state that was just saved loads");
                guest.load(&machine).expect("a state that was just saved loads");
            }
        }
        let memory = (round % MEMORY_EVERY == 0).then(|| hash_memory(guest));
        let outline = guest.outline();
        seen.push(Seen { position: guest.position(), machine: guest.hash(), memory, outline });
    }
    Ok(seen)
}

/// Runs to exactly `target`; a guest that sleeps is woken by its own next deadline.
fn go(guest: &mut Guest, target: Position, sink: &mut Sink<'_>, clock: &mut Option<WallClock>) -> Result<(), Failure> {
    loop {
        match guest.run(target, sink) {
            Stop::Target if guest.position() == target && guest.is_settled() => return Ok(()),
            Stop::Host | Stop::Output => {
                interrupts::take_fired();
                if let Some(clock) = clock {
                    clock.poll();
                }
            }
            Stop::Halted => {
                let position = guest.position();
                let deadline = guest.platform.next_deadline().ok_or(Failure::Asleep { position })?;
                let (time, rate) = (deadline.max(guest.now()), guest.platform.clock().rate());
                // Not before the current guest time: cannot fail.
                let _ = guest.steer_clock(GuestTime(time.0), rate);
            }
            stop => return Err(Failure::Ended { target, position: guest.position(), stop }),
        }
    }
}

fn hash_memory(guest: &Guest) -> u64 {
    xxh64(guest.memory.all(), 0)
}

/// The guest as it was: state and all pages that are not zero.
struct Snapshot {
    machine: Vec<u8>,
    pages: Vec<(u64, Vec<u8>)>,
}

impl Snapshot {
    fn take(guest: &mut Guest) -> Self {
        let machine = guest.save();
        let pages = guest.memory.used_pages().map(|(start, page)| (start, page.to_vec())).collect();
        Self { machine, pages }
    }

    fn restore(&self, guest: &mut Guest) {
        (0..guest.memory.pages()).for_each(|page| guest.memory.clear_page(page));
        for (start, page) in &self.pages {
            let place = guest.memory.all_mut(*start, page.len() as u64).expect("the page came from this memory");
            place.copy_from_slice(page);
        }
        guest.load(&self.machine).expect("a state that was just saved loads");
    }
}
