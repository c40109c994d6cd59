//! A real etcd cluster of three members that takes nobody without a certificate, on this desk. The end-to-end tests use it, too.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Members, of which two are a majority.
pub const MEMBERS: usize = 3;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a quota is that is soon used up, in bytes.
const SMALL: &str = "4194304";

/// A certificate and its private key, in PEM.
pub struct Papers {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Who signs certificates.
pub struct Authority {
    directory: PathBuf,
    pub papers: Papers,
}

impl Authority {
    /// A new one, with its files in `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let papers = named(directory, "ca");
        let mut sign = openssl(&["req", "-x509", "-nodes", "-days", "3650", "-subj", "/CN=ca"]);
        sign.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout"]).arg(&papers.key);
        run(sign.arg("-out").arg(&papers.certificate))?;
        Ok(Self { directory: directory.to_owned(), papers })
    }

    /// A certificate for `name` at this desk's own address.
    pub fn sign(&self, name: &str) -> Result<Papers> {
        let (papers, request) = (named(&self.directory, name), self.directory.join(name).with_extension("csr"));
        let mut ask = openssl(&["req", "-nodes", "-subj", &format!("/CN={name}")]);
        ask.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout"]).arg(&papers.key);
        run(ask.arg("-out").arg(&request))?;
        let extensions = self.directory.join("extensions");
        fs::write(&extensions, "basicConstraints=critical,CA:FALSE\nsubjectAltName=IP:127.0.0.1\n")?;
        let mut sign = openssl(&["x509", "-req", "-days", "3650", "-CAcreateserial", "-in"]);
        sign.arg(&request).arg("-extfile").arg(extensions).arg("-out").arg(&papers.certificate);
        run(sign.arg("-CA").arg(&self.papers.certificate).arg("-CAkey").arg(&self.papers.key))?;
        Ok(papers)
    }
}

fn named(directory: &Path, name: &str) -> Papers {
    let path = directory.join(name);
    Papers { certificate: path.with_extension("crt"), key: path.with_extension("key") }
}

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The cluster; ended when dropped.
pub struct Cluster {
    directory: PathBuf,
    pub authority: Authority,
    /// The arbiter's.
    pub papers: Papers,
    members: Vec<Member>,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    /// Whether it is full before the others.
    small: bool,
    process: Option<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            let _ = self.kill(index);
        }
    }
}

/// An address that was free a moment ago.
fn free() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

impl Cluster {
    /// A new one, with all that it has in `directory`, whose member number `small`, if there is such, is soon full. None where
    /// there is no etcd, or no openssl.
    pub fn start(directory: &Path, small: Option<usize>) -> Result<Option<Self>> {
        let has = |program, word| Command::new(program).arg(word).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if has("etcd", "--version").is_err() || has("openssl", "version").is_err() {
            println!("SKIPPED: etcd or openssl is not installed (cargo xtask doctor --yes)");
            return Ok(None);
        }
        let authority = Authority::new(&directory.join("papers"))?;
        authority.sign("member")?;
        let papers = authority.sign("arbiter")?;
        fs::set_permissions(&papers.key, Permissions::from_mode(0o600))?;
        let member = |index| -> Result<_> {
            let name = format!("m{index}");
            Ok(Member { name, client: free()?, peer: free()?, small: small == Some(index), process: None })
        };
        let members = (0..MEMBERS).map(member).collect::<Result<_>>()?;
        let mut cluster = Self { directory: directory.to_owned(), authority, papers, members };
        for index in 0..MEMBERS {
            cluster.revive(index)?;
        }
        cluster.wait("it serves", |cluster| (0..MEMBERS).all(|member| cluster.is_healthy(member)))?;
        Ok(Some(cluster))
    }

    /// What an arbiter is told: of its members, and its papers.
    pub fn arguments(&self) -> Vec<String> {
        self.arguments_by(str::to_owned)
    }

