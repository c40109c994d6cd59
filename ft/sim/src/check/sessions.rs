//! What primaries logged and what backups made of it.

use super::{Audit, Check, LogId};
use pollux_driver::{DiskEnd, DiskStatus};
use pollux_ft::{NodeId, Position, Role, Seq};

/// A log, as its primary wrote it.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// The entry that the state stood behind, and the frames that the guest had made up to it.
    base: Seq,
    base_position: Position,
    history: Vec<u64>,
    /// Positions of all entries behind it.
    positions: Vec<Position>,
    /// Number of each entry that changes the guest, and the guest's digest behind it.
    records: Vec<(Seq, u64)>,
    power_off: Option<Seq>,
    /// Newest entry that a backup had, and how many of the records it applied.
    held: Seq,
    applied: usize,
    /// How far its guest ran.
    followed: Position,
}

impl Session {
    fn position(&self, seq: Seq) -> Option<Position> {
        match seq.0.checked_sub(self.base.0)? {
            0 => Some(self.base_position),
            behind => self.positions.get(behind as usize - 1).copied(),
        }
    }
}

impl Audit {
    /// A primary sent its whole state, which stands behind entry `base`.
    pub(crate) fn state_sent(&mut self, log: LogId, base: Seq, position: Position, history: &[u64]) {
        let session = Session {
            base,
            base_position: position,
            history: history.to_vec(),
            held: base,
            followed: position,
            ..Session::default()
        };
        self.sessions.insert(log, session);
    }

    /// The frames that the guest had made when its state was sent.
    pub(crate) fn history(&self, log: LogId) -> Vec<u64> {
        self.sessions.get(&log).map(|session| session.history.clone()).unwrap_or_default()
    }

    /// A primary appended an entry. A horizon that was not sent gives its number to the entry behind it.
    pub(crate) fn appended(&mut self, log: LogId, seq: Seq, position: Position) {
        let Some(session) = self.sessions.get_mut(&log) else { return };
        let behind = (seq.0 - session.base.0) as usize;
        session.positions.truncate(behind - 1);
        session.positions.push(position);
        if session.positions.len() != behind {
            self.broken(Check::ReplicasEqual, format!("entry {} leaves a gap in the log", seq.0));
        }
    }

    /// The primary's guest has seen entry `seq`.
    pub(crate) fn logged(&mut self, log: LogId, seq: Seq, digest: u64, power_off: bool) {
        if let Some(session) = self.sessions.get_mut(&log) {
            session.records.push((seq, digest));
            if power_off {
                session.power_off = Some(seq);
            }
        }
    }

    /// A backup has entries up to `seq`, as its memory says.
    pub(crate) fn holds(&mut self, log: LogId, seq: Seq) {
        if let Some(session) = self.sessions.get_mut(&log) {
            session.held = session.held.max(seq);
        }
    }

    /// A backup runs: it stands at `position` and has entries up to `held`.
    pub(crate) fn follows(&mut self, log: LogId, held: Seq, position: Position) {
        let Some(session) = self.sessions.get_mut(&log) else { return };
        session.followed = position;
        let limit = session.position(held);
        if limit.is_none_or(|limit| position > limit) {
            let text = format!("the backup ran to {}, entry {} is at {limit:?}", position.0, held.0);
            self.broken(Check::Horizon, text);
        }
    }

    /// A protected guest ran to `position`; its backup may be behind by `bound` ticks, and by half of that more: rates
    /// change.
    pub(crate) fn runs_ahead(&mut self, log: LogId, position: Position, bound: u64) {
        let Some(session) = self.sessions.get(&log) else { return };
        let lag = position.0 - session.followed.0;
        if lag > bound + bound / 2 {
            self.broken(Check::Lag, format!("the backup lags by {lag} ticks, {bound} are allowed"));
        }
    }

    /// A backup's guest has seen entry `seq` at `position`, and its digest is `digest`.
    pub(crate) fn applied(&mut self, log: LogId, seq: Seq, position: Position, digest: u64) {
        let Some(session) = self.sessions.get_mut(&log) else { return };
        let expected = session.records.get(session.applied).copied();
        session.applied += 1;
        let at = session.position(seq);
        if expected != Some((seq, digest)) || at != Some(position) {
            let text = format!(
                "entry {} applied at {} gives {digest:016x}; the primary had {expected:x?} at {at:?}",
                seq.0, position.0
            );
            self.broken(Check::ReplicasEqual, text);
        }
    }

    /// A guest heard of a disk request's end on a machine whose own disk has ended it like this, if it has.
    pub(crate) fn disk_told(&mut self, machine: usize, end: &DiskEnd, own: Option<DiskStatus>, role: Role) {
        let DiskEnd { id, status } = *end;
        if own.is_none() || (status == DiskStatus::Done && own != Some(status)) {
            let text = format!("machine {machine}: request {id} is {status:?} to the guest, {own:?} to the disk");
            self.broken(Check::Disk, text);
        } else if status == DiskStatus::Failed && role == Role::Protected {
            self.broken(Check::Disk, format!("machine {machine}: request {id} fails although there is a backup"));
        }
    }

    /// The output rule: frames sealed with `seq` leave the primary of `log`.
    pub(super) fn check_output_rule(&mut self, log: LogId, seq: Seq) {
        let held = self.sessions.get(&log).map_or(Seq(0), |session| session.held);
        if held < seq {
            let text = format!("a frame of entry {} leaves, the backup holds entries up to {}", seq.0, held.0);
            self.broken(Check::OutputRule, text);
        }
    }

    /// A backup at `position` that holds entries up to `held` goes live with a guest that made the frames of `history`.
    pub(crate) fn goes_live(&mut self, node: NodeId, log: LogId, held: Seq, position: Position, history: &[u64]) {
        if let Some(session) = self.sessions.get(&log) {
            let unseen = session.records.get(session.applied).filter(|(seq, _)| *seq <= held);
            let at = session.position(held);
            let power_off = session.power_off.is_some_and(|seq| seq <= held);
            let left = unseen.map(|(seq, _)| seq.0);
            if left.is_some() || at != Some(position) {
                let text = format!(
                    "live at {} with the log up to entry {}, which ends at {at:?}; not applied: {left:?}",
                    position.0, held.0
                );
                self.broken(Check::Drained, text);
            }
            self.check_power(node, power_off);
        }
        self.check_past(history);
    }

    /// How many entries of the log its backup has and did not apply yet. A primary may log more that nobody will read.
    pub(crate) fn backlog(&self, log: LogId) -> usize {
        self.sessions.get(&log).map_or(0, |session| {
            let unapplied = session.records.iter().skip(session.applied);
            unapplied.take_while(|(seq, _)| *seq <= session.held).count()
        })
    }
}
