//! Somebody on both networks who sees all frames, sends what he likes to whom he likes, and does not have the pair's key.
//!
//! He sees by the rig's captures, a moment late, and sends by the machines' own cables, so that no switch stands in his
//! way. He takes no machine's address at a switch and floods nothing beyond what the machines can bear: by that, or by a cut,
//! he could separate them, and no seal helps. Nor does he forge resets, which a host that sees the stream can.
//! See: `docs/security.md`.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use fastrand::Rng;
use pollux_ft::heartbeat::{HEARD, Heartbeat, pair_digest};
use pollux_ft::{NodeId, PairKey, Position, Protection, Role, Seq, SessionId, Term, Time};
use smoltcp::wire::TcpControl;

use crate::cable::Cable;
use crate::capture::{self, Tail};
use crate::frames::{self, Carried, Socket};

/// Between two of his deeds.
const PAUSE: Duration = Duration::from_millis(4);
/// How long he floods those who listen with connections, and then lets them breathe.
const SPELL: Duration = Duration::from_secs(5);
/// What he remembers of each kind.
const MEMORY: usize = 256;
/// The ports of stream, heartbeats and arbiter.
const STREAM: u16 = 7001;
const BEATS: u16 = 7002;
const ARBITER: u16 = 7003;
const EVERYBODY: [u8; 6] = [0xff; 6];
/// His hosts in either network: their last numbers.
const HIS: std::ops::Range<u8> = 64..200;
/// Whom the machines must not look for at his hosts: twins and arbiter on the log network, arbiter and the machines' stations on
/// the client network.
const CLAIMED: [[u8; 4]; 6] =
    [[10, 1, 0, 1], [10, 1, 0, 2], [10, 1, 0, 3], [10, 0, 2, 3], [10, 0, 2, 21], [10, 0, 2, 22]];

/// What he did, how often.
pub type Deeds = BTreeMap<&'static str, u64>;

/// An attacker at work; ended when dropped.
#[derive(Debug)]
pub struct Attacker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Deeds>>>,
}

/// What he has to do with.
#[derive(Debug)]
pub struct Means {
    /// To the machines.
    pub cables: Vec<Cable>,
    /// The rig's directory, with its captures.
    pub directory: PathBuf,
    /// The rig's arbiter, which he can reach as well.
    pub arbiter: SocketAddr,
    /// A capture of the log network of a former life of the pair, with the same key.
    pub former: PathBuf,
}

impl Attacker {
    /// Begins.
    ///
    /// # Errors
    /// When he sees nothing.
    pub fn start(means: Means, random: Rng) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut mind = Mind::new(means, random)?;
        let stopped = Arc::clone(&stop);
        let work = move || {
            while !stopped.load(Ordering::Relaxed) {
                mind.look()?;
                mind.act();
                std::thread::sleep(PAUSE);
            }
            Ok(mind.deeds)
        };
        Ok(Self { stop, thread: Some(std::thread::Builder::new().name("attacker".into()).spawn(work)?) })
    }

    /// Ends him.
    ///
    /// # Errors
    /// When he had ended before.
    pub fn stop(mut self) -> Result<Deeds> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().context("he has ended")?.join().map_err(|_| anyhow!("he panicked"))?
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Things of one kind that he has seen.
#[derive(Debug)]
struct Seen<T>(VecDeque<T>);

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Seen<T> {
    /// Keeps the first ones, of long ago, as well as the newest.
    fn keep(&mut self, thing: T) {
        if self.0.len() >= MEMORY {
            self.0.remove(MEMORY / 2);
        }
        self.0.push_back(thing);
    }

    fn any(&self, random: &mut Rng) -> Option<&T> {
        if self.0.is_empty() { None } else { self.0.get(random.usize(..self.0.len())) }
    }
}

#[derive(Debug)]
struct Mind {
    begun: Instant,
    means: Means,
    random: Rng,
    networks: [Tail; 2],
    beats: Seen<(Socket, Socket, Vec<u8>)>,
    /// What was said on streams to who listens, and by him, and likewise to and by the arbiter.
    said: [Seen<Vec<u8>>; 4],
    deeds: Deeds,
}

impl Mind {
    fn new(means: Means, random: Rng) -> Result<Self> {
        let tail = |name| Tail::open(&means.directory.join(name));
        let networks = [tail("client.pcap")?, tail("log.pcap")?];
        let mut mind = Self {
            begun: Instant::now(),
            networks,
            random,
            beats: Seen::default(),
            said: Default::default(),
            deeds: Deeds::new(),
            means,
        };
        let former: &Path = &mind.means.former.clone();
        for frame in capture::read(former)? {
            mind.remember(&frame);
        }
        Ok(mind)
    }

