//! May these two machines be twins?

use crate::arbiter::ArbiterId;
use crate::config::Config;
use crate::types::{NodeId, Span};
use crate::wire::{DecodeError, Reader, put_text, put_varint};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// Version of the protocol; raised whenever old and new cannot talk.
pub const PROTOCOL: u16 = 14;

/// Longest text in an identity, in bytes; longer ones are cut when sent.
pub const MAX_TEXT: usize = 128;
/// Longest name of a pair or of a machine, in bytes. It is never cut: two pairs must not become one.
pub const MAX_NAME: usize = 32;

/// What a machine says of itself; what must be equal is compared by [`check`]. By default it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// This machine, as long as it runs.
    pub node: NodeId,
    /// Name of the pair; keeps several pairs on one wire and at one arbiter apart. At most [`MAX_NAME`] bytes.
    pub pair: String,
    /// Build of the hypervisor; twins run the same one.
    pub build: String,
    /// Digest of all that the guest can see of the CPU.
    pub cpu_digest: u64,
    /// The CPU for people to read: vendor, name and model.
    pub cpu_name: String,
    /// Counter: its backend, what it counts with, and all else that must be equal for positions to be comparable.
    pub counter: String,
    /// Guest memory in bytes, with all else that is sent page by page, such as a disk: what lies beyond is refused.
    pub guest_memory: u64,
    /// The guest's image and command line for people to read, with a digest: both twins load it again at a reset.
    pub guest_image: String,
    /// The guest's disk for people to read, with a digest of what is on it at the start.
    pub disk: String,
    /// The guest's MAC address, by which clients reach it on whichever machine it runs.
    pub guest_mac: [u8; 6],
    /// Whether the guest may send frames with another source than its own address.
    pub guest_bridges: bool,
    /// The rule that this machine breaks on purpose; usually none, an empty text.
    pub broken_rule: String,
}

impl Identity {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.node.0.to_le_bytes());
        put_text(out, &self.pair, MAX_NAME);
        put_text(out, &self.build, MAX_TEXT);
        out.extend_from_slice(&self.cpu_digest.to_le_bytes());
        put_text(out, &self.cpu_name, MAX_TEXT);
        put_text(out, &self.counter, MAX_TEXT);
        out.extend_from_slice(&self.guest_memory.to_le_bytes());
        put_text(out, &self.guest_image, MAX_TEXT);
        put_text(out, &self.disk, MAX_TEXT);
        out.extend_from_slice(&self.guest_mac);
        out.push(u8::from(self.guest_bridges));
        put_text(out, &self.broken_rule, MAX_NAME);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            node: NodeId(reader.u64()?),
            pair: reader.text(MAX_NAME)?,
            build: reader.text(MAX_TEXT)?,
            cpu_digest: reader.u64()?,
            cpu_name: reader.text(MAX_TEXT)?,
            counter: reader.text(MAX_TEXT)?,
            guest_memory: reader.u64()?,
            guest_image: reader.text(MAX_TEXT)?,
            disk: reader.text(MAX_TEXT)?,
            guest_mac: reader.array()?,
            guest_bridges: reader.bool()?,
            broken_rule: reader.text(MAX_NAME)?,
        })
    }

    /// Cuts the texts to what the wire carries, so that both sides compare the same.
    ///
    /// # Errors
    /// When a name is too long.
    pub(crate) fn shorten(&mut self) -> Result<(), &'static str> {
        if self.pair.len() > MAX_NAME || self.broken_rule.len() > MAX_NAME {
            return Err("names of pairs and rules have at most 32 bytes");
        }
        for text in [&mut self.build, &mut self.cpu_name, &mut self.counter, &mut self.guest_image, &mut self.disk] {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
        Ok(())
    }
}

