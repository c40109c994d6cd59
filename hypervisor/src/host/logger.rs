//! The `log` backend: one line a record on COM1.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

use pollux_ft::Time;

use super::serial;

struct Logger;

static LOGGER: Logger = Logger;

/// Wall time shown in front of each line, in microseconds; the main loop keeps it up to date.
static NOW: AtomicU64 = AtomicU64::new(0);

/// Makes `log` write to COM1.
pub fn start(level: LevelFilter) {
    // Fails only when a logger is set already, which is then this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Sets the time shown in front of lines.
pub fn set_time(now: Time) {
    NOW.store(now.0, Ordering::Relaxed);
}

struct Lines;

impl Write for Lines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (index, part) in text.split('\n').enumerate() {
            if index > 0 {
                serial::LOG.write(b"\r\n");
            }
            serial::LOG.write(part.as_bytes());
        }
        Ok(())
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let now = NOW.load(Ordering::Relaxed);
        let target = record.target().rsplit("::").next().unwrap_or_default();
        // The serial line never reports an error.
        let _ = writeln!(
            Lines,
            "[{:5}.{:06}] {:5} {target}: {}",
            now / 1_000_000,
            now % 1_000_000,
            record.level(),
            record.args()
        );
    }

    fn flush(&self) {}
}

/// Writes a line of text to the log without a record around it (self-test tables, the panic message).
pub fn raw(args: fmt::Arguments<'_>) {
    let _ = writeln!(Lines, "{args}");
}
