//! `cargo xtask arbiter`: builds the program `pollux-arbiter`, and becomes it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::artefacts;
use crate::needs::{self, Need};

/// What the arbiter is told.
#[derive(Debug, Args)]
pub struct ArbiterArgs {
    /// The arbiter's own words; `cargo xtask arbiter --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs it in the place of this process.
pub fn run(arguments: &ArbiterArgs) -> Result<()> {
    let with_etcd = arguments.arguments.iter().any(|word| word == "--etcd" || word.starts_with("--etcd="));
    if with_etcd {
        needs::ensure_present(&[Need::Protoc], false)?;
    }
    let program = artefacts::build_arbiter(with_etcd)?;
    let failed = Command::new(&program).args(&arguments.arguments).exec();
    Err(failed).with_context(|| format!("cannot run {}", program.display()))
}
