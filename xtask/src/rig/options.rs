//! The hypervisor's command line for each machine of a rig.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::arbiter::{Asked, ETCD};
use super::emulator::{Emulator, Purpose, qemu};
use super::network::{Network, arbiter_address};
use super::recording::RECORDER;
use super::{SLOTS, Slot};
use crate::net::{Forward, Protocol};
use crate::secret::Secret;
use crate::units::{format_size, parse_size};

/// The guest's address on the client network.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The guest's port that clients are led to.
pub const GUEST_PORT: u16 = 6379;
/// The port at which machines answer by HTTP.
pub const HTTP_PORT: u16 = 80;
/// Guest memory that hypervisors take, in bytes.
pub const GUEST_MEMORY: RangeInclusive<u64> = 8 << 20..=3 << 30;
/// Memory of a machine for hypervisor and firmware, in bytes.
pub const HYPERVISOR_MEMORY: u64 = 96 << 20;
/// What a guest is told unless `--guest-args` says otherwise.
pub const GUEST_ARGUMENTS: &str = "ip=10.0.2.15/24 gw=10.0.2.2";
/// The guest's own hardware address, on whichever machine it lives.
pub const GUEST_MAC: &str = "52:54:00:12:34:56";

/// Distance of heartbeats to a machine that replays, and how long it waits for more of the recording: the longest there is.
pub const REPLAY_HEARTBEAT: Duration = Duration::from_secs(60);
/// See [`REPLAY_HEARTBEAT`].
pub const REPLAY_SUSPECT: Duration = Duration::from_secs(3600);
/// Options that say nothing of the guest, and are not for who replays it.
const NOT_REPLAYED: [&str; 13] = [
    "client-nic",
    "http",
    "insecure",
    "syslog",
    "record",
    "guest-seed",
    "first-term",
    "test-commands",
    "transfer",
    "cold-start",
    "on-halt",
    "resets-an-hour",
    "watchdog",
];

/// The part that a machine is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Creates the guest and waits for a backup while running it.
    Primary,
    /// Gets the guest by state transfer.
    Backup,
    /// Finds out by itself which of these it is.
    Auto,
    /// Runs the guest without replication.
    Solo,
}

impl Part {
    /// The value of `role=`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Auto => "auto",
            Self::Solo => "solo",
        }
    }
}

/// An option that the user gives: `[MACHINE:]KEY=VALUE`, or a bare `KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenOption {
    /// The machine that it is meant for; all if none is named.
    slot: Option<Slot>,
    key: String,
    value: Option<String>,
}

/// Reads the value of `--forward`: `PORT:GUESTPORT`, with `/udp` behind for UDP.
pub fn parse_forward(text: &str) -> Result<Forward, String> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err(format!("`{text}`: the protocols are tcp and udp")),
    };
    let ports = ports.split_once(':').and_then(|(local, guest)| Some((local.parse().ok()?, guest.parse().ok()?)));
    match ports {
        Some((port, guest_port)) if guest_port != 0 => Ok(Forward::new(protocol, port, guest_port)),
        _ => Err(format!("`{text}` is no pair of ports such as 2222:22 or 5353:53/udp")),
    }
}

/// The role of a machine that tests exact stops and nothing else.
const STOPS: &str = "stops";
/// The name of a pair whose options give it none, as in the hypervisor.
const DEFAULT_PAIR: &str = "pollux";

impl GivenOption {
    /// Whether all machines shall do without a key.
    pub fn is_insecure(&self) -> bool {
        self.slot.is_none() && self.key == "insecure" && self.value.as_deref() == Some("on")
    }
}

impl FromStr for GivenOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        let (slot, key) = match key.split_once(':') {
            Some((name, key)) => (Some(name.parse()?), key),
            None => (None, key),
        };
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(format!("`{text}` is no option such as heartbeat=50ms or pollux:guest-memory=32M"));
        }
        check_text(value.unwrap_or_default())?;
        Ok(Self { slot, key: key.to_owned(), value: value.map(str::to_owned) })
    }
}

/// The hypervisor's command line knows no escapes.
fn check_text(text: &str) -> Result<(), String> {
    match text.chars().find(|&c| c == '"' || c.is_control()) {
        Some(bad) => Err(format!("{bad:?} cannot be passed on the hypervisor's command line")),
        None => Ok(()),
    }
}

