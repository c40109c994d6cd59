//! The hypervisor's options, from the boot loader's command line. Unknown or contradictory ones are refused by name.

mod arbiter;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;

use pollux_boot::command_line::{CommandOption, options};
use pollux_ft::pairing::MAX_NAME;
use pollux_ft::{Span, Term};

pub use self::arbiter::{ArbiterOptions, Routes};
use crate::counter::choose::Wanted;
use crate::extended;
use crate::host::pci::Bdf;
use crate::mmu;

/// What this machine starts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartRole {
    /// Runs the guest and waits for a backup.
    Primary,
    /// Asks the twin for the guest's state and follows it.
    Backup,
    /// Runs the guest without replication.
    Solo,
    /// Runs the exact-stop property test on the guest image, twice, and ends.
    Stops,
}

/// A rule that is switched off, for tests and teaching only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenRule {
    /// Output leaves without waiting for the twin.
    OutputRule,
}

impl BrokenRule {
    /// Its name, as `break=` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutputRule => "output-rule",
        }
    }
}

/// An IPv4 address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Address.
    pub address: Ipv4Addr,
    /// Prefix length, 0–32.
    pub prefix: u8,
}

/// All options with their meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `role=primary|backup|solo|stops`.
    pub role: StartRole,
    /// `name=TEXT`: this machine's name in log and status.
    pub name: String,
    /// `pair=TEXT`: name of the pair; twins of different pairs refuse each other.
    pub pair: String,
    /// `client-nic=B:D.F`: the NIC that clients reach the guest through.
    pub client_nic: Option<Bdf>,
    /// `log-nic=B:D.F`: the NIC towards the twin.
    pub log_nic: Option<Bdf>,
    /// `log-address=A.B.C.D/N`: this machine's address on the log NIC.
    pub log_address: Option<Cidr>,
    /// `log-peer=A.B.C.D`: the twin's.
    pub log_peer: Option<Ipv4Addr>,
    /// Options about the arbiter.
    pub arbiter: ArbiterOptions,
    /// `guest-memory=64M`: guest RAM in bytes.
    pub guest_memory: u64,
    /// `guest-mac=52:54:00:12:34:56`: the guest's own MAC address.
    pub guest_mac: [u8; 6],
    /// `guest-args="…"`: the guest's command line.
    pub guest_args: String,
    /// `guest-seed=HEX`: 32 bytes that the guest's random numbers rest on, too; without it they come from this machine alone.
    pub guest_seed: Option<[u8; 32]>,
    /// `heartbeat=100ms`: time between heartbeats, in microseconds.
    pub heartbeat_us: u64,
    /// `suspect=1000ms`: silence after which the twin is given up, in microseconds.
    pub suspect_us: u64,
    /// `log-buffer=4M`: bytes of log that may wait on either side.
    pub log_buffer: u64,
    /// `transfer=live|stop`: whether the guest stands still while a new backup gets its state.
    pub transfer_stops: bool,
    /// `counter=auto|pmu|ticks`: what positions are counted with.
    pub counter: Wanted,
    /// `vectors=none|sse|avx|avx512`: the most that the guest gets of what XSAVE saves, as bits of XCR0; none at all: no XSAVE.
    pub vectors: u64,
    /// `mmu=auto|tracked|native`: whether the CPU walks the guest's page tables.
    pub mmu: mmu::Wanted,
    /// `monitor=com2|none`: whether status goes to COM2.
    pub monitor: bool,
    /// `break=RULE`: a rule switched off.
    pub broken_rule: Option<BrokenRule>,
    /// `test-commands=on|off`: the monitor accepts commands that damage the guest, for tests.
    pub test_commands: bool,
    /// `stops=N`: random stops of the property test.
    pub stops: u64,
    /// `seed=N`: seed of the property test.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: StartRole::Solo,
            name: "pollux".to_owned(),
            pair: "pollux".to_owned(),
            client_nic: None,
            log_nic: None,
            log_address: None,
            log_peer: None,
            arbiter: ArbiterOptions::default(),
            guest_memory: 64 << 20,
            guest_mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            guest_args: String::new(),
            guest_seed: None,
            heartbeat_us: 100_000,
            suspect_us: 1_000_000,
            log_buffer: 4 << 20,
            transfer_stops: false,
            counter: Wanted::Auto,
            vectors: extended::ALLOWED,
            mmu: mmu::Wanted::default(),
            monitor: true,
            broken_rule: None,
            test_commands: false,
            stops: 1000,
            seed: 1,
        }
    }
}

/// Why a command line was refused; says which option and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All option names, for the message about an unknown one.
const NAMES: &str = "role, name, pair, client-nic, log-nic, log-address, log-peer, guest-memory, guest-mac, guest-args, \
                     guest-seed, heartbeat, suspect, log-buffer, transfer, counter, vectors, mmu, clock, monitor, break, test-commands, stops, seed";

