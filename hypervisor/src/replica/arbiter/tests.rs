//! A station that asks a server on a network that may be bad. The server is a station, too.

use core::net::Ipv4Addr;
use std::collections::VecDeque;

use pollux_ft::PairKey;
use pollux_ft::arbiter::Winner;
use pollux_ft::arbiter::sealed::{self, ArbiterKey, Received, Verdict};
use pollux_nic::MacAddress;
use proptest::prelude::*;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::*;
use crate::config::Cidr;
use crate::random::Random;
use crate::replica::station::For;

const MACHINE: MacAddress = MacAddress([0x52, 0x54, 0, 0x10, 0, 1]);
const SERVER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 2, 3]);
const GRANTED: &str = "{\"succeeded\":true,\"responses\":[{\"response_put\":{}}]}";
/// What an etcd answers to a look if it would give a term, and what if it is full.
const WELL: &str = "{\"header\":{\"revision\":\"7\"}}";
const FULL: &str = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n\r\n\
                    {\"error\":\"etcdserver: mvcc: database space exceeded\",\"code\":8}";
/// Milliseconds between two looks, and between two tries of one.
const INTERVAL: u64 = 10_000;
const AGAIN: u64 = 1000;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// What the server does when a question has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Body(String),
    Raw(&'static str),
    Reset,
    Nothing,
    /// To a sealed question: this.
    Says(Verdict),
    /// What it last said so.
    SaysAgain,
    /// The same, with a bit changed.
    Forged,
    /// The question.
    Mirror,
}

struct Desk {
    own: Own,
    /// With it questions are sealed.
    key: Option<ArbiterKey>,
    said: Vec<u8>,
    server: Station,
    /// Two, as the second connection of a machine may come before the end of its first.
    listeners: [SocketHandle; 2],
    replies: VecDeque<Reply>,
    asked: usize,
    now: Time,
    rng: u64,
    /// Of 256 frames so many are lost, and so many come twice.
    loss: u8,
    twice: u8,
    cut: bool,
    sent: Vec<Vec<u8>>,
}

impl Desk {
    fn new(replies: &[Reply]) -> Self {
        Self::with(None, &["10.0.2.3:2379"], replies)
    }

    /// A machine that has the addresses `servers` for its arbiter, and speaks to it with `key`; it answers at 10.0.2.3:2379.
    fn with(key: Option<ArbiterKey>, servers: &[&str], replies: &[Reply]) -> Self {
        let manner = key.clone().map_or(Manner::Etcd, Manner::Sealed);
        Self::in_manners(&[manner], key, servers, replies)
    }

    /// One that speaks in several manners, to an arbiter that has `key`.
    fn in_manners(manners: &[Manner], key: Option<ArbiterKey>, servers: &[&str], replies: &[Reply]) -> Self {
        let mut station = Station::new(MACHINE, cidr("10.0.2.21/24"), None, Random::new([1; 32]));
        let (options, mut random) = (ArbiterOptions::default(), Random::new([4; 32]));
        let mut way = |server: &&str| {
            let server: core::net::SocketAddrV4 = server.parse().unwrap();
            station.talk_to(*server.ip());
            Way::new("client", server, manners, &options, &mut random, &mut station.stack)
        };
        let ways = servers.iter().map(&mut way).collect();
        let mut server = Station::new(SERVER, cidr("10.0.2.3/24"), None, Random::new([2; 32]));
        server.wake(true);
        let listeners = [(); 2].map(|()| {
            let buffer = || SocketBuffer::new(vec![0; 4096]);
            let mut socket = Socket::new(buffer(), buffer());
            // They must not wait for ever for a machine whose reset was lost.
            socket.set_timeout(Some(smoltcp::time::Duration::from_secs(2)));
            socket.set_keep_alive(Some(smoltcp::time::Duration::from_millis(500)));
            server.stack.add(socket)
        });
        Self {
            own: Own { station, ways },
            key,
            said: Vec::new(),
            server,
            listeners,
            replies: replies.iter().cloned().collect(),
            asked: 0,
            now: Time(1_000_000),
            rng: 0x1234_5678,
            loss: 0,
            twice: 0,
            cut: false,
            sent: Vec::new(),
        }
    }

    fn chance(&mut self, of_256: u8) -> bool {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 32) as u8 >= 255 - of_256 && of_256 > 0
    }

    /// One millisecond.
    fn step(&mut self, question: Option<&Question>) -> Option<Answer> {
        self.step_with(question, None)
    }

    fn step_with(&mut self, question: Option<&Question>, look: Option<&Look>) -> Option<Answer> {
        self.now = self.now.after(Span::from_millis(1));
        let answer = self.own.turn(self.now, question, look);
        while let Some(frame) = self.own.station.next_frame() {
            self.sent.push(frame.clone());
            for _ in 0..self.copies() {
                self.server.offer(&frame);
            }
        }
        self.server.poll(self.now);
        self.serve();
        self.server.poll(self.now);
        while let Some(frame) = self.server.next_frame() {
            for _ in 0..self.copies() {
                assert!(!self.own.station.offer(&frame) || frame[0] == 0xFF, "only broadcasts are for the guest, too");
            }
        }
        answer
    }

    fn copies(&mut self) -> usize {
        if self.cut || self.chance(self.loss) { 0 } else { 1 + usize::from(self.chance(self.twice)) }
    }

    fn serve(&mut self) {
        for listener in self.listeners {
            self.serve_at(listener);
        }
    }

    fn serve_at(&mut self, listener: SocketHandle) {
        let socket = self.server.stack.socket::<Socket<'_>>(listener);
        if !socket.is_open() && !self.replies.is_empty() && socket.remote_endpoint().is_none() {
            socket.listen(2379).unwrap();
        }
        // It is answered when all of it is there.
        let (key, said) = (&self.key, &mut self.said);
        let whole = |bytes: &[u8]| {
            if key.is_some() {
                return (sealed::length(bytes) == Ok(Some(bytes.len()))).then_some(());
            }
            let text = String::from_utf8_lossy(bytes);
            let (head, body) = text.split_once("\r\n\r\n")?;
            let length = head.split("Content-Length: ").nth(1)?.lines().next()?.parse().ok()?;
            (body.len() == length).then_some(())
        };
        let Ok(Some(request)) = socket.recv(|bytes| match whole(bytes) {
            Some(()) => (bytes.len(), Some(bytes.to_vec())),
            None => (0, None),
        }) else {
            return;
        };
        let plain = request.starts_with(b"POST /v3/kv/txn HTTP/1.1\r\nHost: 10.0.2.3:2379\r\n");
        assert_eq!(plain, key.is_none());
        self.asked += 1;
        if let Some(key) = key
            && sealed::fingerprint(&request) != Ok(key.fingerprint())
        {
            // Who has no key that it knows hears nothing.
            return socket.close();
        }
        match self.replies.pop_front() {
            Some(Reply::Body(body)) => {
                let length = body.len();
                socket
                    .send_slice(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())
                    .unwrap();
                socket.close();
            }
            Some(Reply::Raw(text)) => {
                socket.send_slice(text.as_bytes()).unwrap();
                socket.close();
            }
            Some(Reply::Says(verdict)) => {
                let (key, nonce) = (key.as_ref().unwrap(), [self.asked as u8; 24]);
                *said = Received::open(key, &request).unwrap().answer(key, nonce, ArbiterId(5), &verdict);
                socket.send_slice(said).unwrap();
                socket.close();
            }
            Some(odd @ (Reply::SaysAgain | Reply::Forged | Reply::Mirror)) => {
                let mut bytes = if odd == Reply::Mirror { request } else { said.clone() };
                if odd == Reply::Forged {
                    bytes[60] ^= 1;
                }
                socket.send_slice(&bytes).unwrap();
                socket.close();
            }
            Some(Reply::Reset) => socket.abort(),
            Some(Reply::Nothing) | None => {}
        }
    }

    /// Looks for so many milliseconds; the news of that time.
    fn look(&mut self, millis: u64) -> Vec<String> {
        self.look_of(millis, &Look::new("pair"))
    }

    fn look_of(&mut self, millis: u64, look: &Look) -> Vec<String> {
        let mut news = Vec::new();
        for _ in 0..millis {
            assert_eq!(self.step_with(None, Some(look)), None, "a look gives no term");
            news.extend(self.own.ways[0].take_news().map(|news| news.to_string()));
        }
        news
    }

    fn looks(&self) -> (u64, u64) {
        let [_, looks] = self.own.ways[0].counts();
        (looks.tries, looks.failures)
    }

    /// Asks for at most so many seconds of the desk's time.
    fn ask(&mut self, seconds: u64) -> Option<Answer> {
        let question = question(1);
        self.own.begin(self.now);
        (0..seconds * 1000).find_map(|_| self.step(Some(&question)))
    }

    fn counts(&self) -> (u64, u64) {
        let [questions, _] = self.own.ways[0].counts();
        (questions.tries, questions.failures)
    }
}