/// Checks the value of `--guest-args`.
pub fn parse_guest_arguments(text: &str) -> Result<String, String> {
    check_text(text).map(|()| text.to_owned())
}

/// What the hypervisor keeps for itself at the end of a drive, in bytes.
const DRIVE_RESERVED: u64 = 1 << 20;

/// The guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Memory of the machines, so many bytes of it.
    Ram(u64),
    /// The same, filled from a file of this length.
    Image(u64),
    /// A drive of each machine's own; so many bytes of it are the guest's.
    Drive(u64),
}

impl Disk {
    /// The value of `disk=`.
    pub fn option(self) -> String {
        match self {
            Self::Ram(bytes) => format!("ram:{}", format_size(bytes)),
            Self::Image(_) => "image".to_owned(),
            Self::Drive(bytes) => format!("nvme:{},size={}", qemu::DRIVE, format_size(bytes)),
        }
    }

    /// How much memory it takes of a machine.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Ram(bytes) | Self::Image(bytes) => bytes,
            Self::Drive(_) => 0,
        }
    }

    /// How much a drive of each machine has to hold, in bytes: the guest's part, and what the hypervisor needs.
    pub fn drive_bytes(self) -> Option<u64> {
        match self {
            Self::Drive(bytes) => Some(bytes.next_multiple_of(4096) + DRIVE_RESERVED),
            Self::Ram(_) | Self::Image(_) => None,
        }
    }
}

/// What the options of all machines of a rig have in common.
#[derive(Debug, Clone)]
pub struct Common {
    /// The guest's memory in bytes.
    pub guest_memory: u64,
    /// The guest's disk, if it has one.
    pub disk: Option<Disk>,
    /// The guest's command line.
    pub guest_arguments: String,
    /// What the guest's random numbers rest on, as `guest-seed=` wants it.
    pub guest_seed: String,
    /// The pair's key.
    pub key: Option<Secret>,
    /// The key that follows it, while the pair changes from one to the other.
    pub next_key: Option<Secret>,
    /// Whether the machines are recorded.
    pub record: bool,
    /// What the user gave; wins over ours.
    pub given: Vec<GivenOption>,
}

impl Common {
    /// The pair's keys, the newest one first.
    pub fn keys(&self) -> impl Iterator<Item = &Secret> {
        self.next_key.iter().chain(&self.key)
    }

    /// The keys as modules of a machine.
    pub fn key_modules(&self) -> impl Iterator<Item = (&'static str, Secret)> {
        let keys = [("key", &self.key), ("key-next", &self.next_key)];
        keys.into_iter().filter_map(|(name, key)| Some((name, key.clone()?)))
    }

    /// The name of the pair.
    pub fn pair(&self) -> &str {
        let given = self.given.iter().rev().find(|option| option.key == "pair" && option.slot.is_none());
        given.and_then(|option| option.value.as_deref()).unwrap_or(DEFAULT_PAIR)
    }
}

/// A command line in the making: keys are unique and keep their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine(Vec<(String, Option<String>)>);

impl CommandLine {
    /// The options of the machine in `slot`, started as `part` in `emulator`; `asked` says how the arbiter is asked, and is none
    /// if the pair has no arbiter.
    pub fn new(slot: Slot, part: Part, emulator: Emulator, asked: Option<Asked>, common: &Common) -> Self {
        let mut line = Self::default();
        line.set("role", Some(part.word()));
        line.set("name", Some(slot.name()));
        line.set("client-nic", emulator.pci_address(Purpose::Client).as_deref());
        if part != Part::Solo {
            let patience = emulator.patience();
            line.set("log-nic", emulator.pci_address(Purpose::Log).as_deref());
            line.set("log-address", Some(&format!("{}/24", slot.log_address())));
            line.set("log-peer", Some(slot.twin().log_address()));
            line.set("heartbeat", Some(patience.heartbeat));
            line.set("suspect", Some(patience.suspect));
            if common.key.is_none() {
                line.set("insecure", Some("on"));
            }
            if common.record {
                line.set("record", Some(&RECORDER.to_string()));
            }
            line.set_arbiter(part, asked);
            line.set_station(slot, emulator);
        }
        line.set("guest-memory", Some(&format_size(common.guest_memory)));
        line.set_disk(common);
        line.set("guest-mac", Some(GUEST_MAC));
        line.set("clock", Some("rtc"));
        line.set("monitor", Some("com2"));
        line.set("guest-args", Some(&common.guest_arguments));
        for option in common.given.iter().filter(|option| option.slot.is_none_or(|meant| meant == slot)) {
            line.set(&option.key, option.value.as_deref());
        }
        // What the test of stops prints is to be the same every time.
        if line.value("role") != Some(STOPS) {
            line.complete(&[("guest-seed", &common.guest_seed)]);
        }
        line
    }

