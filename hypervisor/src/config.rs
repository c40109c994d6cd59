//! The hypervisor's options, from the boot loader's command line. Unknown or contradictory ones are refused by name.

mod arbiter;
#[cfg(test)]
mod tests;
mod values;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::ops::RangeInclusive;

use pollux_boot::command_line::{CommandOption, options};
use pollux_ft::key::KEY_BYTES;
use pollux_ft::{PairKey, Protection, Span, Term};

pub use self::arbiter::{ArbiterOptions, Routes};
pub use self::values::Cidr;
pub(crate) use self::values::duration;
use self::values::{
    RECORD_PORT, SYSLOG_PORT, bytes_of_hex, cold_start, disk, http, io_port, mac, number, one_of, server, short, size,
};
use crate::broken::BrokenRule;
use crate::counter::choose::Wanted;
use crate::extended;
use crate::host::pci::Bdf;
use crate::host::watchdog;
use crate::mmu;
use crate::platform::virtio::block::Place;

/// What this machine starts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartRole {
    /// Runs the guest and waits for a backup.
    Primary,
    /// Asks the twin for the guest's state and follows it.
    Backup,
    /// Joins a primary if there is one, and creates the guest if no machine has one: both machines start as this.
    Auto,
    /// The same for a recording: has no clients, and never goes live.
    Replay,
    /// Runs the guest without replication.
    Solo,
    /// Runs the exact-stop property test on the guest image, twice, and ends.
    Stops,
    /// Says whether this machine can run Pollux, without a guest, and ends.
    Probe,
}

/// The guest's disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Disk {
    /// There is none.
    #[default]
    None,
    /// Memory of so many bytes, zeros at first.
    Ram(u64),
    /// Memory, filled from the boot module `disk`.
    Image,
    /// A drive of the machine's own.
    Drive(DriveChoice),
}

/// Which part of which drive is the guest's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveChoice {
    /// The NVMe controller.
    pub at: Bdf,
    /// Which part of what it stores.
    pub part: Part,
    /// Size of the guest's disk in bytes; `None`: all that there is.
    pub bytes: Option<u64>,
    /// A guest may begin its life with what is on it although the other machine's may be newer.
    pub stale: bool,
}

/// Which part of a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it, if it has no partition table.
    Whole,
    /// All of it, whatever is there.
    WholeByForce,
    /// The partition with this name or GUID.
    Named(String),
}

/// All options with their meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `role=primary|backup|auto|solo|stops|probe|replay`.
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
    /// `record=A.B.C.D[:PORT]`: a recorder on the log network, which gets a copy of what this machine is told as a backup.
    pub record: Option<SocketAddrV4>,
    /// Options about the arbiter.
    pub arbiter: ArbiterOptions,
    /// `guest-memory=64M`: guest RAM in bytes.
    pub guest_memory: u64,
    /// `disk=none|image|ram:64M|nvme:B:D.F[,partition=NAME|GUID][,whole][,size=SIZE][,stale]`: the guest's disk.
    pub disk: Disk,
    /// `disk-latency=0us`: how long each request to the disk takes; 0: they are done at once, where the guest makes them.
    pub disk_latency: Span,
    /// `guest-mac=52:54:00:12:34:56`: the guest's own MAC address.
    pub guest_mac: [u8; 6],
    /// `guest-sources=own|any`: whether the guest may send in the name of other hosts, as one that bridges does.
    pub guest_bridges: bool,
    /// `guest-args="…"`: the guest's command line.
    pub guest_args: String,
    /// `guest-seed=HEX`: 32 bytes that the guest's random numbers rest on, too; without it they come from this machine alone.
    pub guest_seed: Option<[u8; 32]>,
    /// `insecure=on|off`: this pair needs no key.
    pub insecure: bool,
    /// `heartbeat=100ms`: time between heartbeats.
    pub heartbeat: Span,
    /// `suspect=1000ms`: silence after which the twin is given up.
    pub suspect: Span,
    /// `cold-start=wait|alone-after:TIME`: after how long without a sign of life `role=auto` takes the twin for dead.
    pub alone_after: Option<Span>,
    /// `on-halt=stay|reset`: whether a machine whose part has ended by an error starts anew.
    pub resets: bool,
    /// `resets-an-hour=60`: how often at most.
    pub resets_an_hour: u64,
    /// `watchdog=off|TIME`: after how long without progress the machine's watchdog resets it.
    pub watchdog: Option<Span>,
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
    /// `http=on|off|PORT`: at which port of its own address this machine answers people.
    pub http: Option<u16>,
    /// `syslog=A.B.C.D[:PORT]`: whom this machine tells what happens, from its own address.
    pub syslog: Option<SocketAddrV4>,
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
    /// `exit-port=PORT`: the I/O port that a probe's verdict is written to, see [`crate::probe::EXIT_GO`].
    pub exit_port: Option<u16>,
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
            record: None,
            arbiter: ArbiterOptions::default(),
            guest_memory: 64 << 20,
            disk: Disk::None,
            disk_latency: Span(0),
            guest_mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            guest_bridges: false,
            guest_args: String::new(),
            guest_seed: None,
            insecure: false,
            heartbeat: Span::from_millis(100),
            suspect: Span::from_millis(1000),
            alone_after: None,
            resets: false,
            resets_an_hour: 60,
            watchdog: None,
            log_buffer: 4 << 20,
            transfer_stops: false,
            counter: Wanted::Auto,
            vectors: extended::ALLOWED,
            mmu: mmu::Wanted::default(),
            http: None,
            syslog: None,
            monitor: true,
            broken_rule: None,
            test_commands: false,
            stops: 1000,
            seed: 1,
            exit_port: None,
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

