//! May these two machines be twins?

use crate::types::NodeId;
use crate::wire::{DecodeError, Reader, put_text};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Version of the protocol; raised whenever old and new cannot talk.
pub const PROTOCOL: u16 = 3;

/// Longest text in an identity, in bytes; longer ones are cut when sent.
pub const MAX_TEXT: usize = 128;

/// What a machine says of itself; what must be equal is compared by [`check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// This machine, as long as it runs.
    pub node: NodeId,
    /// Name of the pair; keeps several pairs on one wire apart.
    pub pair: String,
    /// Build of the hypervisor; twins run the same one.
    pub build: String,
    /// Digest of all that the guest can see of the CPU.
    pub cpu_digest: u64,
    /// The CPU for people to read: vendor, name and model.
    pub cpu_name: String,
    /// Counter: its backend, what it counts with, and all else that must be equal for positions to be comparable.
    pub counter: String,
    /// Guest memory in bytes.
    pub guest_memory: u64,
    /// The guest's image and command line for people to read, with a digest: both twins load it again at a reset.
    pub guest_image: String,
}

impl Identity {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.node.0.to_le_bytes());
        put_text(out, &self.pair, MAX_TEXT);
        put_text(out, &self.build, MAX_TEXT);
        out.extend_from_slice(&self.cpu_digest.to_le_bytes());
        put_text(out, &self.cpu_name, MAX_TEXT);
        put_text(out, &self.counter, MAX_TEXT);
        out.extend_from_slice(&self.guest_memory.to_le_bytes());
        put_text(out, &self.guest_image, MAX_TEXT);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            node: NodeId(reader.u64()?),
            pair: reader.text(MAX_TEXT)?,
            build: reader.text(MAX_TEXT)?,
            cpu_digest: reader.u64()?,
            cpu_name: reader.text(MAX_TEXT)?,
            counter: reader.text(MAX_TEXT)?,
            guest_memory: reader.u64()?,
            guest_image: reader.text(MAX_TEXT)?,
        })
    }

    /// Cuts the texts to what the wire carries, so that both sides compare the same.
    pub(crate) fn shorten(&mut self) {
        for text in [&mut self.pair, &mut self.build, &mut self.cpu_name, &mut self.counter, &mut self.guest_image] {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
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
        }
    }
}

/// Compares two machines; the first value in a mismatch is `ours`.
///
/// # Errors
/// The first difference that forbids pairing.
pub fn check(ours: &Identity, theirs: &Identity) -> Result<(), Mismatch> {
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
        }
    }

    #[test]
    fn each_difference_is_named_with_both_values() {
        let ours = identity(1);
        assert_eq!(check(&ours, &identity(2)), Ok(()));
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
        ];
        for (theirs, want) in cases {
            let text = check(&ours, &theirs).unwrap_err().to_string();
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn counters_that_count_differently_are_no_twins() {
        let with = |node, counter: &str| Identity { counter: counter.into(), ..identity(node) };
        let ours = with(1, "pmu (fixed counter 0, test program 301)");
        for theirs in ["pmu (general counter 0, test program 301)", "pmu (fixed counter 0, test program 321)", "ticks"]
        {
            let mismatch = check(&ours, &with(2, theirs)).unwrap_err();
            assert_eq!(mismatch, Mismatch::Counter(ours.counter.clone(), theirs.into()));
        }
        assert_eq!(check(&ours, &with(2, &ours.counter)), Ok(()));
    }

    #[test]
    fn cpus_of_two_vendors_are_no_twins() {
        let amd = Identity { cpu_name: "AuthenticAMD EPYC (family 23)".into(), ..identity(1) };
        let intel = Identity { cpu_digest: 8, cpu_name: "GenuineIntel Core (family 6)".into(), ..identity(2) };
        let text = check(&amd, &intel).unwrap_err().to_string();
        assert!(text.starts_with("CPUs differ: AuthenticAMD EPYC") && text.contains("GenuineIntel Core"), "{text}");
    }

    #[test]
    fn texts_too_long_for_the_wire_are_cut_alike() {
        let mut long = Identity { build: "x".repeat(300), ..identity(1) };
        let mut wire = Vec::new();
        long.encode(&mut wire);
        long.shorten();
        assert_eq!(Identity::decode(&mut Reader(&wire)).unwrap(), long);
    }
}
