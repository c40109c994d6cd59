//! Joins guest, log and gate: the loop that each role runs.
//!
//! One thread does everything in turn: take in what the host's devices have, then let the guest run a little as the
//! role says. [`live`] is the machine that clients talk to, [`follow`] its backup; [`transfer`] makes a backup;
//! [`actions`] does what the protocol asks for.

mod actions;
pub mod arbiter;
mod client;
mod cut;
mod digest;
pub mod ending;
mod follow;
pub mod json;
pub mod link;
mod live;
pub mod monitor;
mod outlet;
mod peer;
mod receive;
pub mod rounds;
pub mod stack;
mod status;
pub mod steering;
mod terms;
mod transfer;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pollux_ft::flow::Throttle;
use pollux_ft::{Identity, Node, NodeId, Start, Time};
use pollux_nic::MacAddress;
use pollux_nic::e1000::E1000;

use self::arbiter::{Arbiter, MachineStation};
use self::client::Client;
use self::cut::Cut;
use self::digest::NextDigest;
use self::ending::{Duty, Ending};
use self::link::{End, Link};
use self::monitor::{Command, Monitor};
use self::peer::Peer;
use self::receive::Incoming;
use self::status::Figures;
use self::steering::Steering;
use self::transfer::Transfer;
use crate::config::{BrokenRule, Config, StartRole};
use crate::guest::Guest;
use crate::host::apic::Apic;
use crate::host::clock::{self, WallClock};
use crate::host::interrupts;
use crate::host::nic::Route;
use crate::platform::PowerEvent;

/// Longest time that the machine sleeps without looking around, in microseconds.
const LONGEST_SLEEP_US: u64 = 1_000_000;

/// What a replica is made of.
pub struct Parts {
    /// The options.
    pub config: Config,
    /// This CPU's interrupt controller.
    pub apic: Apic,
    /// The wall clock.
    pub clock: WallClock,
    /// The guest; loaded, or empty on a machine that starts as backup.
    pub guest: Guest,
    /// The card that clients are on.
    pub client: Option<(E1000, Route)>,
    /// The card that the twin is on.
    pub log: Option<(E1000, Route)>,
    /// This machine's own place on the client network.
    pub machine: Option<MachinePlace>,
}

/// By what a machine is known on the client network, beside the guest.
pub struct MachinePlace {
    /// Its MAC address; not the guest's.
    pub mac: MacAddress,
    /// Its card, if it does not share the client card.
    pub card: Option<(E1000, Route)>,
}

/// A takeover under way.
#[derive(Debug, Clone, Copy)]
struct Takeover {
    /// When the primary gave its last sign of life, and when it was given up, in microseconds.
    heard_us: u64,
    suspected_us: u64,
    /// Where the log ends.
    last: u64,
    /// When all of the log had been executed, in microseconds.
    drained_us: Option<u64>,
    /// The primary handed the guest over.
    planned: bool,
}

/// One machine at work.
pub struct Replica {
    config: Config,
    apic: Apic,
    clock: WallClock,
    guest: Guest,
    client: Option<Client>,
    peer: Option<Peer>,
    arbiter: Option<Arbiter>,
    steering: Steering,
    throttle: Throttle,
    monitor: Monitor,
    cut: Cut,
    figures: Figures,
    transfer: Option<Transfer>,
    takeover: Option<Takeover>,
    /// A state that arrives.
    incoming: Incoming,
    /// Text for the guest's console that waits for an exact stop.
    typed: Vec<u8>,
    /// Position at which the oldest frame that waits for an `Output` entry was made.
    unsealed_since: Option<u64>,
    /// Position of the newest entry.
    logged: u64,
    /// When it was logged, in microseconds.
    logged_us: u64,
    /// When the next digest is due.
    next_digest: NextDigest,
    /// The guest asked for this, and it is not logged yet.
    power_due: Option<PowerEvent>,
    /// The guest is to be handed over to the backup at the next exact stop.
    switch_due: bool,
    /// The guest's end here.
    ending: Ending,
    /// The wall time of this turn of the loop, in microseconds.
    now_us: u64,
}

