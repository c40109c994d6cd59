//! `cargo xtask bench`: the figures of `docs/figures.md`, as a table and as JSON.

mod figures;
mod linux;
mod mmu;
mod pgbench;
mod plain;
mod profile;
pub mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::needs::{self, Need};
use crate::output::{self, complain};
use crate::platform::Platform;
use crate::spinner::Spinner;
use crate::{artefacts, interrupt};

/// Where is measured, and how often.
#[derive(Debug, Clone)]
struct Bench {
    platform: Platform,
    kills: u32,
    /// The hypervisor's image, if it is not built.
    hypervisor: Option<String>,
    /// The pair's key, if it is not drawn.
    key: Option<String>,
}

/// Which figures.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Only these: start, blackout, throughput, latency, overhead, exits, transfer, log-compute, log-idle, log-frame,
    /// linux, mmu, pgbench
    figures: Vec<String>,
    /// The emulator; limits that depend on its speed are for QEMU
    #[arg(long, value_name = "EMULATOR", default_value = "qemu")]
    on: Platform,
    /// How often `blackout` kills the primary
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    kills: u32,
    /// Measure this hypervisor instead of building one: figures of two compare when they are taken one after the other
    #[arg(long, value_name = "PATH")]
    hypervisor: Option<String>,
    /// Instead: in which functions the hypervisor spends its instructions for each request of this guest
    #[arg(
        long,
        value_name = "GUEST",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "counter",
        conflicts_with_all = ["figures", "json"]
    )]
    profile: Option<profile::Subject>,
    /// The pair's key, or `none`, to see what the ciphers cost; without this each rig draws one
    #[arg(long, value_name = "FILE|none")]
    key: Option<String>,
    /// Write them to this file as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Install what is missing
    #[arg(long)]
    yes: bool,
}

/// Measures what was asked for, all of it even when something fails.
pub fn run(arguments: &BenchArgs) -> Result<()> {
    let known = figures::ALL;
    if let Some(unknown) = arguments.figures.iter().find(|name| !known.iter().any(|(key, _)| key == name)) {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        bail!("there is no figure `{unknown}`: they are {}", names.join(", "));
    }
    needs::ensure_present(&[&[Need::Target], arguments.on.needs()].concat(), arguments.yes)?;
    let bench = Bench {
        platform: arguments.on,
        kills: arguments.kills,
        hypervisor: arguments.hypervisor.clone(),
        key: arguments.key.clone(),
    };
    // Built now, so that no figure contains a build.
    let hypervisor = match &bench.hypervisor {
        Some(path) => path.into(),
        None => artefacts::build_hypervisor()?,
    };
    artefacts::build_guests()?;
    if let Some(subject) = arguments.profile {
        return profile::run(&bench, &hypervisor, subject);
    }
    let wanted = known
        .iter()
        .filter(|(key, _)| arguments.figures.is_empty() || arguments.figures.iter().any(|name| name == key));
    let mut figures = Vec::new();
    for (name, measure) in wanted {
        let spinner = Spinner::start(format!("measuring {name}"));
        let result = measure(&bench);
        interrupt::check()?;
        match result {
            Ok(measured) => {
                spinner.done();
                figures.extend(measured);
            }
            Err(error) => {
                drop(spinner);
                complain!("{name}: {error:#}");
                figures.push(report::Figure::failed(name, &format!("{error:#}")));
            }
        }
    }
    output::lines(report::table(&figures));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let missed = figures.iter().filter(|figure| !figure.reached()).count();
    if missed == 0 { Ok(()) } else { bail!("{missed} of {} figures are not as wanted", figures.len()) }
}