/// What both machines must have been told alike: either may have to go on alone, or to wait for the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether an arbiter is asked.
    pub arbiter: bool,
    /// Whether it is asked in sealed words.
    pub sealed_arbiter: bool,
    /// Distance between two heartbeats.
    pub heartbeat: Span,
    /// Silence after which the twin is taken for dead.
    pub suspect: Span,
    /// Bytes of log or state that wait at a backup.
    pub log_buffer: u64,
    /// Fingerprint of the pair's key, of two keys that of the one which protects these words; 0 is none.
    pub key: u64,
}

impl Settings {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            arbiter: config.arbiter,
            sealed_arbiter: config.arbiter && config.sealed_arbiter,
            heartbeat: config.heartbeat_interval,
            suspect: config.suspect_after,
            log_buffer: config.receive_buffer_bytes as u64,
            key: config.protection.fingerprint(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.arbiter));
        out.push(u8::from(self.sealed_arbiter));
        for number in [self.heartbeat.0, self.suspect.0, self.log_buffer] {
            put_varint(out, number);
        }
        out.extend_from_slice(&self.key.to_le_bytes());
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            arbiter: reader.bool()?,
            sealed_arbiter: reader.bool()?,
            heartbeat: Span(reader.varint()?),
            suspect: Span(reader.varint()?),
            log_buffer: reader.varint()?,
            key: reader.u64()?,
        })
    }
}

/// All that a machine presents to its twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it says of itself.
    pub identity: Identity,
    /// What it was told.
    pub settings: Settings,
    /// The arbiter that answers it, as far as it knows.
    pub arbiter: Option<ArbiterId>,
}

impl Claim {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.identity.encode(out);
        self.settings.encode(out);
        out.push(u8::from(self.arbiter.is_some()));
        if let Some(arbiter) = self.arbiter {
            out.extend_from_slice(&arbiter.0.to_le_bytes());
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            identity: Identity::decode(reader)?,
            settings: Settings::decode(reader)?,
            arbiter: if reader.bool()? { Some(ArbiterId(reader.u64()?)) } else { None },
        })
    }
}

/// What differs, with the value of each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// The protocol's version.
    Protocol(u16, u16),
    /// The twin is this very machine.
    Myself(NodeId),
    /// The pair's name.
    Pair(String, String),
    /// The hypervisor's build.
    Build(String, String),
    /// What the guest sees of the CPU: name and digest of each.
    Cpu((String, u64), (String, u64)),
    /// The counter.
    Counter(String, String),
    /// Guest memory in bytes.
    Memory(u64, u64),
    /// The guest's image or command line.
    Image(String, String),
    /// An option that must be the same: its name.
    Option(&'static str, String, String),
    /// The pair's keys: their fingerprints, 0 for none.
    Key(u64, u64),
    /// The arbiters: one would grant a term that the other has granted, too.
    Arbiter(ArbiterId, ArbiterId),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(a, b) => write!(f, "protocol versions differ: {a} and {b}"),
            Self::Myself(node) => write!(f, "both ends are the same machine, {node}: pairing with oneself is refused"),
            Self::Pair(a, b) => write!(f, "pair names differ: \"{a}\" and \"{b}\""),
            Self::Build(a, b) => write!(f, "builds differ: {a} and {b}"),
            Self::Cpu((a, x), (b, y)) => {
                write!(f, "CPUs differ: {a} (digest {x:016x}) and {b} (digest {y:016x})")
            }
            Self::Counter(a, b) => {
                write!(f, "counters differ: {a} and {b}: the same position is not the same instruction on both")
            }
            Self::Memory(a, b) => write!(f, "guest memory differs: {a} and {b} bytes"),
            Self::Image(a, b) => write!(f, "guest images differ: {a} and {b}"),
            Self::Option(name, a, b) => write!(f, "options '{name}' differ: {a} and {b}"),
            Self::Key(0, b) => write!(f, "keys differ: none ('insecure=on') and {b:016x}"),
            Self::Key(a, 0) => write!(f, "keys differ: {a:016x} and none ('insecure=on')"),
            Self::Key(a, b) => write!(f, "keys differ: their fingerprints are {a:016x} and {b:016x}"),
            Self::Arbiter(a, b) => {
                write!(f, "arbiters differ: files or etcd clusters {a} and {b}: both machines could win the same term")
            }
        }
    }
}

