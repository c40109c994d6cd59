//! Listens, and answers each question on a connection of its own.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pollux_ft::arbiter::sealed::{Nonce, Unauthentic};

use crate::http;
use crate::keys::Keyring;
use crate::ledger::{Holding, Ledger};
use crate::sealed::{self, Turn};
use crate::store::Store;

/// Connections at a time on which no question has come yet, or all has been said. One more ends another one.
const MAX_CONNECTIONS: usize = 64;
/// Questions of one pair at a time, which may take a while where a cluster is slow: two machines ask by each of their ways. One
/// more is told so, and so it is with the next ones: what was begun costs the cluster the same, whether its asker is there or not.
const MAX_OF_PAIR: usize = 32;
/// Those of one pair from one address: who sends again what others have asked leaves room for them.
const MAX_OF_ADDRESS: usize = 16;
/// Those of all pairs.
const MAX_QUESTIONS: usize = 1024;
/// For so long a question is known again that comes twice, up to so many of a pair.
const MEMORY: Duration = Duration::from_secs(10);
const MAX_KNOWN: usize = 4096;
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

/// The connections that are open, the oldest first.
#[derive(Debug, Default)]
struct Doors {
    next: u64,
    open: VecDeque<Visitor>,
    /// The numbers of the questions that came lately, by pair, and when.
    known: HashMap<String, VecDeque<(Instant, Nonce)>>,
}

/// One of them.
#[derive(Debug)]
struct Visitor {
    number: u64,
    from: IpAddr,
    stream: TcpStream,
    /// The pair that has asked and has no answer yet. Before and afterwards anybody may be there.
    asks: Option<String>,
}

impl Doors {
    /// Takes one more in; its number.
    fn enter(&mut self, from: IpAddr, stream: TcpStream) -> u64 {
        self.make_room();
        self.next += 1;
        self.open.push_back(Visitor { number: self.next, from, stream, asks: None });
        self.next
    }

    /// A question of `pair` has come on this one at `now`; what is to be done about it.
    fn ask(&mut self, now: Instant, number: u64, pair: &str, nonce: &Nonce) -> Turn {
        if self.is_known(now, pair, nonce) {
            return Turn::Again;
        }
        let Some(at) = self.open.iter().position(|visitor| visitor.number == number) else { return Turn::Crowded };
        let from = self.open[at].from;
        let [mut all, mut of_pair, mut of_address] = [0; 3];
        for visitor in self.open.iter().filter(|visitor| visitor.asks.is_some()) {
            let is_pairs = visitor.asks.as_deref() == Some(pair);
            all += 1;
            of_pair += usize::from(is_pairs);
            of_address += usize::from(is_pairs && visitor.from == from);
        }
        if all >= MAX_QUESTIONS || of_pair >= MAX_OF_PAIR || of_address >= MAX_OF_ADDRESS {
            return Turn::Crowded;
        }
        self.open[at].asks = Some(pair.to_owned());
        Turn::Now
    }

    /// Whether this question came lately; from now on it did.
    fn is_known(&mut self, now: Instant, pair: &str, nonce: &Nonce) -> bool {
        let known = self.known.entry(pair.to_owned()).or_default();
        while known.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > MEMORY) {
            known.pop_front();
        }
        let is_known = known.iter().any(|(_, other)| other == nonce);
        if !is_known {
            if known.len() == MAX_KNOWN {
                known.pop_front();
            }
            known.push_back((now, *nonce));
        }
        is_known
    }

    /// The question on this one was answered.
    fn answered(&mut self, number: u64) {
        if let Some(visitor) = self.open.iter_mut().find(|visitor| visitor.number == number) {
            visitor.asks = None;
        }
    }

    /// Makes room for one more on which nobody has asked: the oldest goes of the address that has the most. A flood from one
    /// place drives out itself.
    fn make_room(&mut self) {
        let is_in_the_way = |visitor: &Visitor| visitor.asks.is_none();
        let mut crowds = HashMap::<_, usize>::new();
        for visitor in self.open.iter().filter(|visitor| is_in_the_way(visitor)) {
            *crowds.entry(visitor.from).or_default() += 1;
        }
        if crowds.values().sum::<usize>() < MAX_CONNECTIONS {
            return;
        }
        let largest = crowds.values().max().copied();
        let goes = self
            .open
            .iter()
            .position(|visitor| is_in_the_way(visitor) && crowds.get(&visitor.from).copied() == largest);
        if let Some(visitor) = goes.and_then(|at| self.open.remove(at)) {
            // Whoever reads from it finds its end.
            let _ = visitor.stream.shutdown(Shutdown::Both);
        }
    }

    fn leave(&mut self, number: u64) {
        self.open.retain(|visitor| visitor.number != number);
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
        // Who has gone already is nobody's neighbour.
        let from = stream.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
        let (shared, number) = (Arc::clone(shared), lock(&shared.doors).enter(from, other));
        let serve = {
            let shared = Arc::clone(&shared);
            move || {
                // The other end may go away at any time.
                let _ = serve(stream, number, &shared);
                lock(&shared.doors).leave(number);
            }
        };
        if std::thread::Builder::new().name("arbiter".to_owned()).spawn(serve).is_err() {
            // Without a thread the connection is closed.
            lock(&shared.doors).leave(number);
        }
    }
}

