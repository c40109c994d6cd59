//! The client NIC behind its gate.

use core::fmt;
use core::net::Ipv4Addr;

use crate::e1000::{E1000, Interrupts, NicError, Stats};
use crate::frame::{FrameSink, FrameSource, MacAddress, SendError, announcement, check_length};
use crate::gate::{Gate, GateMode, HoldError, HoldOutcome, Mark};
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

/// Why a frame of the machine itself was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineSendError {
    /// The machine has no address on this network.
    NoAddress,
    /// The frame names another sender, perhaps the guest.
    ForeignSource(MacAddress),
    /// The NIC does not take it.
    Nic(SendError),
}

impl fmt::Display for MachineSendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("the machine has no address of its own on this network"),
            Self::ForeignSource(mac) => write!(f, "the machine must not send in the name of {mac}"),
            Self::Nic(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MachineSendError {}

/// A NIC and the gate in its transmit path.
///
/// **This is the one gate** through which the guest's output leaves: the NIC is owned and never lent out, so the only
/// ways to its wire are [`guest_transmit`](Self::guest_transmit), which passes the gate, [`announce`](Self::announce),
/// whose frame is ours, and [`machine_transmit`](Self::machine_transmit), which takes only frames that name the machine
/// itself as their sender: no switch and no client can take them for the guest's. So a machine can speak for itself,
/// with the arbiter, while its gate is closed. Keep it so: a method that gives mutable access to the NIC, or sends
/// bytes of the caller's choice, would be a second gate.
#[derive(Debug)]
pub struct ClientNic<D> {
    nic: D,
    gate: Gate,
    /// The machine's own address; never the guest's.
    machine: Option<MacAddress>,
}

impl<D: FrameSink + FrameSource> ClientNic<D> {
    /// Takes the NIC and puts the gate before it.
    pub fn new(nic: D, gate: Gate) -> Self {
        Self { nic, gate, machine: None }
    }

    /// A frame of the guest: to be held, retained, sent or dropped as the gate's mode says. See [`Gate::forward`]. Frames sent
    /// at once are queued: call [`flush`](Self::flush) after the batch.
    pub fn guest_transmit(&mut self, frame: &[u8], now_us: u64) -> Result<HoldOutcome, HoldError> {
        self.gate.forward(frame, &mut self.nic, now_us)
    }

    /// A frame of the machine itself, which does not pass the gate: the gate is for what the guest says. Queued: call
    /// [`flush`](Self::flush) after the batch.
    ///
    /// # Errors
    /// When its source is not the machine's own address, or the NIC does not take it.
    pub fn machine_transmit(&mut self, frame: &[u8]) -> Result<(), MachineSendError> {
        let machine = self.machine.ok_or(MachineSendError::NoAddress)?;
        check_length(frame.len()).map_err(|error| MachineSendError::Nic(error.into()))?;
        let source = MacAddress::from_bytes(&frame[6..12]);
        if source != machine {
            return Err(MachineSendError::ForeignSource(source));
        }
        self.nic.send(frame).map_err(MachineSendError::Nic)
    }

    /// The machine's own address on this network, if it was given one.
    pub fn machine_address(&self) -> Option<MacAddress> {
        self.machine
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

    /// See [`Gate::guest_at`].
    pub fn guest_at(&mut self, position: u64) {
        self.gate.guest_at(position);
    }

    /// See [`Gate::seal`].
    pub fn seal(&mut self, mark: Mark) {
        self.gate.seal(mark);
    }

    /// See [`Gate::acked`]. Call [`transmit_ready`](Self::transmit_ready) afterwards.
    pub fn acked(&mut self, seq: u64) {
        self.gate.acked(seq);
    }

    /// See [`Gate::released`].
    pub fn released(&mut self, position: u64) {
        self.gate.released(position);
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
    /// Gives the machine an address of its own beside the guest's, for which the card was brought up: its frames are
    /// received too, and [`machine_transmit`](Self::machine_transmit) sends in its name.
    ///
    /// # Errors
    /// When it is the guest's address, or no unicast address. See [`E1000::receive_also`].
    pub fn add_machine_address(&mut self, mac: MacAddress) -> Result<(), NicError> {
        self.nic.receive_also(mac)?;
        self.machine = Some(mac);
        Ok(())
    }

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

    /// The NIC's counts, with its own counters of lost frames brought up to date. Two register reads.
    pub fn nic_stats(&mut self) -> Stats {
        self.nic.update_counters();
        self.nic.stats()
    }

    /// Silences the card for good. See [`E1000::stop`].
    pub fn stop(&mut self) {
        self.nic.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::e1000::testing::bring_up;
    use crate::frame::FrameError;
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
            client.seal(Mark::Position(mark.into()));
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
        client.seal(Mark::Seq(5));
        client.acked(4);
        assert_eq!(client.transmit_ready(1), 0);
        client.acked(5);
        assert_eq!(client.transmit_ready(1), 1);
        client.set_mode(GateMode::Open);
        assert_eq!(client.guest_transmit(&FRAME, 2), Ok(HoldOutcome::Sent));
        client.flush();
        assert_eq!(client.nic().sent.len(), 2);
    }

    /// In every mode of the gate, and never in the guest's name.
    #[test]
    fn the_machine_speaks_for_itself_only() {
        const MACHINE: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
        let frame = |source: MacAddress| {
            let mut frame = vec![0xFF; 60];
            frame[6..12].copy_from_slice(&source.0);
            frame
        };
        let (nic, hardware) = bring_up(Model::I82574L, 32, Some(MAC), |_| {});
        let mut client = ClientNic::new(nic.unwrap(), Gate::new(8, 10_000));
        assert_eq!(client.machine_transmit(&frame(MACHINE)), Err(MachineSendError::NoAddress));
        assert_eq!(client.add_machine_address(MAC), Err(NicError::BadMac(MAC)));
        assert_eq!(client.machine_transmit(&frame(MAC)), Err(MachineSendError::NoAddress));
        client.add_machine_address(MACHINE).unwrap();
        for mode in [GateMode::Closed, GateMode::Retained, GateMode::Held, GateMode::Open] {
            client.set_mode(mode);
            assert_eq!(client.machine_transmit(&frame(MACHINE)), Ok(()));
            for other in [MAC, MacAddress::BROADCAST, MacAddress([0; 6])] {
                assert_eq!(client.machine_transmit(&frame(other)), Err(MachineSendError::ForeignSource(other)));
            }
        }
        let short = Err(MachineSendError::Nic(SendError::Invalid(FrameError::TooShort(11))));
        assert_eq!(client.machine_transmit(&[0; 11]), short);
        client.flush();
        hardware.borrow_mut().transmit(usize::MAX);
        assert_eq!(hardware.borrow().sent, vec![frame(MACHINE); 4]);
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
