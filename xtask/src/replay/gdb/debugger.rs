//! What a debugger does with a recorded guest, forwards and backwards.
//!
//! A guest is a function of its first state and the log. So it goes back by being run again from the session's beginning, to
//! where it is to be; and the last time that it came to a stop is found by running it again with the stops, up to here.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use anyhow::Result;
pub use pollux_hypervisor::guest::Stops;

/// Why a machine has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It is where it was to run to.
    Arrived,
    /// The next instruction is the one at this address.
    Break(u64),
    /// The last instruction has changed watched memory at this address.
    Watch(u64),
    /// An input has, at this position.
    Input(u64),
    /// It was interrupted.
    Interrupted,
    /// It goes no further: why.
    Over(String),
}

/// Bytes of memory that one watchpoint may have, as many as a machine takes.
const MOST_WATCHED: u64 = 64;

/// A machine will not do what it was told, and is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the machine refuses: {}", self.0)
    }
}

impl Error for Refused {}

/// A machine with a recorded guest.
pub trait Machine {
    /// The positions where the recording begins and ends.
    fn bounds(&self) -> (u64, u64);

    /// Where the guest stands.
    fn position(&self) -> u64;

    /// Goes to the recording's beginning.
    fn rewind(&mut self) -> Result<()>;

    /// Runs to this position, which lies ahead, or to the first of the stops; or not so far, if it is `interrupted`.
    fn run(&mut self, until: u64, stops: Stops, interrupted: &mut dyn FnMut() -> bool) -> Result<Stop>;

    /// Sets the instructions, and the memory (address and length), to stop at, in place of those of before. The error is
    /// [`Refused`] if it cannot have these; then those of before are still set.
    fn set_stops(&mut self, breaks: &[u64], watches: &[(u64, u64)]) -> Result<()>;

    /// The registers by name.
    fn registers(&mut self) -> Result<BTreeMap<String, u64>>;

    /// Memory at an address of the guest's: fewer bytes where the rest is not mapped.
    fn read(&mut self, address: u64, len: u64) -> Result<Vec<u8>>;
}

/// Where an order has led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// A step is done.
    Stepped,
    /// To an instruction to stop at.
    Break(u64),
    /// To a change of watched memory: behind it, or before it when going back.
    Watch(u64),
    /// To where it was interrupted.
    Interrupted,
    /// To the beginning of the recording.
    Begin,
    /// To its end.
    End,
    /// To where it goes no further: why.
    Over(String),
}

/// A machine and what was set in it.
#[derive(Debug)]
pub struct Debugger<M> {
    /// The machine.
    pub machine: M,
    breaks: Vec<u64>,
    watches: Vec<(u64, u64)>,
    found: Found,
    /// The stop that led to where the machine stands, if inputs or events of this position may lie behind it.
    within: Option<Stop>,
}

/// Where going back would lead, as far as the recording was looked through.
#[derive(Debug, Default)]
struct Found {
    /// For these.
    stops: (Vec<u64>, Vec<(u64, u64)>),
    /// Up to this position.
    until: u64,
    /// In order.
    places: Vec<(u64, Halt)>,
}

impl Found {
    /// Those before a machine that stands at the position `now`, led there by the stop `within`.
    fn places_before(&self, now: u64, within: Option<&Stop>) -> &[(u64, Halt)] {
        let here = self.places.partition_point(|(position, _)| *position < now);
        let index = |halt: Halt| self.places[here..].iter().position(|place| *place == (now, halt.clone()));
        let more = match within {
            Some(Stop::Break(address)) => index(Halt::Break(*address)),
            // It stands behind that.
            Some(Stop::Input(address)) => index(Halt::Watch(*address)).map(|index| index + 1),
            _ => None,
        };
        &self.places[..here + more.unwrap_or(0)]
    }
}

/// Asked now and then whether to give up.
pub type Interrupted<'a> = &'a mut dyn FnMut() -> bool;

impl<M: Machine> Debugger<M> {
    /// Nothing is set.
    pub fn new(machine: M) -> Self {
        Self { machine, breaks: Vec::new(), watches: Vec::new(), found: Found::default(), within: None }
    }

