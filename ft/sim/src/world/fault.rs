//! What goes wrong.

use super::World;
use super::event::{Event, Lasting};
use crate::arbiter::Mood;
use crate::machine::{Blow, Machine};
use crate::plan::Faults;
use crate::trace::Who;
use pollux_ft::Role;
use std::fmt;

/// The kinds of faults, and of what operators do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The primary loses power, anywhere in what it is doing.
    CrashPrimary,
    /// The backup loses power.
    CrashBackup,
    /// The primary stands still for a while.
    FreezePrimary,
    /// The backup stands still for a while.
    FreezeBackup,
    /// Nothing gets through between two machines.
    Partition,
    /// Nothing gets through in one direction.
    OneWay,
    /// A stream breaks at any byte.
    Reset,
    /// Many datagrams are lost.
    Loss,
    /// The network is slow.
    Delay,
    /// The arbiter is down, mute or slow.
    Arbiter,
    /// A machine cannot reach the arbiter.
    ArbiterCut,
    /// An operator stops the primary in order.
    StopPrimary,
    /// An operator stops the backup in order.
    StopBackup,
    /// An operator lets the machines change roles.
    SwitchOver,
    /// A bit of the backup's guest is turned.
    Flip,
    /// The backup's guest stands still, while its node goes on.
    Hang,
    /// The guest is reset.
    GuestReset,
    /// The client card of the primary takes no frames.
    Card,
    /// A machine's disk is slow for a while.
    DiskSlow,
    /// A machine's disk fails the next request.
    DiskFails,
    /// All machines lose power at once.
    Site,
    /// A machine loses power, whatever it is.
    CrashAny,
}

impl Kind {
    /// All of them; the last two are for machines that start by themselves.
    pub const ALL: [Self; 22] = [
        Self::CrashPrimary,
        Self::CrashBackup,
        Self::FreezePrimary,
        Self::FreezeBackup,
        Self::Partition,
        Self::OneWay,
        Self::Reset,
        Self::Loss,
        Self::Delay,
        Self::Arbiter,
        Self::ArbiterCut,
        Self::StopPrimary,
        Self::StopBackup,
        Self::SwitchOver,
        Self::Flip,
        Self::Hang,
        Self::GuestReset,
        Self::Card,
        Self::DiskSlow,
        Self::DiskFails,
        Self::Site,
        Self::CrashAny,
    ];

    /// So many ask for a person where machines are told what they are.
    const FOR_AUTO: usize = 2;

