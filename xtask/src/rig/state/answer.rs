//! What a rig tells and does when it is asked.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Rig;
use crate::rig::control::{Request, Response};
use crate::rig::history::Record;
use crate::rig::machine::Machine;
use crate::rig::network::{parse_change, parse_target};
use crate::rig::snapshot::{MachineSnapshot, Snapshot};

impl Rig {
    /// Everything that is known.
    pub fn snapshot(&self) -> Snapshot {
        let machines = self.places.iter().zip(&self.roles).map(|(place, &role)| {
            let machine = place.machine.as_ref();
            let status = machine.and_then(Machine::status);
            MachineSnapshot {
                name: place.slot.name().to_owned(),
                role,
                pid: machine.map(Machine::pid),
                serial: place.serial.clone(),
                claim: status.map(|status| status.role),
                silent_ms: machine.map(|machine| u64::try_from(machine.silence().as_millis()).unwrap_or(u64::MAX)),
                last_end: place.last_end.clone(),
                malformed: machine.map_or(0, |machine| machine.malformed),
                status: status.cloned(),
                rates: machine.and_then(Machine::rates),
            }
        });
        // Networks that have ended end the rig in its next step.
        let stats = self.networks.stats().ok();
        Snapshot {
            service: self.service.clone(),
            directory: self.directory.path().to_owned(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            protected: self.protected,
            keys: self.keys(),
            protected_s: self.protection_changed.elapsed().as_secs_f64(),
            first_protected_s: self.first_protected.as_ref().map(Duration::as_secs_f64),
            first_answer_s: self.first_answer.as_ref().map(Duration::as_secs_f64),
            machines: machines.collect(),
            takeovers: self.takeovers.clone(),
            arbiter: self.arbiter.as_ref().map(|arbiter| arbiter.snapshot(stats.as_ref())),
            links: stats.as_ref().and_then(|stats| self.networks.links(stats).ok()).unwrap_or_default(),
            network: stats,
            notices: self.notices.clone(),
        }
    }

    /// Does what is asked at the control socket.
    pub(super) fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => Response { ok: true, message: String::new(), status: Some(Box::new(self.snapshot())) },
            Request::Kill { target } => self.kill(&target).into(),
            Request::StartBackup => self.start_backup().into(),
            Request::Link { network, changes } => self.change_link(&network, &changes).into(),
            Request::Capture { on } => self.capture(on).into(),
            Request::Command { target, text } => self.command(&target, &text).into(),
            Request::AddKey { file } => self.add_key(&file).into(),
            Request::ForgetKey => self.forget_key().into(),
            Request::Stop => {
                self.stop = true;
                Ok("the rig ends".to_owned()).into()
            }
        }
    }

    fn change_link(&mut self, name: &str, changes: &[String]) -> Result<String> {
        self.networks.set_link(parse_target(name)?, &parse_change(changes)?)?;
        let links = self.networks.stats().and_then(|stats| self.networks.links(&stats))?;
        self.history.write(self.started, Record::links(&links));
        let text = format!("link {name}: {}", changes.join(" "));
        self.notice(text.clone());
        Ok(text)
    }

    fn capture(&mut self, on: bool) -> Result<String> {
        let directory = self.directory.path();
        self.networks.capture(on.then_some(directory))?;
        Ok(match on {
            true => format!("capturing into client.pcap and log.pcap in {}", directory.display()),
            false => "capturing has ended".to_owned(),
        })
    }

    fn command(&mut self, target: &str, text: &str) -> Result<String> {
        let index = self.find(target)?;
        let name = self.places[index].slot.name();
        let Some(machine) = &mut self.places[index].machine else { bail!("{name} is dead") };
        machine.command(text).with_context(|| name.to_owned())?;
        Ok(format!("sent to {name}"))
    }
}