/// Compares two machines; the first value in a mismatch is `ours`.
///
/// # Errors
/// The first difference that forbids pairing.
pub fn check(ours: &Claim, theirs: &Claim) -> Result<(), Mismatch> {
    check_identities(&ours.identity, &theirs.identity)?;
    if ours.settings.key != theirs.settings.key {
        return Err(Mismatch::Key(ours.settings.key, theirs.settings.key));
    }
    check_options(ours, theirs)?;
    check_arbiters(ours.arbiter, theirs.arbiter)
}

/// Two arbiters that are both known must be the same.
///
/// # Errors
/// When they are not.
pub fn check_arbiters(ours: Option<ArbiterId>, theirs: Option<ArbiterId>) -> Result<(), Mismatch> {
    match ours.zip(theirs) {
        Some((ours, theirs)) if ours != theirs => Err(Mismatch::Arbiter(ours, theirs)),
        _ => Ok(()),
    }
}

/// How the arbiter is asked.
fn words(settings: &Settings) -> &'static str {
    match (settings.arbiter, settings.sealed_arbiter) {
        (false, _) => "none",
        (true, false) => "one asked in plain words (etcd://)",
        (true, true) => "one asked in sealed words",
    }
}

fn check_options(ours: &Claim, theirs: &Claim) -> Result<(), Mismatch> {
    let time = |span: Span| format!("{} us", span.0);
    let values = |claim: &Claim| {
        let Claim {
            identity: Identity { guest_mac: mac, guest_bridges: bridges, broken_rule: rule, .. },
            settings,
            ..
        } = claim;
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        [
            ("arbiter", words(settings).to_string()),
            ("guest-mac", mac),
            ("guest-sources", if *bridges { "any" } else { "own" }.to_string()),
            ("heartbeat", time(settings.heartbeat)),
            ("suspect", time(settings.suspect)),
            ("log-buffer", format!("{} bytes", settings.log_buffer)),
            ("break", if rule.is_empty() { "none".to_string() } else { rule.clone() }),
        ]
    };
    match values(ours).into_iter().zip(values(theirs)).find(|(ours, theirs)| ours != theirs) {
        Some(((name, ours), (_, theirs))) => Err(Mismatch::Option(name, ours, theirs)),
        None => Ok(()),
    }
}

