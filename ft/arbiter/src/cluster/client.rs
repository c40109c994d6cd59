//! What is asked of the cluster, by etcd's own client library.
//!
//! A term is a key that is created by a transaction, if it does not exist; etcd's members agree on that, so that any number
//! of arbiters may ask any of them. The store has a number of its own in the key [`STORE`], which is drawn by the arbiter that
//! comes first: a cluster that was made anew, even with the same names, is another one. Each term is created on condition that the number
//! is still the one that was answered with.
//!
//! A machine waits so long for an answer as its options say, and the arbiter is told so. One member is asked, then one more each
//! fifth of that, and who answers first counts: all say the same, and a question asked twice is granted to the same machine. What
//! is late goes on by itself: the machine asks again, and finds what became of it. A look takes one round of the cluster, a
//! question two.
//!
//! Whether each member answers, also those that nobody needs now, is looked at all along ([`super::watch`]): a cluster that has lost
//! what it could spare works as before, and stops at the next failure.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, KeyValue, KvClient, SortOrder,
    SortTarget, TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use pollux_ft::Term;
use pollux_ft::arbiter::sealed::Verdict;
use pollux_ft::arbiter::{ArbiterId, pair_prefix, term_key};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Access, Papers, watch};
use crate::ledger::{Holding, Judgement, Ledger, MAX_TERMS, held, newest, refused, too_many, well};
use crate::random;
use crate::service::lock;

/// The key of the store's own number. It is no term's: those begin with `pollux/`.
const STORE: &str = "pollux-arbiter";
/// What is late ends by then.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// How often a member that owes an answer is asked whether it lives; etcd's members take offence at less than 5 s.
const KEEP_ALIVE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(2)];
/// The keys that were created last, in which the newest term is: one for an older term may have been long on its way.
const NEWEST: i64 = 16;
/// The longest answer in bytes: more than all terms of hundreds of pairs.
const MAX_ANSWER: usize = 64 << 20;

/// The cluster.
pub struct Cluster {
    members: Vec<Member>,
    /// The member that answered last, which is asked first.
    first: AtomicUsize,
    /// Why there was no answer, so that it is told when it changes.
    trouble: Mutex<Option<String>>,
    /// What an asker is told by then.
    patience: Duration,
    /// When the next member is asked as well.
    hedge: Duration,
    runtime: Runtime,
}

/// One member, with a connection that comes and goes by itself.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) url: String,
    keys: KvClient,
    /// The store's number, once it is known.
    store: Arc<Mutex<Option<u64>>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.url)).finish()
    }
}

impl Cluster {
    /// Nothing is asked yet.
    pub fn new(access: &Access, papers: Papers) -> Result<Self> {
        // One thread moves what comes and goes; who asks waits in a thread of its own.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("etcd").enable_all().build();
        let runtime = runtime.context("cannot start a thread for etcd")?;
        let identity = Identity::from_pem(papers.certificate, papers.key);
        // A member that hangs behind a kernel that goes on would begin to speak TLS for ever.
        let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(papers.ca)).identity(identity).timeout(LIMIT);
        let [interval, patience] = KEEP_ALIVE;
        let options = ConnectOptions::new().with_tls(tls).with_keep_alive(interval, patience);
        let options = options.with_keep_alive_while_idle(false).with_connect_timeout(LIMIT);
        let store = Arc::default();
        let connect = |url: &String| -> Result<Member> {
            let client = runtime.block_on(Client::connect([url], Some(options.clone())));
            let client = client.map_err(|error| told(url, error)).context("no way to the etcd cluster")?;
            let keys = client.kv_client().max_decoding_message_size(MAX_ANSWER);
            Ok(Member { url: url.clone(), keys, store: Arc::clone(&store) })
        };
        let members = access.members.iter().map(connect).collect::<Result<Vec<_>>>()?;
        let (patience, hedge) = (access.timeout * 9 / 10, access.timeout / 5);
        Ok(Self { members, first: AtomicUsize::new(0), trouble: Mutex::default(), patience, hedge, runtime })
    }

    /// Begins to look at each member all along.
    pub fn watch(&self) {
        self.runtime.spawn(watch::watch(self.members.clone()));
    }

    /// All keys and values of terms.
    pub fn terms(&self) -> Result<Vec<(String, String)>> {
        let found = self.ask(LIMIT, |mut member| async move {
            let all = GetOptions::new().with_prefix();
            member.get("pollux/".into(), all).await
        })?;
        Ok(found.iter().map(|pair| (text(pair.key()), text(pair.value()))).collect())
    }

    /// The first answer that a member gives within `patience`.
    fn ask<T, W>(&self, patience: Duration, work: impl Fn(Member) -> W) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let first = self.first.load(Ordering::Relaxed);
        let order = (0..self.members.len()).map(|n| (first + n) % self.members.len());
        let answer = self.runtime.block_on(async {
            let (until, mut asked, mut order) = (Instant::now() + patience, JoinSet::new(), order.peekable());
            let mut why = anyhow!("no member of the etcd cluster answers within {patience:?}");
            let hedge = self.hedge;
            loop {
                if let Some(index) = order.next() {
                    let member = self.members[index].clone();
                    let (url, work) = (member.url.clone(), timeout(LIMIT, work(member)));
                    asked.spawn(async move {
                        let answer = work.await.unwrap_or_else(|_| bail!("the etcd at {url} does not answer"));
                        answer.map(|answer| (index, answer))
                    });
                }
                let left = until.saturating_duration_since(Instant::now());
                let pause = if order.peek().is_some() { left.min(hedge) } else { left };
                match timeout(pause, asked.join_next()).await {
                    Ok(Some(Ok(Ok((index, answer))))) => {
                        self.first.store(index, Ordering::Relaxed);
                        asked.detach_all();
                        return Ok(answer);
                    }
                    Ok(Some(Ok(Err(error)))) => why = error,
                    Ok(Some(Err(panicked))) => why = panicked.into(),
                    Ok(None) if order.peek().is_none() => return Err(why),
                    Err(_) if left <= hedge || order.peek().is_none() => {
                        asked.detach_all();
                        return Err(why);
                    }
                    Ok(None) | Err(_) => {}
                }
            }
        });
        self.report(answer.as_ref().err());
        answer
    }

    /// Says what is wrong, once.
    fn report(&self, error: Option<&Error>) {
        let now = error.map(|error| format!("{error:#}"));
        let mut before = lock(&self.trouble);
        if *before != now {
            match &now {
                Some(why) => eprintln!("arbiter: no terms: {why}"),
                None => eprintln!("arbiter: the etcd cluster answers"),
            }
            *before = now;
        }
    }

    fn judge<W>(&self, work: impl Fn(Member) -> W) -> Judgement
    where
        W: Future<Output = Result<Judgement>> + Send + 'static,
    {
        let known = || ArbiterId(lock(&self.members[0].store).unwrap_or(0));
        self.ask(self.patience, work).unwrap_or_else(|error| (known(), refused(error)))
    }
}

