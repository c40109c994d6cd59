//! What clients asked, and when the first byte of each answer came, out of a capture of the client network.
//!
//! Whatever the protocol: data from a client is a request; a guest's first new data that acknowledges it is its answer. Data
//! that was there before is counted as sent again, on both sides.

use std::collections::HashMap;

use super::capture::{End, Packet, Transport};

/// A request is kept as long as no more than this are: the page is no log.
pub const MAX_REQUESTS: usize = 200_000;
/// Datagrams of a client that wait for an answer: what is older was lost.
const MAX_WAITING: usize = 64;

/// A request and its answer. Times in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Which conversation, counted from 0 in the order of their beginning.
    pub conversation: usize,
    /// When its last byte was sent for the first time.
    pub asked: f64,
    /// When the answer began; none came otherwise.
    pub answered: Option<f64>,
}

/// Something that was sent again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Again {
    /// When.
    pub at: f64,
    /// The guest sent it; otherwise a client did.
    pub by_guest: bool,
}

/// All that a capture tells of requests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Requests {
    /// In the order in which they were asked.
    pub all: Vec<Request>,
    /// Data that was on the wire before.
    pub again: Vec<Again>,
    /// How many conversations there are.
    pub conversations: usize,
    /// Requests that were not kept: there are too many.
    pub left_out: usize,
}

impl Requests {
    /// The longest time that a client waited for an answer.
    pub fn longest(&self) -> Option<f64> {
        self.all.iter().filter_map(|request| Some(request.answered? - request.asked)).max_by(f64::total_cmp)
    }
}

/// A conversation as it goes on.
#[derive(Debug, Default)]
struct Conversation {
    number: usize,
    /// Number behind the last byte that each side has sent: client, guest.
    sent: [Option<u32>; 2],
    /// Requests without an answer: the number behind it, and where it is kept.
    waiting: Vec<(u32, Option<usize>)>,
    /// UDP: the guest's last datagram.
    last: Vec<u8>,
}

/// Reads what passes by.
#[derive(Debug, Default)]
pub struct Reader {
    conversations: HashMap<(bool, End, End), Conversation>,
    found: Requests,
}

impl Reader {
    /// A packet at a time, between the guest `guest` and anybody; others are left alone.
    pub fn packet(&mut self, at: f64, packet: &Packet<'_>, guest: [u8; 4]) {
        let by_guest = match (packet.from.0 == guest, packet.to.0 == guest) {
            (true, false) => true,
            (false, true) => false,
            _ => return,
        };
        let (client, server) = if by_guest { (packet.to, packet.from) } else { (packet.from, packet.to) };
        let tcp = packet.transport != Transport::Udp;
        let key = (tcp, client, server);
        let opens = matches!(packet.transport, Transport::Tcp { opens: true, .. }) && !by_guest;
        if opens {
            // A port that is used again is another conversation.
            self.conversations.remove(&key);
            return;
        }
        if packet.data.is_empty() {
            return;
        }
        let count = &mut self.found.conversations;
        let conversation = self.conversations.entry(key).or_insert_with(|| {
            *count += 1;
            Conversation { number: *count - 1, ..Conversation::default() }
        });
        match packet.transport {
            Transport::Tcp { sequence, acknowledges, .. } => {
                let end = sequence.wrapping_add(u32::try_from(packet.data.len()).unwrap_or(0));
                let sent = &mut conversation.sent[usize::from(by_guest)];
                let new = sent.is_none_or(|sent| is_behind(sent, end));
                if !new {
                    self.found.again.push(Again { at, by_guest });
                    return;
                }
                *sent = Some(end);
                if by_guest {
                    conversation.waiting.retain(|(asked, kept)| {
                        let answered = *asked == acknowledges || is_behind(*asked, acknowledges);
                        if let (true, Some(kept)) = (answered, kept) {
                            self.found.all[*kept].answered = Some(at);
                        }
                        !answered
                    });
                } else {
                    let kept = keep(&mut self.found, conversation.number, at);
                    conversation.waiting.push((end, kept));
                }
            }
            Transport::Udp if by_guest => {
                if conversation.waiting.is_empty() {
                    // An answer to nothing: the same once more.
                    if conversation.last == packet.data {
                        self.found.again.push(Again { at, by_guest });
                    }
                } else if let (_, Some(kept)) = conversation.waiting.remove(0) {
                    self.found.all[kept].answered = Some(at);
                }
                conversation.last = packet.data.to_vec();
            }
            Transport::Udp => {
                if conversation.waiting.len() >= MAX_WAITING {
                    conversation.waiting.remove(0);
                }
                let kept = keep(&mut self.found, conversation.number, at);
                conversation.waiting.push((0, kept));
            }
        }
    }

