//! The rig's view of its two networks; the switch behind them is `crate::net`.

use std::fmt::Write;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::options::{GUEST_ADDRESS, GUEST_PORT, HTTP_PORT};
use super::{SLOTS, Slot};
use crate::net::{
    BootConfig, CaptureConfig, Fabric, FabricConfig, Forward, ForwardConfig, HOST_ADDRESS, Host, LinkPart,
    LinkSettings, LinkStatus, LinkTarget, NetworkStats, Plug, PortStats, Protocol, Transport, desk_address,
};
pub use crate::net::{FabricStats, LinkChange, Network, arbiter_address};
use crate::units::{format_duration, parse_duration};

/// What can be changed, for messages.
const WORDS: &str = "delay=5ms, jitter=1ms, loss=1%, duplicate=1%, reorder=1%, down, up, mute, deaf";

/// Reads `log`, `client`, one machine's cable such as `log:castor`, or `arbiter`.
pub fn parse_target(text: &str) -> Result<LinkTarget> {
    if text == "arbiter" {
        return Ok(LinkTarget::Arbiter);
    }
    let (name, machine) = text.split_once(':').map_or((text, None), |(name, machine)| (name, Some(machine)));
    let network = Network::ALL.into_iter().find(|network| network.name() == name);
    let network = network
        .with_context(|| format!("`{text}` is no link: they are log, client, log:castor and so on, and arbiter"))?;
    Ok(match machine {
        None => LinkTarget::Network(network),
        Some(machine) => LinkTarget::Slot(network, machine.parse::<Slot>().map_err(anyhow::Error::msg)?.index()),
    })
}

/// Reads words such as `delay=5ms loss=1% down`.
pub fn parse_change(words: &[String]) -> Result<LinkChange> {
    ensure!(!words.is_empty(), "nothing to change: give some of {WORDS}");
    let mut change = LinkChange::default();
    for word in words {
        let time = |text| parse_duration(text).map_err(anyhow::Error::msg);
        let up_before = change.up;
        match word.split_once('=') {
            None if word == "up" => (change.up, change.mute, change.deaf) = (Some(true), Some(false), Some(false)),
            None if word == "mute" => change.mute = Some(true),
            None if word == "deaf" => change.deaf = Some(true),
            None if word == "down" => change.up = Some(false),
            Some(("delay", text)) => change.delay = Some(time(text)?),
            Some(("jitter", text)) => change.jitter = Some(time(text)?),
            Some(("loss", text)) => change.loss = Some(parse_share(text)?),
            Some(("duplicate", text)) => change.duplicate = Some(parse_share(text)?),
            Some(("reorder", text)) => change.reorder = Some(parse_share(text)?),
            _ => bail!("`{word}` is none of {WORDS}"),
        }
        ensure!(up_before.is_none() || change.up == up_before, "`up` and `down` contradict each other");
        let one_way = change.mute == Some(true) || change.deaf == Some(true);
        ensure!(change.up != Some(true) || !one_way, "`up` and `mute` or `deaf` contradict each other");
    }
    Ok(change)
}

/// Reads `1%` or `0.5%`.
fn parse_share(text: &str) -> Result<f64> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match percent {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => bail!("`{text}` is no share from 0% to 100%"),
    }
}

/// The settings in the words that would make them.
fn describe(settings: &LinkSettings) -> String {
    let mut text = if settings.up { "up" } else { "down" }.to_owned();
    for (name, on) in [("mute", settings.mute), ("deaf", settings.deaf)] {
        if on {
            let _ = write!(text, " {name}");
        }
    }
    for (name, time) in [("delay", settings.delay), ("jitter", settings.jitter)] {
        if time > Duration::ZERO {
            // Writing to a string cannot fail.
            let _ = write!(text, " {name}={}", format_duration(time));
        }
    }
    for (name, share) in [("loss", settings.loss), ("duplicate", settings.duplicate), ("reorder", settings.reorder)] {
        if share > 0.0 {
            let _ = write!(text, " {name}={}%", share * 100.0);
        }
    }
    text
}

