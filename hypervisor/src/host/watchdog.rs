//! The hardware watchdog: it resets a machine that hangs.
//!
//! It is set going when the replica's loop begins, and told that the machine goes on at the end of a turn of that loop
//! alone: whatever keeps a turn from ending, be it this software or the CPU, ends in a reset. A panic stops it, since that
//! has a time of its own for the reset (`reset.rs`). The limit of resets an hour holds here, too: a young machine gets more
//! time, until it may reset itself.
#![allow(unsafe_code)]

mod i6300esb;

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use pollux_ft::{Span, Time};

use self::i6300esb::{Registers, Timer};
use super::pci::{self, Bdf, PciError};
use super::reset;

/// The longest time that it can be set to.
pub const LONGEST: Span = Span::from_millis(i6300esb::LONGEST_MS);
/// How often it is told that the machine goes on, in parts of its time.
const PARTS: u64 = 8;

/// Where the timer is that runs, as a panic needs to know; see [`pack`]. 0: none runs.
static RUNS_AT: AtomicU32 = AtomicU32::new(0);

/// Why a machine cannot be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArmError {
    /// It has no watchdog that we know.
    None,
    /// It has one, which cannot be used.
    Pci(PciError),
    /// Somebody set it going for good, with settings of his own.
    Locked(Bdf),
}

impl fmt::Display for ArmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => {
                f.write_str("option 'watchdog': this machine has none that Pollux knows (i6300esb, PCI 8086:25ab)")
            }
            Self::Pci(error) => write!(f, "option 'watchdog': {error}"),
            Self::Locked(bdf) => write!(f, "option 'watchdog': the firmware has locked the one at {bdf}"),
        }
    }
}

/// Its registers.
#[derive(Debug)]
struct Window(*mut u8);

impl Registers for Window {
    fn write16(&mut self, offset: usize, value: u16) {
        // SAFETY: `Watchdog::arm` made sure that the registers are there, and they are used here alone.
        unsafe { self.0.wrapping_byte_add(offset).cast::<u16>().write_volatile(value) }
    }

    fn write32(&mut self, offset: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.0.wrapping_byte_add(offset).cast::<u32>().write_volatile(value) }
    }
}

/// Where this machine has a watchdog that we know.
#[must_use]
pub fn find() -> Option<Bdf> {
    pci::find(i6300esb::IDS)
}

/// A watchdog that runs.
#[derive(Debug)]
pub struct Watchdog {
    timer: Timer<Window>,
    /// After how long without progress the machine is reset.
    patience: Span,
    /// What the timer is set to, which is longer for a young machine.
    set: Span,
    /// When it is next told that the machine goes on.
    next: Time,
}

impl Watchdog {
    /// Finds this machine's watchdog and sets it going: from `now` on the machine is reset if it makes no progress for as
    /// long as `patience`.
    ///
    /// # Safety
    /// Called once, with all device memory below 4 GiB mapped one to one.
    ///
    /// # Errors
    /// When there is none that can be used.
    pub unsafe fn arm(now: Time, patience: Span) -> Result<Self, ArmError> {
        let bdf = find().ok_or(ArmError::None)?;
        let base = pci::enable_memory(bdf, i6300esb::REGISTER_BYTES).map_err(ArmError::Pci)?;
        if pci::read8(bdf, i6300esb::LOCK) & i6300esb::LOCK_LOCKED != 0 {
            return Err(ArmError::Locked(bdf));
        }
        // SAFETY: the device is a watchdog, and these are its settings.
        unsafe {
            pci::write8(bdf, i6300esb::LOCK, 0);
            pci::write16(bdf, i6300esb::CONFIG, i6300esb::CONFIG_SILENT);
        }
        let mut own = Self { timer: Timer::new(Window(base as *mut u8)), patience, set: Span(0), next: now };
        own.goes_on(now);
        // SAFETY: as before.
        unsafe { pci::write8(bdf, i6300esb::LOCK, i6300esb::LOCK_ENABLE) };
        RUNS_AT.store(pack(bdf), Ordering::Relaxed);
        log::info!("the watchdog at {bdf} resets this machine if it makes no progress for {} ms", patience.0 / 1000);
        Ok(own)
    }

    /// This machine goes on: to be called at the end of each turn, and nowhere else.
    pub fn goes_on(&mut self, now: Time) {
        if now < self.next {
            return;
        }
        let young = reset::due_in().map_or(Span(0), |seconds| Span::from_millis(seconds.saturating_mul(1000)));
        let wanted = time_until_reset(self.patience, young);
        if wanted == self.set {
            self.timer.pet();
        } else {
            self.timer.set(wanted.0 / 1000);
            self.set = wanted;
        }
        self.next = now.after(Span(self.patience.0 / PARTS));
    }
}

/// After how long without progress a machine is reset that may not reset itself for as long as `young`.
fn time_until_reset(patience: Span, young: Span) -> Span {
    patience.max(young).min(LONGEST)
}

/// Stops the watchdog, if one runs: for a panic, which does not return.
pub fn stop() {
    if let Some(bdf) = unpack(RUNS_AT.swap(0, Ordering::Relaxed)) {
        // SAFETY: the device is a watchdog, and this is whether it runs.
        unsafe { pci::write8(bdf, i6300esb::LOCK, 0) };
    }
}

/// A PCI address as a number that is not 0.
fn pack(bdf: Bdf) -> u32 {
    u32::from_be_bytes([1, bdf.bus, bdf.device, bdf.function])
}

fn unpack(number: u32) -> Option<Bdf> {
    let [some, bus, device, function] = number.to_be_bytes();
    (some == 1).then_some(Bdf { bus, device, function })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_machine_gets_more_time() {
        let seconds = |count: u64| Span::from_millis(count * 1000);
        assert_eq!(time_until_reset(seconds(10), seconds(0)), seconds(10));
        assert_eq!(time_until_reset(seconds(10), seconds(60)), seconds(60));
        assert_eq!(time_until_reset(seconds(10), seconds(3600)), LONGEST);
    }

    #[test]
    fn a_panic_finds_the_timer_that_runs() {
        let bdf = Bdf { bus: 0xFF, device: 31, function: 7 };
        assert_eq!((unpack(pack(bdf)), unpack(0)), (Some(bdf), None));
    }
}
