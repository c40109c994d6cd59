//! What the user sees of a running rig.

pub mod live;
mod machine;
pub mod plain;
pub mod text;
pub mod wrap;

use anyhow::Result;

use crate::rig::Rig;
use crate::rig::snapshot::Notice;

/// What the user can ask for by a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// p
    KillPrimary,
    /// b
    KillBackup,
    /// n
    NewBackup,
    /// q, Esc or Ctrl-C
    Quit,
}

/// A way to show a rig.
pub trait View {
    /// Something has happened.
    fn notice(&mut self, notice: &Notice) -> Result<()>;
    /// Called often; shows the state when it is time to.
    fn refresh(&mut self, rig: &Rig) -> Result<()>;
    /// A key, if one was pressed.
    fn key(&mut self) -> Result<Option<Key>>;
    /// What became of the last key; empty if there is nothing to say.
    fn answer(&mut self, text: String) -> Result<()>;
}
