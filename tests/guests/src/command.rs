//! The commands that the counter guest knows, with the replies and errors of Redis.

use alloc::vec::Vec;

use crate::connection;
use crate::reply::Replies;
use crate::resp::integer;
use crate::store::{Store, StoreError};
use crate::transaction::{self, Transaction};

/// Most steps of `DEBUG BURN`.
const MAX_BURN: i64 = 10_000_000_000;
/// How much of a name, and of all arguments, an error repeats.
const MAX_IN_ERROR: usize = 128;
/// Bytes of replies and input that each connection may hold whatever the others do.
pub const OWN_BUFFER: usize = 16 * 1024;

/// What connections share.
#[derive(Debug, Default)]
pub struct Server {
    /// The keys.
    pub store: Store,
    /// Memory of all connections beyond [`OWN_BUFFER`], in bytes.
    pub buffered: usize,
    /// Most bytes that this may become.
    pub buffer_limit: usize,
    /// Commands executed.
    pub commands: u64,
    /// Connections in use.
    pub clients: usize,
    /// Number of the newest connection.
    pub newest_client: i64,
    /// A client asked for the end of the machine.
    pub shutdown: bool,
    /// A client has found the bug that ends the server in the middle of its work.
    pub crash: bool,
}

impl Server {
    /// A server that makes do with a heap of `heap` bytes.
    #[must_use]
    pub fn new(heap: usize) -> Self {
        let store = Store::with_limit((heap / 4).min(16 << 20));
        Self { store, buffer_limit: (heap / 8).min(8 << 20), ..Self::default() }
    }
}

/// What the server knows of a client.
#[derive(Debug, Default)]
pub struct Client {
    /// Replies to be sent.
    pub replies: Replies,
    /// Number of the connection; 0 before the first command.
    pub id: i64,
    /// What `CLIENT SETNAME` said.
    pub name: Vec<u8>,
    /// The connection ends after these replies.
    pub closing: bool,
    /// Between `MULTI` and `EXEC`.
    pub transaction: Option<Transaction>,
}

impl Client {
    /// Bytes of memory that it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.replies.memory() + self.transaction.as_ref().map_or(0, Transaction::memory)
    }
}

/// A command to be carried out.
pub struct Call<'a> {
    /// Its name and what follows.
    pub arguments: &'a [&'a [u8]],
    /// What it may change.
    pub server: &'a mut Server,
    /// Who asked.
    pub client: &'a mut Client,
    /// Unix time in microseconds.
    pub time: &'a dyn Fn() -> u64,
}

/// One entry of a table of commands.
pub struct Command {
    name: &'static str,
    /// Number of arguments, the name and that of a container counted; negative: at least so many. As in Redis.
    arity: i32,
    run: fn(&mut Call<'_>),
}

impl Command {
    /// An entry.
    pub const fn new(name: &'static str, arity: i32, run: fn(&mut Call<'_>)) -> Self {
        Self { name, arity, run }
    }

    fn takes(&self, count: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        count == least || self.arity < 0 && count > least
    }
}

