//! The monitor on COM2: status and events out, one JSON object a line; commands in, a line each.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::sync::atomic::{AtomicU64, Ordering};

use pollux_ft::key::KEY_BYTES;

use super::debugger::DebugCommand;
use super::disk::DiskFault;
use super::json::Json;
use super::syslog;
use crate::host::serial;
use crate::memory::Gpa;

/// Longest command line in bytes; longer ones are refused.
const MAX_LINE: usize = 512;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Report status now.
    Status,
    /// Take this machine out of service in order.
    Stop,
    /// Hand the guest over to the backup, which goes live; this machine becomes its backup.
    Switch,
    /// Take this key beside the old one, as the newest.
    AddKey([u8; KEY_BYTES]),
    /// Forget the key with this fingerprint; also (`force`) if somebody is heard who has not shown the other one.
    ForgetKey {
        /// The key's.
        fingerprint: u64,
        /// Whoever is heard.
        force: bool,
    },
    /// Type these bytes at the guest's console.
    Console(Vec<u8>),
    /// Go out, as by a power cut, at the boundary that many ahead; see the module `cut` (test only).
    Cut(u64),
    /// A debugger's, for a guest that follows a recording.
    Debug(DebugCommand),
    /// Make no progress any more (test only).
    Hang,
    /// Let the disk of this machine fail or be slow (test only).
    Disk(DiskFault),
    /// Flip a bit of guest memory (test only).
    FlipMemory(Gpa, u32),
    /// Flip a bit of a guest register (test only).
    FlipRegister(String, u32),
}

impl Command {
    /// Reads a line.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(line: &str) -> Result<Self, &'static str> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "status" => Ok(Self::Status),
            "stop" => Ok(Self::Stop),
            "switch" => Ok(Self::Switch),
            "console" => Ok(Self::Console([rest.as_bytes(), b"\n"].concat())),
            "type" => bytes_of_hex(rest.trim()).map(Self::Console).ok_or("type needs pairs of hexadecimal digits"),
            "key-add" => bytes_of_hex(rest.trim())
                .and_then(|key| key.try_into().ok())
                .map(Self::AddKey)
                .ok_or("key-add needs a key: 64 hexadecimal digits"),
            "key-forget" => {
                let (key, force) = rest.trim().strip_suffix(" force").map_or((rest, false), |key| (key, true));
                u64::from_str_radix(key.trim(), 16)
                    .map(|fingerprint| Self::ForgetKey { fingerprint, force })
                    .map_err(|_| "key-forget needs the fingerprint of a key: 16 hexadecimal digits, as in the status")
            }
            "cut" => rest.trim().parse().map(Self::Cut).map_err(|_| "cut needs a number of boundaries"),
            "debug" => DebugCommand::parse(rest).map(Self::Debug),
            "hang" => Ok(Self::Hang),
            "disk" => DiskFault::parse(rest.trim()).map(Self::Disk),
            "flip-memory" => {
                let (gpa, bit) = rest.split_once(' ').ok_or("flip-memory needs an address and a bit")?;
                let gpa = match gpa.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => gpa.parse(),
                };
                let bit = bit.trim().parse().map_err(|_| "the bit is no number")?;
                Ok(Self::FlipMemory(Gpa(gpa.map_err(|_| "the address is no number")?), bit))
            }
            "flip-register" => {
                let (name, bit) = rest.split_once(' ').ok_or("flip-register needs a name and a bit")?;
                Ok(Self::FlipRegister(name.into(), bit.trim().parse().map_err(|_| "the bit is no number")?))
            }
            _ => Err(
                "unknown command; known: status, stop, switch, console, type, key-add, key-forget, debug, cut, disk, \
                 hang, flip-memory, flip-register",
            ),
        }
    }

    /// Whether the command does damage and is only for tests.
    #[must_use]
    pub fn is_for_tests(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::Disk(_) | Self::Hang | Self::FlipMemory(..) | Self::FlipRegister(..))
    }
}

/// Bytes written as pairs of hexadecimal digits.
fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let digits =
            str::from_utf8(pair).ok().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
    };
    pairs.map(byte).collect()
}

/// Collects input lines.
#[derive(Debug, Default)]
pub struct Monitor {
    line: Vec<u8>,
}

