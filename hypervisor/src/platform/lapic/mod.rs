//! The local APIC: one register model behind the xAPIC page and the x2APIC MSRs.
//!
//! One CPU, APIC ID 0. The timer's input clock is guest time: 1 GHz, so one count is `divide` nanoseconds.
//! See: SDM volume 3 (revision 083), chapter 11 "Advanced Programmable Interrupt Controller".

mod registers;
mod timer;
mod vectors;

use timer::Timer;
use vectors::Vectors;

use super::access::Gp;
use super::clock::GuestTime;
use super::kvm::MayEnd;
use crate::state::{State, StateError, Visitor};

/// Where the register page is after reset.
pub const DEFAULT_BASE: u64 = 0xFEE0_0000;

/// IA32_APIC_BASE: this is the bootstrap processor.
const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is enabled at all.
const BASE_ENABLE: u64 = 1 << 11;
/// IA32_APIC_BASE: bits that may hold the page's address.
const BASE_ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// SVR: the APIC is enabled by software.
const SVR_ENABLE: u32 = 1 << 8;
/// LVT: masked.
pub(super) const LVT_MASKED: u32 = 1 << 16;

/// ESR bits. See: 11.5.3.
const ESR_SEND_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_VECTOR: u32 = 1 << 6;
const ESR_REGISTER: u32 = 1 << 7;

const LVT_ERROR: usize = 5;

/// Whom an interrupt message is for. See: 11.6.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this ID.
    Physical(u32),
    /// Those that this set names.
    Logical(u32),
}

impl Destination {
    /// A destination as a message names it that says by a bit of its own whether it is `logical`.
    #[must_use]
    pub const fn new(destination: u32, logical: bool) -> Self {
        if logical { Self::Logical(destination) } else { Self::Physical(destination) }
    }
}

/// How an interrupt is triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Once, by an edge.
    Edge,
    /// For as long as a line has its level: the IOAPIC wants to hear of the end.
    Level,
}

impl Trigger {
    /// What the trigger bit of a message says.
    #[must_use]
    pub const fn new(level: bool) -> Self {
        if level { Self::Level } else { Self::Edge }
    }
}

/// The local APIC of the one CPU.
#[derive(Debug, Clone)]
pub struct Lapic {
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    esr: u32,
    /// Errors since ESR was last written.
    errors: u32,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    icr: u64,
    lvt: [u32; 6],
    timer: Timer,
}

impl Default for Lapic {
    fn default() -> Self {
        Self::new()
    }
}

