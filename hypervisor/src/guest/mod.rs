//! The guest as a whole: CPU, memory, platform and position, and what its exits mean.
//!
//! State changes only in two ways: the guest runs, or an entry is applied while it stands at an exact stop
//! ([`Guest::is_settled`]). Everything else is a pure function of the position:
//!
//! * on arrival at a position, timers that are due fire (`Guest::fire_due`), before anything is applied there;
//! * an interrupt is offered to the CPU just before entry.

mod broken;
mod debug;
mod exits;
mod look;
mod mmio;
mod paging;
mod shadow;
#[cfg(test)]
mod tests;

use alloc::string::String;
use core::fmt;

use pollux_boot::linux::Written;
use pollux_driver::DiskEnd;
use pollux_ft::Position;
use xxhash_rust::xxh64::xxh64;

use crate::counter::Progress;
use crate::counter::choose::Chosen;
use crate::cpu::registers::{CpuState, RFLAGS_IF, Table, gpr};
use crate::cpu::{Exit, Vcpu};
use crate::memory::{Gpa, GuestMemory, PageSet};
use crate::mmu::Mmu;
use crate::platform::loader::{self, EntryPoint, GuestImage, LoadError};
use crate::platform::{GuestTime, Outputs, Platform, PowerEvent};
use crate::state::{self, State, StateError, Visitor};

pub use crate::cpu::EXIT_KINDS;
pub use debug::{DebugStop, Stops};
pub use exits::ExitCounts;
pub use pollux_driver::Stop;

/// The guest.
pub struct Guest {
    vcpu: alloc::boxed::Box<dyn Vcpu>,
    counter: Chosen,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// Devices.
    pub platform: Platform,
    progress: Progress,
    /// What runs after a reset.
    image: GuestImage<'static>,
    let_in: fn() -> bool,
    /// The guest's translations, if they are tracked.
    mmu: Option<alloc::boxed::Box<Mmu>>,
    /// The last access for which a translation was wanted.
    attempt: Option<paging::Attempt>,
    /// Where the guest stood when pages were opened to one instruction.
    opened: Option<Position>,
    /// Where the guest stood when it came to this machine.
    loaded_at: Position,
    halted: bool,
    settled: bool,
    crash: Option<String>,
    /// Bytes of RAM that were zeroed for a reset to come.
    cleared: u64,
    exits: ExitCounts,
    debugger: debug::Debugger,
    /// The rule that is switched off.
    broken: Option<broken::Broken>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("position", &self.position())
            .field("halted", &self.halted)
            .finish_non_exhaustive()
    }
}

/// Bytes of RAM that are looked at, and zeroed, in one go: less time in an emulator than from one tick of the wall clock to
/// the next.
const CLEARED_AT_ONCE: u64 = 256 << 10;

/// Where the guest is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    rip: u64,
    rsp: u64,
    rflags: u64,
    /// The interrupt that waits.
    interrupt: Option<u8>,
    translations: u64,
}

/// Notes what the guest put out during one exit, on the way to where it goes.
struct Noting<'a> {
    inner: &'a mut dyn Outputs,
    frames: bool,
    power: Option<PowerEvent>,
}

impl Outputs for Noting<'_> {
    fn frame(&mut self, frame: &[u8]) {
        self.frames = true;
        self.inner.frame(frame);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.inner.console(bytes);
    }

    fn power(&mut self, event: PowerEvent) {
        self.power = Some(event);
        self.inner.power(event);
    }
}

impl Guest {
    /// Puts the parts together; the guest stands at position 0 with the state that the CPU has. `let_in` lets pending
    /// host interrupts in and says whether the host wants attention; it is called after each entry.
    pub fn new(
        vcpu: alloc::boxed::Box<dyn Vcpu>,
        counter: Chosen,
        memory: GuestMemory,
        platform: Platform,
        image: GuestImage<'static>,
        let_in: fn() -> bool,
    ) -> Self {
        Self {
            vcpu,
            counter,
            memory,
            platform,
            progress: Progress::at(Position(0)),
            image,
            let_in,
            mmu: None,
            attempt: None,
            opened: None,
            cleared: 0,
            loaded_at: Position(0),
            halted: false,
            settled: true,
            crash: None,
            exits: ExitCounts::default(),
            debugger: debug::Debugger::default(),
            broken: None,
        }
    }

