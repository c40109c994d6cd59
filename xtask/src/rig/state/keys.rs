//! `rig key`: the pair changes its key while it runs.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::Rig;
use crate::rig::monitor::Status;
use crate::secret::Secret;

impl Rig {
    /// Fingerprints of the keys that are valid, the newest one first, as the machines write them.
    pub(super) fn keys(&self) -> Vec<String> {
        self.config.options.keys().map(Secret::fingerprint).collect()
    }

    /// Gives the key in `file` to all that have the old one. Machines that start later get both. Said again it reaches those that
    /// lack the key: it never has to be typed.
    pub(super) fn add_key(&mut self, file: &Path) -> Result<String> {
        let next = Secret::read(file)?;
        let options = &self.config.options;
        let Some(old) = &options.key else { bail!("this pair has no key") };
        ensure!(*old != next, "the pair has this key already");
        let again = options.next_key.as_ref() == Some(&next);
        ensure!(
            again || options.next_key.is_none(),
            "the pair has two keys, {}: `rig key forget` comes first",
            self.keys().join(" and ")
        );
        // The arbiter before the machines: they may need a term at any time.
        self.share_keys(&[&next, old])?;
        let (line, print) = (format!("key-add {}", next.hex()), next.fingerprint());
        self.config.options.next_key = Some(next);
        let mut unreached = Vec::new();
        for place in &mut self.places {
            let name = place.slot.name();
            let Some(machine) = &mut place.machine else { continue };
            let has = machine.status().is_some_and(|status| has_key(status, &print));
            if !(again && has) && machine.command(&line).is_err() {
                unreached.push(name);
            }
        }
        let text = format!("key {} is valid beside {}", self.keys()[0], self.keys()[1]);
        self.notice(text.clone());
        match &unreached[..] {
            [] => Ok(text),
            names => Ok(format!("{text}; not heard by {}: say `rig key add` again", names.join(" and "))),
        }
    }

    /// Has the old key forgotten: by the arbiter once no machine needs it, by the machines, and once none has it any more by all
    /// else. To be asked for until there is one key left.
    pub(super) fn forget_key(&mut self) -> Result<String> {
        let [newest, old] = &self.keys()[..] else {
            bail!("the pair has no second key: `rig key add FILE` comes first")
        };
        let (mut left, mut needed) = (Vec::new(), false);
        for place in &self.places {
            let Some(machine) = &place.machine else { continue };
            let status = machine.status();
            if !status.is_some_and(|status| status.key == *newest && status.old_key.is_empty()) {
                left.push(place.slot.name());
                needed |= !status.is_some_and(|status| has_key(status, newest) && status.old_key_is_needed.is_empty());
            }
        }
        if needed {
            return Ok(format!("{} still needs the key {old}", left.join(" or ")));
        }
        // The arbiter before the machines: who starts with the old key alone must get no term that they never hear of.
        if let (Some(arbiter), Some(next)) = (&self.arbiter, &self.config.options.next_key) {
            arbiter.set_keys(&[next.pair_key()])?;
        }
        if !left.is_empty() {
            let line = format!("key-forget {old}");
            let places = self.places.iter_mut().filter(|place| left.contains(&place.slot.name()));
            for machine in places.filter_map(|place| place.machine.as_mut()) {
                // One that does not listen is asked again.
                let _ = machine.command(&line);
            }
            return Ok(format!("asked {} to forget the key {old}", left.join(" and ")));
        }
        let text = format!("key {old} is forgotten");
        let next = self.config.options.next_key.take();
        if let Some(next) = &next {
            self.share_keys(&[next])?;
        }
        self.config.options.key = next;
        self.notice(text.clone());
        Ok(text)
    }

    /// The rig's own arbiter and recorder take these keys, the newest one first.
    fn share_keys(&self, keys: &[&Secret]) -> Result<()> {
        let keys: Vec<_> = keys.iter().map(|key| key.pair_key()).collect();
        if let Some(arbiter) = &self.arbiter {
            arbiter.set_keys(&keys)?;
        }
        if let Some(recording) = &self.recording {
            recording.set_keys(&keys);
        }
        Ok(())
    }
}

/// Whether a machine says that it has this key.
fn has_key(status: &Status, key: &str) -> bool {
    status.key == key || status.old_key == key
}
