//! What the values of options look like.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::ops::RangeInclusive;
use core::str::FromStr;

use pollux_ft::Span;
use pollux_ft::pairing::MAX_NAME;

use super::{Disk, DriveChoice, Part};
use crate::platform::virtio::block::SECTOR;

/// The port of recorders unless another one is given.
pub(super) const RECORD_PORT: u16 = 7004;
/// The port of syslog servers unless another one is given.
pub(super) const SYSLOG_PORT: u16 = 514;
/// The port of HTTP unless another one is given, and those that it can have: above are those that connections are made from.
const HTTP_PORT: u16 = 80;
const HTTP_PORTS: RangeInclusive<u16> = 1..=49_151;

/// An IPv4 address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Address.
    pub address: Ipv4Addr,
    /// Prefix length, 0–32.
    pub prefix: u8,
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

/// Where a server is; at `port` if none is said.
pub(super) fn server(text: &str, port: u16) -> Result<SocketAddrV4, String> {
    let address = || Some(SocketAddrV4::new(text.parse().ok()?, port));
    let server = text.parse().ok().or_else(address).filter(|server| server.port() != 0);
    server.ok_or_else(|| format!("an address such as 10.1.0.4 or 10.1.0.4:{port}"))
}

/// The port at which a machine answers, if it does.
pub(super) fn http(text: &str) -> Result<Option<u16>, &'static str> {
    const _: () =
        assert!(HTTP_PORT == 80 && *HTTP_PORTS.start() == 1 && *HTTP_PORTS.end() == 49_151, "the message says so");
    match text {
        "off" => Ok(None),
        "on" => Ok(Some(HTTP_PORT)),
        _ => match text.parse() {
            Ok(port) if HTTP_PORTS.contains(&port) => Ok(Some(port)),
            _ => Err("one of on (port 80), off, or a port from 1 to 49151"),
        },
    }
}

/// One of a few words, each with its meaning.
pub(super) fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(word, _)| *word == text);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: alloc::vec::Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        format!("one of {}", words.join(", "))
    })
}

/// A name, in full: terms, pairing and heartbeats know it as it is.
pub(super) fn short(text: &str) -> Result<String, &'static str> {
    if (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        Ok(text.to_owned())
    } else {
        const _: () = assert!(MAX_NAME == 32, "the message says so");
        Err("1 to 32 letters, digits, '-', '_' or '.'")
    }
}

pub(super) fn bytes_of_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

pub(super) fn number(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "not a whole number")
}

/// A port of the I/O space, in hex.
pub(super) fn io_port(text: &str) -> Result<u16, &'static str> {
    const SHAPE: &str = "an I/O port looks like 0xf4";
    u16::from_str_radix(text.strip_prefix("0x").ok_or(SHAPE)?, 16).map_err(|_| SHAPE)
}

/// Bytes, with an optional suffix K, M or G (powers of 1024).
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
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

/// The guest's disk.
pub(super) fn disk(text: &str) -> Result<Disk, String> {
    if let Some(len) = text.strip_prefix("ram:") {
        return disk_size(len).map(Disk::Ram);
    }
    if let Some(choice) = text.strip_prefix("nvme:") {
        return drive(choice).map(Disk::Drive);
    }
    match text {
        "none" => Ok(Disk::None),
        "image" => Ok(Disk::Image),
        _ => Err("one of none, image, ram:64M, nvme:B:D.F".to_owned()),
    }
}

fn disk_size(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        return Err(format!("a disk's size is a multiple of {SECTOR} bytes, and not 0"));
    }
    Ok(bytes)
}

/// Which part of which drive.
fn drive(text: &str) -> Result<DriveChoice, String> {
    let mut words = text.split(',');
    let at = words.next().unwrap_or_default().parse()?;
    let mut choice = DriveChoice { at, part: Part::Whole, bytes: None, stale: false };
    for word in words {
        let part = match word.split_once('=') {
            None if word == "whole" => Part::WholeByForce,
            None if word == "stale" && !choice.stale => {
                choice.stale = true;
                continue;
            }
            Some(("partition", name)) if !name.is_empty() => Part::Named(name.to_owned()),
            Some(("size", text)) if choice.bytes.is_none() => {
                choice.bytes = Some(disk_size(text)?);
                continue;
            }
            _ => {
                return Err(format!(
                    "'{word}' is none of partition=NAME, partition=GUID, whole, size=64M, stale, each at most once"
                ));
            }
        };
        if choice.part != Part::Whole {
            return Err("one of partition=... and whole, once".to_owned());
        }
        choice.part = part;
    }
    Ok(choice)
}

/// After how many microseconds of silence a twin is taken for dead; never if the machine is to wait.
pub(super) fn cold_start(text: &str) -> Result<Option<Span>, &'static str> {
    match text.strip_prefix("alone-after:") {
        Some(time) => duration(time).map(Some),
        None if text == "wait" => Ok(None),
        None => Err("wait, or a time such as alone-after:60s"),
    }
}

/// Microseconds from a number with the suffix us, ms or s; at most an hour.
pub(crate) fn duration(text: &str) -> Result<Span, &'static str> {
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
    value.checked_mul(scale).filter(|&us| us <= 3_600_000_000).map(Span).ok_or(SHAPE)
}

pub(super) fn mac(text: &str) -> Result<[u8; 6], &'static str> {
    const SHAPE: &str = "a MAC address looks like 52:54:00:12:34:56";
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2).ok_or(SHAPE)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| SHAPE)?;
    }
    if parts.next().is_none() { Ok(bytes) } else { Err(SHAPE) }
}