    /// The same, with members that are reached elsewhere: `by` says where.
    pub fn arguments_by(&self, by: impl Fn(&str) -> String) -> Vec<String> {
        let urls: Vec<_> = self.members.iter().map(|member| format!("https://{}", by(&member.client))).collect();
        let file = |path: &Path| path.display().to_string();
        let words = [
            ("--etcd", urls.join(",")),
            ("--etcd-ca", file(&self.authority.papers.certificate)),
            ("--etcd-cert", file(&self.papers.certificate)),
            ("--etcd-key", file(&self.papers.key)),
        ];
        words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Starts a member, with what it had.
    pub fn revive(&mut self, index: usize) -> Result<()> {
        let all = self.members.iter().map(|member| format!("{}=https://{}", member.name, member.peer));
        let all = all.collect::<Vec<_>>().join(",");
        let member = &self.members[index];
        let log =
            File::options().create(true).append(true).open(self.directory.join(format!("{}.log", member.name)))?;
        let ca = &self.authority.papers.certificate;
        let papers = named(&self.directory.join("papers"), "member");
        let [at, between] = [&member.client, &member.peer].map(|address| format!("https://{address}"));
        let mut command = Command::new("etcd");
        command.args(["--name", &member.name, "--data-dir"]).arg(self.data(index));
        command.args(["--listen-client-urls", &at, "--advertise-client-urls", &at]);
        command.args(["--listen-peer-urls", &between, "--initial-advertise-peer-urls", &between]);
        command.args(["--initial-cluster", &all, "--heartbeat-interval=100", "--election-timeout=1000"]);
        for of in ["", "peer-"] {
            command.arg(format!("--{of}cert-file")).arg(&papers.certificate);
            command.arg(format!("--{of}key-file")).arg(&papers.key);
            command.arg(format!("--{of}client-cert-auth")).arg(format!("--{of}trusted-ca-file")).arg(ca);
        }
        if member.small {
            command.arg(format!("--quota-backend-bytes={SMALL}"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.members[index].process = Some(command.spawn().context("etcd")?);
        Ok(())
    }

    /// Where a member has what it knows.
    pub fn data(&self, index: usize) -> PathBuf {
        self.directory.join(&self.members[index].name)
    }

    /// Ends a member, as a power failure does.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    fn is_healthy(&self, index: usize) -> bool {
        self.call(index, "GET /health", "").is_ok_and(|answer| answer.contains("\"true\""))
    }

    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            ensure!(Instant::now() < deadline, "not in time: {what} (see {}/*.log)", self.directory.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The whole answer of a member to an HTTP request, over TLS.
    fn call(&self, index: usize, what: &str, body: &str) -> Result<String> {
        let mut command = openssl(&["s_client", "-quiet", "-no_ign_eof", "-connect", &self.members[index].client]);
        command.arg("-CAfile").arg(&self.authority.papers.certificate);
        command.arg("-cert").arg(&self.papers.certificate).arg("-key").arg(&self.papers.key);
        command.arg("-ign_eof").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn()?;
        let length = body.len();
        let request = format!("{what} HTTP/1.0\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        let sent = process.stdin.take().context("no pipe")?.write_all(request.as_bytes());
        let output = process.wait_with_output()?;
        sent?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes by the member with the small quota until it takes no more. Then no member does.
    pub fn fill(&self) -> Result<()> {
        let full = self.small()?;
        let value = "AAAA".repeat(200_000);
        for key in 1000..1100 {
            let answer = self.call(full, "POST /v3/kv/put", &format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}"))?;
            if answer.contains(" 429 ") {
                return Ok(());
            }
            ensure!(answer.contains(" 200 "), "{answer}");
        }
        bail!("etcd takes everything");
    }

    /// Forgets what filled it, and what it was warned of.
    pub fn make_room(&self) -> Result<()> {
        let full = self.small()?;
        let post = |path: &str, body: &str| {
            let answer = self.call(full, &format!("POST /v3/{path}"), body)?;
            ensure!(answer.contains(" 200 "), "{path}: {answer}");
            Ok(answer)
        };
        // The keys of `fill`, in base64.
        let deleted = post("kv/deleterange", "{\"key\":\"1000\",\"range_end\":\"1100\"}")?;
        let field = |text: &str, name: &str| -> Result<String> {
            let rest = text.split(&format!("\"{name}\":\"")).nth(1).and_then(|rest| rest.split('"').next());
            rest.map(str::to_owned).with_context(|| format!("no {name}: {text}"))
        };
        let revision = field(&deleted, "revision")?;
        post("kv/compaction", &format!("{{\"revision\":\"{revision}\",\"physical\":true}}"))?;
        post("maintenance/defragment", "{}")?;
        let member = field(&post("maintenance/alarm", "{}")?, "memberID")?;
        let disarm = format!("{{\"action\":\"DEACTIVATE\",\"alarm\":\"NOSPACE\",\"memberID\":\"{member}\"}}");
        post("maintenance/alarm", &disarm).map(drop)
    }

    fn small(&self) -> Result<usize> {
        self.members.iter().position(|member| member.small).context("no member has a small quota")
    }
}