    /// Those that a pair with a person survives.
    fn usual() -> &'static [Self] {
        &Self::ALL[..Self::ALL.len() - Self::FOR_AUTO]
    }

    /// Without an arbiter a pair survives only what cannot be taken for a death of the other.
    const SAFE_ALONE: [Self; 9] = [
        Self::CrashPrimary,
        Self::CrashBackup,
        Self::Reset,
        Self::StopPrimary,
        Self::StopBackup,
        Self::SwitchOver,
        Self::GuestReset,
        Self::Card,
        Self::DiskFails,
    ];

    /// The same with machines that start by themselves.
    const SAFE_AUTO: [Self; 9] = [
        Self::CrashPrimary,
        Self::CrashBackup,
        Self::Reset,
        Self::StopPrimary,
        Self::StopBackup,
        Self::SwitchOver,
        Self::GuestReset,
        Self::Card,
        Self::Site,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CrashPrimary => "primary crashed",
            Self::CrashBackup => "backup crashed",
            Self::FreezePrimary => "primary froze",
            Self::FreezeBackup => "backup froze",
            Self::Partition => "link cut",
            Self::OneWay => "link cut one way",
            Self::Reset => "stream reset",
            Self::Loss => "datagrams lost",
            Self::Delay => "network slow",
            Self::Arbiter => "arbiter down, mute or slow",
            Self::ArbiterCut => "arbiter out of reach",
            Self::StopPrimary => "primary stopped",
            Self::StopBackup => "backup stopped",
            Self::SwitchOver => "switch-over",
            Self::Flip => "bit flipped",
            Self::Hang => "backup's guest hung",
            Self::GuestReset => "guest reset",
            Self::Card => "client card stuck",
            Self::DiskSlow => "disk slow",
            Self::DiskFails => "disk failed",
            Self::Site => "site cut",
            Self::CrashAny => "any machine crashed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl World {
    /// The next fault, if one is due now.
    pub(super) fn fault(&mut self) {
        if !self.phase.has_faults() {
            return;
        }
        let calm = self.is_calm();
        if self.env.plan.faults == Faults::OneByOne && !calm {
            // Not before the world has recovered from the last one.
            self.env.queue.push(self.env.now + 50_000, Event::Fault);
            return;
        }
        let kinds: &[Kind] = match (self.env.plan.arbiter, self.env.plan.auto) {
            (true, true) => &Kind::ALL,
            (true, false) => Kind::usual(),
            (false, true) => &Kind::SAFE_AUTO,
            (false, false) => &Kind::SAFE_ALONE,
        };
        let kind = self.faults.pick(kinds);
        if (self.env.plan.arbiter || calm) && self.make(kind) {
            self.note(Who::World, 200 + kind as u64, || format!("FAULT: {kind}"));
            *self.env.figures.faults.entry(kind).or_default() += 1;
            self.phase.fault_made(self.env.now);
        }
        let pause = self.faults.between(1_000, 2 * self.env.plan.pause);
        self.env.queue.push(self.env.now + pause, Event::Fault);
    }

    /// Nothing is wrong at the moment, and what was is over for all machines.
    fn is_calm(&self) -> bool {
        let (now, config) = (self.env.now, &self.env.plan.config);
        let is_well = |machine: &Machine| machine.is_well() && machine.is_close_to_its_twin(now, config);
        let well = self
            .slots
            .iter()
            .all(|slot| slot.machine.as_ref().is_some_and(is_well) && !slot.frozen && !slot.restarting);
        let arbiter = self.env.arbiter.mood == Mood::Well && self.env.arbiter.cut == [false; crate::net::MACHINES];
        let streams = self.slots.iter().filter_map(|slot| slot.machine.as_ref()?.devices.stream);
        let broken = streams.into_iter().any(|stream| self.env.network.streams[stream].broken);
        well && !broken
            && arbiter
            && self.env.stuck == [false; crate::net::MACHINES]
            && self.env.slow == [false; crate::net::MACHINES]
            && self.troubles == [0; 2]
            && self.network_is_well()
            && self.is_protected()
    }

    fn network_is_well(&self) -> bool {
        let all = 0..self.slots.len();
        all.clone().all(|from| all.clone().all(|to| !self.env.network.is_cut(from, to)))
    }

    /// Makes a fault; false when it cannot be made now.
    fn make(&mut self, kind: Kind) -> bool {
        let backup = self.find(|machine| machine.node().role() == Role::Backup);
        let now = self.env.now;
        let primary = match (self.primary(), kind) {
            (Some(primary), _) => primary,
            // Who is to become it may meet these, too.
            (None, Kind::Partition | Kind::OneWay | Kind::Arbiter | Kind::ArbiterCut | Kind::Site | Kind::CrashAny) => {
                0
            }
            (None, _) => return false,
        };
        let suspect = self.env.plan.config.suspect_after.0;
        let span = self.faults.between(1_000, 3 * suspect);
        match kind {
            Kind::CrashPrimary => self.crash_primary(primary, backup),
            Kind::CrashBackup => backup.is_some_and(|backup| self.blow(backup, Blow::Crash)),
            Kind::FreezePrimary => self.blow(primary, Blow::Freeze(span)),
            Kind::FreezeBackup => backup.is_some_and(|backup| self.blow(backup, Blow::Freeze(span))),
            Kind::Partition | Kind::OneWay => self.cut(primary, kind == Kind::Partition, span),
            Kind::Reset => {
                let stream = self.slots[primary].machine.as_ref().and_then(|machine| machine.devices.stream);
                stream.is_some_and(|stream| {
                    self.break_stream(stream);
                    true
                })
            }
            Kind::Loss | Kind::Delay => {
                if kind == Kind::Loss {
                    self.env.network.quality.loss = self.faults.between(200, 900);
                } else {
                    self.env.network.quality.delay = self.faults.between(5_000, suspect / 3);
                }
                self.troubles[0] += 1;
                self.env.queue.push(now + span, Event::Over(Lasting::Network));
                true
            }
            Kind::Arbiter | Kind::ArbiterCut => self.trouble_arbiter(kind, span),
            Kind::StopPrimary => backup.is_some() && self.is_protected() && self.stop(primary),
            Kind::StopBackup => backup.is_some_and(|backup| self.stop(backup)),
            Kind::SwitchOver => self.slots[primary].machine.as_mut().is_some_and(|machine| machine.request_switch()),
            Kind::Flip => self.env.plan.faults == Faults::OneByOne && backup.is_some_and(|backup| self.flip(backup)),
            // Who is to tell it when the guest ends meanwhile?
            Kind::Hang if self.ending => false,
            Kind::Hang => self.env.plan.faults == Faults::OneByOne && backup.is_some_and(|backup| self.hang(backup)),
            Kind::Card => {
                self.env.stuck[primary] = true;
                self.env.queue.push(now + span, Event::Over(Lasting::Card { machine: primary }));
                true
            }
            Kind::Site => self.cut_site(),
            Kind::CrashAny => {
                let any = self.faults.below(self.slots.len() as u64) as usize;
                let spares = self.env.plan.faults == Faults::OneByOne || !self.env.plan.auto;
                let last = self.is_last_with_guest(any) && !self.faults.chance(100);
                !spares && !last && self.blow(any, Blow::Crash)
            }
            Kind::DiskSlow | Kind::DiskFails if !self.env.plan.disk => false,
            Kind::DiskSlow => {
                let machine = self.faults.below(self.slots.len() as u64) as usize;
                self.env.slow[machine] = true;
                self.env.queue.push(now + span, Event::Over(Lasting::Disk { machine }));
                true
            }
            Kind::DiskFails => {
                let machine = if self.faults.chance(500) { Some(primary) } else { backup };
                machine.is_some_and(|machine| self.fail_disk(machine))
            }
            Kind::GuestReset => self.slots[primary].machine.as_mut().is_some_and(|machine| machine.request_reset()),
        }
    }

    /// No other machine than this one has a guest that could go on.
    fn is_last_with_guest(&self, index: usize) -> bool {
        let holds = |slot: &super::Slot| slot.machine.as_ref().is_some_and(Machine::holds_guest);
        let mut others = self.slots.iter().enumerate().filter(|(other, _)| *other != index);
        holds(&self.slots[index]) && !others.any(|(_, slot)| holds(slot))
    }

    /// All machines lose power: in a storm not all in the same moment.
    fn cut_site(&mut self) -> bool {
        let at_once = self.env.plan.faults == Faults::OneByOne;
        if !at_once && !self.faults.chance(200) {
            return false;
        }
        self.site_cut = true;
        for index in 0..self.slots.len() {
            if at_once {
                self.crash(index);
            } else {
                self.blow(index, Blow::Crash);
            }
        }
        true
    }

    /// A storm may also take the last machine that has the guest, but rarely does.
    fn crash_primary(&mut self, primary: usize, backup: Option<usize>) -> bool {
        let covered = backup.is_some_and(|backup| !self.slots[backup].frozen) && self.is_protected();
        let reckless = self.env.plan.faults == Faults::Storm && self.faults.chance(50);
        (covered || reckless) && self.blow(primary, Blow::Crash)
    }

    /// The machine ends after a few more steps, or at once.
    fn blow(&mut self, index: usize, blow: Blow) -> bool {
        let slot = &mut self.slots[index];
        let Some(machine) = &mut slot.machine else { return false };
        if slot.frozen {
            return false;
        }
        match (self.faults.below(30), blow) {
            (0..5, Blow::Crash) => self.crash(index),
            (0..5, Blow::Freeze(span)) => self.freeze(index, span),
            (steps, blow) => machine.devices.light_fuse(steps as u32, blow),
        }
        true
    }

    fn cut(&mut self, primary: usize, both: bool, span: u64) -> bool {
        let others = self.slots.len() as u64 - 1;
        let other = (primary + 1 + self.faults.below(others) as usize) % self.slots.len();
        let (from, to) = if self.faults.chance(500) { (primary, other) } else { (other, primary) };
        self.env.network.set_cut(from, to, true);
        self.env.queue.push(self.env.now + span, Event::Over(Lasting::Cut { from, to }));
        if both {
            self.env.network.set_cut(to, from, true);
            // The directions need not heal at once.
            let more = self.faults.below(2) * self.faults.below(200_000);
            self.env.queue.push(self.env.now + span + more, Event::Over(Lasting::Cut { from: to, to: from }));
        }
        true
    }

    fn trouble_arbiter(&mut self, kind: Kind, span: u64) -> bool {
        if kind == Kind::Arbiter {
            self.env.arbiter.mood = self.faults.pick(&[Mood::Down, Mood::Mute, Mood::Slow]);
        } else {
            let machine = self.faults.below(self.slots.len() as u64) as usize;
            self.env.arbiter.cut[machine] = true;
        }
        self.troubles[1] += 1;
        self.env.queue.push(self.env.now + span, Event::Over(Lasting::Arbiter));
        true
    }

    /// A fault that lasted is over.
    pub(super) fn over(&mut self, lasting: Lasting) {
        match lasting {
            Lasting::Cut { from, to } => self.env.network.set_cut(from, to, false),
            Lasting::Card { machine } => {
                self.env.stuck[machine] = false;
                self.turn(machine);
            }
            Lasting::Disk { machine } => self.env.slow[machine] = false,
            Lasting::Network => {
                self.troubles[0] -= 1;
                if self.troubles[0] == 0 {
                    self.env.network.quality = self.env.plan.quality;
                }
            }
            Lasting::Arbiter => {
                self.troubles[1] -= 1;
                if self.troubles[1] == 0 {
                    self.env.arbiter.mood = Mood::Well;
                    self.env.arbiter.cut = Default::default();
                }
            }
        }
        self.pump();
    }

    /// All faults are over.
    pub(super) fn heal(&mut self) {
        self.env.network.heal();
        self.env.stuck = Default::default();
        self.env.slow = Default::default();
        self.env.network.quality = self.env.plan.quality;
        self.env.arbiter.mood = Mood::Well;
        self.env.arbiter.cut = Default::default();
        // A guest that is about to end leaves nobody who could replace a backup that hangs.
        if self.env.plan.power_off || self.ending {
            let machines = self.slots.iter_mut().filter_map(|slot| slot.machine.as_mut());
            machines.for_each(|machine| machine.devices.hangs = false);
        }
        let machines = self.slots.iter_mut().filter_map(|slot| slot.machine.as_mut());
        machines.for_each(|machine| machine.devices.disk.fails = false);
        self.pump();
    }

    pub(crate) fn stop(&mut self, index: usize) -> bool {
        let slot = &mut self.slots[index];
        let Some(machine) = slot.machine.as_mut().filter(|_| !slot.frozen) else { return false };
        machine.stop(&mut self.env);
        self.turn(index);
        true
    }

    fn fail_disk(&mut self, machine: usize) -> bool {
        let slot = &mut self.slots[machine];
        let Some(machine) = slot.machine.as_mut().filter(|_| !slot.frozen) else { return false };
        machine.devices.disk.fails = true;
        true
    }

    fn hang(&mut self, backup: usize) -> bool {
        let slot = &mut self.slots[backup];
        let Some(machine) = slot.machine.as_mut().filter(|_| !slot.frozen) else { return false };
        machine.devices.hangs = true;
        true
    }

    fn flip(&mut self, backup: usize) -> bool {
        let bit = self.faults.below(1 << 40);
        let slot = &mut self.slots[backup];
        let Some(machine) = slot.machine.as_mut().filter(|_| !slot.frozen) else { return false };
        machine.devices.flipped = true;
        machine.driver.guest_mut().flip(bit);
        true
    }
}
