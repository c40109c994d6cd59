//! Rules that are switched off on purpose (`break=`), for tests and for lessons: each shows the anomaly that it prevents.

/// A rule that is switched off, for tests and teaching only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenRule {
    /// Output leaves without waiting for the twin.
    OutputRule,
    /// A machine that follows applies each input one instruction after the one that the log says.
    ExactStop,
    /// The guest's reads of the TSC also depend on the time of the machine that it runs on.
    Time,
    /// A frame reaches guest memory as a card's DMA would bring it: one half at the logged position, the other half when
    /// this machine comes to it.
    BounceBuffer,
    /// A backup goes live although its guest has not executed the whole log.
    Drain,
}

impl BrokenRule {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::OutputRule, Self::ExactStop, Self::Time, Self::BounceBuffer, Self::Drain];

    /// Its name, as `break=` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutputRule => "output-rule",
            Self::ExactStop => "exact-stop",
            Self::Time => "time",
            Self::BounceBuffer => "bounce-buffer",
            Self::Drain => "drain",
        }
    }

    /// The rule with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.name() == name)
    }

    /// What may come of it, for the log.
    #[must_use]
    pub const fn warning(self) -> &'static str {
        match self {
            Self::OutputRule => "clients may see replies that get lost",
            Self::ExactStop => "the twins get their inputs at different instructions",
            Self::Time => "the twins read different times",
            Self::BounceBuffer => "the twins may see different parts of a frame",
            Self::Drain => "a successor may not know what clients have been told",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_their_rules_and_nothing_else_does() {
        for rule in BrokenRule::ALL {
            assert_eq!(BrokenRule::named(rule.name()), Some(rule));
        }
        assert_eq!(BrokenRule::named("everything"), None);
    }
}
