//! Where the guest's outputs go: frames to the gate, console text to this machine's log and monitor.

use alloc::string::String;
use alloc::vec::Vec;

use super::client::Client;
use super::json::Json;
use super::monitor;
use crate::platform::{Outputs, PowerEvent};

/// Longest console line that is kept together, in bytes.
const MAX_LINE: usize = 256;

/// The guest's console output: by whole lines in this machine's log, as it comes on the monitor.
#[derive(Debug, Default)]
pub(super) struct Console {
    line: Vec<u8>,
    /// Bytes of the line that the monitor has.
    shown: usize,
}

impl Console {
    fn take(&mut self, bytes: &[u8]) {
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

/// The outputs of a guest that runs for the clients: frames go to the gate, which decides when they leave.
pub(super) struct Live<'a> {
    pub(super) client: Option<&'a mut Client>,
    pub(super) console: &'a mut Console,
    pub(super) now_us: u64,
}

impl Outputs for Live<'_> {
    fn frame(&mut self, frame: &[u8]) {
        if let Some(client) = &mut self.client {
            client.transmit(frame, self.now_us);
        }
    }

    fn console(&mut self, bytes: &[u8]) {
        self.console.take(bytes);
    }

    fn power(&mut self, _: PowerEvent) {}
}

/// The outputs of a guest that follows a log: frames go to the gate, which retains them in case that this machine goes
/// live; the console is the primary's affair.
pub(super) struct Shadow<'a> {
    pub(super) client: Option<&'a mut Client>,
    pub(super) now_us: u64,
}

impl Outputs for Shadow<'_> {
    fn frame(&mut self, frame: &[u8]) {
        if let Some(client) = &mut self.client {
            client.transmit(frame, self.now_us);
        }
    }

    fn console(&mut self, _: &[u8]) {}

    fn power(&mut self, _: PowerEvent) {}
}
