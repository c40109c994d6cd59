//! The guests' command-line options.

use core::net::Ipv4Addr;

use pollux_boot::BootInfo;
use pollux_boot::command_line::options;

/// What a guest can be told. Unknown options are ignored: one command line serves all guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    /// `ip=address/prefix length`
    pub ip: (Ipv4Addr, u8),
    /// `gw=address`
    pub gateway: Ipv4Addr,
    /// `seed=number`
    pub seed: u64,
    /// `case=name`
    pub case: &'a str,
    /// `fill=size`: memory beyond the heap that is filled, in bytes; K, M and G are understood.
    pub fill: u64,
    /// `rewrite=size`: how many bytes of it are written anew each second.
    pub rewrite: u64,
    /// `busy`: compute instead of sleeping.
    pub busy: bool,
    /// `xapic`: keep to the local APIC's MMIO even when there is x2APIC.
    pub xapic: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            ip: (Ipv4Addr::new(10, 0, 2, 15), 24),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            seed: 1,
            case: "",
            fill: 0,
            rewrite: 0,
            busy: false,
            xapic: false,
        }
    }
}

impl Options<'static> {
    /// What the boot loader passed on.
    ///
    /// # Panics
    /// When an option is malformed.
    #[must_use]
    pub fn of(info: &BootInfo) -> Self {
        Self::parse(info.command_line).unwrap_or_else(|key| panic!("option {key} is malformed"))
    }
}

impl<'a> Options<'a> {
    /// Reads a command line.
    ///
    /// # Errors
    /// The key of the option that is malformed.
    pub fn parse(line: &'a str) -> Result<Self, &'a str> {
        let mut parsed = Self::default();
        for option in options(line).flatten() {
            let key = option.key;
            match (key, option.value) {
                ("ip", Some(value)) => parsed.ip = cidr(value).ok_or(key)?,
                ("gw", Some(value)) => parsed.gateway = value.parse().map_err(|_| key)?,
                ("seed", Some(value)) => parsed.seed = value.parse().map_err(|_| key)?,
                ("case", Some(value)) => parsed.case = value,
                ("fill", Some(value)) => parsed.fill = size(value).ok_or(key)?,
                ("rewrite", Some(value)) => parsed.rewrite = size(value).ok_or(key)?,
                ("busy", None) => parsed.busy = true,
                ("xapic", None) => parsed.xapic = true,
                ("ip" | "gw" | "seed" | "case" | "fill" | "rewrite" | "busy" | "xapic", _) => return Err(key),
                _ => {}
            }
        }
        Ok(parsed)
    }
}

fn cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, len) = text.split_once('/')?;
    let len = len.parse().ok().filter(|len| *len <= 32)?;
    Some((address.parse().ok()?, len))
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_defaults() {
        assert_eq!(Options::parse("other=1 quiet"), Ok(Options::default()));
        let line = "ip=192.168.7.2/30 gw=192.168.7.1 seed=99 case=ring-loop fill=3M rewrite=17 busy xapic";
        let expected = Options {
            ip: (Ipv4Addr::new(192, 168, 7, 2), 30),
            gateway: Ipv4Addr::new(192, 168, 7, 1),
            seed: 99,
            case: "ring-loop",
            fill: 3 << 20,
            rewrite: 17,
            busy: true,
            xapic: true,
        };
        assert_eq!(Options::parse(line), Ok(expected));
    }

    #[test]
    fn malformed_options_are_named() {
        for line in
            ["ip=10.0.0.1", "ip=10.0.0.1/33", "ip", "gw=x", "seed=-1", "fill=M", "rewrite=5MM", "busy=1", "xapic=1"]
        {
            let key = line.split('=').next().unwrap();
            assert_eq!(Options::parse(line), Err(key), "{line}");
        }
    }
}
