//! For tests only: the machine goes out, as by a power cut, at a chosen boundary of the protocol.
//!
//! The boundaries are those between which a primary that dies leaves its twin with different knowledge: each entry of
//! the log before any of it was sent, each batch that was handed to the log NIC, and each frame before and after it
//! left the gate.

use core::fmt::Display;
use core::num::NonZeroU64;

use crate::host::interrupts;

/// Counts boundaries down to the cut.
#[derive(Debug, Default)]
pub struct Cut {
    left: Option<NonZeroU64>,
}

impl Cut {
    /// This machine goes out at the boundary `count` ahead: 1 is the next one. 0 calls it off.
    pub fn arm(&mut self, count: u64) {
        self.left = NonZeroU64::new(count);
    }

    /// Whether a cut is ahead.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.left.is_some()
    }

    /// A boundary, called `name` in the last line of this machine's log.
    pub fn boundary(&mut self, name: &dyn Display) {
        let Some(left) = self.left else { return };
        self.left = NonZeroU64::new(left.get() - 1);
        if self.left.is_none() {
            log::warn!("test: the power is cut: {name}");
            interrupts::power_cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_counted_only_when_armed() {
        let mut cut = Cut::default();
        cut.boundary(&"logged clock");
        assert!(!cut.is_armed());
        cut.arm(3);
        cut.boundary(&"logged clock");
        cut.boundary(&"sent");
        assert_eq!(cut.left, NonZeroU64::new(1));
        cut.arm(0);
        cut.boundary(&"sent");
        assert!(!cut.is_armed());
    }
}