fn check_identities(ours: &Identity, theirs: &Identity) -> Result<(), Mismatch> {
    let both = |a: &String, b: &String| (a.clone(), b.clone());
    if ours.node == theirs.node {
        return Err(Mismatch::Myself(ours.node));
    }
    if ours.pair != theirs.pair {
        let (a, b) = both(&ours.pair, &theirs.pair);
        return Err(Mismatch::Pair(a, b));
    }
    if ours.build != theirs.build {
        let (a, b) = both(&ours.build, &theirs.build);
        return Err(Mismatch::Build(a, b));
    }
    if ours.counter != theirs.counter {
        let (a, b) = both(&ours.counter, &theirs.counter);
        return Err(Mismatch::Counter(a, b));
    }
    if ours.cpu_digest != theirs.cpu_digest {
        let (a, b) = both(&ours.cpu_name, &theirs.cpu_name);
        return Err(Mismatch::Cpu((a, ours.cpu_digest), (b, theirs.cpu_digest)));
    }
    // Before memory, which it is a part of.
    if ours.disk != theirs.disk {
        let (a, b) = both(&ours.disk, &theirs.disk);
        return Err(Mismatch::Option("disk", a, b));
    }
    if ours.guest_memory != theirs.guest_memory {
        return Err(Mismatch::Memory(ours.guest_memory, theirs.guest_memory));
    }
    if ours.guest_image != theirs.guest_image {
        let (a, b) = both(&ours.guest_image, &theirs.guest_image);
        return Err(Mismatch::Image(a, b));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{PairKey, Protection};
    use alloc::string::ToString;

    fn identity(node: u64) -> Identity {
        Identity {
            node: NodeId(node),
            pair: "p".into(),
            build: "b1".into(),
            cpu_digest: 7,
            cpu_name: "EPYC".into(),
            counter: "ticks".into(),
            guest_memory: 1 << 26,
            guest_image: "g1".into(),
            disk: "none".into(),
            guest_mac: [0x52, 0x54, 0, 0, 0, 1],
            guest_bridges: false,
            broken_rule: String::new(),
        }
    }

    fn claim(identity: Identity) -> Claim {
        Claim { identity, settings: Settings::of(&Config::default()), arbiter: None }
    }

    fn differ(ours: &Identity, theirs: Identity) -> String {
        check(&claim(ours.clone()), &claim(theirs)).unwrap_err().to_string()
    }

    #[test]
    fn each_difference_is_named_with_both_values() {
        let ours = identity(1);
        assert_eq!(check(&claim(ours.clone()), &claim(identity(2))), Ok(()));
        let cases = [
            (identity(1), "0000000000000001"),
            (Identity { pair: "q".into(), ..identity(2) }, "\"p\" and \"q\""),
            (Identity { build: "b2".into(), ..identity(2) }, "b1 and b2"),
            (
                Identity { cpu_digest: 8, cpu_name: "Xeon".into(), ..identity(2) },
                "EPYC (digest 0000000000000007) and Xeon",
            ),
            (Identity { counter: "pmu".into(), ..identity(2) }, "ticks and pmu: the same position is not"),
            (Identity { guest_memory: 5, ..identity(2) }, "67108864 and 5"),
            (Identity { guest_image: "g2".into(), ..identity(2) }, "g1 and g2"),
            (
                Identity { guest_mac: [0x52, 0x54, 0, 0, 0, 2], ..identity(2) },
                "options 'guest-mac' differ: 52:54:00:00:00:01 and 52:54:00:00:00:02",
            ),
            (
                Identity { disk: "ram, 512 bytes".into(), guest_memory: 5, ..identity(2) },
                "'disk' differ: none and ram, 512 bytes",
            ),
            (Identity { guest_bridges: true, ..identity(2) }, "options 'guest-sources' differ: own and any"),
            (Identity { broken_rule: "output-rule".into(), ..identity(2) }, "'break' differ: none and output-rule"),
        ];
        for (theirs, want) in cases {
            let text = differ(&ours, theirs);
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn each_setting_that_differs_is_named_with_both_values() {
        let ours = claim(identity(1));
        let plain = Config::default();
        let cases = [
            (Config { arbiter: true, ..plain.clone() }, "'arbiter' differ: none and one asked in plain"),
            (
                Config { arbiter: true, sealed_arbiter: true, ..plain.clone() },
                "'arbiter' differ: none and one asked in sealed words",
            ),
            (Config { heartbeat_interval: Span(5), ..plain.clone() }, "'heartbeat' differ: 100000 us and 5 us"),
            (Config { suspect_after: Span(7), ..plain.clone() }, "'suspect' differ: 1000000 us and 7 us"),
            (Config { receive_buffer_bytes: 9, ..plain }, "'log-buffer' differ: 4194304 bytes and 9 bytes"),
        ];
        for (config, want) in cases {
            let theirs = Claim { settings: Settings::of(&config), ..claim(identity(2)) };
            let text = check(&ours, &theirs).unwrap_err().to_string();
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn keys_must_be_one() {
        let with = |secret: Option<u8>| {
            let key = secret.map(|byte| Protection::from(PairKey::new(&[byte; 32])));
            Settings::of(&Config { protection: key.unwrap_or_default(), ..Config::default() })
        };
        let text = |ours, theirs| {
            let claim = |node, secret| Claim { settings: with(secret), ..claim(identity(node)) };
            check(&claim(1, ours), &claim(2, theirs)).map_err(|mismatch| mismatch.to_string())
        };
        assert_eq!((text(None, None), text(Some(1), Some(1))), (Ok(()), Ok(())));
        assert!(text(Some(1), Some(2)).unwrap_err().contains("fingerprints are"));
        assert!(text(None, Some(2)).unwrap_err().starts_with("keys differ: none ('insecure=on') and "));
        assert!(text(Some(1), None).unwrap_err().ends_with(" and none ('insecure=on')"));
    }

    #[test]
    fn arbiters_that_are_known_must_be_one() {
        let of = |node, arbiter: Option<u64>| Claim { arbiter: arbiter.map(ArbiterId), ..claim(identity(node)) };
        for (ours, theirs) in [(None, None), (Some(5), None), (None, Some(5)), (Some(5), Some(5))] {
            assert_eq!(check(&of(1, ours), &of(2, theirs)), Ok(()));
        }
        let text = check(&of(1, Some(0xA5)), &of(2, Some(6))).unwrap_err().to_string();
        assert!(text.contains("arbiters differ: files or etcd clusters a5 and 6"), "{text}");
    }

    #[test]
    fn counters_that_count_differently_are_no_twins() {
        let with = |node, counter: &str| Identity { counter: counter.into(), ..identity(node) };
        let ours = with(1, "pmu (fixed counter 0, test program 301)");
        for theirs in ["pmu (general counter 0, test program 301)", "pmu (fixed counter 0, test program 321)", "ticks"]
        {
            let mismatch = check(&claim(ours.clone()), &claim(with(2, theirs))).unwrap_err();
            assert_eq!(mismatch, Mismatch::Counter(ours.counter.clone(), theirs.into()));
        }
        assert_eq!(check(&claim(ours.clone()), &claim(with(2, &ours.counter))), Ok(()));
    }

    #[test]
    fn cpus_of_two_vendors_are_no_twins() {
        let amd = Identity { cpu_name: "AuthenticAMD EPYC (family 23)".into(), ..identity(1) };
        let intel = Identity { cpu_digest: 8, cpu_name: "GenuineIntel Core (family 6)".into(), ..identity(2) };
        let text = differ(&amd, intel);
        assert!(text.starts_with("CPUs differ: AuthenticAMD EPYC") && text.contains("GenuineIntel Core"), "{text}");
    }

    #[test]
    fn texts_too_long_for_the_wire_are_cut_alike() {
        let mut long = Identity { build: "x".repeat(300), ..identity(1) };
        let mut wire = Vec::new();
        long.encode(&mut wire);
        assert_eq!(long.shorten(), Ok(()));
        assert_eq!(Identity::decode(&mut Reader(&wire)).unwrap(), long);
    }

    /// Two pairs whose names begin alike are two pairs.
    #[test]
    fn a_name_is_never_cut() {
        let named = |length| Identity { pair: "x".repeat(length), ..identity(1) };
        assert_eq!(named(MAX_NAME).shorten(), Ok(()));
        assert!(named(MAX_NAME + 1).shorten().unwrap_err().contains("at most 32 bytes"));
        let rule = |length| Identity { broken_rule: "x".repeat(length), ..identity(1) };
        assert!(rule(MAX_NAME).shorten().is_ok() && rule(MAX_NAME + 1).shorten().is_err());
        let mut wire = Vec::new();
        let whole = Claim { arbiter: Some(ArbiterId(u64::MAX)), ..claim(named(MAX_NAME)) };
        whole.encode(&mut wire);
        assert_eq!(Claim::decode(&mut Reader(&wire)), Ok(whole));
    }
}