impl Replica {
    /// Puts the parts together.
    ///
    /// # Panics
    /// When the configuration passed its checks but the protocol refuses it (a bug of ours).
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { config, apic, mut clock, guest, client, log, machine } = parts;
        let now_us = clock.now_us();
        let mut client = client.map(|(nic, route)| Client::new(nic, route, MacAddress(config.guest_mac)));
        let mut peer = log.and_then(|(nic, route)| make_peer(&config, &guest, nic, route, now_us));
        let arbiter = peer.as_mut().and_then(|peer| make_arbiter(&config, peer, machine, client.as_mut()));
        let steering = Steering::start(now_us, guest.position(), guest.now(), guest.platform.clock().rate());
        Self {
            config,
            apic,
            clock,
            guest,
            client,
            peer,
            arbiter,
            steering,
            throttle: Throttle::default(),
            monitor: Monitor::default(),
            cut: Cut::default(),
            figures: Figures::default(),
            transfer: None,
            takeover: None,
            incoming: Incoming::default(),
            typed: Vec::new(),
            unsealed_since: None,
            logged: 0,
            logged_us: 0,
            next_digest: NextDigest::default(),
            power_due: None,
            switch_due: false,
            ending: Ending::default(),
            now_us,
        }
    }

    /// Runs for ever.
    pub fn run(mut self) -> ! {
        if let Some(client) = &mut self.client
            && self.config.broken_rule == Some(BrokenRule::OutputRule)
        {
            log::warn!("the output rule is switched off: clients may see replies that get lost");
            client.nic().break_output_rule(true);
        }
        if self.duty() == Duty::Live {
            self.open_gate();
        }
        loop {
            self.poll_host();
            match self.duty() {
                Duty::Live => self.live_step(),
                Duty::Follow => self.follow_step(),
                Duty::Wait => {
                    self.clear_old(transfer::PAGES_A_TURN);
                    self.sleep(None);
                }
            }
        }
    }

    fn duty(&self) -> Duty {
        self.ending.duty(self.peer.as_ref().map(|peer| &peer.node))
    }

    /// Takes in what the host's devices have, and does what the protocol asks for.
    fn poll_host(&mut self) {
        let fired = interrupts::take_fired();
        if fired.line(clock::RTC_LINE) {
            self.clock.poll();
        }
        self.now_us = self.clock.now_us();
        crate::host::logger::set_time(self.now_us);
        let live = self.duty() == Duty::Live;
        if let Some(client) = &mut self.client {
            client.interrupted(fired);
            client.poll(live, self.arbiter.as_mut().and_then(Arbiter::station));
        }
        self.release();
        if let Some(peer) = &mut self.peer {
            peer.interrupted(fired);
            peer.poll(self.now_us);
            self.do_actions();
        }
        self.serve_arbiter(fired);
        let speaking = monitor::pump();
        if fired.line(clock::RTC_LINE) {
            self.serve_monitor();
            if !speaking {
                self.report_if_due();
            }
        }
    }

    fn serve_monitor(&mut self) {
        while let Some(command) = self.monitor.poll() {
            match command {
                Ok(command) if command.is_for_tests() && !self.config.test_commands => {
                    monitor::event("refused", "reason", &"this command needs test-commands=on");
                }
                Ok(command) => self.obey(command),
                Err(reason) => monitor::event("refused", "reason", &reason),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Status => self.report(),
            Command::Stop => self.end("stopped by command".into()),
            Command::Switch if self.is_protected() => self.switch_due = true,
            Command::Switch => monitor::event("refused", "reason", &"there is no backup to hand the guest over to"),
            Command::Console(bytes) => self.typed.extend_from_slice(&bytes),
            Command::Cut(count) => self.cut.arm(count),
            Command::FlipMemory(gpa, bit) => {
                let done = self.guest.flip_memory_bit(gpa, bit);
                log::warn!("test: bit {bit} of guest memory at {gpa:?} flipped: {done}");
            }
            Command::FlipRegister(name, bit) => {
                let done = self.guest.flip_register_bit(&name, bit);
                log::warn!("test: bit {bit} of {name} flipped: {done}");
            }
        }
    }

    /// The guest runs here no more, and the node with it; says why.
    fn end(&mut self, reason: String) {
        let node = self.peer.as_mut().map(|peer| &mut peer.node);
        if self.ending.end(node, Time(self.now_us), reason) {
            self.report_end();
            // The twin is told at once: the link forgets what waits when its end changes.
            self.do_actions();
        }
    }

    fn report_end(&mut self) {
        let Some(reason) = self.ending.reason() else { return };
        log::warn!("the guest ends here: {reason}");
        monitor::halt_event(&reason);
        self.report();
    }

    /// Sleeps until a device or a timer wants attention, at most until wall time `until_us`.
    fn sleep(&mut self, until_us: Option<u64>) {
        let peer = self.peer.as_ref().and_then(Peer::poll_at);
        let arbiter = self.arbiter.as_mut().and_then(|arbiter| arbiter.poll_at(self.now_us));
        let wake = [until_us, peer, arbiter].into_iter().flatten().min();
        let us = wake.map_or(LONGEST_SLEEP_US, |at| at.saturating_sub(self.now_us)).min(LONGEST_SLEEP_US);
        let busy = self.incoming.is_clearing() || self.transfer.as_ref().is_some_and(Transfer::has_more);
        if us == 0 || busy {
            return interrupts::open_window();
        }
        let before = clock::cycles();
        self.apic.arm_timer(u32::try_from(us * self.clock.speeds().timer).unwrap_or(u32::MAX).max(1));
        interrupts::wait();
        self.apic.arm_timer(0);
        self.figures.slept += clock::cycles() - before;
    }
}