    fn count(&mut self, deed: &'static str) {
        *self.deeds.entry(deed).or_default() += 1;
    }

    fn send(&mut self, deed: &'static str, frame: &[u8]) {
        for cable in &self.means.cables {
            // The machine may be dead.
            cable.send(frame);
        }
        self.count(deed);
    }

    /// Takes in what was on the networks since, and answers what concerns him.
    fn look(&mut self) -> Result<()> {
        for network in 0..self.networks.len() {
            for frame in self.networks[network].frames()? {
                self.remember(&frame);
                self.answer(&frame);
            }
        }
        Ok(())
    }

    fn remember(&mut self, frame: &[u8]) {
        match frames::carried(frame) {
            Some(Carried::Udp { from, to, payload }) if to.port == BEATS => self.beats.keep((from, to, payload)),
            Some(Carried::Tcp { from, to, payload, .. }) if !payload.is_empty() => {
                let ends = [to.port == STREAM, from.port == STREAM, to.port == ARBITER, from.port == ARBITER];
                if let Some(kind) = ends.iter().position(|&is| is) {
                    self.said[kind].keep(payload);
                }
            }
            _ => {}
        }
    }

    /// He is where he says, and goes on with what he began, or with what was led to him.
    fn answer(&mut self, frame: &[u8]) {
        match frames::carried(frame) {
            Some(Carried::Who { asker, wanted }) if is_his(wanted) => {
                self.send("ARP: answered for himself", &frames::arp(mac(wanted), wanted, asker.mac, asker.ip, false));
            }
            Some(Carried::Who { asker, wanted }) if CLAIMED.contains(&wanted) && self.random.u8(..) < 64 => {
                let mine = mac([10, 1, 0, HIS.start]);
                self.send("ARP: answered for another", &frames::arp(mine, wanted, asker.mac, asker.ip, false));
            }
            Some(Carried::Tcp { from, to, syn: true, ack: Some(ack), sequence, .. }) if is_his(to.ip) => {
                let next = sequence.wrapping_add(1);
                let said = self.knock();
                let deed = if said.is_empty() { "stream: silent" } else { "stream: knocked" };
                self.send(deed, &frames::segment(to, from, TcpControl::Psh, (ack, Some(next)), &said));
            }
            // Somebody was led to him.
            Some(Carried::Tcp { from, to, syn: true, ack: None, sequence, .. }) if to.mac[..4] == mac([0; 4])[..4] => {
                let next = sequence.wrapping_add(1);
                self.send("led astray", &frames::segment(to, from, TcpControl::Syn, (1, Some(next)), &[]));
                let said = self.knock();
                self.send("led astray", &frames::segment(to, from, TcpControl::Psh, (2, Some(next)), &said));
            }
            _ => {}
        }
    }

    /// What he says on a connection: nothing, what was said before by either end, changed or not, or what comes to his mind.
    fn knock(&mut self) -> Vec<u8> {
        let kind = self.random.usize(..self.said.len());
        match (self.random.u8(..5), self.said[kind].any(&mut self.random).cloned()) {
            (0, _) | (_, None) => Vec::new(),
            (1, _) => std::iter::repeat_with(|| self.random.u8(..)).take(100).collect(),
            (2, Some(said)) => self.spoil(said),
            (_, Some(said)) => said,
        }
    }

    /// One bit is another, or the end is missing.
    fn spoil(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        if !bytes.is_empty() {
            let at = self.random.usize(..bytes.len());
            match self.random.bool() {
                true => bytes[at] ^= 1 << self.random.u8(..8),
                false => bytes.truncate(at),
            }
        }
        bytes
    }

    fn act(&mut self) {
        // Now he floods who listens, now he waits for an answer, which he sees late.
        let floods = (self.begun.elapsed().as_secs() / SPELL.as_secs()).is_multiple_of(2);
        let connects = self.random.u8(..100) < if floods { 25 } else { 1 };
        match self.random.u8(..9) {
            _ if connects => self.connect(),
            0..6 => self.beat(),
            6..8 => self.claim(),
            _ => self.ask(),
        }
    }