fn question(term: u64) -> Question {
    Question::new("pair", Term(term), NodeId(0xAA), "castor")
}

fn granted() -> Reply {
    Reply::Body(GRANTED.to_string())
}

#[test]
fn a_term_is_granted_and_the_station_sleeps_again() {
    let mut desk = Desk::new(&[granted()]);
    assert_eq!(desk.ask(1), Some(Answer::Granted));
    assert_eq!((desk.counts(), desk.asked), ((1, 0), 1));
    assert!(!desk.own.station.is_awake());
    assert_eq!(desk.own.poll_at(desk.now, false), None);
    assert!(desk.sent.iter().all(|frame| frame[6..12] == MACHINE.0), "all in the machine's name");
}

#[test]
fn the_winner_is_named() {
    let taken = "{\"responses\":[{\"response_range\":{\"kvs\":[{\"key\":\"cG9sbHV4L3BhaXIvMQ==\",\
                 \"value\":\"MDAwMDAwMDAwMDAwMDBiYiBwb2xsdXg=\"}]}}]}";
    let mut desk = Desk::new(&[Reply::Body(taken.to_string())]);
    let by = Winner { node: Some(NodeId(0xBB)), machine: "pollux".into() };
    assert_eq!(desk.ask(1), Some(Answer::Taken { by }));
}

