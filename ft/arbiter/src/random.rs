//! Random bytes from the system.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};

/// Bytes that nobody can guess.
///
/// # Errors
/// When the system has none.
pub fn draw<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let drawn = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    drawn.context("no random numbers from /dev/urandom")?;
    Ok(bytes)
}
