//! The caller's part of a state transfer: all at once while the guest stands, or in rounds while it runs.

use super::guest::PAGES;
use super::machine::Machine;
use pollux_ft::{AppendError, Position};
use std::collections::BTreeSet;

/// Rounds at most before the guest is stopped.
const ROUNDS: u64 = 5;
/// Dirty pages that are left for the time when it stands.
const FEW: usize = 3;

pub(crate) struct Transfer {
    pages: Vec<usize>,
    /// Pages that were sent with a content.
    sent: BTreeSet<usize>,
    rounds_left: u64,
}

impl Transfer {
    /// `running`: the guest runs while the state is sent.
    pub(crate) fn new(running: bool) -> Self {
        let rounds_left = if running { ROUNDS } else { 0 };
        Self { pages: (0..PAGES).rev().collect(), sent: BTreeSet::new(), rounds_left }
    }

    /// The guest must stand still: what is sent now is the end.
    pub(crate) fn is_final(&self) -> bool {
        self.rounds_left == 0
    }
}

impl Machine {
    /// Whether the guest runs while its state is sent.
    pub(crate) fn is_copied_running(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| !transfer.is_final())
    }

    /// Sends as much of the state as there is room for.
    pub(crate) fn feed(&mut self) {
        let Some(mut transfer) = self.transfer.take() else { return };
        if self.send_pages(&mut transfer).is_err() {
            self.transfer = Some(transfer);
            return;
        }
        let dirty = core::mem::take(&mut self.guest.dirty);
        if transfer.is_final() {
            assert!(dirty.is_empty(), "the guest ran while it should stand");
            if !self.send_machine() {
                self.transfer = Some(transfer);
            }
            return;
        }
        transfer.rounds_left = if dirty.len() <= FEW { 0 } else { transfer.rounds_left - 1 };
        transfer.pages = dirty.into_iter().collect();
        self.transfer = Some(transfer);
    }

    fn send_pages(&mut self, transfer: &mut Transfer) -> Result<(), AppendError> {
        while let Some(&page) = transfer.pages.last() {
            let data = self.guest.page(page);
            let gpa = page as u64 * 4096;
            if data.iter().any(|byte| *byte != 0) {
                self.node.push_memory(gpa, &data)?;
                transfer.sent.insert(page);
            } else if transfer.sent.contains(&page) {
                self.node.push_zero(gpa, 4096)?;
                transfer.sent.remove(&page);
            }
            transfer.pages.pop();
        }
        Ok(())
    }

    fn send_machine(&mut self) -> bool {
        let words = self.guest.sent.iter().flat_map(|(position, content)| [*position, *content]);
        let machine: Vec<u8> = [self.guest.chain].into_iter().chain(words).flat_map(u64::to_le_bytes).collect();
        // The list of frames only serves the checks; it is small enough to be taken at once or soon.
        if self.node.state_room() < machine.len() {
            return false;
        }
        let mut rest = &machine[..];
        while !rest.is_empty() {
            rest = &rest[self.node.push_machine(rest).unwrap()..];
        }
        self.node.finish_state(Position(self.guest.position), self.guest.digest()).unwrap();
        true
    }
}