/// Those that are asked often come first.
static COMMANDS: [Command; 36] = [
    Command::new("INCR", 2, |call| add(call, Some(1))),
    Command::new("GET", 2, get),
    Command::new("SET", -3, set),
    Command::new("PING", -1, ping),
    Command::new("ECHO", 2, |call| {
        reply_value(call.arguments[1], call.server.room(call.client), &mut call.client.replies)
    }),
    Command::new("INCRBY", 3, |call| add(call, integer(call.arguments[2]))),
    Command::new("DECR", 2, |call| add(call, Some(-1))),
    Command::new("DECRBY", 3, decrement_by),
    Command::new("MGET", -2, get_many),
    Command::new("MSET", -3, set_many),
    Command::new("SETNX", 3, set_new),
    Command::new("DEL", -2, delete),
    Command::new("UNLINK", -2, delete),
    Command::new("EXISTS", -2, |call| count_keys(call, |store, key| store.get(key).is_some())),
    Command::new("STRLEN", 2, |call| {
        let len = call.server.store.get(call.arguments[1]).map_or(0, <[u8]>::len);
        call.client.replies.integer(len as i64);
    }),
    Command::new("TYPE", 2, |call| call.client.replies.simple(if call.has_key() { "string" } else { "none" })),
    // No key ever expires.
    Command::new("TTL", 2, |call| call.client.replies.integer(if call.has_key() { -1 } else { -2 })),
    Command::new("PTTL", 2, |call| call.client.replies.integer(if call.has_key() { -1 } else { -2 })),
    Command::new("DBSIZE", 1, |call| call.client.replies.integer(call.server.store.len() as i64)),
    Command::new("FLUSHALL", -1, flush),
    Command::new("FLUSHDB", -1, flush),
    Command::new("TIME", 1, time),
    Command::new("MULTI", 1, transaction::multi),
    Command::new("EXEC", 1, transaction::exec),
    Command::new("DISCARD", 1, transaction::discard),
    Command::new("SELECT", 2, select),
    Command::new("AUTH", -2, connection::auth),
    Command::new("HELLO", -1, connection::hello),
    Command::new("CLIENT", -2, connection::client),
    Command::new("RESET", 1, connection::reset),
    Command::new("QUIT", -1, connection::quit),
    Command::new("INFO", -1, connection::info),
    Command::new("CONFIG", -2, connection::config),
    Command::new("COMMAND", -1, connection::command),
    Command::new("DEBUG", -2, debug),
    Command::new("SHUTDOWN", -1, |call| {
        call.client.replies.simple("OK");
        call.server.shutdown = true;
    }),
];
/// Carried out at once also between `MULTI` and `EXEC`.
const NEVER_QUEUED: [&str; 5] = ["MULTI", "EXEC", "DISCARD", "QUIT", "RESET"];

/// Number of commands.
#[must_use]
pub fn count() -> usize {
    COMMANDS.len()
}

/// The command named by the first of these arguments.
///
/// # Errors
/// Replies with an error when there is none, or it does not take so many arguments.
fn find(arguments: &[&[u8]], replies: &mut Replies) -> Result<&'static Command, ()> {
    let named = |command: &&Command| command.name.as_bytes().eq_ignore_ascii_case(arguments[0]);
    let Some(command) = COMMANDS.iter().find(named) else {
        reply_unknown(replies, arguments);
        return Err(());
    };
    if command.takes(arguments.len()) {
        return Ok(command);
    }
    wrong_number(replies, &[command.name]);
    Err(())
}

/// Carries out the command of a table that the second argument names.
pub fn run_subcommand(call: &mut Call<'_>, container: &str, table: &[Command]) {
    let name = call.arguments[1];
    let replies = &mut call.client.replies;
    match table.iter().find(|command| command.name.as_bytes().eq_ignore_ascii_case(name)) {
        Some(command) if command.takes(call.arguments.len()) => (command.run)(call),
        Some(command) => wrong_number(replies, &[container, command.name]),
        None => {
            let name = &name[..name.len().min(MAX_IN_ERROR)];
            replies.error(&[b"ERR unknown subcommand '", name, b"'. Try ", container.as_bytes(), b" HELP."]);
        }
    }
}

fn wrong_number(replies: &mut Replies, names: &[&str]) {
    let name = names.join("|").to_ascii_lowercase();
    replies.error(&[b"ERR wrong number of arguments for '", name.as_bytes(), b"' command"]);
}

fn reply_unknown(replies: &mut Replies, arguments: &[&[u8]]) {
    let mut shown = Vec::new();
    for argument in &arguments[1..] {
        let room = MAX_IN_ERROR.saturating_sub(shown.len());
        if room == 0 {
            break;
        }
        shown.push(b'\'');
        shown.extend(argument.iter().take(room));
        shown.extend(b"' ");
    }
    let name = &arguments[0][..arguments[0].len().min(MAX_IN_ERROR)];
    replies.error(&[b"ERR unknown command '", name, b"', with args beginning with: ", &shown]);
}