impl Config {
    /// Reads a command line.
    ///
    /// # Errors
    /// Names the option that is unknown, malformed, given twice, missing, or in contradiction to another.
    pub fn parse(line: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut seen: heapless::Vec<&str, 48> = heapless::Vec::new();
        for option in options(line) {
            let option = option.map_err(|error| ConfigError(format!("{error}")))?;
            if seen.contains(&option.key) {
                return Err(ConfigError(format!("option '{}' is given twice", option.key)));
            }
            // More different options than fit do not exist: the next line refuses unknown ones.
            let _ = seen.push(option.key);
            config.set(&option)?;
        }
        config.check()?;
        Ok(config)
    }

    fn set(&mut self, option: &CommandOption<'_>) -> Result<(), ConfigError> {
        let key = option.key;
        let Some(value) = option.value else {
            return Err(ConfigError(format!(
                "option '{key}' needs a value: {key}=…; known options: {NAMES}, {}",
                ArbiterOptions::NAMES
            )));
        };
        let bad = |what: &str| ConfigError(format!("option '{key}={value}': {what}"));
        match key {
            "role" => {
                self.role = match value {
                    "primary" => StartRole::Primary,
                    "backup" => StartRole::Backup,
                    "solo" => StartRole::Solo,
                    "stops" => StartRole::Stops,
                    _ => return Err(bad("one of primary, backup, solo, stops")),
                }
            }
            "name" => self.name = short(value).map_err(bad)?,
            "pair" => self.pair = short(value).map_err(bad)?,
            "client-nic" => self.client_nic = Some(value.parse().map_err(bad)?),
            "log-nic" => self.log_nic = Some(value.parse().map_err(bad)?),
            "log-address" => self.log_address = Some(value.parse().map_err(bad)?),
            "log-peer" => self.log_peer = Some(value.parse().map_err(|_| bad("not an IPv4 address"))?),
            "guest-memory" => self.guest_memory = size(value).map_err(bad)?,
            "guest-mac" => self.guest_mac = mac(value).map_err(bad)?,
            "guest-args" => self.guest_args = value.to_owned(),
            "guest-seed" => self.guest_seed = Some(bytes_of_hex(value).ok_or_else(|| bad("64 hexadecimal digits"))?),
            "heartbeat" => self.heartbeat_us = duration(value).map_err(bad)?,
            "suspect" => self.suspect_us = duration(value).map_err(bad)?,
            "log-buffer" => self.log_buffer = size(value).map_err(bad)?,
            "transfer" => {
                self.transfer_stops = match value {
                    "live" => false,
                    "stop" => true,
                    _ => return Err(bad("one of live, stop")),
                }
            }
            "vectors" => {
                self.vectors = match value {
                    "none" => 0,
                    "sse" => extended::X87 | extended::SSE,
                    "avx" => extended::X87 | extended::SSE | extended::AVX,
                    "avx512" => extended::ALLOWED,
                    _ => return Err(bad("one of none, sse, avx, avx512")),
                }
            }
            "counter" => {
                self.counter = match value {
                    "auto" => Wanted::Auto,
                    "pmu" => Wanted::Pmu,
                    "ticks" => Wanted::Ticks,
                    _ => return Err(bad("one of auto, pmu, ticks")),
                }
            }
            "mmu" => {
                self.mmu = match value {
                    "auto" => mmu::Wanted::Auto,
                    "tracked" => mmu::Wanted::Tracked,
                    "native" => mmu::Wanted::Native,
                    _ => return Err(bad("one of auto, tracked, native")),
                }
            }
            "clock" if value == "rtc" => {}
            "clock" => return Err(bad("this version knows only rtc")),
            "monitor" => {
                self.monitor = match value {
                    "com2" => true,
                    "none" => false,
                    _ => return Err(bad("one of com2, none")),
                }
            }
            "break" if value == "output-rule" => self.broken_rule = Some(BrokenRule::OutputRule),
            "break" => return Err(bad("the only rule that can be broken is output-rule")),
            "test-commands" => {
                self.test_commands = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(bad("one of on, off")),
                }
            }
            "stops" => self.stops = number(value).map_err(bad)?,
            "seed" => self.seed = number(value).map_err(bad)?,
            _ => match self.arbiter.set(key, value) {
                Some(result) => result.map_err(bad)?,
                None => {
                    return Err(ConfigError(format!(
                        "option '{key}' is unknown; known options: {NAMES}, {}",
                        ArbiterOptions::NAMES
                    )));
                }
            },
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ConfigError> {
        const MIB: u64 = 1 << 20;
        let fail = |text: String| Err(ConfigError(text));
        if !self.guest_memory.is_multiple_of(2 * MIB) || !(8 * MIB..=3072 * MIB).contains(&self.guest_memory) {
            return fail(format!(
                "option 'guest-memory': {} MiB is not an even number of MiB between 8 and 3072",
                self.guest_memory / MIB
            ));
        }
        if self.guest_mac[0] & 1 != 0 || self.guest_mac == [0; 6] {
            return fail("option 'guest-mac' must be a unicast address".to_owned());
        }
        if self.heartbeat_us == 0 || self.suspect_us < 3 * self.heartbeat_us {
            return fail(format!(
                "options 'heartbeat' ({} us) and 'suspect' ({} us) contradict: suspect at least 3 heartbeats later",
                self.heartbeat_us, self.suspect_us
            ));
        }
        if self.log_buffer < 64 << 10 || self.log_buffer > 24 << 20 {
            return fail("option 'log-buffer' must be between 64K and 24M".to_owned());
        }
        let cards = [("client-nic", self.client_nic), ("log-nic", self.log_nic), ("arbiter-nic", self.arbiter.nic)];
        for (index, (name, card)) in cards.iter().enumerate() {
            if let Some((other, _)) = cards[..index].iter().find(|(_, other)| card.is_some() && other == card) {
                return fail(format!("options '{other}' and '{name}' name the same device"));
            }
        }
        self.check_pair()?;
        self.protocol().check().map_err(|error| {
            let (heartbeat, suspect) = (self.heartbeat_us, self.suspect_us);
            ConfigError(format!("options 'heartbeat' ({heartbeat} us) and 'suspect' ({suspect} us): {error}"))
        })
    }

    /// What the protocol is told.
    #[must_use]
    pub fn protocol(&self) -> pollux_ft::Config {
        pollux_ft::Config {
            heartbeat_interval: Span(self.heartbeat_us),
            suspect_after: Span(self.suspect_us),
            ack_timeout: Span(self.suspect_us.saturating_mul(3)),
            receive_buffer_bytes: self.log_buffer as usize,
            arbiter: self.arbiter.is_used(),
            first_term: Term(self.arbiter.first_term),
            ..pollux_ft::Config::default()
        }
    }

    fn check_pair(&self) -> Result<(), ConfigError> {
        if !matches!(self.role, StartRole::Primary | StartRole::Backup) {
            return Ok(());
        }
        let missing = [
            ("client-nic", self.client_nic.is_none()),
            ("log-nic", self.log_nic.is_none()),
            ("log-address", self.log_address.is_none()),
            ("log-peer", self.log_peer.is_none()),
        ];
        if let Some((name, _)) = missing.iter().find(|(_, missing)| *missing) {
            return Err(ConfigError(format!("a machine of a pair needs the option '{name}'")));
        }
        if self.log_address.map(|own| own.address) == self.log_peer {
            return Err(ConfigError("options 'log-address' and 'log-peer' are the same machine".to_owned()));
        }
        self.arbiter.check(self).map_err(ConfigError)
    }
}

impl Cidr {
    /// Whether `address` lies in this network.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        (self.address.to_bits() ^ address.to_bits()) & mask == 0
    }
}

