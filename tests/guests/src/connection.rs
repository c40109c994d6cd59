//! What clients say about their connection and ask of the server: their greeting, first of all.

use alloc::format;

use crate::command::{self, Call, Client, Command, run_subcommand};
use crate::reply::{Protocol, Replies};
use crate::resp::integer;

/// Longest name of a client in bytes.
const MAX_NAME: usize = 1024;

/// `HELLO [version [AUTH user password] [SETNAME name]]`.
pub fn hello(call: &mut Call<'_>) {
    match read_hello(&call.arguments[1..], call.client) {
        Ok((protocol, name)) => {
            call.client.replies.protocol = protocol;
            if let Some(name) = name {
                call.client.name = name.to_vec();
            }
            reply_hello(call.client);
        }
        Err(error) => call.client.replies.error(&error),
    }
}

/// What a greeting asks for, or an error in parts.
type Hello<'a> = Result<(Protocol, Option<&'a [u8]>), [&'a [u8]; 3]>;

/// Nothing is changed before all of it was found right.
fn read_hello<'a>(arguments: &[&'a [u8]], client: &Client) -> Hello<'a> {
    let mut rest = arguments;
    let mut protocol = client.replies.protocol;
    let mut name = None;
    if let Some((version, options)) = arguments.split_first() {
        rest = options;
        protocol = match integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Err([b"NOPROTO unsupported protocol version", b"", b""]),
            None => return Err([b"ERR Protocol version is not an integer or out of range", b"", b""]),
        };
    }
    loop {
        rest = match rest {
            [] => return Ok((protocol, name)),
            [option, user, _, rest @ ..] if option.eq_ignore_ascii_case(b"AUTH") => {
                check_user(user).map_err(|error| [error, b"", b""])?;
                rest
            }
            [option, wanted, rest @ ..] if option.eq_ignore_ascii_case(b"SETNAME") => {
                check_name(wanted).map_err(|error| [error, b"", b""])?;
                name = Some(*wanted);
                rest
            }
            [option, ..] => return Err([b"ERR Syntax error in HELLO option '", option, b"'"]),
        }
    }
}

fn reply_hello(client: &mut Client) {
    let (id, protocol) = (client.id, client.replies.protocol);
    let replies = &mut client.replies;
    let entry = |replies: &mut Replies, key: &str, value: &str| {
        replies.bulk(key.as_bytes());
        replies.bulk(value.as_bytes());
    };
    replies.map(7);
    entry(replies, "server", "pollux-counter");
    entry(replies, "version", env!("CARGO_PKG_VERSION"));
    replies.bulk(b"proto");
    replies.integer(protocol.number());
    replies.bulk(b"id");
    replies.integer(id);
    entry(replies, "mode", "standalone");
    entry(replies, "role", "master");
    replies.bulk(b"modules");
    replies.array(0);
}

/// There is no password: `default`, the only user, may use any.
pub fn auth(call: &mut Call<'_>) {
    let replies = &mut call.client.replies;
    match call.arguments {
        [_, user, _] => match check_user(user) {
            Ok(()) => replies.simple("OK"),
            Err(error) => replies.error(&[error]),
        },
        [_, _] => replies
            .error(&[b"ERR AUTH <password> called without any password configured for the default user. \
            Are you sure your configuration is correct?"]),
        _ => replies.error(&[b"ERR syntax error"]),
    }
}

fn check_user(user: &[u8]) -> Result<(), &'static [u8]> {
    if user == b"default" { Ok(()) } else { Err(b"WRONGPASS invalid username-password pair or user is disabled.") }
}

fn check_name(name: &[u8]) -> Result<(), &'static [u8]> {
    if name.len() > MAX_NAME {
        Err(b"ERR Client names cannot be longer than 1024 bytes.")
    } else if !name.iter().all(u8::is_ascii_graphic) {
        Err(b"ERR Client names cannot contain spaces, newlines or special characters.")
    } else {
        Ok(())
    }
}

/// `CLIENT`. Without what would change the replies (`REPLY`, `TRACKING`): to accept it and do nothing would leave client and
/// server at odds. `MAINT_NOTIFICATIONS` is refused as by a Redis that has none; clients ask whether it is there.
pub fn client(call: &mut Call<'_>) {
    const COMMANDS: [Command; 7] = [
        Command::new("ID", 2, |call| call.client.replies.integer(call.client.id)),
        Command::new("GETNAME", 2, get_name),
        Command::new("SETNAME", 3, set_name),
        Command::new("SETINFO", 4, set_info),
        Command::new("INFO", 2, client_info),
        Command::new("NO-EVICT", 3, on_or_off),
        Command::new("NO-TOUCH", 3, on_or_off),
    ];
    run_subcommand(call, "CLIENT", &COMMANDS);
}

