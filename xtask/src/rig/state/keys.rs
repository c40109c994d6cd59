//! `rig key`: the pair changes its key while it runs.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::Rig;
use crate::secret::Secret;

impl Rig {
    /// Fingerprints of the keys that are valid, the newest one first, as the machines write them.
    pub(super) fn keys(&self) -> Vec<String> {
        self.config.options.keys().map(Secret::fingerprint).collect()
    }

    /// Gives the key in `file` to all that have the old one. Machines that start later get both.
    pub(super) fn add_key(&mut self, file: &Path) -> Result<String> {
        let next = Secret::read(file)?;
        let options = &self.config.options;
        let Some(old) = &options.key else { bail!("this pair has no key") };
        ensure!(*old != next, "the pair has this key already");
        ensure!(
            options.next_key.is_none(),
            "the pair has two keys, {}: `rig key forget` comes first",
            self.keys().join(" and ")
        );
        let lines = format!("key-add {}", next.hex());
        self.config.options.next_key = Some(next);
        // The arbiter before the machines: they may need a term at any time.
        self.share_keys()?;
        let mut unreached = Vec::new();
        for place in &mut self.places {
            let name = place.slot.name();
            if place.machine.as_mut().is_some_and(|machine| machine.command(&lines).is_err()) {
                unreached.push(name);
            }
        }
        let text = format!("key {} is valid beside {}", self.keys()[0], self.keys()[1]);
        self.notice(text.clone());
        match &unreached[..] {
            [] => Ok(text),
            names => Ok(format!("{text}; not heard by {}: give it to them with `rig command`", names.join(" and "))),
        }
    }

    /// Has the old key forgotten: by the machines, and once none has it any more by all else. To be asked for until there is
    /// one key left.
    pub(super) fn forget_key(&mut self) -> Result<String> {
        let [newest, old] = &self.keys()[..] else {
            bail!("the pair has no second key: `rig key add FILE` comes first")
        };
        let mut left = Vec::new();
        for place in &mut self.places {
            let Some(machine) = &mut place.machine else { continue };
            let done = machine.status().is_some_and(|status| status.key == *newest && status.old_key.is_empty());
            if !done {
                left.push(place.slot.name());
                if machine.status().is_some_and(|status| status.old_key_is_needed.is_empty()) {
                    // One that does not listen is asked again.
                    let _ = machine.command(&format!("key-forget {old}"));
                }
            }
        }
        if !left.is_empty() {
            return Ok(format!("asked {} to forget the key {old}", left.join(" and ")));
        }
        let text = format!("key {old} is forgotten");
        self.config.options.key = self.config.options.next_key.take();
        self.share_keys()?;
        self.notice(text.clone());
        Ok(text)
    }

    /// The rig's own arbiter and recorder take what the keys are.
    fn share_keys(&mut self) -> Result<()> {
        let keys: Vec<_> = self.config.options.keys().map(Secret::pair_key).collect();
        if let Some(arbiter) = &self.arbiter {
            arbiter.set_keys(&keys)?;
        }
        if let Some(recording) = &self.recording {
            recording.set_keys(&keys);
        }
        Ok(())
    }
}
