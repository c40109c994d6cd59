//! The debugger, and what GDB hears of it, with a guest that follows a script.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use gdbstub::stub::DisconnectReason;
use proptest::prelude::*;

use super::debugger::{Debugger, Halt, Machine, Refused, Stop, Stops};
use super::target::Guest;
use super::{Wire, converse};

/// One position of the script: where the next instruction is, and what it leaves in memory.
type Moment = (u64, u8);

/// A guest that runs through its script; the last moment is the recording's end.
#[derive(Debug, Clone, Default)]
struct Scripted {
    script: Vec<Moment>,
    begin: u64,
    at: usize,
    breaks: Vec<u64>,
    watches: Vec<(u64, u64)>,
    rewinds: u64,
    /// From this position on the guest is not the recorded one.
    differs_at: Option<u64>,
    /// It obeys no more.
    gone: bool,
    /// What comes before the instruction at some moments: an input that leaves this in memory, and then an interrupt whose
    /// handler begins at this address.
    inputs: BTreeMap<usize, (u8, u64)>,
    /// The input of this moment was applied, and the interrupt was taken.
    applied: bool,
    taken: bool,
}

/// To how much such a machine stops.
const MOST: usize = 16;

/// Where the only byte of memory is.
const BYTE: u64 = 0x5000;

impl Scripted {
    fn new(script: Vec<Moment>) -> Self {
        Self { script, begin: 100, ..Self::default() }
    }

    /// What the guest is at a position: what was left in memory by all before, and where the next instruction is.
    fn memory(&self) -> u8 {
        if let (true, Some((byte, _))) = (self.applied, self.inputs.get(&self.at)) {
            return *byte;
        }
        self.at.checked_sub(1).map_or(0, |last| self.script[last].1)
    }
}

impl Machine for Scripted {
    fn bounds(&self) -> (u64, u64) {
        (self.begin, self.begin + self.script.len() as u64 - 1)
    }

    fn position(&self) -> u64 {
        self.begin + self.at as u64
    }

    fn rewind(&mut self) -> Result<()> {
        (self.at, self.applied, self.taken, self.rewinds) = (0, false, false, self.rewinds + 1);
        Ok(())
    }

    fn run(&mut self, until: u64, stops: Stops, interrupted: &mut dyn FnMut() -> bool) -> Result<Stop> {
        assert!(until > self.position() && until <= self.bounds().1, "it runs ahead, and not past the end");
        let mut passes = stops == Stops::Ahead;
        loop {
            if self.position() == until {
                return Ok(Stop::Arrived);
            }
            if self.differs_at.is_some_and(|at| self.position() >= at) {
                return Ok(Stop::Over("entry 7 differs".to_owned()));
            }
            let before = self.memory();
            let input = self.inputs.get(&self.at).copied();
            let applies = input.is_some() && !core::mem::replace(&mut self.applied, true);
            let watched = stops != Stops::None && self.watches.contains(&(BYTE, 1));
            if applies && watched && self.memory() != before {
                return Ok(Stop::Input(BYTE));
            }
            if input.is_some() && !core::mem::replace(&mut self.taken, true) {
                passes = false;
            }
            let rip = input.map_or(self.script[self.at].0, |(_, handler)| handler);
            if stops != Stops::None && !passes && self.breaks.contains(&rip) {
                return Ok(Stop::Break(rip));
            }
            passes = false;
            if interrupted() {
                return Ok(Stop::Interrupted);
            }
            let before = self.memory();
            (self.at, self.applied, self.taken) = (self.at + 1, false, false);
            if stops != Stops::None && self.memory() != before && self.watches.contains(&(BYTE, 1)) {
                return Ok(Stop::Watch(BYTE));
            }
        }
    }

    fn set_stops(&mut self, breaks: &[u64], watches: &[(u64, u64)]) -> Result<()> {
        if self.gone {
            bail!("there is no machine any more");
        }
        if breaks.len() + watches.len() > MOST {
            return Err(Refused("more to stop at than can be".to_owned()).into());
        }
        (self.breaks, self.watches) = (breaks.to_vec(), watches.to_vec());
        Ok(())
    }

    fn registers(&mut self) -> Result<BTreeMap<String, u64>> {
        let taken = self.inputs.get(&self.at).filter(|_| self.taken);
        let rip = taken.map_or(self.script[self.at].0, |(_, handler)| *handler);
        Ok([("rip", rip), ("rax", 0x1122_3344_5566_7788), ("rflags", 2)]
            .map(|(name, value)| (name.into(), value))
            .into())
    }

    fn read(&mut self, address: u64, len: u64) -> Result<Vec<u8>> {
        Ok(if address == BYTE && len > 0 { vec![self.memory()] } else { vec![] })
    }
}