impl Ledger for Cluster {
    fn claim(&self, pair: &str, term: Term, holder: &str) -> Judgement {
        self.judge(|member| {
            let (pair, holder) = (pair.to_owned(), holder.to_owned());
            async move { member.claim(&pair, term, &holder).await }
        })
    }

    fn look(&self, pair: &str) -> Judgement {
        self.judge(|member| {
            let pair = pair.to_owned();
            async move { member.look(&pair).await }
        })
    }

    fn newest(&self, pair: &str) -> Result<Option<Holding>> {
        self.ask(LIMIT, |mut member| {
            let pair = pair.to_owned();
            async move { member.newest(&pair).await }
        })
    }

    fn describe(&self) -> String {
        let urls: Vec<_> = self.members.iter().map(|member| member.url.as_str()).collect();
        let cluster = format!("terms in the etcd at {}", urls.join(", "));
        match self.ask(self.patience, |mut member| async move { member.store().await }) {
            Ok(store) => format!("{cluster} (store {store:x})"),
            Err(_) => format!("{cluster}, which does not answer yet"),
        }
    }
}

impl Member {
    async fn claim(mut self, pair: &str, term: Term, holder: &str) -> Result<Judgement> {
        let store = self.store().await?;
        let key = term_key(pair, term);
        let reads = || [TxnOp::get(STORE, None), TxnOp::get(key.as_str(), None)];
        // What was asked before may have been done since; and who reads, writes nothing.
        let count = TxnOp::get(pair_prefix(pair), Some(GetOptions::new().with_prefix().with_count_only()));
        let [before, term] = reads();
        let found = self.transact(Txn::new().and_then([before, term, count])).await?;
        if let Some(value) = found.value(1) {
            return self.in_store(store, &found, held(&value, holder));
        }
        if usize::try_from(found.count(2)).is_ok_and(|count| count >= MAX_TERMS) {
            return self.in_store(store, &found, too_many(pair));
        }
        let free = [Compare::create_revision(key.as_str(), CompareOp::Equal, 0), same(store)];
        let create = Txn::new().when(free).and_then([TxnOp::put(key.as_str(), holder, None)]).or_else(reads());
        let found = self.transact(create).await?;
        match found.value(1) {
            _ if found.held => Ok((ArbiterId(store), Verdict::Granted)),
            Some(value) => self.in_store(store, &found, held(&value, holder)),
            None => self.changed(store),
        }
    }

    /// What was found counts if it was in the store that we know, whose number was read in the same moment.
    fn in_store(&self, store: u64, found: &Found, verdict: Verdict) -> Result<Judgement> {
        let now = found.value(0).map(|value| self.parse(&value)).transpose()?;
        if now == Some(store) { Ok((ArbiterId(store), verdict)) } else { self.changed(store) }
    }