    fn set_arbiter(&mut self, part: Part, asked: Option<Asked>) {
        let Some(Asked { first_term, sealed }) = asked else { return self.set("arbiter", Some("none")) };
        let [client, log] = Network::ALL.map(arbiter_address);
        let arbiter = if sealed { format!("{},{}", log.ip(), client.ip()) } else { format!("{ETCD}{log},{client}") };
        self.set("arbiter", Some(&arbiter));
        if part == Part::Primary && first_term > 1 {
            self.set("first-term", Some(&first_term.to_string()));
        }
    }

    /// The machine's own place on the client network, where it asks the arbiter and answers people.
    fn set_station(&mut self, slot: Slot, emulator: Emulator) {
        self.set("machine-address", Some(&format!("{}/24", slot.client_address())));
        self.set("machine-peer", Some(&slot.twin().client_address().to_string()));
        if let Some(nic) = emulator.pci_address(Purpose::Machine) {
            self.set("arbiter-nic", Some(&nic));
        }
        self.set("http", Some("on"));
    }

    /// Says which disk the guest has, unless that was said already.
    pub fn set_disk(&mut self, common: &Common) {
        if let Some(disk) = common.disk {
            self.complete(&[("disk", &disk.option())]);
        }
    }

    /// That of a machine that replays a recording, whose machine had the options `recorded`, as castor's backup.
    pub fn replay(recorded: &[String], emulator: Emulator) -> Self {
        let mut line = Self::default();
        line.set("role", Some("replay"));
        line.set("name", Some("replay"));
        line.set("log-nic", emulator.pci_address(Purpose::Log).as_deref());
        line.set("log-address", Some(&format!("{}/24", Slot::Pollux.log_address())));
        line.set("log-peer", Some(Slot::Castor.log_address()));
        line.set("heartbeat", Some(&format!("{}ms", REPLAY_HEARTBEAT.as_millis())));
        line.set("suspect", Some(&format!("{}ms", REPLAY_SUSPECT.as_millis())));
        for word in recorded {
            let (key, value) = word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value)));
            let of_the_pair = ["arbiter", "machine-"].iter().any(|part| key.starts_with(part));
            if !of_the_pair && !NOT_REPLAYED.contains(&key) && line.value(key).is_none() {
                line.set(key, value);
            }
        }
        line
    }

    /// What was given, for no machine in particular.
    ///
    /// # Errors
    /// When an option is meant for one machine of a rig.
    pub fn given(options: &[GivenOption]) -> Result<Self, String> {
        let mut line = Self::default();
        for option in options {
            if let Some(slot) = option.slot {
                return Err(format!("there is no machine {} here: give `{}` alone", slot.name(), option.key));
            }
            line.set(&option.key, option.value.as_deref());
        }
        Ok(line)
    }

    /// Sets the options among `defaults` that are not there yet.
    pub fn complete(&mut self, defaults: &[(&str, &str)]) {
        for (key, value) in defaults {
            if !self.0.iter().any(|(present, _)| present == key) {
                self.set(key, Some(value));
            }
        }
    }

    /// The value of an option.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(present, _)| present == key)?.1.as_deref()
    }

    /// The memory of a machine with these options, in bytes, whole MiB: its guest's and its own, and what the boot loader
    /// puts beside them: the guest's files of `files` bytes. Memory and disk of the guest are as in `usual` if no option that
    /// makes sense says otherwise; of one that makes none the hypervisor complains.
    pub fn machine_memory(&self, usual: &Common, files: u64) -> u64 {
        let size = |text: Option<&str>| parse_size(text?).ok().filter(|bytes| GUEST_MEMORY.contains(bytes));
        let guest = size(self.value("guest-memory")).unwrap_or(usual.guest_memory);
        let ram = self.value("disk").and_then(|disk| disk.strip_prefix("ram:")).and_then(|text| parse_size(text).ok());
        let disk = ram.filter(|bytes| bytes <= GUEST_MEMORY.end()).or(usual.disk.map(Disk::bytes)).unwrap_or(0);
        (guest + disk + HYPERVISOR_MEMORY + files).next_multiple_of(1 << 20)
    }

    /// The options one by one, without any quotes.
    pub fn words(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(key, value)| match value {
            None => key.clone(),
            Some(value) => format!("{key}={value}"),
        })
    }

    fn set(&mut self, key: &str, value: Option<&str>) {
        let value = value.map(str::to_owned);
        match self.0.iter_mut().find(|(present, _)| present == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            match value {
                None => write!(f, "{space}{key}")?,
                Some(value) if value.is_empty() || value.contains(char::is_whitespace) => {
                    write!(f, "{space}{key}=\"{value}\"")?;
                }
                Some(value) => write!(f, "{space}{key}={value}")?,
            }
        }
        Ok(())
    }
}

