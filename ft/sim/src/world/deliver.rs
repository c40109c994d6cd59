//! What each event does.

use super::event::Event;
use super::{INBOX, World};
use crate::arbiter::Mood;
use pollux_ft::{NodeId, Start, Term};

/// Frames for the guest that wait in a machine at most.
const INGRESS: usize = 128;

impl World {
    pub(super) fn handle(&mut self, event: Event) {
        self.env.trace.note_event(self.env.now, &event);
        match event {
            Event::Wake { machine } => {
                let now = self.env.now;
                if self.awake(machine).is_some_and(|machine| machine.is_woken(now)) {
                    self.turn(machine);
                }
            }
            Event::Nudge { machine } => self.turn(machine),
            Event::Datagram { to, bytes } => {
                let keys = self.env.operator.all_keys(&self.env.plan.config.protection);
                self.env.attacker.see(to, &bytes, &keys);
                self.datagram(to, bytes);
            }
            Event::Forgery { to, bytes } => self.datagram(to, bytes),
            Event::Bytes { stream, end } => self.bytes(stream, end),
            Event::Connected { stream, machine } => self.connected(stream, machine),
            Event::Reset { stream, machine } => self.reset(stream, machine),
            Event::Dial { machine } => self.dial(machine),
            Event::ArbiterAsked { machine, node, term } => self.arbiter_asked(machine, node, term),
            Event::ArbiterAnswers { machine, node, term, winner } => self.arbiter_answers(machine, node, term, winner),
            Event::ArbiterLooked { machine, node } => self.arbiter_looked(machine, node),
            Event::ArbiterShows { machine, node, newest } => self.arbiter_shows(machine, node, newest),
            // What is still under way from or to a guest that is no more concerns nobody.
            Event::ToGuest { life, .. } | Event::ToClient { life, .. } if life != self.env.audit.lives() => {}
            Event::ToGuest { frame, .. } => self.towards_guest(frame),
            Event::ToClient { client, reply, .. } => {
                let answered = self.env.clients.receive(self.env.now, client, &reply, &mut self.env.audit);
                if let Some((after, timer)) = answered {
                    self.env.queue.push(self.env.now + after, Event::ClientTimer { client, timer });
                }
            }
            Event::ClientTimer { client, timer } => self.client_timer(client, timer),
            Event::Fault => self.fault(),
            Event::Attack => self.attack(),
            Event::Operate => self.operate(),
            Event::Over(lasting) => self.over(lasting),
            Event::Restart { machine } => self.restart(machine),
            Event::Thaw { machine } => self.thaw(machine),
            Event::Look => self.look(),
        }
    }

    fn datagram(&mut self, to: usize, bytes: Vec<u8>) {
        let slot = &mut self.slots[to];
        let Some(machine) = &mut slot.machine else { return };
        if slot.frozen {
            if slot.inbox.len() < INBOX {
                slot.inbox.push_back(bytes);
            }
            return;
        }
        machine.hear(&mut self.env, &bytes);
        self.turn(to);
    }

    /// Hands over what has arrived of one direction of a stream.
    fn bytes(&mut self, stream: usize, end: usize) {
        let ends = self.env.network.streams[stream].ends;
        let (from, to) = (ends[end], ends[1 - end]);
        let network = &mut self.env.network;
        if network.is_cut(from, to) || network.is_cut(to, from) {
            return;
        }
        let now = self.env.now;
        if self.awake(to).is_none_or(|machine| machine.devices.stream != Some(stream)) {
            return;
        }
        let mut full = false;
        let mut received = false;
        let slot = &mut self.slots[to];
        let Some(machine) = &mut slot.machine else { return };
        while let Some((_, piece)) =
            self.env.network.streams[stream].pipes[end].pieces.front().filter(|(at, _)| *at <= now)
        {
            let taken = machine.receive(now, piece);
            if end == 0 {
                self.env.attacker.overhear(stream, &piece[..taken]);
            }
            full = taken < piece.len();
            received = true;
            self.env.network.taken(stream, end, taken);
            if full {
                break;
            }
        }
        let pipe = &self.env.network.streams[stream].pipes[end];
        let ended = pipe.closed && pipe.pieces.is_empty();
        if ended {
            machine.disconnected(now);
        }
        let again_at = &mut self.env.network.streams[stream].pipes[end].again_at;
        if full && *again_at <= now && machine.devices.stream.is_some() {
            *again_at = now + 1_000;
            self.env.queue.push(*again_at, Event::Bytes { stream, end });
        }
        if received || ended {
            self.check_ends(stream, to);
            self.turn(to);
            // The sender's window opens.
            if self.awake(from).is_some_and(|machine| !machine.node().transmit().is_empty()) {
                let delay = self.env.network.quality.delay;
                self.env.wake_soon(from, delay);
            }
        }
    }

    /// Looks at all streams again, after a cut or a freeze ended.
    pub(super) fn pump(&mut self) {
        for index in 0..self.slots.len() {
            if let Some(stream) = self.slots[index].machine.as_ref().and_then(|machine| machine.devices.stream) {
                for end in 0..2 {
                    self.env.queue.push(self.env.now, Event::Bytes { stream, end });
                }
            }
        }
    }

