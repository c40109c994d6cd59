//! The recorded guest as the GDB remote protocol's crate wants it.

use anyhow::{Error, Result};
use gdbstub::common::Signal;
use gdbstub::outputln;
use gdbstub::stub::SingleThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::reverse_exec::{
    ReplayLogPosition, ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep, SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::debugger::{Debugger, Halt, Interrupted, Machine};
use super::registers::{Amd64, Named};

/// Errors of the system that GDB shows in words.
const EFAULT: u8 = 14;
/// What was recorded is not changed.
const EROFS: u8 = 30;

/// What GDB wants done once it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Step,
    Continue,
    StepBack,
    GoBack,
}

/// A guest for GDB.
#[derive(Debug)]
pub struct Guest<M> {
    /// What does it.
    pub debugger: Debugger<M>,
    order: Order,
    /// How the last run ended, as far as GDB's own words do not say so.
    pub news: Option<String>,
    /// What `monitor` knows beside the position: says what a word comes to, if it knows it.
    more: fn(&M, &str) -> Option<String>,
}

/// A stop in GDB's words.
pub type Reason = SingleThreadStopReason<u64>;

impl<M: Machine> Guest<M> {
    /// `more` says what `monitor` answers to other words than `position`, if it knows them.
    pub fn new(machine: M, more: fn(&M, &str) -> Option<String>) -> Self {
        Self { debugger: Debugger::new(machine), order: Order::Step, news: None, more }
    }

    /// Does what GDB waits for.
    pub fn obey(&mut self, interrupted: Interrupted<'_>) -> Result<Reason> {
        let back = matches!(self.order, Order::StepBack | Order::GoBack);
        let halt = match self.order {
            Order::Step => self.debugger.step(interrupted),
            Order::Continue => self.debugger.go_on(interrupted),
            Order::StepBack => self.debugger.step_back(interrupted),
            Order::GoBack => self.debugger.go_back(interrupted),
        }?;
        self.news = match &halt {
            Halt::Over(why) => Some(why.clone()),
            Halt::End => Some("The recording ends here.".to_owned()),
            Halt::Begin if back => Some("The recording begins here.".to_owned()),
            _ => None,
        };
        Ok(match halt {
            Halt::Stepped => Reason::DoneStep,
            Halt::Break(_) => Reason::SwBreak(()),
            Halt::Watch(addr) => Reason::Watch { tid: (), kind: WatchKind::Write, addr },
            Halt::Interrupted => Reason::Signal(Signal::SIGINT),
            Halt::Begin => Reason::ReplayLog { tid: None, pos: ReplayLogPosition::Begin },
            Halt::End => Reason::ReplayLog { tid: None, pos: ReplayLogPosition::End },
            Halt::Over(_) => Reason::Signal(Signal::SIGABRT),
        })
    }

    /// What `monitor` is told, answered; an error says what is wrong with it.
    fn monitor(&mut self, command: &str) -> Result<String, String> {
        let (begin, end) = self.debugger.machine.bounds();
        let mut words = command.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("position"), None, None) => {
                Ok(format!("position {} of {begin} to {end}", self.debugger.machine.position()))
            }
            (Some("position"), Some(number), None) => {
                let position = number.parse().map_err(|_| format!("{number} is no position"))?;
                if !(begin..=end).contains(&position) {
                    return Err(format!("the recording has positions {begin} to {end}"));
                }
                match self.debugger.go_to(position, &mut || false).map_err(|error| format!("{error:#}"))? {
                    Halt::Over(why) => Err(why),
                    _ => Ok(format!(
                        "position {}; type 'maintenance flush register-cache' and 'maintenance flush dcache' to have GDB look \
                         again",
                        self.debugger.machine.position()
                    )),
                }
            }
            (Some(word), None, None) if let Some(text) = (self.more)(&self.debugger.machine, word) => Ok(text),
            _ => Err("known: position, position N, digest, entries".to_owned()),
        }
    }

    fn toggle(&mut self, address: u64, on: bool) -> TargetResult<bool, Self> {
        self.debugger.set_break(address, on).map_err(TargetError::Fatal)
    }

    fn toggle_watch(&mut self, address: u64, len: u64, kind: WatchKind, on: bool) -> TargetResult<bool, Self> {
        if kind != WatchKind::Write {
            return Ok(false);
        }
        self.debugger.set_watch(address, len, on).map_err(TargetError::Fatal)
    }
}

impl<M: Machine> Target for Guest<M> {
    type Arch = Amd64;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, Amd64, Error> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl<M: Machine> SingleThreadBase for Guest<M> {
    fn read_registers(&mut self, registers: &mut Named) -> TargetResult<(), Self> {
        let mut named = self.debugger.machine.registers().map_err(TargetError::Fatal)?;
        named.insert("position".to_owned(), self.debugger.machine.position());
        *registers = Named(named);
        Ok(())
    }

    fn write_registers(&mut self, _: &Named) -> TargetResult<(), Self> {
        Err(TargetError::Errno(EROFS))
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        let bytes = self.debugger.machine.read(start, data.len() as u64).map_err(TargetError::Fatal)?;
        if bytes.is_empty() && !data.is_empty() {
            return Err(TargetError::Errno(EFAULT));
        }
        let len = bytes.len().min(data.len());
        data[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn write_addrs(&mut self, _: u64, _: &[u8]) -> TargetResult<(), Self> {
        Err(TargetError::Errno(EROFS))
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl<M: Machine> SingleThreadResume for Guest<M> {
    /// A signal would be no part of the recording: it is ignored.
    fn resume(&mut self, _: Option<Signal>) -> Result<()> {
        self.order = Order::Continue;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, (), Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, (), Self>> {
        Some(self)
    }
}

impl<M: Machine> SingleThreadSingleStep for Guest<M> {
    fn step(&mut self, _: Option<Signal>) -> Result<()> {
        self.order = Order::Step;
        Ok(())
    }
}

impl<M: Machine> ReverseStep<()> for Guest<M> {
    fn reverse_step(&mut self, (): ()) -> Result<()> {
        self.order = Order::StepBack;
        Ok(())
    }
}

impl<M: Machine> ReverseCont<()> for Guest<M> {
    fn reverse_cont(&mut self) -> Result<()> {
        self.order = Order::GoBack;
        Ok(())
    }
}

impl<M: Machine> Breakpoints for Guest<M> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl<M: Machine> SwBreakpoint for Guest<M> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.toggle(address, true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.toggle(address, false)
    }
}

impl<M: Machine> HwBreakpoint for Guest<M> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.toggle(address, true)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.toggle(address, false)
    }
}

impl<M: Machine> HwWatchpoint for Guest<M> {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.toggle_watch(address, len, kind, true)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.toggle_watch(address, len, kind, false)
    }
}

impl<M: Machine> MonitorCmd for Guest<M> {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<()> {
        match self.monitor(String::from_utf8_lossy(command).trim()) {
            Ok(text) | Err(text) => outputln!(out, "{text}"),
        }
        Ok(())
    }
}
