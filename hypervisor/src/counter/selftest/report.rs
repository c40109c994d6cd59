//! Results of a self-test: name, want and got.

use alloc::format;
use alloc::vec::Vec;
use core::fmt;

/// A count that no run can have: the guest did something else than expected.
pub const NONSENSE: u64 = u64::MAX;

/// What a result must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// This.
    Is(u64),
    /// This or less.
    AtMost(u64),
    /// This or more.
    AtLeast(u64),
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(value) => f.pad(&format!("{value}")),
            Self::AtMost(value) => f.pad(&format!("<= {value}")),
            Self::AtLeast(value) => f.pad(&format!(">= {value}")),
        }
    }
}

/// One result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was measured.
    pub name: &'static str,
    /// What it must be.
    pub want: Want,
    /// What it was; [`NONSENSE`] when the guest did something else than its code says.
    pub got: u64,
}

impl Check {
    /// Whether it is as it must be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.got != NONSENSE
            && match self.want {
                Want::Is(value) => self.got == value,
                Want::AtMost(value) => self.got <= value,
                Want::AtLeast(value) => self.got >= value,
            }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: want {}, got {}", self.name, self.want, Got(self.got))
    }
}

/// A result in a table.
struct Got(u64);

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == NONSENSE { f.pad("nonsense") } else { f.pad(&format!("{}", self.0)) }
    }
}

/// All results.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// In the order in which they were measured.
    pub checks: Vec<Check>,
}

impl Report {
    /// Notes a result and returns whether it is as it must be.
    pub fn check(&mut self, name: &'static str, want: Want, got: u64) -> bool {
        let check = Check { name, want, got };
        let passed = check.passed();
        self.checks.push(check);
        passed
    }

    /// Whether the counter may be used. No data is a failure.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(Check::passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {:<52} {:>9} {:>9}", "check", "want", "got")?;
        for check in &self.checks {
            let verdict = if check.passed() { "ok" } else { "FAILED" };
            writeln!(f, "  {:<52} {:>9} {:>9} {verdict}", check.name, check.want, Got(check.got))?;
        }
        Ok(())
    }
}
