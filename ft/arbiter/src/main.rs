//! The program: serves, and shows what was given.

#![forbid(unsafe_code)]

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser};
use pollux_arbiter::cluster::{Access, USUAL_TIMEOUT};
use pollux_arbiter::keys::{self, Keyring, Pair};
use pollux_arbiter::{Service, Store, Words};
use pollux_ft::PairKey;
use pollux_ft::key::KEY_BYTES;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Writes a line to the standard output. What a reader that has gone does not take is lost.
macro_rules! say {
    ($($text:tt)*) => {{
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, $($text)*).and_then(|()| out.flush());
    }};
}

/// How often to look whether we are to end.
const POLL: Duration = Duration::from_millis(50);

/// Gives each term of a pair to at most one of its machines, and remembers it.
#[derive(Debug, Parser)]
#[command(name = "pollux-arbiter")]
enum Task {
    /// Answer the machines of pairs until somebody ends it
    Serve(ServeArgs),
    /// Show the terms in a file or a cluster, also while an arbiter serves with it; changes nothing
    Terms {
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        tls: TlsArgs,
    },
    /// Ask an arbiter for the newest term of a pair
    Newest {
        /// Where it listens
        #[arg(long, value_name = "ADDRESS:PORT")]
        at: SocketAddr,
        #[command(flatten)]
        pair: PairArgs,
    },
    /// Make an arbiter's key file of a pair's key
    Key {
        #[command(flatten)]
        pair: PairArgs,
        /// The key that the pair has had until now: both are valid as long as the arbiter has both files
        #[arg(long, value_name = "FILE")]
        follows: Option<PathBuf>,
        /// Where it goes; for its owner alone
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The address to listen at; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:7003", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    words: WordsArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct PlaceArgs {
    /// The file that keeps the terms; an arbiter creates it if there is none
    #[arg(long)]
    file: Option<PathBuf>,
    /// The members of an etcd cluster that keeps the terms, for any number of arbiters
    #[arg(long, value_name = "https://HOST:PORT,…", value_delimiter = ',')]
    #[arg(requires_all = ["etcd_ca", "etcd_cert", "etcd_key"])]
    etcd: Vec<String>,
}

/// By what the cluster and we know each other, in PEM.
#[derive(Debug, Args)]
struct TlsArgs {
    /// The certificate of whoever signed those of the cluster's members
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_ca: Option<PathBuf>,
    /// The arbiter's certificate for the cluster
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_cert: Option<PathBuf>,
    /// The private key of that certificate, readable by its owner only
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_key: Option<PathBuf>,
    /// How long the machines wait for an answer, their option arbiter-timeout, 100ms to 5s [default: 500ms]: a cluster with
    /// slow rounds needs more, on both sides
    #[arg(long, value_name = "TIME", requires = "etcd", value_parser = parse_timeout)]
    timeout: Option<Duration>,
}

/// Such as `500ms` or `2s`.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    let millis = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(millis), _) => millis.parse().ok(),
        (None, Some(seconds)) => seconds.parse::<u64>().ok().and_then(|seconds| seconds.checked_mul(1000)),
        (None, None) => None,
    };
    let fits = millis.filter(|millis| (100..=5000).contains(millis));
    fits.map(Duration::from_millis).ok_or_else(|| format!("`{text}` is no time from 100ms to 5s"))
}

/// Where terms are.
enum Place {
    File(PathBuf),
    Cluster(Access),
}

impl PlaceArgs {
    fn place(self, tls: TlsArgs) -> Result<Place> {
        if let Some(file) = self.file {
            return Ok(Place::File(file));
        }
        let (Some(ca), Some(certificate), Some(key)) = (tls.etcd_ca, tls.etcd_cert, tls.etcd_key) else {
            bail!("--etcd needs --etcd-ca, --etcd-cert and --etcd-key");
        };
        let timeout = tls.timeout.unwrap_or(USUAL_TIMEOUT);
        Ok(Place::Cluster(Access { members: self.etcd, ca, certificate, key, timeout }))
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct WordsArgs {
    /// The folder with the key files of the pairs, readable by its owner only
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
    /// Speak as an etcd does, in plain words: whoever reaches the address decides which machine lives
    #[arg(long)]
    insecure_etcd: bool,
}

#[derive(Debug, Args)]
struct PairArgs {
    /// The pair's name
    #[arg(long = "pair", default_value = "pollux", value_name = "NAME")]
    name: String,
    /// The pair's key: 32 bytes
    #[arg(long = "key", value_name = "FILE")]
    key: PathBuf,
}

impl PairArgs {
    fn secret(&self) -> Result<[u8; KEY_BYTES]> {
        secret(&self.key)
    }
}

/// The pair's key in a file.
fn secret(file: &Path) -> Result<[u8; KEY_BYTES]> {
    let shown = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("cannot read the key {shown}"))?;
    bytes.try_into().ok().with_context(|| format!("{shown} is no pair's key of {KEY_BYTES} bytes"))
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Serve(arguments) => serve(arguments),
        Task::Terms { place, tls } => terms(&place.place(tls)?),
        Task::Newest { at, pair } => {
            let pair = Pair::new(&pair.name, &PairKey::new(&pair.secret()?));
            match pollux_arbiter::newest_at(at, &pair)? {
                Some(holding) => say!("{} {} {}", pair.name, holding.term, holding.winner),
                None => say!("{} has no term yet", pair.name),
            }
            Ok(())
        }
        Task::Key { pair, follows, file } => {
            let old = follows.as_deref().map(secret).transpose()?;
            keys::write(&pair.name, &pair.secret()?, old.as_ref(), &file)
        }
    }
}

fn serve(arguments: ServeArgs) -> Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("cannot install a signal handler")?;
    }
    let place = arguments.place.place(arguments.tls)?;
    let (keys, how) = match &arguments.words.keys {
        Some(folder) => {
            let keys = Keyring::open(folder)?;
            let how = format!("keys of {} pairs", keys.len());
            (Some(keys), how)
        }
        None => (None, "INSECURE: whoever reaches it decides".to_owned()),
    };
    let service = match (place, keys) {
        (Place::File(file), Some(keys)) => Service::start(arguments.listen, &file, Words::Sealed(keys))?,
        (Place::File(file), None) => Service::start(arguments.listen, &file, Words::Etcd)?,
        (Place::Cluster(access), Some(keys)) => Service::in_front_of(arguments.listen, access.open()?, keys)?,
        (Place::Cluster(_), None) => bail!("--insecure-etcd is for a file: an etcd says its own words"),
    };
    say!("arbiter: listening at {}, {}, {how}", service.address(), service.describe());
    while !ended.load(Ordering::Relaxed) {
        std::thread::sleep(POLL);
    }
    say!("arbiter: ended, {} questions, {} of strangers", service.requests(), service.strangers());
    Ok(())
}

fn terms(place: &Place) -> Result<()> {
    let terms = match place {
        Place::File(file) => Store::read(file)?,
        Place::Cluster(access) => access.terms()?,
    };
    for (key, holder) in terms {
        say!("{key} {holder}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(["100ms", "2s", "5s"].map(|text| parse_timeout(text).unwrap().as_millis()), [100, 2000, 5000]);
        for bad in
            ["", "ms", "99ms", "6s", "5001ms", "1", "1.5s", "-1s", "99999999999999999999s", "18446744073709551615s"]
        {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
    }
}
