//! Frames that the device finds without being told.

use proptest::prelude::*;

use super::driver::*;
use super::*;
use crate::platform::clock::Position;
use crate::platform::{LOOK_TICKS, OFTEN_TICKS, OWED_NS};

const SENT: u64 = 0x30_0000;

/// A guest that sends frames of one number each and tells of them as the device asks.
struct Sender {
    rig: Rig,
    at: u64,
    /// Where each frame was made available, and where it left.
    offered: Vec<u64>,
    left: Vec<u64>,
    /// Where the driver was interrupted for what it sent.
    interrupts: Vec<u64>,
    told: usize,
    events: bool,
}

impl Sender {
    fn new(features: u64) -> Self {
        let mut rig = Rig::new();
        rig.start_net(VERSION_1 | features);
        (0..SIZE).for_each(|slot| rig.descriptor(ring(1)[0], slot, SENT + 0x100 * u64::from(slot), 72, 0, 0));
        let events = features & EVENT_IDX != 0;
        Self { rig, at: 0, offered: Vec::new(), left: Vec::new(), interrupts: Vec::new(), told: 0, events }
    }

    /// The guest leaves for something that both twins see, or stands where the device wanted to look.
    fn leave(&mut self) {
        self.leave_to(false);
    }

    fn sleep(&mut self) {
        self.leave_to(true);
    }

    fn leave_to(&mut self, sleep: bool) {
        self.rig.platform.look_for_frames(Position(self.at), sleep, &mut self.rig.memory, &mut self.rig.out);
        for frame in self.rig.out.frames.drain(..) {
            assert_eq!(frame[0], self.left.len() as u8, "the frames leave in order");
            self.left.push(self.at);
        }
        self.take_interrupt();
    }

    /// Takes what is pending, and wants to hear of the next frame again.
    fn take_interrupt(&mut self) {
        while let Some(vector) = self.rig.interrupt() {
            if vector == 0x52 {
                self.interrupts.push(self.at);
                let used = self.rig.used_index(1);
                self.rig.put_u16(ring(1)[1] + 4 + 2 * u64::from(SIZE), used);
            }
        }
    }

    /// A frame arrives for the guest.
    fn hear(&mut self) {
        let slot = self.rig.get_u16(ring(0)[1] + 2) % SIZE;
        self.rig.offer_receive(slot, 100);
        self.rig.packet_in(&frame(60, 0));
        self.take_interrupt();
    }

    /// Runs for `ticks`, stopped where the device wants to look, and when something is due.
    fn run(&mut self, ticks: u64) {
        let end = self.at + ticks;
        loop {
            let (look, due) = (self.rig.platform.next_look(), self.rig.platform.next_deadline());
            let stop = [look.map(|look| look.0), due.map(|due| due.0)].into_iter().flatten().min();
            let Some(stop) = stop.filter(|&stop| stop <= end) else { break };
            assert!(stop >= self.at, "a stop in the past");
            self.at = stop;
            self.rig.platform.advance(GuestTime(stop), &mut self.rig.memory);
            if look == Some(Position(stop)) {
                self.leave();
                assert_ne!(self.rig.platform.next_look(), look, "it was looked at");
            }
            self.take_interrupt();
        }
        self.at = end;
        self.rig.now = GuestTime(end);
    }

    fn send(&mut self) {
        let (index, used) = (self.rig.get_u16(ring(1)[1] + 2), self.rig.used_index(1));
        // A driver whose queue is full waits; a sender with an interrupt for each frame never comes so far.
        if index.wrapping_sub(used) >= SIZE {
            return;
        }
        let slot = index % SIZE;
        self.rig.memory.write(Gpa(SENT + 0x100 * u64::from(slot) + 12), &[self.offered.len() as u8; 60]).unwrap();
        self.rig.offer(1, slot);
        self.offered.push(self.at);
        let [_, _, device] = ring(1);
        let wanted = match self.events {
            true => self.rig.get_u16(device + 4 + 8 * u64::from(SIZE)) == index,
            false => self.rig.get_u16(device) & 1 == 0,
        };
        if wanted {
            self.told += 1;
            self.rig.kick(1);
            // The notification is an exit, too.
            self.leave();
        }
    }
}