fn serve(mut stream: TcpStream, number: u64, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    match &shared.answers {
        Answers::Sealed(keys, ledger) => {
            let is_asked = |pair: &str, nonce: &Nonce| lock(&shared.doors).ask(Instant::now(), number, pair, nonce);
            match sealed::serve(&mut stream, keys, &**ledger, is_asked) {
                Ok(true) => count(&shared.requests),
                Ok(false) => {}
                Err(why) => shared.stranger(&stream, why),
            }
            lock(&shared.doors).answered(number);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections to ourselves, as from the host with this last number.
    struct Desk(TcpListener, Doors);

    impl Desk {
        fn enter(&mut self, from: u8) -> (u64, TcpStream) {
            let stream = TcpStream::connect(self.0.local_addr().unwrap()).unwrap();
            let (other, _) = self.0.accept().unwrap();
            (self.1.enter(IpAddr::V4(Ipv4Addr::new(10, 1, 0, from)), other), stream)
        }

        /// A connection from `from` on which question number `nonce` comes.
        fn ask(&mut self, from: u8, pair: &str, nonce: u64) -> (Turn, u64) {
            let number = self.enter(from).0;
            (self.1.ask(Instant::now(), number, pair, &numbered(nonce)), number)
        }

        fn has(&self, number: u64) -> bool {
            self.1.open.iter().any(|visitor| visitor.number == number)
        }
    }

    fn numbered(number: u64) -> Nonce {
        let mut nonce = [0; size_of::<Nonce>()];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        nonce
    }

    #[test]
    fn a_flood_drives_out_nobody_but_itself() {
        let mut desk = Desk(TcpListener::bind("127.0.0.1:0").unwrap(), Doors::default());
        let (machine, _kept) = desk.enter(1);
        let (asking, _kept) = desk.enter(1);
        assert_eq!(desk.1.ask(Instant::now(), asking, "pair", &numbered(0)), Turn::Now);
        let flood: Vec<_> = (0..2 * MAX_CONNECTIONS).map(|_| desk.enter(9)).collect();
        assert!(desk.has(machine) && desk.has(asking), "both have waited for longer");
        assert_eq!(desk.1.open.len(), MAX_CONNECTIONS + 1);
        assert!(!desk.has(flood[0].0) && desk.has(flood.last().unwrap().0));
        // One that was answered is in the way like any other.
        desk.1.answered(asking);
        assert_eq!(desk.enter(9).0, flood.last().unwrap().0 + 1);
        assert!(desk.has(asking) && desk.1.open.len() == MAX_CONNECTIONS + 1);
        desk.1.leave(machine);
        assert!(!desk.has(machine));
    }

    #[test]
    fn a_pair_that_asks_a_lot_leaves_room_for_others() {
        let mut desk = Desk(TcpListener::bind("127.0.0.1:0").unwrap(), Doors::default());
        let (other, genuine) = (desk.ask(1, "other", 0), desk.ask(2, "pair", 1));
        assert_eq!((other.0, genuine.0), (Turn::Now, Turn::Now));
        // Somebody sends again what the machines had asked once. What was begun goes on, and counts until it is answered.
        let again: Vec<_> = (2..100).map(|nonce| desk.ask(9, "pair", nonce)).collect();
        let taken = again.iter().filter(|(turn, _)| *turn == Turn::Now).count();
        assert_eq!(taken, MAX_OF_ADDRESS);
        again.iter().for_each(|(_, number)| desk.1.leave(*number));
        assert!(desk.has(other.1) && desk.has(genuine.1));
        // From wherever he likes.
        let again: Vec<_> = (0..100).map(|place| desk.ask(100 + place, "pair", 100 + u64::from(place))).collect();
        assert!(again.iter().any(|(turn, _)| *turn == Turn::Crowded));
        assert!(desk.has(genuine.1), "it came before all of them");
        let of_pair = desk.1.open.iter().filter(|visitor| visitor.asks.as_deref() == Some("pair")).count();
        assert_eq!(of_pair, MAX_OF_PAIR);
        assert_eq!(desk.ask(1, "other", 1).0, Turn::Now);
        desk.1.answered(again[0].1);
        assert_eq!(desk.ask(2, "pair", 300).0, Turn::Now);
    }

    #[test]
    fn a_question_that_comes_again_costs_nothing() {
        let mut desk = Desk(TcpListener::bind("127.0.0.1:0").unwrap(), Doors::default());
        assert_eq!(desk.ask(2, "pair", 1).0, Turn::Now);
        for _ in 0..MAX_CONNECTIONS {
            assert_eq!(desk.ask(9, "pair", 1).0, Turn::Again);
        }
        assert_eq!((desk.ask(2, "pair", 2).0, desk.ask(2, "other", 1).0), (Turn::Now, Turn::Now));
        let (later, number) = (Instant::now() + MEMORY + PATIENCE, desk.enter(2).0);
        assert_eq!(desk.1.ask(later, number, "pair", &numbered(1)), Turn::Now, "it may have been long on its way");
        assert_eq!(desk.1.known["pair"].len(), 1);
    }
}
