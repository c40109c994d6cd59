//! The planned change of roles: the primary stops its guest, the backup goes live, the primary becomes its backup.

use super::side::{BackupSide, Side};
use super::{Action, AppendError, LossReason, Node};
use crate::decide::LastWord;
use crate::entry::{Control, EntryRef};
use crate::link::Queued;
use crate::mutation::Mutation;
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

    /// Whether the backup holds all of the log that it is to go live with.
    pub(super) fn handover_acked(&self) -> bool {
        let early = u64::from(self.config.broken(Mutation::HandOverAckedEarly));
        self.side.primary().is_some_and(|primary| primary.hands_over_by(Seq(primary.log.received().0 + early)))
    }

    /// The twin runs the guest in `term`: what is held here is out of date.
    pub(super) fn handed_over(&mut self, now: Time, term: Term) {
        self.close_link(Queued::Dropped);
        self.side = Side::Backup(BackupSide::Joining);
        self.term = term;
        self.position = Position(0);
        self.beats.next = now;
        self.stats.switch_overs += 1;
        self.begin_joining(now);
        self.actions.push_back(Action::HandedOver { term });
    }

    /// The backup has all of a log that ends with a hand-over.
    pub(super) fn take_over_in_order(&mut self, now: Time) {
        if let Some(follower) = self.side.follower_mut() {
            follower.primary_left = true;
        }
        self.consider_takeover(now);
    }

    /// The stream broke, or we broke it because of what came along it.
    pub(super) fn link_lost(&mut self, now: Time, reason: LossReason) {
        match self.role() {
            Role::Loading => self.abandon(now, reason),
            role if crate::decide::needs_stream(role, self.handover_acked()) => {
                self.lose_backup(now, reason, LastWord::None);
            }
            _ => {}
        }
        // The twin learns from the heartbeat that we are no longer connected.
        self.beats.next = now;
    }
}
