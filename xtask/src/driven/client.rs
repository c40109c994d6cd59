//! Clients of the guest `counter`: each sends INCR and waits for the answer, over one connection.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A guest that is silent for longer is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
    line: String,
}

impl Client {
    /// Connects to `service` (`address:port`).
    pub fn connect(service: &str) -> Result<Self> {
        let stream = TcpStream::connect(service).with_context(|| format!("cannot connect to {service}"))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { reader: BufReader::new(stream), line: String::new() })
    }

    /// Increments `key`; the guest's answer.
    pub fn increment(&mut self, key: &str) -> Result<u64> {
        self.ask(key)?;
        self.answer(PATIENCE)?.context("no answer")
    }

    /// Asks for the same, and does not wait.
    pub fn ask(&mut self, key: &str) -> Result<()> {
        self.say(&format!("INCR {key}"))
    }

    /// Sends a command, and does not wait.
    pub fn say(&mut self, command: &str) -> Result<()> {
        self.reader.get_mut().write_all(format!("{command}\r\n").as_bytes()).context("cannot send")
    }

    /// The answer to the oldest question, if it comes within `patience`.
    pub fn answer(&mut self, patience: Duration) -> Result<Option<u64>> {
        self.reader.get_mut().set_read_timeout(Some(patience))?;
        match self.reader.fill_buf().map(<[u8]>::len) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
            other => other.context("no answer")?,
        };
        // It has begun, so that the rest of the line is not far.
        self.reader.get_mut().set_read_timeout(Some(PATIENCE))?;
        self.line.clear();
        let length = self.reader.read_line(&mut self.line).context("no answer")?;
        ensure!(length > 0, "the connection was closed");
        let answer = self.line.strip_prefix(':').and_then(|rest| rest.trim_end().parse().ok());
        answer.map(Some).with_context(|| format!("unexpected answer `{}`", self.line.trim_end()))
    }
}

/// A client that counts in the background and watches for gaps, repeats and silence.
#[derive(Debug)]
pub struct Counting {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<Result<Vec<f64>>>,
}

impl Counting {
    /// Starts on one connection to `service`, with a key of its own.
    pub fn start(service: &str, key: &str) -> Result<Self> {
        let mut client = Client::connect(service)?;
        let first = client.increment(key)?;
        let (stop, key) = (Arc::new(AtomicBool::new(false)), key.to_owned());
        let flag = Arc::clone(&stop);
        let answered = Arc::new(AtomicUsize::new(0));
        let count_of_answers = Arc::clone(&answered);
        let count = move || {
            let mut expected = first;
            let mut times = Vec::new();
            while !flag.load(Ordering::Relaxed) {
                let sent = Instant::now();
                expected += 1;
                let answer = client.increment(&key)?;
                if answer != expected {
                    bail!("answer {answer} where {expected} was due");
                }
                times.push(sent.elapsed().as_secs_f64());
                count_of_answers.store(times.len(), Ordering::Relaxed);
            }
            Ok(times)
        };
        Ok(Self { stop, answered, thread: std::thread::spawn(count) })
    }

    /// How many answers there have been, without the first.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Stops; the seconds that each answer took.
    pub fn finish(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| bail!("the client panicked"))
    }
}

/// Lets `clients` count at the same time for about `time`; the seconds that each answer took, and the answers per second.
pub fn load(service: &str, clients: usize, time: Duration) -> Result<(Vec<f64>, f64)> {
    let clients: Vec<_> =
        (0..clients).map(|index| Counting::start(service, &format!("load-{index}"))).collect::<Result<_>>()?;
    let started = Instant::now();
    super::pause(time)?;
    let seconds = started.elapsed().as_secs_f64();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.finish()?);
    }
    let rate = times.len() as f64 / seconds;
    Ok((times, rate))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A service that answers the given lines, whatever is asked.
    fn service(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(listener.accept().unwrap().0);
            for answer in answers {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn answers_are_read() {
        let mut client = Client::connect(&service(&[":7\r\n", "-ERR no\r\n"])).unwrap();
        assert_eq!(client.increment("x").unwrap(), 7);
        assert!(client.increment("x").unwrap_err().to_string().contains("-ERR no"));
        assert!(client.increment("x").is_err());
    }

    #[test]
    fn an_answer_that_does_not_come_is_no_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = Client::connect(&listener.local_addr().unwrap().to_string()).unwrap();
        client.ask("x").unwrap();
        assert_eq!(client.answer(Duration::from_millis(20)).unwrap(), None);
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b":5\r\n").unwrap();
        assert_eq!(client.answer(PATIENCE).unwrap(), Some(5));
    }

    #[test]
    fn a_repeated_answer_is_found() {
        let counting = Counting::start(&service(&[":1\r\n", ":2\r\n", ":2\r\n"]), "x").unwrap();
        let error = counting.thread.join().unwrap().unwrap_err().to_string();
        assert_eq!(error, "answer 2 where 3 was due");
    }
}
