//! Options about the arbiter and the way to it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::ops::RangeInclusive;

use pollux_ft::arbiter::Manner;
use pollux_ft::{Protection, Span};

use super::{Cidr, Config, duration, mac, number};
use crate::host::pci::Bdf;

/// The arbiter's port where an address has none.
const DEFAULT_PORT: u16 = 7003;
/// What an address begins with that is an etcd's, and the port of its clients.
const ETCD: &str = "etcd://";
const ETCD_PORT: u16 = 2379;
/// Addresses at most.
const MAX_SERVERS: usize = 4;
/// Addresses of the arbiter.
type Servers = heapless::Vec<SocketAddrV4, MAX_SERVERS>;
fn ipv4(value: &str) -> Result<Ipv4Addr, &'static str> {
    value.parse().map_err(|_| "not an IPv4 address")
}

/// Bounds of a try and of the pause behind it.
const TIMES: RangeInclusive<Span> = Span::from_millis(10)..=Span::from_millis(60_000);
/// Bounds of the time between two looks.
const WATCH: RangeInclusive<Span> = Span::from_millis(100)..=Span::from_millis(3_600_000);

/// What is said about the arbiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArbiterOptions {
    /// `arbiter=none|[etcd://]A.B.C.D[:PORT][,A.B.C.D[:PORT]…]`: the addresses of the arbiter. Empty: none.
    pub servers: Option<Servers>,
    /// Whether they are an etcd's, which is asked in plain words.
    pub etcd: bool,
    /// `arbiter-timeout=500ms`: the longest time for one try, in microseconds.
    pub timeout: Span,
    /// `arbiter-retry=200ms`: pause between two tries, in microseconds.
    pub retry: Span,
    /// `arbiter-watch=10s`: time between two looks whether the arbiter would give a term, in microseconds.
    pub watch: Span,
    /// `arbiter-nic=B:D.F`: a card for `machine-address` alone, instead of the client card.
    pub nic: Option<Bdf>,
    /// `machine-address=A.B.C.D/N`: this machine's own address on the client network.
    pub machine_address: Option<Cidr>,
    /// `machine-gateway=A.B.C.D`: the router there.
    pub machine_gateway: Option<Ipv4Addr>,
    /// `machine-peer=A.B.C.D`: the twin's own address there.
    pub machine_peer: Option<Ipv4Addr>,
    /// `machine-mac=…`: this machine's own MAC address there; default: that which its card was made with.
    pub machine_mac: Option<[u8; 6]>,
    /// `first-term=1`: the term that a starting primary asks for.
    pub first_term: u64,
}

impl Default for ArbiterOptions {
    fn default() -> Self {
        Self {
            servers: None,
            etcd: false,
            timeout: Span::from_millis(500),
            retry: Span::from_millis(200),
            watch: Span::from_millis(10_000),
            nic: None,
            machine_address: None,
            machine_gateway: None,
            machine_peer: None,
            machine_mac: None,
            first_term: 1,
        }
    }
}

/// By which way which address of the arbiter is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// Over the log network.
    pub log: Servers,
    /// Over the client network, in the machine's own name.
    pub machine: Servers,
}

impl ArbiterOptions {
    /// The names of all options, for a message.
    pub(super) const NAMES: &str = "arbiter, arbiter-timeout, arbiter-retry, arbiter-watch, arbiter-nic, \
                                    machine-address, machine-gateway, machine-peer, machine-mac, \
                                    first-term";

