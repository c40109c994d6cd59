//! The thread of the networks: one loop over all sockets, timers and commands.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::boot::BootHost;
use super::capture::Capture;
use super::delay::DelayQueue;
use super::forward::{CONNECTION_TOKENS, Forwarder, Tokens};
use super::lan::{ARBITER, BOOT, DESK, Destination, HOST, HostEnd, Lan, Way};
use super::link::LinkChange;
use super::port::{Opening, Port};
use super::relay::{self, Relay};
use super::stats::{FabricStats, RelayStats};
use super::tap::Tap;
use super::{
    CaptureConfig, FabricConfig, Forward, Host, LinkPart, LinkStatus, LinkTarget, MAX_FORWARDS, Network, Plug, SLOTS,
    Transport, arbiter_address,
};

const WAKER: Token = Token(0);
const TIMER: Token = Token(1);
const TAP: Token = Token(2);
const INBOUND: usize = 8;
const OUTBOUND: usize = INBOUND + 2 * SLOTS;
/// The first token of the arbiter's host on each network, and of the station's.
const RELAYS: [usize; 3] = [34, 34 + relay::MAX_CONNECTIONS, 34 + 2 * relay::MAX_CONNECTIONS];
const FORWARDER: Tokens = Tokens { forwards: 64, connections: 64 + MAX_FORWARDS };
/// The first token of those who ask machines for themselves.
const DESKS: usize = RELAYS[2] + relay::MAX_CONNECTIONS;
const _: () = assert!(DESKS + SLOTS <= FORWARDER.forwards);
/// Ports at which local connections come in.
const FORWARDERS: [usize; 1 + SLOTS] = [HOST, DESK, DESK + 1];

/// Frames taken from one port before the others have their turn.
const BATCH: usize = 64;
/// How long captured frames may stay in memory.
const FLUSH: Duration = Duration::from_millis(200);
/// Longer than any frame, so that oversized ones are recognised.
const BUFFER: usize = 4096;

/// What the owner of the fabric can ask for.
pub enum Command {
    SetLink(LinkTarget, LinkChange, Sender<()>),
    Links(Sender<Vec<LinkStatus>>),
    Stats(Sender<FabricStats>),
    SetCapture(Option<CaptureConfig>, Sender<Result<()>>),
    Stop,
}

/// All state of the thread.
pub struct Engine {
    poll: Poll,
    waker: Arc<Waker>,
    timer: TimerFd,
    armed: Option<Duration>,
    inbox: Receiver<Command>,
    start: Instant,
    now: Duration,
    rng: Rng,
    queue: DelayQueue<Destination>,
    lans: [Lan; 2],
    buffer: Box<[u8; BUFFER]>,
    flush_at: Duration,
}

