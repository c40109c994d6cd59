//! The pair's keys while it is at work, for people: what they ask for on the monitor, and what they are told.

use alloc::format;
use alloc::string::{String, ToString};

use pollux_driver::Driver;
use pollux_ft::PairKey;
use pollux_ft::key::KEY_BYTES;

use super::machine::Machine;
use super::monitor;
use super::report::Report;
use crate::guest::Guest;

impl Machine {
    /// Takes a key beside the old one.
    pub(super) fn add_key(&mut self, driver: &mut Driver<Guest>, key: &[u8; KEY_BYTES]) {
        let key = PairKey::new(key);
        let fingerprint = key.fingerprint();
        match driver.node_mut().add_key(key) {
            Ok(()) => {
                log::info!("the key {fingerprint:016x} is valid beside the old one from now on");
                self.keys_have_changed(driver, &format!("{fingerprint:016x} came"));
            }
            Err(why) => monitor::event("refused", "reason", &why),
        }
    }

    /// Forgets a key, if neither the twin nor the arbiter needs it. With `force` only the arbiter counts, whose answers nobody
    /// else can make: a thief of the key can be a machine that needs it for ever.
    pub(super) fn forget_key(&mut self, driver: &mut Driver<Guest>, fingerprint: u64, force: bool) {
        let needed = if force { None } else { self.key_is_heard(driver, fingerprint) };
        if let Some(why) = needed.or_else(|| self.arbiter_needs_key(driver, fingerprint)) {
            return monitor::event("refused", "reason", &why);
        }
        match driver.node_mut().forget_key_unseen(self.now, fingerprint) {
            Ok(()) => {
                log::info!("the key {fingerprint:016x} is forgotten");
                self.keys_have_changed(driver, &format!("{fingerprint:016x} is forgotten"));
            }
            Err(why) => monitor::event("refused", "reason", &why),
        }
    }

    /// Why this key cannot go now.
    fn key_is_needed(&self, driver: &Driver<Guest>, fingerprint: u64) -> Option<String> {
        self.key_is_heard(driver, fingerprint).or_else(|| self.arbiter_needs_key(driver, fingerprint))
    }

    /// The same, as far as the other machine is concerned.
    fn key_is_heard(&self, driver: &Driver<Guest>, fingerprint: u64) -> Option<String> {
        driver.node().may_forget_key(self.now, fingerprint).err().map(|why| why.to_string())
    }

    /// The same, as far as the arbiter is concerned.
    fn arbiter_needs_key(&self, driver: &Driver<Guest>, fingerprint: u64) -> Option<String> {
        let node = driver.node();
        let protection = &node.config().protection;
        let kept = protection.other_than(fingerprint).ok()?;
        let (place, arbiter) = (node.keys().iter().position(|key| *key == kept)?, self.arbiter.as_ref()?);
        // An etcd is asked in plain words, whatever the keys are. Who does not look now, as in a switch-over, waits until it does.
        if !arbiter.is_sealed() || arbiter.understands(self.now, &self.config.arbiter.manners(protection)[place]) {
            return None;
        }
        Some(format!("the arbiter has not answered yet under the key {kept:016x}: give it that key's file first"))
    }

    /// All that speaks by the pair's keys hears of them.
    fn keys_have_changed(&mut self, driver: &mut Driver<Guest>, what: &str) {
        let protection = &driver.node().config().protection;
        if let (Some(arbiter), Some(link)) = (&mut self.arbiter, &mut self.link) {
            arbiter.set_manners(self.now, &self.config.arbiter.manners(protection), link);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.set_keys(protection.records());
        }
        monitor::event("key", "what", &what);
        self.report(driver);
    }

    /// Which keys there are, and why the old one cannot go yet.
    pub(super) fn report_keys(&self, report: &mut dyn Report, driver: &Driver<Guest>) {
        let [newest, older] = driver.node().keys();
        if newest == 0 {
            return;
        }
        report.text("key", &format!("{newest:016x}"));
        if older != 0 {
            report.text("old_key", &format!("{older:016x}"));
            report.text("old_key_is_needed", &self.key_is_needed(driver, older).unwrap_or_default());
        }
    }
}
