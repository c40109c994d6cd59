//! Debian's servers as protected guests, and what their own clients see of kills.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};
use pollux_tests::debian;
use pollux_tests::rig::{Rig, TAKEOVER_LIMIT, kills};

const HTTP: u16 = 80;
const SSH: u16 = 22;

/// Somebody who asks a web server again and again, one request at a time.
struct Visitor {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
}

impl Visitor {
    /// Requests of one connection: behind them a new one is made, also while the machines change.
    const OF_ONE_CONNECTION: usize = 50;

    fn start(address: &str) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count, address) = (Arc::clone(&stop), Arc::clone(&served), address.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let stream = TcpStream::connect(&address)?;
                stream.set_read_timeout(Some(TAKEOVER_LIMIT))?;
                let mut stream = BufReader::new(stream);
                for number in 0..Self::OF_ONE_CONNECTION {
                    request(&mut stream).with_context(|| format!("request {number} of a connection"))?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        Self { stop, served, thread }
    }

    fn wait_served(&self, rig: &mut Rig, more: usize) -> Result<()> {
        let goal = self.served.load(Ordering::Relaxed) + more;
        rig.wait("pages are served", TAKEOVER_LIMIT, |_| {
            ensure!(!self.thread.is_finished(), "a request failed");
            Ok((self.served.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    /// Ends; how many requests were answered. An error if one was not.
    fn stop(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the visitor panicked"))??;
        Ok(self.served.load(Ordering::Relaxed))
    }
}

/// A page, whole.
fn request(stream: &mut BufReader<TcpStream>) -> Result<()> {
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n")?;
    let (mut head, mut length) = (String::new(), None);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "the connection ended after {head:?}");
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>()?);
        }
        head += &line;
    }
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head:?}");
    let mut page = vec![0; length.with_context(|| format!("no length: {head:?}"))?];
    stream.read_exact(&mut page)?;
    ensure!(page.ends_with(b"</html>\n"), "{:?}", String::from_utf8_lossy(&page));
    Ok(())
}

/// Somebody who is logged in over SSH, with a key, and types lines that come back.
struct Session {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Session {
    fn open(address: &str, key: &Path) -> Result<Self> {
        let (host, port) = address.split_once(':').context("no port")?;
        let mut command = Command::new("ssh");
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]);
        command.args(["-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-i"]).arg(key);
        command.args(["-p", port, &format!("root@{host}"), "hostname; exec cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("ssh")?;
        let (input, output) = (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut session = Self { child, input, lines };
        session.expect("pollux")?;
        Ok(session)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("ssh has ended")?;
        self.expect(line)
    }

    fn expect(&mut self, line: &str) -> Result<()> {
        match self.lines.recv_timeout(2 * TAKEOVER_LIMIT) {
            Ok(said) if said == line => Ok(()),
            Ok(said) => bail!("{said:?} instead of {line:?}"),
            Err(error) => bail!("no {line:?}: {error}"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn a_web_server_and_a_shell_survive_a_kill() -> Result<()> {
    let kills = kills(1)?;
    let Some(key) = debian::ssh_key()? else { return Ok(()) };
    let public = key.with_extension("pub");
    let guest = ["--packages", "nginx-light,openssh-server", "--ssh-key", public.to_str().context("a path")?];
    let Some(mut rig) = debian::protected("services", &guest, &[])? else { return Ok(()) };
    let file = rig.file()?;
    let mut session = Session::open(file.address(SSH)?, &key)?;
    let visitor = Visitor::start(file.address(HTTP)?);
    for kill in 0..kills {
        visitor.wait_served(&mut rig, 60)?;
        session.say(&format!("before kill {kill}"))?;
        debian::kill_and_replace(&mut rig, |rig| {
            session.say(&format!("after kill {kill}"))?;
            visitor.wait_served(rig, 60)
        })?;
    }
    session.say("at the end")?;
    println!("{} requests, none failed", visitor.stop()?);
    debian::ensure_equal(&mut rig, kills)?;
    rig.stop()
}
