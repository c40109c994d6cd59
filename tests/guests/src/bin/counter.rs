//! A server of a small part of the Redis protocol on TCP port 6379. Asked to, it rewrites memory or computes meanwhile.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;

use pollux_boot::BootInfo;
use pollux_guests::ballast::Ballast;
use pollux_guests::command::Server;
use pollux_guests::exchange::exchange;
use pollux_guests::net::{Host, now};
use pollux_guests::options::Options;
use pollux_guests::session::Session;
use pollux_guests::work::Work;
use pollux_guests::{clock, lapic, println, runtime};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;

const PORT: u16 = 6379;
/// Bytes of a connection's buffer in each direction.
const BUFFER_BYTES: usize = 8 * 1024;
/// Most connections at a time. One more listens.
const MAX_CONNECTIONS: usize = 128;
/// Words to compute on: a round takes some 30,000 instructions.
const BUSY_WORDS: usize = 4096;
/// How often memory is rewritten, at least.
const BALLAST_STEP: Duration = Duration::from_millis(1);

struct Connection {
    handle: SocketHandle,
    session: Session,
}

struct Counter {
    host: Host,
    server: Server,
    /// Connections in use; the last one listens.
    connections: Vec<Connection>,
    /// Connections to be used again.
    idle: Vec<Connection>,
    /// Unix time when the TSC was zero, in microseconds.
    epoch: u64,
    ballast: Ballast<'static>,
    /// What is done instead of sleeping.
    work: Option<Work>,
}

pollux_boot::entry!(main);

fn main(info: &'static BootInfo) -> ! {
    runtime::init(info);
    let options = Options::of(info);
    lapic::init(!options.xapic);
    let epoch = clock::unix_seconds() * 1_000_000 - clock::microseconds();
    let host = match Host::new(&options, true) {
        Ok(host) => host,
        Err(error) => panic!("network: {error}"),
    };
    let memory = runtime::memory_beyond_heap(info, options.fill);
    println!("counter: {} bytes filled, {} rewritten each second", memory.len(), options.rewrite);
    let ballast = Ballast::new(memory, options.rewrite, clock::microseconds());
    let work = options.busy.then(|| Work::new(BUSY_WORDS));
    let (connections, idle) = (Vec::new(), Vec::new());
    let mut counter =
        Counter { host, server: Server::new(runtime::heap_bytes()), connections, idle, epoch, ballast, work };
    counter.listen();
    let (address, _) = options.ip;
    println!("counter: listening on {address}:{PORT}");
    loop {
        counter.step();
    }
}

impl Counter {
    /// Receives all there is, answers, sends, and waits for more. Looks at the clock once: each look is an exit.
    fn step(&mut self) {
        let now = now();
        while self.host.receive_one(now) {
            self.listen();
        }
        self.serve();
        self.host.send(now);
        if self.server.crash {
            println!("counter: a client found the bug");
            runtime::triple_fault(x86_64::instructions::interrupts::int3);
        }
        if self.server.shutdown {
            println!("counter: a client asked for the end");
            runtime::power_off();
        }
        self.ballast.step(now.total_micros().unsigned_abs());
        if let Some(work) = &mut self.work {
            work.round();
        } else {
            self.host.wait(now, self.ballast.is_busy().then_some(BALLAST_STEP));
        }
    }

    /// Sees to it that one connection listens, so that a burst of new clients finds one each.
    fn listen(&mut self) {
        let sockets = &mut self.host.sockets;
        let listens = |connection: &Connection| sockets.get::<Socket<'_>>(connection.handle).state() == State::Listen;
        if self.connections.last().is_some_and(listens) {
            return;
        }
        let connection = match self.idle.pop() {
            Some(connection) => connection,
            None if self.connections.len() <= MAX_CONNECTIONS => {
                let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
                let mut socket = Socket::new(buffer(), buffer());
                socket.set_nagle_enabled(false);
                socket.set_ack_delay(None);
                Connection { handle: sockets.add(socket), session: Session::default() }
            }
            // Full: new clients are refused until one leaves.
            None => return,
        };
        let socket = sockets.get_mut::<Socket<'_>>(connection.handle);
        // An idle socket is closed, and the port is not 0: it can listen.
        let _ = socket.listen(PORT);
        self.connections.push(connection);
    }

    /// Feeds every connection's input to its session and its replies to the connection.
    fn serve(&mut self) {
        self.server.clients = self.connections.len().saturating_sub(1);
        let mut index = 0;
        while let Some(connection) = self.connections.get_mut(index) {
            let socket = self.host.sockets.get_mut::<Socket<'_>>(connection.handle);
            let epoch = self.epoch;
            serve(socket, &mut connection.session, &mut self.server, epoch);
            if socket.state() == State::Closed {
                // Not `swap_remove`: the one that listens stays last.
                let mut connection = self.connections.remove(index);
                connection.session.reset(&mut self.server);
                self.idle.push(connection);
            } else {
                index += 1;
            }
        }
        self.listen();
    }
}

/// Serves one connection as far as its buffers allow.
fn serve(socket: &mut Socket<'_>, session: &mut Session, server: &mut Server, epoch: u64) {
    exchange(socket, session, server, || epoch + clock::microseconds());
    match socket.state() {
        // The client has said its last word, and all of it is answered.
        State::CloseWait if session.pending().is_empty() && !socket.can_recv() => socket.close(),
        State::Established if session.is_closing() && session.pending().is_empty() => socket.close(),
        // Closed by us: what the client still says is dropped, and the port can be used at once.
        State::TimeWait => socket.abort(),
        _ => {}
    }
}
