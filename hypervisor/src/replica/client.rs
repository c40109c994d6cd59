//! The client side of a machine: its NIC behind the gate, and frames on their way in.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use pollux_ft::Time;
use pollux_nic::e1000::E1000;
use pollux_nic::frame::is_foreign;
use pollux_nic::{ClientNic, Gate, GateMode, MacAddress};

use super::stack::FRAMES_A_TURN;
use super::station::Ears;
use crate::host::interrupts::Fired;
use crate::host::nic::Route;
use crate::platform::virtio::net::BURST;

/// Frames that the gate holds at most, the [`BURST`] of one notification on top.
const GATE_FRAMES: usize = 4096;
/// Bytes that the gate holds at most, the burst on top.
const GATE_BYTES: usize = 4 << 20;
/// Frames that wait for an exact stop at most; more stay in the card's ring.
const INPUT_FRAMES: usize = 256;

/// Counts of what was refused on the client network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientErrors {
    /// Frames of the guest that are no Ethernet frames or found the gate overfull.
    pub refused: u64,
    /// Frames of the guest that speak for somebody else.
    pub foreign: u64,
    /// Frames for the guest that found no room, as the machine could not leave them in the card's ring.
    pub overrun: u64,
}

/// For whom the guest may speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speaker {
    /// Its own address.
    pub mac: MacAddress,
    /// It may speak for whom it likes.
    pub bridges: bool,
    /// Whose places it may not claim: what this machine needs to reach its arbiter.
    pub others: Vec<Ipv4Addr>,
}

/// The client NIC, if this machine has one.
pub struct Client {
    nic: ClientNic<E1000>,
    route: Route,
    guest: Speaker,
    input: VecDeque<Vec<u8>>,
    /// Buffers to be used again: allocation is slow.
    spare: Vec<Vec<u8>>,
    errors: ClientErrors,
}

impl Client {
    /// Puts the gate, closed, before the card that receives for the `guest`.
    #[must_use]
    pub fn new(nic: E1000, route: Route, guest: Speaker) -> Self {
        Self {
            nic: ClientNic::new(nic, Gate::with_reserve(GATE_FRAMES, GATE_BYTES, BURST)),
            route,
            guest,
            input: VecDeque::with_capacity(INPUT_FRAMES),
            spare: Vec::new(),
            errors: ClientErrors::default(),
        }
    }

    /// The card and its gate.
    pub fn nic(&mut self) -> &mut ClientNic<E1000> {
        &mut self.nic
    }

    /// The gate, to look at.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        self.nic.gate()
    }

    /// Counts of refused frames.
    #[must_use]
    pub fn errors(&self) -> ClientErrors {
        self.errors
    }

    /// Serves the card's interrupt if `fired` has it.
    pub fn interrupted(&mut self, fired: Fired) {
        if self.route.fired(fired) {
            self.nic.interrupt_cause();
            self.route.rearm();
        }
    }

    /// Takes received frames from the card into host memory (the bounce buffer). A machine that does not run the guest
    /// for the clients throws them away. Frames for the machine itself go to its `ears`; while those are urgent, they
    /// must not wait behind frames for a guest that stands still.
    pub fn poll(&mut self, live: bool, ears: &mut Ears<'_>) {
        let urgent = ears.are_urgent();
        for _ in 0..FRAMES_A_TURN {
            if !urgent && self.input.len() >= INPUT_FRAMES {
                break;
            }
            let mut buffer = self.spare.pop().unwrap_or_default();
            let received = self.nic.receive(|frame| {
                let for_guest = ears.offer(frame);
                if for_guest && live {
                    buffer.clear();
                    buffer.extend_from_slice(frame);
                }
                for_guest && live
            });
            if received == Some(true) && self.input.len() < INPUT_FRAMES {
                self.input.push_back(buffer);
            } else {
                self.errors.overrun += u64::from(received == Some(true));
                self.spare.push(buffer);
            }
            if received.is_none() {
                break;
            }
        }
        self.nic.flush();
    }

    /// Whether frames wait to be applied.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// The next frame to be applied; give it back with [`recycle`](Self::recycle).
    pub fn next_input(&mut self) -> Option<Vec<u8>> {
        self.input.pop_front()
    }

    /// Puts a frame back that could not be applied yet.
    pub fn put_back(&mut self, frame: Vec<u8>) {
        self.input.push_front(frame);
    }

    /// Throws away what waits to be applied: the guest is not here any more.
    pub fn forget_input(&mut self) {
        self.spare.extend(self.input.drain(..));
    }

    /// Takes a frame's buffer for later use.
    pub fn recycle(&mut self, frame: Vec<u8>) {
        self.spare.push(frame);
    }

    /// A frame of the guest: to the gate, unless it speaks for somebody else.
    pub fn transmit(&mut self, frame: &[u8], now: Time) {
        if !self.guest.bridges && is_foreign(frame, self.guest.mac, &self.guest.others) {
            self.errors.foreign += 1;
            return;
        }
        match self.nic.guest_transmit(frame, now.0) {
            Ok(_) => {}
            Err(_) => self.errors.refused += 1,
        }
    }

    /// Sends what may leave.
    pub fn release(&mut self, now: Time) {
        if self.nic.gate().ready() > 0 {
            self.nic.transmit_ready(now.0);
        }
        self.nic.flush();
    }

    /// Sends one of the frames that may leave. Whether there was one.
    pub fn release_next(&mut self, now: Time) -> bool {
        let sent = self.nic.transmit_next(now.0).is_some();
        self.nic.flush();
        sent
    }

    /// Opens the gate and tells the switch where the guest is now.
    pub fn open(&mut self, now: Time) {
        self.nic.set_mode(GateMode::Open);
        self.release(now);
        self.announce();
    }

    /// Tells the switch where the guest is.
    pub fn announce(&mut self) {
        if let Err(error) = self.nic.announce(self.guest.mac, None) {
            log::warn!("the guest's address was not announced: {error}");
        }
    }
}
