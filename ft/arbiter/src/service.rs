//! Listens, and answers each question on a connection of its own.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use pollux_ft::arbiter::sealed::Unauthentic;

use crate::http;
use crate::keys::Keyring;
use crate::ledger::{Holding, Ledger};
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

/// A running arbiter. Dropping it ends it.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    answers: Answers,
    requests: AtomicU64,
    strangers: AtomicU64,
    doors: Mutex<Doors>,
    stop: AtomicBool,
}

/// To whom, and from what.
#[derive(Debug)]
enum Answers {
    Sealed(Keyring, Box<dyn Ledger>),
    Etcd(Mutex<Store>),
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
        match words {
            Words::Sealed(keys) => Self::in_front_of(listen, Box::new(store), keys),
            Words::Etcd => Self::answering(listen, Answers::Etcd(store)),
        }
    }

    /// Listens, and answers the pairs that have one of these keys from `ledger`.
    ///
    /// # Errors
    /// An address in use.
    pub fn in_front_of(listen: SocketAddr, ledger: Box<dyn Ledger>, keys: Keyring) -> Result<Self> {
        Self::answering(listen, Answers::Sealed(keys, ledger))
    }

    fn answering(listen: SocketAddr, answers: Answers) -> Result<Self> {
        let listener = TcpListener::bind(listen).with_context(|| format!("the arbiter cannot listen at {listen}"))?;
        let address = listener.local_addr().context("the arbiter has no address")?;
        let shared = Arc::new(Shared {
            answers,
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

    /// The keys of the pairs that may ask, if it is asked in sealed words.
    pub fn keys(&self) -> Option<&Keyring> {
        match &self.shared.answers {
            Answers::Sealed(keys, _) => Some(keys),
            Answers::Etcd(_) => None,
        }
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

    /// The newest term of a pair; none if that is not known.
    pub fn newest(&self, pair: &str) -> Option<Holding> {
        self.shared.answers.ledger().newest(pair).ok().flatten()
    }

    /// Where its terms stand, in a few words.
    pub fn describe(&self) -> String {
        self.shared.answers.ledger().describe()
    }
}

impl Answers {
    fn ledger(&self) -> &dyn Ledger {
        match self {
            Self::Sealed(_, ledger) => &**ledger,
            Self::Etcd(store) => store,
        }
    }
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
    match &shared.answers {
        Answers::Sealed(keys, ledger) => match sealed::serve(&mut stream, keys, &**ledger) {
            Ok(true) => count(&shared.requests),
            Ok(false) => {}
            Err(why) => shared.stranger(&stream, why),
        },
        Answers::Etcd(store) => {
            count(&shared.requests);
            http::serve(&mut stream, store)?;
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