    /// What was found.
    pub fn finish(self) -> Requests {
        self.found
    }
}

fn keep(found: &mut Requests, conversation: usize, asked: f64) -> Option<usize> {
    if found.all.len() >= MAX_REQUESTS {
        found.left_out += 1;
        return None;
    }
    found.all.push(Request { conversation, asked, answered: None });
    Some(found.all.len() - 1)
}

/// Whether `a` comes before `b` in TCP's numbers, which wrap.
fn is_behind(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: End = ([10, 0, 2, 15], 6379);
    const CLIENT: End = ([10, 0, 2, 2], 50_000);

    fn tcp(from: End, sequence: u32, acknowledges: u32, data: &[u8]) -> Packet<'_> {
        let to = if from == GUEST { CLIENT } else { GUEST };
        let transport = Transport::Tcp { sequence, acknowledges, opens: false };
        Packet { source_mac: [0; 6], from, to, transport, data }
    }

    fn udp(from: End, data: &[u8]) -> Packet<'_> {
        Packet { transport: Transport::Udp, ..tcp(from, 0, 0, data) }
    }

    fn read(packets: &[Packet<'_>]) -> Requests {
        let mut reader = Reader::default();
        for (at, packet) in packets.iter().enumerate() {
            reader.packet(at as f64, packet, GUEST.0);
        }
        reader.finish()
    }

    #[test]
    fn an_answer_is_the_first_new_data_that_acknowledges_the_request() {
        let near_the_end = u32::MAX - 1;
        let found = read(&[
            tcp(CLIENT, near_the_end, 100, b"ask"),
            tcp(GUEST, 100, 1, b""),
            tcp(CLIENT, near_the_end, 100, b"ask"),
            tcp(GUEST, 100, 1, b"answer"),
            tcp(GUEST, 100, 1, b"answer"),
            tcp(CLIENT, 1, 106, b"more"),
        ]);
        let answered = Request { conversation: 0, asked: 0.0, answered: Some(3.0) };
        assert_eq!(found.all, [answered, Request { asked: 5.0, answered: None, ..answered }]);
        let again = [(2.0, false), (4.0, true)].map(|(at, by_guest)| Again { at, by_guest });
        assert_eq!(found.again, again);
        assert_eq!((found.conversations, found.longest()), (1, Some(3.0)));
    }

    #[test]
    fn pushed_data_answers_what_came_before_it_only() {
        let found = read(&[
            tcp(CLIENT, 0, 0, b"one"),
            tcp(CLIENT, 3, 0, b"two"),
            tcp(GUEST, 0, 3, b"1"),
            tcp(GUEST, 1, 6, b"2"),
        ]);
        let times: Vec<_> = found.all.iter().map(|request| (request.asked, request.answered)).collect();
        assert_eq!(times, [(0.0, Some(2.0)), (1.0, Some(3.0))]);
    }

    #[test]
    fn a_port_that_is_used_again_is_another_conversation() {
        let opens = Packet {
            transport: Transport::Tcp { sequence: 5, acknowledges: 0, opens: true },
            ..tcp(CLIENT, 0, 0, b"")
        };
        let found = read(&[tcp(CLIENT, 100, 0, b"one"), opens, tcp(CLIENT, 6, 0, b"two"), tcp(GUEST, 0, 9, b"2")]);
        let told: Vec<_> = found.all.iter().map(|request| (request.conversation, request.answered)).collect();
        assert_eq!(told, [(0, None), (1, Some(3.0))]);
        assert!(found.again.is_empty());
    }

    #[test]
    fn datagrams_are_answered_in_order_and_doubled_ones_are_seen() {
        let found = read(&[udp(CLIENT, b"a"), udp(CLIENT, b"b"), udp(GUEST, b"A"), udp(GUEST, b"B"), udp(GUEST, b"B")]);
        let answers: Vec<_> = found.all.iter().map(|request| request.answered).collect();
        assert_eq!(answers, [Some(2.0), Some(3.0)]);
        assert_eq!(found.again, [Again { at: 4.0, by_guest: true }]);
    }

    #[test]
    fn strangers_are_left_alone() {
        let stranger = ([10, 0, 2, 9], 1);
        let found = read(&[Packet { to: stranger, ..tcp(CLIENT, 0, 0, b"x") }]);
        assert_eq!(found, Requests::default());
    }
}
