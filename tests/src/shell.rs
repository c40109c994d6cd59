//! A shell on the console of a Debian.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::debian::{BOOT_LIMIT, ensure_undisturbed};
use crate::rig::Rig;

/// What a guest writes when it has booted.
pub const LOGIN: &str = "pollux login: ";

/// How often the guest's console has said `text`.
#[must_use]
pub fn said(rig: &Rig, text: &str) -> usize {
    rig.read("console.log").matches(text).count()
}

/// Logs in on the console as soon as it asks, after so many boots, and gives a command there.
///
/// # Errors
/// When there is no shell.
pub fn give(rig: &mut Rig, boots: usize, command: &str) -> Result<()> {
    const SHELL: &str = "built-in shell";
    rig.wait("the guest asks for a login", BOOT_LIMIT, |rig| Ok((said(rig, LOGIN) >= boots).then_some(())))?;
    rig.ask(&["console", "root"])?;
    rig.wait("there is a shell", BOOT_LIMIT, |rig| Ok((said(rig, SHELL) >= boots).then_some(())))?;
    rig.ask(&["console", command]).map(drop)
}

/// Commands that are waited for, one after the other.
#[derive(Debug)]
pub struct Shell {
    number: usize,
}

impl Shell {
    /// Logs in on the console of a guest that boots for the first time.
    ///
    /// # Errors
    /// See [`give`].
    pub fn open(rig: &mut Rig) -> Result<Self> {
        // Without an echo, and without the exits that editing a line costs.
        give(rig, 1, "stty -echo; exec sh -c 'while read -r line; do eval \"$line\"; done'")?;
        let mut shell = Self { number: 0 };
        shell.run(rig, "true", BOOT_LIMIT)?;
        Ok(shell)
    }

    /// What `command` wrote to its end. The twins must be equal meanwhile.
    ///
    /// # Errors
    /// When it fails, takes longer than `limit`, or the twins differ.
    pub fn run(&mut self, rig: &mut Rig, command: &str, limit: Duration) -> Result<String> {
        self.number += 1;
        let end = format!("end-of-{}:", self.number);
        let begun = rig.read("console.log").len();
        // The words that are typed must not look like the end.
        rig.ask(&["console", &format!("{command}; echo end-of-$(({}+0)): $?.", self.number)])?;
        let text = rig.wait(command, limit, |rig| {
            ensure_undisturbed(rig)?;
            let console = rig.read("console.log");
            let text = console.get(begun..).unwrap_or_default();
            let over = text.find(&end).is_some_and(|at| text[at..].contains('.'));
            Ok(over.then(|| text.to_owned()))
        })?;
        let (said, status) = text.split_once(&end).context("no end")?;
        ensure!(status.trim_start().starts_with("0."), "`{command}` failed:\n{text}");
        Ok(said.to_owned())
    }
}