/// Carries out a command, or notes it for `EXEC`. `encoded` is how it came in.
pub fn run(arguments: &[&[u8]], encoded: &[u8], server: &mut Server, client: &mut Client, time: &dyn Fn() -> u64) {
    // As Redis does: a browser that was led here must not have its request's body carried out.
    if [&b"POST"[..], b"HOST:"].iter().any(|word| arguments[0].eq_ignore_ascii_case(word)) {
        client.closing = true;
        return;
    }
    server.commands += 1;
    let Ok(command) = find(arguments, &mut client.replies) else {
        if let Some(transaction) = &mut client.transaction {
            transaction.fail();
        }
        return;
    };
    let never_queued = NEVER_QUEUED.contains(&command.name);
    if let Some(transaction) = client.transaction.as_mut().filter(|_| !never_queued) {
        return transaction.queue(encoded, server.buffered < server.buffer_limit, &mut client.replies);
    }
    (command.run)(&mut Call { arguments, server, client, time });
}

impl Server {
    /// Bytes that a reply to this client may have now.
    fn room(&self, client: &Client) -> usize {
        let own = OWN_BUFFER.saturating_sub(client.replies.pending().len());
        own.max(self.buffer_limit.saturating_sub(self.buffered + client.replies.pending().len()))
    }
}

impl Call<'_> {
    fn has_key(&self) -> bool {
        self.server.store.get(self.arguments[1]).is_some()
    }
}

/// A value, if there is room for it.
fn reply_value(value: &[u8], room: usize, replies: &mut Replies) {
    if value.len() <= room {
        replies.bulk(value);
    } else {
        replies.error(&[StoreError::Full.message().as_bytes()]);
    }
}

fn reply_result(result: Result<(), StoreError>, replies: &mut Replies) {
    match result {
        Ok(()) => replies.simple("OK"),
        Err(error) => replies.error(&[error.message().as_bytes()]),
    }
}

fn ping(call: &mut Call<'_>) {
    let room = call.server.room(call.client);
    match call.arguments {
        [_] => call.client.replies.simple("PONG"),
        [_, text] => reply_value(text, room, &mut call.client.replies),
        _ => wrong_number(&mut call.client.replies, &["PING"]),
    }
}

fn add(call: &mut Call<'_>, amount: Option<i64>) {
    let store = &mut call.server.store;
    match amount.ok_or(StoreError::NotAnInteger).and_then(|amount| store.add(call.arguments[1], amount)) {
        Ok(sum) => call.client.replies.integer(sum),
        Err(error) => call.client.replies.error(&[error.message().as_bytes()]),
    }
}

fn decrement_by(call: &mut Call<'_>) {
    match integer(call.arguments[2]) {
        Some(i64::MIN) => call.client.replies.error(&[b"ERR decrement would overflow"]),
        amount => add(call, amount.map(|amount| -amount)),
    }
}

fn get(call: &mut Call<'_>) {
    let room = call.server.room(call.client);
    match call.server.store.get(call.arguments[1]) {
        Some(value) => reply_value(value, room, &mut call.client.replies),
        None => call.client.replies.null(),
    }
}

fn get_many(call: &mut Call<'_>) {
    let (keys, store) = (&call.arguments[1..], &call.server.store);
    let total: usize = keys.iter().map(|key| store.get(key).map_or(0, <[u8]>::len)).sum();
    let replies = &mut call.client.replies;
    if total > OWN_BUFFER && total + call.server.buffered > call.server.buffer_limit {
        return replies.error(&[StoreError::Full.message().as_bytes()]);
    }
    replies.array(keys.len());
    for key in keys {
        match store.get(key) {
            Some(value) => replies.bulk(value),
            None => replies.null(),
        }
    }
}