    /// A heartbeat that no machine sends now.
    fn beat(&mut self) {
        let Some((from, to, payload)) = self.beats.any(&mut self.random).cloned() else { return };
        match self.random.u8(..6) {
            0 => self.send("heartbeat: sent again", &frames::datagram(from, to, &payload)),
            1 => {
                // To whoever is there now, and not only to whom it was sent.
                let other = Socket { ip: [10, 1, 0, self.random.u8(1..=2)], mac: EVERYBODY, ..to };
                self.send("heartbeat: sent elsewhere", &frames::datagram(from, other, &payload));
            }
            2 => self.send("heartbeat: sent back", &frames::datagram(to, from, &payload)),
            3 => {
                let changed = self.spoil(payload);
                self.send("heartbeat: changed", &frames::datagram(from, to, &changed));
            }
            4 => {
                let forged = self.forge(&payload);
                self.send("heartbeat: forged", &frames::datagram(from, to, &forged));
            }
            _ => {
                let noise: Vec<u8> = std::iter::repeat_with(|| self.random.u8(..)).take(payload.len()).collect();
                self.send("heartbeat: noise", &frames::datagram(from, to, &noise));
            }
        }
    }

    /// The worst that one can say, sealed with another pair's key or with none.
    fn forge(&mut self, seen: &[u8]) -> Vec<u8> {
        let id = |at: usize| seen.get(at..at + 8).map_or(1, |id| u64::from_le_bytes(id.try_into().unwrap_or_default()));
        let beat = Heartbeat {
            pair: pair_digest("pollux"),
            node: NodeId(if self.random.bool() { id(4) } else { self.random.u64(..) }),
            peer: NodeId(self.random.u64(..)),
            counter: self.random.u64(..),
            heard: [NodeId(id(4)); HEARD],
            answers: self.random.u64(..),
            creator: NodeId(0),
            echo: self.random.u64(..),
            term: Term(self.random.u64(..)),
            role: Role::Alone,
            session: SessionId(self.random.u64(..)),
            linked: false,
            seq: Seq(0),
            position: Position(0),
            time: Time(0),
        };
        let protection = match self.random.bool() {
            true => Protection::from(PairKey::new(&[self.random.u8(..); 32])),
            false => Protection::default(),
        };
        beat.encode(&protection).to_vec()
    }

    /// "That host is where I am."
    fn claim(&mut self) {
        let (place, asks) = (self.random.usize(..CLAIMED.len()), self.random.bool());
        let (claimed, target) = (CLAIMED[place], CLAIMED[self.random.usize(..CLAIMED.len())]);
        let mine = mac([10, 1, 0, HIS.start]);
        self.send("ARP: claimed", &frames::arp(mine, claimed, EVERYBODY, target, asks));
    }

    /// The beginning of a connection, to a machine that listens or to one that does not.
    fn connect(&mut self) {
        let network = if self.random.u8(..4) == 0 { [10, 0, 2] } else { [10, 1, 0] };
        let [a, b, c] = network;
        let number = if b == 1 { self.random.u8(1..=2) } else { self.random.u8(21..=22) };
        // In his own name, or in the twin's.
        let own = self.random.u8(..4) > 0;
        let ip = [a, b, c, if own { self.random.u8(HIS) } else { number ^ 3 }];
        let from = Socket { mac: mac(ip), ip, port: self.random.u16(1024..) };
        let port = if self.random.u8(..8) == 0 { self.random.u16(..) } else { STREAM };
        let to = Socket { mac: EVERYBODY, ip: [a, b, c, number], port };
        let numbers = (self.random.u32(..), None);
        self.send("TCP: first segment", &frames::segment(from, to, TcpControl::Syn, numbers, &[]));
    }

    /// To the arbiter, what a machine asked before, changed or not.
    fn ask(&mut self) {
        use std::io::{Read, Write};
        let Some(question) = self.said[2].any(&mut self.random).cloned() else { return };
        let changed = self.random.bool();
        let question = if changed { self.spoil(question) } else { question };
        let Ok(mut stream) = TcpStream::connect(self.means.arbiter) else { return };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let _ = stream.write_all(&question).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        if !answer.is_empty() {
            // He may say it in the arbiter's name.
            self.said[3].keep(answer);
        }
        self.count(if changed { "arbiter: asked, changed" } else { "arbiter: asked again" });
    }
}

fn is_his(ip: [u8; 4]) -> bool {
    matches!(ip[..3], [10, 1, 0] | [10, 0, 2]) && HIS.contains(&ip[3])
}

/// The address of his card for one of his hosts.
fn mac([_, network, _, host]: [u8; 4]) -> [u8; 6] {
    [0x52, 0x54, 0x00, 0x66, network, host]
}