/// A link at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkSnapshot {
    /// `log`, `client`, one machine's cable such as `log:castor`, or `arbiter`.
    pub name: String,
    /// Its settings, as they could be given to `rig link`.
    pub state: String,
    /// Frames that machines, forwarder or tap sent into it.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames lost on purpose, refused, or for nobody.
    pub dropped: u64,
}

/// How the networks are set up.
#[derive(Debug, Clone)]
pub struct NetworkConfig<'a> {
    /// How machines are attached.
    pub transport: Transport,
    /// Where the sockets live.
    pub sockets: &'a Path,
    /// Where captures go, if any.
    pub captures: Option<&'a Path>,
    /// The local ports that lead to the guest, its usual service first.
    pub forwards: &'a [Forward],
    /// The kernel interface that replaces the forwarder.
    pub tap: Option<&'a str>,
    /// Where the arbiter listens, for each network, if there is one.
    pub arbiter: Option<[SocketAddr; 2]>,
    /// A host on the log network that recordings go to or come from: its address there, and where it leads.
    pub station: Option<(SocketAddrV4, SocketAddr)>,
    /// What machines boot from, if they do over the network.
    pub boot: Option<BootConfig>,
    /// Whether the machines have addresses of their own on the client network.
    pub pair: bool,
    /// Seed of all randomness.
    pub seed: u64,
}

/// Both networks.
#[derive(Debug)]
pub struct Networks {
    /// None only after [`Networks::end`].
    fabric: Option<Fabric>,
    pair: bool,
}

impl Networks {
    /// Starts the switch.
    pub fn start(config: &NetworkConfig<'_>) -> Result<Self> {
        let host = match config.tap {
            Some(name) => Host::Tap(name.to_owned()),
            None => Host::Forwarder(ForwardConfig {
                forwards: config.forwards.to_owned(),
                guest: GUEST_ADDRESS,
                host: HOST_ADDRESS,
            }),
        };
        // By a tap the kernel reaches them itself.
        let asked = config.pair && config.tap.is_none();
        let desks = SLOTS.map(|slot| {
            asked.then(|| ForwardConfig {
                forwards: vec![Forward::new(Protocol::Tcp, 0, HTTP_PORT)],
                guest: slot.client_address(),
                host: desk_address(slot.index()),
            })
        });
        let fabric = Fabric::start(FabricConfig {
            transport: config.transport,
            sockets: config.sockets.to_owned(),
            host,
            arbiter: config.arbiter,
            station: config.station,
            boot: config.boot.clone(),
            desks,
            capture: config.captures.map(CaptureConfig::new),
            seed: config.seed,
        })?;
        Ok(Self { fabric: Some(fabric), pair: config.pair })
    }

    /// Where clients reach the guest's usual service.
    pub fn service(&self) -> SocketAddr {
        let first = self.forwards().first().map(|forward| forward.local.into());
        first.unwrap_or_else(|| SocketAddr::from((GUEST_ADDRESS, GUEST_PORT)))
    }

    /// Where clients reach a TCP port of the guest, if they do.
    pub fn address(&self, port: u16) -> Option<SocketAddr> {
        if self.forwards().is_empty() {
            return Some(SocketAddr::from((GUEST_ADDRESS, port)));
        }
        Some(self.forwards().iter().find(|forward| forward.leads_to(port))?.local.into())
    }

    /// Where a machine itself answers by HTTP, if it does.
    pub fn http(&self, slot: Slot) -> Option<SocketAddr> {
        let local = self.fabric.as_ref()?.desk(slot.index()).map(SocketAddr::from);
        local.or_else(|| self.pair.then(|| SocketAddr::from((slot.client_address(), HTTP_PORT))))
    }

    /// The local ports that lead to the guest.
    pub fn forwards(&self) -> &[Forward] {
        self.fabric.as_ref().map_or(&[], Fabric::forwards)
    }

    /// How an emulator is connected to a port.
    pub fn plug(&self, network: Network, slot: Slot) -> Result<Plug> {
        Ok(self.fabric()?.port(network, slot.index()).clone())
    }

    /// Changes a link.
    pub fn set_link(&self, target: LinkTarget, change: &LinkChange) -> Result<()> {
        self.fabric()?.set_link(target, change)
    }

    /// Starts capturing anew into `directory`, or ends it.
    pub fn capture(&self, directory: Option<&Path>) -> Result<()> {
        self.fabric()?.set_capture(directory.map(CaptureConfig::new))
    }

