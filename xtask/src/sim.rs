//! `cargo xtask sim`: builds the simulator and runs it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::artefacts;
use crate::process::Process;

/// A simulation that takes longer hangs; ten million seeds take less.
const LIMIT: Duration = Duration::from_secs(48 * 3600);

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
