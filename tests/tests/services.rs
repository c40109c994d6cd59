//! Debian's servers as protected guests, and what their own clients see of kills.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use pollux_tests::debian;
use pollux_tests::rig::{Rig, TAKEOVER_LIMIT, kills};
use pollux_tests::skip;

const HTTP: u16 = 80;
const SSH: u16 = 22;
const POSTGRESQL: u16 = 5432;

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

/// How long `pgbench` works.
const BUSY: Duration = Duration::from_secs(60);

/// What a client of PostgreSQL's prints.
fn postgres(program: &str, address: &str, arguments: &[&str]) -> Result<String> {
    let output = postgres_client(program, address, arguments)?.output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn postgres_client(program: &str, address: &str, arguments: &[&str]) -> Result<Command> {
    let (host, port) = address.split_once(':').context("no port")?;
    let mut command = Command::new(program);
    command.args(["-h", host, "-p", port, "-U", "postgres"]).args(arguments).env("LC_ALL", "C");
    Ok(command)
}

/// The number behind `label` in what `pgbench` says.
fn number(said: &str, label: &str) -> Result<u64> {
    let line =
        said.lines().find_map(|line| line.strip_prefix(label)).with_context(|| format!("no {label:?}: {said}"))?;
    let digits: String = line.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{label}{line}"))
}

/// Each transaction that was confirmed is there, once, and the books balance.
#[test]
#[ignore = "takes minutes: cargo xtask test rig NAME --long"]
fn transactions_survive_kills() -> Result<()> {
    let kills = kills(2)?;
    if ["psql", "pgbench"].iter().any(|program| Command::new(program).arg("--version").output().is_err()) {
        return skip("psql and pgbench are not installed (Debian: postgresql-client, postgresql-contrib)");
    }
    let Some(mut rig) = debian::protected("postgresql", &["--packages", "postgresql"], &[])? else { return Ok(()) };
    let address = rig.file()?.address(POSTGRESQL)?.to_owned();
    postgres("pgbench", &address, &["-q", "-i", "postgres"])?;
    let seconds = BUSY.as_secs().to_string();
    let mut command = postgres_client("pgbench", &address, &["-n", "-c", "4", "-T", &seconds, "postgres"])?;
    let mut clients =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("pgbench")?;
    for _ in 0..kills {
        std::thread::sleep(BUSY / 15);
        debian::kill_and_replace(&mut rig, |_| {
            std::thread::sleep(BUSY / 15);
            Ok(())
        })?;
    }
    rig.wait("pgbench ends", 4 * BUSY, |_| Ok(clients.try_wait()?.map(drop)))?;
    let output = clients.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "pgbench: {said}{}", String::from_utf8_lossy(&output.stderr));
    let done = number(&said, "number of transactions actually processed:")?;
    ensure!(done > 0 && number(&said, "number of failed transactions:")? == 0, "{said}");
    let books = "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history), \
                 (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                 (SELECT sum(bbalance) FROM pgbench_branches)";
    let found = postgres("psql", &address, &["-At", "-c", books, "postgres"])?;
    let found: Vec<i64> = found.split('|').map(str::parse).collect::<Result<_, _>>().with_context(|| found.clone())?;
    println!("{done} transactions through {kills} kills; {found:?}");
    ensure!(found.len() == 5 && u64::try_from(found[0]) == Ok(done), "{done} were confirmed, {found:?}");
    ensure!(found[2..].iter().all(|sum| *sum == found[1]), "the books do not balance: {found:?}");
    debian::ensure_equal(&mut rig, kills)?;
    rig.stop()
}