    /// Adds or removes an instruction to stop at. The same may be there several times. Whether it can be; if not, all is as it
    /// was.
    ///
    /// # Errors
    /// When the machine cannot be told.
    pub fn set_break(&mut self, address: u64, on: bool) -> Result<bool> {
        self.change(|own| toggle(&mut own.breaks, address, on))
    }

    /// Adds or removes memory to stop at changes of. Whether it can be; if not, all is as it was.
    ///
    /// # Errors
    /// When the machine cannot be told.
    pub fn set_watch(&mut self, address: u64, len: u64, on: bool) -> Result<bool> {
        if !(1..=MOST_WATCHED).contains(&len) {
            return Ok(false);
        }
        self.change(|own| toggle(&mut own.watches, (address, len), on))
    }

    fn change(&mut self, change: impl FnOnce(&mut Self)) -> Result<bool> {
        let before = (self.breaks.clone(), self.watches.clone());
        change(self);
        let applied = self.apply_stops();
        if applied.is_err() {
            (self.breaks, self.watches) = before;
        }
        match applied {
            Err(error) if error.is::<Refused>() => Ok(false),
            applied => applied.map(|()| true),
        }
    }

    fn stops(&self) -> (Vec<u64>, Vec<(u64, u64)>) {
        let (mut breaks, mut watches) = (self.breaks.clone(), self.watches.clone());
        breaks.sort_unstable();
        breaks.dedup();
        watches.sort_unstable();
        watches.dedup();
        (breaks, watches)
    }

    fn apply_stops(&mut self) -> Result<()> {
        let (breaks, watches) = self.stops();
        self.machine.set_stops(&breaks, &watches)
    }

    fn is_at_end(&self) -> bool {
        self.machine.position() >= self.machine.bounds().1
    }

    /// Runs the machine, and remembers what led to where it stands then.
    fn run(&mut self, until: u64, stops: Stops, interrupted: Interrupted<'_>) -> Result<Stop> {
        let stop = self.machine.run(until, stops, interrupted)?;
        self.within = match stop {
            Stop::Break(_) | Stop::Input(_) | Stop::Interrupted => Some(stop.clone()),
            _ => None,
        };
        Ok(stop)
    }

    fn rewind(&mut self) -> Result<()> {
        self.within = None;
        self.machine.rewind()
    }

    /// One instruction, or one iteration of a string instruction.
    pub fn step(&mut self, interrupted: Interrupted<'_>) -> Result<Halt> {
        if self.is_at_end() {
            return Ok(Halt::End);
        }
        let stop = self.run(self.machine.position() + 1, Stops::Ahead, interrupted)?;
        Ok(halt(stop, Halt::Stepped))
    }

    /// To the next stop.
    pub fn go_on(&mut self, interrupted: Interrupted<'_>) -> Result<Halt> {
        if self.is_at_end() {
            return Ok(Halt::End);
        }
        let stop = self.run(self.machine.bounds().1, Stops::All, interrupted)?;
        Ok(halt(stop, Halt::End))
    }

    /// To a position, which lies within the recording, past all stops: before what the log has for it.
    pub fn go_to(&mut self, position: u64, interrupted: Interrupted<'_>) -> Result<Halt> {
        let now = self.machine.position();
        if position < now || position == now && self.within.is_some() {
            self.rewind()?;
        }
        if position == self.machine.position() {
            return Ok(Halt::Stepped);
        }
        let stop = self.run(position, Stops::None, interrupted)?;
        Ok(halt(stop, Halt::Stepped))
    }

    /// Back by one instruction. If it has changed watched memory, that is the halt.
    pub fn step_back(&mut self, interrupted: Interrupted<'_>) -> Result<Halt> {
        let position = self.machine.position();
        if position <= self.machine.bounds().0 {
            return Ok(Halt::Begin);
        }
        let after = self.watched()?;
        let halt = self.go_to(position - 1, interrupted)?;
        if halt != Halt::Stepped {
            return Ok(halt);
        }
        let before = self.watched()?;
        let changed = before.into_iter().zip(after).find(|(before, after)| before != after);
        Ok(changed.map_or(Halt::Stepped, |((address, _), _)| Halt::Watch(address)))
    }

