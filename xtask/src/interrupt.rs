//! Ctrl-C and SIGTERM: noted here, looked at by every loop that waits.
//!
//! Nothing is done in the signal handler but setting a flag, so that whoever started something also ends it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static PENDING: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The error of work that was given up because the user asked for it.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Installs the handlers. To be called once, before anything is started.
pub fn install() -> Result<()> {
    let flag = PENDING.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("cannot install a signal handler")?;
    }
    Ok(())
}

/// Whether a signal has arrived.
pub fn pending() -> bool {
    PENDING.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// [`Interrupted`] as an error if a signal has arrived.
pub fn check() -> Result<()> {
    if pending() { Err(Interrupted.into()) } else { Ok(()) }
}
