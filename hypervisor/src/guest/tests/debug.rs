//! A debugger's stops, on a CPU that goes a given way, with the host in between wherever it likes.

use alloc::collections::BTreeSet;

use super::*;
use crate::platform::Size;

/// Where a CPU is, tick by tick.
#[derive(Debug, Clone, Default)]
pub(super) struct Way {
    rips: Vec<u64>,
    walked: usize,
    /// Ticks at which the host interrupts it, once each.
    interrupts: BTreeSet<usize>,
    /// Pages that it may not execute, if it can keep any.
    kept: Option<Vec<(Gpa, Right)>>,
    /// What is offered to it, and where the handler's first instruction is.
    offered: Option<u8>,
    handler: u64,
    /// The next instruction runs before it takes an interrupt.
    in_shadow: bool,
    /// What is delivered while an event is undelivered.
    delivery: Option<Delivery>,
}

/// An event that writes a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    needs: Gpa,
    handler: u64,
}

impl Way {
    pub(super) fn is_over(&self) -> bool {
        self.rips.is_empty()
    }

    pub(super) fn keep(&mut self, pages: &[(Gpa, Right)]) -> bool {
        let can = self.kept.is_some();
        if can {
            self.kept = Some(pages.to_vec());
        }
        can || pages.is_empty()
    }

    pub(super) fn offer(&mut self, vector: Option<u8>) {
        self.offered = vector;
    }

    /// Delivers the event that waits, unless it needs a page that is kept: the entry's end then.
    pub(super) fn deliver(&mut self, rip: &mut u64) -> Option<Exit> {
        let Delivery { needs, handler } = self.delivery?;
        if self.kept.iter().flatten().any(|&(kept, right)| kept == needs && right != Right::Execute) {
            return Some(Exit::Kept);
        }
        (*rip, self.delivery) = (handler, None);
        None
    }

    pub(super) fn enter(&mut self, limit: Limit, rip: &mut u64) -> Entered {
        let mut interrupt_taken = false;
        let (most, end) = match limit {
            Limit::After(_, most) => (most, Exit::Interrupted),
            Limit::Step(_) => (1, Exit::Stepped),
        };
        let mut ticks = 0;
        let exit = loop {
            if ticks == most {
                break end;
            }
            if self.interrupts.remove(&self.walked) {
                break Exit::Interrupted;
            }
            if !self.in_shadow && self.offered.take().is_some() {
                (*rip, interrupt_taken) = (self.handler, true);
            }
            let page = Gpa(*rip & !0xFFF);
            if self.kept.iter().flatten().any(|&(kept, right)| kept == page && right != Right::Write) {
                break Exit::Kept;
            }
            self.in_shadow = false;
            ticks += 1;
            self.walked += 1;
            *rip = self.rips[self.walked % self.rips.len()];
        };
        Entered { exit, ticks, interrupt_taken, exception_taken: false }
    }
}

/// All stops of a guest that goes on after each, up to the position `end`.
fn stops(way: Way, breaks: &[u64], end: u64) -> Vec<(u64, DebugStop)> {
    let mut guest = guest(&[], false);
    let registers = Registers { rip: way.rips[0], ..Registers::default() };
    guest.vcpu = Box::new(Script { way, registers, ..script(&[]) });
    guest.set_stops(breaks, &[]).unwrap();
    let mut stops = Vec::new();
    let mut kind = Stops::All;
    while guest.position() < Position(end) {
        guest.debug_until(Position(end), kind);
        let stop = loop {
            // As the driver does, in slices.
            let slice = guest.position().after(7);
            let ran = guest.run(slice, &mut Nothing);
            if let Some(stop) = guest.take_debug_stop() {
                assert_eq!(ran, Stop::Host);
                break stop;
            }
        };
        stops.push((guest.position().0, stop));
        kind = Stops::Ahead;
    }
    stops
}

proptest! {
    /// A guest stops wherever the next instruction is one to stop at, and nowhere else: whether the CPU can keep pages or not,
    /// and wherever the host interrupts it.
    #[test]
    fn a_guest_stops_at_instructions(
        rips in prop::collection::vec(prop_oneof![0x1FFE_u64..0x2003, 0x3000_u64..0x3003], 2..40),
        breaks in prop::collection::vec(prop_oneof![0x1FFE_u64..0x2003, 0x3000_u64..0x3003], 0..3),
        interrupts in prop::collection::btree_set(0_usize..40, 0..10),
        keeps in any::<bool>(),
    ) {
        let end = rips.len() as u64 - 1;
        let found = |&at: &u64| breaks.contains(&rips[at as usize]);
        let expected = (0..end).filter(found).map(|at| (at, DebugStop::Break(rips[at as usize])));
        let expected: Vec<_> = expected.chain([(end, DebugStop::Arrived)]).collect();
        let way = Way { rips: rips.clone(), interrupts, kept: keeps.then(Vec::new), ..Way::default() };
        prop_assert_eq!(stops(way, &breaks, end), expected);
    }
}