    /// What is at the watched addresses.
    fn watched(&mut self) -> Result<Vec<(u64, Vec<u8>)>> {
        let (_, watches) = self.stops();
        watches.into_iter().map(|(address, len)| Ok((address, self.machine.read(address, len)?))).collect()
    }

    /// Back to the last stop before this position: to an instruction to stop at, or before a change of watched memory.
    /// Several may be at one position, with inputs and events between them: those of this one count that came before.
    pub fn go_back(&mut self, interrupted: Interrupted<'_>) -> Result<Halt> {
        let now = self.machine.position();
        let within = self.within.clone();
        let until = (now + u64::from(within.is_some())).min(self.machine.bounds().1);
        let known = self.found.until >= until && self.found.stops == self.stops();
        if !known && let Some(halt) = self.look_through(until, interrupted)? {
            return Ok(halt);
        }
        let last = self.found.places_before(now, within.as_ref()).last().cloned();
        let Some((position, found)) = last else {
            self.rewind()?;
            return Ok(Halt::Begin);
        };
        match self.land(position, &found, interrupted)? {
            Halt::Stepped => Ok(found),
            other => Ok(other),
        }
    }

    /// Finds all stops up to the position `now`, or says why it could not.
    fn look_through(&mut self, now: u64, interrupted: Interrupted<'_>) -> Result<Option<Halt>> {
        self.found = Found::default();
        self.rewind()?;
        let mut places: Vec<(u64, Halt)> = Vec::new();
        let mut stops = Stops::Ahead;
        while self.machine.position() < now {
            let stop = self.run(now, stops, interrupted)?;
            let position = self.machine.position();
            let place = match stop {
                Stop::Arrived => break,
                Stop::Break(address) => (position, Halt::Break(address)),
                Stop::Watch(address) => (position.saturating_sub(1), Halt::Watch(address)),
                Stop::Input(address) => (position, Halt::Watch(address)),
                other => return Ok(Some(halt(other, Halt::Stepped))),
            };
            stops = if matches!(place.1, Halt::Break(_)) { Stops::Ahead } else { Stops::All };
            // The instruction that changes something may be one to stop at: then that comes last on the way back.
            let at = places.partition_point(|(known, _)| *known <= place.0);
            places.insert(at, place);
        }
        self.found = Found { stops: self.stops(), until: now, places };
        Ok(None)
    }

    /// Goes to where a stop was found. An instruction that comes behind an event, such as the first of an interrupt's handler,
    /// is at the position of the one before which the event comes: it is the stop that leads there, and not the position.
    fn land(&mut self, position: u64, found: &Halt, interrupted: Interrupted<'_>) -> Result<Halt> {
        let Halt::Break(address) = *found else { return self.go_to(position, interrupted) };
        let before = position.saturating_sub(1).max(self.machine.bounds().0);
        let way = self.go_to(before, interrupted)?;
        if way != Halt::Stepped {
            return Ok(way);
        }
        self.machine.set_stops(&[address], &[])?;
        let stop = self.run(position + 1, Stops::Ahead, interrupted);
        self.apply_stops()?;
        match stop? {
            Stop::Arrived | Stop::Break(_) => Ok(Halt::Stepped),
            other => Ok(halt(other, Halt::Stepped)),
        }
    }
}

fn toggle<T: PartialEq>(set: &mut Vec<T>, what: T, on: bool) {
    match set.iter().position(|known| *known == what) {
        _ if on => set.push(what),
        Some(index) => drop(set.remove(index)),
        None => {}
    }
}

fn halt(stop: Stop, arrived: Halt) -> Halt {
    match stop {
        Stop::Arrived => arrived,
        Stop::Break(address) => Halt::Break(address),
        Stop::Watch(address) | Stop::Input(address) => Halt::Watch(address),
        Stop::Interrupted => Halt::Interrupted,
        Stop::Over(why) => Halt::Over(why),
    }
}
