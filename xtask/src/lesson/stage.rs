//! Where a lesson is played: its rigs, its client, and what it says meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::driven::DrivenRig;
use crate::output::say;
use crate::platform::Platform;
use crate::timeline;

/// How long a takeover may take on a busy desk.
pub const TAKEOVER_LIMIT: Duration = Duration::from_secs(30);

/// Where a lesson is played.
#[derive(Debug)]
pub struct Stage {
    directory: PathBuf,
    hypervisor: Option<PathBuf>,
    guests: Option<PathBuf>,
}

impl Stage {
    /// With rigs below `directory`.
    pub fn new(directory: PathBuf, hypervisor: Option<PathBuf>, guests: Option<PathBuf>) -> Self {
        Self { directory, hypervisor, guests }
    }

    /// A protected pair with one of our guests, called `name`.
    pub fn pair(&self, name: &str, guest: &str, arguments: &[&str]) -> Result<DrivenRig> {
        let mut rig = self.begin(name, guest, arguments)?;
        rig.wait_for_protection()?;
        Ok(rig)
    }

    /// The same as soon as its machines are started.
    pub fn begin(&self, name: &str, guest: &str, arguments: &[&str]) -> Result<DrivenRig> {
        let guest = self.guests.as_ref().map_or_else(|| guest.into(), |directory| directory.join(guest));
        let guest = guest.to_string_lossy();
        let hypervisor = self.hypervisor.as_ref().map(|path| path.to_string_lossy());
        let mut all = vec!["--guest", guest.as_ref()];
        all.extend(hypervisor.iter().flat_map(|path| ["--hypervisor", path.as_ref()]));
        all.extend(arguments);
        let directory = self.directory.join(name);
        say!("  {name}: starting two machines{}", of_note(arguments));
        DrivenRig::start_in(Platform::Qemu, &directory, &all)
    }

    /// Ends a rig and says where its timeline is.
    pub fn end(&self, rig: DrivenRig) -> Result<PathBuf> {
        let directory = rig.directory().to_owned();
        rig.end()?;
        let page = timeline::write(&directory)?;
        say!("    timeline: {}", page.display());
        Ok(directory)
    }

    /// What happens now.
    pub fn tell(&self, text: &str) {
        say!("    {text}");
    }
}

/// The options that a reader should see.
fn of_note(arguments: &[&str]) -> String {
    if arguments.is_empty() { String::new() } else { format!(" with {}", arguments.join(" ")) }
}