impl Slot {
    /// The machine's name.
    pub fn name(self) -> &'static str {
        ["castor", "pollux"][self.index()]
    }

    /// The other one.
    pub fn twin(self) -> Self {
        SLOTS[1 - self.index()]
    }

    /// Its address on the log network.
    pub fn log_address(self) -> &'static str {
        ["10.1.0.1", "10.1.0.2"][self.index()]
    }

    /// Its own address on the client network.
    pub fn client_address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, [21, 22][self.index()])
    }

    /// The hardware address of its NIC in `network`.
    pub fn mac(self, network: Network) -> &'static str {
        match network {
            Network::Client => ["52:54:00:10:00:01", "52:54:00:10:00:02"][self.index()],
            Network::Log => ["52:54:00:20:00:01", "52:54:00:20:00:02"][self.index()],
        }
    }
}

impl FromStr for Slot {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let slot = SLOTS.into_iter().find(|slot| slot.name() == name);
        slot.ok_or_else(|| format!("there is no machine `{name}`: they are castor and pollux"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::accelerator::Accelerator;
    use crate::rig::emulator::{Boot, Hardware, NicModel, RtcClock};

    const QEMU: Emulator =
        Emulator::Qemu(Accelerator::Tcg, Hardware { nic: NicModel::E1000, rtc: RtcClock::Host, boot: Boot::Kernel });

    fn common(given: Vec<GivenOption>) -> Common {
        Common {
            guest_memory: 64 << 20,
            disk: None,
            guest_arguments: GUEST_ARGUMENTS.into(),
            guest_seed: "5eed".into(),
            key: Some(Secret::draw().unwrap()),
            next_key: None,
            record: false,
            given,
        }
    }

    fn line_in(emulator: Emulator, slot: Slot, part: Part, first_term: Option<u64>, given: &[&str]) -> String {
        let given = given.iter().map(|text| text.parse().unwrap()).collect();
        let common = common(given);
        let asked = first_term.map(|first_term| Asked { first_term, sealed: true });
        CommandLine::new(slot, part, emulator, asked, &common).to_string()
    }

    #[test]
    fn a_pair_without_a_key_says_so() {
        let line = |part, key| {
            let common = Common { key, ..common(Vec::new()) };
            CommandLine::new(Slot::Castor, part, QEMU, None, &common).to_string()
        };
        assert!(line(Part::Primary, None).contains(" insecure=on "));
        for secure in [line(Part::Backup, Some(Secret::draw().unwrap())), line(Part::Solo, None)] {
            assert!(!secure.contains("insecure"), "{secure}");
        }
    }

    fn line_with(slot: Slot, part: Part, first_term: Option<u64>, given: &[&str]) -> String {
        line_in(QEMU, slot, part, first_term, given)
    }

    fn line(slot: Slot, part: Part, given: &[&str]) -> String {
        line_with(slot, part, Some(1), given)
    }

    #[test]
    fn a_pair() {
        assert_eq!(
            line(Slot::Castor, Part::Primary, &[]),
            "role=primary name=castor client-nic=0:4.0 log-nic=0:5.0 log-address=10.1.0.1/24 log-peer=10.1.0.2 \
             heartbeat=100ms suspect=1000ms arbiter=10.1.0.3,10.0.2.3 machine-address=10.0.2.21/24 machine-peer=10.0.2.22 http=on guest-memory=64M guest-mac=52:54:00:12:34:56 clock=rtc monitor=com2 \
             guest-args=\"ip=10.0.2.15/24 gw=10.0.2.2\" guest-seed=5eed"
        );
        let pollux = line(Slot::Pollux, Part::Backup, &[]);
        assert!(pollux.starts_with("role=backup name=pollux"), "{pollux}");
        assert!(pollux.contains("log-address=10.1.0.2/24 log-peer=10.1.0.1"), "{pollux}");
    }

    #[test]
    fn a_pair_in_bochs_has_its_cards_elsewhere_and_is_more_patient() {
        let castor = line_in(Emulator::Bochs, Slot::Castor, Part::Primary, None, &[]);
        assert!(castor.contains("client-nic=0:2.0 log-nic=0:3.0"), "{castor}");
        assert!(castor.contains("suspect=2500ms"), "{castor}");
        let castor = line_in(Emulator::Bochs, Slot::Castor, Part::Primary, Some(1), &[]);
        assert!(castor.contains("machine-address=10.0.2.21/24 machine-peer=10.0.2.22 arbiter-nic=0:4.0"), "{castor}");
    }

    #[test]
    fn a_recording_is_replayed_with_the_options_that_concern_the_guest() {
        let given = ["counter=ticks", "test-commands=on", "pair=x", "log-buffer=8M", "on-halt=reset", "watchdog=9s"];
        let common = Common { record: true, ..common(given.map(|text| text.parse().unwrap()).to_vec()) };
        let asked = Some(Asked { first_term: 1, sealed: true });
        let recorded = CommandLine::new(Slot::Pollux, Part::Backup, QEMU, asked, &common);
        assert!(recorded.to_string().contains(" record=10.1.0.4:7004 "));
        let words: Vec<_> = recorded.words().collect();
        assert_eq!(
            CommandLine::replay(&words, QEMU).to_string(),
            "role=replay name=replay log-nic=0:5.0 log-address=10.1.0.2/24 log-peer=10.1.0.1 heartbeat=60000ms \
             suspect=3600000ms guest-memory=64M guest-mac=52:54:00:12:34:56 clock=rtc monitor=com2 \
             guest-args=\"ip=10.0.2.15/24 gw=10.0.2.2\" counter=ticks pair=x log-buffer=8M"
        );
    }

    #[test]
    fn options_for_no_machine_in_particular() {
        let given = ["role=solo", "guest-args=a b", "quiet"].map(|text| text.parse().unwrap());
        let mut line = CommandLine::given(&given).unwrap();
        line.complete(&[("role", "primary"), ("name", "x")]);
        assert_eq!(line.to_string(), "role=solo guest-args=\"a b\" quiet name=x");
        assert_eq!(line.words().collect::<Vec<_>>(), ["role=solo", "guest-args=a b", "quiet", "name=x"]);
        assert!(CommandLine::given(&["castor:x=1".parse().unwrap()]).unwrap_err().contains("castor"));
    }

    #[test]
    fn a_machine_alone_has_no_log() {
        let solo = line(Slot::Castor, Part::Solo, &[]);
        assert!(!solo.contains("log") && !solo.contains("heartbeat") && !solo.contains("arbiter"), "{solo}");
    }

    #[test]
    fn the_arbiter_may_be_absent_or_remember_terms() {
        let none = line_with(Slot::Castor, Part::Primary, None, &[]);
        assert!(none.contains(" arbiter=none ") && none.contains(" machine-address="), "{none}");
        let later = line_with(Slot::Castor, Part::Primary, Some(8), &[]);
        assert!(later.contains(" first-term=8 "), "{later}");
        let backup = line_with(Slot::Pollux, Part::Backup, Some(8), &[]);
        assert!(backup.contains("10.0.2.22/24") && !backup.contains("first-term"), "{backup}");
        let asked = Some(Asked { first_term: 1, sealed: false });
        let plain = CommandLine::new(Slot::Castor, Part::Primary, QEMU, asked, &common(Vec::new())).to_string();
        assert!(plain.contains(" arbiter=etcd://10.1.0.3:7003,10.0.2.3:7003 "), "{plain}");
    }

    #[test]
    fn a_machine_has_room_for_guest_image_and_hypervisor() {
        let memory = |option: &str, image| {
            let line = CommandLine::given(&[option.parse().unwrap()]).unwrap();
            line.machine_memory(&common(Vec::new()), image) >> 20
        };
        assert_eq!(memory("quiet", 0), 64 + 96);
        assert_eq!(memory("quiet", 1), 64 + 96 + 1);
        assert_eq!(memory("quiet", 53 << 20), 64 + 96 + 53);
        assert_eq!(memory("guest-memory=3G", 53 << 20), 3072 + 96 + 53);
        for nonsense in ["guest-memory=16384G", "guest-memory=much", "guest-memory"] {
            assert_eq!(memory(nonsense, 0), 64 + 96, "{nonsense}");
        }
        assert_eq!((memory("disk=ram:20M", 0), memory("disk=ram:99999G", 0)), (64 + 96 + 20, 64 + 96));
    }

    #[test]
    fn a_disk_is_said_and_has_room() {
        let memory = |disk, given: &[&str]| {
            let given: Vec<GivenOption> = given.iter().map(|text| text.parse().unwrap()).collect();
            let common = Common { disk: Some(disk), ..common(given) };
            let line = CommandLine::new(Slot::Castor, Part::Solo, QEMU, None, &common);
            (line.value("disk").map(str::to_owned), line.machine_memory(&common, 0) >> 20)
        };
        assert_eq!(memory(Disk::Ram(20 << 20), &[]), (Some("ram:20M".into()), 64 + 96 + 20));
        assert_eq!(memory(Disk::Ram(1536), &[]), (Some("ram:1536".into()), 64 + 96 + 1));
        assert_eq!(memory(Disk::Image(7 << 20), &[]), (Some("image".into()), 64 + 96 + 7));
        assert_eq!(memory(Disk::Ram(20 << 20), &["disk=ram:5M"]), (Some("ram:5M".into()), 64 + 96 + 5));
        assert_eq!(memory(Disk::Drive(20 << 20), &[]), (Some("nvme:0:6.0,size=20M".into()), 64 + 96));
        assert_eq!((Disk::Drive(512).drive_bytes(), Disk::Ram(512).drive_bytes()), (Some((1 << 20) + 4096), None));
    }

    #[test]
    fn the_pair_may_be_given() {
        let pair = |given: &[&str]| {
            let given = given.iter().map(|text| text.parse().unwrap()).collect();
            common(given).pair().to_owned()
        };
        assert_eq!(pair(&[]), DEFAULT_PAIR);
        assert_eq!(pair(&["pair=a", "pair=b", "castor:pair=c"]), "b");
    }

    #[test]
    fn given_options_replace_and_add() {
        let given = ["heartbeat=50ms", "test-commands=on", "pollux:guest-memory=32M", "quiet", "guest-args=seed=5 x"];
        let castor = line(Slot::Castor, Part::Primary, &given);
        let pollux = line(Slot::Pollux, Part::Backup, &given);
        assert!(castor.contains("heartbeat=50ms") && !castor.contains("100ms"), "{castor}");
        assert!(castor.contains("guest-memory=64M") && pollux.contains("guest-memory=32M"));
        assert!(castor.ends_with("guest-args=\"seed=5 x\" test-commands=on quiet guest-seed=5eed"), "{castor}");
    }

    #[test]
    fn both_twins_get_the_rigs_seed_and_the_test_of_stops_none() {
        for (slot, part) in [(Slot::Castor, Part::Primary), (Slot::Pollux, Part::Backup), (Slot::Castor, Part::Solo)] {
            assert!(line(slot, part, &[]).contains(" guest-seed=5eed"));
        }
        assert!(!line(Slot::Castor, Part::Solo, &["role=stops"]).contains("guest-seed"));
        let given = line(Slot::Castor, Part::Solo, &["role=stops", "guest-seed=0123"]);
        assert!(given.contains("guest-seed=0123"), "{given}");
    }

    #[test]
    fn malformed_options_are_refused() {
        for bad in ["", "=x", "a b=1", "helen:x=1", "a=\"", "a=\n", "castor:=1"] {
            assert!(bad.parse::<GivenOption>().is_err(), "{bad}");
        }
    }
}
