//! A state on its way, out of a primary or into a backup.

use super::{Machine, RETRY};
use crate::guest::{Guest, PAGE, PAGES};
use crate::world::Env;
use pollux_ft::{AppendError, Position};
use pollux_nic::GateMode;

/// Rounds in which memory is sent while the guest runs, at most.
const ROUNDS: u32 = 3;
/// Pages that are few enough for the final stop.
const FEW: usize = 2;

/// A state on its way out.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    round: u32,
    /// Pages to be sent in this round, next one last; and whether a page was ever sent.
    pages: Vec<usize>,
    sent_pages: [bool; PAGES],
    /// The guest stands still.
    last: bool,
    machine: Option<Vec<u8>>,
    sent: usize,
}

/// What a transfer leaves of a primary's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feeding {
    /// The guest may run.
    Nothing,
    /// The guest stands still until more of the state can be sent.
    Guest,
}

/// A state on its way in.
#[derive(Debug, Default)]
pub(super) struct Loading {
    machine: Vec<u8>,
    /// When the state will have been checked, where it must stand, and its digest.
    check: Option<(u64, u64, u64)>,
}

impl Machine {
    pub(super) fn begin_transfer(&mut self) {
        self.guest.take_dirty();
        self.transfer = Some(Transfer { pages: (0..PAGES).rev().collect(), ..Transfer::default() });
    }

    /// Sends as much of the state as there is room for.
    pub(super) fn transfer_step(&mut self, env: &mut Env) -> Feeding {
        let Some(mut transfer) = self.transfer.take() else { return Feeding::Nothing };
        match self.send_state(env, &mut transfer) {
            Err(AppendError::Full) => {
                let last = transfer.last;
                self.transfer = Some(transfer);
                if last { Feeding::Guest } else { Feeding::Nothing }
            }
            // Done, or ended by the protocol, which says so in an action of its own.
            Ok(()) | Err(_) => Feeding::Nothing,
        }
    }

    fn send_state(&mut self, env: &mut Env, transfer: &mut Transfer) -> Result<(), AppendError> {
        loop {
            self.send_pages(transfer)?;
            if transfer.last {
                break;
            }
            let dirty = self.guest.take_dirty();
            transfer.pages = (0..PAGES).filter(|page| dirty[*page]).collect();
            transfer.round += 1;
            if transfer.round >= ROUNDS || transfer.pages.len() <= FEW {
                // From here on output depends on a backup that does not exist yet.
                transfer.last = true;
                self.set_gate(env, GateMode::Held);
            } else if env.rng.chance(500) {
                // The guest runs on before the next round.
                return Err(AppendError::Full);
            }
        }
        // The backup will not make these frames again.
        self.release(env);
        if self.gate.ready() > 0 {
            return Err(AppendError::Full);
        }
        let machine = transfer.machine.get_or_insert_with(|| self.guest.save());
        while transfer.sent < machine.len() {
            let taken = self.node.push_machine(&machine[transfer.sent..])?;
            if taken == 0 {
                return Err(AppendError::Full);
            }
            transfer.sent += taken;
        }
        let position = Position(self.guest.position());
        self.node.finish_state(position, self.guest.digest())?;
        env.audit.state_sent(self.written(), self.node.newest(), position, &self.history);
        self.note(env, position.0, || "the state is sent".to_owned());
        self.start_clock(env);
        Ok(())
    }

    fn send_pages(&mut self, transfer: &mut Transfer) -> Result<(), AppendError> {
        while let Some(page) = transfer.pages.last().copied() {
            let (gpa, data) = ((page * PAGE) as u64, self.guest.page(page));
            if data.iter().any(|byte| *byte != 0) {
                self.node.push_memory(gpa, &data)?;
                transfer.sent_pages[page] = true;
            } else if transfer.sent_pages[page] {
                self.node.push_zero(gpa, PAGE as u64)?;
            }
            transfer.pages.pop();
        }
        Ok(())
    }

    pub(super) fn begin_load(&mut self, env: &mut Env) {
        self.set_gate(env, GateMode::Closed);
        self.guest = Guest::empty();
        self.history.clear();
        self.loading = Loading::default();
        self.flipped = false;
    }

    pub(super) fn load_machine(&mut self, data: &[u8]) {
        self.loading.machine.extend_from_slice(data);
    }

    /// The state is complete; to check it takes a while.
    pub(super) fn state_loaded(&mut self, env: &mut Env, position: Position, digest: u64) {
        self.loading.check = Some((env.now + env.rng.below(60_000), position.0, digest));
    }

    /// Joins when the state was checked; returns when that will be.
    pub(super) fn check_loaded(&mut self, env: &mut Env) -> Option<u64> {
        let (at, position, digest) = self.loading.check?;
        if env.now < at || !self.goes_on() {
            return Some(at);
        }
        let loading = core::mem::take(&mut self.loading);
        let loaded = self.guest.load(&loading.machine);
        if !loaded || self.guest.position() != position || self.guest.digest() != digest {
            self.diverge(env, "the state received is not the one that was sent");
            return None;
        }
        self.note(env, position, || "the state is complete".to_owned());
        self.history = env.audit.history(self.followed());
        self.set_gate(env, GateMode::Retained);
        self.node.joined(self.local(env));
        Some(env.now + RETRY)
    }
}