/// Conditions, but no expiry.
fn set(call: &mut Call<'_>) {
    let &[_, key, value, ref options @ ..] = call.arguments else { return };
    let exists = call.has_key();
    let replies = &mut call.client.replies;
    let wanted = match options {
        [] => true,
        [option] if option.eq_ignore_ascii_case(b"NX") => !exists,
        [option] if option.eq_ignore_ascii_case(b"XX") => exists,
        [option, ..]
            if ["EX", "PX", "EXAT", "PXAT"].iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes())) =>
        {
            return replies.error(&[b"ERR this server does not offer expiry"]);
        }
        _ => return replies.error(&[b"ERR syntax error"]),
    };
    if wanted {
        reply_result(call.server.store.set(key, value), replies);
    } else {
        replies.null();
    }
}

fn set_new(call: &mut Call<'_>) {
    let exists = call.has_key();
    match if exists { Ok(()) } else { call.server.store.set(call.arguments[1], call.arguments[2]) } {
        Ok(()) => call.client.replies.integer(i64::from(!exists)),
        Err(error) => call.client.replies.error(&[error.message().as_bytes()]),
    }
}

/// All or nothing.
fn set_many(call: &mut Call<'_>) {
    let (pairs, rest) = call.arguments[1..].as_chunks::<2>();
    if !rest.is_empty() {
        return wrong_number(&mut call.client.replies, &["MSET"]);
    }
    let store = &mut call.server.store;
    let result = store.check_room(pairs).and_then(|()| pairs.iter().try_for_each(|[key, value]| store.set(key, value)));
    reply_result(result, &mut call.client.replies);
}

fn delete(call: &mut Call<'_>) {
    count_keys(call, |store, key| store.delete(key));
}

/// Replies with how many of the keys `f` is true for.
fn count_keys(call: &mut Call<'_>, mut f: impl FnMut(&mut Store, &[u8]) -> bool) {
    let count = call.arguments[1..].iter().filter(|key| f(&mut call.server.store, key)).count();
    call.client.replies.integer(count as i64);
}

fn flush(call: &mut Call<'_>) {
    let known = |mode: &&[u8]| mode.eq_ignore_ascii_case(b"ASYNC") || mode.eq_ignore_ascii_case(b"SYNC");
    if call.arguments.len() > 2 || !call.arguments[1..].iter().all(known) {
        return call.client.replies.error(&[b"ERR syntax error"]);
    }
    call.server.store.clear();
    call.client.replies.simple("OK");
}

fn time(call: &mut Call<'_>) {
    let now = (call.time)();
    call.client.replies.array(2);
    call.client.replies.bulk_integer((now / 1_000_000) as i64);
    call.client.replies.bulk_integer((now % 1_000_000) as i64);
}

fn select(call: &mut Call<'_>) {
    let replies = &mut call.client.replies;
    match integer(call.arguments[1]) {
        Some(0) => replies.simple("OK"),
        Some(_) => replies.error(&[b"ERR DB index is out of range"]),
        None => replies.error(&[StoreError::NotAnInteger.message().as_bytes()]),
    }
}

fn debug(call: &mut Call<'_>) {
    let segfault = |call: &mut Call<'_>| call.server.crash = true;
    run_subcommand(call, "DEBUG", &[Command::new("BURN", 3, burn), Command::new("SEGFAULT", 2, segfault)]);
}

/// Computes for a number of steps.
fn burn(call: &mut Call<'_>) {
    let replies = &mut call.client.replies;
    let Some(steps) = integer(call.arguments[2]).filter(|steps| (0..=MAX_BURN).contains(steps)) else {
        return replies.error(&[StoreError::NotAnInteger.message().as_bytes()]);
    };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..steps {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    replies.integer((state >> 1) as i64);
}