impl FromStr for Cidr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "an address with prefix length looks like 10.1.0.1/24";
        let (address, prefix) = text.split_once('/').ok_or(SHAPE)?;
        let cidr = Self { address: address.parse().map_err(|_| SHAPE)?, prefix: prefix.parse().map_err(|_| SHAPE)? };
        if cidr.prefix <= 32 { Ok(cidr) } else { Err(SHAPE) }
    }
}

/// A name, in full: terms, pairing and heartbeats know it as it is.
fn short(text: &str) -> Result<String, &'static str> {
    if (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        Ok(text.to_owned())
    } else {
        const _: () = assert!(MAX_NAME == 32, "the message says so");
        Err("1 to 32 letters, digits, '-', '_' or '.'")
    }
}

fn bytes_of_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn number(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "not a whole number")
}

/// Bytes, with an optional suffix K, M or G (powers of 1024).
fn size(text: &str) -> Result<u64, &'static str> {
    const SHAPE: &str = "a size looks like 64M (suffixes K, M, G)";
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value: u64 = digits.parse().map_err(|_| SHAPE)?;
    value.checked_mul(1 << shift).ok_or(SHAPE)
}

/// Microseconds from a number with the suffix us, ms or s; at most an hour.
fn duration(text: &str) -> Result<u64, &'static str> {
    const SHAPE: &str = "a time looks like 100ms (suffixes us, ms, s), at most 1 hour";
    let (digits, scale) = if let Some(digits) = text.strip_suffix("us") {
        (digits, 1)
    } else if let Some(digits) = text.strip_suffix("ms") {
        (digits, 1000)
    } else if let Some(digits) = text.strip_suffix('s') {
        (digits, 1_000_000)
    } else {
        return Err(SHAPE);
    };
    let value: u64 = digits.parse().map_err(|_| SHAPE)?;
    value.checked_mul(scale).filter(|&us| us <= 3_600_000_000).ok_or(SHAPE)
}

