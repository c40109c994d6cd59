//! Machines that come back by themselves.

use std::time::Instant;

use super::Rig;
use crate::rig::roles::Role;

impl Rig {
    /// Starts a machine again, as a backup, that has been dead for as long as it is to be, if another one lives; machines
    /// that find out by themselves what they are need no other one. A guest that powered off stays off.
    pub(super) fn revive(&mut self) {
        let Some(after) = self.config.revive else { return };
        let due = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= after);
        let Some(index) = self.places.iter().position(|place| due(place.dead_since)) else { return };
        let all_dead = self.roles.iter().all(|role| *role == Role::Dead);
        let in_vain = if self.config.auto { self.powered_off } else { all_dead };
        if in_vain {
            return;
        }
        if let Err(error) = self.start_backup() {
            self.notice(format!("{} does not start again: {error:#}", self.places[index].slot.name()));
            // Not at once again.
            self.places[index].dead_since = Some(Instant::now());
        }
    }
}