impl Monitor {
    /// The next complete command, if one has arrived.
    pub fn poll(&mut self) -> Option<Result<Command, &'static str>> {
        let mut byte = [0];
        while serial::MONITOR.read(&mut byte) == 1 {
            if byte[0] != b'\n' && byte[0] != b'\r' {
                if self.line.len() <= MAX_LINE {
                    self.line.push(byte[0]);
                }
                continue;
            }
            let line = core::mem::take(&mut self.line);
            if line.is_empty() {
                continue;
            }
            if line.len() > MAX_LINE {
                return Some(Err("the command is too long"));
            }
            let parsed = core::str::from_utf8(&line).map_err(|_| "the command is not UTF-8");
            return Some(parsed.and_then(Command::parse));
        }
        None
    }
}

/// Sends a finished line, without waiting for it: see [`pump`]. Events go to the syslog server, too.
pub fn send(json: Json) {
    /// Lines that found no room.
    static LOST: AtomicU64 = AtomicU64::new(0);
    let is_event = json.kind() == "event";
    let line = json.finish();
    if is_event {
        syslog::note(&line);
    }
    if !serial::MONITOR.queue(line.as_bytes()) {
        LOST.fetch_add(1, Ordering::Relaxed);
    } else if let lost @ 1.. = LOST.swap(0, Ordering::Relaxed) {
        log::warn!("the monitor's line is slow: {lost} lines of status, events and console were lost");
    }
}

/// Sends on what was not sent at once; whether something still waits. To be called in every turn of the loop.
pub fn pump() -> bool {
    serial::MONITOR.pump()
}

/// Reports an event with a text that explains it.
pub fn event(name: &str, key: &str, text: &dyn Display) {
    let mut json = Json::line("event");
    json.text("event", name).text(key, &alloc::format!("{text}"));
    send(json);
}

/// Reports that this machine halts, and why, before it does.
pub fn halt_event(reason: &dyn Display) {
    event("halt", "reason", reason);
    serial::MONITOR.flush();
}

/// Reports a panic, without using the heap.
pub fn panic_event() {
    serial::MONITOR.write(b"\n{\"t\":\"event\",\"event\":\"halt\",\"reason\":\"panic; see the log\"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_or_refused() {
        assert_eq!(Command::parse("status"), Ok(Command::Status));
        assert_eq!(Command::parse("switch"), Ok(Command::Switch));
        assert_eq!(Command::parse("console a b"), Ok(Command::Console(b"a b\n".into())));
        assert_eq!(Command::parse("type 0361ff"), Ok(Command::Console(b"\x03a\xff".into())));
        for bad in ["type 036", "type +1", "type \u{e9}", "type 0 12"] {
            assert!(Command::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Command::parse(&alloc::format!("key-add {}", "0a".repeat(32))), Ok(Command::AddKey([10; 32])));
        for (text, force) in [("key-forget 00000000000000ff", false), ("key-forget ff force", true)] {
            assert_eq!(Command::parse(text), Ok(Command::ForgetKey { fingerprint: 255, force }));
        }
        for bad in ["key-add", "key-add 0a", "key-forget", "key-forget x", "key-forget force", "key-forget ff now"] {
            assert!(Command::parse(bad).unwrap_err().contains("digits"), "{bad}");
        }
        assert_eq!(Command::parse("disk error"), Ok(Command::Disk(DiskFault::Error)));
        assert_eq!(Command::parse("cut 7"), Ok(Command::Cut(7)));
        assert_eq!(Command::parse("hang"), Ok(Command::Hang));
        assert!(Command::Hang.is_for_tests() && !Command::Switch.is_for_tests());
        assert_eq!(Command::parse("flip-memory 0x10 3"), Ok(Command::FlipMemory(Gpa(16), 3)));
        assert_eq!(Command::parse("flip-register rax 9"), Ok(Command::FlipRegister("rax".into(), 9)));
        for bad in
            ["", "reboot", "cut", "cut x", "flip-memory", "flip-memory x 1", "flip-memory 1 x", "flip-register rax"]
        {
            assert!(Command::parse(bad).is_err(), "{bad}");
        }
    }
}
