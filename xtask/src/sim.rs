//! `cargo xtask sim`: builds the simulator and runs it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::artefacts;
use crate::process::Process;

/// No limit to speak of: the simulator itself sees to it that each run ends, and runs may go on for ever.
const LIMIT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What the simulator is told.
#[derive(Debug, Args)]
pub struct SimArgs {
    /// The simulator's own options; `cargo xtask sim --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the simulator; its exit status says whether all is well.
pub fn run(arguments: &SimArgs) -> Result<()> {
    let program = artefacts::build_simulator()?;
    let status = Process::spawn(Command::new(program).args(&arguments.arguments))?.wait(LIMIT)?;
    if !status.success() {
        bail!("the simulation failed ({status})");
    }
    Ok(())
}
