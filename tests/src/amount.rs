//! How much a test does.

use std::str::FromStr;

use anyhow::{Context, Result};

/// The usual amount, unless the environment says otherwise: see CONTRIBUTING.md for the variables.
///
/// # Errors
/// When what it says is no number of this kind.
pub fn amount<T: FromStr>(variable: &str, usual: T) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(usual),
    }
}
