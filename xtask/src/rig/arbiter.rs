//! The arbiter of a rig: its own, one elsewhere, or none.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::network::FabricStats;
use crate::arbiter::{Holding, Service, range};
use crate::net::ARBITER_PORT;

/// The file of a rig's own arbiter, in the rig's directory.
const FILE: &str = "arbiter.log";

/// What `--arbiter` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// One in this process, with its file in the rig's directory.
    Own,
    /// One that speaks as etcd does.
    At(SocketAddr),
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
        let full = if text.contains(':') { text.to_owned() } else { format!("{text}:{ARBITER_PORT}") };
        let address = full.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        address.map(Self::At).ok_or_else(|| format!("`{text}` is none of own, none, HOST:PORT"))
    }
}

/// The arbiter of a running rig.
#[derive(Debug)]
pub struct Arbiter {
    address: SocketAddr,
    /// None for one elsewhere.
    service: Option<Service>,
    pair: String,
    /// The newest term before the rig's machines came.
    before: Option<Holding>,
}

/// The arbiter at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArbiterSnapshot {
    /// Where it listens.
    pub address: String,
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
    /// Starts what was chosen, for the machines of `pair`.
    pub fn start(choice: Choice, directory: &Path, pair: &str) -> Result<Option<Self>> {
        let (address, service, before) = match choice {
            Choice::Off => return Ok(None),
            Choice::At(address) => (address, None, range::newest_at(address, pair)?),
            Choice::Own => {
                let service = Service::start((Ipv4Addr::LOCALHOST, 0).into(), &directory.join(FILE));
                let service = service.context("the rig's own arbiter")?;
                let before = service.newest(pair);
                (service.address(), Some(service), before)
            }
        };
        Ok(Some(Self { address, service, pair: pair.to_owned(), before }))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first term that had not been given to anybody when the rig started.
    pub fn first_free_term(&self) -> u64 {
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
            address: self.address.to_string(),
            newest_term: newest.as_ref().map(|holding| holding.term),
            winner: newest.map(|holding| holding.winner),
            requests: self.service.as_ref().map_or(relay.accepted, Service::requests),
            failed: relay.failed,
        }
    }
}

impl fmt::Display for ArbiterSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arbiter {}: {} requests", self.address, self.requests)?;
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
        assert_eq!("127.0.0.1:7".parse(), Ok(Choice::At("127.0.0.1:7".parse().unwrap())));
        assert_eq!("127.0.0.1".parse(), Ok(Choice::At("127.0.0.1:2379".parse().unwrap())));
        for bad in ["", "127.0.0.1:", "127.0.0.1:x", "no such host:1", ":"] {
            assert!(bad.parse::<Choice>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rig_that_starts_again_bids_for_new_terms() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Arbiter::start(Choice::Off, directory.path(), "p").unwrap().is_none());
        let arbiter = Arbiter::start(Choice::Own, directory.path(), "p").unwrap().unwrap();
        assert_eq!((arbiter.first_free_term(), arbiter.snapshot(None).newest_term), (1, None));
        drop(arbiter);
        let mut file = crate::arbiter::Store::open(&directory.path().join(FILE)).unwrap();
        for key in ["pollux/p/2", "pollux/p/10", "pollux/other/99", "pollux/p/x"] {
            file.create(key, "00 castor").unwrap();
        }
        drop(file);
        let arbiter = Arbiter::start(Choice::Own, directory.path(), "p").unwrap().unwrap();
        assert_eq!(arbiter.first_free_term(), 11);
        let text = arbiter.snapshot(None).to_string();
        assert!(text.ends_with(": 0 requests, newest term 10 is 00 castor's"), "{text}");
    }
}