const NEVER: fn() -> bool = || false;

fn script() -> impl Strategy<Value = Vec<Moment>> {
    prop::collection::vec((0x1000_u64..0x1006, 0_u8..3), 2..60)
}

proptest! {
    /// A step and a step back lead to where they began, from anywhere.
    #[test]
    fn a_step_back_undoes_a_step(script in script(), at in 0_usize..60) {
        let mut debugger = Debugger::new(Scripted::new(script));
        let (begin, end) = debugger.machine.bounds();
        let at = begin + at as u64 % (end - begin);
        prop_assert_eq!(debugger.go_to(at, &mut NEVER.clone()).unwrap(), Halt::Stepped);
        let registers = debugger.machine.registers().unwrap();
        prop_assert_eq!(debugger.step(&mut NEVER.clone()).unwrap(), Halt::Stepped);
        prop_assert_eq!(debugger.machine.position(), at + 1);
        prop_assert_eq!(debugger.step_back(&mut NEVER.clone()).unwrap(), Halt::Stepped);
        prop_assert_eq!(debugger.machine.position(), at);
        prop_assert_eq!(debugger.machine.registers().unwrap(), registers);
    }

    /// Back is to the last of all places before this one where going forward would have stopped, seen by looking at each.
    #[test]
    fn going_back_finds_the_last_stop(
        script in script(), at in 0_usize..60, breaks in prop::collection::vec(0x1000_u64..0x1008, 0..3), watches in any::<bool>(),
    ) {
        let mut debugger = Debugger::new(Scripted::new(script.clone()));
        let (begin, end) = debugger.machine.bounds();
        let at = at % script.len();
        debugger.go_to(begin + at as u64, &mut NEVER.clone()).unwrap();
        for address in &breaks {
            debugger.set_break(*address, true).unwrap();
        }
        if watches {
            debugger.set_watch(BYTE, 1, true).unwrap();
        }
        let memory = |at: usize| at.checked_sub(1).map_or(0, |last: usize| script[last].1);
        let is_stop = |&at: &usize| {
            // The beginning is where it stops in any case.
            at > 0 && breaks.contains(&script[at].0) || watches && memory(at) != memory(at + 1)
        };
        let expected = (0..at).rev().find(is_stop);
        let halt = debugger.go_back(&mut NEVER.clone()).unwrap();
        prop_assert_eq!(debugger.machine.position(), begin + expected.unwrap_or(0) as u64);
        prop_assert_eq!(halt == Halt::Begin, expected.is_none());
        // What was set is still set.
        let unset = debugger.machine.breaks.is_empty() && debugger.machine.watches.is_empty();
        prop_assert_eq!(unset, breaks.is_empty() && !watches);
        // What was found is not looked for again, and is the same.
        let rewinds = debugger.machine.rewinds;
        let first = expected.unwrap_or(0);
        let earlier = (0..first).rev().find(is_stop).unwrap_or(0);
        debugger.go_back(&mut NEVER.clone()).unwrap();
        prop_assert_eq!(debugger.machine.position(), begin + earlier as u64);
        prop_assert!(debugger.machine.rewinds <= rewinds + 1);
        debugger.go_to(begin + first as u64, &mut NEVER.clone()).unwrap();
        // Forward again from there leads to a stop at or before where it was, if there was one.
        if expected.is_some() && at < script.len() - 1 {
            let stop = debugger.go_on(&mut NEVER.clone()).unwrap();
            prop_assert!(stop != Halt::Begin && debugger.machine.position() <= end);
        }
    }
}

#[test]
fn ends_and_differences_are_told() {
    let mut debugger = Debugger::new(Scripted::new(vec![(0x1000, 0); 10]));
    assert_eq!(debugger.step_back(&mut NEVER.clone()).unwrap(), Halt::Begin);
    assert_eq!(debugger.go_on(&mut NEVER.clone()).unwrap(), Halt::End);
    assert_eq!(debugger.machine.position(), 109);
    assert_eq!(debugger.go_on(&mut NEVER.clone()).unwrap(), Halt::End);
    assert_eq!(debugger.step(&mut NEVER.clone()).unwrap(), Halt::End);
    debugger.machine.differs_at = Some(105);
    assert_eq!(debugger.go_to(104, &mut NEVER.clone()).unwrap(), Halt::Stepped);
    assert_eq!(debugger.go_on(&mut NEVER.clone()).unwrap(), Halt::Over("entry 7 differs".to_owned()));
    assert_eq!(debugger.machine.position(), 105);
    assert_eq!(debugger.step_back(&mut NEVER.clone()).unwrap(), Halt::Stepped);
    assert_eq!(debugger.machine.position(), 104);
}

