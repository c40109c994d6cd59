//! `cargo xtask image`: a boot medium for machines that are not in a rig.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::image::Image;
use crate::needs::{self, Need};
use crate::output::say;
use crate::rig::options::CommandLine;
use crate::rig::software::{Software, SoftwareArgs};
use crate::units::format_size;

/// Which image.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Where the image goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    software: SoftwareArgs,
}

/// Makes an image.
pub fn run(arguments: &ImageArgs) -> Result<()> {
    let mut options = CommandLine::given(&arguments.software.hypervisor_option).map_err(anyhow::Error::msg)?;
    needs::ensure_present(&[Need::Target, Need::Grub], arguments.software.yes)?;
    let Software { hypervisor, guest, options: common, .. } = arguments.software.build(|| Ok(None))?;
    options.complete(&[("guest-memory", &format_size(common.guest_memory)), ("guest-args", &common.guest_arguments)]);
    ensure!(
        common.disk.is_none_or(|disk| disk.drive_bytes().is_none()) || options.value("disk").is_some(),
        "say where the machine's drive is: --hypervisor-option disk=nvme:BUS:DEVICE.FUNCTION"
    );
    options.set_disk(&common);
    let secrets: Vec<_> = common.key_modules().collect();
    let words = options.words().collect();
    Image { hypervisor: &hypervisor, guest: &guest, options: words, secrets: &secrets }.write(&arguments.out)?;
    let kept = if secrets.is_empty() { "" } else { " (with the pair's key: keep it as such)" };
    say!("image       {}{kept}", arguments.out.display());
    say!("options     {options}");
    Ok(())
}