#[test]
fn who_sends_often_need_not_tell() {
    for features in [0, EVENT_IDX] {
        let mut sender = Sender::new(features);
        for _ in 0..1000 {
            sender.send();
            sender.run(LOOK_TICKS / 2);
            sender.leave();
        }
        assert_eq!((sender.told, sender.left.len()), (2, 1000));
        // Without another reason to leave, too, and without the driver's help.
        for _ in 0..1000 {
            (0..2).for_each(|_| sender.send());
            sender.run(LOOK_TICKS * 3 / 4);
        }
        sender.run(LOOK_TICKS);
        assert_eq!((sender.told, sender.left.len()), (2, 3000));
    }
}

#[test]
fn who_sends_seldom_tells_and_is_left_alone() {
    let mut sender = Sender::new(EVENT_IDX);
    for _ in 0..100 {
        sender.send();
        assert_eq!(sender.rig.platform.next_look(), None);
        sender.run(OFTEN_TICKS + 1);
        sender.leave();
    }
    assert_eq!((sender.told, sender.left.len()), (100, 100));
    // A burst is told of twice, and watched until it is over.
    (0..5).for_each(|_| sender.send());
    assert_eq!(sender.told, 102);
    sender.run(2 * LOOK_TICKS);
    assert_eq!((sender.left.len(), sender.rig.platform.next_look()), (105, None));
    sender.run(OFTEN_TICKS);
    sender.send();
    assert_eq!((sender.told, sender.left.len()), (103, 106));
}

/// A driver that looks at the used ring until its frame is sent would wait for the device, and the device for it.
#[test]
fn who_waits_for_each_frame_tells_of_it() {
    let mut sender = Sender::new(EVENT_IDX);
    let mut waited = 0;
    for _ in 0..10_000 {
        sender.send();
        let sent = sender.at;
        while sender.left.len() < sender.offered.len() {
            sender.run(100);
        }
        waited += sender.at - sent;
        sender.run(1000);
        if sender.offered.len().is_multiple_of(50) {
            sender.sleep();
        }
    }
    assert!(waited * 20 < sender.at, "{waited} of {}", sender.at);
}

#[test]
fn an_answer_is_told_of_with_the_next_frame_and_much_at_once() {
    let mut sender = Sender::new(EVENT_IDX);
    (0..3).for_each(|_| sender.send());
    sender.interrupts.clear();
    sender.leave();
    assert_eq!((sender.left.len(), sender.interrupts.len()), (3, 0));
    sender.hear();
    assert_eq!(sender.interrupts, [sender.at]);
    // Nor is it told of twice.
    sender.run(2 * OWED_NS);
    assert_eq!(sender.interrupts.len(), 1);
    // When no frame comes, after a while.
    (0..3).for_each(|_| sender.send());
    sender.interrupts.clear();
    let sent = sender.at;
    sender.leave();
    sender.run(OWED_NS);
    assert_eq!(sender.interrupts, [sent + OWED_NS]);
    // A quarter of the queue.
    (0..4).for_each(|_| sender.send());
    sender.interrupts.clear();
    sender.leave();
    assert_eq!((sender.left.len(), sender.interrupts.len()), (10, 1));
}

#[test]
fn who_sleeps_tells_again() {
    let mut sender = Sender::new(EVENT_IDX);
    (0..3).for_each(|_| sender.send());
    assert_eq!((sender.told, sender.left.len()), (2, 2));
    sender.sleep();
    assert_eq!((sender.left.len(), sender.rig.platform.next_look()), (3, None));
    for _ in 0..100 {
        sender.send();
        sender.run(100);
        sender.sleep();
    }
    assert_eq!((sender.told, sender.left.len()), (102, 103));
}