#[test]
fn it_can_be_interrupted_both_ways() {
    let mut debugger = Debugger::new(Scripted::new(vec![(0x1000, 0); 10]));
    let mut left = 3;
    let mut soon = || {
        left -= 1;
        left < 0
    };
    assert_eq!(debugger.go_on(&mut soon).unwrap(), Halt::Interrupted);
    assert_eq!(debugger.machine.position(), 103);
    assert_eq!(debugger.go_back(&mut || true).unwrap(), Halt::Interrupted);
    assert_eq!(debugger.machine.position(), 100);
}

/// An input, the first instruction of the handler of the interrupt that it brings, and the input's absence are at one position.
#[test]
fn back_within_a_position() {
    const HANDLER: u64 = 0x2000;
    let mut machine = Scripted::new(vec![(0x1000, 0), (0x1003, 0), (0x1005, 7), (0x1007, 7), (0x1009, 7)]);
    machine.inputs.insert(2, (7, HANDLER));
    let mut debugger = Debugger::new(machine);
    debugger.set_break(HANDLER, true).unwrap();
    debugger.set_watch(BYTE, 1, true).unwrap();
    let stands = |debugger: &Debugger<Scripted>| (debugger.machine.position(), debugger.machine.memory());
    assert_eq!(debugger.go_on(&mut NEVER.clone()).unwrap(), Halt::Watch(BYTE));
    assert_eq!(stands(&debugger), (102, 7));
    assert_eq!(debugger.go_back(&mut NEVER.clone()).unwrap(), Halt::Watch(BYTE));
    assert_eq!(stands(&debugger), (102, 0));
    for halt in [Halt::Watch(BYTE), Halt::Break(HANDLER)] {
        assert_eq!(debugger.go_on(&mut NEVER.clone()).unwrap(), halt);
        assert_eq!(stands(&debugger), (102, 7));
    }
    assert_eq!(debugger.go_to(102, &mut NEVER.clone()).unwrap(), Halt::Stepped);
    assert_eq!(stands(&debugger), (102, 0), "before what the log has for it");
    assert_eq!(debugger.go_to(104, &mut NEVER.clone()).unwrap(), Halt::Stepped);
    for (halt, memory) in [(Halt::Break(HANDLER), 7), (Halt::Watch(BYTE), 0)] {
        assert_eq!(debugger.go_back(&mut NEVER.clone()).unwrap(), halt);
        assert_eq!(stands(&debugger), (102, memory));
    }
    assert_eq!(debugger.go_back(&mut NEVER.clone()).unwrap(), Halt::Begin);
}

#[test]
fn a_step_back_over_a_change_says_so() {
    let mut debugger = Debugger::new(Scripted::new(vec![(0x1000, 0), (0x1003, 9), (0x1005, 9), (0x1007, 9)]));
    debugger.set_watch(BYTE, 1, true).unwrap();
    debugger.go_to(103, &mut NEVER.clone()).unwrap();
    for halt in [Halt::Stepped, Halt::Watch(BYTE), Halt::Stepped, Halt::Begin] {
        assert_eq!(debugger.step_back(&mut NEVER.clone()).unwrap(), halt);
    }
}

/// What a machine refuses takes nothing away; only a machine that is gone is an error.
#[test]
fn what_is_refused_leaves_the_rest_as_it_was() {
    let mut debugger = Debugger::new(Scripted::new(vec![(0x1000, 0), (0x1003, 0), (0x1005, 9), (0x1007, 9)]));
    for len in [0, 65, u64::MAX] {
        assert!(!debugger.set_watch(BYTE, len, true).unwrap(), "{len}");
    }
    let most = 0x1005..0x1005 + MOST as u64;
    assert!(most.clone().all(|address| debugger.set_break(address, true).unwrap()));
    assert!(!debugger.set_break(0x1003, true).unwrap() && !debugger.set_watch(BYTE, 1, true).unwrap());
    assert_eq!(debugger.machine.breaks, most.clone().collect::<Vec<_>>());
    // It was not kept either, to be refused again with the next.
    assert!(debugger.set_break(0x1005 + 3, false).unwrap() && debugger.set_watch(BYTE, 1, true).unwrap());
    assert_eq!(debugger.go_on(&mut NEVER.clone()).unwrap(), Halt::Break(0x1005));
    debugger.machine.gone = true;
    assert!(debugger.set_break(0x1005, false).is_err() && debugger.set_watch(BYTE, 1, false).is_err());
}

/// GDB's side of the wire.
struct Client(TcpStream);

impl Client {
    /// Sends a packet and gives the next one that comes.
    fn ask(&mut self, packet: &str) -> String {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        self.0.write_all(format!("${packet}#{sum:02x}").as_bytes()).unwrap();
        self.next()
    }

