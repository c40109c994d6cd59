//! The controller's way from a stop to where it takes commands.

use pollux_nic::Registers;

use super::{Nvme, State};
use crate::buffers::{ADMIN_ENTRIES, PAGE, Shared};
use crate::command::Completion;
use crate::identify::{Controller, Geometry, Unusable};
use crate::outcome::Fault;
use crate::registers::*;
use crate::setup::{Means, Step};

impl<R: Registers> Nvme<R> {
    /// See: Base Specification, 3.5.1.
    pub(super) fn start(&mut self, now: u64) {
        let Shared { admin, io, .. } = &mut self.shared;
        for (submissions, completions) in [admin, io] {
            submissions.restart();
            completions.restart();
        }
        let (submissions, completions) = (&self.shared.admin.0, &self.shared.admin.1);
        let sizes = u32::from(submissions.entries() - 1) | u32::from(completions.entries() - 1) << 16;
        self.registers.write32(AQA, sizes);
        for (register, address) in [(ASQ, submissions.physical()), (ACQ, completions.physical())] {
            self.registers.write32(register, address as u32);
            self.registers.write32(register + 4, (address >> 32) as u32);
        }
        self.registers.write32(CC, CC_ENABLED);
        self.state = State::Starting(now + self.capabilities.patience());
    }

    pub(super) fn await_start(&mut self, until: u64, now: u64) {
        match self.registers.read32(CSTS) {
            u32::MAX => self.state = State::GivenUp(Fault::Gone),
            status if status & CSTS_FATAL != 0 => self.fail(Fault::Fatal, now),
            status if status & CSTS_READY != 0 => {
                // The reset has let them through again.
                self.registers.write32(INTMS, u32::MAX);
                self.ask(Step::FIRST, now);
            }
            _ if now >= until => self.fail(Fault::DoesNotStart, now),
            _ => {}
        }
    }

    fn ask(&mut self, step: Step, now: u64) {
        // What it does not say is not what it said before.
        self.shared.identity.copy_in(0, &[0; PAGE]);
        let means = Means {
            namespace: self.settings.namespace,
            identity: &self.shared.identity,
            queues: (self.shared.io.0.physical(), self.shared.io.1.physical()),
            entries: self.shared.io.0.entries(),
            interrupts: self.settings.interrupts,
        };
        self.admin_id = self.admin_id.wrapping_add(1);
        let submission = step.command(&means).encode(self.admin_id);
        let tail = self.shared.admin.0.push(&submission);
        self.registers.write32(self.capabilities.tail_doorbell(0), tail.into());
        self.state = State::Asking(step, now + self.settings.patience);
    }

    pub(super) fn await_answer(&mut self, step: Step, until: u64, now: u64) {
        let Some(Completion { queue, queue_head, id, status }) = self.shared.admin.1.take() else {
            if now >= until {
                self.fail(Fault::Timeout, now);
            }
            return;
        };
        self.registers.write32(self.capabilities.head_doorbell(0), self.shared.admin.1.head().into());
        let fault = if queue != 0 {
            Fault::UnknownQueue(queue)
        } else if queue_head >= ADMIN_ENTRIES {
            Fault::QueueHead(queue_head)
        } else if id != self.admin_id {
            Fault::UnknownCommand(id)
        } else if !status.is_ok() {
            Fault::Refused(step.name(), status)
        } else {
            return self.answered(step, now);
        };
        self.fail(fault, now);
    }

    /// The controller did what `step` asked.
    fn answered(&mut self, step: Step, now: u64) {
        match step {
            Step::IdentifyController => {
                self.controller = Controller::read(&self.shared.identity, self.capabilities.smallest_page());
            }
            Step::IdentifyNamespace => {
                let geometry = self.controller.geometry(&self.shared.identity, self.settings.namespace);
                let before = *self.geometry.get_or_insert_with(|| geometry.unwrap_or(NONE));
                let result = geometry.and_then(|now| if now == before { Ok(()) } else { Err(Unusable::Changed) });
                if let Err(why) = result {
                    // Nothing was at work since it stopped.
                    self.registers.write32(CC, 0);
                    self.state = State::GivenUp(Fault::Unusable(why));
                    return;
                }
            }
            Step::WantQueues | Step::CreateCompletionQueue | Step::CreateSubmissionQueue => {}
        }
        match step.next() {
            Some(next) => self.ask(next, now),
            None => {
                self.state = State::Ready;
                self.unmask();
            }
        }
    }
}

/// No drive: none is equal to it.
const NONE: Geometry = Geometry { block_bytes: 0, blocks: 0, most_bytes: 0, has_write_cache: false, can_zero: false };
