//! How far the model goes.

use super::state::{Machine, State};

/// What people do, or the guest, that is no fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planned {
    /// Machines are stopped in order.
    Stop,
    /// A primary hands over to its backup.
    SwitchOver,
    /// The guest switches itself off.
    PowerOff,
}

/// How far the model goes. A state beyond is still checked, but nothing more happens in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// What these bounds are to show.
    pub name: &'static str,
    /// Machines, 2 or 3; the first one runs the guest at the start.
    pub machines: usize,
    /// The last term that machines act in, at most 3.
    pub terms: u64,
    /// Sessions, counted on across takeovers as nodes do.
    pub sessions: u64,
    /// Inputs that the guest sees.
    pub inputs: usize,
    /// Times that a machine is switched on again after it failed or halted.
    pub restarts: u64,
    /// Times that a backup, which asked for a term and hears its primary again, gets to say so; else it never does.
    pub burns: u64,
    /// Machines start by themselves, none with a guest.
    pub auto: bool,
    /// Times that such a machine changes how it stands to creating one, from 1 on.
    pub marks: u64,
    /// What else happens.
    pub planned: &'static [Planned],
}

impl Bounds {
    /// The pair, its guest, and all that can break.
    pub const INPUTS: Self = Self {
        name: "inputs",
        machines: 2,
        terms: 3,
        sessions: 1,
        inputs: 2,
        restarts: 0,
        burns: 0,
        auto: false,
        marks: 0,
        planned: &[],
    };
    /// The guest is taken over, protected again and taken over again.
    pub const CRASHES: Self = Self { name: "crashes", sessions: 2, inputs: 1, ..Self::INPUTS };
    /// Machines that failed, or were refused a term, come back.
    pub const RESTARTS: Self = Self { name: "restarts", inputs: 0, restarts: 1, ..Self::CRASHES };
    /// The guest changes machines on purpose, too.
    pub const SWITCH_OVER: Self =
        Self { name: "switch-over", inputs: 0, planned: &[Planned::SwitchOver], ..Self::CRASHES };
    /// Machines are stopped, and the guest ends.
    pub const ENDS: Self = Self {
        name: "ends",
        inputs: 1,
        planned: &[Planned::Stop, Planned::SwitchOver, Planned::PowerOff],
        ..Self::INPUTS
    };
    /// A backup asks for terms, hears its primary again, and answers come when they come.
    pub const LATE: Self = Self { name: "late answers", inputs: 1, burns: 2, ..Self::INPUTS };
    /// Machines that start by themselves, fail, and come back; sessions are of no interest.
    pub const COLD: Self = Self {
        name: "cold starts",
        terms: 2,
        sessions: 0,
        inputs: 0,
        restarts: 2,
        auto: true,
        marks: 4,
        ..Self::INPUTS
    };
    /// A third machine wants to join.
    pub const THREE: Self = Self { name: "three machines", machines: 3, inputs: 0, ..Self::INPUTS };

    /// Those that are checked, large ones first.
    pub const ALL: [Self; 8] = [
        Self::COLD,
        Self::SWITCH_OVER,
        Self::CRASHES,
        Self::RESTARTS,
        Self::THREE,
        Self::ENDS,
        Self::LATE,
        Self::INPUTS,
    ];

    pub(super) fn hold(&self, state: &State) -> bool {
        let within = |machine: &Machine| {
            let marked = !self.auto || machine.mark <= self.marks;
            machine.term.0 <= self.terms && machine.session.0 <= self.sessions && marked
        };
        state.machines.iter().all(within)
    }

    pub(super) fn plans(&self, planned: Planned) -> bool {
        self.planned.contains(&planned)
    }
}