#[test]
fn what_is_no_answer_is_asked_again() {
    let replies = [
        Reply::Raw("HTTP/1.1 503 no leader\r\n\r\n"),
        Reply::Raw("nonsense\n"),
        Reply::Body("{}".to_string()),
        Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        Reply::Reset,
        Reply::Nothing,
        granted(),
    ];
    let mut desk = Desk::new(&replies);
    assert_eq!(desk.ask(10), Some(Answer::Granted));
    assert_eq!((desk.counts(), desk.asked), ((7, 6), 7));
}

#[test]
fn nobody_listens_for_a_while() {
    let mut desk = Desk::new(&[]);
    assert_eq!(desk.ask(3), None);
    // A refusal comes at once, so the pause decides how many.
    let (tries, failures) = desk.counts();
    assert!((14..=15).contains(&tries) && failures >= tries - 1, "{tries} tries, {failures} failures");
    desk.replies.push_back(granted());
    assert_eq!(desk.ask(1), Some(Answer::Granted));
}

#[test]
fn a_cut_cable_is_waited_for_and_mended() {
    let mut desk = Desk::new(&[granted()]);
    desk.cut = true;
    assert_eq!(desk.ask(10), None);
    let (tries, _) = desk.counts();
    assert!((14..=15).contains(&tries), "one in 700 ms: {tries}");
    desk.cut = false;
    assert_eq!(desk.ask(3), Some(Answer::Granted));
}

#[test]
fn a_withdrawn_question_ends_the_connection() {
    let mut desk = Desk::new(&[Reply::Nothing]);
    desk.own.begin(desk.now);
    for _ in 0..100 {
        assert_eq!(desk.step(Some(&question(1))), None);
    }
    assert_eq!(desk.asked, 1);
    desk.step(None);
    assert!(!desk.own.station.is_awake());
    for listener in desk.listeners {
        let socket = desk.server.stack.socket::<Socket<'_>>(listener);
        assert!(matches!(socket.state(), State::Closed | State::Listen), "{}", socket.state());
    }
}