fn mac(text: &str) -> Result<[u8; 6], &'static str> {
    const SHAPE: &str = "a MAC address looks like 52:54:00:12:34:56";
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2).ok_or(SHAPE)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| SHAPE)?;
    }
    if parts.next().is_none() { Ok(bytes) } else { Err(SHAPE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: &str = "role=primary name=castor client-nic=0:4.0 log-nic=0:5.0 log-address=10.1.0.1/24 log-peer=10.1.0.2 arbiter=none";

    #[test]
    fn a_pair_is_understood() {
        let config =
            Config::parse(&format!("{PAIR} guest-memory=32M suspect=2s counter=pmu guest-args=\"ip=1 gw=2\"")).unwrap();
        assert_eq!(config.role, StartRole::Primary);
        assert_eq!(config.guest_memory, 32 << 20);
        assert_eq!(config.suspect_us, 2_000_000);
        assert_eq!((config.counter, Config::default().counter), (Wanted::Pmu, Wanted::Auto));
        let vectors =
            ["none", "sse", "avx", "avx512"].map(|most| Config::parse(&format!("vectors={most}")).unwrap().vectors);
        assert_eq!((vectors, Config::default().vectors), ([0, 3, 7, 0xE7], 0xE7));
        assert!(Config::parse("vectors=mmx").unwrap_err().to_string().contains("avx512"));
        assert_eq!(config.guest_args, "ip=1 gw=2");
        let seeded = Config::parse(&format!("role=solo guest-seed={}", "0a".repeat(32))).unwrap();
        assert_eq!((config.guest_seed, seeded.guest_seed), (None, Some([10; 32])));
        assert_eq!(config.log_peer, Some(Ipv4Addr::new(10, 1, 0, 2)));
    }

    #[test]
    fn a_card_has_one_task_in_every_role() {
        let error = Config::parse("role=solo client-nic=0:4.0 log-nic=0:4.0").unwrap_err();
        assert!(error.0.contains("'client-nic' and 'log-nic' name the same device"), "{error}");
    }

    #[test]
    fn what_is_refused_is_named() {
        let refused = |extra: &str, named: &str| {
            let error = Config::parse(&format!("{PAIR} {extra}")).unwrap_err();
            assert!(error.0.contains(named), "{extra}: {error}");
        };
        refused("colour=blue", "'colour'");
        refused("verbose", "'verbose'");
        refused(&format!("pair={}", "x".repeat(33)), "'pair=xxx");
        assert!(Config::parse(&format!("{PAIR} pair={}", "x".repeat(32))).is_ok());
        refused("role=backup", "'role' is given twice");
        refused("guest-memory=5M", "guest-memory");
        refused("guest-memory=99999999999G", "guest-memory");
        refused("guest-mac=01:00:00:00:00:00", "guest-mac");
        refused("guest-mac=52:54", "guest-mac");
        refused("heartbeat=1s", "contradict");
        refused("heartbeat=10ms suspect=50ms", "'suspect' (50000 us): suspicion must take longer");
        refused("machine-address=10.0.2.3/24 arbiter-nic=0:5.0", "'log-nic' and 'arbiter-nic'");
        refused("suspect=fast", "suspect");
        refused("break=everything", "break");
        refused("mmu=shadow", "one of auto, tracked, native");
        refused("counter=tsc", "one of auto, pmu, ticks");
        refused("guest-args=\"open", "guest-args");
        refused("guest-seed=0123", "guest-seed");
        refused(&format!("guest-seed={}", "+1".repeat(32)), "guest-seed");
        for (line, named) in [
            ("role=backup", "client-nic"),
            ("role=king", "role=king"),
            (&PAIR.replace("0:5.0", "0:4.0"), "same device"),
            (&PAIR.replace("10.1.0.2", "10.1.0.1"), "same machine"),
        ] {
            assert!(Config::parse(line).unwrap_err().0.contains(named), "{line}");
        }
    }

    #[test]
    fn networks_contain_their_addresses() {
        let contains =
            |network: &str, address: &str| network.parse::<Cidr>().unwrap().contains(address.parse().unwrap());
        assert!(contains("10.1.0.1/24", "10.1.0.255") && !contains("10.1.0.1/24", "10.1.1.1"));
        assert!(contains("10.1.0.1/0", "192.0.2.1"));
        assert!(contains("10.1.0.1/32", "10.1.0.1") && !contains("10.1.0.1/32", "10.1.0.0"));
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line in ".{0,200}") {
            let _ = Config::parse(&line);
        }
    }
}
