//! A debugger's commands on the monitor, for a guest that follows a recording (`role=replay`).
//!
//! The guest stands where it was told to stop, before what the log has for that position is applied: what is seen there does
//! not depend on how much of the log has arrived. Each command is answered in one line.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pollux_driver::{Driver, Duty};
use pollux_ft::Position;

use super::json::Json;
use super::machine::Machine;
use super::monitor;
use crate::config::StartRole;
use crate::guest::{DebugStop, Guest, Stops};

/// Bytes of memory that are told at once, at most.
const MOST_READ: u64 = 1024;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DebugCommand {
    /// Stand still where the state is complete.
    Hold,
    /// Run until this position, or until one of the stops.
    RunTo(Position, Stops),
    /// Stop at the next exact stop.
    Interrupt,
    /// Stop at instructions at these linear addresses, and at changes of memory at those, each with a length in bytes.
    Stops(Vec<u64>, Vec<(u64, u64)>),
    /// Tell the registers.
    Registers,
    /// Tell that many bytes at this linear address.
    Read(u64, u64),
}

impl DebugCommand {
    /// Reads what comes behind `debug`: `hold`, `run-to POSITION none|all|ahead`, `interrupt`,
    /// `stops [break=ADDRESS …] [watch=ADDRESS:LENGTH …]`, `registers`, `read ADDRESS LENGTH`; addresses are hexadecimal.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut words = text.split_ascii_whitespace();
        let command = match words.next().unwrap_or_default() {
            "hold" => Self::Hold,
            "interrupt" => Self::Interrupt,
            "registers" => Self::Registers,
            "run-to" => {
                let position = words.next().and_then(|word| word.parse().ok());
                let stops = words.next().and_then(Stops::named);
                let (position, stops) = position.zip(stops).ok_or("run-to needs a position, and none, all or ahead")?;
                Self::RunTo(Position(position), stops)
            }
            "read" => {
                let address = words.next().and_then(hexadecimal);
                let len = words.next().and_then(|word| word.parse().ok()).filter(|len| *len <= MOST_READ);
                let (address, len) = address.zip(len).ok_or("read needs an address and a length of at most 1024")?;
                Self::Read(address, len)
            }
            "stops" => {
                let (mut breaks, mut watches) = (Vec::new(), Vec::new());
                for word in words.by_ref() {
                    let range = |text: &str| {
                        let (address, len) = text.split_once(':')?;
                        Some((hexadecimal(address)?, len.parse().ok()?))
                    };
                    let (kind, text) = word.split_once('=').unwrap_or((word, ""));
                    match (kind, hexadecimal(text), range(text)) {
                        ("break", Some(address), _) => breaks.push(address),
                        ("watch", _, Some(watch)) => watches.push(watch),
                        _ => return Err("stops takes break=ADDRESS and watch=ADDRESS:LENGTH"),
                    }
                }
                Self::Stops(breaks, watches)
            }
            _ => return Err("unknown word behind debug; known: hold, run-to, interrupt, stops, registers, read"),
        };
        if words.next().is_some() { Err("there is more than the command takes") } else { Ok(command) }
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// How far a guest may go on for a debugger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Hold {
    /// There is none.
    #[default]
    No,
    /// Until its state is complete.
    WhenComplete,
    /// It stands.
    Stands,
    /// It runs, until it comes to a stop.
    Runs,
}