    /// Would a claim be answered? A transaction whose comparison never holds writes nothing, and is refused as a claim would be.
    async fn look(mut self, pair: &str) -> Result<Judgement> {
        let store = self.store().await?;
        let key = format!("{}look", pair_prefix(pair));
        let never = Compare::create_revision(key.as_str(), CompareOp::Equal, -1);
        let reads = [TxnOp::get(STORE, None), TxnOp::get(pair_prefix(pair), Some(last()))];
        let look = Txn::new().when([never]).and_then([TxnOp::put(key, "", None)]).or_else(reads);
        let found = self.transact(look).await?;
        if found.held {
            bail!("the etcd at {} does not compare", self.url);
        }
        self.in_store(store, &found, well(newest_of(pair, found.keys(1))))
    }

    async fn newest(&mut self, pair: &str) -> Result<Option<Holding>> {
        Ok(newest_of(pair, &self.get(pair_prefix(pair), last()).await?))
    }

    /// The store's number, which is drawn if there is none.
    async fn store(&mut self) -> Result<u64> {
        if let Some(store) = *lock(&self.store) {
            return Ok(store);
        }
        let store = match self.number().await? {
            Some(store) => store,
            None => {
                let drawn = format!("{:016x}", u64::from_le_bytes(random::draw()?).max(1));
                let fresh = [Compare::create_revision(STORE, CompareOp::Equal, 0)];
                self.transact(Txn::new().when(fresh).and_then([TxnOp::put(STORE, drawn, None)])).await?;
                // Another arbiter may have been quicker.
                self.number().await?.with_context(|| format!("the etcd at {} keeps nothing", self.url))?
            }
        };
        *lock(&self.store) = Some(store);
        Ok(store)
    }

    /// The store's number, as it stands there.
    pub(super) async fn number(&mut self) -> Result<Option<u64>> {
        let found = self.get(STORE.to_owned(), GetOptions::new()).await?;
        found.first().map(|pair| self.parse(&text(pair.value()))).transpose()
    }

    fn parse(&self, number: &str) -> Result<u64> {
        let number = u64::from_str_radix(number, 16).ok().filter(|&number| number != 0);
        number.with_context(|| format!("the key {STORE} in the etcd at {} holds something else", self.url))
    }

    /// It is not the store that it was: what stood there is gone. The next question finds the new one.
    fn changed(&self, store: u64) -> Result<Judgement> {
        let mut known = lock(&self.store);
        if *known == Some(store) {
            *known = None;
        }
        bail!("the etcd at {} is not the store {store:x} any more that it was", self.url)
    }

    async fn get(&mut self, key: String, options: GetOptions) -> Result<Vec<KeyValue>> {
        let answer = self.keys.get(key, Some(options)).await;
        Ok(answer.map_err(|error| told(&self.url, error))?.take_kvs())
    }

    async fn transact(&mut self, transaction: Txn) -> Result<Found> {
        let answer = self.keys.txn(transaction).await.map_err(|error| told(&self.url, error))?;
        let read = answer.op_responses().into_iter().filter_map(|response| match response {
            TxnOpResponse::Get(mut got) => Some((got.count(), got.take_kvs())),
            _ => None,
        });
        Ok(Found { held: answer.succeeded(), read: read.collect() })
    }
}

/// What a transaction came to.
struct Found {
    /// Its comparisons held.
    held: bool,
    /// What was read, in the order in which it was asked for: how many keys there are, and those.
    read: Vec<(i64, Vec<KeyValue>)>,
}

impl Found {
    fn keys(&self, read: usize) -> &[KeyValue] {
        self.read.get(read).map_or(&[], |(_, keys)| keys)
    }

    fn value(&self, read: usize) -> Option<String> {
        self.keys(read).first().map(|pair| text(pair.value()))
    }

    fn count(&self, read: usize) -> i64 {
        self.read.get(read).map_or(0, |(count, _)| *count)
    }
}

/// The keys that were created last.
fn last() -> GetOptions {
    GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(NEWEST)
}

fn newest_of(pair: &str, found: &[KeyValue]) -> Option<Holding> {
    let found: Vec<_> = found.iter().map(|pair| (text(pair.key()), text(pair.value()))).collect();
    newest(pair, found.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

/// The store is still this one.
fn same(store: u64) -> Compare {
    Compare::value(STORE, CompareOp::Equal, format!("{store:016x}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the member means, without the library's words around it.
fn told(url: &str, error: etcd_client::Error) -> Error {
    let why = match &error {
        etcd_client::Error::GRpcStatus(status) => {
            let causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
            let last = causes.last().map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("says \"{}\"{last}", status.message())
        }
        other => format!("cannot be asked: {other}"),
    };
    anyhow!("the etcd at {url} {why}")
}