    /// Everything counted so far; an error means that the networks have ended.
    pub fn stats(&self) -> Result<FabricStats> {
        self.fabric()?.stats()
    }

    /// Ends them; an error is what ended them before.
    pub fn end(&mut self) -> Result<()> {
        self.fabric.take().map_or(Ok(()), Fabric::stop)
    }

    fn fabric(&self) -> Result<&Fabric> {
        self.fabric.as_ref().context("the networks have ended")
    }

    /// The networks as they are, and those cables that were changed.
    pub fn links(&self, stats: &FabricStats) -> Result<Vec<LinkSnapshot>> {
        let links = self.fabric()?.links()?.into_iter();
        // The arbiter's two cables are always alike: one stands for both.
        let twofold = |link: &LinkStatus| link.part == LinkPart::Arbiter && link.network != Network::ALL[0];
        let changed = |link: &LinkStatus| link.settings != LinkSettings::default();
        let shown = links.filter(|link| link.part == LinkPart::Whole || changed(link) && !twofold(link));
        let shown = shown.map(|link| {
            let port = count(&link, stats);
            LinkSnapshot {
                name: name(&link),
                state: describe(&link.settings),
                frames: port.sent_frames,
                bytes: port.sent_bytes,
                dropped: port.dropped.total(),
            }
        });
        Ok(shown.collect())
    }
}

/// As it can be given to `rig link`.
fn name(link: &LinkStatus) -> String {
    let network = link.network.name();
    match link.part {
        LinkPart::Whole => network.to_owned(),
        LinkPart::Slot(slot) => format!("{network}:{}", SLOTS.get(slot).map_or("?", |slot| slot.name())),
        LinkPart::Arbiter => "arbiter".to_owned(),
    }
}

/// What went through.
fn count(link: &LinkStatus, stats: &FabricStats) -> PortStats {
    let network = stats.networks.iter().find(|stats| stats.network == link.network);
    match link.part {
        LinkPart::Whole => network.map(NetworkStats::total),
        LinkPart::Slot(slot) => network.and_then(|network| network.slots.get(slot).copied()),
        LinkPart::Arbiter => stats.networks.iter().map(|network| network.arbiter).reduce(|sum, port| sum.plus(&port)),
    }
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LinkChange> {
        parse_change(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn changes_are_read() {
        let change = parse("delay=5ms loss=1% down").unwrap();
        let delay = Some(Duration::from_millis(5));
        assert_eq!(change, LinkChange { up: Some(false), delay, loss: Some(0.01), ..LinkChange::default() });
        let healed = LinkChange { up: Some(true), mute: Some(false), deaf: Some(false), ..LinkChange::default() };
        assert_eq!(parse("up").unwrap(), healed);
        assert_eq!(parse("mute").unwrap(), LinkChange { mute: Some(true), ..LinkChange::default() });
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["", "sideways", "delay", "delay=5", "loss=5", "loss=101%", "loss=-1%", "up=1", "up down", "loss=nan%"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "wan", "log:", "log:helen", "castor", "arbiter:castor"] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn links_have_names() {
        assert_eq!(parse_target("log").unwrap(), LinkTarget::Network(Network::Log));
        assert_eq!(parse_target("arbiter").unwrap(), LinkTarget::Arbiter);
        assert_eq!(parse_target("client:pollux").unwrap(), LinkTarget::Slot(Network::Client, 1));
    }

    #[test]
    fn settings_are_told_in_the_words_that_make_them() {
        let words = "up delay=5ms jitter=500us loss=1% reorder=0.5%";
        let mut settings = LinkSettings::default();
        settings.apply(&parse(words).unwrap());
        assert_eq!(describe(&settings), words);
        settings.apply(&parse_change(&["mute".into(), "deaf".into()]).unwrap());
        assert!(describe(&settings).starts_with("up mute deaf"), "{settings:?}");
        settings.apply(&parse_change(&["up".into()]).unwrap());
        assert_eq!(describe(&settings), words);
        assert!(parse_change(&["up".into(), "deaf".into()]).is_err());
        assert_eq!(describe(&LinkSettings::default()), "up");
    }
}
