//! The machines' logs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The last lines of a log; nothing if it cannot be read.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    const WINDOW: u64 = 8192;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(WINDOW);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<_> = text.lines().map(|line| line.replace(|c: char| c.is_control(), "")).collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}