impl Engine {
    /// Opens everything, with sockets in `dir`; no frame moves yet. Also how emulators are connected.
    pub fn new(config: &FabricConfig, dir: &Path, inbox: Receiver<Command>) -> Result<(Self, [[Plug; SLOTS]; 2])> {
        let poll = Poll::new().context("cannot create an event queue")?;
        let registry = poll.registry();
        let waker = Arc::new(Waker::new(registry, WAKER).context("cannot create a waker")?);
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)
            .context("cannot create a timer")?;
        registry
            .register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)
            .context("cannot poll the timer")?;
        let host = match &config.host {
            #[cfg(test)]
            Host::None => HostEnd::None,
            Host::Forwarder(forward) => {
                HostEnd::Forwarder(Box::new(Forwarder::new(forward, config.seed, registry, FORWARDER)?))
            }
            Host::Tap(name) => HostEnd::Tap(Tap::open(name, registry, TAP)?),
        };
        let (client, client_plugs) = open(Network::Client, config.transport, dir, registry)?;
        let (log, log_plugs) = open(Network::Log, config.transport, dir, registry)?;
        let [client_capture, log_capture] = captures(config.capture.as_ref())?;
        let arbiter = |network: Network| -> Result<_> {
            let Some(target) = config.arbiter.map(|targets| targets[network.index()]) else { return Ok(None) };
            let own = arbiter_address(network);
            Ok(Some(Box::new(Relay::new(own, target, relay::SMALL, config.seed, RELAYS[network.index()])?)))
        };
        let station = match config.station {
            Some((own, target)) => Some(Box::new(Relay::new(own, target, relay::LARGE, config.seed, RELAYS[2])?)),
            None => None,
        };
        let boot = config.boot.as_ref().map(BootHost::new).transpose()?.map(Box::new);
        let desk = |slot: usize| -> Result<_> {
            let Some(desk) = &config.desks[slot] else { return Ok(None) };
            ensure!(desk.forwards.len() == 1, "there is one port for each machine");
            let connections = FORWARDER.connections + (1 + slot) * CONNECTION_TOKENS;
            let tokens = Tokens { forwards: DESKS + slot, connections };
            Ok(Some(Box::new(Forwarder::new(desk, config.seed, registry, tokens)?)))
        };
        let desks = [desk(0)?, desk(1)?];
        let [client_arbiter, log_arbiter] = [arbiter(Network::Client)?, arbiter(Network::Log)?];
        let lans = [
            Lan::new(Network::Client, client, host, [client_arbiter, None], desks, boot, client_capture),
            Lan::new(Network::Log, log, HostEnd::None, [log_arbiter, station], [None, None], None, log_capture),
        ];
        let engine = Self {
            poll,
            waker,
            timer,
            armed: None,
            inbox,
            start: Instant::now(),
            now: Duration::ZERO,
            rng: Rng::with_seed(config.seed),
            queue: DelayQueue::new(),
            lans,
            buffer: Box::new([0; BUFFER]),
            flush_at: FLUSH,
        };
        Ok((engine, [client_plugs, log_plugs]))
    }

    /// Wakes the thread after a command.
    pub fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// The forwarded ports, and for each machine the one that leads to itself.
    pub fn forwards(&self) -> Result<(Vec<Forward>, [Option<SocketAddrV4>; SLOTS])> {
        let forwards = match &self.lans[0].host {
            HostEnd::Forwarder(forwarder) => forwarder.forwards()?,
            _ => Vec::new(),
        };
        let mut desks = [None; SLOTS];
        for (place, desk) in desks.iter_mut().zip(&self.lans[0].desks) {
            let forwards = desk.as_ref().map(|desk| desk.forwards()).transpose()?;
            *place = forwards.and_then(|forwards| Some(forwards.first()?.local));
        }
        Ok((forwards, desks))
    }

    /// Serves until it is told to stop.
    pub fn run(mut self) -> Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = self.prepare()?;
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.context("cannot wait for events")?,
            }
            self.now = self.start.elapsed();
            // First what is due, so that nothing that comes in now overtakes it.
            self.flush_due();
            self.deliver_due();
            let mut asked = false;
            for event in &events {
                asked |= event.token() == WAKER;
                self.dispatch(event);
            }
            if asked && !self.obey() {
                return Ok(());
            }
            self.receive();
            self.forward();
            self.relay();
            self.boot();
            self.flush_captures(self.now >= self.flush_at);
        }
    }

    /// Arms the timer for delayed frames, and tells how long to wait at most for the rest.
    fn prepare(&mut self) -> Result<Option<Duration>> {
        let busy = self.lans.iter().any(|lan| {
            lan.slots.iter().any(|port| port.readable) || matches!(&lan.host, HostEnd::Tap(tap) if tap.readable)
        });
        if busy {
            return Ok(Some(Duration::ZERO));
        }
        let now = self.start.elapsed();
        let due = self.queue.next_due();
        if due.is_some_and(|due| due <= now) {
            return Ok(Some(Duration::ZERO));
        }
        if due != self.armed {
            if let Some(due) = due {
                let wait = TimeSpec::from_duration(due - now);
                self.timer
                    .set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())
                    .context("cannot set the timer")?;
            }
            self.armed = due;
        }
        let lan = &mut self.lans[0];
        let forwarder = FORWARDERS.into_iter().filter_map(|port| lan.forwarder(port)?.stack.deadline()).min();
        let captures = self.lans.iter().any(|lan| lan.capture.is_some()).then_some(self.flush_at);
        let relays =
            self.lans.iter().flat_map(|lan| lan.relays.iter().flatten()).filter_map(|relay| relay.stack.deadline());
        let ports = self.lans.iter().flat_map(|lan| lan.slots.iter().filter_map(Port::flush_at));
        let boot = self.lans.iter().find_map(|lan| lan.boot.as_ref()?.deadline());
        let next = [forwarder, captures, boot].into_iter().flatten().chain(relays).chain(ports).min();
        Ok(next.map(|next| next.saturating_sub(now)))
    }

    fn dispatch(&mut self, event: &Event) {
        let registry = self.poll.registry();
        match event.token() {
            WAKER | TIMER => {}
            TAP => {
                if let HostEnd::Tap(tap) = &mut self.lans[0].host {
                    tap.readable = true;
                }
            }
            Token(token @ INBOUND..OUTBOUND) => {
                let index = token - INBOUND;
                self.lans[index / SLOTS].slots[index % SLOTS].readable = true;
            }
            Token(token) if (OUTBOUND..OUTBOUND + 2 * SLOTS).contains(&token) => {
                let index = token - OUTBOUND;
                self.lans[index / SLOTS].flush(index % SLOTS, self.now, registry);
            }
            Token(token) if (RELAYS[0]..DESKS).contains(&token) => {
                self.lans
                    .iter_mut()
                    .flat_map(|lan| lan.relays.iter_mut().flatten())
                    .for_each(|relay| relay.event(event));
            }
            _ => {
                for port in FORWARDERS {
                    if let Some(forwarder) = self.lans[0].forwarder(port) {
                        forwarder.event(event);
                    }
                }
            }
        }
    }

    /// Sends what waits in ports that have no event for it.
    fn flush_due(&mut self) {
        for lan in &mut self.lans {
            for slot in 0..SLOTS {
                if lan.slots[slot].flush_at().is_some_and(|at| at <= self.now) {
                    lan.flush(slot, self.now, self.poll.registry());
                }
            }
        }
    }

    fn deliver_due(&mut self) {
        while let Some(parcel) = self.queue.pop_due(self.now) {
            let (lan, egress) = parcel.to;
            self.lans[lan].arrive(egress, &parcel.frame, self.now, self.poll.registry());
        }
    }

    /// Takes a batch of frames from every port that has some.
    fn receive(&mut self) {
        let mut way = Way { now: self.now, rng: &mut self.rng, queue: &mut self.queue, registry: self.poll.registry() };
        let buffer = &mut self.buffer[..];
        for lan in &mut self.lans {
            for slot in 0..SLOTS {
                for _ in 0..BATCH {
                    if !lan.slots[slot].readable {
                        break;
                    }
                    let Some(length) = lan.slots[slot].receive(buffer) else { break };
                    lan.enter(slot, &buffer[..length], &mut way);
                }
            }
            for _ in 0..BATCH {
                let HostEnd::Tap(tap) = &mut lan.host else { break };
                if !tap.readable {
                    break;
                }
                let Some(length) = tap.receive(buffer) else { break };
                lan.enter(HOST, &buffer[..length], &mut way);
            }
        }
    }

    /// Lets the forwarders work, and takes their frames.
    fn forward(&mut self) {
        let registry = self.poll.registry();
        let lan = &mut self.lans[0];
        let mut way = Way { now: self.now, rng: &mut self.rng, queue: &mut self.queue, registry };
        for port in FORWARDERS {
            if let Some(forwarder) = lan.forwarder(port) {
                forwarder.poll(self.now, registry);
            }
            while let Some(frame) = lan.forwarder(port).and_then(|forwarder| forwarder.stack.pop()) {
                lan.enter(port, &frame, &mut way);
                if let Some(forwarder) = lan.forwarder(port) {
                    forwarder.stack.recycle(frame);
                }
            }
        }
    }

    /// Lets hosts of arbiter and recordings work, and takes their frames.
    fn relay(&mut self) {
        let registry = self.poll.registry();
        let mut way = Way { now: self.now, rng: &mut self.rng, queue: &mut self.queue, registry };
        for lan in &mut self.lans {
            for index in 0..lan.relays.len() {
                if let Some(relay) = &mut lan.relays[index] {
                    relay.poll(self.now, registry);
                }
                while let Some(frame) = lan.relays[index].as_mut().and_then(|relay| relay.stack.pop()) {
                    lan.enter(ARBITER + index, &frame, &mut way);
                    if let Some(relay) = &mut lan.relays[index] {
                        relay.stack.recycle(frame);
                    }
                }
            }
        }
    }

    /// Lets the host that machines boot from work, and takes its frames.
    fn boot(&mut self) {
        let mut way = Way { now: self.now, rng: &mut self.rng, queue: &mut self.queue, registry: self.poll.registry() };
        for lan in &mut self.lans {
            let Some(boot) = &mut lan.boot else { continue };
            boot.poll(self.now);
            for frame in boot.take_frames() {
                lan.enter(BOOT, &frame, &mut way);
            }
        }
    }

    fn flush_captures(&mut self, due: bool) {
        if due {
            self.flush_at = self.now + FLUSH;
            self.lans.iter_mut().filter_map(|lan| lan.capture.as_mut()).for_each(Capture::flush);
        }
    }

    /// Does what was asked for; false if that is to stop. Those who asked may have gone: nobody minds.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::SetLink(target, change, reply) => {
                    match target {
                        LinkTarget::Network(network) => self.lans[network.index()].set_link(LinkPart::Whole, &change),
                        LinkTarget::Slot(network, slot) => {
                            self.lans[network.index()].set_link(LinkPart::Slot(slot), &change);
                        }
                        LinkTarget::Arbiter => {
                            self.lans.iter_mut().for_each(|lan| lan.set_link(LinkPart::Arbiter, &change));
                        }
                    }
                    let _ = reply.send(());
                }
                Command::Links(reply) => {
                    let _ = reply.send(self.lans.iter().flat_map(Lan::links).collect());
                }
                Command::Stats(reply) => {
                    let _ = reply.send(self.stats());
                }
                Command::SetCapture(config, reply) => {
                    let _ = reply.send(self.set_capture(config.as_ref()));
                }
                Command::Stop => {
                    self.flush_captures(true);
                    return false;
                }
            }
        }
        true
    }

    fn stats(&self) -> FabricStats {
        let forward = match &self.lans[0].host {
            HostEnd::Forwarder(forwarder) => Some(forwarder.stats()),
            _ => None,
        };
        let relays = self.lans.iter().filter_map(|lan| Some(lan.arbiter()?.stats()));
        let relay = relays.reduce(|sum, relay| RelayStats {
            accepted: sum.accepted + relay.accepted,
            failed: sum.failed + relay.failed,
        });
        FabricStats { networks: self.lans.each_ref().map(Lan::stats), forward, relay }
    }

    fn set_capture(&mut self, config: Option<&CaptureConfig>) -> Result<()> {
        self.flush_captures(true);
        for (lan, capture) in self.lans.iter_mut().zip(captures(config)?) {
            lan.capture = capture;
        }
        Ok(())
    }
}

fn captures(config: Option<&CaptureConfig>) -> Result<[Option<Capture<std::fs::File>>; 2]> {
    let Some(config) = config else { return Ok([None, None]) };
    let create = |network: Network| {
        Capture::create(&config.dir.join(format!("{}.pcap", network.name())), config.max_bytes).map(Some)
    };
    Ok([create(Network::Client)?, create(Network::Log)?])
}

/// The machines' ports in a network.
fn open(
    network: Network,
    transport: Transport,
    dir: &Path,
    registry: &Registry,
) -> Result<([Port; SLOTS], [Plug; SLOTS])> {
    let ports = (0..SLOTS).map(|slot| {
        let index = network.index() * SLOTS + slot;
        let (inbound, outbound) = (Token(INBOUND + index), Token(OUTBOUND + index));
        Port::open(network, slot, &Opening { transport, dir, registry, inbound, outbound })
    });
    let (ports, plugs): (Vec<_>, Vec<_>) = ports.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let (Ok(ports), Ok(plugs)) = (ports.try_into(), plugs.try_into()) else { bail!("one port for each slot") };
    Ok((ports, plugs))
}
