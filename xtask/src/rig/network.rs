//! The rig's view of its two networks; the switch behind them is `crate::net`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Slot;
use crate::units::parse_duration;

/// One of a rig's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The clients' side.
    Client,
    /// The logging channel.
    Log,
}

/// A change of a network's links; what is none stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LinkChange {
    /// Connected or cut.
    pub up: Option<bool>,
    /// One way, in each direction.
    pub delay: Option<Duration>,
    /// Added to the delay at random, at most.
    pub jitter: Option<Duration>,
    /// Frames lost, 0 to 1.
    pub loss: Option<f64>,
    /// Frames sent twice, 0 to 1.
    pub duplicate: Option<f64>,
    /// Frames that overtake others, 0 to 1.
    pub reorder: Option<f64>,
}

impl LinkChange {
    /// Reads words such as `delay=5ms loss=1% down`.
    pub fn parse(words: &[String]) -> Result<Self> {
        ensure!(
            !words.is_empty(),
            "nothing to change: give delay=5ms, jitter=1ms, loss=1%, duplicate=1%, reorder=1%, down or up"
        );
        let mut change = Self::default();
        for word in words {
            let seconds = |text| parse_duration(text).map_err(anyhow::Error::msg);
            let before = change.clone();
            match word.split_once('=') {
                None if word == "up" => change.up = Some(true),
                None if word == "down" => change.up = Some(false),
                Some(("delay", text)) => change.delay = Some(seconds(text)?),
                Some(("jitter", text)) => change.jitter = Some(seconds(text)?),
                Some(("loss", text)) => change.loss = Some(parse_share(text)?),
                Some(("duplicate", text)) => change.duplicate = Some(parse_share(text)?),
                Some(("reorder", text)) => change.reorder = Some(parse_share(text)?),
                _ => bail!("`{word}` is none of delay=5ms, jitter=1ms, loss=1%, duplicate=1%, reorder=1%, down, up"),
            }
            ensure!(before.up.is_none() || change.up == before.up, "`up` and `down` contradict each other");
        }
        Ok(change)
    }
}

/// Reads `1%` or `0.5%`.
fn parse_share(text: &str) -> Result<f64> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match percent {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => bail!("`{text}` is no share from 0% to 100%"),
    }
}

/// A network at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkSnapshot {
    /// Which.
    pub network: Network,
    /// Its settings in words, as they could be given to `rig link`.
    pub state: String,
    /// Frames forwarded.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames lost on purpose or refused.
    pub dropped: u64,
}

/// How the networks are set up.
#[derive(Debug, Clone)]
pub struct NetworkConfig<'a> {
    /// Where the sockets live.
    pub sockets: &'a Path,
    /// Where captures go, if any.
    pub captures: Option<&'a Path>,
    /// The local TCP port that leads to the guest.
    pub port: u16,
    /// The local UDP port that leads to the guest's UDP port 7.
    pub udp: Option<u16>,
    /// The kernel interface that replaces the forwarder.
    pub tap: Option<&'a str>,
    /// Seed of all randomness.
    pub seed: u64,
}

/// Both networks.
#[derive(Debug)]
pub struct Networks {
    sockets: PathBuf,
}

impl Networks {
    /// Starts the switch.
    pub fn start(config: &NetworkConfig<'_>) -> Result<Self> {
        Ok(Self { sockets: config.sockets.to_owned() })
    }

    /// The emulator's and the switch's socket of a port.
    pub fn port(&self, network: Network, slot: Slot) -> (PathBuf, PathBuf) {
        let name = format!("{network:?}-{}", slot.index()).to_lowercase();
        (self.sockets.join(format!("{name}-a")), self.sockets.join(format!("{name}-b")))
    }

    /// Changes a network.
    pub fn set_link(&self, _network: Network, _change: &LinkChange) -> Result<()> {
        bail!("not connected to a switch")
    }

    /// Both networks as they are.
    pub fn snapshot(&self) -> Vec<LinkSnapshot> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LinkChange> {
        LinkChange::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn changes_are_read() {
        let change = parse("delay=5ms loss=1% down").unwrap();
        let delay = Some(Duration::from_millis(5));
        assert_eq!(change, LinkChange { up: Some(false), delay, loss: Some(0.01), ..LinkChange::default() });
        assert_eq!(parse("up").unwrap(), LinkChange { up: Some(true), ..LinkChange::default() });
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["", "sideways", "delay", "delay=5", "loss=5", "loss=101%", "loss=-1%", "up=1", "up down", "loss=nan%"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