fn make_peer(config: &Config, guest: &Guest, nic: E1000, route: Route, now_us: u64) -> Option<Peer> {
    let start = match config.role {
        StartRole::Primary => Start::Primary,
        StartRole::Backup => Start::Backup,
        StartRole::Solo | StartRole::Stops => return None,
    };
    let (own, peer) = (config.log_address?, config.log_peer?);
    // A machine that starts again is another one: its card stays, the moment differs.
    let moment = clock::unix_time() << 32 ^ clock::cycles() ^ now_us << 8;
    let node_id = moment.wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ u64::from_le_bytes([nic.mac().0, [0; 6]].concat()[..8].try_into().ok()?);
    let identity = Identity {
        node: NodeId(node_id),
        pair: config.pair.clone(),
        build: concat!(env!("CARGO_PKG_VERSION"), " ", env!("POLLUX_SOURCES")).into(),
        cpu_digest: guest.platform.cpuid_digest(),
        cpu_name: cpu_name(),
        counter: guest.counter().counter.identity(),
        guest_memory: config.guest_memory,
        guest_image: guest.image_name(),
    };
    let node = Node::new(Time(now_us), start, config.protocol(), identity).expect("options were checked");
    let end = if start == Start::Primary { End::Listen } else { End::Connect };
    Some(Peer { node, id: NodeId(node_id), link: Link::new(nic, route, own, peer, end, node_id) })
}

fn make_arbiter(
    config: &Config,
    peer: &mut Peer,
    machine: Option<MachinePlace>,
    client: Option<&mut Client>,
) -> Option<Arbiter> {
    let options = &config.arbiter;
    if !options.is_used() {
        return None;
    }
    let routes = options.routes(config.log_address).expect("options were checked");
    let station = machine.zip(options.machine_address).map(|(place, own)| {
        if let (None, Some(client)) = (&place.card, client) {
            client.nic().add_machine_address(place.mac).expect("the machine's address was checked");
        }
        (MachineStation::new(place.mac, own, options.machine_gateway, peer.id.0), place.card)
    });
    let name = (config.pair.as_str(), config.name.as_str(), peer.id);
    Some(Arbiter::new(name, options, routes, &mut peer.link, station))
}

/// Vendor, name and model of this CPU, for people who wonder why two are no twins.
fn cpu_name() -> String {
    let cpuid = raw_cpuid::CpuId::new();
    let (vendor, brand) = (cpuid.get_vendor_info(), cpuid.get_processor_brand_string());
    let brand = brand.as_ref().map_or("unnamed CPU", |brand| brand.as_str().trim());
    let mut name = format!("{} {brand}", vendor.as_ref().map_or("unknown vendor", |vendor| vendor.as_str()));
    if let Some(model) = cpuid.get_feature_info() {
        let (family, number, stepping) = (model.family_id(), model.model_id(), model.stepping_id());
        name += &format!(" (family {family}, model {number}, stepping {stepping})");
    }
    name
}
