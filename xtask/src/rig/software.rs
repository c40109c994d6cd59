//! What machines run: hypervisor, guest, and their options.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::options::{Common, GUEST_ARGUMENTS, GivenOption, parse_guest_arguments};
use crate::artefacts;
use crate::units::parse_size;

/// The guest unless another one is named. It speaks the protocol that a rig can probe.
pub const DEFAULT_GUEST: &str = "counter";
/// Guest memory that makes sense.
const MEMORY_RANGE: std::ops::RangeInclusive<u64> = 8 << 20..=3 << 30;

/// What is to run.
#[derive(Debug, Args)]
pub struct SoftwareArgs {
    /// One of our guests, or the path of an image
    #[arg(long, default_value = DEFAULT_GUEST, value_name = "NAME|PATH")]
    pub guest: String,
    /// The guest's command line
    #[arg(long, default_value = GUEST_ARGUMENTS, value_name = "TEXT", value_parser = parse_guest_arguments)]
    guest_args: String,
    /// The guest's memory
    #[arg(long, default_value = "64M", value_name = "SIZE", value_parser = parse_memory)]
    guest_memory: u64,
    /// An option of the hypervisors, or of one: [MACHINE:]KEY=VALUE (repeatable)
    #[arg(long, value_name = "OPTION", num_args = 1..)]
    hypervisor_option: Vec<GivenOption>,
    /// Use this hypervisor instead of building one
    #[arg(long, value_name = "PATH")]
    hypervisor: Option<PathBuf>,
    /// Install what is missing
    #[arg(long)]
    pub yes: bool,
}

/// What runs.
#[derive(Debug)]
pub struct Software {
    /// The hypervisor's image.
    pub hypervisor: PathBuf,
    /// The guest's image.
    pub guest: PathBuf,
}

impl SoftwareArgs {
    /// Builds what is ours.
    pub fn build(&self) -> Result<Software> {
        // The guest first: a wrong name should not have to wait for the hypervisor's build.
        let guest = artefacts::guest(&self.guest, self.guest_memory)?;
        let hypervisor = match &self.hypervisor {
            Some(path) => path.canonicalize().with_context(|| format!("hypervisor {}", path.display()))?,
            None => artefacts::build_hypervisor()?,
        };
        Ok(Software { hypervisor, guest })
    }

    /// The options of the hypervisors.
    pub fn options(&self) -> Common {
        Common {
            guest_memory: self.guest_memory,
            guest_arguments: self.guest_args.clone(),
            given: self.hypervisor_option.clone(),
        }
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if !bytes.is_multiple_of(2 << 20) || !MEMORY_RANGE.contains(&bytes) {
        return Err(format!("`{text}` is not an even number of MiB from 8M to 3G"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_limits() {
        assert_eq!(parse_memory("64M"), Ok(64 << 20));
        for bad in ["1M", "4G", "64", "5000K", "x"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
