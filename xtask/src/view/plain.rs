//! Plain lines, for pipes, scripts and logs.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Key, View, text};
use crate::output::say;
use crate::rig::Rig;
use crate::rig::snapshot::Notice;

/// How often the state is printed even when nothing happens.
const PERIOD: Duration = Duration::from_secs(5);

/// Prints what happens, and the state every few seconds.
#[derive(Debug)]
pub struct Plain {
    next: Instant,
}

impl Plain {
    /// A view on the standard output.
    pub fn new() -> Self {
        Self { next: Instant::now() + PERIOD }
    }
}

impl View for Plain {
    fn notice(&mut self, notice: &Notice) -> Result<()> {
        say!("{}", text::notice(notice));
        Ok(())
    }

    fn refresh(&mut self, rig: &Rig) -> Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + PERIOD;
        say!("{}", text::summary(&rig.snapshot()));
        Ok(())
    }

    fn key(&mut self) -> Result<Option<Key>> {
        Ok(None)
    }

    fn answer(&mut self, _text: String) -> Result<()> {
        Ok(())
    }
}