    /// A machine without a stream looks for a primary.
    fn dial(&mut self, index: usize) {
        self.slots[index].dialing = false;
        let Some(machine) = self.awake(index) else { return };
        if machine.devices.stream.is_some() || !machine.node().wants_connection() || machine.node().role().is_primary()
        {
            return;
        }
        let target = self.env.rng.below(self.slots.len() as u64) as usize;
        let network = &mut self.env.network;
        let reachable = target != index && !network.is_cut(index, target) && !network.is_cut(target, index);
        let listens = self.awake(target).is_some_and(|machine| {
            machine.devices.stream.is_none() && machine.node().role().is_primary() && machine.node().wants_connection()
        });
        if reachable && listens {
            let stream = {
                let dialled = self.dialled(target);
                self.env.network.open(index, target, dialled)
            };
            let (delay, now) = (self.env.network.quality.delay, self.env.now);
            self.env.queue.push(now + delay, Event::Connected { stream, machine: target });
            self.env.queue.push(now + 2 * delay, Event::Connected { stream, machine: index });
        }
        self.turn(index);
    }

    fn connected(&mut self, stream: usize, index: usize) {
        let (now, broken) = (self.env.now, self.env.network.streams[stream].broken);
        let meeting = self.env.meeting(stream, index);
        let free =
            self.awake(index).filter(|machine| machine.devices.stream.is_none() && machine.node().wants_connection());
        let Some(machine) = free.filter(|_| !broken) else {
            return self.break_stream(stream);
        };
        machine.connected(now, stream, &meeting);
        self.turn(index);
        self.pump();
    }

    fn reset(&mut self, stream: usize, index: usize) {
        let now = self.env.now;
        if self.slots[index].frozen {
            // It will hear of it afterwards.
            return self.env.queue.push(now + 20_000, Event::Reset { stream, machine: index });
        }
        let Some(machine) = self.awake(index).filter(|machine| machine.devices.stream == Some(stream)) else { return };
        machine.disconnected(now);
        self.turn(index);
    }

    fn arbiter_asked(&mut self, machine: usize, node: NodeId, term: Term) {
        if self.env.arbiter.mood == Mood::Down || self.env.arbiter.cut[machine] {
            return;
        }
        let winner = self.env.arbiter.claim(term, node);
        if self.env.arbiter.mood == Mood::Mute {
            return;
        }
        if let Some(after) = self.env.arbiter.flight(machine) {
            let answer = Event::ArbiterAnswers { machine, node, term, winner };
            self.env.queue.push(self.env.now + after, answer);
        }
    }

    fn arbiter_answers(&mut self, index: usize, node: NodeId, term: Term, winner: NodeId) {
        let slot = &mut self.slots[index];
        let Some(machine) = slot.machine.as_mut().filter(|machine| machine.devices.id == node && !slot.frozen) else {
            return;
        };
        machine.arbiter_answered(self.env.now, term, winner == node);
        self.turn(index);
    }

    fn arbiter_looked(&mut self, machine: usize, node: NodeId) {
        let arbiter = &mut self.env.arbiter;
        if arbiter.mood == Mood::Down || arbiter.mood == Mood::Mute || arbiter.cut[machine] {
            return;
        }
        let newest = arbiter.newest();
        if let Some(after) = arbiter.flight(machine) {
            self.env.queue.push(self.env.now + after, Event::ArbiterShows { machine, node, newest });
        }
    }

    fn arbiter_shows(&mut self, index: usize, node: NodeId, newest: Term) {
        let slot = &mut self.slots[index];
        let Some(machine) = slot.machine.as_mut().filter(|machine| machine.devices.id == node && !slot.frozen) else {
            return;
        };
        machine.arbiter_shows(self.env.now, newest);
        self.turn(index);
    }

    fn towards_guest(&mut self, frame: Vec<u8>) {
        let Some(port) = self.env.port else { return };
        let Some(machine) = &mut self.slots[port].machine else { return };
        if machine.serves() && machine.devices.ingress.len() < INGRESS {
            machine.devices.ingress.push_back(frame);
            self.turn(port);
        }
    }

    fn client_timer(&mut self, client: usize, timer: u64) {
        let step = self.env.clients.timer(self.env.now, client, timer);
        if let Some(frame) = step.frame {
            self.env.client_sends(&frame);
        }
        if let Some((after, timer)) = step.timer {
            self.env.queue.push(self.env.now + after, Event::ClientTimer { client, timer });
        }
    }

    fn restart(&mut self, index: usize) {
        if self.env.audit.is_powered_off() {
            return;
        }
        // A machine that halted closed its streams; one that is switched off and on loses what is left.
        self.crash_quietly(index);
        self.start(index, if self.env.plan.auto { Start::Auto } else { Start::Backup });
    }

    fn crash_quietly(&mut self, index: usize) {
        if let Some(stream) = self.slots[index].machine.take().and_then(|machine| machine.devices.stream) {
            self.break_stream(stream);
        }
        self.env.audit.look(index, None, &self.env.arbiter);
    }

    fn thaw(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if !core::mem::replace(&mut slot.frozen, false) {
            return;
        }
        let Some(machine) = &mut slot.machine else { return };
        machine.thaw(&self.env);
        // What was received is handed in before time is.
        for datagram in slot.inbox.drain(..) {
            machine.hear(&mut self.env, &datagram);
        }
        self.hand_in(index);
        self.turn(index);
        self.pump();
    }

    /// The bytes that arrived while a machine was frozen.
    fn hand_in(&mut self, index: usize) {
        let Some(stream) = self.slots[index].machine.as_ref().and_then(|machine| machine.devices.stream) else {
            return;
        };
        let end = self.env.network.streams[stream].end(index);
        self.bytes(stream, 1 - end);
    }
}