impl Lapic {
    /// The state after power-up: enabled in xAPIC mode, disabled by software. See: 11.4.7.1.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            base: DEFAULT_BASE | BASE_BSP | BASE_ENABLE,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xFF,
            esr: 0,
            errors: 0,
            irr: Vectors([0; 4]),
            isr: Vectors([0; 4]),
            tmr: Vectors([0; 4]),
            icr: 0,
            lvt: [LVT_MASKED; 6],
            timer: Timer::new(),
        }
    }

    /// The address of the register page, unless the APIC is off or in x2APIC mode.
    #[must_use]
    pub const fn page(&self) -> Option<u64> {
        if self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE { Some(self.base & BASE_ADDRESS) } else { None }
    }

    const fn x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    const fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0 && self.svr & SVR_ENABLE != 0
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub const fn base_msr(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. See: 11.12.5 for the transitions allowed.
    ///
    /// # Errors
    /// Reserved bits and illegal transitions.
    pub fn set_base_msr(&mut self, value: u64) -> Result<(), Gp> {
        const MODE: u64 = BASE_X2APIC | BASE_ENABLE;
        if value & !(BASE_ADDRESS | BASE_BSP | MODE) != 0 {
            return Err(Gp);
        }
        match (self.base & MODE, value & MODE) {
            (_, BASE_X2APIC) => return Err(Gp),
            (MODE, BASE_ENABLE) => return Err(Gp),
            (0, MODE) => return Err(Gp),
            (_, 0) => *self = Self::new(),
            (BASE_ENABLE, MODE) => {
                self.icr &= u64::from(u32::MAX);
                self.ldr = 0;
            }
            _ => {}
        }
        self.base = value;
        Ok(())
    }

    /// IA32_TSC_DEADLINE: the armed TSC value, 0 when disarmed. See: 11.5.4.1.
    #[must_use]
    pub const fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE while the TSC reads `tsc`; without effect in other timer modes.
    pub fn set_tsc_deadline(&mut self, now: GuestTime, tsc: u64, value: u64) {
        self.timer.arm_tsc(value, self.lvt[0], tsc, now);
        self.advance(now);
    }

    /// The guest moved its TSC, which now reads `tsc`: an armed TSC deadline moves with it.
    pub fn tsc_moved(&mut self, now: GuestTime, tsc: u64) {
        if self.timer.tsc_deadline() != 0 {
            self.set_tsc_deadline(now, tsc, self.timer.tsc_deadline());
        }
    }

    /// When the timer expires next.
    #[must_use]
    pub const fn next_deadline(&self) -> Option<GuestTime> {
        self.timer.deadline()
    }

    /// Fires the timer if it is due at `now`.
    pub fn advance(&mut self, now: GuestTime) {
        if self.timer.expire(self.lvt[0], now) && self.lvt[0] & LVT_MASKED == 0 {
            self.accept(self.lvt[0] as u8, Trigger::Edge);
        }
    }

    /// Whether a message to `destination` is for this CPU.
    const fn is_destination(&self, destination: Destination) -> bool {
        let destination = match destination {
            // 0xFF is the broadcast of 8-bit destinations, as IOAPIC and MSI have them.
            Destination::Physical(id) => return id == 0 || id == 0xFF || id == u32::MAX,
            Destination::Logical(set) => set,
        };
        if self.x2apic() {
            return destination == u32::MAX || destination >> 16 == 0 && destination & 1 != 0;
        }
        let ours = self.ldr >> 24;
        if self.dfr >> 28 == 0xF {
            ours & destination != 0
        } else {
            let cluster = destination >> 4 == ours >> 4 || destination >> 4 == 0xF;
            cluster && ours & destination & 0xF != 0
        }
    }

    /// Delivers an interrupt message from the IOAPIC or a device. `mode` is the delivery mode field.
    pub fn message(&mut self, destination: Destination, mode: u8, vector: u8, trigger: Trigger) {
        if self.is_destination(destination) {
            self.deliver(mode, vector, trigger);
        }
    }

    fn deliver(&mut self, mode: u8, vector: u8, trigger: Trigger) {
        match mode {
            0 | 1 => self.accept(vector, trigger),
            // SMI, INIT, start-up and ExtINT mean nothing to a single CPU without a PIC behind LINT0. NMIs are not delivered:
            // see docs/limits.md.
            _ => {}
        }
    }

    fn accept(&mut self, vector: u8, trigger: Trigger) {
        if !self.enabled() {
            return;
        }
        if vector < 16 {
            return self.error(ESR_RECEIVE_VECTOR);
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, trigger == Trigger::Level);
    }

    fn error(&mut self, bit: u32) {
        self.errors |= bit;
        let lvt = self.lvt[LVT_ERROR];
        // An LVT whose own vector is illegal must not report that to itself forever.
        if lvt & LVT_MASKED == 0 && lvt as u8 >= 16 {
            self.accept(lvt as u8, Trigger::Edge);
        }
    }

    /// Sends an IPI; only those to ourselves have an effect. See: 11.6.1.
    fn send(&mut self, icr: u64) {
        // Delivery status (bit 12) always reads idle.
        self.icr = icr & 0xFFFF_FFFF_000C_CFFF;
        let destination = if self.x2apic() { (icr >> 32) as u32 } else { (icr >> 56) as u32 };
        let to_us = match icr >> 18 & 3 {
            0 => self.is_destination(Destination::new(destination, icr & 1 << 11 != 0)),
            1 | 2 => true,
            _ => false,
        };
        let (mode, vector) = ((icr >> 8 & 7) as u8, icr as u8);
        if mode <= 1 && vector < 16 {
            self.error(ESR_SEND_VECTOR);
        } else if to_us {
            self.deliver(mode, vector, Trigger::Edge);
        }
    }

    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.set(vector, false);
        self.tmr.get(vector).then_some(vector)
    }

    /// Processor priority: the higher class of task priority and service in progress. See: 11.8.3.1.
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0) & 0xF0;
        if self.tpr & 0xF0 >= serving { self.tpr } else { serving }
    }

    /// The vector that the CPU should take now, if its flags allow: the highest requested above the priority.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (vector & 0xF0 > self.ppr() & 0xF0).then_some(vector)
    }

    /// The CPU took `vector`: it moves from requested to in service.
    pub fn taken(&mut self, vector: u8) {
        self.irr.set(vector, false);
        self.isr.set(vector, true);
    }

    /// Whether the interrupt in service ends without anybody being told.
    #[must_use]
    pub fn may_end(&self) -> MayEnd {
        match (self.irr.count(), self.isr.count()) {
            (1, 0) if self.irr.highest().is_some_and(|vector| !self.tmr.get(vector)) => MayEnd::Begin,
            (0, 1) => MayEnd::GoOn,
            _ => MayEnd::No,
        }
    }

    /// Whether an interrupt is in service.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.isr.highest().is_some()
    }

    /// The guest has ended the interrupt in service, which was one that nobody else is told of.
    pub fn ended(&mut self) {
        let _ = self.end_of_interrupt();
    }

    /// CR8: the task priority class.
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8; only its low four bits count. See: 11.8.6.
    pub fn set_cr8(&mut self, value: u8) {
        self.tpr = value << 4;
    }
}

impl State for Lapic {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        v.u64(&mut self.base)?;
        v.u8(&mut self.tpr)?;
        for value in [&mut self.ldr, &mut self.dfr, &mut self.svr, &mut self.esr, &mut self.errors] {
            v.u32(value)?;
        }
        self.irr.visit(v)?;
        self.isr.visit(v)?;
        self.tmr.visit(v)?;
        v.u64(&mut self.icr)?;
        self.lvt.iter_mut().try_for_each(|lvt| v.u32(lvt))?;
        self.timer.visit(v)
    }
}
