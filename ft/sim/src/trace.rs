//! What happened, in words for people and as a hash for comparison.

use crate::rng::mix;
use crate::world::event::Event;
use std::collections::VecDeque;
use std::fmt;

/// Who something happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Machine(usize),
    Client(usize),
    Arbiter,
    World,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(index) => f.pad(["castor", "pollux", "spare"][*index]),
            Self::Client(index) => f.pad(&format!("client {index}")),
            Self::Arbiter => f.pad("arbiter"),
            Self::World => f.pad("world"),
        }
    }
}

/// How much of a run is kept as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Only the hash.
    Nothing,
    /// The newest lines.
    Last(usize),
    /// Every line.
    All,
}

/// The trace of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    keep: Keep,
    lines: VecDeque<String>,
    hash: u64,
}

impl Trace {
    pub(crate) fn new(keep: Keep) -> Self {
        Self { keep, lines: VecDeque::new(), hash: 0 }
    }

    /// An event is about to happen.
    pub(crate) fn note_event(&mut self, now: u64, event: &Event) {
        let (who, number) = event.tag();
        self.hash = mix(mix(self.hash, now), number);
        if self.keep != Keep::Nothing
            && let Some(words) = event.words()
        {
            self.line(now, who, &words);
        }
    }

    /// Something happened; the hash takes `numbers`, and `text` is only asked for when text is kept.
    pub(crate) fn note(&mut self, now: u64, who: Who, numbers: [u64; 2], text: impl FnOnce() -> String) {
        self.hash = mix(mix(self.hash, now), mix(numbers[0], numbers[1]));
        if self.keep != Keep::Nothing {
            self.line(now, who, &text());
        }
    }

    fn line(&mut self, now: u64, who: Who, text: &str) {
        if let Keep::Last(most) = self.keep
            && self.lines.len() >= most
        {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>4}.{:06} s  {who:<9} {text}", now / 1_000_000, now % 1_000_000));
    }

    /// A hash of all that was noted.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines that were kept.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}
