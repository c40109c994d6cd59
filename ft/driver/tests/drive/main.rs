//! Two drivers with real nodes, each around a guest with a script: what a turn does, and for what it waits.

mod announce;
mod desk;
mod disk;
mod follow;
mod live;
mod toy;
mod transfer;

use desk::{Desk, Mode};
use pollux_driver::digest::Often;
use pollux_driver::marks::Waits;
use pollux_driver::rounds::Enough;
use pollux_driver::{Driver, Next, Tuning};
use pollux_ft::{Config, Identity, Meeting, Node, NodeId, Role, Span, Start, Time};
use std::net::Ipv4Addr;
use toy::{PAGES, Step, Toy};

const MEETING: Meeting =
    Meeting { dialer: Ipv4Addr::new(10, 0, 1, 2), listener: Ipv4Addr::new(10, 0, 1, 1), random: [7; 32] };

/// The time at which all begins, in microseconds.
const START: u64 = 1_000_000;

fn tuning() -> Tuning {
    Tuning {
        slice: 10_000,
        follow_slice: 5_000,
        retry: Span(700),
        digests: Often { slice: 1 << 20, ..Often::default() },
        marks: Waits { output_ticks: 3_000, output_frames: 16, horizon: Span(50_000), untold: Span(1 << 40) },
        pages_a_turn: 16,
        transfer: Enough { few_pages: 4, ..Enough::default() },
        ..Tuning::default()
    }
}

/// What the tests below were made for, whatever the defaults are.
fn config() -> Config {
    Config { batch_delay: Span(50_000), packet_delay: Span(10_000), ack_delay: Span(50_000), ..Config::default() }
}

/// A driver on its machine.
struct Machine {
    driver: Driver<Toy>,
    desk: Desk,
}

impl Machine {
    fn new(start: Start, id: u64, script: &[(u64, Step)], tuning: Tuning, config: Config) -> Self {
        let identity = Identity {
            node: NodeId(id),
            pair: "gemini".into(),
            cpu_name: "model".into(),
            counter: "ticks".into(),
            guest_memory: PAGES * 4096,
            ..Identity::default()
        };
        let node = Node::new(Time(START), start, config, identity).unwrap();
        let mut machine =
            Self { driver: Driver::new(Time(START), node, Toy::new(script), tuning), desk: Desk::new(START) };
        machine.driver.start(&mut machine.desk);
        machine
    }

    fn turn(&mut self) -> Next {
        self.driver.turn(&mut self.desk)
    }

    fn role(&self) -> Role {
        self.driver.node().role()
    }

    fn guest(&mut self) -> &mut Toy {
        self.driver.guest_mut()
    }

    fn position(&self) -> u64 {
        self.driver.guest().position
    }

    /// Takes turns until there is something to wait for.
    fn rest(&mut self) -> Next {
        for _ in 0..1000 {
            let next = self.turn();
            if next != Next::Again {
                return next;
            }
        }
        panic!("it never waits");
    }
}

/// Two machines, which reach each other at once.
struct Pair {
    a: Machine,
    b: Machine,
}

impl Pair {
    /// A primary and who will be its backup, connected.
    fn new(script: &[(u64, Step)], tuning: Tuning) -> Self {
        Self::with(script, tuning, config())
    }

    fn with(script: &[(u64, Step)], tuning: Tuning, config: Config) -> Self {
        let a = Machine::new(Start::Primary, 1, script, tuning.clone(), config.clone());
        let mut pair = Self { a, b: Machine::new(Start::Backup, 2, script, tuning, config) };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        for Machine { driver, desk } in [&mut self.a, &mut self.b] {
            let handshake = driver.node().handshake(&MEETING);
            driver.node_mut().connected(Time(desk.now), handshake);
        }
    }

    /// The same, until the second is the backup of the first, and has applied all entries there are.
    fn protected(script: &[(u64, Step)], tuning: Tuning) -> Self {
        Self::new(script, tuning).protect()
    }

    fn protect(mut self) -> Self {
        for _ in 0..100 {
            self.round();
            if self.a.driver.is_protected() {
                // The first digest, which is due at once, is sent and compared.
                self.a.turn();
                self.a.driver.node_mut().flush(Time(self.a.desk.now));
                self.pass(20_000);
                self.rounds(10);
                assert_eq!(self.b.driver.node().stats().digests, 1);
                return self;
            }
        }
        let pair = self;
        panic!("the pair is never protected: {:?}, {:?}", pair.a.desk.events, pair.b.desk.events);
    }

    /// What one machine sent reaches the other.
    fn carry(&mut self) {
        carry(&mut self.a, &mut self.b);
        carry(&mut self.b, &mut self.a);
    }

    fn round(&mut self) {
        self.a.turn();
        self.carry();
        self.b.turn();
        self.carry();
    }

    fn rounds(&mut self, count: usize) {
        (0..count).for_each(|_| self.round());
    }

    /// Lets time pass for both.
    fn pass(&mut self, us: u64) {
        self.a.desk.now += us;
        self.b.desk.now += us;
    }
}

fn carry(from: &mut Machine, to: &mut Machine) {
    let now = Time(to.desk.now);
    for datagram in from.desk.datagrams.drain(..) {
        to.driver.node_mut().heartbeat_received(now, &datagram);
    }
    let taken = to.driver.node_mut().receive(now, &from.desk.stream);
    from.desk.stream.drain(..taken);
    if std::mem::take(&mut from.desk.hung_up) {
        to.driver.node_mut().disconnected(now);
    }
}
