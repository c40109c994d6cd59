//! Listens, and answers each question on a connection of its own.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use pollux_ft::arbiter::{pair_prefix, sealed::Unauthentic};

use crate::http;
use crate::keys::Keyring;
use crate::sealed;
use crate::store::Store;

/// Connections served at a time. One more ends the oldest: a question takes a moment, so that those which last are others'.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for its question, and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the client's end of the connection, and how many bytes to ignore until then.
const LINGER: Duration = Duration::from_millis(500);
const MAX_IGNORED: u64 = 64 << 10;

/// How the service is spoken to.
#[derive(Debug)]
pub enum Words {
    /// In sealed records, by the pairs that have one of these keys.
    Sealed(Keyring),
    /// In etcd's plain words, by anybody.
    Etcd,
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
    words: Words,
    store: Mutex<Store>,
    requests: AtomicU64,
    strangers: AtomicU64,
    doors: Mutex<Doors>,
    stop: AtomicBool,
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Doors {
    next: u64,
    open: VecDeque<(u64, TcpStream)>,
}

impl Doors {
    /// Takes one more in; its number.
    fn enter(&mut self, stream: TcpStream) -> u64 {
        if self.open.len() >= MAX_CONNECTIONS
            && let Some((_, oldest)) = self.open.pop_front()
        {
            // Whoever reads from it finds its end.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        self.next += 1;
        self.open.push_back((self.next, stream));
        self.next
    }

    fn leave(&mut self, number: u64) {
        self.open.retain(|(other, _)| *other != number);
    }
}

/// A panic elsewhere leaves what it guards as it was: of the store, what is in memory is on the disk.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    /// Opens the file and listens.
    ///
    /// # Errors
    /// A file that cannot be used (see [`Store::open`]), an address in use.
    pub fn start(listen: SocketAddr, file: &Path, words: Words) -> Result<Self> {
        let store = Mutex::new(Store::open(file)?);
        let listener = TcpListener::bind(listen).with_context(|| format!("the arbiter cannot listen at {listen}"))?;
        let address = listener.local_addr().context("the arbiter has no address")?;
        let shared = Arc::new(Shared {
            words,
            store,
            requests: AtomicU64::new(0),
            strangers: AtomicU64::new(0),
            doors: Mutex::default(),
            stop: AtomicBool::new(false),
        });
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

    /// Questions so far of those who may ask.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Connections so far of those who may not.
    pub fn strangers(&self) -> u64 {
        self.shared.strangers.load(Ordering::Relaxed)
    }

    /// The newest term of a pair.
    pub fn newest(&self, pair: &str) -> Option<Holding> {
        newest_in(&lock(&self.shared.store), pair)
    }

    /// How many terms it has given.
    pub fn terms(&self) -> u64 {
        lock(&self.shared.store).revision() - 1
    }
}

/// The keys of a pair's terms: from the first to before the second.
pub fn keys_of(pair: &str) -> [String; 2] {
    let first = pair_prefix(pair);
    // The character behind `/` is `0`.
    let end = format!("{}0", &first[..first.len() - 1]);
    [first, end]
}

/// The newest term of a pair in a store.
pub fn newest_in(store: &Store, pair: &str) -> Option<Holding> {
    newest(pair, terms_of(store, pair))
}

/// The keys and values of all terms of a pair.
pub fn terms_of<'a>(store: &'a Store, pair: &str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    let [first, end] = keys_of(pair);
    let keys = store.range(&first, None).take_while(move |(key, _)| **key < end);
    keys.map(|(key, record)| (key.as_str(), record.value.as_str()))
}

/// The newest term of a pair among keys with their values.
pub fn newest<'a>(pair: &str, keys: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Holding> {
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

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, other)) = stream.and_then(|stream| stream.try_clone().map(|other| (stream, other))) else {
            continue;
        };
        let (shared, number) = (Arc::clone(shared), lock(&shared.doors).enter(other));
        let serve = {
            let shared = Arc::clone(&shared);
            move || {
                // The other end may go away at any time.
                let _ = serve(stream, &shared);
                lock(&shared.doors).leave(number);
            }
        };
        if std::thread::Builder::new().name("arbiter".to_owned()).spawn(serve).is_err() {
            // Without a thread the connection is closed.
            lock(&shared.doors).leave(number);
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    match &shared.words {
        Words::Sealed(keys) => match sealed::serve(&mut stream, keys, &shared.store) {
            Ok(true) => count(&shared.requests),
            Ok(false) => {}
            Err(why) => shared.stranger(&stream, why),
        },
        Words::Etcd => {
            count(&shared.requests);
            http::serve(&mut stream, &shared.store)?;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    // Closing with bytes unread would reset the connection, and the answer might be lost.
    stream.set_read_timeout(Some(LINGER))?;
    std::io::copy(&mut std::io::Read::take(stream, MAX_IGNORED), &mut std::io::sink()).map(drop)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Shared {
    /// Somebody asked who is none of the pairs. One line in a thousand says so.
    fn stranger(&self, stream: &TcpStream, why: Unauthentic) {
        let before = self.strangers.fetch_add(1, Ordering::Relaxed);
        if before.is_multiple_of(1000)
            && let Ok(peer) = stream.peer_addr()
        {
            eprintln!("arbiter: a question from {peer} is not answered: {why} ({} so far)", before + 1);
        }
    }
}