#[test]
fn an_idle_station_is_deaf_and_mute() {
    let mut desk = Desk::new(&[]);
    let mut other = Station::new(SERVER, cidr("10.0.2.3/24"), None, Random::new([3; 32]));
    other.wake(true);
    let buffer = || SocketBuffer::new(vec![0; 1024]);
    let handle = other.stack.add(Socket::new(buffer(), buffer()));
    other.stack.connect(handle, (smoltcp::wire::IpAddress::v4(10, 0, 2, 21), 22).into()).unwrap();
    for ms in 0..3000 {
        let now = Time(ms * 1000);
        other.poll(now);
        while let Some(frame) = other.next_frame() {
            assert!(desk.own.station.offer(&frame), "a broadcast is for the guest, too");
        }
        assert_eq!(desk.own.turn(now, None, None), None);
        assert_eq!(desk.own.station.next_frame(), None);
        assert_eq!(desk.own.station.waiting(), 0);
    }
}

#[test]
fn frames_are_told_apart() {
    let mut station = Station::new(MACHINE, cidr("10.0.2.21/24"), None, Random::new([1; 32]));
    let mut frame = pollux_nic::frame::announcement(SERVER, Some(Ipv4Addr::new(10, 0, 2, 21)));
    assert_eq!(station.whose(&frame), For::Both);
    frame[21] = 2;
    assert_eq!(station.whose(&frame), For::Guest, "a reply");
    let other = pollux_nic::frame::announcement(SERVER, Some(Ipv4Addr::new(10, 0, 2, 15)));
    assert_eq!(station.whose(&other), For::Guest);
    frame[..6].copy_from_slice(&MACHINE.0);
    assert_eq!(station.whose(&frame), For::Machine);
    station.wake(true);
    for _ in 0..1000 {
        assert!(!station.offer(&frame));
    }
    assert_eq!(station.waiting(), 32, "what waits is bounded");
}

/// What others send to the machine takes no place from the arbiter's answer, and teaches the machine nothing.
#[test]
fn junk_crowds_out_nobody() {
    let mut station =
        Station::new(MACHINE, cidr("10.0.2.21/24"), Some(Ipv4Addr::new(10, 0, 2, 1)), Random::new([1; 32]));
    station.talk_to(Ipv4Addr::new(10, 1, 0, 3));
    station.wake(true);
    let request = |from: [u8; 4]| {
        let mut frame = pollux_nic::frame::request_for(Ipv4Addr::new(10, 0, 2, 21), SERVER, from.into());
        frame[..6].copy_from_slice(&MACHINE.0);
        frame
    };
    // An Ethernet and an IPv4 header with nothing behind; the checksums are not looked at.
    let packet = |from: [u8; 4]| {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&MACHINE.0);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&20u16.to_be_bytes());
        frame[26..30].copy_from_slice(&from);
        frame
    };
    for number in 0..1000u16 {
        let [high, low] = number.to_be_bytes();
        assert!(!station.offer(&request([10, 0, high, low.max(4)])) && !station.offer(&packet([192, 0, high, low])));
        assert!(!station.offer(&[&MACHINE.0[..], &[0xff; 54]].concat()));
    }
    assert_eq!(station.waiting(), 0);
    for (count, frame) in [packet([10, 1, 0, 3]), request([10, 0, 2, 1]), request([10, 1, 0, 3])].iter().enumerate() {
        assert!(!station.offer(frame));
        assert_eq!(station.waiting(), count + 1);
    }
}

#[test]
fn a_well_arbiter_is_looked_at_now_and_then() {
    let mut desk = Desk::new(&vec![Reply::Body(WELL.to_string()); 9]);
    assert_eq!(desk.look(3 * INTERVAL + 500), [""; 0]);
    assert_eq!((desk.looks(), desk.counts(), desk.asked), ((4, 0), (0, 0), 4));
    assert!(!desk.own.station.is_awake());
    assert!(desk.own.poll_at(desk.now, true).is_some_and(|at| at > desk.now.after(Span::from_millis(9000))));
}

#[test]
fn a_full_arbiter_is_told_of_at_once_and_when_it_is_well_again() {
    let mut replies = vec![Reply::Raw(FULL); 3];
    replies.extend(vec![Reply::Body(WELL.to_string()); 3]);
    let mut desk = Desk::new(&replies);
    let news = desk.look(500);
    assert_eq!(news.len(), 1);
    for part in ["10.0.2.3:2379", "client network", "\"etcdserver: mvcc: database space exceeded\"", "alarm disarm"] {
        assert!(news[0].contains(part), "{part} is not in {}", news[0]);
    }
    assert!(desk.own.ways[0].trouble().unwrap().contains("space exceeded"));
    // The same again is no news.
    assert_eq!(desk.look(2 * INTERVAL), [""; 0]);
    assert_eq!(desk.look(INTERVAL), ["the arbiter at 10.0.2.3:2379, over the client network, is well again"]);
    assert_eq!(desk.own.ways[0].trouble(), None);
}

