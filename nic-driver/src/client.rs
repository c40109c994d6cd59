//! The client NIC behind its gate.

use core::fmt;
use core::net::Ipv4Addr;

use crate::e1000::{E1000, Interrupts, Statistics};
use crate::frame::{FrameSink, FrameSource, MacAddress, SendError, announcement};
use crate::gate::{Gate, GateMode, HoldError, HoldOutcome};
use crate::mmio::Registers;

/// Why the guest's address was not announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnounceError {
    /// The gate is closed, or retains: a backup must not draw the guest's traffic to itself.
    Closed,
    /// The NIC has no room now; try again.
    Full,
}

impl fmt::Display for AnnounceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("a machine whose gate lets nothing out must not announce the guest"),
            Self::Full => f.write_str("the transmit ring is full"),
        }
    }
}

impl core::error::Error for AnnounceError {}

/// A NIC and the gate in its transmit path.
///
/// **This is the one gate** through which the guest's output leaves: the NIC is owned and never lent out, so the only
/// ways to its wire are [`guest_transmit`](Self::guest_transmit), which passes the gate, and
/// [`announce`](Self::announce), whose frame is ours. Keep it so: a method that gives mutable access to the NIC, or
/// sends bytes of the caller's choice, would be a second gate.
#[derive(Debug)]
pub struct ClientNic<D> {
    nic: D,
    gate: Gate,
}

impl<D: FrameSink + FrameSource> ClientNic<D> {
    /// Takes the NIC and puts the gate before it.
    pub fn new(nic: D, gate: Gate) -> Self {
        Self { nic, gate }
    }

    /// A frame of the guest: to be held, retained, sent or dropped as the gate's mode says. See [`Gate::forward`]. Frames sent
    /// at once are queued: call [`flush`](Self::flush) after the batch.
    pub fn guest_transmit(&mut self, frame: &[u8], now_us: u64) -> Result<HoldOutcome, HoldError> {
        self.gate.forward(frame, &mut self.nic, now_us)
    }

    /// Hands the next received frame to `f`. Call [`flush`](Self::flush) after the batch.
    pub fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.nic.receive(f)
    }

    /// Sends what may leave; returns how many frames. See [`Gate::transmit_ready`].
    pub fn transmit_ready(&mut self, now_us: u64) -> usize {
        self.gate.transmit_ready(&mut self.nic, now_us)
    }

    /// Sends the first frame that may leave. See [`Gate::transmit_next`].
    pub fn transmit_next(&mut self, now_us: u64) -> Option<bool> {
        self.gate.transmit_next(&mut self.nic, now_us)
    }

    /// Starts the transmission of queued frames and gives receive buffers back to the NIC.
    pub fn flush(&mut self) {
        self.nic.flush();
    }

    /// Tells switches (and with `ip` also hosts) that the guest's `mac` is reached here, at once.
    /// See [`announcement`].
    pub fn announce(&mut self, mac: MacAddress, ip: Option<Ipv4Addr>) -> Result<(), AnnounceError> {
        if matches!(self.gate.mode(), GateMode::Closed | GateMode::Retained) {
            return Err(AnnounceError::Closed);
        }
        let sent = self.nic.send(&announcement(mac, ip));
        self.nic.flush();
        match sent {
            Ok(()) => Ok(()),
            Err(SendError::Full) => Err(AnnounceError::Full),
            // An announcement has the shortest valid length on every Ethernet.
            Err(SendError::Invalid(error)) => panic!("announcement refused: {error}"),
        }
    }

    /// See [`Gate::set_mode`].
    pub fn set_mode(&mut self, mode: GateMode) {
        self.gate.set_mode(mode);
    }

    /// See [`Gate::seal`].
    pub fn seal(&mut self, mark: u64) {
        self.gate.seal(mark);
    }

    /// See [`Gate::acked`]. Call [`transmit_ready`](Self::transmit_ready) afterwards.
    pub fn acked(&mut self, seq: u64) {
        self.gate.acked(seq);
    }

    /// See [`Gate::released`].
    pub fn released(&mut self, mark: u64) {
        self.gate.released(mark);
    }

    /// **For teaching and tests only.** See [`Gate::break_output_rule`].
    pub fn break_output_rule(&mut self, on: bool) {
        self.gate.break_output_rule(on);
    }

    /// The gate, to look at.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The NIC, to look at.
    pub fn nic(&self) -> &D {
        &self.nic
    }
}

