//! QEMU's own monitor of a machine in a rig: it is told to write down which blocks it runs. See: QEMU, "QMP Reference".

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::rig::directory;

/// QEMU answers between two blocks.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection.
pub struct Monitor {
    reader: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the emulator of machine `name` of the rig in `directory`.
    pub fn connect(directory: &Path, name: &str) -> Result<Self> {
        let control = directory::read(directory)?.control.context("the rig has ended")?;
        let path = control.with_file_name(format!("{name}.qmp"));
        let stream = UnixStream::connect(&path).with_context(|| format!("no emulator at {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self { reader: BufReader::new(stream) };
        monitor.line()?;
        monitor.execute(&json!({"execute": "qmp_capabilities"}))?;
        Ok(monitor)
    }

    /// From now on each block that is run goes to `file`.
    pub fn write_blocks(&mut self, file: &Path) -> Result<()> {
        let path = file.to_str().context("the rig's directory is not UTF-8")?;
        self.say(&format!("logfile {path}"))?;
        self.say("log exec,nochain")
    }

    /// No more.
    pub fn write_nothing(&mut self) -> Result<()> {
        self.say("log none")
    }

    /// Gives a command as a person would.
    fn say(&mut self, command: &str) -> Result<()> {
        let order = json!({"execute": "human-monitor-command", "arguments": {"command-line": command}});
        match self.execute(&order)?.as_str() {
            Some("") => Ok(()),
            said => bail!("QEMU's answer to `{command}`: {}", said.unwrap_or_default().trim()),
        }
    }

    fn execute(&mut self, order: &Value) -> Result<Value> {
        self.reader.get_mut().write_all(format!("{order}\n").as_bytes()).context("QEMU's monitor")?;
        loop {
            let mut answer = self.line()?;
            // In between there are events.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU's monitor: {error}");
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).context("QEMU's monitor does not answer")?;
        if length == 0 { bail!("the emulator has ended") } else { Ok(serde_json::from_str(&line)?) }
    }
}
