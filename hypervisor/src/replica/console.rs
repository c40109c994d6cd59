//! The guest's console output: by whole lines in this machine's log, as it comes on the monitor.

use alloc::string::String;
use alloc::vec::Vec;

use super::json::Json;
use super::monitor;

/// Longest console line that is kept together, in bytes.
const MAX_LINE: usize = 256;

/// A line that is not complete.
#[derive(Debug, Default)]
pub(super) struct Console {
    line: Vec<u8>,
    /// Bytes of the line that the monitor has.
    shown: usize,
}

impl Console {
    /// Text of the guest.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\r' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() == MAX_LINE {
                self.show();
                log::info!("guest: {}", String::from_utf8_lossy(self.line.trim_ascii_end()));
                self.line.clear();
                self.shown = 0;
            }
        }
    }

    /// Shows what the monitor does not have yet, such as a prompt.
    pub(super) fn show(&mut self) {
        if self.shown < self.line.len() {
            let mut json = Json::line("console");
            json.text("text", &String::from_utf8_lossy(&self.line[self.shown..]));
            monitor::send(json);
            self.shown = self.line.len();
        }
    }
}