impl<R: Registers> ClientNic<E1000<R>> {
    /// See [`E1000::interrupt_cause`].
    pub fn interrupt_cause(&mut self) -> Interrupts {
        self.nic.interrupt_cause()
    }

    /// See [`E1000::enable_interrupts`].
    pub fn enable_interrupts(&mut self, causes: Interrupts) {
        self.nic.enable_interrupts(causes);
    }

    /// See [`E1000::disable_interrupts`].
    pub fn disable_interrupts(&mut self) {
        self.nic.disable_interrupts();
    }

    /// Whether a received frame waits. See [`E1000::has_received`].
    pub fn has_received(&mut self) -> bool {
        self.nic.has_received()
    }

    /// See [`E1000::set_promiscuous`].
    pub fn set_promiscuous(&mut self, on: bool) {
        self.nic.set_promiscuous(on);
    }

    /// The NIC's counts, with its own counter of missed frames brought up to date. One register read.
    pub fn nic_statistics(&mut self) -> Statistics {
        self.nic.update_missed();
        self.nic.statistics()
    }

    /// Silences the card for good. See [`E1000::stop`].
    pub fn stop(&mut self) {
        self.nic.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::tests::Wire;

    const FRAME: [u8; 60] = [7; 60];
    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);

    impl FrameSource for Wire {
        fn receive<R>(&mut self, _: impl FnOnce(&[u8]) -> R) -> Option<R> {
            None
        }
    }

    #[test]
    fn a_closed_gate_announces_nothing() {
        let mut client = ClientNic::new(Wire::with_room(8), Gate::new(8, 10_000));
        assert_eq!(client.announce(MAC, None), Err(AnnounceError::Closed));
        assert_eq!(client.guest_transmit(&FRAME, 0), Ok(HoldOutcome::Dropped));
        client.flush();
        assert!(client.nic().sent.is_empty());
        client.set_mode(GateMode::Open);
        assert_eq!(client.announce(MAC, None), Ok(()));
        assert_eq!(client.nic().sent, [announcement(MAC, None).to_vec()]);
    }

    #[test]
    fn a_backup_is_silent_until_it_goes_live() {
        let mut client = ClientNic::new(Wire::with_room(8), Gate::new(8, 10_000));
        client.set_mode(GateMode::Retained);
        client.break_output_rule(true);
        for mark in [10, 20] {
            assert_eq!(client.guest_transmit(&[mark; 60], 0), Ok(HoldOutcome::Held));
            client.seal(mark.into());
        }
        client.released(10);
        assert_eq!(client.announce(MAC, None), Err(AnnounceError::Closed));
        assert_eq!(client.transmit_ready(0), 0);
        assert!(client.nic().sent.is_empty());
        client.set_mode(GateMode::Open);
        assert_eq!(client.transmit_ready(0), 1);
        assert_eq!(client.announce(MAC, None), Ok(()));
        assert_eq!(client.nic().sent, [vec![20; 60], announcement(MAC, None).to_vec()]);
    }

    #[test]
    fn guest_frames_pass_the_gate() {
        let mut client = ClientNic::new(Wire::with_room(8), Gate::new(8, 10_000));
        client.set_mode(GateMode::Held);
        assert_eq!(client.guest_transmit(&FRAME, 0), Ok(HoldOutcome::Held));
        client.seal(5);
        client.acked(4);
        assert_eq!(client.transmit_ready(1), 0);
        client.acked(5);
        assert_eq!(client.transmit_ready(1), 1);
        client.set_mode(GateMode::Open);
        assert_eq!(client.guest_transmit(&FRAME, 2), Ok(HoldOutcome::Sent));
        client.flush();
        assert_eq!(client.nic().sent.len(), 2);
    }

    #[test]
    fn a_full_nic_keeps_the_order() {
        let mut client = ClientNic::new(Wire::with_room(1), Gate::new(8, 10_000));
        client.set_mode(GateMode::Open);
        assert_eq!(client.guest_transmit(&[1; 60], 0), Ok(HoldOutcome::Sent));
        assert_eq!(client.guest_transmit(&[2; 60], 0), Ok(HoldOutcome::Ready));
        assert_eq!(client.announce(MAC, None), Err(AnnounceError::Full));
        assert_eq!(client.transmit_ready(0), 0);
    }
}