    /// Takes an option; none if it is not one of these.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Option<Result<(), &'static str>> {
        let result = match key {
            "arbiter" => servers(value).map(|(etcd, servers)| (self.etcd, self.servers) = (etcd, Some(servers))),
            "arbiter-timeout" => duration(value).map(|span| self.timeout = span),
            "arbiter-retry" => duration(value).map(|span| self.retry = span),
            "arbiter-watch" => duration(value).map(|span| self.watch = span),
            "arbiter-nic" => value.parse().map(|bdf| self.nic = Some(bdf)),
            "machine-address" => value.parse().map(|cidr| self.machine_address = Some(cidr)),
            "machine-gateway" => ipv4(value).map(|address| self.machine_gateway = Some(address)),
            "machine-peer" => ipv4(value).map(|address| self.machine_peer = Some(address)),
            "machine-mac" => mac(value).map(|mac| self.machine_mac = Some(mac)),
            "first-term" => number(value).map(|term| self.first_term = term),
            _ => return None,
        };
        Some(result)
    }

    /// How the arbiter of a pair with this protection is spoken to: under each key that the pair has, the newest one first.
    #[must_use]
    pub fn manners(&self, protection: &Protection) -> Vec<Manner> {
        let sealed: Vec<_> = protection.keys().filter(|_| !self.etcd).map(|key| Manner::Sealed(key.into())).collect();
        if sealed.is_empty() { vec![Manner::Etcd] } else { sealed }
    }

    /// Whether there is an arbiter.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.servers.as_ref().is_some_and(|servers| !servers.is_empty())
    }

    /// By which way each address is asked: over the log network if it lies there, else over the client network, where
    /// this machine must have an address of its own. All are asked at once.
    ///
    /// # Errors
    /// Names the address that no way leads to.
    pub fn routes(&self, log: Option<Cidr>) -> Result<Routes, String> {
        let mut routes = Routes::default();
        for &server in self.servers.iter().flatten() {
            let way = if log.is_some_and(|own| own.contains(*server.ip())) {
                &mut routes.log
            } else if self.is_reached_by_machine(*server.ip()) {
                &mut routes.machine
            } else {
                return Err(format!(
                    "option 'arbiter': {server} lies neither in the network of 'log-address' nor in that of \
                     'machine-address', and there is no 'machine-gateway'"
                ));
            };
            way.push(server).expect("there are no more of them");
        }
        Ok(routes)
    }

    fn is_reached_by_machine(&self, server: Ipv4Addr) -> bool {
        self.machine_address.is_some_and(|own| own.contains(server) || self.machine_gateway.is_some())
    }

    /// Whether only a pair with a key can ask it.
    pub(super) fn needs_key(&self) -> bool {
        self.is_used() && !self.etcd
    }

    /// Checks all of it for a machine of a pair.
    pub(super) fn check(&self, config: &Config) -> Result<(), String> {
        if self.servers.is_none() {
            return Err(
                "a machine of a pair needs the option 'arbiter': its address, or 'none', and then two machines \
                        may run the guest when they do not hear each other"
                    .to_string(),
            );
        }
        for (name, time) in [("arbiter-timeout", self.timeout), ("arbiter-retry", self.retry)] {
            if !TIMES.contains(&time) {
                return Err(format!("option '{name}' must be between 10ms and 60s"));
            }
        }
        if !WATCH.contains(&self.watch) {
            return Err("option 'arbiter-watch' must be between 100ms and 1h".to_string());
        }
        if self.first_term == 0 {
            return Err("option 'first-term' must be at least 1".to_string());
        }
        self.check_machine(config)?;
        let own = [config.log_address, self.machine_address].into_iter().flatten().map(|own| own.address);
        let machines = own.chain(config.log_peer);
        for machine in machines {
            if self.servers.iter().flatten().any(|server| *server.ip() == machine) {
                return Err(format!("option 'arbiter': {machine} is a machine of the pair, not a third party"));
            }
        }
        self.routes(config.log_address).map(drop)
    }

    /// Checks the machine's own place on the client network.
    pub(super) fn check_machine(&self, config: &Config) -> Result<(), String> {
        let Some(own) = self.machine_address else {
            let others = [
                ("machine-gateway", self.machine_gateway.is_some()),
                ("machine-peer", self.machine_peer.is_some()),
                ("machine-mac", self.machine_mac.is_some()),
                ("arbiter-nic", self.nic.is_some()),
            ];
            return match others.iter().find(|(_, given)| *given) {
                Some((name, _)) => Err(format!("option '{name}' means nothing without 'machine-address'")),
                None => Ok(()),
            };
        };
        for (name, host) in [("machine-gateway", self.machine_gateway), ("machine-peer", self.machine_peer)] {
            if host.is_some_and(|host| !own.contains(host) || host == own.address) {
                return Err(format!("option '{name}' must be another host in the network of 'machine-address'"));
            }
        }
        if config.log_address.is_some_and(|log| log.contains(own.address) || own.contains(log.address)) {
            return Err("options 'machine-address' and 'log-address' must be in different networks".to_string());
        }
        match self.machine_mac {
            Some(mac) if mac[0] & 1 != 0 || mac == [0; 6] => {
                Err("option 'machine-mac' must be a unicast address".to_string())
            }
            Some(mac) if mac == config.guest_mac => {
                Err("options 'machine-mac' and 'guest-mac' must differ: the machine must not speak as the guest"
                    .to_string())
            }
            _ => Ok(()),
        }
    }
}