#[test]
fn a_driver_that_starts_anew_is_not_watched() {
    let mut sender = Sender::new(EVENT_IDX);
    (0..3).for_each(|_| sender.send());
    assert!(sender.rig.platform.next_look().is_some());
    sender.rig.write(BAR + 0x14, Size::Byte, 0);
    sender.leave();
    assert_eq!(sender.rig.platform.next_look(), None);
    let mut sender = Sender::new(EVENT_IDX);
    (0..3).for_each(|_| sender.send());
    sender.rig.platform.reset(GuestTime(0));
    assert_eq!(sender.rig.platform.next_look(), None);
}

#[test]
fn a_device_that_may_not_look_for_a_while_looks_again() {
    let mut sender = Sender::new(EVENT_IDX);
    (0..3).for_each(|_| sender.send());
    sender.leave();
    // Without bus mastering: a guest asleep, or awake for long.
    sender.rig.config_write(1, 4, Size::Word, 2);
    sender.sleep();
    sender.run(5 * LOOK_TICKS);
    sender.send();
    sender.leave();
    assert_eq!((sender.told, sender.left.len()), (2, 3));
    sender.rig.config_write(1, 4, Size::Word, 6);
    sender.run(LOOK_TICKS);
    assert_eq!((sender.told, sender.left.len()), (2, 4));
}

#[test]
fn an_interrupt_that_could_not_come_when_it_was_due_comes_later() {
    let mut sender = Sender::new(EVENT_IDX);
    (0..3).for_each(|_| sender.send());
    sender.leave();
    sender.interrupts.clear();
    sender.rig.config_write(1, 4, Size::Word, 2);
    sender.run(LOOK_TICKS + 2 * OWED_NS);
    assert_eq!(sender.interrupts, []);
    sender.rig.config_write(1, 4, Size::Word, 6);
    sender.run(LOOK_TICKS + 2 * OWED_NS);
    assert_eq!(sender.interrupts.len(), 1);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Send,
    Hear,
    Run(u64),
    Leave,
    Sleep,
    Move,
    /// A driver that tells though it need not.
    Tell,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Send),
        1 => Just(Step::Hear),
        3 => (1..2 * OFTEN_TICKS).prop_map(Step::Run),
        3 => (1..1000u64).prop_map(Step::Run),
        2 => Just(Step::Leave),
        1 => Just(Step::Sleep),
        1 => Just(Step::Move),
        1 => Just(Step::Tell),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// In order, none forgotten, none late, each told of; and the same on a machine that took the guest over on the way.
    #[test]
    fn every_frame_leaves_in_time(steps in steps(), events in any::<bool>()) {
        let mut ends = Vec::new();
        for moves in [false, true] {
            let mut sender = Sender::new(if events { EVENT_IDX } else { 0 });
            for step in &steps {
                match *step {
                    Step::Send => sender.send(),
                    Step::Hear => sender.hear(),
                    Step::Run(ticks) => sender.run(ticks),
                    Step::Leave => sender.leave(),
                    Step::Sleep => sender.sleep(),
                    Step::Tell => {
                        sender.rig.kick(1);
                        sender.leave();
                    }
                    Step::Move if moves => sender.rig.move_platform(),
                    Step::Move => {}
                }
            }
            sender.run(LOOK_TICKS);
            prop_assert_eq!(sender.left.len(), sender.offered.len());
            sender.run(OWED_NS);
            for (offered, left) in sender.offered.iter().zip(&sender.left) {
                prop_assert!(left - offered <= LOOK_TICKS, "offered at {}, left at {}", offered, left);
                let told = sender.interrupts.iter().any(|at| (*left..=left + OWED_NS).contains(at));
                prop_assert!(told, "left at {}, interrupts at {:?}", left, sender.interrupts);
            }
            ends.push((state::hash(&mut sender.rig.platform), sender.left, sender.interrupts, sender.told));
        }
        prop_assert_eq!(&ends[0], &ends[1]);
    }
}