fn key() -> ArbiterKey {
    ArbiterKey::from(&PairKey::new(&[1; 32]))
}

/// What was recorded, changed or sent back is no answer, be it to a question or to a look: it is counted, and asked again.
#[test]
fn only_the_arbiter_itself_answers_a_machine_with_a_key() {
    let says = |verdict| Reply::Says(verdict);
    let mut desk = Desk::with(Some(key()), &["10.0.2.3:2379"], &[says(Verdict::Granted)]);
    assert_eq!(desk.ask(1), Some(Answer::Granted));
    let odd = [Reply::SaysAgain, Reply::Forged, Reply::Mirror, Reply::Nothing, Reply::Body("{}".into())];
    desk.replies = odd.into_iter().chain([says(Verdict::Taken("000000000000000d pollux".into()))]).collect();
    let by = Winner { node: Some(NodeId(0xD)), machine: "pollux".into() };
    assert_eq!(desk.ask(10), Some(Answer::Taken { by }));
    let [questions, _] = desk.own.ways[0].counts();
    assert_eq!((questions.tries, questions.failures, questions.unauthentic), (7, 5, 4));
    // A look: trouble at once, in the arbiter's own words, and none when it is well.
    desk.replies = [says(Verdict::Refused("the disk is full".into())), says(Verdict::Well(None))].into();
    let news = desk.look(500);
    assert!(news.len() == 1 && news[0].contains("the arbiter says: the disk is full"), "{news:?}");
    assert_eq!(desk.look(INTERVAL).len(), 1);
    let seen = Seen { arbiter: Some(ArbiterId(5)), newest: Some(Term(0)) };
    assert_eq!(desk.own.ways[0].take_seen(), Some(seen));
    // The answer to that look is none to a question.
    desk.replies = [Reply::SaysAgain, says(Verdict::Granted)].into();
    assert_eq!(desk.ask(10), Some(Answer::Granted));
}

/// A pair changes its key: whichever of the two the arbiter has, it answers without delay, and it is known under which.
#[test]
fn an_arbiter_has_the_old_key_or_the_next_one() {
    let [old, next] = [1, 2].map(|byte| ArbiterKey::from(&PairKey::new(&[byte; 32])));
    let both = [next.clone(), old.clone()].map(Manner::Sealed);
    let [next_one, old_one] = both.each_ref();
    let well = || Reply::Says(Verdict::Well(None));
    let mut desk = Desk::in_manners(&both, Some(old.clone()), &["10.0.2.3:2379"], &[Reply::Says(Verdict::Granted)]);
    let ask = |desk: &mut Desk| {
        let begun = desk.now;
        desk.replies = vec![Reply::Says(Verdict::Granted)].into();
        assert_eq!(desk.ask(1), Some(Answer::Granted));
        assert!(desk.now < begun.after(Span::from_millis(50)));
    };
    ask(&mut desk);
    // A look is no trouble, either.
    desk.replies = vec![well()].into();
    assert_eq!(desk.look(500), [""; 0]);
    let knows = |desk: &Desk| [next_one, old_one].map(|manner| desk.own.ways[0].understands(desk.now, manner));
    assert_eq!(knows(&desk), [Some(false), Some(true)]);
    let before = desk.counts();
    ask(&mut desk);
    assert_eq!(desk.counts(), (before.0 + 1, before.1), "under the right one at once");
    // It gets the next one, and the next look finds out.
    desk.key = Some(next);
    desk.replies = vec![well()].into();
    assert_eq!(desk.look(INTERVAL), [""; 0]);
    assert_eq!(desk.own.ways[0].understands(desk.now, next_one), Some(true));
    ask(&mut desk);
    // The old one has gone, and what was found out of it is not for ever.
    assert_eq!(knows(&desk), [Some(true), Some(true)]);
    desk.replies = vec![well()].into();
    desk.look(INTERVAL);
    assert_eq!(knows(&desk), [Some(true), Some(false)]);
    let much_later = desk.now.after(Span::from_millis(5 * INTERVAL));
    assert_eq!(both.each_ref().map(|manner| desk.own.ways[0].understands(much_later, manner)), [None; 2]);
    ask(&mut desk);
    // A machine that forgets the old one does not need to look again; one that does nothing else looks at once.
    let (now, way) = (desk.now, &mut desk.own.ways[0]);
    way.set_manners(now, &both[..1], &mut desk.own.station.stack);
    assert_eq!((way.understands(now, next_one), way.understands(now, old_one)), (Some(true), None));
    desk.replies = vec![well()].into();
    let looks = desk.looks();
    desk.look(100);
    assert_eq!(desk.looks(), (looks.0 + 1, looks.1));
    ask(&mut desk);
    // Nothing is known of one that is away.
    desk.cut = true;
    desk.look(INTERVAL + 3 * (500 + AGAIN));
    assert_eq!(desk.own.ways[0].understands(desk.now, next_one), None);
}