fn get_name(call: &mut Call<'_>) {
    let client = &mut *call.client;
    if client.name.is_empty() { client.replies.null() } else { client.replies.bulk(&client.name) }
}

fn set_name(call: &mut Call<'_>) {
    match check_name(call.arguments[2]) {
        Ok(()) => {
            call.client.name = call.arguments[2].to_vec();
            call.client.replies.simple("OK");
        }
        Err(error) => call.client.replies.error(&[error]),
    }
}

/// The name and version of a library are taken and not kept.
fn set_info(call: &mut Call<'_>) {
    let (what, value) = (call.arguments[2], call.arguments[3]);
    let replies = &mut call.client.replies;
    if !what.eq_ignore_ascii_case(b"LIB-NAME") && !what.eq_ignore_ascii_case(b"LIB-VER") {
        replies.error(&[b"ERR Unrecognized option '", &what[..what.len().min(MAX_NAME)], b"'"]);
    } else if !value.iter().all(u8::is_ascii_graphic) {
        let what: &[u8] = if what.eq_ignore_ascii_case(b"LIB-NAME") { b"lib-name" } else { b"lib-ver" };
        replies.error(&[b"ERR ", what, b" cannot contain spaces, newlines or special characters."]);
    } else {
        replies.simple("OK");
    }
}

fn client_info(call: &mut Call<'_>) {
    // Only characters that can be printed are let into a name.
    let name = core::str::from_utf8(&call.client.name).unwrap_or("");
    let protocol = call.client.replies.protocol.number();
    let text = format!("id={} name={name} db=0 user=default resp={protocol}\n", call.client.id);
    call.client.replies.text(text.as_bytes());
}

/// Nothing is ever evicted here.
fn on_or_off(call: &mut Call<'_>) {
    let known = [&b"ON"[..], b"OFF"].iter().any(|word| call.arguments[2].eq_ignore_ascii_case(word));
    if known { call.client.replies.simple("OK") } else { call.client.replies.error(&[b"ERR syntax error"]) }
}

/// As if the connection was new, but for its number.
pub fn reset(call: &mut Call<'_>) {
    let client = &mut *call.client;
    client.transaction = None;
    client.name.clear();
    client.replies.protocol = Protocol::Resp2;
    client.replies.simple("RESET");
}

/// The connection ends.
pub fn quit(call: &mut Call<'_>) {
    call.client.replies.simple("OK");
    call.client.closing = true;
}

/// `INFO`; sections are not told apart.
pub fn info(call: &mut Call<'_>) {
    let server = &*call.server;
    let text = format!(
        "# Server\r\nserver_name:pollux-counter\r\nredis_mode:standalone\r\n\
         # Clients\r\nconnected_clients:{}\r\n\
         # Memory\r\nused_memory:{}\r\n\
         # Persistence\r\nloading:0\r\n\
         # Stats\r\ntotal_commands_processed:{}\r\n\
         # Replication\r\nrole:master\r\n\
         # Keyspace\r\ndb0:keys={}\r\n",
        server.clients,
        server.store.bytes(),
        server.commands,
        server.store.len(),
    );
    call.client.replies.text(text.as_bytes());
}

/// redis-benchmark asks for `save` and `appendonly`, and warns when it gets no answer.
pub fn config(call: &mut Call<'_>) {
    const GET: Command = Command::new("GET", -3, |call| {
        const SETTINGS: [(&[u8], &[u8]); 2] = [(b"save", b""), (b"appendonly", b"no")];
        let asked = |name: &[u8]| call.arguments[2..].iter().any(|argument| argument.eq_ignore_ascii_case(name));
        let all = call.arguments[2..].contains(&&b"*"[..]);
        let chosen = SETTINGS.iter().filter(|(name, _)| all || asked(name));
        call.client.replies.map(chosen.clone().count());
        for (name, value) in chosen {
            call.client.replies.bulk(name);
            call.client.replies.bulk(value);
        }
    });
    const SET: Command = Command::new("SET", -4, |call| {
        call.client.replies.error(&[b"ERR this server has no settings that can be changed"]);
    });
    run_subcommand(call, "CONFIG", &[GET, SET]);
}

/// `COMMAND`: what clients ask for to learn of commands is answered without content.
pub fn command(call: &mut Call<'_>) {
    const COMMANDS: [Command; 3] = [
        Command::new("COUNT", 2, |call| call.client.replies.integer(command::count() as i64)),
        Command::new("DOCS", -2, |call| call.client.replies.map(0)),
        Command::new("INFO", -2, |call| {
            call.client.replies.array(call.arguments.len() - 2);
            (2..call.arguments.len()).for_each(|_| call.client.replies.null());
        }),
    ];
    match call.arguments {
        [_] => call.client.replies.array(0),
        _ => run_subcommand(call, "COMMAND", &COMMANDS),
    }
}