/// Guest RAM that there can be, in bytes.
pub const GUEST_MEMORY: RangeInclusive<u64> = 8 << 20..=3072 << 20;

/// A slower disk could not be told from one that hangs.
const MAX_DISK_LATENCY: Span = Span::from_millis(1000);

/// Bytes that may wait for a recorder.
const RECORD_BYTES: usize = 12 << 20;
/// Most bytes of log that may wait. What waits for a recorder comes out of the same memory.
const MAX_LOG_BUFFER: u64 = 24 << 20;

const ON_OFF: &[(&str, bool)] = &[("on", true), ("off", false)];

/// A turn of the loop may take almost as long as this: a guest with much memory is cleared, or hashed, within one.
const SHORTEST_WATCH: Span = Span::from_millis(2000);

/// All option names, for the message about an unknown one.
const NAMES: &str = "role, name, pair, client-nic, log-nic, log-address, log-peer, record, guest-memory, disk, disk-latency, guest-mac, guest-sources, guest-args, \
                     guest-seed, insecure, heartbeat, suspect, cold-start, on-halt, resets-an-hour, watchdog, log-buffer, transfer, counter, vectors, mmu, clock, http, syslog, monitor, break, test-commands, stops, seed, exit-port";

impl Config {
    /// Reads a command line.
    ///
    /// # Errors
    /// Names the option that is unknown, malformed, given twice, missing, or in contradiction to another.
    pub fn parse(line: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut seen: heapless::Vec<&str, 64> = heapless::Vec::new();
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
                self.role = one_of(
                    value,
                    &[
                        ("primary", StartRole::Primary),
                        ("backup", StartRole::Backup),
                        ("auto", StartRole::Auto),
                        ("solo", StartRole::Solo),
                        ("stops", StartRole::Stops),
                        ("probe", StartRole::Probe),
                        ("replay", StartRole::Replay),
                    ],
                )
                .map_err(|text| bad(&text))?
            }
            "name" => self.name = short(value).map_err(bad)?,
            "pair" => self.pair = short(value).map_err(bad)?,
            "client-nic" => self.client_nic = Some(value.parse().map_err(bad)?),
            "log-nic" => self.log_nic = Some(value.parse().map_err(bad)?),
            "log-address" => self.log_address = Some(value.parse().map_err(bad)?),
            "log-peer" => self.log_peer = Some(value.parse().map_err(|_| bad("not an IPv4 address"))?),
            "record" => self.record = Some(server(value, RECORD_PORT).map_err(|text| bad(&text))?),
            "syslog" => self.syslog = Some(server(value, SYSLOG_PORT).map_err(|text| bad(&text))?),
            "guest-memory" => self.guest_memory = size(value).map_err(bad)?,
            "disk" => self.disk = disk(value).map_err(|text| bad(&text))?,
            "disk-latency" => self.disk_latency = duration(value).map_err(bad)?,
            "guest-mac" => self.guest_mac = mac(value).map_err(bad)?,
            "guest-sources" => {
                self.guest_bridges = one_of(value, &[("own", false), ("any", true)]).map_err(|text| bad(&text))?
            }
            "guest-args" => self.guest_args = value.to_owned(),
            "guest-seed" => self.guest_seed = Some(bytes_of_hex(value).ok_or_else(|| bad("64 hexadecimal digits"))?),
            "insecure" => self.insecure = one_of(value, ON_OFF).map_err(|text| bad(&text))?,
            "heartbeat" => self.heartbeat = duration(value).map_err(bad)?,
            "suspect" => self.suspect = duration(value).map_err(bad)?,
            "cold-start" => self.alone_after = cold_start(value).map_err(bad)?,
            "on-halt" => self.resets = one_of(value, &[("stay", false), ("reset", true)]).map_err(|text| bad(&text))?,
            "resets-an-hour" => self.resets_an_hour = number(value).map_err(bad)?,
            "watchdog" => self.watchdog = if value == "off" { None } else { Some(duration(value).map_err(bad)?) },
            "log-buffer" => self.log_buffer = size(value).map_err(bad)?,
            "transfer" => {
                self.transfer_stops = one_of(value, &[("live", false), ("stop", true)]).map_err(|text| bad(&text))?
            }
            "vectors" => {
                self.vectors = one_of(
                    value,
                    &[
                        ("none", 0),
                        ("sse", extended::X87 | extended::SSE),
                        ("avx", extended::X87 | extended::SSE | extended::AVX),
                        ("avx512", extended::ALLOWED),
                    ],
                )
                .map_err(|text| bad(&text))?
            }
            "counter" => {
                self.counter = one_of(value, &[("auto", Wanted::Auto), ("pmu", Wanted::Pmu), ("ticks", Wanted::Ticks)])
                    .map_err(|text| bad(&text))?
            }
            "mmu" => {
                self.mmu = one_of(
                    value,
                    &[("auto", mmu::Wanted::Auto), ("tracked", mmu::Wanted::Tracked), ("native", mmu::Wanted::Native)],
                )
                .map_err(|text| bad(&text))?
            }
            "clock" if value == "rtc" => {}
            "clock" => return Err(bad("this version knows only rtc")),
            "http" => self.http = http(value).map_err(bad)?,
            "monitor" => self.monitor = one_of(value, &[("com2", true), ("none", false)]).map_err(|text| bad(&text))?,
            "break" => {
                let names = BrokenRule::ALL.map(|rule| (rule.name(), Some(rule)));
                self.broken_rule = one_of(value, &names).map_err(|text| bad(&text))?;
            }
            "test-commands" => self.test_commands = one_of(value, ON_OFF).map_err(|text| bad(&text))?,
            "stops" => self.stops = number(value).map_err(bad)?,
            "seed" => self.seed = number(value).map_err(bad)?,
            "exit-port" => self.exit_port = Some(io_port(value).map_err(bad)?),
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
        if !self.guest_memory.is_multiple_of(2 * MIB) || !GUEST_MEMORY.contains(&self.guest_memory) {
            return fail(format!(
                "option 'guest-memory': {} MiB is not an even number of MiB between {} and {}",
                self.guest_memory / MIB,
                GUEST_MEMORY.start() / MIB,
                GUEST_MEMORY.end() / MIB
            ));
        }
        if self.exit_port.is_some() && self.role != StartRole::Probe {
            return fail("option 'exit-port' is for role=probe".to_owned());
        }
        if self.disk_takes_time() && self.disk == Disk::None {
            return fail("option 'disk-latency': there is no disk; say which with 'disk'".to_owned());
        }
        if matches!(self.disk, Disk::Drive(_)) {
            self.check_drive()?;
        }
        if self.disk_latency > MAX_DISK_LATENCY {
            return fail("option 'disk-latency' must be at most 1s".to_owned());
        }
        if self.guest_mac[0] & 1 != 0 || self.guest_mac == [0; 6] {
            return fail("option 'guest-mac' must be a unicast address".to_owned());
        }
        if self.heartbeat.0 == 0 || self.suspect.0 < 3 * self.heartbeat.0 {
            return fail(format!(
                "options 'heartbeat' ({} us) and 'suspect' ({} us) contradict: suspect at least 3 heartbeats later",
                self.heartbeat.0, self.suspect.0
            ));
        }
        if !(64 << 10..=MAX_LOG_BUFFER).contains(&self.log_buffer) {
            return fail(format!("option 'log-buffer' must be between 64K and {}M", MAX_LOG_BUFFER / MIB));
        }
        let beside_record = MAX_LOG_BUFFER - RECORD_BYTES as u64;
        if self.record.is_some() && self.log_buffer > beside_record {
            return fail(format!("option 'log-buffer' must be at most {}M with 'record'", beside_record / MIB));
        }
        if !(1..=3600).contains(&self.resets_an_hour) {
            return fail("option 'resets-an-hour' must be between 1 and 3600".to_owned());
        }
        self.check_watchdog()?;
        if self.alone_after.is_some() && self.role != StartRole::Auto {
            return fail(
                "option 'cold-start' is for machines that find out by themselves what they are: role=auto".to_owned(),
            );
        }
        if self.resets && self.role == StartRole::Primary {
            return fail(
                "option 'on-halt=reset' would start a new guest beside the successor's: give it with role=auto or role=backup"
                    .to_owned(),
            );
        }
        if self.alone_after.is_some() && !self.arbiter.is_used() {
            return fail(
                "option 'cold-start=alone-after' needs an arbiter, which tells a new guest from the old one".to_owned(),
            );
        }
        let cards = [("client-nic", self.client_nic), ("log-nic", self.log_nic), ("arbiter-nic", self.arbiter.nic)];
        for (index, (name, card)) in cards.iter().enumerate() {
            if let Some((other, _)) = cards[..index].iter().find(|(_, other)| card.is_some() && other == card) {
                return fail(format!("options '{other}' and '{name}' name the same device"));
            }
        }
        self.check_station()?;
        self.check_pair()?;
        self.protocol().check().map_err(|error| {
            let (heartbeat, suspect) = (self.heartbeat.0, self.suspect.0);
            ConfigError(format!("options 'heartbeat' ({heartbeat} us) and 'suspect' ({suspect} us): {error}"))
        })
    }

    /// Whether this machine has a place on the client network where it is to answer.
    fn check_station(&self) -> Result<(), ConfigError> {
        if !self.is_of_a_pair() {
            self.arbiter.check_machine(self).map_err(ConfigError)?;
        }
        let asked = [("http", self.http.is_some()), ("syslog", self.syslog.is_some())];
        let Some((name, _)) = asked.iter().find(|(_, given)| *given) else { return Ok(()) };
        let Some(own) = self.arbiter.machine_address else {
            return Err(ConfigError(format!("option '{name}' needs 'machine-address', which is missing")));
        };
        if self.client_nic.is_none() && self.arbiter.nic.is_none() {
            return Err(ConfigError(format!(
                "option '{name}' needs a card of the client network: 'client-nic' or 'arbiter-nic'"
            )));
        }
        if let Some(server) = self.syslog.map(|server| *server.ip())
            && (server == own.address || !own.contains(server) && self.arbiter.machine_gateway.is_none())
        {
            return Err(ConfigError(
                "option 'syslog' must be another host in the network of 'machine-address', or there must be a \
                 'machine-gateway'"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Whether this machine has something to say or to hear on the client network in its own name.
    #[must_use]
    pub fn has_station(&self) -> bool {
        self.arbiter.machine_address.is_some()
            && (self.arbiter.is_used() || self.http.is_some() || self.syslog.is_some())
    }

    /// What a drive of the machine's own cannot be used for.
    fn check_drive(&self) -> Result<(), ConfigError> {
        let fail = |text: &str| Err(ConfigError(format!("option 'disk=nvme': {text}")));
        match self.role {
            StartRole::Replay => fail("a recording does not hold what was on the drive"),
            _ if self.record.is_some() => fail("a recording ('record') would not hold what is on the drive"),
            _ => Ok(()),
        }
    }

    /// Whether requests to the disk end when the machine says so, by entries in the log.
    #[must_use]
    pub const fn disk_takes_time(&self) -> bool {
        self.disk_latency.0 > 0 || matches!(self.disk, Disk::Drive(_))
    }

    /// Where the bytes of the guest's disk lie.
    #[must_use]
    pub const fn disk_place(&self) -> Place {
        match self.disk {
            Disk::Drive(_) => Place::Drive,
            _ if self.disk_takes_time() => Place::TimedMemory,
            _ => Place::Memory,
        }
    }

    /// What the protocol is told.
    #[must_use]
    pub fn protocol(&self) -> pollux_ft::Config {
        let usual = pollux_ft::Config::default();
        pollux_ft::Config {
            heartbeat_interval: self.heartbeat,
            suspect_after: self.suspect,
            batch_delay: usual.batch_delay.min(Span(self.suspect.0 / 4)),
            ack_timeout: Span(self.suspect.0.saturating_mul(3)),
            receive_buffer_bytes: self.log_buffer as usize,
            arbiter: self.arbiter.is_used(),
            sealed_arbiter: self.arbiter.is_used() && !self.arbiter.etcd,
            first_term: Term(self.arbiter.first_term),
            alone_after: self.alone_after,
            record_bytes: if self.record.is_some() { RECORD_BYTES } else { 0 },
            follows_only: self.role == StartRole::Replay,
            goes_live_undrained: self.broken_rule == Some(BrokenRule::Drain),
            ..usual
        }
    }

    /// What protects the words of this machine and its twin; of two keys, the pair's and the one that is to follow it, if
    /// there is one. `good_random` says that this machine has random numbers that nobody can guess.
    ///
    /// # Errors
    /// When a machine of a pair has no key and was not told to do without, or both, or cannot use it safely.
    pub fn protection(
        &self,
        [key, next]: [Option<&[u8; KEY_BYTES]>; 2],
        good_random: bool,
    ) -> Result<Protection, ConfigError> {
        let fail = |text: &str| Err(ConfigError(text.to_owned()));
        if !self.is_of_a_pair() {
            return Ok(Protection::default());
        }
        match key {
            None if next.is_some() => fail("the module 'key-next' follows the module 'key', which is missing"),
            None if self.insecure && self.arbiter.needs_key() => fail(
                "option 'arbiter': it is asked in words that are sealed with the pair's key, and this pair has none \
                 ('insecure=on'): an etcd is asked in plain words with arbiter=etcd://…",
            ),
            None if self.insecure => Ok(Protection::default()),
            None => fail(
                "a machine of a pair needs the pair's key as a module called 'key' ('cargo xtask key new' makes one); to do \
                 without, and let everybody on the log network decide who runs the guest, say insecure=on",
            ),
            Some(_) if self.insecure => {
                fail("option 'insecure=on' and the module 'key' contradict: one of them must go")
            }
            Some(_) if !good_random => fail(
                "the pair's key is of no use without random numbers, and this processor has neither RDSEED nor RDRAND: pass \
                 a module called 'seed' with 32 random bytes or more, other ones for each machine",
            ),
            Some(key) => {
                let mut protection = Protection::from(PairKey::new(key));
                let added = next.map_or(Ok(()), |next| protection.add(PairKey::new(next)));
                added.map_err(|_| ConfigError("the modules 'key' and 'key-next' are the same key".to_owned()))?;
                Ok(protection)
            }
        }
    }

    fn check_watchdog(&self) -> Result<(), ConfigError> {
        let Some(patience) = self.watchdog else { return Ok(()) };
        if !self.resets {
            return Err(ConfigError(
                "option 'watchdog' resets a machine that hangs, and on-halt=stay says that it stays: give on-halt=reset"
                    .to_owned(),
            ));
        }
        if patience < SHORTEST_WATCH || patience > watchdog::LONGEST {
            let [least, most] = [SHORTEST_WATCH, watchdog::LONGEST].map(|span| span.0 / 1_000_000);
            return Err(ConfigError(format!("option 'watchdog' must be off, or between {least}s and {most}s")));
        }
        Ok(())
    }

    fn is_of_a_pair(&self) -> bool {
        matches!(self.role, StartRole::Primary | StartRole::Backup | StartRole::Auto | StartRole::Replay)
    }

    fn check_pair(&self) -> Result<(), ConfigError> {
        if !self.is_of_a_pair() {
            return Ok(());
        }
        let replays = self.role == StartRole::Replay;
        let meaningless = [
            ("client-nic", self.client_nic.is_some()),
            ("arbiter", self.arbiter.is_used()),
            ("record", self.record.is_some()),
            ("http", self.http.is_some()),
            ("syslog", self.syslog.is_some()),
        ];
        if let Some((name, _)) = meaningless.iter().find(|(_, given)| replays && *given) {
            return Err(ConfigError(format!(
                "option '{name}': a machine that replays has no clients and never goes live"
            )));
        }
        let missing = [
            ("client-nic", self.client_nic.is_none() && !replays),
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
        if let (Some(record), Some(own)) = (self.record, self.log_address)
            && (!own.contains(*record.ip()) || *record.ip() == own.address || Some(*record.ip()) == self.log_peer)
        {
            return Err(ConfigError(
                "option 'record': the recorder must be another host on the log network".to_owned(),
            ));
        }
        if replays {
            return Ok(());
        }
        self.arbiter.check(self).map_err(ConfigError)
    }
}
