//! The machines' logs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// A line from outside without what would have a terminal do anything but show it.
pub fn printable(line: &str) -> String {
    line.replace(char::is_control, "")
}

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
    let all: Vec<_> = text.lines().map(printable).collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}
