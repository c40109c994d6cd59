//! The arbiter of a desk: gives each term to at most one machine, and remembers it.
//!
//! It speaks the piece of etcd's v3 JSON gateway that the hypervisor asks in, so that a real etcd can take its place.
//! Failures have etcd's form: the status, and a message with gRPC's code. See: grpc, `doc/statuscodes.md`.
//! A rig has one of its own; `cargo xtask arbiter` is one for other machines.

mod http;
mod kv;
pub mod range;
mod store;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use crate::interrupt;
use crate::output::say;
use http::{Request, RequestError, Response};
use kv::CallError;
pub use store::Store;

/// Connections served at a time; one too many is closed at once.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for its request, and for taking the response.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the client's end of the connection, and how many bytes to ignore until then.
const LINGER: Duration = Duration::from_millis(500);
const MAX_IGNORED: u64 = 64 << 10;
/// How often to look whether we are to end.
const POLL: Duration = Duration::from_millis(50);

/// Where to listen, and what to remember in.
#[derive(Debug, Args)]
pub struct ArbiterArgs {
    /// The address to listen at; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:2379", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// The file that keeps the terms; it is created if there is none
    #[arg(long)]
    file: PathBuf,
}

/// Serves until somebody ends it.
pub fn run(arguments: &ArbiterArgs) -> Result<()> {
    let service = Service::start(arguments.listen, &arguments.file)?;
    say!("arbiter: listening at {}, {} keys in {}", service.address(), service.keys(), arguments.file.display());
    while !interrupt::pending() {
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// A term and who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The term.
    pub term: u64,
    /// The winner as it signed: node id and name of the machine.
    pub winner: String,
}

/// A running arbiter. Dropping it ends it.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    requests: AtomicU64,
    stop: AtomicBool,
}

impl Service {
    /// Opens the file and listens.
    ///
    /// # Errors
    /// A file that cannot be used (see [`Store::open`]), an address in use.
    pub fn start(listen: SocketAddr, file: &Path) -> Result<Self> {
        let store = Mutex::new(Store::open(file)?);
        let listener = TcpListener::bind(listen).with_context(|| format!("the arbiter cannot listen at {listen}"))?;
        let address = listener.local_addr().context("the arbiter has no address")?;
        let shared = Arc::new(Shared { store, requests: AtomicU64::new(0), stop: AtomicBool::new(false) });
        let serve = {
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        };
        let thread = std::thread::Builder::new().name("arbiter".to_owned()).spawn(serve);
        Ok(Self { shared, address, thread: Some(thread.context("cannot start a thread for the arbiter")?) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The newest term of a pair.
    pub fn newest(&self, pair: &str) -> Option<Holding> {
        let [first, end] = keys_of(pair);
        let store = self.shared.lock();
        let keys = store.range(&first, Some(&end)).map(|(key, record)| (key.as_str(), record.value.as_str()));
        newest(pair, keys)
    }

    fn keys(&self) -> u64 {
        self.shared.lock().revision() - 1
    }
}

/// The keys of a pair's terms: from the first to before the second.
fn keys_of(pair: &str) -> [String; 2] {
    // The character behind `/` is `0`.
    [format!("pollux/{pair}/"), format!("pollux/{pair}0")]
}

/// The newest term of a pair among keys with their values.
fn newest<'a>(pair: &str, keys: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Holding> {
    let [prefix, _] = keys_of(pair);
    let terms = keys.filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.parse().ok()?, value)));
    terms.max_by_key(|(term, _)| *term).map(|(term, value)| Holding { term, winner: value.to_owned() })
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts. If it cannot be reached it has ended.
        drop(TcpStream::connect_timeout(&self.address, PATIENCE));
        if let Some(thread) = self.thread.take() {
            // Its panic has been reported already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A panic elsewhere leaves the store as it was: what is in memory is on the disk.
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request after the other.
    fn answer(&self, request: &Request) -> Response {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let result = match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v3/kv/txn") => kv::transaction(&mut self.lock(), &request.body),
            ("POST", "/v3/kv/range") => kv::range(&self.lock(), &request.body),
            ("GET", "/health") => Ok(json!({ "health": "true" })),
            (_, "/v3/kv/txn" | "/v3/kv/range") => return Response::error(405, 12, "only by POST"),
            (_, "/health") => return Response::error(405, 12, "only by GET"),
            (_, path) if path.starts_with("/v3") => {
                return Response::error(501, 12, &format!("{path} is not supported by this arbiter; {SUPPORTED}"));
            }
            (_, path) => return Response::error(404, 5, &format!("there is no {path}; {SUPPORTED}")),
        };
        match result {
            Ok(body) => Response::ok(body),
            Err(error @ CallError::Bad(_)) => Response::error(400, 3, &error.to_string()),
            Err(error) if self.lock().has_failed() => Response::error(500, 13, &error.to_string()),
            Err(error) => Response::error(429, 8, &error.to_string()),
        }
    }
}

/// What is supported.
const SUPPORTED: &str = "it has POST /v3/kv/txn and /v3/kv/range, and GET /health";

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let connections = Arc::new(());
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // Each connection holds a reference.
        let (Ok(stream), true) = (stream, Arc::strong_count(&connections) <= MAX_CONNECTIONS) else { continue };
        let (shared, connection) = (Arc::clone(shared), Arc::clone(&connections));
        let serve = move || {
            // The other end may go away at any time.
            let _ = serve_connection(stream, &shared);
            drop(connection);
        };
        // Without a thread the connection is closed.
        let _ = std::thread::Builder::new().name("arbiter".to_owned()).spawn(serve);
    }
}

fn serve_connection(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let response = match http::receive(&mut stream) {
        Ok(request) => shared.answer(&request),
        Err(RequestError::Bad(what)) => Response::error(400, 3, what),
        Err(RequestError::Gone) => return Ok(()),
    };
    response.send(&mut stream)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Closing with bytes unread would reset the connection, and the response might be lost.
    stream.set_read_timeout(Some(LINGER))?;
    std::io::copy(&mut stream.take(MAX_IGNORED), &mut std::io::sink()).map(drop)
}
