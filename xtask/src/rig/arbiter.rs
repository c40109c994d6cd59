//! The arbiter of a rig: its own, one elsewhere, or none.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use pollux_arbiter::keys::{Keyring, Pair};
use pollux_arbiter::{Holding, Service, Words};
use pollux_ft::PairKey;
use serde::{Deserialize, Serialize};

use super::network::FabricStats;
use crate::net::ARBITER_PORT;
use crate::secret::Secret;

/// The file of a rig's own arbiter, in the rig's directory.
const FILE: &str = "arbiter.log";
/// What says that the machines are to speak with an etcd; the hypervisor's option has it, too.
pub const ETCD: &str = "etcd://";
/// The port of etcd's clients.
const ETCD_PORT: u16 = 2379;

/// What `--arbiter` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// One in this process, with its file in the rig's directory. It speaks in sealed words to a pair with a key, and as an
    /// etcd does to one without.
    Own,
    /// One elsewhere, which has the key of the pair; or two in front of one store, each on one network, in the order of
    /// `Network`.
    At([SocketAddr; 2]),
    /// One that speaks as etcd does, in plain words.
    Etcd(SocketAddr),
    /// None: nothing keeps two machines from running the guest when they do not hear each other.
    Off,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "own" => return Ok(Self::Own),
            "none" => return Ok(Self::Off),
            _ => {}
        }
        let choice = match (text.strip_prefix(ETCD), text.split_once(',')) {
            (Some(rest), _) => address(rest, ETCD_PORT).map(Self::Etcd),
            (None, None) => address(text, ARBITER_PORT).map(|both| Self::At([both; 2])),
            (None, Some((client, log))) => match [client, log].map(|text| address(text, ARBITER_PORT)) {
                [Some(client), Some(log)] => Some(Self::At([client, log])),
                _ => None,
            },
        };
        choice.ok_or_else(|| {
            format!("`{text}` is none of own, none, HOST:PORT, HOST:PORT,HOST:PORT (client, log), etcd://HOST:PORT")
        })
    }
}

fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let full = if text.contains(':') { text.to_owned() } else { format!("{text}:{port}") };
    full.to_socket_addrs().ok().and_then(|mut addresses| addresses.next())
}

/// The newest term that the arbiters at `addresses` have given: the word of the first that answers.
fn newest_at(addresses: [SocketAddr; 2], pair: &Pair) -> Result<Option<Holding>> {
    let [first, second] = addresses;
    pollux_arbiter::newest_at(first, pair).or_else(|error| match second == first {
        true => Err(error),
        false => pollux_arbiter::newest_at(second, pair),
    })
}

/// The arbiter of a running rig.
#[derive(Debug)]
pub struct Arbiter {
    /// In the order of the networks.
    addresses: [SocketAddr; 2],
    /// Whether it is asked in sealed words.
    sealed: bool,
    /// None for one elsewhere.
    service: Option<Service>,
    pair: String,
    /// The newest term before the rig's machines came.
    before: Option<Holding>,
}

/// What machines are told about their arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The term that a primary is to bid for.
    pub first_term: u64,
    /// Whether it is asked in sealed words.
    pub sealed: bool,
}

/// The arbiter at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArbiterSnapshot {
    /// Where it listens, on client and log network.
    pub address: String,
    /// Whether it is asked in plain words, so that everybody on the way can answer.
    pub insecure: bool,
    /// The newest term that it gave to the pair, if it gave any; of one elsewhere, the newest before the rig started.
    pub newest_term: Option<u64>,
    /// Who got it: node and name of the machine.
    pub winner: Option<String>,
    /// Questions and looks of the machines that reached it.
    pub requests: u64,
    /// Those that it did not take.
    pub failed: u64,
}

impl Arbiter {
    /// Starts what was chosen, for the machines of `pair`, which have this key.
    pub fn start(choice: Choice, directory: &Path, pair: &str, key: Option<&Secret>) -> Result<Option<Self>> {
        let sealed = key.map(|key| Pair::new(pair, &key.pair_key()));
        let (addresses, service, before) = match (choice, &sealed) {
            (Choice::Off, _) => return Ok(None),
            (Choice::Etcd(address), _) => ([address; 2], None, pollux_arbiter::newest_in_etcd(address, pair)?),
            (Choice::At(addresses), Some(sealed)) => (addresses, None, newest_at(addresses, sealed)?),
            (Choice::At([address, _]), None) => bail!(
                "the arbiter at {address} is asked in sealed words, and this pair has no key: an etcd is asked with \
                 --arbiter {ETCD}{address}"
            ),
            (Choice::Own, sealed) => {
                let words = match sealed {
                    Some(pair) => Words::Sealed(Keyring::of([pair.clone()])?),
                    None => Words::Etcd,
                };
                let service = Service::start((Ipv4Addr::LOCALHOST, 0).into(), &directory.join(FILE), words);
                let service = service.context("the rig's own arbiter")?;
                let before = service.newest(pair);
                ([service.address(); 2], Some(service), before)
            }
        };
        let sealed = sealed.is_some() && !matches!(choice, Choice::Etcd(_));
        Ok(Some(Self { addresses, sealed, service, pair: pair.to_owned(), before }))
    }