    fn next(&mut self) -> String {
        let mut text = String::new();
        let mut byte = [0];
        loop {
            self.0.read_exact(&mut byte).unwrap();
            match byte[0] {
                b'+' if text.is_empty() => {}
                b'#' => break,
                byte => text.push(byte.into()),
            }
        }
        self.0.read_exact(&mut [0; 2]).unwrap();
        self.0.write_all(b"+").unwrap();
        unpacked(text.strip_prefix('$').unwrap())
    }
}

/// Without run-length encoding.
fn unpacked(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '*' => {
                let count = u32::from(characters.next().unwrap()) - 29;
                let last = out.chars().last().unwrap();
                (0..count).for_each(|_| out.push(last));
            }
            other => out.push(other),
        }
    }
    out
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Packets as GDB sends them, and the answers.
#[test]
fn gdb_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let script = vec![(0x1000, 0), (0x1003, 0), (0x1005, 9), (0x1003, 9), (0x1007, 9)];
        let mut guest = Guest::new(Scripted::new(script), |_, word| (word == "digest").then(|| "7 digests".to_owned()));
        let left = converse(&mut guest, Wire::new(stream), |_| {
            thread::sleep(Duration::from_millis(1));
            Ok(())
        });
        (left.unwrap(), guest.debugger.machine.position())
    });
    let mut gdb = Client(TcpStream::connect(address).unwrap());
    gdb.0.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let features = gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386");
    for feature in ["ReverseStep+", "ReverseContinue+", "qXfer:features:read+", "swbreak+"] {
        assert!(features.contains(feature), "{features}");
    }
    assert!(gdb.ask("qXfer:features:read:target.xml:0,ffb").contains("i386:x86-64"));
    gdb.ask("?");
    let registers = gdb.ask("g");
    assert_eq!((&registers[..16], &registers[256..272]), ("8877665544332211", "0010000000000000"));
    // What is not told, and the position at the end.
    assert!(registers.contains("xxxxxxxx") && registers.ends_with("6400000000000000"), "{registers}");
    // Impatience is no error; within a packet it is a byte as others are.
    gdb.0.write_all(b"-").unwrap();
    assert_ne!(gdb.ask("vMustReplyEmpty-"), "OK");
    assert_eq!((gdb.ask("m5000,1").as_str(), gdb.ask("m6000,1").as_str()), ("00", "E0e"));
    assert_eq!((gdb.ask("M5000,1:07").as_str(), gdb.ask("m5000,1").as_str()), ("E1e", "00"));
    // So are registers; and the session goes on.
    assert_eq!((gdb.ask(&format!("G{}", registers.replace('x', "0"))).as_str(), gdb.ask("g")), ("E1e", registers));
    assert_eq!(gdb.ask("Z0,1003,1"), "OK");
    assert!(gdb.ask("vCont;c").contains("swbreak"));
    assert!(gdb.ask("vCont;s").starts_with("S05"));
    assert_ne!(gdb.ask("Z2,5000,80"), "OK", "more than can be watched");
    assert_eq!(gdb.ask("Z2,5000,1"), "OK");
    assert_ne!(gdb.ask("Z3,5000,1"), "OK", "reads are not noticed");
    let watched = gdb.ask("vCont;c");
    assert!(watched.contains("watch:5000") || watched.contains("watch:0000000000005000"), "{watched}");
    assert_eq!(gdb.ask("m5000,1"), "09");
    let back = gdb.ask("bc");
    assert!(back.contains("watch:"), "{back}");
    assert_eq!(gdb.ask("m5000,1"), "00", "it stands before the write");
    assert_eq!(gdb.ask("z2,5000,1"), "OK");
    assert!(gdb.ask("bc").contains("swbreak"));
    assert!(gdb.ask("bs").starts_with("S05"));
    assert_eq!(gdb.ask("bs"), format!("O{}", hex("The recording begins here.\n")));
    assert!(gdb.next().contains("replaylog:begin"));
    for (said, answer) in [
        ("position", "position 100 of 100 to 104\n"),
        ("position 105", "the recording has positions 100 to 104\n"),
        ("position x", "x is no position\n"),
        ("digest", "7 digests\n"),
        ("help", "known: position, position N, digest, entries\n"),
    ] {
        assert_eq!(gdb.ask(&format!("qRcmd,{}", hex(said))), format!("O{}", hex(answer)), "{said}");
        assert_eq!(gdb.next(), "OK");
    }
    assert!(gdb.ask(&format!("qRcmd,{}", hex("position 103"))).starts_with('O'));
    assert_eq!(gdb.next(), "OK");
    assert_eq!(gdb.ask("D"), "OK");
    assert_eq!(server.join().unwrap(), (DisconnectReason::Disconnect, 103));
}
