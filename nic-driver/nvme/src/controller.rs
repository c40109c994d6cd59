//! The controller: from any state to one that takes commands, and back there after a fault.

mod start;

use pollux_nic::{DmaMemory, MmioRegion, Registers};

use crate::buffers::{ADMIN_ENTRIES, COMMANDS, DMA_ALIGNMENT, DMA_BYTES, Data, ENTRIES, Shared};
use crate::command::{Command, Completion, Request, io};
use crate::identify::{Controller, Geometry};
use crate::outcome::{Condition, Fault, Lost, OpenError, Settings, SubmitError};
use crate::registers::*;
use crate::setup::{IO_QUEUE, Step};

/// Resets in a row, without a command that went well between them, before a drive is given up.
const MOST_RESETS: u32 = 3;
/// While commands are at work and none ends, the controller is asked after so many microseconds how it is.
const LOOK_AFTER: u64 = 10_000;
/// The same while it is reset.
const RESET_LOOK_AFTER: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was told to stop, and may take until then.
    Stopping(u64),
    /// It was told to start.
    Starting(u64),
    /// This is being asked.
    Asking(Step, u64),
    Ready,
    GivenUp(Fault),
}

/// A command at work.
#[derive(Debug, Clone, Copy)]
struct AtWork {
    tag: u64,
    /// Bytes that it reads.
    reads: usize,
    until: u64,
}

/// A slot for commands.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    at_work: Option<AtWork>,
    /// How many it has had: a part of each one's number.
    generation: u16,
}

impl Slot {
    /// The number of the command in slot `index`.
    const fn id(&self, index: usize) -> u16 {
        self.generation << SLOT_BITS | index as u16
    }
}

/// Bits of a command's number that say its slot.
const SLOT_BITS: u32 = COMMANDS.trailing_zeros();
const _: () = assert!(COMMANDS.is_power_of_two());

/// A controller, and one of its namespaces.
#[derive(Debug)]
pub struct Nvme<R: Registers = MmioRegion> {
    registers: R,
    capabilities: Capabilities,
    shared: Shared,
    settings: Settings,
    state: State,
    /// Why it is being stopped, after the start.
    fault: Option<Fault>,
    resets: u32,
    controller: Controller,
    geometry: Option<Geometry>,
    slots: [Slot; COMMANDS],
    /// Number of the admin command that was sent last.
    admin_id: u16,
    look_at: u64,
    faults: u64,
    /// Interrupts are let through.
    unmasked: bool,
}

impl<R: Registers> Nvme<R> {
    /// A driver for a controller in whatever state; it begins with stopping it.
    ///
    /// `registers` is BAR 0. Memory decoding and bus mastering must be enabled before. `memory` has [`DMA_BYTES`].
    ///
    /// # Errors
    /// It cannot be driven; then it was not touched.
    pub fn new(registers: R, memory: DmaMemory, settings: Settings, now: u64) -> Result<Self, OpenError> {
        if registers.len() < REGISTER_BYTES {
            return Err(OpenError::RegistersTooSmall(registers.len()));
        }
        if registers.read32(CSTS) == u32::MAX {
            return Err(OpenError::Absent);
        }
        let capabilities = Capabilities::read(&registers);
        let entries = capabilities.most_entries().min(ENTRIES.into()) as u16;
        if !capabilities.has_nvm() {
            return Err(OpenError::NoCommandSet);
        }
        if capabilities.smallest_page() != 12 {
            return Err(OpenError::PageBytes(capabilities.smallest_page()));
        }
        if entries < ADMIN_ENTRIES {
            return Err(OpenError::Entries(entries.into()));
        }
        if registers.len() < capabilities.head_doorbell(IO_QUEUE.into()) + 4 {
            return Err(OpenError::RegistersTooSmall(registers.len()));
        }
        let len = memory.len();
        if len < DMA_BYTES || !memory.is_aligned_to(DMA_ALIGNMENT) {
            return Err(OpenError::Memory(len));
        }
        let shared = Shared::new(memory, entries).ok_or(OpenError::Memory(len))?;
        let mut nvme = Self {
            registers,
            capabilities,
            shared,
            settings,
            state: State::Stopping(0),
            fault: None,
            resets: 0,
            controller: Controller::default(),
            geometry: None,
            slots: [Slot::default(); COMMANDS],
            admin_id: 0,
            look_at: 0,
            faults: 0,
            unmasked: false,
        };
        nvme.stop(now);
        Ok(nvme)
    }