impl Machine {
    /// Does what a debugger wants.
    pub(super) fn debug(&mut self, command: DebugCommand, driver: &mut Driver<Guest>) {
        if self.config.role != StartRole::Replay {
            return monitor::event("refused", "reason", &"this command needs role=replay");
        }
        // One that found a difference runs no more.
        let stands = self.hold == Hold::Stands || driver.duty() != Duty::Follow;
        match command {
            DebugCommand::Hold if driver.duty() == Duty::Follow => self.refuse("the guest runs already"),
            DebugCommand::Hold => {
                self.hold = Hold::WhenComplete;
                monitor::event("debug-ok", "what", &"hold");
            }
            DebugCommand::Interrupt => {
                // It may have stopped meanwhile.
                driver.guest_mut().debug_interrupt();
                monitor::event("debug-ok", "what", &"interrupt");
                self.debug_stopped(driver);
            }
            _ if !stands => self.refuse("the guest does not stand still"),
            DebugCommand::RunTo(position, stops) => {
                driver.guest_mut().debug_until(position, stops);
                self.hold = Hold::Runs;
            }
            DebugCommand::Stops(breaks, watches) => match driver.guest_mut().set_stops(&breaks, &watches) {
                Ok(()) => monitor::event("debug-ok", "what", &"stops"),
                Err(why) => self.refuse(why),
            },
            DebugCommand::Registers => tell_registers(driver.guest()),
            DebugCommand::Read(linear, len) => {
                let bytes = driver.guest().peek(linear, len as usize);
                let mut json = Json::line("event");
                json.text("event", "debug-memory").number("address", linear).text("bytes", &hex(&bytes));
                monitor::send(json);
            }
        }
    }

    fn refuse(&self, why: &str) {
        monitor::event("refused", "reason", &why);
    }

    /// The state is complete: whoever is to hold there does.
    pub(super) fn hold_if_wanted(&mut self, guest: &Guest) {
        if self.hold == Hold::WhenComplete {
            self.hold = Hold::Stands;
            tell_stop(guest, "complete", None);
        }
    }

    /// Tells if the guest has come to a stop.
    pub(super) fn debug_stopped(&mut self, driver: &mut Driver<Guest>) {
        if self.hold != Hold::Runs {
            return;
        }
        let Some(stop) = driver.guest_mut().take_debug_stop() else { return };
        self.hold = Hold::Stands;
        let (why, address) = match stop {
            DebugStop::Arrived => ("arrived", None),
            DebugStop::Break(linear) => ("break", Some(linear)),
            DebugStop::Watch { linear, by_input: false } => ("watch", Some(linear)),
            DebugStop::Watch { linear, by_input: true } => ("input", Some(linear)),
        };
        tell_stop(driver.guest(), why, address);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tell_stop(guest: &Guest, why: &str, address: Option<u64>) {
    let mut json = Json::line("event");
    json.text("event", "debug-stop").number("position", guest.position().0).text("why", why);
    json.number("address", address.unwrap_or(0));
    monitor::send(json);
}

fn tell_registers(guest: &Guest) {
    let mut json = Json::line("event");
    json.text("event", "debug-registers").number("position", guest.position().0).object("registers", |json| {
        for (name, value) in guest.named_registers() {
            json.number(name, value);
        }
    });
    monitor::send(json);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_or_refused() {
        use DebugCommand::{Hold, Interrupt, Read, Registers, RunTo};
        for (text, command) in [
            ("hold", Hold),
            ("interrupt", Interrupt),
            ("registers", Registers),
            ("run-to 77 none", RunTo(Position(77), Stops::None)),
            ("run-to 7 all", RunTo(Position(7), Stops::All)),
            ("run-to 7 ahead", RunTo(Position(7), Stops::Ahead)),
            ("read ffffffff81000000 1024", Read(0xFFFF_FFFF_8100_0000, 1024)),
            ("stops", DebugCommand::Stops(Vec::new(), Vec::new())),
            ("stops break=10 watch=20:8 break=30", DebugCommand::Stops([0x10, 0x30].into(), [(0x20, 8)].into())),
        ] {
            assert_eq!(DebugCommand::parse(text), Ok(command), "{text}");
        }
        for bad in [
            "",
            "go",
            "run-to",
            "run-to x all",
            "run-to 7",
            "run-to 7 some",
            "run-to 7 all now",
            "read 10",
            "read 10 1025",
            "read x 1",
            "stops break",
            "stops break=x",
            "stops watch=10",
            "stops watch=10:x",
            "hold now",
        ] {
            assert!(DebugCommand::parse(bad).is_err(), "{bad}");
        }
    }
}
