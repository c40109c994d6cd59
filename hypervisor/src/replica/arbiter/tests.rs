//! A station that asks a server on a network that may be bad. The server is a station, too.

use core::net::Ipv4Addr;
use std::collections::VecDeque;

use pollux_ft::arbiter::Winner;
use pollux_nic::MacAddress;
use proptest::prelude::*;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer};

use super::station::For;
use super::*;
use crate::config::Cidr;

const MACHINE: MacAddress = MacAddress([0x52, 0x54, 0, 0x10, 0, 1]);
const SERVER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 2, 3]);
const GRANTED: &str = "{\"succeeded\":true,\"responses\":[{\"response_put\":{}}]}";
const TIMES: Times = Times { timeout_us: 500_000, retry_us: 200_000 };

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
}

struct Desk {
    own: Own,
    server: Station,
    listener: SocketHandle,
    replies: VecDeque<Reply>,
    asked: usize,
    now_us: u64,
    rng: u64,
    /// Of 256 frames so many are lost, and so many come twice.
    loss: u8,
    twice: u8,
    cut: bool,
    sent: Vec<Vec<u8>>,
}

impl Desk {
    fn new(replies: &[Reply]) -> Self {
        let mut station = Station::new(MACHINE, cidr("10.0.2.21/24"), None, 1);
        let caller = Caller::new("client", "10.0.2.3:2379".parse().unwrap(), TIMES, 7, &mut station.stack);
        let mut server = Station::new(SERVER, cidr("10.0.2.3/24"), None, 2);
        server.wake(true);
        let buffer = || SocketBuffer::new(vec![0; 4096]);
        let mut socket = Socket::new(buffer(), buffer());
        // The only one: it must not wait for ever for a machine whose reset was lost.
        socket.set_timeout(Some(smoltcp::time::Duration::from_secs(2)));
        socket.set_keep_alive(Some(smoltcp::time::Duration::from_millis(500)));
        let listener = server.stack.add(socket);
        Self {
            own: Own { station, caller, card: None },
            server,
            listener,
            replies: replies.iter().cloned().collect(),
            asked: 0,
            now_us: 1_000_000,
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
        self.now_us += 1000;
        let answer = self.own.turn(self.now_us, question);
        while let Some(frame) = self.own.station.next_frame() {
            self.sent.push(frame.clone());
            for _ in 0..self.copies() {
                self.server.offer(&frame);
            }
        }
        self.server.poll(self.now_us);
        self.serve();
        self.server.poll(self.now_us);
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
        let socket = self.server.stack.socket::<Socket<'_>>(self.listener);
        if !socket.is_open() && !self.replies.is_empty() && socket.remote_endpoint().is_none() {
            socket.listen(2379).unwrap();
        }
        // The question has one known length; it is answered when all of it is there.
        let whole = question(1).request("10.0.2.3:2379").len();
        if socket.recv_queue() < whole {
            return;
        }
        let request = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
        assert!(request.starts_with(b"POST /v3/kv/txn HTTP/1.1\r\nHost: 10.0.2.3:2379\r\n"));
        self.asked += 1;
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
            Some(Reply::Reset) => socket.abort(),
            Some(Reply::Nothing) | None => {}
        }
    }

    /// Asks for at most so many seconds of the desk's time.
    fn ask(&mut self, seconds: u64) -> Option<Answer> {
        let question = question(1);
        self.own.station.wake(true);
        self.own.caller.begin(self.now_us);
        (0..seconds * 1000).find_map(|_| self.step(Some(&question)))
    }

    fn counts(&self) -> (u64, u64) {
        (self.own.caller.counts().tries, self.own.caller.counts().failures)
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
    assert_eq!(desk.own.poll_at(desk.now_us), None);
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
    assert!((14..=15).contains(&tries), "one in {} ms: {tries}", (TIMES.timeout_us + TIMES.retry_us) / 1000);
    desk.cut = false;
    assert_eq!(desk.ask(3), Some(Answer::Granted));
}

#[test]
fn a_withdrawn_question_ends_the_connection() {
    let mut desk = Desk::new(&[Reply::Nothing]);
    desk.own.station.wake(true);
    desk.own.caller.begin(desk.now_us);
    for _ in 0..100 {
        assert_eq!(desk.step(Some(&question(1))), None);
    }
    assert_eq!(desk.asked, 1);
    desk.step(None);
    assert!(!desk.own.station.is_awake());
    let socket = desk.server.stack.socket::<Socket<'_>>(desk.listener);
    assert!(!socket.is_open(), "{}", socket.state());
}

#[test]
fn an_idle_station_is_deaf_and_mute() {
    let mut desk = Desk::new(&[]);
    let mut other = Station::new(SERVER, cidr("10.0.2.3/24"), None, 3);
    other.wake(true);
    let buffer = || SocketBuffer::new(vec![0; 1024]);
    let handle = other.stack.add(Socket::new(buffer(), buffer()));
    other.stack.connect(handle, (smoltcp::wire::IpAddress::v4(10, 0, 2, 21), 22).into(), 50_000).unwrap();
    for ms in 0..3000 {
        other.poll(ms * 1000);
        while let Some(frame) = other.next_frame() {
            assert!(desk.own.station.offer(&frame), "a broadcast is for the guest, too");
        }
        assert_eq!(desk.own.turn(ms * 1000, None), None);
        assert_eq!(desk.own.station.next_frame(), None);
        assert_eq!(desk.own.station.waiting(), 0);
    }
}

#[test]
fn frames_are_told_apart() {
    let mut station = Station::new(MACHINE, cidr("10.0.2.21/24"), None, 1);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

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
        desk.own.station.wake(true);
        desk.own.caller.begin(0);
        if frame.len() >= 14 && kind > 0 {
            frame[..6].copy_from_slice(&if kind == 1 { [0xFF; 6] } else { MACHINE.0 });
            frame[12..14].copy_from_slice(&if kind == 3 { [8, 0] } else { [8, 6] });
        }
        desk.own.station.offer(&frame);
        desk.step(Some(&question(1)));
    }
}