/// What an input changes is told before the guest goes on; what was changed before it ran for the debugger is not.
#[test]
fn changed_memory_is_told() {
    let mut guest = guest(&[], false);
    let way = Way { rips: alloc::vec![0x1000], kept: Some(Vec::new()), ..Way::default() };
    guest.vcpu = Box::new(Script { way, ..script(&[]) });
    assert!(guest.set_stops(&[], &[(0x2000, 65)]).is_err() && guest.set_stops(&[1; 17], &[]).is_err());
    guest.set_stops(&[], &[(0x2FFC, 8)]).unwrap();
    guest.memory.write(Gpa(0x2FFD), &[7]).unwrap();
    guest.debug_until(Position(100), Stops::All);
    assert_eq!((guest.run(Position(50), &mut Nothing), guest.take_debug_stop()), (Stop::Target, None));
    guest.memory.write(Gpa(0x3003), &[7]).unwrap();
    assert_eq!(guest.run(Position(60), &mut Nothing), Stop::Host);
    let stop = DebugStop::Watch { linear: 0x2FFC, by_input: true };
    assert_eq!((guest.position(), guest.take_debug_stop()), (Position(50), Some(stop)));
    // Stops do not count on the way to a position.
    guest.debug_until(Position(100), Stops::None);
    guest.memory.write(Gpa(0x3003), &[8]).unwrap();
    assert_eq!(guest.run(Position(200), &mut Nothing), Stop::Host);
    assert_eq!((guest.position(), guest.take_debug_stop()), (Position(100), Some(DebugStop::Arrived)));
    // Interrupted where an entry may be applied, it stands at once: the log may have no more for it to run.
    guest.debug_until(Position(300), Stops::All);
    guest.debug_interrupt();
    assert_eq!((guest.position(), guest.take_debug_stop()), (Position(100), Some(DebugStop::Arrived)));
    // What an input has changed there is not forgotten for it.
    guest.debug_until(Position(300), Stops::All);
    guest.memory.write(Gpa(0x3003), &[9]).unwrap();
    guest.debug_interrupt();
    assert_eq!(guest.take_debug_stop(), Some(stop));
}

/// What the guest itself does may end the run there, and the debugger is not passed over for it.
#[test]
fn it_arrives_where_the_guests_own_doing_ends_the_run() {
    let mut guest = guest(&[out(0x80), out(POWER_OFF.0)], false);
    guest.debug_until(Position(2), Stops::All);
    assert_eq!(guest.run(Position(100), &mut Nothing), Stop::Power(PowerEvent::Off));
    assert_eq!((guest.position(), guest.take_debug_stop()), (Position(2), Some(DebugStop::Arrived)));
}

/// An input at a position where the guest stands may bring an interrupt, which comes before the instruction there. The first
/// instruction of its handler is at the same position, or at the next one if the guest cannot take it yet.
#[test]
fn a_handlers_first_instruction_is_looked_at() {
    const HANDLER: u64 = 0x5000;
    const APIC: u64 = crate::platform::lapic::DEFAULT_BASE;
    for (in_shadow, disturbed, at) in [(false, false, 3), (true, false, 4), (false, true, 3)] {
        let rips = (0x2000..0x2010).collect();
        let interrupts = if disturbed { [3].into() } else { BTreeSet::new() };
        let way = Way { rips, kept: Some(Vec::new()), handler: HANDLER, in_shadow, interrupts, ..Way::default() };
        let mut guest = guest(&[], false);
        let registers = Registers { rip: 0x2000, rflags: RFLAGS_IF, ..Registers::default() };
        guest.vcpu = Box::new(Script { way: Way { in_shadow: false, ..way.clone() }, registers, ..script(&[]) });
        guest.run(Position(3), &mut Nothing);
        let registers = *guest.registers();
        guest.vcpu = Box::new(Script { way: Way { walked: 3, ..way }, registers, ..script(&[]) });
        let now = guest.now();
        for (register, value) in [(0xF0, 0x1FF), (0x300, 1 << 18 | 0x52)] {
            let (platform, memory) = (&mut guest.platform, &mut guest.memory);
            platform.mmio_write(now, Gpa(APIC + register), Size::Dword, value, memory, &mut Nothing);
        }
        assert!(guest.can_wake());
        // The instruction at which it stands is one to stop at, too, and was.
        guest.set_stops(&[0x2003, HANDLER], &[]).unwrap();
        guest.debug_until(Position(10), Stops::Ahead);
        let stop = (0..20).find_map(|_| {
            guest.run(Position(10), &mut Nothing);
            Some((guest.position(), guest.take_debug_stop()?))
        });
        assert_eq!(stop, Some((Position(at), DebugStop::Break(HANDLER))), "{in_shadow} {disturbed}");
    }
}

/// What an event is delivered with may lie in a page with something to stop at: it is delivered, and the guest goes on.
#[test]
fn an_event_that_needs_a_kept_page_is_delivered() {
    let mut guest = guest(&[], false);
    let way = Way { rips: (0x2000..0x2010).collect(), kept: Some(Vec::new()), ..Way::default() };
    let registers = Registers { rip: 0x2000, ..Registers::default() };
    let event = Delivery { needs: Gpa(0x3000), handler: 0x5000 };
    guest.vcpu =
        Box::new(Script { way: Way { delivery: Some(event), ..way }, registers, injected: true, ..script(&[]) });
    guest.settled = false;
    guest.set_stops(&[0x5000], &[(0x3000, 8)]).unwrap();
    guest.debug_until(Position(10), Stops::Ahead);
    let stop = (0..20).find_map(|_| {
        guest.run(Position(10), &mut Nothing);
        Some((guest.position(), guest.take_debug_stop()?))
    });
    assert_eq!(stop, Some((Position(0), DebugStop::Break(0x5000))));
}
