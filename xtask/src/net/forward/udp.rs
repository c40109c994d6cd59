//! Forwarded datagrams: each client gets a port of the host in user space, so that answers find back.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::IpEndpoint;

use crate::net::MAX_FORWARDS;

/// What fits in a frame behind Ethernet, IPv4 and UDP headers.
const MAX_DATAGRAM: usize = 1472;
/// Clients remembered; the one that was silent for longest makes room for a new one.
const MAX_FLOWS: usize = 64;
/// Datagrams buffered per client and direction.
const QUEUE: usize = 32;
/// Datagrams taken in one turn.
const TURN: usize = 256;
/// Ports of the first client and its followers. TCP uses others, so a capture is easy to read.
const FIRST_PORT: u16 = 20_000;
const _: () = assert!(FIRST_PORT as usize + MAX_FORWARDS * MAX_FLOWS <= 32_768);

#[derive(Debug)]
struct Flow {
    client: SocketAddr,
    port: u16,
    handle: SocketHandle,
    used: u64,
}

/// A local UDP socket and its clients.
#[derive(Debug)]
pub struct UdpForward {
    socket: UdpSocket,
    /// What its events are marked with.
    pub token: Token,
    guest: IpEndpoint,
    first_port: u16,
    flows: Vec<Flow>,
    uses: u64,
    /// The kernel may have datagrams for us.
    pub readable: bool,
    /// Datagrams given up: too long for a frame, or no room.
    pub dropped: u64,
}

impl UdpForward {
    /// Binds the local socket, that of the forwarded port `number` (from 0).
    pub fn bind(
        address: SocketAddr,
        guest: IpEndpoint,
        number: usize,
        registry: &Registry,
        token: Token,
    ) -> Result<Self> {
        let mut socket = UdpSocket::bind(address).with_context(|| format!("cannot listen on UDP {address}"))?;
        registry.register(&mut socket, token, Interest::READABLE).context("cannot poll the UDP socket")?;
        let first_port = FIRST_PORT + (number * MAX_FLOWS) as u16;
        Ok(Self { socket, token, guest, first_port, flows: Vec::new(), uses: 0, readable: true, dropped: 0 })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Moves datagrams from clients to the stack.
    pub fn pump_to_guest(&mut self, sockets: &mut SocketSet<'static>) {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        // Bounded, lest one busy client keeps the networks waiting; the rest is taken at the next turn.
        for _ in 0..TURN {
            if !self.readable {
                return;
            }
            let (length, client) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return;
                }
                // An earlier answer found its client gone. Nothing is wrong with the socket.
                Err(_) => continue,
            };
            let handle = self.flow(client, sockets);
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            if length > MAX_DATAGRAM || socket.send_slice(&buffer[..length], self.guest).is_err() {
                self.dropped += 1;
            }
        }
    }

    /// Moves answers from the stack to their clients. UDP has no window: what the kernel does not take is dropped.
    pub fn pump_to_clients(&mut self, sockets: &mut SocketSet<'static>) {
        for flow in &self.flows {
            let socket = sockets.get_mut::<Socket<'_>>(flow.handle);
            while let Ok((data, from)) = socket.recv() {
                if from.endpoint == self.guest && self.socket.send_to(data, flow.client).is_err() {
                    self.dropped += 1;
                }
            }
        }
    }

    fn flow(&mut self, client: SocketAddr, sockets: &mut SocketSet<'static>) -> SocketHandle {
        self.uses += 1;
        if let Some(flow) = self.flows.iter_mut().find(|flow| flow.client == client) {
            flow.used = self.uses;
            return flow.handle;
        }
        let mut port = self.first_port + self.flows.len() as u16;
        if self.flows.len() == MAX_FLOWS
            && let Some(oldest) = (0..MAX_FLOWS).min_by_key(|&index| self.flows[index].used)
        {
            let flow = self.flows.swap_remove(oldest);
            sockets.remove(flow.handle);
            port = flow.port;
        }
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; QUEUE], vec![0; QUEUE * MAX_DATAGRAM]);
        let mut socket = Socket::new(buffer(), buffer());
        // Cannot fail: the port is not zero and the socket is new.
        let bound = socket.bind(port);
        debug_assert!(bound.is_ok());
        let handle = sockets.add(socket);
        self.flows.push(Flow { client, port, handle, used: self.uses });
        handle
    }
}