    /// How it is.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match (self.state, self.geometry) {
            (State::GivenUp(fault), _) => Condition::GivenUp(fault),
            (State::Ready, Some(geometry)) => Condition::Ready(geometry),
            _ => Condition::Starting,
        }
    }

    /// From here on the controller may interrupt, if the settings say so.
    pub fn let_interrupt(&mut self) {
        self.unmasked = self.settings.interrupts;
        if self.state == State::Ready {
            self.unmask();
        }
    }

    fn unmask(&mut self) {
        if self.unmasked {
            self.registers.write32(INTMC, u32::MAX);
        }
    }

    /// Commands at work.
    #[must_use]
    pub fn at_work(&self) -> usize {
        self.slots.iter().filter(|slot| slot.at_work.is_some()).count()
    }

    /// Faults so far; the drive went on after each but, perhaps, the last.
    #[must_use]
    pub const fn faults(&self) -> u64 {
        self.faults
    }

    /// Begins a command. `tag` is what it is called when it ends; it means nothing here.
    ///
    /// # Errors
    /// It was not begun.
    pub fn submit(&mut self, request: Request<'_>, tag: u64, now: u64) -> Result<(), SubmitError> {
        let geometry = match self.condition() {
            Condition::Ready(geometry) => geometry,
            Condition::Starting => return Err(SubmitError::NotReady),
            Condition::GivenUp(_) => return Err(SubmitError::GivenUp),
        };
        let (mut command, reads) = self.command(request, &geometry)?;
        // The queue must not become full, or it would look empty.
        let usable = COMMANDS.min(usize::from(self.shared.io.0.entries()) - 1);
        let free = self.slots[..usable].iter().position(|slot| slot.at_work.is_none());
        let index = free.ok_or(SubmitError::Full)?;
        let moved = match request {
            Request::Write { data, .. } => {
                self.shared.buffers.fill(index, data);
                data.len()
            }
            _ => reads,
        };
        if moved > 0 {
            command.pages = self.shared.buffers.pages(index, moved);
        }
        if self.at_work() == 0 {
            self.look_at = now + LOOK_AFTER;
        }
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1) & (u16::MAX >> SLOT_BITS);
        slot.at_work = Some(AtWork { tag, reads, until: now + self.settings.patience });
        let tail = self.shared.io.0.push(&command.encode(slot.id(index)));
        self.registers.write32(self.capabilities.tail_doorbell(IO_QUEUE.into()), tail.into());
        Ok(())
    }

    /// The command for a request, without its pages, and how many bytes it reads.
    fn command(&self, request: Request<'_>, geometry: &Geometry) -> Result<(Command, usize), SubmitError> {
        let bytes = u64::from(geometry.block_bytes);
        let (opcode, block, blocks, durable, most) = match request {
            Request::Flush => {
                let command = Command { opcode: io::FLUSH, namespace: self.settings.namespace, ..Command::default() };
                return Ok((command, 0));
            }
            Request::Zero { .. } if !geometry.can_zero => return Err(SubmitError::Unsupported),
            Request::Zero { block, blocks } => (io::WRITE_ZEROES, block, u64::from(blocks), false, 1 << 16),
            Request::Read { block, blocks } => {
                (io::READ, block, u64::from(blocks), false, u64::from(geometry.most_bytes) / bytes)
            }
            Request::Write { block, data, durable } => {
                if !(data.len() as u64).is_multiple_of(bytes) {
                    return Err(SubmitError::OutOfRange);
                }
                (io::WRITE, block, data.len() as u64 / bytes, durable, u64::from(geometry.most_bytes) / bytes)
            }
        };
        let fits = (1..=most).contains(&blocks) && block.checked_add(blocks).is_some_and(|end| end <= geometry.blocks);
        if !fits {
            return Err(SubmitError::OutOfRange);
        }
        let reads = if opcode == io::READ { (blocks * bytes) as usize } else { 0 };
        Ok((Command::about(opcode, self.settings.namespace, block, blocks as u32, durable), reads))
    }

    /// Lets the controller move: what has ended is handed to `ended`, with what it read. Commands end in any order.
    pub fn poll(&mut self, now: u64, mut ended: impl FnMut(u64, Result<Data<'_>, Lost>)) {
        if self.state != State::Ready {
            self.look_at = now + RESET_LOOK_AFTER;
        }
        match self.state {
            State::Ready => self.take_completions(now, &mut ended),
            State::Stopping(until) => self.await_stop(until, now, &mut ended),
            State::Starting(until) => self.await_start(until, now),
            State::Asking(step, until) => self.await_answer(step, until, now),
            State::GivenUp(_) => {}
        }
    }

    /// When [`poll`](Self::poll) should be called at the latest, if nothing interrupts.
    #[must_use]
    pub fn next_look(&self) -> Option<u64> {
        match self.state {
            State::Ready => (self.at_work() > 0).then_some(self.look_at),
            State::GivenUp(_) => None,
            State::Stopping(_) | State::Starting(_) | State::Asking(..) => Some(self.look_at),
        }
    }

    fn take_completions(&mut self, now: u64, ended: &mut impl FnMut(u64, Result<Data<'_>, Lost>)) {
        let mut taken = 0;
        while taken < self.shared.io.1.entries()
            && let Some(completion) = self.shared.io.1.take()
        {
            taken += 1;
            let slot = match self.find(&completion) {
                Ok(slot) => slot,
                Err(fault) => return self.fail(fault, now),
            };
            let Some(AtWork { tag, reads, .. }) = self.slots[slot].at_work.take() else { continue };
            if completion.status.is_ok() {
                self.resets = 0;
                ended(tag, Ok(self.shared.buffers.data(slot, reads)));
            } else {
                ended(tag, Err(Lost::Failed(completion.status)));
            }
        }
        if taken > 0 {
            let head = self.shared.io.1.head();
            self.registers.write32(self.capabilities.head_doorbell(IO_QUEUE.into()), head.into());
        }
        // Others that end say nothing of one that does not.
        if self.at_work() > 0 && now >= self.look_at {
            self.look_at = now + LOOK_AFTER;
            self.look(now);
        }
    }

    /// The slot of the command that a completion is about.
    fn find(&self, completion: &Completion) -> Result<usize, Fault> {
        let Completion { queue, queue_head, id, .. } = *completion;
        let slot = usize::from(id) % COMMANDS;
        let known = self.slots[slot].at_work.is_some() && self.slots[slot].id(slot) == id;
        if queue != IO_QUEUE {
            Err(Fault::UnknownQueue(queue))
        } else if queue_head >= self.shared.io.0.entries() {
            Err(Fault::QueueHead(queue_head))
        } else if !known {
            Err(Fault::UnknownCommand(id))
        } else {
            Ok(slot)
        }
    }

    /// Whether a controller that is silent is well.
    fn look(&mut self, now: u64) {
        match self.registers.read32(CSTS) {
            u32::MAX => self.fail(Fault::Gone, now),
            status if status & CSTS_FATAL != 0 => self.fail(Fault::Fatal, now),
            status if status & CSTS_READY == 0 => self.fail(Fault::Stopped, now),
            _ if self.slots.iter().flat_map(|slot| slot.at_work).any(|at_work| at_work.until <= now) => {
                self.fail(Fault::Timeout, now);
            }
            _ => {}
        }
    }

    /// Stops the controller after a fault, to start it again.
    fn fail(&mut self, fault: Fault, now: u64) {
        log::warn!("NVMe: {fault}; the controller is reset");
        self.faults += 1;
        self.fault = Some(fault);
        self.resets += 1;
        self.stop(now);
    }

    fn stop(&mut self, now: u64) {
        self.registers.write32(CC, 0);
        self.registers.write32(INTMS, u32::MAX);
        self.look_at = now;
        self.state = State::Stopping(now + self.capabilities.patience());
    }

    fn await_stop(&mut self, until: u64, now: u64, ended: &mut impl FnMut(u64, Result<Data<'_>, Lost>)) {
        match self.registers.read32(CSTS) {
            u32::MAX => self.give_up(Fault::Gone, ended),
            status if status & CSTS_READY == 0 => {
                // From here on it touches no memory.
                let fault = self.fault.take();
                self.end_all(fault.unwrap_or(Fault::Stopped), ended);
                match fault {
                    Some(fault) if self.resets > MOST_RESETS => self.give_up(fault, ended),
                    _ => self.start(now),
                }
            }
            _ if now >= until => self.give_up(Fault::DoesNotStop, ended),
            _ => {}
        }
    }

    /// Nothing is asked of this drive any more.
    fn give_up(&mut self, fault: Fault, ended: &mut impl FnMut(u64, Result<Data<'_>, Lost>)) {
        log::error!("NVMe: {fault}; the drive is given up");
        self.registers.write32(INTMS, u32::MAX);
        self.state = State::GivenUp(fault);
        self.end_all(fault, ended);
    }

    /// Ends what is at work as lost.
    fn end_all(&mut self, fault: Fault, ended: &mut impl FnMut(u64, Result<Data<'_>, Lost>)) {
        for slot in &mut self.slots {
            if let Some(at_work) = slot.at_work.take() {
                ended(at_work.tag, Err(Lost::Reset(fault)));
            }
        }
    }
}
