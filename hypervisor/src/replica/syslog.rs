//! Events for a syslog server, over UDP from this machine's own station. See: RFC 5424, RFC 5426.
//!
//! Nobody waits for it: few events wait, and those that find no room are counted. Whether one arrives nobody knows.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::net::SocketAddrV4;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{IpAddress, IpEndpoint};
use spin::Mutex;

use super::stack::Stack;

/// Events that wait at most, for the station and then for the card.
const WAITING: usize = 64;
const SENDING: usize = 16;
/// Bytes of an event that are sent; more is cut off. A datagram stays below the 2048 bytes that servers should take.
const MAX_TEXT: usize = 1024;
/// The port that they come from.
const PORT: u16 = 514;
/// The facility `daemon`, as part of a priority.
const DAEMON: u8 = 3 << 3;
const SECONDS_A_DAY: u64 = 86_400;

/// Events on their way: whoever makes one knows nothing of stations.
static EVENTS: Mutex<Events> = Mutex::new(Events { wanted: false, lines: VecDeque::new(), dropped: 0 });

#[derive(Debug)]
struct Events {
    /// There is a server.
    wanted: bool,
    lines: VecDeque<String>,
    dropped: u64,
}

impl Events {
    fn note(&mut self, line: &str) {
        if !self.wanted {
            return;
        }
        if self.lines.len() < WAITING {
            self.lines.push_back(line.trim_end().into());
        } else {
            self.dropped += 1;
        }
    }
}

/// Takes an event, as a line of JSON, if there is a server for it.
pub fn note(line: &str) {
    EVENTS.lock().note(line);
}

/// How many events found no room.
pub fn dropped() -> u64 {
    EVENTS.lock().dropped
}

/// Who sends them.
#[derive(Debug)]
pub struct Syslog {
    server: IpEndpoint,
    host: String,
    socket: SocketHandle,
}

impl Syslog {
    /// Sends events of the machine `host` to `server`, with a socket on `stack`.
    pub fn new(server: SocketAddrV4, host: &str, stack: &mut Stack) -> Self {
        let buffer = |bytes| PacketBuffer::new(vec![PacketMetadata::EMPTY; SENDING], vec![0; bytes]);
        let mut socket = Socket::new(buffer(0), buffer(SENDING * 2 * MAX_TEXT));
        // That fails only on an open socket, or for port 0.
        let _ = socket.bind(PORT);
        stack.keep_in_reach(*server.ip());
        EVENTS.lock().wanted = true;
        let server = IpEndpoint::new(IpAddress::Ipv4(*server.ip()), server.port());
        Self { server, host: host.into(), socket: stack.add(socket) }
    }

    /// Whether events wait for the station, or in it for the card's queue.
    pub fn has_unsent(&self, stack: &mut Stack) -> bool {
        !EVENTS.lock().lines.is_empty() || stack.socket::<Socket<'_>>(self.socket).send_queue() > 0
    }

    /// Hands on what the card's queue takes. `unix_time` says what time it is.
    pub fn poll(&mut self, unix_time: &dyn Fn() -> u64, stack: &mut Stack) {
        let mut events = EVENTS.lock();
        let socket = stack.socket::<Socket<'_>>(self.socket);
        while socket.can_send()
            && let Some(line) = events.lines.pop_front()
        {
            let datagram = message(&line, &self.host, unix_time());
            if socket.send_slice(datagram.as_bytes(), self.server).is_err() {
                events.dropped += 1;
            }
        }
    }
}

/// An event as a syslog message: the name of the event is the message's id, and its text is the line.
fn message(line: &str, host: &str, unix_time: u64) -> String {
    let name = name_of(line);
    let priority = DAEMON + severity(name);
    let mut end = line.len().min(MAX_TEXT);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("<{priority}>1 {} {host} pollux - {name} - {}", timestamp(unix_time), &line[..end])
}

/// The name of an event in its line; `-` if that cannot be a message's id.
fn name_of(line: &str) -> &str {
    let name = line.split_once("\"event\":\"").and_then(|(_, rest)| rest.split('"').next());
    let fits = |name: &&str| (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    name.filter(fits).unwrap_or("-")
}

/// How bad an event is, by the numbers of RFC 5424, 6.2.1.
fn severity(name: &str) -> u8 {
    match name {
        "halt" | "diverged" => 2,
        "disk-failed" | "term-taken" => 3,
        "unprotected" | "takeover" | "arbiter-trouble" | "abandoned" | "beaten" | "refused" | "stranger"
        | "recording-lost" => 4,
        _ => 5,
    }
}

/// Seconds since 1970 as a date and a time. See: RFC 3339; H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn timestamp(unix_time: u64) -> String {
    let (days, second) = (unix_time / SECONDS_A_DAY, unix_time % SECONDS_A_DAY);
    // Counted from the first of March of the year 0, so that a leap day is the last one of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + 400 * era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn an_event_is_a_message() {
        let line = "{\"t\":\"event\",\"event\":\"unprotected\",\"reason\":\"the backup is gone\"}";
        assert_eq!(
            message(line, "castor", 1_000_000_000),
            alloc::format!("<28>1 2001-09-09T01:46:40Z castor pollux - unprotected - {line}")
        );
        assert!(message("{\"event\":\"halt\"}", "a", 0).starts_with("<26>1 "));
        assert!(message("{\"event\":\"waits\"}", "a", 0).starts_with("<29>1 "));
        assert!(message("{\"event\":\"a b\"}", "a", 0).contains(" pollux - - - "));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let mut events = Events { wanted: false, lines: VecDeque::new(), dropped: 0 };
        events.note("nobody wants it");
        events.wanted = true;
        (0..WAITING + 3).for_each(|_| events.note("line\n"));
        assert_eq!((events.lines.len(), events.dropped, &*events.lines[0]), (WAITING, 3, "line"));
    }

    proptest! {
        #[test]
        fn any_line_is_a_message_of_bounded_length(line in "(\\{\"event\":\"[a-z\u{e9} \"]{0,40}\".{0,20}|.{0,3000})", at in 0u64..253_402_300_800) {
            let message = message(&line, "castor", at);
            prop_assert!(message.len() < 2048 && message.starts_with('<'));
            let parts: alloc::vec::Vec<_> = message.splitn(8, ' ').collect();
            prop_assert_eq!((parts[2], parts[3], parts[4], parts[6]), ("castor", "pollux", "-", "-"));
            prop_assert_eq!(parts[1].len(), "1970-01-01T00:00:00Z".len());
            prop_assert!(line.starts_with(parts[7]));
        }
    }
}
