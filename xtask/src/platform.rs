//! The emulators that tests and measurements choose from.

use clap::ValueEnum;

use crate::needs::Need;

/// What plays the machines of a rig.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Platform {
    /// QEMU
    Qemu,
    /// Bochs
    Bochs,
}

impl Platform {
    /// What has to be installed for it.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Qemu => &[Need::Qemu],
            Self::Bochs => &[Need::Bochs, Need::Grub],
        }
    }

    /// The verb of `cargo xtask` that starts a rig in it.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        }
    }
}