    /// What the machines are to know about it.
    pub fn asked(&self) -> Asked {
        Asked { first_term: self.first_free_term(), sealed: self.sealed }
    }

    /// The machines have these keys from now on, the newest one first. One that is not ours gets its files by hand.
    pub fn set_keys(&self, keys: &[PairKey]) -> Result<()> {
        let Some(ring) = self.service.as_ref().and_then(Service::keys) else { return Ok(()) };
        let old = keys.get(1).into_iter().map(|old| Pair::new(&self.pair, old));
        let newest = keys.first().into_iter().map(|newest| match keys.get(1) {
            Some(old) => Pair::new(&self.pair, newest).after(old),
            None => Pair::new(&self.pair, newest),
        });
        ring.replace(newest.chain(old))
    }

    /// Where each network leads to it.
    pub fn addresses(&self) -> [SocketAddr; 2] {
        self.addresses
    }

    /// The first term that had not been given to anybody when the rig started.
    fn first_free_term(&self) -> u64 {
        self.before.as_ref().map_or(1, |holding| holding.term.saturating_add(1))
    }

    /// What is known about it.
    pub fn snapshot(&self, stats: Option<&FabricStats>) -> ArbiterSnapshot {
        let newest = match &self.service {
            Some(service) => service.newest(&self.pair),
            None => self.before.clone(),
        };
        let relay = stats.and_then(|stats| stats.relay).unwrap_or_default();
        ArbiterSnapshot {
            address: match self.addresses {
                [client, log] if client == log => client.to_string(),
                [client, log] => format!("{client}, {log}"),
            },
            insecure: !self.sealed,
            newest_term: newest.as_ref().map(|holding| holding.term),
            winner: newest.map(|holding| holding.winner),
            requests: self.service.as_ref().map_or(relay.accepted, Service::requests),
            failed: relay.failed,
        }
    }
}

impl fmt::Display for ArbiterSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let insecure = if self.insecure { " (INSECURE: plain words)" } else { "" };
        write!(f, "arbiter {}{insecure}: {} requests", self.address, self.requests)?;
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        match (self.newest_term, &self.winner) {
            (Some(term), Some(winner)) => write!(f, ", newest term {term} is {winner}'s"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read() {
        assert_eq!("own".parse(), Ok(Choice::Own));
        assert_eq!("none".parse(), Ok(Choice::Off));
        assert_eq!("127.0.0.1:7".parse(), Ok(Choice::At(["127.0.0.1:7".parse().unwrap(); 2])));
        assert_eq!(
            "127.0.0.1:7,127.0.0.1".parse(),
            Ok(Choice::At(["127.0.0.1:7", "127.0.0.1:7003"].map(|at| at.parse().unwrap())))
        );
        assert_eq!("127.0.0.1".parse(), Ok(Choice::At(["127.0.0.1:7003".parse().unwrap(); 2])));
        assert_eq!("etcd://127.0.0.1:7".parse(), Ok(Choice::Etcd("127.0.0.1:7".parse().unwrap())));
        assert_eq!("etcd://127.0.0.1".parse(), Ok(Choice::Etcd("127.0.0.1:2379".parse().unwrap())));
        for bad in ["", "127.0.0.1:", "127.0.0.1:x", "no such host:1", ":", "etcd://", "http://127.0.0.1"] {
            assert!(bad.parse::<Choice>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rig_that_starts_again_bids_for_new_terms() {
        let directory = tempfile::tempdir().unwrap();
        let [key, other] = [(); 2].map(|()| Secret::draw().unwrap());
        let start = |choice, key| Arbiter::start(choice, directory.path(), "p", key);
        assert!(start(Choice::Off, Some(&key)).unwrap().is_none());
        for key in [None, Some(&key)] {
            let arbiter = start(Choice::Own, key).unwrap().unwrap();
            assert_eq!(arbiter.asked(), Asked { first_term: 1, sealed: key.is_some() });
            assert_eq!(arbiter.snapshot(None).newest_term, None);
        }
        let mut file = pollux_arbiter::Store::open(&directory.path().join(FILE)).unwrap();
        for key in ["pollux/p/2", "pollux/p/10", "pollux/other/99", "pollux/p/x"] {
            file.create(key, "00 castor").unwrap();
        }
        drop(file);
        let arbiter = start(Choice::Own, Some(&key)).unwrap().unwrap();
        assert_eq!(arbiter.asked().first_term, 11);
        let text = arbiter.snapshot(None).to_string();
        assert!(text.ends_with(": 0 requests, newest term 10 is 00 castor's") && !text.contains("INSECURE"), "{text}");
        // The same from elsewhere, if it is asked as it wants to be.
        let elsewhere = start(Choice::At(arbiter.addresses()), Some(&key)).unwrap().unwrap();
        assert_eq!(elsewhere.asked(), Asked { first_term: 11, sealed: true });
        let refused = |choice, key| format!("{:#}", start(choice, key).unwrap_err());
        assert!(refused(Choice::At(arbiter.addresses()), None).contains("has no key"));
        assert!(refused(Choice::At(arbiter.addresses()), Some(&other)).contains("no key of this pair"));
        assert!(refused(Choice::Etcd(arbiter.addresses()[0]), Some(&key)).contains("cannot ask the arbiter"));
    }
}
