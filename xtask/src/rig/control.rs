//! The control socket: `cargo xtask rig` asks, the rig answers, one JSON object a line each.

use std::io::{BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::Event;
use super::monitor::read_line;
use super::snapshot::Snapshot;
use crate::interrupt;

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// The rig answers within milliseconds unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a rig is asked while waiting for it.
pub const POLL: Duration = Duration::from_millis(100);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Everything that is known.
    Status,
    /// Cut a machine's power.
    Kill {
        /// `primary`, `backup` or a machine's name.
        target: String,
    },
    /// Start a dead machine as backup.
    StartBackup,
    /// Change a network.
    Link {
        /// `log`, `client`, one machine's cable such as `log:castor`, or `arbiter`.
        network: String,
        /// Such as `delay=5ms` or `down`.
        changes: Vec<String>,
    },
    /// Start or end writing `client.pcap` and `log.pcap`.
    Capture {
        /// Start, or end.
        on: bool,
    },
    /// Send a line to a hypervisor's monitor.
    Command {
        /// `primary`, `backup` or a machine's name.
        target: String,
        /// The line.
        text: String,
    },
    /// Make a second key valid.
    AddKey {
        /// The file with it.
        file: PathBuf,
    },
    /// Forget the older of two keys.
    ForgetKey,
    /// End the rig.
    Stop,
}

/// The answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Response {
    /// Whether it was done.
    pub ok: bool,
    /// What was done, or why not.
    pub message: String,
    /// The answer to [`Request::Status`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Snapshot>>,
}

impl From<Result<String>> for Response {
    fn from(result: Result<String>) -> Self {
        match result {
            Ok(message) => Self { ok: true, message, status: None },
            Err(error) => Self { ok: false, message: format!("{error:#}"), status: None },
        }
    }
}

/// Serves requests at `path` by passing them to the rig's main loop, until the process ends.
pub fn serve(path: &Path, events: SyncSender<Event>) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    let accept = move || {
        let connections = Arc::new(());
        for stream in listener.incoming() {
            // Each connection holds a reference. One too many is closed at once.
            let (Ok(stream), true) = (stream, Arc::strong_count(&connections) <= MAX_CONNECTIONS) else { continue };
            let (events, connection) = (events.clone(), Arc::clone(&connections));
            let serve = move || {
                // The other end may go away at any time.
                let _ = serve_connection(stream, &events);
                drop(connection);
            };
            // Without a thread the connection is closed.
            let _ = thread::Builder::new().name("control".to_owned()).spawn(serve);
        }
    };
    thread::Builder::new().name("control".to_owned()).spawn(accept).context("cannot start a thread")?;
    Ok(())
}

fn serve_connection(stream: UnixStream, events: &SyncSender<Event>) -> Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(line) = read_line(&mut reader)? {
        let response = match serde_json::from_str(&line) {
            Ok(request) => {
                let (reply, answer) = mpsc::channel();
                events.send(Event::Control { request, reply })?;
                answer.recv()?
            }
            Err(error) => Response::from(Err(anyhow!("malformed request: {error}"))),
        };
        let mut line = serde_json::to_string(&response)?;
        line.push('\n');
        writer.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// The asking end.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the rig in `directory`.
    pub fn connect(directory: &Path) -> Result<Self> {
        let file = super::directory::read(directory)?;
        let Some(path) = file.control else { bail!("the rig in {} has ended", directory.display()) };
        let stream = UnixStream::connect(&path).with_context(|| format!("no rig runs in {}", directory.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).context("the rig does not read")
    }

    /// Asks for something; a refusal is an error.
    pub fn ask(&mut self, request: &Request) -> Result<Response> {
        self.send(request)?;
        let answer = read_answer(&mut self.reader)?;
        let response: Response = serde_json::from_str(&answer).context("the rig's answer is malformed")?;
        if response.ok { Ok(response) } else { bail!("{}", response.message) }
    }

    /// Asks for everything that is known.
    pub fn status(&mut self) -> Result<Snapshot> {
        let status = self.ask(&Request::Status)?.status;
        status.map(|status| *status).context("the rig's answer lacks the status")
    }

    /// Waits until a backup follows.
    pub fn wait_for_protection(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !self.status()?.protected {
            interrupt::check()?;
            if Instant::now() >= deadline {
                bail!("not protected after {} s", timeout.as_secs());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Tells the rig to end, and waits until it has closed the connection: perhaps before it has said that it ends.
    pub fn stop(mut self) -> Result<()> {
        self.send(&Request::Stop)?;
        while read_line(&mut self.reader).context("the rig does not end")?.is_some() {}
        Ok(())
    }
}

/// A status is longer than a monitor's line may be.
fn read_answer(reader: &mut BufReader<UnixStream>) -> Result<String> {
    use std::io::BufRead;
    let mut line = String::new();
    let bytes = reader.read_line(&mut line).context("the rig does not answer")?;
    if bytes == 0 { bail!("the rig has ended") } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(request: &Request) -> String {
        serde_json::to_string(request).unwrap()
    }

    #[test]
    fn requests_have_a_stable_form() {
        assert_eq!(json(&Request::Status), r#"{"do":"status"}"#);
        assert_eq!(json(&Request::StartBackup), r#"{"do":"start-backup"}"#);
        assert_eq!(json(&Request::Kill { target: "primary".into() }), r#"{"do":"kill","target":"primary"}"#);
        let link = Request::Link { network: "log".into(), changes: vec!["down".into()] };
        assert_eq!(json(&link), r#"{"do":"link","network":"log","changes":["down"]}"#);
    }

    #[test]
    fn requests_are_answered_and_nonsense_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let (sender, events) = mpsc::sync_channel(4);
        serve(&path, sender).unwrap();
        let main_loop = thread::spawn(move || {
            let Ok(Event::Control { request, reply }) = events.recv() else { panic!() };
            reply.send(Response::from(Ok("done".to_owned()))).unwrap();
            request
        });
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"{}\n{\"do\":\"stop\"}\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut answer = || serde_json::from_str::<Response>(&read_answer(&mut reader).unwrap()).unwrap();
        let (first, second) = (answer(), answer());
        assert!(!first.ok && first.message.contains("malformed request"), "{first:?}");
        assert!(second.ok && second.message == "done", "{second:?}");
        assert_eq!(main_loop.join().unwrap(), Request::Stop);
    }

    #[test]
    fn a_rig_may_end_before_it_has_said_so() {
        use std::io::BufRead;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let rig = thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(listener.accept().unwrap().0).read_line(&mut line).unwrap();
            line
        });
        let client = Client { reader: BufReader::new(UnixStream::connect(&path).unwrap()) };
        client.stop().unwrap();
        assert_eq!(rig.join().unwrap(), "{\"do\":\"stop\"}\n");
    }
}