/// A machine that gets a key finds out whether its arbiter has it, too.
#[test]
fn a_look_asks_under_the_key_that_came() {
    let [old, next] = [1, 2].map(|byte| ArbiterKey::from(&PairKey::new(&[byte; 32])));
    let well = || Reply::Says(Verdict::Well(None));
    let mut desk = Desk::with(Some(old.clone()), &["10.0.2.3:2379"], &[well()]);
    desk.look(100);
    let both = [next.clone(), old].map(Manner::Sealed);
    desk.own.ways[0].set_manners(desk.now, &both, &mut desk.own.station.stack);
    desk.replies = vec![well()].into();
    desk.look(100);
    assert_eq!(both.each_ref().map(|manner| desk.own.ways[0].understands(desk.now, manner)), [Some(false), Some(true)]);
    desk.key = Some(next);
    desk.replies = vec![well()].into();
    desk.look(INTERVAL);
    assert_eq!(desk.own.ways[0].understands(desk.now, &both[0]), Some(true));
}

/// A key comes while a question is on its way.
#[test]
fn a_question_is_asked_again_when_a_key_comes() {
    let [old, next] = [1, 2].map(|byte| ArbiterKey::from(&PairKey::new(&[byte; 32])));
    let mut desk = Desk::with(Some(old.clone()), &["10.0.2.3:2379"], &[Reply::Nothing]);
    desk.own.begin(desk.now);
    assert_eq!((0..100).find_map(|_| desk.step(Some(&question(1)))), None);
    assert_eq!(desk.asked, 1);
    let both = [next, old].map(Manner::Sealed);
    desk.own.ways[0].set_manners(desk.now, &both, &mut desk.own.station.stack);
    desk.replies = vec![Reply::Says(Verdict::Granted)].into();
    assert_eq!((0..50).find_map(|_| desk.step(Some(&question(1)))), Some(Answer::Granted));
    assert_eq!(desk.counts().0, 2, "under the one that it was asked with before");
}

/// One of several that does not answer delays nothing.
#[test]
fn all_addresses_are_asked_at_once() {
    let servers = ["10.0.2.9:7003", "10.0.2.3:2379", "10.0.2.8:7003"];
    let mut desk = Desk::with(Some(key()), &servers, &[Reply::Says(Verdict::Granted)]);
    let begun = desk.now;
    assert_eq!(desk.ask(1), Some(Answer::Granted));
    assert!(desk.now < begun.after(Span::from_millis(50)));
}

/// It is known which arbiter answers, and another one than that which the twins agreed on is no help: neither a look nor a
/// term is had from it.
#[test]
fn another_arbiter_is_found_out() {
    let of = |cluster: u64, rest: &str| Reply::Body(format!("{{\"header\":{{\"cluster_id\":\"{cluster}\"}}{rest}}}"));
    let granted = ",\"succeeded\":true,\"responses\":[{\"response_put\":{}}]";
    let mut desk = Desk::new(&[of(5, ""), of(6, ""), of(6, granted), of(5, granted)]);
    assert_eq!(desk.look(500), [""; 0]);
    let seen = Seen { arbiter: Some(ArbiterId(5)), newest: None };
    assert_eq!((desk.own.ways[0].take_seen(), desk.own.ways[0].take_seen()), (Some(seen), None));
    let mut look = Look::new("pair");
    look.agree_on(Some(ArbiterId(5)));
    let news = desk.look_of(INTERVAL, &look);
    assert!(news.len() == 1 && news[0].contains("cluster) 6, and the twins agreed on 5"), "{news:?}");
    assert_eq!(desk.own.ways[0].take_seen(), None);
    let question = question(1).of(Some(ArbiterId(5)));
    desk.own.begin(desk.now);
    let answer = (0..5000).find_map(|_| desk.step(Some(&question)));
    assert_eq!((answer, desk.asked), (Some(Answer::Granted), 4), "the first grant was a stranger's");
}