/// `none`, or some addresses; and whether they are an etcd's.
fn servers(text: &str) -> Result<(bool, Servers), &'static str> {
    const SHAPE: &str = "'none', or up to four different addresses such as 10.0.2.3:7003,10.1.0.3 (default port 7003), or \
                         of an etcd, such as etcd://10.0.2.3,10.1.0.3 (default port 2379)";
    const _: () = assert!(MAX_SERVERS == 4, "the message says so");
    let mut servers = Servers::new();
    if text == "none" {
        return Ok((false, servers));
    }
    let (text, etcd, port) = match text.strip_prefix(ETCD) {
        Some(rest) => (rest, true, ETCD_PORT),
        None => (text, false, DEFAULT_PORT),
    };
    for part in text.split(',') {
        let server = match part.parse() {
            Ok(address) => SocketAddrV4::new(address, port),
            Err(_) => part.parse().map_err(|_| SHAPE)?,
        };
        if server.port() == 0 || server.ip().is_unspecified() || server.ip().is_broadcast() {
            return Err(SHAPE);
        }
        if servers.contains(&server) {
            return Err(SHAPE);
        }
        servers.push(server).map_err(|_| SHAPE)?;
    }
    Ok((etcd, servers))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use pollux_ft::PairKey;

    use super::*;

    const PAIR: &str = "role=primary client-nic=0:4.0 log-nic=0:5.0 log-address=10.1.0.1/24 log-peer=10.1.0.2 arbiter=";

    fn parse(rest: &str) -> Result<Config, String> {
        Config::parse(&format!("{PAIR}{rest}")).map_err(|error| error.to_string())
    }

    fn routes(rest: &str) -> [String; 2] {
        let config = parse(rest).unwrap();
        let routes = config.arbiter.routes(config.log_address).unwrap();
        [routes.log, routes.machine].map(|way| way.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn each_address_has_its_way() {
        assert_eq!(routes("10.1.0.3"), ["10.1.0.3:7003", ""]);
        assert_eq!(routes("10.0.2.3:99 machine-address=10.0.2.21/24"), ["", "10.0.2.3:99"]);
        let both = ["10.1.0.3:7003", "10.0.2.3:7"];
        assert_eq!(routes("10.1.0.3,10.0.2.3:7 machine-address=10.0.2.21/24"), both);
        assert_eq!(routes("10.0.2.3:7,10.1.0.3:7003 machine-address=10.0.2.21/24"), both);
        let far = "192.0.2.1 machine-address=10.0.2.21/24 machine-gateway=10.0.2.1";
        assert_eq!(routes(far), ["", "192.0.2.1:7003"]);
        let many = "10.1.0.3,10.1.0.4,10.0.2.3,10.1.0.3:9 machine-address=10.0.2.21/24";
        assert_eq!(routes(many), ["10.1.0.3:7003 10.1.0.4:7003 10.1.0.3:9", "10.0.2.3:7003"]);
        assert_eq!(routes("etcd://10.1.0.3,10.1.0.4:9"), ["10.1.0.3:2379 10.1.0.4:9", ""]);
        assert_eq!(routes("none"), ["", ""]);
        assert!(!parse("none").unwrap().arbiter.is_used());
    }

    #[test]
    fn what_is_refused_is_named() {
        for (rest, named) in [
            ("", "arbiter"),
            ("somewhere", "arbiter"),
            ("10.1.0.3:0", "arbiter"),
            ("10.1.0.3:99999", "arbiter"),
            ("0.0.0.0", "arbiter"),
            ("10.1.0.3,10.1.0.4,10.1.0.5,10.1.0.6,10.1.0.7", "up to four"),
            ("10.1.0.3,10.1.0.3", "different addresses"),
            ("etcd://", "etcd://10.0.2.3"),
            ("etcd://10.1.0.3,etcd://10.1.0.4", "arbiter"),
            ("http://10.1.0.3", "arbiter"),
            ("10.1.0.3,none", "arbiter"),
            ("10.1.0.2", "third party"),
            ("10.1.0.1", "third party"),
            ("10.0.2.21 machine-address=10.0.2.21/24", "third party"),
            ("10.0.2.3", "neither"),
            ("192.0.2.1 machine-address=10.0.2.21/24", "machine-gateway"),
            ("none machine-gateway=10.0.2.1", "'machine-gateway' means nothing"),
            ("none machine-peer=10.0.2.22", "'machine-peer' means nothing"),
            ("none machine-address=10.0.2.21/24 machine-peer=10.0.2.21", "'machine-peer' must be another host"),
            ("none machine-address=10.0.2.21/24 machine-peer=10.0.3.22", "'machine-peer' must be another host"),
            ("none machine-address=10.0.2.21/24 machine-peer=x", "machine-peer"),
            ("none machine-mac=52:54:00:00:00:01", "'machine-mac' means nothing"),
            ("none arbiter-nic=0:6.0", "'arbiter-nic' means nothing"),
            ("none machine-address=10.0.2.21", "machine-address=10.0.2.21"),
            ("none machine-address=10.0.2.21/24 machine-gateway=10.0.3.1", "machine-gateway"),
            ("none machine-address=10.0.2.21/24 machine-gateway=x", "machine-gateway"),
            ("none machine-address=10.1.0.21/24", "different networks"),
            (
                "none machine-address=10.0.2.21/24 arbiter-nic=0:4.0",
                "'client-nic' and 'arbiter-nic' name the same device",
            ),
            ("none machine-address=10.0.2.21/24 machine-mac=53:54:00:00:00:01", "unicast"),
            ("none machine-address=10.0.2.21/24 machine-mac=52:54:00:12:34:56", "must differ"),
            ("10.1.0.3 arbiter-timeout=1ms", "arbiter-timeout"),
            ("10.1.0.3 arbiter-retry=2min", "arbiter-retry"),
            ("10.1.0.3 arbiter-watch=0s", "between 100ms and 1h"),
            ("10.1.0.3 first-term=0", "first-term"),
            ("10.1.0.3 first-term=x", "first-term"),
            ("10.1.0.3 arbiter=none", "given twice"),
        ] {
            let error = parse(rest).unwrap_err();
            assert!(error.contains(named), "{rest}: {error}");
        }
        let silent = Config::parse(PAIR.trim_end_matches(" arbiter=")).unwrap_err().to_string();
        assert!(silent.contains("needs the option 'arbiter'"), "{silent}");
    }

    /// Sealed words are the rule where there is a key, and an etcd's are said so.
    #[test]
    fn the_manner_follows_from_key_and_address() {
        let key = Protection::from(PairKey::new(&[1; 32]));
        let manners = |rest: &str, protection: &Protection| parse(rest).unwrap().arbiter.manners(protection);
        assert!(matches!(manners("10.1.0.3", &key)[..], [Manner::Sealed(_)]));
        assert_eq!(manners("etcd://10.1.0.3", &key), [Manner::Etcd]);
        assert_eq!(manners("etcd://10.1.0.3 insecure=on", &Protection::default()), [Manner::Etcd]);
        let sealed = |rest: &str| parse(rest).unwrap().protocol().sealed_arbiter;
        assert_eq!((sealed("10.1.0.3"), sealed("etcd://10.1.0.3"), sealed("none")), (true, false, false));
        assert!(parse("none insecure=on").is_ok());
    }

    #[test]
    fn a_machine_alone_needs_no_arbiter() {
        assert_eq!(Config::parse("role=solo").unwrap().arbiter, ArbiterOptions::default());
    }

    proptest::proptest! {
        #[test]
        fn any_list_is_survived(text in "(etcd://)?[0-9.,:none]{0,40}") {
            let _ = parse(&text);
        }
    }
}
