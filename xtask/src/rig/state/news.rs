//! What happens in a rig: what machines say, who has which role, and who gets to know.

use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value};

use super::{Place, Rig};
use crate::rig::Slot;
use crate::rig::directory::{ForwardEntry, MachineEntry, RigFile};
use crate::rig::history::{Record, Sample};
use crate::rig::machine::Machine;
use crate::rig::monitor::Line;
use crate::rig::roles::{self, Facts, Role};
use crate::rig::snapshot::{Notice, TakeoverEntry};

/// Why a machine halts when its guest ends properly.
const POWERED_OFF: &str = "the guest powered off";
/// Things that happened, kept for those who ask.
const MAX_NOTICES: usize = 200;
/// The guest's console may fill a disk no further than this, in bytes.
const MAX_CONSOLE: u64 = 16 << 20;

impl Rig {
    /// Notes what a machine said.
    pub(super) fn note_line(&mut self, slot: Slot, line: Line) {
        match line {
            Line::Status(status) => {
                self.history.write(self.started, Record::Status(Sample::new(slot.name(), &status)));
            }
            Line::Takeover(times) => {
                self.notice(format!("{} {times}", slot.name()));
                let machine = slot.name().to_owned();
                self.history.write(self.started, Record::Takeover { machine, times: times.clone() });
                let entry =
                    TakeoverEntry { at_s: self.started.elapsed().as_secs_f64(), name: slot.name().to_owned(), times };
                self.takeovers.push(entry);
            }
            Line::Event(name, fields) => {
                let reason = fields.get("reason").and_then(Value::as_str).unwrap_or_default();
                self.powered_off |= name == "halt" && reason == POWERED_OFF;
                self.notice(format!("{}: {name}{}", slot.name(), describe_fields(&fields)));
            }
            Line::Console(text) if self.roles[slot.index()] == Role::Primary => self.write_console(&text),
            Line::Console(_) => {}
        }
    }

    /// A console that cannot be written, or that floods the disk, is given up; the guest is not.
    fn write_console(&mut self, text: &str) {
        let Some(file) = &mut self.console else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if length > MAX_CONSOLE || file.write_all(text.as_bytes()).is_err() {
            self.console = None;
            self.notice("the guest's console is not written any more: too long, or the disk is full".to_owned());
        }
    }

    /// Derives roles and protection anew, and tells whoever reads `rig.json`.
    pub(super) fn update(&mut self) -> Result<()> {
        let facts = |place: &Place| place.machine.as_ref().map_or(Facts::default(), Machine::facts);
        let (roles, protected) = roles::derive(&self.places.iter().map(facts).collect::<Vec<_>>());
        let old = std::mem::replace(&mut self.roles, roles);
        for (index, old) in old.into_iter().enumerate() {
            let (place, role) = (&mut self.places[index], self.roles[index]);
            if role != old {
                place.dead_since = (role == Role::Dead).then(Instant::now);
                let halted = place.machine.as_ref().is_some_and(Machine::has_halted);
                let how = if halted { " (it has halted)" } else { "" };
                let text = format!("{} is {}{how}", place.slot.name(), role.word());
                let machine = place.slot.name().to_owned();
                self.history.write(self.started, Record::Role { machine, role });
                self.notice(text);
            }
        }
        if protected != self.protected {
            let unprotected = self.protection_changed.elapsed();
            (self.protected, self.protection_changed) = (protected, Instant::now());
            self.history.write(self.started, Record::Protected { on: protected });
            let after = self.started.elapsed();
            self.notice(match (protected, self.first_protected) {
                (true, None) => format!("protected, {:.1} s after the start", after.as_secs_f64()),
                (true, Some(_)) => format!("protected again, after {:.1} s", unprotected.as_secs_f64()),
                (false, _) => "not protected".to_owned(),
            });
            if protected && self.first_protected.is_none() {
                self.first_protected = Some(after);
            }
        }
        let machines = self.places.iter().zip(&self.roles).map(|(place, &role)| MachineEntry {
            name: place.slot.name().to_owned(),
            role,
            pid: place.machine.as_ref().map(Machine::pid),
            serial: place.serial.clone(),
            http: self.networks.http(place.slot).map(|address| address.to_string()),
        });
        let forwards: Vec<_> = self.networks.forwards().iter().map(ForwardEntry::from).collect();
        let file = RigFile {
            service: self.service.clone(),
            udp: forwards.iter().find(|entry| entry.is_udp_echo()).map(|entry| entry.address.clone()),
            forwards,
            machines: machines.collect(),
            protected: self.protected,
            control: Some(self.private.path().join("control")),
            rig_pid: Some(std::process::id()),
        };
        self.directory.write(file)
    }

    /// Something has happened.
    pub(super) fn notice(&mut self, text: String) {
        if self.notices.len() >= MAX_NOTICES {
            self.notices.remove(0);
            self.shown_notices = self.shown_notices.saturating_sub(1);
        }
        self.history.write(self.started, Record::Notice { text: text.clone() });
        self.notices.push(Notice { at_s: self.started.elapsed().as_secs_f64(), text });
    }
}

fn describe_fields(fields: &Map<String, Value>) -> String {
    fields.iter().map(|(key, value)| format!(" {key}={value}")).collect()
}