#[test]
fn one_lost_look_is_no_trouble_and_three_are() {
    let well = Reply::Body(WELL.to_string());
    let mut desk = Desk::new(&[Reply::Nothing, Reply::Reset, well.clone(), Reply::Nothing, Reply::Reset, well]);
    assert_eq!(desk.look(2 * INTERVAL), [""; 0]);
    assert_eq!(desk.looks(), (6, 4));
    desk.cut = true;
    let news = desk.look(INTERVAL + 3 * (500 + AGAIN));
    assert_eq!(news.len(), 1);
    assert!(news[0].contains("no answer in time"), "{news:?}");
    desk.cut = false;
    desk.replies.push_back(Reply::Body(WELL.to_string()));
    assert_eq!(desk.look(INTERVAL + 500).len(), 1);
}

#[test]
fn a_question_breaks_off_a_look() {
    let mut desk = Desk::new(&[Reply::Nothing, granted()]);
    desk.look(200);
    assert_eq!((desk.asked, desk.looks()), (1, (1, 0)));
    let begun = desk.now;
    assert_eq!(desk.ask(1), Some(Answer::Granted));
    assert!(desk.now.since(begun) < Span::from_millis(50), "{:?}", desk.now.since(begun));
    assert_eq!(desk.looks(), (1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// However looks fare, and whenever the question comes: the answer is there as soon as without them.
    #[test]
    fn looks_never_delay_a_question(
        before in 0u64..25_000, seed in 1u64.., loss in 0u8..200, kinds in prop::collection::vec(0usize..5, 0..30),
    ) {
        let reply = |kind| match kind {
            0 => Reply::Nothing,
            1 => Reply::Reset,
            2 => Reply::Raw(FULL),
            3 => Reply::Body(WELL.to_string()),
            // Even an arbiter that answers a look as it would a bid gives no term by that.
            _ => granted(),
        };
        let mut desk = Desk::new(&kinds.into_iter().map(reply).collect::<Vec<_>>());
        (desk.rng, desk.loss) = (seed, loss);
        desk.look(before);
        desk.loss = 0;
        // The server may hold on to connections whose end was lost; it has few places.
        for listener in desk.listeners {
            desk.server.stack.socket::<Socket<'_>>(listener).abort();
        }
        desk.server.poll(desk.now);
        desk.replies = vec![granted(); 9].into();
        desk.serve();
        let begun = desk.now;
        prop_assert_eq!(desk.ask(2), Some(Answer::Granted));
        prop_assert!(desk.now.since(begun) < Span::from_millis(50), "{:?}", desk.now.since(begun));
    }

    /// Loss, doubling and odd replies delay the answer, and never change it.
    #[test]
    fn a_bad_network_only_delays(seed in 1u64.., loss in 0u8..60, twice in 0u8..100, bad in 0usize..4) {
        let mut replies = vec![Reply::Nothing; bad];
        replies.extend(vec![granted(); 400]);
        let mut desk = Desk::new(&replies);
        (desk.rng, desk.loss, desk.twice) = (seed, loss, twice);
        prop_assert_eq!(desk.ask(600), Some(Answer::Granted));
    }

    #[test]
    fn any_frame_is_survived(mut frame in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..4) {
        let mut desk = Desk::new(&[]);
        desk.own.begin(Time(0));
        if frame.len() >= 14 && kind > 0 {
            frame[..6].copy_from_slice(&if kind == 1 { [0xFF; 6] } else { MACHINE.0 });
            frame[12..14].copy_from_slice(&if kind == 3 { [8, 0] } else { [8, 6] });
        }
        desk.own.station.offer(&frame);
        desk.step(Some(&question(1)));
    }
}