    /// How far the guest has run.
    #[must_use]
    pub fn position(&self) -> Position {
        self.progress.position()
    }

    /// Guest time at the current position.
    #[must_use]
    pub fn now(&self) -> GuestTime {
        self.platform.clock().time_at(self.position())
    }

    /// Whether the guest stands at an exact stop, so that an entry may be applied right here.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The earliest position at which an entry may be applied.
    #[must_use]
    pub fn next_stop(&self) -> Position {
        if self.settled { self.position() } else { self.position().after(1) }
    }

    /// Whether the guest waits for an interrupt.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.halted && self.crash.is_none()
    }

    /// Whether a halted guest has an interrupt to wake for.
    #[must_use]
    pub fn can_wake(&self) -> bool {
        self.platform.pending_interrupt().is_some() && self.interrupts_enabled()
    }

    /// Ticks that the guest ran on this machine.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.position().since(self.loaded_at)
    }

    /// What brought the guest down, if anything did.
    #[must_use]
    pub fn crash(&self) -> Option<&str> {
        self.crash.as_deref()
    }

    /// Exits so far, by reason.
    #[must_use]
    pub fn exits(&self) -> &ExitCounts {
        &self.exits
    }

    /// What positions are counted with.
    #[must_use]
    pub fn counter(&self) -> &Chosen {
        &self.counter
    }

    /// Runs until exactly `target`, or until something else ends the run. Does nothing when the guest is there.
    pub fn run(&mut self, target: Position, out: &mut dyn Outputs) -> Stop {
        let mut out = Noting { inner: out, frames: false, power: None };
        let (mut host, mut entered) = (false, false);
        loop {
            // First: whatever ends the run here, nothing is applied before a debugger has seen it.
            let limit = self.debug_limit(target, entered);
            if self.crash.is_some() {
                return Stop::Crashed;
            }
            if let Some(event) = out.power {
                return Stop::Power(event);
            }
            if out.frames || self.platform.has_disk_request() {
                return Stop::Output;
            }
            let Ok(limit) = limit else { return Stop::Host };
            if self.position() >= target && !self.is_delivering() {
                return Stop::Target;
            }
            // Last: what the guest did must not be forgotten for it, nor may it end a delivery at the target in the middle.
            if host && self.position() < target {
                return Stop::Host;
            }
            let interrupt = self.platform.pending_interrupt();
            if self.halted && !self.can_wake() {
                return Stop::Halted;
            }
            self.halted = false;
            self.vcpu.offer_interrupt(interrupt);
            let exit = self.enter(limit, interrupt, &mut out);
            self.mend();
            entered = true;
            if self.debug_exit(exit).is_err() {
                return Stop::Host;
            }
            // Not only after the exits that host interrupts cause: in Bochs they end no entry of a guest that keeps its
            // own off, and one that leaves often would keep us from them for ever.
            host = (self.let_in)();
            // Host interrupts that come during single steps end one of these.
            host |= matches!(exit, Exit::Interrupted | Exit::Overflow) && !self.settled;
        }
    }

    /// One entry towards `target` or the next deadline, whichever is nearer, and the handling of its exit.
    fn enter(&mut self, target: Position, offered: Option<u8>, out: &mut Noting<'_>) -> Exit {
        let deadline = self.platform.next_deadline().and_then(|time| self.platform.clock().position_at(time));
        let stop = deadline.map_or(target, |deadline| deadline.min(target));
        let stop = self.platform.next_look().map_or(stop, |look| look.min(stop));
        let stop = self.close_pages().map_or(stop, |behind| behind.min(stop));
        let entered = match self.is_delivering() && self.position() == stop {
            true => self.progress.deliver(&mut self.counter.counter, &mut *self.vcpu),
            false => self.run_towards(stop),
        };
        if let (true, Some(vector)) = (entered.interrupt_taken, offered) {
            self.platform.interrupt_taken(vector);
        }
        self.exits.count(entered.exit);
        // A stop is exact when the limit ended the run; before that a host interrupt may have come in the middle of
        // the delivery of a fault, where the count is ambiguous.
        // Not with an event undelivered: it is no part of a state.
        self.settled = self.position() == stop && (entered.exit.is_own() || !self.vcpu.has_undelivered());
        // A translation that the next instruction needs may be missed before the stop is: the stop comes first, and it will
        // be missed again.
        let early = self.settled && matches!(entered.exit, Exit::PageFault { .. }) && !self.vcpu.has_undelivered();
        if entered.exit.is_own() && !early {
            let position = self.position();
            let both = is_on_both(entered.exit);
            if both {
                self.platform.take_end(&self.memory);
            }
            self.settled = self.handle(entered.exit, out);
            if both {
                if self.settled {
                    self.look_for_frames(out);
                }
                self.platform.let_end(&mut self.memory);
            }
            if self.mmu.as_ref().is_some_and(|mmu| mmu.is_open()) {
                self.opened.get_or_insert(position);
            }
        }
        assert!(
            self.position() <= stop,
            "the guest should stop at {stop} and is at {}: {:?} counted its own instruction",
            self.position(),
            entered.exit
        );
        if self.settled {
            self.fire_due();
            if self.platform.next_look() == Some(self.position()) {
                self.platform.take_end(&self.memory);
                self.look_for_frames(out);
                self.platform.let_end(&mut self.memory);
            }
        }
        entered.exit
    }

    /// Sends what the guest did not tell of.
    fn look_for_frames(&mut self, out: &mut Noting<'_>) {
        let at = self.position();
        self.platform.look_for_frames(at, self.halted, &mut self.memory, out);
    }

    /// Whether the delivery of an event was interrupted, which may belong to a tick that has been counted.
    fn is_delivering(&self) -> bool {
        !self.settled && self.vcpu.has_undelivered()
    }

    /// Fires the timers that are due at the current position. Called on arrival at it, and when an entry has moved time.
    ///
    /// A guest that ends interrupts by memory is left alone when none is: only this machine may have stopped it here.
    fn fire_due(&mut self) {
        let now = self.now();
        while self.platform.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.platform.take_end(&self.memory);
            self.platform.advance(now, &mut self.memory);
            self.platform.let_end(&mut self.memory);
        }
    }

    fn interrupts_enabled(&self) -> bool {
        self.vcpu.registers().rflags & RFLAGS_IF != 0
    }

    /// Applies an entry by `change`. The guest stands at an exact stop. An end of an interrupt by memory comes before what
    /// an entry may raise, which makes such ends impossible.
    fn apply<R>(&mut self, change: impl FnOnce(&mut Platform, &mut GuestMemory) -> R) -> R {
        assert!(self.settled, "an entry was applied away from an exact stop");
        self.platform.take_end(&self.memory);
        let result = change(&mut self.platform, &mut self.memory);
        self.platform.let_end(&mut self.memory);
        result
    }

    /// Applies a received frame. The guest stands at an exact stop.
    pub fn packet_in(&mut self, frame: &[u8]) {
        self.slip();
        if self.tear(frame) {
            return;
        }
        self.apply(|platform, memory| platform.packet_in(memory, frame));
    }

    /// Applies console input. The guest stands at an exact stop.
    pub fn console_in(&mut self, bytes: &[u8]) {
        self.slip();
        self.apply(|platform, _| platform.console_in(bytes));
    }

    /// Requests to the disk ended. The guest stands at an exact stop.
    ///
    /// # Errors
    /// One that is not in flight; nothing has happened.
    pub fn disk_done(&mut self, ends: &[DiskEnd]) -> Result<(), u64> {
        let now = self.now();
        self.apply(|platform, memory| platform.disk_done(now, memory, ends))
    }

    /// From here on guest time is `base` and advances by `rate` (32.32 fixed point nanoseconds per tick).
    ///
    /// # Errors
    /// When guest time would run backwards.
    pub fn steer_clock(&mut self, base: GuestTime, rate: u64) -> Result<(), crate::platform::ClockError> {
        let position = self.position();
        self.apply(|platform, _| platform.clock_mut().steer(position, base, rate))?;
        self.fire_due();
        Ok(())
    }

    /// Saves CPU, platform and position. Memory is saved page by page by the caller.
    ///
    /// What is sent is loaded here, too, as far as it stays in the CPU's registers: what no instruction saves is the same on
    /// both machines then.
    ///
    /// Whoever goes on from here and whoever loads it have the same translations: none.
    pub fn save(&mut self) -> alloc::vec::Vec<u8> {
        assert!(self.settled && !self.vcpu.has_undelivered(), "a state was saved away from an exact stop");
        self.restart_paging();
        self.platform.take_end(&self.memory);
        let mut machine = MachineState::of(self);
        let (saved, extended) = (state::save(&mut machine), machine.cpu.extended);
        self.vcpu.extended().load(&extended);
        saved
    }

    /// Loads what [`save`](Self::save) made.
    ///
    /// # Errors
    /// When the bytes are not a saved state of this platform.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let mut machine = MachineState::of(self);
        state::load(&mut machine, bytes)?;
        let (cpu, position) = (machine.cpu, machine.position);
        cpu.extended.check(&self.vcpu.extended().layout())?;
        if self.platform.next_look().is_some_and(|look| look <= position) {
            return Err(StateError::BadValue("where frames are looked for"));
        }
        self.halted = cpu.halted;
        self.progress = Progress::at(position);
        self.loaded_at = position;
        self.vcpu.load(&cpu);
        self.settled = true;
        self.crash = None;
        self.cleared = 0;
        self.platform.ask_disk_again();
        self.restart_paging();
        Ok(())
    }

    /// Zeroes a share of RAM for a reset that is sure to come. Whether all of it is zero.
    pub fn prepare_reset(&mut self) -> bool {
        let end = (self.cleared + CLEARED_AT_ONCE).min(self.memory.len());
        self.memory.clear(self.cleared..end);
        self.cleared = end;
        // The wall clock goes by interrupts, and the twin's patience by that.
        (self.let_in)();
        end == self.memory.len()
    }

    /// Begins to notice which pages of memory change, whoever writes them.
    pub fn track_memory(&mut self) {
        self.vcpu.track_writes(true);
        self.memory.track();
    }

    /// Ends it.
    pub fn stop_tracking(&mut self) {
        self.vcpu.track_writes(false);
        self.memory.stop_tracking();
    }

    /// The pages that changed since tracking began or since the last call; none when nothing is tracked.
    pub fn take_dirty(&mut self) -> PageSet {
        let memory = &mut self.memory;
        self.vcpu.take_written(&mut |gpa| memory.mark_dirty(gpa));
        memory.take_dirty().unwrap_or_else(|| PageSet::new(0))
    }

    /// Hash of CPU, platform and position. Twins are to take it at the same.
    pub fn hash(&mut self) -> u64 {
        self.platform.take_end(&self.memory);
        state::hash(&mut MachineState::of(self))
    }

    /// What tells most about where it is.
    #[must_use]
    pub fn outline(&self) -> Outline {
        let registers = self.vcpu.registers();
        Outline {
            rip: registers.rip,
            rsp: registers.gpr[gpr::RSP],
            rflags: registers.rflags,
            interrupt: self.platform.pending_interrupt(),
            translations: self.paging_history(),
        }
    }

    /// Starts the guest anew from its image, as after a reset: memory zeroed, devices and CPU in their first state.
    /// The position and guest time go on. The guest stands at an exact stop.
    ///
    /// # Errors
    /// When the image is malformed or does not fit.
    pub fn restart(&mut self) -> Result<(), LoadError> {
        assert!(self.settled, "a reset was applied away from an exact stop");
        self.memory.clear(self.cleared..self.memory.len());
        self.cleared = 0;
        let seed = self.platform.draw_seed();
        let entry = loader::load(&self.image, &seed, &mut self.memory)?;
        self.platform.reset(self.now());
        self.vcpu.load(&match entry {
            EntryPoint::Pvh { entry, start_info } => CpuState::pvh(entry, start_info),
            EntryPoint::Linux { entry, parameters: Written { zero_page, page_tables, gdt, gdt_limit } } => {
                CpuState::linux(entry, zero_page, page_tables, Table { base: gdt, limit: gdt_limit })
            }
        });
        self.halted = false;
        self.crash = None;
        self.restart_paging();
        Ok(())
    }

    /// The images and the command line for people to read, behind a digest: what is long is cut where names are sent.
    #[must_use]
    pub fn image_name(&self) -> String {
        // An empty ramdisk is another guest than none.
        let initrd = self.image.initrd.map_or(0, |initrd| xxh64(initrd, 1));
        let digest = xxh64(self.image.kernel, xxh64(self.image.command_line.as_bytes(), initrd));
        let ramdisk = self.image.initrd.map(|initrd| alloc::format!(" and ramdisk of {}", initrd.len()));
        alloc::format!(
            "{digest:016x}, {}{} bytes with arguments \"{}\"",
            self.image.kernel.len(),
            ramdisk.unwrap_or_default(),
            self.image.command_line
        )
    }

    /// Flips a bit of a general register, RIP or RFLAGS: a fault for tests. Returns whether there is such a register.
    pub fn flip_register_bit(&mut self, name: &str, bit: u32) -> bool {
        let Some(index) = REGISTERS.iter().position(|known| *known == name) else { return false };
        let registers = self.vcpu.registers_mut();
        let value = match index {
            16 => &mut registers.rip,
            17 => &mut registers.rflags,
            _ => &mut registers.gpr[index],
        };
        *value ^= 1 << (bit % 64);
        true
    }

    /// Flips a bit of guest memory: a fault for tests. Returns whether there is memory at `gpa`.
    pub fn flip_memory_bit(&mut self, gpa: Gpa, bit: u32) -> bool {
        match self.memory.slice_mut(gpa, 1) {
            Ok(byte) => {
                byte[0] ^= 1 << (bit % 8);
                true
            }
            Err(_) => false,
        }
    }
}

/// The general registers, in the order of instruction encodings, instruction pointer and flags.
pub const REGISTERS: [&str; 18] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
];

/// Whether both twins leave the guest for it at the same position. What a CPU has cached decides whether a translation is
/// missed again, and whether reads of the clock exit, each machine's self-test.
const fn is_on_both(exit: Exit) -> bool {
    exit.is_own() && !matches!(exit, Exit::PageFault { .. } | Exit::Rdtsc | Exit::Rdtscp)
}

/// CPU, platform and position, shown to a visitor in this order.
struct MachineState<'a> {
    cpu: CpuState,
    platform: &'a mut Platform,
    position: Position,
    /// Not loaded: translations begin anew.
    translations: u64,
}

impl<'a> MachineState<'a> {
    fn of(guest: &'a mut Guest) -> Self {
        let mut cpu = guest.vcpu.save();
        cpu.halted = guest.halted;
        let translations = guest.paging_history();
        Self { cpu, position: guest.progress.position(), platform: &mut guest.platform, translations }
    }
}

impl State for MachineState<'_> {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        self.cpu.visit(v)?;
        self.platform.visit(v)?;
        v.u64(&mut self.position.0)?;
        v.u64(&mut self.translations)
    }
}
