//! The planned change of roles: the primary stops its guest, the backup goes live, the primary becomes its backup.

use super::{Action, AppendError, LossReason, Node};
use crate::entry::{Control, EntryRef};
use crate::mutation::Mutation;
use crate::send_log::SendLog;
use crate::types::{Position, Role, Seq, Term, Time};

impl Node {
    /// Hands the guest, which stands at `position`, over to the backup. Must not be run on until the role says so
    /// again: as backup after [`Action::HandedOver`], or as primary when the backup was lost in the middle of it.
    ///
    /// # Errors
    /// [`AppendError::Full`]: try again; [`AppendError::NotLogging`]: there is nobody to hand over to.
    pub fn switch_over(&mut self, now: Time, position: Position) -> Result<Seq, AppendError> {
        self.append(now, position, EntryRef::Control(Control::SwitchOver))
    }

    /// The entry that hands the guest over was appended.
    pub(super) fn begin_hand_over(&mut self, now: Time, seq: Seq) {
        self.role = Role::HandingOver;
        self.handover = Some(seq);
        self.next_heartbeat = now;
    }

    /// Whether the backup holds all of the log that it is to go live with.
    pub(super) fn handover_acked(&self) -> bool {
        let early = u64::from(self.config.broken(Mutation::HandOverAckedEarly));
        self.handover.is_some_and(|seq| seq.0 <= self.send.received().0 + early)
    }

    /// The twin runs the guest in `term`: what is held here is out of date.
    pub(super) fn handed_over(&mut self, now: Time, term: Term) {
        self.close_link(false);
        self.role = Role::Joining;
        self.term = term;
        self.send = SendLog::default();
        self.state_sent = false;
        self.handover = None;
        self.position = Position(0);
        self.next_heartbeat = now;
        self.stats.switch_overs += 1;
        self.actions.push_back(Action::HandedOver { term });
    }

    /// The backup has all of a log that ends with a hand-over.
    pub(super) fn take_over_in_order(&mut self, now: Time) {
        self.primary_left = true;
        self.consider_takeover(now);
    }

    /// The stream broke, or we broke it because of what came along it.
    pub(super) fn link_lost(&mut self, now: Time, reason: LossReason) {
        match self.role {
            Role::Loading => self.abandon(now, reason),
            role if crate::decide::needs_stream(role, self.handover_acked()) => self.lose_backup(now, reason, false),
            _ => {}
        }
        // The twin learns from the heartbeat that we are no longer connected.
        self.next_heartbeat = now;
    }
}
